"""One time budget for everything that a request does.

```
with deadline(2.0):                 until = now + 2.0, or the outer one's if that comes first
    remaining()  -> 1.93            what pools, statements, pauses and outgoing calls may still take
    checkpoint() -> None, or raises DeadlineExceededError
```

A deadline only ever shrinks. In `async with` it is enforced: the block is cancelled and raises DeadlineExceededError,
while a cancellation that comes from elsewhere stays a cancellation. In a plain `with` it is cooperative: nothing can
stop Python code in a thread, so reliakit's own waits and `checkpoint()` raise, and a block that returns too late
keeps its result and emits `DeadlineOverrun`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError, DeadlineExceededError
from reliakit.core.events import DeadlineOverrun
from reliakit.core.spine import Emitter

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

__all__ = ["DEADLINE_HEADER", "checkpoint", "deadline", "deadline_headers", "exceeded", "grpc_timeout", "remaining"]

DEADLINE_HEADER = "X-Request-Deadline-Ms"
_MOST_MILLISECONDS = 999_999_999  # eleven days, in the nine digits that peers read
_MOST_GRPC = 99_999_999  # eight digits, see "Timeout" in the protocol of gRPC over HTTP/2


class Budget:
    """One running block's time budget, linked to the block around it; for code that sets `current` itself."""

    __slots__ = ("clock", "inherited", "outer", "over", "seconds", "until")

    def __init__(self, seconds: float, clock: Clock, outer: Budget | None) -> None:
        self.outer: Budget | None = outer
        self.over: bool = False
        self.inherited: bool = False
        self.seconds: float = seconds
        self.clock: Clock = clock
        self.until: float = clock.monotonic() + seconds
        if outer is not None and outer.remaining() <= seconds:
            self.inherited = True
            self.seconds, self.clock, self.until = outer.seconds, outer.clock, outer.until

    def remaining(self) -> float:
        """Return the seconds that are left, negative once they are spent."""
        return self.until - self.clock.monotonic()


current: ContextVar[Budget | None] = ContextVar("reliakit_deadline", default=None)
_emitter = Emitter("deadline")


def binding() -> Budget | None:
    """Return the innermost budget whose block still runs."""
    # A generator may be closed in another context than it began in, or after the block around it; its budget then
    # stays in the context. Checking that each budget's block still runs makes that harmless.
    budget = current.get()
    while budget is not None and budget.over:
        budget = budget.outer
    return budget


def remaining() -> float | None:
    """Return the seconds left of the innermost deadline, never below 0; None without a deadline."""
    budget = current.get()
    if budget is None:
        return None
    if budget.over:
        budget = binding()
    return None if budget is None else max(0.0, budget.remaining())


def checkpoint() -> None:
    """Raise DeadlineExceededError if the deadline has passed. Call it in loops that nothing can interrupt."""
    budget = binding()
    if budget is not None and budget.remaining() <= 0:
        raise exceeded(budget.seconds)


def deadline_headers(*, margin: float = 0.0) -> dict[str, str]:
    """Return the header that tells the next service how much time is left, or no header without a deadline.

    For outgoing calls: `client.get(url, headers=deadline_headers())`. The web layer of the next service honours it
    from peers that it trusts.

    Args:
        margin: Seconds to keep back for the network and for what follows the call.

    Returns:
        `{"X-Request-Deadline-Ms": "1930"}`, in whole milliseconds rounded down; "0" if nothing is left.
    """
    left = _left_for_others(margin)
    return {} if left is None else {DEADLINE_HEADER: str(min(int(left * 1000), _MOST_MILLISECONDS))}


def grpc_timeout(*, margin: float = 0.0) -> str | None:
    """Return the time left as the value of a gRPC `grpc-timeout` header, or None without a deadline.

    Args:
        margin: Seconds to keep back for the network and for what follows the call.

    Returns:
        A text such as "1930m" for 1930 milliseconds; "0m" if nothing is left.
    """
    left = _left_for_others(margin)
    if left is None:
        return None
    milliseconds = int(left * 1000)
    return f"{milliseconds}m" if milliseconds <= _MOST_GRPC else f"{min(int(left), _MOST_GRPC)}S"


