"""Security headers on every response, errors included; what the app sets itself wins.

`api()` is for services that answer with JSON: nothing may be loaded, framed or cached. `web()` is for pages: only
their own origin. Sources: OWASP Secure Headers, MDN HTTP Observatory, RFC 6797 (HSTS only counts over https).
Deprecated headers (X-XSS-Protection, Expect-CT, Feature-Policy) are never sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

from reliakit.core.errors import ConfigurationError
from reliakit.web import request as view
from reliakit.web.part import Part
from reliakit.web.request import Peers, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SecurityHeaders"]

Fields = tuple[tuple[bytes, bytes], ...]

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
_HSTS = "Strict-Transport-Security"
_DENIED = ", ".join(
    f"{feature}=()"
    for feature in (
        "accelerometer",
        "autoplay",
        "browsing-topics",
        "camera",
        "display-capture",
        "encrypted-media",
        "fullscreen",
        "geolocation",
        "gyroscope",
        "magnetometer",
        "microphone",
        "midi",
        "payment",
        "picture-in-picture",
        "publickey-credentials-get",
        "screen-wake-lock",
        "sync-xhr",
        "usb",
        "xr-spatial-tracking",
    )
)
_BOTH = {
    _HSTS: "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": _DENIED,
    "X-Permitted-Cross-Domain-Policies": "none",
}
_API = {
    **_BOTH,
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_WEB = {
    **_BOTH,
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Referrer-Policy": "strict-origin-when-cross-origin",
}


class SecurityHeaders(Part):
    """Add response headers that the app has not set itself; names are compared without letter case.

    Start from `SecurityHeaders.api()` or `SecurityHeaders.web()`. Strict-Transport-Security is only sent over https.
    About a microsecond a response.

    Args:
        fields: Header names and values.
        trusted: Proxies whose X-Forwarded-Proto is believed.

    Raises:
        ConfigurationError: A name or value is not allowed in a header, such as one with a line break.
    """

    __slots__ = ("_insecure", "_secure", "_trusted", "fields")

    def __init__(self, fields: Mapping[str, str], *, trusted: Iterable[str] = ()) -> None:
        self.fields: dict[str, str] = {
            checked_name(name): checked_value(name, value) for name, value in fields.items()
        }
        self._trusted = Peers(trusted)
        if len({name.lower() for name in self.fields}) < len(self.fields):
            raise ConfigurationError("fields must name each header once, letter case does not tell them apart")
        self._secure: Fields = tuple(
            (name.lower().encode("ascii"), value.encode("ascii")) for name, value in self.fields.items()
        )
        self._insecure: Fields = tuple(field for field in self._secure if field[0] != _HSTS.lower().encode())

    @classmethod
    def api(cls) -> Self:
        """Return the headers of a JSON service: nothing may be loaded, framed, sniffed or cached."""
        return cls(_API)

    @classmethod
    def web(cls) -> Self:
        """Return the headers of a site: scripts, styles and frames only from its own origin."""
        return cls(_WEB)

    def replace(self, changes: Mapping[str, str | None]) -> Self:
        """Return a copy with some headers changed; None leaves one out."""
        changed = {name.lower() for name in changes}
        kept = {name: value for name, value in self.fields.items() if name.lower() not in changed}
        given = {name: value for name, value in changes.items() if value is not None}
        return type(self)({**kept, **given}, trusted=self._trusted.trusted)

    def behind(self, trusted: Iterable[str]) -> Self:
        """Return a copy that believes these proxies' X-Forwarded-Proto."""
        return type(self)(self.fields, trusted=trusted)

    def chosen(self, request: Request) -> Fields:
        """Return the headers for the response to this request, in lower case."""
        return self._secure if view.is_secure(request, self._trusted) else self._insecure

    def __repr__(self) -> str:
        return f"SecurityHeaders({self.fields!r})"


def checked_name(name: str) -> str:
    """Return a header's name if it is valid."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"a header's name must be letters, digits and dashes, got {name!r}")
    return name


def is_value(value: object) -> bool:
    """Return whether a header can have this value: a line break in it would begin another header."""
    return isinstance(value, str) and _VALUE.fullmatch(value) is not None


def checked_value(name: str, value: str) -> str:
    """Return a header's value if it is valid."""
    if not is_value(value):
        raise ConfigurationError(f"the value of {name} must be printable ASCII on one line, got {value!r}")
    return value
