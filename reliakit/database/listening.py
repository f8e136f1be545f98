"""LISTEN on a connection of its own: woken by a NOTIFY, waits no longer than asked, at worst hears nothing.

Its user looks for work every now and then anyway, so a connection that fails only makes that look late. It is opened
again after growing pauses; meanwhile the time between two looks is slept. Behind a pooler that shares sessions it
does not listen at all: LISTEN would stay in a session of other clients, who would be sent what they never asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, pq

from reliakit.core.backoff import Backoff
from reliakit.database.driver import INTERVAL, WaitTimeout
from reliakit.database.pooler import THERE, question

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.database.source import Source

__all__ = ["Ear"]

# Seconds that connecting, the question for a pooler, and LISTEN may each take: the look for work may come late by as
# much.
_PATIENCE = 2.0
_PAUSES = Backoff(base=0.5, cap=30.0, jitter=0.5)


class Ear:
    """One process's listening connection on one channel.

    Args:
        source: Where the database's connections come from.
        channel: The channel to listen on.
        clock: Measures the pauses.
    """

    def __init__(self, source: Source, channel: str, clock: Clock) -> None:
        self._source = source
        self._io = source.io
        self._command = f'LISTEN "{channel}"'.encode("ascii")
        self._clock = clock
        self._connection: Any = None
        self._failures = 0
        self._not_before = clock.monotonic()

    async def open(self) -> None:
        """Listen, unless it does already or has just failed to. At most 3 * 2 s; if that fails, it stays deaf."""
        if self._connection is not None or self._clock.monotonic() < self._not_before:
            return
        try:
            connection = self._connection = await self._source.connect_apart(_PATIENCE)
            if connection is None:
                self._not_before = float("inf")  # the pool does not say how it connects
                return
            if await self._ask(connection.pgconn, question(connection.pgconn)) == THERE:
                self.close()
                self._not_before = float("inf")
                return
            await self._ask(connection.pgconn, self._command)
        except psycopg.Error:
            # Not reported here: the next look for work meets the same server, and reports it.
            self._failed()
        except BaseException:
            self.close()
            raise
        else:
            self._failures = 0

    async def wait(self, seconds: float) -> bool:
        """Wait for a notification or until `seconds` have passed; return whether there was a notification."""
        if self._connection is None:
            await self._io.sleep(self._clock, seconds)
            return False
        pgconn = self._connection.pgconn
        try:
            await self._io.wait(generators.notifies(pgconn), pgconn.socket, INTERVAL, seconds)
        except WaitTimeout:
            return False
        except psycopg.Error:
            self._failed()  # as above
            return False
        return True

    async def _ask(self, pgconn: Any, command: bytes) -> bytes | None:
        """Run a command and return its tag."""
        pgconn.send_query(command)
        results = await self._io.wait(generators.execute(pgconn), pgconn.socket, INTERVAL, _PATIENCE)
        if results[-1].status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(results[-1])
        tag: bytes | None = results[-1].command_status
        return tag

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pgconn.finish()

    def _failed(self) -> None:
        self.close()
        self._failures += 1
        self._not_before = self._clock.monotonic() + _PAUSES.delay(self._failures, self._clock.random)
