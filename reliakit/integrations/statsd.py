"""Metrics for statsd: everything that a `Metrics` counts, sent as UDP packets from a thread of its own.

```
metrics ── counters, gauges: what has changed ─┐
        └─ histograms: each measurement ───────┴─ a few packets a second ──> statsd, Datadog, Telegraf, Vector
```
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.core.threads import Bell, start
from reliakit.metrics import Counter, Gauge, Histogram, Metrics

__all__ = ["Statsd"]

_ODD = re.compile(r"[^0-9A-Za-z_.\-/]")
# An Ethernet frame without the headers of IPv6 and UDP: a larger packet may be split, and is lost if any part is.
_PACKET = 1432
_MOST = 10_000


class Statsd:
    """Sends what a `Metrics` counts to a statsd server; open it, or use it as a `with` block.

    Counting never waits for it: measurements of histograms are queued, counters and gauges are read when it is time
    to send. What the queue or the network does not take is lost, and counted in `lost`. What was counted before it
    was first opened, or by the process that forked this one, is not sent.

    Args:
        metrics: What to send. Label values are limited as they are there.
        host: The server.
        port: Its UDP port.
        prefix: Goes before every name, with its dot.
        tags: Whether labels become tags, as DogStatsD, Telegraf and Vector read them; otherwise their values follow
            the name after dots, as the original statsd expects.
        interval: Seconds between two rounds of packets.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        host: str = "127.0.0.1",
        port: int = 8125,
        prefix: str = "",
        tags: bool = True,
        interval: float = 1.0,
    ) -> None:
        if not isinstance(metrics, Metrics):
            raise ConfigurationError(f"metrics must be a Metrics, got {metrics!r}")
        if not isinstance(host, str) or not host:
            raise ConfigurationError(f"host must be a name or an address, got {host!r}")
        if not isinstance(prefix, str) or _ODD.search(prefix):
            raise ConfigurationError(f"prefix must be letters, digits, _, - and dots, got {prefix!r}")
        self.host: str = host
        self.port: int = checks.count("port", port)
        self.prefix: str = prefix
        self.tags: bool = tags
        self.interval: float = checks.seconds("interval", interval)
        self.lost: int = 0
        self._metrics = metrics
        self._families: list[Counter | Gauge | Histogram] = []
        self._sent: dict[tuple[str, tuple[str, ...]], float] = {}
        self._queue: deque[str] = deque()
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._done = Bell()
        self._is_known = False
        # Guards sending: two senders at once would both send what was added since the last time.
        self._lock = threading.Lock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "_begin_anew")

    def open(self) -> Self:
        """Start sending. Opening twice is harmless.

        Raises:
            ConfigurationError: The host cannot be resolved.
        """
        if self._socket is None:
            try:
                kind, _, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
            except OSError as error:
                raise ConfigurationError(f"host {self.host!r} is not known: {error}") from error
            self._socket = socket.socket(kind, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._socket.connect(address)
            if not self._is_known:
                self._is_known = True
                self._metrics.forward(self._hear)
                self._refresh()
                self._begin()
            try:
                self._run()
            except BaseException:  # also a Ctrl-C: a block that is not entered is not closed
                self.close()
                raise
        return self

    def close(self) -> None:
        """Send what is left and stop. Closing twice is harmless."""
        self._done.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        self.flush()
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flush(self) -> None:
        """Send everything that has changed since the last time, now. Never raises."""
        with self._lock:
            for packet in _packets(self._lines_locked()):
                try:
                    if self._socket is not None:
                        self._socket.send(packet)
                except OSError:  # nobody listens there, or the buffer is full: the next round sends newer numbers
                    self.lost += packet.count(b"\n") + 1

    def measured(self, line: str) -> None:
        """Queue one measurement; for the series of histograms."""
        if self._socket is None:
            return
        if len(self._queue) >= _MOST:
            self.lost += 1
            return
        self._queue.append(line)

    def _run(self) -> None:
        self._done = Bell()
        sender = threading.Thread(target=self._send_until, args=(self._done,), name="reliakit-statsd", daemon=True)
        start(sender)
        self._thread = sender

    def _send_until(self, done: Bell) -> None:
        while not done.wait(self.interval):
            self.flush()

    def _begin(self) -> None:
        """Treat what counters hold now as sent: it was counted by others, or others will send it."""
        with self._lock:
            for family in self._families[:]:
                if isinstance(family, Counter):
                    self._sent |= {(family.name, series.values): series.get() for series in family.series[:]}

    def _begin_anew(self) -> None:
        """Run in this child process, too: the parent keeps its threads, and its numbers."""
        self._queue.clear()
        self._begin()
        if self._socket is not None:
            self._run()

    def _hear(self, family: Counter | Gauge | Histogram) -> None:
        self._families.append(family)
        if isinstance(family, Histogram):
            factor, kind = (1000, "ms") if family.metric.unit == "seconds" else (1, "h" if self.tags else "ms")

            def measurements(labels: dict[str, str]) -> _Measurements:
                name, tags = self._named(family.name, tuple(labels.items()))
                return _Measurements(self, f"{name}:", factor, f"|{kind}{tags}")

            family.tell(lambda labels: measurements({**labels}))

    def _lines_locked(self) -> Iterator[str]:
        while self._queue:
            yield self._queue.popleft()
        if not self._families:
            return
        self._refresh()
        for family in self._families[:]:
            if not isinstance(family, Histogram):
                for series in family.series[:]:
                    yield from self._changed_locked(family, series.values, series.get())

    def _refresh(self) -> None:
        with contextlib.suppress(Exception):  # if a component's figures cannot be read, the others are still sent
            self._metrics.families()

    def _changed_locked(self, family: Counter | Gauge, values: tuple[str, ...], value: float) -> Iterator[str]:
        key = (family.name, values)
        before = self._sent.get(key)
        if value == before or value != value:  # noqa: PLR0124 - not a number: nothing is known
            return
        self._sent[key] = value
        name, tags = self._named(family.name, tuple(zip(family.label_names, values, strict=True)))
        if isinstance(family, Gauge):
            if value < 0:
                yield f"{name}:0|g{tags}"  # a sign means a change to the original statsd
            yield f"{name}:{_shown(value)}|g{tags}"
        elif value > (before or 0):
            yield f"{name}:{_shown(value - (before or 0))}|c{tags}"

    def _named(self, name: str, labels: Iterable[tuple[str, str]]) -> tuple[str, str]:
        """Return a series' name and its tags as they stand in a line."""
        given = [(label, _ODD.sub("_", value)) for label, value in labels if value]
        if self.tags:
            tags = ",".join(f"{label}:{value}" for label, value in given)
            return f"{self.prefix}{name}", f"|#{tags}" if tags else ""
        return ".".join([f"{self.prefix}{name}", *(value.replace(".", "_") for _, value in given)]), ""

    def __repr__(self) -> str:
        state = "closed" if self._socket is None else "open"
        return f"<Statsd {self.host}:{self.port}, every {self.interval} s, {state}, {self.lost} lost>"


class _Measurements(NamedTuple):
    """Passes on what one series of a histogram measures. Equal for the same series, so that it does so only once."""

    to: Statsd
    start: str
    factor: int
    end: str

    def add(self, amount: float, /) -> None:
        """Hand on one measurement."""
        self.to.measured(f"{self.start}{_shown(amount * self.factor)}{self.end}")


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.10g}"


def _packets(lines: Iterator[str]) -> Iterator[bytes]:
    """Put as many lines into each packet as fit."""
    packet = b""
    for line in lines:
        encoded = line.encode()
        if packet and len(packet) + 1 + len(encoded) > _PACKET:
            yield packet
            packet = b""
        packet = packet + b"\n" + encoded if packet else encoded
    if packet:
        yield packet
