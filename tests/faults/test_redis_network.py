"""RedisStore over TLS and over networks that are slow: real servers behind relays."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reliakit import Limit, RateLimiter, RedisStore, StoreError, deadline
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.stores import Op, Plan, Rule

if TYPE_CHECKING:
    from reliakit.testing import EmbeddedRedis, FaultProxy

CERTIFICATES = Path(__file__).parent / "certificates"
TEN = Plan("ten", (Rule("gcra", 10, 3600 * 10**9, 10),))


@pytest.fixture
def server(reliakit_redis: EmbeddedRedis, reliakit_redis_url: str) -> EmbeddedRedis:
    return reliakit_redis


class Relay:
    """What stands between clients and a server: the end of TLS, or of a network that carries answers byte by byte.

    Args:
        port: The server's.
        certificate: The file of the certificate to show; None for no TLS.
    """

    def __init__(self, port: int, certificate: Path | None = None) -> None:
        self.pace = 0.0  # seconds before each byte of an answer, if not 0
        self._target = ("127.0.0.1", port)
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(certificate)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self._work = [threading.Thread(target=self._welcome)]
        self._sockets: list[socket.socket] = []
        self._is_closed = False
        self._work[0].start()

    def close(self) -> None:
        self._is_closed = True
        self._sockets.append(self._door)
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._work:
            thread.join()
        for each in self._sockets:
            each.close()

    def _welcome(self) -> None:
        while not self._is_closed:
            with contextlib.suppress(OSError):  # closed, or a client that does not like the certificate
                client, _ = self._door.accept()
                self._sockets.append(client)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    client = self._tls.wrap_socket(client, server_side=True)
                    self._sockets.append(client)
                server = socket.create_connection(self._target)
                self._sockets.append(server)
                for pair in ((client, server, False), (server, client, True)):
                    self._work.append(threading.Thread(target=self._carry, args=pair))
                    self._work[-1].start()

    def _carry(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if not is_answer or not self.pace:
                    target.sendall(piece)
                    continue
                for at in range(len(piece)):
                    SYSTEM_CLOCK.sleep(self.pace)
                    target.sendall(piece[at : at + 1])
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relayed(server: EmbeddedRedis, certificate: Path | None = None) -> Iterator[tuple[Relay, str]]:
    relay = Relay(int(server.tcp_url.rpartition(":")[2]), certificate)
    try:
        yield relay, re.sub(r"127\.0\.0\.1:\d+", f"localhost:{relay.port}", server.tcp_url)
    finally:
        relay.close()


def decide(address: str, colour: str) -> int:
    async def in_a_task() -> int:
        async with RedisStore(address, timeout=30.0) as store:
            return (await store.aapply(Op.HIT, TEN, "k", 1)).remaining

    if colour == "tasks":
        return asyncio.run(in_a_task())
    with RedisStore(address, timeout=30.0) as store:
        return store.apply(Op.HIT, TEN, "k", 1).remaining


@pytest.mark.parametrize(("scheme", "colour"), [("rediss", "threads"), ("valkeys", "tasks")])
def test_over_tls_certificates_decide_who_is_asked_and_no_error_shows_the_password(
    server: EmbeddedRedis, scheme: str, colour: str
) -> None:
    right, expired = CERTIFICATES / "right.pem", CERTIFICATES / "expired.pem"
    with relayed(server, right) as (_, plain):
        address = plain.replace("redis:", f"{scheme}:")
        password = plain.split("@")[0].rpartition(":")[2]
        assert decide(f"{address}?ssl_ca_certs={right}", colour) == 9
        wrong_host = f"{address.replace('localhost', '127.0.0.1')}?ssl_ca_certs={right}"
        for refused in (address, wrong_host):
            with pytest.raises(StoreError, match="certificate") as raised:
                decide(refused, colour)
            assert password not in "".join(traceback.format_exception(raised.value))
        assert decide(f"{address}?ssl_cert_reqs=none", colour) == 8
        assert decide(f"{wrong_host}&ssl_check_hostname=false", colour) == 7
    with relayed(server, expired) as (_, plain):
        address = plain.replace("redis:", f"{scheme}:")
        with pytest.raises(StoreError, match="expired"):
            decide(f"{address}?ssl_ca_certs={expired}", colour)


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_certificates_are_read_without_holding_the_event_loop_up(
    server: EmbeddedRedis, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: list[int] = []
    read = ssl.create_default_context

    def recorded(*args: Any, **settings: Any) -> ssl.SSLContext:
        reading.append(threading.get_ident())
        return read(*args, **settings)

    monkeypatch.setattr(ssl, "create_default_context", recorded)
    with relayed(server, CERTIFICATES / "right.pem") as (_, plain):
        assert decide(plain.replace("redis:", f"{scheme}:") + "?ssl_cert_reqs=none", "tasks") == 9
    assert reading
    assert threading.get_ident() not in reading


def test_a_thread_waits_no_longer_than_it_may_for_a_connection_which_then_serves_the_next(
    server: EmbeddedRedis, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    address = server.tcp_url.replace(f":{server.port}", f":{proxy.port}")
    store = RedisStore(address, timeout=30.0)
    with proxy.latency(0.06):  # of which connecting takes several
        with deadline(0.05), pytest.raises(StoreError, match="in time"):
            store.apply(Op.HIT, TEN, "k", 1)
        assert store.apply(Op.HIT, TEN, "k", 1).remaining == 9
    assert proxy.stats().connections == 1
    store.close()


def test_an_answer_in_many_pieces_takes_no_longer_than_an_answer_may(server: EmbeddedRedis) -> None:
    with relayed(server) as (relay, address), RedisStore(address, timeout=30.0) as store:
        limiter = RateLimiter(Limit(200, per=3600.0, algorithm="sliding_log"), store=store, store_timeout=30.0)
        for _ in range(100):  # the answer is a row of all of them
            assert not limiter.hit("k").degraded
        relay.pace = 0.01
        with deadline(0.1), pytest.raises(StoreError, match="TimeoutError"):
            store.apply(Op.PEEK, limiter._plan, "k", 1)
        relay.pace = 0.0
        assert not limiter.hit("k").degraded  # the rest of the late answer is not taken for the next one


@pytest.mark.parametrize("colour", ["threads", "tasks"])
def test_why_connecting_failed_is_logged_once_if_nobody_waits_for_it_any_more(
    server: EmbeddedRedis, fault_proxy: Any, caplog: pytest.LogCaptureFixture, colour: str
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    password = server.tcp_url.split("@")[0].rpartition(":")[2]
    address = server.tcp_url.replace(f":{server.port}", f":{proxy.port}").replace("@", "-is-wrong@")
    store = RedisStore(address, timeout=30.0)

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        return [line for line in lines if "cannot connect" in line]

    async def attempt() -> None:
        before = proxy.stats().connections
        while proxy.stats().connections == before:
            with deadline(0.05), pytest.raises(StoreError, match="in time"):
                if colour == "tasks":
                    await store.aapply(Op.HIT, TEN, "k", 1)
                else:
                    store.apply(Op.HIT, TEN, "k", 1)
        while proxy.stats().live or not told():
            await SYSTEM_CLOCK.asleep(0.01)

    async def attempts() -> None:
        for _ in range(3):
            await attempt()
        await store.aclose()

    with proxy.latency(0.06):  # longer than a decision may take
        asyncio.run(attempts())
    assert len(told()) == 1
    assert "AuthenticationError" in told()[0]
    assert password not in told()[0]
