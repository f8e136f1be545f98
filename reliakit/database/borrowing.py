"""Connections on their way from and to a pool of psycopg_pool, in threads that no Ctrl-C can interrupt.

KeyboardInterrupt is raised in the main thread only. If it came inside the pool's own queue or bookkeeping there, a
connection would be lost for good, so the main thread lets other threads do that and stays interruptible while it
waits for them.
"""

from __future__ import annotations

from _thread import RLock, start_new_thread
from typing import TYPE_CHECKING, Any, Protocol

from reliakit.core.flow import Outcome
from reliakit.core.threads import Errand

if TYPE_CHECKING:
    import psycopg

__all__ = ["AsyncPool", "Loan", "Pool", "Return", "give_back_later"]


class Pool(Protocol):
    """What a `Database` borrows from: a `psycopg_pool.ConnectionPool`, or anything that lends psycopg connections.

    A database takes at most `max_size` connections at a time, and returns each one idle or closed.
    """

    @property
    def closed(self) -> bool:
        """Whether it must be opened before it lends."""
        ...

    @property
    def max_size(self) -> int | None:
        """The most connections it lends; None for no limit of its own."""
        ...

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        """Lend a connection within `timeout` seconds, or raise `psycopg_pool.PoolTimeout` if none came free."""
        ...

    def putconn(self, conn: Any, /) -> None:
        """Take a connection back."""
        ...


class AsyncPool(Protocol):
    """What an `AsyncDatabase` borrows from: a `psycopg_pool.AsyncConnectionPool`, or anything that acts as one."""

    @property
    def closed(self) -> bool:
        """See `Pool`."""
        ...

    @property
    def max_size(self) -> int | None:
        """See `Pool`."""
        ...

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:
        """See `Pool`."""
        ...

    async def putconn(self, conn: Any, /) -> None:
        """See `Pool`."""
        ...


class Loan:
    """A connection on its way from a pool to a thread that may be interrupted meanwhile."""

    def __init__(self, pool: Any, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._errand = Errand(self._fetch)
        # Re-entrant, as the pool's own lock is: a finaliser may end a block while this thread holds it.
        self._lock = RLock()
        self._abandoned = False
        self._outcome: Outcome[Any] = Outcome()

    def get(self, bound: float | None = None) -> Any:
        """Ask the pool and wait for what it lends, for at most `bound`; a connection that comes later goes back."""
        try:
            self._errand.begin()
            if not self._errand.wait(bound):
                from psycopg_pool import PoolTimeout  # noqa: PLC0415 - whoever has no pool need not load it

                raise PoolTimeout(f"the pool had no connection within {bound:g} s")
            return self._outcome.unwrap()
        except BaseException:
            with self._lock:
                self._abandoned = True
                late = self._outcome.value
            if late is not None:
                self._pool.putconn(late)
            raise

    def _fetch(self) -> None:
        try:
            outcome: Outcome[Any] = Outcome(self._pool.getconn(timeout=self._seconds))
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            outcome = Outcome(error=error)
        with self._lock:
            self._outcome = outcome
            abandoned = self._abandoned
        if abandoned and outcome.error is None:
            self._pool.putconn(outcome.value)


class Return:
    """A connection on its way back to a pool, in a thread that no Ctrl-C can interrupt."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self._pool = pool
        self._connection = connection
        self._error: BaseException | None = None
        self._errand = Errand(self._put)

    def finish(self) -> None:
        """Start the return if it has not begun, wait for its end, and raise what the pool raised."""
        self._errand.begin()
        self._errand.wait()
        if self._error is not None:
            raise self._error

    def _put(self) -> None:
        try:
            self._pool.putconn(self._connection)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error


def give_back_later(pool: Any, connection: Any) -> None:
    """Return a connection in a thread of its own, without waiting for it."""
    start_new_thread(pool.putconn, (connection,))
