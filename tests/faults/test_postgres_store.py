"""PostgresStore on a real server: isolation, callers' transactions, rights, races, faults and forks."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import psycopg.rows
import psycopg.sql
import psycopg_pool
import pytest
from garbage import abandon, in_time

from reliakit import (
    ConfigurationError,
    Database,
    LoginBlockedError,
    LoginGuard,
    PostgresStore,
    RateLimiter,
    StoreError,
    configure_logging,
    deadline,
)
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.events import StoreFailed, StoreRecovered
from reliakit.stores import Op, Plan, Rule, postgres_line
from reliakit.testing import EmbeddedPostgres, FaultProxy, ManualClock, RecordingListener

HOUR = 3600 * 10**9
TEN = Plan("ten", (Rule("gcra", 10, HOUR, 10),))
SEVERAL = Plan("several", (Rule("gcra", 100, HOUR, 100), Rule("sliding_log", 30, HOUR, 30)))


@pytest.fixture
def store(reliakit_dsn: str) -> Iterator[PostgresStore]:
    store = PostgresStore(reliakit_dsn, timeout=30.0)
    yield store
    store.close()


def in_threads(count: int, work: Any) -> None:
    start = threading.Barrier(count)

    def begin() -> None:
        start.wait()
        work()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def left(store: PostgresStore, plan: Plan = TEN) -> int:
    return store.apply(Op.PEEK, plan, "k", 1).remaining


def test_making_one_connects_to_nothing_and_bad_settings_are_refused(tmp_path: Any) -> None:
    nowhere = PostgresStore(f"host={tmp_path} dbname=nothing")

    async def awaited(decide: Any, *args: Any) -> None:
        await decide(*args)

    for decide in (
        lambda: left(nowhere),
        nowhere.open,
        lambda: asyncio.run(awaited(nowhere.aapply, Op.HIT, TEN, "k", 1)),
        lambda: asyncio.run(awaited(nowhere.aopen)),
    ):
        with pytest.raises(StoreError, match="OperationalError"):
            decide()
    for wrong in (None, object(), 7, psycopg_pool.ConnectionPool):
        with pytest.raises(ConfigurationError, match="source"):
            PostgresStore(wrong)
    with pytest.raises(ConfigurationError, match="source") as refused:
        PostgresStore("postgres//me:secret@localhost")
    assert "secret" not in str(refused.value)
    for settings in ({"table": "a; drop"}, {"table": None}, {"max_size": 0}, {"timeout": -1}, {"clock": 7}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            PostgresStore("dbname=x", **settings)


def test_it_may_be_given_more_time_than_a_server_can_be_told(reliakit_dsn: str) -> None:
    patient = PostgresStore(reliakit_dsn, timeout=1e9)
    assert left(patient) == 10
    patient.close()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_it_is_exact_whatever_the_isolation_of_the_database(
    reliakit_dsn: str, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_line, "_ATTEMPTS", 3)  # a statement is prepared, loses one race, and no second one
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        database = psycopg.sql.Identifier(connection.info.dbname)
        level = psycopg.sql.Literal(isolation)
        connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(database, level)
        )
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=4) as pool:
        own = PostgresStore(reliakit_dsn, timeout=30.0)
        for store in (own, PostgresStore(pool, timeout=30.0)):
            for plan in (TEN, SEVERAL):
                admitted: list[bool] = []
                key = f"{id(store)}"
                in_threads(
                    4,
                    lambda store=store, plan=plan, admitted=admitted, key=key: admitted.extend(
                        [store.apply(Op.HIT, plan, key, 1).admitted for _ in range(12)]
                    ),
                )
                assert (len(admitted), sum(admitted)) == (48, 10 if plan is TEN else 30)
        own.close()
        with pool.connection() as connection:
            assert not connection.autocommit
            assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)

    async def in_tasks(admitted: list[bool]) -> None:
        async with psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, max_size=1, open=False) as pool:
            store = PostgresStore(pool, timeout=30.0)
            for _ in range(6):
                answers = await asyncio.gather(*[store.aapply(Op.HIT, SEVERAL, "tasks", 1) for _ in range(2)])
                admitted.extend([answer.admitted for answer in answers])

    admitted = []
    in_threads(4, lambda: asyncio.run(in_tasks(admitted)))
    assert (len(admitted), sum(admitted)) == (48, 30)


def test_a_caller_s_transaction_neither_takes_a_hit_back_nor_holds_others_up(
    store: PostgresStore, reliakit_dsn: str
) -> None:
    with Database(reliakit_dsn) as db:
        with pytest.raises(KeyError), db.transaction():
            db.execute("SELECT 1")
            assert store.apply(Op.HIT, TEN, "k", 4).remaining == 6
            other = threading.Thread(target=store.apply, args=(Op.HIT, TEN, "k", 1))
            other.start()
            other.join()
            raise KeyError
        with db.transaction(read_only=True):
            assert store.apply(Op.HIT, TEN, "k", 1).remaining == 4
    assert left(store) == 4


def test_without_the_right_to_make_its_table_it_says_what_to_do(store: PostgresStore, reliakit_dsn: str) -> None:
    role = f"limited_{os.getpid()}_{threading.get_ident()}"
    with psycopg.connect(reliakit_dsn, autocommit=True) as owner:
        owner.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        owner.execute(f"CREATE ROLE {role} LOGIN")
        try:
            poor = PostgresStore(psycopg.conninfo.make_conninfo(reliakit_dsn, user=role), timeout=30.0)
            limiter = RateLimiter("2/h", store=poor, store_timeout=30.0)
            for decide in (lambda: limiter.hit("k"), lambda: asyncio.run(limiter.ahit("k"))):
                with pytest.raises(ConfigurationError, match=r"PostgresStore\.ddl"):
                    decide()
            owner.execute(poor.ddl)
            owner.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON reliakit_limits TO {role}")
            assert [limiter.hit("k").allowed for _ in range(3)] == [True, True, False]
            poor.close()
        finally:
            owner.execute(f"DROP OWNED BY {role}")
            owner.execute(f"DROP ROLE {role}")


def test_processes_that_all_come_first_get_exactly_what_there_is(reliakit_dsn: str) -> None:
    program = """
        import sys, time
        real, skew = time.time, float(sys.argv[2])
        time.time = lambda: real() + skew
        from reliakit import PostgresStore, RateLimiter
        store = PostgresStore(sys.argv[1], timeout=50.0)
        limits = [RateLimiter(*limits, name=str(len(limits)), store=store, store_timeout=50.0)
                  for limits in (("100/h",), ("200/h", "100/day"))]
        sys.stdin.readline()
        print(*[sum(limit.hit("k").allowed for _ in range(60)) for limit in limits])
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), reliakit_dsn, skew],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for skew in ("0", "61", "-61", "7200")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    counts = [[int(word) for word in process.communicate()[0].split()] for process in processes]
    assert [sum(column) for column in zip(*counts, strict=True)] == [100, 100]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_table_that_was_made_while_it_waited_to_make_it_is_not_made_again(reliakit_dsn: str, colour: str) -> None:
    store = PostgresStore(reliakit_dsn, timeout=30.0)
    remaining: list[int] = []

    def decide() -> None:
        answer = (
            store.apply(Op.HIT, TEN, "k", 1) if colour == "sync" else asyncio.run(store.aapply(Op.HIT, TEN, "k", 1))
        )
        remaining.append(answer.remaining)

    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = %s"
    with psycopg.connect(reliakit_dsn) as maker, psycopg.connect(reliakit_dsn) as decides:
        maker.execute("SELECT pg_advisory_xact_lock(7209065713364918381)")
        (database,) = maker.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone() or (
            0,
        )
        thread = threading.Thread(target=decide)
        thread.start()
        while maker.execute(waits, (database,)).fetchone() != (1,):
            threading.Event().wait(0.01)
        with psycopg.connect(reliakit_dsn) as quick:
            quick.execute(store.ddl)
        decides.execute("LOCK TABLE reliakit_limits IN ROW EXCLUSIVE MODE")  # as a decision that is under way
        maker.rollback()
        thread.join(20.0)
        assert remaining == [9]
    thread.join()
    store.close()


