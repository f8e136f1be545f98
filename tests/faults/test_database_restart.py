"""What becomes of transactions when the server, its backends or this process are replaced under them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest
from database_drivers import COLOURS, SOURCES, all_obtainable, block, got, play, run, verdict_of

from reliakit.core.errors import CommitUnknownError, TransactionUsageError
from reliakit.database import Propagation
from reliakit.testing import EmbeddedPostgres

FORKED = """
    import gc, os, sys, time
    from reliakit.core.errors import TransactionUsageError
    from reliakit.database import Database, Propagation
    from psycopg_pool import ConnectionPool

    dsn, source, way = sys.argv[1:]
    pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True) if source == "a pool" else None
    db = Database(pool or dsn, max_size=2, timeout=60)

    def refused(use):
        try:
            use()
        except TransactionUsageError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("not refused")

    def block(**options):
        with db.transaction(**options):
            pass

    def child(tx):
        refused(lambda: tx.execute("SELECT 1"))
        refused(lambda: tx.fetch_value("SELECT 1"))
        refused(lambda: tx.connection)
        refused(db.current)
        refused(lambda: db.execute("SELECT 1"))
        refused(block)
        refused(lambda: block(propagation=Propagation.NESTED))
        refused(lambda: block(propagation=Propagation.REQUIRES_NEW))
        db.stats()

    is_child = False
    try:
        with db.transaction(operation="parent") as tx:
            pid = tx.fetch_value("SELECT pg_backend_pid()")
            tx.execute("CREATE TABLE item AS SELECT 1 AS id")
            if os.fork() == 0:
                is_child = True
                child(tx)
                if way == "an error":
                    raise SystemExit(0)
                if way == "a swallowed error":
                    raise LookupError
            else:
                assert os.wait()[1] == 0
                assert tx.fetch_value("SELECT pg_backend_pid()") == pid
    except (LookupError, TransactionUsageError):
        assert is_child
        refused(lambda: db.execute("SELECT 1"))
        if source != "a pool":
            db.close()
            with db.open():
                assert db.fetch_value("SELECT pg_backend_pid()") != pid
        del tx
        gc.collect()
        if pool is not None:
            os._exit(0)  # its threads stayed with the parent, and psycopg would wait for them
        sys.exit(0)
    assert not is_child
    assert db.fetch_value("SELECT id FROM item") == 1
    with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
        assert db.stats().in_use == 2
    assert db.stats().leaked == 0
    if pool is not None:
        pool.close()
    print("the parent is unharmed")
"""


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", ["an error", "a swallowed error", "the end"])
def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(reliakit_dsn: str, source: str, way: str) -> None:
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORKED)]
    done = subprocess.run([*program, reliakit_dsn, source, way], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the parent is unharmed\n", "")


async def terminate(db: Any, tx: Any) -> None:
    """End the transaction's backend, and wait until it has ended."""
    pid = tx.connection.info.backend_pid
    async with block(db, propagation=Propagation.REQUIRES_NEW) as other:
        assert await got(other.fetch_value("SELECT pg_terminate_backend(%s, 5000)", (pid,)))


Phase = tuple[Callable[[Any], Coroutine[Any, Any, None]], type[BaseException] | None]
PHASES: dict[str, Phase] = {}


def phase(expected: type[BaseException] | None) -> Callable[[Any], Any]:
    """A way to use a transaction, in which its backend is terminated."""

    def note(work: Any) -> Any:
        PHASES[work.__name__] = (work, expected)
        return work

    return note


async def insert(tx: Any) -> None:
    await got(tx.execute("INSERT INTO item VALUES (1)"))


@phase(None)
async def idle(db: Any) -> None:
    async with block(db) as tx:
        pids = [tx.connection.info.backend_pid]
    with contextlib.suppress(psycopg.OperationalError):
        async with block(db) as tx:
            pids.append(tx.connection.info.backend_pid)
            await terminate(db, tx)
    async with block(db) as tx:
        assert tx.connection.info.backend_pid != pids[-1]
        await insert(tx)


@phase(psycopg.OperationalError)
async def before_a_statement(db: Any) -> None:
    async with block(db) as tx:
        await insert(tx)
        await terminate(db, tx)
        await got(tx.execute("SELECT 1"))


