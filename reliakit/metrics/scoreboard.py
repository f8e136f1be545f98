"""Which windows the objectives look through, and what they show now."""

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
    Reading,
    Term,
    Verdict,
    judge,
)
from reliakit.metrics.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliakit.core.clock import Clock
    from reliakit.metrics.family import AnyFamily

__all__ = ["Scoreboard", "thresholds"]


class Scoreboard:
    """Judges objectives. Objectives are added under the caller's lock; judging is safe from any thread.

    Args:
        find: Returns the metric of a name, a counter rather than a histogram, or None.
        find_histogram: Returns the histogram of a name, or None.
        clock: What drives the windows.
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
        self._objectives: dict[str, Objective] = {}
        self._windows: dict[tuple[Term, float], Window] = {}

    def add(self, objective: Objective) -> None:
        """Judge this objective from now on, instead of one with the same name."""
        if isinstance(objective.goal, AtMost):
            self._check_gauge(objective.goal.metric)
        for term in _terms(objective):
            self._open(term, objective.window)
        self._objectives[objective.name] = objective

    def verdicts(self) -> list[Verdict]:
        """Return the verdict on every objective, in the order in which they were added."""
        return [judge(objective, self._read(objective)) for objective in tuple(self._objectives.values())]

    def _open(self, term: Term, window: float) -> None:
        if (term, window) in self._windows:
            return
        measured = math.isfinite(term.bound)
        family = (self._find_histogram if measured else self._find)(term.metric)
        if family is None or isinstance(family, Gauge):
            kind = "histogram" if measured else "counter or histogram"
            raise ConfigurationError(
                f"metric {term.metric!r} must be a declared {kind}: declare it before its objective"
            )
        known = {label.name for label in family.metric.labels}
        unknown = [name for name, _ in term.labels if name not in known]
        if unknown:
            raise ConfigurationError(f"metric {family.name} has no label {unknown[0]!r}, only {sorted(known)}")
        if measured and isinstance(family, Histogram) and term.bound not in family.bounds:
            raise ConfigurationError(
                f"metric {family.name} has no bucket bound {term.bound}: declare it with objectives=[{term.bound}]"
            )
        opened = self._windows[term, window] = Window(window, self._clock)
        family.watch(term.wants, opened, term.bound)

    def _check_gauge(self, name: str) -> None:
        family = self._find(name)
        if not isinstance(family, Gauge) or family.metric.labels:
            raise ConfigurationError(f"metric {name!r} must be a declared gauge without labels")

    def _read(self, objective: Objective) -> Reading:
        goal = objective.goal
        window = objective.window
        # The part is read before the whole: what happens in between must not make it the greater one.
        match goal:
            case Below():
                return Reading(self._sum(goal.good, window), self._sum(goal.total, window))
            case Ratio():
                return Reading(self._sum(goal.bad, window), self._sum(goal.total, window))
            case Complete():
                return Reading(self._sum(goal.tracked, window), self._sum(goal.seen, window))
            case AtMost():
                gauge = self._find(goal.metric)
                series = gauge.series[:] if isinstance(gauge, Gauge) else []
                return Reading(series[0].get() if series else None, None)
            case _:
                bad = self._sum(goal.bad, window)
                return Reading(bad, None if goal.among is None else self._sum(goal.among, window))

    def _sum(self, count: Count, window: float) -> float:
        plus = sum(self._windows[term, window].total() for term in count.plus)
        own = plus - sum(self._windows[term, window].total() for term in count.minus)
        return own if count.instead is None else max(own, self._sum(count.instead, window))

    def __repr__(self) -> str:
        return f"<Scoreboard of {', '.join(self._objectives)}>"


def thresholds(objectives: Iterable[Objective]) -> list[Term]:
    """Return what must become a bucket bound, so that the objectives can be counted exactly from the buckets."""
    return [term for objective in objectives for term in _terms(objective) if math.isfinite(term.bound)]


def _terms(objective: Objective) -> list[Term]:
    goal = objective.goal
    match goal:
        case Below():
            counts = [goal.good, goal.total]
        case Ratio():
            counts = [goal.bad, goal.total]
        case Complete():
            counts = [goal.seen, goal.tracked]
        case AtMost():
            counts = []
        case _:
            counts = [goal.bad] if goal.among is None else [goal.bad, goal.among]
    return [term for count in counts for term in count.terms]
