"""What a database lets be seen of itself: its pool's figures, the end of each attempt, who holds a connection."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import psycopg
import psycopg_pool
import pytest

from reliakit.core.errors import TransactionTimeoutError
from reliakit.core.events import (
    CheckoutOverdue,
    ConnectionClosed,
    ConnectionOpened,
    PoolChanged,
    PoolReturned,
    TransactionEnded,
    TransactionStarted,
)
from reliakit.database import AsyncDatabase, Database, Propagation
from reliakit.metrics import Metrics
from reliakit.testing import ManualClock

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def db(reliakit_dsn: str, clock: ManualClock) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=2, name="shop", clock=clock, min_size=0, leak_after=60.0) as database:
        yield database


def gauges(metrics: Metrics, pool: str = "shop") -> dict[str, float]:
    """Return the pool's gauges by their short names."""
    lines = metrics.render().body.decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("reliakit_db_pool_") and f'pool="{pool}"' in name and "_bucket" not in name:
            short = name.partition("{")[0].removeprefix("reliakit_db_pool_")
            state = name.partition('state="')[2].partition('"')[0]
            found[state or short] = float(value)
    return found


def numbers(metrics: Metrics, *names: str) -> list[float]:
    return [gauges(metrics)[name] for name in names]


# Attempts


