"""Read-only transactions go to replicas; two databases of one server stand for both, so that one sees which ran."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.events import (
    CheckoutOverdue,
    CircuitChanged,
    ErrorSeen,
    PoolReturned,
    ReplicaFailed,
    TransactionEnded,
    TransactionSlow,
    TransactionStarted,
)
from reliakit.database import AsyncDatabase, Database, Isolation, Propagation
from reliakit.metrics import Metrics
from reliakit.testing import ManualClock

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres, FaultProxy, RecordingListener

WHERE = "SELECT name FROM place"
NOWHERE = "host=127.0.0.1 port=1 dbname=x"


@pytest.fixture
def places(reliakit_postgres: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """Make a database that knows its own name."""
    made: list[str] = []

    def make(name: str) -> str:
        conninfo = reliakit_postgres.database()
        made.append(conninfo)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute("CREATE TABLE place (name text)")
            connection.execute("INSERT INTO place VALUES (%s)", (name,))
        return conninfo

    reliakit_postgres.start()
    yield make
    for conninfo in made:
        reliakit_postgres.drop_database(conninfo)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def db(places: Callable[[str], str], clock: ManualClock) -> Iterator[Database]:
    replicas = [places("one"), places("two")]
    with Database(places("primary"), replicas=replicas, max_size=2, name="shop", clock=clock) as database:
        yield database


def where(db: Database, **options: Any) -> str:
    with db.transaction(**options) as tx:
        return tx.fetch_value(WHERE)


def test_read_only_transactions_go_to_the_replicas_in_turn(db: Database) -> None:
    assert Counter(where(db, read_only=True) for _ in range(10)) == {"one": 5, "two": 5}
    assert db.run(lambda tx: tx.fetch_value(WHERE), read_only=True) in {"one", "two"}
    assert db.transactional(read_only=True)(lambda: db.fetch_value(WHERE))() in {"one", "two"}


def test_everything_else_goes_to_the_primary(db: Database) -> None:
    assert where(db) == "primary"
    assert db.run(lambda tx: tx.fetch_value(WHERE)) == "primary"
    assert db.fetch_value(WHERE) == "primary"
    assert where(db, read_only=True, isolation=Isolation.SERIALIZABLE) == "primary"
    assert where(db, read_only=True, propagation=Propagation.SUPPORTS) == "primary"


def test_a_block_that_joins_stays_where_the_outer_one_is(db: Database) -> None:
    with db.transaction():
        assert where(db, read_only=True) == "primary"
        assert where(db, read_only=True, propagation=Propagation.NESTED) == "primary"
        assert where(db, read_only=True, propagation=Propagation.REQUIRES_NEW) in {"one", "two"}
    with db.transaction(read_only=True) as tx:
        here = tx.fetch_value(WHERE)
        assert db.fetch_value(WHERE) == here
        assert where(db, read_only=True) == here
        with pytest.raises(TransactionUsageError, match="read-only"), db.transaction():
            pass


def test_a_write_on_a_replica_is_refused_as_in_any_read_only_transaction(db: Database) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.transaction(read_only=True) as tx:
        tx.execute("INSERT INTO place VALUES ('x')")


def test_a_serializable_database_reads_from_the_primary(places: Callable[[str], str]) -> None:
    with Database(places("primary"), replicas=[places("one")], isolation=Isolation.SERIALIZABLE) as db:
        assert where(db, read_only=True) == "primary"
        assert where(db, read_only=True, isolation=Isolation.REPEATABLE_READ) == "one"


def test_what_lost_a_race_on_a_replica_is_tried_again_on_the_primary(
    places: Callable[[str], str], recording_listener: RecordingListener
) -> None:
    seen: list[str] = []

    def read(tx: Any) -> str:
        seen.append(tx.fetch_value(WHERE))
        if len(seen) == 1:  # what a standby says when the primary has removed rows that the reader needs
            tx.execute("DO $$ BEGIN RAISE SQLSTATE '40001'; END $$")
        return seen[-1]

    with Database(places("primary"), replicas=[places("one")], name="shop") as db:
        assert db.run(read, read_only=True) == "primary"
    assert seen == ["one", "primary"]
    told = [(event.name, event.status) for event in recording_listener.of(TransactionEnded)]
    assert told == [("shop/replica-1", "retry"), ("shop", "commit")]


def test_a_replica_that_cannot_be_reached_is_passed_over_silently(
    places: Callable[[str], str], clock: ManualClock, recording_listener: RecordingListener
) -> None:
    db = Database(places("primary"), replicas=[NOWHERE], name="shop", clock=clock)
    with Metrics(clock=clock) as metrics:
        assert where(db, read_only=True, operation="report") == "primary"
        assert where(db, read_only=True) == "primary"
        shown = metrics.render().body.decode()
    assert 'reliakit_db_replica_fallbacks_total{pool="shop/replica-1"} 1' in shown
    (failed,) = recording_listener.of(ReplicaFailed)
    assert (failed.name, failed.operation, failed.error_type) == ("shop/replica-1", "report", "OperationalError")
    assert [(event.name, event.state) for event in recording_listener.of(CircuitChanged)] == [
        ("shop/replica-1", "open")
    ]
    assert recording_listener.of(ErrorSeen) == []
    assert [event.status for event in recording_listener.of(TransactionEnded)] == ["commit", "commit"]
    db.close()


def test_a_replica_that_comes_back_is_used_again(
    places: Callable[[str], str], clock: ManualClock, fault_proxy: Callable[[str], FaultProxy]
) -> None:
    proxy = fault_proxy(places("one"))
    with Database(places("primary"), replicas=[proxy.dsn()], clock=clock) as db:
        assert where(db, read_only=True) == "one"
        with proxy.refuse():
            proxy.reset()
            assert where(db, read_only=True) == "primary"
        assert where(db, read_only=True) == "primary"
        clock.advance(2.0)
        assert where(db, read_only=True) == "one"
        assert where(db, read_only=True) == "one"


def test_a_pooled_connection_to_a_replica_that_died_is_replaced(
    places: Callable[[str], str], fault_proxy: Callable[[str], FaultProxy], recording_listener: RecordingListener
) -> None:
    proxy = fault_proxy(places("one"))
    with Database(places("primary"), replicas=[proxy.dsn()]) as db:
        assert where(db, read_only=True) == "one"
        proxy.reset()
        assert where(db, read_only=True) == "one"
    assert recording_listener.of(ReplicaFailed) == []


def test_one_dead_replica_leaves_the_others_in_turn(places: Callable[[str], str]) -> None:
    with Database(places("primary"), replicas=[NOWHERE, places("one"), places("two")]) as db:
        assert {where(db, read_only=True) for _ in range(6)} == {"one", "two"}


def test_a_replica_that_is_dead_at_open_is_told_and_does_not_stop_the_service(
    places: Callable[[str], str], recording_listener: RecordingListener
) -> None:
    with Database(places("primary"), replicas=[NOWHERE], name="shop") as db:
        assert where(db, read_only=True) == "primary"
    (failed,) = recording_listener.of(ReplicaFailed)
    assert (failed.name, failed.operation) == ("shop/replica-1", "open")


def test_events_gauges_and_leaks_tell_replicas_apart(
    db: Database, clock: ManualClock, recording_listener: RecordingListener
) -> None:
    with Metrics(clock=clock) as metrics:
        with db.transaction(read_only=True, timeout=1000.0):
            clock.advance(61.0)
            replicas = db.stats().replicas
            assert sorted(stats.in_use for stats in replicas) == [0, 1]
            assert db.stats().in_use == 0
            name = recording_listener.of(TransactionStarted)[0].name
            assert f'db_pool_connections{{pool="{name}",state="in_use"}} 1' in metrics.render().body.decode()
        assert f'db_pool_connections{{pool="{name}",state="in_use"}} 0' in metrics.render().body.decode()
    assert name in {"shop/replica-1", "shop/replica-2"}
    for kind in (TransactionEnded, TransactionSlow, PoolReturned, CheckoutOverdue):
        assert [event.name for event in recording_listener.of(kind)] == [name]
    assert recording_listener.of(CheckoutOverdue)[0].line.startswith(__file__)


def test_opening_closing_stats_and_repr_know_the_replicas(db: Database) -> None:
    assert [stats.size for stats in db.stats().replicas] == [1, 1]
    assert "2 replicas" in repr(db)
    db.close()
    assert [stats.size for stats in db.stats().replicas] == [0, 0]
    with pytest.raises(TransactionUsageError, match="closed"):
        where(db, read_only=True)
    db.open()
    assert where(db, read_only=True) in {"one", "two"}
    assert Database(NOWHERE).stats().replicas == ()


def test_replicas_have_connections_of_their_own(db: Database) -> None:
    with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
        assert where(db, read_only=True, propagation=Propagation.REQUIRES_NEW) in {"one", "two"}


def test_replicas_may_be_pools(places: Callable[[str], str]) -> None:
    with psycopg_pool.ConnectionPool(places("one"), min_size=1, max_size=2, open=True) as pool:
        with Database(places("primary"), replicas=[pool]) as db:
            assert where(db, read_only=True) == "one"
        assert pool.getconn() is not None


@pytest.mark.parametrize("replicas", ["dbname=x", 5, [5], ["no conninfo at all = ="], [None]])
def test_wrong_replicas_are_refused_at_once(replicas: Any) -> None:
    for kind in (Database, AsyncDatabase):
        with pytest.raises(ConfigurationError, match="replicas"):
            kind("dbname=x", replicas=replicas)


def test_a_replica_pool_of_the_other_colour_is_refused(places: Callable[[str], str]) -> None:
    with psycopg_pool.ConnectionPool(places("one"), open=False) as pool:
        with pytest.raises(ConfigurationError, match="replicas: AsyncDatabase takes"):
            AsyncDatabase("dbname=x", replicas=[pool])  # type: ignore[list-item]  # the point of the test


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_refused_on_replicas_too(db: Database) -> None:
    where(db, read_only=True)
    child = os.fork()
    if child == 0:
        try:
            where(db, read_only=True)
        except TransactionUsageError as error:
            os._exit(0 if "fork" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert where(db, read_only=True) in {"one", "two"}


@pytest.mark.anyio
async def test_async_databases_read_from_replicas_too(
    places: Callable[[str], str], clock: ManualClock, fault_proxy: Callable[[str], FaultProxy]
) -> None:
    proxy = fault_proxy(places("one"))
    async with AsyncDatabase(places("primary"), replicas=[proxy.dsn()], clock=clock) as db:

        async def read(**options: Any) -> str:
            async with db.transaction(**options) as tx:
                return await tx.fetch_value(WHERE)

        assert await read(read_only=True) == "one"
        assert await read() == await db.fetch_value(WHERE) == "primary"
        assert db.stats().replicas[0].size == 1
        with proxy.refuse():
            proxy.reset()
            assert await read(read_only=True) == "primary"
        clock.advance(2.0)
        assert await read(read_only=True) == "one"
    assert db.stats().replicas[0].size == 0
