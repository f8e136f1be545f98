"""One labelled time series of each kind: what a bound handle writes to.

A write checks its number, adds to this thread's own cell and returns: no lock, no allocation that outlives the call,
no exception. What cannot be counted is dropped and counted as dropped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.metrics.cells import Cells

__all__ = ["MOST", "CounterSeries", "GaugeSeries", "HistogramSeries", "Home", "Series", "Tally", "lost"]

# A larger number is no measurement, and adding up many of them would reach infinity and stay there.
MOST = 1e200
_PLAIN = frozenset({int, float})
# CPython has one object for 1, so the usual call is told by identity: 78 ns instead of 104.
_ONE = 1


class Tally(Protocol):
    """Takes along what an objective looks at: a counter's amounts, or a histogram's measurements."""

    def add(self, amount: float, /) -> None:
        """Take it in now. Never waits."""
        ...


class Home(Protocol):
    """What a series knows of the metric it belongs to."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """A histogram's upper bounds."""
        ...

    @property
    def cells(self) -> Cells:
        """Where the numbers are."""
        ...

    @property
    def drop(self) -> Callable[[str], None]:
        """Counts what could not be counted, by reason."""
        ...


class Series:
    """One labelled time series: its label values, its label text, and where its cells are."""

    __slots__ = ("_cells", "_first", "_home", "_own", "_tallies", "prefix", "values")

    is_lost = False

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        self._home = home
        self._cells = home.cells
        self._own = home.cells.own
        self._first = first
        self._tallies: tuple[Tally, ...] = ()
        self.values: tuple[str, ...] = values
        self.prefix: str = prefix

    @property
    def first(self) -> int:
        """The index of its first cell."""
        return self._first

    def watch(self, tally: Tally) -> None:
        """Let an objective's window count along, if this kind of series counts."""

    def _look(self, tally: Tally) -> None:
        if tally not in self._tallies:
            self._tallies = (*self._tallies, tally)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.prefix}>"


class CounterSeries(Series):
    """One series of a counter."""

    __slots__ = ()

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, zero or more. Never raises: anything else is dropped and counted. O(1), any thread."""
        try:
            if amount is _ONE or (amount.__class__ in _PLAIN and 0 <= amount <= MOST):
                self._own.row[self._first] += amount
                return
        except (AttributeError, IndexError):
            self._cells.grow(self._first + 1)[self._first] += amount
            return
        self._unusual(amount)

    def _unusual(self, amount: object) -> None:
        number = _number(amount, self._home.drop)
        if number is not None:
            self.inc(number)

    def get(self) -> float:
        """Return the total over all threads."""
        return self._cells.total(self._first)

    def watch(self, tally: Tally) -> None:
        """Let an objective's window count along."""
        self._look(tally)
        # The unwatched path stays free of the question; both classes have the same layout.
        self.__class__ = _WatchedCounterSeries  # pyright: ignore[reportAttributeAccessIssue]


class _WatchedCounterSeries(CounterSeries):
    """A counter that objectives look at."""

    __slots__ = ()

    def inc(self, amount: float = 1) -> None:
        number = _number(amount, self._home.drop)
        if number is not None:
            CounterSeries.inc(self, number)
            for tally in self._tallies:
                tally.add(number)


class GaugeSeries(Series):
    """One series of a gauge."""

    __slots__ = ("_read", "_set")

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        super().__init__(home, values, first, prefix)
        # The value that was set last, and what the cells held then; what was added since counts on top.
        self._set: tuple[float, float] = (0, 0)
        self._read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Make `value` the value. Never raises. O(threads)."""
        number = _number(value, self._home.drop, signed=True)
        if number is not None:
            self._set = (number, self._cells.total(self._first))

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which may be negative. Never raises. O(1), any thread."""
        number = _number(amount, self._home.drop, signed=True)
        if number is not None:
            try:
                self._own.row[self._first] += number
            except (AttributeError, IndexError):
                self._cells.grow(self._first + 1)[self._first] += number

    def dec(self, amount: float = 1) -> None:
        """Take `amount` away. Never raises. O(1), any thread."""
        number = _number(amount, self._home.drop, signed=True)
        if number is not None:
            self.inc(-number)

    def clear(self) -> None:
        """Show nothing until it is set again: nothing is known."""
        self._set = (math.nan, 0)

    def set_function(self, read: Callable[[], float]) -> None:
        """Ask `read` for the value at every scrape; one that raises shows the last value that was set."""
        self._read = read

    def get(self) -> float:
        """Return the value; not a number after `clear()`."""
        if self._read is not None:
            try:
                number = _number(self._read(), self._home.drop, signed=True)
            except Exception:  # noqa: BLE001 - a scrape must not fail for one gauge; counted as dropped
                self._home.drop("not_a_number")
                number = None
            if number is not None:
                return number
        value, base = self._set
        return value + (self._cells.total(self._first) - base)


