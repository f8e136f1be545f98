"""Advisory locks on a real server: one holder, bounded waits, no connection lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg_pool
import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import deadline
from reliakit.core.errors import (
    ConfigurationError,
    TransactionError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.database import AsyncDatabase, Database, Isolation, Propagation
from reliakit.database.locking import number_of
from reliakit.testing import ManualClock

HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3, name="shop") as database:
        yield database


@pytest.fixture
def other(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3, name="other") as database:
        yield database


def held(db: Database) -> int:
    return int(
        db.fetch_value(HELD + " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())")
    )


def is_free(db: Database, key: int | str = "a", *, shared: bool = False) -> bool:
    try:
        with db.advisory_lock(key, shared=shared, timeout=0):
            return True
    except TransactionTimeoutError:
        return False


def take_all(db: Database, count: int) -> None:
    """Fail unless so many connections can be had at once."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=2))
            assert db.fetch_value("SELECT 1") == 1


@pytest.mark.parametrize("key", ["a", 7, -(2**63), 2**63 - 1, "é" * 1000])
def test_a_lock_is_held_by_one_block_and_free_after_it(db: Database, other: Database, key: int | str) -> None:
    with db.advisory_lock(key) as lock:
        assert (lock.held, lock.key, held(db)) == (True, key, 1)
        assert not is_free(other, key)
        assert is_free(other, "another")
    assert not lock.held
    assert is_free(other, key)
    take_all(db, 3)


def test_it_is_free_after_an_error_too_and_the_error_is_the_very_object(db: Database, other: Database) -> None:
    problem = LookupError()
    with pytest.raises(LookupError) as caught, db.advisory_lock("a"):
        raise problem
    assert caught.value is problem
    assert is_free(other)
    take_all(db, 3)


def test_shared_locks_share_and_exclude_the_others(db: Database, other: Database) -> None:
    with db.advisory_lock("a", shared=True):
        assert is_free(other, shared=True)
        assert not is_free(other)
    with db.advisory_lock("a"):
        assert not is_free(other, shared=True)
    assert held(db) == 0


def test_the_block_may_use_the_database_and_take_longer_than_its_time(reliakit_dsn: str) -> None:
    clock = ManualClock()
    with Database(reliakit_dsn, max_size=2, timeout=5.0, clock=clock) as db:
        with db.advisory_lock("a"):
            with pytest.raises(TransactionUsageError, match="no transaction runs here"):
                db.current()
            for _ in range(4):
                db.execute("SELECT 1")
                clock.advance(3.0)
            with db.transaction() as tx:
                assert tx.fetch_value("SELECT 1") == 1
        assert is_free(db)


def test_inside_a_transaction_it_is_held_beside_it(db: Database, other: Database) -> None:
    with db.transaction() as tx:
        tx.execute("CREATE TABLE item (id int)")
        with db.advisory_lock("a"):
            assert db.current() is tx
        assert is_free(other)
        tx.set_rollback_only()


def test_waiting_ends_when_the_holder_leaves(db: Database, other: Database) -> None:
    order: list[str] = []

    def wait() -> None:
        with other.advisory_lock("a"):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with db.advisory_lock("a"):
            waiting = pool.submit(wait)
            while not db.fetch_value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"):
                pass
            order.append("first")
        waiting.result()
    assert order == ["first", "second"]


@pytest.mark.parametrize("timeout", [0, 0.0, 0.05])
def test_waiting_is_bounded(db: Database, other: Database, timeout: float) -> None:
    with db.advisory_lock("a"):
        with pytest.raises(TransactionTimeoutError, match="'a' was not free") as caught:
            with other.advisory_lock("a", timeout=timeout):
                pass
        assert (caught.value.name, caught.value.seconds) == ("other", timeout)
    take_all(other, 3)
    assert held(db) == 0


def test_an_outer_deadline_and_the_databases_time_bound_it_too(db: Database, reliakit_dsn: str) -> None:
    with db.advisory_lock("a"):
        with Database(reliakit_dsn, timeout=0.05) as short, pytest.raises(TransactionTimeoutError):
            with short.advisory_lock("a"):
                pass
        with deadline(0.05), pytest.raises(TransactionTimeoutError), db.advisory_lock("a"):
            pass
        with deadline(0), pytest.raises(TransactionTimeoutError), db.advisory_lock("a", timeout=0):
            pass
    take_all(db, 3)


def test_a_lock_and_a_transaction_on_one_connection_are_refused_at_once(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=1) as db:
        with pytest.raises(TransactionUsageError, match="max_size"), db.advisory_lock("a"), db.transaction():
            pass
        with pytest.raises(TransactionUsageError, match="max_size"), db.transaction(), db.advisory_lock("a"):
            pass
        assert is_free(db)


