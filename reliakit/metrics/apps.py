"""Serving the metrics over HTTP, as an ASGI and as a WSGI application."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from reliakit.metrics.exposition import Exposition

    Render = Callable[[str], Exposition]
    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Environ = dict[str, Any]
    StartResponse = Callable[[str, list[tuple[str, str]]], object]

__all__ = ["AsgiApp", "WsgiApp"]

_ALLOWED = ("GET", "HEAD")


def _answer(render: Render, method: str, accept: str, encodings: str) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return status, headers and body for one request."""
    if method not in _ALLOWED:
        return 405, [("Allow", ", ".join(_ALLOWED)), ("Content-Length", "0")], b""
    body, content_type = render(accept)
    headers = [("Content-Type", content_type), ("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "no-store")]
    if _takes_gzip(encodings):
        body = gzip.compress(body, compresslevel=1, mtime=0)
        headers.append(("Content-Encoding", "gzip"))
    headers.append(("Content-Length", str(len(body))))
    return 200, headers, b"" if method == "HEAD" else body


def _takes_gzip(encodings: str) -> bool:
    for part in encodings.lower().split(","):
        name, _, quality = part.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


class AsgiApp:
    """Serves the metrics at whatever path it is mounted or routed.

    Args:
        render: Returns the scrape for an Accept header.
        is_large: Whether rendering takes so long that a worker thread must do it, not the event loop.
    """

    # An object and not a function: routers take a function for an endpoint that wants a request.
    def __init__(self, render: Render, is_large: Callable[[], bool]) -> None:
        self._render = render
        self._is_large = is_large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1003})
            return
        headers: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            known = headers.get(name.lower())
            text = value.decode("latin-1")
            headers[name.lower()] = text if known is None else f"{known},{text}"
        asked = (scope["method"], headers.get(b"accept", ""), headers.get(b"accept-encoding", ""))
        if self._is_large():
            import asyncio  # noqa: PLC0415 - only who serves ASGI pays for the import

            status, fields, body = await asyncio.to_thread(_answer, self._render, *asked)
        else:
            status, fields, body = _answer(self._render, *asked)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class WsgiApp:
    """Serves the metrics at whatever path it is mounted.

    Args:
        render: Returns the scrape for an Accept header.
    """

    def __init__(self, render: Render) -> None:
        self._render = render

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        status, headers, body = _answer(
            self._render,
            environ.get("REQUEST_METHOD", "GET"),
            environ.get("HTTP_ACCEPT", ""),
            environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        start_response("200 OK" if status == 200 else "405 Method Not Allowed", headers)
        return [body]
