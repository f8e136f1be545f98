"""Shared limits beside `limits`, `throttled-py` and `pyrate-limiter`, on a real Redis and a real PostgreSQL.

    python benchmarks/ratelimit_stores.py [--quick] [--only redis|postgres]

What a decision costs is the processor time of this thread and of its server together, so that other programs on the
machine weigh less than on the clock; on Linux only, elsewhere it is the time on the clock. Rounds are shuffled anew.
One case stands in twice; the second is the control. Floors show what is attainable: a bare PING for Redis, a prepared
SELECT 1 and a prepared UPDATE of one row for PostgreSQL, over the same kind of socket and nothing around them. Beside
the speeds stands whether exactly N are admitted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import multiprocessing
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from interleave import interleave, python, report, skipped

from reliakit import Limit, PostgresStore, RateLimiter, RedisStore
from reliakit.testing import EmbeddedPostgres, EmbeddedRedis

KEYS = [f"user:{number}" for number in range(200)]
TASKS = 32
MANY = ("1000000/s", "10000000/min", "100000000/h")
Hit = Callable[[str], Any]


class Meter:
    """Processor time of this thread and of its servers, in nanoseconds."""

    def __init__(self, *servers: int) -> None:
        self._servers = servers

    def __call__(self) -> int:
        """Return the time so far."""
        try:
            return time.thread_time_ns() + sum(self._spent(pid) for server in self._servers for pid in family(server))
        except OSError:
            return time.perf_counter_ns()

    @staticmethod
    def _spent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
        except ProcessLookupError:
            return 0


def family(pid: int) -> list[int]:
    """Return a process and its children."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def over_keys(meter: Meter, hit: Hit, batch: int) -> Callable[[], float]:
    """Return a sample: nanoseconds for one hit."""

    def sample() -> float:
        begin = meter()
        for key in itertools.islice(itertools.cycle(KEYS), batch):
            hit(key)
        return (meter() - begin) / batch

    return sample


