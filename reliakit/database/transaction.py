"""The transaction objects that callers work with.

```
Work            one BEGIN ... COMMIT on one connection: the deadline, the hooks, the counters
 └ Transaction  a handle on it: the whole, or a savepoint within it; joined blocks share their outer's handle
```
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, LiteralString, TypeVar

from psycopg import rows, sql

from reliakit.core import guard
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.flow import run_blocking
from reliakit.database import locking
from reliakit.database.places import owner_here

if TYPE_CHECKING:
    import psycopg

    from reliakit.core.clock import Clock
    from reliakit.database.session import Session
    from reliakit.database.work import Hook, Work

__all__ = [
    "AsyncTransaction",
    "Handle",
    "Query",
    "Transaction",
]

Query = LiteralString | bytes | sql.SQL | sql.Composed
Params = Sequence[Any] | Mapping[str, Any]
ConnectionT = TypeVar("ConnectionT")


class _Handle(Generic[ConnectionT]):
    """The part of a transaction that both colours share."""

    __slots__ = ("__weakref__", "_clock", "_name", "deliberate", "doomed", "finished", "work")

    def __init__(self, work: Work, clock: Clock, name: str) -> None:
        self.work: Work = work
        self._clock = clock
        self._name = name
        self.finished: bool = False
        self.doomed: bool = False  # whether joined code failed
        self.deliberate: bool = False  # whether set_rollback_only() was called

    @property
    def connection(self) -> ConnectionT:
        """The psycopg connection, for cursors, COPY and whatever else psycopg offers.

        Statements on it have the transaction's deadline too. Do not commit or roll back on it, and do not use it
        after the block.

        Raises:
            TransactionUsageError: The transaction is over, or this is another thread or task.
        """
        return self.session().share()  # type: ignore[no-any-return]  # of whatever class the pool makes

    @property
    def is_bare(self) -> bool:
        """Whether each statement commits by itself, because no transaction was asked for."""
        return self.work.bare

    @property
    def operation(self) -> str:
        """This transaction's name in events and metrics."""
        return self.work.operation

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self.work.attempt.number

    def after_commit(self, fn: Hook) -> None:
        """Call `fn()` once the server has confirmed the COMMIT, outside of the transaction.

        Hooks run in the order in which they were added, after the connection went back. An error that a hook raises
        is reported and changes nothing else. A hook added inside a savepoint that is rolled back is dropped with it.

        Args:
            fn: Takes no arguments. In an AsyncDatabase it may be `async def`.
        """
        self._add(fn, committed=True)

    def after_rollback(self, fn: Hook) -> None:
        """Call `fn()` once the transaction was rolled back, for each failed attempt; otherwise as `after_commit`."""
        self._add(fn, committed=False)

    def _lock_statement(self, key: int | str, shared: bool) -> tuple[bytes, tuple[int]]:
        number = locking.number_of(key)
        if self.is_bare:
            raise TransactionUsageError(
                f"[{self._name}] no transaction runs here that could hold a lock: use the database's advisory_lock",
                name=self._name,
            )
        return locking.in_transaction(shared=shared), (number,)

    def set_rollback_only(self) -> None:
        """Make the block end with a rollback instead of a commit, without an error."""
        self.session()
        self.deliberate = True

    def remaining(self) -> float:
        """Return the seconds that are left of the transaction's time, never below 0."""
        session = self.work.session
        return 0.0 if session is None else max(0.0, session.until - self._clock.monotonic())

    def _add(self, fn: Hook, *, committed: bool) -> None:
        self.session()
        colour = guard.colour_of(fn, by="a hook")
        if colour not in self._colours():
            raise ConfigurationError(f"[{self._name}] a hook must be a plain function here, got one that is {colour}")
        self.work.add_hook(fn, committed=committed)

    @staticmethod
    def _colours() -> tuple[str, ...]:
        return ("plain",)

    def session(self) -> Session:
        """Return the session if the caller may use it."""
        work = self.work
        session = work.session
        if session is None or self.finished:
            raise TransactionUsageError(f"[{self._name}] this transaction is over", name=self._name)
        if work.owner is not owner_here():
            raise TransactionUsageError(
                f"[{self._name}] this transaction belongs to {work.owner!r}; another thread or task cannot use it "
                "(asyncio.wait_for and gather make tasks: use asyncio.timeout, or a transaction in each task)",
                name=self._name,
            )
        if session.ended:
            raise session.over()
        return session

    def _noted(self, count: int) -> None:
        if count > 0:
            self.work.rows += count

    def __repr__(self) -> str:
        state = "over" if self.finished else f"{self.remaining():.3g} s left"
        return f"<{type(self).__name__} {self._name}/{self.work.operation} attempt {self.attempt}, {state}>"


