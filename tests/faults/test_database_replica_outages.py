"""Read-only transactions while the network to a replica swallows everything, or the reader is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest
from test_database_interrupts import CancelledAt, CtrlC

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.events import CircuitChanged, ReplicaFailed
from reliakit.database import AsyncDatabase, Database

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres, FaultProxy, RecordingListener

WHERE = "SELECT name FROM place"


@pytest.fixture
def primary(reliakit_postgres: EmbeddedPostgres, reliakit_dsn: str) -> str:
    return name_place(reliakit_dsn, "primary")


@pytest.fixture
def replica(
    reliakit_postgres: EmbeddedPostgres, reliakit_dsn: str, fault_proxy: Callable[[str], FaultProxy]
) -> Iterator[FaultProxy]:
    conninfo = reliakit_postgres.database()
    name_place(conninfo, "replica")
    yield fault_proxy(conninfo)
    reliakit_postgres.drop_database(conninfo)


def name_place(conninfo: str, name: str) -> str:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE place (name text)")
        connection.execute("INSERT INTO place VALUES (%s)", (name,))
    return conninfo


def where(db: Database) -> str:
    return db.run(lambda tx: tx.fetch_value(WHERE), read_only=True)


@pytest.mark.parametrize("connected", [True, False])
def test_a_replica_behind_a_dead_network_costs_a_bounded_moment_once(
    primary: str, replica: FaultProxy, recording_listener: RecordingListener, connected: bool
) -> None:
    with Database(primary, replicas=[replica.dsn()], min_size=int(connected), timeout=5.0) as db:
        if connected:
            assert where(db) == "replica"
        with replica.black_hole():
            # The first one has time enough left to ask the primary, and those after it do not ask the replica at all.
            for _ in range(6):
                assert where(db) == "primary"
        assert len(recording_listener.of(ReplicaFailed)) == 1
        assert [stats.in_use for stats in (db.stats(), *db.stats().replicas)] == [0, 0]


def test_a_replica_that_is_only_busy_is_not_left_alone(
    primary: str, replica: FaultProxy, recording_listener: RecordingListener
) -> None:
    with Database(primary, replicas=[replica.dsn()], max_size=1) as db, ThreadPoolExecutor(1) as threads:
        with db.transaction(read_only=True):
            assert threads.submit(where, db).result(10) == "primary"
        assert where(db) == "replica"
    (busy,) = recording_listener.of(ReplicaFailed)
    assert busy.error_type == "TransactionTimeoutError"
    assert recording_listener.of(CircuitChanged) == []


@pytest.mark.anyio
@pytest.mark.parametrize("connected", [True, False])
async def test_a_reader_that_is_cancelled_on_its_way_to_a_replica_leaves_nothing_behind(
    primary: str, replica: FaultProxy, recording_listener: RecordingListener, connected: bool
) -> None:
    async with AsyncDatabase(primary, replicas=[replica.dsn()], min_size=int(connected), max_size=1) as db:

        async def read() -> str:
            async with db.transaction(read_only=True) as tx:
                return await tx.fetch_value(WHERE)

        with replica.black_hole():
            for _ in range(2):
                task = asyncio.create_task(read())
                while db.stats().replicas[0].in_use == 0:
                    await SYSTEM_CLOCK.asleep(0.01)
                await SYSTEM_CLOCK.asleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert [stats.in_use for stats in (db.stats(), *db.stats().replicas)] == [0, 0]
        assert recording_listener.of(ReplicaFailed) == recording_listener.of(CircuitChanged) == []
        assert await read() == "replica"


def nothing_is_held(db: Database | AsyncDatabase) -> bool:
    return all(stats.in_use == stats.leaked == stats.waiting == 0 for stats in (db.stats(), *db.stats().replicas))


def read(db: Database) -> None:
    with db.transaction(read_only=True) as tx:
        tx.fetch_value(WHERE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dead", [False, True])
def test_ctrl_c_at_any_line_on_the_way_to_a_replica_loses_no_connection(
    primary: str, replica: FaultProxy, dead: bool
) -> None:
    with Database(primary, replicas=[replica.dsn()], max_size=1) as db, contextlib.ExitStack() as stack:
        if dead:
            replica.reset()
            stack.enter_context(replica.refuse())
        breaker = db._replicas._replicas[0].breaker
        ended = 0
        at = 1
        while ended < 3:
            with CtrlC(at):
                try:
                    read(db)
                    ended += 1
                except KeyboardInterrupt:
                    ended = 0
            gc.collect()
            assert nothing_is_held(db), f"line {at}"
            breaker.reset()
            assert where(db) == ("primary" if dead else "replica")
            breaker.reset()
            with db.transaction():  # the primary's one connection is there
                pass
            at += 31
        assert at > 100


@pytest.mark.anyio
@pytest.mark.parametrize("dead", [False, True])
async def test_a_cancellation_at_any_await_on_the_way_to_a_replica_loses_no_connection(
    primary: str, replica: FaultProxy, dead: bool
) -> None:
    async with AsyncDatabase(primary, replicas=[replica.dsn()], max_size=1) as db:
        breaker = db._replicas._replicas[0].breaker

        async def read() -> str:
            async with db.transaction(read_only=True) as tx:
                return await tx.fetch_value(WHERE)

        async def drive(work: CancelledAt) -> str:
            return await work

        with replica.refuse() if dead else contextlib.nullcontext():
            for first, second in [(at, at + more) for at in range(1, 12) for more in (0, 1)]:
                if dead:
                    replica.reset()
                task = asyncio.create_task(drive(CancelledAt(read(), {first, second})))
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert nothing_is_held(db), (first, second)
                breaker.reset()
                assert await read() == ("primary" if dead else "replica")
                breaker.reset()
