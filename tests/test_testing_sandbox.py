"""Tests inside rolled_back(): everything works as outside of it, and nothing of it is ever seen or left."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, text

from reliakit.core.errors import (
    ConfigurationError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import CheckoutOverdue, TransactionEnded
from reliakit.database import (
    AsyncDatabase,
    Database,
    Isolation,
    Outbox,
    Propagation,
    Repository,
    transactional,
)
from reliakit.integrations.sqlalchemy import EnginePool, connection, session
from reliakit.testing import rolled_back

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

SCHEMA = """
    CREATE TABLE item (id int PRIMARY KEY, amount int NOT NULL DEFAULT 0);
    CREATE TABLE part (item int REFERENCES item DEFERRABLE INITIALLY DEFERRED, name text);
    CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
    CREATE TABLE audit (said text);
    CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN INSERT INTO audit VALUES (new.name); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER say AFTER INSERT ON part DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION say();
    CREATE SEQUENCE tries;
"""


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3, name="shop") as database:
        with psycopg.connect(reliakit_dsn, autocommit=True) as admin:
            admin.execute(SCHEMA)
        yield database


@pytest.fixture
async def adb(db: Database, reliakit_dsn: str) -> AsyncIterator[AsyncDatabase]:
    async with AsyncDatabase(reliakit_dsn, max_size=3) as database:
        yield database


@pytest.fixture
def outside(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=1, name="outside") as database:
        yield database


def items(db: Database) -> list[int]:
    return [row[0] for row in db.fetch_all("SELECT id FROM item ORDER BY id")]


def insert(db: Database, item: int) -> None:
    db.execute("INSERT INTO item VALUES (%s)", (item,))


def test_what_is_committed_is_seen_inside_never_outside_and_gone_after(db: Database, outside: Database) -> None:
    with rolled_back(db) as same:
        assert same is db
        with db.transaction() as tx:
            tx.execute("INSERT INTO item VALUES (1)")
        insert(db, 2)
        db.run(lambda tx: tx.execute("INSERT INTO item VALUES (3)"))
        assert items(db) == [1, 2, 3]
        assert items(outside) == []
    assert items(db) == []
    insert(db, 4)
    assert items(outside) == [4]


def test_a_transaction_that_fails_is_rolled_back_alone(db: Database) -> None:
    with rolled_back(db):
        insert(db, 1)
        with pytest.raises(LookupError), db.transaction() as tx:
            tx.execute("INSERT INTO item VALUES (2)")
            raise LookupError
        with pytest.raises(psycopg.errors.UniqueViolation):
            insert(db, 1)
        with db.transaction() as tx:
            tx.execute("INSERT INTO item VALUES (3)")
            tx.set_rollback_only()
        insert(db, 4)
        assert items(db) == [1, 4]


def test_the_test_that_fails_rolls_back_too(db: Database) -> None:
    with pytest.raises(LookupError), rolled_back(db):
        insert(db, 1)
        raise LookupError
    assert items(db) == []


def test_outcomes_hooks_and_events_are_those_of_real_transactions(
    db: Database, recording_listener: RecordingListener
) -> None:
    seen: list[object] = []
    with rolled_back(db):
        with db.transaction(operation="good") as tx:
            tx.after_commit(lambda: seen.append(items(db)))
            tx.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(TransactionRolledBackError, match="22012"), db.transaction(operation="bad") as tx:
            tx.after_rollback(lambda: seen.append("rolled back"))
            with pytest.raises(psycopg.errors.DivisionByZero):
                tx.execute("SELECT 1 / 0")
    assert seen == [[1], "rolled back"]
    ended = [(event.operation, event.status) for event in recording_listener.of(TransactionEnded)]
    assert [pair for pair in ended if pair[0] != "execute"] == [("good", "commit"), ("bad", "rollback")]


def test_lost_races_are_tried_again(db: Database) -> None:
    with rolled_back(db):
        insert(db, 1)
        tries: list[int] = []

        def lose(tx: Any) -> int:
            tries.append(tx.attempt)
            tx.execute("INSERT INTO item VALUES (2)")
            if len(tries) < 3:
                tx.execute("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$")
            return tx.attempt

        assert db.run(lose) == 3
        assert items(db) == [1, 2]


def test_propagation_is_as_outside(db: Database) -> None:
    with rolled_back(db):
        with db.transaction() as tx:
            with pytest.raises(LookupError), db.transaction(propagation=Propagation.NESTED):
                insert(db, 1)
                raise LookupError
            with db.transaction(propagation=Propagation.NESTED):
                insert(db, 2)
            with db.transaction(propagation=Propagation.MANDATORY) as joined:
                assert joined is tx
        with pytest.raises(TransactionRolledBackError), db.transaction():
            insert(db, 3)
            with pytest.raises(LookupError), db.transaction():
                raise LookupError
        assert items(db) == [2]


def test_a_second_connection_at_once_is_refused_with_the_reason(db: Database) -> None:
    with rolled_back(db), db.transaction():
        with pytest.raises(TransactionUsageError, match="rolled_back"):
            with db.transaction(propagation=Propagation.REQUIRES_NEW):
                pass


def test_limits_are_each_transactions_own_and_end_with_it(db: Database) -> None:
    with rolled_back(db):
        with db.transaction(timeout=2, lock_timeout=0.5) as tx:
            assert 0 < tx.fetch_value("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'") <= 2000
            assert tx.fetch_value("SHOW lock_timeout") == "500ms"
        with db.transaction() as tx:
            assert tx.fetch_value("SHOW lock_timeout") == "0"
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx:
            tx.execute("INSERT INTO item VALUES (1)")
            tx.execute("SELECT pg_sleep(30)")
        with db.transaction(propagation=Propagation.SUPPORTS) as bare:
            assert bare.fetch_value("SHOW idle_in_transaction_session_timeout") == "0"
        assert items(db) == []


def test_a_transaction_that_only_reads_cannot_write(db: Database) -> None:
    with rolled_back(db):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.transaction(read_only=True):
            insert(db, 1)
        with db.transaction(read_only=True) as tx:
            assert tx.fetch_value("SHOW transaction_read_only") == "on"
        insert(db, 2)
        assert items(db) == [2]


def test_all_transactions_have_the_databases_isolation(db: Database) -> None:
    with rolled_back(db), db.transaction(isolation=Isolation.SERIALIZABLE) as tx:
        assert tx.fetch_value("SHOW transaction_isolation") == "repeatable read"


def test_deferred_constraints_are_checked_when_the_transaction_ends(db: Database) -> None:
    with rolled_back(db):
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            with db.transaction() as tx:
                tx.execute("INSERT INTO part VALUES (1, 'wheel')")
                tx.execute("SELECT 1")
        for number in (1, 2):  # deferred anew in each transaction
            with db.transaction() as tx:
                tx.execute("INSERT INTO part VALUES (%s, 'wheel')", (number,))
                tx.execute("INSERT INTO item VALUES (%s)", (number,))
            assert db.fetch_value("SELECT count(*) FROM audit") == number  # what deferred triggers do is done
        with pytest.raises(psycopg.errors.UniqueViolation), db.transaction() as tx:
            tx.execute("INSERT INTO late VALUES (1), (1)")
            raise AssertionError("it is checked at once, as declared")
        with db.transaction() as tx:
            tx.execute("SET CONSTRAINTS ALL DEFERRED")
            tx.execute("INSERT INTO late VALUES (1), (1)")
            tx.execute("DELETE FROM late")
        with pytest.raises(psycopg.errors.UniqueViolation), db.transaction() as tx:
            tx.execute("INSERT INTO late VALUES (1), (1)")
    assert items(db) == []


def test_statements_without_a_transaction_commit_and_fail_one_by_one(db: Database) -> None:
    with rolled_back(db):
        with db.transaction(propagation=Propagation.SUPPORTS) as bare:
            bare.execute("INSERT INTO item VALUES (1)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                bare.execute("INSERT INTO item VALUES (1)")
            bare.execute("INSERT INTO item VALUES (2)")
            with pytest.raises(psycopg.errors.ForeignKeyViolation):
                bare.execute("INSERT INTO part VALUES (7, 'wheel')")
            with bare.connection.cursor().copy("COPY item (id) FROM STDIN") as copy:
                copy.write_row((3,))
                copy.write_row((4,))
        with db.transaction(propagation=Propagation.SUPPORTS) as bare:
            with bare.connection.pipeline():
                bare.connection.execute("INSERT INTO item VALUES (5)")
                bare.connection.execute("INSERT INTO item VALUES (6)")
        with pytest.raises(TransactionTimeoutError):
            with db.transaction(propagation=Propagation.SUPPORTS, timeout=0.1) as short:
                short.execute("SELECT pg_sleep(30)")
        assert items(db) == [1, 2, 3, 4, 5, 6]
    assert items(db) == []


def test_threads_queue_for_the_one_connection(db: Database, outside: Database) -> None:
    with rolled_back(db):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda item: insert(db, item), range(40)))
        assert items(db) == list(range(40))
        assert items(outside) == []
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with db.transaction():
                held.set()
                done.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1):
            pass
        done.set()
        thread.join()
        insert(db, 40)
    assert items(db) == []


def test_two_sandboxes_beside_each_other_see_nothing_of_each_other(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as other, rolled_back(db), rolled_back(other):
        insert(db, 1)
        assert items(other) == []
        insert(other, 2)
        assert (items(db), items(other)) == ([1], [2])
    assert items(db) == []


def test_the_connection_is_used_again_and_clean_by_the_next_test(db: Database) -> None:
    pids: set[int] = set()
    for _ in range(3):
        with rolled_back(db):
            insert(db, 1)
            db.execute("SET work_mem = '9MB'")
            pids.add(db.fetch_value("SELECT pg_backend_pid()"))
        assert db.fetch_value("SHOW work_mem") != "9MB"
        assert db.fetch_value("SHOW statement_timeout") == "5s"
    assert len(pids) == 1
    assert (db.stats().in_use, db.stats().leaked) == (0, 0)


def test_an_idle_connection_that_died_does_not_fail_the_next_test(db: Database, outside: Database) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    outside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with rolled_back(db):
        insert(db, 1)
        assert items(db) == [1]


def test_a_killed_connection_is_told_clearly_and_the_next_test_is_clean(db: Database, outside: Database) -> None:
    with rolled_back(db):
        insert(db, 1)
        pid = db.fetch_value("SELECT pg_backend_pid()")
        with pytest.raises(psycopg.OperationalError), db.transaction() as tx:
            outside.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            tx.execute("SELECT 1")
        for _ in range(2):
            with pytest.raises(TransactionUsageError, match="connection was lost"):
                insert(db, 2)
    with rolled_back(db):
        insert(db, 3)
        assert items(db) == [3]
    assert items(outside) == []


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN"])
@pytest.mark.parametrize("bare", [False, True], ids=["block", "bare"])
def test_code_that_ends_the_transaction_itself_is_told(db: Database, how: str, bare: bool) -> None:
    propagation = Propagation.SUPPORTS if bare else Propagation.REQUIRED
    with pytest.raises(TransactionUsageError, match=r"rolled_back.*itself"), rolled_back(db):
        with pytest.raises((TransactionUsageError, psycopg.Error)):
            with db.transaction(propagation=propagation) as tx:
                tx.execute(how)
                tx.execute("SELECT 1")
        with pytest.raises(TransactionUsageError):
            insert(db, 1)
    with rolled_back(db):
        insert(db, 1)
    assert items(db) == []


def test_a_transaction_that_still_runs_at_the_end_is_told_with_its_line(db: Database) -> None:
    held, done = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def hold() -> None:
        try:
            with db.transaction() as tx:
                held.set()
                done.wait(10)
                tx.execute("SELECT 1")
        except psycopg.OperationalError as error:
            caught.append(error)

    thread = threading.Thread(target=hold)
    with pytest.raises(TransactionUsageError, match=r"test_testing_sandbox\.py:"), rolled_back(db):
        thread.start()
        held.wait()
    insert(db, 1)
    done.set()
    thread.join()
    assert len(caught) == 1
    assert items(db) == [1]
    assert (db.stats().in_use, db.stats().leaked) == (0, 0)


def test_it_begins_where_nothing_runs_and_is_for_one_block(db: Database) -> None:
    with db.transaction():
        with pytest.raises(TransactionUsageError, match="must begin outside of transactions"), rolled_back(db):
            pass
    with rolled_back(db):
        with pytest.raises(TransactionUsageError, match="nest"), rolled_back(db):
            pass
        insert(db, 1)
    block = rolled_back(db)
    with block:
        pass
    with pytest.raises(ConfigurationError), block:
        pass
    with pytest.raises(ConfigurationError, match="takes a Database"):
        rolled_back("dbname=shop")
    assert items(db) == []


def test_a_database_closed_inside_is_closed_after_and_one_opened_again_is_open(db: Database) -> None:
    with rolled_back(db):
        insert(db, 1)
        db.close()
        with pytest.raises(TransactionUsageError):
            insert(db, 2)
        db.open()
        assert items(db) == [1]
    assert items(db) == []
    with rolled_back(db):
        db.close()
    with pytest.raises(TransactionUsageError):
        insert(db, 3)


def test_tables_that_the_test_makes_are_gone_after_it(db: Database) -> None:
    for _ in range(2):
        with rolled_back(db):
            assert db.run(lambda tx: {"paid": 1}, idempotency_key="order-1") == {"paid": 1}
            assert db.run(lambda tx: {"paid": 2}, idempotency_key="order-1") == {"paid": 1}
        assert db.fetch_value("SELECT to_regclass('reliakit_idempotency')") is None


def test_replicas_are_left_out_because_they_would_not_see_the_test(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, replicas=[reliakit_dsn]) as split:
        with rolled_back(split):
            insert(split, 1)
            with split.transaction(read_only=True) as tx:
                assert tx.fetch_value("SELECT count(*) FROM item") == 1
        with split.transaction(read_only=True):
            assert split.stats().replicas[0].in_use == 1


def test_an_advisory_lock_is_real_and_leaves_the_one_connection_free(db: Database, outside: Database) -> None:
    with rolled_back(db):
        with db.advisory_lock("nightly report"):
            insert(db, 1)
            with pytest.raises(TransactionTimeoutError), outside.advisory_lock("nightly report", timeout=0):
                pass
        with outside.advisory_lock("nightly report", timeout=0):
            pass
        assert items(db) == [1]
    assert (db.stats().in_use, items(db)) == (0, [])


def test_messages_are_published_and_relayed(db: Database) -> None:
    outbox, seen = Outbox(), []
    with rolled_back(db):
        outbox.create(db)
        with db.transaction() as tx:
            outbox.publish(tx, "mail", {"to": "ada"})
        outbox.relay(db, lambda message: seen.append(message.payload)).drain()
        assert outbox.stats(db).pending == 0
    assert seen == [{"to": "ada"}]
    assert db.fetch_value("SELECT to_regclass('outbox')") is None


def test_methods_are_transactional_as_outside(db: Database) -> None:
    class Items(Repository):
        @transactional
        def save(self, item: int) -> int:
            insert(self.db, item)
            return self.db.fetch_value("SELECT count(*) FROM item")

    with rolled_back(db):
        assert [Items(db).save(1), Items(db).save(2)] == [1, 2]
    assert items(db) == []


@pytest.mark.parametrize("source", ["a pool", "an engine"])
def test_a_database_with_borrowed_connections_works_too(db: Database, reliakit_dsn: str, source: str) -> None:
    pool = psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1, open=True)
    engine = create_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(reliakit_dsn), pool_size=1)
    with pool, Database(pool if source == "a pool" else EnginePool(engine)) as lent:
        for _ in range(2):
            with rolled_back(lent):
                for item in (1, 2):
                    with lent.transaction() as tx:
                        tx.execute("INSERT INTO item VALUES (%s)", (item,))
                        if source == "an engine":
                            with session(tx) as s:
                                s.execute(text("INSERT INTO audit VALUES ('seen')"))
                            assert connection(tx).scalar(text("SELECT count(*) FROM audit")) == item
                assert items(lent) == [1, 2]
            assert items(lent) == []
    engine.dispose()


def test_a_long_test_is_no_overdue_checkout(reliakit_dsn: str, recording_listener: RecordingListener) -> None:
    with Database(reliakit_dsn, leak_after=0.001) as db, rolled_back(db):
        db.fetch_value("SELECT pg_sleep(0.01)")
    assert {event.line.split(":")[0] for event in recording_listener.of(CheckoutOverdue)} == {__file__}
    assert len(recording_listener.of(CheckoutOverdue)) == 1  # the statement's own


@pytest.mark.anyio
async def test_in_tasks_it_is_the_same(adb: AsyncDatabase, outside: Database) -> None:
    seen: list[object] = []
    async with rolled_back(adb) as same:
        assert same is adb
        async with asyncio.TaskGroup() as group:
            for item in range(20):
                group.create_task(adb.execute("INSERT INTO item VALUES (%s)", (item,)))
        async with adb.transaction(propagation=Propagation.SUPPORTS) as bare:
            with pytest.raises(psycopg.errors.UniqueViolation):
                await bare.execute("INSERT INTO item VALUES (1)")
            await bare.execute("INSERT INTO item VALUES (20)")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            async with adb.transaction() as tx:
                tx.after_rollback(lambda: seen.append("rolled back"))
                await tx.execute("INSERT INTO part VALUES (99, 'wheel')")
        with pytest.raises(TransactionUsageError):
            async with adb.transaction(), adb.transaction(propagation=Propagation.REQUIRES_NEW):
                pass
        assert await adb.fetch_value("SELECT count(*) FROM item") == 21
        assert items(outside) == []
    assert seen == ["rolled back"]
    assert await adb.fetch_value("SELECT count(*) FROM item") == 0


@pytest.mark.anyio
async def test_cancelled_tasks_leave_the_others_of_the_test_alone(adb: AsyncDatabase) -> None:
    async with rolled_back(adb):
        await adb.execute("INSERT INTO item VALUES (1)")
        for statement in ("SELECT pg_sleep(30)", "INSERT INTO item VALUES (2)"):
            for pause in (0.0, 0.0005, 0.001, 0.002, 0.02):
                task = asyncio.create_task(adb.execute(statement))
                await asyncio.sleep(pause)  # noqa: TID251 - somewhere inside
                task.cancel()
                await asyncio.wait([task])
                await adb.execute("DELETE FROM item WHERE id = 2")
        assert await adb.fetch_all("SELECT id FROM item") == [(1,)]
    assert await adb.fetch_value("SELECT count(*) FROM item") == 0
    assert adb.stats().in_use == 0


def test_as_a_fixture_it_lasts_as_long_as_the_test(tmp_path: Path, db: Database, reliakit_dsn: str) -> None:
    file = tmp_path / "test_shop.py"
    code = f"""
        import pytest
        from reliakit import AsyncDatabase, ConfigurationError, Database
        from reliakit.testing import rolled_back

        DSN = {reliakit_dsn!r}

        @pytest.fixture(scope="module")
        def database():
            with Database(DSN) as database:
                yield database

        @pytest.fixture
        def db(database):
            with rolled_back(database):
                yield database

        @pytest.mark.parametrize("time", range(2))
        def test_two_lines(db, time):
            db.execute("INSERT INTO item VALUES (1)")

        @pytest.mark.parametrize("time", range(2))
        def test_factory(database, reliakit_rollback, time):
            assert reliakit_rollback(database) is database
            database.execute("INSERT INTO item VALUES (1)")

        def test_wrong_colour(reliakit_rollback):
            with pytest.raises(ConfigurationError, match="async with"):
                reliakit_rollback(AsyncDatabase(DSN))
    """
    file.write_text(textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert "5 passed" in done.stdout, done.stdout
    assert items(db) == []
