"""The pytest plugin: fixtures that cost nothing before a test asks for them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import psycopg
import pytest

from reliakit import testing
from reliakit.core.events import Event
from reliakit.core.spine import Emitter


def python(*arguments: str, cwd=None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.mark.parametrize("module", ["reliakit.testing", "reliakit.testing.pytest_plugin"])
def test_loading_it_loads_nothing_heavy(module):
    heavy = "{'psycopg', 'asyncio', 'subprocess', 'reliakit.testing.postgres', 'reliakit.testing.fault_proxy'}"
    load = (
        f"import pytest, sys; before = set(sys.modules); import {module}; print({heavy} & set(sys.modules) - before)"
    )
    assert python("-c", load).stdout == "set()\n"


def test_the_clock_loads_without_psycopg():
    load = "import sys; from reliakit.testing import ManualClock; print('psycopg' in sys.modules)"
    assert python("-c", load).stdout == "False\n"


def test_every_public_name_loads_and_is_listed():
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
        assert name in dir(testing)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testing.nothing


def test_manual_clock_stands_still(manual_clock):
    assert manual_clock.monotonic() == 0.0
    manual_clock.advance(1.0)
    assert manual_clock.monotonic() == 1.0


def test_recording_listener_hears_the_whole_process(recording_listener):
    Emitter("door").emit(Event)
    assert [event.name for event in recording_listener] == ["door"]


def test_fault_proxy_opens_what_it_is_asked_for(fault_proxy, reliakit_dsn):
    proxy = fault_proxy(reliakit_dsn)
    with psycopg.connect(proxy.dsn()) as connection:
        assert connection.execute("SELECT current_database()").fetchone()[0] in reliakit_dsn
    assert "reliakit-fault-proxy" in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_has_an_empty_database(reliakit_dsn, turn):
    with psycopg.connect(reliakit_dsn) as connection:
        connection.execute("CREATE TABLE mine (x int)")


SUITE = """
    import psycopg, pytest
    seen = []

    def test_first(reliakit_dsn, reliakit_postgres):
        seen.append(reliakit_dsn)
        if reliakit_postgres.folder:
            reliakit_postgres.kill()

    def test_second(reliakit_dsn):
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(seen[0])
        psycopg.connect(reliakit_dsn).close()
"""


def run_suite(tmp_path, text: str, **environment: str) -> str:
    (tmp_path / "test_theirs.py").write_text(textwrap.dedent(text))
    options = ["-p", "no:randomly", "-p", "no:cacheprovider", "-q", "--color=no", "-c", os.devnull, "--rootdir=."]
    return python("-m", "pytest", *options, "test_theirs.py", cwd=tmp_path, **environment).stdout


def test_a_test_that_kills_the_server_does_not_harm_the_next(tmp_path):
    assert "2 passed" in run_suite(tmp_path, SUITE, RELIAKIT_DSN="")


def test_a_given_server_is_used(tmp_path, reliakit_postgres):
    assert "2 passed" in run_suite(tmp_path, SUITE, RELIAKIT_DSN=reliakit_postgres.dsn)


def test_a_missing_server_fails_with_one_clear_line(tmp_path):
    hide = """
        import pytest
        from reliakit.testing import _postgres_programs, postgres

        @pytest.fixture(scope="session", autouse=True)
        def nowhere():
            postgres.find_installations = lambda binaries: []
    """
    said = run_suite(tmp_path, textwrap.dedent(hide) + textwrap.dedent(SUITE), RELIAKIT_DSN="")
    assert "2 errors" in said
    assert "skipped" not in said
    assert "no PostgreSQL server found: install PostgreSQL" in said
    assert "RELIAKIT_DSN" in said
    assert "Traceback" not in said
