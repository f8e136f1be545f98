"""How each colour waits: the only place where blocking and suspending differ.

Flows are written once over `Io`. What `BlockingIo` offers never suspends, so a thread runs a flow in one step;
what `SuspendingIo` offers awaits.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.rows import tuple_row

from reliakit.core import guard
from reliakit.core.errors import ConfigurationError
from reliakit.core.flow import Outcome, run_blocking
from reliakit.database import driver
from reliakit.database.borrowing import Loan, Return
from reliakit.database.driver import INTERVAL, Late
from reliakit.database.journal import noting, noting_async
from reliakit.database.machine import MARKER

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock
    from reliakit.database.gate import Bell
    from reliakit.database.session import Session

__all__ = ["BlockingIo", "Io", "SuspendingIo"]

T = TypeVar("T")
OPEN = int(psycopg.pq.TransactionStatus.INTRANS)
Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Io(Protocol):
    """What flows ask of the outside world."""

    asynchronous: bool
    # What `wait` waits with: psycopg's own, which returns the result, or an awaitable of it.
    drive: Callable[..., Any]
    depth: int  # of the caller's line, for `place_above` in a flow that was called by a method of a database

    async def wait(self, exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
        """Drive one exchange with the server to its end, or raise WaitTimeout after so many seconds."""
        ...

    async def query(
        self, connection: Any, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> list[tuple[Any, ...]]:
        """Run one of our own statements and return its rows, as tuples whatever the connection's row factory."""
        ...

    async def connect(self, conninfo: str, seconds: float, row_factory: Any) -> Connection:
        """Open a connection that commits nothing by itself being asked to (autocommit, as transactions are ours)."""
        ...

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Ask the server to cancel what the connection runs; return whether the request surely got through."""
        ...

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Take a connection from a pool of psycopg_pool."""
        ...

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Return a connection to its pool, whatever comes in between."""
        ...

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """Run one statement on the connection, with a row factory if one is given, and return its cursor."""
        ...

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
        """Send commands, whose cursors are put into `heads`, and a statement in one go; return its cursor."""
        ...

    async def open_pool(self, pool: Any) -> None:
        """Open a pool of psycopg_pool."""
        ...

    async def close_pool(self, pool: Any) -> None:
        """Close it."""
        ...

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Return a connection to its pool without waiting for it; called by the garbage collector."""
        ...

    async def autocommit(self, connection: Any, *, value: bool) -> None:
        """Switch psycopg's own BEGIN on or off. No round trip."""
        ...

    def bell(self) -> Bell:
        """Make something to wait on for a slot."""
        ...

    async def park(self, bell: Any, seconds: float) -> None:
        """Wait for the bell, at most so long."""
        ...

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Pause between attempts."""
        ...

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:
        """Call the user's code and return what came of it; where the colour can, cut it after so many seconds."""
        ...

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """Call it where nothing can be cut, and so nothing is awaited."""
        ...

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a hook, which here may be async where the database is, and return what came of it."""
        ...

    def install(self, session: Session) -> None:
        """Have every statement on the session's connection wait as long as the session has time."""
        ...


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


class _TaskBell:
    """A future of the waiting task's loop, which may be rung from another thread."""

    __slots__ = ("_future", "_loop", "_rung")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        self._rung = True
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001 - see gate.owner_here
            self._wake()
        else:
            with suppress(RuntimeError):  # the waiter's loop is closed: nobody waits there any more
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        self._future = self._loop.create_future()
        if not self._rung:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._future
        self._rung = False


