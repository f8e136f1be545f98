"""A database is given to the next test only if nothing of the one before is left in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sweeping import left_after_sweeping

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres


@pytest.mark.parametrize(
    ("used", "left"),
    [
        ("CREATE TABLE t (id serial PRIMARY KEY, at timestamptz); INSERT INTO t VALUES (1)", set()),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE TYPE mood AS ENUM ('glad')", set()),
        ("CREATE TEMP TABLE t (id int)", set()),
        ("CREATE SCHEMA other; CREATE TABLE other.t (id int)", {"schema", "relation", "type"}),
        ("DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET jit = off'; END $$", {"setting"}),
        ("SELECT lo_create(0)", {"large object"}),
    ],
)
def test_what_a_test_leaves_is_swept_away_or_told(reliakit_dsn: str, used: str, left: set[str]) -> None:
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute(used)
        assert left_after_sweeping(reliakit_dsn) == left
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    assert left_after_sweeping(reliakit_dsn) == left


def test_a_swept_database_grants_what_a_new_one_does(reliakit_dsn: str, reliakit_postgres: EmbeddedPostgres) -> None:
    def rights(conninfo: str) -> object:
        with psycopg.connect(conninfo) as connection:
            query = "SELECT nspowner, nspacl::text FROM pg_namespace WHERE nspname = 'public'"
            return connection.execute(query).fetchone()

    left_after_sweeping(reliakit_dsn)
    new = reliakit_postgres.database()
    assert rights(reliakit_dsn) == rights(new)
    reliakit_postgres.drop_database(new)
