"""Time: one deadline for everything, whatever the network does, and nothing that hangs beyond it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from database_drivers import COLOURS, SOURCES, all_obtainable, block, got, opened, play, run

from reliakit.core.backoff import Backoff
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import deadline
from reliakit.core.errors import CommitUnknownError, DeadlineExceededError, TransactionTimeoutError
from reliakit.core.flow import run_blocking
from reliakit.database import AsyncDatabase, Database, Propagation, TransactionRetry
from reliakit.testing import FaultProxy, ManualClock

TIMEOUT = 0.5
BOUND = TIMEOUT + 3

Script = Callable[[Any, FaultProxy], Coroutine[Any, Any, None]]
Phase = tuple[Script, tuple[type[Exception], ...]]
PHASES: dict[str, Phase] = {}


def phase(*expected: type[Exception]) -> Callable[[Script], Script]:
    """A way to use a transaction, in which the network dies."""

    def note(script: Script) -> Script:
        PHASES[script.__name__] = (script, expected)
        return script

    return note


@phase(TransactionTimeoutError)
async def connecting(db: Any, proxy: FaultProxy) -> None:
    proxy.reset()
    proxy.black_hole()
    async with block(db):
        pass


@phase(TransactionTimeoutError)
async def begin(db: Any, proxy: FaultProxy) -> None:
    proxy.black_hole()
    async with block(db):
        pass


@phase(TransactionTimeoutError)
async def statement(db: Any, proxy: FaultProxy) -> None:
    async with block(db) as tx:
        proxy.black_hole()
        await got(tx.execute("SELECT 1"))


@phase(TransactionTimeoutError)
async def statement_whose_answer_is_lost(db: Any, proxy: FaultProxy) -> None:
    async with block(db) as tx:
        proxy.black_hole(direction="to_client")
        await got(tx.connection.cursor().execute("SELECT 1"))


@phase(TransactionTimeoutError)
async def many_statements(db: Any, proxy: FaultProxy) -> None:
    async with block(db) as tx:
        proxy.black_hole()
        await got(tx.connection.cursor().executemany("SELECT %s", [(1,), (2,)]))


@phase(TransactionTimeoutError)
async def savepoint(db: Any, proxy: FaultProxy) -> None:
    async with block(db):
        proxy.black_hole()
        async with block(db, propagation=Propagation.NESTED):
            pass


@phase(TransactionTimeoutError)
async def release(db: Any, proxy: FaultProxy) -> None:
    async with block(db), block(db, propagation=Propagation.NESTED):
        proxy.black_hole()


@phase(LookupError, TransactionTimeoutError)  # in tasks the outer block is cut meanwhile
async def rollback_to_savepoint(db: Any, proxy: FaultProxy) -> None:
    async with block(db), block(db, propagation=Propagation.NESTED):
        proxy.black_hole()
        raise LookupError


@phase(LookupError)
async def rollback(db: Any, proxy: FaultProxy) -> None:
    async with block(db):
        proxy.black_hole()
        raise LookupError


@phase(CommitUnknownError, TransactionTimeoutError)  # its time may be spent before, where all else takes long
async def commit(db: Any, proxy: FaultProxy) -> None:
    async with block(db):
        proxy.black_hole()


async def surfaces(what: Phase, db: Any, proxy: FaultProxy, start: Any) -> float:
    """Return after how many seconds a dead network surfaces, and fail unless it does as it should."""
    script, expected = what
    await got(db.fetch_value("SELECT 1"))
    await got(start.wait())
    started = time.monotonic()  # noqa: TID251 - real time, in a test of real faults
    with pytest.raises(expected):
        await script(db, proxy)
    took = time.monotonic() - started  # noqa: TID251
    await asyncio.to_thread(proxy.heal) if isinstance(db, AsyncDatabase) else proxy.heal()
    await all_obtainable(db)
    return took


async def each(colour: str, dsn: str, name: str, start: Any) -> float:
    with FaultProxy(dsn) as proxy:
        async with opened(colour, proxy.dsn(), timeout=TIMEOUT) as db:
            return await surfaces(PHASES[name], db, proxy, start)


def all_phases(colour: str, dsn: str) -> dict[str, float]:
    """Let the network die in every phase, in all of them at once, as each takes seconds."""
    if colour == "threads":
        start = threading.Barrier(len(PHASES))
        with ThreadPoolExecutor(len(PHASES)) as workers:
            took = workers.map(lambda name: run_blocking(each(colour, dsn, name, start)), PHASES)
            return dict(zip(PHASES, took, strict=True))

    async def tasks() -> dict[str, float]:
        start = asyncio.Barrier(len(PHASES))
        took = await asyncio.gather(*(each(colour, dsn, name, start) for name in PHASES))
        return dict(zip(PHASES, took, strict=True))

    return asyncio.run(tasks())


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dead_network_surfaces_within_the_timeout_and_three_seconds_in_every_phase(
    reliakit_dsn: str, colour: str
) -> None:
    took = all_phases(colour, reliakit_dsn)
    assert {name: seconds for name, seconds in took.items() if seconds > BOUND} == {}


OLD_LIBPQ = "import psycopg; print(psycopg.pq.version())"


def test_the_same_holds_where_libpq_cannot_bound_a_cancel_request(reliakit_dsn: str) -> None:
    environment = os.environ | {"PSYCOPG_IMPL": "python"}
    program = [sys.executable, "-c"]
    asked = subprocess.run([*program, OLD_LIBPQ], env=environment, capture_output=True, text=True, check=False)
    if asked.returncode or int(asked.stdout) >= 170000:
        pytest.skip("no libpq before 17 on this machine")
    script = f"""if True:
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_database_deadlines import *
        with ThreadPoolExecutor() as both:
            for took in both.map(lambda colour: all_phases(colour, {reliakit_dsn!r}), COLOURS):
                assert max(took.values()) < BOUND, took
    """
    done = subprocess.run([*program, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pool_that_others_have_emptied_is_a_timeout(reliakit_dsn: str, colour: str) -> None:
    async def tasks() -> None:
        async with psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, max_size=1, open=False) as pool:
            async with pool.connection():
                with pytest.raises(TransactionTimeoutError) as caught:
                    async with AsyncDatabase(pool).transaction(timeout=0.1):
                        pass
            assert isinstance(caught.value.__cause__, psycopg_pool.PoolTimeout)

    if colour == "tasks":
        asyncio.run(tasks())
        return
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1, open=True) as pool:
        with (
            pool.connection(),
            pytest.raises(TransactionTimeoutError) as caught,
            Database(pool).transaction(timeout=0.1),
        ):
            pass
        assert isinstance(caught.value.__cause__, psycopg_pool.PoolTimeout)
        assert Database(pool).fetch_value("SELECT 1") == 1


async def running(db: Any) -> int:
    return await got(
        db.fetch_value(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query ~ 'pg_sleep.47' "
            "AND pid <> pg_backend_pid() AND datname = current_database()"
        )
    )


SLEEP = "SELECT pg_sleep(47)"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_statement_that_was_cut_is_gone_from_the_server_at_once(
    reliakit_dsn: str, colour: str, source: str
) -> None:
    async def by_deadline(db: Any) -> None:
        async with block(db, timeout=0.05) as tx:
            await got(tx.execute(SLEEP))

    async def by_outer_deadline(db: Any) -> None:
        with deadline(0.05):
            async with block(db) as tx:
                await got(tx.connection.execute(SLEEP))

    async def by_the_blocks_inside(db: Any) -> None:
        async with block(db), block(db, timeout=0.05, propagation=Propagation.NESTED) as tx:
            await got(tx.execute(SLEEP))

    async def by_run(db: Any) -> None:
        async def sleep(tx: Any) -> None:
            await got(tx.execute(SLEEP))

        await run(db, sleep, timeout=0.05)

    async def by_a_statement_without_a_transaction(db: Any) -> None:
        async with block(db, timeout=0.05, propagation=Propagation.SUPPORTS) as tx:
            await got(tx.execute(SLEEP))

    async def by_cancellation(db: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05), block(db) as tx:
                await got(tx.execute(SLEEP))
            pytest.fail("it was not cancelled")
        raise TransactionTimeoutError("cancelled")

    ways = [by_deadline, by_outer_deadline, by_the_blocks_inside, by_run, by_a_statement_without_a_transaction]

    async def script(db: Any) -> None:
        for way in [*ways, by_cancellation] if colour == "tasks" else ways:
            with pytest.raises(TransactionTimeoutError):
                await way(db)
            # The answer to the cancel request was awaited, so no waiting is needed here.
            assert await running(db) == 0, way.__name__

    play(colour, reliakit_dsn, script, source)


@pytest.mark.parametrize("colour", COLOURS)
def test_nothing_begins_and_nothing_commits_once_the_time_is_spent(reliakit_dsn: str, colour: str) -> None:
    clock = ManualClock(auto_advance=True)

    async def add(tx: Any) -> None:
        await got(tx.execute("INSERT INTO item VALUES (1)"))
        clock.advance(6)

    async def lose(tx: Any) -> None:
        attempts.append(tx.remaining())
        clock.advance(1.75)
        await got(tx.execute("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"))

    async def script(db: Any) -> None:
        await got(db.execute("CREATE TABLE item (id int)"))
        with deadline(3, clock=clock):
            clock.advance(3)
            for use in (partial(run, db, add), partial(got_one, db)):
                with pytest.raises(TransactionTimeoutError, match="no time is left"):
                    await use()
        with pytest.raises(TransactionTimeoutError):
            await run(db, add)
        with pytest.raises(TransactionTimeoutError):
            async with block(db) as tx:
                await add(tx)
        with pytest.raises(TransactionTimeoutError):
            async with block(db) as tx:
                clock.advance(6)
                await got(tx.execute("INSERT INTO item VALUES (2)"))
        # What is lost is tried again as long as the pause fits, and then the real error leaves.
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            await run(db, lose, retry=TransactionRetry(10, Backoff(base=1.0, factor=1.0, jitter=0.0)))
        assert attempts == [5, 2.25]
        assert "gave up after 2 attempts in 4.500 s" in caught.value.__notes__[0]
        assert await got(db.fetch_value("SELECT count(*) FROM item")) == 0

    attempts: list[float] = []
    play(colour, reliakit_dsn, script, clock=clock)


async def got_one(db: Any) -> Any:
    return await got(db.fetch_value("SELECT 1"))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_block_inside_has_the_shorter_of_both_times_and_gives_the_outer_ones_back(
    reliakit_dsn: str, colour: str
) -> None:
    clock = ManualClock()

    async def script(db: Any) -> None:
        async with block(db, timeout=4) as outer:
            with pytest.raises(TransactionTimeoutError) as caught:
                async with block(db, timeout=1, propagation=Propagation.NESTED) as inner:
                    assert inner.remaining() == 1
                    async with block(db, timeout=3) as joined:
                        assert joined.remaining() == 1
                    clock.advance(2)
                    await got(inner.execute("SELECT 1"))
            assert caught.value.seconds == 1
            assert outer.remaining() == 2
            with deadline(1, clock=clock):
                async with block(db, timeout=3, propagation=Propagation.NESTED) as inner:
                    assert inner.remaining() == 1
            async with block(db, timeout=9, propagation=Propagation.REQUIRES_NEW) as new:
                assert new.remaining() == 2  # a task is cut with the block around it, and so is a thread's work
            assert await got(outer.fetch_value("SELECT 1")) == 1

    play(colour, reliakit_dsn, script, clock=clock)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_transaction_of_its_own_inside_another_ends_with_that_ones_time(reliakit_dsn: str, colour: str) -> None:
    async def script(db: Any) -> None:
        began = SYSTEM_CLOCK.monotonic()
        with pytest.raises(TransactionTimeoutError):
            async with block(db, timeout=TIMEOUT), block(db, timeout=30, propagation=Propagation.REQUIRES_NEW) as new:
                await got(new.execute(SLEEP))
        assert SYSTEM_CLOCK.monotonic() - began < 30

    play(colour, reliakit_dsn, script)


@pytest.mark.anyio
async def test_the_callers_timeout_and_the_transactions_own_are_told_apart(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn) as db:
        for seconds, outer, error in ((30, 0.05, TimeoutError), (0.05, 30, TransactionTimeoutError)):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(outer), db.transaction(timeout=seconds) as tx:
                    await tx.execute(SLEEP)
            assert type(caught.value) is error
        with pytest.raises(DeadlineExceededError):
            async with deadline(0.05), db.transaction() as tx:
                await tx.execute(SLEEP)
        assert asyncio.current_task().cancelling() == 0
        await all_obtainable(db)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_cancel_request_that_finds_the_server_idle_is_made_again(
    reliakit_dsn: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(db: Any) -> None:
        io, requests = db._engine.io, 0
        cancel = io.cancel

        async def losing(connection: Any, seconds: float) -> bool:
            nonlocal requests
            requests += 1
            return requests == 1 or await cancel(connection, seconds)

        monkeypatch.setattr(io, "cancel", losing)
        with pytest.raises(TransactionTimeoutError):
            async with block(db, timeout=TIMEOUT) as tx:
                pid = await got(tx.fetch_value("SELECT pg_backend_pid()"))
                # The server's own limit is out of the way.
                await got(tx.execute("SET LOCAL statement_timeout = 0"))
                await got(tx.execute("SELECT pg_sleep(30)"))
        assert requests > 1
        assert await got(db.fetch_value("SELECT pg_backend_pid()")) == pid

    play(colour, reliakit_dsn, script)
