"""How a store speaks to Redis: scripts by their digest, over connections of its own or a client of the user's.

```
thread ── Request ──> BlockingWire ──> one connection of a few, one request at a time
task   ── Request ──> TickWire ── all requests of one tick of the event loop ──> one pipeline on one connection
```

Every wire answers with the script's reply or raises what the client library raises. A script that the server does not
know (a new server, SCRIPT FLUSH, a failover) is sent whole with the same request. A connection that proves dead
before it has answered anything is replaced once: the server was restarted, or dropped it for being idle.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from reliakit.core.deadline import remaining
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from reliakit.stores.redis_scripts import Script

__all__ = [
    "BlockingWire",
    "Call",
    "ClientBlockingWire",
    "ClientTickWire",
    "Library",
    "Request",
    "TickWire",
    "is_async",
]

# A pause between a task's request and the server's answer is common; more connections than this help nobody.
_IDLE: Final = 16
_SHORTEST: Final = 0.001
# An event loop's timer may be this early, in seconds.
_MOMENT: Final = 0.001


class Call:
    """A script with its arguments, as many decisions use it; packed once.

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
        """Return it as it goes over the wire, with the script's digest."""
        return b"%b%b%b" % (self._head, _packed(*keys), self._tail)

    def whole(self, keys: tuple[bytes, ...]) -> bytes:
        """Return the same with the script itself."""
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
    """A client library (redis-py or valkey-py) and what it makes of an address.

    Args:
        url: Such as redis://, rediss://, unix://, valkey:// or valkeys://.
        timeout: Seconds for connecting and for an answer, at most.

    Raises:
        ConfigurationError: There is no client library, or the address is none.
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
            self._pool("", None)
        except ValueError as error:
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
    """Connections of its own for any number of threads. Each request has its own time: what `remaining()` says."""

    def __init__(self, library: Library) -> None:
        self._library = library
        # Append and pop are atomic; the last one used is the one most likely to be alive.
        self._idle: deque[Any] = deque()
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent's connections to the parent."""
        self._idle = deque()

    def connect(self) -> None:
        """Make one connection ahead of time."""
        connection = self._library.connection()
        connection.connect()
        self._idle.append(connection)

    def run(self, request: Request, /) -> Any:
        """Run it and return its reply."""
        left = remaining()
        seconds = self._library.timeout if left is None else max(_SHORTEST, min(left, self._library.timeout))
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._exchange(self._library.connection(), request, seconds)
        try:
            return self._exchange(connection, request, seconds)
        except Exception as error:
            if not _is_lost(error):
                raise
            self.close()  # the others are no younger
            return self._exchange(self._library.connection(), request, seconds)

    def _exchange(self, connection: Any, request: Request, seconds: float) -> Any:
        try:
            _hurry(connection, seconds)
            connection.send_packed_command([request.call.packed(request.keys)])
            try:
                reply = connection.read_response()
            except Exception as error:
                if type(error).__name__ != "NoScriptError":
                    raise
                connection.send_packed_command([request.call.whole(request.keys)])
                reply = connection.read_response()
        except BaseException as error:
            # A server's refusal is an answer like any other; after all else there may be one still to come.
            if _is_refusal(error) and type(error).__name__ != "ReadOnlyError":
                self._keep(connection)
            else:
                connection.disconnect()
            raise
        self._keep(connection)
        return reply

    def _keep(self, connection: Any) -> None:
        if len(self._idle) < _IDLE:
            self._idle.append(connection)
        else:
            connection.disconnect()

    def close(self) -> None:
        """Close all connections."""
        idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.disconnect()


