"""What the whole suite shares; the fixtures for PostgreSQL, clocks and faults come from reliakit's own plugin."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase, InMemoryExampleDatabase
from sweeping import left_after_sweeping

from reliakit.core import spine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from reliakit.testing import EmbeddedPostgres

# No test is judged by the clock, and a checkout that the user may not write to must not warn.
_can_write = os.access(".", os.W_OK)
_examples = DirectoryBasedExampleDatabase(".hypothesis/examples") if _can_write else InMemoryExampleDatabase()
settings.register_profile("reliakit", deadline=None, database=_examples, max_examples=60)
settings.load_profile("reliakit")

# Begun in the background of a shell, the suite inherits SIGINT ignored, and so would the children it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spare the collector what lives as long as the suite: tests that collect garbage do so by the hundred."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse names with an address in them: they differ in each process, and the suite runs in several."""
    nameless = [item.nodeid for item in items if re.search(r" at 0x|\bid='", item.nodeid)]
    if nameless:
        raise pytest.UsageError(f"give these parameters ids of their own: {nameless}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail in CI what is skipped for want of a program; a `skipif` tells of another system or user, and may."""
    report = yield
    may_skip = (
        os.environ.get("RELIAKIT_CI") != "1" or item.get_closest_marker("skipif") or hasattr(report, "wasxfail")
    )
    if report.skipped and not may_skip:
        report.outcome, report.longrepr = "failed", f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture
def hasty_threads() -> Generator[None, None, None]:
    """Let threads take turns so often that whatever is not atomic shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def nobody_goes_on_listening() -> Iterator[None]:
    """Fail the test that leaves a process-wide listener behind, instead of an innocent one after it."""
    before = spine._everybody.routes
    yield
    after = spine._everybody.routes
    left = [route for route in after if route not in before]
    spine._everybody.routes = before
    assert not left, f"still subscribed after the test: {[route.listener for route in left]}"


@pytest.fixture(scope="session")
def swept_databases() -> list[str]:
    """Databases that a test has left and the next may have."""
    return []


@pytest.fixture
def reliakit_dsn(reliakit_postgres: EmbeddedPostgres, swept_databases: list[str]) -> Iterator[str]:
    """Conninfo of an empty database that only this test uses, as the plugin's own fixture gives one, but cheaper."""
    reliakit_postgres.start()  # a test may have killed it
    conninfo = swept_databases.pop() if swept_databases else reliakit_postgres.database()
    yield conninfo
    reliakit_postgres.start()
    if left_after_sweeping(conninfo):
        reliakit_postgres.drop_database(conninfo)
    else:
        swept_databases.append(conninfo)
