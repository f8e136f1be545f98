"""A fixed number of places, and a queue of those that wait for one, threads and tasks in one line.

```
places   x x x x                 taken; a call that leaves hands its place to the first in the queue
queue    critical: A   default: B C   sheddable: D          A first, D last; B before C, or C before B (lifo)
```

No place is ever lost: a waiter that goes away hands on what it was just given, and one whose event loop is gone never
keeps it. Nobody jumps the queue: a call that comes while others wait joins it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Literal

from reliakit.core.fork import renew_locks_after_fork, tell_after_fork

if TYPE_CHECKING:
    from reliakit.core.context import Priority
    from reliakit.resilience.waiter import TaskWaiter, ThreadWaiter

__all__ = ["Order", "Places", "Ticket"]

Order = Literal["fifo", "lifo"]
_RANKS: tuple[Priority, ...] = ("critical", "default", "sheddable")


class Ticket:
    """A waiter's position in the queue.

    Attributes:
        state: "waiting", then "granted", "displaced" by a more important waiter, or "left" of its own accord.
    """

    __slots__ = ("priority", "state", "waiter")

    def __init__(self, waiter: ThreadWaiter | TaskWaiter, priority: Priority) -> None:
        self.waiter: ThreadWaiter | TaskWaiter = waiter
        self.priority: Priority = priority
        self.state: Literal["waiting", "granted", "displaced", "left"] = "waiting"


class Places:
    """Which calls are inside, and which wait. Safe from threads and tasks; taking a free place takes no lock.

    Args:
        count: How many places there are.
        most_waiting: How many may wait.
        order: Which of equal priority comes first: the first to wait ("fifo") or the last ("lifo").
    """

    __slots__ = ("__weakref__", "_lock", "_queues", "count", "free", "most_waiting", "order", "waiting")

    def __init__(self, count: int, most_waiting: int, order: Order) -> None:
        self.count: int = count
        self.most_waiting: int = most_waiting
        self.order: Order = order
        # Taking from a deque and adding to it are atomic. Its maximal length matters after a fork: in the child,
        # calls that were inside leave once more although all places are free again.
        self.free: deque[None] = deque([None] * count, maxlen=count)
        self.waiting: int = 0
        self._queues: dict[Priority, deque[Ticket]] = {rank: deque() for rank in _RANKS}
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call while this thread holds it
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "begin_anew")

    @property
    def inside(self) -> int:
        """How many places are taken."""
        return self.count - len(self.free)

    def begin_anew(self) -> None:
        """Forget what was inside and what waited: threads of a parent process, which do not exist in this one."""
        self.waiting = 0
        for queue in self._queues.values():
            queue.clear()
        self.free.extend([None] * self.count)

    def take(self) -> bool:
        """Take a place and return True, or return False if none is free or others wait for one."""
        if self.waiting:
            return False
        try:
            self.free.pop()
        except IndexError:
            return False
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.free.append(None)
        # A waiter joins the queue and then looks for a free place; this frees the place and then looks at the queue.
        # So one of the two always sees the other.
        if self.waiting:
            self.hand_out()

    def join(self, ticket: Ticket) -> bool:
        """Join the queue; return whether there was room. A full queue makes room only for a higher priority."""
        displaced = None
        with self._lock:
            if self.waiting >= self.most_waiting:
                displaced = self._less_important_locked(ticket.priority)
                if displaced is None and not self.free:
                    return False
                if displaced is not None:
                    self._remove_locked(displaced)
                    displaced.state = "displaced"
            self._queues[ticket.priority].append(ticket)
            self.waiting += 1
        if displaced is not None:
            self._wake(displaced)
        self.hand_out()
        return True

    def withdraw(self, ticket: Ticket) -> None:
        """Leave the queue, unless the ticket was granted or displaced meanwhile."""
        with self._lock:
            if ticket.state == "waiting":
                ticket.state = "left"
                self._remove_locked(ticket)

    def hand_out(self) -> None:
        """Give free places to waiters, as long as there are both."""
        while True:
            with self._lock:
                try:
                    self.free.pop()
                except IndexError:
                    return
                ticket = self._next_locked()
                if ticket is None:
                    self.free.append(None)
                    return
                ticket.state = "granted"
            self._wake(ticket)

    def _wake(self, ticket: Ticket) -> None:
        try:
            ticket.waiter.wake()
        except RuntimeError:
            # The waiter's event loop was closed, so nobody will ever use or return what it was granted.
            if ticket.state == "granted":
                ticket.state = "left"
                self.leave()

    def _next_locked(self) -> Ticket | None:
        for queue in self._queues.values():
            if queue:
                self.waiting -= 1
                return queue.popleft() if self.order == "fifo" else queue.pop()
        return None

    def _less_important_locked(self, priority: Priority) -> Ticket | None:
        """Return the waiter to displace for this priority: the one to be served last, if it is less important."""
        for rank in reversed(_RANKS):
            if rank == priority:
                return None
            queue = self._queues[rank]
            if queue:
                return queue[-1] if self.order == "fifo" else queue[0]
        return None

    def _remove_locked(self, ticket: Ticket) -> None:
        try:
            self._queues[ticket.priority].remove(ticket)
        except ValueError:
            return
        self.waiting -= 1
