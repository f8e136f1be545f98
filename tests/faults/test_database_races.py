"""Many at once: a storm in which no row is lost or kept in silence, and lost races, tried again as promised."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from database_drivers import COLOURS, Injected, all_obtainable, block, got, opened, play, run, verdict_of

from reliakit.core.backoff import Backoff
from reliakit.core.errors import CommitUnknownError
from reliakit.core.events import AttemptFailed, TransactionEnded
from reliakit.core.flow import run_blocking
from reliakit.database import Isolation, Propagation, TransactionRetry
from reliakit.metrics import Metrics
from reliakit.testing import FaultProxy, ManualClock

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

INSERTS, WORKERS = 1200, 16


async def insert(db: Any, item: int) -> None:
    async with block(db, timeout=20) as tx:
        await got(tx.execute("INSERT INTO item VALUES (%s)", (item,)))


def cancel(waited_for: Any) -> None:
    asyncio.current_task().cancel()


def cancel_too_late(waited_for: Any) -> None:
    task = asyncio.current_task()
    if asyncio.isfuture(waited_for):
        waited_for.add_done_callback(lambda _: task.cancel())


async def cancelled_somewhere(db: Any, item: int, chance: random.Random) -> None:
    """Insert, cut by up to two cancellations near COMMIT, in a task of its own."""
    faults: dict[int, Callable[[Any], None]] = {}
    for _ in range(chance.choice((0, 1, 1, 2))):
        faults[chance.randint(1, 6)] = chance.choice((cancel, cancel_too_late))

    async def cut() -> None:
        await Injected(insert(db, item), faults)

    await asyncio.create_task(cut())


async def one_after_the_other(
    items: Iterator[int],
    reported: dict[int, str],
    work: Callable[[int], Coroutine[Any, Any, None]],
) -> None:
    for item in items:
        try:
            await work(item)
        except (asyncio.CancelledError, psycopg.OperationalError, CommitUnknownError) as error:
            reported[item] = verdict_of(error)
        else:
            reported[item] = "committed"


@contextlib.contextmanager
def cuts(proxy: FaultProxy, reported: dict[int, str], seed: int) -> Iterator[None]:
    """Cut connections at COMMIT, now before and now after the server has it, and all of them now and then.

    So often by the number of inserts and not by the clock, or a slow machine would commit next to nothing.
    """
    chance, over = random.Random(seed), threading.Event()

    def weather() -> None:
        while not over.is_set():
            with proxy.cut_on(b"COMMIT\0", after=chance.random() < 0.5) as cut:
                while not cut.wait(0.05) and not over.is_set():
                    pass
            if chance.random() < 0.2:
                proxy.reset()
            enough = len(reported) + chance.randint(2, 14)
            while len(reported) < enough and not over.wait(0.001):
                pass

    thread = threading.Thread(target=weather)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def rows_at_rest(dsn: str) -> set[int]:
    """Return what is in the table once the server has ended what clients left behind."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(500):
            busy = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND backend_type LIKE 'client%' AND pid <> pg_backend_pid()"
            ).fetchone()
            if busy == (0,):
                break
            time.sleep(0.01)  # noqa: TID251 - the server takes its time to notice
        return {row[0] for row in connection.execute("SELECT id FROM item")}


def judge(reported: dict[int, str], rows: set[int]) -> None:
    assert len(reported) == INSERTS
    said = Counter(reported.values())
    assert {item for item, word in reported.items() if word == "committed"} - rows == set()
    assert {item for item in rows if reported[item] == "rolled back"} == set()
    assert said["committed"] > INSERTS / 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("network", ["healthy", "cut"])
def test_in_a_storm_of_cancelled_inserts_every_row_is_told_rightly(reliakit_dsn: str, network: str) -> None:
    reported: dict[int, str] = {}

    async def storm() -> None:
        with FaultProxy(reliakit_dsn) as proxy:
            dsn = reliakit_dsn if network == "healthy" else proxy.dsn()
            async with opened("tasks", dsn, max_size=6, timeout=20) as db:
                await db.execute("CREATE TABLE item (id int PRIMARY KEY)")
                items, chance = iter(range(INSERTS)), random.Random(4)
                with cuts(proxy, reported, 5) if network == "cut" else contextlib.nullcontext():
                    async with asyncio.TaskGroup() as group:
                        for _ in range(WORKERS):
                            work = one_after_the_other(
                                items, reported, lambda item: cancelled_somewhere(db, item, chance)
                            )
                            group.create_task(work)
                await all_obtainable(db)

    asyncio.run(storm())
    judge(reported, rows_at_rest(reliakit_dsn))
    assert "rolled back" in reported.values()
    # Where nothing is wrong with the server, every outcome can be learnt.
    assert ("unknown" in reported.values()) is (network == "cut")