class BlockingIo:
    """For threads."""

    asynchronous = False
    depth = 4
    drive = staticmethod(waiting.wait)

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
            conninfo, autocommit=True, row_factory=row_factory, connect_timeout=_whole(seconds)
        )

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Block until the request is through, at most so long, see `Io`."""
        return driver.cancel(connection, seconds)

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Block until the pool has a connection; one that comes after a Ctrl-C goes back by itself."""
        if threading.current_thread() is not threading.main_thread():
            return cast("Connection", pool.getconn(timeout=seconds))
        # A Ctrl-C inside the pool's queue would lose a connection for good, and comes in the main thread alone.
        return cast("Connection", Loan(pool, seconds).get())

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Block until the pool has it; after a Ctrl-C it gets there all the same."""
        if threading.current_thread() is not threading.main_thread():
            under_way.append(None)
            pool.putconn(connection)
            return
        if not under_way:
            under_way.append(Return(pool, connection))
        under_way[0].finish()

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Have a thread of its own do it: the collector may run while this thread holds the pool's lock."""
        threading.Thread(target=pool.putconn, args=(connection,), name="reliakit-putconn", daemon=True).start()

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """See `Io`."""
        return _cursor(connection, row_factory).execute(query, params, **options)

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
            return _cursor(connection, row_factory).execute(query, params, **options)

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
        """Block until the bell rings, at most so long."""
        bell.wait(seconds)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Block this thread."""
        clock.sleep(seconds)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:  # noqa: ARG002 - nothing can interrupt a thread
        """Call a plain function. One that is async is refused, and `seconds` bounds nothing here."""
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
        """Call a plain hook; one that is async is refused."""
        return await self.call(hook, (), None)

    def install(self, session: Session) -> None:
        """Stand in for psycopg's `Connection.wait`; a flow is run only for what does not end well."""
        pgconn, monotonic = session.pgconn, session.clock.monotonic

        def wait(exchange: PQGen[T], interval: float = INTERVAL, timeout: float | None = None, **_more: object) -> T:
            if session.held is not None:
                run_blocking(session.held.begin(session, in_wait=True))
            left = session.until - monotonic()
            if session.ended or left <= 0:
                raise session.refusal()
            session.statements += 1
            if timeout is not None and timeout < left:
                left = timeout
            try:
                result = waiting.wait(exchange, pgconn.socket, interval, left)
            except BaseException as error:
                leaving = run_blocking(session.recover(exchange, error, timeout))
                if leaving is error:
                    raise
                raise leaving from None
            if session.inside and (
                pgconn.transaction_status != OPEN or pgconn.parameter_status(MARKER) != session.mark
            ):
                session.notice_end()
            return result

        journal = session.journal
        session.connection.wait = wait if journal is None else noting(wait, journal, session.clock)


