"""The shell that turns an ASGI app's errors into answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.web import observer as observing
from reliakit.web.asgi.messages import BODY, START, send_answer

if TYPE_CHECKING:
    from reliakit.web.observer import Exchange
    from reliakit.web.problem import ProblemResponses
    from reliakit.web.request import ASGIApp, Message, Receive, Request, Send

__all__ = ["Answered"]


class Answered:
    """An app under `ProblemResponses`."""

    __slots__ = ("_app", "_problems")

    def __init__(self, app: ASGIApp, problems: ProblemResponses) -> None:
        self._app = app
        self._problems = problems

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gate = _Gate(send)
        try:
            await self._app(scope, receive, gate)
        except Exception as error:  # noqa: BLE001 - answered, reported and logged, or raised again
            await self._end(scope, gate, error)
        else:
            await gate.release()

    async def _end(self, scope: Request, gate: _Gate, error: Exception) -> None:
        exchange: Exchange | None = scope.get(observing.KEY)
        if exchange is not None and exchange.disconnected and observing.is_disconnect(error):
            return  # there is nobody left to answer
        if gate.started:
            self._problems.seen(error, gate.status)
            raise error
        response = self._problems.answer(error)
        if exchange is not None:
            exchange.fail(error, response.status)
        await send_answer(scope, gate.send, response)


class _Gate:
    """Passes messages on, and holds back the plain 500 that Starlette sends just before it re-raises an error."""

    __slots__ = ("_held", "send", "started", "status")

    def __init__(self, send: Send) -> None:
        self.send = send
        self.started = False
        self.status = 500
        self._held: list[Message] = []

    async def __call__(self, message: Message) -> None:
        if self.started:
            await self.send(message)
        elif message["type"] == START:
            self._held = [message]
            if message["status"] != 500 or (b"content-length", b"21") not in message.get("headers", ()):
                await self.release()
        elif self._held and message["type"] == BODY and message.get("body") == b"Internal Server Error":
            self._held.append(message)
        else:
            await self.release()
            await self.send(message)

    async def release(self) -> None:
        """Pass on what is held back."""
        held, self._held = self._held, []
        for message in held:
            self.started = True
            if message["type"] == START:
                self.status = message["status"]
            await self.send(message)
