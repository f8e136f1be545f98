"""How a task waits; see `adapters`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.rows import tuple_row

from reliakit.core import guard
from reliakit.core.errors import ConfigurationError
from reliakit.core.flow import Outcome
from reliakit.database import driver
from reliakit.database.adapters import OPEN, Connection, cursor_of, whole
from reliakit.database.driver import INTERVAL, Late
from reliakit.database.machine import MARKER

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock
    from reliakit.database.gate import Bell
    from reliakit.database.session import Session

__all__ = ["SuspendingIo"]

T = TypeVar("T")


class _TaskBell:
    """A future of the waiting task's loop, which another thread may ring."""

    __slots__ = ("_future", "_loop", "_rung")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        self._rung = False

    def ring(self) -> None:
        self._rung = True
        if asyncio._get_running_loop() is self._loop:  # noqa: SLF001 - see places.owner_here
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


class SuspendingIo:
    """`Io` for asyncio tasks."""

    asynchronous = True
    depth = 3
    drive: Callable[..., Any] = staticmethod(waiting.wait_async)

    def __init__(self) -> None:
        # Event loops keep only weak references to tasks (SQLAlchemy issue 8516): without one here, one could vanish.
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
                conninfo, autocommit=True, row_factory=row_factory, connect_timeout=whole(seconds)
            )
        )
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close_late)
            task.cancel()
            del task  # a half-open connection would stay as long as somebody keeps this error and its traceback
            raise

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Suspend until the request is through, for at most `seconds`, see `Io`.

        A request that was begun is completed even if this task is cancelled again: PgBouncer 1.18 terminates, with
        all its connections, if a client disconnects in the middle of one.
        """
        task = asyncio.create_task(driver.cancel_async(connection, seconds))
        self._keep(task)
        return await asyncio.shield(task)

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Suspend until the pool has a connection; one that comes after a cancellation goes back by itself."""
        task: asyncio.Task[Any] = asyncio.create_task(pool.getconn(timeout=seconds))
        try:
            return cast("Connection", await asyncio.shield(task))
        except asyncio.CancelledError:
            # Left running, so that the pool's bookkeeping stays intact; a connection that it gets goes straight back.
            self._keep(asyncio.create_task(_return_late(pool, task)))
            raise

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Suspend until the pool has the connection; it gets there even after a cancellation."""
        if not under_way:
            under_way.append(asyncio.create_task(pool.putconn(connection)))
            self._keep(under_way[0])
        await asyncio.shield(under_way[0])

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Return it in a task of its own, if a loop still runs."""
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - see places.owner_here
            self._keep(asyncio.create_task(pool.putconn(connection)))

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """See `Io`."""
        return await cursor_of(connection, row_factory).execute(query, params, **options)

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
            return await cursor_of(connection, row_factory).execute(query, params, **options)

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
        """Suspend until the bell rings, for at most `seconds`."""
        await bell.wait(seconds)

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Suspend this task."""
        await clock.asleep(seconds)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:
        """Await an async function and cut it off after `seconds`; a plain one is refused."""
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
            # The caller's own TimeoutError stays its own: only the timer turns a CancelledError into one of ours.
            return Outcome(error=Late() if timer.expired() and cancelled else error)
        except BaseException as error:  # noqa: BLE001 - carried out of the flow and raised by the shell
            return Outcome(error=error)

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """Never called: a task can await, and be cut off."""
        raise NotImplementedError

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a hook, plain or async."""
        try:
            result = hook()
            return Outcome(await result if guard.is_awaitable(result) else result)
        except BaseException as error:  # noqa: BLE001 - told and contained by the caller
            return Outcome(error=error)

    def install(self, session: Session) -> None:
        """Replace psycopg's `AsyncConnection.wait`, see `Io`."""
        pgconn, monotonic = session.pgconn, session.clock.monotonic

        async def wait(
            exchange: PQGen[T], interval: float = INTERVAL, timeout: float | None = None, **_more: object
        ) -> T:
            if session.held is not None:
                await session.held.begin(session, in_wait=True)
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
                result = await waiting.wait_async(exchange, pgconn.socket, interval, left)
            except BaseException as error:
                leaving = await session.recover(exchange, error, timeout)
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

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _close_late(task: asyncio.Task[psycopg.AsyncConnection[Any]]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().pgconn.finish()


async def _return_late(pool: Any, task: asyncio.Task[Any]) -> None:
    try:
        connection = await task
    except Exception:  # noqa: BLE001 - nobody waits for it any more, and the pool has kept its own books
        return
    await pool.putconn(connection)
