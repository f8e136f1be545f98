"""How a store speaks to PostgreSQL over a pool of the user's: psycopg_pool's, or one like it.

```
thread ──> PoolConnections ──> getconn ── one statement ──> putconn
task   ──> TaskPool ─────────> getconn ── all statements of this tick of the event loop ──> putconn
```

Connections are given back as they were, except for statements that stay prepared.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from psycopg.pq import TransactionStatus

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import remaining
from reliakit.stores.postgres_line import Line
from reliakit.stores.ticks import Telling, Ticks

if TYPE_CHECKING:
    from reliakit.stores.postgres_line import Request
    from reliakit.stores.postgres_setup import Setup

__all__ = ["PoolConnections", "TaskPool", "is_async"]

_SHORTEST: Final = 0.001


class PoolConnections:
    """A pool for threads.

    Args:
        pool: Such as psycopg_pool.ConnectionPool.
        setup: Creates the table.
        timeout: Seconds that a decision may take if no deadline comes first.
    """

    def __init__(self, pool: Any, setup: Setup, *, timeout: float) -> None:
        self._pool = pool
        self._setup = setup
        self._timeout = timeout
        self._lines: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()

    def run(self, request: Request, /) -> list[int]:
        """Run a statement and return its answer."""
        left = remaining()
        seconds = self._timeout if left is None else max(_SHORTEST, min(left, self._timeout))
        until = SYSTEM_CLOCK.monotonic() + seconds
        connection = self._pool.getconn(timeout=seconds)
        try:
            line = _line(self._lines, connection)
            self._setup.ensure(line, until)
            return self._setup.run(line, request, until)
        finally:
            if not _is_idle(connection):
                connection.close()
            self._pool.putconn(connection)

    def open(self) -> None:
        """Leave the pool to its owner."""

    def close(self) -> None:
        """Leave the pool to its owner."""


class TaskPool(Ticks):
    """A pool for tasks of its loop.

    Args:
        pool: Such as psycopg_pool.AsyncConnectionPool.
        setup: Creates the table.
        timeout: Seconds that a decision may take if no deadline comes first.
    """

    def __init__(self, pool: Any, setup: Setup, *, timeout: float) -> None:
        super().__init__(timeout)
        self._pool = pool
        self._setup = setup
        self._lines: WeakKeyDictionary[Any, Line] = WeakKeyDictionary()

    async def aclose(self) -> None:
        """Leave the pool to its owner."""

    async def _exchange(self, requests: list[Request], tell: Telling) -> None:
        connection = await self._pool.getconn(timeout=self._timeout)
        try:
            line = _line(self._lines, connection)
            await self._setup.aensure(line)
            await self._setup.exchange(line, requests, tell)
        finally:
            if not _is_idle(connection):
                connection.pgconn.finish()  # its close() may wait for the server
            await self._pool.putconn(connection)


def is_async(pool: Any) -> bool:
    """Return whether a pool is for tasks."""
    return inspect.iscoroutinefunction(pool.getconn)


def _line(lines: WeakKeyDictionary[Any, Line], connection: Any) -> Line:
    """Return the line that knows which statements a connection has prepared."""
    return lines.get(connection) or lines.setdefault(connection, Line(connection.pgconn))


def _is_idle(connection: Any) -> bool:
    return not connection.closed and connection.pgconn.transaction_status == TransactionStatus.IDLE
