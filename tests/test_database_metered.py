"""What is counted of transactions is counted once, by whatever way, and costs no event where nobody wants one."""

from __future__ import annotations

import gc
import io
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from reliakit import configure_logging, subscribe
from reliakit.core.errors import TransactionRolledBackError, TransactionTimeoutError
from reliakit.core.events import (
    Event,
    PoolPresent,
    PoolReturned,
    PoolWaited,
    TransactionEnded,
    TransactionStarted,
)
from reliakit.database import AsyncDatabase, Database, Propagation
from reliakit.metrics import Metrics
from reliakit.testing import ManualClock

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

POOL = "metered"


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, name=POOL, service="shop", max_size=4) as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield database


def value(metrics: Metrics, name: str, /, **labels: str) -> float | None:
    """Return the sample with exactly these labels, None if there is none; names go without the namespace."""
    for family in text_string_to_metric_families(metrics.render().body.decode()):
        for sample in family.samples:
            if sample.name == f"reliakit_{name}" and sample.labels == labels:
                return sample.value
    return None


def counted(metrics: Metrics, status: str = "commit", operation: str = "buy") -> list[float | None]:
    """Return how many ended so, by the counter and by the histogram."""
    labels = {"service": "shop", "operation": operation, "status": status}
    return [
        value(metrics, "transaction_total", **labels),
        value(metrics, "transaction_duration_seconds_count", **labels),
    ]


def timed(metrics: Metrics) -> list[float | None]:
    """Return how many connections were waited for, and how many came back."""
    return [value(metrics, f"db_pool_{what}_seconds_count", pool=POOL) for what in ("wait", "use")]


def running(metrics: Metrics, operation: str = "buy") -> float | None:
    return value(metrics, "transaction_in_progress", service="shop", operation=operation)


def buy(tx: Any) -> None:
    tx.execute("SELECT 1")


# Each once


def test_an_attached_metrics_needs_no_event_and_counts_everything(db: Database) -> None:
    with Metrics() as metrics:
        for _ in range(5):
            db.run(buy, operation="buy")
        assert (counted(metrics), timed(metrics)) == ([5, 5], [5, 5])
        told = db._engine.checkouts.audience.emitter
        for kind in (PoolWaited, TransactionStarted, PoolReturned, TransactionEnded):
            assert not told.hears(kind)
            with subscribe(lambda event: None, kind):
                assert db._engine.checkouts.audience.emitter.hears(kind)


@pytest.mark.parametrize("others", ["none", "own", "everything"])
def test_each_transaction_is_counted_once_whoever_else_listens(
    reliakit_dsn: str, others: str, request: pytest.FixtureRequest
) -> None:
    if others == "everything":
        request.getfixturevalue("recording_listener")
    metrics = Metrics()
    own = [metrics] if others == "own" else []
    with Database(reliakit_dsn, name=POOL, service="shop", listeners=own) as db:
        with metrics:
            db.run(buy, operation="buy")
            with metrics.attach():
                db.run(buy, operation="buy")
            with pytest.raises(ZeroDivisionError), db.transaction(operation="buy"):
                assert running(metrics) == 1
                1 / 0  # noqa: B018 - an error
            assert running(metrics) == 0
            assert (counted(metrics), counted(metrics, "rollback"), timed(metrics)) == ([2, 2], [1, 1], [3, 3])
        db.run(buy, operation="buy")
        expected = 3 if own else 2
        assert (counted(metrics), timed(metrics)) == ([expected] * 2, [expected + 1] * 2)
        assert running(metrics) == 0


def test_none_is_lost_or_counted_twice_while_listeners_come_and_go(db: Database) -> None:
    over = threading.Event()

    def work() -> int:
        done = 0
        while not over.is_set():
            db.run(buy, operation="buy")
            done += 1
        return done

    with Metrics() as metrics, ThreadPoolExecutor(2) as threads:
        workers = [threads.submit(work) for _ in range(2)]
        for _ in range(100):
            with subscribe(lambda event: None), Metrics():
                pass
        over.set()
        done = sum(worker.result() for worker in workers)
        assert counted(metrics) == [done, done]
        assert timed(metrics) == [done, done]
        assert running(metrics) == 0


