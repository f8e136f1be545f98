"""One call shared by all callers that ask for the same thing at the same time.

```
ask ──┐
ask ──┼── one flight ── result or error ──> everybody
ask ──┘
```

After Go's singleflight. Nothing is cached: a caller that asks after the flight has ended starts the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.deadline import remaining
from reliakit.core.errors import ConfigurationError, DeadlineExceededError
from reliakit.core.events import CallCoalesced
from reliakit.core.fork import tell_after_fork
from reliakit.resilience.policy import Layer
from reliakit.resilience.verdict import plain_callable
from reliakit.resilience.waiter import TaskWaiter, ThreadWaiter

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Coalesce"]

Keyed: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], Hashable]


class Flight:
    """One call under way, and the callers that wait for it.

    Attributes:
        has_outcome: Whether there is a result or an error to share.
        is_over: Whether callers can no longer join it.
        waiters: The callers that wait.
        task: The task that makes the call, if a task does.
    """

    __slots__ = ("error", "has_outcome", "is_over", "task", "trace", "value", "waiters")

    def __init__(self) -> None:
        self.has_outcome: bool = False
        self.value: Any = None
        self.error: Exception | None = None
        self.trace: TracebackType | None = None  # the error's first traceback, so that sharing does not lengthen it
        self.is_over: bool = False
        self.waiters: list[ThreadWaiter | TaskWaiter] = []
        self.task: asyncio.Task[None] | None = None

    def came_to(self, value: Any, error: Exception | None) -> None:
        """Store the outcome."""
        self.value, self.error, self.has_outcome = value, error, True
        self.trace = None if error is None else error.__traceback__


# The flights that this thread or task is itself part of: asking for one of them would make it wait for itself.
_aboard: ContextVar[frozenset[Flight]] = ContextVar("reliakit_flights", default=frozenset())


class Coalesce(Layer):
    """Make one call for all callers that ask for the same thing while it is under way, and give them its outcome.

    ```python
    @Coalesce()                             # or Coalesce(key=lambda user_id, **more: user_id)
    async def profile(user_id): ...
    ```

    For reads that may be shared: all get the same object, or the same error. A coroutine runs in a task of its own
    with a copy of the first caller's context; a caller that is cancelled leaves the others alone, and when the last
    one leaves, the call is cancelled. A plain function runs in the thread of the first caller, and others wait for
    it. No caller waits beyond its deadline. Results are not cached. One object is safe for any mix of threads and
    tasks.

    Args:
        key: What makes two calls the same: a function of their arguments that returns something hashable. By default
            all arguments with their types.
        name: Names it in events.
        listeners: Callables that receive its events.
        clock: Measures the waits.

    Raises:
        ConfigurationError: A setting is wrong; at decoration, the function is a generator; or, at a call, the key
            cannot be hashed.
    """

    __slots__ = ("_clock", "_flights", "_key", "_lock")

    def __init__(
        self,
        *,
        key: Callable[..., Hashable] | None = None,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self._key = None if key is None else plain_callable("key", key)
        self._clock = clock
        self._flights: dict[Hashable, Flight] = {}
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call while this thread holds it
        tell_after_fork(self, "begin_anew")

    @property
    def under_way(self) -> int:
        """How many calls are under way."""
        return len(self._flights)

    def begin_anew(self) -> None:
        """Forget the flights of the parent process, whose threads do not exist in this one."""
        self._lock = threading.RLock()
        self._flights = {}

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` as one call shared by all callers that ask for the same thing.

        Raises:
            ConfigurationError: `fn` is a generator function.
        """
        return self._wrap(fn, colour, lambda args, kwargs: self._keyed(fn, args, kwargs))

    def wrap_caller(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return the same for a caller: a function that calls its first argument with the others."""
        return self._wrap(fn, colour, lambda args, kwargs: self._keyed(args[0], args[1:], kwargs))

    def _wrap(self, fn: Callable[..., Any], colour: Colour, keyed: Keyed) -> Callable[..., Any]:
        if colour == "plain":
            return self._plain(fn, keyed)
        if colour == "async":
            return self._async(fn, keyed)
        raise ConfigurationError(f"coalesce {self.name!r} takes a function: a {colour}'s items cannot be shared")

    def _plain(self, fn: Callable[..., Any], keyed: Keyed) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            key = keyed(args, kwargs)
            while True:
                flight = self._begin(key)
                if flight is not None:
                    try:
                        return self._fly(key, flight, lambda: fn(*args, **kwargs))
                    finally:
                        del flight  # an error's traceback holds this frame, which must not hold the error
                joined = self._join(key)
                if joined is None:
                    continue  # the flight has ended meanwhile
                flight, waiter = joined
                if flight in _aboard.get():
                    self._leave(flight, waiter)
                    return fn(*args, **kwargs)
                began, left = self._clock.monotonic(), remaining()
                try:
                    waiter.wait(left, self._clock)
                finally:
                    self._leave(flight, waiter)
                if not self._is_shared(flight, left):
                    continue
                self._tell(began)
                error, value, trace = flight.error, flight.value, flight.trace
                del flight, joined  # as above
                if error is None:
                    return value
                try:
                    raise error.with_traceback(trace)
                finally:
                    del error, trace

        return run

    def _async(self, fn: Callable[..., Any], keyed: Keyed) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            key = keyed(args, kwargs)
            while True:
                waiter = TaskWaiter()
                flight, is_mine = self._board(key, waiter)
                if is_mine:
                    self._take_off(key, flight, lambda: fn(*args, **kwargs))
                if flight in _aboard.get():
                    self._leave(flight, waiter)
                    return await fn(*args, **kwargs)
                began, left = self._clock.monotonic(), remaining()
                try:
                    await waiter.wait(left, self._clock)
                    in_time = flight.is_over
                finally:
                    await self._abandon(key, flight, waiter)
                if in_time and is_mine and not flight.has_outcome:
                    raise _cancelled()  # from within
                if not self._is_shared(flight, left, in_time=in_time):
                    continue
                if not is_mine:
                    self._tell(began)
                error, value, trace = flight.error, flight.value, flight.trace
                del flight
                if error is None:
                    return value
                try:
                    raise error.with_traceback(trace)
                finally:
                    del error, trace

        return run

    def _fly(self, key: Hashable, flight: Flight, call: Callable[[], Any]) -> Any:
        """Make the call in this thread. Waiters share its outcome, unless that is a KeyboardInterrupt or the like."""
        token = _aboard.set(_aboard.get() | {flight})
        try:
            flight.came_to(call(), None)
        except Exception as error:
            flight.came_to(None, error)
            raise
        finally:
            _aboard.reset(token)
            self._land(key, flight)
            value = flight.value
            del flight  # an error's traceback holds this frame, which must not hold the error
        return value

    def _take_off(self, key: Hashable, flight: Flight, call: Callable[[], Any]) -> None:
        """Make the call in a task of its own."""
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        async def fly(flight: Flight) -> None:
            _aboard.set(_aboard.get() | {flight})
            try:
                flight.came_to(await call(), None)
            except Exception as error:  # noqa: BLE001 - raised by those who wait
                flight.came_to(None, error)
            finally:
                del flight

        flight.task = asyncio.get_running_loop().create_task(fly(flight))
        flight.task.add_done_callback(lambda _: self._land(key, flight))

    def _begin(self, key: Hashable) -> Flight | None:
        """Begin a flight, unless one is under way."""
        with self._lock:
            if key in self._flights:
                return None
            flight = self._flights[key] = Flight()
            return flight

    def _join(self, key: Hashable) -> tuple[Flight, ThreadWaiter] | None:
        """Join the flight under way; return None if it has ended."""
        waiter = ThreadWaiter()
        with self._lock:
            flight = self._flights.get(key)
            if flight is None:
                return None
            flight.waiters.append(waiter)
            return flight, waiter

    def _board(self, key: Hashable, waiter: TaskWaiter) -> tuple[Flight, bool]:
        """Join the flight under way or begin one, in one step; return it, and whether it was begun."""
        with self._lock:
            flight = self._flights.get(key)
            is_mine = flight is None
            if flight is None:
                flight = self._flights[key] = Flight()
            flight.waiters.append(waiter)
            return flight, is_mine

    def _land(self, key: Hashable, flight: Flight) -> None:
        """End a flight and wake all its waiters."""
        with self._lock:
            flight.is_over = True
            if self._flights.get(key) is flight:
                del self._flights[key]
            waiters, flight.waiters = flight.waiters, []
            flight.task = None  # the task's context holds the flight, so this would be a reference cycle
        for waiter in waiters:
            try:
                waiter.wake()
            except RuntimeError:
                continue  # its event loop is closed, so nobody waits there any longer

    def _leave(self, flight: Flight, waiter: ThreadWaiter | TaskWaiter) -> bool:
        """Stop waiting; return whether nobody is left waiting."""
        with self._lock:
            if waiter in flight.waiters:
                flight.waiters.remove(waiter)
            return not flight.waiters and not flight.is_over

    async def _abandon(self, key: Hashable, flight: Flight, waiter: TaskWaiter) -> None:
        """Stop waiting; if nobody is left waiting, cancel the call and await its end."""
        import asyncio  # noqa: PLC0415

        with self._lock:
            if not self._leave(flight, waiter):
                return
            if self._flights.get(key) is flight:
                del self._flights[key]  # the next caller begins a new flight
            task = flight.task
        assert task is not None
        loop = task.get_loop()
        if loop is not asyncio.get_running_loop():
            loop.call_soon_threadsafe(task.cancel)
            return
        again: BaseException | None = None
        while not task.done():
            task.cancel()
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                again = error
        if again is not None:
            raise again

    def _is_shared(self, flight: Flight, left: float | None, *, in_time: bool | None = None) -> bool:
        """Return whether there is an outcome to share; False is a reason to ask again."""
        if not (flight.is_over if in_time is None else in_time):
            raise DeadlineExceededError(
                f"the deadline came while coalesce {self.name!r} waited for a call under way", seconds=left
            )
        return (
            flight.has_outcome
        )  # without one, the caller that made the call was stopped, which is no answer for others

    def _tell(self, began: float) -> None:
        if self._emitter.hears(CallCoalesced):
            self._emitter.emit(CallCoalesced, wait=self._clock.monotonic() - began)

    def _keyed(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        try:
            found: Hashable
            if self._key is not None:
                found = (fn, self._key(*args, **kwargs))
            else:
                # With types, as 1, 1.0 and True are equal.
                found = (fn, _typed(args), tuple(sorted(kwargs)), _typed(kwargs[name] for name in sorted(kwargs)))
            hash(found)
        except TypeError as error:
            raise ConfigurationError(
                f"coalesce {self.name!r} cannot compare such arguments ({error}): give key=, a function of them"
            ) from error
        return found

    def __repr__(self) -> str:
        return f"<Coalesce {self.name!r} {self.under_way} under way>"


def _cancelled() -> BaseException:
    import asyncio  # noqa: PLC0415

    return asyncio.CancelledError()


def _typed(values: Iterable[Any]) -> Hashable:
    return tuple((cast("type[object]", type(value)), value) for value in values)
