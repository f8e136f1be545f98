"""Cross-origin requests from browsers: which origins may read the responses (Fetch standard, section 3.2).

```
OPTIONS + Origin + Access-Control-Request-Method  = a preflight: answered here, before limits and the app
any other request                                 = served, and its response says whether the origin may read it
```
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.colour import colour_of, is_awaitable, refuse_awaitable
from reliakit.core.errors import ConfigurationError
from reliakit.web import request as view
from reliakit.web.headers import Fields, checked_name
from reliakit.web.part import Part
from reliakit.web.problem import ORIGIN_REFUSED, ProblemResponse, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliakit.web.request import Request

__all__ = ["Cors"]

_log = logging.getLogger("reliakit.web")

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_HEADERS = ("Authorization", "Content-Type", "X-Request-ID", "traceparent")
_EXPOSED = ("X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy")


class Cors(Part):
    """Tell browsers which other origins may call the service.

    Origins are compared exactly. The response varies by Origin even if none was sent, so that a shared cache cannot
    serve one origin's response to another. The origin "null" is never allowed, because any sandboxed frame has it.

    Args:
        origins: Origins such as "https://app.example.com", the single word "*" for every origin, or a plain
            callable(origin) -> bool; if that raises, the error is logged and the origin is not allowed.
        credentials: Whether cookies and HTTP authentication may be sent along; refused together with "*".
        methods: The methods that a preflight allows.
        headers: The request headers that a preflight allows.
        max_age: Seconds for which a browser may remember a preflight.
        expose: The response headers that a script may read.

    Raises:
        ConfigurationError: "*" with credentials, an origin that can never match, or a name that no header can have.
    """

    __slots__ = ("_any", "_common", "_matches", "_preflight", "credentials", "origins")

    def __init__(
        self,
        origins: Iterable[str] | Callable[[str], bool],
        *,
        credentials: bool = False,
        methods: Iterable[str] = _METHODS,
        headers: Iterable[str] = _HEADERS,
        max_age: int = 600,
        expose: Iterable[str] = _EXPOSED,
    ) -> None:
        self.credentials: bool = credentials
        self.origins: tuple[str, ...] | Callable[[str], bool]
        if callable(origins):
            if colour_of(origins, by="origins") != "plain":
                raise ConfigurationError(f"origins must be a plain callable, got the async function {origins!r}")
            self.origins = origins
            self._matches: Callable[[str], bool] = origins
        else:
            self.origins = (origins,) if isinstance(origins, str) else tuple(origins)
            self._matches = frozenset(map(_checked_origin, self.origins)).__contains__
        self._any = self.origins == ("*",)
        if not callable(self.origins) and "*" in self.origins and not self._any:
            raise ConfigurationError('origins must be "*" alone or a list of origins, not both')
        if self._any and credentials:
            raise ConfigurationError(
                'origins "*" with credentials=True would let every site act as the user: name the origins'
            )
        common: list[tuple[str, str]] = [("access-control-allow-credentials", "true")] if credentials else []
        self._common = _encoded([*common, ("access-control-expose-headers", _listed(expose))])
        self._preflight = _encoded(
            [
                *common,
                ("access-control-allow-methods", _listed(methods)),
                ("access-control-allow-headers", _listed(headers)),
                ("access-control-max-age", str(checks.count("max_age", max_age, least=0))),
            ]
        )

    def is_preflight(self, request: Request) -> bool:
        """Return whether this is a browser's question for permission, before the real request."""
        return (
            view.method(request) == "OPTIONS"
            and view.header(request, "origin") is not None
            and view.header(request, "access-control-request-method") is not None
        )

    def preflight(self, request: Request) -> ProblemResponse:
        """Return the answer to a preflight, without the fields of `chosen`: 204, or 403 for an unknown origin."""
        return ProblemResponse(204) if self._allowed(request) else told(ORIGIN_REFUSED)

    def chosen(self, request: Request, *, preflight: bool = False) -> Fields:
        """Return the headers for the response to this request, in lower case; nothing for an unknown origin."""
        fields = self._preflight if preflight else self._common
        if self._any:
            return ((b"access-control-allow-origin", b"*"), *fields)
        origin = self._allowed(request)
        if origin is None:
            return ()
        return ((b"access-control-allow-origin", origin.encode("latin-1")), *fields)

    @property
    def varies(self) -> bool:
        """Whether the response depends on the origin that asks."""
        return not self._any

    def _allowed(self, request: Request) -> str | None:
        origin = view.header(request, "origin")
        if origin is None:
            return None
        if self._any:
            return origin
        # The shape is checked first, so that a callable never sees, and no header ever repeats, hostile text.
        return origin if _ORIGIN.fullmatch(origin) and self._asked(origin) else None

    def _asked(self, origin: str) -> bool:
        try:
            answer = self._matches(origin)
            if is_awaitable(answer):
                refuse_awaitable(self._matches, answer, by="origins")
            return bool(answer)
        except Exception:  # noqa: BLE001 - a fault in the caller's own check allows nobody, and is logged
            _log.exception("the check of an origin failed, so the origin is not allowed")
            return False

    def __repr__(self) -> str:
        origins = self.origins if callable(self.origins) else list(self.origins)
        return f"Cors({origins!r}, credentials={self.credentials!r})"


def _checked_origin(origin: str) -> str:
    if origin != "*" and not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
        raise ConfigurationError(
            f'origins must look like "https://app.example.com", lower case and without a path, got {origin!r}'
        )
    return origin


def _listed(names: Iterable[str]) -> str:
    if isinstance(names, str):
        raise ConfigurationError(f"expected a list of names, got the text {names!r}: put it in a list")
    return ", ".join(map(checked_name, names))


def _encoded(fields: list[tuple[str, str]]) -> Fields:
    return tuple((name.encode("ascii"), value.encode("ascii")) for name, value in fields if value)


def varied(lines: Iterable[bytes]) -> bytes | None:
    """Return a Vary line that names Origin, to be added to the existing ones; None if they name it already."""
    present = {word.strip().lower() for line in lines for word in line.split(b",")}
    return None if present & {b"origin", b"*"} else b"Origin"
