"""Behind a pooler: whoever has a session next finds nothing of ours in it, and we run nothing of theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from pooler import Pooler

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import TransactionTimeoutError
from reliakit.database import AsyncDatabase, Database, Outbox
from reliakit.database import driver as cancelling
from reliakit.database.pooler import question
from reliakit.ratelimit import RateLimiter
from reliakit.stores import PostgresStore

PREPARED = "SELECT statement FROM pg_prepared_statements"
LOCKS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
CHANNELS = "SELECT pg_listening_channels()"
SETTINGS = (
    "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> ALL "
    "('{application_name,client_encoding}')"
)
LEFT = (PREPARED, LOCKS, CHANNELS, SETTINGS)
OFTEN = 8  # psycopg prepares what has run more than five times


@pytest.fixture
def pooler(reliakit_dsn: str) -> Iterator[Pooler]:
    with Pooler(reliakit_dsn) as one:
        yield one


def test_two_databases_behind_a_pooler_never_find_each_others_prepared_statements(pooler: Pooler) -> None:
    with Database(pooler.dsn) as one, Database(pooler.dsn) as other:
        for _ in range(OFTEN):
            assert one.fetch_value("SELECT %s::int + 1", (1,)) == 2
            assert other.fetch_value("SELECT %s::int + 2", (1,)) == 3
    assert pooler.found(PREPARED) == []


@pytest.mark.anyio
async def test_two_databases_of_tasks_never_find_each_others_prepared_statements(pooler: Pooler) -> None:
    async with AsyncDatabase(pooler.dsn) as one, AsyncDatabase(pooler.dsn) as other:
        for _ in range(OFTEN):
            assert await one.fetch_value("SELECT %s::int + 1", (1,)) == 2
            assert await other.fetch_value("SELECT %s::int + 2", (1,)) == 3
    assert await asyncio.to_thread(pooler.found, PREPARED) == []


def test_without_a_pooler_statements_are_prepared(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db:
        for _ in range(OFTEN):
            db.fetch_value("SELECT %s::int + 1", (1,))
        assert db.fetch_value("SELECT count(*) FROM pg_prepared_statements") > 0


@pytest.mark.parametrize(("chosen", "prepared"), [({}, 0), ({"prepare_threshold": 1}, 1)])
def test_a_borrowed_connection_prepares_behind_a_pooler_only_where_somebody_chose_when(
    pooler: Pooler, chosen: dict[str, Any], prepared: int
) -> None:
    with psycopg_pool.ConnectionPool(pooler.dsn, kwargs=chosen, min_size=1, max_size=1) as pool:
        with Database(pool=pool) as db:
            for _ in range(OFTEN):
                db.fetch_value("SELECT %s::int + 1", (1,))
            assert len(pooler.found(PREPARED)) == prepared
        with pool.connection() as connection:
            assert connection.prepare_threshold == chosen.get("prepare_threshold", 5)  # as it came


def test_a_pooler_is_looked_for_once_for_each_borrowed_connection(
    reliakit_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    def ask(pgconn: Any) -> bytes:
        asked.append(question(pgconn))
        return asked[-1]

    monkeypatch.setattr("reliakit.database.pooler.question", ask)
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1) as pool, Database(pool=pool) as db:
        for _ in range(3):
            db.fetch_value("SELECT 1")
    assert len(asked) == 1


def test_an_advisory_lock_behind_a_pooler_has_one_holder(reliakit_dsn: str) -> None:
    with Pooler(reliakit_dsn, sessions=2) as pooler, Database(pooler.dsn) as one, Database(pooler.dsn) as other:
        for timeout in (None, 0):
            with one.advisory_lock("a", timeout=timeout) as lock:
                assert lock.held
                with pytest.raises(TransactionTimeoutError), other.advisory_lock("a", timeout=0):
                    raise AssertionError("nobody else gets it")
            with other.advisory_lock("a", timeout=0), other.advisory_lock("b", timeout=0):
                pass
        assert [pooler.found(left) for left in LEFT] == [[], [], [], []]


def test_a_lock_behind_a_pooler_outlives_the_server_s_limit_for_idle_transactions(reliakit_dsn: str) -> None:
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET idle_in_transaction_session_timeout = 1')
    with Pooler(reliakit_dsn, sessions=2) as pooler, Database(pooler.dsn) as db:
        for timeout in (None, 0):
            with db.advisory_lock("a", timeout=timeout) as lock:
                assert db.fetch_value("SELECT pg_sleep(0.02) IS NULL") is False  # by another session's clock
                assert lock.held


def test_a_relay_behind_a_pooler_hands_over_and_leaves_nobody_listening(pooler: Pooler) -> None:
    outbox, got = Outbox("outbox"), []
    with Database(pooler.dsn) as db:
        outbox.create(db)
        with db.transaction() as tx:
            outbox.publish(tx, "told", {"n": 1}, key="1")
        relay = outbox.relay(db, lambda message: (got.append(message.payload), relay.stop()))
        relay.run()
    assert got == [{"n": 1}]
    assert [pooler.found(left) for left in LEFT] == [[], [], [], []]


def test_a_store_behind_a_pooler_leaves_no_setting_behind(pooler: Pooler) -> None:
    with PostgresStore(pooler.dsn, timeout=10.0) as store:
        limiter = RateLimiter("10/s", store=store, on_store_error="closed", store_timeout=10.0)

        async def by_tasks() -> int:
            decision = await limiter.ahit("a")
            await store.aclose()
            return decision.remaining

        assert limiter.hit("a").remaining == 9
        assert asyncio.run(by_tasks()) in {8, 9}  # a tenth of a second gives one back
    assert pooler.found(SETTINGS) == []


def test_a_store_without_a_pooler_does_not_wait_for_the_disk(reliakit_dsn: str) -> None:
    with PostgresStore(reliakit_dsn) as store:
        line = store._blocking._idle[0]  # type: ignore[union-attr]
        until = SYSTEM_CLOCK.monotonic() + 10.0
        assert line.ask("SHOW synchronous_commit", until) == b"off"
        assert line.ask("SHOW statement_timeout", until) == b"1s"


@pytest.mark.anyio
async def test_a_request_to_cancel_is_not_hung_up_on_when_its_task_is_cancelled_again(
    reliakit_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def request(connection: object, seconds: float) -> bool:
        begun.set()
        try:
            await may_end.wait()
        finally:
            ended.set_result(may_end.is_set())
        return True

    monkeypatch.setattr(cancelling, "cancel_async", request)
    async with AsyncDatabase(reliakit_dsn) as db:

        async def sleep() -> None:
            async with db.transaction() as tx:
                await tx.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(sleep())
        while not await db.fetch_value("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"):
            pass
        task.cancel()
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_end.set()
        assert await ended
