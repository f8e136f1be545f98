"""How one limit counts, in whole nanoseconds, without clock, lock or rounding error.

With N the limit and P the period, at most this much is spent in any window of length P (half-open):

    gcra             burst + N - 1            smooth; spends up to `burst` at once, then one in each P/N
    sliding_log      N                        exact; keeps N instants for each key
    sliding_counter  about 2N at worst        two sums; the previous window's fades out linearly
    fixed_window     2N, around an edge       one sum; for quotas and bills

States are immutable values; None is a key with nothing spent. A slot may be taken in the future, which makes it a
reservation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from math import gcd
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from reliakit.stores.protocol import Rule

__all__ = ["Counter", "FixedWindow", "Gcra", "SlidingCounter", "SlidingLog"]

_Sums: TypeAlias = tuple[int, int, int]


class Counter(ABC):
    """Counts what is spent under one rule, one instant after the other."""

    __slots__ = ()

    @abstractmethod
    def due(self, state: Any, at: int, cost: int, /) -> int:
        """Return the first instant, `at` or later, at which the cost fits."""

    @abstractmethod
    def spend(self, state: Any, at: int, cost: int, /) -> Any:
        """Return the state with this cost added."""

    @abstractmethod
    def room(self, state: Any, at: int, /) -> int:
        """Return how much fits at this instant."""

    @abstractmethod
    def full(self, state: Any, /) -> int:
        """Return the instant from which this state, which is not None, is equivalent to None."""

    @abstractmethod
    def refund(self, state: Any, at: int, cost: int, /) -> Any:
        """Return the state without a cost that was spent before."""

    def fit(self, state: Any, at: int, cost: int, /) -> tuple[int, int, Any] | None:
        """Return room, full and state with this cost if it fits at this instant: a common sequence in one call."""
        if self.due(state, at, cost) > at:
            return None
        after = self.spend(state, at, cost)
        return self.room(after, at), self.full(after), after


class Gcra(Counter):
    """The generic cell rate algorithm (ITU-T I.371): one instant, the theoretical arrival time of the next cell.

    The state is that instant times `scale`, so that a period that is not divisible by the limit stays exact.
    """

    __slots__ = ("increment", "scale", "tolerance")

    def __init__(self, rule: Rule) -> None:
        common = gcd(rule.period, rule.limit)
        self.scale: int = rule.limit // common
        self.increment: int = rule.period // common
        self.tolerance: int = self.increment * rule.burst

    def due(self, state: int | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        # Rounded up, to the first nanosecond at which the cost fits.
        arrival = max(state or 0, at * self.scale) + self.increment * cost
        return max(at, -((self.tolerance - arrival) // self.scale))

    def spend(self, state: int | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        return max(state or 0, at * self.scale) + self.increment * cost

    def room(self, state: int | None, at: int, /) -> int:
        """See `Counter`."""
        return max(0, self.tolerance - max(0, (state or 0) - at * self.scale)) // self.increment

    def full(self, state: int, /) -> int:
        """See `Counter`."""
        return -(-state // self.scale)

    def refund(self, state: int | None, at: int, cost: int, /) -> int | None:
        """See `Counter`."""
        earlier = (state or 0) - self.increment * cost
        return earlier if earlier > at * self.scale else None

    def fit(self, state: int | None, at: int, cost: int, /) -> tuple[int, int, int] | None:
        """See `Counter`."""
        scale = self.scale
        scaled = at * scale
        arrival = (scaled if state is None or state < scaled else state) + self.increment * cost
        room = self.tolerance - arrival + scaled
        return None if room < 0 else (room // self.increment, -(-arrival // scale), arrival)


class SlidingLog(Counter):
    """The instants of everything that was spent in the last period, oldest first."""

    __slots__ = ("limit", "period")

    def __init__(self, rule: Rule) -> None:
        self.limit: int = rule.limit
        self.period: int = rule.period

    def due(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        spent = self._since(state, at)
        over = len(spent) + cost - self.limit
        return at if over <= 0 else spent[over - 1] + self.period

    def spend(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> tuple[int, ...]:
        """See `Counter`."""
        spent = self._since(state, at)
        return spent + (_later(spent, at),) * cost

    def room(self, state: tuple[int, ...] | None, at: int, /) -> int:
        """See `Counter`."""
        return self.limit - len(self._since(state, at))

    def full(self, state: tuple[int, ...], /) -> int:
        """See `Counter`."""
        return state[-1] + self.period

    def refund(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> tuple[int, ...] | None:
        """See `Counter`."""
        return self._since(state, at)[:-cost] or None

    def fit(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> tuple[int, int, tuple[int, ...]] | None:
        """See `Counter`."""
        spent = () if state is None else state
        if spent and spent[0] <= at - self.period:
            spent = spent[bisect_right(spent, at - self.period) :]
        room = self.limit - len(spent) - cost
        if room < 0:
            return None
        if spent and spent[-1] > at:
            at = spent[-1]
        return room, at + self.period, spent + (at,) * cost

    def _since(self, state: tuple[int, ...] | None, at: int) -> tuple[int, ...]:
        return () if state is None else state[bisect_right(state, at - self.period) :]


def _later(spent: tuple[int, ...], at: int) -> int:
    """Return the instant to write down: never one before the last, so that the order holds if a clock steps back."""
    return at if not spent or spent[-1] < at else spent[-1]


class SlidingCounter(Counter):
    """This window's sum and the one before, which fades out linearly while this window goes by.

    The state is (start of the window, sum of the one before, sum of this one).
    """

    __slots__ = ("limit", "period")

    def __init__(self, rule: Rule) -> None:
        self.limit: int = rule.limit
        self.period: int = rule.period

    def due(self, state: _Sums | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        if here + cost > self.limit:
            start, before, here = start + self.period, here, 0
            at = start
        room = (self.limit - here - cost) * self.period
        if before * (start + self.period - at) > room:
            return start + self.period - room // before
        return at

    def spend(self, state: _Sums | None, at: int, cost: int, /) -> _Sums:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        return start, before, here + cost

    def room(self, state: _Sums | None, at: int, /) -> int:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        return max(0, (self.limit - here) * self.period - before * (start + self.period - at)) // self.period

    def full(self, state: _Sums, /) -> int:
        """See `Counter`."""
        return state[0] + self.period * (2 if state[2] else 1)

    def refund(self, state: _Sums | None, at: int, cost: int, /) -> _Sums | None:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        before, here = max(0, before + min(0, here - cost)), max(0, here - cost)
        return (start, before, here) if before or here else None

    def fit(self, state: _Sums | None, at: int, cost: int, /) -> tuple[int, int, _Sums] | None:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        here += cost
        period = self.period
        room = (self.limit - here) * period - before * (start + period - at)
        return None if room < 0 else (room // period, start + 2 * period, (start, before, here))

    def _rolled(self, state: _Sums | None, at: int) -> _Sums:
        if state is None:
            return at, 0, 0
        start, before, here = state
        while (before or here) and at >= start + self.period:
            start, before, here = start + self.period, here, 0
        return (start, before, here) if before or here else (at, 0, 0)


class FixedWindow(Counter):
    """The sum of one window, which begins with the first cost after the last window's end.

    The state is (start of the window, sum).
    """

    __slots__ = ("limit", "period")

    def __init__(self, rule: Rule) -> None:
        self.limit: int = rule.limit
        self.period: int = rule.period

    def due(self, state: tuple[int, int] | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return at if spent + cost <= self.limit else start + self.period

    def spend(self, state: tuple[int, int] | None, at: int, cost: int, /) -> tuple[int, int]:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return start, spent + cost

    def room(self, state: tuple[int, int] | None, at: int, /) -> int:
        """See `Counter`."""
        return self.limit - self._rolled(state, at)[1]

    def full(self, state: tuple[int, int], /) -> int:
        """See `Counter`."""
        return state[0] + self.period

    def refund(self, state: tuple[int, int] | None, at: int, cost: int, /) -> tuple[int, int] | None:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return (start, spent - cost) if spent > cost else None

    def fit(self, state: tuple[int, int] | None, at: int, cost: int, /) -> tuple[int, int, tuple[int, int]] | None:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        spent += cost
        return None if spent > self.limit else (self.limit - spent, start + self.period, (start, spent))

    def _rolled(self, state: tuple[int, int] | None, at: int) -> tuple[int, int]:
        return (at, 0) if state is None or at >= state[0] + self.period else state
