"""FaultProxy: every fault at the wire, on plain sockets, over TCP and over a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError
from reliakit.testing import FaultProxy

pytestmark = pytest.mark.anyio


class Echo:
    """A server that answers every piece with the same bytes and remembers how each connection ended."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._listening = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self._listening.bind(address)
        self._listening.listen()
        self.address = self._listening.getsockname()
        self.heard = b""
        self.ends: list[str] = []
        self.changed = threading.Condition()
        self._threads = [threading.Thread(target=self._accept)]
        self._live: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._live.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        end = "fin"
        with connection:
            try:
                while piece := connection.recv(65536):
                    with self.changed:
                        self.heard += piece
                        self.changed.notify_all()
                    connection.sendall(piece)
            except OSError as error:
                end = errno.errorcode[error.errno or 0]
            with self.changed:
                self.ends.append(end)
                self.changed.notify_all()

    def wait_until(self, heard: bytes) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.heard == heard, 10.0), self.heard

    def wait_for_ends(self, count: int) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.ends) == count, 10.0), self.ends
        return self.ends

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in self._live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10.0)


@pytest.fixture(params=["tcp", "unix"])
def echo(request, tmp_path_factory) -> Iterator[Echo]:
    address = ("127.0.0.1", 0)
    server = Echo(str(tmp_path_factory.mktemp("e") / "s") if request.param == "unix" else address)
    yield server
    server.close()


@pytest.fixture
def proxy(echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.address) as opened:
        yield opened


@pytest.fixture
def connect(proxy):
    opened: list[socket.socket] = []

    def connect() -> socket.socket:
        opened.append(socket.create_connection((proxy.host, proxy.port), timeout=10.0))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def receive(connection: socket.socket, size: int) -> bytes:
    answer = bytearray()
    while len(answer) < size:
        piece = connection.recv(size - len(answer))
        assert piece, f"the connection ended after {len(answer)} bytes"
        answer += piece
    return bytes(answer)


def ask(connection: socket.socket, message: bytes) -> bytes:
    connection.sendall(message)
    return receive(connection, len(message))


def hears_nothing(connection: socket.socket) -> bool:
    connection.settimeout(0.1)
    try:
        return connection.recv(1) == b"a byte"
    except TimeoutError:
        return True
    finally:
        connection.settimeout(10.0)


def test_without_a_fault_everything_passes_both_ways(connect):
    message = bytes(range(256)) * 20_000
    connection = connect()
    answers: list[bytes] = []
    reader = threading.Thread(target=lambda: answers.append(receive(connection, len(message))))
    reader.start()
    connection.sendall(message)
    reader.join(10.0)
    assert answers == [message]


def test_the_end_of_one_side_reaches_the_other(echo, connect):
    connection = connect()
    ask(connection, b"hello")
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    assert echo.wait_for_ends(1) == ["fin"]


def test_latency_delays_each_direction(proxy, connect):
    connection = connect()
    before = SYSTEM_CLOCK.monotonic()
    ask(connection, b"x")
    with proxy.latency(0.05):
        before = SYSTEM_CLOCK.monotonic()
        ask(connection, b"x")
        assert SYSTEM_CLOCK.monotonic() - before >= 0.1
    with proxy.latency(0.05, direction="to_client"):
        before = SYSTEM_CLOCK.monotonic()
        ask(connection, b"x")
        assert SYSTEM_CLOCK.monotonic() - before >= 0.05


def test_latency_keeps_what_was_sent_at_once_together(proxy, connect):
    """Two hundred pieces under way side by side: one after the other they would take twenty seconds."""
    connection = connect()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with proxy.latency(0.05):
        before = SYSTEM_CLOCK.monotonic()
        for number in range(200):
            connection.sendall(bytes([number]))
            threading.Event().wait(0.0005)
        assert receive(connection, 200) == bytes(range(200))
        assert SYSTEM_CLOCK.monotonic() - before < 10.0


def test_less_latency_never_reorders(proxy, connect):
    connection = connect()
    slow = proxy.latency(0.2)
    connection.sendall(b"first ")
    while proxy.stats().bytes_to_server < 6:
        threading.Event().wait(0.001)
    slow.heal()
    connection.sendall(b"second")
    assert receive(connection, 12) == b"first second"


def test_a_black_hole_swallows_everything_until_it_is_healed(echo, proxy, connect):
    connection = connect()
    ask(connection, b"before ")
    with proxy.black_hole():
        connection.sendall(b"during")
        assert hears_nothing(connection)
        assert echo.heard == b"before "
    assert receive(connection, 6) == b"during"


def test_a_black_hole_accepts_new_connections_and_connects_them_when_healed(echo, proxy, connect):
    hole = proxy.black_hole()
    connection = connect()
    connection.sendall(b"patience")
    assert hears_nothing(connection)
    assert echo.heard == b""
    hole.heal()
    assert receive(connection, 8) == b"patience"


