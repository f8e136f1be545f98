"""One server connection while a transaction has it: every wait bounded, every answer read.

Psycopg waits for the server in one place, `connection.wait`. A session puts itself there, so that whatever the
caller uses (`tx.execute`, a cursor, COPY, a server-side cursor) has the transaction's deadline:

```
statement ─▶ wait ──▶ answer in time
              └─ late, cancelled, Ctrl-C ─▶ cancel on the server ─▶ wait for its answer, at most GRACE ─▶ else close
```
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import generators, pq

from reliakit.core.errors import CommitUnknownError, TransactionTimeoutError, TransactionUsageError
from reliakit.database.adapters import INTERVAL, Io, Late

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock

__all__ = ["GRACE", "Answer", "Session"]

T = TypeVar("T")

# What a cancel request, and then its answer, may each take beyond the deadline, in seconds: together they keep a
# dead network below timeout + 3 s, where psycopg alone needs timeout + 10 s.
GRACE = 1.0

_ACTIVE = pq.TransactionStatus.ACTIVE
# What `Connection.notifies(timeout=)` catches; only psycopg versions that have it pass a timeout to `wait`.
_WaitTimeout: type[Exception] = getattr(psycopg.errors, "_WaitTimeout", psycopg.errors.QueryCanceled)
_IDLE = pq.TransactionStatus.IDLE
_FAILED = pq.TransactionStatus.INERROR
_POLL_GONE = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class Answer:
    """What came of one of our own commands."""

    __slots__ = ("broken", "error", "interrupt", "late", "sent", "tag")

    def __init__(self) -> None:
        self.tag: bytes | None = None
        self.error: psycopg.Error | None = None
        self.interrupt: BaseException | None = None
        self.late = False
        self.sent = False
        self.broken = False


class Session:
    """One connection, its deadline, and what happened on it.

    Args:
        connection: An idle psycopg connection.
        io: How to wait.
        clock: What measures `until`.
        name: The database, for messages.
        owned: It is ours to keep and close; else it is borrowed from a pool.
    """

    __slots__ = (
        "_manual",
        "born",
        "broken",
        "clock",
        "connection",
        "ended",
        "failed",
        "fresh",
        "idle_since",
        "inside",
        "io",
        "name",
        "owned",
        "seconds",
        "statements",
        "until",
    )

    def __init__(self, connection: Any, io: Io, clock: Clock, name: str, *, owned: bool) -> None:
        self.connection = connection
        self.io = io
        self.clock = clock
        self.name = name
        self.owned = owned
        self.born = self.idle_since = clock.monotonic()
        self.fresh = True
        self.broken = False
        self._manual = False
        self.reset(self.born, 0.0)

    def reset(self, until: float, seconds: float) -> None:
        """Forget the last transaction; the next one has time until then, of so many seconds in all."""
        self.until = until
        self.seconds = seconds
        self.statements = 0
        self.inside = False  # between BEGIN and its end
        self.ended = False  # the caller's code ended it, or it is over
        self.failed: str | None = None  # SQLSTATE of the last statement that failed

    async def adopt(self) -> None:
        """Take the connection over: no BEGIN of psycopg's own, every wait through this session."""
        if not self.connection.autocommit:
            self._manual = True
            await self.io.autocommit(self.connection, value=True)
        self.io.install(self.connection, self.wait)

    async def release(self) -> None:
        """Hand the connection back as it came."""
        self.connection.__dict__.pop("wait", None)
        if self._manual and self.reusable:
            await self.io.autocommit(self.connection, value=False)

    def abandon(self) -> None:
        """Close the connection at once, without a word to anybody. Never blocks or raises."""
        self.broken = True
        self.connection.__dict__.pop("wait", None)
        self.connection.pgconn.finish()

    @property
    def reusable(self) -> bool:
        """Whether the next transaction can have the connection."""
        return not self.broken and self.connection.pgconn.transaction_status == _IDLE

    @property
    def alive(self) -> bool:
        """Whether the connection still works, as far as this side knows."""
        return bool(self.connection.pgconn.status == pq.ConnStatus.OK)

    @property
    def in_failed_transaction(self) -> bool:
        """Whether the server will refuse everything but a rollback."""
        return bool(self.connection.pgconn.transaction_status == _FAILED)

    @property
    def busy(self) -> bool:
        """Whether a statement is running, which another thread or task must have started."""
        return bool(self.connection.pgconn.transaction_status == _ACTIVE or self.connection.lock.locked())

    def hung_up(self) -> bool:
        """Return whether the server has closed its end. Takes nothing from the socket; one system call."""
        if not hasattr(select, "poll"):
            return False
        try:
            poll = select.poll()
            poll.register(self.connection.pgconn.socket, getattr(select, "POLLRDHUP", 0))
            return any(event & _POLL_GONE for _, event in poll.poll(0))
        except (psycopg.Error, OSError, ValueError):
            return True  # there is no socket any more

    async def wait(self, exchange: PQGen[T], interval: float = INTERVAL, **more: Any) -> T:
        """Wait for one statement. This stands in for psycopg's `Connection.wait`.

        Raises:
            TransactionTimeoutError: The deadline has passed, or passed while it ran.
            TransactionUsageError: The transaction is over.
        """
        self._admit()
        self.statements += 1
        pgconn = self.connection.pgconn
        watched = _watched(exchange, self.until, self.clock.monotonic)
        if more:
            watched = _limited(watched, more.get("timeout"), self.clock.monotonic)
        try:
            return await self.io.wait(watched, pgconn.socket, interval)
        except psycopg.Error as error:
            self.failed = error.sqlstate or ""
            raise
        except Late:
            answered = await self._stop(exchange)
            raise self._cut(answered=answered) from None
        except BaseException as reason:
            if pgconn.transaction_status == _ACTIVE and not await self._stop(exchange) and not self.inside:
                reason.__cause__ = self._unknown()
            raise
        finally:
            if self.inside and pgconn.transaction_status == _IDLE:
                self.ended = True

    async def command(self, sql: bytes, until: float, patience: float = 0.0) -> Answer:
        """Run one of our own commands, to its answer if that can be had in time; never raises.

        Args:
            sql: One or more commands, sent as one message.
            until: When the server is asked to cancel it.
            patience: Seconds to go on waiting after a cancellation or Ctrl-C, which is kept in the answer.
        """
        answer = Answer()
        if self.busy:
            self.broken = answer.broken = True
            answer.error = psycopg.InterfaceError("another statement is still running on this connection")
            return answer
        pgconn = self.connection.pgconn
        exchange = _exchange(pgconn, sql, answer)
        while True:
            try:
                await self.io.wait(_watched(exchange, until, self.clock.monotonic), pgconn.socket, INTERVAL)
                break
            except psycopg.Error as error:
                answer.error = error
                break
            except Late:
                if answer.late:
                    break
                answer.late = True
                until = await self._ask_to_cancel(answer)
            except BaseException as interrupt:  # noqa: BLE001 - kept, and raised by the caller once the answer is known
                answer.interrupt = answer.interrupt or interrupt
                until = min(until, self.clock.monotonic() + patience)
            if pgconn.transaction_status != _ACTIVE:
                break
            if (
                getattr(exchange, "gi_frame", None) is None
            ):  # the interrupt fell into our own step: pick the answer up where it is
                exchange = _collect(pgconn, answer)
        if pgconn.transaction_status == _ACTIVE:
            self.abandon()
        answer.broken = not self.alive
        return answer

    def _admit(self) -> None:
        if self.ended:
            raise TransactionUsageError(
                f"{self.name}: this transaction is over (was COMMIT or ROLLBACK run inside its block?): "
                "nothing more can be done in it",
                name=self.name,
            )
        if self.clock.monotonic() >= self.until:
            raise self.timed_out()

    def timed_out(self) -> TransactionTimeoutError:
        """Return the error for a spent budget."""
        return TransactionTimeoutError(
            f"{self.name}: the transaction's time of {self.seconds:g} s is spent; it was rolled back",
            name=self.name,
            seconds=self.seconds,
        )

    def _unknown(self) -> CommitUnknownError:
        return CommitUnknownError(
            f"{self.name}: a statement outside of a transaction was cut, and what became of it is not known",
            name=self.name,
        )

    def _cut(self, *, answered: bool) -> TransactionTimeoutError | CommitUnknownError:
        return self.timed_out() if self.inside or answered else self._unknown()

    async def _stop(self, exchange: PQGen[Any]) -> bool:
        """Cancel the running statement on the server; return whether its answer came. At most 2 * GRACE."""
        try:
            until = await self._ask_to_cancel(None)
            pgconn = self.connection.pgconn
            await self.io.wait(_watched(exchange, until, self.clock.monotonic), pgconn.socket, INTERVAL)
        except (psycopg.Error, Late):
            pass  # QueryCanceled as asked for, or silence; the status below tells which
        except BaseException:
            self.abandon()  # interrupted twice: nobody wants to wait any more
            raise
        if self.connection.pgconn.transaction_status == _ACTIVE:
            self.abandon()
            return False
        return self.alive

    async def _ask_to_cancel(self, answer: Answer | None) -> float:
        """Send a cancel request and return until when to wait for what it does."""
        try:
            through = await self.io.cancel(self.connection, GRACE)
        except BaseException as interrupt:
            if answer is None:
                raise
            answer.interrupt = answer.interrupt or interrupt
            through = False
        if not through:
            # It may still arrive, and would then hit whoever has the connection next.
            self.broken = True
        return self.clock.monotonic() + GRACE


