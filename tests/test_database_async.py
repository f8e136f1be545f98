"""What is different, or must be the same, where transactions belong to asyncio tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool
import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import deadline
from reliakit.core.errors import (
    ConfigurationError,
    DeadlineExceededError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import HookFailed, TransactionEnded
from reliakit.database import AsyncDatabase, AsyncRepository, AsyncTransaction, Isolation, Propagation, transactional

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(reliakit_dsn: str) -> AsyncIterator[AsyncDatabase]:
    async with AsyncDatabase(reliakit_dsn, max_size=3, name="shop") as database:
        await database.execute("CREATE TABLE item (id int PRIMARY KEY, amount int NOT NULL DEFAULT 0)")
        yield database


async def ids(db: AsyncDatabase) -> list[int]:
    return [row[0] for row in await db.fetch_all("SELECT id FROM item ORDER BY id")]


async def test_blocks_commit_roll_back_and_pass_errors_unchanged(db: AsyncDatabase) -> None:
    async with db.transaction() as tx:
        assert db.current() is tx
        await tx.execute("INSERT INTO item VALUES (1)")
        assert await tx.fetch_one("SELECT 1, 2") == (1, 2)
        assert await tx.fetch_all("SELECT 1") == [(1,)]
        assert await tx.fetch_value("SHOW transaction_isolation") == "repeatable read"
    problem = LookupError()
    with pytest.raises(LookupError) as caught:
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO item VALUES (2)")
            raise problem
    assert caught.value is problem
    assert await ids(db) == [1]


async def test_a_swallowed_error_raises_rolled_back(db: AsyncDatabase) -> None:
    with pytest.raises(TransactionRolledBackError):
        async with db.transaction() as tx:
            with contextlib.suppress(psycopg.Error):
                await tx.execute("SELECT 1/0")


async def test_the_users_own_commit_is_noticed(db: AsyncDatabase) -> None:
    with pytest.raises(TransactionUsageError):
        async with db.transaction() as tx:
            await tx.connection.commit()


async def test_savepoints_new_transactions_and_bare_blocks(db: AsyncDatabase) -> None:
    with contextlib.suppress(LookupError):
        async with db.transaction() as outer:
            async with db.transaction() as inner:
                assert inner is outer
            async with db.transaction(propagation=Propagation.NESTED) as nested:
                await nested.execute("INSERT INTO item VALUES (1)")
                nested.set_rollback_only()
            assert await ids(db) == []
            async with db.transaction(propagation=Propagation.REQUIRES_NEW) as new:
                await new.execute("INSERT INTO item VALUES (2)")
            raise LookupError
    with contextlib.suppress(LookupError):
        async with db.transaction(propagation=Propagation.SUPPORTS) as bare:
            await bare.execute("INSERT INTO item VALUES (3)")
            raise LookupError
    assert await ids(db) == [2, 3]


async def test_the_block_is_cut_wherever_it_awaits(db: AsyncDatabase) -> None:
    for slow in (partial(asyncio.Event().wait), partial(db.execute, "SELECT pg_sleep(30)")):
        with pytest.raises(TransactionTimeoutError) as caught:
            async with db.transaction(timeout=0.1, operation="slow") as tx:
                await tx.execute("INSERT INTO item VALUES (1)")
                await slow()
        assert (caught.value.name, caught.value.attempts) == (db.name, 1)

    async def wait(tx: AsyncTransaction) -> None:
        await asyncio.Event().wait()

    with pytest.raises(TransactionTimeoutError):
        await db.run(wait, timeout=0.1)
    assert await ids(db) == []
    assert asyncio.current_task().cancelling() == 0


async def test_a_cut_that_is_swallowed_still_does_not_commit(db: AsyncDatabase) -> None:
    with pytest.raises(TransactionTimeoutError):
        async with db.transaction(timeout=0.1) as tx:
            await tx.execute("INSERT INTO item VALUES (1)")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    assert await ids(db) == []


async def test_the_callers_own_timeout_error_stays_what_it_is(db: AsyncDatabase) -> None:
    mine = TimeoutError("mine")

    async def fail(*_: object) -> None:
        raise mine

    for use in (partial(db.run, fail), db.transactional()(fail)):
        with pytest.raises(TimeoutError) as caught:
            await use()
        assert caught.value is mine
    with pytest.raises(TimeoutError) as caught:
        async with db.transaction():
            await fail()
    assert caught.value is mine
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), db.transaction() as tx:
            await tx.execute("SELECT pg_sleep(30)")


async def test_an_outer_deadline_wins(db: AsyncDatabase) -> None:
    with pytest.raises(DeadlineExceededError):
        async with deadline(0.1), db.transaction(timeout=30) as tx:
            await tx.execute("SELECT pg_sleep(30)")
    assert db.stats().in_use == 0


async def test_a_task_that_inherits_the_context_gets_an_error_never_the_connection(db: AsyncDatabase) -> None:
    async def child(tx: AsyncTransaction) -> None:
        for use in (
            partial(tx.execute, "SELECT 1"),
            partial(db.execute, "SELECT 1"),
            partial(db.run, lambda tx: tx.fetch_value("SELECT 1")),
        ):
            with pytest.raises(TransactionUsageError):
                await use()
        with pytest.raises(TransactionUsageError):
            db.current()
        async with db.transaction(propagation=Propagation.REQUIRES_NEW) as own:
            assert await own.fetch_value("SELECT 1") == 1

    async with db.transaction() as tx:
        await asyncio.create_task(child(tx))


async def test_a_task_that_outlives_the_block_begins_its_own(db: AsyncDatabase) -> None:
    over = asyncio.Event()

    async def child() -> object:
        await over.wait()
        return await db.fetch_value("SELECT 1")

    async with db.transaction():
        task = asyncio.create_task(child())
    over.set()
    assert await task == 1


async def test_a_nested_checkout_that_must_deadlock_is_refused_at_once(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=2) as db:
        held = asyncio.Barrier(2)
        outcomes: list[str] = []

        async def nest() -> None:
            async with db.transaction():
                await held.wait()
                try:
                    async with db.transaction(propagation=Propagation.REQUIRES_NEW):
                        outcomes.append("got one")
                except TransactionUsageError:
                    outcomes.append("refused")

        async with asyncio.TaskGroup() as group:
            group.create_task(nest())
            group.create_task(nest())
        assert sorted(outcomes) == ["got one", "refused"]


async def test_a_task_cancelled_in_a_hook_does_not_try_again_and_knows_what_became_of_it(db: AsyncDatabase) -> None:
    here = asyncio.Event()
    attempts: list[int] = []

    async def wait() -> None:
        here.set()
        await asyncio.Event().wait()

    async def lose(tx: AsyncTransaction) -> None:
        attempts.append(tx.attempt)
        tx.after_rollback(wait)
        raise psycopg.errors.SerializationFailure

    async def win(tx: AsyncTransaction) -> None:
        await tx.execute("INSERT INTO item VALUES (1)")
        tx.after_commit(wait)

    for fn, known in ((lose, "rolled back"), (win, "committed")):
        here.clear()
        task = asyncio.create_task(db.run(fn))
        await here.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await task
        assert f"was {known}" in cancelled.value.__notes__[0]
    assert attempts == [1]
    assert await ids(db) == [1]


async def test_hooks_may_be_plain_or_async_and_run_in_order(
    db: AsyncDatabase, recording_listener: RecordingListener
) -> None:
    seen: list[object] = []

    async def later() -> None:
        seen.append(await ids(db))

    async def bad() -> None:
        raise RuntimeError

    async with db.transaction() as tx:
        await tx.execute("INSERT INTO item VALUES (1)")
        tx.after_commit(lambda: seen.append("plain"))
        tx.after_commit(bad)
        tx.after_commit(later)
        tx.after_rollback(later)
    assert seen == ["plain", [1]]
    assert len([event for event in recording_listener.events if isinstance(event, HookFailed)]) == 1


async def test_run_and_transactional_try_again(db: AsyncDatabase, recording_listener: RecordingListener) -> None:
    await db.execute("INSERT INTO item VALUES (1, 0)")

    class Items(AsyncRepository):
        attempts = 0

        @transactional(isolation=Isolation.REPEATABLE_READ)
        async def add(self, much: int, *, twice: bool = False) -> int:
            self.attempts += 1
            await self.db.fetch_value("SELECT amount FROM item")
            if self.attempts == 1:
                async with self.db.transaction(propagation=Propagation.REQUIRES_NEW) as other:
                    await other.execute("UPDATE item SET amount = 100")
            await self.db.execute("UPDATE item SET amount = amount + %s", (much * (2 if twice else 1),))
            return self.current().attempt

    items = Items(db)
    assert await items.add(5, twice=True) == 2
    assert await items.with_transaction(lambda tx: tx.fetch_value("SELECT amount FROM item")) == 110
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert [event.status for event in ended if event.operation == "Items.add"] == ["retry", "commit"]


async def test_wrong_colours_are_refused(db: AsyncDatabase) -> None:
    async def steps() -> AsyncIterator[int]:
        yield 1

    def plain(*_: object) -> int:
        return 1

    for wrong in (plain, steps, int):
        with pytest.raises(ConfigurationError):
            db.transactional()(wrong)  # type: ignore[type-var]
        with pytest.raises(ConfigurationError):
            await db.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        await db.run(lambda tx: 1)  # type: ignore[arg-type,return-value]
    assert db.stats().in_use == 0


async def test_an_abandoned_async_generator_gives_its_connection_back(db: AsyncDatabase) -> None:
    async def rows() -> AsyncIterator[int]:
        async with db.transaction() as tx:
            for (row,) in await tx.fetch_all("SELECT generate_series(1, 3)"):
                yield row

    async for _ in rows():
        break
    async with asyncio.timeout(30):
        while db.stats().in_use:
            await SYSTEM_CLOCK.asleep(0.001)  # lets asyncio close the generator, and the server roll back
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(db.transaction(propagation=Propagation.REQUIRES_NEW))


async def test_a_pool_of_the_callers_is_borrowed_from(reliakit_dsn: str) -> None:
    async with psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, max_size=2, open=False) as pool:
        async with AsyncDatabase(pool=pool) as db:
            assert await db.fetch_value("SHOW transaction_isolation") == "repeatable read"
            with pytest.raises(TransactionTimeoutError):
                async with db.transaction(timeout=0.05):
                    await asyncio.Event().wait()
            async with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
                assert db.stats().in_use == 2
        assert not pool.closed
        async with pool.connection() as connection:
            assert not connection.autocommit


async def test_one_database_serves_one_loop_after_another(reliakit_dsn: str) -> None:
    db = AsyncDatabase(reliakit_dsn)

    async def use() -> object:
        return await db.fetch_value("SELECT pg_backend_pid()")

    pids = {await asyncio.to_thread(asyncio.run, use()) for _ in range(3)}
    assert len(pids) == 1
    await db.close()
