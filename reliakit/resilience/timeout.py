"""A time limit for one call, which everything inside it reads as its deadline.

```
async      cut off at the limit: the call is cancelled and raises DeadlineExceededError
plain      cooperative: waits and checkpoint() raise; a late result is kept and reported (strict=True: refused)
threads=n  a plain function in a worker thread: its caller stops waiting at the limit, the function runs on unheard
```

Nothing can stop Python code that runs in a thread, so nothing here pretends to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import current_priority
from reliakit.core.deadline import Budget, binding, current, deadline, exceeded, remaining
from reliakit.core.errors import ConfigurationError, DeadlineExceededError
from reliakit.core.events import CallTimedOut, DeadlineOverrun
from reliakit.core.flow import Outcome, attempt
from reliakit.core.threads import Errand
from reliakit.core.tracking import report
from reliakit.resilience.places import Places, Ticket
from reliakit.resilience.policy import Layer
from reliakit.resilience.streams import AsyncBegun, Begun, Ended, afirst, astream, first, stream
from reliakit.resilience.waiter import ThreadWaiter

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Timeout"]

_MOST_WAITING = 1_000_000


class Timeout(Layer):
    """Limit each call to a number of seconds, or to what is left of the caller's deadline if that is less.

    ```python
    @Timeout(2.0)                           # def, async def, generators, async generators, methods
    async def fetch(url): ...
    ```

    Code inside reads the limit as its deadline: `remaining()`, pool checkouts, statements, pauses of retries, waits
    in queues. A call is not begun when no time is left. The caller's own cancellation stays a cancellation, and the
    function's own TimeoutError passes unchanged. For a generator the limit covers the time that it works itself, over
    all its items; what its consumer does in between does not count. One object is safe for any mix of threads and
    tasks.

    A coroutine is cut off by cancelling it. A plain function cannot be cut off: waits of reliakit and `checkpoint()`
    raise, and a function that returns too late keeps its result and is reported by the event `DeadlineOverrun`. With
    `threads` it runs in a thread of its own, with a copy of the caller's context, and its caller stops waiting at the
    limit while the function runs on; the number of such threads includes those that nobody waits for any more.

    Args:
        seconds: The limit.
        strict: Whether a result that comes too late is refused with DeadlineExceededError.
        threads: How many worker threads plain functions may use at once, or None to run them in the caller's thread.
        name: Names it in events.
        listeners: Callables that receive its events.
        clock: Measures the time.

    Raises:
        ConfigurationError: A setting is wrong.
        DeadlineExceededError: At a call: its time is over, or was over before it began.
    """

    __slots__ = ("_clock", "_places", "seconds", "strict", "threads")

    def __init__(
        self,
        seconds: float,
        *,
        strict: bool = False,
        threads: int | None = None,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self.seconds: float = checks.seconds("seconds", seconds)
        self.strict: bool = strict
        self.threads: int | None = None if threads is None else checks.count("threads", threads)
        self._clock = clock
        self._places = None if threads is None else Places(threads, _MOST_WAITING, "fifo")

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` within its time limit, in the same colour."""
        if colour == "plain":
            return self._plain(fn) if self._places is None else self._threaded(fn, self._places)
        if colour == "async":
            return self._async(fn)
        if self.threads is not None:
            raise ConfigurationError("threads is for functions, and a generator runs in its consumer's: leave it out")
        return stream(self._begin(first(fn))) if colour == "generator" else astream(self._abegin(afirst(fn)))

    def _plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        # `with _Limit(self, seconds)` written out, which saves a third (see benchmarks/policies.py).
        seconds, clock, now = self.seconds, self._clock, self._clock.monotonic

        def run(*args: Any, **kwargs: Any) -> Any:
            budget = Budget(seconds, clock, None if current.get() is None else binding())
            if budget.inherited and budget.remaining() <= 0:
                raise exceeded(budget.seconds)
            token = current.set(budget)
            try:
                result = fn(*args, **kwargs)
            except DeadlineExceededError:
                self._tell(budget)
                raise
            finally:
                budget.over = True
                current.reset(token)
            if now() > budget.until and not budget.inherited:
                self.overran(seconds, seconds + now() - budget.until)
            return result

        return run

    def _async(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        seconds, clock, now = self.seconds, self._clock, self._clock.monotonic
        if clock is not SYSTEM_CLOCK:
            return self._async_by_other_clock(fn)

        from asyncio import timeout  # noqa: PLC0415 - only programs that await pay for the import

        async def run(*args: Any, **kwargs: Any) -> Any:
            # As above, and with asyncio's own timeout, which tells our cancellation from the caller's.
            budget = Budget(seconds, clock, None if current.get() is None else binding())
            left = budget.remaining()
            if left <= 0:
                raise exceeded(budget.seconds)
            token = current.set(budget)
            limit = timeout(left)
            try:
                await limit.__aenter__()
                try:
                    result = await fn(*args, **kwargs)
                except BaseException as error:
                    # Only a TimeoutError that is raised here is the limit's.
                    try:
                        await limit.__aexit__(type(error), error, error.__traceback__)
                    except TimeoutError:
                        raise exceeded(budget.seconds) from error
                    raise
                await limit.__aexit__(None, None, None)
            except DeadlineExceededError:
                self._tell(budget)
                raise
            finally:
                budget.over = True
                current.reset(token)
            if now() > budget.until and not budget.inherited:
                self.overran(seconds, seconds + now() - budget.until)
            return result

        return run

    def _async_by_other_clock(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            async with _Limit(self, self.seconds):
                return await fn(*args, **kwargs)

        return run

    def _begin(self, start: Callable[..., Begun | Ended]) -> Callable[..., Begun | Ended]:
        now = self._clock.monotonic

        def begin(*args: Any, **kwargs: Any) -> Begun | Ended:
            left = self.seconds

            def step(advance: Callable[[], Any]) -> Any:
                nonlocal left
                began = now()
                try:
                    with _Limit(self, left):
                        return advance()
                finally:
                    left -= now() - began

            begun = step(lambda: start(*args, **kwargs))
            return begun if isinstance(begun, Ended) else Begun(begun.inner, begun.item, step)

        return begin

    def _abegin(self, start: Callable[..., Awaitable[AsyncBegun | Ended]]) -> Callable[..., Any]:
        now = self._clock.monotonic

        async def begin(*args: Any, **kwargs: Any) -> AsyncBegun | Ended:
            left = self.seconds

            async def step(advance: Callable[[], Awaitable[Any]]) -> Any:
                nonlocal left
                began = now()
                try:
                    async with _Limit(self, left):
                        return await advance()
                finally:
                    left -= now() - began

            begun = await step(lambda: start(*args, **kwargs))
            return begun if isinstance(begun, Ended) else AsyncBegun(begun.inner, begun.item, step)

        return begin

    def _threaded(self, fn: Callable[..., Any], places: Places) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = remaining()
            seconds = self.seconds if outer is None else min(self.seconds, outer)
            until = self._clock.monotonic() + seconds
            job = _Job(self, places, partial(fn, *args, **kwargs), until)
            if seconds <= 0 or not (places.take() or self._queued(places, seconds)):
                raise self._expired(seconds)
            try:
                job.start()
                job.waiter.wait(max(0.0, until - self._clock.monotonic()), self._clock)
            except BaseException:
                job.forgo()
                raise
            finally:
                job.is_abandoned = (
                    True  # set before looking: whichever of the two threads comes second sees the other
                )
            outcome = job.outcome
            if outcome is None:
                raise self._expired(seconds)
            if outcome.error is not None:
                try:
                    raise outcome.error
                finally:
                    outcome.error = None
            return outcome.value

        return run

    def _queued(self, places: Places, seconds: float) -> bool:
        """Wait for a thread; return whether there is one."""
        waiter = ThreadWaiter()
        ticket = Ticket(waiter, current_priority())
        if not places.join(ticket):
            return False
        try:
            waiter.wait(seconds, self._clock)
            places.withdraw(ticket)
        except BaseException:
            places.withdraw(ticket)
            if ticket.state == "granted":
                places.leave()
            raise
        return ticket.state == "granted"

    def _expired(self, seconds: float) -> DeadlineExceededError:
        self._emitter.emit(CallTimedOut, seconds=seconds)
        return exceeded(seconds)

    def _tell(self, budget: Budget) -> None:
        if not budget.inherited and budget.remaining() <= 0:
            self.timed_out(budget.seconds)

    def overran(self, seconds: float, elapsed: float) -> None:
        """Report a result that came too late, or refuse it if strict; for the limit of each call."""
        if self.strict:
            self.timed_out(seconds)
            raise exceeded(seconds)
        self._emitter.emit(DeadlineOverrun, seconds=seconds, elapsed=elapsed)

    def timed_out(self, seconds: float) -> None:
        """Report a call that was cut off; for the limit of each call."""
        self._emitter.emit(CallTimedOut, seconds=seconds)

    def failed_unheard(self, error: BaseException) -> None:
        """Report the error of a function whose caller had gone; for worker threads."""
        report(self._emitter, error)

    def __repr__(self) -> str:
        strict = ", strict=True" if self.strict else ""
        if self._places is not None:
            threads = f"{self._places.inside} of {self._places.count} threads in use"
            return f"<Timeout {self.name!r} {self.seconds:g} s, {threads}{strict}>"
        name = "" if self.name == "default" else f", name={self.name!r}"
        return f"Timeout({self.seconds:g}{strict}{name})"


class _Limit(deadline):
    """The deadline of one call, reported in the name of its Timeout."""

    __slots__ = ("_layer", "_mine")

    def __init__(self, layer: Timeout, seconds: float) -> None:
        # The settings were checked when the Timeout was made.
        self._layer = layer
        self._mine: Budget | None = None  # until its end was reported
        self._seconds = seconds
        self._clock = layer._clock  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # two halves of one thing
        self._budget = self._timeout = self._watchdog = None

    def __enter__(self) -> Self:
        super().__enter__()
        budget = self._budget
        assert budget is not None
        if not budget.inherited:
            self._mine = budget
            budget.seconds = self._layer.seconds
        if budget.remaining() <= 0:
            self._leave()
            self._tell()
            raise exceeded(budget.seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if isinstance(error, DeadlineExceededError):
            self._tell()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await super().__aexit__(kind, error, trace)
        except DeadlineExceededError:
            self._tell()
            raise

    def _tell(self) -> None:
        mine, self._mine = self._mine, None
        if mine is not None and mine.remaining() <= 0:
            self._layer.timed_out(mine.seconds)

    def _overran(self, seconds: float, elapsed: float) -> None:
        self._mine = None
        self._layer.overran(seconds, elapsed)


class _Job:
    """One call in a worker thread, and its outcome."""

    def __init__(self, layer: Timeout, places: Places, work: Callable[[], Any], until: float) -> None:
        self.waiter = ThreadWaiter()
        self.outcome: Outcome[Any] | None = None
        self.is_abandoned = False
        self._layer = layer
        self._places = places
        self._until = until
        self._work: Callable[[], Any] | None = work
        self._context = copy_context()
        self._errand = Errand(self._run, f"reliakit-timeout-{layer.name}")

    def start(self) -> None:
        """Start it in a daemon thread, which does not keep the program from ending."""
        self._errand.begin()

    def forgo(self) -> None:
        """Give the place back, unless the function has begun: then its own thread does so when it ends."""
        if self._errand.take_back():
            self._places.leave()

    def _run(self) -> None:
        try:
            outcome = self._context.run(attempt, self._within_the_limit)
            self._work = None
            self.outcome = outcome
            if self.is_abandoned and outcome.error is not None:
                self._layer.failed_unheard(outcome.error)
        finally:
            self._places.leave()
            self.waiter.wake()

    def _within_the_limit(self) -> Any:
        assert self._work is not None
        left = self._until - self._layer._clock.monotonic()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        with _Limit(self._layer, max(0.0, left)):
            return self._work()