def test_a_lock_is_for_one_block(db: Database) -> None:
    lock = db.advisory_lock("a")
    with lock, pytest.raises(ConfigurationError, match="one block"), lock:
        pass
    with pytest.raises(ConfigurationError, match="one block"), lock:
        pass
    assert is_free(db)


@pytest.mark.parametrize("key", ["", None, 1.5, True, 2**63, -(2**63) - 1, b"a", ["a"]])
def test_wrong_keys_are_refused(key: Any) -> None:
    with pytest.raises(ConfigurationError, match="key must be"):
        Database("host=nowhere.invalid").advisory_lock(key)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan"), float("inf"), True])
def test_wrong_times_are_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        Database("host=nowhere.invalid").advisory_lock("a", timeout=timeout)


def test_a_text_locks_what_is_documented(db: Database) -> None:
    assert number_of("nightly report") == int.from_bytes(
        hashlib.blake2b(b"nightly report", digest_size=8).digest(), "big", signed=True
    )
    assert number_of("nightly report") == -1898891830951415930  # for good
    with db.advisory_lock("nightly report"):
        high, low = db.fetch_one("SELECT classid::bigint, objid::bigint FROM pg_locks WHERE locktype = 'advisory'")
        assert (high << 32 | low) == number_of("nightly report") % 2**64


def test_an_object_shows_its_key_and_state_and_nothing_else(db: Database) -> None:
    lock = db.advisory_lock("a", shared=True)
    assert repr(lock) == "<AdvisoryLock 'a' of shop, shared, not held>"
    with lock:
        assert repr(lock) == "<AdvisoryLock 'a' of shop, shared, held>"


def terminate_holder(db: Database) -> None:
    db.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND granted")


def test_a_lock_that_was_lost_is_told_at_the_end_and_seen_before(db: Database, other: Database) -> None:
    with pytest.raises(TransactionError, match="'a' was lost"):
        with db.advisory_lock("a") as lock:
            terminate_holder(other)
            assert not lock.held
            assert is_free(other)
    problem = LookupError()
    with pytest.raises(LookupError) as raised, db.advisory_lock("a"):
        terminate_holder(other)
        raise problem
    assert raised.value is problem
    assert "lost" in problem.__notes__[0]
    take_all(db, 3)


def test_a_pooled_connection_that_died_is_replaced_silently(db: Database, other: Database) -> None:
    for timeout in (None, 0):
        with db.transaction(propagation=Propagation.SUPPORTS) as tx:
            pid = tx.fetch_value("SELECT pg_backend_pid()")
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        with db.advisory_lock("a", timeout=timeout):
            pass


def test_a_block_that_is_abandoned_lets_go_when_it_is_collected(db: Database, other: Database) -> None:
    def hold() -> Iterator[None]:
        with db.advisory_lock("a"):
            yield

    lock = db.advisory_lock("b")
    lock.__enter__()
    del lock
    generator = hold()
    next(generator)
    del generator
    gc.collect()
    with other.advisory_lock("a"), other.advisory_lock("b"):
        pass
    take_all(db, 3)


def test_the_server_has_nothing_to_warn_of(db: Database, other: Database) -> None:
    notices: list[str] = []
    for database in (db, other):
        with database.transaction(propagation=Propagation.SUPPORTS) as tx:
            tx.connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
    with db.advisory_lock("a"):
        for timeout in (0, 0.05):
            with pytest.raises(TransactionTimeoutError), other.advisory_lock("a", timeout=timeout):
                pass
    assert notices == []


def test_threads_take_turns(reliakit_dsn: str) -> None:
    inside: list[int] = []
    most = 0
    with Database(reliakit_dsn, max_size=4, timeout=30) as db:

        def work(number: int) -> None:
            nonlocal most
            with db.advisory_lock("a"):
                inside.append(number)
                most = max(most, len(inside))
                inside.remove(number)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(40)))
        assert most == 1
        take_all(db, 4)


def test_a_borrowed_connection_goes_back_without_the_lock(reliakit_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1) as pool, Database(pool=pool) as db:
        with db.advisory_lock("a"):
            pass
        with pool.connection(timeout=5) as connection:
            assert connection.execute(HELD).fetchone() == (0,)


def test_the_transactions_lock_is_held_until_it_ends(db: Database, other: Database) -> None:
    with db.transaction() as tx:
        tx.advisory_lock("a")
        tx.advisory_lock("a")  # its own: taken at once
        tx.advisory_lock(7, shared=True)
        assert not is_free(other)
        assert is_free(other, 7, shared=True)
        assert not is_free(other, 7)
    assert is_free(other)
    with contextlib.suppress(LookupError), db.transaction() as tx:
        with contextlib.suppress(KeyError), db.transaction(propagation=Propagation.NESTED) as inner:
            inner.advisory_lock("a")
            raise KeyError
        assert is_free(other)
        tx.advisory_lock("a")
        raise LookupError
    assert is_free(other)


