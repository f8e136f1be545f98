"""`Database`: transactions for threads that never leak a connection and never lie about their outcome.

```
with db.transaction() as tx:  ...          one attempt
db.run(transfer, 1, 2)                      retried when it loses a race
@db.transactional()                         the same, for functions
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.flow import run_blocking
from reliakit.database.advisory import AdvisoryLock
from reliakit.database.base import DEFAULT_RETRY, DatabaseBase
from reliakit.database.blocking import BlockingIo
from reliakit.database.blocks import TransactionBlock
from reliakit.database.decorator import Decorator, decorate
from reliakit.database.outcome import TransactionOutcome, outcome_of
from reliakit.database.settings import Isolation, Propagation, TransactionRetry, options_of

if TYPE_CHECKING:
    from types import TracebackType

    import psycopg

    from reliakit.core.spine import Listener
    from reliakit.database.borrowing import Pool
    from reliakit.database.transaction import Params, Query, Transaction

__all__ = ["Database"]

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Database(DatabaseBase):
    """Run transactions on PostgreSQL from threads.

    Make one object for the whole process and share it between all threads. The constructor connects to nothing;
    connections are opened by `open()` or by the first transactions, and closed by `close()`.

    Args:
        conninfo: A PostgreSQL connection string or URL, or a `psycopg_pool.ConnectionPool`, or another
            pool that lends psycopg connections, such as an SQLAlchemy engine's.
        pool: A pool, by keyword instead of as `conninfo`. It stays the caller's: it is closed here only if it was
            opened here.
        replicas: Where `read_only=True` transactions run, in turn; each is a conninfo or a pool, and each has its own
            connections. If no replica can be reached, they go to the primary. A replica lags: what was committed a
            moment ago may not be there yet.
        name: Names the database in errors, events and metrics; its replicas are "main/replica-1" and so on.
        service: The service it belongs to, for metrics.
        min_size: How many connections `open()` makes and keeps open.
        max_size: The most connections there may be. Ignored with a pool, which has its own.
        isolation: The isolation level of transactions that ask for none.
        timeout: Seconds that a transaction may take in all: connection, attempts, pauses, commit.
        lock_timeout: Seconds to wait for one lock; None leaves it to `timeout`.
        retry: How `run` and `transactional` retry; None for never.
        row_factory: Psycopg's row factory for new connections, tuples by default.
        max_lifetime: Seconds after which a connection is replaced.
        max_idle: Seconds after which an unused connection is closed, down to `min_size`.
        leak_after: Seconds after which a checkout is reported, with the line that took it.
        slow_after: Seconds after which a transaction is reported as slow, with its statements but none of their
            values; None for never.
        listeners: Called with this database's events, besides the process-wide listeners.
        clock: Measures time and draws jitter.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        conninfo: str | Pool | None = None,
        *,
        pool: Pool | None = None,
        replicas: Sequence[str | Pool] = (),
        name: str = "main",
        service: str | None = None,
        min_size: int = 1,
        max_size: int = 10,
        isolation: Isolation = Isolation.REPEATABLE_READ,
        timeout: float = 5.0,
        lock_timeout: float | None = None,
        retry: TransactionRetry | None = DEFAULT_RETRY,
        row_factory: Any = None,
        max_lifetime: float = 3600.0,
        max_idle: float = 600.0,
        leak_after: float = 60.0,
        slow_after: float | None = 1.0,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(
            conninfo,
            pool=pool,
            replicas=replicas,
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
            slow_after=slow_after,
            listeners=listeners,
            clock=clock,
        )

    def open(self) -> Self:
        """Connect `min_size` times now, so that a wrong address is found at start. Opening twice is harmless.

        Raises:
            psycopg.OperationalError: The server cannot be reached.
            TransactionUsageError: The database was opened before this process was forked.
        """
        run_blocking(self._open())
        return self

    def close(self) -> None:
        """Close idle connections, refuse new transactions, and let running ones end. Closing twice is harmless."""
        run_blocking(self._close())

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
        pipeline: bool = False,
    ) -> TransactionBlock:
        """Return a block that is a transaction: `with db.transaction() as tx: ...`. One attempt, three round trips.

        It commits when the block ends and rolls back when the block raises. If the outcome differs from what the
        code expects, an error says so.

        Args:
            isolation: The isolation level; the database's by default.
            read_only: Whether it only reads; with `replicas`, it may then run on one of them.
            deferrable: Whether a serializable read-only transaction may wait for a safe snapshot.
            timeout: Seconds for everything: connection, statements, commit. The database's by default; an outer
                deadline or transaction that ends first wins. Python code that runs in a thread cannot be interrupted,
                but no statement runs after the time is up.
            lock_timeout: Seconds to wait for one lock.
            propagation: What to do inside a running transaction.
            operation: The transaction's name in events and metrics. Use few, short names without ids.
            pipeline: Hold BEGIN back and send it along with the first statement: one round trip less, for servers
                that are not near. It costs processor time, so it does not pay over a Unix socket.

        Raises:
            TransactionTimeoutError: Its time was spent; nothing was committed.
            TransactionRolledBackError: The block reached its end, but the transaction was rolled back: an error in it
                was swallowed.
            CommitUnknownError: COMMIT was sent and its answer never came.
            TransactionUsageError: It was used against the rules; the message says which.
            ConfigurationError: An argument is wrong.
        """
        return TransactionBlock(
            self._engine,
            options_of(isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation, pipeline),
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
        pipeline: bool = False,
        retry: TransactionRetry | None = None,
        idempotency_key: str | None = None,
    ) -> R:
        """Call `fn(tx, *args)` in a transaction and return its result; retry if the transaction lost a race.

        Serialization failures, deadlocks, and a connection that failed before the first statement are retried, by the
        outermost transaction only, after a pause with full jitter and within `timeout`.

        With an `idempotency_key`, the first call's result is returned to every later call with the same key, without
        calling `fn` again. A call whose outcome is not known can therefore be made again, and is, within `timeout`.
        Of two calls at once, one runs `fn` and the other waits. The key commits with the work: a call that fails
        leaves no trace, and inside a running transaction the key belongs to that transaction. The result must be a
        JSON value, and is returned as JSON has it, a tuple as a list, the first time too. Hooks run with the call
        that ran `fn`, if it learnt that it committed. It costs two more round trips; keys are kept in the table of
        `IDEMPOTENCY_DDL`, which is created on first use, until `forget_idempotency_keys` deletes them.

        Args:
            fn: Takes the transaction and `args`. It may be called several times.
            args: Passed on to `fn`.
            isolation: As for `transaction`.
            read_only: As for `transaction`.
            deferrable: As for `transaction`.
            timeout: Seconds for all attempts and pauses together.
            lock_timeout: As for `transaction`.
            propagation: As for `transaction`.
            operation: The transaction's name in events and metrics; the function's qualified name by default.
            pipeline: As for `transaction`.
            retry: The retry policy; the database's by default.
            idempotency_key: 1 to 255 characters that name this very call, such as a request's id and what it asks
                for. Never use the same key for two operations.

        Raises:
            ConfigurationError: `fn` is async, a generator or not a function, or a setting is wrong.
            TransactionUsageError: The key was used for another operation, or the result is not a JSON value.
            Exception: What `fn` or the server raised last, with a note that tells how many attempts there were.
                Others as for `transaction`.
        """
        default = self._operation_of(fn)
        options = options_of(
            isolation, read_only, deferrable, timeout, lock_timeout, propagation, operation or default, pipeline
        )
        if idempotency_key is None:
            outcome = run_blocking(self._engine.run(options, retry, fn, args, with_transaction=True))
        else:
            outcome = run_blocking(self._keys.run(idempotency_key, options, retry, fn, args))
        if outcome.error is not None:
            raise outcome.error
        return outcome.value  # type: ignore[return-value]  # what `fn` returned

    def advisory_lock(self, key: int | str, *, shared: bool = False, timeout: float | None = None) -> AdvisoryLock:
        """Return a block that holds a lock shared by all processes: `with db.advisory_lock("report"): ...`.

        A connection of its own holds the lock until the block ends, however it ends; the server releases it if the
        connection dies. The lock is not re-entrant. Behind a pooler, an open transaction holds it.

        Args:
            key: A whole number of 64 bits, or a text, of which 64 bits of its BLAKE2b digest are locked.
            shared: Whether others may hold it shared at the same time.
            timeout: Seconds to wait for the lock, connection included; 0 tries once. The database's by default; an
                outer deadline that ends first wins. The block itself may take as long as it likes.

        Raises:
            TransactionTimeoutError: The lock was not free in time.
            TransactionError: The connection died during a block that raised nothing, and the lock was lost with it.
            TransactionUsageError: It needs a connection that cannot come free, see `transaction`.
            ConfigurationError: An argument is wrong.
        """
        return AdvisoryLock(self._engine, key, shared=shared, timeout=timeout)

    def forget_idempotency_keys(self, older_than: float) -> int:
        """Delete old idempotency keys, in short transactions of their own, and return how many.

        A call that is repeated after its key was deleted runs again, so keep keys for longer than anybody retries: a
        day, say.

        Args:
            older_than: The least age, in seconds, of the keys to delete.

        Raises:
            ConfigurationError: `older_than` is not a number of seconds.
        """
        return run_blocking(self._keys.forget(older_than))

    def outcome(self, transaction_id: str | None) -> TransactionOutcome | None:
        """Ask the server what became of a transaction, in a short one of its own. Three round trips.

        Args:
            transaction_id: `CommitUnknownError.transaction_id`, or what `tx.transaction_id()` returned.

        Returns:
            "committed", "aborted", or "in progress" while the server has not noticed yet that its client has gone:
            ask again. None if the transaction is so old that the server has forgotten it.

        Raises:
            ConfigurationError: `transaction_id` is None, so there is nothing to ask for, or not an id of this server.
        """
        return run_blocking(outcome_of(self._engine, transaction_id))

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
        pipeline: bool = False,
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
        pipeline: bool = False,
        retry: TransactionRetry | None = None,
    ) -> Any:
        """Make a function a transaction of this database, retried as by `run`, with the same arguments.

        The function keeps its signature and gets its transaction from `current()`.
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
        """Run a statement as `Transaction.execute`, in the running transaction or in one of its own."""
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
