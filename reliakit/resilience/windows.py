"""The recent outcomes over which a breaker's rates are computed: the last n, or those of the last seconds.

```
CountWindow(8)     . . x . . . x .     the newest pushes the oldest out
TimeWindow(30.0)   [4 of 90][0 of 71][9 of 88] now     each leaves when its first outcome is too old
```

Successes are added in batches: between two failures only their number matters. After the sliding windows of
Resilience4j, with finer steps: a time window moves in hundredths of its length, and outcomes that are further apart
than that leave one by one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

from reliakit.core import checks

__all__ = ["CountWindow", "Run", "Tally", "TimeWindow", "tally_of"]

# A time window is divided into so many steps.
_STEPS = 100

# How many seconds ago, how many outcomes, how many of them failures, how many of them slow. Oldest first.
Run: TypeAlias = tuple[float, int, int, int]


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Compute a breaker's rates over the last `size` outcomes.

    Memory grows with the failures and slow calls among them, one entry each.

    Args:
        size: How many outcomes.
    """

    size: int = 100

    def __post_init__(self) -> None:
        checks.count("size", self.size)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Compute a breaker's rates over the outcomes of the last seconds, counted in at most 100 steps.

    Args:
        seconds: How far back the window reaches. An outcome that is `seconds` old is out.
    """

    seconds: float = 30.0

    def __post_init__(self) -> None:
        checks.seconds("seconds", self.seconds)


class Tally(Protocol):
    """What is in a window. Not thread-safe, but a finaliser may take a step in the middle of another one."""

    @property
    def calls(self) -> int:
        """How many outcomes are in it."""
        ...

    @property
    def failures(self) -> int:
        """How many of them were failures."""
        ...

    @property
    def slow(self) -> int:
        """How many of them were slow."""
        ...

    @property
    def settled_until(self) -> float:
        """Until when nothing leaves the window and `succeed` may add successes; -inf if it may not at all."""
        ...

    def succeed(self, times: int) -> None:
        """Add successes that ended before `settled_until`."""
        ...

    def count(self, now: float, failed: bool, slow: bool) -> None:
        """Add the outcome of a call that ends now, and drop what is too old."""
        ...

    def add(self, at: float, calls: int, failures: int, slow: int) -> None:
        """Add outcomes that ended at this instant."""
        ...

    def forget(self, now: float) -> None:
        """Drop what is too old by now."""
        ...

    def runs(self, now: float) -> tuple[Run, ...]:
        """Return everything in the window, oldest first, in a form that `add` can rebuild it from."""
        ...


class _CountTally:
    """Counts every outcome, and remembers the numbers of the failures and slow calls, oldest first."""

    __slots__ = ("_failed", "_numbered", "_size", "_slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbered = 0
        self._failed: deque[int] = deque()
        self._slow: deque[int] = deque()

    @property
    def calls(self) -> int:
        return min(self._numbered, self._size)

    @property
    def failures(self) -> int:
        return len(self._failed)

    @property
    def slow(self) -> int:
        return len(self._slow)

    @property
    def settled_until(self) -> float:
        return inf

    def succeed(self, times: int) -> None:
        self._numbered += times
        self.forget(0.0)

    def count(self, now: float, failed: bool, slow: bool) -> None:  # noqa: ARG002 - time does not matter here
        number = self._numbered = self._numbered + 1
        gone, failures, slow_ones = number - self._size, self._failed, self._slow
        if failed:
            failures.append(number)
        if slow:
            slow_ones.append(number)
        # One outcome has come, so at most one has left the window.
        if failures and failures[0] <= gone:
            failures.popleft()
        if slow_ones and slow_ones[0] <= gone:
            slow_ones.popleft()

    def add(self, at: float, calls: int, failures: int, slow: int) -> None:
        marked = max(slow, failures)
        self._numbered += calls - marked
        self.forget(at)
        for left in range(marked, 0, -1):
            self.count(at, left <= failures, left <= slow)

    def forget(self, now: float) -> None:  # noqa: ARG002
        gone = self._numbered - self._size
        for marked in (self._failed, self._slow):
            while marked and marked[0] <= gone:
                marked.popleft()

    def runs(self, now: float) -> tuple[Run, ...]:  # noqa: ARG002
        found: list[Run] = []
        last = max(0, self._numbered - self._size)
        failed, slow = set(self._failed), set(self._slow)
        for number in sorted(failed | slow):
            found.append((0.0, number - last, int(number in failed), int(number in slow)))
            last = number
        if self._numbered > last:
            found.append((0.0, self._numbered - last, 0, 0))
        return tuple(found)


class _Step:
    """The outcomes of one step of a time window."""

    __slots__ = ("began", "calls", "failures", "slow")

    def __init__(self, began: float) -> None:
        self.began = began
        self.calls = self.failures = self.slow = 0


class _TimeTally:
    """Counts by steps. A step begins with its first outcome, so outcomes that are far apart have one each."""

    __slots__ = ("_seconds", "_steps", "_width", "calls", "failures", "slow")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._width = seconds / _STEPS
        self._steps: deque[_Step] = deque()
        self.calls: int = 0
        self.failures: int = 0
        self.slow: int = 0

    @property
    def settled_until(self) -> float:
        steps = self._steps
        return min(steps[-1].began + self._width, steps[0].began + self._seconds) if steps else -inf

    def succeed(self, times: int) -> None:
        if self._steps:  # empty if a thread was suspended for so long that they are out of the window by now
            self._steps[-1].calls += times
            self.calls += times

    def count(self, now: float, failed: bool, slow: bool) -> None:
        self.forget(now)
        self.add(now, 1, failed, slow)

    def add(self, at: float, calls: int, failures: int, slow: int) -> None:
        steps = self._steps
        if not steps or at - steps[-1].began >= self._width:
            steps.append(_Step(at))
        step = steps[-1]
        step.calls += calls
        step.failures += failures
        step.slow += slow
        self.calls += calls
        self.failures += failures
        self.slow += slow

    def forget(self, now: float) -> None:
        steps = self._steps
        while steps and now - steps[0].began >= self._seconds:
            gone = steps.popleft()
            self.calls -= gone.calls
            self.failures -= gone.failures
            self.slow -= gone.slow

    def runs(self, now: float) -> tuple[Run, ...]:
        self.forget(now)
        return tuple(
            (max(0.0, now - step.began), step.calls, step.failures, step.slow) for step in tuple(self._steps)
        )


def tally_of(window: CountWindow | TimeWindow) -> Tally:
    """Return an empty tally for this window."""
    return _CountTally(window.size) if isinstance(window, CountWindow) else _TimeTally(window.seconds)
