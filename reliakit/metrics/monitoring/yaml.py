"""Writes rules as YAML: mappings, lists, texts and numbers, always in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["dump"]

# What YAML reads as the text that it is, without quotes.
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null"})


def dump(value: object) -> str:
    """Return the YAML text of nested mappings and sequences."""
    return "\n".join(_lines(value, 0)) + "\n"


def _lines(value: Any, depth: int) -> list[str]:
    pad = "  " * depth
    if isinstance(value, Mapping):
        entries = cast("Mapping[str, Any]", value)
        return [line for key, one in entries.items() for line in _entry(f"{pad}{_text(key)}:", one, depth)]
    lines: list[str] = []
    for one in value:
        inner = _lines(one, depth + 1) if _is_nested(one) else [f"{pad}  {_scalar(one)}"]
        lines += [f"{pad}- {inner[0].lstrip()}", *inner[1:]]
    return lines


def _entry(key: str, value: Any, depth: int) -> list[str]:
    if _is_nested(value):
        return (
            [key, *_lines(value, depth + 1)] if value else [f"{key} {'{}' if isinstance(value, Mapping) else '[]'}"]
        )
    if isinstance(value, str) and "\n" in value:
        pad = "  " * (depth + 1)
        return [f"{key} |-", *(f"{pad}{line}" for line in value.split("\n"))]
    return [f"{key} {_scalar(value)}"]


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _scalar(value: object) -> str:
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(text: str) -> str:
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _WORDS
    return text if is_plain else json.dumps(text, ensure_ascii=False)
