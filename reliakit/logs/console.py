"""The form for a developer's terminal: one readable line a record, masked like the JSON that it replaces.

```
14:03:07.512 INFO     shop.orders  Order created             order_id=7 email=*** request_id=r-1
14:03:07.518 ERROR    shop.orders  Payment failed            order_id=7
    | Traceback (most recent call last):
    |   File "/srv/shop/pay.py", line 12, in pay
    | TimeoutError: no answer
    | category=timeout retry=backoff fingerprint=5e1f...
```

Nothing that is logged can start a line of its own or move the cursor: control characters are shown as escapes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO, cast

from reliakit.logs.encode import encode
from reliakit.logs.formatter import MaskingFormatter

if TYPE_CHECKING:
    from reliakit.logs.masker import Masker

__all__ = ["ConsoleFormatter", "is_terminal", "wants_colour"]

# Control characters, line ends, marks that turn the writing direction, and halves of characters.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# A value that cannot be mistaken for two values, or for one of another type.
_BARE = re.compile(r"[\w.:/@%+*#&~,;!?$\-]++")
_NUMBER = re.compile(r"[+\-]?[0-9]++(?:\.[0-9]++)?(?:[eE][+\-]?[0-9]++)?")
_LIKE_OTHERS = frozenset({"true", "false", "null"})
_MESSAGE_WIDTH = 30
_GUARD = "    | "

_RESET, _BOLD, _DIM, _CYAN = "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"
_COLOURS = {
    "DEBUG": "\x1b[34m",
    "INFO": "\x1b[32m",
    "WARNING": "\x1b[33m",
    "ERROR": "\x1b[31m",
    "CRITICAL": "\x1b[1;31m",
}


class ConsoleFormatter(MaskingFormatter):
    """Make readable lines of a log record, with every secret masked. Never raises.

    Args:
        service: The service's name; not shown, as a terminal shows one service.
        env: Where it runs; not shown either.
        masker: Masks the records.
        colour: Whether the terminal shows colours.
    """

    def __init__(self, *, service: str, env: str, masker: Masker, colour: bool) -> None:
        super().__init__(service=service, env=env, masker=masker)
        self._colour = colour

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the data as one line, and further ones for an exception."""
        level = str(log_data["level"])
        head = (
            self._painted(_DIM, _clock_time(str(log_data["timestamp"]))),
            self._painted(_COLOURS.get(level, _BOLD), f"{_safe(level):<8}"),
            self._painted(_CYAN, _safe(str(log_data["logger"]))),
        )
        message = _safe(str(log_data["message"]))
        fields = {**log_data["context"]}
        for name in ("request_id", "trace_id"):
            if name in log_data:
                fields[name] = log_data[name]
        shown = " ".join(self._field(name, value) for name, value in fields.items())
        if shown:
            message = f"{message:<{_MESSAGE_WIDTH}}"
        line = " ".join((*head[:2], f"{head[2]} ", self._painted(_BOLD, message), *([" " + shown] if shown else [])))
        return "\n".join((line, *(f"{_GUARD}{_safe(more)}" for more in _further(log_data))))

    def _field(self, name: str, value: object) -> str:
        return f"{self._painted(_DIM, _name(name) + '=')}{_value(value)}"

    def _painted(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour else text


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether this stream is a terminal."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError, OSError):  # no such method, or closed
        return False


def wants_colour(stream: TextIO | None) -> bool:
    """Return whether to write colours: as NO_COLOR or FORCE_COLOR say, else on a terminal that can show them."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return os.environ.get("TERM") != "dumb" and is_terminal(stream)


def _clock_time(timestamp: str) -> str:
    """Return the local time of day, because the reader of a terminal sits beside it."""
    return datetime.fromisoformat(timestamp).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _further(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the first: an exception with its causes, and a stack if one was asked for."""
    error: dict[str, Any] = data.get("error") or {}
    if error:
        yield from _stack(error)
        facts = {name: error.get(name) for name in ("category", "retry", "sqlstate", "fingerprint")}
        told = " ".join(f"{name}={_value(value)}" for name, value in facts.items() if value is not None)
        if told:
            yield told
        for cause in error.get("causes") or ():
            yield "caused by:"
            yield from _stack(cause)
    if data.get("stack_info"):
        yield from str(data["stack_info"]).split("\n")


def _stack(error: Mapping[str, Any]) -> Iterator[str]:
    stack = error.get("stack")
    if stack:
        yield from str(stack).split("\n")
    else:
        yield f"{error.get('type')}: {error.get('message')}"


def _safe(text: str) -> str:
    """Return a text without control characters that a terminal would obey."""
    return _UNSAFE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def _name(name: str) -> str:
    return name if name and name.isidentifier() else _quoted(name)


def _value(value: object) -> str:
    """Return a value so that it can be told from any other: texts bare if they are plain words, else as JSON."""
    if isinstance(value, str):
        if _BARE.fullmatch(value) and not _NUMBER.fullmatch(value) and value not in _LIKE_OTHERS:
            return _safe(value)
        return _quoted(value)
    return _safe(encode(cast("dict[str, Any]", value)))


def _quoted(text: str) -> str:
    return _safe(json.dumps(text, ensure_ascii=False))