def test_savepoints_and_joined_blocks_are_no_transactions_and_bare_statements_none_either(db: Database) -> None:
    with Metrics() as metrics:
        with db.transaction(operation="buy"):
            with db.transaction(propagation=Propagation.NESTED, operation="buy"), db.transaction(operation="buy"):
                assert running(metrics) == 1
            with db.transaction(propagation=Propagation.REQUIRES_NEW, operation="buy"):
                assert running(metrics) == 2
        assert (counted(metrics), timed(metrics)) == ([2, 2], [2, 2])
        with db.transaction(propagation=Propagation.SUPPORTS, operation="buy") as bare:
            bare.execute("SELECT 1")
            assert running(metrics) == 0
        assert (counted(metrics), timed(metrics)) == ([2, 2], [3, 3])


@pytest.mark.anyio
async def test_tasks_are_counted_alike(reliakit_dsn: str) -> None:
    async def work(tx: Any) -> None:
        await tx.execute("SELECT 1")

    async with AsyncDatabase(reliakit_dsn, name=POOL, service="shop") as db:
        with Metrics() as metrics:
            await db.run(work, operation="buy")
            async with db.transaction(operation="buy", pipeline=True) as tx:
                assert running(metrics) in (0, None)  # nothing was sent
                await tx.execute("SELECT 1")
                assert running(metrics) == 1
            assert (counted(metrics), timed(metrics), running(metrics)) == ([2, 2], [2, 2], 0)


# Figures


def test_a_transaction_that_began_before_metrics_came_is_seen_and_counted(db: Database) -> None:
    with db.transaction(operation="buy"), Metrics() as metrics:
        assert running(metrics) == 1
        assert counted(metrics)[0] == 0
    assert running(metrics) == 0
    metrics = Metrics()
    with db.transaction(operation="buy"):
        metrics.attach()
    assert (counted(metrics), timed(metrics), running(metrics)) == ([1, 1], [1, 1], 0)
    metrics.close()


def test_a_pool_that_was_never_used_is_not_shown_and_one_that_is_gone_shows_nothing_open(reliakit_dsn: str) -> None:
    with Metrics() as metrics:
        Database(reliakit_dsn, name="unused")
        assert value(metrics, "db_pool_max", pool="unused") is None
        db = Database(reliakit_dsn, name="brief", max_size=3)
        db.execute("SELECT 1")
        assert value(metrics, "db_pool_max", pool="brief") == 3
        db.close()
        assert value(metrics, "db_pool_max", pool="brief") == 0
        db.open()
        assert value(metrics, "db_pool_max", pool="brief") == 3
        db.close()
        del db
        gc.collect()
        assert value(metrics, "db_pool_max", pool="brief") == 0
        assert not [key for key in metrics._feed._transactions._readings._last if key[0] == "brief"]


def test_a_wait_in_vain_is_measured_and_is_no_checkout(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, name=POOL, max_size=1) as db, Metrics() as metrics, ThreadPoolExecutor(1) as threads:
        with db.transaction():
            error = threads.submit(db.run, buy, timeout=0.05).exception(10)
        assert isinstance(error, TransactionTimeoutError)
        assert timed(metrics) == [2, 1]
        assert value(metrics, "db_pool_timeouts_total", pool=POOL) == 1


# Whoever measures badly


class Broken:
    """Measures nothing but only raises."""

    def fail(self, *_: object, **__: object) -> None:
        raise ValueError("broken")

    waited = returned = ended = committed = fail

    def __call__(self, event: Event) -> None:
        if isinstance(event, PoolPresent):
            event.measure(self, self)


