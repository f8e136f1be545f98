"""How a thread waits; see `adapters`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.rows import tuple_row

from reliakit.core import guard
from reliakit.core.flow import Outcome, run_blocking
from reliakit.database import borrowing, driver
from reliakit.database.adapters import OPEN, Connection, cursor_of, whole
from reliakit.database.borrowing import Loan, Return
from reliakit.database.driver import INTERVAL
from reliakit.database.machine import MARKER

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock
    from reliakit.database.gate import Bell
    from reliakit.database.session import Session

__all__ = ["BlockingIo"]

T = TypeVar("T")


class _ThreadBell:
    """A lock that is held until somebody rings."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        with suppress(RuntimeError):  # rung already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))


class BlockingIo:
    """`Io` for threads."""

    asynchronous = False
    depth = 4
    drive: Callable[..., Any] = staticmethod(waiting.wait)

    async def wait(self, exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
        """Block the thread until the exchange is over, see `Io`."""
        return waiting.wait(exchange, fileno, interval, seconds)

    async def query(
        self, connection: Any, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> list[tuple[Any, ...]]:
        """Block until the rows are there, see `Io`."""
        cursor = connection.cursor(row_factory=tuple_row).execute(query, params)
        return [] if cursor.description is None else cursor.fetchall()

    async def connect(self, conninfo: str, seconds: float, row_factory: Any) -> Connection:
        """Open a `psycopg.Connection`. The bound is rounded up to whole seconds, 2 at least, as libpq has it."""
        return psycopg.Connection.connect(
            conninfo, autocommit=True, row_factory=row_factory, connect_timeout=whole(seconds)
        )

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Block until the request is through, for at most `seconds`, see `Io`."""
        return driver.cancel(connection, seconds)

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Block until the pool has a connection; one that comes after a Ctrl-C goes back by itself."""
        if threading.current_thread() is not threading.main_thread():
            return cast("Connection", pool.getconn(timeout=seconds))
        # A Ctrl-C inside the pool's queue would lose a connection for good; it only comes in the main thread.
        return cast("Connection", Loan(pool, seconds).get())

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Block until the pool has the connection; it gets there even after a Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():
            under_way.append(None)
            pool.putconn(connection)
            return
        if not under_way:
            under_way.append(Return(pool, connection))
        under_way[0].finish()

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Do it in a thread of its own: a finaliser may run while this thread holds the pool's lock."""
        borrowing.give_back_later(pool, connection)

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """See `Io`."""
        return cursor_of(connection, row_factory).execute(query, params, **options)

    async def pipelined(  # noqa: PLR0917 - what a statement is made of
        self,
        connection: Any,
        commands: Iterable[bytes],
        heads: list[Any],
        query: Any,
        params: Any,
        options: Mapping[str, Any],
        row_factory: Any,
    ) -> Any:
        """See `Io`."""
        with connection.pipeline():
            heads.extend(connection.execute(command, prepare=False) for command in commands)
            return cursor_of(connection, row_factory).execute(query, params, **options)

    async def open_pool(self, pool: Any) -> None:
        """See `Io`."""
        pool.open()

    async def close_pool(self, pool: Any) -> None:
        """See `Io`."""
        pool.close()

    async def autocommit(self, connection: Any, *, value: bool) -> None:
        """Set the attribute, see `Io`."""
        connection.autocommit = value

    def bell(self) -> Bell:
        """Make a bell for a thread."""
        return _ThreadBell()

    async def park(self, bell: Any, seconds: float) -> None:
        """Block until the bell rings, for at most `seconds`."""
        bell.wait(seconds)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Block this thread."""
        clock.sleep(seconds)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:  # noqa: ARG002 - nothing can interrupt a thread
        """Call a plain function. An async one is refused, and `seconds` has no effect here."""
        return self.call_now(fn, args)

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """See `call`."""
        try:
            result = fn(*args)
            if guard.is_awaitable(result):
                guard.refuse_awaitable(fn, result, "this Database")
        except BaseException as error:  # noqa: BLE001 - carried out of the flow and raised by the shell
            return Outcome(error=error)
        return Outcome(result)

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a plain hook; an async one is refused."""
        return await self.call(hook, (), None)

    def install(self, session: Session) -> None:
        """Replace psycopg's `Connection.wait`; a flow is run only for exchanges that do not end well."""
        pgconn, monotonic = session.pgconn, session.clock.monotonic

        def wait(exchange: PQGen[T], interval: float = INTERVAL, timeout: float | None = None, **_more: object) -> T:
            if session.held is not None:
                run_blocking(session.held.begin(session, in_wait=True))
            began = monotonic()
            left = session.until - began
            if session.ended or left <= 0:
                raise session.refusal()
            session.statements += 1
            if timeout is not None and timeout < left:
                left = timeout
            journal = session.journal
            note = None if journal is None else journal.begin(exchange)
            try:
                result = waiting.wait(exchange, pgconn.socket, interval, left)
            except BaseException as error:
                leaving = run_blocking(session.recover(exchange, error, timeout))
                if journal is not None and note is not None:
                    journal.end(note, monotonic() - began, leaving)
                if leaving is error:
                    raise
                raise leaving from None
            if journal is not None and note is not None:
                journal.end(note, monotonic() - began)
            if session.inside and (
                pgconn.transaction_status != OPEN or pgconn.parameter_status(MARKER) != session.mark
            ):
                session.notice_end()
            return result

        session.connection.wait = wait
