"""Transactions while the server, the network or the process fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from reliakit.core.errors import (
    CommitUnknownError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import AttemptFailed, CheckoutOverdue, ConnectionLeaked, TransactionEnded
from reliakit.database import AsyncDatabase, Database, Isolation, Propagation, Transaction, TransactionRetry
from reliakit.testing import EmbeddedPostgres, FaultProxy, RecordingListener

Proxy = Callable[[str], FaultProxy]


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3) as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY, amount int NOT NULL DEFAULT 0)")
        yield database


@pytest.fixture
def proxied(db: Database, reliakit_dsn: str, fault_proxy: Proxy) -> Iterator[tuple[Database, FaultProxy]]:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=2, name="far") as database:
        database.fetch_value("SELECT 1")
        yield database, proxy


def terminate(db: Database, pid: int) -> None:
    db.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_pooled_connection_that_died_is_replaced_silently(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=2) as other:
        with other.transaction(), other.transaction(propagation=Propagation.REQUIRES_NEW):
            pids = [other.fetch_value("SELECT pg_backend_pid()")]
        pids.append(other.fetch_value("SELECT pg_backend_pid()"))
        for pid in set(pids):
            terminate(db, pid)
        with other.transaction() as tx:
            assert tx.fetch_value("SELECT pg_backend_pid()") not in pids
        with other.transaction(), other.transaction(propagation=Propagation.REQUIRES_NEW):
            assert other.stats().in_use == 2


@pytest.mark.parametrize("pipeline", [False, True])
def test_a_connection_opened_in_advance_that_died_before_its_first_use_is_replaced_silently(
    db: Database, reliakit_dsn: str, pipeline: bool
) -> None:
    conninfo = psycopg.conninfo.make_conninfo(reliakit_dsn, application_name="early")
    with Database(conninfo, min_size=3, max_size=3) as other:
        for (pid,) in db.fetch_all("SELECT pid FROM pg_stat_activity WHERE application_name = 'early'"):
            terminate(db, pid)
        with other.transaction(pipeline=pipeline) as tx:
            assert tx.fetch_value("SELECT %s::int", (1,)) == 1
            with other.transaction(propagation=Propagation.REQUIRES_NEW) as apart:
                apart.execute("SELECT 1")
        with other.advisory_lock("report"), other.transaction(), other.advisory_lock("bill"):
            assert other.stats().in_use == 3


def test_a_backend_terminated_after_the_first_statement_surfaces_and_is_no_unknown_outcome(
    db: Database, reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    with Database(reliakit_dsn, max_size=2, name="other") as other:
        for statement in (True, False):
            with pytest.raises(psycopg.OperationalError):
                with other.transaction() as tx:
                    tx.execute("INSERT INTO item VALUES (1)")
                    terminate(db, tx.connection.info.backend_pid)
                    if statement:
                        tx.execute("SELECT 1")
        assert other.fetch_value("SELECT count(*) FROM item") == 0
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert [event.status for event in ended if event.name == "other"][:2] == ["rollback", "rollback"]


def test_transactions_go_on_after_a_restart_and_after_a_crash(
    db: Database, reliakit_postgres: EmbeddedPostgres
) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    reliakit_postgres.restart()
    assert db.fetch_value("SELECT count(*) FROM item") == 1
    reliakit_postgres.kill()
    with pytest.raises(psycopg.OperationalError), db.transaction():
        pass
    reliakit_postgres.start()
    assert db.fetch_value("SELECT count(*) FROM item") == 1
    assert (db.stats().in_use, db.stats().leaked) == (0, 0)


def test_run_waits_out_a_server_that_comes_back(
    db: Database, reliakit_postgres: EmbeddedPostgres, recording_listener: RecordingListener
) -> None:
    reliakit_postgres.kill()
    starter = threading.Timer(0.2, reliakit_postgres.start)
    starter.start()
    try:
        assert db.run(lambda tx: tx.fetch_value("SELECT 7"), timeout=20, retry=TransactionRetry(100)) == 7
    finally:
        starter.join()
    assert any(isinstance(event, AttemptFailed) for event in recording_listener.events)


@pytest.mark.parametrize(("after", "committed"), [(False, 0), (True, 1)])
def test_a_connection_cut_at_commit_is_an_unknown_outcome_and_never_tried_again(
    proxied: tuple[Database, FaultProxy],
    db: Database,
    after: bool,
    committed: int,
    recording_listener: RecordingListener,
) -> None:
    far, proxy = proxied
    attempts: list[int] = []

    def insert(tx: Transaction) -> None:
        attempts.append(tx.attempt)
        tx.execute("INSERT INTO item VALUES (1)")
        tx.transaction_id()

    with proxy.cut_on(b"COMMIT\0", after=after), pytest.raises(CommitUnknownError) as caught:
        far.run(insert)
    assert attempts == [1]
    transaction_id = caught.value.transaction_id
    assert transaction_id is not None
    status = "SELECT pg_xact_status(%s::xid8)"
    while (outcome := db.fetch_value(status, (transaction_id,))) == "in progress":
        time.sleep(0.02)  # noqa: TID251 - the server notices the cut by itself
    assert outcome == ("committed" if committed else "aborted")
    assert db.fetch_value("SELECT count(*) FROM item") == committed
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert [event.status for event in ended if event.operation == "insert"] == ["unknown"]
    assert far.fetch_value("SELECT 1") == 1


@pytest.mark.anyio
async def test_cancelled_at_a_commit_without_an_answer_the_cancellation_carries_the_unknown_outcome(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    async with AsyncDatabase(proxy.dsn(), max_size=2) as far:
        cut = proxy.cut_on(b"COMMIT\0", after=True, how="black_hole")

        async def insert() -> None:
            async with far.transaction() as tx:
                await tx.execute("INSERT INTO item VALUES (1)")

        task = asyncio.create_task(insert())
        await asyncio.to_thread(cut.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, CommitUnknownError)
        cut.heal()
        assert far.stats().in_use == 0
        assert await far.fetch_value("SELECT count(*) FROM item") == 1


def test_three_round_trips_however_many_limits(proxied: tuple[Database, FaultProxy]) -> None:
    far, proxy = proxied
    before = proxy.stats().round_trips
    with far.transaction(isolation=Isolation.SERIALIZABLE, timeout=3, lock_timeout=1) as tx:
        tx.execute("SELECT 1")
    assert proxy.stats().round_trips - before == 3


def test_a_cut_statement_is_gone_from_the_server(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as other:
        with pytest.raises(TransactionTimeoutError), other.transaction(timeout=0.1) as tx:
            tx.execute("SELECT pg_sleep(31)")
        running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(31)%'"
        assert db.fetch_value(running + " AND pid <> pg_backend_pid()") == 0


def test_an_idle_transaction_that_the_server_ended_leaves_as_a_timeout(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError):
        with db.transaction(timeout=0.1) as tx:
            tx.execute("INSERT INTO item VALUES (1)")
            time.sleep(0.3)  # noqa: TID251 - the server's clock, too
            tx.execute("SELECT 1")
    assert db.fetch_value("SELECT count(*) FROM item") == 0


def test_a_fork_gets_a_clear_error_and_leaves_the_parents_connection_alone(db: Database) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = b"nothing"
        try:
            db.fetch_value("SELECT 1")
        except TransactionUsageError as error:
            said = b"refused" if "forked" in str(error) else b"wrong"
            db.close()
            db.open()
            said += str(db.fetch_value("SELECT pg_backend_pid()") != pid).encode()
        finally:
            os.write(write, said)
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"refusedTrue"
    os.close(read)
    os.close(write)
    assert db.fetch_value("SELECT pg_backend_pid()") == pid


def test_a_checkout_held_for_long_is_reported_with_its_line(
    reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    with Database(reliakit_dsn, leak_after=0.05) as db:
        with db.transaction():
            time.sleep(0.1)  # noqa: TID251 - longer than leak_after
            db.stats()
        with db.transaction():
            time.sleep(0.1)  # noqa: TID251
    overdue = [event for event in recording_listener.events if isinstance(event, CheckoutOverdue)]
    assert len(overdue) == 2
    assert all(event.line.startswith(__file__) for event in overdue)


def test_a_lost_checkout_is_told_once(db: Database, recording_listener: RecordingListener) -> None:
    block = db.transaction()
    thread = threading.Thread(target=block.__enter__)
    thread.start()
    thread.join()
    assert [db.stats().leaked, db.stats().leaked] == [1, 1]
    assert len([event for event in recording_listener.events if isinstance(event, ConnectionLeaked)]) == 1
    with contextlib.suppress(TransactionUsageError, TransactionRolledBackError):
        block.__exit__(None, None, None)
    assert db.stats().leaked == 0