class ClientBlockingWire:
    """A client of the user's, with its own connections, timeouts and retries; a cluster's or a sentinel's too."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, request: Request, /) -> Any:
        """Run it and return its reply."""
        call, keys = request
        script, args = call.script, call.args
        try:
            return self._client.evalsha(script.digest, len(keys), *keys, *args)
        except Exception as error:
            if type(error).__name__ != "NoScriptError":
                raise
            return self._client.eval(script.text, len(keys), *keys, *args)

    def close(self) -> None:
        """Leave the client to its owner."""


class _Waiting(NamedTuple):
    """A request, whose task waits for the answer until the event loop's clock says so."""

    request: Request
    answer: asyncio.Future[Any]
    until: float


class _Lane:
    """The connections of one event loop, and what its tasks ask in this tick."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: list[_Waiting] = []
        self.idle: list[Any] = []
        # The event loop holds tasks weakly.
        self.tasks: set[asyncio.Task[None]] = set()
        self.keeper: AsyncGenerator[None, None] | None = None

    async def close(self) -> None:
        """Close the connections."""
        idle, self.idle = self.idle, []
        for connection in idle:
            await connection.disconnect()

    async def keep_until_the_loop_ends(self) -> None:
        """Have the connections closed when the loop shuts its asynchronous generators down, as asyncio.run does."""
        if self.keeper is None:
            self.keeper = self._keeper()
            await anext(self.keeper)

    async def _keeper(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()


class _Ticks:
    """Gathers what the tasks of a loop ask in one tick. Each has its own time: what `remaining()` says.

    A timer for each batch, not for each task: those were half of what a decision cost this process.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()
        self._lock = threading.Lock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent's connections to the parent."""
        self._lanes = WeakKeyDictionary()

    async def run(self, request: Request, /) -> Any:
        """Run it together with all others of this tick, and return its reply."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            with self._lock:
                lane = self._lanes.setdefault(loop, _Lane(loop))
        answer: asyncio.Future[Any] = loop.create_future()
        if not lane.waiting:
            loop.call_soon(self._send, lane)
        left = remaining()
        seconds = self._timeout if left is None or left > self._timeout else left
        lane.waiting.append(_Waiting(request, answer, loop.time() + seconds))
        return await answer

    async def aclose(self) -> None:
        """Close the connections of this loop; those of another are closed when it ends."""
        lane = self._lanes.get(asyncio.get_running_loop())
        if lane is not None:
            await lane.close()

    def _send(self, lane: _Lane) -> None:
        batch, lane.waiting = lane.waiting, []
        batch = [waiting for waiting in batch if not waiting.answer.done()]
        if not batch:
            return
        _watch(lane.loop, batch)
        # In a context of its own: no caller's deadline is the batch's.
        task = lane.loop.create_task(self._settle(lane, batch), context=contextvars.Context())
        lane.tasks.add(task)
        task.add_done_callback(lane.tasks.discard)

    async def _settle(self, lane: _Lane, batch: list[_Waiting]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                replies = await self._exchange(lane, [waiting.request for waiting in batch])
        except Exception as error:  # noqa: BLE001 - raised where the batch's tasks wait
            replies = [error] * len(batch)
        except BaseException:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        for (_, answer, _), reply in zip(batch, replies, strict=True):
            if answer.done():  # whose task was cut meanwhile
                continue
            if isinstance(reply, Exception):
                answer.set_exception(reply)
            else:
                answer.set_result(reply)

    async def _exchange(self, lane: _Lane, requests: list[Request]) -> list[Any]:
        raise NotImplementedError


class TickWire(_Ticks):
    """Connections of its own for the tasks of any number of event loops."""

    def __init__(self, library: Library) -> None:
        super().__init__(library.timeout)
        self._library = library

    async def _exchange(self, lane: _Lane, requests: list[Request]) -> list[Any]:
        if lane.idle:
            try:
                return await self._pipelined(lane, lane.idle.pop(), requests)
            except Exception as error:
                if not _is_lost(error):
                    raise
                await lane.close()  # the others are no younger
        await lane.keep_until_the_loop_ends()
        connection = self._library.async_connection()
        return await self._pipelined(lane, connection, requests)

    async def _pipelined(self, lane: _Lane, connection: Any, requests: list[Request]) -> list[Any]:
        try:
            await connection.connect()
            replies = await _replies(connection, [request.call.packed(request.keys) for request in requests])
            unknown = [at for at, reply in enumerate(replies) if type(reply).__name__ == "NoScriptError"]
            if unknown:
                whole = await _replies(connection, [requests[at].call.whole(requests[at].keys) for at in unknown])
                for at, reply in zip(unknown, whole, strict=True):
                    replies[at] = reply
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if len(lane.idle) < _IDLE and not any(type(reply).__name__ == "ReadOnlyError" for reply in replies):
            lane.idle.append(connection)
        else:
            await connection.disconnect(nowait=True)
        return replies


class ClientTickWire(_Ticks):
    """An asynchronous client of the user's, with its own connections, timeouts and retries."""

    def __init__(self, client: Any, timeout: float) -> None:
        super().__init__(timeout)
        self._client = client
        # A cluster's keys lie on several nodes: what its pipelines can do differs between versions.
        self._is_cluster = "cluster" in type(client).__name__.lower()

    async def aclose(self) -> None:
        """Leave the client to its owner."""

    async def _exchange(self, lane: _Lane, requests: list[Request]) -> list[Any]:  # noqa: ARG002
        replies = await self._all(requests, whole=False)
        unknown = [at for at, reply in enumerate(replies) if type(reply).__name__ == "NoScriptError"]
        if unknown:
            whole = await self._all([requests[at] for at in unknown], whole=True)
            for at, reply in zip(unknown, whole, strict=True):
                replies[at] = reply
        return replies

    async def _all(self, requests: list[Request], *, whole: bool) -> list[Any]:
        if self._is_cluster or len(requests) == 1:
            pending = [self._queued(self._client, request, whole=whole) for request in requests]
            return await asyncio.gather(*pending, return_exceptions=True)
        async with self._client.pipeline(transaction=False) as pipeline:
            for request in requests:
                self._queued(pipeline, request, whole=whole)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    @staticmethod
    def _queued(client: Any, request: Request, *, whole: bool) -> Any:
        call, keys = request
        script, args = call.script, call.args
        run = partial(client.eval, script.text) if whole else partial(client.evalsha, script.digest)
        return run(len(keys), *keys, *args)


