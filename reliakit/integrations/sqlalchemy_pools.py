"""The pool of an SQLAlchemy engine as a pool for a database.

```
Database ── getconn, putconn ──> EnginePool ──> engine ──> psycopg connections
Connection or Session on one of them ── before and after each statement ──> rules of the transaction that has it
```
"""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any, cast

import psycopg
import psycopg_pool
from psycopg import pq
from sqlalchemy import event, exc, pool
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.elements import RollbackToSavepointClause
from sqlalchemy.util import greenlet_spawn

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.database.borrowing import Loan

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

    from reliakit.database.transaction import Handle

__all__ = ["AsyncEnginePool", "Checkout", "EnginePool", "checkout_of", "give_to", "transaction_of"]

# Where a borrowed psycopg connection keeps its checkout, and a Connection its transaction.
_CHECKOUT = "_reliakit_checkout"
_TRANSACTION = "reliakit_transaction"


class Checkout:
    """One connection of an engine's pool while a database has it."""

    def __init__(self, engine: Engine, asynchronous: AsyncEngine | None, fairy: PoolProxiedConnection) -> None:
        self.engine = engine
        self.asynchronous = asynchronous
        self.fairy = fairy
        self.lender: pool.Pool = engine.pool
        # One for each block that asked, held no longer than the block: none keeps an abandoned transaction alive.
        self.connections: weakref.WeakKeyDictionary[Handle, Connection | AsyncConnection] = (
            weakref.WeakKeyDictionary()
        )

    def lend(self) -> Any:
        """Return the psycopg connection, which knows its checkout from now on."""
        driver = self.fairy.driver_connection
        driver.__dict__[_CHECKOUT] = self
        return driver

    def end(self) -> None:
        """Give it back, or throw it away if it is not as clean as it came."""
        driver = self.fairy.driver_connection
        if driver is None:
            return  # SQLAlchemy threw it away already
        driver.__dict__.pop(_CHECKOUT, None)
        # After dispose() nobody would close a connection that goes back to the former pool.
        if driver.pgconn.transaction_status != pq.TransactionStatus.IDLE or self.engine.pool is not self.lender:
            self.fairy.invalidate()
        else:
            self.fairy.close()


class _EnginePool:
    """The part of a pool that both colours share."""

    closed = False  # an engine connects on demand

    def __init__(self, engine: Engine) -> None:
        _refuse_foreign(engine)
        # An engine of our own over the same pool, so that our events only come for our connections.
        self._engine = engine.execution_options()
        event.listen(self._engine, "before_execute", _check_use)
        event.listen(self._engine, "after_cursor_execute", _count_rows)
        event.listen(self._engine, "commit", _refuse_end)
        event.listen(self._engine, "rollback", _refuse_end)
        self._max_size = _size_of(engine.pool)

    @property
    def max_size(self) -> int | None:
        """The most connections that the engine's pool lends; None if it sets no limit and `max_size` does."""
        return self._max_size

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._engine.url!r}>"


class EnginePool(_EnginePool):
    """The connections of an SQLAlchemy engine, as a pool for `Database`: `Database(EnginePool(engine))`.

    The engine stays yours: other code may use it meanwhile, and calling `dispose()` is up to you. Safe from any
    thread.

    Args:
        engine: From `create_engine("postgresql+psycopg://...")`, with any pool but SingletonThreadPool.

    Raises:
        ConfigurationError: Another database or driver, an AsyncEngine, or an engine that sets isolation itself.
    """

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[Any]:
        """Take a connection, waiting for at most `timeout` seconds.

        Raises:
            psycopg_pool.PoolTimeout: None came free in time.
            psycopg.OperationalError: The server cannot be reached.
        """
        if timeout is None or _looks_idle(self._engine.pool):
            return self._checkout()
        # SQLAlchemy has no time limit for a single call, so another thread waits in its queue or for the server.
        return cast("psycopg.Connection[Any]", Loan(_Unbounded(self), timeout).get(timeout))

    def putconn(self, connection: psycopg.Connection[Any]) -> None:
        """Give a connection back. One that is closed or inside a transaction is thrown away."""
        checkout_of(connection).end()

    def _checkout(self) -> psycopg.Connection[Any]:
        try:
            fairy = self._engine.raw_connection()
        except exc.TimeoutError as error:
            raise psycopg_pool.PoolTimeout(str(error)) from error
        return cast("psycopg.Connection[Any]", Checkout(self._engine, None, fairy).lend())


class _Unbounded:
    """The pool of a `Loan`, which limits the wait itself."""

    def __init__(self, lender: EnginePool) -> None:
        self._lender = lender

    def getconn(self, timeout: float) -> psycopg.Connection[Any]:  # noqa: ARG002 - as of every pool
        return self._lender.getconn()

    def putconn(self, connection: psycopg.Connection[Any]) -> None:
        self._lender.putconn(connection)


