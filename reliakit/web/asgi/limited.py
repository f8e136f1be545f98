"""The shells that refuse: over the rate limit, or with too large a body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.web.asgi.messages import START, send_answer, with_fields
from reliakit.web.body import BodyLimit, BodyTooLargeError

if TYPE_CHECKING:
    from reliakit.web.rate_limit import RateLimitHeaders
    from reliakit.web.request import ASGIApp, Message, Receive, Request, Send

__all__ = ["Bounded", "Limited"]


class Limited:
    """An app under `RateLimitHeaders`."""

    __slots__ = ("_app", "_limit")

    def __init__(self, app: ASGIApp, limit: RateLimitHeaders) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        key = self._limit.key(scope) if scope["type"] == "http" else None
        if key is None:
            await self._app(scope, receive, send)
            return
        decision = await self._limit.limiter.ahit(key)
        fields = self._limit.chosen(decision)

        async def tell(message: Message) -> None:
            await send(with_fields(message, fields) if message["type"] == START else message)

        if decision.allowed:
            await self._app(scope, receive, tell)
        else:
            await send_answer(scope, tell, self._limit.refused(decision, scope))


class Bounded:
    """An app under a `BodyLimit`."""

    __slots__ = ("_app", "_limit")

    def __init__(self, app: ASGIApp, limit: BodyLimit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._limit.refuses(scope):
            await send_answer(scope, send, self._limit.answer())
        else:
            await self._count(scope, receive, send)

    async def _count(self, scope: Request, receive: Receive, send: Send) -> None:
        limit = self._limit
        size = 0
        started = refused = False

        async def hear() -> Message:
            nonlocal size, refused
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > limit.max_body:
                    if not (started or refused):
                        refused = True
                        await send_answer(scope, send, limit.answer())
                    raise limit.error()
            return message

        async def tell(message: Message) -> None:
            nonlocal started
            if refused:
                return  # the client has its 413, whatever the app sends now
            started = started or message["type"] == START
            await send(message)

        try:
            await self._app(scope, hear, tell)
        except Exception as error:
            if not refused or not _is_about(error, BodyTooLargeError):
                raise


def _is_about(error: BaseException | None, kind: type[Exception]) -> bool:
    """Return whether an error is of this kind or was caused by one: frameworks wrap what reading raises."""
    for _ in range(8):  # a chain of causes may be circular
        if error is None or isinstance(error, kind):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, kind)
