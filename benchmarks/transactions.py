"""What a transaction costs beside raw psycopg: one SELECT by key, on a Unix socket, in threads' and tasks' code.

All cases run in one process and one interleaved run in random order, on one connection each, so that nobody waits for
another. "raw again" is the control: its ratio is what chance makes of equals. Round trips are counted at the wire.

    python benchmarks/transactions.py [--quick]
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import psycopg
import psycopg_pool

from reliakit import AsyncDatabase, Database, Isolation
from reliakit.testing import EmbeddedPostgres, FaultProxy

ROWS = 1000
SELECT = "SELECT payload FROM thing WHERE id = %s"
BATCH = 40


def key() -> tuple[int]:
    return (random.randrange(ROWS),)


def sync_cases(dsn: str) -> tuple[dict[str, Callable[[], object]], list[Callable[[], None]]]:
    """Return the cases for threads, and what closes them."""
    pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, kwargs={"autocommit": True}, open=True)
    db = Database(dsn, max_size=1)
    committed = Database(dsn, max_size=1, isolation=Isolation.READ_COMMITTED, retry=None)

    def raw() -> object:
        with pool.connection() as connection:
            connection.execute("BEGIN")
            row = connection.execute(SELECT, key()).fetchone()
            connection.execute("COMMIT")
        return row

    def raw_with_timeouts() -> object:
        with pool.connection() as connection:
            connection.execute("BEGIN")
            connection.execute("SET LOCAL statement_timeout = 5000")
            row = connection.execute(SELECT, key()).fetchone()
            connection.execute("COMMIT")
        return row

    def psycopg_transaction() -> object:
        with pool.connection() as connection, connection.transaction():
            return connection.execute(SELECT, key()).fetchone()

    def block() -> object:
        with db.transaction() as tx:
            return tx.fetch_one(SELECT, key())

    def run() -> object:
        return db.run(lambda tx: tx.fetch_one(SELECT, key()))

    def read_committed() -> object:
        with committed.transaction() as tx:
            return tx.fetch_one(SELECT, key())

    cases: dict[str, Callable[[], object]] = {
        "raw": raw,
        "raw again": raw,
        "raw + SET LOCAL statement_timeout": raw_with_timeouts,
        "psycopg transaction()": psycopg_transaction,
        "reliakit transaction(), with timeouts": block,
        "reliakit run(), with timeouts": run,
        "reliakit transaction(), READ COMMITTED": read_committed,
    }
    return cases, [pool.close, db.close, committed.close]


async def async_cases(
    dsn: str,
) -> tuple[dict[str, Callable[[], Awaitable[object]]], list[Callable[[], Awaitable[None]]]]:
    """Return the cases for tasks, and what closes them."""
    pool = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, kwargs={"autocommit": True}, open=False)
    await pool.open()
    db = AsyncDatabase(dsn, max_size=1)

    async def raw() -> object:
        async with pool.connection() as connection:
            await connection.execute("BEGIN")
            row = await (await connection.execute(SELECT, key())).fetchone()
            await connection.execute("COMMIT")
        return row

    async def psycopg_transaction() -> object:
        async with pool.connection() as connection, connection.transaction():
            return await (await connection.execute(SELECT, key())).fetchone()

    async def block() -> object:
        async with db.transaction() as tx:
            return await tx.fetch_one(SELECT, key())

    async def work(tx: object) -> object:
        return await tx.fetch_one(SELECT, key())  # type: ignore[attr-defined]

    async def run() -> object:
        return await db.run(work)

    cases: dict[str, Callable[[], Awaitable[object]]] = {
        "async raw": raw,
        "async raw again": raw,
        "async psycopg transaction()": psycopg_transaction,
        "async reliakit transaction(), with timeouts": block,
        "async reliakit run(), with timeouts": run,
    }
    return cases, [pool.close, db.close]


def show(taken: dict[str, list[float]]) -> None:
    """Print medians, and the median of each round's ratio to the first case, with its quartiles."""
    reference, *_ = taken
    print(f"\n{len(taken[reference])} rounds of {BATCH} transactions; us, ratio to {reference!r} [quartiles]")
    for name, samples in taken.items():
        ratios = [mine / other for mine, other in zip(samples, taken[reference], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"  {name:46} {statistics.median(samples) * 1e6:8.1f}  {middle:5.2f}x [{low:.2f} to {high:.2f}]")


def measure(dsn: str, rounds: int) -> None:
    """Measure the cases for threads."""
    cases, closers = sync_cases(dsn)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(BATCH):
            case()
    for _ in range(rounds):
        for name in random.sample(list(cases), len(cases)):
            case = cases[name]
            begin = time.perf_counter()
            for _ in range(BATCH):
                case()
            taken[name].append((time.perf_counter() - begin) / BATCH)
    show(taken)
    for close in closers:
        close()


async def ameasure(dsn: str, rounds: int) -> None:
    """Measure the cases for tasks."""
    cases, closers = await async_cases(dsn)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        for _ in range(BATCH):
            await case()
    for _ in range(rounds):
        for name in random.sample(list(cases), len(cases)):
            case = cases[name]
            begin = time.perf_counter()
            for _ in range(BATCH):
                await case()
            taken[name].append((time.perf_counter() - begin) / BATCH)
    show(taken)
    for close in closers:
        await close()


def count_round_trips(dsn: str) -> None:
    """Print how often a transaction of one statement waits for the server."""
    with FaultProxy(dsn) as proxy, Database(proxy.dsn(), max_size=1) as db:
        for _ in range(6):  # psycopg prepares a statement that it has seen five times
            db.run(lambda tx: tx.fetch_one(SELECT, key()))
        before = proxy.stats().round_trips
        for _ in range(10):
            db.run(lambda tx: tx.fetch_one(SELECT, key()))
        print(f"\nround trips of reliakit run() with one statement: {(proxy.stats().round_trips - before) / 10:g}")


def main() -> None:
    rounds = 15 if "--quick" in sys.argv else 120
    with EmbeddedPostgres() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE thing (id int PRIMARY KEY, payload text NOT NULL)")
            connection.execute(
                "INSERT INTO thing SELECT n, repeat('x', 40) FROM generate_series(0, %s) AS n", (ROWS,)
            )
            connection.execute("ANALYZE thing")
        print(f"PostgreSQL {server.version}, psycopg {psycopg.__version__}, Python {sys.version.split()[0]}")
        measure(server.dsn, rounds)
        asyncio.run(ameasure(server.dsn, rounds))
        with_tcp = EmbeddedPostgres(port=0)
        with with_tcp:
            with psycopg.connect(with_tcp.dsn, autocommit=True) as connection:
                connection.execute(
                    "CREATE TABLE thing AS SELECT n AS id, 'x' AS payload FROM generate_series(0, 1000) AS n"
                )
            count_round_trips(with_tcp.tcp_dsn)


if __name__ == "__main__":
    main()
