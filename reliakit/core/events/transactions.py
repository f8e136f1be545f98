"""Transactions, connections, replicas and outboxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from reliakit.core.events.base import Event

__all__ = [
    "CheckoutOverdue",
    "ConnectionClosed",
    "ConnectionLeaked",
    "ConnectionOpened",
    "HookFailed",
    "OutboxFailed",
    "OutboxRelayed",
    "PoolChanged",
    "PoolFigures",
    "PoolMeter",
    "PoolPresent",
    "PoolReturned",
    "PoolWaited",
    "ReplicaFailed",
    "StatementTimed",
    "TransactionEnded",
    "TransactionSlow",
    "TransactionStarted",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionStarted(Event):
    """BEGIN was answered: one attempt of a transaction runs. It waited `wait` seconds for a connection."""

    service: str | None
    operation: str
    attempt: int
    isolation: str
    read_only: bool
    wait: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionEnded(Event):
    """One attempt of a transaction is over.

    Attributes:
        status: How it ended; "retry" is an attempt that is retried.
        duration: Seconds from asking for a connection to the answer of COMMIT or ROLLBACK.
        wait: How many of those seconds it waited for a connection.
        statements: How many statements were run, BEGIN and COMMIT not counted.
        rows: Rows returned or changed by them.
        sqlstate: The server's error code, if an error ended it.
        error_type: The class name of the error that ended it, or None.
        deliberate: Whether the code asked for the rollback with `set_rollback_only()`.
        began: Whether BEGIN was answered, and a TransactionStarted sent before; False if it got no connection.
        transaction_id: The server's id of the transaction, if somebody asked for it.
        hold: Seconds for which a connection was held; None if it got none.
    """

    service: str | None
    operation: str
    attempt: int
    status: Literal["commit", "rollback", "timeout", "unknown", "retry"]
    duration: float
    wait: float
    statements: int
    rows: int
    sqlstate: str | None = None
    error_type: str | None = None
    deliberate: bool = False
    began: bool = True
    transaction_id: str | None = None
    hold: float | None = None


class StatementTimed(NamedTuple):
    """One statement of a transaction: its text with `?` for every value in it, its seconds, its rows."""

    text: str
    duration: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionSlow(Event):
    """An attempt took longer than `slow_after`; sent after its `TransactionEnded`.

    Attributes:
        service: As in `TransactionEnded`.
        operation: As in `TransactionEnded`.
        attempt: As in `TransactionEnded`.
        status: As in `TransactionEnded`.
        duration: As in `TransactionEnded`.
        wait: As in `TransactionEnded`.
        hold: As in `TransactionEnded`.
        slow_after: The limit in seconds that it exceeded.
        statements: The slowest of its statements, in the order in which they ran; empty if nobody listened for this
            event when it began.
        left_out: How many other statements there were.
    """

    service: str | None
    operation: str
    attempt: int
    status: Literal["commit", "rollback", "timeout", "unknown", "retry"]
    duration: float
    wait: float
    hold: float | None
    slow_after: float
    statements: tuple[StatementTimed, ...]
    left_out: int = 0


class PoolFigures(NamedTuple):
    """A pool at one moment.

    Attributes:
        pool: Tells databases of the same name apart within this process.
        service: The service it belongs to.
        revision: As in `PoolChanged`.
        max_size: As in `PoolChanged`.
        size: As in `PoolChanged`.
        in_use: As in `PoolChanged`.
        waiting: As in `PoolChanged`.
        oldest_checkout: As in `PoolChanged`.
        running: The operation of each open transaction.
        is_gone: Whether the pool itself no longer exists, so that these are its last figures.
    """

    pool: str
    service: str | None
    revision: int
    max_size: int = 0
    size: int = 0
    in_use: int = 0
    waiting: int = 0
    oldest_checkout: float | None = None
    running: tuple[str, ...] = ()
    is_gone: bool = False


class PoolMeter(Protocol):
    """Takes what a pool measures, at once, in the thread or task where it happens. Must neither wait nor raise.

    A listener that provides one does not receive `TransactionStarted`, `TransactionEnded`, `PoolChanged`,
    `PoolWaited` and `PoolReturned`: building one of these events costs more than counting what it says.
    """

    def waited(self, wait: float, /, *, granted: bool) -> object:
        """Record how long a connection was waited for, in seconds, and whether one was granted."""
        ...

    def returned(self, used: float, /) -> object:
        """Record for how many seconds a connection was held that came back."""
        ...

    def ended(
        self, operation: str, status: str, duration: float, /, *, sqlstate: str | None, deliberate: bool
    ) -> object:
        """Record the end of an attempt, as `TransactionEnded` would report it."""
        ...

    def committed(self, operation: str, duration: float, used: float, /, *, at_once: bool) -> object:
        """Record an ordinary transaction in one call: its connection came back, and it has committed.

        Args:
            operation: Its name.
            duration: The seconds it took in all.
            used: The seconds for which it held its connection.
            at_once: Whether it got that connection without waiting; `waited` was not called then.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPresent(Event):
    """A database's pool exists. Sent to listeners that name this event, at its first use and when listeners change.

    A listener that counts every transaction can ask for figures when it is asked itself, or at each change, and gets
    the rest without an event.

    Attributes:
        service: The service it belongs to.
        read: Returns its figures, from any thread, without a wait. The same object each time; it does not keep the
            pool alive.
        measure: Takes the listener that received this event, and the meter that measures for it until the listeners
            change again.
        watch: Takes a function that is called after each change of the figures until the listeners change again. It
            is for listeners that show the figures where nobody can ask, and must neither wait nor raise.
    """

    service: str | None
    read: Callable[[], PoolFigures]
    measure: Callable[[Callable[[Event], object], PoolMeter], None]
    watch: Callable[[Callable[[], object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChanged(Event):
    """A database's connections at one moment; sent by itself when a wait begins or fails, and after `close()`.

    Attributes:
        pool: Tells databases of the same name apart within this process.
        revision: Numbers the states of one pool: of two events the one with the higher number is later, in whatever
            order they arrive. 0 if the figures are not known.
        max_size: The most connections there may be; 0 once the database is closed.
        size: Open connections.
        in_use: Connections that are held.
        waiting: Threads and tasks that wait for one.
        oldest_checkout: Seconds since the oldest of the held ones was taken; None if none is held.
    """

    pool: str = ""
    revision: int = 0
    max_size: int = 0
    size: int = 0
    in_use: int = 0
    waiting: int = 0
    oldest_checkout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWaited(PoolChanged):
    """A connection was asked for, and granted after `wait` seconds or not at all."""

    wait: float
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReturned(PoolChanged):
    """A connection went back.

    Attributes:
        used: Seconds for which it was held.
        age: Seconds since it was opened; None for one of a pool that is not ours.
    """

    used: float
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(PoolChanged):
    """A connection was opened, which took `duration` seconds."""

    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed(PoolChanged):
    """A connection was closed.

    Attributes:
        reason: "lifetime" or "idle" if it had grown too old, "broken", or "closed" with its database.
        age: Seconds since it was opened; None for one of a pool that is not ours.
    """

    reason: Literal["lifetime", "idle", "broken", "closed"]
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutOverdue(Event):
    """A connection has been held for longer than `leak_after`; `line` is the line of the caller that took it."""

    age: float
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLeaked(Event):
    """A connection was lost to its pool for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFailed(Event):
    """A replica could not be reached in time, so a read-only transaction went to the primary instead.

    Attributes:
        operation: The transaction's operation, or "open" when the database was opened.
        error_type: The class name of the error, which was not raised to anybody.
        sqlstate: The server's error code, if there is one.
    """

    operation: str
    error_type: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed(Event):
    """An after_commit or after_rollback hook raised; the outcome of the transaction stands."""

    operation: str
    hook: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRelayed(Event):
    """A relay has delivered messages of an outbox, and they are gone from its table.

    Attributes:
        count: How many messages.
        lag: Seconds since the oldest of them was published.
    """

    count: int
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxFailed(Event):
    """A relay's handler raised; the message stays.

    Attributes:
        message_id: The message's number.
        topic: Its topic.
        attempt: How often it was tried so far.
        delay: Seconds until it is tried again; None if it is set aside as dead.
        error_type: The class name of the error.
    """

    message_id: int
    topic: str
    attempt: int
    delay: float | None
    error_type: str
