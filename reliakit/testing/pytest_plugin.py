"""Fixtures for pytest, registered by installing reliakit. Nothing is imported before a test asks for it.

manual_clock           a ManualClock
recording_listener     a RecordingListener that hears every event in the process
reliakit_postgres      the session's EmbeddedPostgres
reliakit_dsn           conninfo of an empty database of this test's own
reliakit_redis         the session's EmbeddedRedis
reliakit_redis_url     address of that server, emptied for this test
reliakit_rollback      a function: what a Database does from reliakit_rollback(db) on is rolled back after the test
fault_proxy            a factory: fault_proxy(target) is an open FaultProxy
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reliakit.database import Database
    from reliakit.testing import EmbeddedPostgres, EmbeddedRedis, FaultProxy, ManualClock, RecordingListener


@pytest.fixture
def manual_clock() -> ManualClock:
    """A clock that stands at 0 until the test advances it."""
    from reliakit.testing import ManualClock  # noqa: PLC0415

    return ManualClock()


@pytest.fixture
def recording_listener() -> Iterator[RecordingListener]:
    """A listener that records every event in the process while the test runs."""
    from reliakit.core.spine import subscribe  # noqa: PLC0415
    from reliakit.testing import RecordingListener  # noqa: PLC0415

    recorder = RecordingListener()
    with subscribe(recorder):
        yield recorder


@pytest.fixture(scope="session")
def reliakit_postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for the whole session, the one of RELIAKIT_DSN or one of its own.

    A test that needs one and cannot have it fails; it is never skipped.
    """
    from reliakit.core.errors import ConfigurationError  # noqa: PLC0415
    from reliakit.testing import EmbeddedPostgres  # noqa: PLC0415

    server = EmbeddedPostgres()
    try:
        server.start()
    except ConfigurationError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture
def reliakit_dsn(reliakit_postgres: EmbeddedPostgres) -> Iterator[str]:
    """Conninfo of an empty database that only this test uses; dropped afterwards, about 30 ms in all."""
    # A test before this one, or this one itself, may have killed the server.
    reliakit_postgres.start()
    conninfo = reliakit_postgres.database()
    yield conninfo
    reliakit_postgres.start()
    reliakit_postgres.drop_database(conninfo)


@pytest.fixture(scope="session")
def reliakit_redis() -> Iterator[EmbeddedRedis]:
    """A Redis server for the whole session, with a TCP port.

    A test that needs one and cannot have it fails; it is never skipped.
    """
    from reliakit.core.errors import ConfigurationError  # noqa: PLC0415
    from reliakit.testing import EmbeddedRedis  # noqa: PLC0415

    server = EmbeddedRedis(port=0)
    try:
        server.start()
    except ConfigurationError as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.fixture
def reliakit_redis_url(reliakit_redis: EmbeddedRedis) -> str:
    """Address of a Redis that holds nothing and that only this test uses."""
    # A test before this one may have killed or stalled the server.
    reliakit_redis.start()
    reliakit_redis.resume()
    reliakit_redis.flush()
    return reliakit_redis.url


@pytest.fixture
def reliakit_rollback() -> Iterator[Callable[[Database], Database]]:
    """A function that has everything a Database commits from then on rolled back after the test.

    It returns the database. For an AsyncDatabase, write a fixture with `async with rolled_back(db): yield db`.
    """
    from reliakit.core.errors import ConfigurationError  # noqa: PLC0415
    from reliakit.database import Database  # noqa: PLC0415
    from reliakit.testing import rolled_back  # noqa: PLC0415

    with ExitStack() as stack:

        def begin(db: Any) -> Database:
            if not isinstance(db, Database):
                raise ConfigurationError(
                    f"reliakit_rollback takes a Database, got {type(db).__name__}: for an AsyncDatabase write a "
                    "fixture with `async with rolled_back(db): yield db`"
                )
            return stack.enter_context(rolled_back(db))

        yield begin


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[str | tuple[str, int]], FaultProxy]]:
    """A function that opens a FaultProxy to a target; all of them are closed after the test."""
    from reliakit.testing import FaultProxy  # noqa: PLC0415

    opened: list[FaultProxy] = []

    def open_proxy(target: str | tuple[str, int]) -> FaultProxy:
        proxy = FaultProxy(target)
        proxy.open()
        opened.append(proxy)
        return proxy

    yield open_proxy
    for proxy in opened:
        proxy.close()
