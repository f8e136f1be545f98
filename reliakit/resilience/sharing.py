"""Breakers in many processes that share their verdicts, each counting for itself.

```
breaker opens ──> ballot ──> store counts ── quorum of processes ──> every process opens
the break ends ──> one process gets the lease to probe ── success ──> every process closes
```

A call never waits for the store and costs nothing more: one thread asks it every `interval` seconds, and at once when
a breaker opens or closes. While the store is down, each process decides alone, as if there were no sharing. One bad
process harms nobody else: it takes several that agree, as in Envoy's outlier detection by many hosts.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Self, TypeVar

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError, StoreError
from reliakit.core.events import CircuitChanged, StoreFailed, StoreRecovered
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.core.spine import Emitter, subscribe
from reliakit.core.threads import Bell, start
from reliakit.resilience.agreement import Agreement, Order
from reliakit.resilience.breaker import CircuitBreaker
from reliakit.stores.ballots import Ballot, BallotBox, Count

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Listener
    from reliakit.resilience.circuit import State

__all__ = ["SharedBreakers", "SharedStatus"]

_log = logging.getLogger("reliakit")
B = TypeVar("B", bound=CircuitBreaker)

_LONGEST_PAUSE = 30.0
# In rounds: a process that was not heard of for so long counts as dead, and its lease is over.
_LIFETIME = 5
_LEASE = 3
_HOLD = 5
_SHORTEST = 0.05


@dataclass(frozen=True, slots=True)
class SharedStatus:
    """How the processes that share one circuit stand.

    Attributes:
        name: The breaker's name.
        state: Its state in this process.
        members: How many processes share it, as last heard.
        votes: How many of them say that it is open.
        quorum: How many votes are needed.
        is_shared: Whether it is open by their agreement.
        is_degraded: Whether the store did not answer last time, so that this process decides alone.
    """

    name: str
    state: State
    members: int
    votes: int
    quorum: int
    is_shared: bool
    is_degraded: bool


class SharedBreakers:
    """Let the breakers of many processes open and close together, through a store.

    ```python
    payments = CircuitBreaker("payments")
    sharing = SharedBreakers(RedisStore("redis://localhost"))
    sharing.add(payments)
    with sharing:                           # or async with; starts the one thread
        serve()
    ```

    Breakers of the same name share. Each counts for itself; once a quorum of the living processes has opened, all
    open, one of them probes at a time, and its success closes all. A process hears of a change within `interval`
    seconds. Calls never wait for the store; while it is down, each process decides alone.

    Args:
        store: A RedisStore or PostgresStore made from an address, or from a client for threads.
        quorum: How many processes must have opened; None for two or 30 % of the living, whichever is more. With 1,
            the first one opens all.
        interval: Seconds between two rounds, at least 0.05.
        member: The name of this process among the others; by default made from host, process id and a random part.
        listeners: Callables that receive StoreFailed and StoreRecovered.
        clock: Provides the time of events.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        store: BallotBox,
        *,
        quorum: int | None = None,
        interval: float = 1.0,
        member: str | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not callable(getattr(store, "vote", None)):
            raise ConfigurationError(f"store must be one that processes share, such as a RedisStore, got {store!r}")
        if not getattr(store, "serves_threads", True):
            raise ConfigurationError(
                f"store must be made from an address or from a client for threads, as a thread asks it, got {store!r}"
            )
        self._store = store
        self.interval: float = checks.seconds("interval", interval)
        if self.interval < _SHORTEST:
            raise ConfigurationError(f"interval must be at least {_SHORTEST:g} s, got {interval!r}")
        self._ballot = Ballot(
            circuit="",
            member=_new_member() if member is None else checks.named("member", member),
            lifetime=_LIFETIME * self.interval,
            remaining=0.0,
            era=-1,
            wants_lease=False,
            lease=_LEASE * self.interval,
            has_closed=False,
            quorum=0 if quorum is None else checks.count("quorum", quorum),
        )
        self._emitter = Emitter("sharing", listeners, clock)
        self._clock = clock
        self._rounds: dict[str, _Round] = {}
        self._lock = threading.RLock()
        self._round = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop, self._wake = Bell(), Bell()
        self._failed_at: float | None = None
        self._failures = 0
        self._pauses = Backoff(2 * self.interval, cap=max(self.interval, _LONGEST_PAUSE), jitter=0.2)
        # Seconds from round to round: the interval, or longer if asking for many circuits takes longer.
        self._pace = self._last_took = self.interval
        renew_locks_after_fork(self, "_lock", "_round")
        tell_after_fork(self, "_forget_thread")

    def add(self, breaker: B) -> B:
        """Let a breaker take part under its name, and return it.

        Raises:
            ConfigurationError: It is not a circuit breaker, or another breaker of the same name takes part already.
        """
        if not isinstance(breaker, CircuitBreaker):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without types
            raise ConfigurationError(f"add takes a CircuitBreaker, got {breaker!r}")
        with self._lock:
            known = self._rounds.get(breaker.name)
            if known is not None and known.breaker is not breaker:
                raise ConfigurationError(f"another breaker named {breaker.name!r} shares here: give it another name")
            self._rounds.setdefault(breaker.name, _Round(breaker, Agreement(self.interval, _HOLD * self.interval)))
        self._wake.set()
        return breaker

    def open(self) -> None:
        """Start the thread that votes and listens. Calling it again changes nothing. A forked child opens anew."""
        with self._lock:
            if self._thread is not None:
                return
            self._stop, self._wake = bells = Bell(), Bell()
            thread = threading.Thread(target=self._run, args=bells, name="reliakit-sharing", daemon=True)
            heard = subscribe(self._hear, CircuitChanged)
            try:
                start(thread)
                self._heard, self._thread = heard, thread
            except BaseException:  # the thread could not start, or Ctrl-C: a caller that fails to open does not close
                self._stop.set()
                self._wake.set()
                heard.close()
                raise

    def close(self) -> None:
        """Stop the thread. Breakers stay as they are and each decides for itself again. The store stays open."""
        with self._lock:
            thread = self._thread
            if thread is None:
                return
            self._stop.set()
            self._wake.set()
            self._heard.close()
            self._thread = None
        if thread is not threading.current_thread():
            thread.join()

    async def aclose(self) -> None:
        """Stop the thread like `close`, without blocking the event loop."""
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        await asyncio.to_thread(self.close)

    def force_open(self, name: str, seconds: float | None = None) -> None:
        """Force a circuit open in every process, for `seconds` or until `release`. One round trip.

        Args:
            name: The name of the breakers; this process need not have one.
            seconds: How long, after which probes decide; None for no end.

        Raises:
            StoreError: The store cannot be reached, so nothing was changed.
        """
        self._store.force(checks.named("name", name), inf if seconds is None else checks.seconds("seconds", seconds))
        self._wake.set()

    def release(self, name: str) -> None:
        """Release a circuit that `force_open` has opened; it closes in every process. One round trip.

        Raises:
            StoreError: The store cannot be reached, so nothing was changed.
        """
        self._store.force(checks.named("name", name), 0.0)
        self._wake.set()

    def status(self) -> tuple[SharedStatus, ...]:
        """Return how the processes stand on each circuit, as last heard. No round trip."""
        with self._lock:
            rounds = tuple(self._rounds.copy().values())
        is_degraded = self._failed_at is not None
        return tuple(one.status(is_degraded=is_degraded) for one in rounds)

    def _hear(self, event: CircuitChanged) -> None:
        if event.name in self._rounds:
            self._wake.set()

    def _run(self, stop: Bell, wake: Bell) -> None:
        while not stop.is_set():
            if self._refresh(stop):
                wake.wait(self.interval)
            else:
                # Breakers do not end this pause: one that opens all the time must not query a dead store as often.
                stop.wait(self._pauses.delay(max(1, self._failures), self._clock.random))
            wake.clear()

    def refresh(self) -> bool:
        """Vote and listen now, one round trip for each breaker; return whether the store answered.

        The thread does this every `interval` seconds. Call it in programs without threads, and in tests.
        """
        return self._refresh(Bell())

    def _refresh(self, stop: Bell) -> bool:
        with self._round:
            is_up = self._vote(stop)
            if not is_up:
                for one in tuple(self._rounds.copy().values()):
                    one.go_alone(self._clock)
        return is_up

    def _vote(self, stop: Bell) -> bool:
        with self._lock:
            rounds = tuple(self._rounds.copy().values())
        began, pace = self._clock.monotonic(), self._pace
        ballot = self._ballot._replace(lifetime=_LIFETIME * pace, lease=_LEASE * pace)
        try:
            for one in rounds:
                if stop.is_set():
                    return True
                one.go(self._store, ballot, self._clock, pace)
        except Exception as error:  # noqa: BLE001 - a store may be somebody else's: the breakers decide alone
            self._failed(error)
            return False
        # The shorter of the last two, because the process may have been suspended during one of them.
        took, self._last_took = self._last_took, self._clock.monotonic() - began
        self._pace = max(self.interval, min(took, self._last_took))
        self._failures = 0
        if self._failed_at is not None:
            since, self._failed_at = self._failed_at, None
            outage = self._clock.monotonic() - since
            self._emitter.emit(StoreRecovered, store=type(self._store).__name__, outage=outage)
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failed_at is not None:
            return
        self._failed_at = self._clock.monotonic()
        if not isinstance(error, StoreError):
            _log.error("The store that breakers share raised; each process decides alone", exc_info=error)
        reason = type(error.__cause__ or error).__name__
        self._emitter.emit(StoreFailed, store=type(self._store).__name__, reason=reason)

    def _forget_thread(self) -> None:
        """In a forked child, forget the thread, which does not exist there, and take a new member name."""
        if self._thread is not None:
            self._heard.close()
        self._thread = None
        self._wake = Bell()
        self._ballot = self._ballot._replace(member=_new_member())

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        names = ", ".join(sorted(self._rounds.copy()))
        state = "closed" if self._thread is None else "open, alone" if self._failed_at is not None else "open"
        return (
            f"<SharedBreakers {names or 'of none'} through {self._store!r}, {state}, "
            f"quorum={self._ballot.quorum or None}, interval={self.interval:g}>"
        )