class HistogramSeries(Series):
    """One series of a histogram: a cell for each bucket, one for the infinite bucket, one for the sum."""

    __slots__ = ("_bounds", "_sum")

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        super().__init__(home, values, first, prefix)
        self._bounds = home.bounds
        self._sum = first + len(home.bounds) + 1

    def observe(self, value: float) -> None:
        """Take in one measurement, zero or more. Never raises. O(log buckets), any thread."""
        try:
            if value.__class__ in _PLAIN and 0 <= value <= MOST:
                row = self._own.row
                # The sum's cell is the last one, so a row that is too short fails before anything is written.
                row[self._sum] += value
                row[self._first + bisect_left(self._bounds, value)] += 1
                return
        except (AttributeError, IndexError):
            self._cells.grow(self._sum + 1)
            HistogramSeries.observe(self, value)
            return
        self._unusual(value)

    def _unusual(self, value: object) -> None:
        number = _number(value, self._home.drop)
        if number is not None:
            self.observe(number)

    def get(self) -> tuple[int, float]:
        """Return how many measurements there were, and their sum."""
        counts = (self._cells.total(index) for index in range(self._first, self._sum))
        return int(sum(counts)), self._cells.total(self._sum)

    def watch(self, tally: Tally) -> None:
        """Let an objective's window take the measurements too."""
        self._look(tally)
        self.__class__ = _WatchedHistogramSeries  # pyright: ignore[reportAttributeAccessIssue] - as above


class _WatchedHistogramSeries(HistogramSeries):
    """A histogram that objectives look at."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        number = _number(value, self._home.drop)
        if number is not None:
            HistogramSeries.observe(self, number)
            for tally in self._tallies:
                tally.add(number)


class _LostCounter(CounterSeries):
    __slots__ = ()

    is_lost = True

    def inc(self, amount: float = 1) -> None:  # noqa: ARG002 - the value is lost, only that it was is counted
        self._home.drop("unknown_label")


class _LostGauge(GaugeSeries):
    __slots__ = ()

    is_lost = True

    def set(self, value: float) -> None:  # noqa: ARG002 - as above
        self._home.drop("unknown_label")

    def inc(self, amount: float = 1) -> None:  # noqa: ARG002 - as above
        self._home.drop("unknown_label")

    def dec(self, amount: float = 1) -> None:  # noqa: ARG002 - as above
        self._home.drop("unknown_label")


class _LostHistogram(HistogramSeries):
    __slots__ = ()

    is_lost = True

    def observe(self, value: float) -> None:  # noqa: ARG002 - as above
        self._home.drop("unknown_label")


_LOST: dict[type[Series], type[Series]] = {
    CounterSeries: _LostCounter,
    GaugeSeries: _LostGauge,
    HistogramSeries: _LostHistogram,
}


def lost(kind: type[Series]) -> type[Series]:
    """Return the class whose writes go nowhere: what `labels()` gives for labels that the metric does not have."""
    return _LOST[kind]


def _number(value: object, drop: Callable[[str], None], *, signed: bool = False) -> float | None:
    """Return `value` as a plain number that can be counted, or None after saying why not."""
    if value.__class__ in _PLAIN:
        number: float = value  # type: ignore[assignment]  # its class was just looked at
    else:
        try:
            # Whatever has __float__: Decimal, Fraction, numpy. A text is no measurement, though float() reads it.
            number = math.nan if isinstance(value, str | bytes | bytearray) else float(value)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - a metric never raises into its caller; counted as dropped
            drop("not_a_number")
            return None
    if not -MOST <= number <= MOST:
        drop("not_finite")
        return None
    if number < 0 and not signed:
        drop("negative")
        return None
    return number
