"""Connections on their way from and to a pool of psycopg_pool, in threads where no Ctrl-C can stop them.

KeyboardInterrupt is raised in the main thread alone. One that fell into the pool's own queue or bookkeeping there
would lose a connection for good, so the main thread lets others do it and can be interrupted while it waits for them.
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

    It is asked for no more than `max_size` connections at a time, and gets each one back idle or closed.
    """

    @property
    def closed(self) -> bool:
        """Whether it has to be opened before it lends."""
        ...

    @property
    def max_size(self) -> int | None:
        """The most connections it lends, None for no limit of its own."""
        ...

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        """Lend a connection within so many seconds; raise `psycopg_pool.PoolTimeout` if none came free."""
        ...

    def putconn(self, conn: Any, /) -> None:
        """Take one back."""
        ...


class AsyncPool(Protocol):
    """The same for an `AsyncDatabase`: a `psycopg_pool.AsyncConnectionPool`, or what does as one does."""

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
    """One connection on its way from a pool to a thread that may have been interrupted meanwhile."""

    def __init__(self, pool: Any, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._errand = Errand(self._fetch)
        # Re-entrant, as the pool's own is: garbage that is collected while it is held may be a block that ends.
        self._lock = RLock()
        self._abandoned = False
        self._outcome: Outcome[Any] = Outcome()

    def get(self, bound: float | None = None) -> Any:
        """Have the pool asked and wait for what it lends, at most so long; what comes later goes straight back."""
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
    """One connection on its way back to a pool, in a thread where no Ctrl-C can stop it."""

    def __init__(self, pool: Any, connection: Any) -> None:
        self._pool = pool
        self._connection = connection
        self._error: BaseException | None = None
        self._errand = Errand(self._put)

    def finish(self) -> None:
        """Start it unless that was done before, wait for its end, and raise what the pool raised."""
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
    """Have a thread of its own do it, for which nobody waits."""
    start_new_thread(pool.putconn, (connection,))
