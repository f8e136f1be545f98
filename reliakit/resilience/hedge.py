"""A second copy of a call before the first has failed: for the few calls that take much longer than the rest.

```
first   ────────────────────────────────── cancelled
            delay
second          ─────────── done: its result is taken
```

After Dean and Barroso, "The Tail at Scale" (2013). Only coroutines can be cancelled, so only they can be hedged; and
hedge only calls that may safely be made twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.deadline import remaining
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import HedgeEnded
from reliakit.resilience.budget import RetryBudget
from reliakit.resilience.policy import Layer
from reliakit.resilience.waiter import TaskWaiter

if TYPE_CHECKING:
    import asyncio

    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Hedge"]

_SAMPLES = 100
_REFRESH = 10


class Latencies:
    """How long recent calls took, and from that, how long is unusual.

    Args:
        share: The share of the calls that counts as usual.
        minimum: How many durations must be known before it answers.
    """

    __slots__ = ("_fresh", "_minimum", "_recent", "_share", "median", "unusual")

    def __init__(self, share: float, minimum: int) -> None:
        self._share = share
        self._minimum = minimum
        self._recent: deque[float] = deque(maxlen=max(_SAMPLES, minimum))
        self._fresh = 0
        self.unusual: float | None = None
        self.median: float | None = None

    def add(self, duration: float) -> None:
        """Add one call's duration. Every tenth time all of them are sorted, which takes microseconds."""
        self._recent.append(duration)
        self._fresh += 1
        if len(self._recent) >= self._minimum and (self.unusual is None or self._fresh >= _REFRESH):
            self._fresh = 0
            known = sorted(self._recent)
            self.unusual = known[min(len(known) - 1, int(self._share * len(known)))]
            self.median = known[len(known) // 2]


class Hedge(Layer):
    """Start a coroutine a second time when the first takes unusually long, and take whichever is done first.

    ```python
    @Hedge(0.05, budget=budget)             # or Hedge(): after what 95 % of the calls take, as measured
    async def lookup(key): ...
    ```

    The losers are cancelled and awaited before the result is returned, so nothing is left running; each copy runs in
    a task of its own, with a copy of the caller's context. If a copy fails while another one runs, the other one is
    awaited; if all fail, the first one's error is raised. A call that fails before the delay is not hedged: that is
    what `Retry` is for. No copy is started that the deadline leaves no time for.

    Args:
        delay: Seconds after which another copy is started; None for the measured `quantile`, with no hedging until
            `minimum_calls` were measured.
        quantile: The share of calls that counts as quick enough.
        minimum_calls: How many durations must be known before the quantile is used.
        max_hedges: How many copies may be started besides the first, each after another delay.
        budget: Limits copies to a share of all calls, see `RetryBudget`; when it is spent, no copy is started.
        name: Names it in events.
        listeners: Callables that receive its events.
        clock: Measures the time.

    Raises:
        ConfigurationError: A setting is wrong; or, at decoration, the function is not an `async def`.
    """

    __slots__ = ("_clock", "_latencies", "_settings", "budget", "delay", "max_hedges")

    def __init__(
        self,
        delay: float | None = None,
        *,
        quantile: float = 0.95,
        minimum_calls: int = 20,
        max_hedges: int = 1,
        budget: RetryBudget | None = None,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self.delay: float | None = None if delay is None else checks.seconds("delay", delay, zero=True)
        self.max_hedges: int = checks.count("max_hedges", max_hedges)
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigurationError(f"budget must be a RetryBudget, got {budget!r}")
        self.budget: RetryBudget | None = budget
        self._clock = clock
        self._latencies = Latencies(
            checks.share("quantile", quantile), checks.count("minimum_calls", minimum_calls, least=2)
        )
        self._settings = "" if delay is not None else f", quantile={quantile:g}, minimum_calls={minimum_calls}"

    @property
    def current_delay(self) -> float | None:
        """Seconds after which a copy is started now; None while too few durations are known."""
        return self._latencies.unusual if self.delay is None else self.delay

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` with hedged calls.

        Raises:
            ConfigurationError: `fn` is not an `async def`.
        """
        if colour != "async":
            raise ConfigurationError(
                f"hedge {self.name!r} takes an `async def`, got a {colour} one: only a coroutine can be cancelled"
            )
        budget, latencies, now = self.budget, self._latencies, self._clock.monotonic

        async def run(*args: Any, **kwargs: Any) -> Any:
            delay = self.current_delay
            if delay is None:
                began = now()
                result = await fn(*args, **kwargs)
                latencies.add(now() - began)
                return result
            race = _Race(self, lambda: fn(*args, **kwargs), delay)
            if budget is None:
                return await race.run()
            with budget:
                return await race.run()

        return run

    def may_start(self) -> bool:
        """Return whether there is time and budget for one more copy, taking its place in the budget."""
        left, usual = remaining(), self._latencies.median or 0.0
        if left is not None and left <= usual:
            return False
        return self.budget is None or self.budget.offer()

    def over(self, copies: list[_Copy], winner: int | None) -> None:
        """Learn from the copies of one call, and report them."""
        now = self._clock.monotonic()
        for copy in copies:
            # A cancelled copy took at least this long: without it, slow calls would seem to become rare.
            self._latencies.add((copy.ended or now) - copy.began)
        if len(copies) > 1:
            self._emitter.emit(
                HedgeEnded,
                copies=len(copies),
                winner=winner,
                failed=sum(copy.has_failed for copy in copies),
                duration=now - copies[0].began,
            )

    def __repr__(self) -> str:
        delay = self.current_delay
        when = "not measured yet" if delay is None else f"after {delay:g} s"
        budget = "" if self.budget is None else f", budget={self.budget!r}"
        return f"<Hedge {self.name!r} {when}{self._settings}, max_hedges={self.max_hedges}{budget}>"


class _Copy:
    """One of the tasks that run the same call."""

    __slots__ = ("began", "ended", "task")

    def __init__(self, task: asyncio.Task[Any], began: float) -> None:
        self.task: asyncio.Task[Any] = task
        self.began: float = began
        self.ended: float | None = None

    @property
    def has_failed(self) -> bool:
        # Reading the exception also marks it as retrieved, so that asyncio does not log it.
        return self.task.done() and not self.task.cancelled() and self.task.exception() is not None

    @property
    def has_succeeded(self) -> bool:
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None


class _Race:
    """One call, its copies, and who wins."""

    def __init__(self, hedge: Hedge, call: Callable[[], Any], delay: float) -> None:
        self._hedge = hedge
        self._call = call
        self._delay = delay
        self._clock = hedge._clock  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # two halves of one thing
        self._copies: list[_Copy] = []
        self._more = hedge.max_hedges  # how many copies may still be started
        self._next = 0.0  # when the next one starts
        self._on_budget = 0
        self._waiter: TaskWaiter | None = None

    async def run(self) -> Any:
        """Return the first result, or raise the first copy's error if there is none. Nothing is left running."""
        winner = chosen = None
        try:
            self._start()
            while winner is None and not all(copy.task.done() for copy in self._copies):
                await self._wait()
                winner = next((copy for copy in self._copies if copy.has_succeeded), None)
                if winner is None and self._more and self._clock.monotonic() >= self._next:
                    self._start_another()
            chosen = winner or next((copy for copy in self._copies if copy.has_failed), self._copies[0])
            await self._end()
            return chosen.task.result()
        except BaseException:
            await self._end()
            raise
        finally:
            self._hedge.over(self._copies, None if winner is None else self._copies.index(winner) + 1)
            # An error's traceback holds this frame, which must not hold the error.
            self._copies = []
            winner = chosen = None

    def _start(self) -> None:
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        began = self._clock.monotonic()
        copy = _Copy(asyncio.get_running_loop().create_task(_awaited(self._call)), began)
        self._copies.append(copy)
        self._next = began + self._delay

        def ended(_: object) -> None:
            copy.ended = self._clock.monotonic()
            if not copy.task.cancelled():
                copy.task.exception()  # marked as retrieved, even if the caller is cancelled before it can look
            if self._waiter is not None:
                self._waiter.woken()

        copy.task.add_done_callback(ended)

    def _start_another(self) -> None:
        if not self._hedge.may_start():
            self._more = 0  # refused once, so it is not asked again
            return
        self._more -= 1
        self._on_budget += self._hedge.budget is not None
        self._start()

    async def _wait(self) -> None:
        """Wait until a copy is done, or it is time for another one."""
        self._waiter = TaskWaiter()
        try:
            seconds = max(0.0, self._next - self._clock.monotonic()) if self._more else None
            await self._waiter.wait(seconds, self._clock)
        finally:
            self._waiter = None

    async def _end(self) -> None:
        """Cancel the copies that still run and wait for them to end; cancel them again if cancelled meanwhile."""
        import asyncio  # noqa: PLC0415

        again: BaseException | None = None
        while running := [copy.task for copy in self._copies if not copy.task.done()]:
            for task in running:
                task.cancel()
            try:
                await asyncio.wait(running)
            except asyncio.CancelledError as error:
                again = error
        while self._on_budget and self._hedge.budget is not None:
            self._on_budget -= 1
            self._hedge.budget.release()
        if again is not None:
            raise again


async def _awaited(call: Callable[[], Any]) -> Any:
    return await call()
