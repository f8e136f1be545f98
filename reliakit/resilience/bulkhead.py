"""A limit on concurrent calls, with a short queue for callers that come while all places are taken.

```
places   x x x x        max_concurrent
queue    o o            max_waiting; one more is refused with BulkheadFullError
```

The name is from Michael Nygard, "Release It!" (2007): one flooded compartment does not sink the ship. The queue is
in `places.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import current_priority
from reliakit.core.deadline import checkpoint, remaining
from reliakit.core.errors import BulkheadFullError, ConfigurationError, DeadlineExceededError, RejectedError
from reliakit.core.events import CallRejected, CallWaited
from reliakit.resilience.places import Order, Places, Ticket
from reliakit.resilience.policy import Layer
from reliakit.resilience.streams import AsyncBegun, Begun, Ended, afirst, astream, first, stream
from reliakit.resilience.waiter import TaskWaiter, ThreadWaiter

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Bulkhead"]


class Bulkhead(Layer):
    """Let at most a fixed number of calls run at once; a bounded number of others may wait.

    ```python
    reports = Bulkhead(10, max_waiting=20, wait=2.0)

    @reports                                # def, async def, generators, async generators, methods
    async def build(report): ...

    with reports: ...                       # or async with reports
    ```

    A caller that finds no free place waits in one queue with all others, threads and tasks, for at most `wait`
    seconds and never beyond the deadline; a full queue refuses with BulkheadFullError. Requests of
    `request_context(priority=...)` "critical" are served first and "sheddable" ones last; in a full queue, a more
    important one takes the place of a less important one. A waiter that is cancelled gives back any place it was just
    given. A generator holds its place from its first step to its end. One object is safe for any mix of threads and
    tasks; taking a free place takes no lock.

    Args:
        max_concurrent: How many calls may run at once.
        max_waiting: How many callers may wait for a place.
        wait: Seconds that a caller may wait, or None for as long as the deadline allows.
        order: Which waiter comes first: the one that came first ("fifo") or last ("lifo", which keeps most callers
            fast when there are too many).
        name: Names the bulkhead in errors and events.
        listeners: Callables that receive its events.
        clock: Measures the waits.

    Raises:
        ConfigurationError: A setting is wrong.
        BulkheadFullError: At a call: there is no free place and no room to wait, or none became free in time.
        DeadlineExceededError: At a call: the deadline came before a place did.
    """

    __slots__ = ("_clock", "_places", "max_concurrent", "max_waiting", "order", "wait")

    def __init__(
        self,
        max_concurrent: int,
        *,
        max_waiting: int = 0,
        wait: float | None = None,
        order: Order = "fifo",
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self.max_concurrent: int = checks.count("max_concurrent", max_concurrent)
        self.max_waiting: int = checks.count("max_waiting", max_waiting, least=0)
        self.wait: float | None = None if wait is None else checks.seconds("wait", wait, zero=True)
        if wait is not None and max_waiting == 0:
            raise ConfigurationError("wait needs a queue: give max_waiting, how many callers may wait in it")
        self.order: Order = checks.choice("order", order, ("fifo", "lifo"))
        self._clock = clock
        self._places = Places(max_concurrent, max_waiting, order)

    @property
    def running(self) -> int:
        """How many calls run now."""
        return self._places.inside

    @property
    def waiting(self) -> int:
        """How many callers wait now."""
        return self._places.waiting

    def enter(self) -> None:
        """Take a place, waiting for one if that is allowed; give it back with `leave`.

        Raises:
            BulkheadFullError: There is no free place.
            DeadlineExceededError: The deadline came first.
        """
        if self._places.take():
            return
        seconds, until_deadline = self._patience()
        waiter = ThreadWaiter()
        ticket = self._queue(waiter)
        began = self._clock.monotonic()
        try:
            waiter.wait(seconds, self._clock)
            self._places.withdraw(ticket)
        except BaseException:
            self._forsake(ticket)
            raise
        self._admit(ticket, began, seconds if until_deadline else None)

    async def aenter(self) -> None:
        """Take a place as `enter` does, suspending this task instead of blocking its thread."""
        if self._places.take():
            return
        seconds, until_deadline = self._patience()
        waiter = TaskWaiter()
        ticket = self._queue(waiter)
        began = self._clock.monotonic()
        try:
            await waiter.wait(seconds, self._clock)
            self._places.withdraw(ticket)
        except BaseException:
            self._forsake(ticket)
            raise
        self._admit(ticket, began, seconds if until_deadline else None)

    def leave(self) -> None:
        """Give a place back."""
        self._places.leave()

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` behind the bulkhead, in the same colour."""
        if colour == "plain":
            return self._plain(fn)
        if colour == "async":
            return self._async(fn)
        return stream(self._begin(fn)) if colour == "generator" else astream(self._abegin(fn))

    def _plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        places = self._places
        take, free = places.free.pop, places.free.append

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                if places.waiting:
                    raise IndexError
                take()
            except IndexError:
                self.enter()
            try:
                return fn(*args, **kwargs)
            finally:
                free(None)
                if places.waiting:
                    places.hand_out()

        return run

    def _async(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        places = self._places
        take, free = places.free.pop, places.free.append

        async def run(*args: Any, **kwargs: Any) -> Any:
            try:
                if places.waiting:
                    raise IndexError
                take()
            except IndexError:
                await self.aenter()
            try:
                return await fn(*args, **kwargs)
            finally:
                free(None)
                if places.waiting:
                    places.hand_out()

        return run

    def _begin(self, fn: Callable[..., Any]) -> Callable[..., Begun | Ended]:
        start = first(fn)

        def begin(*args: Any, **kwargs: Any) -> Begun | Ended:
            self.enter()
            begun: Begun | Ended = Ended()
            try:
                begun = start(*args, **kwargs)
            finally:
                if isinstance(begun, Ended):
                    self.leave()
            if isinstance(begun, Begun):
                begun.end = self.leave
            return begun

        return begin

    def _abegin(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        start = afirst(fn)

        async def begin(*args: Any, **kwargs: Any) -> AsyncBegun | Ended:
            await self.aenter()
            begun: AsyncBegun | Ended = Ended()
            try:
                begun = await start(*args, **kwargs)
            finally:
                if isinstance(begun, Ended):
                    self.leave()
            if isinstance(begun, AsyncBegun):
                begun.end = self.leave
            return begun

        return begin

    def _patience(self) -> tuple[float | None, bool]:
        """Return how long this call may wait, and whether the deadline set that; refuse it if it may not wait."""
        if not self.max_waiting:
            raise self._refusal()
        left = remaining()
        if left is None:
            return self.wait, False
        if left <= 0:
            checkpoint()
        return (left, True) if self.wait is None or left <= self.wait else (self.wait, False)

    def _queue(self, waiter: ThreadWaiter | TaskWaiter) -> Ticket:
        ticket = Ticket(waiter, current_priority())
        if not self._places.join(ticket):
            raise self._refusal()
        return ticket

    def _forsake(self, ticket: Ticket) -> None:
        """Leave the queue, and hand on the place that came too late."""
        self._places.withdraw(ticket)
        if ticket.state == "granted":
            self._places.leave()

    def _admit(self, ticket: Ticket, began: float, deadline: float | None) -> None:
        """Return if a place was granted, else raise; `deadline` is the wait allowed, if the deadline set it."""
        granted = ticket.state == "granted"
        if self._emitter.hears(CallWaited):
            self._emitter.emit(CallWaited, wait=self._clock.monotonic() - began, granted=granted)
        if granted:
            return
        if deadline is not None and ticket.state == "left":
            raise DeadlineExceededError(
                f"the deadline came after {deadline:g} s in the queue of bulkhead {self.name!r}", seconds=deadline
            )
        raise self._refusal()

    def _refusal(self) -> RejectedError:
        self._emitter.emit(CallRejected, reason=BulkheadFullError.__name__, retry_after=None)
        queue = f", with a queue for {self.max_waiting} more" if self.max_waiting else ""
        return BulkheadFullError(
            f"bulkhead {self.name!r} lets {self.max_concurrent} calls run at once{queue}, and has no place free",
            name=self.name,
        )

    # The places are all alike, so a block need not know which one it took.

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    async def __aenter__(self) -> Self:
        await self.aenter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        queue = ""
        if self.max_waiting:
            wait = "" if self.wait is None else f", wait={self.wait:g}"
            queue = f", {self.waiting} of {self.max_waiting} waiting{wait}"
            queue += ", order='lifo'" if self.order == "lifo" else ""
        return f"<Bulkhead {self.name!r} {self.running} of {self.max_concurrent} running{queue}>"
