"""What may be in a label: coerced once, short, encodable, and with a bounded number of different values.

```
raw value ─► text ─► fold ─► known, or one of the first `limit` ─► itself
                                                         else ─► _other
```
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Generic, TypeVar

__all__ = [
    "LONGEST",
    "NETWORKS",
    "OTHER",
    "Label",
    "Places",
    "fold_network",
    "fold_prefix",
    "fold_source",
    "fold_sqlstate",
    "fold_status",
    "fold_words",
    "label_text",
]

T = TypeVar("T")

OTHER = "_other"
LONGEST = 128
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Label:
    """One dimension of a metric, and how many values it may take.

    Attributes:
        name: The label's name.
        values: The values that are known beforehand.
        limit: How many further values are let in before `_other` stands for the rest; None lets them in as long as
            the metric has room.
        born: The values that get a series at 0 before anything happens, so that an alert sees the first change.
        fold: Brings a text into its canonical form.
    """

    name: str
    values: tuple[str, ...] = ()
    limit: int | None = None
    born: tuple[str, ...] = ()
    fold: Callable[[str], str] | None = None

    @classmethod
    def one_of(cls, name: str, *values: str) -> Label:
        """Return a label that takes these values and no others, each of which exists at 0 from the start."""
        return cls(name, values, limit=0, born=values)

    @property
    def is_closed(self) -> bool:
        """Whether only the known values exist."""
        return self.limit == 0


class Places(Generic[T]):
    """At most `limit` things, each under its key, decided without a lock; None is no limit.

    Tickets come from an atomic counter. The loser of a race for a key hands its ticket back; until it does, another
    key may find no room although a place is about to become free.

    Args:
        limit: How many tickets there are.
        beside: Another collection with the same keys: what is stored under a key there is used here too.
    """

    __slots__ = ("_limit", "_spare", "_taken", "_tickets")

    def __init__(self, limit: int | None, beside: Places[T] | None = None) -> None:
        self._limit = math.inf if limit is None else limit
        self._tickets = itertools.count()
        self._spare: list[None] = []
        self._taken: dict[Hashable, T] = {} if beside is None else beside._taken  # noqa: SLF001 - of its own kind

    def find(self, key: Hashable) -> T | None:
        """Return what is stored under `key`, or None."""
        return self._taken.get(key)

    def add(self, key: Hashable, made: T) -> T | None:
        """Return what is stored under `key` afterwards, or None if there is no room."""
        return self.put(key, made) if self.reserve() else self.find(key)

    def reserve(self) -> bool:
        """Take a ticket for `put`, so that nothing is made without room for it."""
        try:
            self._spare.pop()
        except IndexError:
            return next(self._tickets) < self._limit
        return True

    def put(self, key: Hashable, made: T) -> T:
        """Use the ticket and return what is stored under `key` afterwards: another thread may have been faster."""
        kept = self._taken.setdefault(key, made)
        if kept is not made:
            self._spare.append(None)
        return kept

    def __len__(self) -> int:
        return len(self._taken)


def label_text(value: object) -> str:
    """Return a label value as text of at most 128 characters that UTF-8 can encode. Never raises.

    A class becomes its name, and an exception that of its class: its message may be secret, and differs each time.
    """
    if type(value) is str:
        text = value
    else:
        try:
            text = _spelled(value)
        except Exception:  # noqa: BLE001 - a broken __str__ must not lose the count, so it lands in the overflow value
            return OTHER
    if len(text) > LONGEST:
        text = text[:LONGEST]
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _spelled(value: object) -> str:
    # Even isinstance() may raise: it asks a proxy, such as that of a finished request, for its __class__.
    if isinstance(value, Enum):
        value = value.value
    elif isinstance(value, BaseException):
        value = type(value).__name__
    elif isinstance(value, type):
        value = value.__name__
    if value is None:
        return ""
    return str.__str__(value if isinstance(value, str) else str(value))


@lru_cache(maxsize=4096)
def fold_source(text: str) -> str:
    """Return a client's address as it is counted: IPv6 as its /64, IPv4-mapped as IPv4, other texts unchanged."""
    address = _address(text)
    if address is None:
        return text
    return str(address) if address.version == 4 else _network(address, 64)


@lru_cache(maxsize=4096)
def fold_prefix(text: str) -> str:
    """Return the network of a client's address, IPv4 as /24 and IPv6 as /48, and other texts unchanged."""
    address = _address(text)
    return text if address is None else _network(address, 24 if address.version == 4 else 48)


NETWORKS = ("loopback", "private", "public")


@lru_cache(maxsize=4096)
def fold_network(text: str) -> str:
    """Return what kind of network a client's address is in, `_other` for what is no address."""
    address = _address(text)
    if address is None:
        return "loopback" if text == "unix" else OTHER
    if address.is_loopback:
        return "loopback"
    return "public" if address.is_global else "private"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _network(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int) -> str:
    return str(ipaddress.ip_network((int(address), length), strict=False))


_EXACT_STATES = frozenset({"40001", "40P01", "57014", "25P03", "23505", "53300"})


def fold_sqlstate(text: str) -> str:
    """Return a SQLSTATE unchanged if people alert on it, and any other as its class, such as "08xxx"."""
    if text in _EXACT_STATES:
        return text
    if len(text) == 5 and text.isascii() and text.isalnum():
        return f"{text[:2]}xxx"
    return text if text == "" else OTHER


def fold_words(text: str) -> str:
    """Return a few words as one, such as "queue_full"."""
    return text.replace(" ", "_")


def fold_status(text: str) -> str:
    """Return an HTTP status of three digits as it is, "none" for no response, and `_other` for anything else."""
    if len(text) == 3 and text.isascii() and text.isdigit() and "100" <= text <= "599":
        return text
    return "none" if text in {"", "none"} else OTHER
