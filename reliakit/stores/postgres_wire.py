"""How a store speaks to PostgreSQL over connections of its own: one statement each, in no transaction.

```
thread ──> ThreadConnections ──> one of a few, for one statement; made by a thread of its own when none is idle
task   ──> TaskConnections   ──> one of a few of its event loop's, for all statements of this tick
```

A caller that gives up on a connection attempt leaves it to get ready for the next decision. A caller that is cut off
leaves its statement to end by itself: cancelling it would take a round trip to a server that may be stalled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.stores.connections import CONNECTING, Connections
from reliakit.stores.postgres_line import Line
from reliakit.stores.ticks import Pipe, PooledTicks, Telling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliakit.stores.postgres_line import Request
    from reliakit.stores.postgres_setup import Setup

__all__ = ["TaskConnections", "ThreadConnections"]


class ThreadConnections(Connections[Line]):
    """Connections for any number of threads.

    Args:
        conninfo: The connection string.
        setup: Makes a new connection ready.
        timeout: Seconds that a decision may take if no deadline comes first.
        most: The most connections.
    """

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        super().__init__("PostgresStore", timeout=timeout, most=most)
        self._conninfo = conninfo
        self._setup = setup

    def run(self, request: Request, /) -> list[int]:
        """Run a statement and return its answer."""
        until = self._until()
        line = self._take(until)
        answers = line.answers
        try:
            return self._run_on(line, request, until)
        except Exception as error:
            if line.answers != answers or not line.is_lost(error):
                raise
        # The server was restarted, or dropped the connection for being idle; the others are as old.
        self._close_idle()
        return self._run_on(self._take(until), request, until)

    def _run_on(self, line: Line, request: Request, until: float) -> list[int]:
        try:
            return self._setup.run(line, request, until)
        finally:
            self._put(line, is_good=line.is_idle)

    def _connect(self) -> Line:
        connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=int(CONNECTING))
        line = Line(connection.pgconn, connection)
        try:
            self._setup.ready(line, SYSTEM_CLOCK.monotonic() + max(CONNECTING, self._timeout))
        except BaseException:
            line.finish()
            raise
        return line

    def _drop(self, line: Line) -> None:
        line.finish()


class TaskConnections(PooledTicks):
    """Connections for the tasks of any number of event loops; see `ThreadConnections`."""

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        super().__init__(timeout, most)
        self._conninfo = conninfo
        self._setup = setup

    async def _connect(self) -> Pipe:
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, connect_timeout=int(CONNECTING)
        )
        line = Line(connection.pgconn, connection)
        try:
            async with asyncio.timeout(max(CONNECTING, self._timeout)):
                await self._setup.aready(line)
        except BaseException:
            line.finish()
            raise
        return _Pipe(line, self._setup)


class _Pipe:
    """A connection of an event loop."""

    def __init__(self, line: Line, setup: Setup) -> None:
        self._line = line
        self._setup = setup
        self._answers = line.answers

    async def exchange(self, requests: Sequence[Request], tell: Telling, /) -> None:
        self._answers = self._line.answers
        await self._setup.exchange(self._line, requests, tell)

    def is_lost(self, error: Exception) -> bool:
        return self._line.answers == self._answers and self._line.is_lost(error)

    async def close(self) -> None:
        self._line.finish()

    drop = close
