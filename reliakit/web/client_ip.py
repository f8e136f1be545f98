"""The address of the client, as seen through the proxies that are known to be ours.

```
X-Forwarded-For: 1.1.1.1, 203.0.113.9, 10.0.0.7        peer 10.0.0.2      trusted 10.0.0.0/8
                 claimed  ^ the client, <- skipped  <- skipped
```

The list is walked from the right, because each proxy appends what it saw: the first address that is not ours is the
client, and everything to its left is only claimed. A peer that is not trusted is the client itself, whatever it
says. `Forwarded` is read as in RFC 7239. Only the configured header is read: a proxy that maintains one passes the
other through from the client.
"""

from __future__ import annotations

import logging
import re
from itertools import islice
from typing import TYPE_CHECKING, Literal

from reliakit.core import checks
from reliakit.core.addresses import address_of, folded
from reliakit.core.errors import ConfigurationError
from reliakit.web import request as view
from reliakit.web.request import Peers, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ClientIP", "client_ip"]

_log = logging.getLogger("reliakit.web")

_MAX_TEXT = 8192
_MAX_HOPS = 32
_WITH_PORT = re.compile(r"\[([^\[\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}")
# One `name=value` of an element, the value a token or a quoted string, or nothing at all (RFC 7239 section 4).
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a grammar, no secret
_PAIR = re.compile(rf'[ \t]*(?:({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")[ \t]*)?(;|,|$)')


class ClientIP:
    """A key function: takes an ASGI scope or a WSGI environ, returns the client's address as text."""

    __slots__ = ("_has_warned", "_header", "_hops", "trusted")

    def __init__(self, trusted: Peers, header: str, hops: int | None = None) -> None:
        self.trusted: Peers = trusted
        self._header = header
        self._hops = hops
        self._has_warned = False

    def __call__(self, request: Request) -> str:
        """Return the client's address: IPv4 as it is, IPv6 as its /64, "unix" for an untrusted unix socket."""
        client = self._client(request)
        if client == view.UNIX and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "requests come over a unix socket, so their clients cannot be told apart and all have the address "
                '"unix": let the proxy before it send %s, and name "unix" in trusted',
                self._header,
            )
        return folded(client)

    def is_ours(self, request: Request) -> bool:
        """Return whether every hop is trusted, the client included, so that nothing came from outside."""
        return self._client(request) in self.trusted

    def behind(self, trusted: Iterable[str]) -> ClientIP:
        """Return one that trusts these proxies, unless this one names its own."""
        return self if self.trusted or self._hops else ClientIP(Peers(trusted), self._header)

    def _client(self, request: Request) -> str:
        peer = view.peer(request)
        if self._hops is None and peer not in self.trusted:
            return peer
        lines = view.header_lines(request, self._header)
        hops = _forwarded_hops(lines) if self._header == "forwarded" else _listed_hops(lines)
        return walk(peer, hops, self.trusted) if self._hops is None else counted(peer, hops, self._hops)

    def __repr__(self) -> str:
        known = f"trusted={self.trusted!r}" if self._hops is None else f"hops={self._hops}"
        return f"client_ip({known}, header={self._header!r})"


def client_ip(
    trusted: Iterable[str] = (),
    header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for",
    *,
    hops: int | None = None,
) -> ClientIP:
    """Return a key function that returns a client's address, for limits and logs.

    Without `trusted` that is the peer of the socket, and no header is believed. A few microseconds a call; safe from
    threads and tasks.

    The peer is what the server reports: uvicorn by default rewrites it from X-Forwarded-For for proxies on the same
    machine (`--no-proxy-headers` leaves that to this function), and waitress by default removes the header
    (`clear_untrusted_proxy_headers=False` keeps it).

    Args:
        trusted: Your own proxies: networks such as "10.0.0.0/8", addresses, or "unix" for a unix socket.
        header: The one header that your proxies maintain.
        hops: Instead of `trusted`, for proxies without fixed addresses: how many of your proxies every request
            passes. A client that can reach the service past them can forge the header.

    Returns:
        A callable(scope or environ) -> text. IPv6 is folded to its /64, which is what one subscriber gets; an
        IPv4-mapped address is IPv4. If every hop is trusted, it is the farthest one. An element that is not an
        address ends the walk at the last good hop. All clients behind a unix socket that is not trusted are "unix",
        which is logged as a warning once.

    Raises:
        ConfigurationError: A network is not valid, the header is another one, or both `trusted` and `hops` are given.
    """
    checks.choice("header", header, ("x-forwarded-for", "forwarded"))
    proxies = Peers(trusted)
    if hops is not None:
        checks.count("hops", hops)
        if proxies:
            raise ConfigurationError("hops must be given without trusted: proxies are known by number or by address")
    return ClientIP(proxies, header, hops)


def walk(peer: str, hops: Iterable[str | None], trusted: Peers) -> str:
    """Return the first hop, nearest first, that is not trusted; the last good one if a hop cannot be read.

    Args:
        peer: The socket's own address, which is trusted.
        hops: The hops in the header, nearest first; None for one that cannot be read.
        trusted: The addresses that are ours.
    """
    last = peer
    for count, hop in enumerate(hops):
        address = None if hop is None or count >= _MAX_HOPS else address_of(_bare(hop))
        if address is None:
            return last
        last = str(address)
        if last not in trusted:
            return last
    return last


def counted(peer: str, hops: Iterable[str | None], proxies: int) -> str:
    """Return the hop that the farthest of so many proxies saw; the last good one if a hop before cannot be read."""
    last = peer
    for hop in islice(hops, min(proxies, _MAX_HOPS)):
        address = None if hop is None else address_of(_bare(hop))
        if address is None:
            return last
        last = str(address)
    return last


def _bare(hop: str) -> str:
    """Return a hop without port and brackets."""
    match = _WITH_PORT.fullmatch(hop)
    return hop if match is None else match[1] or match[2] or ""


def _listed_hops(lines: list[str]) -> Iterator[str | None]:
    """Yield the elements of X-Forwarded-For from the right, however many lines they came in."""
    text = ",".join(lines)
    cut = len(text) > _MAX_TEXT
    elements = text[-_MAX_TEXT:].split(",")
    if cut:
        elements[0] = ""  # it may be the rest of a longer one
    for element in reversed(elements):
        yield element.strip(" \t") or None


def _forwarded_hops(lines: list[str]) -> Iterator[str | None]:
    """Yield the `for` of each Forwarded element from the right; None for one that hides or garbles it.

    Each line is read by itself, so a quote that a client left open cannot swallow the line of a proxy.
    """
    for line in reversed(lines):
        elements = _elements(line) if len(line) <= _MAX_TEXT else None
        if elements is None:
            yield None
            return
        yield from reversed(elements)


def _elements(line: str) -> list[str | None] | None:
    """Return the `for` of each element of one Forwarded line, or None if the line is not well formed.

    Empty elements are left out, as RFC 9110 section 5.6.1 has it: a proxy that appends to nothing makes one.
    """
    found: list[str | None] = []
    names: dict[str, str] = {}
    position = 0
    while True:
        match = _PAIR.match(line, position)
        if match is None:
            return None
        if match[1] is not None:
            name, quoted = match[1].lower(), match[3]
            if name in names:
                return None
            names[name] = match[2] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        position = match.end()
        if match[4] != ";" and names:
            found.append(names.get("for"))
            names = {}
        if not match[4]:
            return found
