"""The outbox and its relay on a real server: with the transaction, in order per key, at least once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg_pool
import pytest

from reliakit.core.backoff import Backoff
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import (
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.events import ErrorSeen, OutboxFailed, OutboxRelayed, TransactionEnded, TransactionStarted
from reliakit.database import (
    AsyncDatabase,
    Database,
    Isolation,
    Outbox,
    OutboxMessage,
    Propagation,
    Transaction,
)

if TYPE_CHECKING:
    from reliakit.testing import RecordingListener

OUTBOX = Outbox()
NEVER = Backoff(1000.0, cap=1000.0, jitter=0.0)
AT_ONCE = Backoff(0.0)


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=8, name="shop") as database:
        OUTBOX.create(database)
        yield database


@pytest.fixture
def other(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=4, name="other") as database:
        yield database


def publish(db: Database, *payloads: object, key: str | None = None, outbox: Outbox = OUTBOX) -> list[int]:
    with db.transaction() as tx:
        return [outbox.publish(tx, "topic", payload, key=key) for payload in payloads]


def wait_for_a_waiter(dsn_of: Database) -> None:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
    while not dsn_of.fetch_value(waits):
        pass


def test_a_message_arrives_once_with_everything_and_is_gone(db: Database) -> None:
    with db.transaction() as tx:
        number = OUTBOX.publish(tx, "order", {"id": 7, "é": [None, 1.5]}, key="a", headers={"trace": "x"})
    got: list[OutboxMessage] = []
    relay = OUTBOX.relay(db, got.append)
    assert relay.drain() == 1
    (message,) = got
    assert (message.id, message.topic, message.payload) == (number, "order", {"id": 7, "é": [None, 1.5]})
    assert (message.key, message.headers, message.attempt, message.error) == ("a", {"trace": "x"}, 1, None)
    now = db.fetch_value("SELECT now()")
    assert 0 <= (now - message.published_at).total_seconds() < 60
    assert relay.drain() == 0
    assert OUTBOX.stats(db).pending == 0


def test_a_transaction_that_rolls_back_takes_its_messages_with_it(db: Database) -> None:
    with contextlib.suppress(LookupError), db.transaction() as tx:
        OUTBOX.publish(tx, "order", 1)
        raise LookupError
    with db.transaction() as tx:
        with contextlib.suppress(LookupError), db.transaction(propagation=Propagation.NESTED) as inner:
            OUTBOX.publish(inner, "order", 2)
            raise LookupError
        OUTBOX.publish(tx, "order", 3)
    got: list[OutboxMessage] = []
    assert OUTBOX.relay(db, got.append).drain() == 1
    assert [message.payload for message in got] == [3]


def test_nothing_is_relayed_before_the_commit(db: Database, other: Database) -> None:
    got: list[OutboxMessage] = []
    with db.transaction() as tx:
        OUTBOX.publish(tx, "order", 1, key="a")
        assert OUTBOX.relay(other, got.append).drain() == 0
    assert OUTBOX.relay(other, got.append).drain() == 1


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_messages_of_a_key_arrive_in_order_and_all_in_one_go(db: Database, batch: int) -> None:
    publish(db, 1, 2, 3, key="a")
    publish(db, 4, 5)
    publish(db, 6, 7, key="b")
    publish(db, 8, key="a")
    got: list[OutboxMessage] = []
    assert OUTBOX.relay(db, got.append, batch=batch).drain() == 8
    assert [m.payload for m in got if m.key == "a"] == [1, 2, 3, 8]
    assert [m.payload for m in got if m.key == "b"] == [6, 7]
    assert sorted(m.payload for m in got) == list(range(1, 9))


def test_a_keys_publishers_commit_one_after_the_other_and_are_numbered_so(db: Database, other: Database) -> None:
    numbers: list[int] = []

    def second() -> None:
        with other.transaction() as tx:
            numbers.append(OUTBOX.publish(tx, "order", "second", key="a"))

    with ThreadPoolExecutor(1) as pool:
        with db.transaction() as tx:
            first = OUTBOX.publish(tx, "order", "first", key="a")
            waiting = pool.submit(second)
            with Database(db._engine.checkouts.source.conninfo) as third:
                wait_for_a_waiter(third)
            free = publish(other, "another key", key="b")[0]
            last = OUTBOX.publish(tx, "order", "first too", key="a")
        waiting.result()
    assert first < free < last < numbers[0]
    got: list[OutboxMessage] = []
    OUTBOX.relay(db, got.append).drain()
    assert [m.payload for m in got if m.key == "a"] == ["first", "first too", "second"]


def test_waiting_for_a_keys_publisher_is_bounded_by_the_transactions_time(db: Database, other: Database) -> None:
    with db.transaction() as tx:
        OUTBOX.publish(tx, "order", 1, key="a")
        with pytest.raises(TransactionTimeoutError), other.transaction(timeout=0.1) as late:
            OUTBOX.publish(late, "order", 2, key="a")


def test_a_handler_that_raises_keeps_its_key_back_and_nobody_else(
    db: Database, recording_listener: RecordingListener
) -> None:
    publish(db, 1, 2, key="a")
    publish(db, 3, key="b")
    publish(db, 4, 5)
    problem = LookupError("no")
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        if message.payload in {1, 4}:
            raise problem
        got.append(message.payload)

    assert OUTBOX.relay(db, handle, backoff=NEVER).drain() == 2
    assert got == [3, 5]
    assert OUTBOX.relay(db, handle, backoff=NEVER).drain() == 0  # neither is due
    failed = [event for event in recording_listener.events if isinstance(event, OutboxFailed)]
    assert [(e.name, e.topic, e.attempt, e.delay, e.error_type) for e in failed] == [
        ("outbox", "topic", 1, 1000.0, "LookupError")
    ] * 2
    assert [e.error for e in recording_listener.events if isinstance(e, ErrorSeen)] == [problem]
    relayed = [event for event in recording_listener.events if isinstance(event, OutboxRelayed)]
    assert [event.count for event in relayed] == [2]
    assert 0 <= relayed[0].lag < 60


def test_a_failed_message_comes_again_when_it_is_due_and_its_key_goes_on(db: Database) -> None:
    publish(db, 1, 2, key="a")
    got: list[tuple[object, int, str | None]] = []

    def handle(message: OutboxMessage) -> None:
        got.append((message.payload, message.attempt, message.error))
        if len(got) < 3:
            raise KeyError

    relay = OUTBOX.relay(db, handle, backoff=AT_ONCE)
    assert [relay.drain() for _ in range(4)] == [0, 0, 2, 0]
    assert got == [(1, 1, None), (1, 2, "KeyError"), (1, 3, "KeyError"), (2, 1, None)]


def test_a_message_that_fails_too_often_is_set_aside_and_its_key_goes_on(
    db: Database, recording_listener: RecordingListener
) -> None:
    (first, _) = publish(db, "bad", "good", key="a")
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        if message.payload == "bad":
            raise ValueError
        got.append(message.payload)

    relay = OUTBOX.relay(db, handle, max_attempts=2, backoff=AT_ONCE)
    assert [relay.drain() for _ in range(3)] == [0, 1, 0]
    assert got == ["good"]
    (dead,) = OUTBOX.dead(db)
    assert (dead.id, dead.payload, dead.attempt, dead.error) == (first, "bad", 2, "ValueError")
    assert [e.delay for e in recording_listener.events if isinstance(e, OutboxFailed)] == [0.0, None]
    stats = OUTBOX.stats(db)
    assert (stats.pending, stats.dead, stats.oldest) == (0, 1, None)


def test_a_rejection_is_no_try_and_says_when_to_come_again(
    db: Database, recording_listener: RecordingListener
) -> None:
    publish(db, 1)

    def refuse(message: OutboxMessage) -> None:
        raise CircuitOpenError("mail is down", name="mail", retry_after=30.0)

    relay = OUTBOX.relay(db, refuse, max_attempts=1, backoff=AT_ONCE)
    assert (relay.drain(), relay.drain()) == (0, 0)
    (failed,) = [event for event in recording_listener.events if isinstance(event, OutboxFailed)]
    assert (failed.attempt, failed.delay) == (0, 30.0)
    assert OUTBOX.dead(db) == []
    db.execute("UPDATE outbox SET not_before = now()")
    seen: list[int] = []
    assert OUTBOX.relay(db, lambda message: seen.append(message.attempt)).drain() == 1
    assert seen == [1]


def test_a_relays_own_transactions_are_not_told_among_the_others(
    db: Database, recording_listener: RecordingListener
) -> None:
    publish(db, 1)
    recording_listener.clear()
    with db.transaction(operation="mine"):
        pass
    assert OUTBOX.relay(db, lambda message: None).drain() == 1
    told = [event for event in recording_listener.events if isinstance(event, TransactionStarted | TransactionEnded)]
    assert {event.operation for event in told} == {"mine", "relay outbox"}  # drain asks for the time first
    assert [event.operation for event in told].count("relay outbox") == 2


def test_dead_messages_can_be_tried_again(db: Database) -> None:
    numbers = publish(db, 1, 2, 3)

    def fail(_message: OutboxMessage) -> None:
        raise ValueError

    OUTBOX.relay(db, fail, max_attempts=1).drain()
    assert [message.id for message in OUTBOX.dead(db, limit=2)] == numbers[:2]
    assert OUTBOX.redrive(db, ids=numbers[1:2]) == 1
    assert OUTBOX.redrive(db, ids=[]) == 0
    assert OUTBOX.redrive(db) == 2
    assert OUTBOX.stats(db).dead == 0
    got: list[OutboxMessage] = []
    assert OUTBOX.relay(db, got.append).drain() == 3
    assert {message.attempt for message in got} == {1}


def test_drain_tries_each_message_once_however_short_the_pause(db: Database) -> None:
    publish(db, *range(5))
    tried: list[object] = []

    def fail(message: OutboxMessage) -> None:
        tried.append(message.payload)
        raise ValueError

    assert OUTBOX.relay(db, fail, batch=2, backoff=AT_ONCE).drain() == 0
    assert tried == list(range(5))


def test_neither_a_long_key_nor_many_keys_that_wait_hold_the_others_up(db: Database) -> None:
    publish(db, *range(50), key="long")
    for number in range(20):
        publish(db, "fails", key=f"f{number}")
    publish(db, "last", key="z")
    publish(db, "free", "free")
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        if message.payload == "fails":
            raise ValueError
        got.append(message.payload)

    relay = OUTBOX.relay(db, handle, batch=4, backoff=NEVER)
    assert relay.drain() == 53
    assert max(got.index("last"), got.index("free")) < 40
    assert [payload for payload in got if isinstance(payload, int)] == list(range(50))


def test_what_a_handler_does_in_the_database_is_its_own(db: Database) -> None:
    db.execute("CREATE TABLE seen (id bigint PRIMARY KEY)")
    publish(db, 1, 2, key="a")
    publish(db, 3)

    def handle(message: OutboxMessage) -> None:
        with pytest.raises(TransactionUsageError, match="no transaction runs here"):
            db.current()
        with db.transaction() as tx:
            tx.execute("INSERT INTO seen VALUES (%s)", (message.payload,))
        if message.payload == 3:
            db.execute("SELECT 1/0")

    assert OUTBOX.relay(db, handle, backoff=NEVER).drain() == 2
    assert db.fetch_value("SELECT count(*) FROM seen") == 3


def test_a_handler_may_publish(db: Database) -> None:
    publish(db, 3)
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        got.append(message.payload)
        if message.payload:
            publish(db, message.payload - 1)

    relay = OUTBOX.relay(db, handle)
    while relay.drain():
        pass
    assert got == [3, 2, 1, 0]


def test_inside_a_transaction_a_relay_has_its_own(db: Database) -> None:
    publish(db, 1)
    got: list[OutboxMessage] = []
    with db.transaction() as tx:
        OUTBOX.publish(tx, "topic", 2)
        assert OUTBOX.relay(db, got.append).drain() == 1
        tx.set_rollback_only()
    assert [message.payload for message in got] == [1]


def test_several_relays_share_the_work_and_keep_the_order(db: Database, reliakit_dsn: str) -> None:
    keys, each = 5, 12
    lock = threading.Lock()
    got: dict[str, list[int]] = defaultdict(list)
    by: set[str] = set()
    busy: set[str] = set()

    def handle(message: OutboxMessage) -> None:
        key = str(message.key)
        with lock:
            assert key not in busy  # never two at once of one key
            busy.add(key)
        by.add(threading.current_thread().name)
        with lock:
            busy.remove(key)
            got[key].append(message.payload)

    relays = [OUTBOX.relay(db, handle, batch=2, poll=0.05) for _ in range(3)]
    threads = [threading.Thread(target=relay.run) for relay in relays]
    for thread in threads:
        thread.start()
    with Database(reliakit_dsn, max_size=4) as publishers, ThreadPoolExecutor(4) as pool:
        count: dict[str, int] = defaultdict(int)
        turn = threading.Lock()

        def tell(number: int) -> None:
            key = str(number % keys)
            with publishers.transaction(timeout=30) as tx:
                tx.advisory_lock(key)  # so that the test itself knows the order of the commits
                with turn:
                    mine = count[key]
                    count[key] += 1
                OUTBOX.publish(tx, "topic", mine, key=key)

        list(pool.map(tell, range(keys * each)))
        while OUTBOX.stats(publishers).pending:
            pass
    for relay in relays:
        relay.stop()
    for thread in threads:
        thread.join()
    assert got == {str(key): list(range(each)) for key in range(keys)}


def test_a_key_that_another_relay_has_is_left_alone(db: Database) -> None:
    publish(db, 1, 2, key="a")
    publish(db, 3, key="b")
    second: list[object] = []

    def handle(message: OutboxMessage) -> None:
        if message.payload == 1:
            OUTBOX.relay(db, lambda m: second.append(m.payload)).drain()

    assert OUTBOX.relay(db, handle, batch=1).drain() == 2
    assert second == [3]


@pytest.mark.parametrize("notify", [True, False])
def test_run_hands_over_what_comes_until_it_is_stopped(db: Database, notify: bool) -> None:
    outbox = Outbox("shop_outbox", notify=notify)
    outbox.create(db)
    arrived = threading.Event()

    def handle(_message: OutboxMessage) -> None:
        arrived.set()

    # Only a notification can be in time where nobody looks for an hour.
    relay = outbox.relay(db, handle, poll=3600 if notify else 0.05)
    thread = threading.Thread(target=relay.run)
    thread.start()
    for number in range(3):
        while not notify and arrived.is_set():
            pass
        publish(db, number, outbox=outbox)
        assert arrived.wait(30)
        while outbox.stats(db).pending:
            pass
        arrived.clear()
    relay.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert repr(relay).endswith("stopped>")


def test_a_stopped_relay_stays_stopped_and_finishes_only_the_message_at_hand(db: Database) -> None:
    publish(db, 1, 2, 3)
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        got.append(message.payload)
        relay.stop()

    relay = OUTBOX.relay(db, handle)
    relay.run()
    relay.run()
    assert relay.drain() == 0
    assert got == [1]
    assert OUTBOX.stats(db).pending == 2


def test_a_table_that_is_missing_ends_a_relay_at_once(db: Database) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        Outbox("nothing").relay(db, print).run()


def test_a_closed_database_ends_a_relay(reliakit_dsn: str) -> None:
    db = Database(reliakit_dsn)
    relay = OUTBOX.relay(db, print)
    db.close()
    with pytest.raises(TransactionUsageError, match="closed"):
        relay.run()


def test_a_relay_on_a_borrowed_pool_listens_too(db: Database, reliakit_dsn: str) -> None:
    arrived = threading.Event()
    known = psycopg.conninfo.conninfo_to_dict(reliakit_dsn)
    user = known.pop("user")
    conninfo = psycopg.conninfo.make_conninfo(**known)
    settings = {"user": user, "prepare_threshold": None}
    with psycopg_pool.ConnectionPool(conninfo, min_size=1, max_size=2, kwargs=settings) as pool:
        with Database(pool=pool) as borrower:
            relay = OUTBOX.relay(borrower, lambda _message: arrived.set(), poll=3600)
            thread = threading.Thread(target=relay.run)
            thread.start()
            publish(db, 1)
            assert arrived.wait(30)
            relay.stop()
            thread.join()


def test_a_plain_handler_that_outlives_its_claim_is_a_failure_of_that_message_alone(
    db: Database, monkeypatch: pytest.MonkeyPatch, recording_listener: RecordingListener
) -> None:
    publish(db, 1, 2, 3)
    over = threading.Event()

    def handle(message: OutboxMessage) -> None:
        if message.payload == 2 and message.attempt == 1:
            over.wait(0.6)

    relay = OUTBOX.relay(db, handle, timeout=10, backoff=NEVER)
    shipping = relay._shipping
    monkeypatch.setattr(shipping, "_options", replace(shipping._options, timeout=0.5))
    relay.drain()
    failed = [event for event in recording_listener.events if isinstance(event, OutboxFailed)]
    assert [(event.attempt, event.error_type) for event in failed] == [(1, "DeadlineExceededError")]
    assert OUTBOX.stats(db).pending == 1


def test_no_new_message_is_begun_after_half_of_the_claims_time(db: Database) -> None:
    publish(db, 1, 2)
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        got.append(message.payload)
        if len(got) == 1:
            threading.Event().wait(0.1)

    relay = OUTBOX.relay(db, handle, timeout=0.05)
    assert relay.drain() == 2
    assert got == [1, 2]


@pytest.mark.parametrize("notify", [True, False])
@pytest.mark.parametrize("key", [None, "a"])
def test_publishing_notifies_if_asked_to(db: Database, reliakit_dsn: str, notify: bool, key: str | None) -> None:
    with psycopg.connect(reliakit_dsn, autocommit=True) as listener:
        listener.execute('LISTEN "outbox"')
        publish(db, 1, 2, key=key, outbox=Outbox(notify=notify))
        db.execute("NOTIFY outbox, 'the end'")
        heard = list(listener.notifies(timeout=30, stop_after=1 + notify))
        assert [notification.payload for notification in heard] == [""] * notify + ["the end"]


def test_a_table_in_a_schema(db: Database) -> None:
    db.execute("CREATE SCHEMA sales")
    outbox = Outbox("sales.outbox")
    outbox.create(db)
    outbox.create(db)
    publish(db, 1, key="a", outbox=outbox)
    got: list[OutboxMessage] = []
    assert outbox.relay(db, got.append).drain() == 1
    assert OUTBOX.stats(db).pending == 0
    assert "sales" in outbox.ddl
    assert repr(outbox) == "Outbox('sales.outbox', notify=True)"


def test_many_may_create_the_table_at_once(reliakit_dsn: str) -> None:
    together = threading.Barrier(6)

    def create(_number: int) -> None:
        with Database(reliakit_dsn) as db:
            together.wait()
            OUTBOX.create(db)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(create, range(6)))


@pytest.mark.parametrize("table", ["", "Outbox", "a-b", "a.b.c", 'a"b', "x" * 64, "1a", None, "a b", "a;b"])
def test_wrong_tables_are_refused(table: Any) -> None:
    with pytest.raises(ConfigurationError, match="table"):
        Outbox(table)
    with pytest.raises(ConfigurationError, match="notify"):
        Outbox(notify=1)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    "wrong",
    [
        {"topic": ""},
        {"topic": "x" * 256},
        {"topic": 7},
        {"payload": object()},
        {"payload": float("nan")},
        {"payload": b"x"},
        {"key": ""},
        {"key": 7},
        {"key": "a\0b"},
        {"headers": {"a": 1}},
        {"headers": [("a", "b")]},
    ],
)
def test_wrong_messages_are_refused_and_the_transaction_goes_on(db: Database, wrong: dict[str, Any]) -> None:
    arguments = {"topic": "topic", "payload": 1} | wrong
    with db.transaction() as tx:
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            OUTBOX.publish(tx, **arguments)
        OUTBOX.publish(tx, "topic", 1)
    assert OUTBOX.stats(db).pending == 1


def test_a_message_needs_a_transaction(db: Database) -> None:
    with db.transaction(propagation=Propagation.SUPPORTS) as bare, pytest.raises(TransactionUsageError):
        OUTBOX.publish(bare, "topic", 1)
    with db.transaction() as tx:
        pass
    with pytest.raises(TransactionUsageError):
        OUTBOX.publish(tx, "topic", 1)
    with pytest.raises(ConfigurationError, match="takes Transaction"):
        OUTBOX.publish(db, "topic", 1)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), db.transaction(read_only=True) as reading:
        OUTBOX.publish(reading, "topic", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": True},
        {"poll": 0},
        {"timeout": -1},
        {"max_attempts": 0},
        {"backoff": 1.0},
        {"listeners": print},
    ],
)
def test_wrong_settings_of_a_relay_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        OUTBOX.relay(Database("host=nowhere.invalid"), print, **wrong)


def test_colours_are_checked_when_a_relay_is_made() -> None:
    db, adb = Database("host=nowhere.invalid"), AsyncDatabase("host=nowhere.invalid")

    async def handle(_message: OutboxMessage) -> None:
        pass

    def plain(_message: OutboxMessage) -> None:
        pass

    for wrong in (partial(OUTBOX.relay, db, handle), partial(OUTBOX.relay, adb, plain)):
        with pytest.raises(ConfigurationError, match="handler"):
            wrong()
    for call in (OUTBOX.create, OUTBOX.dead, OUTBOX.redrive, OUTBOX.stats):
        with pytest.raises(ConfigurationError, match="takes Database, got AsyncDatabase"):
            call(adb)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ConfigurationError):
        OUTBOX.relay("db", plain)  # type: ignore[call-overload]  # on purpose


def test_isolation_of_the_publisher_does_not_matter(db: Database) -> None:
    for isolation in Isolation:
        with db.transaction(isolation=isolation) as tx:
            OUTBOX.publish(tx, "topic", isolation.value, key="a")
    got: list[OutboxMessage] = []
    assert OUTBOX.relay(db, got.append).drain() == 3


def test_a_relays_own_listeners_hear_it(db: Database) -> None:
    heard: list[object] = []
    publish(db, 1)
    OUTBOX.relay(db, lambda _m: None, listeners=[heard.append]).drain()
    assert [type(event) for event in heard] == [OutboxRelayed]


def test_ctrl_c_in_a_handler_keeps_what_was_done_and_loses_nothing(db: Database) -> None:
    publish(db, 1, 2, 3)
    got: list[object] = []

    def handle(message: OutboxMessage) -> None:
        if message.payload == 2 and message.payload not in got:
            got.append(2)
            raise KeyboardInterrupt
        got.append(message.payload)

    with pytest.raises(KeyboardInterrupt):
        OUTBOX.relay(db, handle).run()
    assert OUTBOX.stats(db).pending == 2
    assert OUTBOX.relay(db, handle).drain() == 2
    assert got == [1, 2, 2, 3]
    assert db.stats().in_use == 0


# Tasks


async def apublish(db: AsyncDatabase, *payloads: object, key: str | None = None) -> None:
    async with db.transaction() as tx:
        for payload in payloads:
            await OUTBOX.apublish(tx, "topic", payload, key=key)


@pytest.mark.anyio
async def test_tasks_have_all_of_it(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=3) as db:
        await OUTBOX.acreate(db)
        await apublish(db, 1, 2, key="a")
        await apublish(db, 3)
        got: list[OutboxMessage] = []

        async def handle(message: OutboxMessage) -> None:
            assert (await db.fetch_value("SELECT 1")) == 1
            if message.payload == 3:
                raise LookupError
            got.append(message)

        assert await OUTBOX.relay(db, handle, max_attempts=1).adrain() == 2
        assert [message.payload for message in got] == [1, 2]
        assert [message.payload for message in await OUTBOX.adead(db)] == [3]
        assert (await OUTBOX.astats(db)).dead == 1
        assert await OUTBOX.aredrive(db) == 1
        with pytest.raises(ConfigurationError):
            await OUTBOX.apublish(None, "topic", 1)  # type: ignore[arg-type]  # on purpose


@pytest.mark.anyio
async def test_arun_ends_by_cancellation_and_settles_what_was_done(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=3) as db:
        await OUTBOX.acreate(db)
        await apublish(db, 1, 2, 3, key="a")
        second = asyncio.Event()
        got: list[object] = []

        async def handle(message: OutboxMessage) -> None:
            got.append(message.payload)
            if message.payload == 2 and not second.is_set():
                second.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(OUTBOX.relay(db, handle, poll=3600).arun())
        await second.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await OUTBOX.astats(db)).pending == 2
        assert (db.stats().in_use, db.stats().leaked) == (0, 0)
        assert await OUTBOX.relay(db, handle).adrain() == 2
        assert got == [1, 2, 2, 3]


@pytest.mark.anyio
async def test_arun_is_woken_and_ends_by_stop_too(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=3) as db:
        await OUTBOX.acreate(db)
        arrived = asyncio.Event()

        async def handle(_message: OutboxMessage) -> None:
            arrived.set()

        relay = OUTBOX.relay(db, handle, poll=3600)
        task = asyncio.create_task(relay.arun())
        await apublish(db, 1)
        await arrived.wait()
        relay.stop()
        await task


@pytest.mark.anyio
async def test_an_async_handler_is_cut_and_that_is_its_messages_failure(
    reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=3) as db:
        await OUTBOX.acreate(db)
        await apublish(db, 1, 2)

        async def handle(message: OutboxMessage) -> None:
            if message.payload == 1:
                await asyncio.Event().wait()

        assert await OUTBOX.relay(db, handle, timeout=0.1, backoff=NEVER).adrain() == 1
    (failed,) = [event for event in recording_listener.events if isinstance(event, OutboxFailed)]
    assert failed.error_type == "DeadlineExceededError"
    (error,) = [event.error for event in recording_listener.events if isinstance(event, ErrorSeen)]
    assert isinstance(error, DeadlineExceededError)


@pytest.mark.anyio
async def test_cancellations_at_every_step_lose_no_message_and_no_connection(reliakit_dsn: str) -> None:
    async with AsyncDatabase(reliakit_dsn, max_size=2) as db:
        await OUTBOX.acreate(db)
        got: list[Any] = []

        async def handle(message: OutboxMessage) -> None:
            await SYSTEM_CLOCK.asleep(0)
            got.append(message.payload)

        for steps in range(0, 60, 2):
            await apublish(db, steps, key="a")
            task = asyncio.create_task(OUTBOX.relay(db, handle).arun())
            for _ in range(steps):
                await SYSTEM_CLOCK.asleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await OUTBOX.relay(db, handle).adrain()
        assert sorted(set(got)) == list(range(0, 60, 2))
        firsts = list(dict.fromkeys(got))
        assert firsts == sorted(firsts)
        async with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
            assert db.stats().in_use == 2


def test_publishing_is_tried_again_with_its_run(db: Database) -> None:
    attempts: list[int] = []

    def work(tx: Transaction) -> int:
        attempts.append(tx.attempt)
        number = OUTBOX.publish(tx, "topic", tx.attempt)
        if tx.attempt == 1:
            raise psycopg.errors.SerializationFailure
        return number

    db.run(work)
    got: list[OutboxMessage] = []
    assert OUTBOX.relay(db, got.append).drain() == 1
    assert [message.payload for message in got] == [2]
