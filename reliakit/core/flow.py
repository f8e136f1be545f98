"""Waiting sequences, written once as `async def` and run in threads and in tasks.

```
async def begin(io): ...            the one text
run_blocking(begin(BLOCKING))       in a thread: every await returns without suspending
await begin(SUSPENDING)             in a task
```

A flow that runs in a thread must finish in its first step, which it does if everything it awaits is an adapter that
blocks instead of suspending. The caller's code runs outside of flows, or is turned into an `Outcome` first, so that
its StopIteration is never mistaken for the flow's end and its tracebacks stay short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from reliakit.core.clock import Clock

__all__ = ["BLOCKING", "SUSPENDING", "Outcome", "Waiting", "attempt", "attempt_async", "run_blocking"]

T = TypeVar("T")


@dataclass(slots=True)  # not frozen: made once a call, and frozen ones cost three times as much to make
class Outcome(Generic[T]):
    """The outcome of a call of foreign code: a value, or the error that it raised."""

    value: T | None = None
    error: BaseException | None = None

    def unwrap(self) -> T:
        """Return the value, or raise the error with its own traceback."""
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


def attempt(fn: Callable[..., T], *args: Any, **kwargs: Any) -> Outcome[T]:
    """Call a plain function and return its outcome, whatever it raised."""
    try:
        return Outcome(fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - carried to the shell, which raises it
        return Outcome(error=error)


async def attempt_async(fn: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> Outcome[T]:
    """Await a call and return its outcome, whatever it raised, cancellation included."""
    try:
        return Outcome(await fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - carried to the shell, which raises it
        return Outcome(error=error)


class Waiting(Protocol):
    """How a flow pauses."""

    async def sleep(self, clock: Clock, seconds: float, /) -> None:
        """Pause for `seconds` of this clock."""
        ...


class _Blocking:
    async def sleep(self, clock: Clock, seconds: float, /) -> None:
        clock.sleep(seconds)


class _Suspending:
    async def sleep(self, clock: Clock, seconds: float, /) -> None:
        await clock.asleep(seconds)


BLOCKING: Waiting = _Blocking()
SUSPENDING: Waiting = _Suspending()


def run_blocking(flow: Coroutine[Any, Any, T]) -> T:
    """Run a flow to its end in this thread, without an event loop.

    Raises:
        RuntimeError: The flow tried to suspend: it was given something that awaits for real.
    """
    try:
        flow.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    refusal = RuntimeError("this flow suspends: give it adapters that block, or await it")
    try:
        flow.close()
    except Exception as error:  # its own cleanup suspends too, or fails
        raise refusal from error
    raise refusal
