"""rolled_back() while something cancels or interrupts it: nothing stays, and the next test is clean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from database_drivers import all_obtainable
from test_database_interrupts import CancelledAt, CtrlC, obtainable

from reliakit.core.errors import TransactionUsageError
from reliakit.database import AsyncDatabase, Database, Propagation
from reliakit.testing import rolled_back


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=2) as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield database


@pytest.fixture
async def adb(db: Database, reliakit_dsn: str) -> AsyncIterator[AsyncDatabase]:
    async with AsyncDatabase(reliakit_dsn, max_size=2) as database:
        yield database


@pytest.mark.anyio
async def test_cancelled_once_or_twice_at_any_await_nothing_stays_and_nothing_is_lost(adb: AsyncDatabase) -> None:
    async def one_test() -> None:
        async with rolled_back(adb):
            async with adb.transaction() as tx:
                await tx.execute("INSERT INTO item VALUES (1)")
            async with adb.transaction(propagation=Propagation.SUPPORTS) as bare:
                await bare.execute("INSERT INTO item VALUES (2)")
            with contextlib.suppress(LookupError):
                async with adb.transaction() as tx:
                    await tx.execute("INSERT INTO item VALUES (3)")
                    raise LookupError

    async def judged(at: set[int]) -> tuple[bool, int]:
        driver = CancelledAt(one_test(), at)

        async def drive() -> None:
            await driver

        cut = False
        try:
            await asyncio.create_task(drive())
        except asyncio.CancelledError:
            cut = True
        assert await adb.fetch_value("SELECT count(*) FROM item") == 0
        await all_obtainable(adb)
        return cut, driver.suspensions

    _, suspensions = await judged(set())
    assert suspensions >= 10
    cuts = 0
    for first in range(1, suspensions + 1):
        for at in ({first}, {first, first + 1}):
            cut, _ = await judged(at)
            cuts += cut
    assert cuts > suspensions


@pytest.mark.timeout(120)
def test_ctrl_c_at_any_line_of_the_code_under_test_leaves_nothing(db: Database) -> None:
    def work() -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO item VALUES (2)")

    def under_test(at: int) -> bool:
        interrupted = False
        with rolled_back(db):
            db.execute("INSERT INTO item VALUES (1)")
            try:
                with CtrlC(at):
                    work()
            except KeyboardInterrupt:
                interrupted = True
            # Either it was rolled back or kept, or the connection had to go, and that is told.
            with contextlib.suppress(TransactionUsageError):
                assert db.fetch_value("SELECT count(*) FROM item") in (1, 2)
        return interrupted

    at = 1
    while under_test(at):
        assert db.fetch_value("SELECT count(*) FROM item") == 0
        assert obtainable(db) == 2
        at += 2
    assert at > 60
