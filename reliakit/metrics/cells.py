"""Numbers that every thread adds to without a lock.

```
            series 0   series 1   series 2
thread A  [    3     ,    0     ,    7     ]   each row has one writer
thread B  [    1     ,    4     ]
total          4          4          7         summed by whoever reads
```

A row is written by the thread that owns it and by nobody else, so an addition needs no lock and cannot deadlock from
a GC callback or a signal handler. CPython runs those, and switches threads, on calls and jumps only: `row[i] += n`
with a plain number is neither, so it is never interrupted halfway. A dying thread leaves its row to the next new one,
counts and all, so totals stay exact and there are never more rows than there were threads at once.
"""

from __future__ import annotations

from itertools import zip_longest
from threading import local

__all__ = ["Cells"]


class _Lease:
    """Hands a row on when the thread that held it is gone: only the thread's own storage refers to its lease."""

    __slots__ = ("_row", "_spare")

    def __init__(self, row: list[float], spare: list[list[float]]) -> None:
        self._row = row
        self._spare = spare

    def __del__(self) -> None:
        self._spare.append(self._row)


class Cells:
    """The rows of one metric.

    Writers add with `cells.own.row[index] += amount` and call `grow` when that raises AttributeError (a new thread)
    or IndexError (a new series).
    """

    __slots__ = ("_rows", "_spare", "own")

    def __init__(self) -> None:
        self.own: local = local()
        self._rows: list[list[float]] = []
        self._spare: list[list[float]] = []

    def grow(self, size: int) -> list[float]:
        """Return this thread's row, made at least `size` cells long."""
        row: list[float] | None = getattr(self.own, "row", None)
        if row is None:
            row = self._adopt()
            self.own.lease = _Lease(row, self._spare)
            self.own.row = row
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

    def totals(self, size: int) -> list[float]:
        """Return the sum of every cell over all threads, at least `size` of them."""
        rows = [row[:] for row in self._rows[:]]
        sums = rows[0] if len(rows) == 1 else list(map(sum, zip_longest(*rows, fillvalue=0)))
        if len(sums) < size:
            sums.extend([0] * (size - len(sums)))
        return sums

    def total(self, index: int) -> float:
        """Return the sum of one cell over all threads."""
        return sum(row[index] for row in self._rows[:] if index < len(row))

    def __repr__(self) -> str:
        return f"<Cells of {len(self._rows)} threads>"
