"""How all limits of a key are decided as one: all of them are spent, or none.

```
Counter   one rule        due, spend, room, full, refund                  see `reliakit.stores.counters`
Machine   what a key has  hit, look, refund: all rules of a key together, and what is reserved for later
                          hit is fit, which spends at once, or else defer, which reserves or refuses
                          step is a hit of 1 that is not reserved, in a fraction of the time
```

States are immutable values; None is a key with nothing spent. Slots are handed out in order: a later request gets no
earlier slot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from reliakit.stores.counters import Counter, FixedWindow, Gcra, SlidingCounter, SlidingLog
from reliakit.stores.protocol import Answer, Op

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.stores.protocol import Algorithm, Rule

__all__ = [
    "AllGcra",
    "AllOf",
    "Counter",
    "Fields",
    "FixedWindow",
    "Gcra",
    "Machine",
    "OneFixedWindow",
    "OneGcra",
    "OneOf",
    "OneSlidingCounter",
    "OneSlidingLog",
    "SlidingCounter",
    "SlidingLog",
    "Step",
    "machine_for",
]

# (instant, cost), the next one first.
_Reserved: TypeAlias = tuple[tuple[int, int], ...]
# The fields of an `Answer` in a plain tuple.
Fields: TypeAlias = tuple[bool, int, int, int, int]
# These, and the state after the decision.
Step: TypeAlias = tuple[bool, int, int, int, int, Any]
# Answer(...) takes 250 ns, this takes 90.
_new: Callable[..., Answer] = cast("Any", tuple).__new__


class Machine(ABC):
    """Decides for one key under all its rules."""

    __slots__ = ()

    def hit(self, state: Any, now: int, cost: int, patience: int, /) -> tuple[Answer, Any]:
        """Decide on a cost that may wait for `patience`, and return the state after the decision."""
        fields, after = self.fit(state, now, cost) or self.defer(state, now, cost, patience)
        return _new(Answer, fields), after

    def step(self, state: Any, now: int, /) -> Step | None:
        """Decide on a cost of 1 without patience, as `hit` does, on a state that is not None; None to ask `hit`."""
        fields, after = self.fit(state, now, 1) or self.defer(state, now, 1, 0)
        return (*fields, after)

    @abstractmethod
    def fit(self, state: Any, now: int, cost: int, /) -> tuple[Fields, Any] | None:
        """Spend the cost if it fits now, which is the commonest case; else return None."""

    @abstractmethod
    def defer(self, state: Any, now: int, cost: int, patience: int, /) -> tuple[Fields, Any]:
        """Decide on a cost that does not fit: it gets a slot within its patience, or is refused."""

    @abstractmethod
    def look(self, state: Any, now: int, /) -> tuple[int, int]:
        """Return how much fits at once now, and the instant from which the state may be forgotten."""

    @abstractmethod
    def refund(self, state: Any, now: int, cost: int, /) -> Any:
        """Return the state without what was spent or reserved last."""

    def full(self, state: Any, /) -> int:
        """Return the instant from which this state, which is not None, may be forgotten."""
        return self.look(state, 0)[1]

    def decide(self, op: Op, state: Any, now: int, cost: int, patience: int, /) -> tuple[Answer, Any]:
        """Return what a store answers, and the state after it."""
        if op is Op.HIT:
            return self.hit(state, now, cost, patience)
        if op is Op.PEEK:
            answer, _ = self.hit(state, now, cost, patience)
            left, full = self.look(state, now)
            return answer._replace(remaining=left, reset=max(0, full - now)), state
        # Many slots given back at once may add up to more than could ever be spent at once.
        after = self.refund(state, now, cost) if op is Op.REFUND else None
        left, full = self.look(after, now)
        return Answer(True, 0, left, 0, max(0, full - now)), after


class OneGcra(Machine):
    """A single gcra rule, the commonest case: one number, which includes reservations."""

    __slots__ = ("_counter", "increment", "scale", "tolerance")

    def __init__(self, counter: Gcra) -> None:
        self._counter = counter
        self.scale: int = counter.scale
        self.increment: int = counter.increment
        self.tolerance: int = counter.tolerance

    # The computations of `Gcra` written out, which makes a decision three times as fast.

    def fit(self, state: int | None, now: int, cost: int, /) -> tuple[Fields, int] | None:
        """See `Machine`."""
        scale = self.scale
        scaled = now * scale
        backlog = self.increment * cost
        if state is not None and state > scaled:
            backlog += state - scaled
        room = self.tolerance - backlog
        if room < 0:
            return None
        return (True, 0, room // self.increment, 0, -(-backlog // scale)), scaled + backlog

    def defer(self, state: int | None, now: int, cost: int, patience: int, /) -> tuple[Fields, int | None]:
        """See `Machine`."""
        scale = self.scale
        scaled = now * scale
        spending = self.increment * cost
        backlog = 0 if state is None else max(0, state - scaled)
        room = self.tolerance - backlog
        wait = -((room - spending) // scale)
        if wait <= patience:
            return (True, 0, 0, wait, -(-(backlog + spending) // scale)), scaled + backlog + spending
        return (False, 0, max(0, room) // self.increment, wait, -(-backlog // scale)), state

    def look(self, state: int | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        return self._counter.room(state, now), now if state is None else self._counter.full(state)

    def refund(self, state: int | None, now: int, cost: int, /) -> int | None:
        """See `Machine`."""
        return self._counter.refund(state, now, cost)


class AllOf(Machine):
    """Any rules: all are spent, at the first instant at which all of them admit, or none is.

    The state is (state of each rule..., reservations), with the rules' states as they are now.
    """

    __slots__ = ("_counters", "_new")

    def __init__(self, counters: tuple[Counter, ...]) -> None:
        self._counters = counters
        self._new: tuple[Any, ...] = (*[None] * len(counters), ())

    def fit(
        self, state: tuple[Any, ...] | None, now: int, cost: int, /
    ) -> tuple[Fields, tuple[Any, ...] | None] | None:
        """See `Machine`. It takes a third of the time of `defer`."""
        known = self._new if state is None else state
        if known[-1]:  # reservations come first
            return None
        binding, left, latest = 0, -1, now
        after: list[Any] = []
        for counter in self._counters:
            fits = counter.fit(known[len(after)], now, cost)
            if fits is None:
                return None
            room, full, spent = fits
            if room < left or left < 0:
                binding, left = len(after), room
            if full > latest:  # noqa: PLR1730 - max() costs a tenth of the round
                latest = full
            after.append(spent)
        after.append(())
        return (True, binding, left, 0, latest - now), tuple(after)

    def defer(
        self, state: tuple[Any, ...] | None, now: int, cost: int, patience: int, /
    ) -> tuple[Fields, tuple[Any, ...] | None]:
        """See `Machine`."""
        known = self._new if state is None else state
        if not known[-1]:
            refusal = self._refusal(known, now, cost)
            if refusal[3] > patience:
                return refusal, state
        states, reserved = self._at(state, now)
        last, at = self._after(states, reserved, now)
        dues = [counter.due(each, at, cost) for counter, each in zip(self._counters, last, strict=True)]
        due = max(dues)  # a cost that fits a rule at its own instant fits it later too, if nothing else is spent
        binding = dues.index(due)
        wait = due - now
        if wait > patience:
            left, full = self._look(states, reserved, now)
            return (False, binding, left, wait, max(0, full - now)), state
        if wait > 0:
            reserved = (*reserved, (due, cost))
        else:  # reservations have just come due, so there is room for more
            states = [counter.spend(each, now, cost) for counter, each in zip(self._counters, states, strict=True)]
            rooms = [counter.room(each, now) for counter, each in zip(self._counters, states, strict=True)]
            binding = rooms.index(min(rooms))
        left, full = self._look(states, reserved, now)
        return (True, binding, left, wait, max(0, full - now)), (*states, reserved)

    def _refusal(self, state: tuple[Any, ...], now: int, cost: int) -> Fields:
        """Return the refusal of a cost that does not fit while nothing is reserved; a third of `defer`'s time."""
        binding, due, left, latest = 0, now, -1, now
        for index, counter in enumerate(self._counters):
            each = state[index]
            at = counter.due(each, now, cost)
            if at > due:
                binding, due = index, at
            room = counter.room(each, now)
            if room < left or left < 0:
                left = room
            if each is not None:
                latest = max(latest, counter.full(each))
        return False, binding, left, due - now, latest - now

    def look(self, state: tuple[Any, ...] | None, now: int, /) -> tuple[int, int]:
        """See `Machine`."""
        return self._look(*self._at(state, now), now)

    def refund(self, state: tuple[Any, ...] | None, now: int, cost: int, /) -> tuple[Any, ...] | None:
        """See `Machine`."""
        states, reserved = self._at(state, now)
        waiting = list(reserved)
        while cost and waiting:  # the latest reservation first
            at, reservation = waiting.pop()
            if reservation > cost:
                waiting.append((at, reservation - cost))
            cost = max(0, cost - reservation)
        if cost:
            states = [counter.refund(each, now, cost) for counter, each in zip(self._counters, states, strict=True)]
        after = (*states, tuple(waiting))
        return None if after == self._new else after

    def _at(self, state: tuple[Any, ...] | None, now: int) -> tuple[list[Any], _Reserved]:
        """Return the rules' states as they are now, and the reservations that are still to come."""
        *states, reserved = self._new if state is None else state
        while reserved and reserved[0][0] <= now:
            states, _ = self._after(states, reserved[:1], now)
            reserved = reserved[1:]
        return states, reserved

    def _after(self, states: list[Any], reserved: _Reserved, now: int) -> tuple[list[Any], int]:
        """Return the states once all reservations have come, and the instant from which more can be spent."""
        for at, cost in reserved:
            states = [counter.spend(each, at, cost) for counter, each in zip(self._counters, states, strict=True)]
        return states, max(now, reserved[-1][0]) if reserved else now

    def _look(self, states: list[Any], reserved: _Reserved, now: int) -> tuple[int, int]:
        pairs = list(zip(self._counters, states, strict=True))
        left = 0 if reserved else min([counter.room(each, now) for counter, each in pairs])
        if reserved:
            pairs = list(zip(self._counters, self._after(states, reserved, now)[0], strict=True))
        return left, max([now if each is None else counter.full(each) for counter, each in pairs])


