"""What a limiter has decided so far, counted so cheaply that a decision hardly notices."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from heapq import nlargest
from itertools import count
from operator import itemgetter
from weakref import ref

from reliakit.core.events import LimitFigures
from reliakit.core.fork import renew_locks_after_fork

__all__ = ["LimiterStats", "Tally"]

_SHOWN = 10
# Keys that are counted at once; whenever there are four times as many, those with the highest counts stay.
_KEPT = 128
# So many denials have each key counted, then one in seventeen stands for all.
_ALL_UP_TO = 1000
_ONE_IN = 17  # a prime, so that who comes in turns is not missed


@dataclass(frozen=True, slots=True)
class LimiterStats:
    """What a limiter has decided since it was made, whoever listens.

    Attributes:
        admitted: Decisions that admitted, those of `acquire` included.
        denied: Decisions that denied.
        shadow_denied: Decisions that would have denied, were the limiter not in shadow mode; all were allowed.
        degraded: How many of all these were made by a stand-in for the store.
        waiting: Threads and tasks that wait in `acquire` now.
        top_denied: The keys that were denied most, and about how often, most often first; ten at most. Keys may be
            personal.
    """

    admitted: int
    denied: int
    shadow_denied: int
    degraded: int
    waiting: int
    top_denied: tuple[tuple[str, int], ...]


class Tally:
    """Counts decisions. Safe from threads and tasks, and exact but for the counts of single keys.

    Args:
        owner: Whose decisions; its counts outlive it while somebody reads them.

    `next()` of a count is one atomic step, without a lock, and says how many there were before.

    Attributes:
        admitted: Counts decisions that admitted.
        denied: Those that denied.
        shadow_denied: Those that would have.
        degraded: Those that a stand-in made.
        every: The key of a denial is noted if this divides its number.
    """

    __slots__ = (
        "__weakref__",
        "_keys",
        "_lock",
        "_noted",
        "_owner",
        "_reads",
        "admitted",
        "degraded",
        "denied",
        "every",
        "shadow_denied",
    )

    def __init__(self, owner: object) -> None:
        self._owner = ref(owner)
        self.admitted: count[int] = count()
        self.denied: count[int] = count()
        self.shadow_denied: count[int] = count()
        self.degraded: count[int] = count()
        self.every: int = 1
        self._noted = 0
        self._reads = 0
        self._keys: dict[str, int] = {}
        # Re-entrant: garbage that is collected under it may be denied something.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")

    def note(self, key: str) -> None:
        """Remember whose a denial was; to be called for those whose number `every` divides."""
        weight = self.every
        if weight == 1:
            self._noted += 1
            self.every = _ONE_IN if self._noted >= _ALL_UP_TO else 1
        known = self._keys.get(key)
        if known is not None:  # two threads at once may count as one here
            self._keys[key] = known + weight
            return
        with self._lock:
            self._keys[key] = weight
            if len(self._keys) > 4 * _KEPT:
                self._keys = dict(nlargest(_KEPT, list(self._keys.items()), key=itemgetter(1)))

    def stats(self, waiting: int) -> LimiterStats:
        """Return the figures of now."""
        figures = self.read()
        with self._lock:
            top = nlargest(_SHOWN, list(self._keys.items()), key=itemgetter(1))
        return LimiterStats(*figures[:4], waiting, tuple(top))

    def read(self) -> LimitFigures:
        """Return the counts of now."""
        with self._lock:
            # Looking counts too, and is taken off again.
            reads, self._reads = self._reads, self._reads + 1
            return LimitFigures(
                next(self.admitted) - reads,
                next(self.denied) - reads,
                next(self.shadow_denied) - reads,
                next(self.degraded) - reads,
                is_gone=self._owner() is None,
            )
