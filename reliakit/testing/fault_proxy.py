"""A proxy between a client and its server that makes the network between them as bad as a test needs.

```
client ──> 127.0.0.1:port ══ FaultProxy ══> server
              to_server ─────────────────>
              <───────────────── to_client
```

Faults are switched while traffic flows: latency, black hole, reset, refusal, and a cut at a pattern of bytes. Traffic
is counted, network round trips too. One thread with an event loop of its own serves any number of connections, so
sync and async tests use it alike.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.testing._proxy_engine import DIRECTIONS, Direction, Engine, Weather
from reliakit.testing._proxy_target import address_of, is_conninfo, is_foreign_url

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType
    from typing import Self

__all__ = ["Cut", "Fault", "FaultProxy", "ProxyStats"]

F = TypeVar("F", bound="Fault")


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """What has passed a proxy since it was opened.

    Attributes:
        connections: Connections that clients made.
        live: Those of them that are open now.
        bytes_to_server: Bytes that clients sent.
        bytes_to_client: Bytes that the server sent.
        round_trips: How often, over all connections, the server began to answer after its client had sent.
    """

    connections: int
    live: int
    bytes_to_server: int
    bytes_to_client: int
    round_trips: int


class Fault:
    """A fault that is switched on, until its `with` block ends or it is healed."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def heal(self) -> None:
        """Remove this fault and leave the others as they are; idempotent."""
        self._proxy.heal(self)

    def apply(self, weather: Weather) -> None:
        """Add this fault to the weather; called by the proxy."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = [
            f", {name.lstrip('_')}={value!r}" for name, value in vars(self).items() if name.lstrip("_") != "proxy"
        ]
        return f"<{type(self).__name__.lstrip('_')} of {self._proxy!r}{''.join(settings)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.heal()


class _Latency(Fault):
    def __init__(self, proxy: FaultProxy, seconds: float, directions: tuple[Direction, ...]) -> None:
        super().__init__(proxy)
        self._seconds = seconds
        self._directions = directions

    def apply(self, weather: Weather) -> None:
        weather.latency |= dict.fromkeys(self._directions, self._seconds)


class _BlackHole(Fault):
    def __init__(self, proxy: FaultProxy, directions: tuple[Direction, ...]) -> None:
        super().__init__(proxy)
        self._directions = directions

    def apply(self, weather: Weather) -> None:
        weather.black |= dict.fromkeys(self._directions, True)


class _Refusal(Fault):
    def apply(self, weather: Weather) -> None:
        weather.refusing = True


class Cut(Fault):
    """A cut that waits for its pattern.

    Attributes:
        count: How often it has cut.
    """

    def __init__(
        self,
        proxy: FaultProxy,
        *,
        pattern: bytes,
        direction: Direction,
        after: bool,
        how: Literal["reset", "black_hole"],
        times: int | None,
    ) -> None:
        super().__init__(proxy)
        self.pattern = pattern
        self.direction: Direction = direction
        self.after = after
        self.how: Literal["reset", "black_hole"] = how
        self.times = times
        self.count: int = 0
        self._happened = threading.Event()

    def wait(self, timeout: float = 10.0) -> bool:
        """Block until it has cut once; return whether it did within `timeout` seconds."""
        return self._happened.wait(timeout)

    @property
    def is_spent(self) -> bool:
        """Whether it has cut as often as requested."""
        return self.times is not None and self.count >= self.times

    def happen(self) -> None:
        """Count one cut; called by the proxy."""
        self.count += 1
        self._happened.set()

    def apply(self, weather: Weather) -> None:
        """Add this cut to the weather; called by the proxy."""
        weather.cuts.append(self)

    def __repr__(self) -> str:
        when = "after" if self.after else "before"
        return f"<Cut {when} {self.pattern!r} {self.direction} by {self.how}, happened {self.count} times>"


class FaultProxy:
    """A TCP port on 127.0.0.1 that leads to a server, with faults on the way that you switch.

    Use it as a context manager (in async code too: opening takes milliseconds) or with `open()` and `close()`. A
    method switches each fault on, for all connections; leaving its `with` block, its `heal()` or the proxy's `heal()`
    removes it. Safe from any thread.

    ```
    with FaultProxy(server.dsn) as proxy:
        connection = psycopg.connect(proxy.dsn())
        with proxy.black_hole():
            ...
    ```

    Args:
        target: Where it leads: a conninfo, a URL, "host:port", (host, port), or the path of a Unix socket.
    """

    host = "127.0.0.1"

    def __init__(self, target: str | tuple[str, int]) -> None:
        self._conninfo = target if isinstance(target, str) and is_conninfo(target) else None
        self._target = address_of(target)
        self._engine: Engine | None = None
        self._serving: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def open(self) -> None:
        """Listen on a free port."""
        if self._thread is not None:
            return
        engine = Engine(self._target)
        opened = threading.Event()
        failures: list[BaseException] = []
        self._thread = threading.Thread(
            target=self._run, args=(engine, opened, failures), name="reliakit-fault-proxy", daemon=True
        )
        self._thread.start()
        opened.wait()
        if failures:
            self._thread.join()
            self._thread = None
            raise failures[0]
        self._engine = engine

    def close(self) -> None:
        """End every connection and the thread; idempotent."""
        thread, engine, serving = self._thread, self._engine, self._serving
        if thread is None or engine is None or serving is None:
            return
        engine.loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        self._thread = self._engine = self._serving = None
        self._faults.clear()

    @property
    def port(self) -> int:
        """The port to connect to instead of the server's."""
        return self._open_engine().port

    def dsn(self, conninfo: str | None = None) -> str:
        """Return the conninfo or URL with host and port replaced by the proxy's.

        Args:
            conninfo: What to rewrite; None takes the target, if that was one.

        Raises:
            ConfigurationError: The target is only an address, and no conninfo was given.
        """
        conninfo = conninfo or self._conninfo
        if conninfo is None:
            raise ConfigurationError("dsn() needs conninfo=, since the target of this proxy is only an address")
        if is_foreign_url(conninfo):
            url = urlsplit(conninfo)
            user, at, _ = url.netloc.rpartition("@")
            return url._replace(netloc=f"{user}{at}{self.host}:{self.port}").geturl()
        from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - the test kit loads without psycopg

        # Over a Unix socket there is no encryption to ask for; asking would cost a round trip for each connection.
        plain = {"sslmode": "disable", "gssencmode": "disable"} if isinstance(self._target, str) else {}
        return make_conninfo(conninfo, host=self.host, hostaddr=self.host, port=self.port, **plain)

    def latency(self, seconds: float, *, direction: Direction | None = None) -> Fault:
        """Deliver everything later, in order and with the same gaps as it was sent.

        Args:
            seconds: One-way delay; exact to about a millisecond, never shorter.
            direction: "to_server" or "to_client"; None delays both, so a round trip takes twice as long.
        """
        seconds = checks.seconds("latency: seconds", seconds, zero=True)
        return self._switch(_Latency(self, seconds, _directions(direction)))

    def black_hole(self, *, direction: Direction | None = None) -> Fault:
        """Accept everything and forward nothing, not even the end of a connection; healing lets it all through.

        Args:
            direction: The direction in which nothing arrives; None is both.
        """
        return self._switch(_BlackHole(self, _directions(direction)))

    def refuse(self) -> Fault:
        """Refuse new connections, as a machine does when nothing listens; existing ones live on."""
        return self._switch(_Refusal(self))

    def reset(self) -> None:
        """End every existing connection with RST, on both sides; new ones are accepted."""
        self._do(self._open_engine().reset())

    def cut_on(
        self,
        pattern: bytes,
        *,
        direction: Direction = "to_server",
        after: bool = False,
        how: Literal["reset", "black_hole"] = "reset",
        times: int | None = 1,
    ) -> Cut:
        r"""Cut the connection on which the pattern passes, even if it comes in pieces.

        Args:
            pattern: The bytes to wait for, such as b"COMMIT"; nothing is seen inside TLS.
            direction: The direction in which they pass.
            after: False cuts before the receiver has the whole pattern. True cuts once the piece that ends the
                pattern has been delivered: end it where the message ends, as in b"COMMIT\0", to be sure that the
                receiver acts on it. Nothing comes back to the sender any more.
            how: "reset" sends RST to both sides, but with `after` an orderly end to the receiver, so that it reads
                everything; "black_hole" leaves both without any sign.
            times: After how many cuts it lets everything pass; None for never.

        Raises:
            ConfigurationError: An argument is wrong.
        """
        if not isinstance(pattern, bytes) or not pattern:
            raise ConfigurationError(f"cut_on(pattern={pattern!r}) must be the bytes to wait for, such as b'COMMIT'")
        checks.choice("how", how, ("reset", "black_hole"))
        checks.choice("direction", direction, DIRECTIONS)
        if times is not None:
            checks.count("times", times)
        return self._switch(Cut(self, pattern=pattern, direction=direction, after=after, how=how, times=times))

    def heal(self, fault: Fault | None = None) -> None:
        """Remove one fault, or all of them; what a black hole held back then arrives."""
        with self._lock:
            self._faults = [known for known in self._faults if fault is not None and known is not fault]
            if self._engine is not None:
                self._apply_locked()

    def stats(self) -> ProxyStats:
        """Return what has passed so far."""
        engine = self._open_engine()
        return ProxyStats(
            connections=engine.connections,
            live=len(engine.links),
            bytes_to_server=engine.bytes["to_server"],
            bytes_to_client=engine.bytes["to_client"],
            round_trips=engine.round_trips,
        )

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._engine is None:
            return f"<FaultProxy to {self._target}, closed>"
        return f"<FaultProxy on {self.host}:{self.port} to {self._target}, {len(self._faults)} faults>"

    def _run(self, engine: Engine, opened: threading.Event, failures: list[BaseException]) -> None:
        async def serve() -> None:
            self._serving = asyncio.current_task()
            await engine.run(opened.set)

        try:
            # A selector loop, whatever the process uses: other loops have no raw socket to reset.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(serve())
        except asyncio.CancelledError:
            pass  # how close() ends it
        except BaseException as error:  # noqa: BLE001 - raised by open() in the thread that waits for it
            failures.append(error)
        finally:
            opened.set()

    def _switch(self, fault: F) -> F:
        self._open_engine()
        with self._lock:
            self._faults.append(fault)
            self._apply_locked()
        return fault

    def _apply_locked(self) -> None:
        weather = Weather()
        for fault in self._faults:
            fault.apply(weather)
        self._do(self._open_engine().change_weather(weather))

    def _do(self, change: Coroutine[Any, Any, None]) -> None:
        """Run one change in the proxy's thread and wait until it is in effect."""
        asyncio.run_coroutine_threadsafe(change, self._open_engine().loop).result()

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ConfigurationError("this FaultProxy is not open; use it as a context manager or call open()")
        return self._engine


def _directions(direction: Direction | None) -> tuple[Direction, ...]:
    if direction is None:
        return DIRECTIONS
    if direction not in DIRECTIONS:
        raise ConfigurationError(f"direction={direction!r} must be 'to_server' or 'to_client'")
    return (direction,)
