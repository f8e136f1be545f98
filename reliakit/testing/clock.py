"""Time and random numbers under a test's control: nothing passes until the test says so.

```
test:        advance(5.0) ─────────────────┐
                                           v
component:   sleep(5.0) / await asleep(5.0)  returns
```

One clock drives threads and the tasks of any number of event loops at once. `advance` wakes sleepers in the order in
which they are due; one that sleeps again sleeps from the new time. The idea is that of trio's MockClock.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import random as chance
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.core.threads import Bell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ManualClock"]

_EPOCH = 1_700_000_000.0
# Rounds of the event loop after which a task that was ready has certainly begun its own sleep.
_SETTLED = 10


class _Sleeper:
    """A thread or task that waits until `due`; equal dues wake in the order in which they began."""

    __slots__ = ("due", "jumps", "order", "wake")

    def __init__(self, due: float, order: int, wake: Callable[[], object]) -> None:
        self.due = due
        self.order = order
        self.wake = wake
        self.jumps = False  # whether it moves the clock to its own due

    def __lt__(self, other: _Sleeper) -> bool:
        return (self.due, self.order) < (other.due, other.order)


class ManualClock:
    """A `Clock` that stands still until `advance()`, for tests that neither wait nor depend on chance.

    Safe from any thread and any event loop.

    Args:
        start: The first value of `monotonic()`.
        wall: The first value of `time()`, in seconds since the Unix epoch.
        auto_advance: Whether a sleep moves the clock to its own end instead of waiting for `advance()`: for code
            that sleeps in the thread of the test. Tasks that sleep at the same time wake in due order.
        random: What `random()` returns: an int seeds a generator, a number in [0, 1) is returned every time, a
            sequence of such numbers is returned in turn and then again from its beginning.
    """

    def __init__(
        self,
        start: float = 0.0,
        *,
        wall: float = _EPOCH,
        auto_advance: bool = False,
        random: int | float | Sequence[float] = 0,  # noqa: PYI041 - an int is a seed, a float is not
    ) -> None:
        # Re-entrant: a finaliser that runs while it is held may belong to a task that slept on this clock.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._now = _instant("start", start)
        self._wall_offset = _instant("wall", wall) - self._now
        self._auto_advance = auto_advance
        self._draw = _drawing(random)
        self._sleepers: list[_Sleeper] = []
        self._order = itertools.count()
        self._watchers: list[tuple[int, Callable[[], object]]] = []

    def monotonic(self) -> float:
        """Return the monotonic time, which only `advance` moves."""
        return self._now

    def time(self) -> float:
        """Return the wall clock, which moves along and can be set with `set_wall`."""
        return self._now + self._wall_offset

    def random(self) -> float:
        """Return the next of the numbers given at construction."""
        with self._lock:
            return self._draw()

    def sleep(self, seconds: float, /) -> None:
        """Block this thread until the clock has moved that far."""
        if seconds <= 0:
            return
        due = self._now + seconds
        if self._auto_advance:
            with self._lock:
                woken = self._move_locked(due)
            _call(woken)
            return
        awake = Bell()
        sleeper = self._lie_down(due, awake.set)
        try:
            awake.wait()
        finally:
            self._get_up(sleeper)

    def until(self, event: threading.Event, seconds: float) -> None:
        """Block this thread until the clock has moved that far or the event is set before; it is set afterwards.

        For code that waits for another thread, but only for so long. With `auto_advance`, an event that is not set
        yet comes too late.
        """
        if event.is_set() or seconds <= 0:
            event.set()
            return
        if self._auto_advance:
            self.sleep(seconds)
            return
        sleeper = self._lie_down(self._now + seconds, event.set)
        try:
            event.wait()
        finally:
            self._get_up(sleeper)

    async def asleep(self, seconds: float, /) -> None:
        """Suspend this task until the clock has moved that far."""
        await self._suspend(seconds, jumps=self._auto_advance)

    async def alarm(self, seconds: float, /) -> None:
        """Suspend this task until somebody else has moved the clock that far, even with `auto_advance`.

        For code that watches the time of other work, as `deadline` does: its waiting is no reason for time to pass.
        """
        await self._suspend(seconds, jumps=False)

    async def _suspend(self, seconds: float, *, jumps: bool) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)  # noqa: TID251 - a bare yield, which takes no time
            return
        loop = asyncio.get_running_loop()
        awake: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not awake.done():
                awake.set_result(None)

        sleeper = self._lie_down(self._now + seconds, lambda: loop.call_soon_threadsafe(wake))
        try:
            if jumps:
                await self._settle_and_jump(sleeper, awake)
            await awake
        finally:
            self._get_up(sleeper)

    def advance(self, seconds: float) -> None:
        """Move the clock and wake all sleepers that are due, in due order.

        Args:
            seconds: How far, 0 or more.
        """
        far = checks.seconds("advance: seconds", seconds, zero=True)  # a clock never goes back
        with self._lock:
            due = self._move_locked(self._now + far)
        _call(due)

    def set_wall(self, at: float) -> None:
        """Set the wall clock to `at`, forwards or backwards, as a correction of the machine's clock would."""
        _instant("at", at)
        with self._lock:
            self._wall_offset = at - self._now

    @property
    def sleepers(self) -> int:
        """How many threads and tasks sleep now."""
        return len(self._sleepers)

    def wait_for_sleepers(self, count: int = 1, *, timeout: float = 10.0) -> None:
        """Block until at least `count` threads and tasks sleep, so that `advance` finds them.

        Args:
            count: How many sleepers to wait for.
            timeout: Real seconds after which the test has gone wrong.

        Raises:
            TimeoutError: There were not enough sleepers in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._sleepers) >= count, timeout):
                raise TimeoutError(f"{len(self._sleepers)} of {count} sleepers came within {timeout} s")

    async def await_for_sleepers(self, count: int = 1, *, timeout: float = 10.0) -> None:
        """Suspend this task until at least `count` threads and tasks sleep; the twin of `wait_for_sleepers`."""
        loop = asyncio.get_running_loop()
        enough: asyncio.Future[None] = loop.create_future()

        def come() -> None:
            if not enough.done():
                enough.set_result(None)

        watcher = (count, lambda: loop.call_soon_threadsafe(come))
        with self._lock:
            if len(self._sleepers) >= count:
                return
            self._watchers.append(watcher)
        try:
            async with asyncio.timeout(timeout):
                await enough
        except TimeoutError:
            raise TimeoutError(f"{self.sleepers} of {count} sleepers came within {timeout} s") from None
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def _lie_down(self, due: float, wake: Callable[[], object]) -> _Sleeper:
        with self._lock:  # the same as `with self._changed`, which a Ctrl-C could leave held
            sleeper = _Sleeper(round(due, 9), next(self._order), wake)
            # Another thread may have advanced between our reading of the clock and here.
            late = sleeper.due <= self._now
            if not late:
                heapq.heappush(self._sleepers, sleeper)
            came = [tell for count, tell in self._watchers if len(self._sleepers) >= count]
            self._changed.notify_all()
        if late:
            wake()
        _call(came)
        return sleeper

    def _get_up(self, sleeper: _Sleeper) -> None:
        """Forget a sleeper that was cancelled or interrupted; one that was woken is forgotten already."""
        with self._lock:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def _settle_and_jump(self, sleeper: _Sleeper, awake: asyncio.Future[None]) -> None:
        """Move the clock once this sleeper stays the first one: a task that is ready now may be due earlier.

        On its way the clock stops at each alarm, whose work may end this sleep.
        """
        sleeper.jumps = True
        rounds = 0
        while not awake.done():
            await asyncio.sleep(0)  # noqa: TID251 - a bare yield
            with self._lock:
                first = min((other for other in self._sleepers if other.jumps), default=None)
                rounds = rounds + 1 if first is sleeper else 0
                due = self._move_locked(self._sleepers[0].due) if rounds >= _SETTLED else []
            if due:
                rounds = 0
                _call(due)

    def _move_locked(self, now: float) -> list[Callable[[], object]]:
        """Move the clock and return what must be called to wake sleepers once the lock is released."""
        # Rounded to the nanosecond, so that ten steps of 0.1 make one second.
        self._now = max(self._now, round(now, 9))
        due: list[Callable[[], object]] = []
        while self._sleepers and self._sleepers[0].due <= self._now:
            due.append(heapq.heappop(self._sleepers).wake)
        return due

    def __repr__(self) -> str:
        return f"<ManualClock at {self._now}, {self.sleepers} sleeping>"


def _call(wakers: list[Callable[[], object]]) -> None:
    for wake in wakers:
        # The loop of a task that slept may be closed by now.
        with contextlib.suppress(RuntimeError):
            wake()


def _instant(argument: str, value: float) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigurationError(f"{argument} must be a number of seconds, got {value!r}")
    return float(value)


def _drawing(random: int | float | Sequence[float]) -> Callable[[], float]:  # noqa: PYI041 - an int is a seed
    if isinstance(random, int):
        return chance.Random(random).random  # noqa: S311 - to be foreseen is the point
    numbers = list(random) if isinstance(random, Iterable) else [random]
    if not numbers or not all(isinstance(number, int | float) and 0 <= number < 1 for number in numbers):
        raise ConfigurationError(f"random={random!r} must be a seed (int), or numbers in [0, 1)")
    return itertools.cycle(numbers).__next__
