"""A store in PostgreSQL, for services that have no Redis: one statement for each decision, by the server's clock.

```
hit(key) ──> SELECT decide(...) ──> server: row of the key locked, clock, decision, row written ──> Answer
             on an autocommit connection of its own, never in the caller's transaction
```
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
from typing import TYPE_CHECKING, Any, Literal, Self

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError, StoreError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.stores.postgres_ballots import count_of, force_words, vote_words
from reliakit.stores.postgres_sql import definitions, functions
from reliakit.stores.postgres_wire import PoolConnections, TaskConnections, TaskPool, ThreadConnections, is_async
from reliakit.stores.protocol import Op
from reliakit.stores.shared import SharedPlan, clock_of
from reliakit.stores.shared_attempts import DIMENSIONS, SharedAttempts

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.clock import Clock
    from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules
    from reliakit.stores.ballots import Ballot, Count
    from reliakit.stores.protocol import Answer, Plan

__all__ = ["PostgresStore", "Setup"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}(?:\.[a-z_][a-z0-9_]{0,40})?")
# One statement sees what others have just committed, and none waits longer than the store.
_SESSION = (
    "SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; "
    "SET synchronous_commit = off; SET statement_timeout = {milliseconds}; SET lock_timeout = 0"
)
_CIRCUITS = b"circuit\0"
# One process at a time makes the table; the number is any that nobody else has.
_ALONE = "SELECT pg_advisory_xact_lock(7209065713364918381)"


class PostgresStore:
    """Keep the state of keys in PostgreSQL (13 or later), shared by all processes that use it.

    ```python
    store = PostgresStore("postgresql://localhost/app")
    limiter = RateLimiter("10/s", name="search", store=store)
    ```

    A decision is one statement, whatever the number of limits, on an autocommit connection: no transaction of the
    caller holds it up, and none takes it back. Its time is the server's. One store serves any mix of threads, tasks
    and event loops, and forked children. It connects when it is first used, and makes its UNLOGGED table then. A
    crash of the server empties the table. Keys are stored as hashes.

    Args:
        source: A connection string, or a pool of psycopg_pool (or one like it): a ConnectionPool serves threads, and
            tasks through threads, an AsyncConnectionPool serves tasks of its loop. A pool's connections are given
            back as they were.
        table: The table, which may have a schema before it; its functions are named after it.
        max_size: How many connections of its own there are at most for threads, and for each event loop.
        timeout: Seconds that a decision may take where no deadline is nearer.
        clock: "server", or "client" for the clock of this machine. Tests give a `Clock`.

    Raises:
        ConfigurationError: A setting is wrong. From a decision: the table cannot be made.
    """

    def __init__(
        self,
        source: Any,
        *,
        table: str = "reliakit_limits",
        max_size: int = 8,
        timeout: float = 1.0,
        clock: Literal["server", "client"] | Clock = "server",
    ) -> None:
        if not _NAME.fullmatch(table):
            raise ConfigurationError(f"table must be a lower-case name, with or without a schema, got {table!r}")
        most = checks.count("max_size", max_size)
        timeout = checks.seconds("timeout", timeout)
        self._clock = clock_of(clock)
        self._table = table
        self._names = functions(table)
        self._plans: dict[Plan, _Shape] = {}
        self._guards: dict[AttemptRules, _Guard] = {}
        self._closed = False
        setup = Setup(table, timeout)
        self._blocking: ThreadConnections | PoolConnections | None = None
        self._tasks: TaskConnections | TaskPool | None = None
        if isinstance(source, str):
            self._blocking = ThreadConnections(source, setup, timeout=timeout, most=most)
            self._tasks = TaskConnections(source, setup, timeout=timeout, most=most)
        elif isinstance(source, type) or not callable(getattr(source, "getconn", None)):
            raise ConfigurationError(f"source must be a connection string or a pool of psycopg_pool, got {source!r}")
        elif is_async(source):
            self._tasks = TaskPool(source, setup, timeout=timeout)
        else:
            self._blocking = PoolConnections(source, setup, timeout=timeout)

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one statement; see `Store.apply`."""
        shape = self._plans.get(plan) or self._shape(plan)
        return shape.answer(self._run(*shape.statement(op, key, cost, patience, self._now())), op, cost, patience)

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one statement; see `Store.apply`."""
        shape = self._plans.get(plan) or self._shape(plan)
        reply = await self._arun(*shape.statement(op, key, cost, patience, self._now()))
        return shape.answer(reply, op, cost, patience)

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide over an attempt to log in, in one statement; see `AttemptStore.attempt`."""
        guard = self._guards.get(rules) or self._guard(rules)
        return guard.answer(self._run(*guard.statement(op, attempt, self._now())), op, attempt)

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide over an attempt to log in, in one statement; see `AttemptStore.attempt`."""
        guard = self._guards.get(rules) or self._guard(rules)
        return guard.answer(await self._arun(*guard.statement(op, attempt, self._now())), op, attempt)

    def vote(self, ballot: Ballot, /) -> Count:
        """Take a ballot on a circuit and count, in one statement; see `BallotBox.vote`."""
        query = (
            f"SELECT {self._names['vote']}(%b::bytea, %s::text, %s::bigint, %s::bigint, %s::bigint, %s::boolean, "
            "%s::bigint, %s::boolean, %s::bigint)"
        )
        return count_of(self._run(query, (_place(_CIRCUITS, ballot.circuit), *vote_words(ballot))))

    def force(self, circuit: str, seconds: float, /) -> None:
        """Force a circuit open for everybody, or let go of it, in one statement; see `BallotBox.force`."""
        query = f"SELECT {self._names['force']}(%b::bytea, %s::bigint)"
        self._run(query, (_place(_CIRCUITS, circuit), *force_words(seconds)))

    def open(self) -> None:
        """Connect now instead of with the first decision, and make the table.

        Raises:
            StoreError: The server cannot be reached.
            ConfigurationError: The table cannot be made.
        """
        if self._blocking is not None:
            try:
                self._blocking.open()
            except Exception as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close the connections for threads; those for tasks go with their event loop. A given pool stays open."""
        self._closed = True
        if self._blocking is not None:
            self._blocking.close()

    async def aclose(self) -> None:
        """Close the connections for threads and those of this event loop. A given pool stays open."""
        self.close()
        if self._tasks is not None:
            await self._tasks.aclose()

    @property
    def ddl(self) -> str:
        """The statements that make the table and its functions, for a role that may, where the service may not."""
        return definitions(self._table)

    def _now(self) -> str | None:
        return None if self._clock is None else str(round(self._clock.time() * 1e6))

    def _shape(self, plan: Plan) -> _Shape:
        return self._plans.setdefault(plan, _Shape(plan, self._names))

    def _guard(self, rules: AttemptRules) -> _Guard:
        return self._guards.setdefault(rules, _Guard(rules, self._names))

    def _run(self, query: str, params: tuple[Any, ...]) -> Any:
        if self._blocking is None:
            raise ConfigurationError(f"{self!r} has an asynchronous pool: give it a conninfo to serve threads")
        if self._closed:
            raise StoreError(f"{self!r} is closed", store="PostgresStore")
        try:
            return self._blocking.run(query, params)
        except Exception as error:
            raise self._failed(error) from error

    async def _arun(self, query: str, params: tuple[Any, ...]) -> Any:
        if self._tasks is None:
            return await asyncio.to_thread(self._run, query, params)
        if self._closed:
            raise StoreError(f"{self!r} is closed", store="PostgresStore")
        try:
            return await self._tasks.run(query, params)
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> Exception:
        if isinstance(error, ConfigurationError):
            return error
        told = next(iter(str(error).splitlines()), "")
        return StoreError(f"{self!r} does not decide: {type(error).__name__}: {told}", store="PostgresStore")

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        clock = ", clock='client'" if self._clock else ""
        return f"<PostgresStore table={self._table!r}{clock}>"


