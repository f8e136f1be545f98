"""What a fault proxy is given as its target, and the address that this leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from reliakit.testing._proxy_engine import Address

__all__ = ["address_of", "is_conninfo", "is_foreign_url"]


def address_of(target: str | tuple[str, int]) -> Address:
    """Return where a target leads: (host, port), or the path of a Unix socket.

    Raises:
        ConfigurationError: It leads nowhere, or to several places.
    """
    if not isinstance(target, str):
        return _pair(target)
    if is_foreign_url(target):
        url = urlsplit(target)
        if url.hostname is None or url.port is None:
            raise ConfigurationError(f"target {url.scheme}://... must name host and port")
        return url.hostname, url.port
    if is_conninfo(target):
        return _postgres_address(target)
    if target.startswith("/"):
        return target
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise _refused(target)
    return host.strip("[]"), int(port)


def _pair(target: object) -> Address:
    match target:
        case (str() as host, int() as port) if host and 0 < port <= 65535:
            return host, port
        case _:
            raise _refused(target)


def _postgres_address(conninfo: str) -> Address:
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - the test kit loads without psycopg

    words = conninfo_to_dict(conninfo)
    host, port = str(words.get("hostaddr") or words.get("host") or ""), str(words.get("port") or 5432)
    if not host or "," in host:
        # The conninfo may hold a password, so it is not repeated.
        raise ConfigurationError("target: the conninfo must name exactly one host")
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, int(port))


def _refused(target: object) -> ConfigurationError:
    return ConfigurationError(
        f"target={target!r} must be a conninfo, a URL, 'host:port', (host, port) or the path of a socket"
    )


def is_conninfo(target: str) -> bool:
    """Return whether this is a conninfo or a URL, not only an address."""
    return "://" in target or "=" in target


def is_foreign_url(conninfo: str) -> bool:
    """Return whether this is a URL that libpq does not know, such as one of Redis."""
    return "://" in conninfo and not conninfo.startswith(("postgres://", "postgresql://"))
