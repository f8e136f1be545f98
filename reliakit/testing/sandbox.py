"""Tests that leave nothing behind: while a test runs, a database works inside one transaction that is rolled back.

```
with rolled_back(db):                BEGIN; SAVEPOINT sandbox
    with db.transaction(): ...           its limits, its statements
                                         COMMIT    ─▶ check what is deferred; RELEASE SAVEPOINT; SAVEPOINT
                                         ROLLBACK  ─▶ ROLLBACK TO SAVEPOINT
                                     ROLLBACK
```

The database stays the same object, with its retries, hooks, limits and propagation, and the code under test does not
notice. Its transactions follow one another on one connection, so threads and tasks queue for it, each within its own
time. The idea is that of Ecto's sandbox.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, overload

import psycopg
from psycopg import generators, pq

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.flow import run_blocking
from reliakit.database import AsyncDatabase, Database, ending
from reliakit.database.driver import INTERVAL, WaitTimeout
from reliakit.database.places import owner_here
from reliakit.database.replicas import Replicas
from reliakit.database.session import Session
from reliakit.database.settings import TransactionOptions
from reliakit.database.source import Source
from reliakit.database.stopping import GRACE
from reliakit.database.work import Attempt, Work

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import TracebackType

    from reliakit.core.clock import Clock
    from reliakit.database.answers import Answer
    from reliakit.database.engine import Engine
    from reliakit.database.gate import Slot

__all__ = ["rolled_back"]

_SAVE = b"SAVEPOINT reliakit_sandbox"
_UNDO = b"ROLLBACK TO SAVEPOINT reliakit_sandbox"
# A transaction's limits end with it. DEFAULT applies when nobody sets any; a test may pause between two transactions
# for as long as it likes.
_NO_LIMITS = (
    b"SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; "
    b"SET LOCAL lock_timeout = DEFAULT; SET LOCAL default_transaction_read_only = DEFAULT; "
)
# What COMMIT would check is checked now. SET CONSTRAINTS lasts as long as the real transaction, so constraints that
# are deferred by default are deferred again, by name.
_KEEP = (
    b"SET CONSTRAINTS ALL IMMEDIATE; "
    b"DO $reliakit$ DECLARE names text; BEGIN "
    b"SELECT string_agg(format('%I.%I', n.nspname, c.conname), ', ') INTO names FROM pg_catalog.pg_constraint c "
    b"JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace WHERE c.condeferred "
    b"AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') "
    b"AND (n.nspname !~ '^pg_temp_' OR n.oid = pg_catalog.pg_my_temp_schema()); "
    b"IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF; END $reliakit$; "
    + _NO_LIMITS
    + b"RELEASE SAVEPOINT reliakit_sandbox; "
    + _SAVE
)
_ACTIVE = pq.TransactionStatus.ACTIVE
_OPEN = pq.TransactionStatus.INTRANS


@overload
def rolled_back(db: Database) -> AbstractContextManager[Database]: ...
@overload
def rolled_back(db: AsyncDatabase) -> AbstractAsyncContextManager[AsyncDatabase]: ...
def rolled_back(db: Any) -> Any:
    """Return a block at whose end everything that a database committed in it is rolled back.

    `with rolled_back(db):` for a Database, `async with` for an AsyncDatabase. Inside, the code under test uses the
    database as always: COMMIT and its answer, retries, `after_commit` hooks, limits, `read_only`, savepoints and
    deferred constraints work, and nobody outside ever sees a row of it, so tests may run beside each other. Threads
    and tasks queue for the one connection; REQUIRES_NEW inside a transaction would wait for itself and is refused.
    `advisory_lock()` takes a connection beside it, and excludes other tests too.

    Some things differ from the outside: all transactions have the database's default isolation and share its first
    snapshot; NOTIFY never arrives; sequences do not go back; locks are held until the block ends; `outcome()` says
    "in progress"; statements that cannot run in a transaction, such as VACUUM, cannot run.

    Args:
        db: The database that the code under test uses. None of its transactions may be running.

    Raises:
        ConfigurationError: `db` is not a database.
        TransactionUsageError: A transaction is already running; or, at the end, one is still running, or code ran
            COMMIT or ROLLBACK itself, so that what it wrote may have stayed.
        psycopg.OperationalError: The server cannot be reached.
    """
    if isinstance(db, Database):
        return _RolledBack(db)
    if isinstance(db, AsyncDatabase):
        return _AsyncRolledBack(db)
    raise ConfigurationError(f"rolled_back takes a Database or an AsyncDatabase, got {db!r}")


class _SandboxSession(Session):
    """A session whose transactions are savepoints. One is always set at rest, so no failure reaches beyond it."""

    __slots__ = ("_bare", "_open", "_outer", "escaped")
    may_hold = False  # BEGIN only sets limits here, which are sent at once
    straight = False  # and a COMMIT releases a savepoint

    def __init__(self, outer: Session, engine: Engine) -> None:
        super().__init__(engine.io, engine.clock, engine.name, pool=None)
        self.connection = outer.connection
        self.escaped = False  # the code under test has ended the real transaction
        self._outer = outer
        self._open = False  # whether something was begun that was neither kept nor undone
        self._bare = False  # whether that is not a transaction, but statements that commit by themselves

    @property
    def reusable(self) -> bool:
        return not self.broken and not self._open and self.pgconn.transaction_status == _OPEN

    @property
    def left_open(self) -> bool:
        return False  # everything here is one transaction, and what a pipeline has left is kept

    async def adopt(self) -> None:
        await super().adopt()
        guarded = self.wait_async if self.io.asynchronous else self.wait
        self.connection.wait = partial(guarded, self.connection.wait)

    def disown(self) -> None:
        super().disown()
        self._outer.disown()

    def notice_end(self) -> None:
        super().notice_end()
        self.escaped = self.escaped or self.ended

    async def command(self, sql: bytes, until: float, patience: float = 0.0) -> Answer:
        if sql.startswith(b"BEGIN"):
            head, _, limits = sql.partition(b"; ")
            self._open, self._bare = True, False
            if b"READ ONLY" in head:
                limits = b"SET TRANSACTION READ ONLY; " + limits
            return await super().command(limits, until, patience)
        # What a pipeline of such statements has left is kept, too.
        if sql == b"COMMIT" or (sql == b"ROLLBACK" and self._bare):
            return await self._keep(until, patience)
        if sql == b"ROLLBACK":
            return await self._undo(until, patience)
        return await super().command(sql, until, patience)

    async def _keep(self, until: float, patience: float) -> Answer:
        if self.in_failed_transaction:  # the server would turn it into a rollback, and say so
            return await self._undo(self.clock.monotonic() + GRACE, patience)
        answer = await super().command(_KEEP, until, patience)
        if answer.error is None and not answer.broken and self.pgconn.transaction_status == _OPEN:
            self._open = False
            answer.tag = b"COMMIT"
        elif not answer.broken:
            undone = await self._undo(self.clock.monotonic() + GRACE, patience)
            answer.interrupt = answer.interrupt or undone.interrupt
            answer.broken = undone.broken
        return answer

    async def _undo(self, until: float, patience: float) -> Answer:
        answer = await super().command(_UNDO, until, patience)
        if answer.error is None and not answer.broken:
            self._open = False
            answer.tag = b"ROLLBACK"
        return answer

    async def end_statement(self, *, began: bool) -> None:
        """Keep or undo a statement outside of any transaction once it is over; raise what a COMMIT would raise."""
        status = self.pgconn.transaction_status
        if not began:
            self._open = False
        elif status == pq.TransactionStatus.IDLE:
            self.escaped = self.ended = True
        elif status != _ACTIVE and self.alive and not self.pgconn.pipeline_status:  # else COPY or a pipeline goes on
            await self._send(_KEEP if status == _OPEN else _UNDO)

    async def _send(self, sql: bytes) -> None:
        """Send a command while psycopg holds its lock for a statement of the caller's."""
        left = max(GRACE, self.until - self.clock.monotonic())
        try:
            self.pgconn.send_query(sql)
            results = await self.io.wait(generators.execute(self.pgconn), self.pgconn.socket, INTERVAL, left)
        except WaitTimeout:
            self.abandon()
            raise self.timed_out() from None
        except BaseException:
            self.abandon()
            raise
        failed = [result for result in results if result.status == pq.ExecStatus.FATAL_ERROR]
        if failed:
            error = psycopg.errors.error_from_result(failed[0])
            if isinstance(error, psycopg.errors.InvalidSavepointSpecification):
                self.escaped = self.ended = True
                self.abandon()
                raise self.over()
            await self._send(_UNDO)
            raise error
        self._open = False

    def wait(self, wait: Any, *args: Any, **options: Any) -> Any:
        """Replace psycopg's `Connection.wait`: outside of a transaction, each statement commits by itself."""
        if self.inside or self.ended:
            return wait(*args, **options)
        before, self._open, self._bare = self.statements, True, True
        try:
            return wait(*args, **options)
        finally:
            run_blocking(self.end_statement(began=self.statements > before))

    async def wait_async(self, wait: Any, *args: Any, **options: Any) -> Any:
        """The same for `AsyncConnection.wait`."""
        if self.inside or self.ended:
            return await wait(*args, **options)
        before, self._open, self._bare = self.statements, True, True
        try:
            return await wait(*args, **options)
        finally:
            await self.end_statement(began=self.statements > before)


