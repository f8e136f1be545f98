"""Relays that are killed, cut off, or whose server goes away: nothing is lost, and keys keep their order."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reliakit.core.events import OutboxFailed, StoreFailed, StoreRecovered
from reliakit.database import Database, Outbox, OutboxMessage

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedPostgres, FaultProxy, RecordingListener

OUTBOX = Outbox()
KEYS = 4

# Each message is one line, written at once, before the handler returns: what a killed relay did is known to the last.
RELAY = """
import os, sys, time
from reliakit.database import Database, Outbox
out = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
def handle(message):
    os.write(out, f"{message.key} {message.payload}\\n".encode())
    time.sleep(0.002)
with Database(sys.argv[1]) as db:
    Outbox().relay(db, handle, batch=10, poll=0.1).run()
"""


@pytest.fixture
def db(reliakit_dsn: str) -> Iterator[Database]:
    with Database(reliakit_dsn, max_size=4) as database:
        OUTBOX.create(database)
        yield database


def publish(db: Database, start: int, stop: int) -> None:
    for number in range(start, stop):
        with db.transaction() as tx:
            for key in range(KEYS):
                OUTBOX.publish(tx, "topic", number, key=str(key))


def check_order(lines: list[tuple[str, int]], count: int) -> None:
    """Fail if a message is missing, or came before the one before it."""
    seen: dict[str, int] = defaultdict(int)
    for key, number in lines:
        assert number <= seen[key], f"{number} of {key} came before {seen[key]}"
        seen[key] = max(seen[key], number + 1)
    assert seen == {str(key): count for key in range(KEYS)}


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)  # noqa: TID251 - another process's time


@pytest.mark.timeout(120)
def test_relays_that_are_killed_in_a_batch_lose_nothing_and_keep_the_order(
    db: Database, reliakit_dsn: str, tmp_path: Path
) -> None:
    log = tmp_path / "handled"
    log.touch()
    chance = random.Random(7)
    count = 100

    def lines() -> list[str]:
        return log.read_text().splitlines()

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", RELAY, reliakit_dsn, str(log)])

    publish(db, 0, count // 2)
    relays = [start(), start()]
    try:
        publisher = threading.Thread(target=publish, args=(db, count // 2, count))
        publisher.start()
        for kill in range(4):
            enough = min(len(lines()) + chance.randrange(3, 40), 390)
            wait_until(lambda enough=enough: len(lines()) >= enough)
            victim = relays[kill % 2]
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            relays[kill % 2] = start()
        publisher.join()
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
    finally:
        for relay in relays:
            relay.kill()
            relay.wait()
    handled = [(key, int(number)) for key, number in (line.split() for line in lines())]
    assert len(handled) >= KEYS * count
    check_order(handled, count)


@pytest.mark.timeout(120)
def test_a_relay_whose_backends_are_terminated_goes_on(
    db: Database, reliakit_dsn: str, recording_listener: RecordingListener
) -> None:
    lines: list[tuple[str, int]] = []
    done = threading.Event()

    def handle(message: OutboxMessage) -> None:
        lines.append((str(message.key), message.payload))
        time.sleep(0.001)  # noqa: TID251

    def terminate() -> None:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'relay'"
        for _ in range(8):  # not for ever: a slow relay would have to begin each batch again and again
            if done.wait(0.1):
                return
            db.fetch_all(query)

    with Database(f"{reliakit_dsn} application_name=relay", name="relaying") as relaying:
        relay = OUTBOX.relay(relaying, handle, batch=10, poll=0.05)
        threads = [threading.Thread(target=work) for work in (relay.run, terminate)]
        for thread in threads:
            thread.start()
        publish(db, 0, 100)
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        done.set()
        relay.stop()
        for thread in threads:
            thread.join()
        assert (relaying.stats().in_use, relaying.stats().leaked) == (0, 0)
    check_order(lines, 100)
    assert not any(isinstance(event, OutboxFailed) for event in recording_listener.events)


@pytest.mark.timeout(120)
def test_a_relay_outlives_a_restart_and_a_crash_and_listens_again(
    db: Database, reliakit_dsn: str, reliakit_postgres: EmbeddedPostgres, recording_listener: RecordingListener
) -> None:
    lines: list[tuple[str, int]] = []

    def handle(message: OutboxMessage) -> None:
        lines.append((str(message.key), message.payload))

    with Database(reliakit_dsn, name="relaying") as relaying:
        relay = OUTBOX.relay(relaying, handle, poll=0.1)
        thread = threading.Thread(target=relay.run)
        thread.start()
        publish(db, 0, 5)
        reliakit_postgres.restart()
        publish(db, 5, 10)
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        reliakit_postgres.kill()
        wait_until(lambda: any(isinstance(event, StoreFailed) for event in recording_listener.events))
        reliakit_postgres.start()
        publish(db, 10, 15)
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        listening = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%' AND datname = current_database()"
        )
        wait_until(lambda: db.fetch_value(listening) == 1)
        relay.stop()
        thread.join()
        wait_until(lambda: db.fetch_value(listening) == 0)
    check_order(lines, 15)
    told = [event for event in recording_listener.events if isinstance(event, StoreFailed | StoreRecovered)]
    assert [type(event) for event in told[-2:]] == [StoreFailed, StoreRecovered]


@pytest.mark.timeout(120)
def test_a_relay_whose_network_dies_without_a_word_goes_on_when_it_is_back(
    db: Database, reliakit_dsn: str, fault_proxy: Callable[[str], FaultProxy]
) -> None:
    lines: list[tuple[str, int]] = []
    proxy = fault_proxy(reliakit_dsn)

    def handle(message: OutboxMessage) -> None:
        lines.append((str(message.key), message.payload))

    with Database(proxy.dsn(), name="far") as far:
        relay = OUTBOX.relay(far, handle, poll=0.05, timeout=0.5)
        thread = threading.Thread(target=relay.run)
        thread.start()
        publish(db, 0, 5)
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        hole = proxy.black_hole()
        publish(db, 5, 10)
        hole.heal()
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        proxy.reset()
        publish(db, 10, 15)
        wait_until(lambda: OUTBOX.stats(db).pending == 0)
        relay.stop()
        thread.join()
    check_order(lines, 15)
