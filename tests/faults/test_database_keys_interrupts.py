"""Locks, keys and relays that are interrupted anywhere: no connection, no lock and no message is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from test_database_interrupts import SIZE, CancelledAt, CtrlC, aobtainable, obtainable

from reliakit.core.errors import TransactionTimeoutError
from reliakit.database import AsyncDatabase, AsyncTransaction, Database, Outbox, OutboxMessage, Transaction

OUTBOX = Outbox()


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=SIZE) as database:
        database.execute("CREATE TABLE item (id int)")
        OUTBOX.create(database)
        database.run(lambda _tx: 0, idempotency_key="makes the table")
        yield database


@pytest.fixture
def other(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn) as database:
        yield database


@pytest.fixture
async def adb(db: Database, reliakit_dsn: str) -> AsyncIterator[AsyncDatabase]:
    async with AsyncDatabase(reliakit_dsn, max_size=SIZE) as database:
        await database.run(_nothing, idempotency_key="makes the table", operation="<lambda>")
        yield database


async def _nothing(_tx: AsyncTransaction) -> int:
    return 0


def interrupted_at_each_line(step: int, work: Callable[[], object], check: Callable[[], object]) -> None:
    """Run work again and again, with a Ctrl-C a few lines later each time, until one comes too late."""
    at, done = 1, False
    while not done:
        with contextlib.suppress(KeyboardInterrupt), CtrlC(at):
            work()
            done = True
        gc.collect()
        check()
        at += step
    assert at > 50


@pytest.mark.timeout(120)
def test_ctrl_c_at_any_line_of_a_lock_lets_go_of_it(db: Database, other: Database) -> None:
    def work() -> None:
        with db.advisory_lock("a"):
            pass

    def check() -> None:
        with other.advisory_lock("a"):
            pass
        assert obtainable(db) == SIZE

    interrupted_at_each_line(29, work, check)


@pytest.mark.timeout(120)
def test_ctrl_c_at_any_line_of_a_run_with_a_key_runs_it_once(db: Database) -> None:
    calls = 0

    def insert(tx: Transaction) -> int:
        tx.execute("INSERT INTO item VALUES (%s)", (calls,))
        return calls

    def work() -> None:
        db.run(insert, idempotency_key=str(calls))

    def check() -> None:
        nonlocal calls
        assert db.run(insert, idempotency_key=str(calls)) == calls
        assert db.fetch_value("SELECT count(*) FROM item WHERE id = %s", (calls,)) == 1
        assert obtainable(db) == SIZE
        calls += 1

    interrupted_at_each_line(37, work, check)


@pytest.mark.timeout(120)
def test_ctrl_c_at_any_line_of_a_relay_loses_no_message(db: Database) -> None:
    got: list[int] = []
    published = 0

    def handle(message: OutboxMessage) -> None:
        got.append(message.payload)

    def work() -> None:
        nonlocal published
        with db.transaction() as tx:
            OUTBOX.publish(tx, "topic", published, key="a")
        published += 1
        OUTBOX.relay(db, handle).drain()

    def check() -> None:
        OUTBOX.relay(db, handle).drain()
        assert obtainable(db) == SIZE

    interrupted_at_each_line(97, work, check)
    assert set(got) >= set(range(published - 1))


async def cancelled_at(work: Callable[[], object], at: set[int]) -> tuple[bool, int]:
    """Run work in a task that is cancelled at these suspensions; return whether it came through, and how many."""
    driver = CancelledAt(work(), at)  # type: ignore[arg-type]  # every work here is async

    async def drive() -> None:
        await driver

    task = asyncio.create_task(drive())
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return True, driver.suspensions
    return False, driver.suspensions


async def cancelled_at_each_await(work: Callable[[], object], check: Callable[[], object]) -> None:
    for times in (1, 2):
        at, through = 1, False
        while not through:
            through, _ = await cancelled_at(work, set(range(at, at + times)))
            await check()  # type: ignore[misc]  # every check here is async
            at += 1
        assert at > 3


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_cancelled_once_or_twice_at_any_await_of_a_lock(adb: AsyncDatabase, other: Database) -> None:
    async def work() -> None:
        async with adb.advisory_lock("a"):
            pass

    async def check() -> None:
        with other.advisory_lock("a"):
            pass
        assert await aobtainable(adb) == SIZE

    await cancelled_at_each_await(work, check)


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_cancelled_once_or_twice_at_any_await_of_a_wait_for_a_lock(adb: AsyncDatabase, other: Database) -> None:
    async def work() -> None:
        with contextlib.suppress(TransactionTimeoutError):
            async with adb.advisory_lock("a", timeout=0.05):
                pass

    async def check() -> None:
        assert await aobtainable(adb) == SIZE

    with other.advisory_lock("a"):
        await cancelled_at_each_await(work, check)
    with other.advisory_lock("a"):
        pass


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_cancelled_once_or_twice_at_any_await_of_a_run_with_a_key(adb: AsyncDatabase) -> None:
    calls = 0

    async def insert(tx: AsyncTransaction) -> int:
        await tx.execute("INSERT INTO item VALUES (%s)", (calls,))
        return calls

    async def work() -> None:
        await adb.run(insert, idempotency_key=str(calls))

    async def check() -> None:
        nonlocal calls
        assert await adb.run(insert, idempotency_key=str(calls)) == calls
        assert await adb.fetch_value("SELECT count(*) FROM item WHERE id = %s", (calls,)) == 1
        assert await aobtainable(adb) == SIZE
        calls += 1

    await cancelled_at_each_await(work, check)


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_cancelled_once_or_twice_at_any_await_of_a_relay(adb: AsyncDatabase) -> None:
    got: list[int] = []
    published = 0

    async def handle(message: OutboxMessage) -> None:
        got.append(message.payload)

    async def work() -> None:
        await OUTBOX.relay(adb, handle).adrain()

    async def check() -> None:
        nonlocal published
        await OUTBOX.relay(adb, handle).adrain()
        assert await aobtainable(adb) == SIZE
        async with adb.transaction() as tx:
            await OUTBOX.apublish(tx, "topic", published, key="a")
        published += 1

    await check()
    await cancelled_at_each_await(work, check)
    await work()
    assert set(got) == set(range(published))
    assert list(dict.fromkeys(got)) == sorted(set(got))
