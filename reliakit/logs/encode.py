"""Records to JSON lines: the same text with orjson and without it."""

from __future__ import annotations

import json
import re
from types import ModuleType
from typing import Any

__all__ = ["SmallNumber", "encode", "escape_to_ascii"]

orjson: ModuleType | None
try:
    import orjson
except ImportError:  # the `fast` extra is not installed
    orjson = None

# Halves of surrogate pairs, which no stream in UTF-8 takes.
_HALVES = re.compile("[\ud800-\udfff]")
# Some readers take these characters for line ends; JSON allows escaping them.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class SmallNumber(float):
    """A number near zero, which orjson would write in another form than Python: 1e-5 and 1e-05."""

    __slots__ = ()


def encode(record: dict[str, Any]) -> str:
    """Return a record of plain values as one line of JSON, without the line's end.

    Args:
        record: Texts, numbers, booleans, None, lists and dicts with text keys.
    """
    if orjson is None:
        line = _encode_slowly(record)
    else:
        try:
            line = orjson.dumps(record, _exactly, orjson.OPT_PASSTHROUGH_SUBCLASS).decode()
        except (TypeError, ValueError):
            # Lone surrogates and integers beyond 64 bits: valid in Python, refused by orjson.
            line = _encode_slowly(record)
    return line if line.isascii() else _HALVES.sub(_escaped, line.translate(_LINE_ENDS))


def _exactly(value: object) -> object:
    if orjson is not None and type(value) is SmallNumber:
        return orjson.Fragment(float.__repr__(value))
    raise TypeError


def _encode_slowly(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_type_only)


def _type_only(value: object) -> str:
    """Stand in for a value that the masking pass should have made plain: its type only, never its text."""
    return f"[{type(value).__name__}]"


def escape_to_ascii(line: str) -> str:
    """Return a JSON line for a stream whose encoding lacks some of its characters."""
    return _BEYOND_ASCII.sub(_escaped, line)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1]


_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
