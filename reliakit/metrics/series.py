"""One labelled time series of each kind: what a bound handle writes to.

A write checks its number, adds to this thread's own cell and returns: no lock, no allocation that outlives the call,
no exception. What cannot be counted is dropped, and counted as dropped.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from reliakit.core.context import request_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliakit.metrics.cells import Row

__all__ = [
    "MOST",
    "CounterSeries",
    "Exemplar",
    "GaugeSeries",
    "HistogramSeries",
    "Home",
    "Series",
    "Store",
    "Tally",
    "WatchedCounterSeries",
    "WatchedHistogramSeries",
    "lost",
    "number_of",
]

# A larger number is not a measurement, and adding many of them would reach infinity and stay there.
MOST = 1e200
_PLAIN = frozenset({int, float})
# CPython has one object for 1, so the usual call is recognised by identity: 78 ns instead of 104.
_ONE = 1
_NONE: dict[int, Exemplar] = {}


class Tally(Protocol):
    """Receives what an objective looks at: a counter's amounts, or a histogram's measurements."""

    def add(self, amount: float, /) -> None:
        """Record it now. Never waits."""
        ...


class Exemplar(NamedTuple):
    """One measurement that stands for its bucket: the trace it was made in, its value, and when it was."""

    trace_id: str
    value: float
    at: float


class Store(Protocol):
    """Where a metric's numbers are: `Cells`, or files that several processes share."""

    @property
    def own(self) -> Any:
        """What a new series begins with; its `row` is where a writer finds its numbers."""
        ...

    def reach(self, series: Any, /) -> Row:
        """Return a row that has the cells of this series."""
        ...

    def read(self, series: Any, /) -> Sequence[float]:
        """Return a series' cells."""
        ...

    def read_all(self, series: Sequence[Any], /) -> Iterator[Sequence[float]]:
        """Yield the cells of several series."""
        ...

    def prepare(self, series: Any, /) -> None:
        """Take note of a new series."""
        ...


class Home(Protocol):
    """What a series knows of the metric it belongs to."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """A histogram's upper bounds."""
        ...

    @property
    def cells(self) -> Store:
        """Where the numbers are."""
        ...

    @property
    def width(self) -> int:
        """How many cells a series has."""
        ...

    @property
    def drop(self) -> Callable[[str], None]:
        """Counts what could not be counted, by reason."""
        ...

    @property
    def now(self) -> Callable[[], float]:
        """Returns the seconds since the epoch."""
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

    @property
    def width(self) -> int:
        """How many cells it has."""
        return self._home.width

    def watch(self, tally: Tally) -> None:
        """Make an objective's window count along, if this kind of series counts."""

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
            if amount is _ONE or (type(amount) in _PLAIN and 0 <= amount <= MOST):
                self._own.row[self._first] += amount
                return
        except (AttributeError, IndexError):
            row = self._cells.reach(self)
            row[self._first] += amount
            return
        self._unusual(amount)

    def _unusual(self, amount: object) -> None:
        number = number_of(amount, self._home.drop)
        if number is not None:
            self.inc(number)

    def get(self) -> float:
        """Return the total over all threads."""
        return self._cells.read(self)[0]

    def watch(self, tally: Tally) -> None:
        """Make an objective's window count along."""
        self._look(tally)
        # Changing the class keeps the check off the unwatched path; both classes have the same layout.
        self.__class__ = self._watched()  # pyright: ignore[reportAttributeAccessIssue]

    def _watched(self) -> type[CounterSeries]:
        return WatchedCounterSeries


