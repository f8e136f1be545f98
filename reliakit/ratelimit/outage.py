"""A store that may fail, and what decides while it does.

```
apply ──> breaker ── closed ──> store ── answers in time ──> its answer
             │                    └── raises, or is late ──> counted by the breaker ─┐
             └── open ───────────────────────────────────────────────────────────────┴──> the stand-in's answer
```

The breaker makes a dead store cost a few attempts for each break instead of one for each decision. The store gets its
time limit as a deadline: a task is cut off when it has passed; a thread cannot be cut off, so a store for threads
reads `remaining()`, and one that answers late is counted as failing.
"""

from __future__ import annotations

import threading
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, TypeVarTuple, cast

from reliakit.core.backoff import Backoff
from reliakit.core.deadline import Budget, binding, current, deadline, remaining
from reliakit.core.errors import ConfigurationError, StoreError
from reliakit.core.events import StoreFailed, StoreRecovered
from reliakit.core.fork import renew_locks_after_fork
from reliakit.resilience.breaker import CircuitBreaker
from reliakit.stores.attempts import AttemptAnswer, AttemptOp, Claim
from reliakit.stores.memory import MemoryStore
from reliakit.stores.protocol import Answer, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Emitter
    from reliakit.resilience.circuit import Ticket
    from reliakit.stores.attempts import Attempt, AttemptRules, AttemptStore
    from reliakit.stores.protocol import Plan, Store

__all__ = ["GuardedStore", "OnStoreError", "StandInAnswer", "StandInAttempt"]

Q = TypeVarTuple("Q")
T = TypeVar("T")

OnStoreError: TypeAlias = Literal["local", "open", "closed"]

_FAILURES = 3
_BREAK = Backoff(base=1.0, cap=30.0, jitter=0.2)
# The least wait that a denial names while nobody knows when the store comes back, in seconds.
_SHORTEST_RETRY = 1.0
# How early an event loop's timer may fire, in seconds.
_MOMENT = 0.001


class StandInAnswer(Answer):
    """An answer that the store did not give."""

    __slots__ = ()


class StandInAttempt(AttemptAnswer):
    """An answer to an attempt to log in that the store did not give."""

    __slots__ = ()


class _StoreBreaker(CircuitBreaker):
    """The breaker before a store. `StoreFailed` reports an outage, so it is logged at DEBUG only."""

    __slots__ = ()
    _within = "store"


