"""The public conformance suite of stores, on our own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reliakit import Limit, RateLimiter
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


class Machines(ManualClock):
    """The clocks of several machines that share a store: each test says whose is read next."""

    at = 0.0

    def monotonic(self) -> float:
        return self.at

    def time(self) -> float:
        return 1_700_000_000.0 + self.at


@pytest.mark.parametrize("kind", ["memory", "redis", "postgres"])
def test_a_log_is_exact_though_clocks_differ(kind: str, request: pytest.FixtureRequest) -> None:
    clock = Machines()
    store: MemoryStore | RedisStore | PostgresStore = MemoryStore(clock=clock)
    if kind == "redis":
        store = RedisStore(request.getfixturevalue("reliakit_redis_url"), clock=clock)
    if kind == "postgres":
        request.getfixturevalue("reliakit_postgres").start()
        store = PostgresStore(request.getfixturevalue("database"), clock=clock, timeout=30.0)
    limit = Limit(4, per=100.0, algorithm="sliding_log")
    limiter = RateLimiter(limit, name="clocks", store=store, store_timeout=30.0)

    def admitted(at: float, tries: int) -> int:
        clock.at = at
        return sum(limiter.hit("k").allowed for _ in range(tries))

    assert admitted(0.5, 1) == admitted(100.0, 1) == 1
    assert admitted(50.0, 3) == 2  # by a clock that is 50 s behind, which counts as if it were not
    assert admitted(160.0, 20) == 1
    assert admitted(199.9, 20) == 0
    assert admitted(200.0, 20) == 3
    store.close()