def test_attempts_in_parallel_are_counted_exactly(store: PostgresStore) -> None:
    guard = LoginGuard(store=store, secret="s" * 32, free_attempts=5)
    tried: list[int] = []
    blocked: list[int] = []

    def guess() -> None:
        for _ in range(5):
            try:
                with guard.attempt(account="a", source="192.0.2.1") as attempt:
                    tried.append(1)
                    attempt.failure()
            except LoginBlockedError:
                blocked.append(1)

    store.open()
    in_threads(4, guess)
    assert (len(tried), len(blocked)) == (5, 15)


def test_tasks_share_a_few_connections_and_leave_none_behind(reliakit_dsn: str) -> None:
    store = PostgresStore(reliakit_dsn, max_size=2, timeout=30.0)
    # Of clients: the server's own vacuum comes when it will.
    count = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )

    async def decide() -> int:
        answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, "k", 1) for _ in range(20)])
        assert sum(answer.admitted for answer in answers) == 10
        with psycopg.connect(reliakit_dsn) as connection:
            (most,) = connection.execute(count).fetchone() or (None,)
            return int(most)

    assert asyncio.run(decide()) <= 2
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        moment = threading.Event()
        while connection.execute(count).fetchone() != (0,):
            moment.wait(0.01)


def test_tasks_that_come_first_share_one_connection_attempt(reliakit_dsn: str, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)
    store = PostgresStore(proxy.dsn(), timeout=30.0)

    async def decide() -> int:
        answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, "k", 1) for _ in range(100)])
        return sum(answer.admitted for answer in answers)

    assert asyncio.run(decide()) == 10
    assert proxy.stats().connections == 1


