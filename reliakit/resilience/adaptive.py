"""A limit on concurrent calls that finds its own size from how long they take.

```
calls take longer than usual     fewer at once           usual = a long average, see `Gradient2`
calls take as long as usual      a few more at once
```

After Netflix's concurrency-limits: `Gradient2` compares the current latency with that of the last minutes, `AIMD`
("additive increase, multiplicative decrease") grows slowly until something times out, as TCP does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import Priority, current_priority
from reliakit.core.errors import ConfigurationError, OverloadedError
from reliakit.core.events import CallRejected, LimitMoved
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.core.guard import guarded
from reliakit.resilience.policy import Layer
from reliakit.resilience.verdict import ErrorFilter, Question, matching

if TYPE_CHECKING:
    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["AIMD", "AdaptiveLimit", "Gradient2"]

# How many samples it takes to tell what is usual when nothing is known yet.
_YOUNG = 10
_SHARES: dict[Priority, float] = {"critical": 1.2, "default": 1.0, "sheddable": 0.8}


def _at_least(argument: str, value: float, least: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise ConfigurationError(f"{argument} must be a number of at least {least:g}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Gradient2:
    """Shrink the limit in proportion as calls take longer than they used to.

    Args:
        tolerance: How many times longer than usual still counts as usual; at least 1.
        queue: How many calls more than the latency justifies may be under way, so that the limit can grow.
        smoothing: The share of a newly computed limit that takes effect at once.
        period: Seconds of calls that are averaged into one sample.
        samples: The least number of calls in a sample.
        memory: How many samples back the usual latency reaches.
    """

    tolerance: float = 1.5
    queue: float = 4.0
    smoothing: float = 0.2
    period: float = 1.0
    samples: int = 10
    memory: int = 600

    def __post_init__(self) -> None:
        checks.seconds("period", self.period)
        checks.share("smoothing", self.smoothing)
        checks.count("samples", self.samples)
        checks.count("memory", self.memory)
        _at_least("tolerance", self.tolerance, 1.0)
        _at_least("queue", self.queue, 0.0)


@dataclass(frozen=True, slots=True)
class AIMD:
    """Grow the limit by one call per round trip, and shrink it by a factor when calls are dropped.

    Args:
        backoff: The factor, above 0 and below 1.
        slow: Seconds from which a call counts as dropped; None if only errors do.
    """

    backoff: float = 0.9
    slow: float | None = None

    def __post_init__(self) -> None:
        checks.share("backoff", self.backoff)
        if self.backoff == 1:
            raise ConfigurationError("backoff must be below 1, or nothing would ever shrink the limit")
        if self.slow is not None:
            checks.seconds("slow", self.slow)


class _Gradient:
    """The limit by Gradient2. Pure and not thread-safe; the caller passes the time."""

    def __init__(self, settings: Gradient2) -> None:
        self._settings = settings
        self._usual: float | None = None
        self._known = 0
        self._until: float | None = None  # when the sample ends, if it has begun
        self._sum = 0.0
        self._count = 0
        self._most = 0
        self._dropped = False

    def moved(self, limit: float, now: float, duration: float, most: int, *, dropped: bool) -> float:
        """Return the limit after one more call; `most` is how many calls ran at once, this one included."""
        settings = self._settings
        if self._until is None:
            self._until = now + settings.period
        self._sum += duration
        self._count += 1
        self._most = max(self._most, most)
        self._dropped = self._dropped or dropped
        if now < self._until or self._count < settings.samples:
            return limit
        limit = self._by_sample(limit, self._sum / self._count, self._most, dropped=self._dropped)
        self._until = None
        self._sum, self._count, self._most, self._dropped = 0.0, 0, 0, False
        return limit

    def _by_sample(self, limit: float, mean: float, most: int, *, dropped: bool) -> float:
        settings = self._settings
        usual = self._usual_with(mean)
        if dropped:
            return limit * 0.9
        if usual > 2 * mean:
            self._usual = usual * 0.95  # after a long slow period, bring the usual latency down sooner
        if most < limit / 2:
            return limit  # the limit was not used up, so nothing was learnt about a higher one
        gradient = min(1.0, max(0.5, settings.tolerance * usual / mean)) if mean > 0 else 1.0
        wanted = limit * gradient + settings.queue
        return limit * (1 - settings.smoothing) + wanted * settings.smoothing

    def _usual_with(self, mean: float) -> float:
        # The first samples get a plain average. With the weights of the exponential average from the start, a young
        # limit would soon take a server's trouble for the usual.
        self._known = min(self._known + 1, _YOUNG + 1)
        weight = 1 / self._known if self._known <= _YOUNG else 2 / (self._settings.memory + 1)
        self._usual = mean if self._usual is None else self._usual + weight * (mean - self._usual)
        return self._usual


class _Additive:
    """The limit by AIMD. Pure and not thread-safe; the caller passes the time."""

    def __init__(self, settings: AIMD) -> None:
        self._settings = settings
        self._shrunk_at = float("-inf")

    def moved(self, limit: float, now: float, duration: float, most: int, *, dropped: bool) -> float:
        """Return the limit after one more call."""
        slow = self._settings.slow
        if dropped or (slow is not None and duration >= slow):
            if now - duration < self._shrunk_at:
                return limit  # the call began before the last cut, so it reports the same overload
            self._shrunk_at = now
            return limit * self._settings.backoff
        return limit + 1 / limit if most * 2 >= limit else limit


class _Ticket:
    """One call under way."""

    __slots__ = ("began", "running")

    def __init__(self, began: float, running: int) -> None:
        self.began: float = began
        self.running: int = running


class AdaptiveLimit(Layer):
    """Let as many calls run at once as the dependency can take without slowing down.

    ```python
    inventory = AdaptiveLimit()             # or AdaptiveLimit(AIMD(), initial=10)

    @inventory                              # def, async def, generators, async generators, methods
    async def reserve(item): ...
    ```

    It never waits: beyond the limit it raises OverloadedError. Requests of `request_context(priority=...)`
    "sheddable" may use 80 % of the limit, "critical" ones 120 %. Calls that are cancelled, or that end with an error
    other than overload, do not move the limit. One object is safe for any mix of threads and tasks.

    Args:
        algorithm: How the limit moves: `Gradient2()` or `AIMD()`.
        initial: The limit to begin with.
        minimum: The lowest the limit may go.
        maximum: The highest the limit may go.
        overload: Which errors mean overload: a type, a tuple of types, or a predicate.
        name: Names the limit in errors and events.
        listeners: Callables that receive its events.
        clock: Measures how long calls take.

    Raises:
        ConfigurationError: A setting is wrong.
        OverloadedError: At a call: the limit is reached.
    """

    __slots__ = (
        "_clock",
        "_is_overload",
        "_limit",
        "_lock",
        "_machine",
        "_running",
        "algorithm",
        "maximum",
        "minimum",
    )

    def __init__(
        self,
        algorithm: Gradient2 | AIMD = Gradient2(),
        *,
        initial: int = 20,
        minimum: int = 1,
        maximum: int = 1000,
        overload: ErrorFilter = TimeoutError,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        if not isinstance(algorithm, Gradient2 | AIMD):
            raise ConfigurationError(f"algorithm must be Gradient2() or AIMD(), got {algorithm!r}")
        self.algorithm: Gradient2 | AIMD = algorithm
        self.minimum: int = checks.count("minimum", minimum)
        self.maximum: int = checks.count("maximum", maximum, least=minimum)
        self._limit = float(checks.count("initial", initial, least=minimum))
        if initial > maximum:
            raise ConfigurationError(f"initial must be at most maximum, got {initial!r} of {maximum!r}")
        self._is_overload = Question(matching("overload", overload), otherwise=False)
        self._machine = _Gradient(algorithm) if isinstance(algorithm, Gradient2) else _Additive(algorithm)
        self._clock = clock
        self._running = 0
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call while this thread holds it
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "begin_anew")

    @property
    def limit(self) -> int:
        """How many calls may run at once now."""
        return int(self._limit)

    @property
    def running(self) -> int:
        """How many calls run now."""
        return self._running

    def begin_anew(self) -> None:
        """Forget what was running in the parent process."""
        self._running = 0

    def enter(self) -> _Ticket:
        """Let a call pass, or refuse it; wrappers use this.

        Raises:
            OverloadedError: The limit is reached.
        """
        share = _SHARES[current_priority()]
        with self._lock:
            limit = int(self._limit)
            allowed = limit if share == 1.0 else ceil(limit * share) if share > 1 else max(1, int(limit * share))
            if self._running < allowed:
                self._running += 1
                return _Ticket(self._clock.monotonic(), self._running)
        self._emitter.emit(CallRejected, reason=OverloadedError.__name__, retry_after=None)
        raise OverloadedError(
            f"adaptive limit {self.name!r} lets {allowed} calls run at once now, and as many are running",
            name=self.name,
        )

    def leave(self, ticket: _Ticket, error: BaseException | None, result: object, /) -> None:  # noqa: ARG002 - latency is what counts
        """Give back a call's place, and learn from how long it took."""
        dropped = False
        try:
            dropped = isinstance(error, Exception) and self._is_overload(error)
        finally:
            with self._lock:
                most = max(ticket.running, self._running)
                self._running = max(0, self._running - 1)  # max for a call that began before a fork
                before = int(self._limit)
                if error is None or dropped:
                    now = self._clock.monotonic()
                    moved = self._machine.moved(self._limit, now, max(0.0, now - ticket.began), most, dropped=dropped)
                    self._limit = min(float(self.maximum), max(float(self.minimum), moved))
                after = int(self._limit)
        if after != before:
            self._emitter.emit(LimitMoved, previous=before, limit=after)

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:  # noqa: ARG002 - told by the function
        """Return `fn` behind the limit, in the same colour."""
        return guarded(self, fn, by=self._title)

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.name!r} {self._running} of {self.limit} running, {self.algorithm!r}>"