class _Round:
    """One breaker, its part in the agreement, and what it last heard."""

    __slots__ = ("_agreement", "_count", "breaker")

    def __init__(self, breaker: CircuitBreaker, agreement: Agreement) -> None:
        self.breaker: CircuitBreaker = breaker
        self._agreement = agreement
        self._count: Count | None = None

    def go(self, store: BallotBox, ballot: Ballot, clock: Clock, pace: float) -> None:
        """Vote, and do what the count says.

        Args:
            store: Where to vote.
            ballot: What the ballots of all circuits have in common.
            clock: Measures how late the count comes.
            pace: Seconds from round to round.
        """
        breaker, agreement = self.breaker, self._agreement
        agreement.interval, agreement.hold = pace, _HOLD * pace
        state, asked_at = breaker.state, clock.monotonic()
        own = agreement.ballot(ballot._replace(circuit=breaker.name), state, breaker.retry_after, asked_at)
        count = store.vote(own)
        now = clock.monotonic()
        self._count = count = count.aged(now - asked_at, own.lease)
        if breaker.state is state:  # if it has changed meanwhile, the next round, which begins at once, tells of it
            self._follow(agreement.heed(count, state, breaker.retry_after, now))
        elif own.has_closed:
            agreement.has_told(count)

    def go_alone(self, clock: Clock) -> None:
        """Decide without the store."""
        self._follow(self._agreement.alone(self.breaker.state, self.breaker.retry_after, clock.monotonic()))

    def _follow(self, order: Order | None) -> None:
        breaker = self.breaker
        if order is None:
            return
        if order.state == "open":
            breaker.trip(order.seconds or 0.0, cause="agreed with other processes")
        elif order.state == "forced":
            breaker.force_open(order.seconds)
        else:
            breaker.close()

    def status(self, *, is_degraded: bool) -> SharedStatus:
        """Return how the processes stand, as last heard."""
        count = self._count
        return SharedStatus(
            name=self.breaker.name,
            state=self.breaker.state,
            members=0 if count is None else count.members,
            votes=0 if count is None else count.votes,
            quorum=0 if count is None else count.quorum,
            is_shared=self._agreement.is_shared,
            is_degraded=is_degraded,
        )


def _new_member() -> str:
    return f"{socket.gethostname()[:64]}:{os.getpid()}:{secrets.token_hex(4)}"
