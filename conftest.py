"""Runs every Python snippet of the README and the docs, and deals the whole suite to all cores.

Each page is one program, read from top to bottom.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sybil import Sybil
from sybil.integration import pytest as snippets_in_pytest
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from xdist.scheduler import LoadFileScheduling

from reliakit.core import spine

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres, EmbeddedRedis


# What waits for processes and networks.
LONG = ("tests/examples/", "tests/faults/")
MOST_WORKERS = 4


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
    "docs/sharing.md",
    "docs/testing.md",
]
WITH_BOTH = ["docs/stores.md"]

pytest_collect_file = snippets_in_pytest.pytest_integration(
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=WITH_POSTGRES,
        fixtures=["dsn"],
        teardown=stop_listening,
    ),
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=WITH_BOTH,
        fixtures=["dsn", "redis_url"],
        teardown=stop_listening,
    ),
    Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()],
        patterns=["docs/**/*.md", "docs/*.md"],
        excludes=[*WITH_POSTGRES, *WITH_BOTH],
        teardown=stop_listening,
    ),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no core is left with it at the end, and read the pages last.

    Among themselves the tests stay shuffled, but a page's snippets are read from top to bottom.
    """

    def turn(item: pytest.Item) -> tuple[int, str, int | None]:
        if isinstance(item, SybilItem):
            path, line = item.reportinfo()[:2]
            return 2, str(path), line
        return 0 if item.nodeid.startswith(LONG) else 1, "", 0

    items.sort(key=turn)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the whole suite on all cores, and what somebody asks for by name in this process."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores == 1 else min(cores, MOST_WORKERS)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Deal tests as Rooms says."""
    return Rooms(config, log)


class Rooms(LoadFileScheduling):
    """Deals files to workers, and all examples to one of them: they share services that take seconds to start."""

    def _split_scope(self, nodeid: str) -> str:
        return LONG[0] if nodeid.startswith(LONG[0]) else super()._split_scope(nodeid)


@pytest.fixture(scope="session")
def redis_url(reliakit_redis: EmbeddedRedis) -> str:
    """The address of a Redis."""
    reliakit_redis.flush()
    return reliakit_redis.url


@pytest.fixture(scope="session")
def dsn(reliakit_postgres: EmbeddedPostgres) -> str:
    """The connection string that the pages speak of: a database with two accounts."""
    conninfo = reliakit_postgres.database()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL CHECK (balance >= 0))")
        connection.execute("INSERT INTO account VALUES (1, 100), (2, 100)")
    return conninfo
