"""The public conformance suite of stores, on our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliakit.stores import MemoryStore, PostgresStore, RedisStore
from reliakit.testing import EmbeddedPostgres, ManualClock
from reliakit.testing.store_suite import Kept, StoreSuite


class TestMemoryStore(StoreSuite):
    def kept(self) -> Kept:
        clock = ManualClock()
        return Kept(MemoryStore(clock=clock), advance=clock.advance, now=lambda: round(clock.monotonic() * 1e9))


class TestRedisStore(StoreSuite):
    examples = 100

    @pytest.fixture(autouse=True)
    def _server(self, reliakit_redis_url: str) -> Iterator[None]:
        self.url = reliakit_redis_url
        self.made: list[RedisStore] = []
        yield
        for store in self.made:
            store.close()

    def kept(self) -> Kept:
        clock = ManualClock()
        self.made.append(RedisStore(self.url, clock=clock))
        return Kept(
            self.made[-1],
            advance=clock.advance,
            now=lambda: round(clock.time() * 1e6) * 1000,
            tick=1000,
            windows="clock",
        )


@pytest.fixture(scope="module")
def database(reliakit_postgres: EmbeddedPostgres) -> str:
    """One database for all: each test has a space of its own."""
    reliakit_postgres.start()
    return reliakit_postgres.database()


class TestPostgresStore(StoreSuite):
    examples = 50
    threads = 4

    @pytest.fixture(autouse=True)
    def _server(self, reliakit_postgres: EmbeddedPostgres, database: str) -> Iterator[None]:
        reliakit_postgres.start()
        self.dsn = database
        self.made: list[PostgresStore] = []
        yield
        for store in self.made:
            store.close()

    def kept(self) -> Kept:
        clock = ManualClock()
        self.made.append(PostgresStore(self.dsn, clock=clock, timeout=30.0, max_size=2))
        return Kept(
            self.made[-1],
            advance=clock.advance,
            now=lambda: round(clock.time() * 1e6) * 1000,
            tick=1000,
            windows="clock",
        )