class _OneConnection(Source):
    """The source of connections inside the block: there is only one, and none if it is lost."""

    lasting = False

    def __init__(self, session: _SandboxSession, engine: Engine) -> None:
        super().__init__(engine.io)
        self.session = session

    async def obtain(self, slot: Slot, seconds: float, clock: Clock, name: str) -> Session:  # noqa: ARG002 - as any
        """Put the one session into the slot."""
        if not self.session.reusable:
            raise TransactionUsageError(
                f"[{name}] the transaction around this test is gone, because its connection was lost or the code ran "
                "COMMIT or ROLLBACK itself; what the test wrote went with it, and nothing more can be done in it",
                name=name,
            )
        slot.session = self.session
        return self.session

    async def dispose(self, session: Session) -> None:
        """Leave the session alone: the block itself ends it."""

    async def connect_apart(self, seconds: float) -> Any:
        """Return None: a connection that listens for NOTIFY would hear nothing."""


class _Sandbox:
    """The part of the block that both colours share."""

    def __init__(self, db: Database | AsyncDatabase) -> None:
        self._db = db
        self._engine: Engine = db._engine  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - of this package
        self._work: Work | None = None
        self._session: _SandboxSession | None = None
        self._replicas = self._engine.replicas
        self._real = self._engine.standing

    async def begin(self) -> None:
        engine, checkouts = self._engine, self._real
        if self._work is not None:
            raise ConfigurationError("a rolled_back() is for one block: call it again for the next one")
        if engine.checkouts is not checkouts or checkouts.held():
            raise TransactionUsageError(
                f"[{engine.name}] rolled_back() must begin outside of transactions: end them, and do not nest it",
                name=engine.name,
            )
        now = engine.clock.monotonic()
        work = self._work = Work.of(
            TransactionOptions(operation="rolled_back"),
            isolation=engine.isolation,
            lock_timeout=None,
            owner=owner_here(),
            attempt=Attempt(),
            asked=now,
            bare=False,
            checkouts=checkouts,
        )
        until = now + engine.timeout
        try:
            await checkouts.take(work, until, engine.timeout)
            await engine.send_begin(work, until)
            outer = work.session
            assert outer is not None
            answer = await outer.command(_NO_LIMITS + _SAVE, until)
            failed = answer.interrupt or answer.error
            if failed is not None:
                raise failed
            self._session = _SandboxSession(outer, engine)
            await self._session.adopt()
        except BaseException:
            await self._roll_back(work)
            raise
        assert work.lease is not None
        assert work.lease.slot is not None
        work.lease.slot.reported = True  # a test may take its time
        # A replica would not see what the test has written, so replicas are left out.
        self._replicas, engine.replicas = engine.replicas, Replicas(())
        source = _OneConnection(self._session, engine)
        engine.checkouts = checkouts.over(
            source, name=f"{engine.name} inside rolled_back(), on one connection", size=1
        )

    async def end(self) -> TransactionUsageError | None:
        """Roll everything back and return what the test did wrong, if anything."""
        engine, work, session = self._engine, self._work, self._session
        assert work is not None
        assert session is not None
        sandbox, engine.checkouts, engine.replicas = engine.checkouts, self._real, self._replicas
        closed, running = sandbox.closed, sandbox.held()
        try:
            await sandbox.close()
            if running:
                session.abandon()  # the server rolls back, and code that is still running gets an error
        finally:
            await self._roll_back(work)
        if closed:
            await self._real.close()
        if running:
            wrong = f"a transaction still ran, begun at {running[0].line}: wait for what the test has started"
        elif session.escaped:
            wrong = "the code ran COMMIT or ROLLBACK itself, so what it wrote may have stayed in the database"
        else:
            return None
        return TransactionUsageError(f"[{engine.name}] at the end of rolled_back(), {wrong}", name=engine.name)

    async def _roll_back(self, work: Work) -> None:
        engine, outer = self._engine, work.session
        interrupt: BaseException | None = None
        try:
            if outer is not None:
                if self._session is not None and outer.alive:
                    engine.io.install(outer)
                interrupt = await ending.rollback(outer)
        finally:
            interrupt = await engine.give_back(work) or interrupt
        if interrupt is not None:
            raise interrupt


class _RolledBack(_Sandbox):
    def __enter__(self) -> Database | AsyncDatabase:
        run_blocking(self.begin())
        return self._db

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _tell(run_blocking(self.end()), error)


class _AsyncRolledBack(_Sandbox):
    async def __aenter__(self) -> Database | AsyncDatabase:
        await self.begin()
        return self._db

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _tell(await self.end(), error)


def _tell(wrong: TransactionUsageError | None, error: BaseException | None) -> None:
    if wrong is None:
        return
    if error is None:
        raise wrong
    error.add_note(f"reliakit: {wrong}")