def test_a_meter_that_raises_harms_nobody_and_is_told_once(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    with subscribe(Broken(), PoolPresent), Metrics() as metrics:
        for _ in range(3):
            db.run(buy, operation="buy")
        with pytest.raises(ZeroDivisionError), db.transaction(operation="buy"):
            1 / 0  # noqa: B018 - an error
        assert (counted(metrics), counted(metrics, "rollback")) == ([3, 3], [1, 1])
    assert [record.getMessage() for record in caplog.records if "meter" in record.getMessage()] == [
        "meter Broken raised; the next errors are not reported"
    ]


def test_a_watcher_of_a_pool_that_raises_harms_nobody_and_is_told_once(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    seen: list[tuple[int, tuple[str, ...]]] = []

    def watch(event: PoolPresent) -> None:
        event.watch(fail)
        event.watch(lambda: seen.append((event.read().in_use, event.read().running)))

    with subscribe(watch, PoolPresent):
        for _ in range(3):
            db.run(buy, operation="buy")
    db.run(buy)
    assert seen == [(1, ("buy",)), (0, ())] * 3
    told = [record.getMessage() for record in caplog.records if "meter" in record.getMessage()]
    assert len(told) == 1
    assert "fail raised" in told[0]


# Logs


def test_a_log_that_leaves_transactions_out_has_no_event_built_for_them(db: Database) -> None:
    stream = io.StringIO()
    logger = logging.getLogger("reliakit.transaction")
    with configure_logging(service="svc", env="production", level="INFO", stream=stream):
        emitter = db._engine.checkouts.emitter
        assert not emitter.hears(TransactionStarted)
        assert not emitter.hears(TransactionEnded, "commit")
        assert emitter.hears(TransactionEnded, "rollback")
        db.run(buy)
        assert stream.getvalue() == ""
        logger.setLevel(logging.DEBUG)  # from one transaction to the next
        try:
            db.run(buy)
        finally:
            logger.setLevel(logging.NOTSET)
    assert stream.getvalue().count("transaction began") == stream.getvalue().count("transaction committed") == 1


# Errors of the server


def states(metrics: Metrics) -> dict[str, float]:
    """Return the errors that were counted, by SQLSTATE."""
    return {
        sample.labels["sqlstate"]: sample.value
        for family in text_string_to_metric_families(metrics.render().body.decode())
        for sample in family.samples
        if sample.name == "reliakit_db_errors_total" and sample.value
    }


def test_a_statement_that_was_cut_by_its_deadline_counts_as_the_servers_error(
    db: Database, recording_listener: RecordingListener
) -> None:
    with Metrics() as metrics:
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.05, operation="buy") as tx:
            tx.execute("SELECT pg_sleep(10)")
        assert states(metrics) == {"57014": 1}
        assert counted(metrics, "timeout") == [1, 1]
    (ended,) = recording_listener.of(TransactionEnded)[-1:]
    assert (ended.status, ended.sqlstate, ended.error_type) == ("timeout", "57014", "TransactionTimeoutError")


def test_a_deadline_that_ends_between_statements_is_no_error_of_the_server(reliakit_dsn: str) -> None:
    clock = ManualClock()
    with Database(reliakit_dsn, clock=clock) as db, Metrics() as metrics:
        with pytest.raises(TransactionTimeoutError), db.transaction() as tx:
            clock.advance(6.0)
            tx.execute("SELECT 1")
        assert states(metrics) == {}


def test_an_error_that_the_code_swallowed_or_raised_another_for_counts_once(db: Database) -> None:
    insert = "INSERT INTO item VALUES (1), (1)"
    with Metrics() as metrics:
        with pytest.raises(TransactionRolledBackError), db.transaction() as tx:
            with pytest.raises(psycopg.Error):
                tx.execute(insert)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                tx.execute("SELECT 1")
        assert sum(states(metrics).values()) == 1
        with pytest.raises(KeyError), db.transaction() as tx:
            try:
                tx.execute(insert)
            except psycopg.Error:
                raise KeyError("taken") from None
        assert states(metrics)["23505"] == 1
        with db.transaction() as tx:
            with pytest.raises(psycopg.Error), db.transaction(propagation=Propagation.NESTED):
                tx.execute(insert)
        assert sum(states(metrics).values()) == 2  # a contained one ended no attempt
