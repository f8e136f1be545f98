"""One pass of masking over one value: what it has spent, what it has found, and how each kind of value is treated."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from uuid import UUID

from reliakit.logs.encode import SmallNumber
from reliakit.logs.objects import fields_of, safe_text
from reliakit.logs.personal import is_card
from reliakit.logs.scan import FAILED, REMEMBERED, Scan, remembers
from reliakit.logs.spared import is_spared
from reliakit.logs.vocabulary import FIRST_WORDS, KEY_MEMBERS, LAST_WORDS
from reliakit.logs.words import Verdict

if TYPE_CHECKING:
    from reliakit.logs.masker import Masker

__all__ = ["TOO_DEEP", "TOO_MANY", "Walk"]

TOO_DEEP = "[too deep]"
TOO_MANY = "[too many values]"
CYCLE = "[cycle]"

_AS_THEY_ARE = frozenset({bool, type(None)})
_SCALARS: dict[type, Callable[[Any], object]] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: timedelta.total_seconds,
    UUID: str,
    Fraction: str,
    IPv4Address: str,
    IPv6Address: str,
}
_PLAIN_KEYS = frozenset({int, float, bool, type(None)})
_NAME = re.compile(r"[\w.\-]{1,64}")
_LARGEST_INT = 2**63
_SMALLEST = 1e-4
# Integers beyond are keys, if anything, and slow to write; Python itself refuses those of more than 4300 digits.
_MOST_BITS = 1024
_LEAST_CARD, _LAST_CARD = 10**12, 10**19 - 1
# Smaller numbers are no secret by themselves, unless their field's name says so; they are also too short to register.
_MOST_INT = 10**5


class Walk(Scan):
    """Mask one value or one record.

    Args:
        masker: The masker whose rules and budgets apply.
        plain: Whether to turn everything into what JSON knows, and share containers in which nothing was found;
            otherwise containers and scalars keep their types, and everything mutable is copied.
    """

    __slots__ = ("_keys", "_nodes", "_open", "_path", "_paths", "_plain")

    def __init__(self, masker: Masker, *, plain: bool) -> None:
        super().__init__(masker)
        self._plain = plain
        self._keys = masker.clean_keys
        self._nodes = masker.max_nodes
        self._open: list[int] = []
        self._paths = masker.rules.paths
        self._path: list[str] = []

    def verdict(self, name: str) -> Verdict:
        """Return what a name says about its value."""
        return self._masker.rules.verdict(name)

    def value(self, value: Any, depth: int) -> Any:  # noqa: PLR0911 - a table of types reads best in a row
        """Return any value without its secrets."""
        kind = type(value)  # pyright: ignore[reportUnknownVariableType]  # values are of any type
        if kind is str:
            return self.text(value)
        if kind in _AS_THEY_ARE:
            return value
        if kind is int:
            return self._int(value)
        if kind is float:
            return self._float(value)
        if kind is dict:
            return self._contained(value, depth, self._dict)
        if kind is list or kind is tuple:
            return self._contained(value, depth, self._sequence)
        scalar = _SCALARS.get(kind)  # pyright: ignore[reportUnknownArgumentType]  # likewise
        if scalar is not None:
            return scalar(value) if self._plain else value
        try:
            return self._other(value, depth)
        except Exception:  # noqa: BLE001 - whatever the object does, the record goes on without it
            self.failed = True
            return FAILED

    def fields(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Return a record's fields without their secrets, and for JSON the same dict if none was found."""
        return self._dict(fields, 0)

    def _int(self, value: int) -> Any:
        if value.bit_length() > _MOST_BITS and self._plain:
            return f"[number of {value.bit_length()} bits]"
        if _LEAST_CARD <= value <= _LAST_CARD and self._masker.hides_cards and is_card(str(value)):
            return self.hide_as(self._masker.card_mode, str(value))
        if self._registered is not None and -_LARGEST_INT <= value < _LARGEST_INT:
            return self.hide(str(value)) if self._registered.search(str(value)) else value
        return value

    def _float(self, value: float) -> Any:
        """Return a number; infinity and NaN, which JSON does not have, as text."""
        if _LEAST_CARD <= value <= _LAST_CARD and value.is_integer():
            number = int(value)
            shown = self._int(number)
            if shown is not number:
                return shown
        if not self._plain:
            return value
        if value - value != 0.0:
            return str(value)
        return SmallNumber(value) if value and -_SMALLEST < value < _SMALLEST else value

    def _decimal(self, value: Decimal) -> Any:
        """Return a decimal number, which may be a card's: databases keep some as such."""
        shown = self.text(str(value))
        return shown if self._plain or shown != str(value) else value

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

    def _room(self, wanted: int) -> int:
        """Return how many of `wanted` values may still be visited, and count them."""
        before = self._nodes
        self._nodes = before - wanted
        return wanted if wanted <= before else max(0, before)

    def _dict(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:  # noqa: PLR0912 - a call less for each dict
        """Return a dict without the secrets in it, and for JSON the same dict if none was found."""
        room = self._room(len(value))
        if room < len(value):
            self._nodes = room
            return {**self._dict(dict(islice(value.items(), room)), depth), TOO_MANY: TOO_MANY}
        # If patterns may overrule a name by its place, nothing is known beforehand.
        verdict_of = self._keys.get if self._paths is None else _not_known
        clean = self._clean
        most = _LEAST_CARD if self._registered is None else _MOST_INT
        changes: dict[Any, Any] = {}
        keys_change = False
        for key, item in value.items():
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]  # likewise
            known = verdict_of(key)
            if known is Verdict.SAFE:
                # Most entries are like this: a name and a text that have been seen before, or a small number.
                if kind is str:
                    if item in clean:
                        continue
                    masked: Any = self.text(item)
                elif (kind is int and -most < item < most) or (kind is float and _SMALLEST <= item < _LEAST_CARD):
                    continue
                elif kind is dict and key in FIRST_WORDS:
                    masked = self._under(key, item, depth)
                else:
                    masked = self.value(item, depth)
            elif known is not None:
                masked = self.sensitive(known, item, depth, key)
            else:
                shown, verdict = self._key(key)
                keys_change = keys_change or shown is not key
                masked = self._field(key, verdict, item, depth)
            if masked is not item:
                changes[key] = masked
        if "value" in value or "Value" in value or "val" in value or "kty" in value or "input" in value:
            self._hide_named(value, changes, depth)
        if keys_change:
            return self._renamed(value, changes)
        return {**value, **changes} if changes or not self._plain else value

    def _field(self, key: Any, verdict: Verdict, item: Any, depth: int) -> Any:
        """Return what a field holds without its secrets, by its name and, where patterns ask for it, by its place."""
        name = key if type(key) is str else _name_of(key)
        if self._paths is None:
            if verdict is not Verdict.SAFE:
                return self.sensitive(verdict, item, depth, name)
            is_begun = type(item) is dict and name in FIRST_WORDS
            return self._under(name, item, depth) if is_begun else self.value(item, depth)
        self._path.append(name)
        try:
            decided = self._paths.is_sensitive(self._path)
            if decided is not None:
                verdict = Verdict.SECRET if decided else Verdict.SAFE
            return self.value(item, depth) if verdict is Verdict.SAFE else self.sensitive(verdict, item, depth, name)
        finally:
            self._path.pop()

    def _under(self, name: str, value: Any, depth: int) -> Any:
        """Return a mapping in which a field's name may go on from its own: `{"api": {"key": ...}}` is an API key."""
        masked: Any = self.value(value, depth)
        if type(masked) is not dict or self._paths is not None:
            return masked  # pyright: ignore[reportUnknownVariableType]  # likewise
        changes: dict[str, Any] = {}
        for key in value:
            if type(key) is str and key in masked and key.lower() in LAST_WORDS:
                verdict = self.verdict(f"{name} {key}")
                if verdict is not Verdict.SAFE and self.verdict(key) is Verdict.SAFE:
                    changes[key] = self.sensitive(verdict, value[key], depth, f"{name} {key}")
        return {**masked, **changes} if changes else masked  # pyright: ignore[reportUnknownVariableType]  # likewise

    def _key(self, key: Any) -> tuple[Any, Verdict]:
        """Return a key without secrets, as JSON has it, and what it says about its value."""
        name = key
        if type(name) is not str:
            if isinstance(key, bytes):
                name = key.decode("utf-8", "replace")
            elif isinstance(key, str):
                name = str.__str__(key)
            elif not self._plain and (type(key) in _PLAIN_KEYS or self._is_clean_tuple(key)):
                return key, Verdict.SAFE
            else:
                masked = self.value(key, 0)
                return (masked if type(masked) is str else self.text(safe_text(masked))), Verdict.SAFE
        verdict = self.verdict(name)
        shown = self.text(name)
        if shown == name:
            if remembers(name) and len(self._keys) < REMEMBERED:
                self._keys[name] = verdict
            return (name if self._plain else key), verdict
        return shown, verdict

    def _is_clean_tuple(self, key: Any) -> bool:
        return type(key) is tuple and self.value(key, 0) is key

    def _renamed(self, value: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
        """Return the entries under their masked names, none lost where two names became equal."""
        renamed: dict[Any, Any] = {}
        for key, item in value.items():
            shown, _ = self._key(key)
            while shown in renamed:
                shown = f"{shown}_"
            renamed[shown] = changes.get(key, item)
        return renamed

    def _hide_named(self, value: dict[Any, Any], changes: dict[Any, Any], depth: int) -> None:
        """Hide what a neighbour reveals: `{"name": "DB_PASSWORD", "value": "..."}`, `{"kty": "oct", "k": "..."}`."""
        for member in KEY_MEMBERS if "kty" in value else ():
            if member in value:
                changes[member] = self.sensitive(Verdict.SECRET, value[member], depth, "jwk")
        if "loc" in value and "input" in value:
            # What pydantic's `errors()` tells of a value that it refused.
            self._hide_rejected(value, changes, depth)
        titles = ("name", "Name", "key", "Key", "header", "field", "path")
        name = next((value[title] for title in titles if title in value), None)
        if type(name) is str and (verdict := self.verdict(name.rpartition("/")[2])) is not Verdict.SAFE:
            for title in ("value", "Value", "val"):
                if title in value:
                    changes[title] = self.sensitive(verdict, value[title], depth, name)

    def _hide_rejected(self, value: dict[Any, Any], changes: dict[Any, Any], depth: int) -> None:
        steps: Any = value["loc"]
        names: list[Any] = [*steps] if type(steps) in (tuple, list) else []
        for name in names:
            if type(name) is str and (verdict := self.verdict(name)) is not Verdict.SAFE:
                changes["input"] = self.sensitive(verdict, value["input"], depth, name)

    def _sequence(self, value: Any, depth: int) -> Any:
        room = self._room(len(value))
        items = self._items(value if room == len(value) else value[:room], depth)
        if room == len(value):
            return items
        return (*items, TOO_MANY) if type(items) is tuple else [*items, TOO_MANY]

    def _items(self, value: Any, depth: int) -> Any:
        """Return a list's or tuple's items without their secrets; where none was found, JSON gets the same object."""
        changed: list[Any] | None = None
        name = _name_of(value[0]) if len(value) == 2 else ""
        hide_next = self._second_of_pair(name) if name else None
        by_place = self._paths is not None
        most = 0 if by_place else _LEAST_CARD if self._registered is None else _MOST_INT
        for index, item in enumerate(value):
            kind = type(item)  # pyright: ignore[reportUnknownVariableType]  # likewise
            if kind is int and hide_next is None and -most < item < most:
                if changed is not None:
                    changed.append(item)
                continue
            if hide_next is not None and index:
                masked = self.sensitive(hide_next, item, depth, name)
                hide_next = None
            else:
                masked = self.value(item, depth) if not by_place else self._field(index, Verdict.SAFE, item, depth)
            if kind is str and item[:1] == "-" and "=" not in item:
                verdict, name = self.verdict(item), item
                hide_next = verdict if verdict is not Verdict.SAFE else None
            if changed is None:
                if masked is item:
                    continue
                changed = list(value[:index])
            changed.append(masked)
        is_tuple = issubclass(type(value), tuple)
        if changed is None:
            return value if self._plain or is_tuple else list(value)
        return tuple(changed) if is_tuple else changed

    def _second_of_pair(self, name: str) -> Verdict | None:
        """Return what the first item says about the second in `("authorization", "Token ...")`."""
        if not _NAME.fullmatch(name):
            return None
        verdict = self.verdict(name)
        return None if verdict is Verdict.SAFE else verdict

    def sensitive(self, verdict: Verdict, value: Any, depth: int, name: str) -> Any:
        """Return what replaces a value whose field's name is sensitive."""
        kind = type(value)  # pyright: ignore[reportUnknownVariableType]  # values are of any type
        if kind in _AS_THEY_ARE:
            return value
        if kind is int or kind is float:
            shown = str(value) if abs(value) < _LARGEST_INT else ""
            return value if shown and is_spared(verdict, shown) else self.hide(shown, name)
        if issubclass(kind, str):
            shown = str.__str__(value)
            return self.text(value) if is_spared(verdict, shown) else self.hide(shown, name)
        if issubclass(kind, bytes | bytearray):
            marker = self.hide(bytes(value).decode("utf-8", "replace"), name)
            return marker if self._plain else marker.encode()
        if verdict not in (Verdict.SECRET, Verdict.TALLY) and issubclass(kind, Mapping):
            # `session={...}` is a record about a session; what is in it has names of its own.
            return self._under(name, value, depth)
        return self.hide_as("full", "", name)

    def _other(self, value: Any, depth: int) -> Any:  # noqa: PLR0911, PLR0912 - likewise
        """Handle what is neither a plain scalar nor a plain container."""
        kind: type[object] = type(value)  # pyright: ignore[reportUnknownVariableType]  # likewise
        if kind is Decimal:
            return self._decimal(value)
        if issubclass(kind, Enum):
            return self.value(value.value, depth) if self._plain else value
        if issubclass(kind, str):
            return self.text(str.__str__(value))
        if issubclass(kind, int):
            return self._int(int.__index__(value))
        if issubclass(kind, float):
            return self.value(float.__float__(value), depth)
        if issubclass(kind, bytes | bytearray | memoryview):
            return self._bytes(value)
        record = fields_of(value, kind)
        if record is not None:
            return self._contained(value, depth, lambda _, deeper: self._dict(record, deeper))
        if issubclass(kind, Mapping):
            entries: dict[Any, Any] = dict(value)
            return self._contained(value, depth, lambda _, deeper: self._dict(entries, deeper))
        if issubclass(kind, tuple | list):
            items: Any = tuple(value) if issubclass(kind, tuple) else list(value)
            return self._contained(value, depth, lambda _, deeper: self._sequence(items, deeper))
        if issubclass(kind, AbstractSet):
            return self._contained(value, depth, self._set)
        if issubclass(kind, BaseException):
            return self.text(f"{kind.__name__}: {safe_text(value)}")
        if issubclass(kind, PurePath) and not self._plain:
            return value if self.text(str(value)) == str(value) else self.text(str(value))
        if issubclass(kind, type):
            return self.text(value.__qualname__) if self._plain else value
        return self.text(safe_text(value))

    def _set(self, value: Any, depth: int) -> Any:
        room = self._room(len(value))
        masked = [self.value(item, depth) for item in islice(value, room)]
        if room < len(value):
            masked.append(TOO_MANY)
        if self._plain:
            return sorted(masked, key=str)
        is_clean = room == len(value) and all(shown is item for shown, item in zip(masked, value, strict=True))
        is_frozen = issubclass(type(value), frozenset)
        if is_clean and is_frozen:
            return value
        if any(type(item) in (dict, list) for item in masked):
            return masked
        # Views of dicts are sets, but cannot be constructed.
        return frozenset(masked) if is_frozen else set(masked)

    def _bytes(self, value: Any) -> Any:
        size: int = memoryview(value).nbytes
        raw = bytes(value[: self._chars + 1]) if size > self._chars else bytes(value)
        encoding = "utf-16" if raw[:2] in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8"
        text = raw.decode(encoding, "backslashreplace")
        masked = self.text(text)
        if self._plain:
            return masked
        if masked != text or size != len(raw):
            return masked.encode()
        return bytearray(value) if type(value) is bytearray else value


def _not_known(_name: object) -> None:
    """Answer as a memory that holds nothing."""


def _name_of(key: object) -> str:
    """Return a key as a name: a place in a list is one too; what cannot be a name is an empty one."""
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return key.decode("latin-1")
    return str(key) if type(key) is int and key.bit_length() < _MOST_BITS else ""
