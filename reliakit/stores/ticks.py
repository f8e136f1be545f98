"""Requests of tasks to a server, batched: all that the tasks of an event loop ask in one tick travels together.

```
task ── run(request) ──┐
task ── run(request) ──┼── end of the tick ── a connection is idle ──> one round trip ──> each task has its reply
task ── run(request) ──┘                   └─ none is: they wait ──> one more is made, for all of them
```

Each task has its reply as soon as it is read: what was answered before a connection was lost, or stalled, stands, for
the server has counted it. The rest may have been counted too. So it is sent again only where nothing was answered at
all, as by a connection that has long been dead; else its tasks are told that there is no answer.

A connection is made in a task of its own, which no caller's deadline cuts, so that it is ready for the next ones
where it came too late for these. Each request has its own time, what `remaining()` says, and one timer serves a whole
batch: a timer for each task was half of what a decision cost this process.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from reliakit.core.deadline import remaining
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.stores.unheard import Unheard

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

__all__ = ["Lane", "Pipe", "PooledTicks", "Telling", "Ticks", "Waiting"]

# Gives who asked the request of this number its reply, or the error with which the server refused it.
Telling: TypeAlias = "Callable[[int, Any], None]"

# How early an event loop's timer may fire, in seconds.
_MOMENT: Final = 0.001
# Requests per round trip: the first of a thousand must not wait for the last.
_AT_ONCE: Final = 256


class Pipe(Protocol):
    """A connection that takes several requests at once."""

    async def exchange(self, requests: Sequence[Any], tell: Telling, /) -> None:
        """Ask them all, and tell each reply as soon as it is read.

        Raises:
            Exception: The connection is of no use any more; what was told by then stands.
        """
        ...

    async def close(self) -> None:
        """Close it properly."""
        ...

    async def drop(self) -> None:
        """Close it without waiting."""
        ...

    def is_lost(self, error: Exception, /) -> bool:
        """Return whether it was dead before it answered anything of the last exchange; not whether it is late."""
        ...


class Waiting(NamedTuple):
    """A request whose task waits for the answer until `until` on the event loop's clock."""

    request: Any
    answer: asyncio.Future[Any]
    until: float
    is_again: bool = False


