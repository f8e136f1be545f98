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
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs

from reliakit.core.deadline import remaining
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import tell_after_fork
from reliakit.stores.ticks import Pipe, PooledTicks, Telling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliakit.stores.redis_scripts import Script

__all__ = ["BlockingWire", "Call", "Library", "Request", "TickWire", "is_unknown"]

# Between a task's request and the server's answer there is usually a pause, so more connections do not help.
_IDLE: Final = 16
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
        try:
            self.connection()
        except Exception as error:  # noqa: BLE001 - whatever the library objects to, such as an unknown setting
            raise ConfigurationError(f"RedisStore: {error}, got {_without_password(url)!r}") from None

    def connection(self) -> Any:
        """Make a connection for a thread; it does not connect yet."""
        return self._pool("", self.timeout).make_connection()

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
        )

    def __repr__(self) -> str:
        return repr(_without_password(self._url))


class BlockingWire:
    """Connections of its own for any number of threads. Each request may take as long as `remaining()` says."""

    def __init__(self, library: Library) -> None:
        self._library = library
        # Append and pop are atomic; the connection used last is the one most likely to be alive.
        self._idle: deque[Any] = deque()
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent process's connections to the parent."""
        self._idle = deque()

    def open(self) -> None:
        """Make one connection ahead of time."""
        connection = self._library.connection()
        connection.connect()
        self._idle.append(connection)

    def run(self, request: Request, /) -> Any:
        """Run it and return its reply."""
        left = remaining()
        seconds = self._library.timeout if left is None else max(_SHORTEST, min(left, self._library.timeout))
        connection, reply = self._asked(request.call.packed(request.keys), seconds)
        if is_unknown(reply):
            reply = self._exchange(connection, request.call.whole(request.keys), seconds)
        if len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.disconnect()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _asked(self, packed: bytes, seconds: float) -> tuple[Any, Any]:
        """Return a connection and its reply; a connection that was idle may have died meanwhile."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._library.connection()
            return connection, self._exchange(connection, packed, seconds)
        try:
            return connection, self._exchange(connection, packed, seconds)
        except Exception as error:
            if not _is_lost(error):
                raise
            self.close()  # the others are no younger
            connection = self._library.connection()
            return connection, self._exchange(connection, packed, seconds)

    def _exchange(self, connection: Any, packed: bytes, seconds: float) -> Any:
        """Return a connection's reply, or the error with which the server refuses."""
        try:
            _hurry(connection, seconds)
            connection.send_packed_command([packed], check_health=False)
            return connection.read_response()
        except BaseException as error:
            # A server's refusal is an answer like any other; after all else there may be one still to come.
            if _is_refusal(error) and not _is_of_a_replica(error):
                return error
            connection.disconnect()
            raise

    def close(self) -> None:
        """Close all connections."""
        idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.disconnect()


class TickWire(PooledTicks):
    """Connections of its own for the tasks of any number of event loops."""

    def __init__(self, library: Library) -> None:
        super().__init__(library.timeout, _IDLE)
        self._library = library

    async def _connect(self) -> Pipe:
        connection = self._library.async_connection()
        try:
            async with asyncio.timeout(self._timeout):
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
        return not self._has_answered and _is_lost(error)


def _hurry(connection: Any, seconds: float) -> None:
    """Give a connection `seconds`, for connecting if it must and for each answer."""
    socket = getattr(connection, "_sock", None)
    if socket is not None:
        if not seconds <= (socket.gettimeout() or 0.0) <= seconds + _SHORTEST:  # else spare the system call
            socket.settimeout(seconds)
    else:
        connection.socket_timeout = connection.socket_connect_timeout = seconds
        connection.connect()


def is_unknown(reply: object) -> bool:
    """Return whether the server does not know the script: it is new, or has forgotten it."""
    return type(reply).__name__ == "NoScriptError"


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server itself said no, on a connection that is as good as before."""
    return any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)


def _is_of_a_replica(error: BaseException) -> bool:
    """Return whether the server has become a replica: a new connection leads to the one that may write."""
    return "READONLY" in str(error) or type(error).__name__ == "ReadOnlyError"


def _is_lost(error: BaseException) -> bool:
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
