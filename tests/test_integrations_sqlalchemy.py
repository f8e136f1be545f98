"""SQLAlchemy engines, connections and sessions inside transactions, in threads and in tasks."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine, event, exc, func, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import AssertionPool, NullPool, SingletonThreadPool, StaticPool

from reliakit.core.errors import (
    ConfigurationError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import TransactionEnded
from reliakit.database import AsyncDatabase, Database, Isolation, Propagation, Repository, transactional
from reliakit.integrations.sqlalchemy import AsyncEnginePool, EnginePool, connection, session

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

DIALECT = "postgresql+psycopg://"
SIZE = 3


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(default=0)


def engine_of(dsn: str, **settings: Any) -> Engine:
    return create_engine(DIALECT, connect_args=conninfo_to_dict(dsn), **settings)


@pytest.fixture
def engine(reliakit_dsn: str) -> Iterator[Engine]:
    engine = engine_of(reliakit_dsn, pool_size=2, max_overflow=SIZE - 2)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def db(engine: Engine) -> Iterator[Database]:
    with Database(EnginePool(engine)) as database:
        yield database


@pytest.fixture
async def async_engine(reliakit_dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(DIALECT, connect_args=conninfo_to_dict(reliakit_dsn), pool_size=SIZE, max_overflow=0)
    async with engine.begin() as admin:
        await admin.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


@pytest.fixture
async def adb(async_engine: AsyncEngine) -> AsyncIterator[AsyncDatabase]:
    async with AsyncDatabase(AsyncEnginePool(async_engine)) as database:
        yield database


def ids(db: Database) -> list[int]:
    return [row[0] for row in db.fetch_all("SELECT id FROM item ORDER BY id")]


def test_a_session_is_committed_with_its_transaction(db: Database, engine: Engine) -> None:
    with db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1))
        assert tx.fetch_value("SELECT count(*) FROM item") == 0  # not flushed yet
    with engine.connect() as other:
        assert other.scalar(select(func.count()).select_from(Item)) == 1


def test_orm_core_and_plain_sql_share_one_transaction(db: Database, engine: Engine) -> None:
    with db.transaction() as tx:
        with session(tx) as s:
            s.add(Item(id=1))
        connection(tx).execute(insert(Item).values(id=2))
        tx.execute("INSERT INTO item VALUES (3, 0)")
        assert connection(tx).scalars(select(Item.id).order_by(Item.id)).all() == [1, 2, 3]
        assert connection(tx) is connection(tx)
        with engine.connect() as other:
            assert other.scalars(select(Item.id)).all() == []
    assert ids(db) == [1, 2, 3]


def test_a_transaction_that_fails_takes_the_sessions_work_with_it(db: Database) -> None:
    with pytest.raises(LookupError), db.transaction() as tx:
        with session(tx) as s:
            s.add(Item(id=1))
        raise LookupError
    assert ids(db) == []


def test_a_session_block_that_fails_goes_back_to_where_it_began(db: Database) -> None:
    with db.transaction() as tx:
        tx.execute("INSERT INTO item VALUES (1, 0)")
        with pytest.raises(LookupError), session(tx) as s:
            s.add(Item(id=2))
            s.flush()
            raise LookupError
        with pytest.raises(exc.IntegrityError), session(tx) as s:
            s.add(Item(id=1))
        with session(tx) as s:
            s.add(Item(id=3))
    assert ids(db) == [1, 3]


def test_commit_rollback_and_begin_nested_of_a_session_mean_its_savepoint(db: Database, engine: Engine) -> None:
    with db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1))
        s.commit()
        s.add(Item(id=2))
        s.flush()
        s.rollback()
        with s.begin_nested():
            s.add(Item(id=3))
        with pytest.raises(exc.IntegrityError), s.begin_nested():
            s.add(Item(id=3))
        with engine.connect() as other:
            assert other.scalar(select(func.count()).select_from(Item)) == 0
    assert ids(db) == [1, 3]


def test_a_session_sees_its_own_work_and_its_queries_flush_it(db: Database) -> None:
    with db.transaction() as tx, session(tx) as s:
        s.add(Item(id=1, amount=5))
        assert s.scalars(select(Item.amount)).all() == [5]
        item = s.get_one(Item, 1)
        item.amount += 1
        assert s.scalar(select(Item.amount)) == 6


def test_objects_stay_readable_after_the_block(db: Database) -> None:
    with db.transaction() as tx, session(tx) as s:
        item = Item(id=1, amount=7)
        s.add(item)
    assert item.amount == 7
    assert inspect(item).detached


def test_the_callers_own_factory_and_options_are_used(db: Database) -> None:
    class Mine(Session):
        pass

    make = sessionmaker(class_=Mine, expire_on_commit=True)
    with db.transaction() as tx:
        with session(tx, make, autoflush=False) as s:
            assert isinstance(s, Mine)
            assert s.autoflush is False
            s.add(Item(id=1))
            s.commit()
            assert inspect(s.get_one(Item, 1)).session is s
    assert ids(db) == [1]


@pytest.mark.parametrize("option", ["bind", "join_transaction_mode", "twophase"])
def test_options_that_would_end_the_transaction_are_refused(db: Database, option: str) -> None:
    with db.transaction() as tx, pytest.raises(ConfigurationError, match=option):
        session(tx, **{option: "control_fully"})


def test_a_core_connection_cannot_end_the_transaction(db: Database) -> None:
    for end in ("commit", "rollback"):
        with pytest.raises(TransactionUsageError, match="set_rollback_only"), db.transaction(operation="pay") as tx:
            tx.execute("INSERT INTO item VALUES (1, 0)")
            getattr(connection(tx), end)()
        with pytest.raises(TransactionUsageError), db.transaction() as tx:
            getattr(connection(tx).get_transaction(), end)()
    assert ids(db) == []


def test_closing_a_core_connection_does_nothing(db: Database) -> None:
    with db.transaction() as tx:
        with connection(tx) as core:
            core.execute(insert(Item).values(id=1))
        assert connection(tx).scalar(select(Item.id)) == 1
        with connection(tx).begin_nested():
            connection(tx).execute(insert(Item).values(id=2))
    assert ids(db) == [1, 2]


def test_commit_sent_as_text_is_noticed(db: Database) -> None:
    with pytest.raises(TransactionUsageError), db.transaction() as tx:
        connection(tx).execute(text("COMMIT"))


def test_an_error_that_was_swallowed_is_told_at_the_end(db: Database) -> None:
    with pytest.raises(TransactionRolledBackError, match="22012"), db.transaction() as tx:
        with pytest.raises(exc.DataError):
            connection(tx).execute(text("SELECT 1 / 0"))


def test_a_nested_transaction_has_a_connection_and_a_session_of_its_own(db: Database) -> None:
    with db.transaction() as tx:
        outer = connection(tx)
        outer.execute(insert(Item).values(id=1))
        with pytest.raises(LookupError), db.transaction(propagation=Propagation.NESTED) as inner:
            with session(inner) as s:
                s.add(Item(id=2))
            raise LookupError
        with db.transaction(propagation=Propagation.NESTED) as inner:
            kept = connection(inner)
            with session(inner) as s:
                s.add(Item(id=3))
        with pytest.raises(TransactionUsageError, match="over"):
            kept.execute(select(1))
        outer.execute(insert(Item).values(id=4))
    assert ids(db) == [1, 3, 4]


def test_requires_new_takes_another_connection_of_the_engine(db: Database) -> None:
    with db.transaction() as tx:
        with db.transaction(propagation=Propagation.REQUIRES_NEW) as other, session(other) as s:
            s.add(Item(id=1))
        assert connection(tx).scalar(text("SELECT pg_backend_pid()")) == tx.connection.info.backend_pid
        assert db.stats().in_use == 1
    assert ids(db) == [1]


def test_without_a_transaction_core_statements_commit_by_themselves_and_sessions_are_refused(db: Database) -> None:
    with db.transaction(propagation=Propagation.SUPPORTS) as bare:
        connection(bare).execute(insert(Item).values(id=1))
        with pytest.raises(TransactionUsageError, match="none runs"):
            session(bare)
    assert ids(db) == [1]


def test_after_the_transaction_nothing_works_and_the_message_says_why(db: Database) -> None:
    with db.transaction() as tx:
        core = connection(tx)
        with session(tx) as s:
            s.execute(select(1))
    for use in (
        partial(core.execute, select(1)),
        partial(core.exec_driver_sql, "SELECT 1"),
        partial(s.execute, select(1)),
        partial(connection, tx),
        partial(session, tx),
    ):
        with pytest.raises(TransactionUsageError, match="over"):
            use()
    del tx, use
    gc.collect()
    with pytest.raises(TransactionUsageError, match="over"):
        core.execute(select(1))


def test_another_thread_is_refused(db: Database) -> None:
    caught: list[BaseException] = []
    with db.transaction() as tx, session(tx) as s:
        core = connection(tx)

        def use() -> None:
            for attempt in (lambda: s.scalars(select(Item)), lambda: core.exec_driver_sql("SELECT 1")):
                try:
                    attempt()
                except TransactionUsageError as error:
                    caught.append(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(use,))
        thread.start()
        thread.join()
        s.add(Item(id=1))
    assert len(caught) == 2
    assert ids(db) == [1]


def test_sessions_in_repositories_are_tried_again(db: Database, recording_listener: RecordingListener) -> None:
    tries: list[int] = []

    class Items(Repository):
        @transactional
        def save(self, item: int) -> None:
            tries.append(item)
            with session(self.db.current()) as s:
                s.add(Item(id=item))
                s.flush()
                if len(tries) < 3:
                    s.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40001'; END $$"))

    Items(db).save(1)
    assert tries == [1, 1, 1]
    assert ids(db) == [1]
    ended = [event for event in recording_listener.of(TransactionEnded) if event.operation.endswith("save")]
    assert [event.status for event in ended] == ["retry", "retry", "commit"]
    assert ended[-1].rows == 1


def test_a_statement_is_cut_at_the_deadline(db: Database) -> None:
    with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx:
        connection(tx).execute(text("SELECT pg_sleep(30)"))
    with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.1) as tx, session(tx) as s:
        s.add(Item(id=1))
        s.execute(text("SELECT pg_sleep(30)"))
    assert ids(db) == []
    assert db.stats().in_use == 0


def test_isolation_and_limits_are_the_transactions(db: Database) -> None:
    with db.transaction(isolation=Isolation.SERIALIZABLE, read_only=True, timeout=3) as tx:
        core = connection(tx)
        assert core.scalar(text("SHOW transaction_isolation")) == "serializable"
        assert core.scalar(text("SHOW transaction_read_only")) == "on"
        limit = text("SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'")
        assert 1000 < core.scalar(limit) <= 3000


def test_hooks_run_after_the_session_was_committed(db: Database, engine: Engine) -> None:
    seen: list[int] = []
    with db.transaction() as tx, session(tx) as s:
        tx.after_commit(lambda: seen.extend(ids(db)))
        s.add(Item(id=1))
    assert seen == [1]


def test_the_engine_is_shared_with_plain_sqlalchemy_and_comes_back_as_it_was(db: Database, engine: Engine) -> None:
    with engine.begin() as core:
        core.execute(insert(Item).values(id=1))
        pid = core.scalar(text("SELECT pg_backend_pid()"))
    with db.transaction() as tx:
        assert tx.connection.info.backend_pid == pid
    with engine.connect() as core:
        assert core.scalar(text("SELECT pg_backend_pid()")) == pid
        core.execute(insert(Item).values(id=2))
        core.rollback()
    assert ids(db) == [1]


def test_events_of_the_engine_come_except_its_commit_and_rollback(db: Database, engine: Engine) -> None:
    heard: list[str] = []
    for name in ("begin", "commit", "rollback", "savepoint"):
        event.listen(engine, name, lambda *_, name=name: heard.append(name))
    for name in ("checkout", "checkin"):
        event.listen(engine.pool, name, lambda *_, name=name: heard.append(name))

    @event.listens_for(engine, "begin")
    def limit(core: Any) -> None:
        core.exec_driver_sql("SET LOCAL work_mem = '8MB'")

    with db.transaction() as tx, session(tx) as s:
        assert s.scalar(text("SHOW work_mem")) == "8MB"
    assert heard == ["checkout", "begin", "savepoint", "checkin"]
    with engine.begin():
        pass
    assert heard[-4:] == ["checkout", "begin", "commit", "checkin"]


def test_events_that_reliakit_listens_for_do_not_concern_other_users_of_the_engine(
    db: Database, engine: Engine
) -> None:
    with engine.connect() as core:
        core.execute(insert(Item).values(id=1))
        core.commit()
    assert ids(db) == [1]


def test_a_connection_broken_while_idle_is_replaced_with_and_without_pre_ping(reliakit_dsn: str) -> None:
    for pre_ping in (False, True):
        engine = engine_of(reliakit_dsn, pool_pre_ping=pre_ping)
        db = Database(EnginePool(engine))
        with psycopg.connect(reliakit_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (db.fetch_value("SELECT pg_backend_pid()"),))
        with db.transaction() as tx:
            assert connection(tx).scalar(select(1)) == 1
        engine.dispose()


def test_the_gate_is_as_wide_as_the_engines_pool(reliakit_dsn: str) -> None:
    def size(**settings: Any) -> int:
        engine = engine_of(reliakit_dsn, **settings)
        return Database(EnginePool(engine), max_size=7)._engine.checkouts.size

    assert size() == 15
    assert size(pool_size=2, max_overflow=1) == 3
    assert size(pool_size=2, max_overflow=-1) == 7
    assert size(pool_size=0) == 7
    assert size(poolclass=NullPool) == 7
    assert size(poolclass=StaticPool) == 1
    assert size(poolclass=AssertionPool) == 1


@pytest.mark.parametrize("pool", [NullPool, StaticPool, AssertionPool])
def test_other_pools_work_too(reliakit_dsn: str, pool: Any) -> None:
    engine = engine_of(reliakit_dsn, poolclass=pool)
    with Database(EnginePool(engine), max_size=2) as db:
        for _ in range(3):
            with db.transaction() as tx:
                assert connection(tx).scalar(select(1)) == 1
        with db.transaction():
            if db._engine.checkouts.size == 1:
                with pytest.raises(TransactionUsageError), db.transaction(propagation=Propagation.REQUIRES_NEW):
                    pass
    engine.dispose()


def test_a_pool_that_others_have_emptied_is_a_timeout_and_loses_nothing(reliakit_dsn: str) -> None:
    engine = engine_of(reliakit_dsn, pool_size=1, max_overflow=0, pool_timeout=0.5)
    db = Database(EnginePool(engine))
    for timeout in (0.1, 1.0):  # ours ends first, theirs ends first
        with engine.connect() as taken:
            taken.execute(select(1))
            with pytest.raises((TransactionTimeoutError, psycopg_pool.PoolTimeout)), db.transaction(timeout=timeout):
                pass
    for _ in range(3):
        assert db.fetch_value("SELECT 1") == 1
    assert (db.stats().in_use, db.stats().leaked) == (0, 0)
    engine.dispose()


def test_disposing_of_the_engine_replaces_its_connections(db: Database, engine: Engine) -> None:
    first = db.fetch_value("SELECT pg_backend_pid()")
    with db.transaction() as tx:
        engine.dispose()
        assert tx.connection.info.backend_pid == first
    assert db.fetch_value("SELECT pg_backend_pid()") != first


def test_engines_that_cannot_serve_are_refused_with_the_way_out(reliakit_dsn: str) -> None:
    engine = engine_of(reliakit_dsn)
    for wrong, why in (
        (create_engine("sqlite://"), "sqlite.*postgresql\\+psycopg"),
        ("postgresql://", "must be an SQLAlchemy Engine"),
        (create_async_engine(DIALECT), "AsyncEnginePool"),
        (engine.execution_options(isolation_level="SERIALIZABLE"), "isolation_level"),
        (engine.execution_options(postgresql_readonly=True), "postgresql_readonly"),
        (engine_of(reliakit_dsn, poolclass=SingletonThreadPool), "SingletonThreadPool"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            EnginePool(wrong)
    with pytest.raises(ConfigurationError, match="takes an AsyncEngine"):
        AsyncEnginePool(engine)
    with pytest.raises(ConfigurationError, match="AsyncDatabase takes"):
        AsyncDatabase(EnginePool(engine))
    with pytest.raises(ConfigurationError, match="Database takes"):
        Database(AsyncEnginePool(create_async_engine(DIALECT)))


def test_a_database_with_other_connections_is_refused(reliakit_dsn: str) -> None:
    with Database(reliakit_dsn) as db, db.transaction() as tx:
        for ask in (connection, session):
            with pytest.raises(ConfigurationError, match="EnginePool"):
                ask(tx)
            with pytest.raises(ConfigurationError, match="takes the transaction"):
                ask(db)


def test_a_session_block_is_for_one_use(db: Database) -> None:
    with db.transaction() as tx:
        block = session(tx)
        with block:
            pass
        with pytest.raises(ConfigurationError), block:
            pass


def test_the_password_is_not_shown(reliakit_dsn: str) -> None:
    pool = EnginePool(create_engine("postgresql+psycopg://me:s3cret@localhost/shop"))
    assert "s3cret" not in repr(pool) + repr(Database(pool))
    assert "localhost/shop" in repr(Database(pool))


def test_reliakit_does_not_load_sqlalchemy() -> None:
    code = (
        "import sys, reliakit, reliakit.integrations\n"
        "for name in reliakit.__all__: getattr(reliakit, name)\n"
        "assert 'sqlalchemy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.anyio
async def test_async_sessions_and_connections_do_the_same(adb: AsyncDatabase) -> None:
    async with adb.transaction() as tx:
        async with session(tx) as s:
            s.add(Item(id=1))
            await s.commit()
            s.add(Item(id=2))
            await s.flush()
            await s.rollback()
            async with s.begin_nested():
                s.add(Item(id=3))
        core = await connection(tx)
        assert await connection(tx) is core
        await core.execute(insert(Item).values(id=4))
        await core.close()
        with pytest.raises(LookupError):
            async with session(tx, async_sessionmaker()) as s:
                s.add(Item(id=5))
                await s.flush()
                raise LookupError
        async with session(tx) as s:
            s.add(Item(id=6))
            await s.flush()
            await s.close()  # in a task of SQLAlchemy's own
        assert [row async for row in await core.stream_scalars(select(Item.id).order_by(Item.id))] == [1, 3, 4]
    assert await adb.fetch_all("SELECT id FROM item ORDER BY id") == [(1,), (3,), (4,)]
    for end in ("commit", "rollback"):
        with pytest.raises(TransactionUsageError):
            async with adb.transaction() as tx:
                await getattr(await connection(tx), end)()
    with pytest.raises(TransactionTimeoutError):
        async with adb.transaction(timeout=0.1) as tx, session(tx) as s:
            await s.execute(text("SELECT pg_sleep(30)"))
    assert adb.stats().in_use == 0


@pytest.mark.anyio
async def test_another_task_is_refused(adb: AsyncDatabase) -> None:
    async with adb.transaction() as tx, session(tx) as s:
        with pytest.raises(TransactionUsageError):
            await asyncio.gather(s.execute(select(1)), s.execute(select(1)))


@pytest.mark.anyio
async def test_async_sessions_are_tried_again(adb: AsyncDatabase) -> None:
    tries: list[int] = []

    async def save(tx: Any) -> None:
        async with session(tx) as s:
            s.add(Item(id=len(tries)))
            tries.append(1)
            await s.flush()
            if len(tries) < 3:
                await s.execute(text("DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$"))

    await adb.run(save)
    assert await adb.fetch_all("SELECT id FROM item") == [(2,)]


@pytest.mark.anyio
async def test_an_async_pool_that_others_have_emptied_is_a_timeout_and_loses_nothing(
    adb: AsyncDatabase, async_engine: AsyncEngine
) -> None:
    async with async_engine.connect(), async_engine.connect(), async_engine.connect():
        for _ in range(2):
            with pytest.raises(TransactionTimeoutError):
                async with adb.transaction(timeout=0.1):
                    pass
    async with asyncio.TaskGroup() as group:
        for _ in range(SIZE * 2):
            group.create_task(adb.fetch_value("SELECT 1"))
    assert (adb.stats().in_use, adb.stats().leaked) == (0, 0)
