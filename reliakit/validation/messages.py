"""The wording of a problem: the schema's own, then the catalogue's, then the built-in one.

No message is ever made from the value. Its parameters come only from the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from string import Formatter
from typing import TYPE_CHECKING, Any, cast

from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from reliakit.validation.document import Json, Step

__all__ = ["Catalogue", "Messages", "Template", "from_schema", "suggestion"]

Template = str | Callable[[Mapping[str, object]], str]
Messages = Mapping[str, Template | Mapping[str, Template]]

_ENGLISH: dict[str, str] = {
    "additionalProperties": "is not allowed here",
    "anyOf": "fits none of the allowed forms",
    "const": "must be {expected}",
    "contains": "must contain at least one item of the required form",
    "contentEncoding": "must be encoded as {encoding}",
    "contentMediaType": "must hold {media_type}",
    "dependentRequired": "is required here",
    "enum": "must be one of {options}",
    "exclusiveMaximum": "must be less than {limit}",
    "exclusiveMinimum": "must be more than {limit}",
    "falseSchema": "is not allowed here",
    "format": "must be a valid {format}",
    "json": "must be a JSON value",
    "maxContains": "contains too many items of the limited form",
    "maxDepth": "is nested more than {limit} levels deep",
    "maxItems": "must have at most {limit} items",
    "maxLength": "must be at most {limit} characters long",
    "maxProperties": "must have at most {limit} properties",
    "maximum": "must be at most {limit}",
    "minContains": "contains too few items of the required form",
    "minItems": "must have at least {limit} items",
    "minLength": "must be at least {limit} characters long",
    "minProperties": "must have at least {limit} properties",
    "minimum": "must be at least {limit}",
    "multipleOf": "must be a multiple of {multiple_of}",
    "not": "must not be of the excluded form",
    "oneOf": "must fit exactly one of the allowed forms",
    "pattern": "must match the pattern {pattern}",
    "propertyNames": "has a property whose name is not allowed",
    "required": "is required",
    "tooLarge": "is not of the required form, and too large to tell where",
    "type": "must be {types}",
    "unevaluatedItems": "has more items than are allowed",
    "unevaluatedProperties": "is not allowed here",
    "uniqueItems": "must not hold the same item twice",
}
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_PARAMETERS = (
    "encoding",
    "expected",
    "format",
    "limit",
    "media_type",
    "multiple_of",
    "options",
    "pattern",
    "property",
    "suggestion",
    "types",
)
_LONGEST = 200


class Catalogue:
    """The wording for each code, in the languages that were given.

    Args:
        messages: Templates by code, or by locale and code. A template is a text with parameters in braces, such as
            "at most {limit}", or a callable that takes the parameters, for languages with many plurals. If none of
            the requested languages has a template, "en" is used, and then the built-in wording.

    Raises:
        ConfigurationError: `messages` has another form, or a template names a parameter that its code does not have.
    """

    def __init__(self, messages: Messages | None) -> None:
        self._default: dict[str, Template] = {}
        self._locales: dict[str, dict[str, Template]] = {}
        given = _mapping("messages", messages or {})
        if all(isinstance(templates, Mapping) for templates in given.values()):
            for locale, templates in given.items():
                by_code = _mapping(f"messages[{locale!r}]", templates)
                self._locales[_normal(locale)] = {code: _template(code, text) for code, text in by_code.items()}
        else:
            self._default = {code: _template(code, text) for code, text in given.items()}

    def say(self, code: str, params: Mapping[str, object], locale: str | None) -> str | None:
        """Return the message for a code, or None if there is none.

        Args:
            code: The problem's code.
            params: The rule's parameters.
            locale: A locale such as "de-AT", or the value of an Accept-Language header.
        """
        template: Template | None = self._default.get(code)
        if self._locales and locale:
            for wanted in _wishes(locale):
                template = self._locales.get(wanted, {}).get(code)
                if template is not None or wanted == "en":
                    break
        if template is None:
            template = self._locales.get("en", {}).get(code) or _ENGLISH.get(code)
        if template is None:
            return None
        if not isinstance(template, str):
            return template(params)
        shown = {name: _shown(name, value) for name, value in params.items()}
        hint = f"; did you mean {shown['suggestion']}?" if template in _WITH_HINT and "suggestion" in shown else ""
        return template.format_map(_Gaps(shown)) + hint


_WITH_HINT = frozenset({_ENGLISH["additionalProperties"], _ENGLISH["enum"]})


class _Gaps(dict[str, str]):
    """Leaves a parameter in its braces if a template names it and a check does not have it."""

    def __missing__(self, name: str) -> str:
        return "{" + name + "}"


def _mapping(argument: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in cast("Mapping[object, Any]", value)):
        raise ConfigurationError(f"{argument} must be templates by code, or by locale and code, got {value!r}")
    return cast("Mapping[str, Any]", value)


def _template(code: str, template: object) -> Template:
    if isinstance(template, str):
        try:
            named = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise ConfigurationError(f"messages: the template {template!r} of {code!r} is broken: {error}") from None
        for name in named:
            if not name.isidentifier() or (code in _ENGLISH and name not in _PARAMETERS):
                raise ConfigurationError(
                    f"messages: the template of {code!r} names {name!r}; parameters are {', '.join(_PARAMETERS)}"
                )
        return template
    if callable(template):
        return cast("Template", template)
    raise ConfigurationError(f"messages: the template of {code!r} must be a text or a callable, got {template!r}")


def _normal(locale: str) -> str:
    return locale.strip().lower().replace("_", "-")


def _wishes(header: str) -> list[str]:
    """Return the locales that an Accept-Language header asks for, best first, each with its language after it."""
    weighted: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:20]):
        tag, _, weight = part.partition(";q=")
        try:
            quality = float(weight) if weight else 1.0
        except ValueError:
            quality = 0.0
        if quality > 0:
            weighted.append((-quality, place, _normal(tag)))
    wishes: list[str] = []
    for _, _, tag in sorted(weighted):
        wishes += [tag, tag.partition("-")[0]]
    return wishes


def _shown(name: str, value: object) -> str:
    if name == "types":
        return " or ".join(_TYPES.get(str(kind), str(kind)) for kind in cast("list[object]", value))
    if name == "options":
        options = cast("list[object]", value)
        text = ", ".join(_json(option) for option in options[:20])
        return text if len(options) <= 20 and len(text) <= _LONGEST else f"the {len(options)} allowed values"
    if name in {"expected", "suggestion"}:
        text = _json(value)
        return text if len(text) <= _LONGEST else "the one allowed value"
    return str(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def from_schema(steps: list[Step], keyword: str, params: Mapping[str, object]) -> str | None:
    """Return the message of the schema's own `errorMessage`, innermost first, or None.

    A text stands for everything that is wrong in its schema. A mapping gives texts by keyword, for `required` and
    `properties` also by property, and "_" for the other keywords.
    """
    for node, rest in reversed(steps):
        given = node.get("errorMessage")
        if isinstance(given, str):
            return given
        if isinstance(given, dict):
            text = _by_keyword(given, rest, keyword, params)
            if text is not None:
                return text
    return None


def _by_keyword(given: dict[str, Json], rest: list[str], keyword: str, params: Mapping[str, object]) -> str | None:
    own = len(rest) == 1
    found = given.get(keyword if own else rest[0])
    if isinstance(found, dict):
        name = params.get("property") if own else rest[1]
        found = found.get(name) if isinstance(name, str) else None
    if found is None and own:
        found = given.get("_")
    return found if isinstance(found, str) else None


def suggestion(name: str, steps: list[Step]) -> str | None:
    """Return the property of the schema that this name is probably a misspelling of, or None."""
    if not steps or len(steps[-1][1]) != 1 or len(name) > 64:  # comparing takes quadratic time
        return None
    properties = steps[-1][0].get("properties")
    if not isinstance(properties, dict) or len(properties) > 200:
        return None
    close = get_close_matches(name, properties, n=1, cutoff=0.75)
    return close[0] if close else None
