"""BEGIN held back until the first statement: two round trips, and in everything else the same transaction."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool
import pytest
from psycopg import pq, sql

from reliakit.core.errors import ConfigurationError, TransactionRolledBackError, TransactionTimeoutError
from reliakit.core.events import TransactionEnded, TransactionStarted
from reliakit.database import (
    AsyncDatabase,
    Database,
    Isolation,
    Propagation,
    Transaction,
    TransactionRetry,
    transactional,
)

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


@pytest.fixture(params=["own connections", "a pool"])
def db(reliakit_dsn: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "a pool":
        with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=3, open=True) as pool:
            with Database(pool) as database:
                database.execute("CREATE TABLE item (id int PRIMARY KEY)")
                yield database
    else:
        with Database(reliakit_dsn, max_size=3) as database:
            database.execute("CREATE TABLE item (id int PRIMARY KEY)")
            yield database


def count(db: Database) -> int:
    return int(db.fetch_value("SELECT count(*) FROM item"))


def test_a_block_commits_and_one_that_raises_rolls_back(db: Database) -> None:
    with db.transaction(pipeline=True) as tx:
        assert tx.execute("INSERT INTO item VALUES (%s)", (1,)).rowcount == 1
        assert tx.fetch_one("SELECT id FROM item WHERE id = %s", (1,)) == (1,)
    with pytest.raises(LookupError), db.transaction(pipeline=True) as tx:
        tx.execute("INSERT INTO item VALUES (%s)", (2,))
        raise LookupError
    assert count(db) == 1


def test_it_has_the_isolation_and_the_limits_it_asked_for(db: Database) -> None:
    asked = {"isolation": Isolation.SERIALIZABLE, "read_only": True, "timeout": 2.0, "lock_timeout": 0.5}
    for setting, value in (
        ("transaction_isolation", "serializable"),
        ("transaction_read_only", "on"),
        ("statement_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "2s"),
        ("lock_timeout", "500ms"),
    ):
        with db.transaction(pipeline=True, **asked) as tx:  # type: ignore[arg-type]
            shown = tx.fetch_value(sql.SQL("SHOW {}").format(sql.Identifier(setting)))
            # Some of the time may have passed before the first statement.
            assert shown == value or (value == "2s" and 1000 < int(shown.removesuffix("ms")) < 2000)


def test_the_first_statement_may_fail_and_the_connection_is_used_again(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(psycopg.errors.UniqueViolation), db.transaction(pipeline=True) as tx:
        tx.execute("INSERT INTO item VALUES (%s)", (1,))
    with pytest.raises(psycopg.errors.UndefinedTable), db.transaction(pipeline=True) as tx:
        tx.fetch_value("SELECT 1 FROM nowhere")
    with db.transaction(pipeline=True) as tx:
        pid = tx.fetch_value("SELECT pg_backend_pid()")
    with pytest.raises(psycopg.errors.UniqueViolation), db.transaction(pipeline=True) as tx:
        tx.execute("INSERT INTO item VALUES (%s)", (1,))
    assert db.fetch_value("SELECT pg_backend_pid()") == pid
    assert count(db) == 1


def test_a_swallowed_error_of_the_first_statement_still_rolls_back(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(TransactionRolledBackError):
        with db.transaction(pipeline=True) as tx, pytest.raises(psycopg.errors.UniqueViolation):
            tx.execute("INSERT INTO item VALUES (%s)", (1,))


def test_a_block_without_a_statement_sends_nothing_and_commits(
    db: Database, recording_listener: RecordingListener
) -> None:
    done: list[str] = []
    with db.transaction(pipeline=True, operation="empty") as tx:
        tx.after_commit(lambda: done.append("committed"))
        assert tx.work.session.pgconn.transaction_status == pq.TransactionStatus.IDLE  # type: ignore[union-attr]
    assert done == ["committed"]
    kinds = [
        type(event)
        for event in recording_listener.events
        if isinstance(event, TransactionStarted | TransactionEnded) and event.operation == "empty"
    ]
    assert kinds == [TransactionEnded]


def test_the_beginning_is_told_once_the_first_statement_has_run(
    db: Database, recording_listener: RecordingListener
) -> None:
    def started() -> int:
        events = recording_listener.events
        return sum(isinstance(event, TransactionStarted) and event.operation == "told" for event in events)

    with db.transaction(pipeline=True, operation="told") as tx:
        assert started() == 0
        tx.fetch_value("SELECT %s::int", (1,))
        assert started() == 1
        tx.fetch_value("SELECT %s::int", (1,))
        assert started() == 1
    (ended,) = [
        event
        for event in recording_listener.events
        if isinstance(event, TransactionEnded) and event.operation == "told"
    ]
    assert (ended.statements, ended.status) == (2, "commit")


def test_the_connection_itself_finds_the_transaction_begun(db: Database) -> None:
    with db.transaction(pipeline=True) as tx:
        assert tx.connection.info.transaction_status == pq.TransactionStatus.INTRANS
        tx.connection.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(LookupError), db.transaction(pipeline=True) as tx:
        with tx.connection.cursor() as cursor, cursor.copy("COPY item FROM STDIN") as copy:
            copy.write_row((2,))
        raise LookupError
    assert count(db) == 1


def test_several_statements_in_one_text_are_begun_before(db: Database) -> None:
    with db.transaction(pipeline=True) as tx:
        tx.execute("INSERT INTO item VALUES (1); INSERT INTO item VALUES (2)")
    with pytest.raises(LookupError), db.transaction(pipeline=True) as tx:
        tx.execute(sql.SQL("INSERT INTO item VALUES (3); INSERT INTO item VALUES (4);"))
        raise LookupError
    assert count(db) == 2


def test_savepoints_joins_and_own_transactions_inside_it(db: Database) -> None:
    with db.transaction(pipeline=True):
        with pytest.raises(LookupError), db.transaction(propagation=Propagation.NESTED) as nested:
            nested.execute("INSERT INTO item VALUES (%s)", (1,))
            raise LookupError
        with db.transaction(lock_timeout=0.5) as joined:
            assert joined.fetch_value("SHOW lock_timeout") == "500ms"
        with db.transaction(propagation=Propagation.REQUIRES_NEW, pipeline=True) as other:
            other.execute("INSERT INTO item VALUES (%s)", (2,))
        with db.transaction(pipeline=True) as joined:
            joined.execute("INSERT INTO item VALUES (%s)", (3,))
    assert [row[0] for row in db.fetch_all("SELECT id FROM item ORDER BY id")] == [2, 3]


def test_a_dead_connection_is_replaced_and_the_statement_runs_once(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=1) as other:
        for first in (
            lambda tx: tx.execute("INSERT INTO item VALUES (%s)", (1,)),
            lambda tx: tx.connection.execute("INSERT INTO item VALUES (2)"),
            lambda tx: tx.execute("INSERT INTO item VALUES (3); SELECT 1"),
        ):
            pid = other.fetch_value("SELECT pg_backend_pid()")
            db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            with other.transaction(pipeline=True) as tx:
                first(tx)
        assert other.stats().in_use == 0
    assert count(db) == 3


def test_a_late_first_statement_is_cut_and_the_next_transaction_works(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError), db.transaction(pipeline=True, timeout=0.3) as tx:
        tx.execute("SELECT pg_sleep(%s)", (30,))
    with pytest.raises(TransactionTimeoutError), db.transaction(pipeline=True, timeout=0.3) as tx:
        tx.execute("SELECT pg_sleep(30)")
    assert count(db) == 0
    assert (db.stats().in_use, db.stats().leaked) == (0, 0)


def test_a_lost_race_on_the_first_statement_is_tried_again(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    attempts: list[int] = []

    def change(tx: Transaction) -> None:
        attempts.append(tx.attempt)
        assert tx.fetch_value("SELECT count(*) FROM item WHERE id = %s", (1,)) == 1
        if tx.attempt == 1:
            worker = threading.Thread(target=db.execute, args=("UPDATE item SET id = 1 WHERE id = 1",))
            worker.start()
            worker.join()
        tx.execute("UPDATE item SET id = 1 WHERE id = %s", (1,))

    db.run(change, pipeline=True, retry=TransactionRetry(max_attempts=3))
    assert attempts == [1, 2]


def test_functions_and_methods_take_it_too(db: Database) -> None:
    @db.transactional(pipeline=True)
    def insert(item: int) -> None:
        db.execute("INSERT INTO item VALUES (%s)", (item,))

    class Items:
        def __init__(self) -> None:
            self.db = db

        @transactional(pipeline=True)
        def insert(self, item: int) -> None:
            self.db.current().execute("INSERT INTO item VALUES (%s)", (item,))

    insert(1)
    Items().insert(2)
    assert count(db) == 2
    with pytest.raises(ConfigurationError, match="pipeline"):
        db.transaction(pipeline="yes")  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_all_of_it_in_tasks(reliakit_dsn: str, recording_listener: RecordingListener) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=2, name="tasks") as db:
        await db.execute("CREATE TABLE item (id int PRIMARY KEY)")
        async with db.transaction(pipeline=True) as tx:
            await tx.execute("INSERT INTO item VALUES (%s)", (1,))
            assert await tx.fetch_value("SHOW statement_timeout") != "0"
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with db.transaction(pipeline=True) as tx:
                await tx.execute("INSERT INTO item VALUES (%s)", (1,))
        async with db.transaction(pipeline=True, operation="empty"):
            pass
        with pytest.raises(LookupError):
            async with db.transaction(pipeline=True) as tx:
                await tx.connection.execute("INSERT INTO item VALUES (2)")
                raise LookupError
        with pytest.raises(TransactionTimeoutError):
            async with db.transaction(pipeline=True, timeout=0.3) as tx:
                await tx.execute("SELECT pg_sleep(%s)", (30,))
        async with db.transaction(pipeline=True):
            with pytest.raises(LookupError):
                async with db.transaction(propagation=Propagation.NESTED) as nested:
                    await nested.execute("INSERT INTO item VALUES (%s)", (3,))
                    raise LookupError
        assert await db.fetch_value("SELECT count(*) FROM item") == 1
        assert db.stats().in_use == 0
    started = [event.operation for event in recording_listener.events if isinstance(event, TransactionStarted)]
    assert "empty" not in started
