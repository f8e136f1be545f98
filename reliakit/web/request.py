"""The one place that knows what a request looks like: an ASGI scope or a WSGI environ.

All code that decides about a request reads it through these functions, so each decision is written once for both
worlds. Header values are returned as text, decoded as latin-1, as both specifications say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from reliakit.core.addresses import address_of
from reliakit.core.errors import ConfigurationError

__all__ = ["ASGIApp", "Message", "Peers", "Receive", "Request", "Send"]

# A scope or an environ: both are dictionaries that a server makes for one request.
Request = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Request, Receive, Send], Awaitable[None]]

UNIX = "unix"
GONE = "unknown"
# What waitress and werkzeug call the peer of a unix socket; the peer of any other socket is a number.
_UNIX_ALIASES = ("localhost", "<local>")


def is_wsgi(request: Request) -> bool:
    """Return whether it is an environ; one made by hand for a test may contain no more than an address."""
    return "wsgi.version" in request or not ("type" in request or "client" in request or "headers" in request)


def header_lines(request: Request, name: str) -> list[str]:
    """Return every line of a header in the order received; `name` is lower case. WSGI servers join lines into one."""
    if is_wsgi(request):
        key = name.upper().replace("-", "_")
        value = request.get(key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}")
        return [] if value is None else [value]
    wanted = name.encode("latin-1")
    return [value.decode("latin-1") for key, value in request.get("headers", ()) if key == wanted]


def header(request: Request, name: str) -> str | None:
    """Return a header that must not be repeated: None if it is absent or given more than once."""
    lines = header_lines(request, name)
    return lines[0] if len(lines) == 1 else None


def method(request: Request) -> str:
    """Return the HTTP method as the client wrote it."""
    found: str = request["REQUEST_METHOD"] if is_wsgi(request) else request["method"]
    return found


def peer(request: Request) -> str:
    """Return the address at the other end of the socket, "unix" for a unix socket, "unknown" if it is lost."""
    if is_wsgi(request):
        address: str = request.get("REMOTE_ADDR") or UNIX
        return UNIX if address in _UNIX_ALIASES else address
    client = request.get("client")
    if client and client[0]:
        found: str = client[0]
        return found
    # A client that resets its connection early leaves no address behind, as a unix socket has none; but then the
    # server's own end still has one.
    server = request.get("server")
    return GONE if server and address_of(str(server[0])) else UNIX


def is_secure(request: Request, trusted: Peers) -> bool:
    """Return whether the client used https, on its own connection or according to a trusted proxy."""
    scheme = request.get("wsgi.url_scheme", "http") if is_wsgi(request) else request.get("scheme", "http")
    if scheme == "https":
        return True
    if not trusted or peer(request) not in trusted:
        return False
    lines = header_lines(request, "x-forwarded-proto")
    # Each proxy appends, so the last entry is the one that the trusted peer wrote itself.
    return bool(lines) and lines[-1].rpartition(",")[2].strip().lower() == "https"


class Peers:
    """The socket addresses that are ours: proxies and services that are believed about a client.

    Args:
        trusted: Networks such as "10.0.0.0/8", single addresses, and the word "unix" for a unix socket.
    """

    __slots__ = ("_networks", "_unix", "trusted")

    def __init__(self, trusted: Iterable[str]) -> None:
        if isinstance(trusted, str) or not isinstance(trusted, Iterable):
            raise ConfigurationError(f"trusted must be a list of networks, got {trusted!r}: put it in a list")
        self.trusted: tuple[str, ...] = tuple(trusted)
        self._unix = UNIX in self.trusted
        self._networks = tuple(_network(one) for one in self.trusted if one != UNIX)

    def __bool__(self) -> bool:
        return bool(self.trusted)

    def __contains__(self, address: str) -> bool:
        if not self.trusted:
            return False
        if address == UNIX:
            return self._unix
        parsed = address_of(address)
        return parsed is not None and any(
            parsed.version == network.version and parsed in network for network in self._networks
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Peers) and self.trusted == other.trusted

    def __hash__(self) -> int:
        return hash(self.trusted)

    def __repr__(self) -> str:
        return repr(list(self.trusted))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if not isinstance(text, str):
            raise TypeError("not a text")
        network = ipaddress.ip_network(text)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f'trusted must hold networks such as "10.0.0.0/8", addresses or "unix", got {text!r} ({error})'
        ) from error
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < 96:
        return network
    return ipaddress.IPv4Network((mapped, network.prefixlen - 96))  # addresses are compared as IPv4, too
