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
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.stores.algorithms import machine_for
from reliakit.stores.protocol import Answer, Op

if TYPE_CHECKING:
    from reliakit.stores.protocol import Plan

__all__ = ["MemoryStore"]

_HIT = Op.HIT
_SHARED_STATES = 2**16
# How many old states are looked at with each decision; 1 would do, 4 drains a generation well before its end.
_DRAINED = 4


class MemoryStore:
    """Keep the state of keys in this process. Safe from any mix of threads and tasks; a decision takes about 1 us.

    Args:
        max_keys: How many keys have a state of their own. Beyond that, new keys share 65 536 states by their hash
            until others expire: such a key may be limited too early, never too late.
        clock: Where time comes from; None for the clock of the limiters that use it.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Clock | None = None) -> None:
        self._max_keys = checks.count("max_keys", max_keys)
        self._clock = SYSTEM_CLOCK if clock is None else checks.clock("clock", clock)
        self._has_own_clock = clock is not None
        # Re-entrant: any allocation may collect garbage, and that may close a waiter that gives its slot back here.
        self._lock = threading.RLock()
        self._shelves: dict[str, _Shelf] = {}
        renew_locks_after_fork(self, "_lock")

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step; see `Store.apply`."""
        # Rounded, not cut: a float that should be 0.3 s may be a hair less.
        now = round(self._clock.monotonic() * 1e9)
        with self._lock:
            shelf = self._shelves.get(plan.space) or self._shelf(plan)
            if shelf.old or now >= shelf.turn:
                shelf.drain(now)
            young = shelf.young
            state = young.get(key)
            if state is not None and op is _HIT:
                answer, after = shelf.machine.hit(state, now, cost, patience)
                if young.get(key) is state:  # else garbage was collected that changed it: decide anew
                    young[key] = after
                    return answer
            return shelf.decide(op, self._place(shelf, key, now), cost, now, patience)

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step, without ever suspending; see `Store.apply`."""
        return self.apply(op, plan, key, cost, patience)

    def follow(self, clock: Clock) -> None:
        """Take the clock of a limiter, unless this store was given one of its own.

        Raises:
            ConfigurationError: It follows another clock already.
        """
        if self._has_own_clock or clock is SYSTEM_CLOCK or clock is self._clock:
            return
        if self._clock is not SYSTEM_CLOCK or self._shelves:
            raise ConfigurationError(
                f"clock: {self!r} counts by {self._clock!r} already and cannot follow {clock!r} too: "
                "make it with MemoryStore(clock=...)"
            )
        self._clock = clock

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
            return sum([shelf.own + shelf.shared for shelf in list(self._shelves.values())])

    def _shelf(self, plan: Plan) -> _Shelf:
        return self._shelves.setdefault(plan.space, _Shelf(plan))

    def _place(self, shelf: _Shelf, key: str, now: int) -> str | int:
        """Return where the state of this key is kept: under its own name, or under its hash when there is no room."""
        if shelf.find(key) is not None:
            return key
        place = hash(key) % _SHARED_STATES
        if shelf.shared and shelf.is_live(place, now):
            return place  # what it may have spent there must not be forgotten because there is room again
        shelves = list(self._shelves.values())
        if sum([each.own for each in shelves]) < self._max_keys:
            return key
        for each in shelves:
            each.drain(now)  # other limiters may have fallen silent
        return place

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self)} keys, max_keys={self._max_keys}>"


class _Shelf:
    """The states of one plan. Its store's lock is held around every call."""

    __slots__ = ("_lifetime", "machine", "old", "own", "shared", "turn", "young")

    def __init__(self, plan: Plan) -> None:
        self.machine = machine_for(plan.rules)
        # Keys are texts, shared places are numbers; no state is None.
        self.young: dict[str | int, Any] = {}
        self.old: dict[str | int, Any] = {}
        self.own = 0
        self.shared = 0
        self.turn = 0
        self._lifetime = max(rule.period * max(2, -(-rule.burst // rule.limit)) for rule in plan.rules)

    def find(self, place: str | int) -> Any:
        state = self.young.get(place)
        return self.old.get(place) if state is None else state

    def is_live(self, place: str | int, now: int) -> bool:
        state = self.find(place)
        return state is not None and self.machine.look(state, now)[1] > now

    def drain(self, now: int) -> None:
        """Look at a few old states and forget those that are as good as new, or begin a new generation."""
        for _ in range(_DRAINED):
            try:
                place, state = self.old.popitem()
            except KeyError:
                break
            is_live = self.machine.look(state, now)[1] > now
            if not is_live or self.young.setdefault(place, state) is not state:
                self._count(place, -1)
        if not self.old and now >= self.turn:
            self.turn = now + self._lifetime
            self.old, self.young = self.young, {}

    def decide(self, op: Op, place: str | int, cost: int, now: int, patience: int) -> Answer:
        """Decide, and write only what was decided."""
        while True:
            known = self.find(place)
            answer, state = self._decided(op, known, cost, now, patience)
            if self.find(place) is known:  # else garbage was collected that changed it: decide anew
                break
        if state is known:
            return answer
        if state is not None:
            self.young[place] = state
        else:
            self.young.pop(place, None)
        self.old.pop(place, None)
        self._count(place, (state is not None) - (known is not None))
        return answer

    def _decided(self, op: Op, known: Any, cost: int, now: int, patience: int) -> tuple[Answer, Any]:
        """Return the answer and the state after it."""
        if op is Op.HIT:
            return self.machine.hit(known, now, cost, patience)
        if op is Op.PEEK:
            answer, _ = self.machine.hit(known, now, cost, patience)
            left, full = self.machine.look(known, now)
            return answer._replace(remaining=left, reset=max(0, full - now)), known
        # Many slots given back at once may come to more than could ever be spent at once.
        state = self.machine.refund(known, now, cost) if op is Op.REFUND else None
        left, full = self.machine.look(state, now)
        return Answer(True, 0, left, 0, max(0, full - now)), state

    def _count(self, place: str | int, change: int) -> None:
        if isinstance(place, int):
            self.shared += change
        else:
            self.own += change
