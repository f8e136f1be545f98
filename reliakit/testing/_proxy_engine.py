"""The inside of FaultProxy: connections in pairs, the bytes on their way between them, and the faults they meet.

```
client ─ End ─> Flow to_server ─> End ─ server        one Link
client <─ End ─ Flow to_client <─ End ─ server
```

Everything here runs in the event loop of the proxy's own thread, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Literal, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Address", "CutRule", "Direction", "Engine", "Weather"]

Direction = Literal["to_server", "to_client"]
Address = str | tuple[str, int]

DIRECTIONS: tuple[Direction, Direction] = ("to_server", "to_client")
# A network holds this much in flight; what is more waits at the sender.
_IN_FLIGHT = 4 * 1024 * 1024
# Lingering for no time makes a close send RST instead of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


class CutRule(Protocol):
    """When to cut a connection, and how."""

    pattern: bytes
    direction: Direction
    after: bool
    how: Literal["reset", "black_hole"]

    @property
    def is_spent(self) -> bool:
        """Whether it has cut as often as asked."""
        ...

    def happen(self) -> None:
        """Count one cut."""
        ...


class Weather:
    """What all faults that are switched on make together."""

    def __init__(self) -> None:
        self.latency: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        self.black: dict[Direction, bool] = dict.fromkeys(DIRECTIONS, False)
        self.refusing = False
        self.cuts: list[CutRule] = []


class Flow:
    """One direction of one connection: what is on its way, and when it may arrive."""

    def __init__(self, link: Link, direction: Direction) -> None:
        self.link = link
        self.direction: Direction = direction
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.sink_is_full = False
        self.has_ended = False
        self._is_cut = False
        self._on_the_way: deque[tuple[float, bytes | Callable[[], None]]] = deque()
        self._held = 0
        self._last_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tail = b""

    @property
    def is_black(self) -> bool:
        return self.link.black_by is not None or self.link.weather.black[self.direction]

    def receive(self, data: bytes) -> None:
        """Take what the source sent, and cut where a pattern says so."""
        for cut in self.link.weather.cuts:
            if cut.direction == self.direction and not cut.is_spent:
                found = (self._tail + data).find(cut.pattern)
                if found >= 0:
                    start = max(0, found - len(self._tail))
                    self.send(data if cut.after else data[:start])
                    self._tail = b""
                    self.link.cut(cut, self)
                    return
        longest = max((len(cut.pattern) for cut in self.link.weather.cuts), default=1)
        self._tail = (self._tail + data)[-(longest - 1) :] if longest > 1 else b""
        self.send(data)

    def send(self, what: bytes | Callable[[], None]) -> None:
        """Let bytes, or something that happens at the sink, arrive after the latency and in order."""
        if what == b"" or self._is_cut:
            return
        now = self.link.loop.time()
        self._last_due = max(self._last_due, now + self.link.weather.latency[self.direction])
        self._on_the_way.append((self._last_due, what))
        self._held += len(what) if isinstance(what, bytes) else 0
        self.arrive()

    def arrive(self) -> None:
        """Hand over what is due, and set the timer for what is not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self.link.loop.time()
        while self._on_the_way and self.sink is not None and not self.is_black and self._on_the_way[0][0] <= now:
            _, what = self._on_the_way.popleft()
            if isinstance(what, bytes):
                self._held -= len(what)
                self.sink.write(what)
            else:
                what()
        if self._on_the_way and self.sink is not None and not self.is_black:
            self._timer = self.link.loop.call_at(self._on_the_way[0][0], self.arrive)
        self.regulate()

    def regulate(self) -> None:
        """Read from the source only while the bytes can go somewhere."""
        if self.source is None or self.source.is_closing() or self.has_ended:
            return
        if self.is_black or self.sink is None or self.sink_is_full or self._held > _IN_FLIGHT:
            self.source.pause_reading()
        else:
            self.source.resume_reading()

    def stop(self) -> None:
        """Lose what is on its way and whatever comes."""
        self._is_cut = True
        self._on_the_way.clear()
        self._held = 0
        if self._timer is not None:
            self._timer.cancel()


