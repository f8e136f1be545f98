"""The interface to jsonschema-rs: compiled once, always offline, linear regular expressions, no values in messages.

Its traps, and what is done about each:

- It fetches remote references unless told not to: every document must be among the resources.
- Ten thousand nested levels crash the process: the depth is measured first, without recursion.
- It finds all errors before it returns the first, some 15 us each, and copies into each the value around it and the
  options of an `enum`. Its evaluation, ten times as fast, counts them first; for a value with very many errors, or a
  very large one, only the first is reported.
- Even the first error holds all errors of its `anyOf` or `oneOf`: if those may hold lists, nothing more is asked.
- Its messages, and some of its parameters, repeat the value: only parameters of the schema are taken over.
- It leaves "" out of paths: if a value has such a key, its slower evaluation gives the true place.
- It turns what a custom keyword raises into an error of the value: such exceptions are carried past it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from reliakit.core.errors import ConfigurationError
from reliakit.validation.document import node_at

if TYPE_CHECKING:
    import jsonschema_rs

    from reliakit.validation.document import Document

__all__ = ["DEEPEST", "Engine", "Finding", "Shape", "message_of", "shape_of"]

T = TypeVar("T")
R = TypeVar("R")
FormatCheck = Callable[[str], bool]
KeywordCheck = Callable[[Any, Any], str | None]

LARGE = 10_000
DEEPEST = 1_000
_FEW = 100  # members; with fewer, counting the errors is not worth it
_DEEP = 10  # the average depth at which the members of a value of any size may lie
_OPTIONS = 40  # how many take as long to copy as the rest of an error

_SCALARS = frozenset({str, int, float, bool, type(None)})
_FORMATS = frozenset(
    """
    date date-time duration email hostname idn-email idn-hostname ipv4 ipv6 iri iri-reference json-pointer regex
    relative-json-pointer time uri uri-reference uri-template uuid
    """.split()  # noqa: SIM905 - twenty lines otherwise
)

# Parameters that come from the schema. `not` is missing, because what a value must not be is what it is.
_PARAMETERS = {
    "expected_value": "expected",
    "content_encoding": "encoding",
    "content_media_type": "media_type",
    **{name: name for name in ("format", "limit", "multiple_of", "options", "pattern", "property", "types")},
}
# Rules that the engine reports under another one's name, and that the last word of their path tells apart.
_BY_PATH = {
    ("contains", "maxContains"): "maxContains",
    ("contains", "minContains"): "minContains",
    ("falseSchema", "additionalProperties"): "additionalProperties",
    ("falseSchema", "propertyNames"): "propertyNames",
    ("required", "dependencies"): "dependentRequired",
    ("required", "dependentRequired"): "dependentRequired",
}
_MISSING = frozenset({"required", "dependentRequired"})
_UNEXPECTED = frozenset({"additionalProperties", "unevaluatedProperties"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One error, without the value: where, which rule, and the rule's own parameters."""

    pointer: str
    keyword: str
    params: dict[str, object] = field(default_factory=dict[str, object])
    path: tuple[str | int, ...] = ()
    unexpected: str | None = None
    message: str | None = None


class Shape(NamedTuple):
    """What can be said of a value without a schema."""

    too_deep: bool
    members: int
    copied: int  # members that the errors would hold if every list and object had one
    has_empty_key: bool


def shape_of(value: object, max_depth: int) -> Shape:
    """Measure a value level by level, so that no nesting can exhaust the stack. O(members)."""
    level: list[Any] = [] if type(value) in _SCALARS else [value]
    members, copied, has_empty_key = 0, 0, False
    for depth in range(1, max_depth + 1):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                mapping = cast("dict[object, object]", node)
                has_empty_key = has_empty_key or "" in mapping
                children: Any = mapping.values()
            elif isinstance(node, list | tuple):
                children = cast("list[object]", node)
            else:
                continue
            members += len(children)
            copied += len(children) * depth
            inner += [child for child in children if type(child) not in _SCALARS]
        if len(inner) > LARGE:  # a list that contains itself twice doubles at each level
            inner = list({id(child): child for child in inner}.values())
        level = inner
        if not level:
            return Shape(too_deep=False, members=members, copied=copied, has_empty_key=has_empty_key)
    too_deep = any(isinstance(node, dict | list | tuple) for node in level)
    return Shape(too_deep, members, copied, has_empty_key)


