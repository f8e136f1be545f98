"""What a standard log record holds: its message, the fields given with it, and its exception."""

from __future__ import annotations

import logging
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.core import RESERVED_ATTRS

from reliakit.logs.words import Verdict

if TYPE_CHECKING:
    from reliakit.logs.walk import Walk

__all__ = [
    "ERROR",
    "FIELDS",
    "FOUND",
    "KEPT",
    "REQUEST_ID",
    "RESERVED",
    "Kept",
    "error_of",
    "extras_of",
    "formatted",
    "hidden_args",
    "message_of",
]

FIELDS = "_reliakit_fields"
ERROR = "_reliakit_error"
FOUND = "_reliakit_found"
REQUEST_ID = "_reliakit_event"
KEPT = "_reliakit_kept"
RESERVED = frozenset({*RESERVED_ATTRS, "taskName"})
_NO_FIELDS = RESERVED | {FIELDS, ERROR, FOUND, REQUEST_ID, KEPT}
# The attributes of a record as the standard library makes it, in their order.
_OWN = tuple(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
_LAST_OWN = len(_OWN) - 1
_NOTHING: tuple[str, Any] = ("", None)

# `%s` right after a sensitive word: once formatted, the word and the secret cannot be told apart.
_NAMED_ARGUMENT = re.compile(r"(?<![\w.\-])([\w.\-]++)[\"']?[ \t]*+(?:=>|[:=]|is |was |to )?[ \t]*+[\"']?\Z")
_PLACE = re.compile(r"%(?:%|[-#0+ ]*+(?:\*|\d++)?(?:\.(?:\*|\d++))?[hlL]?[diouxXeEfFgGcrsa])")


class Kept:
    """The exception of a record that was masked for others: only our own handler gets to see it."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException | None = None) -> None:
        self.error: BaseException | None = error

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        """Leave the exception behind when the record goes to another process, or is copied."""
        return (Kept, ())

    def __repr__(self) -> str:
        return "[kept]"


def error_of(record: logging.LogRecord) -> object:
    """Return a record's exception, what was given as `error=` instead of one, or None."""
    attributes = record.__dict__
    given: object = attributes.get(ERROR)
    if given is not None:
        return given
    kept = attributes.get(KEPT)
    if kept is not None and type(kept) is Kept and kept.error is not None:
        return kept.error
    found: object = record.exc_info
    if found is None:
        return None
    if isinstance(found, tuple):
        return found[1]
    return found if isinstance(found, BaseException) else None


def extras_of(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return what a plain logging call gave as `extra`."""
    # A record has its own attributes first and the given ones after them, so the first need not be looked at.
    items = islice(attributes.items(), _LAST_OWN, None)
    if next(items, _NOTHING)[0] == _OWN[_LAST_OWN]:
        extras = dict(items)
        if _NO_FIELDS.isdisjoint(extras):
            return extras
    return {key: value for key, value in attributes.items() if key not in _NO_FIELDS}


def message_of(record: logging.LogRecord, walk: Walk) -> str:
    """Return the formatted message, or the bare one if its arguments do not fit."""
    return formatted(record.msg, record.args, walk)


def formatted(template: object, args: Any, walk: Walk) -> str:
    """Return a message with its arguments in it; arguments right after a sensitive word are hidden.

    If its arguments do not fit, it is returned without them.
    """
    try:
        message = str(template)
    except Exception:  # noqa: BLE001 - an object that cannot be shown is named by its type
        return f"[unprintable {type(template).__name__}]"
    if not args:
        return message
    try:
        text: str = message % hidden_args(message, args, walk)
    except Exception:  # noqa: BLE001 - wrong arguments must not cost the record; they are not shown either
        return message
    return text


def hidden_args(template: str, args: Any, walk: Walk) -> Any:
    """Return the arguments, with those hidden that come right after a sensitive word."""
    if type(args) is not tuple:
        return walk.value(args, 0) if type(args) is dict else args
    hidden: list[Any] = [*args]  # pyright: ignore[reportUnknownArgumentType]  # arguments are of any type
    number = 0
    for place in _PLACE.finditer(template):
        if place[0] == "%%" or number >= len(hidden):
            continue
        number += place[0].count("*")
        name = _NAMED_ARGUMENT.search(template, max(0, place.start() - 80), place.start())
        is_text = place[0][-1] in "sra"
        if name is not None and is_text and number < len(hidden) and type(hidden[number]) in (str, int, bytes):
            verdict = walk.verdict(name[1])
            if verdict is not Verdict.SAFE:
                hidden[number] = walk.sensitive(verdict, hidden[number], 0, name[1])
        number += 1
    return tuple(hidden)
