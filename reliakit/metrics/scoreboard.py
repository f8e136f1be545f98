"""The windows that the objectives look through, and the verdicts that they give now."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.metrics.family import Gauge, Histogram
from reliakit.metrics.objectives import (
    AtMost,
    Below,
    Complete,
    Count,
    Objective,
    Ratio,
    Term,
    Zero,
)
from reliakit.metrics.verdicts import Reading, Verdict, judge
from reliakit.metrics.windows import Occurrences, Span, Window, Within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliakit.core.clock import Clock
    from reliakit.metrics.family import AnyFamily

    Labels = tuple[tuple[str, tuple[str, ...]], ...]

__all__ = ["Scoreboard", "thresholds"]


class Scoreboard:
    """Judges objectives. Objectives are added under the caller's lock; judging is safe from any thread.

    Args:
        find: Returns the metric of a name, a counter rather than a histogram, or None.
        find_histogram: Returns the histogram of a name, or None.
        clock: Drives the windows.
    """

    def __init__(
        self,
        find: Callable[[str], AnyFamily | None],
        find_histogram: Callable[[str], AnyFamily | None],
        clock: Clock,
    ) -> None:
        self._find = find
        self._find_histogram = find_histogram
        self._clock = clock
        self._objectives: dict[str, tuple[Objective, float]] = {}
        # Counts of the same series over the same time share one window, because each costs something at every event.
        self._tallies: dict[tuple[AnyFamily, Labels, Span], dict[float, Window]] = {}
        self._found: dict[tuple[Term, Span], Window] = {}

    def add(self, objective: Objective) -> None:
        """Judge this objective from now on, replacing one with the same name."""
        goal, span = objective.goal, _span(objective)
        if isinstance(goal, AtMost):
            self._check_gauge(goal.metric)
        for term in _terms(objective):
            self._open(term, span)
        self._objectives[objective.name] = (objective, self._clock.monotonic())

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Every objective, in the order in which they were added."""
        return tuple(objective for objective, _ in self._objectives.copy().values())

    def verdicts(self) -> list[Verdict]:
        """Return the verdict on every objective, in the order in which they were added."""
        return [
            judge(objective, self._read(objective, since)) for objective, since in self._objectives.copy().values()
        ]

    def _open(self, term: Term, span: Span) -> None:
        if (term, span) in self._found:
            return
        family = (self._find_histogram if term.measured else self._find)(term.metric)
        if family is None or isinstance(family, Gauge):
            kind = "histogram" if term.measured else "counter or histogram"
            raise ConfigurationError(
                f"metric {term.metric!r} must be a declared {kind}: declare it before its objective"
            )
        known = {label.name for label in family.metric.labels}
        unknown = [name for name, _ in term.labels if name not in known]
        if unknown:
            raise ConfigurationError(f"metric {family.name} has no label {unknown[0]!r}, only {sorted(known)}")
        if math.isfinite(term.bound) and isinstance(family, Histogram) and term.bound not in family.bounds:
            raise ConfigurationError(
                f"metric {family.name} has no bucket bound {term.bound}: declare it with objectives=[{term.bound}],"
                " or, if it is one of reliakit's own, give the objective to Metrics(objectives=[...])"
            )
        self._found[term, span] = self._tally(family, term, span)

    def _tally(self, family: AnyFamily, term: Term, span: Span) -> Window:
        """Return what counts a term: something that counts it already, or else something new."""
        key = (family, term.labels, span)
        tallies = self._tallies.setdefault(key, {})
        measured = isinstance(family, Histogram)
        if measured and tallies and math.isinf(term.bound):
            return next(iter(tallies.values()))  # all that is counted up to some bound is counted on the way
        tally = tallies.get(term.bound)
        if tally is None:
            tally = tallies[term.bound] = self._make(family, term, span)
            family.watch(term.wants, tally)
        return tally

    def _make(self, family: AnyFamily, term: Term, span: Span) -> Window:
        if not isinstance(family, Histogram):
            return Window(span, self._clock)
        if math.isfinite(term.bound):
            return Within(span, term.bound, self._clock)
        return Occurrences(span, self._clock)

    def _check_gauge(self, name: str) -> None:
        family = self._find(name)
        if not isinstance(family, Gauge) or family.metric.labels:
            raise ConfigurationError(f"metric {name!r} must be a declared gauge without labels")

    def _read(self, objective: Objective, since: float) -> Reading:
        goal, span = objective.goal, _span(objective)
        if isinstance(goal, AtMost):
            gauge = self._find(goal.metric)
            value = gauge.series[0].get() if isinstance(gauge, Gauge) and gauge.series else math.nan
            return Reading(None if math.isnan(value) else value, None)
        part, whole = _counts(goal)
        # The part is read before the whole, so that what happens in between cannot make it the greater one.
        held, held_in_period = self._sum(part, span)
        total, total_in_period = (None, 0.0) if whole is None else self._sum(whole, span)
        seen = min(objective.period, self._clock.monotonic() - since)
        return Reading(held, total, held_in_period, total_in_period, seen, self._quantile(goal, span))

    def _quantile(self, goal: Below | Ratio | Zero | Complete, span: Span) -> float | None:
        if not isinstance(goal, Below):
            return None
        tally = self._found[goal.good.plus[0], span]
        return tally.quantile(goal.target) if isinstance(tally, Within) else None

    def _sum(self, count: Count, span: Span) -> tuple[float, float]:
        """Return what the count holds in the window and in the period."""
        plus = [self._totals(term, span) for term in count.plus]
        minus = [self._totals(term, span) for term in count.minus]
        window = sum(now for now, _ in plus) - sum(now for now, _ in minus)
        period = sum(long for _, long in plus) - sum(long for _, long in minus)
        if count.instead is None:
            return window, period
        other, other_period = self._sum(count.instead, span)
        return max(window, other), max(period, other_period)

    def _totals(self, term: Term, span: Span) -> tuple[float, float]:
        return self._found[term, span].totals(1 if math.isfinite(term.bound) else 0)

    def __repr__(self) -> str:
        return f"<Scoreboard of {', '.join(self._objectives)}>"


def thresholds(objectives: Iterable[Objective]) -> list[Term]:
    """Return what must become a bucket bound, so that the objectives can be counted exactly from the buckets."""
    return [term for objective in objectives for term in _terms(objective) if math.isfinite(term.bound)]


def _span(objective: Objective) -> Span:
    return Span(objective.window, objective.period)


def _counts(goal: Below | Ratio | Zero | Complete) -> tuple[Count, Count | None]:
    """Return what a goal counts, and the whole that it is a part of."""
    match goal:
        case Below():
            return goal.good, goal.total
        case Ratio():
            return goal.bad, goal.total
        case Complete():
            return goal.tracked, goal.seen
        case Zero():
            return goal.bad, goal.among


def _terms(objective: Objective) -> list[Term]:
    if isinstance(objective.goal, AtMost):
        return []
    part, whole = _counts(objective.goal)
    return [*part.terms, *(() if whole is None else whole.terms)]
