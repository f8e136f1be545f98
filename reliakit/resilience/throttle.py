"""A client that holds itself back when its server accepts few of its requests.

```
p(refuse) = (requests - k * accepts) / (requests + 1)        over the last two minutes, never above 0.9
```

After "Handling Overload" in "Site Reliability Engineering" (Google, 2016), chapter 21. It needs no open state and no
probes: the share of requests that still passes finds out when the server is well again. A request counts when it
begins, not when it ends, so a server that hangs is noticed at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import Priority, current_priority
from reliakit.core.errors import ConfigurationError, OverloadedError
from reliakit.core.events import CallRejected
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.guard import guarded
from reliakit.resilience.policy import Layer
from reliakit.resilience.verdict import ErrorFilter, Judge

if TYPE_CHECKING:
    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Throttle"]

_SLICES = 12


class Slice:
    """The requests and accepts in one part of the window."""

    __slots__ = ("accepts", "number", "requests")

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.requests: int = 0
        self.accepts: int = 0


class Tally:
    """Requests and accepts of the last `window` seconds, in slices. Not thread-safe: its owner holds a lock."""

    def __init__(self, window: float) -> None:
        self._length = window / _SLICES
        self._slices: deque[Slice] = deque()
        self.requests: int = 0
        self.accepts: int = 0

    def begin(self, now: float) -> Slice:
        """Count a request, and return the slice it was counted in."""
        self.forget(now)
        number = int(now // self._length)
        slices = self._slices
        if not slices or slices[-1].number < number:
            slices.append(Slice(number))
        current = slices[-1]
        current.requests += 1
        self.requests += 1
        return current

    def forget(self, now: float) -> None:
        """Drop what is too old by now."""
        oldest = int(now // self._length) - _SLICES
        slices = self._slices
        while slices and slices[0].number <= oldest:
            gone = slices.popleft()
            self.requests -= gone.requests
            self.accepts -= gone.accepts
            gone.number = -1

    def accepted(self, begun: Slice) -> None:
        """Count an accept, in the slice of its request."""
        if begun.number >= 0:
            begun.accepts += 1
            self.accepts += 1

    def withdrawn(self, begun: Slice) -> None:
        """Uncount a request that says nothing about the server."""
        if begun.number >= 0:
            begun.requests -= 1
            self.requests -= 1


class Throttle(Layer):
    """Refuse calls at random, and the more of them the fewer the server accepts.

    ```python
    search = Throttle()

    @search                                 # def, async def, generators, async generators, methods
    async def find(words): ...
    ```

    While the server accepts at least one request in `k`, nothing is refused. A call that fails was not accepted; one
    that ends with an error that is not a failure was; cancellations and rejections from further in are not counted as
    requests. Requests of `request_context(priority=...)` "sheddable" are refused earlier, as with a `k` halfway to 1,
    and "critical" ones later, as with twice the `k`. A refused call raises OverloadedError. One object is safe for
    any mix of threads and tasks and never waits.

    Args:
        k: How many requests may be made for each one that is accepted.
        window: How many seconds are counted, in twelve slices; should be longer than the longest call.
        minimum_calls: How many requests the window must hold before any is refused.
        max_rejection: The largest share that is refused, so that some requests always find out.
        failure: Which errors mean that the server did not accept: a type, a tuple of types, or a predicate.
        ignore: Which errors do not count as a request; takes precedence over `failure`.
        failure_result: A predicate of the result that makes it a failure, or None.
        name: Names the throttle in errors and events.
        listeners: Callables that receive its events.
        clock: Provides the time and the random numbers.

    Raises:
        ConfigurationError: A setting is wrong.
        OverloadedError: At a call: it was refused.
    """

    __slots__ = (
        "_clock",
        "_judge",
        "_lock",
        "_multipliers",
        "_tally",
        "k",
        "max_rejection",
        "minimum_calls",
        "window",
    )

    def __init__(
        self,
        k: float = 2.0,
        *,
        window: float = 120.0,
        minimum_calls: int = 10,
        max_rejection: float = 0.9,
        failure: ErrorFilter = Exception,
        ignore: ErrorFilter = (),
        failure_result: Callable[[Any], bool] | None = None,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        if not isinstance(k, int | float) or isinstance(k, bool) or not 1 <= k <= 1000:
            raise ConfigurationError(f"k must be a number from 1 to 1000, got {k!r}")
        self.k: float = float(k)
        self.window: float = checks.seconds("window", window)
        self.minimum_calls: int = checks.count("minimum_calls", minimum_calls, least=0)
        self.max_rejection: float = checks.share("max_rejection", max_rejection)
        self._multipliers: dict[Priority, float] = {"critical": 2 * k, "default": k, "sheddable": (1 + k) / 2}
        self._judge = Judge(failure, ignore, failure_result)
        self._clock = clock
        self._tally = Tally(self.window)
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call while this thread holds it
        renew_locks_after_fork(self, "_lock")

    @property
    def rejection(self) -> float:
        """The share of requests of default priority that is refused now, from 0 to `max_rejection`."""
        with self._lock:
            self._tally.forget(self._clock.monotonic())
            return self._probability(self._tally.requests, "default")

    def enter(self) -> Slice:
        """Count a request and let it pass, or refuse it; wrappers use this.

        Raises:
            OverloadedError: It was refused.
        """
        with self._lock:
            begun = self._tally.begin(self._clock.monotonic())
            probability = self._probability(self._tally.requests - 1, current_priority())
        if probability > 0 and self._clock.random() < probability:
            self._emitter.emit(CallRejected, reason=OverloadedError.__name__, retry_after=None)
            raise OverloadedError(
                f"throttle {self.name!r} refused {probability:.0%} of the calls: the server accepts too few of them",
                name=self.name,
            )
        return begun

    def leave(self, begun: Slice, error: BaseException | None, result: object, /) -> None:
        """Count the outcome of a request."""
        verdict = "ignored"
        try:
            verdict = self._judge.of_result(result) if error is None else self._judge.of_error(error)
        finally:
            with self._lock:
                if verdict == "success":
                    self._tally.accepted(begun)
                elif verdict == "ignored":
                    self._tally.withdrawn(begun)

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:  # noqa: ARG002 - told by the function
        """Return `fn` behind the throttle, in the same colour."""
        return guarded(self, fn, by=self._title)

    def _probability(self, requests: int, priority: Priority) -> float:
        if requests < self.minimum_calls:
            return 0.0
        refused = (requests - self._multipliers[priority] * self._tally.accepts) / (requests + 1)
        return min(self.max_rejection, max(0.0, refused))

    def __repr__(self) -> str:
        with self._lock:
            self._tally.forget(self._clock.monotonic())
            standing = f"{self._tally.accepts} of {self._tally.requests} accepted"
        return (
            f"<Throttle {self.name!r} {standing}, k={self.k:g}, window={self.window:g}, "
            f"minimum_calls={self.minimum_calls}, max_rejection={self.max_rejection:g}>"
        )
