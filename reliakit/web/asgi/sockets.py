"""The wrapper around a websocket: reports when it opens, what passes, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.web.observer import RequestObserver, Socket
    from reliakit.web.request import ASGIApp, Message, Receive, Request, Send

__all__ = ["serve_socket"]

# RFC 6455, 7.4.1: closed on purpose, lost without a word, ended by an error.
_NORMAL, _LOST, _ERROR = 1000, 1006, 1011


async def serve_socket(app: ASGIApp, observer: RequestObserver, scope: Request, receive: Receive, send: Send) -> None:
    """Serve one websocket."""
    socket: Socket | None = None
    code = _LOST

    async def hear() -> Message:
        nonlocal code
        message = await receive()
        if message["type"] == "websocket.receive":
            observer.passed("in")
        elif message["type"] == "websocket.disconnect" and code == _LOST:
            code = message.get("code") or _LOST
        return message

    async def tell(message: Message) -> None:
        nonlocal code, socket
        await send(message)
        if message["type"] == "websocket.accept":
            socket = observer.opened(scope)
        elif message["type"] == "websocket.send":
            observer.passed("out")
        elif message["type"] == "websocket.close" and code == _LOST:
            code = message.get("code") or _NORMAL

    try:
        await app(scope, hear, tell)
    except BaseException as error:
        if isinstance(error, Exception) and code == _LOST:
            code = _ERROR
        observer.closed(socket, code, error)
        raise
    observer.closed(socket, code, None)
