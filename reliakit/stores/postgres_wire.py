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
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import psycopg

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import remaining
from reliakit.core.errors import StoreError
from reliakit.core.fork import tell_after_fork
from reliakit.core.threads import Bell, Errand
from reliakit.stores.postgres_line import Line
from reliakit.stores.ticks import Pipe, PooledTicks, Telling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliakit.stores.postgres_line import Request
    from reliakit.stores.postgres_setup import Setup

__all__ = ["TaskConnections", "ThreadConnections"]

_SHORTEST: Final = 0.001
# Seconds that connecting may take, whichever caller waits for it.
_CONNECTING: Final = 10.0


class ThreadConnections:
    """Connections for any number of threads.

    Args:
        conninfo: The connection string.
        setup: Makes a new connection ready.
        timeout: Seconds that a decision may take if no deadline comes first.
        most: The most connections.
    """

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        self._conninfo = conninfo
        self._setup = setup
        self._timeout = timeout
        self._most = most
        # Re-entrant: a finaliser that runs while it is held may give a connection back here.
        self._lock = threading.RLock()
        self._waiting: deque[Bell] = deque()
        self._idle: list[Line] = []
        self._size = 0
        self._attempts = 0
        # While an attempt to connect is younger than this, no other one begins.
        self._young_until = 0.0
        # The number of the last attempt that failed, and its error.
        self._failed: tuple[int, BaseException] | None = None
        self._is_closed = False
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent process's connections to the parent."""
        self._lock = threading.RLock()
        self._waiting = deque()
        _inherited.extend(self._idle)
        self._idle, self._size, self._young_until, self._failed = [], 0, 0.0, None

    def run(self, request: Request, /) -> list[int]:
        """Run a statement and return its answer."""
        left = remaining()
        seconds = self._timeout if left is None else max(_SHORTEST, min(left, self._timeout))
        until = SYSTEM_CLOCK.monotonic() + seconds
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
            self._put(line)

    def open(self) -> None:
        """Connect, if there is no connection yet."""
        self._put(self._take(SYSTEM_CLOCK.monotonic() + max(_CONNECTING, self._timeout)))

    def close(self) -> None:
        """Close the connections; those in use are closed when they come back."""
        self._is_closed = True
        self._close_idle()

    def _take(self, until: float) -> Line:
        before = self._attempts
        while (line := self._idle_or_wait(until, before)) is None:
            pass
        return line

    def _idle_or_wait(self, until: float, before: int) -> Line | None:
        """Return a connection, or None after a wait, when it is time to look again."""
        bell = errand = None
        try:
            with self._lock:
                with suppress(IndexError):
                    return self._idle.pop()
                now = SYSTEM_CLOCK.monotonic()
                if self._is_closed:
                    raise StoreError("closed meanwhile", store="PostgresStore")
                if now >= until:
                    raise StoreError("no connection in time", store="PostgresStore")
                # An attempt that was under way already may have failed for a reason that is over by now.
                has_failed = self._failed is not None and self._failed[0] > before
                if self._failed is not None and has_failed and not self._size:
                    raise self._failed[1]
                bell = Bell()
                self._waiting.append(bell)
                # One at a time: a hundred threads that come first must not make a hundred connections.
                if self._size < self._most and now >= self._young_until and not has_failed:
                    self._attempts += 1
                    errand = Errand(partial(self._grow, self._attempts), "reliakit-store")
                    self._young_until = now + self._timeout
            if errand is not None:
                errand.begin()
            if not self._idle:  # a finaliser may have brought one before the bell was in place
                bell.wait(until - now)
        except BaseException:
            if errand is not None and errand.take_back():
                self._young_until = 0.0
            self._unlist(bell)
            self._wake()  # the connection it was rung for goes to another waiter
            raise
        self._unlist(bell)
        return None

    def _unlist(self, bell: Bell | None) -> None:
        with self._lock:
            if bell is not None and bell in self._waiting:  # otherwise it was rung
                self._waiting.remove(bell)

    def _grow(self, attempt: int) -> None:
        # Counted here and not by the caller that starts it, which may be interrupted.
        with self._lock:
            self._size += 1
        try:
            line = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for it
            with self._lock:
                self._young_until = 0.0
                self._size -= 1
                self._failed = (attempt, error)
                self._wake_all_locked()
            return
        with self._lock:
            self._young_until = 0.0
        self._put(line)

    def _connect(self) -> Line:
        connection = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=int(_CONNECTING))
        line = Line(connection.pgconn, connection)
        try:
            self._setup.ready(line, SYSTEM_CLOCK.monotonic() + max(_CONNECTING, self._timeout))
        except BaseException:
            line.finish()
            raise
        return line

    def _put(self, line: Line) -> None:
        with self._lock:
            is_kept = line.is_idle and not self._is_closed
            if is_kept:
                self._idle.append(line)
            else:
                self._size -= 1
        self._wake()
        if not is_kept:
            line.finish()

    def _wake(self) -> None:
        """Make the first waiter look again: there is a connection, or room for one."""
        with self._lock, suppress(IndexError):  # nobody waits
            self._waiting.popleft().set()

    def _wake_all_locked(self) -> None:
        while self._waiting:
            self._waiting.popleft().set()

    def _close_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
            self._size -= len(idle)
            self._wake_all_locked()
        for line in idle:
            line.finish()


# A forked child neither uses nor closes its parent's connections: closing would end the parent's session too.
_inherited: list[Line] = []


class TaskConnections(PooledTicks):
    """Connections for the tasks of any number of event loops; see `ThreadConnections`."""

    def __init__(self, conninfo: str, setup: Setup, *, timeout: float, most: int) -> None:
        super().__init__(timeout, most)
        self._conninfo = conninfo
        self._setup = setup

    async def _connect(self) -> Pipe:
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, connect_timeout=int(_CONNECTING)
        )
        line = Line(connection.pgconn, connection)
        try:
            async with asyncio.timeout(max(_CONNECTING, self._timeout)):
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