class Engine:
    """A compiled schema. Immutable; safe from any thread.

    Args:
        root: The schema.
        resources: The only documents that a `$ref` may lead to.
        document: Both of them, as they were written.
        formats: Checks of formats, asserted.
        check_formats: Whether the built-in formats are asserted too.
        keywords: Checks of keywords.

    Raises:
        ConfigurationError: jsonschema-rs is missing, or it refuses the schema.
    """

    def __init__(
        self,
        root: Any,
        resources: Mapping[str, Any],
        *,
        document: Document,
        formats: Mapping[str, FormatCheck],
        check_formats: bool,
        keywords: Mapping[str, KeywordCheck],
    ) -> None:
        rs = _jsonschema_rs()
        options = max((shape_of(values, DEEPEST).members for values in document.options()), default=0)
        self._most_errors = LARGE // (1 + options // _OPTIONS)
        self._has_wide_choice = document.has_wide_choice()
        silent = dict.fromkeys(_FORMATS, _accept) if formats and not check_formats else {}
        try:
            registry = rs.Registry(list(resources.items()), retriever=_refuse_to_fetch) if resources else None
            self._validator: jsonschema_rs.Validator = rs.validator_for(
                root,
                formats={**silent, **{name: _recorded(check) for name, check in formats.items()}} or None,
                validate_formats=check_formats or bool(formats),
                ignore_unknown_formats=not check_formats,
                registry=registry,
                pattern_options=rs.RegexOptions(),
                keywords={name: _keyword_class(name, check) for name, check in keywords.items()} or None,
                offline=True,
            )
        except (ValueError, TypeError, rs.ReferencingError) as error:
            raise ConfigurationError(f"the schema cannot be used: {_reason(error)}") from None

    def is_valid(self, value: object) -> bool:
        """Return whether the value fits. Raises what a check of the caller raises."""
        return bool(_run(self._validator.is_valid, value))

    def findings(self, value: object, shape: Shape) -> Iterator[Finding]:
        """Yield what is wrong. Raises what a check of the caller raises."""
        all_of_them = self._can_tell_all(value, shape)
        if not all_of_them and self._has_wide_choice:
            yield Finding("", "tooLarge")
            return
        found = _run(self._all_errors if all_of_them else self._first_error, value)
        if found is None:
            yield from not_json(value)
            return
        places = _Places(self._validator, value) if shape.has_empty_key and all_of_them else None
        for error in found:
            yield from _told(error, places, value)

    def _can_tell_all(self, value: object, shape: Shape) -> bool:
        if shape.members <= _FEW:
            return True
        if shape.members > LARGE or shape.copied > LARGE * _DEEP:
            return False
        evaluation = _run(self._validator.evaluate, value)
        return evaluation is None or len(evaluation.errors()) <= self._most_errors

    def _all_errors(self, value: object) -> list[jsonschema_rs.ValidationError]:
        return list(self._validator.iter_errors(value))

    def _first_error(self, value: object) -> list[jsonschema_rs.ValidationError]:
        try:
            self._validator.validate(value)
        except _jsonschema_rs().ValidationError as error:
            return [error.with_traceback(None)]
        return []


def _jsonschema_rs() -> Any:
    try:
        import jsonschema_rs  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "validation needs jsonschema-rs, which is not installed: pip install 'reliakit[validation]'"
        ) from None
    return jsonschema_rs


def _refuse_to_fetch(uri: str) -> Any:
    raise ValueError(f"{uri} is not among the resources, and nothing is fetched")


def _accept(text: str) -> bool:  # noqa: ARG001 - a format that is an annotation
    return True


