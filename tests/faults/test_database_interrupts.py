"""No leak and no lie, whatever interrupts a transaction: cancellations at each await, Ctrl-C at each line.

A leak is judged by obtainability: afterwards `max_size` connections can be had again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import random
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import psycopg
import psycopg_pool
import pytest
from database_drivers import async_engine_of, engine_of

import reliakit.database
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import CommitUnknownError
from reliakit.database import AsyncDatabase, Database, Propagation, borrowing
from reliakit.integrations.sqlalchemy import AsyncEnginePool, EnginePool

SIZE = 2


def ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def obtainable(db: Database) -> int:
    with contextlib.ExitStack() as stack:
        for count in range(SIZE):
            tx = stack.enter_context(db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=30.0))
            assert tx.fetch_value("SELECT %s::int", (count,)) == count
    return SIZE


async def aobtainable(db: AsyncDatabase) -> int:
    async with contextlib.AsyncExitStack() as stack:
        for count in range(SIZE):
            tx = await stack.enter_async_context(db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=30.0))
            assert await tx.fetch_value("SELECT %s::int", (count,)) == count
    return SIZE


@pytest.fixture(params=["own connections", "a pool", "an engine"])
def db(reliakit_dsn: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    with contextlib.ExitStack() as stack:
        if request.param == "a pool":
            pool = psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=SIZE, open=True)
            database = Database(stack.enter_context(pool))
        elif request.param == "an engine":
            engine = engine_of(reliakit_dsn)
            stack.callback(engine.dispose)
            database = Database(EnginePool(engine))
        else:
            database = Database(reliakit_dsn, max_size=SIZE)
        stack.enter_context(database)
        database.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield database


@pytest.fixture(params=["own connections", "a pool", "an engine"])
async def adb(reliakit_dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncDatabase]:
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "a pool":
            pool = psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, max_size=SIZE, open=False)
            database = AsyncDatabase(await stack.enter_async_context(pool))
        elif request.param == "an engine":
            engine = async_engine_of(reliakit_dsn)
            stack.push_async_callback(engine.dispose)
            database = AsyncDatabase(AsyncEnginePool(engine))
        else:
            database = AsyncDatabase(reliakit_dsn, max_size=SIZE)
        await stack.enter_async_context(database)
        await database.execute("CREATE TABLE item (id int PRIMARY KEY)")
        yield database


class Gate:
    """Every COMMIT after an INSERT waits before it until it is opened."""

    def __init__(self, dsn: str) -> None:
        self.watcher = psycopg.connect(dsn, autocommit=True)
        self.watcher.execute("""
            CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
            CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION wait();
            SELECT pg_advisory_lock(7)
        """)

    def until_somebody_waits(self) -> None:
        """Return when a statement waits here, or sleeps in the server."""
        waits = """
            SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
            AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')
        """
        while self.watcher.execute(waits).fetchone() == (0,):
            SYSTEM_CLOCK.sleep(0.005)

    def open(self) -> None:
        self.watcher.execute("SELECT pg_advisory_unlock(7)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.close()


class CancelledAt:
    """Awaits a coroutine and cancels its task at the given suspensions, counted from 1."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: set[int]) -> None:
        self.work = work
        self.at = at
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = lambda: self.work.send(None)  # noqa: E731
        while True:
            try:
                waited_for = step()
            except StopIteration as done:
                return done.value
            self.suspensions += 1
            if self.suspensions in self.at:
                asyncio.current_task().cancel()
            try:
                yield waited_for
                step = lambda: self.work.send(None)  # noqa: E731
            except BaseException as error:
                step = lambda error=error: self.work.throw(error)  # noqa: E731


async def judged(db: AsyncDatabase, work: Coroutine[Any, Any, Any], item: int, at: set[int]) -> tuple[bool, int]:
    """Run work that inserts `item`; return whether it was cut short, and how often it suspends."""
    driver = CancelledAt(work, at)

    async def drive() -> None:
        await driver

    error: BaseException | None = None
    try:
        await asyncio.create_task(drive())
    except (asyncio.CancelledError, LookupError) as raised:
        error = raised
    count = await db.fetch_value("SELECT count(*) FROM item WHERE id = %s", (item,))
    notes = " ".join(getattr(error, "__notes__", ()))
    if error is None:
        assert count == 1
    elif count:
        assert "was committed" in notes or isinstance(error.__cause__, CommitUnknownError)
    else:
        assert "was committed" not in notes
    assert await aobtainable(db) == SIZE
    assert db.stats().in_use == 0
    return isinstance(error, asyncio.CancelledError), driver.suspensions


