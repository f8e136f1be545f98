"""The shell that gives an ASGI app's requests a time budget."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import deadline
from reliakit.web import observer as observing
from reliakit.web.asgi.messages import BODY, START, send_answer

if TYPE_CHECKING:
    from reliakit.web.observer import Exchange
    from reliakit.web.request import ASGIApp, Message, Receive, Request, Send
    from reliakit.web.timeout import RequestTimeout

__all__ = ["Timed"]


class Timed:
    """An app under a `RequestTimeout`."""

    __slots__ = ("_app", "_limit")

    def __init__(self, app: ASGIApp, limit: RequestTimeout) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Request, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        limit = self._limit
        budget = limit.budget(scope) if scope["type"] == "http" else None
        if scope["type"] != "http" or (budget is None and limit.stream_timeout is None):
            await self._app(scope, receive, send)
            return
        await _Exchange(limit, budget, scope, send).run(self._app, receive)


class _Exchange:
    """One request under its budget.

    The 504 is sent by a task of its own at the moment when the budget is spent, because the app may take long to obey
    its cancellation: a thread that it waits for cannot be stopped. Anything that the app sends after that is refused.
    """

    def __init__(self, limit: RequestTimeout, budget: float | None, scope: Request, send: Send) -> None:
        self._limit = limit
        self._budget = budget
        self._exchange: Exchange | None = scope.get(observing.KEY)
        self._scope = scope
        self._send = send
        self._deadline = None if budget is None else deadline(budget, clock=limit.clock)
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.Task[None] | asyncio.TimerHandle | None = None
        self._answer: asyncio.Task[None] | None = None
        self._started = False
        self._spent: Exception | None = None

    async def run(self, app: ASGIApp, receive: Receive) -> None:
        """Run the app; an error that it raises passes through unless the budget is spent."""
        try:
            async with self._timeout:
                if self._deadline is not None:
                    self._deadline.__enter__()
                self._within(self._budget)
                if self._spent is None:
                    await app(self._scope, receive, self._tell)
        except Exception as error:
            if self._spent is None:
                raise
            if self._answer is None:
                raise self._spent from error
            if not isinstance(error, TimeoutError):
                self._limit.seen(error)  # raised while it was being stopped; the client has its answer
        finally:
            self._stop()
            self._lift()
            if self._answer is not None:
                await self._finish(self._answer)

    async def _finish(self, answer: asyncio.Task[None]) -> None:
        try:
            await asyncio.shield(answer)
        except BaseException:
            answer.cancel()
            raise

    async def _tell(self, message: Message) -> None:
        if self._spent is not None:
            raise self._limit.expired(self._budget or 0.0)
        kind = message["type"]
        if kind == START:
            self._started = True
            self._lift()
        if self._started:
            self._stop()
        await self._send(message)
        last = kind == BODY and not message.get("more_body", False)
        if self._started and self._limit.stream_timeout is not None and not last:
            self._within(self._limit.stream_timeout)

    def _within(self, seconds: float | None) -> None:
        """Start the timer."""
        if seconds is None:
            return
        if seconds <= 0:
            self._expire(seconds)
        elif self._limit.clock is SYSTEM_CLOCK:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expire, seconds)
        else:
            self._timer = asyncio.ensure_future(self._watch(seconds))

    async def _watch(self, seconds: float) -> None:
        clock = self._limit.clock
        # A test clock that jumps to the end of each sleep must not do so for a task that only watches.
        wait = getattr(clock, "alarm", clock.asleep)
        await wait(seconds)
        self._expire(seconds)

    def _expire(self, seconds: float) -> None:
        """Answer if nothing was sent yet, and stop the app."""
        self._spent = error = self._limit.expired(seconds)
        if self._exchange is not None:
            self._exchange.fail(error, 504)
        if self._started:
            self._limit.seen(error)
        else:
            self._answer = asyncio.ensure_future(send_answer(self._scope, self._send, self._limit.answer(error)))
        if seconds > 0:
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def _stop(self) -> None:
        """Stop the timer."""
        timer, self._timer = self._timer, None
        if timer is not None and self._spent is None:
            timer.cancel()

    def _lift(self) -> None:
        """End the deadline that the app's own waits see: it only covered the time to the first byte."""
        budget, self._deadline = self._deadline, None
        if budget is not None:
            spent = self._spent
            budget.__exit__(None if spent is None else type(spent), spent, None)