def test_threads_that_come_first_share_one_connection_attempt(reliakit_dsn: str, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)
    store = PostgresStore(proxy.dsn(), timeout=30.0)
    late: list[str] = []

    def decide() -> None:
        with deadline(0.2), pytest.raises(StoreError, match="in time") as raised:
            store.apply(Op.HIT, TEN, "k", 1)
        late.append(str(raised.value))

    with proxy.black_hole():
        in_threads(12, decide)
    assert len(late) == 12
    assert proxy.stats().connections == 1
    assert left(store) == 10  # the attempt that they gave up on serves the next decision, or another does
    store.close()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_connection_that_died_before_its_first_use_is_replaced(
    reliakit_dsn: str, fault_proxy: Any, colour: str
) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)

    async def in_a_task() -> int:
        async with PostgresStore(proxy.dsn(), timeout=30.0) as store:
            proxy.reset()
            return (await store.aapply(Op.PEEK, TEN, "k", 1)).remaining

    if colour == "sync":
        with PostgresStore(proxy.dsn(), timeout=30.0) as store:
            proxy.reset()
            assert left(store) == 10
    else:
        assert asyncio.run(in_a_task()) == 10


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_opened_early_it_has_its_table_and_a_connection(reliakit_dsn: str, fault_proxy: Any, colour: str) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)

    async def in_a_task() -> int:
        async with PostgresStore(proxy.dsn(), timeout=30.0) as store:
            await store.aopen()
            before = proxy.stats().connections
            await store.aapply(Op.HIT, TEN, "k", 1)
            return before

    if colour == "sync":
        with PostgresStore(proxy.dsn(), timeout=30.0) as store:
            store.open()
            assert proxy.stats().connections == 1
            left(store)
    else:
        assert asyncio.run(in_a_task()) == 1
    assert proxy.stats().connections == 1


