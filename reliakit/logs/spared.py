"""Which values of sensitive fields need no hiding: nothing, a count, a plain word, a marker."""

from __future__ import annotations

import re

from reliakit.logs.spelling import word_set
from reliakit.logs.words import Verdict

__all__ = ["is_hidden", "is_spared", "is_spared_in_text"]

# No value that is spared is longer, so checking for one costs little.
_LONGEST_SPARED = 256
_NOTHING = word_set(
    "none null nil undefined true false yes no n/a na unset empty set missing hidden redacted masked filtered removed"
)
# Annotations in source lines of tracebacks: `def login(name: str, password: str)`.
_TYPES = frozenset(
    {"str", "int", "bytes", "bool", "float", "Any", "object", "string", "String", "SecretStr", "Optional[str]"}
)
_MASKED = re.compile(
    r"\*{3}[\w.+/=\-]{0,4}|\*++|hmac:[0-9a-f]{8}|[\[<(]?(?:redacted|REDACTED|masked|MASKED|[Ff]iltered|FILTERED|hidden|removed)[\]>)]?"
    r"|<(?:not[ _](?:set|given|provided)|unset|none|null|empty|missing)>"
    r"|%s|%\(\w{1,40}\)s|\$\d{1,2}|\?|\{\}|\$\{[A-Z_]{1,40}\}?|\[masking failed\]"
)
_MARKER = "***"
_PLAIN_WORD = re.compile(r"[A-Za-z][a-z]{0,11}")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")


def is_spared_in_text(verdict: Verdict, value: str) -> bool:
    """Return the same for a value in text, where a name may also be followed by things that are not values."""
    return (
        value.lower() in _NOTHING
        or value in _TYPES
        or _MASKED.fullmatch(value) is not None
        or is_spared(verdict, value)
    )


def is_spared(verdict: Verdict, value: str) -> bool:
    """Return whether a value that is a field of its own needs no hiding although the field's name is sensitive."""
    if not value or value == _MARKER:
        return True
    if verdict is Verdict.SECRET:
        return False
    if verdict is Verdict.TALLY:
        return _NUMBER.fullmatch(value) is not None
    if verdict is Verdict.WEAK:
        return _PLAIN_WORD.fullmatch(value) is not None or (len(value) <= 4 and value.isdigit())
    if verdict is Verdict.FOLDER:
        return value.startswith(("/", "~", "./")) or value[1:3] in (":\\", ":/")
    return len(value) < 16 or not any(map(str.isdigit, value)) or any(map(str.isspace, value))


def is_hidden(verdict: Verdict, value: str) -> bool:
    """Return whether a value in text must be hidden."""
    return len(value) > _LONGEST_SPARED or not is_spared_in_text(verdict, value)
