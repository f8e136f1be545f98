"""Where the memory store keeps states of one kind: bounded, and forgetting without a thread and without a scan.

```
new states ──> young ──(every lifetime)──> old ──(a few with each decision)──> forgotten when as good as new
                 ^                          │                                   else back to young
                 └───────── touched ────────┘
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["Place", "Shelf"]

# A key has a place of its own under its text, or shares one of a fixed number of places with others.
Place: TypeAlias = str | int

# How many old states are looked at with each decision; 1 would do, 4 drains a generation well before its end.
_DRAINED = 4


class Shelf:
    """States by place. Its store's lock is held around every call.

    Args:
        full: Says of a state from which instant on it may be forgotten.
        lifetime: Nanoseconds for which a state that nobody touches is kept at least.
    """

    __slots__ = ("_full", "_lifetime", "_turn", "due", "old", "own", "shared", "young")

    def __init__(self, full: Callable[[Any], int], lifetime: int) -> None:
        self._full = full
        self._lifetime = lifetime
        # No state is None.
        self.young: dict[Place, Any] = {}
        self.old: dict[Place, Any] = {}
        self.own: int = 0
        self.shared: int = 0
        self._turn = 0
        # From this instant on `drain` has something to do.
        self.due: int = 0

    def find(self, place: Place) -> Any:
        """Return the state at this place, or None."""
        state = self.young.get(place)
        return self.old.get(place) if state is None else state

    def live(self, place: Place, now: int) -> Any:
        """Return the state at this place unless it is as good as new, or None."""
        state = self.find(place)
        return None if state is None or self._full(state) <= now else state

    def put(self, place: Place, known: Any, state: Any) -> None:
        """Write a state, or forget it, where `known` was found."""
        if state is known:
            return
        if state is not None:
            self.young[place] = state
        else:
            self.young.pop(place, None)
        self.old.pop(place, None)
        self._count(place, (state is not None) - (known is not None))

    def drain(self, now: int) -> None:
        """Look at a few old states and forget those that are as good as new, or begin a new generation."""
        for _ in range(_DRAINED):
            try:
                place, state = self.old.popitem()
            except KeyError:
                break
            if self._full(state) <= now or self.young.setdefault(place, state) is not state:
                self._count(place, -1)
        if not self.old and now >= self._turn:
            self._turn = now + self._lifetime
            self.old, self.young = self.young, {}
        self.due = 0 if self.old else self._turn

    def clear(self) -> None:
        """Forget every state."""
        self.young, self.old = {}, {}
        self.own = self.shared = 0

    def _count(self, place: Place, change: int) -> None:
        if isinstance(place, int):
            self.shared += change
        else:
            self.own += change