class Setup:
    """Makes connections ready, and the table once."""

    def __init__(self, table: str, timeout: float) -> None:
        self._table = table
        self._last = functions(table)["force"]  # the last one that is made
        self._session = _SESSION.format(milliseconds=max(1, round(timeout * 1000)))
        self._is_there = False
        self._lock = threading.Lock()
        renew_locks_after_fork(self, "_lock")

    def connect(self, conninfo: str) -> Any:
        """Make a connection for threads."""
        import psycopg  # noqa: PLC0415 - only who uses this store pays for it

        connection = psycopg.connect(conninfo, autocommit=True, connect_timeout=10)
        try:
            self.ensure(connection)
            connection.execute(self._session.encode())
        except BaseException:
            connection.close()
            raise
        return connection

    async def aconnect(self, conninfo: str) -> Any:
        """Make a connection for tasks."""
        import psycopg  # noqa: PLC0415

        connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True, connect_timeout=10)
        try:
            await self.aensure(connection)
            await connection.execute(self._session.encode())
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    def ensure(self, connection: Any) -> None:
        """See that the table is there."""
        if self._is_there:
            return
        try:
            if self._is_missing(connection):
                with connection.transaction():
                    connection.execute(_ALONE)
                    # Made meanwhile by who held the lock: to make it again would deadlock with its decisions.
                    if self._is_missing(connection):
                        connection.execute(definitions(self._table))
        except Exception as error:
            if getattr(error, "sqlstate", None) != "42501":
                raise
            raise self._forbidden(error) from error
        self._is_there = True

    async def aensure(self, connection: Any) -> None:
        """See that the table is there."""
        if self._is_there:
            return
        try:
            if await self._ais_missing(connection):
                async with connection.transaction():
                    await connection.execute(_ALONE)
                    if await self._ais_missing(connection):
                        await connection.execute(definitions(self._table))
        except Exception as error:
            if getattr(error, "sqlstate", None) != "42501":
                raise
            raise self._forbidden(error) from error
        self._is_there = True

    def forget(self) -> None:
        """Look again: somebody has dropped it."""
        self._is_there = False

    def _is_missing(self, connection: Any) -> bool:
        from psycopg.rows import tuple_row  # noqa: PLC0415 - a pool's connections may have another

        cursor = connection.cursor(row_factory=tuple_row).execute(*self._question)
        return bool(cursor.fetchone()[0])

    async def _ais_missing(self, connection: Any) -> bool:
        from psycopg.rows import tuple_row  # noqa: PLC0415

        cursor = await connection.cursor(row_factory=tuple_row).execute(*self._question)
        return bool((await cursor.fetchone())[0])

    @property
    def _question(self) -> tuple[str, tuple[str, str]]:
        # To read any table makes the server hear of what others have made; a name alone it may know to be missing.
        query = "SELECT to_regclass(%s) IS NULL OR to_regproc(%s) IS NULL FROM pg_catalog.pg_class LIMIT 1"
        return query, (self._table, self._last)

    def _forbidden(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"PostgresStore may not make its table {self._table!r} ({error}): have a role that may execute "
            "PostgresStore.ddl once and grant this one SELECT, INSERT, UPDATE and DELETE on the table, or give it "
            "CREATE on the schema"
        )


