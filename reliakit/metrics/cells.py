"""Numbers that every thread adds to without a lock.

```
            series 0   series 1   series 2
thread A  [    3     ,    0     ,    7     ]   each row has one writer
thread B  [    1     ,    4     ]
total          4          4          7         summed by the reader
```

Only the thread that owns a row writes it, so an addition needs no lock and cannot deadlock from a GC callback or a
signal handler. CPython runs those, and switches threads, only on calls and jumps: `row[i] += n` with a plain number
is neither, so it is never interrupted halfway. A dying thread leaves its row to the next new one, counts and all, so
totals stay exact and there are never more rows than there were threads at once.
"""

from __future__ import annotations

from itertools import zip_longest
from threading import local
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Cells", "Place", "Row"]


class Row(Protocol):
    """Numbers by index: a list of this thread's own, or a part of a file."""

    def __getitem__(self, index: int, /) -> float:
        """Return one of them; IndexError beyond the end."""
        ...

    def __setitem__(self, index: int, value: float, /) -> None:
        """Change one of them; IndexError beyond the end."""
        ...


class Place(Protocol):
    """Something that has cells: a series."""

    @property
    def first(self) -> int:
        """The index of its first cell."""
        ...

    @property
    def width(self) -> int:
        """How many cells it has."""
        ...


class _Lease:
    """Passes a row on when the thread that held it is gone: only the thread's own storage refers to its lease."""

    __slots__ = ("_spare", "row")

    def __init__(self, row: list[float], spare: list[list[float]]) -> None:
        self.row = row
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self.row)


class Cells:
    """The rows of one metric.

    Writers add with `cells.own.row[series.first] += amount` and call `reach` when that raises AttributeError (a new
    thread) or IndexError (a new series).
    """

    __slots__ = ("_rows", "_spare", "own")

    def __init__(self) -> None:
        self.own: local = local()
        self._rows: list[list[float]] = []
        self._spare: list[list[float]] = []

    def reach(self, series: Place) -> Row:
        """Return this thread's row, made long enough for the series."""
        size = series.first + series.width
        row: list[float] | None = getattr(self.own, "row", None)
        if row is None:
            # A GC callback or signal handler may get here first, on this very thread, and count into a row: that one
            # stays in use. The lease that comes too late passes its row on, unused.
            lease: _Lease = vars(self.own).setdefault("lease", _Lease(self._adopt(), self._spare))
            row = self.own.row = lease.row
        missing = size - len(row)
        if missing > 0:
            row.extend([0] * (missing + size // 8))
        return row

    def _adopt(self) -> list[float]:
        try:
            return self._spare.pop()
        except IndexError:
            row: list[float] = []
            self._rows.append(row)
            return row

    def sums(self, start: int, stop: int) -> Sequence[float]:
        """Return the sum over all threads of every cell from `start` to before `stop`."""
        rows = [row[start:stop] for row in self._rows[:]]
        sums = rows[0] if len(rows) == 1 else list(map(sum, zip_longest(*rows, fillvalue=0)))
        if len(sums) < stop - start:
            sums.extend([0] * (stop - start - len(sums)))
        return sums

    def prepare(self, series: Place) -> None:
        """Prepare for a new series. Its cells are made when it is first written to."""

    def read_all(self, series: Sequence[Place]) -> Iterator[Sequence[float]]:
        """Yield the cells of several series, summed over all threads. Fast if they were made one after the other."""
        start = min(one.first for one in series)
        stop = max(one.first + one.width for one in series)
        if stop - start > 2 * len(series) * series[0].width:
            yield from map(self.read, series)
            return
        sums = self.sums(start, stop)
        for one in series:
            yield sums[one.first - start : one.first - start + one.width]

    def read(self, series: Place) -> Sequence[float]:
        """Return a series' cells, summed over all threads."""
        return self.sums(series.first, series.first + series.width)

    def __repr__(self) -> str:
        return f"<Cells of {len(self._rows)} threads>"
