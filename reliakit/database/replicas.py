"""Where read-only transactions go: to the replicas in turn, and to the primary if none of them serves.

```
read_only=True, outermost, first attempt, not SERIALIZABLE
   └ the next replica that was not found dead lately ─▶ connection and BEGIN, in a bounded moment ─▶ runs there
        └ fails ─▶ ReplicaFailed, and nobody tries it for a while ─▶ the primary, with what is left of the time
```
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import psycopg

from reliakit.core.backoff import Backoff
from reliakit.core.categories import sqlstate_of
from reliakit.core.errors import TransactionTimeoutError
from reliakit.core.events import ReplicaFailed
from reliakit.database.settings import Isolation
from reliakit.resilience.breaker import CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Listener
    from reliakit.database.checkout import Checkouts
    from reliakit.database.settings import DatabaseStats
    from reliakit.database.work import Work
    from reliakit.resilience.circuit import Ticket
    from reliakit.resilience.verdict import Verdict

__all__ = ["FAILURES", "Replica", "Replicas", "Trial", "moment"]

# What a replica may take for a connection and BEGIN, in seconds, and as a share of the time left: enough must remain
# for the primary. A network that silently drops everything costs about two seconds more, once.
_REACH = 1.0
_SHARE = 0.25
# How long a replica that failed is left alone.
_BREAK = Backoff(base=2.0, factor=2.0, cap=30.0, jitter=0.5)

# Errors that make another server worth a try. Wrong use, and interrupts of the caller, do not.
FAILURES = (psycopg.Error, TransactionTimeoutError)


class Replica:
    """One replica: its connections, and whether it is worth trying."""

    __slots__ = ("breaker", "checkouts")

    def __init__(self, checkouts: Checkouts, listeners: Iterable[Listener], clock: Clock) -> None:
        self.checkouts: Checkouts = checkouts
        self.breaker: CircuitBreaker = CircuitBreaker(
            checkouts.name, failure_threshold=1, reset_timeout=_BREAK, listeners=listeners, clock=clock
        )


class Trial:
    """One attempt to begin on a replica; settled exactly once."""

    __slots__ = ("_ticket", "checkouts", "replica")

    def __init__(self, replica: Replica, ticket: Ticket) -> None:
        self.replica: Replica = replica
        self.checkouts: Checkouts = replica.checkouts
        self._ticket = ticket

    def settle(self, verdict: Verdict) -> None:
        """Record the verdict."""
        self.replica.breaker.settle(self._ticket, verdict, None)

    def failed(self, error: Exception, operation: str) -> None:
        """Report that the transaction goes to the primary."""
        self.checkouts.emitter.emit(
            ReplicaFailed, operation=operation, error_type=type(error).__name__, sqlstate=sqlstate_of(error)
        )


class Replicas:
    """The replicas of one database. Holds no lock; safe from threads and tasks."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = tuple(replicas)
        self._turn = itertools.count().__next__

    def __len__(self) -> int:
        return len(self._replicas)

    def trial(self, work: Work) -> Trial | None:
        """Return a trial on the replica whose turn it is, or None if the primary must serve."""
        if not work.options.read_only or work.bare or not self._replicas:
            return None
        # A standby refuses SERIALIZABLE; a transaction that lost a race or its connection on one is not sent again.
        if work.isolation is Isolation.SERIALIZABLE or work.attempt.number > 1:
            return None
        turn = self._turn()
        for step in range(len(self._replicas)):
            replica = self._replicas[(turn + step) % len(self._replicas)]
            ticket = replica.breaker.offer()
            if ticket is not None:
                return Trial(replica, ticket)
        return None

    async def open(self, seconds: float) -> None:
        """Connect to each as the primary does. One that cannot be reached is reported and left alone for a while."""
        for replica in self._replicas:
            ticket = replica.breaker.offer()
            if ticket is None:
                continue
            trial = Trial(replica, ticket)
            verdict: Verdict = "ignored"
            try:
                await replica.checkouts.open(min(seconds, _REACH))
                verdict = "success"
            except FAILURES as error:
                verdict = "failure"
                trial.failed(error, "open")
            finally:
                trial.settle(verdict)

    async def close(self) -> None:
        """Close the connections to each."""
        for replica in self._replicas:
            await replica.checkouts.close()

    def stats(self) -> tuple[DatabaseStats, ...]:
        """Return the figures of each, in the order in which they were given."""
        return tuple(replica.checkouts.stats() for replica in self._replicas)


def moment(now: float, until: float) -> float:
    """Return until when a replica may be waited for, out of a transaction's time."""
    return now + min(_REACH, (until - now) * _SHARE)