def test_the_end_of_an_attempt_tells_how_long_its_connection_was_held(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with db.transaction(operation="order") as tx:
        clock.advance(0.5)
        tx.execute("SELECT 1")
    (started,) = recording_listener.of(TransactionStarted)
    (ended,) = recording_listener.of(TransactionEnded)
    (returned,) = recording_listener.of(PoolReturned)
    assert (started.operation, started.attempt, started.wait) == ("order", 1, 0.0)
    assert (ended.status, ended.wait, ended.hold, ended.duration) == ("commit", 0.0, 0.5, 0.5)
    assert (returned.used, returned.age) == (0.5, 0.5)


def test_waiting_for_a_connection_is_wait_and_not_hold(
    reliakit_dsn: str, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with Database(reliakit_dsn, max_size=1, clock=clock) as db, ThreadPoolExecutor(1) as threads:
        with db.transaction(operation="first"):
            waiter = threads.submit(db.run, lambda tx: tx.execute("SELECT 1"), operation="second")
            while db.stats().waiting == 0:
                clock.sleeping  # noqa: B018 - only to let the other thread come
            clock.advance(1.5)
        waiter.result(10)
    first, second = recording_listener.of(TransactionEnded)
    assert (first.wait, first.hold) == (0.0, 1.5)
    assert (second.wait, second.hold, second.duration) == (1.5, 0.0, 1.5)


def test_an_attempt_without_a_connection_held_nothing(recording_listener: RecordingListener) -> None:
    db = Database("host=127.0.0.1 port=1 dbname=x")
    with pytest.raises(psycopg.OperationalError), db.transaction():
        pass
    (ended,) = recording_listener.of(TransactionEnded)
    assert (ended.status, ended.began, ended.hold) == ("rollback", False, None)


# Figures


def test_gauges_follow_the_pool_and_an_idle_pool_shows_zero(db: Database, clock: ManualClock) -> None:
    with Metrics(clock=clock) as metrics:
        with db.transaction():
            clock.advance(1.0)
            with db.transaction(propagation=Propagation.REQUIRES_NEW):
                clock.advance(2.0)
                assert numbers(metrics, "max", "in_use", "idle", "checkout_age_seconds") == [2, 2, 0, 3.0]
            assert numbers(metrics, "in_use", "idle", "waiting") == [1, 1, 0]
        assert numbers(metrics, "in_use", "idle", "waiting", "checkout_age_seconds") == [0, 2, 0, 0]
        found = gauges(metrics)
        assert (found["use_seconds_sum"], found["use_seconds_count"]) == (5.0, 2)
        assert found["create_seconds_count"] == 2
        db.close()
        assert numbers(metrics, "in_use", "idle", "max") == [0, 0, 0]
        assert 'discarded_total{pool="shop",reason="closed"} 2' in metrics.render().body.decode()


def test_who_waits_is_seen_while_he_waits(db: Database, clock: ManualClock) -> None:
    with Metrics(clock=clock) as metrics, ThreadPoolExecutor(1) as threads:
        with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
            waiter = threads.submit(db.execute, "SELECT 1")
            while gauges(metrics)["waiting"] == 0:
                pass
            assert numbers(metrics, "waiting", "in_use") == [1, 2]
        waiter.result(10)
        assert numbers(metrics, "waiting", "in_use", "timeouts_total") == [0, 0, 0]


def test_who_waited_in_vain_waits_no_more(reliakit_dsn: str) -> None:
    with (
        Metrics() as metrics,
        Database(reliakit_dsn, max_size=1, name="shop") as db,
        ThreadPoolExecutor(1) as threads,
    ):
        with db.transaction():
            waiter = threads.submit(db.run, lambda tx: None, timeout=0.1)
            assert isinstance(waiter.exception(10), TransactionTimeoutError)
            assert numbers(metrics, "waiting", "in_use", "timeouts_total") == [0, 1, 1]


def test_connections_are_told_from_their_opening_to_their_end(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    db.execute("SELECT 1")
    clock.advance(4000.0)
    db.execute("SELECT 1")
    assert len(recording_listener.of(ConnectionOpened)) == 2
    with pytest.raises(psycopg.Error), db.transaction() as tx:
        tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    closed = [(event.reason, event.age) for event in recording_listener.of(ConnectionClosed)]
    assert closed == [("lifetime", 4000.0), ("broken", 0.0)]


def test_figures_that_arrive_in_another_order_show_the_latest(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
        pass
    events = recording_listener.of(PoolChanged)
    metrics = Metrics(clock=clock)
    for event in reversed(events):
        metrics._feed.take(event)
    assert numbers(metrics, "in_use", "idle") == [0, 2]


def test_databases_of_one_name_are_added_up(reliakit_dsn: str, clock: ManualClock) -> None:
    with Metrics(clock=clock) as metrics:
        one, two = (Database(reliakit_dsn, name="shop", max_size=3, clock=clock) for _ in range(2))
        with one, two, one.transaction(), two.transaction():
            assert numbers(metrics, "in_use", "max") == [2, 6]


def test_a_borrowed_connection_has_no_age(reliakit_dsn: str, recording_listener: RecordingListener) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=2, open=True) as pool:
        Database(pool, name="shop").execute("SELECT 1")
    (returned,) = recording_listener.of(PoolReturned)
    assert (returned.age, returned.in_use, returned.max_size) == (None, 0, 2)
    assert recording_listener.of(ConnectionOpened) == recording_listener.of(ConnectionClosed) == []


def test_nothing_is_told_where_nobody_listens(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []
    figures = db._engine.checkouts.gate.figures
    monkeypatch.setattr(db._engine.checkouts.gate, "figures", lambda: counted.append(1) or figures())
    db.execute("SELECT 1")
    assert counted == []


@pytest.mark.anyio
async def test_gauges_follow_an_async_pool_too(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, name="shop", max_size=1) as db:
        with Metrics() as metrics:
            async with db.transaction():
                waiter = asyncio.create_task(db.fetch_value("SELECT 1"), context=contextvars.Context())
                while gauges(metrics)["waiting"] == 0:
                    await anyio.lowlevel.checkpoint()
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
                assert numbers(metrics, "waiting", "in_use") == [0, 1]
            assert numbers(metrics, "waiting", "in_use", "checkout_age_seconds") == [0, 0, 0]


# Who holds it


def here() -> int:
    """Return the line that calls this."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


class Held:
    """Learns from a long checkout which line is blamed."""

    def __init__(self, clock: ManualClock, listener: RecordingListener) -> None:
        self.clock = clock
        self.listener = listener

    def line(self, db: Any) -> tuple[str, int]:
        self.clock.advance(61.0)
        db.stats()
        file, _, line = self.listener.of(CheckoutOverdue)[-1].line.rpartition(":")
        return file, int(line)


@pytest.fixture
def held(clock: ManualClock, recording_listener: RecordingListener) -> Held:
    return Held(clock, recording_listener)


def test_a_block_is_blamed_on_the_line_of_its_with(db: Database, held: Held) -> None:
    with db.transaction(timeout=1000.0):
        line = here() - 1
        assert held.line(db) == (__file__, line)


def test_a_block_on_an_exit_stack_is_blamed_on_the_callers_line(db: Database, held: Held) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(db.transaction(timeout=1000.0))
        line = here() - 1
        assert held.line(db) == (__file__, line)


def test_a_block_in_a_helper_is_blamed_on_the_helper(db: Database, held: Held) -> None:
    lines: list[int] = []

    @contextlib.contextmanager
    def unit_of_work() -> Iterator[None]:
        with db.transaction(timeout=1000.0):
            lines.append(here() - 1)
            yield

    with unit_of_work():
        assert held.line(db) == (__file__, lines[0])


def test_a_run_is_blamed_on_its_caller(db: Database, held: Held) -> None:
    found: list[tuple[str, int]] = []
    db.run(lambda tx: found.append(held.line(db)), timeout=1000.0)
    assert found == [(__file__, here() - 1)]


def test_a_decorated_function_is_blamed_on_its_caller(db: Database, held: Held) -> None:
    @db.transactional(timeout=1000.0)
    def work() -> tuple[str, int]:
        return held.line(db)

    assert work() == (__file__, here())
    assert partial(work)() == (__file__, here())


def test_a_thread_that_only_runs_a_transaction_is_blamed_on_its_function(db: Database, held: Held) -> None:
    def work(_tx: object, label: str = "") -> tuple[str, int]:
        return held.line(db)

    first = work.__code__.co_firstlineno
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(db.run, work, timeout=1000.0).result(10) == (__file__, first)
        named = partial(work, label="x")
        assert threads.submit(db.run, named, timeout=1000.0).result(10) == (__file__, first)
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(db.run(work, timeout=1000.0)))
    line = here() - 1
    thread.start()
    thread.join()
    assert found == [(__file__, line)]


def test_the_oldest_checkout_is_the_one_that_is_named(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=2) as db, ThreadPoolExecutor(1) as threads:
        with db.transaction():
            line = here() - 1
            with db.transaction(propagation=Propagation.REQUIRES_NEW):
                error = threads.submit(db.run, lambda tx: None, timeout=0.1).exception(10)
    assert f"{__file__}:{line}" in str(error)


@pytest.mark.anyio
async def test_async_checkouts_are_blamed_on_the_callers_lines(
    reliakit_dsn: str, clock: ManualClock, held: Held
) -> None:
    async with AsyncDatabase(reliakit_dsn, clock=clock) as db:

        @db.transactional(timeout=1000.0)
        async def decorated() -> tuple[str, int]:
            return held.line(db)

        async def given(_tx: object) -> tuple[str, int]:
            return held.line(db)

        async with db.transaction(timeout=1000.0):
            line = here() - 1
            assert held.line(db) == (__file__, line)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(db.transaction(timeout=1000.0))
            line = here() - 1
            assert held.line(db) == (__file__, line)
        assert await decorated() == (__file__, here())
        assert await db.run(given, timeout=1000.0) == (__file__, here())
        alone = asyncio.create_task(db.run(given, timeout=1000.0))
        assert await alone == (__file__, given.__code__.co_firstlineno)