@phase(psycopg.errors.AdminShutdown)
async def in_a_statement(db: Any) -> None:
    async with block(db) as tx:
        await insert(tx)
        await got(tx.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(30)"))


@phase(psycopg.OperationalError)
async def before_a_savepoint(db: Any) -> None:
    async with block(db) as tx:
        await insert(tx)
        await terminate(db, tx)
        async with block(db, propagation=Propagation.NESTED):
            pass


@phase(psycopg.OperationalError)
async def before_a_release(db: Any) -> None:
    async with block(db), block(db, propagation=Propagation.NESTED) as nested:
        await insert(nested)
        await terminate(db, nested)


@phase(LookupError)
async def before_a_rollback_to_a_savepoint(db: Any) -> None:
    async with block(db), block(db, propagation=Propagation.NESTED) as nested:
        await insert(nested)
        await terminate(db, nested)
        raise LookupError


@phase(LookupError)
async def before_a_rollback(db: Any) -> None:
    async with block(db) as tx:
        await insert(tx)
        await terminate(db, tx)
        raise LookupError


@phase(psycopg.OperationalError)
async def before_the_commit(db: Any) -> None:
    async with block(db) as tx:
        await insert(tx)
        await terminate(db, tx)


@phase(CommitUnknownError)
async def in_the_commit(db: Any) -> None:
    async with block(db) as tx:
        await got(tx.execute("INSERT INTO fatal VALUES (1)"))
        await insert(tx)


@phase(psycopg.OperationalError)
async def in_a_run(db: Any) -> None:
    async def once(tx: Any) -> None:
        assert tx.attempt == 1
        await insert(tx)
        await terminate(db, tx)
        await got(tx.execute("SELECT 1"))

    await run(db, once)


TABLES = """
    CREATE TABLE item (id int PRIMARY KEY);
    CREATE TABLE fatal (id int);
    CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(30); RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER die AFTER INSERT ON fatal DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION die();
"""


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_backend_terminated_in_any_phase_leaks_nothing_and_is_told_rightly(
    reliakit_dsn: str, colour: str, source: str
) -> None:
    async def script(db: Any) -> None:
        await got(db.execute(TABLES))
        for name, (work, expected) in PHASES.items():
            await got(db.execute("DELETE FROM item"))
            error: BaseException | None = None
            try:
                await work(db)
            except (psycopg.Error, LookupError, CommitUnknownError) as raised:
                error = raised
            assert isinstance(error, expected) if expected else error is None, name
            said = verdict_of(error)
            assert said == ("unknown" if expected is CommitUnknownError else "rolled back" if error else "committed")
            assert await got(db.fetch_value("SELECT count(*) FROM item")) == (error is None), name
            await all_obtainable(db)

    play(colour, reliakit_dsn, script, source)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server for these tests alone, which they may stop."""
    with EmbeddedPostgres(settings={"max_prepared_transactions": 2}) as own:
        yield own


async def away(colour: str, fn: Callable[[], object]) -> None:
    """Do what takes long, without stopping an event loop."""
    await asyncio.to_thread(fn) if colour == "tasks" else fn()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_restart_costs_the_transactions_in_flight_and_nothing_else(
    server: EmbeddedPostgres, colour: str, source: str
) -> None:
    def crash() -> None:
        server.kill()
        server.start()

    async def script(db: Any) -> None:
        await got(db.execute("CREATE TABLE item (id int PRIMARY KEY)"))
        for end in (server.restart, crash):
            await all_obtainable(db)
            blocks = [block(db, propagation=Propagation.REQUIRES_NEW) for _ in range(2)]
            running = [await one.__aenter__() for one in blocks]
            for item, tx in enumerate(running):
                await got(tx.execute("INSERT INTO item VALUES (%s)", (item,)))
            await away(colour, end)
            with pytest.raises(psycopg.OperationalError):
                await got(running[0].execute("SELECT 1"))
            for one in blocks:
                with pytest.raises(psycopg.OperationalError):
                    await one.__aexit__(None, None, None)
            await all_obtainable(db)
            assert await run(db, count) == 0

    async def count(tx: Any) -> int:
        return await got(tx.fetch_value("SELECT count(*) FROM item"))

    play(colour, server.database(), script, source, max_size=4, timeout=50)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_crash_while_commit_is_in_flight_is_an_unknown_outcome(server: EmbeddedPostgres, colour: str) -> None:
    dsn = server.database()

    def crash_in_commit() -> None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as other:
            while (
                other.execute("SELECT 1 FROM pg_stat_activity WHERE query = 'COMMIT' AND state = 'active'").fetchone()
                is None
            ):
                time.sleep(0.005)  # noqa: TID251 - until it is there
        server.kill()
        server.start()

    async def script(db: Any) -> None:
        await got(db.execute(TABLES.replace("pg_terminate_backend(pg_backend_pid()), ", "")))
        crash = threading.Thread(target=crash_in_commit)
        with pytest.raises(CommitUnknownError):
            async with block(db) as tx:
                await got(tx.execute("INSERT INTO fatal VALUES (1)"))
                crash.start()
        await away(colour, crash.join)
        assert await got(db.fetch_value("SELECT count(*) FROM fatal")) == 0

    play(colour, dsn, script, timeout=50)


@pytest.mark.parametrize("colour", COLOURS)
def test_the_callers_own_prepare_transaction_is_noticed(server: EmbeddedPostgres, colour: str) -> None:
    async def script(db: Any) -> None:
        for by_connection in (False, True):
            with pytest.raises(TransactionUsageError):
                async with block(db) as tx:
                    await got((tx.connection if by_connection else tx).execute("PREPARE TRANSACTION 'mine'"))
            async with block(db, propagation=Propagation.SUPPORTS) as bare:
                await got(bare.execute("ROLLBACK PREPARED 'mine'"))

    play(colour, server.database(), script)
