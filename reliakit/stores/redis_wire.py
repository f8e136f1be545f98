"""How a store speaks to Redis: scripts by their digest, over connections of its own or a client of the user's.

```
thread ── Request ──> BlockingWire ──> one connection of a few, one request at a time
task   ── Request ──> TickWire ── all requests of one tick of the event loop ──> one pipeline on one connection
```

Every wire answers with the script's reply or raises what the client library raises. A script that the server does not
know (a new server, SCRIPT FLUSH, a failover) is sent whole with the same request. A connection that proves dead
before it has answered anything of what it was asked is replaced once: the server was restarted, or dropped it for
being idle. One that is lost later may take an answer with it that counts, so nothing is asked again.
"""

from __future__ import annotations

import asyncio
import importlib.util
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError
from reliakit.stores.connections import Connections
from reliakit.stores.ticks import Pipe, PooledTicks, Telling

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from reliakit.stores.redis_scripts import Script

__all__ = ["BlockingWire", "Call", "Library", "Request", "TickWire", "is_lost", "is_unknown"]

# Between a task's request and the server's answer there is usually a pause, so more connections do not help.
_FOR_TASKS: Final = 16
# Each thread that waits for an answer keeps a connection.
_FOR_THREADS: Final = 64
_SHORTEST: Final = 0.001


class Call:
    """A script with its arguments, as many decisions share it; packed once.

    Args:
        script: The script.
        keys: How many KEYS there will be.
        args: Its ARGV.
    """

    __slots__ = ("_head", "_tail", "args", "script")

    def __init__(self, script: Script, keys: int, args: tuple[bytes, ...]) -> None:
        self.script: Script = script
        self.args: tuple[bytes, ...] = args
        self._head = b"*%d\r\n%b" % (3 + keys + len(args), _packed(b"EVALSHA", script.digest.encode(), b"%d" % keys))
        self._tail = _packed(*args)

    def packed(self, keys: tuple[bytes, ...]) -> bytes:
        """Return it in the wire format, with the script's digest."""
        if len(keys) == 1:
            key = keys[0]
            return b"%b$%d\r\n%b\r\n%b" % (self._head, len(key), key, self._tail)
        return b"%b%b%b" % (self._head, _packed(*keys), self._tail)

    def whole(self, keys: tuple[bytes, ...]) -> bytes:
        """Return the same with the script's text."""
        words = (b"EVAL", self.script.text.encode(), b"%d" % len(keys), *keys, *self.args)
        return b"*%d\r\n%b" % (len(words), _packed(*words))


class Request(NamedTuple):
    """One run of a script.

    Attributes:
        call: The script with its arguments.
        keys: Its KEYS; all hash to one slot of a cluster.
    """

    call: Call
    keys: tuple[bytes, ...]