def _reason(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    if text.endswith('is not a "regex"'):
        text += " of the linear engine, which knows neither look-around nor back-references"
    path = cast("list[str | int]", getattr(error, "instance_path", None) or [])
    return f"{text}, at {_pointer(path)}" if path else text


# What the caller's checks raise while the engine runs, which would turn it into errors of the value.
_faults: ContextVar[list[BaseException] | None] = ContextVar("reliakit_validation_faults", default=None)


def _run(step: Callable[[object], T], value: object) -> T | None:
    """Return the engine's result, or None for a value that JSON cannot hold."""
    seen: list[BaseException] = []
    token = _faults.set(seen)
    result: T | None = None
    try:
        result = step(value)
    except ValueError:
        # The engine's message repeats the value; `not_json` finds the place. A check's own error is raised elsewhere.
        pass
    finally:
        _faults.reset(token)
    if seen:
        raise seen[0]
    return result


def _recorded(check: Callable[..., R]) -> Callable[..., R]:
    def run(*args: Any) -> R:
        try:
            return check(*args)
        except BaseException as error:
            seen = _faults.get()
            if seen is not None:
                seen.append(error)
            raise

    return run


class _KeywordError(ValueError):
    """Carries a keyword's message through the engine."""


def _keyword_class(name: str, check: KeywordCheck) -> type[Any]:
    @_recorded
    def ask(value: object, instance: object) -> str | None:
        return message_of(check(value, instance), by=f"the check of the keyword {name!r}")

    class Keyword:
        def __init__(self, parent: object, value: object, path: object) -> None:  # noqa: ARG002 - the engine's call
            self.value = value

        def validate(self, instance: object) -> None:
            message = ask(self.value, instance)
            if message is not None:
                raise _KeywordError(message)

    return Keyword


def message_of(answer: object, *, by: str) -> str | None:
    """Return a caller's check's answer, if it is a message or None.

    Raises:
        ConfigurationError: It is anything else, such as True.
    """
    if answer is not None and not isinstance(answer, str):
        raise ConfigurationError(f"{by} must return None or a message, not {type(answer).__name__}")
    return answer


def not_json(value: object) -> Iterator[Finding]:
    """Yield the places of everything that JSON cannot hold."""
    found = False
    todo: list[tuple[str, object]] = [("", value)]
    while todo:
        pointer, node = todo.pop()
        if isinstance(node, dict):
            mapping = cast("dict[object, object]", node)
            if all(isinstance(key, str) and _is_text(key) for key in mapping):
                todo += [(f"{pointer}/{escape(cast('str', key))}", child) for key, child in mapping.items()]
                continue
        elif isinstance(node, list | tuple):
            items = cast("list[object]", node)
            todo += [(f"{pointer}/{index}", child) for index, child in enumerate(items)]
            continue
        elif node is None or (_is_text(node) if isinstance(node, str) else isinstance(node, int | float | Decimal)):
            continue
        found = True
        yield Finding(pointer, "json")
    if not found:
        yield Finding("", "json")


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _told(error: jsonschema_rs.ValidationError, places: _Places | None, value: object) -> Iterator[Finding]:
    kind = error.kind.name
    details = error.kind.as_dict()
    if kind in {"anyOf", "oneOf"}:
        branch = _meant(error, details["context"])
        if branch:
            for inner in branch:
                yield from _told(inner, places, value)
            return
    pointer = _pointer(error.instance_path) if places is None else places.of(error)
    path = tuple(error.evaluation_path)
    keyword = _keyword(kind, str(path[-1]) if path else "")
    params = {mine: details[theirs] for theirs, mine in _PARAMETERS.items() if theirs in details}
    if keyword in _MISSING:
        # The engine blames the object that lacks the field; a form wants the field itself.
        yield Finding(f"{pointer}/{escape(str(params['property']))}", keyword, params, path)
    elif keyword in _UNEXPECTED:
        for name in details.get("unexpected") or cast("dict[str, object]", node_at(value, pointer)):
            yield Finding(f"{pointer}/{escape(name)}", keyword, params, path, unexpected=name)
    else:
        message = details["message"] if type(error.kind).__name__.endswith("Custom") else None
        yield Finding(pointer, keyword, params, path, message=message)


def _keyword(kind: str, last: str) -> str:
    return _BY_PATH.get((kind, last), kind)


def _meant(
    error: jsonschema_rs.ValidationError, branches: list[list[jsonschema_rs.ValidationError]]
) -> list[jsonschema_rs.ValidationError] | None:
    """Return the errors of the only branch that the value can have meant: its tag and its type fit."""
    depth = len(error.instance_path)
    possible = [branch for branch in branches if not any(_rules_out(inner, depth) for inner in branch)]
    return possible[0] if len(possible) == 1 else None


def _rules_out(error: jsonschema_rs.ValidationError, depth: int) -> bool:
    below = len(error.instance_path) - depth
    return (below <= 1 and error.kind.name in {"const", "enum"}) or (below == 0 and error.kind.name == "type")


class _Places:
    """The true places of errors in a value that has keys named ""."""

    def __init__(self, validator: jsonschema_rs.Validator, value: object) -> None:
        self._value = value
        self._places: dict[tuple[str, str], list[str]] = {}
        for unit in cast("list[dict[str, Any]]", validator.evaluate(value).list()["details"]):
            if not unit["valid"]:
                place = unit["instanceLocation"]
                known = self._places.setdefault((_squeezed(unit["evaluationPath"]), _squeezed(place)), [])
                if place not in known:
                    known.append(place)
        self._told: dict[tuple[str, str, str], int] = {}

    def of(self, error: jsonschema_rs.ValidationError) -> str:
        """Return the place of this error; errors that look the same take their places in turn."""
        short = _pointer(error.instance_path)
        path = error.evaluation_path
        for owner in (path[:-1], path):
            known = self._places.get((_pointer(owner), short), [])
            known = [place for place in known if node_at(self._value, place) == error.instance] or known
            if known:
                key = (_pointer(path), short, str(error.kind.as_dict().get("property")))
                turn = self._told.get(key, 0)
                self._told[key] = turn + 1
                return known[min(turn, len(known) - 1)]
        return short


def _squeezed(pointer: str) -> str:
    return "".join(f"/{token}" for token in pointer.split("/") if token)


def _pointer(path: list[str | int]) -> str:
    return "".join(f"/{escape(str(token))}" for token in path)


def escape(token: str) -> str:
    """Return a key as a token of a JSON Pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")
