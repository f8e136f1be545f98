"""What a transaction costs, beside psycopg alone: one SELECT by key, sync and async, over a Unix socket.

    python benchmarks/transactions.py            about a minute
    python benchmarks/transactions.py --quick    a few seconds, for a smoke test

All variants run in one process, in a new random order each round, with "raw again" as the A/A control: where it
differs from 1.00 the machine was not steady. Printed is the median over the rounds of each variant's time divided by
raw's time in the same round, with the middle half of those ratios. The server is one of our own unless RELIAKIT_DSN
names another. Client and server share one core where the system allows it, so that the scheduler stays out of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter

import psycopg
import psycopg_pool

from reliakit.database import AsyncDatabase, AsyncTransaction, Database, Transaction
from reliakit.testing import EmbeddedPostgres

QUERY = "SELECT v FROM t WHERE id = %s"
ROWS = 1000
BEGIN = (
    "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 5000; "
    "SET LOCAL idle_in_transaction_session_timeout = 5000"
)


def report(title: str, times: dict[str, list[float]]) -> None:
    base = times["raw pool"]
    print(f"\n{title}: raw {statistics.median(base) * 1e6:.1f} us a transaction")
    for name, measured in times.items():
        ratios = sorted(mine / raw for mine, raw in zip(measured, base, strict=True))
        quarter = len(ratios) // 4
        print(f"  {name:24} {statistics.median(ratios):5.2f}x   [{ratios[quarter]:.2f} - {ratios[-quarter - 1]:.2f}]")


def measure(variants: dict[str, Callable[[int], object]], rounds: int, each: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name in random.sample(list(variants), len(variants)):
            run = variants[name]
            started = perf_counter()
            for key in range(each):
                run(key % ROWS)
            if number >= 2:  # the first rounds warm up connections and prepared statements
                times[name].append((perf_counter() - started) / each)
    return times


async def measure_async(
    variants: dict[str, Callable[[int], Awaitable[object]]], rounds: int, each: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name in random.sample(list(variants), len(variants)):
            run = variants[name]
            started = perf_counter()
            for key in range(each):
                await run(key % ROWS)
            if number >= 2:
                times[name].append((perf_counter() - started) / each)
    return times


def sync(dsn: str, rounds: int, each: int) -> None:
    with Database(dsn) as db, psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=10, open=True) as pool:
        pool.wait()

        def raw(key: int) -> object:
            with pool.connection() as connection:
                return connection.execute(QUERY, (key,)).fetchone()

        def raw_again(key: int) -> object:
            with pool.connection() as connection:
                return connection.execute(QUERY, (key,)).fetchone()

        def with_transaction(key: int) -> object:
            with pool.connection() as connection, connection.transaction():
                return connection.execute(QUERY, (key,)).fetchone()

        def with_timeout(key: int) -> object:
            with pool.connection() as connection, connection.transaction():
                connection.execute("SET LOCAL statement_timeout = 5000")
                return connection.execute(QUERY, (key,)).fetchone()

        def by_hand(key: int) -> object:
            with pool.connection() as connection:
                connection.execute(BEGIN)
                return connection.execute(QUERY, (key,)).fetchone()

        def block(key: int) -> object:
            with db.transaction() as tx:
                return tx.fetch_one(QUERY, (key,))

        def body(tx: Transaction, key: int) -> object:
            return tx.fetch_one(QUERY, (key,))

        def run(key: int) -> object:
            return db.run(body, key)

        @db.transactional
        def decorated(key: int) -> object:
            return db.fetch_one(QUERY, (key,))

        variants: dict[str, Callable[[int], object]] = {
            "raw pool": raw,
            "raw pool again (A/A)": raw_again,
            "psycopg transaction()": with_transaction,
            "psycopg + SET LOCAL": with_timeout,
            "psycopg + all limits": by_hand,
            "reliakit transaction()": block,
            "reliakit run()": run,
            "reliakit @transactional": decorated,
        }
        report("sync", measure(variants, rounds, each))


async def asynchronous(dsn: str, rounds: int, each: int) -> None:
    async with (
        AsyncDatabase(dsn) as db,
        psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=10, open=False) as pool,
    ):
        await pool.wait()

        async def raw(key: int) -> object:
            async with pool.connection() as connection:
                return await (await connection.execute(QUERY, (key,))).fetchone()

        async def raw_again(key: int) -> object:
            async with pool.connection() as connection:
                return await (await connection.execute(QUERY, (key,))).fetchone()

        async def with_transaction(key: int) -> object:
            async with pool.connection() as connection, connection.transaction():
                return await (await connection.execute(QUERY, (key,))).fetchone()

        async def with_timeout(key: int) -> object:
            async with pool.connection() as connection, connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = 5000")
                return await (await connection.execute(QUERY, (key,))).fetchone()

        async def by_hand(key: int) -> object:
            async with pool.connection() as connection:
                await connection.execute(BEGIN)
                return await (await connection.execute(QUERY, (key,))).fetchone()

        async def block(key: int) -> object:
            async with db.transaction() as tx:
                return await tx.fetch_one(QUERY, (key,))

        async def body(tx: AsyncTransaction, key: int) -> object:
            return await tx.fetch_one(QUERY, (key,))

        async def run(key: int) -> object:
            return await db.run(body, key)

        @db.transactional
        async def decorated(key: int) -> object:
            return await db.fetch_one(QUERY, (key,))

        variants: dict[str, Callable[[int], Awaitable[object]]] = {
            "raw pool": raw,
            "raw pool again (A/A)": raw_again,
            "psycopg transaction()": with_transaction,
            "psycopg + SET LOCAL": with_timeout,
            "psycopg + all limits": by_hand,
            "reliakit transaction()": block,
            "reliakit run()": run,
            "reliakit @transactional": decorated,
        }
        report("async", await measure_async(variants, rounds, each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds only")
    parser.add_argument("--free", action="store_true", help="let the system choose the cores")
    arguments = parser.parse_args()
    rounds, each = (8, 30) if arguments.quick else (80, 100)
    if hasattr(os, "sched_setaffinity") and not arguments.free:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # inherited by the server
    with EmbeddedPostgres() as server:
        dsn = server.database("bench")
        with psycopg.connect(dsn, autocommit=True) as setup:
            setup.execute("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL)")
            setup.execute("INSERT INTO t SELECT i, i FROM generate_series(0, %s) i", (ROWS,))
            setup.execute("ANALYZE t")
        print(f"PostgreSQL {server.version or ''}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__})")
        sync(dsn, rounds, each)
        asyncio.run(asynchronous(dsn, rounds, each))


if __name__ == "__main__":
    main()
