"""How a store speaks to PostgreSQL: one statement at a time, on connections that belong to no transaction.

```
thread ──> ThreadConnections ──> one of a few connections, made by a thread of its own when none is idle
task   ──> TaskConnections   ──> one of a few of its event loop's, in a task of its own
either ──> PoolConnections   ──> a pool of the user's
```

A thread that gives up on a connection attempt leaves it to be ready for the next decision. A task that is cut leaves
its statement to end by itself: cancelling it would take a round trip to a server that may be stalled.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import remaining
from reliakit.core.errors import StoreError
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from reliakit.stores.postgres import Setup

__all__ = ["PoolConnections", "TaskConnections", "TaskPool", "ThreadConnections", "is_async"]

Params: TypeAlias = tuple[Any, ...]
_SHORTEST = 0.001
# Errors of transactions that met: another isolation than READ COMMITTED, or a deadlock.
_AGAIN = frozenset({"40001", "40P01"})
_ATTEMPTS = 20


class ThreadConnections:
    """Connections of its own for any number of threads.

    Args:
        conninfo: Where to.
        setup: What makes a new connection ready.
        timeout: Seconds that a decision may take where no deadline is nearer.
        most: How many connections at most.
    """

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        self._conninfo = conninfo
        self._setup = setup
        self._timeout = timeout
        self._most = most
        self._changed = threading.Condition(threading.Lock())
        self._idle: list[_Session] = []
        self._count = 0
        self._connecting = 0
        self._error: BaseException | None = None
        self._is_closed = False
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent's connections to the parent."""
        self._changed = threading.Condition(threading.Lock())
        _inherited.extend(self._idle)
        self._idle, self._count, self._connecting, self._error = [], 0, 0, None

    def run(self, query: str, params: Params) -> Any:
        """Run a statement and return its only value."""
        left = remaining()
        seconds = self._timeout if left is None else max(_SHORTEST, min(left, self._timeout))
        until = SYSTEM_CLOCK.monotonic() + seconds
        session, is_new = self._take(until)
        try:
            value = session.execute(query, params, until)
        except BaseException as error:
            self._drop(session)
            if not self._may_try_again(session.connection, error, is_new=is_new):
                raise
        else:
            self._put(session)
            return value
        # The server was restarted, or dropped it for being idle; the others are no younger.
        self._close_idle()
        session, _ = self._take(until)
        try:
            value = session.execute(query, params, until)
        except BaseException:
            self._drop(session)
            raise
        self._put(session)
        return value

    def _may_try_again(self, connection: Any, error: BaseException, *, is_new: bool) -> bool:
        if is_missing(error):
            self._setup.forget()
            return True
        return not is_new and _is_lost(connection, error)

    def open(self) -> None:
        """Connect, if there is no connection yet."""
        session, _ = self._take(SYSTEM_CLOCK.monotonic() + max(10.0, self._timeout))
        self._put(session)

    def _take(self, until: float) -> tuple[_Session, bool]:
        with self._changed:
            is_new = False
            while not self._idle:
                if self._count < self._most and not is_new:
                    is_new = True
                    self._count += 1
                    self._connecting += 1
                    self._error = None
                    threading.Thread(target=self._connect, name="reliakit-store", daemon=True).start()
                left = until - SYSTEM_CLOCK.monotonic()
                if left <= 0:
                    raise StoreError("no connection in time", store="PostgresStore")
                self._changed.wait(left)
                # An attempt that somebody else gave up on may fail while ours is still under way.
                if self._error is not None and not self._idle and not self._connecting:
                    raise self._error
            return self._idle.pop(), is_new

    def _connect(self) -> None:
        changed = self._changed
        try:
            session = _Session(self._setup.connect(self._conninfo))
        except BaseException as error:  # noqa: BLE001 - raised by who waits for it
            with changed:
                self._count -= 1
                self._connecting -= 1
                self._error = error
                changed.notify_all()
            return
        with changed:
            self._connecting -= 1
            if not self._is_closed:
                self._idle.append(session)
                changed.notify_all()
                return
        session.connection.close()

    def _put(self, session: _Session) -> None:
        with self._changed:
            if not self._is_closed:
                self._idle.append(session)
                self._changed.notify()
                return
        session.connection.close()

    def _drop(self, session: _Session) -> None:
        session.connection.close()
        with self._changed:
            self._count -= 1
            self._changed.notify()

    def close(self) -> None:
        """Close the connections; what is in use is closed when it comes back."""
        self._is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for session in idle:
            session.connection.close()


