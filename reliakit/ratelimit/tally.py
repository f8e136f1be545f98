"""Counts of what a limiter has decided so far, so cheap that they hardly slow a decision down."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from heapq import nlargest
from itertools import count
from operator import itemgetter
from weakref import ref

from reliakit.core.events import LimitFigures
from reliakit.core.fork import renew_locks_after_fork
from reliakit.stores.keys import short

__all__ = ["LimiterStats", "Tally"]

_SHOWN = 10
# Keys that are counted at once; when there are four times as many, those with the highest counts are kept.
_KEPT = 128
# Up to so many denials each key is counted; from then on one in seventeen stands for all, on average.
_ALL_UP_TO = 1000
_ONE_IN = 17
# Any odd numbers in whose product the upper bits are well mixed (a linear congruential generator).
_STEP, _OFFSET = 1_103_515_245, 12_345


@dataclass(frozen=True, slots=True)
class LimiterStats:
    """What a limiter has decided since it was made, with or without listeners.

    Attributes:
        admitted: Decisions that admitted, those of `acquire` included.
        denied: Decisions that denied.
        shadow_denied: Decisions that shadow mode allowed and that would have been denied without it.
        degraded: How many of all these were made by a stand-in for the store.
        waiting: Threads and tasks that wait in `acquire` now.
        top_denied: The keys denied most often, each with its approximate count, highest first; ten at most. Keys may
            be personal data.
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
        owner: The limiter whose decisions are counted; the counts outlive it while somebody reads them.

    `next()` on a count is one atomic step without a lock, and returns how many there were before.

    Attributes:
        admitted: Counts decisions that admitted.
        denied: Counts those that denied.
        shadow_denied: Counts those that would have denied without shadow mode.
        degraded: Counts those that a stand-in made.
        due: A denial has to be noted if its number has come to this.
    """

    __slots__ = (
        "__weakref__",
        "_keys",
        "_lock",
        "_noted",
        "_owner",
        "_reads",
        "_reports_all",
        "_sampled",
        "_state",
        "admitted",
        "degraded",
        "denied",
        "due",
        "shadow_denied",
    )

    def __init__(self, owner: object) -> None:
        self._owner = ref(owner)
        self.admitted: count[int] = count()
        self.denied: count[int] = count()
        self.shadow_denied: count[int] = count()
        self.degraded: count[int] = count()
        self.due: int = 0
        self._reports_all = False
        self._sampled = 0
        self._noted = 0
        self._state = 1
        self._reads = 0
        self._keys: dict[str, int] = {}
        # Re-entrant: a finaliser that runs while it is held may itself be denied something.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")

    def report_all(self, reports_all: bool) -> None:
        """Have `due` come for each denial, or only for those whose keys are counted."""
        with self._lock:
            self._reports_all = reports_all
            self.due = 0 if reports_all else self._sampled

    def note(self, key: str, number: int) -> None:
        """Remember the key of a denial whose number has come to `due`, if it is among those that are counted."""
        if number < self._sampled:
            return
        key = short(key)
        with self._lock:
            if number < self._sampled:  # another thread's denial stands for this one, too
                return
            weight = 1
            if self._noted < _ALL_UP_TO:
                self._noted += 1
            else:
                weight = _ONE_IN
                # Never the same distance: keys that take turns would be missed, or taken for all of them.
                self._state = (self._state * _STEP + _OFFSET) % 2**31
                self._sampled = number + 1 + (self._state >> 12) % (2 * _ONE_IN - 1)
                self.due = 0 if self._reports_all else self._sampled
            self._keys[key] = self._keys.get(key, 0) + weight
            if len(self._keys) > 4 * _KEPT:
                self._keys = dict(nlargest(_KEPT, list(self._keys.items()), key=itemgetter(1)))

    def stats(self, waiting: int) -> LimiterStats:
        """Return the figures as they are now."""
        figures = self.read()
        with self._lock:
            top = nlargest(_SHOWN, list(self._keys.items()), key=itemgetter(1))
        return LimiterStats(*figures[:4], waiting, tuple(top))

    def read(self) -> LimitFigures:
        """Return the counts as they are now."""
        with self._lock:
            # Reading a count adds one to it, so the reads so far are subtracted.
            reads, self._reads = self._reads, self._reads + 1
            return LimitFigures(
                next(self.admitted) - reads,
                next(self.denied) - reads,
                next(self.shadow_denied) - reads,
                next(self.degraded) - reads,
                is_gone=self._owner() is None,
            )
