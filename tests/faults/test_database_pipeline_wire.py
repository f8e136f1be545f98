"""What a transaction with `pipeline=True` costs and survives on a real wire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from reliakit.core.errors import TransactionTimeoutError
from reliakit.database import AsyncDatabase, Database
from reliakit.testing import FaultProxy

Proxy = Callable[[str], FaultProxy]
INSERT = "INSERT INTO item VALUES (%s)"


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=2) as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield database


def test_one_statement_is_two_round_trips_and_none_is_none(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1, lock_timeout=1.0) as far:
        for item in range(8):  # psycopg prepares a statement that it sees often
            before = proxy.stats().round_trips
            with far.transaction(pipeline=True) as tx:
                tx.execute(INSERT, (item,))
            assert proxy.stats().round_trips - before == 2
        before = proxy.stats().round_trips
        assert far.run(lambda tx: tx.fetch_value("SELECT count(*) FROM item"), pipeline=True) == 8
        assert proxy.stats().round_trips - before == 2
        before = proxy.stats().round_trips
        with far.transaction(pipeline=True):
            pass
        assert proxy.stats().round_trips == before


@pytest.mark.anyio
async def test_so_it_is_in_tasks(db: Database, reliakit_dsn: str, fault_proxy: Proxy) -> None:
    proxy = fault_proxy(reliakit_dsn)
    async with AsyncDatabase(proxy.dsn(), max_size=1) as far:
        await far.fetch_value("SELECT 1")
        before = proxy.stats().round_trips
        async with far.transaction(pipeline=True) as tx:
            await tx.execute(INSERT, (1,))
        assert proxy.stats().round_trips - before == 2
        task = asyncio.create_task(hanging(far))
        await asyncio.sleep(0.3)  # noqa: TID251 - the statement runs
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert far.stats().in_use == 0
        assert await far.fetch_value("SELECT count(*) FROM item") == 1


async def hanging(far: AsyncDatabase) -> None:
    async with far.transaction(pipeline=True) as tx:
        await tx.execute("SELECT pg_sleep(%s)", (30,))


def test_a_dead_network_surfaces_in_time_and_nothing_is_lost(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1) as far:
        far.fetch_value("SELECT 1")
        hole = proxy.black_hole()
        started = time.monotonic()  # noqa: TID251 - real time, in a test of real faults
        with pytest.raises(TransactionTimeoutError), far.transaction(pipeline=True, timeout=0.5) as tx:
            tx.execute(INSERT, (1,))
        assert time.monotonic() - started < 3.5  # noqa: TID251
        hole.heal()
        assert far.fetch_value("SELECT count(*) FROM item") == 0
        assert (far.stats().in_use, far.stats().leaked) == (0, 0)


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_that_breaks_under_begin_is_replaced_and_the_statement_happens_once(
    db: Database, reliakit_dsn: str, fault_proxy: Proxy, after: bool
) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1) as far:
        far.fetch_value("SELECT 1")
        with proxy.cut_on(b"BEGIN", after=after), far.transaction(pipeline=True) as tx:
            tx.execute(INSERT, (1,))
        assert far.fetch_value("SELECT count(*) FROM item") == 1


def test_a_connection_that_breaks_later_surfaces(db: Database, reliakit_dsn: str, fault_proxy: Proxy) -> None:
    proxy = fault_proxy(reliakit_dsn)
    with Database(proxy.dsn(), max_size=1) as far:
        far.fetch_value("SELECT 1")
        with pytest.raises(psycopg.OperationalError), far.transaction(pipeline=True) as tx:
            tx.execute(INSERT, (1,))
            with proxy.cut_on(b"SELECT 7"):
                tx.execute("SELECT 7")
        assert far.fetch_value("SELECT count(*) FROM item") == 0