class OneOf(AllOf):
    """A single rule other than gcra. Its step does the computations of its counter in place."""

    __slots__ = ("_limit", "_period")

    def __init__(self, counter: FixedWindow | SlidingCounter | SlidingLog) -> None:
        super().__init__((counter,))
        self._limit, self._period = counter.limit, counter.period


class OneFixedWindow(OneOf):
    """A single fixed window."""

    __slots__ = ()

    def step(self, state: tuple[Any, ...], now: int, /) -> Step | None:
        """See `Machine`."""
        each, reserved = state
        if reserved:
            return None
        start, spent = each
        reset = start + self._period - now
        if reset <= 0:
            start, spent, reset = now, 0, self._period
        left = self._limit - spent - 1
        if left < 0:
            return False, 0, 0, reset, reset, state
        return True, 0, left, 0, reset, ((start, spent + 1), ())


class OneSlidingCounter(OneOf):
    """A single sliding counter."""

    __slots__ = ()

    def step(self, state: tuple[Any, ...], now: int, /) -> Step | None:
        """See `Machine`."""
        each, reserved = state
        if reserved:
            return None
        start, before, here = each
        period = self._period
        rest = start + period - now
        if rest <= 0:
            rest += period
            if here and rest > 0:
                start, before, here = start + period, here, 0
            else:
                start, before, here, rest = now, 0, 0, period
        room = (self._limit - here) * period - before * rest
        if room >= period:
            return True, 0, room // period - 1, 0, rest + period, ((start, before, here + 1), ())
        if here >= self._limit:
            wait = rest + period - (self._limit - 1) * period // here
        else:
            wait = rest - (self._limit - here - 1) * period // before
        return False, 0, 0, wait, rest + period if here else rest, state


