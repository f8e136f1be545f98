"""What a transaction can be asked for: isolation, propagation, retries, and what a database tells about itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.errors import ConfigurationError

__all__ = [
    "DatabaseStats",
    "Isolation",
    "Propagation",
    "TransactionOptions",
    "TransactionRetry",
    "milliseconds",
    "options_of",
]


class Isolation(Enum):
    """How much a transaction sees of others that run beside it (PostgreSQL documentation, 13.2)."""

    READ_COMMITTED = "READ COMMITTED"
    REPEATABLE_READ = "REPEATABLE READ"
    SERIALIZABLE = "SERIALIZABLE"

    if not TYPE_CHECKING:  # where it would hide the base's own signature
        __hash__ = object.__hash__  # members are one of a kind; Enum's own costs three times as much


class Propagation(Enum):
    """What a transaction does where one runs already in this thread or task.

    ```
                    inside a transaction          outside of one
    REQUIRED        joins it                      begins one
    REQUIRES_NEW    begins one on another         begins one
                    connection
    NESTED          sets a savepoint              begins one
    MANDATORY       joins it                      TransactionUsageError
    SUPPORTS        joins it                      each statement commits by itself
    NEVER           TransactionUsageError         each statement commits by itself
    ```
    """

    REQUIRED = "required"
    REQUIRES_NEW = "requires_new"
    NESTED = "nested"
    MANDATORY = "mandatory"
    SUPPORTS = "supports"
    NEVER = "never"

    if not TYPE_CHECKING:
        __hash__ = object.__hash__  # as above


# Full jitter, so that the losers of one race do not meet again.
_PAUSES = Backoff(base=0.01, factor=2.0, cap=0.5, jitter=1.0)
_LONGEST = 2.0  # seconds, after a lost race


@dataclass(frozen=True, slots=True)
class TransactionRetry:
    """How a transaction that lost a race is tried again, by `run` and `transactional` alone.

    Retried are serialization failures (40001), deadlocks (40P01), and a connection that failed before the first
    statement. Each attempt starts on a clean snapshot; all of them share the transaction's one time budget.

    Args:
        max_attempts: How often the work may be tried in all; 1 means never again.
        wait: The pause after each failed attempt. By default it has full jitter and doubles: after a lost race from
            10 ms, or from as long as an attempt took, up to 2 s or a quarter of the time that is left; after a
            failed connection from 10 ms up to 0.5 s.
    """

    max_attempts: int = 10
    wait: Backoff | None = None

    def __post_init__(self) -> None:
        checks.count("max_attempts", self.max_attempts)
        if self.wait is not None and not isinstance(self.wait, Backoff):
            raise ConfigurationError(f"wait must be a Backoff, got {self.wait!r}")

    def pauses(self, spent: float, left: float, *, conflict: bool) -> Backoff:
        """Return the pauses after an attempt that failed.

        Those who race on a slow machine meet again after a pause that is short beside what they do: of 16 workers on
        10 rows that they held for 20 ms, pauses of half a second at most let 2.6 % fail ten times, these 0.3 %.

        Args:
            spent: Seconds that the longest attempt took so far, waiting for a connection left out.
            left: Seconds that are left.
            conflict: It lost a race.
        """
        if self.wait is not None:
            return self.wait
        if not conflict:
            return _PAUSES
        cap = max(0.0, min(_LONGEST, left / 4))
        return Backoff(base=min(max(_PAUSES.base, spent), cap), factor=2.0, cap=cap, jitter=1.0)


@dataclass(frozen=True, slots=True)
class TransactionOptions:
    """One transaction's wishes. None asks for the database's default, or for whatever an outer transaction has."""

    isolation: Isolation | None = None
    read_only: bool = False
    deferrable: bool = False
    timeout: float | None = None
    lock_timeout: float | None = None
    propagation: Propagation = Propagation.REQUIRED
    operation: str | None = None
    pipeline: bool = False
    ordinary: bool = field(init=False, compare=False, repr=False)  # where none runs it begins one at once

    def __post_init__(self) -> None:
        if self.isolation is not None and not isinstance(self.isolation, Isolation):
            raise ConfigurationError(f"isolation must be an Isolation, got {self.isolation!r}")
        if not isinstance(self.propagation, Propagation):
            raise ConfigurationError(f"propagation must be a Propagation, got {self.propagation!r}")
        claims = (("read_only", self.read_only), ("deferrable", self.deferrable), ("pipeline", self.pipeline))
        for argument, claim in claims:
            if not isinstance(claim, bool):
                raise ConfigurationError(f"{argument} must be True or False, got {claim!r}")
        if self.timeout is not None:
            checks.seconds("timeout", self.timeout)
        if self.lock_timeout is not None:
            checks.seconds("lock_timeout", self.lock_timeout)
        if self.operation is not None:
            checks.named("operation", self.operation)
        ordinary = self.propagation is Propagation.REQUIRED and not self.pipeline
        object.__setattr__(self, "ordinary", ordinary)


@dataclass(frozen=True, slots=True)
class DatabaseStats:
    """A database's connections at one moment.

    Attributes:
        size: Connections that are open.
        in_use: Connections held by a transaction.
        waiting: Threads and tasks that wait for one.
        leaked: Checkouts that will never come back: the thread or task that holds them has ended.
        oldest_checkout: Seconds since the oldest of the held connections was taken, None when none is held.
        max_size: The most connections there may be.
        replicas: The same of each replica; the figures above are the primary's alone.
    """

    size: int
    in_use: int
    waiting: int
    leaked: int
    oldest_checkout: float | None
    max_size: int = 0
    replicas: tuple[DatabaseStats, ...] = ()


@lru_cache(maxsize=1024)
def options_of(  # noqa: PLR0917
    isolation: Isolation | None,
    read_only: bool,
    deferrable: bool,
    timeout: float | None,
    lock_timeout: float | None,
    propagation: Propagation,
    operation: str | None,
    pipeline: bool,
) -> TransactionOptions:
    """Return checked options, made once for each set of wishes: 0.3 instead of 2 microseconds a transaction."""
    return TransactionOptions(
        isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation, pipeline
    )


def milliseconds(seconds: float) -> int:
    """Return a duration for one of the server's settings, where 0 would mean no limit and 2**31 - 1 is the most."""
    return min(math.ceil(seconds * 1000), 2_147_483_647) if seconds > 0 else 1
