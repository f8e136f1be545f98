"""Runs every Python snippet of the README and the docs; each page is one program, read from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sybil import Sybil
from sybil.integration import pytest as snippets_in_pytest
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from reliakit.core import spine

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres


def stop_listening(_namespace: dict[str, object]) -> None:
    """Unsubscribe what a page has left subscribed, as a program that runs on would."""
    spine._everybody.routes = ()  # noqa: SLF001


WITH_POSTGRES = [
    "README.md",
    "docs/index.md",
    "docs/start.md",
    "docs/transactions.md",
    "docs/outbox.md",
    "docs/sqlalchemy.md",
    "docs/testing.md",
]

pytest_collect_file = snippets_in_pytest.pytest_integration(
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=WITH_POSTGRES,
        fixtures=["dsn"],
        teardown=stop_listening,
    ),
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["docs/**/*.md", "docs/*.md"],
        excludes=WITH_POSTGRES,
        teardown=stop_listening,
    ),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Read the pages after the tests and from top to bottom, wherever the shuffle has dealt their snippets."""
    items.sort(key=lambda item: item.reportinfo()[:2] if isinstance(item, SybilItem) else ("", 0))


@pytest.fixture(scope="session")
def dsn(reliakit_postgres: EmbeddedPostgres) -> str:
    """The connection string that the pages speak of: a database with two accounts."""
    conninfo = reliakit_postgres.database()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))")
        connection.execute("INSERT INTO account VALUES (1, 100), (2, 100)")
    return conninfo