async def insert(db: AsyncDatabase, item: int, *, fail: bool = False, pipeline: bool = False) -> None:
    async with db.transaction(pipeline=pipeline) as tx:
        await tx.execute("INSERT INTO item VALUES (%s)", (item,))
        async with db.transaction(propagation=Propagation.NESTED) as nested:
            await nested.fetch_value("SELECT 1")
        if fail:
            raise LookupError


async def insert_in_a_pipeline(db: AsyncDatabase, item: int, *, fail: bool = False) -> None:
    await insert(db, item, fail=fail, pipeline=True)


@pytest.mark.anyio
@pytest.mark.parametrize("fail", [False, True], ids=["commit", "rollback"])
@pytest.mark.parametrize("work", [insert, insert_in_a_pipeline])
async def test_cancelled_once_or_twice_at_any_await_nothing_is_lost_and_nothing_is_a_lie(
    adb: AsyncDatabase, work: Callable[..., Coroutine[Any, Any, None]], fail: bool
) -> None:
    item, cuts = 0, 0
    _, suspensions = await judged(adb, work(adb, item, fail=fail), item, set())
    # One for each question to the server; what a pipeline asks at once may be answered before anybody waits for it.
    least = 6 if work is insert else 4
    assert suspensions >= least
    for first in range(1, suspensions + 1):
        for at in ({first}, {first, first + 1}):
            item += 1
            was_cut, _ = await judged(adb, work(adb, item, fail=fail), item, at)
            cuts += was_cut
    assert cuts >= 2 * least


@pytest.mark.anyio
@pytest.mark.parametrize("cancels", [1, 2])
async def test_cancelled_while_commit_is_in_flight_the_answer_is_awaited_and_told(
    adb: AsyncDatabase, reliakit_dsn: str, cancels: int
) -> None:
    seen: list[str] = []

    async def work() -> None:
        async with adb.transaction() as tx:
            tx.after_commit(lambda: seen.append("committed"))
            await tx.execute("INSERT INTO item VALUES (1)")

    with Gate(reliakit_dsn) as gate:
        task = asyncio.create_task(work())
        await asyncio.to_thread(gate.until_somebody_waits)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0.01)  # noqa: TID251 - it hears of each
        gate.open()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    assert any("was committed" in note for note in caught.value.__notes__)
    assert caught.value.__cause__ is None
    assert seen == ["committed"]
    assert await adb.fetch_value("SELECT count(*) FROM item") == 1
    assert await aobtainable(adb) == SIZE


@pytest.mark.anyio
async def test_a_storm_of_cancelled_inserts_reports_every_row_rightly(adb: AsyncDatabase) -> None:
    chance = random.Random(7)
    reported: dict[int, str] = {}

    async def one(item: int) -> None:
        try:
            await insert(adb, item)
        except asyncio.CancelledError as error:
            committed = any("was committed" in note for note in getattr(error, "__notes__", ()))
            reported[item] = "unknown" if error.__cause__ is not None else "committed" if committed else "not"
        else:
            reported[item] = "committed"

    for item in range(200):
        task = asyncio.create_task(one(item))
        for _ in range(chance.choice((1, 1, 2))):
            await asyncio.sleep(chance.random() * 0.002)  # noqa: TID251
            task.cancel()
        await asyncio.wait([task])
        if item not in reported:
            reported[item] = "not"  # cancelled before it began
    rows = {row[0] for row in await adb.fetch_all("SELECT id FROM item")}
    assert {item for item, said in reported.items() if said == "committed"} <= rows
    assert rows <= {item for item, said in reported.items() if said in ("committed", "unknown")}
    assert await aobtainable(adb) == SIZE


ROOM = str(Path(reliakit.database.__file__).parent)
# A Ctrl-C inside a finalizer is printed and swallowed by Python itself, whoever wrote the finalizer.
FINALIZERS = {"__del__", "drop", "_settle_dropped", "_sweep_locked", "abandon"}


