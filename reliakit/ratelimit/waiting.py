"""Who waits for which slot, so that a slot that is not wanted any more goes to somebody else.

```
slots of a key:    1 s    2 s    3 s          the waiter of 1 s leaves: the next one to come takes 1 s
                    x      B      C           the waiter of 3 s leaves: it is given back to the store
```

Whoever waits has a fixed instant already and sleeps until then, so those behind a slot that becomes free do not move
up: two at one instant would break the limit, and a thread that sleeps cannot be told.
"""

from __future__ import annotations

import contextvars
import threading
from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.fork import renew_locks_after_fork

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from reliakit.stores.protocol import Answer

__all__ = ["Line", "Room", "Slot", "Waiting"]

_due = attrgetter("due")


class Line(NamedTuple):
    """Those who wait for one key, by who granted their slots: the store or its stand-in."""

    key: str
    is_stand_in: bool


class Slot:
    """A place in the future that somebody waits for."""

    __slots__ = ("cost", "due", "line", "wanted")

    def __init__(self, line: Line, cost: int, due: float) -> None:
        self.line: Line = line
        self.cost: int = cost
        self.due: float = due
        self.wanted: bool = True


class Room:
    """One who comes, patient or not, and what is left of its patience when the waiting room is full."""

    __slots__ = ("_is_in", "_patience", "_waiting")

    def __init__(self, waiting: Waiting, patience: int) -> None:
        self._waiting = waiting
        self._patience = patience
        self._is_in = False

    def __enter__(self) -> int:
        # In before the store is asked: a thousand tasks that ask at once are not to get a thousand slots.
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
        # Re-entrant: garbage that is collected while it is held may be a waiter of this very limiter.
        self._lock = threading.RLock()
        self._is_busy = False
        self._lines: dict[Line, list[Slot]] = {}
        # Event loops hold tasks weakly.
        self._returns: set[asyncio.Task[None]] = set()
        renew_locks_after_fork(self, "_lock")

    def room(self, patience: int) -> Room:
        """Return the waiting room for somebody of such patience; its block says 0 where there is no place."""
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
        """Return a slot that the store has granted, once it has its place."""
        slot = Slot(line, cost, due)
        with self._lock:
            self._is_busy = True
            try:
                insort(self._lines.setdefault(line, []), slot, key=_due)
            finally:
                self._is_busy = False
        return slot

    def vacant(self, line: Line, cost: int, now: float) -> float | None:
        """Return when the first slot is due that nobody wants and that this cost fits into, or None."""
        if line not in self._lines:
            return None
        with self._lock:
            return next((slot.due for slot in self._vacancies(line, cost, now)), None)

    def take(self, line: Line, cost: int, now: float, until: float) -> Slot | None:
        """Return the first such slot if it is due in time; what it has left over stays vacant."""
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
        """Forget a slot whose time has come, and all before it."""
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
        """Return how much is to be given back to the store now that this slot is not wanted any more."""
        slot.wanted = False
        unused = 0
        with self._lock:
            if self._is_busy:
                return 0  # it was collected during a step of this thread: it keeps its place, which is vacant
            slots = self._lines.get(slot.line, [])
            while slots and not slots[-1].wanted:
                unused += slots.pop().cost
            if not slots:
                self._lines.pop(slot.line, None)
        return unused

    async def granted(
        self, asking: Coroutine[Any, Any, Answer], decline: Callable[[Answer], Coroutine[Any, Any, None]]
    ) -> Answer:
        """Return what a store answers to who asks it for a slot.

        A task that is cancelled before that gives back what it is granted: a store in another process has heard it.
        """
        import asyncio  # noqa: PLC0415 - threads need none of it

        answer = asyncio.ensure_future(asking)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            # In a context of its own: the task may be cut by its deadline.
            work = _returned(answer, decline)
            returning = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
            self._returns.add(returning)
            returning.add_done_callback(self._returns.discard)
            await asyncio.shield(returning)
            raise

    def __len__(self) -> int:
        """Return how many wait."""
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
    except Exception:  # noqa: BLE001 - nothing was granted, and who asked has left
        return
    if granted.admitted:
        for _ in range(2):  # steps after which those whose answers came with this one have joined the line
            await SYSTEM_CLOCK.asleep(0)
        await decline(granted)