def test_a_black_hole_hides_that_the_client_has_gone(echo, proxy, connect):
    connection = connect()
    ask(connection, b"x")
    hole = proxy.black_hole()
    connection.close()
    threading.Event().wait(0.1)
    assert echo.ends == []
    hole.heal()
    assert len(echo.wait_for_ends(1)) == 1


def test_a_black_hole_can_swallow_the_answers_only(echo, proxy, connect):
    connection = connect()
    with proxy.black_hole(direction="to_client"):
        connection.sendall(b"heard")
        echo.wait_until(b"heard")
        assert hears_nothing(connection)
    assert receive(connection, 5) == b"heard"


def test_reset_ends_both_sides_at_once_and_lets_new_ones_in(echo, proxy, connect):
    connection = connect()
    ask(connection, b"x")
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert len(echo.wait_for_ends(1)) == 1
    assert ask(connect(), b"again") == b"again"


def test_refused_connections_fail_at_once_and_old_ones_live_on(proxy, connect):
    connection = connect()
    ask(connection, b"x")
    port = proxy.port
    with proxy.refuse():
        for _ in range(20):
            with pytest.raises(ConnectionRefusedError):
                connect()
        assert ask(connection, b"still here") == b"still here"
    assert proxy.port == port
    assert ask(connect(), b"welcome") == b"welcome"


def test_a_server_that_is_not_there_resets_the_client():
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        # The reset may arrive while the client still connects.
        with (
            FaultProxy(placeholder.getsockname()) as proxy,
            pytest.raises(ConnectionResetError),
            socket.create_connection((proxy.host, proxy.port), timeout=10.0) as connection,
        ):
            connection.recv(1)


@pytest.mark.parametrize(
    "pieces", [[b"say COMMIT now"], [b"say COM", b"MIT now"], [b"s", b"ay COMMI", b"T", b" now"]]
)
def test_a_cut_before_never_lets_the_whole_pattern_through(echo, proxy, connect, pieces):
    cut = proxy.cut_on(b"COMMIT")
    connection = connect()
    sent = 0
    for piece in pieces[:-1]:
        connection.sendall(piece)
        sent += len(piece)
        while not cut.count and proxy.stats().bytes_to_server < sent:
            threading.Event().wait(0.001)
    # Whichever call finds out first says so.
    with pytest.raises(ConnectionError):
        connection.sendall(pieces[-1])
        assert cut.wait()
        while connection.recv(100):
            pass
    assert len(echo.wait_for_ends(1)) == 1
    assert b"COMMIT" not in echo.heard
    assert echo.heard.startswith(b"s")
    assert cut.count == 1


@pytest.mark.parametrize("latency", [0.0, 0.05])
def test_a_cut_after_delivers_the_pattern_and_loses_the_answer(echo, proxy, connect, latency):
    proxy.latency(latency)
    cut = proxy.cut_on(b"COMMIT\0", after=True)
    connection = connect()
    connection.sendall(b"say COMMIT\0")
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    echo.wait_until(b"say COMMIT\0")
    assert cut.wait()
    assert len(echo.wait_for_ends(1)) == 1


def test_a_cut_may_leave_silence_instead(echo, proxy, connect):
    cut = proxy.cut_on(b"COMMIT", after=True, how="black_hole")
    connection, other = connect(), connect()
    connection.sendall(b"COMMIT")
    echo.wait_until(b"COMMIT")
    assert cut.wait()
    assert hears_nothing(connection)
    assert ask(other, b"others do not notice") == b"others do not notice"
    proxy.heal()
    assert receive(connection, 6) == b"COMMIT"


def test_a_cut_can_watch_the_answers(proxy, connect):
    cut = proxy.cut_on(b"ok", direction="to_client")
    connection = connect()
    connection.sendall(b"not o")
    assert receive(connection, 5) == b"not o"
    connection.sendall(b"k")
    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert cut.count == 1


def test_a_cut_happens_as_often_as_asked(proxy, connect):
    cut = proxy.cut_on(b"COMMIT", times=2)
    for _ in range(2):
        connection = connect()
        connection.sendall(b"COMMIT")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert ask(connect(), b"COMMIT") == b"COMMIT"
    assert cut.count == 2


def test_faults_nest_and_each_takes_only_itself_away(proxy, connect):
    connection = connect()
    with proxy.latency(0.1):
        with proxy.latency(0.0), proxy.black_hole():
            pass
        before = SYSTEM_CLOCK.monotonic()
        ask(connection, b"x")
        assert SYSTEM_CLOCK.monotonic() - before >= 0.2