class Transaction(_Handle["psycopg.Connection[Any]"]):
    """A running transaction, or a savepoint in one, as `Database.transaction()` and `run()` hand it out.

    It belongs to the thread that began it, and cannot be used after its block.
    """

    __slots__ = ()

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The psycopg connection, for cursors, COPY and whatever else psycopg offers.

        Statements on it have the transaction's deadline too; a BEGIN that was held back is sent first. Do not commit
        or roll back on it, and do not use it after the block. Raises as `execute`.
        """
        session = self.session()
        if session.held is not None:
            run_blocking(session.held.begin(session))
            session = self.session()  # the session may have been replaced
        return session.share()  # type: ignore[no-any-return]  # of whatever class the pool makes

    def execute(self, query: Query, params: Params | None = None, **options: Any) -> psycopg.Cursor[Any]:
        """Run a statement and return its cursor, with the rows already fetched from the server. One round trip.

        Args:
            query: The SQL, with `%s` or `%(name)s` placeholders.
            params: The values of the placeholders.
            options: Passed on to psycopg: `prepare`, `binary`.

        Raises:
            TransactionTimeoutError: The transaction's time was spent, or ran out during the statement.
            TransactionUsageError: The transaction is over, or this is another thread.
            psycopg.Error: The server's error.
        """
        work = self.work
        session = work.session
        if (
            session is None
            or self.finished
            or session.ended
            or session.held is not None
            or not session.owned
            or work.owner is not owner_here()
        ):
            cursor = self._execute(query, params, options)
        else:  # as `_execute`, at two thirds of the price
            session.shared, session.cursor = True, None
            connection = session.connection
            cursor = connection.cursor_factory(connection).execute(query, params, **options)
        count = cursor.rowcount
        if count > 0:
            work.rows += count
        return cursor  # type: ignore[no-any-return]  # of the class that the connection makes

    def _execute(self, query: Query, params: Params | None, options: Mapping[str, Any]) -> Any:
        session = self.session()
        if session.held is None:
            return session.share().execute(query, params, **options)
        cursor = run_blocking(session.held.first(query, params, options, None))
        self.session().share()  # the session may have been replaced
        return cursor

    def fetch_one(self, query: Query, params: Params | None = None) -> Any:
        """Run a query and return its first row, or None. Arguments and errors as for `execute`."""
        text = _repeatable(query, params)
        session = self.session()
        if text is None or session.held is not None:
            return self.execute(query, params).fetchone()
        cursor = session.lend_cursor().execute(text, params)
        self._noted(cursor.rowcount)
        row = cursor.fetchone()
        session.keep_cursor(cursor)
        return row

    def fetch_all(self, query: Query, params: Params | None = None) -> list[Any]:
        """Run a query and return all its rows. Arguments and errors as for `execute`."""
        text = _repeatable(query, params)
        session = self.session()
        if text is None or session.held is not None:
            return self.execute(query, params).fetchall()
        cursor = session.lend_cursor().execute(text, params)
        self._noted(cursor.rowcount)
        found: list[Any] = cursor.fetchall()
        session.keep_cursor(cursor)
        return found

    def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Run a query and return the first column of its first row, or None. Args and errors as for `execute`."""
        session = self.session()
        if session.held is not None:
            cursor = run_blocking(session.held.first(query, params, {}, rows.scalar_row))
        else:
            cursor = session.connection.cursor(row_factory=rows.scalar_row).execute(query, params)
        self._noted(cursor.rowcount)
        return cursor.fetchone()

    def transaction_id(self) -> str:
        """Return the server's id of this transaction, asking for it the first time. One round trip, once.

        A CommitUnknownError carries it, so that the outcome can be looked up later with `pg_xact_status`.
        """
        if self.work.transaction_id is None:
            self.work.transaction_id = str(self.fetch_value("SELECT pg_current_xact_id()::text"))
        return self.work.transaction_id

    def advisory_lock(self, key: int | str, *, shared: bool = False) -> None:
        """Take an advisory lock and keep it until the transaction ends, or rolls back to an earlier savepoint.

        In REPEATABLE READ and SERIALIZABLE the transaction goes on seeing what was committed before its first
        statement, this one included. To read what the last holder wrote, use READ COMMITTED, or hold the database's
        `advisory_lock` around the transaction.

        Args:
            key: A whole number of 64 bits, or a text, of which 64 bits of its BLAKE2b digest are locked.
            shared: Whether others may hold it shared at the same time.

        Raises:
            TransactionTimeoutError: The lock was not free within the transaction's time.
            TransactionUsageError: There is no transaction that could hold it; see also `execute`.
            ConfigurationError: The key is neither a number of 64 bits nor a text.
        """
        self.execute(*self._lock_statement(key, shared))


