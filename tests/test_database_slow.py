"""Slow transactions are told with their statements, and never with a value of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from reliakit import configure_logging
from reliakit.core.errors import ConfigurationError, TransactionTimeoutError
from reliakit.core.events import StatementTimed, TransactionEnded, TransactionSlow
from reliakit.core.spine import subscribe
from reliakit.database import AsyncDatabase, Database, Propagation
from reliakit.database.journal import MOST_STATEMENTS
from reliakit.testing import ManualClock

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def db(reliakit_dsn: str, clock: ManualClock) -> Iterator[Database]:
    with Database(reliakit_dsn, name="shop", service="tests", clock=clock, timeout=1000.0) as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY, name text)")
        yield database


def texts(listener: RecordingListener) -> list[str]:
    (slow,) = listener.of(TransactionSlow)
    return [statement.text for statement in slow.statements]


def test_a_slow_transaction_is_told_with_its_statements(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with db.transaction(operation="order") as tx:
        tx.execute("INSERT INTO item VALUES (%s, %s), (2, 'Bob')", (1, "s3cr3t"))
        clock.advance(1.5)
        assert tx.fetch_all("SELECT * FROM item WHERE name <> 's3cr3t' -- hush") == [(2, "Bob")]
        assert tx.fetch_value("SELECT count(*) FROM item") == 2
    (slow,) = recording_listener.of(TransactionSlow)
    assert (slow.name, slow.service, slow.operation, slow.attempt, slow.status) == (
        "shop", "tests", "order", 1, "commit",
    )  # fmt: skip
    assert (slow.duration, slow.wait, slow.hold, slow.slow_after, slow.left_out) == (1.5, 0.0, 1.5, 1.0, 0)
    assert slow.statements == (
        StatementTimed("INSERT INTO item VALUES (%s, %s), (?, ...)", 0.0, 2),
        StatementTimed("SELECT * FROM item WHERE name <> ?", 0.0, 1),
        StatementTimed("SELECT count(*) FROM item", 0.0, 1),
    )
    assert [type(event) for event in recording_listener][-2:] == [TransactionEnded, TransactionSlow]


def test_the_time_of_each_statement_is_its_own(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with db.transaction() as tx:
        tx.connection.add_notice_handler(lambda _: clock.advance(2.0))
        tx.execute("SELECT 1")
        tx.execute("DO $$ BEGIN RAISE WARNING 'two seconds pass'; END $$")
        tx.execute("SELECT 2")
    (slow,) = recording_listener.of(TransactionSlow)
    assert [statement.duration for statement in slow.statements] == [0.0, 2.0, 0.0]
    assert slow.duration == 2.0


def test_whatever_runs_on_the_connection_is_noted(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with db.transaction() as tx:
        clock.advance(2.0)
        cursor = tx.connection.cursor()
        cursor.executemany("INSERT INTO item VALUES (%s, %s)", [(1, "s3cr3t"), (2, "s3cr3t")])
        cursor.execute(sql.SQL("SELECT * FROM {} WHERE id = {}").format(sql.Identifier("item"), 1))
        with cursor.copy("COPY item FROM STDIN") as copy:
            copy.write_row((3, "s3cr3t"))
        with tx.connection.cursor("named") as named:
            named.execute("SELECT id FROM item WHERE name = %s", ("s3cr3t",))
            assert len(named.fetchall()) == 3
        assert len(list(cursor.stream(b"SELECT id FROM item"))) == 3
    found = texts(recording_listener)
    for text in (
        "INSERT INTO item VALUES (%s, %s)",
        'SELECT * FROM "item" WHERE id = ?',
        "COPY item FROM STDIN",
        "SELECT id FROM item WHERE name = %s",
        "SELECT id FROM item",
    ):
        assert text in found
    assert "s3cr3t" not in str(recording_listener.of(TransactionSlow))


def test_a_statement_that_failed_is_noted_and_one_that_was_not_understood_is_withheld(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with pytest.raises(psycopg.errors.SyntaxError), db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1, 'x')")
        for text in ("INSERT INTO item VALUES (1, 'y')", 'SELECT * FROM item WHERE name = "s3cr3t"'):
            with pytest.raises(psycopg.Error), db.transaction(propagation=Propagation.NESTED):
                tx.execute(text)
        clock.advance(2.0)
        tx.execute("SELECT s3cr3t another word")
    found = texts(recording_listener)
    assert found == [
        "INSERT INTO item VALUES (?, ...)",
        "INSERT INTO item VALUES (?, ...)",
        "[withheld]",
        "[withheld]",
    ]


def test_the_slowest_statements_are_kept_and_the_others_counted(
    reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    with Database(reliakit_dsn, slow_after=0.01) as db, db.transaction() as tx:
        tx.execute("SELECT pg_sleep(0.02), 'first'")
        for _ in range(100):
            tx.execute("SELECT 1")
        tx.execute("SELECT pg_sleep(0.02), 'last', " + "x, " * 1000 + "1 FROM (SELECT 1 AS x) AS t")
    (slow,) = recording_listener.of(TransactionSlow)
    assert (len(slow.statements), slow.left_out) == (MOST_STATEMENTS, 102 - MOST_STATEMENTS)
    assert "pg_sleep" in slow.statements[0].text
    assert "pg_sleep" in slow.statements[-1].text
    assert len(slow.statements[-1].text) < 2100


@pytest.mark.parametrize("slow_after", [None, 10.0])
def test_what_is_not_slow_is_not_told(
    reliakit_dsn: str, clock: ManualClock, recording_listener: RecordingListener, slow_after: float | None
) -> None:
    with Database(reliakit_dsn, clock=clock, timeout=1000.0, slow_after=slow_after) as db, db.transaction() as tx:
        clock.advance(10.0)
        tx.execute("SELECT 1")
    assert recording_listener.of(TransactionSlow) == []


def test_nothing_is_noted_unless_somebody_listened_at_the_start(db: Database, clock: ManualClock) -> None:
    heard: list[Any] = []
    with db.transaction() as tx:
        assert tx.work.journal is None
        tx.execute("SELECT 1")
        assert tx.session().journal is None
        clock.advance(2.0)
        with subscribe(heard.append, TransactionSlow):
            tx.execute("SELECT 2")
            subscription = subscribe(heard.append, TransactionSlow)
    subscription.close()
    assert [(event.statements, event.left_out) for event in heard] == [((), 0)]


def test_the_next_transaction_on_the_connection_begins_with_nothing_noted(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    db.execute("SELECT 1")
    with db.transaction() as tx:
        clock.advance(2.0)
        tx.execute("SELECT 2 AS second")
    assert texts(recording_listener) == ["SELECT ? AS second"]


def test_one_that_was_cut_is_told_with_the_statement_that_ran(
    reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    with Database(reliakit_dsn, slow_after=0.05) as db:
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx:
            tx.execute("SELECT pg_sleep(5)")
    (slow,) = recording_listener.of(TransactionSlow)
    assert (slow.status, texts(recording_listener)) == ("timeout", ["SELECT pg_sleep(?)"])


def test_the_log_has_a_warning_with_the_statements(db: Database, clock: ManualClock) -> None:
    stream = io.StringIO()
    with configure_logging(service="svc", env="production", stream=stream):
        with db.transaction(operation="order") as tx:
            clock.advance(2.0)
            tx.execute("SELECT * FROM item WHERE name = 's3cr3t'")
    (line,) = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["level"], line["logger"], line["message"]) == (
        "WARNING", "reliakit.transaction", "transaction is slow",
    )  # fmt: skip
    assert line["context"] == {
        "database": "shop",
        "operation": "order",
        "status": "commit",
        "attempt": 1,
        "duration": 2.0,
        "wait": 0.0,
        "hold": 2.0,
        "slow_after": 1.0,
        "statements": [{"text": "SELECT * FROM item WHERE name = ?", "duration": 0.0, "rows": 0}],
        "left_out": 0,
    }


def test_the_log_tells_each_boundary_with_its_figures(db: Database, clock: ManualClock) -> None:
    stream = io.StringIO()
    with configure_logging(service="svc", env="x", level="DEBUG", stream=stream):
        with pytest.raises(psycopg.errors.UniqueViolation), db.transaction(operation="order") as tx:
            tx.execute("INSERT INTO item VALUES (1, 'x'), (2, 'y')")
            clock.advance(0.5)
            tx.execute("INSERT INTO item VALUES (1, 'x')")
    began, line = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (began["level"], began["message"]) == ("DEBUG", "transaction began")
    assert (line["level"], line["message"]) == ("WARNING", "transaction rolled back")
    assert line["context"] == {
        "database": "shop",
        "operation": "order",
        "status": "rollback",
        "attempt": 1,
        "duration": 0.5,
        "wait": 0.0,
        "hold": 0.5,
        "statements": 2,
        "rows": 2,
        "sqlstate": "23505",
        "error_type": "UniqueViolation",
    }


def test_a_wrong_limit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="slow_after"):
        Database("dbname=x", slow_after=0)


@pytest.mark.anyio
async def test_async_transactions_are_told_the_same(
    reliakit_dsn: str, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    async def work(tx: Any) -> None:
        await tx.execute("SELECT %s::text, 'Bob'", ("s3cr3t",))
        clock.advance(2.0)
        await tx.fetch_value("SELECT 1234")

    async with AsyncDatabase(reliakit_dsn, clock=clock) as db:
        await db.run(work)
    (slow,) = recording_listener.of(TransactionSlow)
    assert (slow.duration, slow.hold) == (2.0, 2.0)
    assert slow.statements == (
        StatementTimed("SELECT %s::text, ?", 0.0, 1),
        StatementTimed("SELECT ?", 0.0, 1),
    )