class Link:
    """One client's connection and the server's that belongs to it."""

    def __init__(self, proxy: Engine) -> None:
        self.proxy = proxy
        self.loop = proxy.loop
        self.black_by: CutRule | None = None
        self.to_server = Flow(self, "to_server")
        self.to_client = Flow(self, "to_client")
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._asked = False

    @property
    def weather(self) -> Weather:
        return self.proxy.weather

    def accepted(self, client: asyncio.Transport) -> None:
        self.client = self.to_server.source = self.to_client.sink = client
        self.to_server.regulate()
        self.connect_when_possible()

    def connect_when_possible(self) -> None:
        """Reach the server, unless the network is black: then the client only believes to be connected."""
        if self.server is None and self._connecting is None and not self.weather.black["to_server"]:
            self._connecting = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        target = self.proxy.target
        try:
            if isinstance(target, str):
                await self.loop.create_unix_connection(lambda: End(self, self.to_client), target)
            else:
                await self.loop.create_connection(lambda: End(self, self.to_client), *target)
        except OSError:
            self.reset()

    def connected(self, server: asyncio.Transport) -> None:
        self.server = self.to_client.source = self.to_server.sink = server
        self.to_server.arrive()
        self.to_client.regulate()

    def count(self, direction: Direction, data: bytes) -> None:
        self.proxy.bytes[direction] += len(data)
        if direction == "to_server":
            self._asked = True
        elif self._asked:
            self._asked = False
            self.proxy.round_trips += 1

    def cut(self, cut: CutRule, flow: Flow) -> None:
        """Cut this connection; what was let through before still arrives."""
        cut.happen()
        if cut.how == "black_hole":
            flow.send(lambda: self._go_black(cut))
            return
        (self.to_client if flow is self.to_server else self.to_server).stop()
        # A receiver that shall have everything sees an orderly end: RST may overtake what it has not read.
        flow.send(lambda: self.reset(spare=flow.sink if cut.after else None))

    def _go_black(self, cut: CutRule) -> None:
        self.black_by = cut
        self.to_server.regulate()
        self.to_client.regulate()

    def weather_changed(self) -> None:
        if self.black_by not in self.weather.cuts:
            self.black_by = None
        if self.client is not None:
            self.connect_when_possible()
        self.to_server.arrive()
        self.to_client.arrive()

    def ended(self, flow: Flow) -> None:
        """The source of a flow said that it sends no more."""
        flow.has_ended = True
        flow.send(lambda: self._write_eof(flow))

    def _write_eof(self, flow: Flow) -> None:
        if self.to_server.has_ended and self.to_client.has_ended:
            self._close()
        elif flow.sink is not None and not flow.sink.is_closing():
            flow.sink.write_eof()

    def _close(self) -> None:
        for transport in (self.client, self.server):
            if transport is not None:
                transport.close()

    def lost(self, flow: Flow, error: Exception | None) -> None:
        """The source of a flow is gone; tell the other end as it was told, when the network lets that through."""
        flow.source = None
        if flow is self.to_server:
            self.client = self.to_client.sink = None
        else:
            self.server = self.to_server.sink = None
        if flow.sink is None:
            self._forget()
        elif error is None:
            flow.send(flow.sink.close)
        else:
            flow.send(self.reset)

    def reset(self, spare: asyncio.Transport | None = None) -> None:
        """End both connections with RST, and with an orderly end the one to spare."""
        self.to_server.stop()
        self.to_client.stop()
        for transport in (self.client, self.server):
            if transport is None:
                continue
            if transport is spare:
                transport.close()
                continue
            connection = transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        if self.client is None and self.server is None:
            self._forget()

    def _forget(self) -> None:
        self.to_server.stop()
        self.to_client.stop()
        if self._connecting is not None:
            self._connecting.cancel()
        self.proxy.links.discard(self)


class End(asyncio.Protocol):
    """What asyncio calls for one of both connections; `flow` is the direction away from it."""

    def __init__(self, link: Link, flow: Flow) -> None:
        self._link = link
        self._flow = flow
        self._into = link.to_client if flow is link.to_server else link.to_server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.Transport", transport)
        if self._flow is self._link.to_server:
            self._link.proxy.accepted(self._link)
            self._link.accepted(stream)
        else:
            self._link.connected(stream)

    def data_received(self, data: bytes) -> None:
        self._link.count(self._flow.direction, data)
        self._flow.receive(data)

    def eof_received(self) -> bool:
        self._link.ended(self._flow)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.lost(self._flow, exc)

    def pause_writing(self) -> None:
        self._into.sink_is_full = True
        self._into.regulate()

    def resume_writing(self) -> None:
        self._into.sink_is_full = False
        self._into.regulate()


class Engine:
    """One listening port, the connections through it and the weather over them."""

    def __init__(self, target: Address) -> None:
        self.target = target
        self.weather = Weather()
        self.links: set[Link] = set()
        self.connections = 0
        self.round_trips = 0
        self.bytes: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self.port = 0
        self._listening: socket.socket | None = None
        self._accepting: set[asyncio.Task[None]] = set()
        self._placeholder: socket.socket | None = None

    async def run(self, opened: Callable[[], None]) -> None:
        """Serve until cancelled."""
        self.loop = asyncio.get_running_loop()
        self._reserve_port()
        self._listen()
        opened()
        try:
            await self.loop.create_future()
        finally:
            self._stop_listening()
            if self._placeholder is not None:
                self._placeholder.close()
            # Until the last connection was told, those too that are being made right now.
            while self.links or len(asyncio.all_tasks()) > 1:
                for link in list(self.links):
                    link.reset()
                await asyncio.sleep(0)  # noqa: TID251 - a bare yield

    async def change_weather(self, weather: Weather) -> None:
        """Let these faults hold from now on."""
        self.weather = weather
        if weather.refusing:
            self._stop_listening()
        elif self._listening is None:
            self._listen()
        for link in list(self.links):
            link.weather_changed()

    async def reset(self) -> None:
        """End every connection with RST."""
        for link in list(self.links):
            link.reset()

    def accepted(self, link: Link) -> None:
        """Know a connection that a client made."""
        self.connections += 1
        self.links.add(link)

    def _reserve_port(self) -> None:
        """Hold the port with a second socket that never listens: who connects while we refuse is refused."""
        self._placeholder = _bound(0)
        self.port = self._placeholder.getsockname()[1]

    def _listen(self) -> None:
        # Not asyncio's own server: it may lose a connection that it is accepting while it is closed.
        self._listening = _bound(self.port)
        self._listening.setblocking(False)
        self._listening.listen(128)
        self.loop.add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        # The client may have given up already, or this process has no descriptor left: the next one may do.
        with contextlib.suppress(OSError):
            client, _ = listening.accept()
            client.setblocking(False)
            link = Link(self)
            task = self.loop.create_task(self._welcome(link, client))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    async def _welcome(self, link: Link, client: socket.socket) -> None:
        await self.loop.connect_accepted_socket(lambda: End(link, link.to_server), client)

    def _stop_listening(self) -> None:
        if self._listening is not None:
            self.loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    # Linux lets two sockets share a port with this as long as only one of them listens; the BSDs need the other.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if not hasattr(socket, "SO_INCOMING_CPU") and hasattr(socket, "SO_REUSEPORT"):
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except BaseException:
        bound.close()
        raise
    return bound
