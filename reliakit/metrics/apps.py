"""Serving the metrics over HTTP, as an ASGI and as a WSGI application."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Environ = dict[str, Any]
    StartResponse = Callable[[str, list[tuple[str, str]]], object]

__all__ = ["AsgiApp", "Scrape", "WsgiApp"]

_ALLOWED = ("GET", "HEAD")


class Scrape(NamedTuple):
    """A scrape that is rendered step by step.

    Attributes:
        pieces: The metrics, UTF-8; each piece is rendered when it is asked for.
        content_type: The value of the Content-Type header.
    """

    pieces: Iterator[bytes]
    content_type: str


def _begun(scrape: Callable[[str], Scrape], accept: str, encodings: str) -> tuple[Iterator[bytes], dict[str, str]]:
    """Return the pieces of one body and the headers that go with it."""
    pieces, content_type = scrape(accept)
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store"}
    if _takes_gzip(encodings):
        pieces = _compressed(pieces)
        headers["Content-Encoding"] = "gzip"
    return pieces, headers


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, wbits=31)  # with the header and trailer of gzip
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _takes_gzip(encodings: str) -> bool:
    """Return whether an Accept-Encoding header accepts gzip, by its name or else by `*`."""
    qualities: dict[str, bool] = {}
    for part in encodings.lower().split(","):
        name, _, quality = part.partition(";")
        qualities[name.strip()] = quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return qualities.get("gzip", qualities.get("*", False))


def _refused() -> list[tuple[str, str]]:
    return [("Allow", ", ".join(_ALLOWED)), ("Content-Type", "text/plain"), ("Content-Length", "0")]


class AsgiApp:
    """Serves the metrics at whatever path it is mounted or routed.

    Args:
        scrape: Begins a scrape for an Accept header.
        is_large: Returns whether rendering takes so long that it must run in a worker thread, not in the event loop.
    """

    # An object and not a function: routers take a function for an endpoint that takes a request.
    def __init__(self, scrape: Callable[[str], Scrape], is_large: Callable[[], bool]) -> None:
        self._scrape = scrape
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
        asked: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            known = asked.get(name.lower())
            text = value.decode("latin-1")
            asked[name.lower()] = text if known is None else f"{known},{text}"
        body = b""
        if scope["method"] in _ALLOWED:
            status = 200
            pieces, headers = _begun(self._scrape, asked.get(b"accept", ""), asked.get(b"accept-encoding", ""))
            body = b"".join(await _gathered(pieces) if self._is_large() else pieces)
            fields = [*headers.items(), ("Content-Length", str(len(body)))]
        else:
            status, fields = 405, _refused()
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _gathered(pieces: Iterator[bytes]) -> Iterable[bytes]:
    """Render in a worker thread, piece by piece.

    Between two pieces the thread is done and the event loop gets its turn. A thread that went on would only release
    the GIL when its time slice of 5 ms is over.
    """
    import asyncio  # noqa: PLC0415 - only who serves ASGI pays for the import

    try:
        asyncio.get_running_loop()
    except RuntimeError:  # the server runs another kind of loop, which has threads of its own
        return pieces
    found: list[bytes] = []
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        found.append(piece)
    return found


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class WsgiApp:
    """Serves the metrics at whatever path it is mounted.

    Args:
        scrape: Begins a scrape for an Accept header.
    """

    def __init__(self, scrape: Callable[[str], Scrape]) -> None:
        self._scrape = scrape

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method = environ.get("REQUEST_METHOD", "GET")
        if method not in _ALLOWED:
            start_response("405 Method Not Allowed", _refused())
            return [b""]
        pieces, headers = _begun(
            self._scrape, environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
        )
        body = b"".join(pieces)
        start_response("200 OK", [*headers.items(), ("Content-Length", str(len(body)))])
        return [b"" if method == "HEAD" else body]
