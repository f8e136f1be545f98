"""The store in this process: exact, bounded, without a thread and without scanning.

```
key ──> a state of its own, on the shelf of its limiter
   └──> at max_keys, an unknown key shares one of 65 536 states with the keys of equal hash
```

A shared state has seen at least what each of its keys spent, so junk keys can make it stricter but never free a key
that is limited, and they cost no memory. Python draws a new seed for its hash of texts in each process, so an
outsider cannot choose which keys share a state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock, nanoseconds_of
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.lanes import GIL
from reliakit.stores.algorithms import Machine, OneGcra, machine_for
from reliakit.stores.attempts import AttemptOp, decide
from reliakit.stores.keys import LONGEST_KEY, short
from reliakit.stores.ledger import Ledger
from reliakit.stores.protocol import Answer, Op
from reliakit.stores.shelf import Place, Shelf

if TYPE_CHECKING:
    from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptRules
    from reliakit.stores.protocol import Plan

__all__ = ["MemoryStore", "Spender", "Terms"]

T = TypeVar("T", bound="tuple[Any, ...]")
T_co = TypeVar("T_co", covariant=True)

_HIT = Op.HIT
_SHARED_STATES = 2**16
# A named tuple's own constructor takes three times as long.
_new: Callable[..., Any] = cast("Any", tuple).__new__


class Spender(Protocol[T_co]):
    """Spends 1 for a key in a memory store by the short way."""

    def __call__(self, key: str, is_patient: bool = False, /) -> T_co | None:
        """Return the decision, or None for what `MemoryStore.apply` must decide.

        Args:
            key: Whose state; any object may be given.
            is_patient: Whether `apply` is to decide on what would be denied, too: the caller may wait for a slot.
        """
        ...


class Noted(Protocol):
    """Knows which denials must be reported."""

    @property
    def due(self) -> int:
        """The number of the next one."""
        ...


class Terms(NamedTuple, Generic[T]):
    """How a spender answers and counts.

    Attributes:
        kind: The type of a decision, a named tuple of allowed, limit, remaining, retry_after, reset_after, degraded
            and rule.
        shown: For each rule of the plan, what a decision shows as rule and as limit.
        admitted: Counts what was admitted.
        denied: Counts what was denied.
        noted: Says which denials must be reported: those with a number, counted from 0, of at least `noted.due`.
        report: Called for these: a callable(number, key, cost, nanoseconds to wait, whether a stand-in decided).
    """

    kind: type[T]
    shown: tuple[tuple[object, int], ...]
    admitted: count[int]
    denied: count[int]
    noted: Noted
    report: Callable[[int, str, int, int, bool], None]


class MemoryStore:
    """Keep the state of keys in this process. Safe from any mix of threads and tasks.

    Args:
        max_keys: How many keys have a state of their own. Beyond that, new keys share 65 536 states by their hash
            until others expire: such a key may be limited too early, never too late.
        clock: Where the time comes from; None for the clock of the limiters that use the store.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, *, max_keys: int = 100_000, clock: Clock | None = None) -> None:
        self._max_keys = checks.count("max_keys", max_keys)
        self._clock = SYSTEM_CLOCK if clock is None else checks.clock("clock", clock)
        self._has_own_clock = clock is not None
        self._now = nanoseconds_of(self._clock)
        # Re-entrant: a finaliser may run on this thread while it is held, and give a waiter's slot back here.
        self._lock = threading.RLock()
        self._shelves: dict[str, Shelf] = {}
        self._plans: dict[str, tuple[Machine, Shelf]] = {}
        self._ledgers: dict[str, Ledger] = {}
        renew_locks_after_fork(self, "_lock")

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step; see `Store.apply`."""
        if type(key) is not str or len(key) > LONGEST_KEY:
            key = short(key)
        now = self._now()
        machine, shelf = self._plans.get(plan.space) or self._plan(plan)
        state = shelf.young.get(key)
        if state is not None and op is _HIT and now < shelf.due:
            answer, after = machine.hit(state, now, cost, patience)
            if after is state or (GIL and shelf.put(key, state, after)):
                return answer
        with self._lock:
            if now >= shelf.due:
                shelf.drain(now)
            while True:
                moves = shelf.moves
                place = self._place(shelf, key, now)
                known = shelf.find(place)
                answer, after = machine.decide(op, known, now, cost, patience)
                if after is known or shelf.put(place, known, after, moves):
                    return answer  # else a signal's handler or a finaliser has changed it: decide anew

    def spender(self, plan: Plan, terms: Terms[T]) -> Spender[T]:
        """Return a function that spends 1 for a key by the short way: `apply` with its lookups done beforehand.

        It decides for keys that are found at once, and takes no lock: states are immutable, so the computation comes
        first, and `apply` does it anew if another thread was faster. Comparing and writing are one step, as CPython
        switches threads, runs signal handlers and collects garbage only at calls and backward jumps. Without the GIL
        it decides for no key.

        Args:
            plan: The limiter's rules.
            terms: How to answer and count.

        """
        if not GIL:
            return _decide_nothing
        machine, shelf = self._plans.get(plan.space) or self._plan(plan)
        if isinstance(machine, OneGcra) and machine.scale == 1:
            return self._gcra_spender(machine, shelf, terms)
        step, clock = machine.step, self._now
        kind, shown, admitted, denied, noted, report = terms

        def spend(key: str, is_patient: bool = False, /) -> T | None:  # noqa: PLR0911 - many reasons to ask `apply`
            young = shelf.young
            try:
                state = young[key]
            except (KeyError, TypeError):
                return None
            now = clock()
            if now >= shelf.due or type(key) is not str or (stepped := step(state, now)) is None:
                return None
            is_admitted, binding, left, wait, reset, after = stepped
            limit, amount = shown[binding]
            if not is_admitted:
                if is_patient:
                    return None
                number = next(denied)
                if number >= noted.due:
                    report(number, key, 1, wait, False)
                refusal: T = _new(kind, (False, amount, left, wait / 1e9, reset / 1e9, False, limit))
                return refusal
            try:  # no call from here to the writing
                if young[key] is not state:
                    return None
                young[key] = after
            except KeyError:
                return None
            next(admitted)
            decision: T = _new(kind, (True, amount, left, 0.0, reset / 1e9, False, limit))
            return decision

        return spend

    def _gcra_spender(self, machine: OneGcra, shelf: Shelf, terms: Terms[T]) -> Spender[T]:
        """Do the computations of `OneGcra` in place where nothing needs rounding, in half the time."""
        increment, most = machine.increment, machine.tolerance - machine.increment
        clock = self._now
        kind, ((limit, amount),), admitted, denied, noted, report = terms
        # The answer to all keys with nothing spent, the commonest decision.
        first: T = _new(kind, (True, amount, most // increment, 0.0, increment / 1e9, False, limit))

        def spend(key: str, is_patient: bool = False, /) -> T | None:  # noqa: PLR0911 - many reasons to ask `apply`
            young = shelf.young
            try:
                arrival = young[key]
            except (KeyError, TypeError):
                return None
            now = clock()
            if now >= shelf.due or type(key) is not str:
                return None
            if arrival <= now:
                after, decision = now + increment, first
            else:
                backlog = arrival - now
                if backlog > most:
                    if is_patient:
                        return None
                    wait = backlog - most
                    number = next(denied)
                    if number >= noted.due:
                        report(number, key, 1, wait, False)
                    refusal: T = _new(kind, (False, amount, 0, wait / 1e9, backlog / 1e9, False, limit))
                    return refusal
                after = arrival + increment
                left, reset = (most - backlog) // increment, (backlog + increment) / 1e9
                decision = _new(kind, (True, amount, left, 0.0, reset, False, limit))
            try:  # no call from here to the writing
                if young[key] is not arrival:
                    return None
                young[key] = after
            except KeyError:
                return None
            next(admitted)
            return decision

        return spend

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one atomic step, without ever suspending; see `Store.apply`."""
        return self.apply(op, plan, key, cost, patience)

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, in one atomic step; see `AttemptStore.attempt`.

        If there is no room for keys of their own, accounts, pairs and sources share states like other keys: a success
        then takes back only its own reservation, and an unknown device stays unknown.
        """
        now = self._now()
        with self._lock:
            ledger = self._ledgers.get(rules.space) or self._ledger(rules)
            while True:
                moves = ledger.moves()
                places = self._attempt_places(ledger, attempt, now)
                found = ledger.find(places)
                known = ledger.live(found, now)
                step = op
                if op is AttemptOp.SUCCEED and not all(isinstance(place, str) for place in places[:2]):
                    step = AttemptOp.CANCEL  # the failures of others that share the state must not be forgotten
                answer, after = decide(step, rules, attempt, known, now)
                if after is known or ledger.put(places, found, after, moves):
                    return answer  # else a signal's handler or a finaliser has changed it: decide anew

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, without ever suspending; see `AttemptStore.attempt`."""
        return self.attempt(op, rules, attempt)

    def follow(self, clock: Clock) -> None:
        """Use the clock of a limiter, unless this store was given one of its own.

        Raises:
            ConfigurationError: The store uses another clock already.
        """
        if self._has_own_clock or clock is SYSTEM_CLOCK or clock is self._clock:
            return
        if self._clock is not SYSTEM_CLOCK or self._shelves:
            raise ConfigurationError(
                f"clock: {self!r} counts by {self._clock!r} already and cannot follow {clock!r} too: "
                "make it with MemoryStore(clock=...)"
            )
        self._clock = clock
        self._now = nanoseconds_of(clock)

    def close(self) -> None:
        """Forget every key."""
        with self._lock:
            for shelf in list(self._shelves.values()):
                shelf.clear()

    async def aclose(self) -> None:
        """Forget every key."""
        self.close()

    def __len__(self) -> int:
        """Return how many states are kept, including those that may be forgotten by now."""
        with self._lock:
            return sum([shelf.own + shelf.shared for shelf in list(self._shelves.values())])

    def _plan(self, plan: Plan) -> tuple[Machine, Shelf]:
        machine = machine_for(plan.rules)
        lifetime = max(rule.period * max(2, -(-rule.burst // rule.limit)) for rule in plan.rules)
        shelf = self._shelves.setdefault(plan.space, Shelf(machine.full, lifetime))
        return self._plans.setdefault(plan.space, (machine, shelf))

    def _ledger(self, rules: AttemptRules) -> Ledger:
        def shelf(kind: str, full: Callable[[Any], int], lifetime: int) -> Shelf:
            return self._shelves.setdefault(f"{rules.space} {kind}", Shelf(full, lifetime))

        return self._ledgers.setdefault(rules.space, Ledger(rules, shelf))

    def _place(self, shelf: Shelf, key: str, now: int, more: int = 0) -> Place:
        """Return where the state of this key is kept: under its own name, or under its hash if there is no room.

        So many `more` keys are about to be added too.
        """
        if shelf.find(key) is not None:
            return key
        place = hash(key) % _SHARED_STATES
        if shelf.shared and shelf.live(place, now) is not None:
            return place  # what the key spent there must not be forgotten when there is room again
        if self._has_room(more):
            return key
        for each in list(self._shelves.values()):
            each.drain(now)  # other limiters may have stopped being used
        return place

    def _has_room(self, more: int) -> bool:
        return sum([each.own for each in list(self._shelves.values())]) + more < self._max_keys

    def _attempt_places(self, ledger: Ledger, attempt: Attempt, now: int) -> tuple[Place | None, ...]:
        """Return where the states of account, pair, source and device are kept; None for what is not kept."""
        shelves = ledger.shelves
        for shelf in shelves:
            if now >= shelf.due:
                shelf.drain(now)
        device, more = attempt.device, 0
        places: list[Place | None] = []
        for shelf, key in zip(shelves[:3], attempt[:3], strict=True):
            place = None if key is None else self._place(shelf, key, now, more)
            more += isinstance(place, str) and shelf.find(place) is None
            places.append(place)
        # At most half of the room, so that devices do not push the failures of others into shared states.
        devices = shelves[3]
        has_place = device is not None and (
            devices.find(device) is not None or (devices.own < self._max_keys // 2 and self._has_room(more))
        )
        return (*places, device if has_place else None)

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self)} keys, max_keys={self._max_keys}>"


def _decide_nothing(_: str, __: bool = False, /) -> None:
    """Leave each key to `apply`."""