@pytest.mark.timeout(120)
def test_in_a_storm_of_cut_connections_every_row_of_every_thread_is_told_rightly(reliakit_dsn: str) -> None:
    reported: dict[int, str] = {}
    items = iter(range(INSERTS))

    async def storm() -> None:
        with FaultProxy(reliakit_dsn) as proxy:
            async with opened("threads", proxy.dsn(), max_size=6, timeout=20) as db:
                db.execute("CREATE TABLE item (id int PRIMARY KEY)")
                with cuts(proxy, reported, 6), ThreadPoolExecutor(WORKERS) as workers:
                    for _ in range(WORKERS):
                        work = one_after_the_other(items, reported, lambda item: insert(db, item))
                        workers.submit(run_blocking, work)
                await all_obtainable(db)

    run_blocking(storm())
    judge(reported, rows_at_rest(reliakit_dsn))
    assert {"rolled back", "unknown"} & set(reported.values())


def raising(sqlstate: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '{sqlstate}'; END $$"


def statuses(listener: RecordingListener, operation: str) -> list[str]:
    return [
        event.status
        for event in listener.events
        if isinstance(event, TransactionEnded) and event.operation == operation
    ]


@pytest.mark.parametrize("colour", COLOURS)
def test_lost_races_alone_are_tried_again_and_at_most_max_attempts_times(
    reliakit_dsn: str, colour: str, recording_listener: RecordingListener
) -> None:
    async def fail(tx: Any, sqlstate: str) -> None:
        tx.after_commit(lambda: hooks.append("commit"))
        tx.after_rollback(lambda: hooks.append(f"rollback {tx.attempt}"))
        await got(tx.execute(raising(sqlstate)))

    async def script(db: Any) -> None:
        for sqlstate in ("40001", "40P01", "40000", "40002", "40003", "23505", "23P01", "55P03", "57014", "25P02"):
            recording_listener.clear()
            hooks.clear()
            began = clock.monotonic()
            with pytest.raises(psycopg.Error) as caught:
                await run(db, fail, sqlstate, retry=TransactionRetry(4, Backoff(base=0.5, factor=1.0, jitter=0.0)))
            assert caught.value.sqlstate == sqlstate
            if sqlstate in ("40001", "40P01"):
                assert statuses(recording_listener, "fail") == ["retry", "retry", "retry", "rollback"]
                assert hooks == [f"rollback {attempt}" for attempt in (1, 2, 3, 4)]
                assert clock.monotonic() - began == 1.5
                assert "gave up after 4 attempts" in caught.value.__notes__[0]
            else:
                assert statuses(recording_listener, "fail") == ["rollback"]
                assert not hasattr(caught.value, "__notes__")

    hooks: list[str] = []
    clock = ManualClock(auto_advance=True)
    play(colour, reliakit_dsn, script, clock=clock)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.NESTED])