def _watched(exchange: PQGen[T], until: float, now: Callable[[], float]) -> PQGen[T]:
    """Drive an exchange and raise Late when the time is up. It stays where it is and can be driven on."""
    try:
        wish = next(exchange)
        while True:
            ready = yield wish
            wish = exchange.send(ready)
            if now() >= until:
                raise Late
    except StopIteration as done:
        result: T = done.value
        return result


def _limited(exchange: PQGen[T], seconds: float | None, now: Callable[[], float]) -> PQGen[T]:
    """Give an exchange psycopg's own `timeout`, as `notifies()` asks for."""
    until = None if seconds is None else now() + seconds
    try:
        wish = next(exchange)
        while True:
            ready = yield wish
            wish = exchange.send(ready)
            if until is not None and now() >= until:
                raise _WaitTimeout("wait timeout expired")
    except StopIteration as done:
        result: T = done.value
        return result


def _exchange(pgconn: pq.abc.PGconn, sql: bytes, answer: Answer) -> Generator[Any, Any, None]:
    """Send a command with the simple protocol (one round trip, however many commands) and read its answer."""
    answer.sent = True
    pgconn.send_query(sql)
    yield from _collect(pgconn, answer)


def _collect(pgconn: pq.abc.PGconn, answer: Answer) -> Generator[Any, Any, None]:
    results = yield from generators.execute(pgconn)
    for result in results:
        if result.status == pq.ExecStatus.FATAL_ERROR:
            answer.error = psycopg.errors.error_from_result(result)
        else:
            answer.tag = result.command_status
