"""A rate limiter: how often a key may do something.

```
hit(key, cost) ──> plan: limits as whole numbers ──> store decides over all of them at once ──> Decision
acquire(...)   ──> takes the next free slot ahead of time and sleeps until it comes, first come first served
```

The counting is in `reliakit.stores`; this module adds keys, waiting, shadow mode and events. One limiter serves
threads and tasks at once.

Longer than other modules, because it is one class whose methods stand twice, for threads and for tasks, and the short
way through each is written out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.deadline import checkpoint, remaining
from reliakit.core.errors import ConfigurationError, RateLimitedError
from reliakit.core.events import LimitDecided, LimitDenied, LimiterPresent, LimitWaited
from reliakit.core.spine import Emitter, watch
from reliakit.ratelimit.breaches import BreachLimited
from reliakit.ratelimit.decorator import Spend, limited
from reliakit.ratelimit.limit import Decision, Limit, limit_of, plan_of
from reliakit.ratelimit.outage import GuardedStore, OnStoreError, StandInAnswer
from reliakit.ratelimit.tally import LimiterStats, Tally
from reliakit.ratelimit.waiting import Line, Slot, Waiting
from reliakit.stores.memory import MemoryStore, Spender, Terms
from reliakit.stores.protocol import FOREVER, Answer, Op, Plan, Store

if TYPE_CHECKING:
    from reliakit.core.spine import Listener

__all__ = ["RateLimiter"]

F = TypeVar("F", bound=Callable[..., Any])
_HIT = Op.HIT
_FOREVER = FOREVER / 1e9
_ONE = 1  # compared by identity, which proves that it is an int: 1.0 and True are equal to it too
# Decision(...) takes 300 ns, this takes 100.
_new: Callable[..., Decision] = cast("Any", tuple).__new__


class RateLimiter:
    """Limit how often a key may do something.

    ```python
    limiter = RateLimiter("10/s", "600/min burst 100", name="search")
    if not limiter.hit("user:42"): ...          # or await limiter.ahit("user:42")

    @limiter.limit(key=lambda user: f"user:{user}")
    async def search(user): ...                 # raises RateLimitedError
    ```

    Several limits are all or nothing: if one of them refuses a hit, none of them counts it. One limiter is safe for
    any mix of threads and tasks. A decision in memory takes a third of a microsecond under one gcra limit, and up
    to two microseconds otherwise.

    Args:
        limits: Texts such as "10/s", "600/min burst 100" and "5 per 30s", or `Limit` objects.
        name: Names the limiter in errors and events, and prefixes its keys in a shared store.
        store: Where the counts are kept; None for a `MemoryStore` of its own.
        on_store_error: What decides while a shared store does not answer: "local" asks a memory store of this
            process, "open" allows everything, "closed" denies everything. Such decisions are `degraded`. A circuit
            breaker keeps a dead store from being asked for each decision: it is tried a few times per break.
        store_timeout: Seconds that one decision of a shared store may take. A task is cut off after that. A thread
            cannot be cut off: the store sees the limit as `remaining()` and has to keep to it, and one that answers
            later is counted as failing.
        breach_limit: How many denials a key may run up, such as "20/h"; beyond that it is denied everything until
            there is room for one denial again. None for no such limit. It costs one more question to the store for
            each decision.
        max_waiters: How many threads and tasks may wait in `acquire` at once; beyond that, a call that would have to
            wait is refused.
        enforce: False for shadow mode: everything is counted and reported to listeners, and everything is allowed.
        listeners: Callables that receive this limiter's events.
        clock: What drives waiting, and a `MemoryStore` that was given no clock of its own.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        *limits: str | Limit,
        name: str = "default",
        store: Store | None = None,
        on_store_error: OnStoreError = "local",
        store_timeout: float = 0.05,
        breach_limit: str | Limit | None = None,
        max_waiters: int = 10_000,
        enforce: bool = True,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not limits:
            raise ConfigurationError('a limiter needs at least one limit, such as RateLimiter("10/s")')
        self.name: str = checks.named("name", name)
        self.limits: tuple[Limit, ...] = tuple(limit_of("limits", limit) for limit in limits)
        self._burst = min(limit.rule.burst for limit in self.limits)
        self._plan = plan_of(self.limits, name)
        self._shadow = not checks.choice("enforce", enforce, (True, False))
        self._clock = clock
        self._emitter = Emitter(name, listeners, clock)
        checks.choice("on_store_error", on_store_error, ("local", "open", "closed"))
        checks.seconds("store_timeout", store_timeout)
        self._store = MemoryStore() if store is None else _store(store)
        if isinstance(self._store, MemoryStore):
            self._store.follow(clock)
        _prepare(self._store, self._plan)
        self._on_store_error = f", on_store_error={on_store_error!r}, store_timeout={store_timeout:g}"
        self._guard: GuardedStore | None = None
        if type(self._store) is not MemoryStore:  # which cannot fail; a subclass of it can
            self._guard = GuardedStore(
                self._store,
                on_error=on_store_error,
                timeout=store_timeout,
                burst=self._burst,
                emitter=self._emitter,
                clock=clock,
            )
        asked: Store | GuardedStore | BreachLimited = self._guard or self._store
        self._shown = tuple((limit, limit.amount) for limit in self.limits)
        if breach_limit is not None:
            breaches = limit_of("breach_limit", breach_limit)
            denials = plan_of((breaches,), name, "breaches:")
            _prepare(self._store, denials)
            asked = BreachLimited(self._guard or self._store, denials, len(self.limits))
            self._shown += ((breaches, breaches.amount),)
        self._apply, self._aapply = asked.apply, asked.aapply
        self._is_asked_in_memory = asked is self._store
        self._spend: Spender[Decision] = self._begin
        self._tally = Tally(self)
        self._denials = self._tally.shadow_denied if self._shadow else self._tally.denied
        self._heard = False
        self._waiting = Waiting(checks.count("max_waiters", max_waiters))
        watch(self)

    def hit(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` if the limits allow it. Never waits for a free slot.

        Args:
            key: Whose limit, such as "user:42"; not empty.
            cost: How much to spend, from 1 to the smallest burst of the limits.

        Raises:
            ConfigurationError: The key is not a non-empty text, or the cost is out of range.
        """
        if self._is_short and cost is _ONE:
            spend = self._spend  # read first: `self._spend(key)` would cost twice as much, as it is not a method
            decision = spend(key)
            if decision is not None:
                return decision
        return self._decided(key, cost, self._checked(key, cost))

    async def ahit(self, key: str, cost: int = 1) -> Decision:
        """Spend `cost` if the limits allow it; the twin of `hit` for tasks."""
        if self._is_short and cost is _ONE:  # written out: calling `hit` would make it a tenth slower for tasks
            spend = self._spend
            decision = spend(key)
            if decision is not None:
                return decision
        if self._guard is None:
            return self._decided(key, cost, self._checked(key, cost))
        self._check(key, cost)
        return self._decided(key, cost, await self._aapply(_HIT, self._plan, key, cost, 0))

    def peek(self, key: str) -> Decision:
        """Look without spending: `allowed` says whether a hit of cost 1 would pass."""
        self._check(key, 1)
        return self._decision(self._apply(Op.PEEK, self._plan, key, 1, 0))

    async def apeek(self, key: str) -> Decision:
        """Look without spending; the twin of `peek` for tasks."""
        self._check(key, 1)
        return self._decision(await self._aapply(Op.PEEK, self._plan, key, 1, 0))

    def reset(self, key: str) -> None:
        """Forget everything that this key has spent."""
        self._check(key, 1)
        self._apply(Op.RESET, self._plan, key, 1, 0)

    async def areset(self, key: str) -> None:
        """Forget everything that this key has spent; the twin of `reset` for tasks."""
        self._check(key, 1)
        await self._aapply(Op.RESET, self._plan, key, 1, 0)

    def refund(self, key: str, cost: int = 1) -> None:
        """Give back what was spent in vain, up to the burst. One round trip.

        Args:
            key: Whose limit it was spent from.
            cost: How much to give back.

        Raises:
            ConfigurationError: The key is not a non-empty text, or the cost is out of range.
        """
        self._check(key, cost)
        self._apply(Op.REFUND, self._plan, key, cost, 0)

    async def arefund(self, key: str, cost: int = 1) -> None:
        """Give back what was spent in vain; the twin of `refund` for tasks."""
        self._check(key, cost)
        await self._aapply(Op.REFUND, self._plan, key, cost, 0)

    def acquire(self, key: str, cost: int = 1, timeout: float | None = None) -> Decision:
        """Spend `cost`, waiting in this thread for a free slot if need be. First come, first served.

        The slot is reserved at once, so whether it comes in time is known before the wait begins. A caller that is
        interrupted while it waits gives the slot back: to the store or, if others already wait behind it, to the
        next caller.

        Args:
            key: Whose limit.
            cost: How much to spend, from 1 to the smallest burst of the limits.
            timeout: Seconds to wait at most; None for as long as it takes. A deadline that ends sooner wins.

        Raises:
            RateLimitedError: No slot is free in time, or `max_waiters` are waiting already; `retry_after` says how
                long the wait would have been.
            DeadlineExceededError: The deadline has passed already.
            ConfigurationError: The key is not a non-empty text, or the cost or the timeout is out of range.
        """
        if self._is_short and cost is _ONE:
            free = self._free_now(key, timeout)
            if free is not None:
                return free
        with self._waiting.room(self._patience(key, cost, timeout)) as patience:
            slot = self._vacancy(key, cost, patience)
            try:
                answer = self._apply(_HIT if slot is None else Op.PEEK, self._plan, key, cost, patience)
                decision, wait, slot = self._admitted(key, cost, answer, slot)
                if slot is not None:
                    self._clock.sleep(wait)
                self._emitter.emit(LimitWaited, wait=wait)
            except BaseException:
                unused = 0 if slot is None else self._waiting.leave(slot)
                if slot is not None and unused:
                    self._refunder(slot.line).apply(Op.REFUND, self._plan, key, unused, 0)
                raise
            if slot is not None:
                self._waiting.serve(slot)
        return decision

    async def aacquire(self, key: str, cost: int = 1, timeout: float | None = None) -> Decision:
        """Spend `cost`, suspending this task until a slot is free if need be; the twin of `acquire` for tasks."""
        if self._is_short and cost is _ONE:
            free = self._free_now(key, timeout)
            if free is not None:
                return free
        with self._waiting.room(self._patience(key, cost, timeout)) as patience:
            slot = self._vacancy(key, cost, patience)
            try:
                asking = self._aapply(_HIT if slot is None else Op.PEEK, self._plan, key, cost, patience)
                if self._guard is None or slot is not None:
                    answer = await asking
                else:
                    answer = await self._waiting.granted(asking, partial(self._decline, key, cost))
                decision, wait, slot = self._admitted(key, cost, answer, slot)
                if slot is not None:
                    await self._clock.asleep(wait)
                self._emitter.emit(LimitWaited, wait=wait)
            except BaseException:
                unused = 0 if slot is None else self._waiting.leave(slot)
                if slot is not None and unused:
                    await self._refunder(slot.line).aapply(Op.REFUND, self._plan, key, unused, 0)
                raise
            if slot is not None:
                self._waiting.serve(slot)
        return decision

    def limit(self, *, key: Callable[..., str], cost: int | Callable[..., int] = 1) -> Callable[[F], F]:
        """Decorate a function so that each call spends from a key made of its arguments.

        A denied call raises `RateLimitedError`, and the function does not run.

        Args:
            key: Called with the call's arguments, returns the key.
            cost: What a call costs, or a callable that computes it from the call's arguments.

        Raises:
            ConfigurationError: At decoration, if the function, the key or the cost cannot be used.
        """
        if not callable(key) or inspect.iscoroutinefunction(key):
            raise ConfigurationError(f"key must be a plain function of the call's arguments, got {checks.shown(key)}")
        if not callable(cost):
            self._check("any", cost)

        def decorate(fn: F) -> F:
            return cast("F", limited(fn, Spend(self, key, cost), f"limiter {self.name!r}"))

        return decorate

    def stats(self) -> LimiterStats:
        """Return what the limiter has decided so far: admitted, denied, degraded, and the keys denied most often."""
        return self._tally.stats(len(self._waiting))

    def listeners_changed(self) -> None:
        """Remember whether anybody listens to decisions; see `reliakit.core.spine.watch`."""
        self._heard = self._emitter.hears(LimitDecided)
        self._hears_denials = self._emitter.hears(LimitDenied)
        self._hears_waits = self._emitter.hears(LimitWaited)
        self._tally.report_all(self._hears_denials)
        self._is_short = self._is_asked_in_memory and not self._heard and not self._shadow
        self._emitter.introduce(LimiterPresent, read=self._tally.read)

    def _checked(self, key: str, cost: int = 1) -> Answer:
        self._check(key, cost)
        return self._apply(_HIT, self._plan, key, cost, 0)

    def _free_now(self, key: str, timeout: float | None) -> Decision | None:
        """Spend 1 the short way if a slot is free; a queue's slots are not, they are spent already."""
        if timeout is not None:
            checks.seconds("timeout", timeout, zero=True)
        checkpoint()
        spend = self._spend
        decision = spend(key, True)
        if decision is not None and self._hears_waits:
            self._emitter.emit(LimitWaited, wait=0.0)
        return decision

    def _begin(self, _: str, __: bool = False, /) -> None:
        """Send the first hit the long way, which settles the store's clock; later hits take the short way."""
        tally = self._tally
        terms = Terms(Decision, self._shown, tally.admitted, self._denials, tally, self._report)
        self._spend = cast("MemoryStore", self._store).spender(self._plan, terms)

    def _check(self, key: object, cost: object) -> None:
        if not isinstance(key, str) or not key:
            raise ConfigurationError(
                f"limiter {self.name!r} needs a non-empty text as key, got {checks.shown(key)}: "
                "all would share an empty one"
            )
        if isinstance(cost, bool) or not isinstance(cost, int) or cost < 1:
            raise ConfigurationError(f"cost must be a whole number of at least 1, got {checks.shown(cost)}")
        if cost > self._burst:
            raise ConfigurationError(
                f"cost {checks.shown(cost)} can never be allowed by limiter {self.name!r}, "
                f"whose burst is {self._burst}: raise the burst or split the call"
            )

    def _patience(self, key: str, cost: int, timeout: float | None) -> int:
        """Return how many nanoseconds an acquire may wait."""
        self._check(key, cost)
        if timeout is not None:
            timeout = checks.seconds("timeout", timeout, zero=True)
        checkpoint()
        if self._shadow:
            return 0
        patience = min([seconds for seconds in (timeout, remaining()) if seconds is not None], default=inf)
        return round(patience * 1e9) if patience < _FOREVER else FOREVER

    def _vacancy(self, key: str, cost: int, patience: int) -> Slot | None:
        now = self._clock.monotonic()
        return self._waiting.take(Line(key, is_stand_in=False), cost, now, now + patience / 1e9)

    def _admitted(
        self, key: str, cost: int, answer: Answer, slot: Slot | None
    ) -> tuple[Decision, float, Slot | None]:
        """Return the decision, and how long to wait for which slot, or raise RateLimitedError."""
        now = self._clock.monotonic()
        if slot is not None:
            wait = max(0.0, slot.due - now)
            return self._decided(key, cost, answer._replace(admitted=True, remaining=0)), wait, slot
        line = Line(key, isinstance(answer, StandInAnswer))
        decision = self._decided(key, cost, answer)
        wait = answer.wait / 1e9
        if not decision:
            sooner = self._waiting.vacant(line, cost, now)
            if sooner is not None:
                decision = decision._replace(retry_after=min(wait, sooner - now))
            raise self.refusal(decision)
        if answer.admitted and answer.wait:
            slot = self._waiting.join(line, cost, now + wait)
        return decision, wait, slot

    async def _decline(self, key: str, cost: int, answer: Answer) -> None:
        """Give back the slot of a task that left before it was granted, as if it had waited for it."""
        line = Line(key, isinstance(answer, StandInAnswer))
        unused = self._waiting.leave(self._waiting.join(line, cost, self._clock.monotonic() + answer.wait / 1e9))
        if unused:
            await self._refunder(line).aapply(Op.REFUND, self._plan, key, unused, 0)

    def _refunder(self, line: Line) -> Store | GuardedStore:
        """Return the store that granted a slot: the shared one or its stand-in."""
        guard = self._guard
        return self._store if guard is None else guard.local if line.is_stand_in else guard

    def _decided(self, key: str, cost: int, answer: Answer) -> Decision:
        decision = self._decision(answer)
        if decision.degraded:
            next(self._tally.degraded)
        if not answer.admitted:
            number = next(self._denials)
            if number >= self._tally.due:
                self._report(number, key, cost, answer.wait, decision.degraded)
        else:
            next(self._tally.admitted)
            if self._heard:
                self._tell(LimitDecided, key, cost, 0, degraded=decision.degraded)
        return decision

    def _report(self, number: int, key: str, cost: int, wait: int, degraded: bool) -> None:
        """Note a denial whose number has come to the tally's `due`, and tell whoever listens."""
        self._tally.note(key, number)
        if self._hears_denials:
            self._tell(LimitDenied, key, cost, wait, degraded=degraded)

    def _tell(self, kind: type[LimitDecided], key: str, cost: int, wait: int, *, degraded: bool) -> None:
        is_denied = kind is LimitDenied
        self._emitter.emit(
            kind,
            key=key,
            allowed=self._shadow or not is_denied,
            denied=is_denied,
            enforced=not self._shadow,
            degraded=degraded,
            cost=cost,
            retry_after=wait / 1e9,
        )

    def _decision(self, answer: Answer) -> Decision:
        admitted, binding, left, wait, reset = answer
        limit, _ = self._shown[binding]
        degraded = type(answer) is StandInAnswer
        if admitted or self._shadow:
            return _new(Decision, (True, limit.amount, left, 0.0, reset / 1e9, degraded, limit))
        return _new(Decision, (False, limit.amount, left, wait / 1e9, reset / 1e9, degraded, limit))

    def refusal(self, decision: Decision) -> RateLimitedError:
        """Return the error for a decision that denied."""
        # The key may be personal data, so the message does not show it.
        return RateLimitedError(
            f"limiter {self.name!r} allows {decision.rule}; the next try can succeed in {decision.retry_after:.3g} s",
            name=self.name,
            retry_after=decision.retry_after,
            decision=decision,
        )

    def __repr__(self) -> str:
        written = ", ".join(map(str, self.limits))
        written += "".join(f", breach_limit={str(limit)!r}" for limit, _ in self._shown[len(self.limits) :])
        shadow = ", enforce=False" if self._shadow else ""
        return f"<RateLimiter {self.name!r} {written}{shadow}, store={self._store!r}{self._on_store_error}>"


def _prepare(store: Store, plan: Plan) -> None:
    """Have a store refuse now what it would refuse at each decision, if it can tell."""
    prepare = getattr(store, "prepare", None)
    if callable(prepare):
        prepare(plan)


def _store(store: object) -> Store:
    if isinstance(store, type) or not all(callable(getattr(store, name, None)) for name in ("apply", "aapply")):
        raise ConfigurationError(f"store must be a store such as MemoryStore(), got {checks.shown(store)}")
    return cast("Store", store)