def _watch(loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
    """Give each task of a batch its answer in time, if only that there is none."""
    now = loop.time() + _MOMENT
    waiting = [one for one in batch if not one.answer.done()]
    for one in waiting:
        if one.until <= now:
            one.answer.set_exception(TimeoutError("no answer in time"))
    left = [one for one in waiting if one.until > now]
    if left:
        loop.call_at(min([one.until for one in left]), _watch, loop, left)


def is_async(client: object) -> bool:
    """Return whether a client is for tasks."""
    return inspect.iscoroutinefunction(getattr(client, "execute_command", None))


async def _replies(connection: Any, packed: list[bytes]) -> list[Any]:
    await connection.send_packed_command(b"".join(packed))
    replies: list[Any] = []
    for _ in packed:
        try:
            replies.append(await connection.read_response())
        except Exception as error:
            if not _is_refusal(error):
                raise
            replies.append(error)
    return replies


def _hurry(connection: Any, seconds: float) -> None:
    """Give a connection so many seconds, for connecting if it has to and for each answer."""
    socket = getattr(connection, "_sock", None)
    if socket is not None:
        socket.settimeout(seconds)
    else:
        connection.socket_timeout = connection.socket_connect_timeout = seconds
        connection.connect()


def _is_refusal(error: BaseException) -> bool:
    """Return whether the server itself said no, on a connection that is as good as before."""
    return any(kind.__name__ == "ResponseError" for kind in type(error).__mro__)


def _is_lost(error: BaseException) -> bool:
    """Return whether a connection was dead; one that merely takes too long is not."""
    names = [kind.__name__ for kind in type(error).__mro__]
    return "ConnectionError" in names and "TimeoutError" not in names


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