def test_waiting_for_the_transactions_lock_is_bounded_by_its_time(db: Database, other: Database) -> None:
    with other.advisory_lock("a"):
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx:
            tx.advisory_lock("a")
        with pytest.raises(psycopg.errors.LockNotAvailable), db.transaction(lock_timeout=0.05) as tx:
            tx.advisory_lock("a")
    take_all(db, 3)


def test_a_transactions_lock_needs_a_transaction_and_a_key(db: Database) -> None:
    with (
        db.transaction(propagation=Propagation.SUPPORTS) as bare,
        pytest.raises(TransactionUsageError, match="no trans"),
    ):
        bare.advisory_lock("a")
    with db.transaction() as tx:
        with pytest.raises(ConfigurationError):
            tx.advisory_lock("")
    with pytest.raises(TransactionUsageError):
        tx.advisory_lock("a")


def test_read_committed_sees_what_the_last_holder_wrote(db: Database, other: Database) -> None:
    db.execute("CREATE TABLE item (id int)")
    for isolation, seen in ((Isolation.READ_COMMITTED, 1), (Isolation.REPEATABLE_READ, 0)):
        db.execute("TRUNCATE item")
        with ThreadPoolExecutor(1) as pool:

            def count(isolation: Isolation = isolation) -> object:
                with other.transaction(isolation=isolation) as tx:
                    tx.advisory_lock("a")
                    return tx.fetch_value("SELECT count(*) FROM item")

            with db.transaction() as tx:
                tx.advisory_lock("a")
                counting = pool.submit(count)
                with psycopg.connect(db._engine.checkouts.source.conninfo, autocommit=True) as admin:
                    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
                    while admin.execute(waits).fetchone() == (0,):
                        pass
                tx.execute("INSERT INTO item VALUES (1)")
            assert counting.result() == seen


@pytest.mark.anyio
async def test_tasks_hold_locks_too(reliakit_dsn: str, other: Database) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=2) as db:
        async with db.advisory_lock("a") as lock:
            assert lock.held
            assert not is_free(other)
            with pytest.raises(TransactionTimeoutError):
                async with db.advisory_lock("a", timeout=0):
                    pass
            with pytest.raises(TransactionTimeoutError):
                async with db.advisory_lock("a", timeout=0.05):
                    pass
        async with db.transaction() as tx:
            await tx.advisory_lock("a")
            assert not is_free(other)
        with pytest.raises(TransactionError, match="was lost"):
            async with db.advisory_lock("a"):
                terminate_holder(other)
        assert is_free(other)


@pytest.mark.anyio
@pytest.mark.parametrize("twice", [False, True])
async def test_a_cancelled_wait_loses_no_connection_and_takes_no_lock(
    reliakit_dsn: str, other: Database, twice: bool
) -> None:
    async def hold(db: AsyncDatabase) -> None:
        async with db.advisory_lock("a"):
            await asyncio.Event().wait()

    async with AsyncDatabase(reliakit_dsn, max_size=2) as db:
        with other.advisory_lock("a"):
            tasks = [asyncio.create_task(hold(db)) for _ in range(5)]  # two wait for the lock, three for a connection
            while other.fetch_value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'") < 2:
                await SYSTEM_CLOCK.asleep(0)
            for task in tasks:
                task.cancel()
            if twice:
                await SYSTEM_CLOCK.asleep(0)
                for task in tasks:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} == {asyncio.CancelledError}
        assert is_free(other)
        task = asyncio.create_task(hold(db))
        while is_free(other):
            await SYSTEM_CLOCK.asleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_free(other)
        async with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
            assert db.stats().in_use == 2
        assert (db.stats().in_use, db.stats().leaked) == (0, 0)


@pytest.mark.anyio
async def test_cancellations_at_every_step_lose_nothing(reliakit_dsn: str, other: Database) -> None:
    async def use(db: AsyncDatabase) -> None:
        async with db.advisory_lock("a"):
            await SYSTEM_CLOCK.asleep(0)

    async with AsyncDatabase(reliakit_dsn, max_size=1) as db:
        for steps in range(40):
            task = asyncio.create_task(use(db))
            for _ in range(steps):
                await SYSTEM_CLOCK.asleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            async with db.advisory_lock("a", timeout=5):
                assert db.stats().in_use == 1
        assert is_free(other)


def test_two_threads_that_ask_for_one_lock_each_get_it_once(db: Database) -> None:
    together = threading.Barrier(2)

    def take() -> bool:
        together.wait()
        with db.advisory_lock("a"):
            return True

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda _: take(), range(2)))
