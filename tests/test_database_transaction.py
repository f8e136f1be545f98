"""Blocks, runs and decorated functions on a real PostgreSQL, in threads."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import psycopg_pool
import pytest

from reliakit.core.deadline import deadline
from reliakit.core.errors import (
    ConfigurationError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import ErrorSeen, HookFailed, PoolWaited, TransactionEnded, TransactionStarted
from reliakit.database import (
    AsyncDatabase,
    Database,
    Isolation,
    Propagation,
    Repository,
    Transaction,
    TransactionRetry,
    transactional,
)
from reliakit.logs import Masker

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=3, name="shop", service="tests") as database:
        database.execute("CREATE TABLE item (id int PRIMARY KEY, amount int NOT NULL DEFAULT 0)")
        yield database


def ids(db: Database) -> list[int]:
    return [row[0] for row in db.fetch_all("SELECT id FROM item ORDER BY id")]


def test_a_block_commits_when_it_ends(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.execute("INSERT INTO item VALUES (%s)", (1,)).rowcount == 1
        assert db.current() is tx
    assert ids(db) == [1]


def test_a_block_that_raises_rolls_back_and_raises_the_very_object(db: Database) -> None:
    problem = LookupError("no such thing")
    with pytest.raises(LookupError) as caught, db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        raise problem
    assert caught.value is problem
    assert ids(db) == []


def test_psycopgs_own_errors_pass_unchanged(db: Database) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation), db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (NULL)")


def test_stop_iteration_passes_through_blocks_runs_and_decorators(db: Database) -> None:
    def stop(*_: object) -> None:
        raise StopIteration(7)

    with pytest.raises(StopIteration), db.transaction():
        stop()
    with pytest.raises(StopIteration):
        db.run(stop)
    with pytest.raises(StopIteration):
        db.transactional()(stop)()


def test_rows_come_as_one_as_all_and_as_a_value(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.fetch_one("SELECT 1, 2") == (1, 2)
        assert tx.fetch_one("SELECT 1 WHERE false") is None
        assert tx.fetch_all("SELECT generate_series(1, 3)") == [(1,), (2,), (3,)]
        assert tx.fetch_value("SELECT %(a)s::int", {"a": 5}) == 5
        assert tx.fetch_value("SELECT 1 WHERE false") is None


def test_the_database_runs_single_statements_in_the_running_transaction_or_in_their_own(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    with contextlib.suppress(LookupError), db.transaction():
        db.execute("INSERT INTO item VALUES (2)")
        assert db.fetch_value("SELECT count(*) FROM item") == 2
        assert db.fetch_one("SELECT max(id) FROM item") == (2,)
        raise LookupError
    assert ids(db) == [1]


def test_a_transaction_has_the_isolation_and_the_limits_it_asked_for(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.fetch_value("SHOW transaction_isolation") == "repeatable read"
        assert tx.fetch_value("SHOW transaction_read_only") == "off"
        assert tx.fetch_value("SHOW lock_timeout") == "0"
        assert tx.fetch_value("SHOW idle_in_transaction_session_timeout") == "5s"
    with db.transaction(
        isolation=Isolation.SERIALIZABLE, read_only=True, deferrable=True, timeout=2, lock_timeout=0.5
    ) as tx:
        assert tx.fetch_value("SHOW transaction_isolation") == "serializable"
        assert tx.fetch_value("SHOW transaction_read_only") == "on"
        assert tx.fetch_value("SHOW transaction_deferrable") == "on"
        assert tx.fetch_value("SHOW statement_timeout") == "2s"
        assert tx.fetch_value("SHOW lock_timeout") == "500ms"


def test_the_limits_end_with_the_transaction(db: Database) -> None:
    with db.transaction(propagation=Propagation.SUPPORTS) as bare:
        assert bare.fetch_value("SHOW statement_timeout") == "0"


def test_a_swallowed_error_raises_rolled_back_instead_of_pretending(db: Database) -> None:
    with pytest.raises(TransactionRolledBackError, match="23502") as caught:
        with db.transaction(operation="import") as tx:
            tx.execute("INSERT INTO item VALUES (1)")
            with contextlib.suppress(psycopg.Error):
                tx.execute("INSERT INTO item VALUES (NULL)")
    assert (caught.value.name, caught.value.attempts) == (db.name, 1)
    assert ids(db) == []


def test_an_error_at_commit_is_the_servers_own(db: Database) -> None:
    db.execute("CREATE TABLE part (of int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(psycopg.errors.ForeignKeyViolation), db.transaction() as tx:
        tx.execute("INSERT INTO part VALUES (99)")
    assert db.fetch_value("SELECT count(*) FROM part") == 0


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "END"])
def test_the_users_own_commit_or_rollback_is_noticed(db: Database, statement: str) -> None:
    with pytest.raises(TransactionUsageError), db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.execute(statement)
    with pytest.raises(TransactionUsageError), db.transaction() as tx:
        tx.execute(statement)
        tx.execute("INSERT INTO item VALUES (2)")
    assert 2 not in ids(db)


def test_commit_on_the_connection_itself_is_noticed_and_nothing_runs_after_it(db: Database) -> None:
    with pytest.raises(TransactionUsageError), db.transaction() as tx:
        tx.connection.commit()
        connection = tx._session_for_tests() if hasattr(tx, "_session_for_tests") else None
        assert connection is None
    with pytest.raises(TransactionUsageError), db.transaction() as tx:
        connection = tx.connection
        connection.rollback()
        connection.execute("INSERT INTO item VALUES (3)")
    assert ids(db) == []


def test_rolling_back_to_a_savepoint_of_ones_own_is_no_misuse(db: Database) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.execute("SAVEPOINT mine")
        tx.execute("INSERT INTO item VALUES (2)")
        tx.execute("ROLLBACK TO SAVEPOINT mine")
        tx.execute("INSERT INTO item VALUES (3)")
    assert ids(db) == [1, 3]


def test_a_finished_transaction_cannot_be_used(db: Database) -> None:
    with db.transaction() as tx:
        pass
    for use in (
        partial(tx.execute, "SELECT 1"),
        partial(tx.fetch_value, "SELECT 1"),
        partial(tx.after_commit, print),
        tx.set_rollback_only,
        lambda: tx.connection,
    ):
        with pytest.raises(TransactionUsageError):
            use()
    assert tx.remaining() == 0.0


def test_a_block_is_for_one_use(db: Database) -> None:
    block = db.transaction()
    with block:
        pass
    with pytest.raises(ConfigurationError), block:
        pass


def test_current_outside_of_a_transaction_says_so(db: Database) -> None:
    with pytest.raises(TransactionUsageError, match="no transaction runs here"):
        db.current()


# Time


def test_a_statement_is_cut_when_the_time_is_spent_and_the_connection_is_whole(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError) as caught, db.transaction(timeout=0.2, operation="slow") as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.execute("SELECT pg_sleep(30)")
    assert (caught.value.name, caught.value.attempts, caught.value.seconds) == (db.name, 1, 0.2)
    assert ids(db) == []
    assert db.stats().size == 1


def test_later_statements_get_what_remains(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.4) as tx:
        for _ in range(100):
            tx.execute("SELECT pg_sleep(0.05)")


def test_an_outer_deadline_that_ends_first_wins(db: Database) -> None:
    with deadline(0.2), pytest.raises(TransactionTimeoutError), db.transaction(timeout=30) as tx:
        assert tx.remaining() <= 0.2
        tx.execute("SELECT pg_sleep(30)")
    with deadline(0), pytest.raises(TransactionTimeoutError), db.transaction():
        pass


def test_what_overran_without_a_statement_is_not_committed_late(db: Database) -> None:
    pause = threading.Event()
    with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        pause.wait(0.15)
    assert ids(db) == []


def test_somebody_elses_cancellation_is_not_a_timeout(db: Database) -> None:
    def cancel_it(pid: int) -> None:
        with psycopg.connect(str(db_conninfo), autocommit=True) as other:
            asleep = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            while other.execute(asleep, (pid,)).fetchone() is None:
                pass

    with db.transaction() as tx:
        db_conninfo = tx.connection.info.dsn
    with pytest.raises(psycopg.errors.QueryCanceled), db.transaction() as tx:
        thread = threading.Thread(target=cancel_it, args=(tx.connection.info.backend_pid,))
        thread.start()
        try:
            tx.execute("SELECT pg_sleep(30)")
        finally:
            thread.join()


def test_a_lock_timeout_is_the_servers_own_error(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1)")
    with db.transaction() as tx:
        tx.execute("UPDATE item SET amount = 1")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            with db.transaction(propagation=Propagation.REQUIRES_NEW, lock_timeout=0.05) as other:
                other.execute("UPDATE item SET amount = 2")
    assert db.fetch_value("SELECT amount FROM item") == 1


def test_waiting_for_a_connection_is_part_of_the_time(reliakit_dsn: str) -> None:
    taken, done = threading.Event(), threading.Event()
    with Database(reliakit_dsn, max_size=1) as db:

        def hold() -> None:
            with db.transaction():
                taken.set()
                done.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait(10)
        try:
            with (
                pytest.raises(TransactionTimeoutError, match="1 of 1 are in use") as caught,
                db.transaction(timeout=0.1),
            ):
                pass
        finally:
            done.set()
            holder.join()
        assert __file__ in str(caught.value)
        assert db.stats().waiting == 0
        assert db.fetch_value("SELECT 1") == 1


# Propagation


def test_required_joins_and_its_failure_dooms_the_outer_one(db: Database) -> None:
    with db.transaction() as outer, db.transaction() as inner:
        assert inner is outer
        inner.execute("INSERT INTO item VALUES (1)")
    with pytest.raises(TransactionRolledBackError, match="joined it failed"), db.transaction() as outer:
        outer.execute("INSERT INTO item VALUES (2)")
        with contextlib.suppress(LookupError), db.transaction():
            raise LookupError
    assert ids(db) == [1]


def test_nested_is_a_savepoint_and_savepoints_nest(db: Database) -> None:
    with db.transaction() as outer:
        outer.execute("INSERT INTO item VALUES (1)")
        with db.transaction(propagation=Propagation.NESTED) as one:
            one.execute("INSERT INTO item VALUES (2)")
            with contextlib.suppress(psycopg.Error), db.transaction(propagation=Propagation.NESTED) as two:
                assert db.current() is two
                two.execute("INSERT INTO item VALUES (3)")
                two.execute("INSERT INTO item VALUES (NULL)")
            assert db.current() is one
        with db.transaction(propagation=Propagation.NESTED) as three:
            three.execute("INSERT INTO item VALUES (4)")
            three.set_rollback_only()
        with pytest.raises(TransactionUsageError):
            three.execute("SELECT 1")
    assert ids(db) == [1, 2]


def test_code_that_joins_a_savepoint_dooms_the_savepoint_alone(db: Database) -> None:
    with db.transaction() as outer:
        outer.execute("INSERT INTO item VALUES (1)")
        with pytest.raises(TransactionRolledBackError), db.transaction(propagation=Propagation.NESTED) as nested:
            nested.execute("INSERT INTO item VALUES (2)")
            with contextlib.suppress(LookupError), db.transaction():
                raise LookupError
        with pytest.raises(TransactionRolledBackError), db.transaction(propagation=Propagation.NESTED) as nested:
            with contextlib.suppress(psycopg.Error):
                nested.execute("SELECT 1/0")
    assert ids(db) == [1]


def test_requires_new_is_independent_of_the_outer_one(db: Database) -> None:
    with contextlib.suppress(LookupError), db.transaction() as outer:
        outer.execute("INSERT INTO item VALUES (1)")
        with db.transaction(propagation=Propagation.REQUIRES_NEW) as new:
            assert new is not outer
            new.execute("INSERT INTO item VALUES (2)")
        assert db.current() is outer
        raise LookupError
    assert ids(db) == [2]


def test_mandatory_and_never_refuse_what_they_forbid(db: Database) -> None:
    with pytest.raises(TransactionUsageError, match="MANDATORY"), db.transaction(propagation=Propagation.MANDATORY):
        pass
    with db.transaction() as outer:
        with db.transaction(propagation=Propagation.MANDATORY) as inner:
            assert inner is outer
        with pytest.raises(TransactionUsageError, match="NEVER"), db.transaction(propagation=Propagation.NEVER):
            pass
    assert db.stats().in_use == 0


@pytest.mark.parametrize("name", ["auth", "token", "secrets", "credentials"])
def test_the_log_shows_the_errors_of_a_database_named_like_a_secret(name: str) -> None:
    with (
        pytest.raises(TransactionUsageError) as caught,
        Database("", min_size=0, name=name).transaction(propagation=Propagation.MANDATORY),
    ):
        pass
    message = str(caught.value)
    assert message.startswith(f"[{name}] ")
    assert Masker().mask_text(message) == message


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NEVER])
def test_without_a_transaction_each_statement_commits_by_itself(db: Database, propagation: Propagation) -> None:
    with contextlib.suppress(LookupError), db.transaction(propagation=propagation) as bare:
        bare.execute("INSERT INTO item VALUES (1)")
        with contextlib.suppress(psycopg.Error):
            bare.execute("INSERT INTO item VALUES (1)")
        bare.execute("INSERT INTO item VALUES (2)")
        raise LookupError
    assert ids(db) == [1, 2]


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NEVER])
def test_a_transaction_of_the_users_own_left_open_outside_of_one_is_told(
    db: Database, propagation: Propagation
) -> None:
    with pytest.raises(TransactionUsageError, match="rolled back"), db.transaction(propagation=propagation) as bare:
        bare.execute("BEGIN")
        bare.execute("INSERT INTO item VALUES (1)")
    with db.transaction(propagation=propagation) as bare:
        bare.execute("BEGIN")
        bare.execute("INSERT INTO item VALUES (2)")
        bare.execute("COMMIT")
    assert ids(db) == [2]
    assert db.stats().in_use == 0


def test_supports_joins_a_running_transaction(db: Database) -> None:
    with db.transaction() as outer, db.transaction(propagation=Propagation.SUPPORTS) as inner:
        assert inner is outer


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({}, {"isolation": Isolation.SERIALIZABLE}),
        ({"isolation": Isolation.SERIALIZABLE}, {"isolation": Isolation.READ_COMMITTED}),
        ({"read_only": True}, {"read_only": False}),
        ({"read_only": True}, {"propagation": Propagation.NESTED}),
    ],
)
def test_joining_asks_for_nothing_the_outer_one_cannot_give(db: Database, outer: dict, inner: dict) -> None:
    with db.transaction(**outer), pytest.raises(TransactionUsageError), db.transaction(**inner):
        pass
    with db.transaction(read_only=False), db.transaction(read_only=True):
        pass


def test_a_joining_timeout_only_shrinks_and_ends_with_its_block(db: Database) -> None:
    with pytest.raises(TransactionRolledBackError), db.transaction(timeout=60) as outer:
        with db.transaction(timeout=90) as inner:
            assert inner.remaining() <= 60
        with (
            pytest.raises(TransactionTimeoutError),
            db.transaction(timeout=0.1, propagation=Propagation.NESTED) as one,
        ):
            assert one.remaining() <= 0.1
            one.execute("SELECT pg_sleep(30)")
        assert outer.remaining() > 20
        outer.execute("INSERT INTO item VALUES (1)")
        with contextlib.suppress(TransactionTimeoutError), db.transaction(timeout=0.01):
            threading.Event().wait(0.02)


def test_a_joining_lock_timeout_ends_with_its_block(db: Database) -> None:
    with db.transaction() as outer:
        with db.transaction(lock_timeout=0.25) as inner:
            assert inner.fetch_value("SHOW lock_timeout") == "250ms"
            with db.transaction(lock_timeout=0.1, propagation=Propagation.NESTED) as nested:
                assert nested.fetch_value("SHOW lock_timeout") == "100ms"
            assert inner.fetch_value("SHOW lock_timeout") == "250ms"
        assert outer.fetch_value("SHOW lock_timeout") == "0"


def test_a_nested_checkout_that_must_deadlock_is_refused_at_once(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=1) as db, db.transaction() as outer:
        with pytest.raises(TransactionUsageError, match="max_size"):
            with db.transaction(propagation=Propagation.REQUIRES_NEW):
                pass
        assert outer.fetch_value("SELECT 1") == 1


# Ownership


def test_a_thread_that_inherits_the_context_gets_an_error_never_the_connection(db: Database) -> None:
    errors: list[BaseException] = []

    def use(tx: Transaction) -> None:
        for attempt in (
            partial(tx.execute, "SELECT 1"),
            db.current,
            partial(db.execute, "SELECT 1"),
            partial(db.run, print),
        ):
            try:
                attempt()
            except TransactionUsageError as error:
                errors.append(error)

    with db.transaction() as tx:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(use, tx))
        thread.start()
        thread.join()
    assert len(errors) == 4


def test_a_thread_that_outlives_the_block_begins_its_own(db: Database) -> None:
    with db.transaction():
        context = contextvars.copy_context()
    seen: list[int] = []
    thread = threading.Thread(target=context.run, args=(lambda: seen.append(db.fetch_value("SELECT 1")),))
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_block_left_by_another_thread_is_rolled_back_and_says_so(db: Database) -> None:
    block = db.transaction()
    block.__enter__().execute("INSERT INTO item VALUES (1)")
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            block.__exit__(None, None, None)
        except TransactionUsageError as error:
            errors.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert ids(db) == []
    assert db.stats().in_use == 0


def test_two_databases_do_not_know_each_others_transactions(db: Database, reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, name="other") as other, db.transaction() as tx, other.transaction() as second:
        assert second is not tx
        assert db.current() is tx
        assert other.current() is second


# Hooks


def test_hooks_run_in_order_after_the_end_outside_of_the_transaction(db: Database) -> None:
    seen: list[object] = []
    with db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.after_commit(lambda: seen.append(("first", ids(db), db.stats().in_use)))
        tx.after_commit(lambda: seen.append("second"))
        tx.after_rollback(lambda: seen.append("never"))
        assert seen == []
    assert seen == [("first", [1], 0), "second"]


def test_after_rollback_runs_for_errors_and_for_set_rollback_only(db: Database) -> None:
    seen: list[str] = []
    with contextlib.suppress(LookupError), db.transaction() as tx:
        tx.after_rollback(lambda: seen.append("error"))
        tx.after_commit(lambda: seen.append("never"))
        raise LookupError
    with db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.after_rollback(lambda: seen.append("asked for"))
        tx.set_rollback_only()
    assert seen == ["error", "asked for"]
    assert ids(db) == []


def test_a_hook_that_raises_changes_nothing_and_is_told(db: Database, recording_listener: RecordingListener) -> None:
    seen: list[str] = []

    def bad() -> None:
        raise RuntimeError("mail server is down")

    with db.transaction(operation="order") as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.after_commit(bad)
        tx.after_commit(lambda: seen.append("still"))
    assert ids(db) == [1]
    assert seen == ["still"]
    (failed,) = [event for event in recording_listener.events if isinstance(event, HookFailed)]
    assert failed.operation == "order"
    assert "bad" in failed.hook


def test_ctrl_c_in_a_hook_leaves_at_once_and_says_what_became_of_the_transaction(db: Database) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    attempts: list[int] = []

    def lose(tx: Transaction) -> None:
        attempts.append(tx.attempt)
        tx.after_rollback(stop)
        raise psycopg.errors.SerializationFailure

    with pytest.raises(KeyboardInterrupt) as stopped:
        db.run(lose)
    assert attempts == [1]
    assert "was rolled back" in stopped.value.__notes__[0]

    with pytest.raises(KeyboardInterrupt) as stopped, db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1)")
        tx.after_commit(stop)
    assert "was committed" in stopped.value.__notes__[0]
    assert ids(db) == [1]


def test_hooks_of_a_savepoint_are_dropped_with_it(db: Database) -> None:
    seen: list[str] = []
    with db.transaction() as outer:
        outer.after_commit(lambda: seen.append("outer"))
        with db.transaction(propagation=Propagation.NESTED) as kept:
            kept.after_commit(lambda: seen.append("kept"))
        with db.transaction(propagation=Propagation.NESTED) as dropped:
            dropped.after_commit(lambda: seen.append("dropped"))
            dropped.set_rollback_only()
    assert seen == ["outer", "kept"]


def test_an_async_hook_is_refused_when_it_is_given(db: Database) -> None:
    async def hook() -> None: ...

    with db.transaction() as tx, pytest.raises(ConfigurationError):
        tx.after_commit(hook)


# run and transactional


def conflict(db: Database) -> None:
    """Change a row behind the back of a transaction that has its snapshot already."""
    with db.transaction(propagation=Propagation.REQUIRES_NEW) as other:
        other.execute("UPDATE item SET amount = amount + 100")


def test_run_tries_again_on_a_clean_snapshot(db: Database, recording_listener: RecordingListener) -> None:
    db.execute("INSERT INTO item VALUES (1, 0)")
    snapshots: list[int] = []

    def add(tx: Transaction, much: int) -> int:
        snapshots.append(tx.fetch_value("SELECT amount FROM item"))
        if len(snapshots) < 3:
            conflict(db)
        tx.execute("UPDATE item SET amount = amount + %s", (much,))
        return tx.attempt

    assert db.run(add, 5) == 3
    assert snapshots == [0, 100, 200]
    assert db.fetch_value("SELECT amount FROM item") == 205
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    mine = [(event.attempt, event.status, event.sqlstate) for event in ended if event.operation == "add"]
    assert mine == [(1, "retry", "40001"), (2, "retry", "40001"), (3, "commit", None)]


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NEVER])
def test_a_run_without_a_transaction_is_not_tried_again_as_its_statements_are_committed(
    db: Database, propagation: Propagation
) -> None:
    def note(tx: Transaction) -> None:
        tx.execute("INSERT INTO item VALUES ((SELECT count(*) FROM item))")
        tx.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$")

    with pytest.raises(psycopg.errors.SerializationFailure):
        db.run(note, propagation=propagation)
    assert ids(db) == [0]


def test_a_run_that_gives_up_raises_the_last_real_error_with_a_note(
    db: Database, recording_listener: RecordingListener
) -> None:
    db.execute("INSERT INTO item VALUES (1, 0)")

    def add(tx: Transaction) -> None:
        tx.fetch_value("SELECT amount FROM item")
        conflict(db)
        tx.execute("UPDATE item SET amount = 1")

    with pytest.raises(psycopg.errors.SerializationFailure) as caught:
        db.run(add, retry=TransactionRetry(2))
    assert any("2 attempts" in note for note in caught.value.__notes__)
    seen = [event for event in recording_listener.events if isinstance(event, ErrorSeen)]
    assert [event.error for event in seen] == [caught.value]


def test_a_swallowed_lost_race_is_tried_again_too(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1, 0)")
    attempts: list[int] = []

    def add(tx: Transaction) -> None:
        attempts.append(tx.attempt)
        tx.fetch_value("SELECT amount FROM item")
        if len(attempts) == 1:
            conflict(db)
        with contextlib.suppress(psycopg.Error):
            tx.execute("UPDATE item SET amount = amount + 1")

    db.run(add)
    assert attempts == [1, 2]
    assert db.fetch_value("SELECT amount FROM item") == 101


def test_only_the_outermost_transaction_is_tried_again(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1, 0)")
    outer_attempts: list[int] = []
    inner_attempts: list[int] = []

    def inner(tx: Transaction) -> None:
        inner_attempts.append(tx.attempt)
        tx.fetch_value("SELECT amount FROM item")
        if len(inner_attempts) == 1:
            conflict(db)
        tx.execute("UPDATE item SET amount = amount + 1")

    def outer(tx: Transaction) -> None:
        outer_attempts.append(tx.attempt)
        db.run(inner)

    db.run(outer)
    assert (outer_attempts, inner_attempts) == ([1, 2], [1, 2])


def test_nothing_joins_a_transaction_whose_block_nobody_can_leave(db: Database) -> None:
    tx = db.transaction().__enter__()  # as after a Ctrl-C at the entrance of `__exit__`
    tx.execute("INSERT INTO item VALUES (1, 0)")
    with db.transaction() as own:
        own.execute("INSERT INTO item VALUES (2, 0)")
    db.run(lambda other: other.execute("INSERT INTO item VALUES (3, 0)"))
    assert db.stats().in_use == 1
    del tx
    assert db.stats().in_use == 0
    assert ids(db) == [2, 3]


def test_a_block_is_one_attempt(db: Database) -> None:
    db.execute("INSERT INTO item VALUES (1, 0)")
    with pytest.raises(psycopg.errors.SerializationFailure), db.transaction() as tx:
        tx.fetch_value("SELECT amount FROM item")
        conflict(db)
        tx.execute("UPDATE item SET amount = 1")


def test_transactional_keeps_the_signature_and_names_the_operation(
    db: Database, recording_listener: RecordingListener
) -> None:
    @db.transactional(isolation=Isolation.SERIALIZABLE)
    def add(item: int, *, amount: int = 3) -> str:
        """Add."""
        db.execute("INSERT INTO item VALUES (%s, %s)", (item, amount))
        return db.current().operation

    assert add.__doc__ == "Add."
    assert add(1, amount=4) == "add"
    (started,) = [event for event in recording_listener.events if isinstance(event, TransactionStarted)]
    assert (started.operation, started.isolation, started.name) == ("add", "SERIALIZABLE", "shop")


def test_transactional_methods_use_the_db_of_their_object(db: Database) -> None:
    class Items(Repository):
        @transactional()
        def add(self, item: int) -> None:
            self.current().execute("INSERT INTO item VALUES (%s)", (item,))

        @transactional(propagation=Propagation.MANDATORY)
        def count(self) -> int:
            return int(self.db.fetch_value("SELECT count(*) FROM item"))

        @transactional
        def both(self, first: int, second: int) -> int:
            self.add(first)
            self.add(second)
            return self.count()

    items = Items(db)
    assert items.both(1, 2) == 2
    with pytest.raises(TransactionUsageError):
        items.count()
    with pytest.raises(psycopg.errors.UniqueViolation):
        items.both(3, 1)
    assert items.with_transaction(lambda tx: tx.fetch_value("SELECT count(*) FROM item")) == 2


def test_wrong_colours_are_refused_where_they_are_seen(db: Database, reliakit_dsn: str) -> None:
    async def later(*_: object) -> None: ...

    def steps(*_: object) -> Iterator[int]:
        yield 1

    for wrong in (later, steps, int, 5):
        with pytest.raises(ConfigurationError):
            db.transactional()(wrong)  # type: ignore[type-var]
        with pytest.raises(ConfigurationError):
            db.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        db.run(lambda tx: later())
    with pytest.raises(ConfigurationError):
        AsyncDatabase(reliakit_dsn).transactional()(lambda: None)
    with pytest.raises(ConfigurationError):
        transactional()(steps)
    with pytest.raises(ConfigurationError):
        Repository(AsyncDatabase(reliakit_dsn))  # type: ignore[arg-type]

    class Wrong:
        db = AsyncDatabase(reliakit_dsn)

        @transactional()
        def work(self) -> None: ...

    with pytest.raises(ConfigurationError):
        Wrong().work()
    with pytest.raises(ConfigurationError, match="`db`"):
        transactional()(lambda self: None)(object())


# Events and figures


def test_each_attempt_is_told_once_with_its_figures(db: Database, recording_listener: RecordingListener) -> None:
    with db.transaction(operation="order") as tx:
        tx.execute("INSERT INTO item SELECT generate_series(1, 5)")
        tx.fetch_all("SELECT * FROM item")
        with db.transaction(), db.transaction(propagation=Propagation.NESTED):
            pass
        transaction_id = tx.transaction_id()
    started = [event for event in recording_listener.events if isinstance(event, TransactionStarted)]
    (ended,) = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert len(started) == 1
    assert (ended.status, ended.statements, ended.rows, ended.service) == ("commit", 3, 11, "tests")
    assert ended.transaction_id == transaction_id
    assert 0 <= ended.wait <= ended.duration
    assert [event.granted for event in recording_listener.events if isinstance(event, PoolWaited)] == [True]


def test_the_status_tells_rollback_timeout_and_deliberate_apart(
    db: Database, recording_listener: RecordingListener
) -> None:
    with contextlib.suppress(LookupError), db.transaction():
        raise LookupError
    with db.transaction() as tx:
        tx.set_rollback_only()
    with contextlib.suppress(TransactionTimeoutError), db.transaction(timeout=0.2) as tx:
        tx.execute("SELECT pg_sleep(10)")
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert [(event.status, event.deliberate, event.error_type) for event in ended] == [
        ("rollback", False, "LookupError"),
        ("rollback", True, None),
        ("timeout", False, "TransactionTimeoutError"),
    ]
    errors = [event.error_type for event in recording_listener.events if isinstance(event, ErrorSeen)]
    assert errors == ["LookupError", "TransactionTimeoutError"]


def test_stats_count_what_is_open_and_held(db: Database) -> None:
    with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
        stats = db.stats()
        assert (stats.size, stats.in_use, stats.waiting, stats.leaked) == (2, 2, 0, 0)
        assert stats.oldest_checkout is not None
    stats = db.stats()
    assert (stats.size, stats.in_use, stats.oldest_checkout) == (2, 0, None)


def test_a_checkout_whose_thread_has_ended_is_counted_as_leaked(db: Database) -> None:
    blocks: list[object] = []

    def forget() -> None:
        block = db.transaction()
        block.__enter__()
        blocks.append(block)

    thread = threading.Thread(target=forget)
    thread.start()
    thread.join()
    assert db.stats().leaked == 1
    blocks.clear()
    assert db.stats().leaked == 0
    assert db.stats().in_use == 0


# Settings


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"min_size": 5, "max_size": 2}, "min_size"),
        ({"max_size": 0}, "max_size"),
        ({"timeout": None}, "timeout"),
        ({"isolation": None}, "isolation"),
        ({"service": ""}, "service"),
        ({"service": 3}, "service"),
        ({"timeout": 0}, "timeout"),
        ({"isolation": "serializable"}, "isolation"),
        ({"name": ""}, "name"),
        ({"retry": 3}, "retry"),
        ({"leak_after": -1}, "leak_after"),
        ({"row_factory": "dict"}, "row_factory"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict, argument: str) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        Database("dbname=x", **settings)
    with pytest.raises(ConfigurationError, match=argument):
        AsyncDatabase("dbname=x", **settings)


def test_a_bad_conninfo_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Database("postgresql://user:hunter2@host/db?nonsense=1")
    assert "hunter2" not in str(caught.value)
    for wrong in ({}, {"conninfo": 5}, {"conninfo": "dbname=x", "pool": object()}, {"pool": object()}):
        with pytest.raises(ConfigurationError):
            Database(**wrong)


def test_the_repr_shows_settings_and_state_and_no_password() -> None:
    shown = repr(Database("postgresql://user:hunter2@db.example/shop", name="shop"))
    assert "hunter2" not in shown
    assert "db.example/shop" in shown
    assert "0 of 10 in use" in shown


def test_making_a_database_connects_to_nothing_and_a_closed_one_refuses_and_reopens(reliakit_dsn: str) -> None:
    db = Database(reliakit_dsn)
    assert db.stats().size == 0
    assert db.fetch_value("SELECT 1") == 1
    db.close()
    db.close()
    assert db.stats().size == 0
    with pytest.raises(TransactionUsageError, match="open"), db.transaction():
        pass
    with db.open():
        assert db.stats().size == 1
        assert db.fetch_value("SELECT 2") == 2


def test_a_wrong_address_is_found_at_open() -> None:
    with pytest.raises(psycopg.OperationalError):
        Database("host=/nonexistent dbname=x").open()


def test_closing_lets_a_running_transaction_end(reliakit_dsn: str) -> None:
    db = Database(reliakit_dsn)
    with db.transaction() as tx:
        db.close()
        assert tx.fetch_value("SELECT 1") == 1
    assert db.stats().size == 0


def test_a_pool_of_the_callers_is_borrowed_from_and_left_open(reliakit_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, max_size=2, open=True) as pool:
        for db in (Database(pool), Database(pool=pool, name="again")):
            with db:
                with db.transaction() as tx:
                    assert tx.fetch_value("SHOW transaction_isolation") == "repeatable read"
                with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.05) as tx:
                    tx.execute("SELECT pg_sleep(10)")
                with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
                    assert db.stats().in_use == 2
            assert not pool.closed
        with pool.connection() as connection:
            assert not connection.autocommit
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pool_of_the_other_colour_is_refused(reliakit_dsn: str) -> None:
    pool = psycopg_pool.ConnectionPool(reliakit_dsn, open=False)
    with pytest.raises(ConfigurationError, match="AsyncConnectionPool"):
        AsyncDatabase(pool)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="ConnectionPool"):
        Database(psycopg_pool.AsyncConnectionPool(reliakit_dsn, open=False))  # type: ignore[arg-type]


def test_old_connections_are_replaced_and_idle_ones_closed(reliakit_dsn: str, manual_clock: object) -> None:
    with Database(reliakit_dsn, max_size=3, min_size=1, clock=manual_clock, max_idle=60, max_lifetime=3600) as db:
        with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
            first = db.fetch_value("SELECT pg_backend_pid()")
        assert db.stats().size == 2
        manual_clock.advance(61)
        db.fetch_value("SELECT 1")
        db.fetch_value("SELECT 1")
        assert db.stats().size == 1
        manual_clock.advance(3601)
        assert db.fetch_value("SELECT pg_backend_pid()") != first
        assert db.stats().size == 1


def test_errors_name_the_database_they_come_from(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, name="bank") as bank, Database(reliakit_dsn, name="mail") as mail:
        for caught in (cut_short(bank), cut_short(bank, operation="transfer"), cut_short(bank, read_only=True)):
            assert (caught.name, caught.attempts) == ("bank", 1)
        with pytest.raises(TransactionUsageError) as refused, bank.transaction(operation="transfer"):
            mail.current()
        assert (refused.value.name, refused.value.attempts) == ("mail", 0)


def cut_short(db: Database, **options: object) -> TransactionRolledBackError:
    with pytest.raises(TransactionRolledBackError) as caught, db.transaction(**options) as tx:
        with contextlib.suppress(psycopg.Error):
            tx.execute("SELECT 1 / 0")
    return caught.value
