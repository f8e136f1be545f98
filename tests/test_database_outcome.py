"""What became of a transaction, asked of a real server."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.events import TransactionStarted
from reliakit.database import AsyncDatabase, Database, Propagation

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener


def test_committed_aborted_and_in_progress_are_the_servers_own_words(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db:
        with db.transaction() as tx:
            committed = tx.transaction_id()
            assert db.outcome(committed) == "in progress"
        with db.transaction() as tx:
            aborted = tx.transaction_id()
            tx.set_rollback_only()
        assert db.outcome(committed) == "committed"
        assert db.outcome(aborted) == "aborted"


@pytest.mark.anyio
async def test_tasks_ask_too(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn) as db:
        async with db.transaction() as tx:
            transaction_id = await tx.transaction_id()
            assert await db.outcome(transaction_id) == "in progress"
        assert await db.outcome(transaction_id) == "committed"
        with pytest.raises(ConfigurationError, match="never learnt"):
            await db.outcome(None)


def test_what_the_server_has_forgotten_is_none(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db:
        # An id whose lower half is no transaction's is one that no server knows any more.
        assert db.outcome(str(2**32)) is None


@pytest.mark.parametrize(
    "wrong", ["", "x", "-1", "1.5", "0x5", " 7", "²", "2", str(2**64), "9" * 5000, 7, b"7", True]
)
def test_what_is_no_transaction_id_is_refused_at_the_door(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="transaction_id"):
        Database("host=nowhere.invalid").outcome(wrong)


def test_none_says_what_to_do_instead() -> None:
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        Database("host=nowhere.invalid").outcome(None)


def test_an_id_that_is_not_given_out_yet_is_another_servers(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db, pytest.raises(ConfigurationError, match="another server's"):
        db.outcome(str(2**40 + 1000))


def test_the_running_transaction_is_not_asked(reliakit_dsn: str, recording_listener: RecordingListener) -> None:
    with Database(reliakit_dsn, max_size=2) as db:
        with pytest.raises(psycopg.errors.DivisionByZero), db.transaction() as tx:
            transaction_id = tx.transaction_id()
            try:
                tx.execute("SELECT 1/0")
            finally:
                assert db.outcome(transaction_id) == "aborted"  # in the doomed one it would be an error
        assert db.outcome(transaction_id) == "aborted"
    started = [event for event in recording_listener.events if isinstance(event, TransactionStarted)]
    assert {event.read_only for event in started if event.operation == "outcome"} == {False}  # never a replica


def test_an_only_connection_that_is_taken_is_refused_at_once(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn, max_size=1) as db, db.transaction() as tx:
        transaction_id = tx.transaction_id()
        with pytest.raises(TransactionUsageError, match="max_size"):
            db.outcome(transaction_id)


def test_any_thread_may_ask_inside_or_outside_of_a_block_without_a_transaction(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db:
        with db.transaction() as tx:
            transaction_id = tx.transaction_id()
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(db.outcome(transaction_id)))
        thread.start()
        thread.join()
        with db.transaction(propagation=Propagation.SUPPORTS):
            answers.append(db.outcome(transaction_id))
        assert answers == ["committed", "committed"]
