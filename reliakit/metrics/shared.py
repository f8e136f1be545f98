"""Numbers in files that all processes of a service write and any of them can read.

```
worker 1 ── row of worker 1's file ─┐
worker 2 ── row of worker 2's file ─┼─ one scrape, by whichever process
worker 3 ── row of worker 3's file ─┘
```

This is prometheus_client's multiprocess mode: the files are made and named by prometheus_client, so that its
`MultiProcessCollector` and `mark_process_dead` work as they do for its own metrics. It allocates each number when a
series begins; from then on a handle adds to the number in place, in the mapped file. `row[i] += n` with a plain
number is never interrupted halfway in CPython with its GIL, see `reliakit.metrics.cells`, so this needs no lock
either.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import mmap
import os
from bisect import bisect_left
from collections import defaultdict, deque
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.metrics.series import (
    MOST,
    CounterSeries,
    GaugeSeries,
    HistogramSeries,
    Series,
    WatchedCounterSeries,
    WatchedHistogramSeries,
    number_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliakit.metrics.cells import Row
    from reliakit.metrics.metric import Metric
    from reliakit.metrics.series import Home

__all__ = ["SharedCells", "SharedFiles", "shared"]

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_PLAIN = frozenset({int, float})

_log = logging.getLogger("reliakit")


class _Own:
    """Where a series' row is: nowhere yet, or a mapped file."""

    __slots__ = ("row",)

    def __init__(self) -> None:
        self.row: Any = []  # nowhere: every index raises IndexError


class SharedFiles:
    """The files of this process, as prometheus_client makes them.

    Args:
        directory: Where the files of all processes are.

    Raises:
        ConfigurationError: The directory does not exist, or cannot be written to.
    """

    def __init__(self, directory: str) -> None:
        if not Path(directory).is_dir() or not os.access(directory, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"{_VARIABLE} must name a directory that exists and can be written, got {directory!r}: "
                "make it, empty, before the service starts"
            )
        self.directory: str = directory
        self._make: Callable[..., Any] = _value_class()
        self._owns: dict[str, _Own] = {}
        tell_after_fork(self, "forget")

    @classmethod
    def wanted(cls) -> SharedFiles | None:
        """Return the files that the environment asks for, or None if each process keeps its own numbers."""
        directory = os.environ.get(_VARIABLE)
        return cls(directory) if directory else None

    def place(self, *sample: Any, mode: str) -> tuple[_Own, int]:
        """Lay out one number, or find it where it is; return where its row is and its index there."""
        value = self._make(*sample, multiprocess_mode=mode)
        file: Any = value._file  # noqa: SLF001 - where the number stands is known to nobody else
        index: int = file._positions[value._key] // 8  # noqa: SLF001
        own = self._owns.setdefault(file._fname, _Own())  # noqa: SLF001
        if index >= len(own.row):
            with Path(file._fname).open("r+b") as opened:  # noqa: SLF001
                # A mapping of our own: prometheus_client closes its own one when the process has forked.
                own.row = memoryview(mmap.mmap(opened.fileno(), 0)).cast("d")
        return own, index

    def forget(self) -> None:
        """Use files of its own: this is a child process."""
        self._owns.clear()

    def render(self, *, openmetrics: bool) -> bytes:
        """Return what all processes have counted, including those that are gone."""
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - loads slowly
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415
        from prometheus_client.openmetrics import exposition  # noqa: PLC0415

        registry: Any = CollectorRegistry()
        MultiProcessCollector(registry, self.directory)  # type: ignore[no-untyped-call]  # theirs
        modern: Any = exposition
        text: bytes = modern.generate_latest(registry) if openmetrics else generate_latest(registry)
        return text


@cache
def _value_class() -> Callable[..., Any]:
    """Return what lays out numbers: prometheus_client's own class, so that its metrics and ours share each file."""
    from prometheus_client import values  # noqa: PLC0415 - loads slowly, and only this mode needs it

    theirs: Any = values
    # Where it was loaded before the variable was set, its own metrics do not use files.
    is_shared = getattr(theirs.ValueClass, "_multiprocess", False)
    chosen: Callable[..., Any] = theirs.ValueClass if is_shared else theirs.MultiProcessValue()
    return chosen


