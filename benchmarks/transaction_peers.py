"""The transaction layers beside reliakit, each as its documentation shows it: SQLAlchemy Core, Django, asyncpg.

Each takes a connection from its pool for one transaction and gives it back, as the raw pool and reliakit do. Django
would keep its connection for a whole request; here each transaction is a request of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from functools import cache
from importlib.util import find_spec
from itertools import count

from interleave import skipped
from psycopg.conninfo import conninfo_to_dict

One = Callable[[int], object]
AsyncOne = Callable[[int], Awaitable[object]]

CONNECTIONS = 10
_alias = (f"bench{number}" for number in count())


@cache
def has(module: str, package: str) -> bool:
    """Tell whether a peer is installed; say so, once, if it is not."""
    found = find_spec(module) is not None
    if not found:
        skipped(package)
    return found


def sync_peers(dsn: str, stack: ExitStack, *, write: bool) -> dict[str, One]:
    """Return one transaction of each installed peer: a SELECT by key, followed by an UPDATE if it is to write."""
    peers: dict[str, One] = {}
    if has("sqlalchemy", "sqlalchemy"):
        peers["SQLAlchemy Core"] = _sqlalchemy(dsn, stack, write=write)
    if has("django", "django"):
        peers["Django atomic"] = _django(dsn, stack, write=write)
    return peers


async def async_peers(dsn: str, stack: AsyncExitStack, *, write: bool) -> dict[str, AsyncOne]:
    """Return the same for tasks. Django is missing here: its transactions are sync only."""
    peers: dict[str, AsyncOne] = {}
    if has("sqlalchemy", "sqlalchemy") and has("greenlet", "sqlalchemy[asyncio]"):
        peers["SQLAlchemy Core"] = _async_sqlalchemy(dsn, stack, write=write)
    if has("asyncpg", "asyncpg"):
        peers |= await _asyncpg(dsn, stack, write=write)
    return peers


def _sqlalchemy_statements(dsn: str):
    import sqlalchemy as sa

    table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", sa.Integer))
    mine = table.c.id == sa.bindparam("key")
    words = conninfo_to_dict(dsn)
    url = sa.URL.create(
        "postgresql+psycopg",
        words.get("user"),
        words.get("password"),
        words.get("host"),
        int(words.get("port") or 5432),
        words.get("dbname"),
    )
    return url, sa.select(table.c.v).where(mine), sa.update(table).where(mine).values(v=table.c.v + 1)


def _sqlalchemy(dsn: str, stack: ExitStack, *, write: bool) -> One:
    import sqlalchemy as sa

    url, select, update = _sqlalchemy_statements(dsn)
    engine = sa.create_engine(url, pool_size=CONNECTIONS, max_overflow=0)
    stack.callback(engine.dispose)

    def one(key: int) -> object:
        with engine.begin() as connection:
            row = connection.execute(select, {"key": key}).first()
            if write:
                connection.execute(update, {"key": key})
            return row

    return one


def _async_sqlalchemy(dsn: str, stack: AsyncExitStack, *, write: bool) -> AsyncOne:
    from sqlalchemy.ext.asyncio import create_async_engine

    url, select, update = _sqlalchemy_statements(dsn)
    engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0)
    stack.push_async_callback(engine.dispose)

    async def one(key: int) -> object:
        async with engine.begin() as connection:
            row = (await connection.execute(select, {"key": key})).first()
            if write:
                await connection.execute(update, {"key": key})
            return row

    return one


def _django(dsn: str, stack: ExitStack, *, write: bool) -> One:
    import django
    from django.conf import settings
    from django.db import connections, transaction

    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    words = conninfo_to_dict(dsn)
    configured = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": words.get("dbname"),
            "USER": words.get("user"),
            "PASSWORD": words.get("password") or "",
            "HOST": words.get("host"),
            "PORT": words.get("port"),
            "OPTIONS": {"pool": {"min_size": 1, "max_size": CONNECTIONS}},
        }
    }
    alias = next(_alias)
    connections.databases[alias] = connections.configure_settings(configured)["default"]
    stack.callback(connections[alias].close_pool)

    def one(key: int) -> object:
        try:
            with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                cursor.execute("SELECT v FROM t WHERE id = %s", (key,))
                row = cursor.fetchone()
                if write:
                    cursor.execute("UPDATE t SET v = v + 1 WHERE id = %s", (key,))
                return row
        finally:
            connections[alias].close()  # what the end of a request does: back into the pool

    return one


async def _asyncpg(dsn: str, stack: AsyncExitStack, *, write: bool) -> dict[str, AsyncOne]:
    import asyncpg

    words = conninfo_to_dict(dsn)
    pool = await stack.enter_async_context(
        asyncpg.create_pool(
            host=words.get("host"),
            port=int(words.get("port") or 5432),
            user=words.get("user"),
            password=words.get("password"),
            database=words.get("dbname"),
            ssl=False,
            min_size=1,
            max_size=CONNECTIONS,
            max_queries=10**9,  # a connection is not replaced while it is measured
        )
    )

    async def work(connection: asyncpg.Connection, key: int) -> object:
        row = await connection.fetchrow("SELECT v FROM t WHERE id = $1", key)
        if write:
            await connection.execute("UPDATE t SET v = v + 1 WHERE id = $1", key)
        return row

    async def one(key: int) -> object:
        async with pool.acquire() as connection, connection.transaction():
            return await work(connection, key)

    async def limited(key: int) -> object:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = 5000")
            return await work(connection, key)

    return {"asyncpg": one, "asyncpg + SET LOCAL": limited}