class _Shape:
    """What all decisions under one plan have in common."""

    __slots__ = ("_decide", "_hit", "_numbers", "_plan", "_space")

    def __init__(self, plan: Plan, names: dict[str, str]) -> None:
        self._plan = SharedPlan(plan)
        self._space = plan.space.encode("utf-8", "surrogatepass") + b"\0"
        # As text throughout: with numbers psycopg would prepare a statement for each size of them.
        self._numbers = "{" + ",".join(map(str, self._plan.numbers)) + "}"
        self._hit = f"SELECT {names['hit']}(%b::bytea{', %s::bigint' * 6})"
        self._decide = (
            f"SELECT {names['decide']}(%b::bytea, %s::text, %s::bigint, %s::bigint, %s::bigint, %s::bigint[])"
        )

    def statement(self, op: Op, key: str, cost: int, patience: int, now: str | None) -> tuple[str, tuple[Any, ...]]:
        """Return the statement that decides, and its parameters."""
        place = _place(self._space, key)
        if op is not Op.HIT or not self._plan.is_one_gcra:
            return self._decide, (place, op.value, now, str(cost), str(patience // 1000), self._numbers)
        scale, step, rest, tolerance, tolerated = self._plan.numbers[3:]
        more, over = divmod(cost * rest, scale)
        numbers = (cost * step + more, over, scale, tolerance + patience // 1000, tolerated)
        return self._hit, (place, now, *map(str, numbers))

    def answer(self, reply: Any, op: Op, cost: int, patience: int) -> Answer:
        """Return the answer that goes with the server's."""
        now, *row = reply
        return self._plan.answer(op, now, row, cost, patience // 1000)


class _Guard:
    """What all attempts under one guard's rules have in common."""

    __slots__ = ("_numbers", "_query", "_rules", "_spaces")

    def __init__(self, rules: AttemptRules, names: dict[str, str]) -> None:
        self._rules = SharedAttempts(rules)
        self._numbers = "{" + ",".join(map(str, self._rules.numbers)) + "}"
        space = rules.space.encode("utf-8", "surrogatepass")
        self._spaces = [space + b"\0" + dimension.encode() + b"\0" for dimension in DIMENSIONS]
        self._query = (
            f"SELECT {names['attempt']}(ARRAY[%b, %b, %b, %b]::bytea[], %s::text, %s::bigint, %s::bigint, "
            "%s::bigint[])"
        )

    def statement(self, op: AttemptOp, attempt: Attempt, now: str | None) -> tuple[str, tuple[Any, ...]]:
        places = [
            None if key is None else _place(space, key) for space, key in zip(self._spaces, attempt[:4], strict=True)
        ]
        return self._query, (*places, op.value, now, str(int(attempt.claim)), self._numbers)

    def answer(self, reply: Any, op: AttemptOp, attempt: Attempt) -> AttemptAnswer:
        now, *numbers = reply
        rows: list[list[int]] = []
        for _ in DIMENSIONS:
            width = numbers[0]
            rows.append(numbers[1 : width + 1])
            del numbers[: width + 1]
        return self._rules.answer(op, attempt, now, rows)


def _place(space: bytes, key: str) -> bytes:
    return hashlib.blake2b(space + key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