class Lane:
    """What the tasks of one event loop ask, and their connections. Holds no reference to the loop, which may go."""

    def __init__(self) -> None:
        self.asked: list[Waiting] = []  # in this tick
        self.waiting: list[Waiting] = []  # until a connection is idle
        self.idle: list[Pipe] = []
        self.busy: set[Pipe] = set()
        self.size: int = 0  # idle connections, busy ones, and those being made
        # While an attempt to connect is younger than this, no other one begins.
        self.young_until: float = 0.0
        # Event loops keep only weak references to tasks.
        self.tasks: set[asyncio.Task[None]] = set()
        self.keeper: AsyncGenerator[None, None] | None = None

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin a task in a context of its own: no caller's deadline applies to a batch."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self) -> None:
        """Close the connections that are idle."""
        idle, self.idle = self.idle, []
        self.size -= len(idle)
        for pipe in idle:
            await pipe.close()

    async def keep_until_the_loop_ends(self) -> None:
        """Make the loop close the connections when it shuts down its async generators, as asyncio.run does."""
        if self.keeper is None:
            self.keeper = self._keeper()
            await anext(self.keeper)

    async def _keeper(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.close()
            while self.busy:  # tasks that were cancelled before their first step
                await self.busy.pop().drop()
            # All of these hold references to the loop.
            self.asked, self.waiting, self.keeper = [], [], None


# A forked child neither uses nor closes its parent's connections: closing may end the parent's session too.
_inherited: list[Any] = []


class Ticks:
    """Batches what the tasks of each loop ask. Safe from any number of loops.

    Args:
        timeout: Seconds that an answer may take if no deadline comes first.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, Lane] = WeakKeyDictionary()
        # Re-entrant: a finaliser that runs while it is held may make a request, too.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent process's connections to the parent."""
        _inherited.extend(self._lanes.values())
        self._lanes = WeakKeyDictionary()

    async def run(self, request: Any, /) -> Any:
        """Run a request together with all others of this tick, and return its reply.

        Raises:
            TimeoutError: There was no reply in time.
            Exception: The server refused it, or cannot be reached.
        """
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop) or self._lane(loop)
        if not lane.asked:
            loop.call_soon(self._tick, loop, lane)
        answer: asyncio.Future[Any] = loop.create_future()
        left = remaining()
        seconds = self._timeout if left is None or left > self._timeout else left
        lane.asked.append(Waiting(request, answer, loop.time() + seconds))
        return await answer

    async def open(self) -> None:
        """Connect, if there is no connection yet."""

    async def aclose(self) -> None:
        """Close the connections of this loop; those of another are closed when it ends."""
        lane = self._lanes.get(asyncio.get_running_loop())
        if lane is not None:
            await lane.close()

    def _lane(self, loop: asyncio.AbstractEventLoop) -> Lane:
        with self._lock:
            return self._lanes.setdefault(loop, Lane())

    def _tick(self, loop: asyncio.AbstractEventLoop, lane: Lane) -> None:
        batch, lane.asked = [one for one in lane.asked if not one.answer.done()], []
        if batch:
            _watch(loop, batch)
            self._serve(lane, batch)

    def _serve(self, lane: Lane, batch: list[Waiting]) -> None:
        lane.begin(self._settle(batch))

    async def _settle(self, batch: list[Waiting]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._exchange([one.request for one in batch], _telling(batch))
        except Exception as error:  # noqa: BLE001 - raised where the batch's tasks wait
            _fail(batch, error)
        except BaseException:
            _abandon(batch)
            raise

    async def _exchange(self, requests: list[Any], tell: Telling) -> None:
        raise NotImplementedError


class PooledTicks(Ticks):
    """Batches requests over connections of its own.

    Args:
        timeout: Seconds that an answer may take if no deadline comes first.
        most: The most connections for each loop.
    """

    def __init__(self, timeout: float, most: int) -> None:
        super().__init__(timeout)
        self._most = most
        self._unheard = Unheard()

    async def _connect(self) -> Pipe:
        """Return a new connection."""
        raise NotImplementedError

    async def open(self) -> None:
        """Connect, if there is no connection yet."""
        lane = self._lane(asyncio.get_running_loop())
        if not lane.idle:
            self._claim(lane)
            self._free(lane, await self._made(lane))

    def _serve(self, lane: Lane, batch: list[Waiting]) -> None:
        lane.waiting += batch
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        """Send what waits if a connection is idle; else make sure that there will be one."""
        lane.waiting = [one for one in lane.waiting if not one.answer.done()]
        while lane.waiting and lane.idle:
            batch, lane.waiting = lane.waiting[:_AT_ONCE], lane.waiting[_AT_ONCE:]
            pipe = lane.idle.pop()
            lane.busy.add(pipe)
            lane.begin(self._served(lane, pipe, batch))
        if lane.waiting and lane.size < self._most and _now() >= lane.young_until:
            # One at a time: a hundred tasks that come first must not make a hundred connections.
            self._claim(lane)
            lane.begin(self._grow(lane, lane.waiting[:]))

    def _claim(self, lane: Lane) -> None:
        lane.size += 1
        lane.young_until = _now() + self._timeout

    async def _made(self, lane: Lane) -> Pipe:
        try:
            await lane.keep_until_the_loop_ends()
            return await self._connect()
        except BaseException:
            lane.size -= 1
            raise
        finally:
            lane.young_until = 0.0

    def _free(self, lane: Lane, pipe: Pipe) -> None:
        lane.idle.append(pipe)
        self._go_on(lane)

    async def _grow(self, lane: Lane, first: list[Waiting]) -> None:
        try:
            pipe = await self._made(lane)
        except Exception as error:  # noqa: BLE001 - raised where they wait for it
            if all(one.answer.done() for one in first):
                self._unheard.tell(error)
            # Requests that came later try anew, as the reason for this failure may be over. While other connections
            # are in use, one of those may come back.
            if not lane.size:
                _fail(first, error)
                self._go_on(lane)
        except BaseException:
            _abandon(lane.waiting)
            raise
        else:
            self._unheard.forget()
            self._free(lane, pipe)

    async def _served(self, lane: Lane, pipe: Pipe, batch: list[Waiting]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await pipe.exchange([one.request for one in batch], _telling(batch))
        except BaseException as error:
            lane.busy.discard(pipe)
            lane.size -= 1
            await pipe.drop()
            if not isinstance(error, Exception):
                _abandon(batch)
                raise
            if pipe.is_lost(error):
                await lane.close()  # the others are as old
                lane.waiting[:0] = [one._replace(is_again=True) for one in batch if not one.is_again]
                batch = [one for one in batch if one.is_again]
            _fail(batch, error)
            self._go_on(lane)
            return
        lane.busy.discard(pipe)
        self._free(lane, pipe)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _telling(batch: list[Waiting]) -> Telling:
    def tell(at: int, reply: Any) -> None:
        answer = batch[at].answer
        if answer.done():  # whose task was cut meanwhile
            return
        if isinstance(reply, Exception):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    return tell


def _fail(batch: list[Waiting], error: Exception) -> None:
    """Raise an error where those of a batch wait who have no answer."""
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)


def _abandon(batch: list[Waiting]) -> None:
    for one in batch:
        one.answer.cancel()


def _watch(loop: asyncio.AbstractEventLoop, batch: list[Waiting]) -> None:
    """Give each task of a batch its answer in time, or a TimeoutError."""
    now = loop.time() + _MOMENT
    waiting = [one for one in batch if not one.answer.done()]
    for one in waiting:
        if one.until <= now:
            one.answer.set_exception(TimeoutError("no answer in time"))
    left = [one for one in waiting if one.until > now]
    if left:
        loop.call_at(min([one.until for one in left]), _watch, loop, left)
