"""One pass of masking over one value: what it has spent, what it has found, and how each kind of value is treated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from reliakit.logs.bodies import is_spared
from reliakit.logs.detectors import MARKER, Detector
from reliakit.logs.personal import is_card
from reliakit.logs.words import Verdict

if TYPE_CHECKING:
    from reliakit.logs.masker import Masker

__all__ = ["FAILED", "TOO_DEEP", "TOO_LONG", "TOO_MANY", "Walk"]

FAILED = "[masking failed]"
TOO_DEEP = "[too deep]"
TOO_MANY = "[too many values]"
TOO_LONG = "[too long to scan]"
CYCLE = "[cycle]"

# A text with none of these signs holds nothing that the detectors look for.
_WORTH = re.compile(
    r"[=@$<:'\"%]|[A-Za-z0-9_.+/~\-]{16}|[0-9][0-9 ().\-]{7}|--|earer|asic |[Pp]ass|PASS|[Ss]ecret|SECRET|[Tt]oken|TOKEN|[Pp]in |[Kk]ey |\+[0-9]"
)
_REMEMBERED_TEXTS = 4096
_LONGEST_REMEMBERED = 80
# The end of a text that was cut at the budget is dropped, so that no half of a secret is left there.
_CUT_MARGIN = 1024

_AS_THEY_ARE = frozenset({bool, type(None)})
_SCALARS: dict[type, Callable[[Any], object]] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: timedelta.total_seconds,
    UUID: str,
    Decimal: str,
    Fraction: str,
    IPv4Address: str,
    IPv6Address: str,
}
_LARGEST_INT = 2**63
_CARDS = range(10**12, 10**19)


class Walk:
    """Mask one value or one record; budgets are shared by all its parts.

    Args:
        masker: Whose rules and budgets to follow.
        plain: Turn everything into what JSON knows; else containers and scalars keep their types.
    """

    __slots__ = ("_chars", "_masker", "_nodes", "_open", "_plain", "_rules", "failed", "found")

    def __init__(self, masker: Masker, *, plain: bool) -> None:
        self._masker = masker
        self._rules = masker.rules
        self._plain = plain
        self._chars = masker.scan_budget
        self._nodes = masker.max_nodes
        self._open: list[int] = []
        self.found = 0
        self.failed = False

    def hide(self, secret: str) -> str:
        """Count one secret and return what stands in its place."""
        self.found += 1
        return self._masker.marker(secret)

    def text(self, text: str) -> str:
        """Return a text without its secrets, or a placeholder when the budget does not reach that far."""
        masker = self._masker
        if text in masker.clean:
            return text
        if type(text) is not str:
            text = str.__str__(text)
        size = len(text)
        if size > self._chars:
            return self._head(text)
        self._chars -= size
        if masker.sees_all or _WORTH.search(text) or masker.registered.pattern is not None:
            masked = self._scan(text)
            if masked is not text and masked != text:
                return masked
        if size <= _LONGEST_REMEMBERED and not masker.sees_all:
            if len(masker.clean) >= _REMEMBERED_TEXTS:
                masker.clean.clear()
            masker.clean.add(text)
        return text

    def _head(self, text: str) -> str:
        """Return the masked beginning of a text that is longer than what is left of the budget."""
        left, self._chars = self._chars, 0
        if left < 4 * _CUT_MARGIN:
            return TOO_LONG
        return self._scan(text[:left])[:-_CUT_MARGIN] + TOO_LONG

    def _scan(self, text: str) -> str:
        masker = self._masker
        try:
            known = masker.registered.pattern
            if known is not None:
                text = known.sub(lambda found: self.hide(found[0]), text)
            for detector in masker.detectors:
                if type(detector) is Detector:
                    text = detector.find(text, self.hide, self._rules)
                else:
                    text = self._custom(detector, text)
        except Exception:  # noqa: BLE001 - a detector's fault must not let the text through
            self.failed = True
            return FAILED
        return text

    def _custom(self, detector: Any, text: str) -> str:
        if isinstance(detector, re.Pattern):
            return detector.sub(lambda found: self.hide(found[0]) if found[0] else "", text)
        masked = detector(text)
        if not isinstance(masked, str):
            raise TypeError("a detector returns text")
        if masked != text:
            self.found += 1
        return masked

    def value(self, value: Any, depth: int) -> Any:
        """Return any value without its secrets."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is int:
            return self._int(value)
        if kind is float:
            return value if not self._plain or value - value == 0.0 else str(value)
        self._nodes -= 1
        if self._nodes < 0:
            return TOO_MANY
        if kind is dict:
            return self._contained(value, depth, self._dict)
        if kind is list or kind is tuple:
            return self._contained(value, depth, self._sequence)
        try:
            return self._other(value, kind, depth)
        except Exception:  # noqa: BLE001 - whatever the object does, the record goes on without it
            self.failed = True
            return FAILED

    def fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a record's fields without their secrets, and the same dict if none was found."""
        masked: dict[str, Any] = self._dict(fields, 0)
        return masked

    def verdict(self, name: str) -> Verdict:
        """Return what a name says about its value."""
        return self._rules.verdict(name)

    def _int(self, value: int) -> Any:
        if value in _CARDS and is_card(str(value)):
            return self.hide(str(value))
        pattern = self._masker.registered.pattern
        if pattern is not None and -_LARGEST_INT <= value < _LARGEST_INT and pattern.search(str(value)):
            return self.hide(str(value))
        return value

    def _contained(self, value: Any, depth: int, treat: Callable[[Any, int], Any]) -> Any:
        """Treat a container one level deeper, unless that is too deep or it contains itself."""
        if depth >= self._masker.max_depth:
            return TOO_DEEP
        if id(value) in self._open:
            return CYCLE
        self._open.append(id(value))
        try:
            return treat(value, depth + 1)
        finally:
            self._open.pop()

    def _dict(self, value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
        verdict_of = self._rules.verdict
        changed: dict[Any, Any] | None = None
        named = self._named_pair(value) if "value" in value or "Value" in value else None
        for count, (key, item) in enumerate(value.items()):
            if self._nodes <= 0:
                changed = self._first(value, count) if changed is None else changed
                changed[TOO_MANY] = TOO_MANY
                break
            name = key if type(key) is str else self._key(key)
            verdict = verdict_of(name) if type(name) is str else Verdict.SAFE
            if named is not None and key in ("value", "Value"):
                verdict = named
            masked = self.value(item, depth) if verdict is Verdict.SAFE else self.sensitive(verdict, item, depth)
            shown = self.text(name) if type(name) is str else name
            if not self._plain and type(key) is not str and shown == name:
                shown = key
            if changed is None:
                if masked is item and shown is key:
                    continue
                changed = self._first(value, count)
            while shown in changed:
                shown = f"{shown}_"
            changed[shown] = masked
        return value if changed is None and isinstance(value, dict) else dict(value) if changed is None else changed

    @staticmethod
    def _first(value: Mapping[Any, Any], count: int) -> dict[Any, Any]:
        """Return a new dict of the first entries, which have proved clean."""
        return dict(entry for entry, _ in zip(value.items(), range(count), strict=False))

    def _named_pair(self, value: Mapping[Any, Any]) -> Verdict | None:
        """Return what `name` says about `value` in `{"name": "DB_PASSWORD", "value": "..."}`."""
        for title in ("name", "Name", "key", "Key", "header"):
            name = value.get(title)
            if type(name) is str:
                return self._rules.verdict(name)
        return None

    def _key(self, key: Any) -> Any:
        """Return a key that is no plain text as JSON has it."""
        if isinstance(key, bytes):
            return key.decode("utf-8", "replace")
        if isinstance(key, str):
            return str.__str__(key)
        if not self._plain and (key is None or type(key) in (int, float, bool)):
            return key
        masked = self.value(key, 0)
        return masked if type(masked) is str else _safe_text(masked)

    def _sequence(self, value: Any, depth: int) -> Any:
        changed: list[Any] | None = None
        hide_next = self._second_of_pair(value)
        for index, item in enumerate(value):
            if self._nodes <= 0:
                changed = list(value[:index]) if changed is None else changed
                changed.append(TOO_MANY)
                break
            if hide_next is not None and index:
                masked = self.sensitive(hide_next, item, depth)
                hide_next = None
            else:
                masked = self.value(item, depth)
            if type(item) is str and item[:1] == "-" and "=" not in item:
                verdict = self._rules.verdict(item)
                hide_next = verdict if verdict is not Verdict.SAFE else None
            if changed is None:
                if masked is item:
                    continue
                changed = list(value[:index])
            changed.append(masked)
        if changed is None:
            return value
        return tuple(changed) if type(value) is tuple else changed

    def _second_of_pair(self, value: Any) -> Verdict | None:
        """Return what the first says about the second in `("authorization", "Token ...")`."""
        if len(value) != 2:
            return None
        name = value[0]
        if type(name) is bytes:
            name = name.decode("latin-1")
        if type(name) is not str or len(name) > 64:
            return None
        verdict = self._rules.verdict(name)
        return None if verdict is Verdict.SAFE else verdict

    def sensitive(self, verdict: Verdict, value: Any, depth: int) -> Any:
        """Return what stands in the place of a value whose field's name is sensitive."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is int or kind is float:
            shown = str(value) if abs(value) < _LARGEST_INT else ""
            return value if shown and is_spared(verdict, shown) else self.hide(shown)
        if isinstance(value, str):
            shown = str.__str__(value)
            return self.text(value) if is_spared(verdict, shown) else self.hide(shown)
        if isinstance(value, bytes | bytearray):
            marker = self.hide(bytes(value).decode("utf-8", "replace"))
            return marker if self._plain else marker.encode()
        if verdict not in (Verdict.SECRET, Verdict.TALLY) and isinstance(value, Mapping):
            # `session={...}` is a record about a session; what is in it has names of its own.
            return self.value(value, depth)
        self.found += 1
        return MARKER

    def _other(self, value: Any, kind: type, depth: int) -> Any:
        """Treat what is neither a plain scalar nor a plain container."""
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar(value) if self._plain else value
        if isinstance(value, Enum):
            return self.value(value.value, depth) if self._plain else value
        if isinstance(value, str):
            return self.text(str.__str__(value))
        if isinstance(value, int):
            return self._int(int.__index__(value))
        if isinstance(value, float):
            return self.value(float.__float__(value), depth)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(value)
        record = _fields_of(value, kind)
        if record is not None:
            return self._contained(value, depth, lambda _, deeper: self._dict(record, deeper))
        if isinstance(value, Mapping):
            return self._contained(value, depth, self._dict)
        if isinstance(value, tuple | list):
            return self._contained(
                value,
                depth,
                lambda items, deeper: self._sequence(
                    tuple(items) if isinstance(items, tuple) else list(items), deeper
                ),
            )
        if isinstance(value, AbstractSet):
            return self._contained(value, depth, self._set)
        if isinstance(value, BaseException):
            return self.text(f"{kind.__name__}: {_safe_text(value)}")
        if isinstance(value, PurePath) and not self._plain:
            return value if self.text(str(value)) == str(value) else self.text(str(value))
        if isinstance(value, type):
            return self.text(value.__qualname__) if self._plain else value
        return self.text(_safe_text(value))

    def _set(self, value: Any, depth: int) -> Any:
        masked = [self.value(item, depth) for item, _ in zip(value, range(max(self._nodes, 0)), strict=False)]
        if len(masked) < len(value):
            masked.append(TOO_MANY)
        if self._plain:
            return sorted(masked, key=str)
        return masked if any(type(item) in (dict, list) for item in masked) else type(value)(masked)

    def _bytes(self, value: Any) -> Any:
        size = len(value) if not isinstance(value, memoryview) else value.nbytes
        raw = bytes(value[: self._chars + 1]) if size > self._chars else bytes(value)
        text = raw.decode("utf-8", "backslashreplace")
        masked = self.text(text)
        if self._plain:
            return masked
        return value if masked == text and size == len(raw) else masked.encode()


def _fields_of(value: Any, kind: type) -> dict[str, Any] | None:
    """Return the fields of a dataclass, a named tuple, or a record of attrs, pydantic or msgspec; else None."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in fields(value) if field.repr}
    names: Any = None
    if isinstance(value, tuple):
        names = getattr(kind, "_fields", None)
    elif hasattr(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__ if attribute.repr]
    else:
        for title in ("__pydantic_fields__", "__struct_fields__", "__fields__"):
            names = getattr(kind, title, None)
            if names is not None:
                break
    if names is None or isinstance(names, str):
        return None
    return {str(name): getattr(value, str(name), None) for name in names}


def _safe_text(value: object) -> str:
    """Return an object's text, or one that names its type when it has none."""
    try:
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception:  # noqa: BLE001 - shown as what it is, an object that cannot be shown
        return f"[unprintable {type(value).__name__}]"
