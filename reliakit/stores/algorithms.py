"""How limits count, on whole nanoseconds, without clock, lock or error of rounding.

```
Counter   one rule        due, spend, room, full, refund
Machine   what a key has  hit, look, refund: all rules of a key together, and what is reserved for later
```

With N the limit and P the period, at most this much is spent in any window of length P, its end left out:

    gcra             burst + N - 1            smooth; spends up to `burst` at once, then one in each P/N
    sliding_log      N                        exact; keeps N instants for each key
    sliding_counter  about 2N at worst        two sums; the previous window's fades out linearly
    fixed_window     2N, around an edge       one sum; for quotas and bills

States are immutable values; None is a key that is as good as new. A slot may be taken in the future, which makes it a
reservation. Slots are handed out in order: whoever asks later gets no earlier one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from math import gcd
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from reliakit.stores.protocol import Answer, Op

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.stores.protocol import Algorithm, Rule

__all__ = [
    "AllGcra",
    "AllOf",
    "Counter",
    "FixedWindow",
    "Gcra",
    "Machine",
    "OneGcra",
    "SlidingCounter",
    "SlidingLog",
    "machine_for",
]

_Sums: TypeAlias = tuple[int, int, int]
# (instant, cost), the next one first.
_Reserved: TypeAlias = tuple[tuple[int, int], ...]
# Answer(...) takes 250 ns, this takes 90.
_new: Callable[..., Answer] = cast("Any", tuple).__new__


class Counter(ABC):
    """Counts what is spent under one rule, one instant after the other."""

    __slots__ = ()

    @abstractmethod
    def due(self, state: Any, at: int, cost: int, /) -> int:
        """Return the first instant from `at` on at which the cost fits."""

    @abstractmethod
    def spend(self, state: Any, at: int, cost: int, /) -> Any:
        """Return the state with this cost."""

    @abstractmethod
    def room(self, state: Any, at: int, /) -> int:
        """Return how much fits at this instant."""

    @abstractmethod
    def full(self, state: Any, /) -> int:
        """Return the instant from which on this state, which is not None, is as good as None."""

    @abstractmethod
    def refund(self, state: Any, at: int, cost: int, /) -> Any:
        """Return the state without a cost that was spent before."""

    def fit(self, state: Any, at: int, cost: int, /) -> tuple[int, int, Any] | None:
        """Return room, full and state with this cost if it fits at this instant: the commonest sequence in one."""
        if self.due(state, at, cost) > at:
            return None
        after = self.spend(state, at, cost)
        return self.room(after, at), self.full(after), after


class Gcra(Counter):
    """The generic cell rate algorithm (ITU-T I.371): one instant, the theoretical arrival time of the next cell.

    The state is that instant times `scale`, so that a period that the limit does not divide stays exact.
    """

    __slots__ = ("increment", "scale", "tolerance")

    def __init__(self, rule: Rule) -> None:
        common = gcd(rule.period, rule.limit)
        self.scale: int = rule.limit // common
        self.increment: int = rule.period // common
        self.tolerance: int = self.increment * rule.burst

    def due(self, state: int | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        # Rounded up, to the first nanosecond at which it fits.
        return max(at, -((self.tolerance - self.spend(state, at, cost)) // self.scale))

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

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def due(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        spent = self._since(state, at)
        over = len(spent) + cost - self._limit
        return at if over <= 0 else spent[over - 1] + self._period

    def spend(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> tuple[int, ...]:
        """See `Counter`."""
        return self._since(state, at) + (at,) * cost

    def room(self, state: tuple[int, ...] | None, at: int, /) -> int:
        """See `Counter`."""
        return self._limit - len(self._since(state, at))

    def full(self, state: tuple[int, ...], /) -> int:
        """See `Counter`."""
        return state[-1] + self._period

    def refund(self, state: tuple[int, ...] | None, at: int, cost: int, /) -> tuple[int, ...] | None:
        """See `Counter`."""
        return self._since(state, at)[:-cost] or None

    def _since(self, state: tuple[int, ...] | None, at: int) -> tuple[int, ...]:
        return () if state is None else state[bisect_right(state, at - self._period) :]


class SlidingCounter(Counter):
    """This window's sum and the one before, which fades out linearly while this window goes by.

    The state is (start of the window, sum of the one before, sum of this one).
    """

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def due(self, state: _Sums | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        if here + cost > self._limit:
            start, before, here = start + self._period, here, 0
            at = start
        room = (self._limit - here - cost) * self._period
        if before * (start + self._period - at) > room:
            return start + self._period - room // before
        return at

    def spend(self, state: _Sums | None, at: int, cost: int, /) -> _Sums:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        return start, before, here + cost

    def room(self, state: _Sums | None, at: int, /) -> int:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        return max(0, (self._limit - here) * self._period - before * (start + self._period - at)) // self._period

    def full(self, state: _Sums, /) -> int:
        """See `Counter`."""
        return state[0] + self._period * (2 if state[2] else 1)

    def refund(self, state: _Sums | None, at: int, cost: int, /) -> _Sums | None:
        """See `Counter`."""
        start, before, here = self._rolled(state, at)
        before, here = max(0, before + min(0, here - cost)), max(0, here - cost)
        return (start, before, here) if before or here else None

    def _rolled(self, state: _Sums | None, at: int) -> _Sums:
        if state is None:
            return at, 0, 0
        start, before, here = state
        while (before or here) and at >= start + self._period:
            start, before, here = start + self._period, here, 0
        return (start, before, here) if before or here else (at, 0, 0)


class FixedWindow(Counter):
    """The sum of one window, which begins with the first cost after the last one's end.

    The state is (start of the window, sum).
    """

    __slots__ = ("_limit", "_period")

    def __init__(self, rule: Rule) -> None:
        self._limit = rule.limit
        self._period = rule.period

    def due(self, state: tuple[int, int] | None, at: int, cost: int, /) -> int:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return at if spent + cost <= self._limit else start + self._period

    def spend(self, state: tuple[int, int] | None, at: int, cost: int, /) -> tuple[int, int]:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return start, spent + cost

    def room(self, state: tuple[int, int] | None, at: int, /) -> int:
        """See `Counter`."""
        return self._limit - self._rolled(state, at)[1]

    def full(self, state: tuple[int, int], /) -> int:
        """See `Counter`."""
        return state[0] + self._period

    def refund(self, state: tuple[int, int] | None, at: int, cost: int, /) -> tuple[int, int] | None:
        """See `Counter`."""
        start, spent = self._rolled(state, at)
        return (start, spent - cost) if spent > cost else None

    def _rolled(self, state: tuple[int, int] | None, at: int) -> tuple[int, int]:
        return (at, 0) if state is None or at >= state[0] + self._period else state


class Machine(ABC):
    """Decides for one key under all its rules."""

    __slots__ = ()

    @abstractmethod
    def hit(self, state: Any, now: int, cost: int, patience: int, /) -> tuple[Answer, Any]:
        """Decide on a cost that may wait so long, and return the state after the decision."""

    @abstractmethod
    def look(self, state: Any, now: int, /) -> tuple[int, int]:
        """Return how much fits at once now, and the instant from which on the state may be forgotten."""

    @abstractmethod
    def refund(self, state: Any, now: int, cost: int, /) -> Any:
        """Return the state without what was spent or reserved last."""

    def full(self, state: Any, /) -> int:
        """Return the instant from which on this state, which is not None, may be forgotten."""
        return self.look(state, 0)[1]

    def decide(self, op: Op, state: Any, now: int, cost: int, patience: int, /) -> tuple[Answer, Any]:
        """Return what a store answers, and the state after it."""
        if op is Op.HIT:
            return self.hit(state, now, cost, patience)
        if op is Op.PEEK:
            answer, _ = self.hit(state, now, cost, patience)
            left, full = self.look(state, now)
            return answer._replace(remaining=left, reset=max(0, full - now)), state
        # Many slots given back at once may come to more than could ever be spent at once.
        after = self.refund(state, now, cost) if op is Op.REFUND else None
        left, full = self.look(after, now)
        return Answer(True, 0, left, 0, max(0, full - now)), after


class OneGcra(Machine):
    """A single gcra rule, the commonest case: one number, in which reservations are contained."""

    __slots__ = ("_counter", "increment", "scale", "tolerance")

    def __init__(self, counter: Gcra) -> None:
        self._counter = counter
        self.scale: int = counter.scale
        self.increment: int = counter.increment
        self.tolerance: int = counter.tolerance

    def hit(self, state: int | None, now: int, cost: int, patience: int, /) -> tuple[Answer, int | None]:
        """See `Machine`. The sums of `Gcra` written out, which makes a decision three times as fast."""
        scale = self.scale
        scaled = now * scale
        spending = self.increment * cost
        backlog = spending if state is None or state < scaled else state - scaled + spending
        room = self.tolerance - backlog
        if room >= 0:
            return _new(Answer, (True, 0, room // self.increment, 0, -(-backlog // scale))), scaled + backlog
        wait = -(room // scale)
        if wait <= patience:
            return _new(Answer, (True, 0, 0, wait, -(-backlog // scale))), scaled + backlog
        left = max(0, room + spending) // self.increment
        return _new(Answer, (False, 0, left, wait, -(-(backlog - spending) // scale))), state

    def look(self, state: int | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        return self._counter.room(state, now), now if state is None else self._counter.full(state)

    def refund(self, state: int | None, now: int, cost: int, /) -> int | None:
        """See `Machine`."""
        return self._counter.refund(state, now, cost)


class AllOf(Machine):
    """Any rules: all are spent, each at the one instant at which all of them admit, or none is.

    The state is (state of each rule..., reservations), the rules' states being those of now.
    """

    __slots__ = ("_counters", "_new")

    def __init__(self, counters: tuple[Counter, ...]) -> None:
        self._counters = counters
        self._new: tuple[Any, ...] = (*[None] * len(counters), ())

    def hit(
        self, state: tuple[Any, ...] | None, now: int, cost: int, patience: int, /
    ) -> tuple[Answer, tuple[Any, ...] | None]:
        """See `Machine`."""
        known = self._new if state is None else state
        return (None if known[-1] else self._fit(known, now, cost)) or self._hit(state, now, cost, patience)

    def _fit(self, state: tuple[Any, ...], now: int, cost: int) -> tuple[Answer, tuple[Any, ...]] | None:
        """Decide if nothing is reserved and every rule admits at once; a third of the cost of `_hit`."""
        binding, left, latest = 0, -1, now
        after: list[Any] = []
        for counter, each in zip(self._counters, state, strict=False):  # the reservations come last, and are none
            fits = counter.fit(each, now, cost)
            if fits is None:
                return None
            room, full, spent = fits
            if room < left or left < 0:
                binding, left = len(after), room
            latest = max(latest, full)
            after.append(spent)
        after.append(())
        return _new(Answer, (True, binding, left, 0, latest - now)), tuple(after)

    def _hit(
        self, state: tuple[Any, ...] | None, now: int, cost: int, patience: int
    ) -> tuple[Answer, tuple[Any, ...] | None]:
        states, reserved = self._at(state, now)
        last, at = self._after(states, reserved, now)
        dues = [counter.due(each, at, cost) for counter, each in zip(self._counters, last, strict=True)]
        due = max(dues)  # what fits a rule at its own instant fits it later too, as long as nothing else is spent
        binding = dues.index(due)
        wait = due - now
        if wait > patience:
            left, full = self._look(states, reserved, now)
            return Answer(False, binding, left, wait, max(0, full - now)), state
        if wait > 0:
            reserved = (*reserved, (due, cost))
        else:  # reservations have just come due, and there is room for more
            states = [counter.spend(each, now, cost) for counter, each in zip(self._counters, states, strict=True)]
            rooms = [counter.room(each, now) for counter, each in zip(self._counters, states, strict=True)]
            binding = rooms.index(min(rooms))
        left, full = self._look(states, reserved, now)
        return Answer(True, binding, left, wait, max(0, full - now)), (*states, reserved)

    def look(self, state: tuple[Any, ...] | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        return self._look(*self._at(state, now), now)

    def refund(self, state: tuple[Any, ...] | None, now: int, cost: int, /) -> tuple[Any, ...] | None:
        """See `Machine`."""
        states, reserved = self._at(state, now)
        waiting = list(reserved)
        while cost and waiting:  # the last reservation first
            at, reservation = waiting.pop()
            if reservation > cost:
                waiting.append((at, reservation - cost))
            cost = max(0, cost - reservation)
        if cost:
            states = [counter.refund(each, now, cost) for counter, each in zip(self._counters, states, strict=True)]
        after = (*states, tuple(waiting))
        return None if after == self._new else after

    def _at(self, state: tuple[Any, ...] | None, now: int) -> tuple[list[Any], _Reserved]:
        """Return the rules' states of now, and the reservations that are still to come."""
        *states, reserved = self._new if state is None else state
        while reserved and reserved[0][0] <= now:
            states, _ = self._after(states, reserved[:1], now)
            reserved = reserved[1:]
        return states, reserved

    def _after(self, states: list[Any], reserved: _Reserved, now: int) -> tuple[list[Any], int]:
        """Return the states once all reservations have come, and the instant from which on there is more to get."""
        for at, cost in reserved:
            states = [counter.spend(each, at, cost) for counter, each in zip(self._counters, states, strict=True)]
        return states, max(now, reserved[-1][0]) if reserved else now

    def _look(self, states: list[Any], reserved: _Reserved, now: int) -> tuple[int, int]:
        pairs = list(zip(self._counters, states, strict=True))
        left = 0 if reserved else min([counter.room(each, now) for counter, each in pairs])
        if reserved:
            pairs = list(zip(self._counters, self._after(states, reserved, now)[0], strict=True))
        return left, max([now if each is None else counter.full(each) for counter, each in pairs])