class Turn:
    """One iteration of the event loop."""

    def __await__(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_loop_that_ends_leaves_no_connection_behind_whatever_it_was_about_to_send(
    store: PostgresStore, turns: int
) -> None:
    async def leave() -> weakref.ref[asyncio.AbstractEventLoop]:
        await store.aopen()
        task = asyncio.create_task(store.aapply(Op.HIT, TEN, "k", 1))
        for _ in range(turns):
            await Turn()
        assert not task.done()
        return weakref.ref(asyncio.get_running_loop())

    ended = asyncio.run(leave())
    gc.collect()  # which warns of a connection that nobody has closed
    assert ended() is None


def test_pools_serve_their_colour(reliakit_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1) as pool:
        store = PostgresStore(pool, timeout=30.0)
        assert left(store) == 10
        assert store.apply(Op.HIT, TEN, "k", 1).remaining == 9
        assert asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 8
        # Another store finds statements that it has not prepared itself.
        assert left(PostgresStore(pool, timeout=30.0)) == 8
        store.close()

    async def in_tasks() -> list[int]:
        async with psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, max_size=1, open=False) as pool:
            assert (await PostgresStore(pool, timeout=30.0).aapply(Op.PEEK, TEN, "k", 1)).remaining == 8
            store = PostgresStore(pool, timeout=30.0)
            assert (await store.aapply(Op.PEEK, TEN, "k", 1)).remaining == 8
            with pytest.raises(ConfigurationError, match="asynchronous"):
                left(store)
            answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, "k", 1) for _ in range(3)])
            async with pool.connection() as connection:
                assert not connection.autocommit
            return sorted(answer.remaining for answer in answers)

    assert asyncio.run(in_tasks()) == [5, 6, 7]


def test_a_pool_may_give_its_rows_in_any_shape(reliakit_dsn: str) -> None:
    rows = {"row_factory": psycopg.rows.dict_row}
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, kwargs=rows) as pool:
        assert PostgresStore(pool, timeout=30.0).apply(Op.HIT, TEN, "k", 1).remaining == 9

    async def in_tasks() -> int:
        async with psycopg_pool.AsyncConnectionPool(reliakit_dsn, min_size=1, open=False, kwargs=rows) as pool:
            return (await PostgresStore(pool, table="others", timeout=30.0).aapply(Op.HIT, TEN, "k", 1)).remaining

    assert asyncio.run(in_tasks()) == 9


def test_a_pool_may_forget_what_was_prepared(reliakit_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=1, reset=discard) as pool:
        store = PostgresStore(pool, timeout=30.0)
        assert [store.apply(Op.HIT, TEN, "k", 1).remaining for _ in range(3)] == [9, 8, 7]

    async def in_tasks() -> list[int]:
        async def adiscard(connection: Any) -> None:
            await connection.set_autocommit(True)
            await connection.execute("DISCARD ALL")
            await connection.set_autocommit(False)

        async with psycopg_pool.AsyncConnectionPool(
            reliakit_dsn, min_size=1, max_size=1, open=False, reset=adiscard
        ) as pool:
            store = PostgresStore(pool, timeout=30.0)
            return [(await store.aapply(Op.HIT, TEN, "k", 1)).remaining for _ in range(3)]

    assert asyncio.run(in_tasks()) == [6, 5, 4]


def discard(connection: Any) -> None:
    connection.autocommit = True
    connection.execute("DISCARD ALL")
    connection.autocommit = False


def test_what_the_server_refuses_one_task_it_does_not_refuse_the_others(
    store: PostgresStore, reliakit_dsn: str
) -> None:
    store.apply(Op.HIT, TEN, "k", 1)
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute(
            "ALTER TABLE reliakit_limits ADD CHECK (numbers[2] IS NULL OR numbers[1] < 0 OR cardinality(numbers) = 2)"
        )

    async def decide() -> list[str]:
        several = [store.aapply(Op.HIT, plan, str(number), 1) for number in range(4) for plan in (TEN, SEVERAL)]
        return [type(answer).__name__ for answer in await asyncio.gather(*several, return_exceptions=True)]

    assert asyncio.run(decide()) == ["Answer", "StoreError"] * 4


def test_what_is_as_good_as_new_is_purged(store: PostgresStore, reliakit_dsn: str) -> None:
    for number in range(20):
        store.apply(Op.HIT, TEN, str(number), 1)
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        purge = "SELECT reliakit_limits_purge_2((extract(epoch FROM now()) * 1000000)::bigint + %s)"
        connection.execute(purge, (0,))
        assert connection.execute("SELECT count(*) FROM reliakit_limits").fetchone() == (20,)
        connection.execute(purge, (7200 * 10**6,))
        assert connection.execute("SELECT count(*) FROM reliakit_limits").fetchone() == (0,)
        assert connection.execute(
            "SELECT relpersistence FROM pg_class WHERE relname = 'reliakit_limits'"
        ).fetchone() == ("u",)


