"""Transactions by psycopg's own pool and by reliakit, in threads and in tasks, and how to run any of them repeatedly.

All do the same: a SELECT by key, followed by an UPDATE of the row where they are to write.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from time import perf_counter
from typing import TYPE_CHECKING

import psycopg_pool
from transaction_peers import CONNECTIONS, AsyncOne, One, async_peers, sync_peers

from reliakit.database import AsyncDatabase, AsyncTransaction, Database, Transaction

if TYPE_CHECKING:
    import psycopg

RAW = "raw pool"
ROWS = 1024
WORKERS = 16
SELECT = "SELECT v FROM t WHERE id = %s"
UPDATE = "UPDATE t SET v = v + 1 WHERE id = %s"
# What reliakit asks for in one round trip, written by hand.
LIMITS = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = 5000; "
    "SET LOCAL idle_in_transaction_session_timeout = 5000"
)
COMMANDS = LIMITS.split("; ")  # a pipeline takes one command at a time


class Threads:
    """Transactions in threads, one after the other or by a crowd."""

    colour = "sync"

    def __init__(self, dsn: str, *, write: bool, peers: bool) -> None:
        self._stack = ExitStack()
        self.ones = self._variants(dsn, write=write)
        if peers:
            self.ones |= sync_peers(dsn, self._stack, write=write)

    def _variants(self, dsn: str, *, write: bool) -> dict[str, One]:
        pool, autocommit = (
            self._stack.enter_context(
                psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=CONNECTIONS, kwargs={"autocommit": own})
            )
            for own in (False, True)
        )
        db = self._stack.enter_context(Database(dsn, max_size=CONNECTIONS))

        def work(on: psycopg.Connection | Transaction | Database, key: int) -> object:
            row = on.execute(SELECT, (key,)).fetchone()
            if write:
                on.execute(UPDATE, (key,))
            return row

        def raw(key: int) -> object:
            with pool.connection() as connection:
                return work(connection, key)

        def block(key: int) -> object:
            with pool.connection() as connection, connection.transaction():
                return work(connection, key)

        def limited(key: int) -> object:
            with pool.connection() as connection, connection.transaction():
                connection.execute("SET LOCAL statement_timeout = 5000")
                return work(connection, key)

        def by_hand(key: int) -> object:
            with autocommit.connection() as connection:
                connection.execute(LIMITS)
                try:
                    row = work(connection, key)
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
                return row

        def pipelined(key: int) -> object:
            with autocommit.connection() as connection:
                with connection.pipeline():
                    for command in COMMANDS:
                        connection.execute(command)
                    cursor = connection.execute(SELECT, (key,))
                try:
                    row = cursor.fetchone()  # in the pipeline this would be a round trip of its own
                    if write:
                        connection.execute(UPDATE, (key,))
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                connection.execute("COMMIT")
                return row

        def transaction(key: int) -> object:
            with db.transaction() as tx:
                return work(tx, key)

        @db.transactional
        def decorated(key: int) -> object:
            return work(db, key)

        return {
            RAW: raw,
            "raw pool again (A/A)": raw,
            "psycopg transaction()": block,
            "psycopg transaction() + SET LOCAL": limited,
            "psycopg, all limits by hand": by_hand,
            "psycopg, pipeline by hand": pipelined,
            "reliakit transaction()": transaction,
            "reliakit run()": lambda key: db.run(work, key),
            "reliakit run(pipeline=True)": lambda key: db.run(work, key, pipeline=True),
            "reliakit @transactional": decorated,
        }

    def repeat(self, one: One, times: int) -> None:
        """Run so many transactions, one after the other."""
        for key in range(times):
            one(key % ROWS)

    def crowd(self, one: One, times: int) -> list[float]:
        """Run so many in each of the workers at once, on rows of their own; return how long each took."""
        taken: list[float] = []

        def work(key: int) -> None:
            for _ in range(times):
                key = (key + WORKERS) % ROWS
                begin = perf_counter()
                one(key)
                taken.append(perf_counter() - begin)

        with ThreadPoolExecutor(WORKERS) as crowd:
            for done in [crowd.submit(work, number) for number in range(WORKERS)]:
                done.result()
        return taken

    def close(self) -> None:
        """Close every pool."""
        self._stack.close()


class Tasks:
    """Transactions in tasks of one event loop, one after the other or by a crowd."""

    colour = "async"

    def __init__(self, dsn: str, *, write: bool, peers: bool) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.ones = self._runner.run(self._variants(dsn, write=write))
        if peers:
            self.ones |= self._runner.run(async_peers(dsn, self._stack, write=write))

    async def _variants(self, dsn: str, *, write: bool) -> dict[str, AsyncOne]:
        pool, autocommit = [
            await self._stack.enter_async_context(
                psycopg_pool.AsyncConnectionPool(
                    dsn, min_size=1, max_size=CONNECTIONS, open=False, kwargs={"autocommit": own}
                )
            )
            for own in (False, True)
        ]
        db = await self._stack.enter_async_context(AsyncDatabase(dsn, max_size=CONNECTIONS))

        async def work(on: psycopg.AsyncConnection | AsyncTransaction | AsyncDatabase, key: int) -> object:
            row = await (await on.execute(SELECT, (key,))).fetchone()
            if write:
                await on.execute(UPDATE, (key,))
            return row

        async def raw(key: int) -> object:
            async with pool.connection() as connection:
                return await work(connection, key)

        async def block(key: int) -> object:
            async with pool.connection() as connection, connection.transaction():
                return await work(connection, key)

        async def limited(key: int) -> object:
            async with pool.connection() as connection, connection.transaction():
                await connection.execute("SET LOCAL statement_timeout = 5000")
                return await work(connection, key)

        async def by_hand(key: int) -> object:
            async with autocommit.connection() as connection:
                await connection.execute(LIMITS)
                try:
                    row = await work(connection, key)
                except BaseException:
                    await connection.execute("ROLLBACK")
                    raise
                await connection.execute("COMMIT")
                return row

        async def pipelined(key: int) -> object:
            async with autocommit.connection() as connection:
                async with connection.pipeline():
                    for command in COMMANDS:
                        await connection.execute(command)
                    cursor = await connection.execute(SELECT, (key,))
                try:
                    row = await cursor.fetchone()  # in the pipeline this would be a round trip of its own
                    if write:
                        await connection.execute(UPDATE, (key,))
                except BaseException:
                    await connection.execute("ROLLBACK")
                    raise
                await connection.execute("COMMIT")
                return row

        async def transaction(key: int) -> object:
            async with db.transaction() as tx:
                return await work(tx, key)

        async def run(key: int) -> object:
            return await db.run(work, key)

        async def run_pipelined(key: int) -> object:
            return await db.run(work, key, pipeline=True)

        @db.transactional
        async def decorated(key: int) -> object:
            return await work(db, key)

        return {
            RAW: raw,
            "raw pool again (A/A)": raw,
            "psycopg transaction()": block,
            "psycopg transaction() + SET LOCAL": limited,
            "psycopg, all limits by hand": by_hand,
            "psycopg, pipeline by hand": pipelined,
            "reliakit transaction()": transaction,
            "reliakit run()": run,
            "reliakit run(pipeline=True)": run_pipelined,
            "reliakit @transactional": decorated,
        }

    def repeat(self, one: AsyncOne, times: int) -> None:
        """Run so many transactions, one after the other."""

        async def work() -> None:
            for key in range(times):
                await one(key % ROWS)

        self._runner.run(work())

    def crowd(self, one: AsyncOne, times: int) -> list[float]:
        """Run so many in each of the workers at once, on rows of their own; return how long each took."""
        taken: list[float] = []

        async def work(key: int) -> None:
            for _ in range(times):
                key = (key + WORKERS) % ROWS
                begin = perf_counter()
                await one(key)
                taken.append(perf_counter() - begin)

        async def together() -> None:
            async with asyncio.TaskGroup() as crowd:
                for number in range(WORKERS):
                    crowd.create_task(work(number))

        self._runner.run(together())
        return taken

    def close(self) -> None:
        """Close every pool."""
        self._runner.run(self._stack.aclose())
        self._runner.close()