# A forked child neither uses nor closes its parent's connections: closing would end the parent's session too.
_inherited: list[Any] = []


class PoolConnections:
    """A pool of the user's for threads: psycopg_pool.ConnectionPool, or what looks like it."""

    def __init__(self, pool: Any, setup: Setup, *, timeout: float) -> None:
        self._pool = pool
        self._setup = setup
        self._timeout = timeout

    def run(self, query: str, params: Params) -> Any:
        """Run a statement and return its only value."""
        left = remaining()
        seconds = self._timeout if left is None else max(_SHORTEST, min(left, self._timeout))
        until = SYSTEM_CLOCK.monotonic() + seconds
        connection = self._pool.getconn(timeout=seconds)
        kept = session = None
        try:
            kept = connection.autocommit
            connection.autocommit = True
            self._setup.ensure(connection)
            session = _Session(connection)
            return session.execute(query, params, until)
        except BaseException:
            if not _is_idle(connection):
                connection.close()
            raise
        finally:
            if session is not None:
                session.release()
            if kept is not None and not connection.closed:
                connection.autocommit = kept
            self._pool.putconn(connection)

    def open(self) -> None:
        """Leave the pool to its owner."""

    def close(self) -> None:
        """Leave the pool to its owner."""


class _Lane:
    """The connections of one event loop."""

    def __init__(self, most: int) -> None:
        self.turn = asyncio.Semaphore(most)
        self.idle: list[Any] = []
        # The event loop holds tasks weakly.
        self.tasks: set[asyncio.Task[Any]] = set()
        self.keeper: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        """Close the connections that are idle."""
        idle, self.idle = self.idle, []
        for connection in idle:
            await connection.close()

    async def keep_until_the_loop_ends(self) -> None:
        """Have the connections closed when the loop shuts its asynchronous generators down, as asyncio.run does."""
        if self.keeper is None:
            self.keeper = self._keeper()
            await anext(self.keeper)

    async def _keeper(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()


class _InTasks:
    """Runs each statement in a task that no caller's cancellation reaches."""

    def __init__(self, most: int, timeout: float) -> None:
        self._most = most
        self._timeout = timeout
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()
        self._lock = threading.Lock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent's connections to the parent."""
        _inherited.extend(self._lanes.values())
        self._lanes = WeakKeyDictionary()

    async def run(self, query: str, params: Params) -> Any:
        """Run a statement and return its only value."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            with self._lock:
                lane = self._lanes.setdefault(loop, _Lane(self._most))
        task = loop.create_task(self._bounded(lane, query, params), context=contextvars.Context())
        lane.tasks.add(task)
        task.add_done_callback(lane.tasks.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_look)
            raise

    async def aclose(self) -> None:
        """Close the connections of this loop; those of another are closed when it ends."""
        lane = self._lanes.get(asyncio.get_running_loop())
        if lane is not None:
            await lane.close()

    async def _bounded(self, lane: _Lane, query: str, params: Params) -> Any:
        async with asyncio.timeout(self._timeout), lane.turn:
            return await self._exchange(lane, query, params)

    async def _exchange(self, lane: _Lane, query: str, params: Params) -> Any:
        raise NotImplementedError


class TaskConnections(_InTasks):
    """Connections of its own for the tasks of any number of event loops; see `ThreadConnections`."""

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        super().__init__(most, timeout)
        self._conninfo = conninfo
        self._setup = setup

    async def _exchange(self, lane: _Lane, query: str, params: Params) -> Any:
        looked = False
        while True:
            is_new = not lane.idle
            connection = await self._new(lane) if is_new else lane.idle.pop()
            try:
                return await self._on(lane, connection, query, params)
            except Exception as error:
                if is_missing(error) and not looked:
                    looked = True
                    self._setup.forget()
                elif is_new or not _is_lost(connection, error):
                    raise
                await lane.close()  # the others are no younger

    async def _new(self, lane: _Lane) -> Any:
        await lane.keep_until_the_loop_ends()
        return await self._setup.aconnect(self._conninfo)

    async def _on(self, lane: _Lane, connection: Any, query: str, params: Params) -> Any:
        try:
            value = await _aexecute(connection, query, params)
        except BaseException:
            # Not its close(), which may wait for the server: a timeout has come, or the statement has failed.
            connection.pgconn.finish()
            raise
        lane.idle.append(connection)
        return value


class TaskPool(_InTasks):
    """A pool of the user's for tasks of its loop: psycopg_pool.AsyncConnectionPool, or what looks like it."""

    def __init__(self, pool: Any, setup: Setup, *, timeout: float) -> None:
        super().__init__(1_000_000, timeout)
        self._pool = pool
        self._setup = setup

    async def aclose(self) -> None:
        """Leave the pool to its owner."""

    async def _exchange(self, lane: _Lane, query: str, params: Params) -> Any:  # noqa: ARG002
        connection = await self._pool.getconn(timeout=self._timeout)
        kept = connection.autocommit
        try:
            await connection.set_autocommit(True)
            await self._setup.aensure(connection)
            return await _aexecute(connection, query, params)
        except BaseException:
            if not _is_idle(connection):
                connection.pgconn.finish()
            raise
        finally:
            if not connection.closed:
                await connection.set_autocommit(kept)
            await self._pool.putconn(connection)


def is_async(pool: Any) -> bool:
    """Return whether a pool is for tasks."""
    return inspect.iscoroutinefunction(pool.getconn)


class _Session:
    """A connection for threads with its only cursor, and the time until which its statement may take."""

    __slots__ = ("_cursor", "_wait", "connection", "until")

    def __init__(self, connection: Any) -> None:
        from psycopg import waiting  # noqa: PLC0415 - only who uses this store pays for it
        from psycopg.rows import tuple_row  # noqa: PLC0415

        self.connection = connection
        self.until = 0.0
        self._wait = waiting.wait
        # Made once: a new cursor for each statement is a seventh of what a decision costs this process.
        self._cursor = connection.cursor(row_factory=tuple_row)
        connection.wait = self._in_time

    def execute(self, query: str, params: Params, until: float) -> Any:
        """Run a statement and return its only value."""
        self.until = until
        attempt = 1
        while True:
            try:
                return self._cursor.execute(query, params, prepare=True).fetchone()[0]
            except Exception as error:
                if getattr(error, "sqlstate", None) not in _AGAIN or attempt == _ATTEMPTS:
                    raise
                attempt += 1

    def release(self) -> None:
        """Leave the connection as it was."""
        del self.connection.wait

    def _in_time(self, exchange: Any, interval: float = 0.1, *_more: Any, **_others: Any) -> Any:
        left = self.until - SYSTEM_CLOCK.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return self._wait(exchange, self.connection.pgconn.socket, interval, left)


async def _aexecute(connection: Any, query: str, params: Params) -> Any:
    from psycopg.rows import tuple_row  # noqa: PLC0415

    attempt = 1
    while True:
        try:
            cursor = await connection.cursor(row_factory=tuple_row).execute(query, params, prepare=True)
            return (await cursor.fetchone())[0]
        except Exception as error:
            if getattr(error, "sqlstate", None) not in _AGAIN or attempt == _ATTEMPTS:
                raise
            attempt += 1


def _is_idle(connection: Any) -> bool:
    return not connection.closed and connection.pgconn.transaction_status == 0


def _is_lost(connection: Any, error: BaseException) -> bool:
    """Return whether a connection was dead; one whose server merely takes too long is not."""
    name = type(error).__name__
    if "Timeout" in name or "in time" in str(error):
        return False
    return bool(connection.closed or connection.broken) or name in {"AdminShutdown", "ConnectionException"}


def is_missing(error: BaseException) -> bool:
    """Return whether the table or its functions were dropped."""
    return getattr(error, "sqlstate", None) in {"42P01", "42883"}


def _look(task: asyncio.Task[Callable[..., Any]]) -> None:
    """Look at the error of a task that nobody waits for any more, as asyncio wants it."""
    if not task.cancelled():
        task.exception()
