"""The shells around every response of an ASGI app: the observer, the security headers and CORS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.context import request_context
from reliakit.web.asgi.messages import BODY, START, send_answer, with_fields
from reliakit.web.asgi.sockets import serve_socket
from reliakit.web.cors import Cors, varied

if TYPE_CHECKING:
    from reliakit.web.headers import SecurityHeaders
    from reliakit.web.observer import RequestObserver
    from reliakit.web.request import ASGIApp, Message, Receive, Request, Send

__all__ = ["Observed", "Secured", "Shared"]


class Observed:
    """An app under a `RequestObserver`."""

    __slots__ = ("_app", "_observer")

    def __init__(self, app: ASGIApp, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        observer = self._observer
        if scope["type"] == "websocket" and observer.hears_sockets:
            await serve_socket(self._app, observer, scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = observer.begin(scope)
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        ours = (b"x-request-id", exchange.request_id.encode("ascii"))

        async def hear() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.disconnect()
            else:
                exchange.received += len(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            kind = message["type"]
            if kind == START:
                exchange.status = message["status"]
                kept = [field for field in message.get("headers", ()) if field[0].lower() != b"x-request-id"]
                message = {**message, "headers": [*kept, ours]}
            try:
                await send(message)
            except OSError:
                exchange.disconnect()
                raise
            if kind == BODY:
                observer.sent(exchange, len(message.get("body", b"")), last=not message.get("more_body", False))
            elif kind == "http.response.pathsend":
                observer.sent(exchange, 0, last=True)

        with request_context(
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            priority=exchange.priority,
            trace_headers=exchange.trace_headers,
        ):
            try:
                await self._app(scope, hear, tell)
            except BaseException as error:
                observer.end(exchange, scope, error)
                raise
            observer.end(exchange, scope, None)


class Secured:
    """An app under `SecurityHeaders`."""

    __slots__ = ("_app", "_headers")

    def __init__(self, app: ASGIApp, headers: SecurityHeaders) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        fields = self._headers.chosen(scope)

        async def tell(message: Message) -> None:
            await send(with_fields(message, fields) if message["type"] == START else message)

        await self._app(scope, receive, tell)


class Shared:
    """An app under `Cors`."""

    __slots__ = ("_app", "_cors")

    def __init__(self, app: ASGIApp, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cors = self._cors
        preflight = cors.is_preflight(scope)
        fields = cors.chosen(scope, preflight=preflight)

        async def tell(message: Message) -> None:
            if message["type"] == START:
                message = with_fields(message, fields)
                vary = varied(v for n, v in message["headers"] if n.lower() == b"vary") if cors.varies else None
                if vary is not None:
                    message["headers"].append((b"vary", vary))
            await send(message)

        if preflight:
            await send_answer(scope, tell, cors.preflight(scope))
        else:
            await self._app(scope, receive, tell)