def test_a_black_hole_costs_a_thread_its_deadline_and_its_end_is_noticed(reliakit_dsn: str, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)
    clock, heard = ManualClock(), RecordingListener()
    store = PostgresStore(proxy.dsn(), timeout=30.0)
    limiter = RateLimiter(
        "9/h", store=store, clock=clock, store_timeout=0.5, on_store_error="closed", listeners=[heard]
    )
    left(store)
    assert limiter.hit("k").allowed
    with proxy.black_hole():
        decisions = [limiter.hit("k") for _ in range(30)]
        assert all(decision.degraded and not decision.allowed for decision in decisions)
    proxy.reset()
    left(store)
    clock.advance(60.0)
    assert not limiter.hit("k").degraded
    assert [type(event) for event in heard if isinstance(event, StoreFailed | StoreRecovered)] == [
        StoreFailed,
        StoreRecovered,
    ]
    store.close()


def test_tasks_are_cut_from_a_black_hole(reliakit_dsn: str, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)
    store = PostgresStore(proxy.dsn(), timeout=1.0)

    async def decide() -> list[bool]:
        limiter = RateLimiter("9/h", store=store, store_timeout=0.05)
        with proxy.black_hole():
            return [(await limiter.ahit("k")).degraded for _ in range(5)]

    assert asyncio.run(decide()) == [True] * 5


