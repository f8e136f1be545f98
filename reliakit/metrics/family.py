"""A metric with all its series: finds or makes the one for given labels, but never more than there is room for.

```
labels("auth", "login", "commit")
   │ seen spelled like this before ─► that series          (a dictionary lookup)
   └ coerce ─► fold ─► bound each value ─► series, made if there is room, else the one named _other
```
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast

from reliakit.metrics.cells import Cells
from reliakit.metrics.labels import OTHER, Label, Places, label_text
from reliakit.metrics.series import CounterSeries, GaugeSeries, HistogramSeries, Series, lost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from reliakit.metrics.metric import Metric
    from reliakit.metrics.series import Store, Tally
    from reliakit.metrics.shared import SharedFiles

__all__ = ["AnyFamily", "Counter", "Family", "Gauge", "Histogram", "Registry", "escaped"]

S = TypeVar("S", bound=Series)

_log = logging.getLogger("reliakit")
# How many series are summed up in one step.
_AT_ONCE = 100


class Registry(NamedTuple):
    """What all metrics of one registry share.

    Attributes:
        drop: Counts what could not be counted, by reason.
        now: Returns the seconds since the epoch.
        files: The shared files, or None if the numbers are in this process alone.
    """

    drop: Callable[[str], None]
    now: Callable[[], float]
    files: SharedFiles | None = None


class Family(Generic[S]):
    """The part that all kinds of metrics share. Made by `Metrics.counter`, `.gauge` and `.histogram`."""

    _kind: type[S]
    width: int = 1

    def __init__(self, metric: Metric, name: str, max_series: int, registry: Registry) -> None:
        self.metric = metric
        self.name = name
        self.drop: Callable[[str], None] = registry.drop
        self.now: Callable[[], float] = registry.now
        self.cells: Store = Cells()
        self.bounds: tuple[float, ...] = metric.buckets
        self.series: list[S] = []
        self.label_names: tuple[str, ...] = tuple(label.name for label in metric.labels)
        self._name_set = frozenset(self.label_names)
        # One call into C for all values; with a single name it would not return a tuple.
        self._pick: Callable[[Mapping[str, object]], tuple[object, ...]] | None = (
            itemgetter(*self.label_names) if len(self.label_names) > 1 else None
        )
        self._values = tuple(_Values(label) for label in metric.labels)
        # Overflow keeps the few values that are known beforehand, so the sums by status stay right; and all but the
        # labels without a bound, while a tenth of the room lasts, so that a flood of error types names its service.
        combinations = math.prod(len(label.values) + 1 for label in metric.labels if _survives(label))
        is_mixed = len({label.limit is None for label in metric.labels}) > 1
        reserve = max_series // 10 if is_mixed else 0
        self._places: Places[S] = Places(max(0, max_series - combinations - reserve) if metric.labels else 1)
        # Their keys are shared, or a series that says _other by its own values would stand in a scrape twice.
        self._reserve: Places[S] = Places(reserve, self._places)
        self._overflow: Places[S] = Places(None, self._places)  # only ever asked for one of those combinations
        self._lookup: dict[tuple[Any, ...], S] = {}
        self._lookup_cap = 2 * max_series
        self._next_cell = itertools.count().__next__
        self._watchers: list[Callable[[Mapping[str, str]], Tally | None]] = []
        self._full = False
        self._lost: S = cast("S", lost(self._kind)(self, (), 0, name))
        if registry.files is not None:
            self._share(registry.files)
        self._give_birth()

    def _share(self, files: SharedFiles) -> None:
        from reliakit.metrics.shared import SharedCells, shared  # noqa: PLC0415 - prometheus_client loads slowly

        self.cells = SharedCells(files, self.metric, self.name)
        self._kind = cast("type[S]", shared(self._kind))

    def labels(self, /, *values: object, **named: object) -> S:
        """Return the series for these label values. Keep it: writing to it is the fast way.

        A label that is left out is empty. Values beyond a label's bound, or beyond the metric's room, lead to the
        series that says `_other`. Labels that the metric does not have lead to a series whose writes are dropped and
        counted. Never raises.

        Args:
            values: Label values in the declared order.
            named: The same values by name, instead of `values`.
        """
        if named:
            chosen = None if values else self._by_name(named)
            if chosen is None:
                return self._lost
            values = chosen
        try:
            return self._lookup[values]
        except Exception:  # noqa: BLE001 - not seen before, or of a type whose hash or equality is broken
            return self._find(values)

    def _by_name(self, named: dict[str, object]) -> tuple[object, ...] | None:
        """Return the values in the declared order, empty for one left out; None if a label is unknown."""
        if self._pick is not None and len(named) == len(self.label_names):
            try:
                return self._pick(named)
            except KeyError:
                return None
        if not named.keys() <= self._name_set:
            return None
        return tuple([named.get(name, "") for name in self.label_names])

    def _find(self, values: tuple[object, ...]) -> S:
        if not values:
            values = ("",) * len(self.label_names)
        if len(values) != len(self.label_names):
            return self._lost
        key = tuple([bound.admit(value) for bound, value in zip(self._values, values, strict=True)])
        series = self._places.find(key)
        if series is None:
            series = self._add(key)
        # Only spellings that cannot be confused are cached, and never many of them.
        if len(self._lookup) < self._lookup_cap and series.values == key and _is_plain(values, key):
            self._lookup[values] = series
        return series

    def _add(self, key: tuple[str, ...]) -> S:
        series = self._place(key)
        if series is None:
            return self._spill(key)
        if self.metric.kind == "counter":
            self._add_siblings(key)
        return series

    def _add_siblings(self, key: tuple[str, ...], /) -> None:
        """Make the other known values of this series exist at 0: an alert cannot see a counter that starts at 1."""
        choices = [label.born or (value,) for label, value in zip(self.metric.labels, key, strict=True)]
        for sibling in itertools.product(*choices):
            if self._places.find(sibling) is None:
                self._place(sibling)

    def _place(self, key: tuple[str, ...], places: Places[S] | None = None) -> S | None:
        places = self._places if places is None else places
        if not places.reserve():
            return places.find(key)
        fresh = self._make(key)
        self._let_watch(fresh)
        kept = places.put(key, fresh)
        if kept is fresh:
            self.series.append(fresh)
            # An objective may have come between: it found neither this series in the list nor was it found.
            self._let_watch(fresh)
        return kept

    def _spill(self, key: tuple[str, ...]) -> S:
        if not self._full:
            self._full = True
            with contextlib.suppress(Exception):  # a log handler may raise; counting never does
                _log.warning("metric %s is full: further label values are counted as %s", self.name, OTHER)
        for places, keeps in ((self._reserve, _is_bounded), (self._overflow, _survives)):
            spilled = tuple(
                value if keeps(label) else OTHER for label, value in zip(self.metric.labels, key, strict=True)
            )
            series = places.find(spilled) or self._place(spilled, places)
            if series is not None:
                return series
        raise AssertionError("overflow has room without limit")

    def _make(self, key: tuple[str, ...]) -> S:
        text = ",".join(f'{name}="{escaped(value)}"' for name, value in zip(self.label_names, key, strict=True))
        series = self._kind(self, key, self._next_cell() * self.width, text)
        self.cells.prepare(series)
        return series

    def _give_birth(self) -> None:
        labels = self.metric.labels
        if self.metric.absent or (labels and self.metric.kind == "histogram"):
            return
        if all(label.born for label in labels) or self.metric.born:
            for key in itertools.product(*(label.born or ("",) for label in labels)):
                self._place(key)

    def watch(self, wants: Callable[[Mapping[str, str]], bool], tally: Tally) -> None:
        """Make a window count along all series, present and future, whose labels `wants` accepts."""
        self.tell(lambda labels: tally if wants(labels) else None)

    def tell(self, tally_for: Callable[[Mapping[str, str]], Tally | None]) -> None:
        """Make something count along each series, present and future.

        Args:
            tally_for: Returns what receives the numbers of the series with these labels, the same or an equal one
                each time, or None to leave the series alone.
        """
        self._watchers.append(tally_for)
        for series in self.series[:]:
            self._let_watch(series)

    def _let_watch(self, series: S) -> None:
        for tally_for in self._watchers:
            tally = tally_for(dict(zip(self.label_names, series.values, strict=True)))
            if tally is not None:
                series.watch(tally)

    def read(self) -> Iterator[tuple[S, Sequence[float]]]:
        """Yield all series with their numbers, a few at a time, so that no step holds others up for long."""
        series = self.series[:]
        for start in range(0, len(series), _AT_ONCE):
            some = series[start : start + _AT_ONCE]
            yield from zip(some, self.cells.read_all(some), strict=True)

    def __repr__(self) -> str:
        labels = ", ".join(self.label_names)
        return f"<{type(self).__name__} {self.name}{{{labels}}} {len(self.series)} series>"


class Counter(Family[CounterSeries]):
    """A number that only grows. `labels(...)` returns a bound series; without labels, count on the metric itself."""

    _kind = CounterSeries

    def inc(self, amount: float = 1) -> None:
        """Add `amount` to the series without labels. Never raises."""
        self.labels().inc(amount)


class Gauge(Family[GaugeSeries]):
    """A number that goes up and down. `labels(...)` returns a bound series; without labels, set the metric itself."""

    _kind = GaugeSeries

    def set(self, value: float) -> None:
        """Set the series without labels to `value`. Never raises."""
        self.labels().set(value)

    def inc(self, amount: float = 1) -> None:
        """Add `amount` to the series without labels. Never raises."""
        self.labels().inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount` from the series without labels. Never raises."""
        self.labels().dec(amount)

    def set_function(self, read: Callable[[], float]) -> None:
        """Call `read` at every scrape for the value of the series without labels."""
        self.labels().set_function(read)


