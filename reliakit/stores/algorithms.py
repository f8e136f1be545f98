"""How limits count: four machines on whole nanoseconds, without clock, lock or error of rounding.

```
take(state, now, cost)   -> (due, state)         the earliest instant at which the cost fits, and the state after it
look(state, now)         -> (remaining, full)    what fits at once now, and when the key will be as good as new
refund(state, now, cost) -> state                None: as good as new
```

With N the limit and P the period, at most this much is spent in any window of length P:

    gcra             burst + N                smooth; spends up to `burst` at once, then one in each P/N
    sliding_log      N                        exact; keeps N instants for each key
    sliding_counter  about 2N at worst        two counters; the previous window fades out linearly
    fixed_window     2N, around an edge       one counter; for quotas and bills

A slot may be taken in the future, which makes it a reservation. Slots are handed out in order: whoever asks later
gets no earlier one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from reliakit.stores.protocol import Algorithm, Rule

__all__ = ["FixedWindow", "Gcra", "Machine", "SlidingCounter", "SlidingLog", "machine_for"]


class Machine(Protocol):
    """Counts one rule. States are immutable values; None is a key that is as good as new."""

    def take(self, state: Any, now: int, cost: int, /) -> tuple[int, Any]:
        """Return the earliest instant, not before now, at which the cost may be spent, and the state after that."""
        ...

    def look(self, state: Any, now: int, /) -> tuple[int, int]:
        """Return how much may be spent at once now, and the instant at which the state may be forgotten."""
        ...

    def refund(self, state: Any, now: int, cost: int, /) -> Any:
        """Return the state without a cost that was spent before."""
        ...


class Gcra:
    """The generic cell rate algorithm (ITU-T I.371): one instant, the theoretical arrival time of the next cell.

    The state is that instant times the limit, so that a period that the limit does not divide stays exact.
    """

    __slots__ = ("_increment", "_limit", "_tolerance")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._increment = rule.period
        self._tolerance = rule.period * rule.burst

    def take(self, state: int | None, now: int, cost: int, /) -> tuple[int, int]:
        """See `Machine`."""
        scaled = now * self._limit
        arrival = (scaled if state is None or state < scaled else state) + self._increment * cost
        early = self._tolerance - arrival
        # Rounded up, to the first nanosecond at which it fits.
        return max(now, -(early // self._limit)), arrival

    def look(self, state: int | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        if state is None:
            return self._tolerance // self._increment, now
        backlog = max(0, state - now * self._limit)
        return max(0, self._tolerance - backlog) // self._increment, -(-state // self._limit)

    def refund(self, state: int | None, now: int, cost: int, /) -> int | None:
        """See `Machine`."""
        if state is None:
            return None
        earlier = state - self._increment * cost
        return earlier if earlier > now * self._limit else None


class SlidingLog:
    """The instants of everything that was spent in the last period, oldest first."""

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def take(self, state: tuple[int, ...] | None, now: int, cost: int, /) -> tuple[int, tuple[int, ...]]:
        """See `Machine`."""
        spent = state or ()
        due = max(now, spent[-1]) if spent else now
        over = len(spent) + cost - self._limit
        if over > 0:
            due = max(due, spent[over - 1] + self._period)
        return due, (*self._since(spent, due), *((due,) * cost))

    def look(self, state: tuple[int, ...] | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        if not state:
            return self._limit, now
        left = 0 if state[-1] > now else self._limit - len(self._since(state, now))
        return left, state[-1] + self._period

    def refund(self, state: tuple[int, ...] | None, now: int, cost: int, /) -> tuple[int, ...] | None:  # noqa: ARG002
        """See `Machine`."""
        return (state or ())[:-cost] or None

    def _since(self, spent: tuple[int, ...], now: int) -> tuple[int, ...]:
        horizon = now - self._period
        for index, at in enumerate(spent):
            if at > horizon:
                return spent[index:] if index else spent
        return ()


class FixedWindow:
    """The start of the window and what was spent in it. A window begins with the first cost after the last one."""

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def take(self, state: tuple[int, int] | None, now: int, cost: int, /) -> tuple[int, tuple[int, int]]:
        """See `Machine`."""
        if state is None or now >= state[0] + self._period:
            return now, (now, cost)
        start, spent = state
        if spent + cost > self._limit:
            start, spent = start + self._period, 0
        return max(now, start), (start, spent + cost)

    def look(self, state: tuple[int, int] | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        if state is None or now >= state[0] + self._period:
            return self._limit, now
        start, spent = state
        return 0 if start > now else self._limit - spent, start + self._period

    def refund(self, state: tuple[int, int] | None, now: int, cost: int, /) -> tuple[int, int] | None:
        """See `Machine`."""
        if state is None or now >= state[0] + self._period:
            return None
        return (state[0], max(0, state[1] - cost))


class SlidingCounter:
    """This window's sum and the previous one's, which fades out linearly while this one goes by.

    The state is (start of this window, previous sum, this sum, instant of the last slot).
    """

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def take(
        self, state: tuple[int, int, int, int] | None, now: int, cost: int, /
    ) -> tuple[int, tuple[int, int, int, int]]:
        """See `Machine`."""
        if state is None or now >= self._full(state):
            return now, (now, 0, cost, now)
        period = self._period
        due = max(now, state[0], state[3])
        start, before, spent = self._rolled(state, due)
        if spent + cost > self._limit:
            start, before, spent = start + period, spent, 0
            due = start
        room = (self._limit - spent - cost) * period
        if before * (start + period - due) > room:
            due = start + period - room // before
            start, before, spent = self._rolled((start, before, spent, due), due)
        return due, (start, before, spent + cost, due)

    def look(self, state: tuple[int, int, int, int] | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        if state is None or now >= self._full(state):
            return self._limit, now
        if state[3] > now:
            return 0, self._full(state)
        start, before, spent = self._rolled(state, now)
        room = (self._limit - spent) * self._period - before * (start + self._period - now)
        return max(0, room // self._period), self._full(state)

    def refund(
        self, state: tuple[int, int, int, int] | None, now: int, cost: int, /
    ) -> tuple[int, int, int, int] | None:
        """See `Machine`."""
        if state is None or now >= self._full(state):
            return None
        start, before, spent, at = state
        kept = max(0, before + min(0, spent - cost)), max(0, spent - cost)
        return (start, *kept, min(at, now))  # the last slot may be the one that is given back

    def _full(self, state: tuple[int, int, int, int]) -> int:
        start, _, spent, _ = state
        return start + self._period * (2 if spent else 1)

    def _rolled(self, state: tuple[int, int, int, int], at: int) -> tuple[int, int, int]:
        start, before, spent, _ = state
        while at >= start + self._period:
            start, before, spent = start + self._period, spent, 0
        return start, before, spent


_MACHINES: dict[Algorithm, type[Gcra | SlidingLog | FixedWindow | SlidingCounter]] = {
    "gcra": Gcra,
    "sliding_log": SlidingLog,
    "sliding_counter": SlidingCounter,
    "fixed_window": FixedWindow,
}


def machine_for(rule: Rule) -> Machine:
    """Return the machine that counts this rule."""
    return _MACHINES[rule.algorithm](rule)