def test_a_run_inside_a_transaction_leaves_the_trying_again_to_the_outer_one(
    reliakit_dsn: str, colour: str, propagation: Propagation
) -> None:
    async def inner(tx: Any) -> None:
        attempts.append(tx.attempt)
        if tx.attempt < 3:
            await got(tx.execute(raising("40001")))

    async def outer(tx: Any, db: Any) -> None:
        await run(db, inner, propagation=propagation)

    async def script(db: Any) -> None:
        await run(db, outer, db)
        assert attempts == [1, 2, 3]
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with block(db):  # a block cannot run its code again
                await run(db, inner, propagation=propagation)
        assert attempts == [1, 2, 3, 1]

    attempts: list[int] = []
    play(colour, reliakit_dsn, script, clock=ManualClock(auto_advance=True))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_race_that_is_lost_at_commit_is_tried_again(
    reliakit_dsn: str, colour: str, recording_listener: RecordingListener
) -> None:
    async def add(tx: Any) -> int:
        await got(tx.execute("INSERT INTO item VALUES (1)"))
        return tx.attempt

    async def script(db: Any) -> None:
        await got(
            db.execute("""
            CREATE TABLE item (id int);
            CREATE SEQUENCE tries;
            CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('tries') < 3 THEN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END IF; RETURN NULL;
            END $$;
            CREATE CONSTRAINT TRIGGER lose AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION lose();
            """)
        )
        with Metrics() as metrics:
            assert await run(db, add) == 3
            shown = metrics.render().body.decode()
        assert await got(db.fetch_value("SELECT count(*) FROM item")) == 1
        for status, count in (("retry", 2), ("commit", 1), ("rollback", 0)):
            (line,) = [
                line
                for line in shown.splitlines()
                if line.startswith("reliakit_transaction_total{") and 'operation="add"' in line and status in line
            ] or [" 0"]
            assert float(line.split()[-1]) == count, shown

    play(colour, reliakit_dsn, script, clock=ManualClock(auto_advance=True))
    assert statuses(recording_listener, "add") == ["retry", "retry", "commit"]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_connection_that_fails_is_tried_again_before_the_first_statement_alone(
    reliakit_dsn: str, colour: str
) -> None:
    async def read(tx: Any) -> int:
        attempts.append(tx.attempt)
        await got(tx.execute("SELECT 1"))
        if unlucky:
            unlucky.pop()
            proxy.reset()
            await got(tx.execute("SELECT 2"))
        return tx.attempt

    async def script(db: Any) -> None:
        with pytest.raises(psycopg.OperationalError):
            await run(db, read)
        assert attempts == [1]
        faults.append(proxy.refuse())
        assert await run(db, read) == 2
        assert attempts == [1, 2]

    attempts: list[int] = []
    unlucky = [True]
    faults: list[Any] = []

    def heal(event: object) -> None:
        if isinstance(event, AttemptFailed):
            faults.pop().heal()

    with FaultProxy(reliakit_dsn) as proxy:
        play(colour, proxy.dsn(), script, listeners=[heal], clock=ManualClock(auto_advance=True))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("isolation", [Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ])
def test_sixteen_workers_on_ten_hot_accounts_surface_next_to_nothing(
    reliakit_dsn: str, colour: str, isolation: Isolation, recording_listener: RecordingListener
) -> None:
    each, accounts = 25, 10
    surfaced: list[psycopg.Error] = []
    with psycopg.connect(reliakit_dsn, autocommit=True) as admin:
        # The server looks for deadlocks after a second by default, which would only make the test long.
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET deadlock_timeout = '10ms'")

    async def transfer(tx: Any, source: int, target: int) -> None:
        await got(tx.execute("UPDATE account SET balance = balance - 3 WHERE id = %s", (source,)))
        await got(tx.execute("UPDATE account SET balance = balance + 3 WHERE id = %s", (target,)))

    async def work(db: Any, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(each):
            try:
                await run(db, transfer, *chance.sample(range(1, accounts + 1), 2), isolation=isolation)
            except psycopg.Error as error:
                surfaced.append(error)

    async def script(db: Any) -> None:
        await got(db.execute("CREATE TABLE account AS SELECT i AS id, 100 AS balance FROM generate_series(1, 10) i"))
        if colour == "tasks":
            await asyncio.gather(*(work(db, seed) for seed in range(WORKERS)))
        else:
            with ThreadPoolExecutor(WORKERS) as workers:
                for done in [workers.submit(run_blocking, work(db, seed)) for seed in range(WORKERS)]:
                    done.result()
        assert await got(db.fetch_value("SELECT sum(balance) FROM account")) == 100 * accounts

    play(colour, reliakit_dsn, script, max_size=WORKERS, timeout=30)
    told = Counter(statuses(recording_listener, "transfer"))
    assert told["commit"] + len(surfaced) == WORKERS * each
    assert told["rollback"] == len(surfaced)
    assert told["retry"] > 0
    assert len(surfaced) <= (0 if isolation is Isolation.READ_COMMITTED else WORKERS * each // 100)
