"""`Database` for threads, `AsyncDatabase` for tasks: transactions that never leak a connection and never lie.

```
with db.transaction() as tx:  ...          one attempt
db.run(transfer, 1, 2)                      tried again when it loses a race
@db.transactional()                         the same, for functions
```
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

import psycopg
from psycopg import conninfo as conninfos

from reliakit.core import checks, guard
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.flow import run_blocking
from reliakit.core.spine import Emitter, Listener
from reliakit.database.adapters import BlockingIo, Io, SuspendingIo
from reliakit.database.blocks import AsyncTransactionBlock, TransactionBlock
from reliakit.database.checkout import Checkouts, Source
from reliakit.database.decorator import Decorator, decorate, operation_of
from reliakit.database.engine import Engine
from reliakit.database.settings import (
    DatabaseStats,
    Isolation,
    Propagation,
    TransactionOptions,
    TransactionRetry,
    options_of,
)
from reliakit.database.telling import Teller

if TYPE_CHECKING:
    from types import TracebackType

    import psycopg_pool

    from reliakit.database.transaction import AsyncTransaction, Params, Query, Transaction

__all__ = ["AsyncDatabase", "Database"]

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_COLOURED = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR
_COLOURS = {0: "plain", CO_COROUTINE: "async"}
_DEFAULT_RETRY = TransactionRetry(max_attempts=10)


class _Base:
    """Settings and everything that does not wait."""

    def __init__(
        self,
        conninfo: Any,
        *,
        pool: Any,
        io: Io,
        name: str,
        service: str | None,
        min_size: int,
        max_size: int,
        isolation: Isolation,
        timeout: float,
        lock_timeout: float | None,
        retry: TransactionRetry | None,
        row_factory: Any,
        max_lifetime: float,
        max_idle: float,
        leak_after: float,
        listeners: Iterable[Listener],
        clock: Clock,
    ) -> None:
        conninfo, pool = _origin(conninfo, pool, asynchronous=io.asynchronous)
        # One place checks whatever a transaction can also be given.
        TransactionOptions(isolation=isolation, timeout=timeout, lock_timeout=lock_timeout)
        if retry is None:
            retry = TransactionRetry(max_attempts=1)
        if not isinstance(retry, TransactionRetry):
            raise ConfigurationError(f"retry must be a TransactionRetry or None, got {retry!r}")
        if pool is None:
            checks.count("min_size", min_size, least=0)
            checks.count("max_size", max_size)
            if min_size > max_size:
                raise ConfigurationError(f"min_size must not be above max_size, got {min_size} and {max_size}")
        else:
            min_size, max_size = 0, pool.max_size or max_size
        self._name = checks.named("name", name)
        self._where = _where(conninfo) if pool is None else repr(pool)
        emitter = Emitter(name, listeners, clock)
        checkouts = Checkouts(
            Source(io, conninfo=conninfo, pool=pool, row_factory=row_factory),
            name=name,
            size=max_size,
            keep=min_size,
            max_lifetime=checks.seconds("max_lifetime", max_lifetime),
            max_idle=checks.seconds("max_idle", max_idle),
            leak_after=checks.seconds("leak_after", leak_after),
            clock=clock,
            emitter=emitter,
        )
        self._engine = Engine(
            name=name,
            isolation=isolation,
            timeout=float(timeout),
            lock_timeout=lock_timeout,
            retry=retry,
            io=io,
            checkouts=checkouts,
            teller=Teller(emitter, service=service, clock=clock, io=io),
            clock=clock,
        )

    @property
    def name(self) -> str:
        """What this database is called in errors, events and metrics."""
        return self._name

    def stats(self) -> DatabaseStats:
        """Return how many connections are open, in use, waited for and lost. Any thread; O(max_size)."""
        return self._engine.checkouts.stats()

    def __repr__(self) -> str:
        in_use, engine = self.stats().in_use, self._engine
        return (
            f"<{type(self).__name__} {self._name!r} at {self._where}, {in_use} of {engine.checkouts.size} in use, "
            f"{engine.isolation.value}, timeout={engine.timeout:g}>"
        )

    def _running(self) -> Any:
        running = self._engine.running()
        if running is None:
            raise TransactionUsageError(
                f"{self._name}: no transaction runs here; open one with transaction(), run() or @transactional()",
                name=self._name,
            )
        return running

    def _refuse_colour(self, fn: Callable[..., Any]) -> None:
        """Refuse what `run` cannot call, before a transaction begins."""
        wanted = "async" if self._engine.io.asynchronous else "plain"
        if type(fn) is FunctionType:  # looked at directly: a tenth of the price, and paid by each run
            colour = _COLOURS.get(fn.__code__.co_flags & _COLOURED, "generator")
        else:
            colour = guard.colour_of(fn, by="run")
        # A lambda that returns an awaitable is as good as an async function, and looks plain.
        if colour != wanted and not (colour == "plain" and operation_of(fn) == "<lambda>"):
            raise ConfigurationError(
                f"{operation_of(fn)} is {colour}, and {type(self).__name__}.run takes {wanted} functions"
            )


class Database(_Base):
    """Transactions on PostgreSQL for code that runs in threads.

    One object for the whole process: made once, shared by all threads. Making it connects to nothing; connections are
    opened by `open()` or by the first transactions, and closed by `close()`.

    Args:
        conninfo: A PostgreSQL connection string or URL, or a `psycopg_pool.ConnectionPool`.
        pool: The same pool by name. It stays the caller's; it is closed here only if it was opened here.
        name: What it is called in errors, events and metrics.
        service: The service it belongs to, for metrics.
        min_size: Connections that `open()` makes and that stay open.
        max_size: The most connections there may be. Ignored with a pool, which has its own.
        isolation: Isolation level of transactions that ask for none.
        timeout: Seconds that a transaction may take in all: connection, attempts, pauses, commit.
        lock_timeout: Seconds that one lock may be waited for; None leaves it to `timeout`.
        retry: How `run` and `transactional` try again; None for never.
        row_factory: Psycopg's row factory for new connections, tuples by default.
        max_lifetime: Seconds after which a connection is replaced.
        max_idle: Seconds after which a connection that nobody used is closed, down to `min_size`.
        leak_after: Seconds after which a checkout is reported with the line that took it.
        listeners: Called with this database's events, besides the process-wide listeners.
        clock: What measures time and draws jitter.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        conninfo: str | psycopg_pool.ConnectionPool[Any] | None = None,
        *,
        pool: psycopg_pool.ConnectionPool[Any] | None = None,
        name: str = "main",
        service: str | None = None,
        min_size: int = 1,
        max_size: int = 10,
        isolation: Isolation = Isolation.REPEATABLE_READ,
        timeout: float = 5.0,
        lock_timeout: float | None = None,
        retry: TransactionRetry | None = _DEFAULT_RETRY,
        row_factory: Any = None,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        leak_after: float = 60.0,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            conninfo,
            pool=pool,
            io=BlockingIo(),
            name=name,
            service=service,
            min_size=min_size,
            max_size=max_size,
            isolation=isolation,
            timeout=timeout,
            lock_timeout=lock_timeout,
            retry=retry,
            row_factory=row_factory,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            leak_after=leak_after,
            listeners=listeners,
            clock=clock,
        )

    def open(self) -> Self:
        """Connect `min_size` times now, so that a wrong address is found at start. Opening twice is harmless.

        Raises:
            psycopg.OperationalError: The server cannot be reached.
            TransactionUsageError: It was opened before this process was forked.
        """
        run_blocking(self._engine.checkouts.open(self._engine.timeout))
        return self

    def close(self) -> None:
        """Close what nobody uses, refuse new transactions, and let running ones end. Closing twice is harmless."""
        run_blocking(self._engine.checkouts.close())

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
    ) -> TransactionBlock:
        """Return a block that is a transaction: `with db.transaction() as tx: ...`. One attempt, three round trips.

        It commits when the block ends, rolls back when the block raises, and tells the truth about it.

        Args:
            isolation: Isolation level, the database's by default.
            read_only: Whether it only reads.
            deferrable: Whether a serializable read-only one may wait for a safe snapshot.
            timeout: Seconds for everything: connection, statements, commit. The database's by default; an outer
                deadline or transaction that ends first wins. Python code between statements cannot be interrupted
                in a thread; what comes after it is.
            lock_timeout: Seconds that one lock may be waited for.
            propagation: What to do inside a running transaction.
            operation: Its name in events and metrics: few, short, without ids.

        Raises:
            TransactionTimeoutError: Its time was spent; nothing was committed.
            TransactionRolledBackError: It reached its end, and was rolled back: an error in it was swallowed.
            CommitUnknownError: COMMIT was sent and its answer never came.
            TransactionUsageError: It was used against the rules, see the message.
            ConfigurationError: An argument is wrong.
        """
        return TransactionBlock(
            self._engine,
            options_of(isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation),
        )

    def run(
        self,
        fn: Callable[..., R],
        /,
        *args: Any,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> R:
        """Call `fn(tx, *args)` in a transaction and return its result, trying again where it lost a race.

        Tried again are serialization failures, deadlocks, and a connection that failed before the first statement, by
        the outermost transaction alone, after a pause with full jitter, within `timeout`.

        Args:
            fn: Takes the transaction and `args`. It may be called several times.
            args: Handed on.
            isolation: As for `transaction`, and so are the next ones.
            read_only: See there.
            deferrable: See there.
            timeout: Seconds for all attempts and pauses together.
            lock_timeout: See there.
            propagation: See there.
            operation: Its name in events and metrics; the function's qualified name by default.
            retry: The policy, the database's by default.

        Raises:
            ConfigurationError: `fn` is async, a generator or no function, or a setting is wrong.
            Exception: What `fn` or the server raised last, with a note that tells the attempts. Others as for
                `transaction`.
        """
        self._refuse_colour(fn)
        operation = operation or operation_of(fn)
        options = options_of(isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation)
        return cast("R", run_blocking(self._engine.run(options, retry, fn, args, with_transaction=True)).unwrap())

    @overload
    def transactional(self, fn: F, /) -> F: ...
    @overload
    def transactional(
        self,
        /,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> Decorator: ...
    def transactional(
        self,
        fn: Any = None,
        /,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> Any:
        """Make a function a transaction of this database, tried again as by `run`. Arguments as there.

        The function keeps its signature and finds its transaction with `current()`.
        """
        decorator = decorate(self._engine, locals(), retry)
        return decorator if fn is None else decorator(fn)

    def current(self) -> Transaction:
        """Return the transaction that this thread is in.

        Raises:
            TransactionUsageError: There is none, or it was inherited from another thread or task.
        """
        return cast("Transaction", self._running())

    def execute(self, query: Query, params: Params | None = None) -> psycopg.Cursor[Any]:
        """Run a statement in the running transaction, or in one of its own. As `Transaction.execute`."""
        running = self._engine.running()
        if running is not None:
            return cast("Transaction", running).execute(query, params)
        with self.transaction(operation="execute") as tx:
            return tx.execute(query, params)

    def fetch_one(self, query: Query, params: Params | None = None) -> Any:
        """Return the first row, or None, in the running transaction or in one of its own."""
        return self.execute(query, params).fetchone()

    def fetch_all(self, query: Query, params: Params | None = None) -> list[Any]:
        """Return all rows, in the running transaction or in one of its own."""
        return self.execute(query, params).fetchall()

    def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Return the first column of the first row, or None, in the running transaction or in one of its own."""
        running = self._engine.running()
        if running is not None:
            return cast("Transaction", running).fetch_value(query, params)
        with self.transaction(operation="execute") as tx:
            return tx.fetch_value(query, params)


class AsyncDatabase(_Base):
    """Transactions on PostgreSQL for asyncio tasks.

    One object for the whole process: made once, shared by all tasks. Making it connects to nothing; connections are
    opened by `open()` or by the first transactions, and closed by `close()`.

    Args:
        conninfo: A PostgreSQL connection string or URL, or a `psycopg_pool.AsyncConnectionPool`.
        pool: The same pool by name. It stays the caller's; it is closed here only if it was opened here.
        name: What it is called in errors, events and metrics.
        service: The service it belongs to, for metrics.
        min_size: Connections that `open()` makes and that stay open.
        max_size: The most connections there may be. Ignored with a pool, which has its own.
        isolation: Isolation level of transactions that ask for none.
        timeout: Seconds that a transaction may take in all: connection, attempts, pauses, commit.
        lock_timeout: Seconds that one lock may be waited for; None leaves it to `timeout`.
        retry: How `run` and `transactional` try again; None for never.
        row_factory: Psycopg's row factory for new connections, tuples by default.
        max_lifetime: Seconds after which a connection is replaced.
        max_idle: Seconds after which a connection that nobody used is closed, down to `min_size`.
        leak_after: Seconds after which a checkout is reported with the line that took it.
        listeners: Called with this database's events, besides the process-wide listeners.
        clock: What measures time and draws jitter.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        conninfo: str | psycopg_pool.AsyncConnectionPool[Any] | None = None,
        *,
        pool: psycopg_pool.AsyncConnectionPool[Any] | None = None,
        name: str = "main",
        service: str | None = None,
        min_size: int = 1,
        max_size: int = 10,
        isolation: Isolation = Isolation.REPEATABLE_READ,
        timeout: float = 5.0,
        lock_timeout: float | None = None,
        retry: TransactionRetry | None = _DEFAULT_RETRY,
        row_factory: Any = None,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        leak_after: float = 60.0,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            conninfo,
            pool=pool,
            io=SuspendingIo(),
            name=name,
            service=service,
            min_size=min_size,
            max_size=max_size,
            isolation=isolation,
            timeout=timeout,
            lock_timeout=lock_timeout,
            retry=retry,
            row_factory=row_factory,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            leak_after=leak_after,
            listeners=listeners,
            clock=clock,
        )

    async def open(self) -> Self:
        """Connect `min_size` times now, so that a wrong address is found at start. Opening twice is harmless.

        Raises:
            psycopg.OperationalError: The server cannot be reached.
            TransactionUsageError: It was opened before this process was forked.
        """
        await self._engine.checkouts.open(self._engine.timeout)
        return self

    async def close(self) -> None:
        """Close what nobody uses, refuse new transactions, and let running ones end. Closing twice is harmless."""
        await self._engine.checkouts.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def transaction(
        self,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
    ) -> AsyncTransactionBlock:
        """Return a block that is a transaction: `async with db.transaction() as tx: ...`. Three round trips.

        It commits when the block ends, rolls back when the block raises, and tells the truth about it.

        Args:
            isolation: Isolation level, the database's by default.
            read_only: Whether it only reads.
            deferrable: Whether a serializable read-only one may wait for a safe snapshot.
            timeout: Seconds for everything: connection, statements, commit. The database's by default; an outer
                deadline or transaction that ends first wins. The block is cut at its next await.
            lock_timeout: Seconds that one lock may be waited for.
            propagation: What to do inside a running transaction.
            operation: Its name in events and metrics: few, short, without ids.

        Raises:
            TransactionTimeoutError: Its time was spent; nothing was committed.
            TransactionRolledBackError: It reached its end, and was rolled back: an error in it was swallowed.
            CommitUnknownError: COMMIT was sent and its answer never came.
            TransactionUsageError: It was used against the rules, see the message.
            ConfigurationError: An argument is wrong.
        """
        return AsyncTransactionBlock(
            self._engine,
            options_of(isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation),
        )

    async def run(
        self,
        fn: Callable[..., Awaitable[R]],
        /,
        *args: Any,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> R:
        """Await `fn(tx, *args)` in a transaction and return its result, trying again where it lost a race.

        Tried again are serialization failures, deadlocks, and a connection that failed before the first statement, by
        the outermost transaction alone, after a pause with full jitter, within `timeout`.

        Args:
            fn: Takes the transaction and `args`. It may be called several times.
            args: Handed on.
            isolation: As for `transaction`, and so are the next ones.
            read_only: See there.
            deferrable: See there.
            timeout: Seconds for all attempts and pauses together.
            lock_timeout: See there.
            propagation: See there.
            operation: Its name in events and metrics; the function's qualified name by default.
            retry: The policy, the database's by default.

        Raises:
            ConfigurationError: `fn` is not async or no function, or a setting is wrong.
            Exception: What `fn` or the server raised last, with a note that tells the attempts. Others as for
                `transaction`.
        """
        self._refuse_colour(fn)
        operation = operation or operation_of(fn)
        options = options_of(isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation)
        return cast("R", (await self._engine.run(options, retry, fn, args, with_transaction=True)).unwrap())

    @overload
    def transactional(self, fn: F, /) -> F: ...
    @overload
    def transactional(
        self,
        /,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> Decorator: ...
    def transactional(
        self,
        fn: Any = None,
        /,
        *,
        isolation: Isolation | None = None,
        read_only: bool = False,
        deferrable: bool = False,
        timeout: float | None = None,
        lock_timeout: float | None = None,
        propagation: Propagation = Propagation.REQUIRED,
        operation: str | None = None,
        retry: TransactionRetry | None = None,
    ) -> Any:
        """Make an async function a transaction of this database, tried again as by `run`. Arguments as there.

        The function keeps its signature and finds its transaction with `current()`.
        """
        decorator = decorate(self._engine, locals(), retry)
        return decorator if fn is None else decorator(fn)

    def current(self) -> AsyncTransaction:
        """Return the transaction that this task is in.

        Raises:
            TransactionUsageError: There is none, or it was inherited from another thread or task.
        """
        return cast("AsyncTransaction", self._running())

    async def execute(self, query: Query, params: Params | None = None) -> psycopg.AsyncCursor[Any]:
        """Run a statement in the running transaction, or in one of its own. As `AsyncTransaction.execute`."""
        running = self._engine.running()
        if running is not None:
            return await cast("AsyncTransaction", running).execute(query, params)
        async with self.transaction(operation="execute") as tx:
            return await tx.execute(query, params)

    async def fetch_one(self, query: Query, params: Params | None = None) -> Any:
        """Return the first row, or None, in the running transaction or in one of its own."""
        return await (await self.execute(query, params)).fetchone()

    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Any]:
        """Return all rows, in the running transaction or in one of its own."""
        return await (await self.execute(query, params)).fetchall()

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Return the first column of the first row, or None, in the running transaction or in one of its own."""
        running = self._engine.running()
        if running is not None:
            return await cast("AsyncTransaction", running).fetch_value(query, params)
        async with self.transaction(operation="execute") as tx:
            return await tx.fetch_value(query, params)


def _origin(conninfo: Any, pool: Any, *, asynchronous: bool) -> tuple[str, Any]:
    """Tell a conninfo from a pool, and refuse what is neither, both, or of the other colour."""
    if pool is None and hasattr(conninfo, "getconn"):
        conninfo, pool = None, conninfo
    if (conninfo is None) == (pool is None):
        raise ConfigurationError("give either a conninfo or a pool=, such as Database('postgresql://localhost/app')")
    if pool is None:
        if not isinstance(conninfo, str):
            raise ConfigurationError(f"conninfo must be text or a pool, got {type(conninfo).__name__}")
        try:
            conninfos.conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            # Not chained: the driver's message may repeat the text, password included.
            raise ConfigurationError("conninfo is not a valid PostgreSQL connection string") from None
        return conninfo, None
    if not (hasattr(pool, "getconn") and hasattr(pool, "putconn")):
        raise ConfigurationError(f"pool must be a psycopg_pool.ConnectionPool or its async twin, got {pool!r}")
    if iscoroutinefunction(pool.getconn) is not asynchronous:
        wanted = "AsyncDatabase takes an AsyncConnectionPool" if asynchronous else "Database takes a ConnectionPool"
        raise ConfigurationError(f"{wanted}, got {type(pool).__name__}")
    return "", pool


def _where(conninfo: str) -> str:
    """Return what may be shown of a conninfo."""
    known = conninfos.conninfo_to_dict(conninfo)
    return f"{known.get('host', 'the default host')}/{known.get('dbname', 'the default database')}"