class OneSlidingLog(OneOf):
    """A single sliding log."""

    __slots__ = ()

    def step(self, state: tuple[Any, ...], now: int, /) -> Step | None:
        """See `Machine`."""
        spent, reserved = state
        if reserved:
            return None
        since, last = now - self._period, spent[-1]
        if spent[0] <= since:
            spent = spent[bisect_right(spent, since) :]
        left = self._limit - len(spent) - 1
        if left < 0:
            return False, 0, 0, spent[0] - since, last - since, state
        at = last if last > now else now  # noqa: FURB136 - max() takes a tenth of the step
        return True, 0, left, 0, at - since, (spent + (at,), ())  # noqa: RUF005 - as (*spent, at) it takes twice as long


class AllGcra(AllOf):
    """Gcra rules only: the computations of `Gcra.fit` in place, which makes a decision twice as fast."""

    __slots__ = ("_cells",)

    def __init__(self, counters: tuple[Gcra, ...]) -> None:
        super().__init__(counters)
        self._cells = tuple((counter.scale, counter.increment, counter.tolerance) for counter in counters)

    def fit(
        self, state: tuple[Any, ...] | None, now: int, cost: int, /
    ) -> tuple[Fields, tuple[Any, ...] | None] | None:
        """See `Machine`."""
        known = self._new if state is None else state
        if known[-1]:
            return None
        binding, left, longest = 0, -1, 0
        after: list[Any] = []
        for scale, increment, tolerance in self._cells:
            each = known[len(after)]
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
        return (True, binding, left, 0, longest), tuple(after)


_COUNTERS: dict[Algorithm, type[Gcra | SlidingLog | FixedWindow | SlidingCounter]] = {
    "gcra": Gcra,
    "sliding_log": SlidingLog,
    "sliding_counter": SlidingCounter,
    "fixed_window": FixedWindow,
}


_ALONE: dict[Algorithm, Callable[[Any], Machine]] = {
    "gcra": OneGcra,
    "sliding_log": OneSlidingLog,
    "sliding_counter": OneSlidingCounter,
    "fixed_window": OneFixedWindow,
}


def machine_for(rules: tuple[Rule, ...]) -> Machine:
    """Return the machine that decides under these rules together."""
    counters = tuple(_COUNTERS[rule.algorithm](rule) for rule in rules)
    if len(counters) == 1:
        return _ALONE[rules[0].algorithm](counters[0])
    cells = tuple(counter for counter in counters if isinstance(counter, Gcra))
    return AllGcra(cells) if len(cells) == len(counters) else AllOf(counters)