class GuardedStore:
    """Ask a store, and a stand-in when it does not answer. Safe from threads and tasks, if the store is.

    Args:
        store: The store.
        on_error: What decides instead: "local" asks a memory store of this process, "open" admits, "closed" denies.
        timeout: Seconds that one decision of the store may take.
        burst: How much "open" reports as left.
        emitter: Emits StoreFailed and StoreRecovered for the limiter.
        clock: Measures the timeout and drives the breaker and the stand-in.
    """

    def __init__(
        self, store: Store, *, on_error: OnStoreError, timeout: float, burst: int, emitter: Emitter, clock: Clock
    ) -> None:
        self._store = store
        self._on_error = on_error
        self._timeout = timeout
        self._burst = burst
        self._emitter = emitter
        self._clock = clock
        self._keeps_time: bool = getattr(store, "keeps_time", False)
        self._breaker = _StoreBreaker(
            f"{emitter.name} store", failure_threshold=_FAILURES, reset_timeout=_BREAK, clock=clock
        )
        self._lock = threading.RLock()
        self._failed_at: float | None = None
        # A call that began before the last change of state says nothing about the state of now.
        self._changed_at = -inf
        self.local: MemoryStore = MemoryStore(clock=clock)
        renew_locks_after_fork(self, "_lock")

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide like `Store.apply`. Raises nothing that is the store's fault."""
        answer = self._asked(self._store.apply, op, plan, key, cost, patience)
        return self._told(answer, op, plan, key, cost, patience)

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide like `Store.aapply`; the twin of `apply` for tasks."""
        answer = await self._aasked(self._store.aapply, op, plan, key, cost, patience)
        return self._told(answer, op, plan, key, cost, patience)

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide like `AttemptStore.attempt`. Raises nothing that is the store's fault."""
        answer = self._asked(cast("AttemptStore", self._store).attempt, op, rules, attempt)
        return self._told_of_attempt(answer, op, rules, attempt)

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide like `AttemptStore.aattempt`; the twin of `attempt` for tasks."""
        answer = await self._aasked(cast("AttemptStore", self._store).aattempt, op, rules, attempt)
        return self._told_of_attempt(answer, op, rules, attempt)

    def _asked(self, ask: Callable[[*Q], T], *question: *Q) -> T | None:
        """Return the store's answer, or None if the breaker holds it back or it does not answer."""
        ticket = self._breaker.offer()
        if ticket is None:
            return None
        began = self._clock.monotonic()
        try:
            # `with deadline()` written out, because it costs a decision in Redis 2 %.
            budget = Budget(self._timeout, self._clock, binding())
            current.set(budget)
            try:
                answer = ask(*question)
            finally:
                budget.over = True
                current.set(binding())
        except BaseException as error:
            if not self._is_its_fault(ticket, began, error):
                raise
            return None
        self._answered(ticket, began)
        return answer

    async def _aasked(self, ask: Callable[[*Q], Awaitable[T]], *question: *Q) -> T | None:
        ticket = self._breaker.offer()
        if ticket is None:
            return None
        began = self._clock.monotonic()
        try:
            if self._keeps_time:
                budget = Budget(self._timeout, self._clock, binding())
                current.set(budget)
                try:
                    answer = await ask(*question)
                finally:
                    budget.over = True
                    current.set(binding())
            else:
                async with deadline(self._timeout, clock=self._clock):
                    answer = await ask(*question)
        except BaseException as error:
            if not self._is_its_fault(ticket, began, error):
                raise
            return None
        self._answered(ticket, began)
        return answer

    def _is_its_fault(self, ticket: Ticket, began: float, error: BaseException) -> bool:
        """Count what the store raised, and return whether the stand-in decides.

        It does not after wrong use, a cancellation, or when the caller's own deadline cut the store short.
        """
        left = remaining()
        if isinstance(error, TimeoutError | StoreError) and left is not None and left < _MOMENT:
            self._breaker.settle(ticket, "ignored", None)
            return isinstance(error, StoreError)
        self._breaker.leave(ticket, error, None)
        if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
            return False
        self._failed(began, type(error.__cause__ or error).__name__)
        return True

    def _answered(self, ticket: Ticket, began: float) -> None:
        took = self._clock.monotonic() - began
        if took > self._timeout:
            self._breaker.settle(ticket, "failure", None)
            self._failed(began, f"answered after more than {self._timeout:g} s")
        else:
            self._breaker.leave(ticket, None, None)
            self._recovered(began)

    def _failed(self, began: float, reason: str) -> None:
        now = self._clock.monotonic()
        with self._lock:
            if self._failed_at is not None or began < self._changed_at:
                return
            self._failed_at = self._changed_at = now
        self._emitter.emit(StoreFailed, store=type(self._store).__name__, reason=reason)

    def _recovered(self, began: float) -> None:
        if self._failed_at is None:
            return
        now = self._clock.monotonic()
        with self._lock:
            failed_at = self._failed_at
            if failed_at is None or began < self._changed_at:
                return
            self._failed_at, self._changed_at = None, now
        self._emitter.emit(StoreRecovered, store=type(self._store).__name__, outage=now - failed_at)

    def _told(self, answer: Answer | None, op: Op, plan: Plan, key: str, cost: int, patience: int) -> Answer:  # noqa: PLR0917 - a store's own arguments
        if answer is None:
            return self._instead(op, plan, key, cost, patience)
        # What was spent in the stand-in during an outage must not outlive a reset.
        if op is Op.RESET:
            self.local.apply(op, plan, key, 1)
        return answer

    def _instead(self, op: Op, plan: Plan, key: str, cost: int, patience: int) -> StandInAnswer:
        if self._on_error == "local":
            return StandInAnswer(*self.local.apply(op, plan, key, cost, patience))
        if self._on_error == "open":
            return StandInAnswer(admitted=True, binding=0, remaining=self._burst, wait=0, reset=0)
        wait = self._break()
        return StandInAnswer(admitted=False, binding=0, remaining=0, wait=wait, reset=wait)

    def _told_of_attempt(
        self, answer: AttemptAnswer | None, op: AttemptOp, rules: AttemptRules, attempt: Attempt
    ) -> AttemptAnswer:
        if answer is not None:
            # A reset or a success also clears what the stand-in counted during an outage.
            if op in {AttemptOp.RESET, AttemptOp.SUCCEED} and len(self.local):
                self.local.attempt(op, rules, attempt._replace(device=None, claim=Claim.NOTHING))
            return answer
        if self._on_error == "local":
            # A claim was counted by the store, so it cannot be given back to the stand-in.
            return StandInAttempt(*self.local.attempt(op, rules, attempt._replace(claim=Claim.NOTHING)))
        if self._on_error == "open":
            return StandInAttempt(True, "", 0, 0, Claim.NOTHING)
        return StandInAttempt(False, "", self._break(), 0, Claim.NOTHING)

    def _break(self) -> int:
        """Return the nanoseconds until the store is tried again."""
        return round(max(self._breaker.retry_after or 0.0, _SHORTEST_RETRY) * 1e9)

    def __repr__(self) -> str:
        return repr(self._store)
