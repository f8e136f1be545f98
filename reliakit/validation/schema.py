"""JSON Schema validation: a document compiled once, and problems that people understand.

```
value ── depth ── JSON Schema ── cross-field checks ──> the same value, or ValidationError(problems)
         <= 64    jsonschema-rs   @schema.check
```

A problem says where (a JSON Pointer), which rule, a stable code and a sentence; it never repeats the value, so it may
be logged and sent. A missing or unexpected property is pointed at itself, not at the object around it, because that
is the field of a form. If a value fits none of several forms (`anyOf`, `oneOf`) and its type or its tag shows which
one was meant, the problems of that one are reported.

Sources: JSON Schema draft 2020-12 and the drafts back to 4, RFC 6901 (pointers), ajv-errors (`errorMessage`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, cast

from reliakit.core import checks
from reliakit.core.context import current_request
from reliakit.core.errors import ConfigurationError, Problem, ValidationError
from reliakit.core.events import ValidationFailed
from reliakit.core.guard import colour_of
from reliakit.core.spine import Emitter
from reliakit.validation.document import Document, check_drafts
from reliakit.validation.engine import DEEPEST, Engine, Finding, message_of, shape_of
from reliakit.validation.messages import Catalogue, Messages, from_schema, suggestion

if TYPE_CHECKING:
    from reliakit.core.spine import Listener

__all__ = ["Schema", "validated"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")
C = TypeVar("C", bound="Callable[[Any], str | None]")
Location = Literal["body", "query", "path", "header"]

_POINTER = re.compile(r"(/([^~/]|~[01])*)*")
_STANDARD = frozenset(
    """
    $anchor $comment $defs $dynamicAnchor $dynamicRef $id $recursiveAnchor $recursiveRef $ref $schema $vocabulary
    additionalItems additionalProperties allOf anyOf const contains contentEncoding contentMediaType contentSchema
    default definitions dependencies dependentRequired dependentSchemas deprecated description else enum errorMessage
    examples exclusiveMaximum exclusiveMinimum format if items maxContains maxItems maxLength maxProperties maximum
    minContains minItems minLength minProperties minimum multipleOf not oneOf pattern patternProperties prefixItems
    properties propertyNames readOnly required then title type unevaluatedItems unevaluatedProperties uniqueItems
    writeOnly
    """.split()  # noqa: SIM905 - sixty lines otherwise
)


class _Check(NamedTuple):
    pointer: str
    code: str
    fn: Callable[[Any], str | None]


class Schema:
    """Validate values against a JSON Schema that was compiled once, and say what is wrong with them.

    ```
    EMPLOYEE = Schema({
        "type": "object",
        "required": ["name", "start"],
        "properties": {"name": {"type": "string", "maxLength": 80}, "start": {"format": "date"}},
    }, check_formats=True)

    employee = EMPLOYEE.validate(body)          # ValidationError: /name is required
    ```

    Make one per document, once; it is safe from any thread and task. Nothing is ever fetched, patterns run in linear
    time, and a value nested too deeply is refused before the engine sees it. About 10 us for a small valid value. For
    a value with more than 10 000 members or problems (fewer if an `enum` is long, or the value deep), only the first
    problem is reported, and if an `anyOf` or `oneOf` may hold lists, only that it does not fit (`tooLarge`).

    Args:
        document: The schema: a mapping or a bool. Without `$schema` it is draft 2020-12.
        resources: Other schemas by their URI, the only ones that a `$ref` may lead to.
        formats: Checks of formats by name, each a plain function that takes a text and returns whether it is valid;
            asserted.
        check_formats: Whether the built-in formats are asserted too; otherwise they are only annotations. An unknown
            format is then refused.
        keywords: Checks of keywords of your own by name, each a plain function (keyword's value, instance) that
            returns None or a message. The message must not repeat the instance.
        messages: Templates by code, or by locale and code: texts with parameters such as "at most {limit}", or
            callables that take the parameters. The schema's own `errorMessage` takes precedence.
        max_depth: How deeply lists and objects may be nested, at most 1000.
        max_errors: The most problems that are reported.
        listeners: Callables that receive this schema's events.

    Raises:
        ConfigurationError: An argument is wrong, the schema is not valid, a `$ref` leads elsewhere, `$schema` is
            unknown, a pattern is not regular, or jsonschema-rs is not installed.
    """

    def __init__(
        self,
        document: Mapping[str, Any] | bool,
        *,
        resources: Mapping[str, Mapping[str, Any] | bool] | None = None,
        formats: Mapping[str, Callable[[str], bool]] | None = None,
        check_formats: bool = False,
        keywords: Mapping[str, Callable[[Any, Any], str | None]] | None = None,
        messages: Messages | None = None,
        max_depth: int = 64,
        max_errors: int = 50,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self._max_depth = checks.count("max_depth", max_depth)
        self._max_errors = checks.count("max_errors", max_errors)
        if max_depth > DEEPEST:
            raise ConfigurationError(f"max_depth must be at most {DEEPEST}: deeper values can crash the engine")
        root = _schema("document", document)
        others = {_uri(uri): _schema(f"resources[{uri!r}]", other) for uri, other in _named("resources", resources)}
        check_drafts(root, others)
        own = dict(_named("keywords", keywords))
        for name, check in (*_named("formats", formats), *own.items()):
            _plain(check, by=f"the check of {name!r}")
        for name in own.keys() & _STANDARD:
            raise ConfigurationError(f"keywords: {name!r} is a keyword of JSON Schema and cannot be another")
        self._catalogue = Catalogue(messages)
        self._document = Document(root, others)
        self._engine = Engine(
            root,
            others,
            document=self._document,
            formats=dict(_named("formats", formats)),
            check_formats=bool(check_formats),
            keywords=own,
        )
        self._checks: tuple[_Check, ...] = ()
        title = root.get("title") if isinstance(root, dict) else None
        self._emitter = Emitter(title if isinstance(title, str) and title else "schema", listeners)
        self._further_settings = "".join(
            f", {argument}={shown}"
            for argument, shown in (
                ("resources", sorted(others)),
                ("formats", sorted(name for name, _ in _named("formats", formats))),
                ("check_formats", bool(check_formats)),
                ("keywords", sorted(own)),
            )
            if shown
        )

    def is_valid(self, value: object) -> bool:
        """Return whether the value fits the schema and passes every check."""
        if shape_of(value, self._max_depth).too_deep or not self._engine.is_valid(value):
            return False
        return all(message_of(check.fn(value), by=_name_of(check)) is None for check in self._checks)

    def problems(self, value: object, *, location: Location = "body", locale: str | None = None) -> list[Problem]:
        """Return everything that is wrong with the value, at most `max_errors` problems; empty if nothing is.

        Args:
            value: A decoded JSON value.
            location: The part of the request that the value came from, for the problems.
            locale: The language of the messages: a locale such as "de-AT" or an Accept-Language header. None takes
                uses the field `locale` of the request context.
        """
        shape = shape_of(value, self._max_depth)
        if shape.too_deep:
            return [self._problem(Finding("", "maxDepth", {"limit": self._max_depth}), location, locale)]
        if self._engine.is_valid(value):
            return list(islice(self._checked(value, location, locale), self._max_errors))
        found = (self._problem(finding, location, locale) for finding in self._engine.findings(value, shape))
        return list(islice(_distinct(found), self._max_errors))

    def validate(self, value: T, *, location: Location = "body", locale: str | None = None) -> T:
        """Return the value itself if it fits.

        Args:
            value: A decoded JSON value.
            location: The part of the request that the value came from, for the problems.
            locale: The language of the messages, see `problems`.

        Raises:
            ValidationError: The value does not fit; `.problems` says why.
        """
        problems = self.problems(value, location=location, locale=locale)
        if problems:
            self._emitter.emit(
                ValidationFailed, keywords=tuple(dict.fromkeys(problem.keyword for problem in problems))
            )
            raise ValidationError(_summary(problems), problems)
        return value

    def check(self, pointer: str, *, code: str = "check") -> Callable[[C], C]:
        """Add a check across fields: a plain function that takes the whole value and returns None or a message.

        It runs once the schema has passed, so it may rely on it. An error that it raises passes through unchanged.
        Its message must not repeat the value.

        ```
        @EMPLOYEE.check("/end_date", code="ends_before_start")
        def ends_after_start(employee):
            return "must not be before the start" if employee["end_date"] < employee["start_date"] else None
        ```

        Args:
            pointer: The JSON Pointer of the field that is to blame.
            code: The problem's stable code, for which `messages` may have other words.

        Raises:
            ConfigurationError: The pointer is not valid, or the decorated object is not a plain function.
        """
        if not isinstance(pointer, str) or not _POINTER.fullmatch(pointer):
            raise ConfigurationError(f'pointer must be a JSON Pointer such as "/end_date" or "", got {pointer!r}')
        checks.named("code", code)

        def add(fn: C) -> C:
            _plain(fn, by="schema.check")
            self._checks = (*self._checks, _Check(pointer, code, fn))
            return fn

        return add

    def _checked(self, value: object, location: Location, locale: str | None) -> Iterator[Problem]:
        for check in self._checks:
            message = message_of(check.fn(value), by=_name_of(check))
            if message is not None:
                text = self._catalogue.say(check.code, {}, _locale(locale)) or message
                yield Problem(check.pointer, "check", check.code, text, {}, location)

    def _problem(self, finding: Finding, location: Location, locale: str | None) -> Problem:
        steps = self._document.steps(finding.path)
        params = finding.params
        if finding.unexpected is not None:
            meant = suggestion(finding.unexpected, steps)
            params = {"suggestion": meant} if meant else {}
        text = (
            from_schema(steps, finding.keyword, params)
            or self._catalogue.say(finding.keyword, params, _locale(locale))
            or finding.message
            or "is not allowed"
        )
        return Problem(finding.pointer, finding.keyword, finding.keyword, text, params, location)

    def __repr__(self) -> str:
        return (
            f"<Schema {self._emitter.name!r} with {len(self._checks)} checks, max_depth={self._max_depth}, "
            f"max_errors={self._max_errors}{self._further_settings}>"
        )


def validated(**schemas: Schema) -> Callable[[F], F]:
    """Validate arguments before a function runs: `@validated(body=EMPLOYEE)`, for `def` and `async def` alike.

    Each keyword names a parameter of the function. A single schema whose name is not a parameter validates the first
    parameter that is not `self` or `cls`. An argument that is left out is not validated. The problems' location is
    the keyword if that is "query", "path" or "header", else "body".

    Args:
        schemas: The schema of each parameter.

    Raises:
        ConfigurationError: No schema is given, a parameter is missing, or the function is a generator, whose body
            would run later than the call.
        ValidationError: At the call: an argument does not fit. The function has not run.
    """
    if not schemas:
        raise ConfigurationError("validated needs the schema of a parameter, such as validated(body=EMPLOYEE)")
    for name, schema in schemas.items():
        if not isinstance(schema, Schema):
            raise ConfigurationError(f"validated({name}=) must be a Schema, got {schema!r}")

    def decorate(fn: F) -> F:
        if isinstance(fn, staticmethod | classmethod):
            method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
            return cast("F", type(method)(_validating(method.__func__, schemas)))
        return cast("F", _validating(fn, schemas))

    return decorate


class _Argument(NamedTuple):
    """Where a call carries the value of one parameter."""

    name: str
    position: int | None
    schema: Schema
    location: Location

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.name in kwargs:
            self.schema.validate(kwargs[self.name], location=self.location)
        elif self.position is not None and self.position < len(args):
            self.schema.validate(args[self.position], location=self.location)


def _validating(fn: Callable[..., Any], schemas: Mapping[str, Schema]) -> Callable[..., Any]:
    colour = colour_of(fn, by="validated")
    if colour.endswith("generator"):
        raise ConfigurationError("validated takes a function, not a generator: validate inside of it")
    arguments = _arguments(fn, schemas)

    if colour == "async":

        @wraps(fn)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            for argument in arguments:
                argument.check(args, kwargs)
            return await fn(*args, **kwargs)

        return run_async

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        for argument in arguments:
            argument.check(args, kwargs)
        return fn(*args, **kwargs)

    return run


def _arguments(fn: Callable[..., Any], schemas: Mapping[str, Schema]) -> list[_Argument]:
    parameters = list(inspect.signature(fn).parameters.values())
    positional = [one.name for one in parameters if one.kind in {one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD}]
    known = [*positional, *(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)]
    first = next((name for name in known if name not in {"self", "cls"}), None)
    arguments: list[_Argument] = []
    for name, schema in schemas.items():
        parameter = name if name in known else first if len(schemas) == 1 else None
        if parameter is None:
            raise ConfigurationError(f"validated({name}=): the function has no parameter {name!r}")
        position = positional.index(parameter) if parameter in positional else None
        location = cast("Location", name) if name in {"query", "path", "header"} else "body"
        arguments.append(_Argument(parameter, position, schema, location))
    return arguments


def _distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    seen: set[tuple[str, str, str]] = set()
    for problem in problems:
        key = (problem.pointer, problem.code, problem.message)
        if key not in seen:
            seen.add(key)
            yield problem


def _summary(problems: list[Problem]) -> str:
    told = "; ".join(f"{problem.pointer or 'the value'} {problem.message}" for problem in problems[:3])
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return told + more


def _locale(locale: str | None) -> str | None:
    if locale is not None:
        return locale
    request = current_request()
    found = request.fields.get("locale") if request is not None else None
    return found if isinstance(found, str) else None


def _schema(argument: str, document: object) -> dict[str, Any] | bool:
    if isinstance(document, bool):
        return document
    if not isinstance(document, Mapping):
        raise ConfigurationError(f"{argument} must be a mapping or a bool, got {type(document).__name__}")
    schema = dict(cast("Mapping[str, Any]", document))
    if shape_of(schema, DEEPEST).too_deep:
        raise ConfigurationError(
            f"{argument} is nested more than {DEEPEST} levels deep or holds itself: refer to the part with $ref"
        )
    return schema


def _named(argument: str, given: Mapping[str, T] | None) -> list[tuple[str, T]]:
    if given is None:
        return []
    if not isinstance(given, Mapping) or not all(isinstance(name, str) and name for name in given):
        raise ConfigurationError(f"{argument} must be a mapping by name, got {given!r}")
    return list(given.items())


def _uri(uri: str) -> str:
    if ":" not in uri or "#" in uri.rstrip("#"):
        raise ConfigurationError(f"resources: {uri!r} must be an absolute URI without a fragment")
    return uri


def _plain(check: object, *, by: str) -> None:
    if colour_of(check, by=by) != "plain":
        raise ConfigurationError(f"{by} takes a plain function, got an async function or a generator")


def _name_of(check: _Check) -> str:
    target: object = check.fn
    while isinstance(target, partial):
        target = cast("partial[object]", target).func
    return f"the check {getattr(target, '__name__', 'of ' + check.pointer)!r}"
