"""Idempotency keys on a real server: the same key gives the first call's result."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliakit.core.errors import (
    ConfigurationError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import TransactionEnded
from reliakit.database import (
    IDEMPOTENCY_DDL,
    AsyncDatabase,
    AsyncRepository,
    AsyncTransaction,
    Database,
    Isolation,
    Propagation,
    Repository,
    Transaction,
    TransactionRetry,
)

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3, name="shop") as database:
        database.execute("CREATE TABLE item (id int)")
        yield database


def count(db: Database) -> int:
    return int(db.fetch_value("SELECT count(*) FROM item"))


def keys(db: Database) -> int:
    return int(db.fetch_value("SELECT count(*) FROM reliakit_idempotency"))


def insert(tx: Transaction, number: int = 1) -> dict[str, object]:
    tx.execute("INSERT INTO item VALUES (%s)", (number,))
    return {"id": number}


def test_the_same_key_returns_the_first_result_without_running_again(db: Database) -> None:
    assert db.run(insert, 1, idempotency_key="a") == {"id": 1}
    assert db.run(insert, 2, idempotency_key="a") == {"id": 1}
    assert db.run(insert, 3, idempotency_key="b") == {"id": 3}
    assert db.run(insert, 4) == {"id": 4}
    assert count(db) == 3


def test_another_process_finds_the_same_result(db: Database, reliakit_dsn: str) -> None:
    db.run(insert, 1, idempotency_key="a")
    with Database(reliakit_dsn) as other:
        assert other.run(insert, 2, idempotency_key="a") == {"id": 1}
    assert count(db) == 1


@pytest.mark.anyio
async def test_tasks_have_keys_too_and_share_them_with_threads(db: Database, reliakit_dsn: str) -> None:
    async def insert(tx: AsyncTransaction, number: int) -> dict[str, object]:
        await tx.execute("INSERT INTO item VALUES (%s)", (number,))
        return {"id": number}

    async with AsyncDatabase(reliakit_dsn) as adb:
        assert await adb.run(insert, 1, idempotency_key="a", operation="insert") == {"id": 1}
        results = await asyncio.gather(*(adb.run(insert, n, idempotency_key="b") for n in range(5)))
        assert all(result == results[0] for result in results)
        assert await AsyncRepository(adb).with_transaction(
            lambda tx: insert(tx, 9), idempotency_key="a", operation="insert"
        ) == {"id": 1}
        assert await adb.forget_idempotency_keys(older_than=0) == 2
    assert count(db) == 2


def test_a_repository_hands_the_key_on(db: Database) -> None:
    repository = Repository(db)
    for _ in range(2):
        assert repository.with_transaction(insert, idempotency_key="a") == {"id": 1}
    assert count(db) == 1


def test_a_failed_call_leaves_no_trace(db: Database) -> None:
    def fail(tx: Transaction) -> None:
        insert(tx)
        raise LookupError

    with pytest.raises(LookupError):
        db.run(fail, idempotency_key="a", operation="insert")
    assert (keys(db), count(db)) == (0, 0)
    assert db.run(insert, idempotency_key="a", operation="insert") == {"id": 1}


def test_a_call_that_rolls_itself_back_leaves_no_trace(db: Database) -> None:
    def undo(tx: Transaction) -> int:
        insert(tx)
        tx.set_rollback_only()
        return 7

    assert db.run(undo, idempotency_key="a") == 7
    assert (keys(db), count(db)) == (0, 0)


def test_a_swallowed_error_still_raises_rolled_back(db: Database) -> None:
    def swallow(tx: Transaction) -> None:
        with contextlib.suppress(psycopg.Error):
            tx.execute("SELECT 1/0")

    with pytest.raises(TransactionRolledBackError):
        db.run(swallow, idempotency_key="a")
    assert keys(db) == 0


def test_a_time_that_is_spent_is_a_timeout(db: Database) -> None:
    def sleep(tx: Transaction) -> None:
        tx.execute("SELECT pg_sleep(20)")

    with pytest.raises(TransactionTimeoutError):
        db.run(sleep, idempotency_key="a", timeout=0.2)
    assert keys(db) == 0


def test_the_key_of_one_operation_cannot_stand_for_another(db: Database) -> None:
    db.run(insert, idempotency_key="a", operation="order")
    with pytest.raises(TransactionUsageError, match="'order' and cannot stand for 'refund'") as caught:
        db.run(insert, idempotency_key="a", operation="refund")
    assert (caught.value.name, caught.value.attempts) == (db.name, 1)
    assert count(db) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON)
def test_every_json_value_comes_back_the_same_both_times(db: Database, value: Any) -> None:
    db.fetch_value("SELECT 1")
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        db.execute("TRUNCATE reliakit_idempotency")
    first = db.run(lambda _tx: value, idempotency_key="a")
    again = db.run(lambda _tx: "not this one", idempotency_key="a")
    assert first == again == value
    assert repr(first) == repr(again)


def test_both_calls_return_what_json_makes_of_the_result(db: Database) -> None:
    for _ in range(2):
        assert db.run(lambda _tx: (1, {2: None}), idempotency_key="a") == [1, {"2": None}]


def _endless() -> object:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize("value", [object(), {1}, b"x", float("nan"), float("inf"), {(1, 2): 3}, _endless()])
def test_a_result_that_is_no_json_is_refused_and_rolled_back(db: Database, value: object) -> None:
    def work(tx: Transaction) -> object:
        insert(tx)
        return value

    with pytest.raises(TransactionUsageError, match="return a JSON value"):
        db.run(work, idempotency_key="a")
    assert (keys(db), count(db)) == (0, 0)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "\ud800", 7, b"a", ["a"], True])
def test_wrong_keys_are_refused_at_the_door(key: Any) -> None:
    db = Database("host=nowhere.invalid")
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        db.run(insert, idempotency_key=key)


@pytest.mark.parametrize(
    "options",
    [{"read_only": True}, {"propagation": Propagation.SUPPORTS}, {"propagation": Propagation.NEVER}],
)
def test_a_key_needs_a_transaction_that_writes(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="idempotency_key needs"):
        Database("host=nowhere.invalid").run(insert, idempotency_key="a", **options)


@pytest.mark.parametrize("key", ["x" * 255, "é€😀", "'; DROP TABLE item; --", "%s", " "])
def test_any_text_is_a_key(db: Database, key: str) -> None:
    for _ in range(2):
        assert db.run(insert, idempotency_key=key) == {"id": 1}
    assert count(db) == 1


@pytest.mark.parametrize("isolation", list(Isolation))
def test_of_many_calls_at_once_one_runs_and_the_others_return_its_result(
    reliakit_dsn: str, isolation: Isolation
) -> None:
    together = threading.Barrier(8)
    with Database(reliakit_dsn, max_size=8, isolation=isolation) as db:
        db.execute("CREATE TABLE item (id int)")

        def call(number: int) -> object:
            together.wait()
            return db.run(insert, number, idempotency_key="a", timeout=30)

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(call, range(8)))
        assert all(result == results[0] for result in results)
        assert count(db) == 1
        assert (db.stats().in_use, db.stats().leaked) == (0, 0)


@pytest.mark.parametrize("isolation", [Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ])
def test_the_second_call_waits_for_the_first_and_runs_if_that_fails(db: Database, isolation: Isolation) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def fail_late(tx: Transaction) -> None:
        insert(tx, 1)
        inside.set()
        go_on.wait()
        raise LookupError

    def first() -> None:
        with contextlib.suppress(LookupError):
            db.run(fail_late, idempotency_key="a", operation="insert", isolation=isolation)

    db.forget_idempotency_keys(older_than=0)
    db.run(insert, idempotency_key="makes the table")
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(first)
        inside.wait()
        second = pool.submit(db.run, insert, 2, idempotency_key="a", operation="insert", isolation=isolation)
        while not db.fetch_value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            pass
        go_on.set()
        running.result()
        assert second.result() == {"id": 2}


def test_waiting_for_the_first_call_is_bounded(db: Database) -> None:
    def work(tx: Transaction) -> int:
        insert(tx)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(db.run, insert, idempotency_key="a", operation="insert", timeout=0.2)
            assert isinstance(waiting.exception(), TransactionTimeoutError)
        return 1

    assert db.run(work, idempotency_key="a", operation="insert") == 1
    assert count(db) == 1


def test_inside_a_transaction_the_key_is_that_transactions(db: Database) -> None:
    with contextlib.suppress(LookupError), db.transaction():
        assert db.run(insert, 1, idempotency_key="a") == {"id": 1}
        assert db.run(insert, 2, idempotency_key="a") == {"id": 1}
        raise LookupError
    assert count(db) == 0
    with db.transaction():
        assert db.run(insert, 3, idempotency_key="a") == {"id": 3}
    assert db.run(insert, 4, idempotency_key="a") == {"id": 3}
    assert (count(db), keys(db)) == (1, 1)


def test_a_savepoint_takes_its_key_with_it(db: Database) -> None:
    def fail(tx: Transaction) -> None:
        insert(tx)
        raise LookupError

    with db.transaction():
        with contextlib.suppress(LookupError):
            db.run(fail, idempotency_key="a", operation="insert", propagation=Propagation.NESTED)
        assert db.run(insert, 2, idempotency_key="a", operation="insert") == {"id": 2}
    assert count(db) == 1


def test_a_key_that_is_used_inside_of_its_own_call_says_so(db: Database) -> None:
    def work(_tx: Transaction) -> object:
        return db.run(insert, idempotency_key="a", operation="work")

    with pytest.raises(TransactionUsageError, match="still runs in this very transaction"):
        db.run(work, idempotency_key="a", operation="work")
    assert keys(db) == 0


def test_a_call_that_commits_by_itself_is_refused_now_and_later(db: Database) -> None:
    def commit(tx: Transaction) -> int:
        tx.execute("COMMIT")
        return 1

    for _ in range(2):
        with pytest.raises(TransactionUsageError):
            db.run(commit, idempotency_key="a")


def test_keys_are_forgotten_by_age(db: Database) -> None:
    assert db.forget_idempotency_keys(older_than=60) == 0  # the table is not even there
    for key in "abc":
        db.run(insert, idempotency_key=key)
    db.execute("UPDATE reliakit_idempotency SET created_at = now() - interval '1 hour' WHERE key = 'a'")
    assert db.forget_idempotency_keys(older_than=4000) == 0
    assert db.forget_idempotency_keys(older_than=1e300) == 0
    assert db.forget_idempotency_keys(older_than=3000) == 1
    assert db.run(insert, 9, idempotency_key="a") == {"id": 9}
    assert db.forget_idempotency_keys(older_than=0) == 3
    for wrong in (-1, "1", float("nan"), None):
        with pytest.raises(ConfigurationError):
            db.forget_idempotency_keys(older_than=wrong)


def test_forgetting_goes_on_until_nothing_old_is_left(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliakit.database.idempotency._BATCH", 2)
    for key in "abcde":
        db.run(insert, idempotency_key=key)
    assert db.forget_idempotency_keys(older_than=0) == 5


def test_forgetting_leaves_a_call_that_runs_alone(db: Database) -> None:
    def work(_tx: Transaction) -> int:
        return db.forget_idempotency_keys(older_than=0)

    assert db.run(work, idempotency_key="a") == 0
    assert keys(db) == 1


def test_the_table_can_be_made_by_a_migration(db: Database, recording_listener: RecordingListener) -> None:
    db.execute(IDEMPOTENCY_DDL)
    db.execute(IDEMPOTENCY_DDL)
    db.run(insert, idempotency_key="a")
    assert keys(db) == 1
    ended = [event.operation for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert ended.count("create table") == 1
    db.run(insert, idempotency_key="b")
    ended = [event.operation for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert ended.count("create table") == 1  # looked for once


def test_many_that_start_at_once_make_the_table_once(reliakit_dsn: str) -> None:
    together = threading.Barrier(6)

    def start(number: int) -> object:
        with Database(reliakit_dsn, name=str(number)) as db:
            together.wait()
            return db.run(lambda _tx: number, idempotency_key=str(number), operation="start")

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(start, range(6))) == list(range(6))


def test_a_migration_that_runs_meanwhile_does_no_harm(db: Database, reliakit_dsn: str) -> None:
    with psycopg.connect(reliakit_dsn) as migration, ThreadPoolExecutor(1) as pool:
        migration.execute(IDEMPOTENCY_DDL)
        calling = pool.submit(db.run, insert, idempotency_key="a")
        while not db.fetch_value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            pass
        migration.commit()
        assert calling.result() == {"id": 1}


def test_a_user_who_may_not_create_the_table_is_told_what_to_run(db: Database, reliakit_dsn: str) -> None:
    role = f"reader_{threading.get_ident()}"
    db.execute("REVOKE CREATE ON SCHEMA public FROM public")
    db.execute(f"CREATE ROLE {role}".encode())
    try:
        with Database(psycopg.conninfo.make_conninfo(reliakit_dsn, options=f"-c role={role}")) as reader:
            with pytest.raises(ConfigurationError) as caught:
                reader.run(lambda _tx: 1, idempotency_key="a")
            assert IDEMPOTENCY_DDL in str(caught.value)
            db.execute(IDEMPOTENCY_DDL)
            db.execute(f"GRANT ALL ON reliakit_idempotency TO {role}".encode())
            assert reader.run(lambda _tx: 1, idempotency_key="a") == 1
    finally:
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_only_the_run_that_learnt_that_it_committed_calls_its_hooks(db: Database) -> None:
    called: list[int] = []

    def work(tx: Transaction, number: int) -> int:
        tx.after_commit(lambda: called.append(number))
        return number

    for number in (1, 2):
        db.run(work, number, idempotency_key="a")
    assert called == [1]


def test_a_lost_race_in_the_callers_code_is_tried_again_with_its_key(db: Database) -> None:
    attempts: list[int] = []

    def lose(tx: Transaction) -> int:
        attempts.append(tx.attempt)
        if len(attempts) < 3:
            raise psycopg.errors.SerializationFailure
        return tx.attempt

    assert db.run(lose, idempotency_key="a") == 3
    assert db.run(lose, idempotency_key="a") == 3
    assert attempts == [1, 2, 3]


def test_stop_iteration_passes_through_a_run_with_a_key(db: Database) -> None:
    def stop(_tx: Transaction) -> None:
        raise StopIteration(7)

    with pytest.raises(StopIteration):
        db.run(stop, idempotency_key="a")


def test_without_retries_a_lost_race_for_the_key_surfaces_as_it_is(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, retry=None) as db:
        with db.transaction() as tx:
            tx.execute("CREATE TABLE item (id int)")
        db.run(insert, idempotency_key="a")
        with db.transaction():
            db.fetch_value("SELECT 1")  # takes the snapshot
            with ThreadPoolExecutor(1) as pool:
                pool.submit(db.run, insert, idempotency_key="b").result()
            with pytest.raises(psycopg.errors.SerializationFailure):
                db.run(insert, idempotency_key="b")
            db.current().set_rollback_only()
        assert db.run(insert, idempotency_key="b", retry=TransactionRetry(max_attempts=2)) == {"id": 1}