class AllGcra(AllOf):
    """Gcra rules alone: the sums of `Gcra.fit` in place, which makes a decision twice as fast."""

    __slots__ = ("_cells",)

    def __init__(self, counters: tuple[Gcra, ...]) -> None:
        super().__init__(counters)
        self._cells = tuple((counter.scale, counter.increment, counter.tolerance) for counter in counters)

    def _fit(self, state: tuple[Any, ...], now: int, cost: int) -> tuple[Answer, tuple[Any, ...]] | None:
        binding, left, longest = 0, -1, 0
        after: list[Any] = []
        for scale, increment, tolerance in self._cells:
            each = state[len(after)]
            scaled = now if scale == 1 else now * scale
            backlog = increment * cost
            if each is not None and each > scaled:
                backlog += each - scaled
            room = tolerance - backlog
            if room < 0:
                return None
            room //= increment
            if room < left or left < 0:
                binding, left = len(after), room
            after.append(scaled + backlog)
            if scale != 1:
                backlog = -(-backlog // scale)
            if backlog > longest:  # noqa: PLR1730 - max() costs as much as the rest of the round
                longest = backlog
        after.append(())
        return _new(Answer, (True, binding, left, 0, longest)), tuple(after)


_COUNTERS: dict[Algorithm, type[Gcra | SlidingLog | FixedWindow | SlidingCounter]] = {
    "gcra": Gcra,
    "sliding_log": SlidingLog,
    "sliding_counter": SlidingCounter,
    "fixed_window": FixedWindow,
}


def machine_for(rules: tuple[Rule, ...]) -> Machine:
    """Return the machine that decides under these rules together."""
    counters = tuple(_COUNTERS[rule.algorithm](rule) for rule in rules)
    cells = tuple(counter for counter in counters if isinstance(counter, Gcra))
    if len(cells) < len(counters):
        return AllOf(counters)
    return OneGcra(cells[0]) if len(cells) == 1 else AllGcra(cells)