class AsyncTransaction(_Handle["psycopg.AsyncConnection[Any]"]):
    """A running transaction, or a savepoint in one, as `AsyncDatabase.transaction()` and `run()` hand it out.

    It belongs to the task that began it, and cannot be used after its block.
    """

    __slots__ = ()

    async def execute(self, query: Query, params: Params | None = None, **options: Any) -> psycopg.AsyncCursor[Any]:
        """Run a statement and return its cursor, with the rows already fetched from the server. One round trip.

        Args:
            query: The SQL, with `%s` or `%(name)s` placeholders.
            params: The values of the placeholders.
            options: Passed on to psycopg: `prepare`, `binary`.

        Raises:
            TransactionTimeoutError: The transaction's time was spent, or ran out during the statement.
            TransactionUsageError: The transaction is over, or this is another task.
            psycopg.Error: The server's error.
        """
        work = self.work
        session = work.session
        if (
            session is None
            or self.finished
            or session.ended
            or session.held is not None
            or not session.owned
            or work.owner is not owner_here()
        ):
            cursor = await self._execute(query, params, options)
        else:  # as `_execute`, at two thirds of the price
            session.shared, session.cursor = True, None
            connection = session.connection
            cursor = await connection.cursor_factory(connection).execute(query, params, **options)
        count = cursor.rowcount
        if count > 0:
            work.rows += count
        return cursor  # type: ignore[no-any-return]  # of the class that the connection makes

    async def _execute(self, query: Query, params: Params | None, options: Mapping[str, Any]) -> Any:
        session = self.session()
        if session.held is None:
            return await session.share().execute(query, params, **options)
        cursor = await session.held.first(query, params, options, None)
        self.session().share()  # the session may have been replaced
        return cursor

    async def fetch_one(self, query: Query, params: Params | None = None) -> Any:
        """Run a query and return its first row, or None. Arguments and errors as for `execute`."""
        text = _repeatable(query, params)
        session = self.session()
        if text is None or session.held is not None:
            return await (await self.execute(query, params)).fetchone()
        cursor = await session.lend_cursor().execute(text, params)
        self._noted(cursor.rowcount)
        row = await cursor.fetchone()
        session.keep_cursor(cursor)
        return row

    async def fetch_all(self, query: Query, params: Params | None = None) -> list[Any]:
        """Run a query and return all its rows. Arguments and errors as for `execute`."""
        text = _repeatable(query, params)
        session = self.session()
        if text is None or session.held is not None:
            return await (await self.execute(query, params)).fetchall()
        cursor = await session.lend_cursor().execute(text, params)
        self._noted(cursor.rowcount)
        found: list[Any] = await cursor.fetchall()
        session.keep_cursor(cursor)
        return found

    async def fetch_value(self, query: Query, params: Params | None = None) -> Any:
        """Run a query and return the first column of its first row, or None. Args and errors as for `execute`."""
        session = self.session()
        if session.held is not None:
            cursor = await session.held.first(query, params, {}, rows.scalar_row)
        else:
            cursor = await session.connection.cursor(row_factory=rows.scalar_row).execute(query, params)
        self._noted(cursor.rowcount)
        return await cursor.fetchone()

    async def transaction_id(self) -> str:
        """Return the server's id of this transaction, asking for it the first time. One round trip, once.

        A CommitUnknownError carries it, so that the outcome can be looked up later with `pg_xact_status`.
        """
        if self.work.transaction_id is None:
            self.work.transaction_id = str(await self.fetch_value("SELECT pg_current_xact_id()::text"))
        return self.work.transaction_id

    async def advisory_lock(self, key: int | str, *, shared: bool = False) -> None:
        """Take an advisory lock and keep it until the transaction ends, or rolls back to an earlier savepoint.

        In REPEATABLE READ and SERIALIZABLE the transaction goes on seeing what was committed before its first
        statement, this one included. To read what the last holder wrote, use READ COMMITTED, or hold the database's
        `advisory_lock` around the transaction.

        Args:
            key: A whole number of 64 bits, or a text, of which 64 bits of its BLAKE2b digest are locked.
            shared: Whether others may hold it shared at the same time.

        Raises:
            TransactionTimeoutError: The lock was not free within the transaction's time.
            TransactionUsageError: There is no transaction that could hold it; see also `execute`.
            ConfigurationError: The key is neither a number of 64 bits nor a text.
        """
        await self.execute(*self._lock_statement(key, shared))

    def after_commit(self, fn: Callable[[], Awaitable[object] | object]) -> None:
        """Call `fn()`, plain or async, once the server has confirmed the COMMIT; otherwise as for `Transaction`."""
        super().after_commit(fn)

    def after_rollback(self, fn: Callable[[], Awaitable[object] | object]) -> None:
        """Call `fn()`, plain or async, once the transaction was rolled back; otherwise as for `Transaction`."""
        super().after_rollback(fn)

    @staticmethod
    def _colours() -> tuple[str, ...]:
        return ("plain", "async")


Handle = Transaction | AsyncTransaction


def _repeatable(query: Query, params: Params | None) -> bytes | None:
    """Return a query in a form that a reused cursor can take, or None if it needs a cursor of its own.

    The bytes are new each time: a cursor that is given the same query object keeps how it reads values, and with that
    a time zone or an encoding that may have changed since. Without parameters there may be several statements.
    """
    return query.encode("ascii") if params and isinstance(query, str) and query.isascii() else None