def test_what_passes_is_counted(proxy, connect):
    connection, other = connect(), connect()
    for message in (b"one", b"three"):
        ask(connection, message)
    ask(other, b"x")
    stats = proxy.stats()
    assert (stats.connections, stats.live) == (2, 2)
    assert (stats.bytes_to_server, stats.bytes_to_client, stats.round_trips) == (9, 9, 3)


async def test_async_code_uses_it_alike(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"x")
    assert await reader.read(1) == b"x"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def test_close_leaves_no_thread_and_no_socket(echo):
    before = set(threading.enumerate())
    proxy = FaultProxy(echo.address)
    assert set(threading.enumerate()) <= before
    with proxy, socket.create_connection((proxy.host, proxy.port), timeout=10.0) as connection:
        ask(connection, b"x")
        port = proxy.port
        hole = proxy.black_hole()
        (own,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "reliakit-fault-proxy"]
        proxy.close()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert not own.is_alive()
    hole.heal()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_it_can_be_opened_again(echo):
    proxy = FaultProxy(echo.address)
    for _ in range(2):
        with proxy, socket.create_connection((proxy.host, proxy.port), timeout=10.0) as connection:
            assert ask(connection, b"x") == b"x"


@settings(max_examples=40)
@given(
    pattern=st.binary(min_size=1, max_size=4),
    message=st.lists(st.sampled_from([b"A", b"B", b"AB", b"BA", b"AAB"]), max_size=8).map(b"".join),
    cuts=st.lists(st.integers(1, 5), max_size=6),
)
def test_a_pattern_is_found_wherever_the_pieces_break(pattern, message, cuts):
    """Against the naive model: does the whole message hold the pattern?"""
    pattern = bytes(b"AB"[byte % 2] for byte in pattern)
    server = Echo(("127.0.0.1", 0))
    try:
        with FaultProxy(server.address) as proxy:
            cut = proxy.cut_on(pattern)
            with socket.create_connection((proxy.host, proxy.port), timeout=10.0) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                start, ends, answer = 0, iter([*cuts, len(message), len(message)]), b""
                with contextlib.suppress(ConnectionError):
                    while start < len(message):
                        piece = message[start : start + next(ends)]
                        connection.sendall(piece)
                        start += len(piece)
                        while len(answer) < start:
                            answer += connection.recv(start - len(answer))
            assert cut.count == (1 if pattern in message else 0)
            assert pattern not in answer
    finally:
        server.close()


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("db.example:6432", ("db.example", 6432)),
        (("::1", 5432), ("::1", 5432)),
        ("[::1]:5432", ("::1", 5432)),
        ("/run/pg/.s.PGSQL.5433", "/run/pg/.s.PGSQL.5433"),
        ("host=/run/pg port=5433 dbname=x", "/run/pg/.s.PGSQL.5433"),
        ("postgresql://u:p@db.example/x", ("db.example", 5432)),
        ("redis://localhost:6379/0", ("localhost", 6379)),
    ],
)
def test_a_target_can_be_said_in_many_ways(target, leads_to):
    assert FaultProxy(target)._target == leads_to


@pytest.mark.parametrize(
    "target",
    [
        "nowhere",
        "host:",
        "host:65536",
        "dbname=x",
        "host=a,b password=hunter2",
        "redis://localhost",
        ("host", "5432"),
        ("host", 0),
        ("host",),
        5432,
        None,
    ],
)
def test_a_target_that_leads_nowhere_is_refused_without_telling_its_password(target):
    with pytest.raises(ConfigurationError, match="target") as refusal:
        FaultProxy(target)
    assert "hunter2" not in str(refusal.value)


def test_a_url_keeps_its_credentials(echo):
    with FaultProxy(("127.0.0.1", 1)) as proxy:
        assert proxy.dsn("redis://u:p@example:6379/3") == f"redis://u:p@127.0.0.1:{proxy.port}/3"


def test_wrong_use_is_told(echo):
    proxy = FaultProxy(echo.address)
    with pytest.raises(ConfigurationError, match="not open"):
        proxy.black_hole()
    with proxy:
        for seconds in (-1.0, "1", None):
            with pytest.raises(ConfigurationError, match="latency"):
                proxy.latency(seconds)
        for pattern in (b"", "COMMIT", None):
            with pytest.raises(ConfigurationError, match="pattern"):
                proxy.cut_on(pattern)
        for wrong in ({"direction": None}, {"direction": "sideways"}, {"how": "maybe"}, {"times": 0}):
            with pytest.raises(ConfigurationError, match=next(iter(wrong))):
                proxy.cut_on(b"COMMIT", **wrong)
        with pytest.raises(ConfigurationError, match="direction"):
            proxy.black_hole(direction="sideways")
        with pytest.raises(ConfigurationError, match="conninfo="):
            proxy.dsn()
