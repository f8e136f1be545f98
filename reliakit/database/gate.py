"""Which caller may use a connection now: a fixed number of slots and one fair queue, for threads and tasks alike.

```
enter(lease) ── a slot is free ──────────────▶ lease.slot
     └───────── none is ── queue ── a bell ──▶ lease.slot, handed over by the lease that leaves
leave(lease) ── to the next in the queue, else back to the free slots
```

A gate decides and never waits. It holds its lock for a few steps only, and a cancellation or a Ctrl-C that arrives
then leaves the slot with exactly one owner: `slot.holder` alone says which. A lease that is dropped without being
left, such as that of an abandoned generator, gives its slot back when it is finalised.

Psycopg's pool is not queued in for this reason: its queue hands a connection to a waiter that has gone when a
KeyboardInterrupt or a cancellation comes at the wrong moment (psycopg issues 509, 1208, 1345).
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from math import inf
from typing import TYPE_CHECKING, NamedTuple, Protocol

from reliakit.core.errors import TransactionUsageError
from reliakit.core.fork import renew_locks_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reliakit.database.places import Owner, Place
    from reliakit.database.session import Session

__all__ = ["Bell", "Figures", "Gate", "Lease", "Slot"]


class Bell(Protocol):
    """Wakes a caller that waits for a slot. Ringing twice is harmless; a caller woken without a slot looks again."""

    def ring(self) -> None:
        """Wake the waiter. Never blocks; any thread."""
        ...


class Slot:
    """The right to one connection. `holder` is the number of the lease that has it, or 0 if it is free."""

    __slots__ = ("holder", "owner", "place", "reported", "running", "session", "since", "told")

    def __init__(self) -> None:
        self.holder: int = 0
        self.session: Session | None = None
        self.owner: Owner | None = None
        self.since: float = 0.0
        self.place: Place = (None, 0)
        self.reported: bool = False  # whether it was reported as held for long
        self.told: bool = False  # whether it was reported as leaked
        self.running: str | None = None  # the operation of the transaction open on it

    @property
    def line(self) -> str:
        """The line that took it, as file:line."""
        code, instruction = self.place
        if code is None:
            return ""
        lines = (line for first, end, line in code.co_lines() if first <= instruction < end and line is not None)
        return f"{code.co_filename}:{next(lines, code.co_firstlineno)}"

    @property
    def abandoned(self) -> bool:
        """Whether the thread or task that holds it has ended, so that nobody will give it back."""
        owner = self.owner
        if not self.holder or owner is None:
            return False
        return not owner.is_alive() if isinstance(owner, threading.Thread) else owner.done()


class Lease:
    """One checkout. Its owner must leave with it; a lease that is dropped instead leaves when it is finalised."""

    __slots__ = ("__weakref__", "bell", "gate", "number", "owner", "place", "since", "slot")

    def __init__(self, gate: Gate, owner: Owner, since: float, place: Place) -> None:
        self.number: int = gate.next_number()  # unique among the leases of this gate
        self.owner: Owner = owner
        self.since: float = since
        self.place: Place = place
        self.slot: Slot | None = None
        self.bell: Bell | None = None
        self.gate: Gate = gate

    @property
    def closed(self) -> bool:
        """Whether the gate was closed meanwhile."""
        return self.gate.closed

    @property
    def holds(self) -> bool:
        """Whether it has a slot."""
        slot = self.slot
        return slot is not None and slot.holder == self.number

    def leave(self) -> None:
        """Give the slot back, or leave the queue. May be called any number of times."""
        self.gate.leave(self)

    def let_go(self) -> None:
        """Leave, and close the connection, which ends its transaction in whatever state it is. Never waits."""
        slot = self.slot
        if slot is not None and slot.holder == self.number and slot.session is not None:
            session, slot.session = slot.session, None
            session.let_go()
        self.leave()

    def __del__(self) -> None:
        slot = getattr(self, "slot", None)  # an interrupted __init__ leaves none
        if slot is not None and slot.holder == self.number:
            self.gate.drop(slot, self.number)


class Figures(NamedTuple):
    """The state of a gate at one moment; of two, the one with the higher revision is the later one."""

    revision: int
    size: int
    in_use: int
    waiting: int
    oldest: float | None  # when the oldest checkout was taken
    running: tuple[str, ...]  # the operations of the open transactions


def _write_down(slot: Slot, lease: Lease) -> None:
    slot.owner = lease.owner
    slot.since = lease.since
    slot.place = lease.place
    slot.reported = slot.told = False
    slot.running = None


class Gate:
    """The slots of one database and the queue before them.

    Its lock is re-entrant: any allocation may trigger garbage collection, and a finaliser may close a block that
    leaves, or begin one that enters, on this very thread. So each step checks again what it decides by.

    Args:
        name: The database, for messages.
        size: How many connections there may be.
        revisions: Numbers its states; a closed gate hands it to the gate that replaces it.
    """

    def __init__(self, name: str, size: int, revisions: Iterator[int] | None = None) -> None:
        self._name = name
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        self._slots = tuple(Slot() for _ in range(size))
        # A stack: the connection used last is used next, so that the others can become idle and be closed.
        self._free = list(self._slots)
        self._queue: deque[Lease] = deque()
        self._dropped: deque[tuple[Slot, int]] = deque()
        self.next_number: Callable[[], int] = itertools.count(1).__next__
        self._revisions = revisions or itertools.count(1)
        self.closed: bool = False

    def enter(self, lease: Lease, bell: Callable[[], Bell]) -> bool:
        """Give the lease a free slot and return True, or queue it and return False.

        Raises:
            TransactionUsageError: The gate is closed, or every slot is held by code that itself waits for one, this
                caller included: nobody could ever leave.
        """
        try:
            with self._lock:
                if self.closed:
                    raise TransactionUsageError(f"[{self._name}] it is closed: open() it first", name=self._name)
                if self._dropped:
                    self._sweep_locked()
                if self._queue:
                    self._share_out_locked()
                for slot in reversed(self._free):
                    lease.slot = slot
                    # Nothing is called between these two lines, so neither a finaliser nor a Ctrl-C comes between.
                    if not slot.holder:
                        slot.holder = lease.number
                        _write_down(slot, lease)
                        self._free.remove(slot)
                        return True
                lease.slot = None
                self._refuse_deadlock_locked(lease)
                lease.bell = bell()
                self._queue.append(lease)
                self._share_out_locked()
                return lease.holds
        finally:
            if self._dropped:
                self._settle_dropped()

    def take(self, lease: Lease) -> bool:
        """Give the lease a free slot and return True, or return False with the lease unchanged, for `enter`."""
        try:
            with self._lock:
                if self.closed or self._queue or self._dropped:
                    return False
                free = self._free
                for slot in reversed(free):
                    lease.slot = slot
                    if not slot.holder:  # as in `enter`
                        slot.holder = lease.number
                        slot.owner, slot.since, slot.place = lease.owner, lease.since, lease.place
                        slot.reported = slot.told = False
                        slot.running = None
                        if free and free[-1] is slot:
                            free.pop()  # `remove` would search all the others first
                        else:
                            free.remove(slot)
                        return True
                lease.slot = None
                return False
        finally:
            if self._dropped:
                self._settle_dropped()

    def granted(self, lease: Lease) -> bool:
        """Return whether a queued lease has its slot by now."""
        with self._lock:
            has_it = lease.holds
            if self.closed and not has_it:
                raise TransactionUsageError(f"{self._name} was closed while this waited", name=self._name)
            return has_it

    def leave(self, lease: Lease) -> None:
        """Take the lease out of the queue, or its slot back. May be called any number of times."""
        with self._lock:
            if self._dropped:
                self._sweep_locked()
            slot = lease.slot
            if slot is not None and slot.holder == lease.number:
                if self._queue:
                    self._pass_on_locked(slot, lease.number)
                else:
                    # As in `enter`. If a Ctrl-C comes after this line, the slot is in here twice from now on, which
                    # is harmless: `holder` alone decides.
                    self._free.append(slot)
                    slot.holder = 0
                    slot.owner = None
                    if self._queue:
                        self._pass_on_locked(slot, 0)
            elif lease.bell is not None and lease in self._queue:
                self._queue.remove(lease)
            lease.slot = None
        if self._dropped:
            self._settle_dropped()

    def drop(self, slot: Slot, number: int) -> None:
        """Take a slot back from a finalised lease. Runs inside the garbage collector, so it never blocks."""
        self._dropped.append((slot, number))
        self._settle_dropped()

    def close(self) -> Iterator[Session]:
        """Refuse new leases, wake those that wait, and return the sessions that are not in use."""
        with self._lock:
            self.closed = True
            idle: list[Session] = []
            for slot in tuple(self._free):
                session = slot.session
                if session is not None and not slot.holder:
                    slot.session = None
                    idle.append(session)
            for lease in tuple(self._queue):
                if lease.bell is not None:
                    lease.bell.ring()
            self._queue.clear()
        return iter(idle)

    def expire(self, is_expired: Callable[[Session], bool], keep: int) -> list[Session]:
        """Return unused sessions that are expired, but keep at least `keep`. O(free slots)."""
        expired: list[Session] = []
        with self._lock:
            size = sum(slot.session is not None for slot in self._slots)
            for slot in tuple(self._free):
                if size <= keep:
                    break
                session = slot.session
                if session is not None and is_expired(session) and not slot.holder:
                    slot.session = None
                    expired.append(session)
                    size -= 1
        return expired

    def held(self) -> list[Slot]:
        """Return the slots that are in use, the oldest checkout first."""
        with self._lock:
            self._sweep_locked()
            return sorted((slot for slot in self._slots if slot.holder), key=lambda slot: slot.since)

    def figures(self) -> Figures:
        """Return the state of all slots, numbered under the lock so that listeners can order them. O(slots)."""
        size = in_use = 0
        oldest = inf
        running: list[str] = []
        with self._lock:
            self._sweep_locked()
            for slot in self._slots:
                if slot.session is not None:
                    size += 1
                if slot.holder:
                    in_use += 1
                    oldest = min(oldest, slot.since)
                    if slot.running is not None:
                        running.append(slot.running)
            taken = oldest if in_use else None
            return Figures(next(self._revisions), size, in_use, len(self._queue), taken, tuple(running))

    def disown(self) -> None:
        """Leave all connections to the parent process; called in its child."""
        for slot in self._slots:
            if slot.session is not None:
                slot.session.disown()

    @property
    def size(self) -> int:
        """How many connections are open."""
        return sum(slot.session is not None for slot in self._slots)

    @property
    def in_use(self) -> int:
        """How many slots are in use. Takes no lock and emits nothing."""
        return sum(bool(slot.holder) for slot in self._slots)

    @property
    def waiting(self) -> int:
        """How many leases are queued."""
        return len(self._queue)

    def _pass_on_locked(self, slot: Slot, holder: int) -> None:
        """Pass a slot of this holder on to the first in the queue, else to the free slots."""
        while self._queue:
            heir = self._queue[0]
            if heir.bell is not None:
                # Rung before the slot is handed over: the waiter can only look once this lock is free again.
                heir.bell.ring()
            other = heir.slot
            # As in `enter`. The lease learns its slot before the slot learns its holder: if an interrupt falls in
            # between, the lease holds nothing, because `holder` alone decides.
            if other is None or other.holder != heir.number:
                heir.slot = slot
                if slot.holder != holder:
                    return  # it was free, and a finaliser that ran meanwhile has taken it
                slot.holder = heir.number
                _write_down(slot, heir)
            if self._queue and self._queue[0] is heir:
                self._queue.popleft()
            if slot.holder != holder:
                if slot in self._free:
                    self._free.remove(slot)
                return
        if slot not in self._free:
            self._free.append(slot)
        if slot.holder == holder:
            slot.holder = 0
            slot.owner = None
            if self._queue:  # a lease queued before the slot was free
                self._pass_on_locked(slot, 0)

    def _share_out_locked(self) -> None:
        """Give free slots to those who wait: a finaliser or an interrupt may have freed one at the worst moment."""
        if self._free:
            for slot in tuple(self._free):
                self._pass_on_locked(slot, 0)

    def _settle_dropped(self) -> None:
        # A collection may come while this very thread holds the lock: then the holder sweeps when it is done.
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                self._sweep_locked()
            finally:
                self._lock.release()

    def _sweep_locked(self) -> None:
        while self._dropped:
            slot, number = self._dropped.popleft()
            if slot.holder != number:
                continue
            if slot.session is not None:
                slot.session.abandon()
            self._pass_on_locked(slot, number)

    def _refuse_deadlock_locked(self, lease: Lease) -> None:
        waiting = {id(queued.owner) for queued in self._queue}
        waiting.add(id(lease.owner))
        if all(id(slot.owner) in waiting for slot in self._slots if slot.holder):
            raise TransactionUsageError(
                f"[{self._name}] all {len(self._slots)} connections are held by code that waits for another one, "
                "this code included, so none could go on: raise max_size, or do not nest (REQUIRES_NEW inside a "
                "transaction needs a second connection)",
                name=self._name,
            )
