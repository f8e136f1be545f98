"""SQLAlchemy 2 engines, connections and sessions inside reliakit's transactions.

```
engine = create_engine("postgresql+psycopg://...")
db = Database(EnginePool(engine))                 AsyncDatabase(AsyncEnginePool(async_engine))

with db.transaction() as tx:
    with session(tx) as s:                        an ORM Session; async with for an AsyncSession
        s.add(Account(balance=100))
    connection(tx).execute(select(Account))       a Core Connection; awaited in an AsyncDatabase
```

The engine's pool lends its connections; BEGIN with its limits, the deadline of every statement, COMMIT and its
answer, retries, hooks and propagation are the database's, as with any other pool. So its guarantees hold for ORM and
Core too: no connection leaks, no outcome is misreported, and what is late is cut off and raises
TransactionTimeoutError.

What SQLAlchemy's own words mean here:

- A session works inside a savepoint. `commit()` flushes and releases it, `rollback()` goes back to it; neither ends
  the transaction. The block around the session commits it when it ends well, and rolls it back when it raises.
- So a Session's `after_commit` event comes before COMMIT, and COMMIT may still fail: use `tx.after_commit`.
- The engine's `begin` event comes after our BEGIN, when the connection is first asked for; its `commit` and
  `rollback` events do not come. `commit()` and `rollback()` of a Core connection raise TransactionUsageError.
- A cancellation or Ctrl-C in a statement of SQLAlchemy's makes SQLAlchemy close that connection, and its pool opens
  another.
- Isolation is the database's or the transaction's, whatever `create_engine(isolation_level=)` says; an engine with
  execution options for it is refused.
- While other code uses the same engine up, a checkout waits as long as the transaction's time allows. If the pool
  seems to have an idle connection that such code takes at that very moment, `pool_timeout` limits the wait instead.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

import psycopg
import psycopg_pool
from psycopg import pq
from sqlalchemy import event, exc, pool
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import RollbackToSavepointClause
from sqlalchemy.util import greenlet_spawn

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.database.borrowing import Loan
from reliakit.database.transaction import AsyncTransaction, Handle, Transaction

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["AsyncEnginePool", "AsyncSessionBlock", "EnginePool", "SessionBlock", "connection", "session"]

S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)
T = TypeVar("T")
U = TypeVar("U")

# Where a borrowed psycopg connection keeps its checkout, and a Connection its transaction.
_CHECKOUT = "_reliakit_checkout"
_TRANSACTION = "reliakit_transaction"


class _Checkout:
    """One connection of an engine's pool while a database has it."""

    def __init__(self, engine: Engine, asynchronous: AsyncEngine | None, fairy: PoolProxiedConnection) -> None:
        self.engine = engine
        self.asynchronous = asynchronous
        self.fairy = fairy
        self.lender = engine.pool
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
        _checkout_of(connection).end()

    def _checkout(self) -> psycopg.Connection[Any]:
        try:
            fairy = self._engine.raw_connection()
        except exc.TimeoutError as error:
            raise psycopg_pool.PoolTimeout(str(error)) from error
        return cast("psycopg.Connection[Any]", _Checkout(self._engine, None, fairy).lend())


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
        checkout = _Checkout(self._engine, self._async_engine, fairy)
        return cast("psycopg.AsyncConnection[Any]", checkout.lend())

    async def putconn(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Give a connection back. One that is closed or inside a transaction is thrown away."""
        await greenlet_spawn(_checkout_of(connection).end)

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


class _TransactionConnection(Connection):
    """A Core connection that lives as long as its transaction."""

    def close(self) -> None:
        """Do nothing: the connection goes back when the transaction ends."""

    def exec_driver_sql(self, *args: Any, **options: Any) -> Any:
        """Check that the transaction runs, which an event does for other statements."""
        _transaction_of(self).session()
        return super().exec_driver_sql(*args, **options)


@overload
def connection(tx: Transaction) -> Connection: ...
@overload
def connection(tx: AsyncTransaction) -> Coroutine[Any, Any, AsyncConnection]: ...
def connection(tx: Handle) -> Any:
    """Return the SQLAlchemy connection that a transaction runs on; to be awaited in an AsyncDatabase.

    It is the same one each time. Its statements have the transaction's deadline and belong to its thread or task;
    `begin_nested()` sets savepoints; closing it does nothing.

    Args:
        tx: A transaction of a database that borrows from an `EnginePool` or `AsyncEnginePool`.

    Raises:
        ConfigurationError: The database's connections come from elsewhere.
        TransactionUsageError: The transaction is over, or this is another thread or task.
    """
    checkout = _checkout_of(_checked("connection", tx).connection)
    return _connect_async(checkout, tx) if isinstance(tx, AsyncTransaction) else _connect(checkout, tx)


def _connect(checkout: _Checkout, tx: Handle) -> Connection:
    known = checkout.connections.get(tx)
    if known is None:
        known = _TransactionConnection(checkout.engine, checkout.fairy)
        known.execution_options(**{_TRANSACTION: weakref.ref(tx)})
        known.begin()  # sends nothing: SQLAlchemy has psycopg begin, and psycopg leaves that to us
        checkout.connections[tx] = known
    return cast("Connection", known)


async def _connect_async(checkout: _Checkout, tx: Handle) -> AsyncConnection:
    known = checkout.connections.get(tx)
    if known is None:
        core = await greenlet_spawn(_connect, checkout, tx)
        assert checkout.asynchronous is not None
        known = checkout.connections[tx] = AsyncConnection(checkout.asynchronous, core)
    return cast("AsyncConnection", known)


@overload
def session(tx: Transaction, **options: Any) -> SessionBlock[Session]: ...
@overload
def session(tx: Transaction, factory: Callable[..., S], **options: Any) -> SessionBlock[S]: ...
@overload
def session(tx: AsyncTransaction, **options: Any) -> AsyncSessionBlock[AsyncSession]: ...
@overload
def session(tx: AsyncTransaction, factory: Callable[..., A], **options: Any) -> AsyncSessionBlock[A]: ...
def session(tx: Handle, factory: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Return a block that is an ORM session inside a transaction.

    The session works in a savepoint of its own, set by its first statement. If the block ends well, the session is
    committed into the transaction, so nothing that was added is forgotten; if it raises, the session is rolled back
    and the error goes on. It costs two round trips more than its statements.

    Args:
        tx: A transaction of a database that borrows from an `EnginePool` or `AsyncEnginePool`.
        factory: Makes the session: a sessionmaker, an async_sessionmaker or a class; Session or AsyncSession by
            default, with `expire_on_commit=False`, so that objects stay readable after the block.
        options: Passed on to the factory.

    Raises:
        ConfigurationError: The database's connections come from elsewhere, or an option would end the transaction.
        TransactionUsageError: The transaction is over, belongs to another thread or task, or does not exist
            (SUPPORTS).
    """
    for name in ("bind", "join_transaction_mode", "twophase"):
        if name in options:
            raise ConfigurationError(f"session: {name} is given by the transaction, leave it out")
    if _checked("session", tx).is_bare:
        raise TransactionUsageError("session: a session needs a transaction, and none runs here: open one")
    _checkout_of(tx.connection)
    if isinstance(tx, AsyncTransaction):
        return AsyncSessionBlock(tx, factory or partial(AsyncSession, expire_on_commit=False), options)
    return SessionBlock(tx, factory or partial(Session, expire_on_commit=False), options)


class _Block(Generic[T, U]):
    """The part of a session's block that both colours share."""

    def __init__(self, tx: T, factory: Callable[..., U], options: dict[str, Any]) -> None:
        self._tx = tx
        self._factory = factory
        self._options = options
        self._session: U | None = None

    def _begin(self, bind: Connection | AsyncConnection) -> U:
        if self._session is not None:
            raise ConfigurationError("a session() is for one block: call it again for the next one")
        self._session = self._factory(bind=bind, join_transaction_mode="create_savepoint", **self._options)
        return self._session

    def __repr__(self) -> str:
        state = "not begun" if self._session is None else "begun"
        return f"<{type(self).__name__} of {self._tx!r}, {state}>"


class SessionBlock(_Block[Transaction, S]):
    """One session of a transaction, made by `session()` for one use."""

    def __enter__(self) -> S:
        return self._begin(connection(self._tx))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        _finish(self._tx, self._session, error)


class AsyncSessionBlock(_Block[AsyncTransaction, A]):
    """One session of a transaction, made by `session()` for one use."""

    async def __aenter__(self) -> A:
        return self._begin(await connection(self._tx))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        # In this very task: SQLAlchemy's own `async with` closes in another one, which the transaction refuses.
        await greenlet_spawn(_finish, self._tx, self._session.sync_session, error)


def _finish(tx: Handle, orm: Session, error: BaseException | None) -> None:
    """Commit a session into its transaction, or roll it back to where it began."""
    if error is None:
        try:
            orm.commit()
        except BaseException as failed:
            _discard(tx, orm, failed)
            raise
    _discard(tx, orm, error)


def _discard(tx: Handle, orm: Session, error: BaseException | None) -> None:
    try:
        orm.close()
    except Exception as again:
        # Part of the session's work may stand, so the transaction must not commit, even if the error is swallowed.
        tx.doomed = True
        if error is None:
            raise
        error.add_note(f"reliakit: its session could not be rolled back alone, so the transaction will be: {again}")


def _checked(function: str, tx: Handle) -> Handle:
    if not isinstance(tx, Handle):
        raise ConfigurationError(f"{function} takes the transaction, such as db.current(), got {tx!r}")
    return tx


def _checkout_of(driver: Any) -> _Checkout:
    checkout: _Checkout | None = driver.__dict__.get(_CHECKOUT)
    if checkout is None:
        raise ConfigurationError(
            "this database's connections do not come from an SQLAlchemy engine: make it with "
            "Database(EnginePool(engine)) or AsyncDatabase(AsyncEnginePool(engine))"
        )
    return checkout


def _transaction_of(core: Connection) -> Handle:
    tx = core.get_execution_options()[_TRANSACTION]()
    if tx is None:
        raise TransactionUsageError("this connection's transaction is over")
    return cast("Handle", tx)


def _check_use(core: Connection, clause: object, *_: object) -> None:
    # AsyncSession.close() rolls back to its savepoint in a task that it creates for that, and waits for it.
    if not isinstance(clause, RollbackToSavepointClause):
        _transaction_of(core).session()


def _count_rows(core: Connection, cursor: Any, *_: object) -> None:
    if cursor.rowcount > 0:
        _transaction_of(core).work.rows += cursor.rowcount


def _refuse_end(core: Connection) -> None:
    name = _transaction_of(core).operation
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
