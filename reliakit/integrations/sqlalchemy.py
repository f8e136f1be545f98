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

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.database.transaction import AsyncTransaction, Handle, Transaction
from reliakit.integrations.sqlalchemy_pools import (
    AsyncEnginePool,
    Checkout,
    EnginePool,
    checkout_of,
    give_to,
    transaction_of,
)

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["AsyncEnginePool", "AsyncSessionBlock", "EnginePool", "SessionBlock", "connection", "session"]

S = TypeVar("S", bound=Session)
A = TypeVar("A", bound=AsyncSession)
T = TypeVar("T")
U = TypeVar("U")


class _TransactionConnection(Connection):
    """A Core connection that lives as long as its transaction."""

    def close(self) -> None:
        """Do nothing: the connection goes back when the transaction ends."""

    def exec_driver_sql(self, *args: Any, **options: Any) -> Any:
        """Check that the transaction runs, which an event does for other statements."""
        transaction_of(self).session()
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
    checkout = checkout_of(_checked("connection", tx).connection)
    return _connect_async(checkout, tx) if isinstance(tx, AsyncTransaction) else _connect(checkout, tx)


def _connect(checkout: Checkout, tx: Handle) -> Connection:
    known = checkout.connections.get(tx)
    if known is None:
        known = _TransactionConnection(checkout.engine, checkout.fairy)
        give_to(known, tx)
        known.begin()  # sends nothing: SQLAlchemy has psycopg begin, and psycopg leaves that to us
        checkout.connections[tx] = known
    return cast("Connection", known)


async def _connect_async(checkout: Checkout, tx: Handle) -> AsyncConnection:
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
    checkout_of(tx.connection)
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