class SuspendingIo:
    """For asyncio tasks."""

    asynchronous = True
    depth = 3
    drive = staticmethod(waiting.wait_async)

    def __init__(self) -> None:
        # The event loop holds tasks weakly (SQLAlchemy issue 8516): without a reference one could vanish half way.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def wait(self, exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
        """Suspend the task until the exchange is over, see `Io`."""
        return await waiting.wait_async(exchange, fileno, interval, seconds)

    async def query(
        self, connection: Any, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> list[tuple[Any, ...]]:
        """Suspend until the rows are there, see `Io`."""
        cursor = await connection.cursor(row_factory=tuple_row).execute(query, params)
        return [] if cursor.description is None else await cursor.fetchall()

    async def connect(self, conninfo: str, seconds: float, row_factory: Any) -> Connection:
        """Open a `psycopg.AsyncConnection`. The bound is rounded up to whole seconds, 2 at least, as libpq has it."""
        task = asyncio.create_task(
            psycopg.AsyncConnection.connect(
                conninfo, autocommit=True, row_factory=row_factory, connect_timeout=_whole(seconds)
            )
        )
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close_late)
            task.cancel()
            del task  # else what is half open stays so as long as somebody keeps this error and its traceback
            raise

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Suspend until the request is through, at most so long, see `Io`."""
        return await driver.cancel_async(connection, seconds)

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Suspend until the pool has a connection; one that comes after a cancellation goes back by itself."""
        task: asyncio.Task[Any] = asyncio.create_task(pool.getconn(timeout=seconds))
        try:
            return cast("Connection", await asyncio.shield(task))
        except asyncio.CancelledError:
            # Left alone, so that the pool's bookkeeping stays whole; what it brings goes straight back.
            self._keep(asyncio.create_task(_return_late(pool, task)))
            raise

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Suspend until the pool has it; after a cancellation it gets there all the same."""
        if not under_way:
            under_way.append(asyncio.create_task(pool.putconn(connection)))
            self._keep(under_way[0])
        await asyncio.shield(under_way[0])

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Have a task of its own do it, where a loop still runs."""
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - see gate.owner_here
            self._keep(asyncio.create_task(pool.putconn(connection)))

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """See `Io`."""
        return await _cursor(connection, row_factory).execute(query, params, **options)

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
        async with connection.pipeline():
            heads.extend([await connection.execute(command, prepare=False) for command in commands])
            return await _cursor(connection, row_factory).execute(query, params, **options)

    async def open_pool(self, pool: Any) -> None:
        """See `Io`."""
        await pool.open()

    async def close_pool(self, pool: Any) -> None:
        """See `Io`."""
        await pool.close()

    async def autocommit(self, connection: Any, *, value: bool) -> None:
        """Await the setter, see `Io`."""
        await connection.set_autocommit(value)

    def bell(self) -> Bell:
        """Make a bell for this task. Any thread may ring it."""
        return _TaskBell()

    async def park(self, bell: Any, seconds: float) -> None:
        """Suspend until the bell rings, at most so long."""
        await bell.wait(seconds)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Suspend this task."""
        await clock.asleep(seconds)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:
        """Await an async function, cut after so many seconds; a plain one is refused."""
        timer = asyncio.timeout(seconds)
        cancelled = False
        try:
            async with timer:
                pending = fn(*args)
                if not guard.is_awaitable(pending):
                    raise ConfigurationError(
                        f"{getattr(fn, '__qualname__', fn)} is a plain function: an AsyncDatabase takes async ones"
                    )
                try:
                    return Outcome(await pending)
                except asyncio.CancelledError:
                    cancelled = True
                    raise
        except TimeoutError as error:
            # The caller's own TimeoutError is not ours: only the timer turns a CancelledError into one.
            return Outcome(error=Late() if timer.expired() and cancelled else error)
        except BaseException as error:  # noqa: BLE001 - carried out of the flow and raised by the shell
            return Outcome(error=error)

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """Never called: a task awaits, and can be cut."""
        raise NotImplementedError

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a hook, plain or async."""
        try:
            result = hook()
            return Outcome(await result if guard.is_awaitable(result) else result)
        except BaseException as error:  # noqa: BLE001 - told and contained by the caller
            return Outcome(error=error)

    def install(self, session: Session) -> None:
        """Stand in for psycopg's `AsyncConnection.wait`, see `Io`."""
        pgconn, monotonic = session.pgconn, session.clock.monotonic

        async def wait(
            exchange: PQGen[T], interval: float = INTERVAL, timeout: float | None = None, **_more: object
        ) -> T:
            if session.held is not None:
                await session.held.begin(session, in_wait=True)
            left = session.until - monotonic()
            if session.ended or left <= 0:
                raise session.refusal()
            session.statements += 1
            if timeout is not None and timeout < left:
                left = timeout
            try:
                result = await waiting.wait_async(exchange, pgconn.socket, interval, left)
            except BaseException as error:
                leaving = await session.recover(exchange, error, timeout)
                if leaving is error:
                    raise
                raise leaving from None
            if session.inside and (
                pgconn.transaction_status != OPEN or pgconn.parameter_status(MARKER) != session.mark
            ):
                session.notice_end()
            return result

        journal = session.journal
        session.connection.wait = wait if journal is None else noting_async(wait, journal, session.clock)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _cursor(connection: Any, row_factory: Any) -> Any:
    return connection.cursor() if row_factory is None else connection.cursor(row_factory=row_factory)


def _whole(seconds: float) -> int:
    """Return a connect_timeout: libpq knows whole seconds, and not fewer than 2."""
    return max(2, math.ceil(seconds))


def _close_late(task: asyncio.Task[psycopg.AsyncConnection[Any]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().pgconn.finish()


async def _return_late(pool: Any, task: asyncio.Task[Any]) -> None:
    try:
        connection = await task
    except Exception:  # noqa: BLE001 - nobody waits for it any more, and the pool has kept its own books
        return
    await pool.putconn(connection)
