"""Where the memory store keeps states of one kind: bounded, and forgetting without a thread and without scanning.

```
new states ──> young ──(every lifetime)──> old ──(a few with each decision)──> forgotten when as good as new
                 ^                          │                                   else back to young
                 └───────── touched ────────┘
```
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, TypeAlias

__all__ = ["Place", "Shelf"]

# A key has a place of its own under its text, or shares one of a fixed number of places with others.
Place: TypeAlias = str | int

# How many old states are looked at with each decision; 1 would do, 4 drains a generation well before its end.
_DRAINED = 4


class Shelf:
    """States by place. Its store's lock is held around every call but `put`, which needs none under the GIL.

    The lock is re-entrant: wherever anything is called, a signal's handler or a finaliser may decide in this very
    thread, about this very key, and under the GIL another thread may write without the lock. So from the look at what
    is known to the last writing nothing is called.

    A tracer that is written in Python, such as a debugger's, is called between any two lines, and lets other threads
    run there: with one, a hit of another thread may be lost. The tracers that are written in C do not.

    Args:
        full: Says of a state from which instant on it may be forgotten.
        lifetime: Nanoseconds for which a state that nobody touches is kept at least.
    """

    __slots__ = ("_held", "_lifetime", "_turn", "due", "full", "moves", "old", "own", "shared", "young")

    def __init__(self, full: Callable[[Any], int], lifetime: int) -> None:
        self.full: Callable[[Any], int] = full
        self._lifetime = lifetime
        # No state is None.
        self.young: dict[Place, Any] = {}
        self.old: dict[Place, Any] = {}
        # On its way from old to young, or to nowhere.
        self._held: list[tuple[Place, Any]] = []
        self.own: int = 0
        self.shared: int = 0
        # Changes whenever a key's state may have got another place than before.
        self.moves: int = 0
        self._turn = 0
        # From this instant on, `drain` has something to do.
        self.due: int = 0

    def find(self, place: Place) -> Any:
        """Return the state at this place, or None."""
        if place in self.young:
            return self.young[place]
        if place in self.old:
            return self.old[place]
        return None

    def live(self, place: Place, now: int) -> Any:
        """Return the state at this place, or None if there is none or nothing of it counts any more."""
        state = self.find(place)
        return None if state is None or self.full(state) <= now else state

    def put(self, place: Place, known: Any, state: Any, moves: int | None = None) -> bool:
        """Write a state, or forget it, if `known` still is what is found; return whether it is.

        Args:
            place: Where it is kept.
            known: The state that was found there, or None.
            state: The new one, or None.
            moves: What `moves` was before the place was chosen; None for one at which something was found already.
        """
        is_shared = isinstance(place, int)
        young, old = self.young, self.old
        is_young, is_old = place in young, place in old
        found = young[place] if is_young else old[place] if is_old else None
        if found is not known or (moves is not None and moves != self.moves):
            return False
        if is_shared or known is None:
            self.moves += 1
        if is_old:
            del old[place]
        if state is not None:
            young[place] = state
        elif is_young:
            del young[place]
        change = (state is not None) - (known is not None)
        if is_shared:
            self.shared += change
        else:
            self.own += change
        return True

    def drain(self, now: int) -> None:
        """Look at a few old states and forget those that are as good as new, or begin a new generation."""
        if self.old:
            try:  # noqa: SIM105 - `suppress` would cost as much again
                # One call, in C, so that none is on its way unseen.
                self._held.extend(islice(iter(self.old.popitem, None), _DRAINED))
            except KeyError:  # there are fewer
                pass
        if self._held:
            self._let_go(now)
        if now >= self._turn:
            fresh: dict[Place, Any] = {}  # made before the look: it may collect garbage
            if not self.old and now >= self._turn:
                self._turn = now + self._lifetime
                self.old, self.young = self.young, fresh
        self.due = 0 if self.old else self._turn

    def _let_go(self, now: int) -> None:
        """Forget what is as good as new of those on their way, and put the others among the young.

        Until then `due` has come, so that whoever decides meanwhile in this thread does this first.
        """
        full = self.full
        while True:
            held = self._held
            if not held:
                return
            last = held[-1]
            place, state = last
            is_over, is_shared = full(state) <= now, isinstance(place, int)
            held = self._held
            if not held or held[-1] is not last:
                continue
            del held[-1]
            if not is_over:
                self.young[place] = state
            elif is_shared:
                self.shared -= 1
            else:
                self.own -= 1

    def clear(self) -> None:
        """Forget every state."""
        self.young, self.old, self._held = {}, {}, []
        self.own = self.shared = 0
