"""What stores outside this process have in common: rules in whole microseconds, and states as rows of numbers.

```
apply ──> SharedPlan.numbers ──> server: reads the state, decides, writes the state after it ──> now, state before
      <── Answer <── SharedPlan.answer: the same machine as in memory, on that state
```

The server decides with the same whole numbers, so what it has written and what this process concludes agree, and the
details of the answer cost the server nothing. Windows begin at whole multiples of their period on the store's clock.
A state is one row of numbers: for each rule

    gcra             arrival (whole), arrival (rest, in 1/scale)
    sliding_log      how many, and so many instants
    sliding_counter  start of the window, sum of the one before, sum of this one
    fixed_window     start of the window, sum

then (instant, cost) of each reservation. A rule that has counted nothing has zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.stores.algorithms import (
    AllOf,
    Counter,
    FixedWindow,
    Gcra,
    Machine,
    OneGcra,
    SlidingCounter,
    SlidingLog,
    machine_for,
)
from reliakit.stores.protocol import ALGORITHMS, FOREVER, Answer, Op, Plan, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SharedPlan", "clock_of", "in_microseconds", "machine_of", "micros", "rule_numbers"]

# Doubles hold whole numbers exactly up to here, and Lua has no other numbers.
_LARGEST = 2**53
# Answer(...) takes 250 ns, this takes 90.
_new: Callable[..., Answer] = cast("Any", tuple).__new__
_HIT = Op.HIT


class SharedPlan:
    """A plan in the form that servers take.

    Args:
        plan: The limiter's rules.

    Raises:
        ConfigurationError: A rule leads to numbers that a server cannot hold exactly.
    """

    __slots__ = ("_counters", "_machine", "_scales", "is_one_gcra", "numbers")

    def __init__(self, plan: Plan) -> None:
        rules = [in_microseconds(rule) for rule in plan.rules]
        self._counters = [_counter(rule) for rule in rules]
        self._machine: Machine = machine_of(tuple(rules), aligned=True)
        self.is_one_gcra: bool = isinstance(self._machine, OneGcra)
        # Set if there are several rules, all of them gcra.
        self._scales = [each.scale for each in self._counters if isinstance(each, Gcra)]
        if len(self._scales) < len(rules):
            self._scales = []
        # For each rule: kind, limit, period, scale, increment (whole, rest), tolerance (whole, rest).
        self.numbers: tuple[int, ...] = tuple(number for rule in rules for number in rule_numbers(rule))

    def spending(self, cost: int, patience: int) -> tuple[int, ...]:
        """Return the numbers for a cost under the only rule, which is gcra.

        Returns:
            What is spent (whole, rest), scale, and how far in advance that may be (whole, rest).
        """
        scale, step, rest, tolerance, tolerated = self.numbers[3:]
        more, over = divmod(cost * rest, scale)
        return cost * step + more, over, scale, tolerance + patience, tolerated

    def answer(self, reply: Sequence[int], op: Op, cost: int, patience: int) -> Answer:
        """Return the answer that belongs to a server's decision.

        Args:
            reply: The server's clock, in microseconds, then the state before the decision, nothing for none.
            op: What the server was asked to do.
            cost: How much.
            patience: In nanoseconds.
        """
        machine, now = self._machine, reply[0]
        state = self._state(reply) if len(reply) > 1 else None
        if op is _HIT:  # `decide` makes an Answer of it, which here were a second one
            fields, _ = machine.fit(state, now, cost) or machine.defer(state, now, cost, patience // 1000)
        else:
            fields, _ = machine.decide(op, state, now, cost, patience // 1000)
        admitted, binding, left, wait, reset = fields
        return _new(Answer, (admitted, binding, left, wait * 1000, reset * 1000))

    def _state(self, row: Sequence[int]) -> Any:
        """Return a state in the machine's form, from a row that begins with the clock."""
        scales = self._scales
        if self.is_one_gcra:
            return row[1] * scales[0] + row[2] or None
        if len(row) == 2 * len(scales) + 1:  # nothing is reserved; a third of the time of what follows
            cells = zip(row[1::2], row[2::2], scales, strict=True)
            return (*[whole * scale + part or None for whole, part, scale in cells], ())
        states: list[Any] = []
        at = 1
        for counter in self._counters:
            if isinstance(counter, Gcra):
                states.append(row[at] * counter.scale + row[at + 1] or None)
                at += 2
                continue
            if isinstance(counter, SlidingLog):
                at += 1
                width = row[at - 1]
            else:
                width = 3 if isinstance(counter, SlidingCounter) else 2
            kept = tuple(row[at : at + width])
            states.append(kept if any(kept) else None)
            at += width
        return (*states, tuple(zip(row[at::2], row[at + 1 :: 2], strict=True)))


