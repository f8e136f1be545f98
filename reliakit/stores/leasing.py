"""Units that a process takes from a shared store ahead of time and spends without asking it again.

```
hit ──> lease has some left ──yes──> spent here, no round trip
          └─no──> store: take `size` at once ──admitted──> one is spent, the rest is the lease
            │                                 └─refused──> store: take what is asked for
            └─somebody takes a lease already ────────────> store: take what is asked for
```

What is leased is spent already as far as the store knows, so all processes together never spend more in the long run;
within one period, each may spend a lease that it took in the period before. So a key has one lease, which one at a
time takes, however many threads and tasks find none.
"""

from __future__ import annotations

import threading
from math import inf
from typing import NamedTuple

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.stores.protocol import Answer, Plan

__all__ = ["Leases"]

# Beyond so many keys nothing more is leased until others run out: a flood of keys must not use up memory.
_MOST = 10_000
# Seconds between two looks for leases that have run out, while there is no room for more.
_PAUSE = 1.0


class _Lease(NamedTuple):
    left: int
    until: float
    full: float


class Leases:
    """The leases of one process. Safe from threads and tasks.

    Args:
        size: How many units are taken at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._leases: dict[tuple[Plan, str], _Lease] = {}
        self._taken: set[tuple[Plan, str]] = set()  # by a caller that waits for the store's answer
        self._room_from = -inf
        # Re-entrant: a finaliser that runs while it is held may spend, too.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def forget(self) -> None:
        """Leave a parent process's leases to the parent."""
        self._leases, self._taken = {}, set()

    def spend(self, plan: Plan, key: str, cost: int) -> Answer | None:
        """Spend from the lease, or return None if there is not enough."""
        place = (plan, key)
        if place not in self._leases:
            return None
        now = SYSTEM_CLOCK.monotonic()
        with self._lock:
            while True:
                lease = self._leases.get(place)
                if lease is None or lease.left < cost or lease.until <= now:
                    return None
                after = lease._replace(left=lease.left - cost)
                if self._leases.get(place) is lease:  # otherwise a finaliser spent from it meanwhile
                    break
            if after.left:
                self._leases[place] = after
            else:
                del self._leases[place]
        return Answer(True, 0, after.left, 0, max(0, round((lease.full - now) * 1e9)))

    def take(self, plan: Plan, key: str, cost: int) -> int:
        """Return how much to ask the store for; if that is more than the cost, `leave` must follow."""
        place = (plan, key)
        wanted = min(self._size, *[rule.burst for rule in plan.rules])
        with self._lock:
            if wanted <= cost or place in self._taken or self.left(plan, key) >= cost or not self._has_room_locked():
                return cost
            self._taken.add(place)
        return wanted

    def leave(self, plan: Plan, key: str) -> None:
        """Let others take a lease of the key again: the store has answered, or will not."""
        with self._lock:
            self._taken.discard((plan, key))

    def begin(self, plan: Plan, key: str, rest: int, answer: Answer) -> Answer:
        """Keep what the store has admitted beyond the cost itself."""
        now = SYSTEM_CLOCK.monotonic()
        # A lease that is older than a period counts no longer in the store.
        until = now + min(rule.period for rule in plan.rules) / 1e9
        with self._lock:
            known = self._leases.get((plan, key))
            rest += known.left if known is not None and known.until > now else 0
            self._leases[plan, key] = _Lease(rest, until, now + answer.reset / 1e9)
        return answer._replace(remaining=answer.remaining + rest)

    def left(self, plan: Plan, key: str) -> int:
        """Return what is left of a lease."""
        lease = self._leases.get((plan, key))
        return 0 if lease is None or lease.until <= SYSTEM_CLOCK.monotonic() else lease.left

    def drop(self, plan: Plan, key: str) -> None:
        """Forget a lease."""
        with self._lock:
            self._leases.pop((plan, key), None)

    def end(self) -> list[tuple[Plan, str, int]]:
        """Return what is to be given back, and lease nothing of it any more."""
        with self._lock:
            self._expire_locked()
            leases, self._leases = self._leases, {}
        return [(plan, key, lease.left) for (plan, key), lease in leases.items()]

    def _has_room_locked(self) -> bool:
        if len(self._leases) >= _MOST and (now := SYSTEM_CLOCK.monotonic()) >= self._room_from:
            self._room_from = now + _PAUSE
            self._expire_locked()
        return len(self._leases) < _MOST

    def _expire_locked(self) -> None:
        now = SYSTEM_CLOCK.monotonic()
        self._leases = {place: lease for place, lease in self._leases.items() if lease.until > now}
