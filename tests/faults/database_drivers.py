"""What the tests of faults in transactions share: one script for both colours, and faults at every step.

```
play("threads" | "tasks", dsn, script)      the same coroutine drives a Database or an AsyncDatabase
Injected(work, {3: cancel})                 does something at the 3rd suspension of a coroutine
```
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from typing import Any

import psycopg_pool
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from reliakit.core.errors import CommitUnknownError
from reliakit.core.flow import run_blocking
from reliakit.database import AsyncDatabase, Database, Propagation
from reliakit.integrations.sqlalchemy import AsyncEnginePool, EnginePool

Anybase = Database | AsyncDatabase
COLOURS = ["threads", "tasks"]
SOURCES = ["own connections", "a pool"]
SIZE = 2
DIALECT = "postgresql+psycopg://"


async def got(value: Any) -> Any:
    """Return what a method of either colour returns."""
    return await value if inspect.isawaitable(value) else value


@contextlib.asynccontextmanager
async def block(db: Anybase, **options: Any) -> AsyncIterator[Any]:
    """A `transaction()` block of either colour."""
    if isinstance(db, AsyncDatabase):
        async with db.transaction(**options) as tx:
            yield tx
    else:
        with db.transaction(**options) as tx:
            yield tx


async def run(db: Anybase, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **options: Any) -> Any:
    """`run()` of either colour, with an async function."""
    if isinstance(db, AsyncDatabase):
        return await db.run(fn, *args, **options)
    return db.run(lambda tx, *given: run_blocking(fn(tx, *given)), *args, operation=fn.__name__, **options)


def engine_of(dsn: str, size: int = SIZE, **settings: Any) -> Engine:
    """An SQLAlchemy engine whose pool lends so many connections."""
    return create_engine(DIALECT, connect_args=conninfo_to_dict(dsn), pool_size=size, max_overflow=0, **settings)


def async_engine_of(dsn: str, size: int = SIZE, **settings: Any) -> AsyncEngine:
    """Its twin."""
    connect_args = conninfo_to_dict(dsn)
    return create_async_engine(DIALECT, connect_args=connect_args, pool_size=size, max_overflow=0, **settings)


@contextlib.asynccontextmanager
async def opened(colour: str, dsn: str, source: str = SOURCES[0], **settings: Any) -> AsyncIterator[Any]:
    """A database of either colour, with connections of its own or those of a pool, at most `max_size`."""
    settings = {"max_size": SIZE} | settings
    async with contextlib.AsyncExitStack() as stack:
        if colour == "tasks":
            if source == "a pool":
                pool = psycopg_pool.AsyncConnectionPool(
                    dsn, min_size=1, max_size=settings.pop("max_size"), open=False
                )
                yield await stack.enter_async_context(
                    AsyncDatabase(await stack.enter_async_context(pool), **settings)
                )
            elif source == "an engine":
                engine = async_engine_of(dsn, settings.pop("max_size"))
                stack.push_async_callback(engine.dispose)
                yield await stack.enter_async_context(AsyncDatabase(AsyncEnginePool(engine), **settings))
            else:
                yield await stack.enter_async_context(AsyncDatabase(dsn, **settings))
        elif source == "a pool":
            pool = psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=settings.pop("max_size"), open=True)
            yield stack.enter_context(Database(stack.enter_context(pool), **settings))
        elif source == "an engine":
            lender = engine_of(dsn, settings.pop("max_size"))
            stack.callback(lender.dispose)
            yield stack.enter_context(Database(EnginePool(lender), **settings))
        else:
            yield stack.enter_context(Database(dsn, **settings))


def play(
    colour: str,
    dsn: str,
    script: Callable[[Any], Coroutine[Any, Any, Any]],
    source: str = SOURCES[0],
    **settings: Any,
) -> Any:
    """Run a script on a database of this colour, in this thread or in a loop of its own, and judge it for leaks."""

    async def whole() -> Any:
        async with opened(colour, dsn, source, **settings) as db:
            result = await script(db)
            await all_obtainable(db)
            return result

    return asyncio.run(whole()) if colour == "tasks" else run_blocking(whole())


async def all_obtainable(db: Anybase) -> None:
    """Fail unless every connection can be had at once, and none is counted as used or lost before or after."""
    size = db._engine.checkouts.size
    before = db.stats()
    assert (before.in_use, before.waiting, before.leaked) == (0, 0, 0), before
    async with contextlib.AsyncExitStack() as stack:
        for count in range(size):
            own = block(db, propagation=Propagation.REQUIRES_NEW, timeout=30.0)
            tx = await stack.enter_async_context(own)
            assert await got(tx.fetch_value("SELECT %s::int", (count,))) == count
        assert db.stats().in_use == size
    assert db.stats().in_use == 0


def verdict_of(error: BaseException | None) -> str:
    """Return what an error, or none, says became of the transaction: committed, rolled back or unknown."""
    if error is None:
        return "committed"
    if isinstance(error, CommitUnknownError) or isinstance(error.__cause__, CommitUnknownError):
        return "unknown"
    notes = " ".join(getattr(error, "__notes__", ()))
    return "committed" if "was committed" in notes else "rolled back"


class Injected:
    """Awaits a coroutine and does something at the given suspensions, counted from 1, with what it waits for."""

    def __init__(self, work: Coroutine[Any, Any, Any], faults: Mapping[int, Callable[[Any], object]]) -> None:
        self.work = work
        self.faults = faults
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = functools.partial(self.work.send, None)
        while True:
            try:
                waited_for = resume()
            except StopIteration as done:
                return done.value
            self.suspensions += 1
            fault = self.faults.get(self.suspensions)
            if fault is not None:
                fault(waited_for)
            try:
                yield waited_for
                resume = functools.partial(self.work.send, None)
            except BaseException as error:
                resume = functools.partial(self.work.throw, error)
