"""Objectives as values.

```
objective            looks at                                   met when
below(m, s, share)   the share of measurements up to s seconds  the interval lies in [share, 1]
ratio(bad, total, l) the share of bad ones                      the interval lies in [0, l]
zero(m)              how many there were                        none
complete(seen, trk)  the share that was tracked                 all
at_most(gauge, s)    a gauge                                    its value is up to s
```

A count names metrics, labels and thresholds only, so the same objective is judged in the process (`verdicts.py`) and
written down for Prometheus (`monitoring/`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reliakit.metrics.family import AnyFamily

__all__ = [
    "AtMost",
    "Below",
    "Complete",
    "Count",
    "Goal",
    "Objective",
    "Ratio",
    "Term",
    "Zero",
    "at_most",
    "below",
    "complete",
    "count",
    "ratio",
    "zero",
]


@dataclass(frozen=True, slots=True)
class Term:
    """The part of a metric that is counted: series with these label values, measurements up to `bound`.

    A name may stand for both a counter and a histogram; `measured` means the histogram.
    """

    metric: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bound: float = math.inf
    measured: bool = False

    def wants(self, labels: Mapping[str, str]) -> bool:
        """Return whether a series with these labels is meant."""
        return all(labels.get(name) in values for name, values in self.labels)


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened: terms that are added, minus terms that are subtracted. Made by `count`.

    `a | b` counts the same thing in two places, of which the one with more holds.
    """

    plus: tuple[Term, ...]
    minus: tuple[Term, ...] = ()
    instead: Count | None = None

    def __add__(self, other: Count) -> Count:
        _check_single(self, other)
        return Count((*self.plus, *other.plus), (*self.minus, *other.minus))

    def __sub__(self, other: Count) -> Count:
        _check_single(self, other)
        return Count((*self.plus, *other.minus), (*self.minus, *other.plus))

    def __or__(self, other: Count) -> Count:
        last = other if self.instead is None else self.instead | other
        return Count(self.plus, self.minus, last)

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term that it uses in some way."""
        return (*self.plus, *self.minus, *(() if self.instead is None else self.instead.terms))


def _check_single(*counts: Count) -> None:
    if any(one.instead is not None for one in counts):
        raise ConfigurationError("counts are added and subtracted before they are joined by |")


def count(metric: str | AnyFamily, /, **labels: str | tuple[str, ...]) -> Count:
    """Count how often a counter or histogram counted in the window; counts can be added and subtracted.

    Args:
        metric: A metric's name, or the handle of a declared one.
        labels: Only series with this label value, or one of these values.
    """
    name = _name(metric)
    chosen = tuple((label, (value,) if isinstance(value, str) else tuple(value)) for label, value in labels.items())
    return Count((Term(name, chosen),))


def _name(metric: str | AnyFamily) -> str:
    """Return the name of a metric that is given by its name or its handle."""
    return checks.named("metric", metric if isinstance(metric, str) else getattr(metric, "name", ""))


@dataclass(frozen=True, slots=True)
class Below:
    """See `below`."""

    good: Count
    total: Count
    seconds: float
    target: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """See `ratio`."""

    bad: Count
    total: Count
    target: float


@dataclass(frozen=True, slots=True)
class Zero:
    """See `zero`."""

    bad: Count
    among: Count | None
    target: float = 0.0


@dataclass(frozen=True, slots=True)
class Complete:
    """See `complete`."""

    seen: Count
    tracked: Count
    target: float = 1.0


@dataclass(frozen=True, slots=True)
class AtMost:
    """See `at_most`."""

    metric: str
    target: float


Goal = Below | Ratio | Zero | Complete | AtMost


def below(metric: str | AnyFamily, seconds: float, share: float) -> Below:
    """Return the goal that at least `share` of a histogram's measurements are `seconds` or less.

    "95 % below 0.1 s" means the same as "the 95th percentile is below 0.1 s", but can be counted exactly: `seconds`
    is made a bucket bound.

    Args:
        metric: A histogram.
        seconds: The threshold, in the histogram's unit.
        share: The share of measurements that must be within it, above 0 up to 1.
    """
    bound = checks.seconds("seconds", seconds)
    (term,) = count(metric).plus
    good, total = (replace(term, bound=up_to, measured=True) for up_to in (bound, math.inf))
    return Below(Count((good,)), Count((total,)), bound, checks.share("share", share))


def ratio(bad: Count | str | AnyFamily, total: Count | str | AnyFamily, limit: float) -> Ratio:
    """Return the goal that at most the share `limit` of `total` is `bad`.

    Args:
        bad: What must be rare: a counter, or a `count(...)` of one.
        total: What it is a part of.
        limit: The largest share of bad ones that meets the goal, from 0 up to 1.
    """
    return Ratio(_count(bad), _count(total), checks.share("limit", limit, zero=True))


def zero(metric: Count | str | AnyFamily, among: Count | str | AnyFamily | None = None) -> Zero:
    """Return the goal that something never happens.

    Args:
        metric: A counter, or a `count(...)` of one.
        among: What it could have happened to. With it, the goal is met once there were enough of those; without it,
            as long as nothing happened.
    """
    return Zero(_count(metric), None if among is None else _count(among))


def complete(seen: Count | str | AnyFamily, tracked: Count | str | AnyFamily) -> Complete:
    """Return the goal that everything that was `seen` was also `tracked`.

    Args:
        seen: A counter, or a `count(...)` of one.
        tracked: A counter of what was tracked, or a `count(...)` of one.
    """
    return Complete(_count(seen), _count(tracked))


def at_most(metric: str | AnyFamily, limit: float) -> AtMost:
    """Return the goal that a gauge without labels is at most `limit`.

    Nothing is known while the gauge has no sample: one of reliakit's own has none until it is set; one of yours
    begins at 0 and has none after `clear()`.
    """
    return AtMost(_name(metric), checks.seconds("limit", limit, zero=True))


def _count(what: Count | str | AnyFamily) -> Count:
    return what if isinstance(what, Count) else count(what)


@dataclass(frozen=True, slots=True)
class Objective:
    """A goal with a name, judged over a sliding window.

    Args:
        name: Its name in verdicts and dashboards.
        goal: What `below`, `ratio`, `zero`, `complete` or `at_most` returned.
        window: How many seconds the verdict looks back.
        minimum: The fewest events that allow a verdict, at least 1.
        period: How many seconds the error budget covers, 30 days by default; never less than the window.
        help: One sentence for people that says what is wanted.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    name: str
    goal: Goal
    window: float = field(default=300.0, kw_only=True)
    minimum: int = field(default=30, kw_only=True)
    period: float = field(default=30 * 86_400.0, kw_only=True)
    help: str = field(default="", kw_only=True, compare=False)

    def __post_init__(self) -> None:
        checks.named("name", self.name)
        if not isinstance(self.goal, Goal):
            raise ConfigurationError(f"goal must come from below(), ratio(), zero() or complete(), got {self.goal!r}")
        checks.seconds("window", self.window)
        checks.count("minimum", self.minimum)
        object.__setattr__(self, "period", max(self.window, checks.seconds("period", self.period)))
