"""How much happened lately: counts in slots of time, forgotten as the window moves on.

```
now - window                                         now
     │  forgotten │ slot │ slot │ ...  │ slot │ slot │      one row of slots for each thread
```

A window of 300 s has 100 slots, so an event is forgotten at most 3 s early and never late. What leaves the window
goes into the slots of the long period that an error budget covers. As with `Cells`, every thread has a row of its own
and leaves it to the next new one: counting takes no lock and delays nobody, and a reader adds the rows up.
"""

from __future__ import annotations

from collections import Counter
from threading import local
from typing import TYPE_CHECKING, NamedTuple

from reliakit.metrics.sketch import bucket_of, quantile

if TYPE_CHECKING:
    from reliakit.core.clock import Clock

__all__ = ["Occurrences", "Span", "Window", "Within"]

_SLOTS = 100
# A sketch holds a hundred numbers where a count holds one, so this many slots share one.
_SHARE = 4


class Span(NamedTuple):
    """How far back a count looks: seconds of the window, and of the period of the error budget."""

    window: float
    period: float


class _Row:
    """The slots of one thread; the thread writes, anybody reads.

    Attributes:
        slot: The newest slot, and
        cell: what it holds: how much, and how much of it within a bound.
        sketch: Measurements by bucket, in the newest slot and its neighbours.
        window: Cells by slot, those of the window and a few that are older.
        period: Cells by long slot, of what was older.
        sketches: Sketches by slot // 4.
    """

    __slots__ = ("cell", "period", "sketch", "sketches", "slot", "window")

    def __init__(self) -> None:
        self.slot = -1 << 60
        self.cell: list[float] = [0, 0]
        self.sketch: dict[int, int] = {}
        self.window: dict[int, list[float]] = {}
        self.period: dict[int, list[float]] = {}
        self.sketches: dict[int, dict[int, int]] = {}

    def turn(self, slot: int, long: float) -> None:
        """Begin a slot; what is older than the window goes into the slots of the period, so many times as long.

        A GC callback or signal handler may count, and so turn the same row, at any line of this: nothing that is
        found here need still be there at the next line, and the code that takes a cell out is the one that adds it.
        """
        oldest = slot - _SLOTS
        for old in self.window.copy():
            if old < oldest:
                cell = self.period.setdefault(int(old // long), [0, 0])
                for place, amount in enumerate(self.window.pop(old, ())):
                    cell[place] += amount
        for old in self.period.copy():
            if old < slot // long - _SLOTS:
                self.period.pop(old, None)
        for old in self.sketches.copy():
            if old < oldest // _SHARE:
                self.sketches.pop(old, None)
        self.sketch = self.sketches.setdefault(slot // _SHARE, {})
        self.cell = self.window.setdefault(slot, [0, 0])
        self.slot = slot


class _Lease:
    """Passes a row on when the thread that held it is gone: only the thread's own storage refers to its lease."""

    __slots__ = ("_row", "_spare")

    def __init__(self, row: _Row, spare: list[_Row]) -> None:
        self._row = row
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self._row)


class Window:
    """A sliding sum of amounts for many threads.

    Args:
        span: How far back it looks.
        clock: What drives it.
    """

    __slots__ = ("_long", "_now", "_own", "_rows", "_spare", "_width")

    def __init__(self, span: Span, clock: Clock) -> None:
        self._width = span.window / _SLOTS
        self._long = span.period / span.window
        self._now = clock.monotonic
        self._own = local()
        self._rows: list[_Row] = []
        self._spare: list[_Row] = []

    def add(self, amount: float, /) -> None:
        """Record an amount now. O(1), never waits."""
        # Written out in each class, as it runs at every event. `+=` is never interrupted halfway, see `Cells`.
        slot = int(self._now() // self._width)
        try:
            row = self._own.row
        except AttributeError:
            row = self._begin()
        if row.slot != slot:
            row.turn(slot, self._long)
        row.cell[0] += amount

    def totals(self, place: int = 0) -> tuple[float, float]:
        """Return what the window and the period hold now: of everything, or with 1 of what is within the bound."""
        slot = self._now() / self._width
        oldest, oldest_long = int(slot // 1) - _SLOTS, slot // self._long - _SLOTS
        window = period = 0.0
        for row in self._rows[:]:
            # Copied in one step, because the row's own thread may begin a slot meanwhile.
            for at, cell in row.window.copy().items():
                if at > oldest:
                    window += cell[place]
                elif at // self._long > oldest_long:
                    period += cell[place]
            period += sum(cell[place] for at, cell in row.period.copy().items() if at > oldest_long)
        return window, window + period

    def _begin(self) -> _Row:
        try:
            row = self._spare.pop()
        except IndexError:
            row = _Row()
            self._rows.append(row)
        self._own.lease = _Lease(row, self._spare)
        self._own.row = row
        return row


class Occurrences(Window):
    """How many measurements there were."""

    __slots__ = ()

    def add(self, _measurement: float, /) -> None:
        """Count a measurement now. O(1), never waits."""
        super().add(1)


class Within(Window):
    """How many measurements there were, how many of them up to a bound, and their quantiles.

    Args:
        span: How far back it looks.
        bound: The greatest measurement that is within.
        clock: What drives it.
    """

    __slots__ = ("_bound",)

    def __init__(self, span: Span, bound: float, clock: Clock) -> None:
        super().__init__(span, clock)
        self._bound = bound

    def add(self, measurement: float, /) -> None:
        """Take in a measurement now. O(1), never waits."""
        slot = int(self._now() // self._width)
        try:
            row = self._own.row
        except AttributeError:
            row = self._begin()
        if row.slot != slot:
            row.turn(slot, self._long)
        cell, sketch = row.cell, row.sketch
        cell[0] += 1
        if measurement <= self._bound:
            cell[1] += 1
        bucket = bucket_of(measurement)
        sketch[bucket] = sketch.get(bucket, 0) + 1

    def quantile(self, share: float) -> float | None:
        """Return what `share` of the window's measurements did not exceed, within 1 %; None if there are none."""
        oldest = (self._now() // self._width - _SLOTS) // _SHARE
        merged: Counter[int] = Counter()
        for row in self._rows[:]:
            for slot, sketch in row.sketches.copy().items():  # copied in one step, as above
                if slot > oldest:
                    merged.update(sketch.copy())
        return quantile(merged, share)
