"""A limit on how many calls run at once, whatever their rate: for work that is expensive while it lasts.

```
places:  o o o o x x      acquire takes a place, release puts it back; when none is left: RateLimitedError
```

After the concurrent requests limiter of "Scaling your API with rate limiters" (Stripe, 2017).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError, RateLimitedError
from reliakit.core.events import CallRejected
from reliakit.core.guard import guarded
from reliakit.core.spine import Emitter

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
    and takes no lock.

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
        self._free = deque(range(limit))

    def __call__(self, fn: F) -> F:
        """Decorate a function, method, generator or coroutine function. Its signature stays, and so does its colour.

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
        try:
            return self._free.pop()
        except IndexError:
            pass
        self._emitter.emit(CallRejected, reason="RateLimitedError", retry_after=None)
        raise RateLimitedError(
            f"concurrency limiter {self.name!r} lets {self.limit} calls run at once, and as many are running",
            name=self.name,
        )

    def leave(self, number: int, error: BaseException | None, result: object, /) -> None:  # noqa: ARG002 - outcomes do not matter
        """Put a place back."""
        self._free.append(number)

    # The places are all alike, so a block need not know which one it took.

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(0, error, None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(0, error, None)

    def __repr__(self) -> str:
        return f"<ConcurrencyLimiter {self.name!r} {self.in_flight} of {self.limit} running>"