class CtrlC:
    """Raises KeyboardInterrupt at the n-th line that runs in the database package."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(ROOM) or frame.f_code.co_name in FINALIZERS:
            return None
        # The tracer sees a `with` again on the way out, before the lock is released; the interpreter looks for
        # signals only after calls and jumps, so a real Ctrl-C never arrives there.
        if event == "line" and "with self._lock" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self

    def __enter__(self) -> Self:
        self.previous = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.previous)


def work(db: Database, item: int, *, pipeline: bool) -> None:
    with db.transaction(pipeline=pipeline) as tx:
        tx.execute("INSERT INTO item VALUES (%s)", (item,))
        with db.transaction(propagation=Propagation.NESTED) as nested:
            nested.fetch_value("SELECT 1")


def interrupted(db: Database, item: int, at: int, kept: list[BaseException], *, pipeline: bool) -> str:
    with CtrlC(at):
        try:
            work(db, item, pipeline=pipeline)
        except KeyboardInterrupt as error:
            kept.append(error)
            if isinstance(error.__cause__, CommitUnknownError):
                return "unknown"
            if any("was committed" in note for note in getattr(error, "__notes__", ())):
                return "committed"
            # In `__exit__`, before or after its one call, is as good as outside of the block.
            places = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            return "unknown" if places[-2] == "__exit__" else "interrupted"
    return "done"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pipeline", [False, True])
def test_ctrl_c_at_any_line_of_a_transaction_loses_no_connection(db: Database, pipeline: bool) -> None:
    said: dict[int, str] = {}
    kept: list[BaseException] = []
    lost = 0
    at, step = 1, 1 if db._engine.checkouts.source.pool is None else 5
    while said.get(at - step) != "done":
        said[at] = interrupted(db, at, at, kept, pipeline=pipeline)
        # Held by its traceback alone: on the way into `__exit__`, and where a pool has just given a connection.
        if db.stats().in_use:
            lost += 1
            kept.clear()
        assert obtainable(db) == SIZE, f"line {at}"
        at += step
    assert len(said) * step > 300
    assert lost <= 2
    kept.clear()
    gc.collect()
    assert obtainable(db) == SIZE
    assert db.stats().in_use == 0
    rows = {row[0] for row in db.fetch_all("SELECT id FROM item")} - {0}
    assert {item for item, word in said.items() if word in ("committed", "done")} <= rows
    assert rows <= {item for item, word in said.items() if word in ("committed", "done", "unknown")}
    assert {"interrupted", "committed"} <= set(said.values())


def test_the_main_thread_waits_for_a_pool_by_plain_locks_which_no_ctrl_c_leaves_held(db: Database) -> None:
    entered: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        caller = frame.f_back.f_code.co_filename if frame.f_back is not None else ""
        if frame.f_code.co_filename == threading.__file__ and caller == borrowing.__file__:
            entered.append(frame.f_code.co_name)

    db.execute("SELECT 1")
    previous = sys.gettrace()
    sys.settrace(note)
    try:
        work(db, 1, pipeline=False)
    finally:
        sys.settrace(previous)
    assert entered == []


def test_ctrl_c_while_queued_loses_no_connection(db: Database) -> None:
    taken, done = threading.Barrier(SIZE + 1), threading.Event()

    def hold() -> None:
        with db.transaction():
            taken.wait()
            done.wait(50)

    threads = [threading.Thread(target=hold) for _ in range(SIZE)]
    for thread in threads:
        thread.start()
    taken.wait()

    def interrupt() -> None:
        while db.stats().waiting == 0:
            SYSTEM_CLOCK.sleep(0.001)
        ctrl_c()

    threads.append(threading.Thread(target=interrupt))
    with pytest.raises(KeyboardInterrupt):
        threads[-1].start()
        with db.transaction():
            pass
    done.set()
    for thread in threads:
        thread.join()
    assert db.stats().waiting == 0
    assert obtainable(db) == SIZE


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(30)", "COMMIT"])
def test_ctrl_c_while_the_server_works_is_bounded_and_tells_the_truth(
    db: Database, reliakit_dsn: str, statement: str
) -> None:
    with Gate(reliakit_dsn) as gate:

        def interrupt() -> None:
            gate.until_somebody_waits()
            ctrl_c()
            gate.open()

        thread = threading.Thread(target=interrupt)
        with pytest.raises(KeyboardInterrupt) as caught, db.transaction() as tx:
            thread.start()
            tx.execute("INSERT INTO item VALUES (1)")
            if statement.startswith("SELECT"):
                tx.execute("SELECT pg_sleep(30)")
        thread.join()
    committed = db.fetch_value("SELECT count(*) FROM item")
    assert committed == int("was committed" in " ".join(getattr(caught.value, "__notes__", ())))
    assert obtainable(db) == SIZE


def test_an_abandoned_generator_gives_its_connection_back(db: Database) -> None:
    def rows() -> Iterator[int]:
        with db.transaction() as tx:
            yield from (row[0] for row in tx.fetch_all("SELECT generate_series(1, 3)"))

    for _ in rows():
        break
    gc.collect()
    assert obtainable(db) == SIZE