def _packed(*words: bytes) -> bytes:
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Library:
    """A client library (redis-py or valkey-py), and its settings for an address.

    Args:
        url: Such as redis://, rediss://, unix://, valkey:// or valkeys://.
        timeout: Seconds for connecting and for an answer, at most.

    Raises:
        ConfigurationError: There is no client library, or the address is not valid.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self.timeout = timeout
        scheme, _, rest = url.partition("://")
        names = ("valkey", "redis") if scheme.startswith("valkey") else ("redis", "valkey")
        self._name = next((name for name in names if importlib.util.find_spec(name)), "")
        if not self._name:
            raise ConfigurationError("RedisStore needs a client library: pip install 'reliakit[redis]'")
        kinds = {"redis": scheme, "valkey": scheme.replace("redis", "valkey").replace("valkeyvalkey", "valkey")}
        if self._name == "redis":
            kinds["redis"] = scheme.replace("valkey", "redis")
        self._url = f"{kinds[self._name]}://{rest}"
        # Unless told to, not every version checks the host's name. What the address says has precedence.
        verified = parse_qs(rest.partition("?")[2]).get("ssl_cert_reqs") != ["none"]
        self._tls = {"ssl_check_hostname": True} if verified and scheme in {"rediss", "valkeys"} else {}
        try:
            self.connection()
        except Exception as error:  # noqa: BLE001 - whatever the library objects to, such as an unknown setting
            raise ConfigurationError(f"RedisStore: {error}, got {_without_password(url)!r}") from None

    def connection(self) -> Any:
        """Make a connection for a thread; it does not connect yet."""
        connection = self._pool("", self.timeout).make_connection()
        connect = connection._connect  # noqa: SLF001 - the library bounds each step, and never the whole
        connection._connect = lambda: _Socket(connect(), self.timeout)  # noqa: SLF001
        return connection

    def async_connection(self) -> Any:
        """Make a connection for tasks of one event loop; it does not connect yet."""
        return self._pool(".asyncio", None).make_connection()

    def _pool(self, colour: str, timeout: float | None) -> Any:
        retry = importlib.import_module(f"{self._name}{colour}.retry").Retry
        backoff = importlib.import_module(f"{self._name}.backoff").NoBackoff()
        pool = importlib.import_module(f"{self._name}{colour}").ConnectionPool
        return pool.from_url(
            self._url,
            protocol=2,
            retry=retry(backoff, 0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            health_check_interval=0,
            decode_responses=False,
            **self._tls,
        )

    def __repr__(self) -> str:
        return repr(_without_password(self._url))


class BlockingWire(Connections["_Line"]):
    """Connections of its own for any number of threads. Each request may take as long as `remaining()` says."""

    def __init__(self, library: Library) -> None:
        super().__init__("RedisStore", timeout=library.timeout, most=_FOR_THREADS)
        self._library = library

    def run(self, request: Request, /) -> Any:
        """Run it and return its reply."""
        until = self._until()
        line = self._take(until)
        try:
            reply = self._run_on(line, request, until)
        except Exception as error:
            if line.has_answered or not is_lost(error):
                raise
            self._close_idle()  # the others are as old
            reply = self._run_on(self._take(until), request, until)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _run_on(self, line: _Line, request: Request, until: float) -> Any:
        line.has_answered = False
        try:
            reply = line.ask(request.call.packed(request.keys), until)
            if isinstance(reply, Exception) and is_unknown(reply):
                reply = line.ask(request.call.whole(request.keys), until)
            return reply
        finally:
            self._put(line, is_good=line.is_open)

    def _connect(self) -> _Line:
        connection = self._library.connection()
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return _Line(connection)

    def _drop(self, line: _Line) -> None:
        line.close()


class _Line:
    """A connection of threads."""

    __slots__ = ("_connection", "_socket", "has_answered", "is_open")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket: _Socket = connection._sock  # noqa: SLF001 - ours, see `Library.connection`
        self.has_answered = False
        self.is_open = True

    def ask(self, packed: bytes, until: float) -> Any:
        """Return the reply, or the error with which the server refuses."""
        try:
            self._socket.send(packed, until)
            reply = self._connection.read_response()
        except BaseException as error:
            # A server's refusal is an answer like any other; after all else there may be one still to come.
            if not _is_refusal(error) or _is_of_a_replica(error):
                self.close()
                raise
            reply = error
        self.has_answered = True
        return reply

    def close(self) -> None:
        self.is_open = False
        self._connection.disconnect()


class _Socket:
    """A socket from which an answer is read until a given instant, in however many pieces it comes."""

    __slots__ = ("_is_fresh", "_socket", "_until", "sendall")

    def __init__(self, connected: socket.socket, seconds: float) -> None:
        self._socket: socket.socket = connected
        self._until = SYSTEM_CLOCK.monotonic() + seconds
        self._is_fresh = False
        self.sendall = connected.sendall

    def send(self, packed: bytes, until: float) -> None:
        """Send a request whose answer may take until `until`. One request never fills the socket's buffer."""
        self._until = until
        self._hurry()
        self.sendall(packed)
        self._is_fresh = True  # so that the answer's first piece, which is all as a rule, needs no look at the clock

    def recv(self, size: int, *flags: int) -> bytes:
        self._before_reading()
        return self._socket.recv(size, *flags)

    def recv_into(self, buffer: Any, *more: int) -> int:
        self._before_reading()
        return self._socket.recv_into(buffer, *more)

    def _before_reading(self) -> None:
        if self._is_fresh:
            self._is_fresh = False
        else:
            self._hurry()

    def _hurry(self) -> None:
        left = self._until - SYSTEM_CLOCK.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        if not left <= (self._socket.gettimeout() or 0.0) <= left + _SHORTEST:  # else spare the system call
            self._socket.settimeout(left + _SHORTEST / 2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class TickWire(PooledTicks):
    """Connections of its own for the tasks of any number of event loops."""

    def __init__(self, library: Library) -> None:
        super().__init__(library.timeout, _FOR_TASKS)
        self._library = library

    async def _connect(self) -> Pipe:
        connection = self._library.async_connection()
        try:
            async with asyncio.timeout(self._timeout):
                if hasattr(connection, "ssl_context"):
                    # Reading the system's certificates takes 40 ms, for which it would hold the event loop up.
                    await asyncio.to_thread(connection.ssl_context.get)
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return _Pipe(connection)


class _Pipe:
    """A connection of an event loop."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._has_answered = False

    async def exchange(self, requests: Sequence[Request], tell: Telling, /) -> None:
        self._has_answered = False
        unknown: list[int] = []

        def hear(at: int, reply: Any) -> None:
            if is_unknown(reply):
                unknown.append(at)
            else:
                tell(at, reply)

        await self._ask([request.call.packed(request.keys) for request in requests], hear)
        if unknown:
            whole = [requests[at].call.whole(requests[at].keys) for at in unknown]
            await self._ask(whole, lambda at, reply: tell(unknown[at], reply))

    async def _ask(self, packed: list[bytes], tell: Telling) -> None:
        connection = self._connection
        # The library sends by `writelines`, which on Python 3.12 and later does not notice that a connection was
        # reset: it raises AttributeError, or leaves the descriptor watched, and the next connection to get it hangs.
        connection._writer.write(b"".join(packed))  # noqa: SLF001
        await connection._writer.drain()  # noqa: SLF001
        for at in range(len(packed)):
            try:
                reply = await connection.read_response()
            except Exception as error:
                if not _is_refusal(error) or _is_of_a_replica(error):
                    raise
                reply = error
            self._has_answered = True
            tell(at, reply)

    async def close(self) -> None:
        await self._connection.disconnect()

    async def drop(self) -> None:
        await self._connection.disconnect(nowait=True)

    def is_lost(self, error: Exception) -> bool:
        return not self._has_answered and is_lost(error)


def is_unknown(reply: object) -> bool:
    """Return whether the server does not know the script: it is new, or has forgotten it."""
    return type(reply).__name__ == "NoScriptError"


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server itself said no, on a connection that is as good as before."""
    return any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)


def _is_of_a_replica(error: BaseException) -> bool:
    """Return whether the server has become a replica: a new connection leads to the one that may write."""
    return "READONLY" in str(error) or type(error).__name__ == "ReadOnlyError"


def is_lost(error: object) -> bool:
    """Return whether a connection was dead; false if it merely takes too long."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return "ConnectionError" in names and "TimeoutError" not in names


def _without_password(url: str) -> str:
    """Return what may be shown of an address: of its parameters, which may hold passwords too, only the database."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if "@" in query:  # of an address that is not encoded: the place may be a part of the password
        return f"{scheme}://..."
    database = "".join(f"?db={number}" for number in parse_qs(query).get("db", ())[:1])
    return f"{scheme}://{place.rpartition('@')[2]}{database}"
