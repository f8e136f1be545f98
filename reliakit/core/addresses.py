"""Network addresses as text: parsing them, and how much of one identifies a client."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

__all__ = ["address_of", "folded"]


@lru_cache(maxsize=1024)
def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address in a text, without its zone and IPv4-mapped IPv6 as IPv4, or None if it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def folded(address: str) -> str:
    """Return an IPv6 address as its /64, which is what one subscriber gets, and any other text unchanged."""
    parsed = address_of(address)
    if parsed is None:
        return address
    if parsed.version == 4:
        return str(parsed)
    network = int(parsed) >> 64 << 64
    return f"{type(parsed)(network)}/64"
