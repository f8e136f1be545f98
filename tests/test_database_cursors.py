"""`fetch_one` and `fetch_all` use one cursor again and again, and nobody may notice."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from reliakit.core.errors import TransactionTimeoutError
from reliakit.database import AsyncDatabase, Database, Transaction

MOMENT = "SELECT timestamptz '2024-01-01 12:00Z' + %s"
WORD = "SELECT %s::text AS word"


class Shouting(TextLoader):
    """Reads texts in capitals."""

    def load(self, data: Any) -> str | bytes:
        read = super().load(data)
        return read.upper()


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=1) as database:
        yield database


def kept(tx: Any) -> Any:
    """Return the cursor that waits for the next statement."""
    return tx.work.session.cursor


def offset(tx: Transaction) -> timedelta | None:
    moment = tx.fetch_one(MOMENT, (timedelta(0),))[0]
    return moment.utcoffset()  # type: ignore[no-any-return]


def test_one_cursor_serves_statement_after_statement_and_transaction_after_transaction(db: Database) -> None:
    cursors: list[object] = []
    for _ in range(2):
        with db.transaction() as tx:
            for word in ("a", "b"):
                assert tx.fetch_one(WORD, (word,)) == (word,)
                cursors.append(kept(tx))
            assert tx.fetch_all("SELECT * FROM generate_series(1, %s)", (3,)) == [(1,), (2,), (3,)]
            cursors.append(kept(tx))
    assert len({id(cursor) for cursor in cursors}) == 1
    assert cursors[0] is not None


def test_a_time_zone_that_changes_is_heeded_by_the_very_same_query(db: Database) -> None:
    with db.transaction() as tx:
        tx.fetch_value("SELECT set_config('TimeZone', 'UTC', true)")
        assert offset(tx) == timedelta(0)
        tx.fetch_value("SELECT set_config('TimeZone', 'Asia/Tokyo', true)")
        assert offset(tx) == timedelta(hours=9)
    with db.transaction() as tx:
        tx.fetch_value("SELECT set_config('TimeZone', 'Asia/Kolkata', true)")
        assert offset(tx) == timedelta(hours=5.5)


def test_what_the_caller_sets_on_the_connection_holds_at_once_and_later(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.fetch_one(WORD, ("a",)) == ("a",)
        connection = tx.connection
        connection.row_factory = dict_row  # type: ignore[assignment]  # as anybody does who wants dicts
        assert tx.fetch_one(WORD, ("a",)) == {"word": "a"}
        connection.adapters.register_loader("text", Shouting)
        assert tx.fetch_one(WORD, ("a",)) == {"word": "A"}
        assert kept(tx) is None
    with db.transaction() as tx:
        assert tx.fetch_all(WORD, ("a",)) == [{"word": "A"}]
        assert kept(tx) is not None


def test_the_cursor_of_execute_leads_to_the_connection_too(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.fetch_one(WORD, ("a",)) == ("a",)
        connection = tx.execute("SELECT 1").connection
        assert tx.fetch_one(WORD, ("a",)) == ("a",)
        connection.adapters.register_loader("text", Shouting)
        assert tx.fetch_one(WORD, ("a",)) == ("A",)


def test_a_cursor_that_is_kept_keeps_no_rows(db: Database) -> None:
    with db.transaction() as tx:
        tx.fetch_all("SELECT repeat('x', 1000) FROM generate_series(1, %s)", (1000,))
        assert kept(tx).pgresult.ntuples == 0


def test_after_an_error_a_new_cursor_is_used(db: Database) -> None:
    with db.transaction() as tx:
        tx.fetch_one(WORD, ("a",))
        before = kept(tx)
    with pytest.raises(psycopg.errors.DivisionByZero), db.transaction() as tx:
        tx.fetch_one("SELECT 1 / %s", (0,))
    with db.transaction() as tx:
        with pytest.raises(psycopg.ProgrammingError):
            tx.fetch_one("SET search_path = public")
        with pytest.raises(psycopg.ProgrammingError):
            tx.fetch_one("SELECT %s, %s", (1,))
        assert tx.fetch_one(WORD, ("a",)) == ("a",)
        assert kept(tx) is not before


def test_queries_of_any_kind_and_without_parameters_work_as_ever(db: Database) -> None:
    with db.transaction() as tx:
        assert tx.fetch_one("SELECT 1; SELECT 2") == (1,)
        assert tx.fetch_one(b"SELECT %s::int", (1,)) == (1,)
        assert tx.fetch_one(psycopg.sql.SQL("SELECT %s::int"), (1,)) == (1,)
        assert tx.fetch_one("SELECT %s || 'é'", ("ß",)) == ("ßé",)
        assert tx.fetch_one("SELECT %(n)s::int", {"n": 1}) == (1,)
        assert tx.fetch_one("SELECT 1 WHERE %s", (False,)) is None


def test_a_borrowed_connection_goes_back_without_one(reliakit_dsn: str) -> None:
    with psycopg_pool.ConnectionPool(reliakit_dsn, min_size=1, open=True) as pool, Database(pool) as db:
        with db.transaction() as tx:
            assert tx.fetch_one(WORD, ("a",)) == ("a",)
            assert kept(tx) is None


@pytest.mark.anyio
async def test_a_task_that_is_cut_leaves_its_cursor_behind(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=1) as db:
        async with db.transaction() as tx:
            assert await tx.fetch_one(WORD, ("a",)) == ("a",)
            before = kept(tx)
        async with db.transaction() as tx:
            assert await tx.fetch_all(WORD, ("a",)) == [("a",)]
            assert kept(tx) is before
        with pytest.raises(TransactionTimeoutError):
            async with db.transaction(timeout=0.2) as tx:
                await tx.fetch_one("SELECT pg_sleep(%s)", (30,))
        async with db.transaction() as tx:
            assert await tx.fetch_one(WORD, ("a",)) == ("a",)
            assert kept(tx) is not before
