"""ORM sessions inside transactions while something cancels, interrupts, kills or cuts them off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from database_drivers import all_obtainable, async_engine_of, engine_of
from sqlalchemy import Engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from test_database_interrupts import ctrl_c, judged, obtainable

from reliakit.core.errors import CommitUnknownError, TransactionTimeoutError
from reliakit.core.flow import run_blocking
from reliakit.database import AsyncDatabase, Database, Transaction, TransactionRetry
from reliakit.integrations.sqlalchemy import AsyncEnginePool, EnginePool, connection, session
from reliakit.testing import FaultProxy

Proxy = Callable[[str], FaultProxy]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


@pytest.fixture
def engine(reliakit_dsn: str) -> Iterator[Engine]:
    engine = engine_of(reliakit_dsn)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def db(engine: Engine) -> Iterator[Database]:
    with Database(EnginePool(engine)) as database:
        yield database


@pytest.fixture
async def adb(engine: Engine, reliakit_dsn: str) -> AsyncIterator[AsyncDatabase]:
    lender = async_engine_of(reliakit_dsn)
    async with AsyncDatabase(AsyncEnginePool(lender)) as database:
        yield database
    await lender.dispose()


def count(db: Database) -> int:
    return db.fetch_value("SELECT count(*) FROM item")


@pytest.mark.anyio
@pytest.mark.parametrize("fail", [False, True], ids=["commit", "rollback"])
async def test_cancelled_once_or_twice_at_any_await_of_a_session_nothing_is_lost_and_nothing_is_a_lie(
    adb: AsyncDatabase, fail: bool
) -> None:
    async def add(item: int) -> None:
        async with adb.transaction() as tx:
            async with session(tx) as s:
                s.add(Item(id=item))
                await s.flush()
                await s.execute(text("SELECT 1"))
            if fail:
                raise LookupError

    item, cuts = 0, 0
    _, suspensions = await judged(adb, add(item), item, set())
    assert suspensions >= 6
    for first in range(1, suspensions + 1):
        for at in ({first}, {first, first + 1}):
            item += 1
            was_cut, _ = await judged(adb, add(item), item, at)
            cuts += was_cut
    assert cuts > suspensions


@pytest.mark.anyio
async def test_a_storm_of_cancelled_sessions_keeps_every_connection(adb: AsyncDatabase) -> None:
    async def add(item: int) -> None:
        async with adb.transaction() as tx, session(tx) as s:
            s.add(Item(id=item))

    for item in range(60):
        task = asyncio.create_task(add(item))
        await asyncio.sleep(item * 0.0001)  # noqa: TID251 - somewhere inside
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await all_obtainable(adb)


def test_sessions_that_race_for_one_row_lose_no_update(db: Database) -> None:
    def count_up(tx: Transaction) -> None:
        with session(tx) as s:
            s.get_one(Counter, 1).value += 1

    def work() -> None:
        for _ in range(20):
            db.run(count_up, timeout=30, retry=TransactionRetry(max_attempts=200))

    with db.transaction() as tx, session(tx) as s:
        s.add(Counter(id=1, value=0))
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.fetch_value("SELECT value FROM counter") == 120
    run_blocking(all_obtainable(db))


def test_an_abandoned_block_with_a_session_gives_its_connection_back(db: Database, engine: Engine) -> None:
    def items() -> Iterator[int]:
        with db.transaction() as tx, session(tx) as s:
            yield from s.scalars(text("SELECT generate_series(1, 3)"))

    for _ in range(3):
        next(items())
        block = db.transaction()
        tx = block.__enter__()
        session(tx).__enter__().execute(text("SELECT 1"))
        del block, tx
        gc.collect()
    run_blocking(all_obtainable(db))
    assert engine.pool.checkedout() == 0


def test_ctrl_c_in_a_statement_of_a_session_loses_no_connection(db: Database) -> None:
    timer = threading.Timer(0.1, ctrl_c)
    with pytest.raises(KeyboardInterrupt), db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1))
        s.flush()
        timer.start()
        s.execute(text("SELECT pg_sleep(30)"))
    assert count(db) == 0
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)' AND pid <> pg_backend_pid()"
    assert db.fetch_value(running + " AND state = 'active'") == 0
    assert obtainable(db) == 2


def test_a_backend_killed_under_a_session_surfaces_and_is_replaced(db: Database, engine: Engine) -> None:
    def kill(pid: int) -> None:
        with engine.connect() as admin:
            admin.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    with pytest.raises(exc.OperationalError), db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1))
        s.flush()
        kill(tx.connection.info.backend_pid)
        s.execute(text("SELECT 1"))
    with pytest.raises(exc.OperationalError), db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1))
        kill(tx.connection.info.backend_pid)
    assert count(db) == 0
    run_blocking(all_obtainable(db))


def test_an_idle_session_that_the_server_ended_leaves_as_a_timeout(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx, session(tx) as s:
        s.add(Item(id=1))
        s.flush()
        time.sleep(0.3)  # noqa: TID251 - the server's clock, too
        s.execute(text("SELECT 1"))
    assert count(db) == 0
    run_blocking(all_obtainable(db))


@pytest.mark.parametrize("where", ["checkout", "statement", "commit"])
def test_a_dead_network_surfaces_within_the_timeout_and_three_seconds(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy, where: str
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    engine = engine_of(proxy.dsn(), pool_pre_ping=where == "checkout")
    far = Database(EnginePool(engine))
    assert count(far) == 0
    hole = proxy.black_hole() if where == "checkout" else None
    began = time.monotonic()  # noqa: TID251
    with pytest.raises((TransactionTimeoutError, CommitUnknownError)) as caught:
        with far.transaction(timeout=0.5) as tx:
            with session(tx) as s:
                s.add(Item(id=1))
            hole = hole or proxy.black_hole()
            if where == "statement":
                connection(tx).execute(text("SELECT 1"))
    assert time.monotonic() - began < 3.5  # noqa: TID251
    assert isinstance(caught.value, CommitUnknownError) is (where == "commit")
    assert hole is not None
    hole.heal()
    assert count(far) == 0
    run_blocking(all_obtainable(far))
    engine.dispose()
    assert count(db) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["checkout", "statement", "commit"])
async def test_a_dead_network_surfaces_in_tasks_too(
    engine: Engine, reliakit_dsn: str, fault_proxy: Proxy, where: str
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    lender = async_engine_of(proxy.dsn(), pool_pre_ping=where == "checkout")
    far = AsyncDatabase(AsyncEnginePool(lender))
    await far.fetch_value("SELECT 1")
    hole = proxy.black_hole() if where == "checkout" else None
    began = time.monotonic()  # noqa: TID251
    with pytest.raises((TransactionTimeoutError, CommitUnknownError)) as caught:
        async with far.transaction(timeout=0.5) as tx:
            async with session(tx) as s:
                s.add(Item(id=1))
            hole = hole or proxy.black_hole()
            if where == "statement":
                await (await connection(tx)).execute(text("SELECT 1"))
    assert time.monotonic() - began < 3.5  # noqa: TID251
    assert isinstance(caught.value, CommitUnknownError) is (where == "commit")
    assert hole is not None
    hole.heal()
    assert await far.fetch_value("SELECT count(*) FROM item") == 0
    await all_obtainable(far)
    await lender.dispose()
