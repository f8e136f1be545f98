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
    """BEGIN was answered: one attempt of a transaction runs. `wait` seconds went by before there was a connection."""

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
        status: How it ended; "retry" is an attempt that is tried again.
        duration: Seconds from asking for a connection to the answer of COMMIT or ROLLBACK.
        wait: Seconds of it spent waiting for a connection.
        statements: How many statements were run, BEGIN and COMMIT left out.
        rows: Rows returned or changed by them.
        sqlstate: The server's error code, where an error ended it.
        error_type: The class name of the error that ended it, or None.
        deliberate: The code asked for the rollback with `set_rollback_only()`.
        began: BEGIN was answered, so a TransactionStarted was told before; False where no connection was got.
        transaction_id: The server's id of it, where somebody asked for it.
        hold: Seconds for which a connection was held, None where none was got.
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
    """An attempt took longer than `slow_after`; told after its `TransactionEnded`.

    Attributes:
        service: As there, and so are the next ones.
        operation: See there.
        attempt: See there.
        status: See there.
        duration: See there.
        wait: See there.
        hold: See there.
        slow_after: The limit in seconds that it passed.
        statements: The slowest of its statements, in the order in which they ran; empty where nobody listened for
            this event when it began.
        left_out: How many others there were.
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
    """A pool at one moment; see `PoolChanged` for the figures that it tells, too.

    Attributes:
        pool: Tells databases of one name apart within this process.
        service: The service it belongs to.
        revision: See there, and so are the next ones.
        max_size: See there.
        size: See there.
        in_use: See there.
        waiting: See there.
        oldest_checkout: See there.
        running: The operation of each transaction that is open.
        is_gone: Whether the pool itself is no more, so that these are its last figures.
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
    """Takes what a pool measures, at once, in the thread or task that it happens in. Must neither wait nor raise.

    Who hands one in is told of `TransactionStarted`, `TransactionEnded`, `PoolChanged`, `PoolWaited` and
    `PoolReturned` in no other way: building one of these events costs more than counting what it says.
    """

    def waited(self, wait: float, /, *, granted: bool) -> object:
        """Take in how long a connection was waited for, in seconds, and whether it was got."""
        ...

    def returned(self, used: float, /) -> object:
        """Take in for how many seconds a connection was held that came back."""
        ...

    def ended(
        self, operation: str, status: str, duration: float, /, *, sqlstate: str | None, deliberate: bool
    ) -> object:
        """Take in the end of an attempt, as `TransactionEnded` would tell it."""
        ...

    def committed(self, operation: str, duration: float, used: float, /, *, at_once: bool) -> object:
        """Take in the end of an ordinary one in a single call: its connection came back, and it has committed.

        Args:
            operation: What it is called.
            duration: Its seconds in all.
            used: The seconds for which it held its connection.
            at_once: That connection was had without waiting, which `waited` was not called for.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPresent(Event):
    """A database's pool exists. Told to who names this event, at its first use and whenever the listeners change.

    So a listener that counts every transaction asks for figures when it is asked itself, and is handed the rest
    without an event.

    Attributes:
        service: The service it belongs to.
        read: Returns its figures, from any thread, without a wait. The same object each time; it does not keep the
            pool alive.
        measure: Takes the listener that this event was told to, and what measures for it from now on until the
            listeners change again.
    """

    service: str | None
    read: Callable[[], PoolFigures]
    measure: Callable[[Callable[[Event], object], PoolMeter], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChanged(Event):
    """A database's connections at one moment; by itself when a wait begins or was in vain, and after `close()`.

    Attributes:
        pool: Tells databases of one name apart within this process.
        revision: Counts the states of one pool: of two events the one with the higher number is later, in whatever
            order they arrive. 0 where the figures are not known.
        max_size: The most connections there may be, 0 once the database is closed.
        size: Connections that are open.
        in_use: Connections that are held.
        waiting: Threads and tasks that wait for one.
        oldest_checkout: Seconds since the oldest of the held ones was taken, None when none is held.
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
    """A connection was asked for: got after `wait` seconds, or not at all."""

    wait: float
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReturned(PoolChanged):
    """A connection went back.

    Attributes:
        used: Seconds for which it was held.
        age: Seconds since it was opened, None for one that belongs to somebody else's pool.
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
        reason: "lifetime" or "idle" where it had grown old, "broken", or "closed" with its database.
        age: Seconds since it was opened, None for one that belongs to somebody else's pool.
    """

    reason: Literal["lifetime", "idle", "broken", "closed"]
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutOverdue(Event):
    """A connection has been held for longer than `leak_after`; `line` is the caller's own line that took it."""

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
        operation: The transaction's, or "open" where the database was opened.
        error_type: The class name of the error, which reached nobody.
        sqlstate: The server's error code, where there is one.
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
    """A relay has handed over messages of an outbox, and they are gone from its table.

    Attributes:
        count: How many.
        lag: Seconds since the oldest of them was published.
    """

    count: int
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxFailed(Event):
    """A relay's handler raised; the message stays.

    Attributes:
        message_id: Which one.
        topic: Its topic.
        attempt: How often it was tried so far.
        delay: Seconds until it is tried again, None when it is set aside as dead.
        error_type: The class name of the error.
    """

    message_id: int
    topic: str
    attempt: int
    delay: float | None
    error_type: str