def _left_for_others(margin: float) -> float | None:
    kept = checks.seconds("margin", margin, zero=True)
    left = remaining()
    # Corrected for binary fractions: 1.93 s must not become 1929 ms.
    return None if left is None else max(0.0, round(left - kept, 6))


def exceeded(seconds: float) -> DeadlineExceededError:
    """Return the error for a spent budget of `seconds`."""
    return DeadlineExceededError(f"the deadline of {seconds:g} s has passed", seconds=seconds)


class deadline:  # noqa: N801 - reads as the statement it is used in
    """Limit the time of a block: `with deadline(2.0): ...` or `async with deadline(2.0): ...`.

    Tasks started in the block share its budget while the block runs, and so do threads if their pool copies the
    context, as `asyncio.to_thread` does. A block that has ended limits nothing any more. One object serves one block
    at a time.

    Args:
        seconds: The budget; 0 is spent at once. An outer deadline that comes first wins.
        clock: Measures it.

    Raises:
        ConfigurationError: `seconds` is negative or not a finite number.
        DeadlineExceededError: `async with` cut the block off, or a wait or `checkpoint()` in it came too late.
    """

    __slots__ = ("_budget", "_clock", "_seconds", "_timeout", "_watchdog")

    def __init__(self, seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._seconds = checks.seconds("seconds", seconds, zero=True)
        self._clock = clock if clock is SYSTEM_CLOCK else checks.clock("clock", clock)
        self._budget: Budget | None = None
        self._timeout: asyncio.Timeout | None = None
        self._watchdog: asyncio.Task[None] | None = None

    def remaining(self) -> float:
        """Return the seconds that are left to this block, never below 0."""
        return self._seconds if self._budget is None else max(0.0, self._budget.remaining())

    def __enter__(self) -> Self:
        if self._budget is not None:
            raise ConfigurationError("this deadline is running already: make a new one for each block")
        self._budget = Budget(self._seconds, self._clock, binding())
        current.set(self._budget)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        budget = self._leave()
        left = budget.remaining()
        if error is None and left < 0 and not budget.inherited:
            self._overran(budget.seconds, budget.seconds - left)

    def _overran(self, seconds: float, elapsed: float) -> None:
        """Report a block that could not be interrupted and returned too late."""
        _emitter.emit(DeadlineOverrun, seconds=seconds, elapsed=elapsed)

    async def __aenter__(self) -> Self:
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        self.__enter__()
        budget = self._budget
        assert budget is not None
        # Armed even if an outer deadline comes first: that one may be a plain `with`, or belong to a parent task.
        measured_by_loop = budget.clock is SYSTEM_CLOCK
        try:
            self._timeout = asyncio.timeout(budget.remaining() if measured_by_loop else None)
            await self._timeout.__aenter__()
        except BaseException:
            self._leave()
            raise
        if not measured_by_loop:
            self._watchdog = asyncio.create_task(self._watch(budget, self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timeout, self._timeout = self._timeout, None
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.cancel()
        assert timeout is not None
        try:
            await timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise exceeded(self._leave().seconds) from error
        self.__exit__(kind, error, trace)

    @staticmethod
    async def _watch(budget: Budget, timeout: asyncio.Timeout) -> None:
        import asyncio  # noqa: PLC0415

        # A test clock that jumps to the end of each sleep must not do so for a task that only watches.
        wait = getattr(budget.clock, "alarm", budget.clock.asleep)
        await wait(max(0.0, budget.remaining()))
        timeout.reschedule(asyncio.get_running_loop().time())

    def _leave(self) -> Budget:
        budget, self._budget = self._budget, None
        assert budget is not None
        budget.over = True
        current.set(binding())
        return budget

    def __repr__(self) -> str:
        if self._budget is None:
            return f"deadline({self._seconds:g})"
        return f"<deadline({self._seconds:g}) with {self.remaining():.3g} s left>"