class Histogram(Family[HistogramSeries]):
    """Measurements counted in buckets. `labels(...)` returns a bound series; without labels, observe here."""

    _kind = HistogramSeries

    def __init__(self, metric: Metric, name: str, max_series: int, registry: Registry) -> None:
        self.width: int = len(metric.buckets) + 2
        super().__init__(metric, name, max_series, registry)

    def observe(self, value: float) -> None:
        """Add one measurement to the series without labels. Never raises."""
        self.labels().observe(value)


AnyFamily = Counter | Gauge | Histogram


class _Values:
    """The values that one label has taken, and whether another one is let in."""

    __slots__ = ("_fold", "_known", "_places")

    def __init__(self, label: Label) -> None:
        self._known = frozenset((*label.values, *label.born))
        self._fold = label.fold
        self._places: Places[str] | None = None if label.limit is None else Places(label.limit)

    def admit(self, value: object) -> str:
        """Return the text that stands for `value`; `_other` if the label is full."""
        text = label_text(value)
        if self._fold is not None and text != OTHER:
            text = _folded(self._fold, text)
        if self._places is None or text in self._known or text in {"", OTHER} or self._places.find(text) is not None:
            return text
        return self._places.add(text, text) or OTHER


def _folded(fold: Callable[[str], str], text: str) -> str:
    try:
        return label_text(fold(text))
    except Exception:  # noqa: BLE001 - a fold of the user's own may raise; its values land in the overflow value
        return OTHER


def _is_bounded(label: Label) -> bool:
    """Return whether this label lets in so many values and no more."""
    return label.limit is not None


def _survives(label: Label) -> bool:
    """Return whether this label keeps its value when the metric is full."""
    return label.is_closed and bool(label.born)


def _is_plain(raw: tuple[object, ...], key: tuple[str, ...]) -> bool:
    """Return whether these raw values are short, and equal no values with another text, as 1 equals True."""
    return all(
        value is None or value is text or (type(value) is str and value == text) or _is_ordinary_int(value)
        for value, text in zip(raw, key, strict=True)
    )


def _is_ordinary_int(value: object) -> bool:
    # By its type: a proxy may raise when isinstance() asks for its __class__.
    return issubclass(type(value), int) and 1 < cast("int", value) < 1 << 30


def escaped(value: str) -> str:
    """Return a label value as it stands between quotes in both text formats."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
