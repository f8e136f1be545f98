"""A limit on how many calls run at once, whatever their rate: for work that is expensive while it lasts.

```
places:  o o o o x x      acquire takes a place, release puts it back; when none is left: RateLimitedError
```

After the concurrent requests limiter of "Scaling your API with rate limiters" (Stripe, 2017).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, Self, TypeVar

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError, RateLimitedError
from reliakit.core.events import CallRejected
from reliakit.core.fork import forker, holder_here, tell_after_fork
from reliakit.core.guard import guarded
from reliakit.core.spine import Emitter
from reliakit.resilience.blocks import Blocks

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.spine import Listener

__all__ = ["ConcurrencyLimiter", "Place"]

F = TypeVar("F", bound=Callable[..., Any])
# Each place takes some memory.
_MOST = 1_000_000


class Place:
    """A place taken from a `ConcurrencyLimiter`; give it back with `release()` or by leaving its `with` block.

    Releasing it again changes nothing. It may be released from another thread or task.
    """

    __slots__ = ("_limiter", "_taken")

    def __init__(self, limiter: ConcurrencyLimiter, number: int) -> None:
        self._limiter = limiter
        self._taken = [number]  # list.pop is atomic: of two threads that release at once, one finds it empty

    def release(self) -> None:
        """Give the place back."""
        try:
            number = self._taken.pop()
        except IndexError:
            return
        self._limiter.leave(number, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Place of {self._limiter.name!r}, {'taken' if self._taken else 'released'}>"


class ConcurrencyLimiter:
    """Let at most a fixed number of calls run at once.

    ```python
    reports = ConcurrencyLimiter(20, name="reports")

    @reports                                # def, async def, generators, async generators, methods
    async def build(report): ...            # raises RateLimitedError while 20 are being built

    with reports: ...                       # or async with reports
    place = reports.acquire()               # two steps; place.release()
    ```

    It never waits: a call that finds no free place is refused. One object is safe for any mix of threads and tasks,
    and takes no lock. In a forked child, the thread or task that forked keeps its places, and all others are free.

    Args:
        limit: How many may run at once; at most a million.
        name: Names the limiter in errors and events.
        listeners: Callables that receive this limiter's events.
        clock: Where the time of events comes from.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self, limit: int, *, name: str = "default", listeners: Iterable[Listener] = (), clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.name: str = checks.named("name", name)
        self.limit: int = checks.count("limit", limit)
        if limit > _MOST:
            raise ConfigurationError(f"limit must be at most {_MOST}, got {checks.shown(limit)}")
        self._emitter = Emitter(name, listeners, clock)
        # Taking from a deque and adding to it are atomic, so no place is handed out twice or lost.
        self._free = deque([None] * limit)
        # Who holds the places that are taken, by their numbers, which are never used again.
        self._held: dict[int, int] = {}
        self._numbers = count()
        self._blocks = Blocks[int]()
        tell_after_fork(self, "begin_anew")

    def __call__(self, fn: F) -> F:
        """Decorate a function, method, generator or coroutine function. It stays what it is, with its signature.

        Raises:
            ConfigurationError: `fn` is a class, a coroutine object or not callable.
        """
        return guarded(self, fn, by=f"concurrency limiter {self.name!r}")  # type: ignore[return-value]  # same signature

    def acquire(self) -> Place:
        """Take a place and return it; the caller must release it. Never waits.

        Raises:
            RateLimitedError: All places are taken. `retry_after` is None: nobody knows when one will be free.
        """
        return Place(self, self.enter())

    @property
    def in_flight(self) -> int:
        """How many calls run now."""
        return self.limit - len(self._free)

    def enter(self) -> int:
        """Take a place; wrappers use this half of `acquire`.

        Raises:
            RateLimitedError: All places are taken.
        """
        number, holder = next(self._numbers), holder_here()
        try:
            self._free.pop()
        except IndexError:
            pass
        else:
            self._held[number] = holder
            return number
        self._emitter.emit(CallRejected, reason="RateLimitedError", retry_after=None)
        raise RateLimitedError(
            f"concurrency limiter {self.name!r} lets {self.limit} calls run at once, and as many are running",
            name=self.name,
        )

    def leave(self, number: int, error: BaseException | None, result: object, /) -> None:  # noqa: ARG002 - outcomes do not matter
        """Put a place back. Doing so again changes nothing."""
        try:
            del self._held[number]
        except KeyError:  # or in a forked child, where it is free already
            return
        self._free.append(None)

    def begin_anew(self) -> None:
        """In a forked child, keep the places of whoever forked, which alone goes on there."""
        mine = forker()
        self._held = {number: holder for number, holder in self._held.items() if holder == mine}
        self._free = deque([None] * (self.limit - len(self._held)))

    def __enter__(self) -> Self:
        number = self.enter()
        self._blocks.enter(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(self._blocks.leave(), error)

    async def __aenter__(self) -> Self:
        number = self.enter()
        self._blocks.enter(number)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(self._blocks.leave(), error)

    def _left(self, number: int | None, error: BaseException | None) -> None:
        if number is None:
            raise ConfigurationError(f"concurrency limiter {self.name!r} was left without having been entered")
        self.leave(number, error, None)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimiter {self.name!r} {self.in_flight} of {self.limit} running>"