def clock_of(clock: Literal["server", "client"] | Clock) -> Clock | None:
    """Return the clock that a setting names; None for the server's.

    Args:
        clock: The setting: "server", "client" or a Clock.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(clock, str):
        checks.choice("clock", clock, ("server", "client"))
        return SYSTEM_CLOCK if clock == "client" else None
    return checks.clock("clock", clock)


def micros(nanoseconds: int) -> int:
    """Return whole microseconds, rounded up; FOREVER stays FOREVER."""
    return FOREVER // 1000 if nanoseconds >= FOREVER else -(-nanoseconds // 1000)


def in_microseconds(rule: Rule) -> Rule:
    """Return a rule whose period is in whole microseconds."""
    return rule._replace(period=micros(rule.period))


class _AlignedCounter(SlidingCounter):
    """Windows that begin at whole multiples of the period."""

    __slots__ = ()

    def _rolled(self, state: tuple[int, int, int] | None, at: int) -> tuple[int, int, int]:
        start, before, here = super()._rolled(state, at)
        return (start, before, here) if before or here else (at - at % self.period, 0, 0)


class _AlignedWindow(FixedWindow):
    """A window that begins at a whole multiple of the period."""

    __slots__ = ()

    def _rolled(self, state: tuple[int, int] | None, at: int) -> tuple[int, int]:
        start, spent = super()._rolled(state, at)
        return (start, spent) if spent else (at - at % self.period, 0)


def machine_of(rules: tuple[Rule, ...], *, aligned: bool) -> Machine:
    """Return the machine that decides under these rules together.

    Args:
        rules: At least one.
        aligned: Whether windows begin at whole multiples of their period, not with a key's first hit.
    """
    if not aligned:
        return machine_for(rules)
    if all(rule.algorithm == "gcra" for rule in rules):  # which knows of no windows
        return machine_for(rules)
    return AllOf(tuple(_counter(rule) for rule in rules))


def _counter(rule: Rule) -> Counter:
    kinds: dict[str, type[Gcra | SlidingLog | SlidingCounter | FixedWindow]] = {
        "gcra": Gcra,
        "sliding_log": SlidingLog,
        "sliding_counter": _AlignedCounter,
        "fixed_window": _AlignedWindow,
    }
    return kinds[rule.algorithm](rule)


def rule_numbers(rule: Rule) -> tuple[int, ...]:
    """Return a rule as a server reads it: kind, limit, period, scale, increment and tolerance (whole, rest).

    Raises:
        ConfigurationError: It leads to numbers that a server cannot hold exactly.
    """
    kind = ALGORITHMS.index(rule.algorithm)
    if kind:
        if rule.period * (rule.limit if rule.algorithm == "sliding_counter" else 1) >= _LARGEST:
            raise _too_large(rule)
        return (kind, rule.limit, rule.period, 1, 0, 0, 0, 0)
    counter = Gcra(rule)
    increment, tolerance = divmod(counter.increment, counter.scale), divmod(counter.tolerance, counter.scale)
    # Half of what is exact, because the epoch and a cost are added to it.
    if tolerance[0] >= _LARGEST // 2 or rule.burst * counter.scale >= _LARGEST:
        raise _too_large(rule)
    return (kind, rule.limit, rule.period, counter.scale, *increment, *tolerance)


def _too_large(rule: Rule) -> ConfigurationError:
    return ConfigurationError(
        f"limit: {rule.limit} per {rule.period / 1e6:g} s by {rule.algorithm} is more than a shared store can count "
        "exactly: give a smaller limit over a shorter period"
    )
