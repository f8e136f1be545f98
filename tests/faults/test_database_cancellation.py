"""No leak and no lie when tasks are cancelled, once, twice or by a timeout, at each await of each use of a database.

A leak is judged by obtainability: afterwards `max_size` connections can be had at once, although the errors are kept
with their tracebacks, as `gather(return_exceptions=True)` keeps them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import psycopg
import pytest
from database_drivers import SIZE, SOURCES, Injected, all_obtainable, opened, verdict_of

from reliakit.core.errors import TransactionRolledBackError, TransactionTimeoutError
from reliakit.database import AsyncDatabase, AsyncTransaction, Propagation

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("source", SOURCES)]

Work = Callable[[AsyncDatabase, int], Coroutine[Any, Any, None]]


async def commit(db: AsyncDatabase, item: int) -> None:
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))


async def pipelined(db: AsyncDatabase, item: int) -> None:
    async with db.transaction(pipeline=True) as tx:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))


async def rollback(db: AsyncDatabase, item: int) -> None:
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))
        raise LookupError


async def savepoints(db: AsyncDatabase, item: int) -> None:
    async with db.transaction(lock_timeout=3):
        async with db.transaction(propagation=Propagation.NESTED, lock_timeout=2) as nested:
            await nested.execute("INSERT INTO item VALUES (%s)", (item,))
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            async with db.transaction(propagation=Propagation.NESTED) as nested:
                await nested.execute("INSERT INTO item VALUES (%s)", (item,))


async def two_connections(db: AsyncDatabase, item: int) -> None:
    async with db.transaction():
        async with db.transaction(propagation=Propagation.REQUIRES_NEW) as new:
            await new.execute("INSERT INTO item VALUES (%s)", (item,))


async def reconnecting(db: AsyncDatabase, item: int) -> None:
    # What is open is found dead at BEGIN, or one before it.
    for slot in db._engine.checkouts.gate._slots:
        if slot.session is not None:
            slot.session.abandon()
    await commit(db, item)


async def dead_at_begin(db: AsyncDatabase, item: int) -> None:
    # What is open dies unnoticed, so that BEGIN finds out.
    for slot in db._engine.checkouts.gate._slots:
        if slot.session is not None:
            with socket.socket(fileno=os.dup(slot.session.pgconn.socket)) as wire:
                wire.shutdown(socket.SHUT_RDWR)
    await commit(db, item)


async def retried(db: AsyncDatabase, item: int) -> None:
    async def lose_once(tx: AsyncTransaction) -> None:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))
        if tx.attempt == 1:
            await tx.execute("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$")

    await db.run(lose_once)


async def with_hooks(db: AsyncDatabase, item: int) -> None:
    async def hook() -> None:
        await db.fetch_value("SELECT 1")
        raise LookupError

    async with db.transaction() as tx:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))
        tx.after_commit(hook)
        tx.after_commit(hook)
        tx.after_rollback(hook)


async def with_a_cursor(db: AsyncDatabase, item: int) -> None:
    async with db.transaction() as tx, tx.connection.cursor() as cursor:
        async with cursor.copy("COPY item FROM STDIN") as copy:
            await copy.write_row((item,))
        await cursor.executemany("SELECT %s", [(1,), (2,)])


async def generator(db: AsyncDatabase, item: int) -> None:
    async def rows() -> Any:
        async with db.transaction() as tx:
            for (number,) in await tx.fetch_all("SELECT generate_series(1, 3)"):
                yield number

    async with contextlib.aclosing(rows()) as numbers:
        async for _ in numbers:
            break
    await commit(db, item)


async def behind_a_queue(db: AsyncDatabase, item: int) -> None:
    await commit(db, item)


@contextlib.asynccontextmanager
async def all_taken(db: AsyncDatabase) -> AsyncIterator[None]:
    """Others have all connections until somebody waits for one, or the block ends."""
    release = asyncio.Event()
    held = asyncio.Barrier(SIZE + 1)

    async def hold() -> None:
        async with db.transaction():
            await held.wait()
            await release.wait()

    async def watch() -> None:
        while db.stats().waiting == 0:
            await asyncio.sleep(0)  # noqa: TID251 - a bare yield
        release.set()

    holders = [asyncio.create_task(hold()) for _ in range(SIZE)]
    await held.wait()
    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        release.set()
        await asyncio.gather(*holders, watcher, return_exceptions=True)


def around(db: AsyncDatabase, work: Work) -> contextlib.AbstractAsyncContextManager[None]:
    """Return what must be the case while this work is done."""
    return all_taken(db) if work is behind_a_queue else contextlib.nullcontext()


# How often each is suspended at least: once for each question to the server, connection, pause and turn in a queue.
# What a pipeline or executemany() asks at once may be answered before anybody waits for it.
WORKS: dict[Work, int] = {
    commit: 3,
    pipelined: 1,
    rollback: 3,
    savepoints: 9,
    two_connections: 6,
    reconnecting: 4,
    dead_at_begin: 5,
    retried: 8,
    with_hooks: 9,
    with_a_cursor: 4,
    generator: 6,
    behind_a_queue: 4,
}


def cancel(waited_for: Any) -> None:
    """Cancel this task while what it waits for is still to come."""
    asyncio.current_task().cancel()


def cancel_too_late(waited_for: Any) -> None:
    """Cancel this task when what it waits for has come, before it runs again."""
    task = asyncio.current_task()
    if asyncio.isfuture(waited_for):
        waited_for.add_done_callback(lambda _: task.cancel())
    else:
        task.cancel()


async def drive(work: Injected) -> Any:
    return await work


Faults = Mapping[int, Callable[[Any], object]]


async def judged(db: AsyncDatabase, work: Work, item: int, faults: Faults, kept: list[BaseException]) -> int:
    """Do the work with these faults, judge what is left behind, and return how often it was suspended."""
    driver = Injected(work(db, item), faults)
    error = None
    try:
        async with around(db, work):
            await asyncio.create_task(drive(driver))
    except (asyncio.CancelledError, LookupError) as raised:
        error = raised
        kept.append(raised)
    await judge(db, work, item, error)
    return driver.suspensions


async def judge(db: AsyncDatabase, work: Work, item: int, error: BaseException | None) -> None:
    count = await db.fetch_value("SELECT count(*) FROM item WHERE id = %s", (item,))
    said = verdict_of(error)
    # Nothing is wrong with the server, so every outcome can be learnt.
    assert said != "unknown"
    if work in (commit, pipelined, retried, with_a_cursor, reconnecting, dead_at_begin, savepoints, behind_a_queue):
        assert count == (said == "committed")
    elif error is None:
        assert count == 1
    await all_obtainable(db)


@contextlib.asynccontextmanager
async def database(dsn: str, source: str) -> Any:
    async with opened("tasks", dsn, source) as db:
        await db.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield db


@pytest.mark.parametrize("work", WORKS)
async def test_cancelled_once_or_twice_at_any_await(reliakit_dsn: str, source: str, work: Work) -> None:
    kept: list[BaseException] = []
    async with database(reliakit_dsn, source) as db:
        item = 0
        suspensions = await judged(db, work, item, {}, kept)
        assert suspensions >= WORKS[work]
        cut = 0
        for at in range(1, suspensions + 1):
            for faults in (
                {at: cancel},
                {at: cancel_too_late},
                {at: cancel, at + 1: cancel},
                {at: cancel_too_late, at + 1: cancel, at + 2: cancel},
            ):
                item += 1
                errors = len(kept)
                await judged(db, work, item, faults, kept)
                cut += cancel in faults.values() and any(map(is_cancellation, kept[errors:]))
        assert cut >= 2 * WORKS[work]
        assert await backends(db) <= SIZE


def is_cancellation(error: BaseException) -> bool:
    return isinstance(error, asyncio.CancelledError)


async def backends(db: AsyncDatabase) -> int:
    """Return how many connections the server knows, once it has noticed those that were closed."""
    text = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'client%'"
    for _ in range(200):
        count = await db.fetch_value(text)
        if count <= SIZE:
            break
        await asyncio.sleep(0.01)  # noqa: TID251 - the server takes its time to notice
    return count


@pytest.mark.parametrize("work", WORKS)
async def test_timed_out_by_the_caller_at_any_await(reliakit_dsn: str, source: str, work: Work) -> None:
    kept: list[BaseException] = []
    async with database(reliakit_dsn, source) as db:
        item = 0
        suspensions = await judged(db, work, item, {}, kept)
        for at in range(1, suspensions + 1):
            item += 1
            error: BaseException | None = None
            try:
                async with around(db, work), asyncio.timeout(None) as timer:
                    expire = functools.partial(timer.reschedule, asyncio.get_running_loop().time())
                    await Injected(work(db, item), {at: lambda _, expire=expire: expire()})
            except (TimeoutError, LookupError) as raised:
                error = raised
                kept.append(raised)
            assert not isinstance(error, TransactionTimeoutError)
            assert asyncio.current_task().cancelling() == 0
            # Before 3.11.5 a timeout names the cancellation that it was as its context alone.
            cut = error.__cause__ or error.__context__ if isinstance(error, TimeoutError) else error
            await judge(db, work, item, cut)
        assert any(isinstance(error, TimeoutError) for error in kept)


@pytest.mark.parametrize("propagation", [Propagation.NESTED, Propagation.REQUIRED])
@pytest.mark.parametrize("lock_timeout", [None, 1.0])
async def test_a_block_inside_that_was_cancelled_leaves_nothing_behind_that_commits(
    reliakit_dsn: str, source: str, propagation: Propagation, lock_timeout: float | None
) -> None:
    async def work(db: AsyncDatabase, item: int) -> bool:
        async with db.transaction():
            try:
                async with db.transaction(propagation=propagation, lock_timeout=lock_timeout) as inner:
                    await inner.execute("INSERT INTO item VALUES (%s)", (item,))
            except asyncio.CancelledError:
                return False
        return True

    async with database(reliakit_dsn, source) as db:
        driver = Injected(work(db, 0), {})
        await driver
        kept = 0
        for at in range(1, driver.suspensions + 1):
            for fault in (cancel, cancel_too_late):
                inside = Injected(work(db, item := 10 * at + (fault is cancel)), {at: fault})
                succeeded = None
                with contextlib.suppress(asyncio.CancelledError, TransactionRolledBackError):
                    succeeded = await asyncio.create_task(drive(inside))
                count = await db.fetch_value("SELECT count(*) FROM item WHERE id = %s", (item,))
                assert count == 0 or succeeded is not False, (at, fault)
                kept += count
                await all_obtainable(db)
        assert kept < 2 * driver.suspensions


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_cancelled_while_the_pool_takes_its_connection_back(
    reliakit_dsn: str, source: str, cancels: int
) -> None:
    if source != "a pool":
        return
    async with database(reliakit_dsn, source) as db:
        pool = db._engine.checkouts.source.pool

        async def work() -> None:
            async with db.transaction() as tx:
                await tx.execute("INSERT INTO item VALUES (1)")
                await pool._lock.acquire()

        task = asyncio.create_task(work())
        for _ in range(cancels):
            while not pool._lock._waiters and not task.done():
                await asyncio.sleep(0.001)  # noqa: TID251 - until it is parked there
            task.cancel()
            await asyncio.sleep(0)  # noqa: TID251 - a bare yield
            await asyncio.sleep(0)  # noqa: TID251
        assert not task.done()
        pool._lock.release()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert verdict_of(caught.value) == "committed"
        await all_obtainable(db)


async def test_a_pipeline_that_was_cancelled_leaves_nothing_that_complains_when_it_is_collected(
    reliakit_dsn: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a loop that is busy all the time: each exchange yields before it sends.
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0.0)
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: complaints.append(about.exc_value))
    kept: list[BaseException] = []
    async with database(reliakit_dsn, source) as db:
        suspensions = await judged(db, pipelined, 0, {}, kept)
        for at in range(1, suspensions + 1):
            await judged(db, pipelined, 2 * at, {at: cancel}, kept)
            await judged(db, pipelined, 2 * at + 1, {at: cancel, at + 1: cancel}, kept)
    assert len(kept) > suspensions
    kept.clear()
    gc.collect()
    assert complaints == []


async def test_abandoned_generators_give_their_connections_back(reliakit_dsn: str, source: str) -> None:
    async with database(reliakit_dsn, source) as db:

        async def rows() -> AsyncIterator[int]:
            async with db.transaction() as tx:
                for (number,) in await tx.fetch_all("SELECT generate_series(1, 3)"):
                    yield number

        async def begin(numbers: AsyncIterator[int]) -> None:
            assert await anext(numbers) == 1

        async for _ in rows():
            break
        await nobody_holds_one(db)
        # Begun in one task, and closed or forgotten in another.
        closed, forgotten = rows(), rows()
        await asyncio.create_task(begin(closed))
        await asyncio.create_task(begin(forgotten))
        await closed.aclose()
        del forgotten
        await nobody_holds_one(db)


async def nobody_holds_one(db: AsyncDatabase) -> None:
    """Let asyncio close what was forgotten, and fail unless everything comes back."""
    async with asyncio.timeout(10):
        while db.stats().in_use:
            await asyncio.sleep(0.001)  # noqa: TID251 - the server takes part in it
    await all_obtainable(db)
