"""One thread or task that waits to be woken, from anywhere, for a bounded time on any clock.

```
waiter.wait(5.0, clock)      a thread          waiter.wake()      from any thread or task
await waiter.wait(...)       a task
```

The waiter does not say what woke it, the waker or the time: look at what the waker has recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.threads import Bell

if TYPE_CHECKING:
    import asyncio

    from reliakit.core.clock import Clock

__all__ = ["TaskWaiter", "ThreadWaiter"]


class ThreadWaiter:
    """A thread that waits."""

    __slots__ = ("_bell",)

    def __init__(self) -> None:
        self._bell = Bell()

    def wake(self) -> None:
        """End the wait, now or before it begins."""
        self._bell.set()

    def wait(self, seconds: float | None, clock: Clock) -> None:
        """Block until woken or until `seconds` have passed; None for no limit."""
        until = getattr(clock, "until", None)  # a test's clock moves its own time
        if until is not None and seconds is not None:
            until(self._bell, seconds)
        else:
            self._bell.wait(seconds)


class TaskWaiter:
    """A task that waits. Made in its own event loop."""

    __slots__ = ("_loop", "_woken")

    def __init__(self) -> None:
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def wake(self) -> None:
        """End the wait, now or before it begins.

        Raises:
            RuntimeError: Its event loop is closed, so nobody waits any more.
        """
        self._loop.call_soon_threadsafe(self.woken)

    async def wait(self, seconds: float | None, clock: Clock) -> None:
        """Suspend until woken or until `seconds` have passed; None for no limit."""
        if seconds is None:
            await self._woken
        elif clock is SYSTEM_CLOCK:
            timer = self._loop.call_later(seconds, self.woken)
            try:
                await self._woken
            finally:
                timer.cancel()
        else:
            sleep = self._loop.create_task(clock.asleep(seconds))
            sleep.add_done_callback(lambda _: self.woken())
            try:
                await self._woken
            finally:
                sleep.cancel()

    def woken(self) -> None:
        """End the wait, from within its own event loop."""
        if not self._woken.done():
            self._woken.set_result(None)
