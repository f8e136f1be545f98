"""One time budget for everything that a request does.

```
with deadline(2.0):                 until = now + 2.0, or the outer one's if that comes first
    remaining()  -> 1.93            what pools, statements, pauses and outgoing calls may still take
    checkpoint() -> None, or raises DeadlineExceededError
```

A deadline only ever shrinks. In `async with` it is enforced: the block is cancelled and leaves as
DeadlineExceededError, while a cancellation that comes from elsewhere keeps its identity. In a plain `with` it is
cooperative: nothing can stop Python code in a thread, so reliakit's own waits and `checkpoint()` raise, and a block
that returns too late keeps its result and emits `DeadlineOverrun`.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError, DeadlineExceededError
from reliakit.core.events import DeadlineOverrun
from reliakit.core.spine import Emitter

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

__all__ = ["checkpoint", "deadline", "remaining"]


@dataclass(frozen=True, slots=True)
class _Limit:
    """The instant at which the budget is spent, on the clock that measures it."""

    until: float
    seconds: float
    clock: Clock

    def remaining(self) -> float:
        return self.until - self.clock.monotonic()


_current: ContextVar[_Limit | None] = ContextVar("reliakit_deadline", default=None)
_emitter = Emitter("deadline")


def remaining() -> float | None:
    """Return the seconds that are left of the innermost deadline, never below 0, or None without a deadline."""
    limit = _current.get()
    return None if limit is None else max(0.0, limit.remaining())


def checkpoint() -> None:
    """Raise DeadlineExceededError if the deadline has passed. For loops in code that nothing can interrupt."""
    limit = _current.get()
    if limit is not None and limit.remaining() <= 0:
        raise exceeded(limit.seconds)


def exceeded(seconds: float) -> DeadlineExceededError:
    """Return the error for a spent budget of so many seconds."""
    return DeadlineExceededError(f"the deadline of {seconds:g} s has passed", seconds=seconds)


class deadline:  # noqa: N801 - reads as the statement it is used in
    """Give a block so many seconds, for `with` and `async with`.

    Args:
        seconds: The budget; 0 is one that is spent at once. An outer deadline that comes first wins.
        clock: What measures it.

    Raises:
        ConfigurationError: `seconds` is negative or no finite number.
        DeadlineExceededError: `async with` cut the block, or a wait or `checkpoint()` in it came too late.
    """

    __slots__ = ("_clock", "_emitter", "_limit", "_outer", "_seconds", "_timeout", "_token", "_watchdog")

    def __init__(self, seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._seconds = checks.seconds("seconds", seconds, zero=True)
        self._clock = clock
        self._limit: _Limit | None = None
        self._outer: _Limit | None = None
        self._token: Token[_Limit | None] | None = None
        self._timeout: asyncio.Timeout | None = None
        self._watchdog: asyncio.Task[None] | None = None

    def remaining(self) -> float:
        """Return the seconds that are left, negative once it has passed."""
        return self._seconds if self._limit is None else self._limit.remaining()

    def __enter__(self) -> Self:
        if self._limit is not None:
            raise ConfigurationError("this deadline is running already: make a new one for each block")
        outer = self._outer = _current.get()
        until = self._clock.monotonic() + self._seconds
        if outer is not None and outer.remaining() <= self._seconds:
            self._limit = outer
        else:
            self._limit = _Limit(until, self._seconds, self._clock)
        self._token = _current.set(self._limit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        limit = self._leave()
        left = limit.remaining()
        if error is None and left < 0 and limit is not self._outer:
            _emitter.emit(DeadlineOverrun, seconds=limit.seconds, elapsed=limit.seconds - left)

    async def __aenter__(self) -> Self:
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        self.__enter__()
        limit = self._limit
        assert limit is not None
        # Also where an outer deadline comes first: that one may be a plain `with`, or belong to a parent task.
        measured_by_loop = limit.clock is SYSTEM_CLOCK
        try:
            self._timeout = asyncio.timeout(limit.remaining() if measured_by_loop else None)
            await self._timeout.__aenter__()
        except BaseException:
            self._leave()
            raise
        if not measured_by_loop:
            self._watchdog = asyncio.create_task(self._watch(limit, self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timeout, self._timeout = self._timeout, None
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.cancel()
        limit = self._limit
        assert limit is not None
        try:
            if timeout is not None:
                await timeout.__aexit__(kind, error, trace)
        except TimeoutError as cut:
            self._leave()
            raise exceeded(limit.seconds) from cut.__cause__
        self.__exit__(kind, error, trace)

    @staticmethod
    async def _watch(limit: _Limit, timeout: asyncio.Timeout) -> None:
        import asyncio  # noqa: PLC0415

        await limit.clock.asleep(max(0.0, limit.remaining()))
        timeout.reschedule(asyncio.get_running_loop().time())

    def _leave(self) -> _Limit:
        limit, token = self._limit, self._token
        assert limit is not None
        assert token is not None
        self._limit = self._token = None
        try:
            _current.reset(token)
        except ValueError:
            # A generator may be closed in another context than it began in.
            _current.set(self._outer)
        return limit

    def __repr__(self) -> str:
        if self._limit is None:
            return f"deadline({self._seconds:g})"
        return f"<deadline({self._seconds:g}) with {self._limit.remaining():.3g} s left>"
