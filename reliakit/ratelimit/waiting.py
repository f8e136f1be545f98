"""Which caller waits for which slot, so that a slot given up goes to another caller.

```
slots of a key:    1 s    2 s    3 s          the waiter of 1 s leaves: the next one to come takes 1 s
                    x      B      C           the waiter of 3 s leaves: it is given back to the store
```

Each waiter has a fixed instant and sleeps until then, so those behind a slot that becomes free do not move up: two of
them at one instant would break the limit, and a sleeping thread cannot be told of a change.
"""

from __future__ import annotations

import contextvars
import threading
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from reliakit.stores.protocol import Answer

__all__ = ["Line", "Room", "Slot", "Waiting"]

_due = attrgetter("due")


class Line(NamedTuple):
    """The waiters of one key, apart for those whose slots the store granted and those of its stand-in."""

    key: str
    is_stand_in: bool


class Slot:
    """A reserved instant in the future that a caller waits for."""

    __slots__ = ("cost", "due", "line", "wanted")

    def __init__(self, line: Line, cost: int, due: float) -> None:
        self.line: Line = line
        self.cost: int = cost
        self.due: float = due
        self.wanted: bool = True


class Room:
    """One caller's visit to the waiting room; its block gives the caller's patience, or 0 if the room is full."""

    __slots__ = ("_is_in", "_patience", "_waiting")

    def __init__(self, waiting: Waiting, patience: int) -> None:
        self._waiting = waiting
        self._patience = patience
        self._is_in = False

    def __enter__(self) -> int:
        # Counted before the store is asked, or a thousand tasks that ask at once would all be given slots.
        self._is_in = self._patience > 0 and self._waiting.come()
        return self._patience if self._is_in else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_in:
            self._waiting.go()


class Waiting:
    """The slots of all lines, each in the order in which they are due. Safe from threads and tasks.

    Args:
        most: How many may wait at once.
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._inside = 0
        # Re-entrant: a finaliser that runs while it is held may belong to a waiter of this very limiter.
        self._lock = threading.RLock()
        self._is_busy = False
        self._lines: dict[Line, list[Slot]] = {}
        # Event loops keep only weak references to tasks.
        self._returns: set[asyncio.Task[None]] = set()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Begin with an empty room: those who wait in the parent do not wait in its child."""
        self._inside, self._is_busy = 0, False
        self._lines, self._returns = {}, set()

    def room(self, patience: int) -> Room:
        """Return the waiting room for a caller with this patience, in nanoseconds."""
        return Room(self, patience)

    def come(self) -> bool:
        """Take a place in the room, if there is one."""
        with self._lock:
            has_place = self._inside < self._most
            self._inside += has_place
        return has_place

    def go(self) -> None:
        """Give the place back."""
        with self._lock:
            self._inside -= 1

    def join(self, line: Line, cost: int, due: float) -> Slot:
        """Add a slot that the store has granted to its line, and return it."""
        slot = Slot(line, cost, due)
        with self._lock:
            self._is_busy = True
            try:
                insort(self._lines.setdefault(line, []), slot, key=_due)
            finally:
                self._is_busy = False
        return slot

    def vacant(self, line: Line, cost: int, now: float) -> float | None:
        """Return when the first unwanted slot is due that has room for this cost, or None."""
        if line not in self._lines:
            return None
        with self._lock:
            return next((slot.due for slot in self._vacancies(line, cost, now)), None)

    def take(self, line: Line, cost: int, now: float, until: float) -> Slot | None:
        """Take the first such slot if it is due in time; what this cost leaves of it stays vacant."""
        if line not in self._lines:
            return None
        with self._lock:
            self._is_busy = True
            try:
                slot = next(iter(self._vacancies(line, cost, now)), None)
                return None if slot is None or slot.due > until else self._part_of(slot, cost)
            finally:
                self._is_busy = False

    def serve(self, slot: Slot) -> None:
        """Forget a slot whose time has come, and all slots before it."""
        with self._lock:
            self._is_busy = True
            try:
                slots = self._lines.get(slot.line, [])
                if slot in slots:
                    del slots[: slots.index(slot) + 1]
                if not slots:
                    self._lines.pop(slot.line, None)
            finally:
                self._is_busy = False

    def leave(self, slot: Slot) -> int:
        """Give up a slot, and return how much must be given back to the store now."""
        slot.wanted = False
        unused = 0
        with self._lock:
            if self._is_busy:
                return 0  # a finaliser called this in the middle of a step of this thread: the slot stays, vacant
            slots = self._lines.get(slot.line, [])
            while slots and not slots[-1].wanted:
                unused += slots.pop().cost
            if not slots:
                self._lines.pop(slot.line, None)
        return unused

    async def granted(
        self, asking: Coroutine[Any, Any, Answer], decline: Callable[[Answer], Coroutine[Any, Any, None]]
    ) -> Answer:
        """Return the store's answer to a caller that asks for a slot.

        A task cancelled before the answer comes gives back what it is granted: a store in another process has the
        request already.
        """
        import asyncio  # noqa: PLC0415 - threads need none of it

        answer = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # In a context of its own, so that the task's deadline does not cut it off.
            work = _returned(answer, decline)
            returning = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._returns.add(returning)
            returning.add_done_callback(self._returns.discard)
            await asyncio.shield(returning)
            raise

    def __len__(self) -> int:
        """Return how many callers wait."""
        with self._lock:
            return sum([slot.wanted for slots in list(self._lines.values()) for slot in slots])

    def _vacancies(self, line: Line, cost: int, now: float) -> list[Slot]:
        slots = self._lines.get(line, [])
        return [slot for slot in slots if not slot.wanted and slot.cost >= cost and slot.due >= now]

    def _part_of(self, slot: Slot, cost: int) -> Slot:
        if slot.cost == cost:
            slot.wanted = True
            return slot
        slot.cost -= cost
        part = Slot(slot.line, cost, slot.due)
        insort(self._lines[slot.line], part, key=_due)
        return part


async def _returned(answer: asyncio.Future[Answer], decline: Callable[[Answer], Coroutine[Any, Any, None]]) -> None:
    try:
        granted = await answer
    except Exception:  # noqa: BLE001 - nothing was granted, and the caller that asked has left
        return
    if granted.admitted:
        for _ in range(2):  # steps after which callers whose answers came together with this one have joined the line
            await SYSTEM_CLOCK.asleep(0)
        await decline(granted)
