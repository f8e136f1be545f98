"""What a limiter asks of a store: one decision over all rules of a key, in one step.

```
limiter ── apply(op, plan, key, cost, patience) ──> store: clock + states ── Answer ──> limiter
```

The store owns the clock, so limiters on machines whose clocks differ agree. A decision is all or nothing: no rule is
spent unless every rule admits. All times are whole nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol, TypeAlias

__all__ = ["ALGORITHMS", "FOREVER", "Algorithm", "Answer", "Op", "Plan", "Rule", "Store"]

Algorithm: TypeAlias = Literal["gcra", "sliding_log", "sliding_counter", "fixed_window"]
ALGORITHMS: tuple[Algorithm, ...] = ("gcra", "sliding_log", "sliding_counter", "fixed_window")
FOREVER = 2**62


class Op(StrEnum):
    """What to do with a key."""

    HIT = "hit"
    PEEK = "peek"
    REFUND = "refund"
    RESET = "reset"


class Rule(NamedTuple):
    """One limit in whole numbers.

    Attributes:
        algorithm: How it counts.
        limit: How much may be spent in a period.
        period: The period, in nanoseconds.
        burst: How much may be spent at once.
    """

    algorithm: Algorithm
    limit: int
    period: int
    burst: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of one limiter, and the namespace of its keys.

    Attributes:
        space: Differs whenever states cannot be shared: it names the limiter, its rules and the layout of the state.
        rules: At least one.
    """

    space: str
    rules: tuple[Rule, ...]


class Answer(NamedTuple):
    """A store's decision.

    Attributes:
        admitted: Whether the cost was spent; for PEEK, whether a hit of this cost would be.
        binding: Which rule takes longest to admit the cost or, if admitted, has least left.
        remaining: How much could still be spent at once, under all rules.
        wait: Nanoseconds until the cost may be spent; for an admitted HIT, how long to wait before going on.
        reset: Nanoseconds until nothing counts any more under any rule.
    """

    admitted: bool
    binding: int
    remaining: int
    wait: int
    reset: int


class Store(Protocol):
    """Keeps the state of keys. Safe from threads and tasks; raises StoreError when it cannot decide."""

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step.

        Args:
            op: HIT spends, PEEK only looks, REFUND gives back, RESET forgets.
            plan: The limiter's rules.
            key: Whose limit.
            cost: How much, from 1 to the smallest burst of the rules.
            patience: HIT may also take a slot in the future, at most so many nanoseconds away: a reservation.
        """
        ...

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide like `apply`, without blocking the event loop."""
        ...

    def close(self) -> None:
        """Close the connections; the store cannot be used afterwards."""
        ...

    async def aclose(self) -> None:
        """Close the connections like `close`, without blocking the event loop."""
        ...
