"""No lie: what a transaction says became of it did become of it, whatever the caller and the network do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from database_drivers import COLOURS, block, got, play, run

from reliakit.core.errors import TransactionUsageError
from reliakit.core.events import TransactionEnded

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

pytestmark = pytest.mark.parametrize("colour", COLOURS)

Use = Callable[[Any, str], Coroutine[Any, Any, object]]


async def by_execute(tx: Any, text: str) -> None:
    await got(tx.execute(text))


async def by_connection(tx: Any, text: str) -> None:
    await got(tx.connection.execute(text))


async def by_cursor(tx: Any, text: str) -> None:
    await got(tx.connection.cursor().execute(text.encode()))


async def by_libpq(tx: Any, text: str) -> None:
    tx.connection.pgconn.exec_(text.encode())


ENDINGS = [
    "COMMIT",
    "END",
    "commit and chain",
    "/* ROLLBACK TO */ COMMIT AND CHAIN",
    "COMMIT; BEGIN",
    "SELECT 1; COMMIT AND CHAIN; SELECT 2",
]


async def table(db: Any) -> None:
    await got(db.execute("CREATE TABLE item (id int PRIMARY KEY, amount int NOT NULL DEFAULT 0)"))


async def rows(db: Any) -> list[int]:
    return [row[0] for row in await got(db.fetch_all("SELECT id FROM item ORDER BY id"))]


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("use", [by_execute, by_connection, by_cursor, by_libpq])
def test_the_callers_own_commit_is_noticed_however_it_is_sent(
    reliakit_dsn: str, colour: str, use: Use, pipeline: bool, recording_listener: RecordingListener
) -> None:
    async def script(db: Any) -> list[int]:
        await table(db)
        for item, text in enumerate(ENDINGS):
            with pytest.raises(TransactionUsageError):
                async with block(db, operation="own", pipeline=pipeline) as tx:
                    tx.after_commit(hooks.append)
                    tx.after_rollback(hooks.append)
                    await got(tx.execute("INSERT INTO item VALUES (%s)", (item,)))
                    await use(tx, text)
        return await rows(db)

    hooks: list[Any] = []
    assert play(colour, reliakit_dsn, script) == list(range(len(ENDINGS)))
    assert hooks == []
    ended = [event for event in recording_listener.events if isinstance(event, TransactionEnded)]
    assert {event.status for event in ended if event.operation == "own"} == {"unknown"}


@pytest.mark.parametrize("use", [by_execute, by_connection, by_cursor])
@pytest.mark.parametrize("text", ["ROLLBACK", "ABORT", "ROLLBACK AND CHAIN", "ROLLBACK; BEGIN", "COMMIT AND CHAIN"])
def test_nothing_more_runs_after_the_callers_own_end(reliakit_dsn: str, colour: str, use: Use, text: str) -> None:
    async def script(db: Any) -> list[int]:
        await table(db)
        for follow_up in (by_execute, by_connection, by_cursor):
            with pytest.raises(TransactionUsageError):
                async with block(db) as tx:
                    await use(tx, text)
                    with contextlib.suppress(TransactionUsageError):
                        await follow_up(tx, "INSERT INTO item VALUES (1)")
        return await rows(db)

    assert play(colour, reliakit_dsn, script) == []


def test_what_does_not_end_the_transaction_is_no_misuse(reliakit_dsn: str, colour: str) -> None:
    async def script(db: Any) -> list[int]:
        await table(db)
        async with block(db) as tx:
            for text in (
                "SAVEPOINT mine",
                "INSERT INTO item VALUES (1)",
                "ROLLBACK/* all of it */TO\nmine",
                "SAVEPOINT again; INSERT INTO item VALUES (2); rollback to savepoint again",
                "SELECT 'COMMIT AND CHAIN'",
                "SET LOCAL statement_timeout = '9s'",
                "INSERT INTO item VALUES (3)",
            ):
                await by_cursor(tx, text)
                await by_execute(tx, text.replace("(1)", "(11)").replace("(3)", "(13)"))
        async with block(db, read_only=True) as tx:
            await by_execute(tx, "SELECT 1")
        return await rows(db)

    assert play(colour, reliakit_dsn, script) == [3, 13]


def test_a_server_whose_transactions_only_read_by_default_is_served_too(reliakit_dsn: str, colour: str) -> None:
    async def script(db: Any) -> None:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await table(db)
        with pytest.raises(TransactionUsageError):
            async with block(db) as tx:
                await by_cursor(tx, "COMMIT AND CHAIN")

    play(colour, f"{reliakit_dsn} options='-c default_transaction_read_only=on'", script)


@pytest.mark.parametrize("use", [by_execute, by_connection, by_cursor])
@pytest.mark.parametrize("text", ["COMMIT", "COMMIT AND CHAIN", "END; START TRANSACTION; SELECT 1"])
def test_a_lost_race_behind_the_callers_own_commit_is_not_tried_again(
    reliakit_dsn: str, colour: str, use: Use, text: str
) -> None:
    lost = "DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"

    async def add(tx: Any, text: str) -> None:
        await use(tx, f"UPDATE item SET amount = amount + 1; {text}; {lost}")

    async def script(db: Any) -> list[Any]:
        await table(db)
        await got(db.execute("INSERT INTO item VALUES (1)"))
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            await run(db, add, text)
        assert "may be committed" in " ".join(caught.value.__notes__)
        return await got(db.fetch_all("SELECT amount FROM item"))

    assert play(colour, reliakit_dsn, script) == [(1,)]