class AsyncEnginePool(_EnginePool):
    """The connections of an SQLAlchemy AsyncEngine, for `AsyncDatabase`: `AsyncDatabase(AsyncEnginePool(engine))`.

    The engine stays yours, as for `EnginePool`. Usable from any task of the engine's event loop.

    Args:
        engine: From `create_async_engine("postgresql+psycopg://...")`.

    Raises:
        ConfigurationError: As for `EnginePool`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        if not isinstance(engine, AsyncEngine):  # only its engine waits as tasks do
            raise ConfigurationError(f"AsyncEnginePool takes an AsyncEngine, got {engine!r}")
        super().__init__(engine.sync_engine)
        self._async_engine = engine
        # Event loops keep only weak references to tasks.
        self._late: set[asyncio.Task[None]] = set()

    async def getconn(self, timeout: float | None = None) -> psycopg.AsyncConnection[Any]:
        """Take a connection, waiting for at most `timeout` seconds. Raises as for `EnginePool`."""
        task = asyncio.ensure_future(self._async_engine.raw_connection())
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout)
        except BaseException:
            self._return_late(task)
            raise
        if not done:
            self._return_late(task)
            raise psycopg_pool.PoolTimeout(f"the engine's pool had no connection within {timeout:g} s")
        try:
            fairy = task.result()
        except exc.TimeoutError as error:
            raise psycopg_pool.PoolTimeout(str(error)) from error
        checkout = Checkout(self._engine, self._async_engine, fairy)
        return cast("psycopg.AsyncConnection[Any]", checkout.lend())

    async def putconn(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Give a connection back. One that is closed or inside a transaction is thrown away."""
        await greenlet_spawn(checkout_of(connection).end)

    def _return_late(self, task: asyncio.Future[PoolProxiedConnection]) -> None:
        """Let a checkout that nobody waits for end by itself, so that SQLAlchemy's bookkeeping stays intact."""

        async def give_back() -> None:
            try:
                fairy = await task
            except Exception:  # noqa: BLE001 - there is nothing to give back, and nobody waits
                return
            await greenlet_spawn(fairy.close)

        late = asyncio.create_task(give_back())
        self._late.add(late)
        late.add_done_callback(self._late.discard)


def checkout_of(driver: Any) -> Checkout:
    """Return the checkout that a psycopg connection came with.

    Raises:
        ConfigurationError: It does not come from an engine's pool.
    """
    checkout: Checkout | None = driver.__dict__.get(_CHECKOUT)
    if checkout is None:
        raise ConfigurationError(
            "this database's connections do not come from an SQLAlchemy engine: make it with "
            "Database(EnginePool(engine)) or AsyncDatabase(AsyncEnginePool(engine))"
        )
    return checkout


def give_to(core: Connection, tx: Handle) -> None:
    """Let a connection follow the rules of this transaction from now on."""
    core.execution_options(**{_TRANSACTION: weakref.ref(tx)})


def transaction_of(core: Connection) -> Handle:
    """Return the transaction that a connection belongs to.

    Raises:
        TransactionUsageError: It is over.
    """
    tx = core.get_execution_options()[_TRANSACTION]()
    if tx is None:
        raise TransactionUsageError("this connection's transaction is over")
    return cast("Handle", tx)


def _check_use(core: Connection, clause: object, *_: object) -> None:
    # AsyncSession.close() rolls back to its savepoint in a task that it creates for that, and waits for it.
    if not isinstance(clause, RollbackToSavepointClause):
        transaction_of(core).session()


def _count_rows(core: Connection, cursor: Any, *_: object) -> None:
    if cursor.rowcount > 0:
        transaction_of(core).work.rows += cursor.rowcount


def _refuse_end(core: Connection) -> None:
    name = transaction_of(core).operation
    raise TransactionUsageError(
        f"the transaction {name!r} ends with its block: raise an error or call tx.set_rollback_only() to roll back, "
        "and use begin_nested() for a part of it",
        name=name,
    )


def _refuse_foreign(engine: Any) -> None:
    if isinstance(engine, AsyncEngine):
        raise ConfigurationError("EnginePool takes an Engine: for an AsyncEngine use AsyncEnginePool")
    if not isinstance(engine, Engine):
        raise ConfigurationError(f"engine must be an SQLAlchemy Engine, got {engine!r}")
    spoken = f"{engine.dialect.name}+{engine.dialect.driver}"
    if not spoken.startswith("postgresql+psycopg") or engine.dialect.driver not in ("psycopg", "psycopg_async"):
        raise ConfigurationError(
            f"engine speaks {spoken}, and reliakit's transactions are made for psycopg 3: "
            'use create_engine("postgresql+psycopg://...")'
        )
    set_by_engine = {"isolation_level", "postgresql_readonly", "postgresql_deferrable"} & set(
        engine.get_execution_options()
    )
    if set_by_engine:
        raise ConfigurationError(
            f"engine sets {', '.join(sorted(set_by_engine))} for its connections: give the engine without it, and "
            "isolation= or read_only= to the database or the transaction"
        )


def _size_of(lender: pool.Pool) -> int | None:
    if isinstance(lender, pool.SingletonThreadPool):
        raise ConfigurationError(
            "engine uses SingletonThreadPool, which lends one connection twice: use QueuePool, the default"
        )
    if isinstance(lender, pool.StaticPool | pool.AssertionPool):
        return 1
    if not isinstance(lender, pool.QueuePool):
        return None
    # Not public. Size 0 and overflow -1 mean no limit in SQLAlchemy.
    overflow = cast("int", getattr(lender, "_max_overflow", 0))
    return None if lender.size() == 0 or overflow < 0 else lender.size() + overflow


def _looks_idle(lender: pool.Pool) -> bool:
    """Return whether a checkout will get an idle connection without asking the server anything."""
    if not isinstance(lender, pool.QueuePool) or lender.checkedin() == 0:
        return False
    # Not public: a connection that is pinged, or replaced for its age, may wait for the server.
    return not getattr(lender, "_pre_ping", True) and cast("int", getattr(lender, "_recycle", 0)) < 0