class WatchedCounterSeries(CounterSeries):
    """A counter that objectives look at."""

    __slots__ = ()

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, and pass it on to the windows."""
        if type(amount) in _PLAIN and 0 <= amount <= MOST:
            super().inc(amount)
            for tally in self._tallies:
                tally.add(amount)
        else:
            self._unusual(amount)


class GaugeSeries(Series):
    """One series of a gauge."""

    __slots__ = ("_read", "_set")

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        super().__init__(home, values, first, prefix)
        # The value that was set last, and what the cells held then; what was added since is added to it.
        self._set: tuple[float, float] = (0, 0)
        self._read: Callable[[], float] | None = None

    def set(self, value: float) -> None:
        """Set the value. Never raises. O(threads)."""
        number = number_of(value, self._home.drop, signed=True)
        if number is not None:
            self._set = (number, self._cells.read(self)[0])

    def inc(self, amount: float = 1) -> None:
        """Add `amount`, which may be negative. Never raises. O(1), any thread."""
        number = number_of(amount, self._home.drop, signed=True)
        if number is not None:
            try:
                self._own.row[self._first] += number
            except (AttributeError, IndexError):
                row = self._cells.reach(self)
                row[self._first] += number

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount`. Never raises. O(1), any thread."""
        number = number_of(amount, self._home.drop, signed=True)
        if number is not None:
            self.inc(-number)

    def clear(self) -> None:
        """Show nothing until it is set again, because nothing is known."""
        self._set = (math.nan, 0)

    def set_function(self, read: Callable[[], float]) -> None:
        """Call `read` for the value at every scrape; if it raises, the last value that was set is shown."""
        self._read = read

    def refresh(self) -> None:
        """Note that the function's value has changed. Only matters if other processes read it."""

    def get(self) -> float:
        """Return the value; NaN after `clear()`."""
        read = self._asked()
        if read is not None:
            return read
        value, base = self._set
        return value + (self._cells.read(self)[0] - base)

    def _asked(self) -> float | None:
        """Return what the function says, or None without a function, or without a number from it."""
        if self._read is None:
            return None
        try:
            return number_of(self._read(), self._home.drop, signed=True)
        except Exception:  # noqa: BLE001 - a scrape must not fail for one gauge; counted as dropped
            self._home.drop("not_a_number")
            return None


class HistogramSeries(Series):
    """One series of a histogram: a cell for each bucket, one for the infinite bucket, one for the sum."""

    __slots__ = ("_bounds", "_sum", "exemplars")

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        super().__init__(home, values, first, prefix)
        self._bounds = home.bounds
        self._sum = first + len(home.bounds) + 1
        # The latest measurement of each bucket that was made within a trace, by the bucket's number.
        self.exemplars: dict[int, Exemplar] = _NONE

    def observe(self, value: float) -> None:
        """Record one measurement, zero or more. Never raises. O(log buckets), any thread.

        Within a request that has a trace id, it becomes its bucket's exemplar.
        """
        if type(value) in _PLAIN and 0 <= value <= MOST:
            try:
                row = self._own.row
                # The sum's cell is the last one, so a row that is too short fails before anything is written.
                row[self._sum] += value
            except (AttributeError, IndexError):
                row = self._cells.reach(self)
                row[self._sum] += value
            bucket = bisect_left(self._bounds, value)
            row[self._first + bucket] += 1
            if request_here() is not None:
                self._exemplify(bucket, value)
            return
        self._unusual(value)

    def _exemplify(self, bucket: int, value: float) -> None:
        context = request_here()
        if context is not None and context.trace_id:
            if self.exemplars is _NONE:
                self.exemplars = {}
            self.exemplars[bucket] = Exemplar(context.trace_id, value, self._home.now())

    def _unusual(self, value: object) -> None:
        number = number_of(value, self._home.drop)
        if number is not None:
            self.observe(number)

    def get(self) -> tuple[int, float]:
        """Return how many measurements there were, and their sum."""
        *counts, total = self._cells.read(self)
        return int(sum(counts)), total

    def watch(self, tally: Tally) -> None:
        """Make an objective's window record the measurements too."""
        self._look(tally)
        self.__class__ = self._watched()  # pyright: ignore[reportAttributeAccessIssue] - as above

    def _watched(self) -> type[HistogramSeries]:
        return WatchedHistogramSeries


class WatchedHistogramSeries(HistogramSeries):
    """A histogram that objectives look at."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        """Record one measurement, and pass it on to the windows."""
        if type(value) in _PLAIN and 0 <= value <= MOST:
            super().observe(value)
            for tally in self._tallies:
                tally.add(value)
        else:
            self._unusual(value)


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


def number_of(value: object, drop: Callable[[str], None], *, signed: bool = False) -> float | None:
    """Return `value` as a plain number that can be counted, or None after saying why not."""
    if type(value) in _PLAIN:
        number: float = value  # type: ignore[assignment]  # its class was just looked at
    else:
        try:
            # Whatever has __float__: Decimal, Fraction, numpy; float() says what has not. A text is no measurement,
            # though float() reads it.
            number = float(None if isinstance(value, str | bytes | bytearray) else value)  # type: ignore[arg-type]
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
