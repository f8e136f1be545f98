"""How much happened lately: counts in slots of time, forgotten as the window slides on.

```
now - window                                         now
     │  forgotten │ slot │ slot │ ...  │ slot │ slot │      one row of slots for each thread
```

A window of 300 s has 100 slots, so an event is forgotten at most 3 s early and never late. Beside the window each
count keeps the long period that an error budget is for, in slots as many. As with `Cells`, every thread has a row of
its own and leaves it to the next new one: counting takes no lock and holds nobody up, and reading adds the rows up.
"""

from __future__ import annotations

from collections import Counter
from threading import local
from typing import TYPE_CHECKING, NamedTuple

from reliakit.metrics.sketch import bucket_of, quantile

if TYPE_CHECKING:
    from reliakit.core.clock import Clock

__all__ = ["Occurrences", "Slots", "Span", "Window", "Within"]

_SLOTS = 100
# A slot of a sketch holds a hundred numbers where one of a count holds one.
_SKETCHES = 30


class Span(NamedTuple):
    """How far back a count looks: seconds of the window, and of the period of the error budget."""

    window: float
    period: float


class Slots:
    """Amounts by slot of time. One thread adds, any thread may read."""

    __slots__ = ("_amounts", "_width", "_window")

    def __init__(self, window: float) -> None:
        self._window = window
        self._width = window / _SLOTS
        self._amounts: dict[int, list[float]] = {}

    def add(self, at: float, amount: float) -> None:
        """Count `amount` at the instant `at`."""
        slot = int(at // self._width)
        cell = self._amounts.get(slot)
        if cell is None:
            self._forget(slot)
            cell = self._amounts.setdefault(slot, [0])
        # Never interrupted halfway, see `Cells`.
        cell[0] += amount

    def _forget(self, newest: int) -> None:
        # Here and not when somebody reads: the memory of a window that nobody reads must not grow either.
        for slot in [slot for slot in self._amounts if slot < newest - _SLOTS]:
            del self._amounts[slot]

    def total(self, now: float) -> float:
        """Return what the window that ends at `now` holds."""
        last_forgotten = (now - self._window) // self._width
        return sum(cell[0] for slot, cell in tuple(self._amounts.items()) if slot > last_forgotten)

    def __len__(self) -> int:
        return len(self._amounts)


class _Row:
    """The slots of one thread."""

    __slots__ = ("period", "sketches", "window")

    def __init__(self, span: Span) -> None:
        self.window = Slots(span.window)
        self.period = Slots(span.period)
        self.sketches: dict[int, dict[int, int]] = {}


class _Lease:
    """Hands a row on when the thread that held it is gone: only the thread's own storage refers to its lease."""

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

    __slots__ = ("_clock", "_own", "_rows", "_span", "_spare")

    def __init__(self, span: Span, clock: Clock) -> None:
        self._span = span
        self._clock = clock
        self._own = local()
        self._rows: list[_Row] = []
        self._spare: list[_Row] = []

    def add(self, amount: float, /) -> None:
        """Take in an amount now. O(1), never waits."""
        now = self._clock.monotonic()
        row = self._row()
        row.window.add(now, amount)
        row.period.add(now, amount)

    def totals(self) -> tuple[float, float]:
        """Return what the window and the period hold now."""
        now = self._clock.monotonic()
        rows = self._rows[:]
        return sum(row.window.total(now) for row in rows), sum(row.period.total(now) for row in rows)

    def _row(self) -> _Row:
        row: _Row | None = getattr(self._own, "row", None)
        if row is None:
            try:
                row = self._spare.pop()
            except IndexError:
                row = _Row(self._span)
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
    """How many measurements were up to a bound, and their quantiles.

    Args:
        span: How far back it looks.
        bound: The greatest measurement that counts.
        clock: What drives it.
    """

    __slots__ = ("_bound", "_width")

    def __init__(self, span: Span, bound: float, clock: Clock) -> None:
        super().__init__(span, clock)
        self._bound = bound
        self._width = span.window / _SKETCHES

    def add(self, measurement: float, /) -> None:
        """Take in a measurement now. O(1), never waits."""
        if measurement <= self._bound:
            super().add(1)
        sketches = self._row().sketches
        slot = int(self._clock.monotonic() // self._width)
        sketch = sketches.get(slot)
        if sketch is None:
            for old in [old for old in sketches if old < slot - _SKETCHES]:
                del sketches[old]
            sketch = sketches.setdefault(slot, {})
        bucket = bucket_of(measurement)
        sketch[bucket] = sketch.get(bucket, 0) + 1

    def quantile(self, share: float) -> float | None:
        """Return what `share` of the window's measurements did not exceed, within 1 %; None if there are none."""
        last_forgotten = (self._clock.monotonic() - self._span.window) // self._width
        merged: Counter[int] = Counter()
        for row in self._rows[:]:
            for slot, sketch in tuple(row.sketches.items()):
                if slot > last_forgotten:
                    # Copied in one step: its own thread may add a bucket meanwhile.
                    merged.update(sketch.copy())
        return quantile(merged, share)