@contextmanager
def stopped(server: EmbeddedPostgres, dsn: str) -> Iterator[None]:
    """Stop the server and all of its sessions, as a machine that freezes does."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        (parent,) = connection.execute("SELECT pg_read_file('postmaster.pid')").fetchone() or ("",)
        sessions = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
        pids = [int(parent.split()[0]), *[pid for (pid,) in sessions]]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_server_that_stops_costs_a_few_deadlines_and_its_return_is_noticed(
    reliakit_postgres: EmbeddedPostgres, reliakit_dsn: str, colour: str
) -> None:
    clock, written = ManualClock(), io.StringIO()
    store = PostgresStore(reliakit_dsn, timeout=30.0)
    limiter = RateLimiter("99/h", name="search", store=store, clock=clock, store_timeout=0.5)

    async def decide() -> None:
        async def hit() -> bool:
            return (limiter.hit("k") if colour == "sync" else await limiter.ahit("k")).degraded

        async def is_answered() -> bool:
            plain = TEN if colour == "sync" else SEVERAL
            answer = store.apply if colour == "sync" else store.aapply
            found = answer(Op.PEEK, plain, "other", 1)
            return (found if colour == "sync" else await found).admitted

        assert await is_answered()
        assert not await hit()
        with stopped(reliakit_postgres, reliakit_dsn):
            assert [await hit() for _ in range(20)] == [True] * 20
        assert await is_answered()
        assert await hit()  # nobody asks before the break is over
        clock.advance(60.0)
        assert not await hit()

    with configure_logging(service="s", env="production", stream=written):
        asyncio.run(decide())
    messages = [json.loads(line)["message"] for line in written.getvalue().splitlines()]
    assert messages == ["store failed", "store recovered"]
    store.close()


def test_connections_that_were_ended_are_replaced(store: PostgresStore, reliakit_dsn: str) -> None:
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"

    async def in_a_task() -> int:
        await store.aapply(Op.HIT, TEN, "k", 1)
        connection.execute(end)
        return (await store.aapply(Op.HIT, TEN, "k", 1)).remaining

    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        store.apply(Op.HIT, TEN, "k", 1)
        connection.execute(end)
        assert store.apply(Op.HIT, TEN, "k", 1).remaining == 8
        assert asyncio.run(in_a_task()) == 6


def test_what_was_answered_before_a_connection_was_lost_stands_and_the_rest_is_not_asked_again(
    store: PostgresStore, reliakit_dsn: str, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)

    async def decide() -> list[Any]:
        async with PostgresStore(proxy.dsn(), timeout=30.0) as through:
            await through.aapply(Op.HIT, TEN, "k", 1)
            with proxy.cut_on(b"1\0\0\0\4", direction="to_client"):
                hits = [through.aapply(Op.HIT, plan, "k", 1) for plan in (TEN, SEVERAL, TEN)]
                return await asyncio.gather(*hits, return_exceptions=True)

    first, *rest = asyncio.run(decide())
    assert first.remaining == 8
    assert [type(error) for error in rest] == [StoreError, StoreError]
    assert left(store) in {7, 8}  # the server had come to the last one before it lost its client, or not


def test_a_table_that_was_dropped_is_made_again(store: PostgresStore, reliakit_dsn: str) -> None:
    store.apply(Op.HIT, TEN, "k", 4)
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE reliakit_limits")
    assert store.apply(Op.HIT, TEN, "k", 1).remaining == 9
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE reliakit_limits")
    assert asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 9


def test_functions_that_were_dropped_are_made_again_for_all_tasks_of_a_new_connection(
    store: PostgresStore, reliakit_dsn: str
) -> None:
    async def decide(count: int) -> list[int]:
        answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, str(number), 1) for number in range(count)])
        return [answer.remaining for answer in answers]

    assert asyncio.run(decide(1)) == [9]
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute("DROP TABLE reliakit_limits")
        named = "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'reliakit_limits%'"
        functions = [name for (name,) in connection.execute(named).fetchall()]
        connection.execute(psycopg.sql.SQL("DROP FUNCTION {}").format(psycopg.sql.SQL(",".join(functions))))
    assert asyncio.run(decide(30)) == [9] * 30


class CollectingList(list[Any]):
    """A list that collects garbage whenever something is taken from it."""

    def pop(self, *args: Any) -> Any:
        gc.collect(1)  # what was abandoned is young
        return super().pop(*args)


def test_garbage_may_give_back_while_a_connection_is_taken(reliakit_dsn: str) -> None:
    store = PostgresStore(reliakit_dsn, timeout=30.0)

    def waiter() -> Generator[None, None, None]:
        try:
            yield
        finally:
            store.apply(Op.REFUND, TEN, "k", 1)

    store.apply(Op.HIT, TEN, "k", 2)
    wire: Any = store._blocking  # garbage has to be collected in the midst of a step
    wire._idle = CollectingList(wire._idle)
    abandon(waiter)
    assert in_time(lambda: store.apply(Op.HIT, TEN, "k", 1)).remaining == 8
    store.close()


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_a_closed_store_is_not_opened_again(reliakit_dsn: str, colour: str) -> None:
    store = PostgresStore(reliakit_dsn)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.open() if colour == "threads" else asyncio.run(store.aopen())


def test_who_waits_for_a_connection_of_a_store_that_is_closed_is_told_at_once(
    reliakit_dsn: str, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(reliakit_dsn)
    store = PostgresStore(proxy.dsn(), timeout=30.0)
    told: list[str] = []

    def ask() -> None:
        with pytest.raises(StoreError) as raised:
            left(store)
        told.append(str(raised.value))

    with proxy.black_hole():
        asking = threading.Thread(target=ask)
        asking.start()
        while not proxy.stats().connections:
            SYSTEM_CLOCK.sleep(0.001)
        store.close()
        asking.join()
    assert "closed" in told[0]


def test_a_row_that_somebody_locks_stalls_nobody_beyond_the_deadline(store: PostgresStore, reliakit_dsn: str) -> None:
    store.apply(Op.HIT, TEN, "k", 1)
    with psycopg.connect(reliakit_dsn) as other:
        other.execute("SELECT FROM reliakit_limits FOR UPDATE")
        with deadline(0.1), pytest.raises(StoreError, match=r"in time|Timeout"):
            store.apply(Op.HIT, TEN, "k", 1)
        other.rollback()
    assert store.apply(Op.HIT, TEN, "other", 1).admitted


def test_a_fork_uses_connections_of_its_own(store: PostgresStore) -> None:
    store.apply(Op.HIT, TEN, "k", 1)
    child = os.fork()
    if not child:
        fine = store.apply(Op.HIT, TEN, "k", 1).remaining == 8
        fine = fine and asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 7
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert left(store) == 7
