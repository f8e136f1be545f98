"""The store in this process: exact, bounded, without a thread and without a scan.

```
new states ──> young ──(every lifetime)──> old ──(a few with each decision)──> forgotten when as good as new
                 ^                          │                                   else back to young
                 └───────── touched ────────┘

at max_keys, an unknown key shares one of 65 536 states with the keys of equal hash
```

A shared state has seen at least what each of its keys spent, so junk keys can make it stricter but never free a key
that is limited, and they cost no memory. Python draws its hash of texts anew in each process, so nobody outside can
choose with whom a key shares.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.fork import renew_locks_after_fork
from reliakit.stores.algorithms import machine_for
from reliakit.stores.protocol import Answer, Op

if TYPE_CHECKING:
    from reliakit.stores.protocol import Plan

__all__ = ["MemoryStore"]

_SHARED_STATES = 2**16
# How many old states are looked at with each decision; 1 would do, 4 drains a generation well before its end.
_DRAINED = 4


class MemoryStore:
    """Keep the state of keys in this process. Safe from any mix of threads and tasks; a decision takes about 1 us.

    Args:
        max_keys: How many keys have a state of their own. Beyond that, new keys share 65 536 states by their hash
            until others expire: such a key may be limited too early, never too late.
        clock: Where time comes from.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Clock = SYSTEM_CLOCK) -> None:
        self._max_keys = checks.count("max_keys", max_keys)
        self._clock = clock
        self._lock = threading.Lock()
        self._shelves: dict[str, _Shelf] = {}
        renew_locks_after_fork(self, "_lock")

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step; see `Store.apply`."""
        # Rounded, not cut: a float that should be 0.3 s may be a hair less.
        now = round(self._clock.monotonic() * 1e9)
        with self._lock:
            shelf = self._shelves.get(plan.space)
            if shelf is None:
                shelf = self._shelves[plan.space] = _Shelf(plan)
            shelf.drain(now)
            return shelf.decide(op, self._place(shelf, key, now), cost, now, patience)

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step, without ever suspending; see `Store.apply`."""
        return self.apply(op, plan, key, cost, patience)

    def close(self) -> None:
        """Forget every key."""
        with self._lock:
            self._shelves.clear()

    async def aclose(self) -> None:
        """Forget every key."""
        self.close()

    def __len__(self) -> int:
        """Return how many states are kept, those that may be forgotten by now included."""
        with self._lock:
            return sum(shelf.own + shelf.shared for shelf in self._shelves.values())

    def _place(self, shelf: _Shelf, key: str, now: int) -> str | int:
        """Return where the state of this key is kept: under its own name, or under its hash when there is no room."""
        if shelf.knows(key):
            return key
        place = hash(key) % _SHARED_STATES
        if shelf.shared and shelf.is_live(place, now):
            return place  # what it may have spent there must not be forgotten because there is room again
        if sum(each.own for each in self._shelves.values()) < self._max_keys:
            return key
        for each in self._shelves.values():
            each.drain(now)  # other limiters may have fallen silent
        return place

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self)} keys, max_keys={self._max_keys}>"


class _Shelf:
    """The states of one plan. Its store's lock is held around every call."""

    __slots__ = ("_lifetime", "_machines", "_old", "_turn", "_young", "own", "shared")

    def __init__(self, plan: Plan) -> None:
        self._machines = tuple(machine_for(rule) for rule in plan.rules)
        # A state is a tuple with the state of each rule; keys are texts, shared places are numbers.
        self._young: dict[str | int, tuple[Any, ...]] = {}
        self._old: dict[str | int, tuple[Any, ...]] = {}
        self._lifetime = max(rule.period * max(2, -(-rule.burst // rule.limit)) for rule in plan.rules)
        self._turn = 0
        self.own = 0
        self.shared = 0

    def knows(self, place: str | int) -> bool:
        return place in self._young or place in self._old

    def is_live(self, place: str | int, now: int) -> bool:
        state = self._young.get(place) or self._old.get(place)
        return state is not None and self._full(state, now) > now

    def drain(self, now: int) -> None:
        """Look at a few old states and forget those that are as good as new."""
        if self._old:
            for _ in range(min(_DRAINED, len(self._old))):
                place, state = self._old.popitem()
                if self._full(state, now) > now:
                    self._young[place] = state
                else:
                    self._count(place, -1)
        elif now >= self._turn:
            self._old, self._young = self._young, {}
            self._turn = now + self._lifetime

    def decide(self, op: Op, place: str | int, cost: int, now: int, patience: int) -> Answer:
        """Decide over all rules, and write only what was decided."""
        known = self._young.get(place) or self._old.get(place)
        states = known if known is not None else (None,) * len(self._machines)
        if op is Op.HIT or op is Op.PEEK:
            due, binding, after = self._take(states, now, cost)
            admitted = due - now <= patience
            if op is Op.HIT and admitted:
                states = after
                self._write(place, states, known)
            return self._answer(states, now, due, binding, admitted=admitted)
        if op is Op.REFUND:
            states = tuple(
                machine.refund(state, now, cost) for machine, state in zip(self._machines, states, strict=True)
            )
        else:
            states = (None,) * len(self._machines)
        self._write(place, states, known)
        return self._answer(states, now, now, 0, admitted=True)

    def _take(self, states: tuple[Any, ...], now: int, cost: int) -> tuple[int, int, tuple[Any, ...]]:
        """Return the earliest instant at which every rule admits, which rule that is, and the states after that."""
        due, binding = now, -1
        while True:
            taken = [machine.take(state, due, cost) for machine, state in zip(self._machines, states, strict=True)]
            later = max(taken)[0] if len(taken) == 1 else max(at for at, _ in taken)
            if later == due:
                return due, binding, tuple(state for _, state in taken)
            # Each rule must count the cost at the one instant at which it is spent.
            binding = next(index for index, (at, _) in enumerate(taken) if at == later)
            due = later

    def _answer(self, states: tuple[Any, ...], now: int, due: int, binding: int, *, admitted: bool) -> Answer:
        looks = [machine.look(state, now) for machine, state in zip(self._machines, states, strict=True)]
        remaining = min(left for left, _ in looks)
        if binding < 0:
            binding = next(index for index, (left, _) in enumerate(looks) if left == remaining)
        return Answer(admitted, binding, remaining, due - now, max(0, max(full for _, full in looks) - now))

    def _full(self, state: tuple[Any, ...], now: int) -> int:
        return max(machine.look(part, now)[1] for machine, part in zip(self._machines, state, strict=True))

    def _write(self, place: str | int, states: tuple[Any, ...], known: tuple[Any, ...] | None) -> None:
        self._old.pop(place, None)
        if any(state is not None for state in states):
            self._young[place] = states
            if known is None:
                self._count(place, 1)
        elif known is not None:
            self._young.pop(place, None)
            self._count(place, -1)

    def _count(self, place: str | int, change: int) -> None:
        if isinstance(place, int):
            self.shared += change
        else:
            self.own += change
