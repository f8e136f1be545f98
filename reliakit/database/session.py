"""One server connection while a transaction has it: every wait is bounded, and every answer is read.

Psycopg waits for the server in one place, `connection.wait`. A session replaces it, so that whatever the caller uses
(`tx.execute`, a cursor, COPY, a server-side cursor) keeps the transaction's deadline:

```
statement ─▶ wait ──▶ answer in time
              └─ late, cancelled, Ctrl-C ─▶ stopped on the server, or else the connection is closed
```
"""

from __future__ import annotations

import contextlib
import select
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg import generators, pq

from reliakit.core.errors import CommitUnknownError, TransactionTimeoutError, TransactionUsageError
from reliakit.database.answers import Answer, collect, committed_before
from reliakit.database.driver import INTERVAL, WaitTimeout
from reliakit.database.machine import MARKER, OTHER_MARK
from reliakit.database.stopping import insist, stop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock
    from reliakit.database.adapters import Io
    from reliakit.database.holding import Held
    from reliakit.database.journal import Journal

__all__ = ["Session"]

# Plain numbers, as psycopg's C side has them: Python compares those faster than members of an enumeration.
_ACTIVE = int(pq.TransactionStatus.ACTIVE)
_IDLE = int(pq.TransactionStatus.IDLE)
_FAILED = int(pq.TransactionStatus.INERROR)
_OPEN = int(pq.TransactionStatus.INTRANS)
_OK = int(pq.ConnStatus.OK)
_POLL_GONE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class Session:
    """One connection, its deadline, and what happened on it.

    Args:
        io: Does the waiting.
        clock: Measures `until`.
        name: The database, for messages.
        pool: The pool that the connection is borrowed from; None for one that is ours to keep and close.
    """

    __slots__ = (
        "_manual",
        "_pool",
        "born",
        "broken",
        "clock",
        "connection",
        "cursor",
        "disowned",
        "ended",
        "failed",
        "fresh",
        "held",
        "idle_since",
        "in_wait",
        "inside",
        "io",
        "journal",
        "mark",
        "name",
        "opening",
        "owned",
        "pgconn",
        "poll",
        "pooled",
        "returning",
        "seconds",
        "shared",
        "statements",
        "threshold",
        "until",
    )

    may_hold: ClassVar[bool] = True  # whether BEGIN may travel with the first statement
    straight: ClassVar[bool] = True  # whether BEGIN and COMMIT are really sent as such

    def __init__(self, io: Io, clock: Clock, name: str, *, pool: Any) -> None:
        self.in_wait: bool = False  # psycopg holds the connection's lock for us
        self.connection: Any = None  # an idle psycopg connection, put here as soon as there is one
        self.pgconn: Any = None  # its libpq side
        self._pool = pool
        self.io: Io = io
        self.clock: Clock = clock
        self.name: str = name
        self.owned: bool = pool is None
        self.born: float = clock.monotonic()
        self.idle_since: float = self.born
        self.fresh: bool = self.owned  # a pool does not say whether a connection is new
        self.broken: bool = True  # until it is adopted
        self.disowned: bool = False  # whether it belongs to the parent process, and this is a child
        self.returning: list[Any] = []  # what brings it back to its pool, once that has begun
        self._manual = False
        self.pooled: bool = False  # the server's sessions are shared with others, see `pooler`
        self.threshold: int | None = None  # a borrowed connection's own `prepare_threshold`, where that was changed
        self.poll: select.poll | None = None
        self.cursor: Any = None  # a cursor that is reused, see `lend_cursor`
        self.reset(self.born, 0.0)

    def reset(self, until: float, seconds: float) -> None:
        """Forget the last transaction; the next one has until then, out of `seconds` in all."""
        self.until: float = until
        self.seconds: float = seconds
        self.statements: int = 0
        self.held: Held | None = None  # BEGIN, as long as it was not sent
        self.opening: bool = False  # whether BEGIN is on its way with the first statement
        self.inside: bool = False  # between BEGIN and its end
        self.mark: bytes | None = None  # the marker's value as long as this very transaction runs
        self.ended: bool = False  # whether the caller's code ended it, or it is over
        self.failed: str | None = None  # SQLSTATE of the last statement that failed
        self.shared: bool = False  # whether the caller has had the connection, and may have changed its cursors
        self.journal: Journal | None = None  # where statements are recorded, if they are

    async def adopt(self) -> None:
        """Take the connection over: psycopg sends no BEGIN of its own, and every wait goes through this session."""
        self.pgconn = self.connection.pgconn
        if hasattr(select, "poll"):
            self.poll = select.poll()
            self.poll.register(self.pgconn.socket, getattr(select, "POLLRDHUP", 0))
        if not self.connection.autocommit:
            self._manual = True
            await self.io.autocommit(self.connection, value=True)
        self.io.install(self)
        self.broken = False

    async def release(self) -> None:
        """Hand the connection back as it was."""
        self.connection.__dict__.pop("wait", None)
        if self.threshold is not None:
            self.connection.prepare_threshold = self.threshold
        if self._manual and self.pgconn.transaction_status == _IDLE:
            await self.io.autocommit(self.connection, value=False)

    def abandon(self) -> None:
        """Close the connection at once, without telling the server. Never blocks or raises."""
        self.broken = True
        if self.connection is None:
            return
        self.connection.__dict__.pop("wait", None)
        if not self.disowned:
            self.connection.pgconn.finish()  # if a Ctrl-C came first, it was not adopted yet

    def let_go(self) -> None:
        """Close the connection at once; a borrowed one goes back to its pool by itself. Never waits."""
        self.abandon()
        if self.connection is not None and not (self.owned or self.disowned or self.returning):
            self.returning.append(None)
            self.io.give_back_later(self._pool, self.connection)

    def disown(self) -> None:
        """Never touch the connection again: it is the parent process's, and closing it here would end it there."""
        self.disowned = self.broken = self.ended = True

    def __del__(self) -> None:
        # A Ctrl-C came between getting a borrowed connection and storing it: its pool must have it back.
        if getattr(self, "returning", True) or self.disowned:
            return
        if self._pool is not None and self.connection is not None:
            self.io.give_back_later(self._pool, self.connection)

    @property
    def reusable(self) -> bool:
        """Whether the next transaction can have the connection."""
        # An interrupt may have left it in the middle of a pipeline, although it looks idle.
        pgconn = self.pgconn
        return not self.broken and pgconn.transaction_status == _IDLE and not pgconn.pipeline_status

    @property
    def left_open(self) -> bool:
        """Whether code that asked for no transaction began one, or a COPY, and did not end it."""
        return self.alive and not self.reusable

    @property
    def alive(self) -> bool:
        """Whether the connection still works, as far as this side knows."""
        return bool(not self.disowned and self.pgconn.status == _OK)

    @property
    def in_failed_transaction(self) -> bool:
        """Whether the server will refuse everything but a rollback."""
        return bool(self.pgconn.transaction_status == _FAILED)

    @property
    def cut_with(self) -> str | None:
        """SQLSTATE of the error after which the server refuses everything but a rollback; None if it does not."""
        return self.failed if self.in_failed_transaction else None

    def hung_up(self) -> bool:
        """Return whether the server has closed its end. Reads nothing from the socket; one system call."""
        if self.pgconn.status != _OK:
            return True
        events = () if self.poll is None else self.poll.poll(0)
        return bool(events) and any(event & _POLL_GONE for _, event in events)

    def refusal(self) -> TransactionUsageError | TransactionTimeoutError:
        """Return why no more statements may run: the transaction is over, or its deadline has passed."""
        return self.over() if self.ended else self.timed_out()

    async def recover(self, exchange: PQGen[Any], error: BaseException, timeout: float | None) -> BaseException:
        """Deal with a statement that raised, or took too long, and return the error that it must raise."""
        late = isinstance(error, WaitTimeout)
        if late and timeout is not None and self.clock.monotonic() < self.until:
            return error  # what `notifies(timeout=)` expects
        try:
            if late:
                error = self._cut(answered=await stop(self, exchange))
            elif isinstance(error, psycopg.Error):
                self.failed = error.sqlstate or ""
                if self.inside and committed_before(error):
                    self.ended = True
            elif self.pgconn.transaction_status == _ACTIVE and not await stop(self, exchange) and not self.inside:
                error.__cause__ = self._unknown()
        finally:
            # Leaving a pipeline asks for answers even inside the garbage collector, and then complains.
            with contextlib.suppress(psycopg.Error):
                exchange.close()
        if not late:
            self.notice_end()
        return error

    async def query(
        self, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one of our own statements in the caller's time and return its rows. Raises as `wait`."""
        return await self.io.query(self.connection, query, params)

    def share(self) -> Any:
        """Return the connection for the caller's own use."""
        self.shared, self.cursor = True, None
        return self.connection

    def lend_cursor(self) -> Any:
        """Return a cursor for one statement. Making one costs half as much as our own work for a transaction."""
        cursor, self.cursor = self.cursor, None
        return self.new_cursor() if cursor is None else cursor

    def new_cursor(self) -> Any:
        """Return a cursor of the connection's own kind."""
        connection = self.connection
        if self.owned and self.pgconn.status == _OK:
            return connection.cursor_factory(connection)  # what `cursor()` does, at half the price
        return connection.cursor()

    def keep_cursor(self, cursor: Any) -> None:
        """Take a cursor back after its rows were fetched; one whose statement failed or was cut is never reused."""
        if self.owned and not self.shared:
            cursor.pgresult.clear()  # frees its memory, which may be a lot
            self.cursor = cursor

    def next_mark(self) -> bytes | None:
        """Return what to set the marker to when a transaction begins; None if the server does not report it."""
        return OTHER_MARK.get(self.pgconn.parameter_status(MARKER)) if self.alive else None

    def began(self, mark: bytes | None) -> None:
        """Record that BEGIN was answered. A pooler in between may hold reports of the marker back."""
        self.inside = True
        self.mark = mark if self.pgconn.parameter_status(MARKER) == mark else None

    def notice_end(self) -> None:
        """Record it if the caller's code has ended the transaction. A few lookups, no round trip."""
        if not self.inside or self.opening:
            return
        pgconn, mark = self.pgconn, self.mark
        status = pgconn.transaction_status
        # A failed transaction has lost its mark too, so one that was chained and then failed looks the same.
        if status == _IDLE or (status == _OPEN and mark is not None and pgconn.parameter_status(MARKER) != mark):
            self.ended = True

    async def command(self, sql: bytes, until: float, patience: float = 0.0) -> Answer:
        """Run one of our own commands, and read its answer if it comes in time; never raises.

        Args:
            sql: One or more commands, sent as one message.
            until: When the server is asked to cancel it.
            patience: Seconds to go on waiting after a cancellation or Ctrl-C, which is kept in the answer.
        """
        answer = Answer()
        pgconn = self.pgconn
        if pgconn.transaction_status == _ACTIVE or (self.connection.lock.locked() and not self.in_wait):
            # Another thread or task must have started that statement.
            self.broken = answer.broken = True
            answer.error = psycopg.InterfaceError("another statement is still running on this connection")
            return answer
        try:
            pgconn.send_query(sql)  # the simple protocol: one round trip, however many commands
            left = until - self.clock.monotonic()
            results = await self.io.wait(generators.execute(pgconn), pgconn.socket, INTERVAL, left)
            return await self.answer_to(results, until, patience)
        except BaseException as reason:  # noqa: BLE001 - kept, and raised by the caller once the answer is known
            return await self.answer_to(reason, until, patience)

    async def answer_to(
        self, outcome: list[pq.abc.PGresult] | BaseException, until: float, patience: float = 0.0
    ) -> Answer:
        """Return the outcome of a command that was sent: results, or an error to go on after; see `command`."""
        answer, pgconn = Answer(), self.pgconn
        answer.sent = True
        if isinstance(outcome, BaseException):
            await insist(self, answer, outcome, until, patience)
        else:
            collect(outcome, answer)
        if pgconn.transaction_status == _ACTIVE:
            self.abandon()
        if pgconn.status != _OK:
            answer.broken = True
        return answer

    def over(self) -> TransactionUsageError:
        """Return the error for using a transaction that has ended, or that belongs to another process."""
        if self.disowned:
            said = (
                "this process was forked inside a transaction, whose connection is the parent's alone: nothing can "
                "be done with it here; close() and open() the database in the child to begin transactions of its own"
            )
        else:
            said = (
                "this transaction is over (was COMMIT or ROLLBACK run inside its block?), so nothing more can be "
                "done in it: leave both to the block"
            )
        return TransactionUsageError(f"[{self.name}] {said}", name=self.name)

    def timed_out(self) -> TransactionTimeoutError:
        """Return the error for a spent budget."""
        return TransactionTimeoutError(
            f"[{self.name}] the transaction's time of {self.seconds:g} s is spent; it was rolled back",
            name=self.name,
            seconds=self.seconds,
        )

    def _unknown(self) -> CommitUnknownError:
        return CommitUnknownError(
            f"[{self.name}] a statement outside of a transaction was cut, and what became of it is not known",
            name=self.name,
        )

    def _cut(self, *, answered: bool) -> TransactionTimeoutError | CommitUnknownError:
        return self.timed_out() if self.inside or answered else self._unknown()
