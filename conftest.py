"""Runs every Python snippet of the README and the docs; each page is one program, read from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from sybil import Sybil
from sybil.integration import pytest as snippets_in_pytest
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres

WITH_POSTGRES = ["README.md", "docs/index.md", "docs/start.md", "docs/transactions.md", "docs/testing.md"]

pytest_collect_file = snippets_in_pytest.pytest_integration(
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=WITH_POSTGRES,
        fixtures=["dsn"],
    ),
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["docs/**/*.md", "docs/*.md"],
        excludes=WITH_POSTGRES,
    ),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the snippets of a page back into reading order, wherever the shuffle has dealt them."""
    places = [place for place, item in enumerate(items) if isinstance(item, SybilItem)]
    snippets = sorted((items[place] for place in places), key=lambda item: item.reportinfo()[:2])
    for place, snippet in zip(places, snippets, strict=True):
        items[place] = snippet


@pytest.fixture(scope="session")
def dsn(reliakit_postgres: EmbeddedPostgres) -> str:
    """The connection string that the pages speak of: a database with two accounts."""
    conninfo = reliakit_postgres.database()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))")
        connection.execute("INSERT INTO account VALUES (1, 100), (2, 100)")
    return conninfo