def over_tasks(
    meter: Meter, loop: asyncio.AbstractEventLoop, hit: Callable[[str], Awaitable[Any]], batch: int
) -> Callable[[], float]:
    """Return the same of many tasks at once."""

    async def one(number: int) -> None:
        for step in range(batch // TASKS):
            await hit(KEYS[(number * 7 + step) % len(KEYS)])

    async def all_of_them() -> None:
        await asyncio.gather(*[one(number) for number in range(TASKS)])

    def sample() -> float:
        begin = meter()
        loop.run_until_complete(all_of_them())
        return (meter() - begin) / (batch // TASKS * TASKS)

    return sample


def all_of(*hits: Hit) -> Hit:
    """Return what a peer without several limits does: one after the other."""

    def hit(key: str) -> bool:
        return min([one(key) is not None for one in hits])

    return hit


@contextmanager
def peer(name: str) -> Any:
    """Leave a peer out that is not installed."""
    try:
        yield
    except ImportError:
        skipped(name)


class Redis:
    """The cases on one Redis."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        import redis
        import redis.asyncio

        self.url, self.loop = url, loop
        self.client: Any = redis.Redis.from_url(url)
        self.store = RedisStore(url)
        settings: dict[str, Any] = {"store": self.store, "store_timeout": 60.0}
        self.check = RateLimiter("1/s", **settings)
        one, three = RateLimiter(MANY[0], name="one", **settings), RateLimiter(*MANY, name="three", **settings)
        again = RateLimiter(MANY[0], name="again", **settings)
        self.one: dict[str, Hit] = {"reliakit": one.hit, "reliakit (again)": again.hit}
        for algorithm in ("sliding_counter", "fixed_window"):
            other = RateLimiter(Limit(10**6, algorithm=algorithm), name=algorithm, **settings)
            self.one[f"reliakit {algorithm}"] = other.hit
        self.three: dict[str, Hit] = {"reliakit": three.hit}
        for cases in (self.one, self.three):
            cases["floor: PING"] = self._ping()
        self.tasks: dict[str, Callable[[str], Awaitable[Any]]] = {
            "reliakit": one.ahit,
            "reliakit (again)": again.ahit,
        }
        for add in (self._limits, self._throttled, self._pyrate):
            with peer(add.__name__.strip("_")):
                add()

    def _ping(self) -> Hit:
        """Return the least that a round trip can cost: no library, no deadline, nothing to decide."""
        address = urlsplit(self.url)
        connection = socket.create_connection((str(address.hostname), address.port or 6379))

        def ask(words: bytes) -> bytes:
            connection.sendall(words)
            return connection.recv(4096)

        assert ask(f"AUTH {address.password}\r\n".encode()) == b"+OK\r\n"
        return lambda _: ask(b"*1\r\n$4\r\nPING\r\n")

    def _limits(self) -> None:
        import limits
        import limits.aio

        rules = [limits.parse(text) for text in ("1000000/second", "10000000/minute", "100000000/hour")]
        storage: Any = limits.storage.RedisStorage(f"redis+{self.url}" if "unix" in self.url else self.url)
        astorage: Any = limits.aio.storage.RedisStorage(
            f"async+redis+{self.url}" if "unix" in self.url else f"async+{self.url}", implementation="redispy"
        )
        for name in ("FixedWindow", "SlidingWindowCounter", "MovingWindow"):
            made = getattr(limits.strategies, f"{name}RateLimiter")(storage)
            self.one[f"limits {name}"] = lambda key, made=made: made.hit(rules[0], key, made.__class__.__name__)
            amade = getattr(limits.aio.strategies, f"{name}RateLimiter")(astorage)
            self.tasks[f"limits {name}"] = lambda key, amade=amade: amade.hit(
                rules[0], key, "tasks", amade.__class__.__name__
            )
            if name != "MovingWindow":
                self.three[f"limits {name}, three hits"] = all_of(
                    *[
                        lambda key, made=made, rule=rule: made.hit(rule, key, "three", made.__class__.__name__)
                        for rule in rules
                    ]
                )

    def _throttled(self) -> None:
        import throttled
        import throttled.asyncio

        for algorithm in ("fixed_window", "token_bucket", "gcra"):
            made = [self._throttle(throttled, algorithm, number) for number in range(3)]
            self.one[f"throttled {algorithm}"] = made[0].limit
            self.three[f"throttled {algorithm}, three hits"] = all_of(*[one.limit for one in made])
            self.tasks[f"throttled {algorithm}"] = self._throttle(throttled.asyncio, algorithm, 0).limit

    def _throttle(self, throttled: Any, algorithm: str, number: int) -> Any:
        from throttled import rate_limiter

        quota = (rate_limiter.per_sec, rate_limiter.per_min, rate_limiter.per_hour)[number](10 ** (6 + number))
        store = throttled.RedisStore(server=self.url)
        return throttled.Throttled(using=algorithm, quota=quota, store=store)

    def _pyrate(self) -> None:
        import redis.asyncio
        from pyrate_limiter import Duration, Limiter, Rate, RedisBucket

        rates = [Rate(10**6, Duration.SECOND), Rate(10**7, Duration.MINUTE), Rate(10**8, Duration.HOUR)]
        one = Limiter(RedisBucket.init(rates[:1], self.client, "pyrate one"))
        self.one["pyrate (one key)"] = lambda key: one.try_acquire(key, blocking=False)
        three = Limiter(RedisBucket.init(rates, self.client, "pyrate three"))
        self.three["pyrate (one key)"] = lambda key: three.try_acquire(key, blocking=False)

        async def tasks() -> Limiter:
            client = redis.asyncio.Redis.from_url(self.url)
            return Limiter(await RedisBucket.init(rates[:1], client, "pyrate tasks"))

        tasked = self.loop.run_until_complete(tasks())
        self.tasks["pyrate (one key)"] = lambda key: tasked.try_acquire_async(key, blocking=False)

    def compare(self, quick: bool) -> dict[str, bool]:
        rounds, batch = (5, 96) if quick else (31, 480)
        meter = Meter(int(self.client.info("server")["process_id"]))
        checks: dict[str, bool] = {}
        for title, cases, target in (
            ("one limit", {name: over_keys(meter, hit, batch) for name, hit in self.one.items()}, 1.0),
            ("three limits", {name: over_keys(meter, hit, batch) for name, hit in self.three.items()}, 2.0),
            (
                f"one limit, {TASKS} tasks",
                {name: over_tasks(meter, self.loop, hit, 4 * batch) for name, hit in self.tasks.items()},
                2.0,
            ),
        ):
            for sample in cases.values():
                sample()
            medians = report(
                f"Redis, {title} ({rounds} rounds; ns, ratio to 'reliakit')", interleave(cases, rounds), "reliakit"
            )
            for name, median in medians.items():
                if not name.startswith(("reliakit", "floor")):
                    checks[f"Redis, {title}: {name} takes at least {target:g}x"] = (
                        median >= target * medians["reliakit"]
                    )
        assert not self.check.peek("k").degraded  # else a memory store was measured
        return checks


def floors(connection: Any) -> dict[str, Hit]:
    """Return the least that a round trip to PostgreSQL can cost, and one that writes a row without a disk."""
    from psycopg import generators, waiting

    connection.execute("SET synchronous_commit = off")
    connection.execute("CREATE UNLOGGED TABLE floor (id int PRIMARY KEY, n bigint) WITH (fillfactor = 50)")
    connection.execute("INSERT INTO floor SELECT n, 0 FROM generate_series(0, %s) AS n", (len(KEYS) - 1,))
    pgconn = connection.pgconn
    places = {key: [b"%d" % place] for place, key in enumerate(KEYS)}

    def results() -> Any:
        return waiting.wait(generators.execute(pgconn), pgconn.socket, 0.1)

    pgconn.send_prepare(b"one", b"SELECT 1")
    results()
    pgconn.send_prepare(b"row", b"UPDATE floor SET n = n + 1 WHERE id = $1::int RETURNING n")
    results()

    def ask(name: bytes, params: list[bytes] | None) -> Any:
        pgconn.send_query_prepared(name, params)
        return results()

    return {"floor: SELECT 1": lambda _: ask(b"one", None), "floor: UPDATE": lambda key: ask(b"row", places[key])}


def compare_postgres(conninfo: str, quick: bool) -> dict[str, bool]:
    rounds, batch = (5, 48) if quick else (31, 200)
    checks: dict[str, bool] = {}
    with ExitStack() as stack:
        store = PostgresStore(conninfo)
        stack.callback(store.close)
        settings: dict[str, Any] = {"store": store, "store_timeout": 60.0}
        cases = {
            "reliakit": RateLimiter(MANY[0], **settings).hit,
            "reliakit (again)": RateLimiter(MANY[0], name="again", **settings).hit,
            "reliakit three limits": RateLimiter(*MANY, **settings).hit,
        }
        with peer("pyrate_limiter"):
            import psycopg_pool
            from pyrate_limiter import Duration, Limiter, PostgresBucket, Rate

            pool = stack.enter_context(psycopg_pool.ConnectionPool(conninfo, min_size=1))
            pyrate = Limiter(PostgresBucket(pool, "pyrate", [Rate(10**6, Duration.SECOND)]))
            cases["pyrate (one key)"] = lambda key: pyrate.try_acquire(key, blocking=False)
        with peer("psycopg"):
            import psycopg

            connection = stack.enter_context(psycopg.connect(conninfo, autocommit=True))
            cases |= floors(connection)
            row = connection.execute("SELECT pg_read_file('postmaster.pid')").fetchone()
            meter = Meter(int(str(row[0]).split()[0]) if row else 0)
        samples = {name: over_keys(meter, hit, batch) for name, hit in cases.items()}
        for sample in samples.values():
            sample()
        medians = report(
            f"PostgreSQL ({rounds} rounds; ns, ratio to 'reliakit')", interleave(samples, rounds), "reliakit"
        )
        assert not RateLimiter("1/s", **settings).peek("k").degraded  # else a memory store was measured
        if "pyrate (one key)" in medians:
            checks["PostgreSQL: pyrate takes at least 5x"] = medians["pyrate (one key)"] >= 5 * medians["reliakit"]
    return checks


def in_a_process(kind: str, address: str, skew: float, counts: Any) -> None:
    """Hit as a process of its own, whose clock is off."""
    import reliakit.core.clock as clock

    clock.SystemClock.time = staticmethod(lambda real=clock.SystemClock.time: real() + skew)
    store: Any = RedisStore(address) if kind == "Redis" else PostgresStore(address, timeout=60.0)
    limiter = RateLimiter("1000/h", name="exact", store=store, store_timeout=60.0)
    admitted: list[bool] = []
    threads = [
        threading.Thread(target=lambda: admitted.extend([limiter.hit("k").allowed for _ in range(100)]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    counts.put(sum(admitted))


def exactly(kind: str, address: str) -> dict[str, bool]:
    """Return whether four processes of eight threads, with clocks up to an hour apart, get exactly 1000."""
    context = multiprocessing.get_context("spawn")
    counts = context.SimpleQueue()
    processes = [
        context.Process(target=in_a_process, args=(kind, address, skew, counts))
        for skew in (0.0, 61.0, -61.0, 3600.0)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    total = sum(counts.get() for _ in processes)
    print(f"\n{kind}: of 3200 hits under 1000/h from 4 processes of 8 threads, {total} admitted")
    return {f"{kind}: exactly 1000 admitted": total == 1000}


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, below 20 seconds")
    parser.add_argument("--only", choices=("redis", "postgres"))
    chosen = parser.parse_args()
    quick = chosen.quick
    logging.getLogger("pyrate_limiter").setLevel(logging.CRITICAL)
    print(python())
    checks: dict[str, bool] = {}
    if chosen.only != "postgres":
        with EmbeddedRedis(port=0) as server:
            loop = asyncio.new_event_loop()
            print(server)
            checks |= Redis(f"{server.tcp_url}/0", loop).compare(quick)
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            checks |= exactly("Redis", server.url)
    if chosen.only != "redis":
        with EmbeddedPostgres(port=0) as database:
            conninfo = database.database()
            print(database)
            checks |= compare_postgres(conninfo, quick)
            checks |= exactly("PostgreSQL", conninfo)
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


if __name__ == "__main__":
    main()
