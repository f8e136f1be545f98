"""Unknown outcomes, asked for and made harmless by idempotency keys, while the network and the server fail."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from reliakit.core.backoff import Backoff
from reliakit.core.deadline import deadline
from reliakit.core.errors import CommitUnknownError, TransactionError, TransactionTimeoutError
from reliakit.core.events import AttemptFailed, TransactionEnded
from reliakit.database import AsyncDatabase, AsyncTransaction, Database, Outbox, Transaction, TransactionRetry
from reliakit.testing import FaultProxy, RecordingListener

Proxy = Callable[[str], FaultProxy]


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3) as database:
        database.execute("CREATE TABLE item (id int)")
        yield database


@pytest.fixture
def proxied(db: Database, reliakit_dsn: str, fault_proxy: Proxy) -> Iterator[tuple[Database, FaultProxy]]:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=2, name="far", timeout=20) as database:
        database.run(lambda _tx: 1, idempotency_key="makes the table")
        yield database, proxy


def insert(tx: Transaction) -> int:
    tx.execute("INSERT INTO item VALUES (1)")
    return tx.attempt


def statuses(recorder: RecordingListener) -> list[str]:
    return [e.status for e in recorder.events if isinstance(e, TransactionEnded) and e.operation == "insert"]


def wait_for_outcome(db: Database, transaction_id: str | None) -> str | None:
    while (outcome := db.outcome(transaction_id)) == "in progress":
        time.sleep(0.02)  # noqa: TID251 - the server notices the cut by itself
    return outcome


@pytest.mark.parametrize(("after", "expected"), [(False, "aborted"), (True, "committed")])
def test_the_outcome_of_an_unknown_commit_can_be_asked_for(
    proxied: tuple[Database, FaultProxy], db: Database, after: bool, expected: str
) -> None:
    far, proxy = proxied
    with proxy.cut_on(b"COMMIT\0", after=after), pytest.raises(CommitUnknownError) as caught:
        with far.transaction() as tx:
            insert(tx)
            tx.transaction_id()
    assert wait_for_outcome(db, caught.value.transaction_id) == expected
    assert wait_for_outcome(far, caught.value.transaction_id) == expected


@pytest.mark.parametrize(("after", "expected"), [(False, "aborted"), (True, "committed")])
def test_a_key_and_a_message_bring_the_transactions_id_along(
    proxied: tuple[Database, FaultProxy], db: Database, after: bool, expected: str
) -> None:
    far, proxy = proxied
    outbox = Outbox()
    outbox.create(db)
    with proxy.cut_on(b"COMMIT\0", after=after), pytest.raises(CommitUnknownError) as keyed:
        far.run(insert, idempotency_key="a", retry=TransactionRetry(max_attempts=1))
    assert wait_for_outcome(db, keyed.value.transaction_id) == expected
    with proxy.cut_on(b"COMMIT\0", after=after), pytest.raises(CommitUnknownError) as published:
        with far.transaction() as tx:
            outbox.publish(tx, "topic", 1)
    assert wait_for_outcome(db, published.value.transaction_id) == expected


@pytest.mark.parametrize(("after", "ran"), [(False, 2), (True, 1)])
def test_with_a_key_an_unknown_commit_is_tried_again_and_happens_once(
    proxied: tuple[Database, FaultProxy], db: Database, after: bool, ran: int, recording_listener: RecordingListener
) -> None:
    far, proxy = proxied
    with proxy.cut_on(b"COMMIT\0", after=after):
        assert far.run(insert, idempotency_key="a") == ran
    assert db.fetch_value("SELECT count(*) FROM item") == 1
    assert statuses(recording_listener) == ["unknown", "commit"]
    failed = [event for event in recording_listener.events if isinstance(event, AttemptFailed)]
    assert [event.error_type for event in failed] == ["CommitUnknownError"]
    assert (far.stats().in_use, far.stats().leaked) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("after", [False, True])
async def test_in_tasks_too(db: Database, reliakit_dsn: str, fault_proxy: Proxy, after: bool) -> None:
    async def insert(tx: AsyncTransaction) -> int:
        await tx.execute("INSERT INTO item VALUES (1)")
        return tx.attempt

    proxy = fault_proxy(reliakit_dsn)
    async with AsyncDatabase(proxy.dsn(), timeout=20) as far:
        await far.run(insert, idempotency_key="makes the table")
        with proxy.cut_on(b"COMMIT\0", after=after):
            assert await far.run(insert, idempotency_key="a") == (1 if after else 2)
        assert await far.fetch_value("SELECT count(*) FROM item") == 2


def test_an_outcome_that_stays_unknown_surfaces_with_its_attempts(
    proxied: tuple[Database, FaultProxy], db: Database, recording_listener: RecordingListener
) -> None:
    far, proxy = proxied
    with proxy.cut_on(b"COMMIT\0", times=None), pytest.raises(CommitUnknownError) as caught:
        far.run(insert, idempotency_key="a", retry=TransactionRetry(max_attempts=3))
    assert caught.value.attempts == 3
    assert "gave up after 3 attempts" in "".join(caught.value.__notes__)
    assert statuses(recording_listener) == ["unknown"] * 3
    assert far.run(insert, idempotency_key="a") == 1  # the caller tries again
    assert db.fetch_value("SELECT count(*) FROM item") == 1


def test_without_a_key_an_unknown_commit_is_still_not_tried_again(proxied: tuple[Database, FaultProxy]) -> None:
    far, proxy = proxied
    with proxy.cut_on(b"COMMIT\0"), pytest.raises(CommitUnknownError) as caught:
        far.run(insert)
    assert caught.value.attempts == 1


@pytest.mark.parametrize("keyed", [False, True])
def test_with_a_key_a_backend_that_is_terminated_at_any_point_is_tried_again(
    db: Database, reliakit_dsn: str, keyed: bool
) -> None:
    def work(tx: Transaction) -> int:
        insert(tx)
        if tx.attempt < 3:
            db.execute("SELECT pg_terminate_backend(%s, 5000)", (tx.connection.info.backend_pid,))
            if tx.attempt == 1:
                tx.execute("SELECT 1")
        return tx.attempt

    with Database(reliakit_dsn) as other:
        if keyed:
            assert other.run(work, idempotency_key="a", timeout=20) == 3
        else:
            with pytest.raises(psycopg.OperationalError):
                other.run(work)
        assert db.fetch_value("SELECT count(*) FROM item") == int(keyed)
        assert (other.stats().in_use, other.stats().leaked) == (0, 0)


def test_with_a_key_the_callers_own_network_error_is_not_taken_for_the_databases(db: Database) -> None:
    attempts: list[int] = []

    def work(tx: Transaction) -> None:
        attempts.append(tx.attempt)
        raise ConnectionResetError("somebody else's")

    with pytest.raises(ConnectionResetError):
        db.run(work, idempotency_key="a")
    assert attempts == [1]


@pytest.mark.anyio
async def test_a_cancellation_at_an_unknown_commit_is_not_tried_again(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    async def insert(tx: AsyncTransaction) -> None:
        await tx.execute("INSERT INTO item VALUES (1)")

    proxy = fault_proxy(reliakit_dsn)
    async with AsyncDatabase(proxy.dsn()) as far:
        await far.run(insert, idempotency_key="makes the table")
        cut = proxy.cut_on(b"COMMIT\0", after=True, how="black_hole")
        task = asyncio.create_task(far.run(insert, idempotency_key="a"))
        await asyncio.to_thread(cut.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, CommitUnknownError)
        cut.heal()
        assert await far.run(insert, idempotency_key="a") is None
        assert await far.fetch_value("SELECT count(*) FROM item") == 2


@pytest.mark.timeout(120)
def test_a_storm_of_cut_commits_with_keys_loses_and_doubles_nothing(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    def insert(tx: Transaction, number: int) -> int:
        tx.execute("INSERT INTO item VALUES (%s)", (number,))
        return number

    proxy = fault_proxy(reliakit_dsn)
    each, workers = 8, 3
    retry = TransactionRetry(max_attempts=1000, wait=Backoff(0.01, cap=0.05))
    with Database(proxy.dsn(), max_size=workers, timeout=60, retry=retry) as far:
        far.run(lambda _tx: 0, idempotency_key="makes the table")
        results: list[int] = []
        cuts: list[bool] = []
        done = threading.Event()

        def work(worker: int) -> None:
            for step in range(each):
                number = worker * each + step
                results.append(far.run(insert, number, idempotency_key=str(number)))

        def cut() -> None:
            for after in itertools.cycle((True, False)):
                with proxy.cut_on(b"COMMIT\0", after=after) as happened:
                    while not happened.wait(0.05):
                        if done.is_set():
                            return
                cuts.append(after)
                # A few get through between two cuts, however slow the machine is.
                enough = proxy.stats().round_trips + 10
                while proxy.stats().round_trips < enough:
                    if done.wait(0.001):
                        return

        cutter = threading.Thread(target=cut)
        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
        for thread in (cutter, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        cutter.join()
        assert (far.stats().in_use, far.stats().leaked) == (0, 0)
    assert len(cuts) >= 5
    everything = list(range(each * workers))
    assert sorted(results) == everything
    assert [row[0] for row in db.fetch_all("SELECT id FROM item ORDER BY id")] == everything


def test_a_dead_network_ends_a_wait_for_a_lock_in_time(db: Database, reliakit_dsn: str, fault_proxy: Proxy) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1) as far:
        for timeout in (0.3, 0):
            far.fetch_value("SELECT 1")
            hole = proxy.black_hole()
            with deadline(0.3):
                with pytest.raises(TransactionTimeoutError), far.advisory_lock("a", timeout=timeout):
                    pass
            hole.heal()
        with far.advisory_lock("a"):
            pass
        assert (far.stats().in_use, far.stats().leaked) == (0, 0)


def test_a_lock_whose_network_died_during_the_block_is_told_as_lost_and_let_go(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1) as far:
        with pytest.raises(TransactionError, match="was lost"), far.advisory_lock("a") as lock:
            proxy.reset()
            while lock.held:
                pass
        with far.advisory_lock("a"):
            pass
        with pytest.raises(TransactionError, match="was lost"), far.advisory_lock("a"):
            hole = proxy.black_hole()
        hole.heal()
        assert far.fetch_value("SELECT 1") == 1
