"""How much happened lately: counts in slots of time, forgotten as the window slides on.

```
now - window                                         now
     │  forgotten │ slot │ slot │ ...  │ slot │ slot │
```

A window of 300 s has 300 slots, so an event is forgotten at most 1/300 of the window early and never late.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING

from reliakit.core.fork import renew_locks_after_fork

if TYPE_CHECKING:
    from reliakit.core.clock import Clock

__all__ = ["Slots", "Window"]

_SLOTS = 300
_INBOX = 1024


class Slots:
    """The pure part: amounts by slot. Not thread-safe."""

    __slots__ = ("_amounts", "_width", "_window")

    def __init__(self, window: float) -> None:
        self._window = window
        self._width = window / _SLOTS
        self._amounts: dict[int, float] = {}

    def add(self, at: float, amount: float) -> None:
        """Count `amount` at the instant `at`."""
        slot = int(at // self._width)
        self._amounts[slot] = self._amounts.get(slot, 0) + amount

    def total(self, now: float) -> float:
        """Return what the window that ends at `now` holds, and forget what is older."""
        last_forgotten = (now - self._window) // self._width
        for slot in [slot for slot in self._amounts if slot <= last_forgotten]:
            del self._amounts[slot]
        return sum(self._amounts.values())

    def __len__(self) -> int:
        return len(self._amounts)


class Window:
    """A sliding count for many threads; adding never waits for a reader or another writer.

    Args:
        window: Its length in seconds.
        clock: What drives it.
    """

    __slots__ = ("__weakref__", "_clock", "_inbox", "_lock", "_slots")

    def __init__(self, window: float, clock: Clock) -> None:
        self._clock = clock
        self._slots = Slots(window)
        self._inbox: deque[tuple[float, float]] = deque()
        self._lock = Lock()
        renew_locks_after_fork(self, "_lock")

    def add(self, amount: float, /) -> None:
        """Count `amount` now. O(1)."""
        self._inbox.append((self._clock.monotonic(), amount))
        if len(self._inbox) > _INBOX and self._lock.acquire(blocking=False):
            try:
                # Forgetting here keeps the memory of a window that nobody reads.
                self._sort_in_locked()
                self._slots.total(self._clock.monotonic())
            finally:
                self._lock.release()

    def total(self) -> float:
        """Return what the window holds now."""
        with self._lock:
            self._sort_in_locked()
            return self._slots.total(self._clock.monotonic())

    def _sort_in_locked(self) -> None:
        for _ in range(len(self._inbox)):
            at, amount = self._inbox.popleft()
            self._slots.add(at, amount)