class _Moving(Series):
    """What series in files have in common."""

    __slots__ = ()

    @property
    def own(self) -> _Own:
        """Where its row is."""
        own: Any = self._own
        return cast("_Own", own)

    @property
    def at(self) -> Sequence[int]:
        """The indexes of its numbers there."""
        return (self._first,)

    def move(self, own: _Own, places: Sequence[int]) -> None:
        """Have its numbers there from now on."""
        self._first = places[0]
        self._own = own  # last: until then a writer finds nothing at all


class SharedCells:
    """The numbers of one metric, in files.

    Args:
        files: The files of this process.
        metric: What is counted.
        name: Its full name.
    """

    def __init__(self, files: SharedFiles, metric: Metric, name: str) -> None:
        self.own: Any = _Own()
        self._files = files
        self._metric = metric
        self._name = name
        self._labels = [label.name for label in metric.labels]
        self._bound: list[tuple[_Moving, int]] = []
        # What could not be written yet, by the index that a series has before it is laid out.
        self._waiting: defaultdict[int, float] = defaultdict(float)
        self._failed = False
        self._stale: deque[SharedGaugeSeries] = deque()
        self._lock = Lock()
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "forget")

    def reach(self, series: _Moving) -> Row:
        """Allocate the series' numbers and return the row with them.

        If that cannot be done now, its counts wait, and are added when it can.
        """
        if _is_inside_prometheus():
            return self._waiting  # this very thread holds the lock: a GC callback or signal handler interrupted it
        first = series.first if series.own is self.own else None
        try:
            places = [self._files.place(*sample, mode=self._metric.across) for sample in self._samples(series.values)]
        except Exception:  # noqa: BLE001 - such as a full disk; told once, and counting goes on in this process alone
            self._fail()
            return self._waiting
        own = places[0][0]
        series.move(own, [index for _, index in places])
        if first is not None:
            self._bound.append((series, first))
            for offset, (_, index) in enumerate(places):
                waited = self._waiting.pop(first + offset, 0)
                if waited:
                    own.row[index] += waited
        row: Row = own.row
        return row

    def _samples(self, values: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        kind, name, text = self._metric.kind, self._name, self._metric.help
        if kind == "histogram":
            for bound in (*map(repr, self._metric.buckets), "+Inf"):
                yield kind, name, f"{name}_bucket", (*self._labels, "le"), (*values, bound), text
            yield kind, name, f"{name}_sum", self._labels, values, text
        else:
            family = name.removesuffix("_total") if kind == "counter" else name
            yield kind, family, name, self._labels, values, text

    def _fail(self) -> None:
        if not self._failed:
            self._failed = True
            with contextlib.suppress(Exception):  # a log handler may raise; counting never does
                _log.exception("metric %s cannot be written to %s", self._name, self._files.directory)

    def prepare(self, series: _Moving) -> None:
        """Lay out a new series, so that every scrape sees it at 0."""
        self.reach(series)

    def read_all(self, series: Sequence[_Moving]) -> Iterator[Sequence[float]]:
        """Yield the numbers of several series as this process has counted them."""
        return map(self.read, series)

    def read(self, series: _Moving) -> Sequence[float]:
        """Return a series' numbers as this process has counted them."""
        row: Any = self._waiting if series.own is self.own else series.own.row
        return [row[index] for index in series.at]

    def forget(self) -> None:
        """Begin anew: this is a child process, and what was counted until now is in its parent's files."""
        bound, self._bound = self._bound, []
        for series, first in bound:
            series.move(self.own, range(first, first + series.width))
        self._waiting.clear()

    def show(self, gauge: SharedGaugeSeries) -> None:
        """Write what a gauge's function returns now. Never waits: the thread that does it serves the others, too."""
        self._stale.append(gauge)
        while self._stale and self._lock.acquire(blocking=False):
            try:
                self._show_locked()
            finally:
                self._lock.release()

    def _show_locked(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._stale.popleft().show()

    def __repr__(self) -> str:
        return f"<SharedCells of {self._name} in {self._files.directory}>"


class SharedCounterSeries(_Moving, CounterSeries):
    """One series of a counter, in files."""

    __slots__ = ()

    def _watched(self) -> type[CounterSeries]:
        return _WatchedSharedCounterSeries


class _WatchedSharedCounterSeries(WatchedCounterSeries, SharedCounterSeries):
    """A counter in files that objectives look at."""

    __slots__ = ()


class SharedGaugeSeries(_Moving, GaugeSeries):
    """One series of a gauge, in files."""

    __slots__ = ()

    def set(self, value: float) -> None:
        """Make `value` the value. Never raises. O(1)."""
        number = number_of(value, self._home.drop, signed=True)
        if number is not None:
            self._write(number)

    def clear(self) -> None:
        """Show NaN until it is set again: files cannot hold the absence of a number."""
        self._write(math.nan)

    def _write(self, number: float) -> None:
        try:
            self._own.row[self._first] = number
        except IndexError:
            row = self._cells.reach(self)
            row[self._first] = number

    def set_function(self, read: Callable[[], float]) -> None:
        """Call `read` for the value whenever `refresh` says that it has changed."""
        super().set_function(read)
        self.refresh()

    def refresh(self) -> None:
        """Let other processes see what the function returns now."""
        if self._read is not None:
            self._home.cells.show(self)  # type: ignore[attr-defined]  # ours are in files

    def show(self) -> None:
        """Write what the function returns now."""
        number = self._asked()
        if number is not None:
            self.set(number)

    def get(self) -> float:
        """Return the value in this process."""
        asked = self._asked()
        return self._cells.read(self)[0] if asked is None else asked


class SharedHistogramSeries(_Moving, HistogramSeries):
    """One series of a histogram, in files, where its numbers do not stand side by side. It keeps no exemplars."""

    __slots__ = ("_at",)

    def __init__(self, home: Home, values: tuple[str, ...], first: int, prefix: str) -> None:
        super().__init__(home, values, first, prefix)
        self._at: Sequence[int] = range(first, first + home.width)

    @property
    def at(self) -> Sequence[int]:
        """The indexes of its numbers there."""
        return self._at

    def move(self, own: _Own, places: Sequence[int]) -> None:
        """Have its numbers there from now on."""
        self._at = places
        self._sum = places[-1]
        super().move(own, places)

    def observe(self, value: float) -> None:
        """Take in one measurement, zero or more. Never raises. O(log buckets), any thread."""
        if type(value) in _PLAIN and 0 <= value <= MOST:
            try:
                row = self._own.row
                row[self._sum] += value
            except IndexError:
                row = self._cells.reach(self)
                row[self._sum] += value
            row[self._at[bisect_left(self._bounds, value)]] += 1
            return
        self._unusual(value)

    def _watched(self) -> type[HistogramSeries]:
        return _WatchedSharedHistogramSeries


class _WatchedSharedHistogramSeries(WatchedHistogramSeries, SharedHistogramSeries):
    """A histogram in files that objectives look at."""

    __slots__ = ()


_SHARED: dict[type[Series], type[Series]] = {
    CounterSeries: SharedCounterSeries,
    GaugeSeries: SharedGaugeSeries,
    HistogramSeries: SharedHistogramSeries,
}


def shared(kind: type[Series]) -> type[Series]:
    """Return the class of this kind of series where its numbers are in files."""
    return _SHARED[kind]


def _is_inside_prometheus() -> bool:
    """Return whether this thread was interrupted in the code that holds prometheus_client's lock."""
    frame = inspect.currentframe()  # the only way to know; done when a series begins, not when it counts
    while frame is not None:
        if frame.f_globals.get("__name__") == "prometheus_client.values":
            return True
        frame = frame.f_back
    return False
