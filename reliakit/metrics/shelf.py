"""Every metric of one registry, under all the names that it answers to."""

from __future__ import annotations

from threading import RLock
from typing import TYPE_CHECKING, TypeVar

from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.metrics.catalogue import CATALOGUE
from reliakit.metrics.declare import aliases, reserved
from reliakit.metrics.family import AnyFamily, Counter, Gauge, Histogram, Registry
from reliakit.metrics.scoreboard import thresholds
from reliakit.metrics.sources import Naming, SourceCounter

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.metrics.metric import Metric
    from reliakit.metrics.objectives import Objective

__all__ = ["Shelf"]

F = TypeVar("F", Counter, Gauge, Histogram)

_UNBOUNDED = 1 << 30
_KINDS: dict[str, type[AnyFamily]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
_SECURITY = next(metric for metric in CATALOGUE if metric.name == "security_total")


class Shelf:
    """Declares metrics and finds them. Only declaring takes a lock.

    Args:
        namespace: Goes before the names of the catalogue.
        max_series: How many series a metric may hold.
        naming: How sources are shown.
        registry: What all the metrics share.
        objectives: Their thresholds become bucket bounds of the catalogue.

    Attributes:
        families: All metrics by their full names.
        counted: What `increment` takes, by every name.
        observed: What `observe` takes, by every name.
    """

    def __init__(
        self, namespace: str, max_series: int, naming: Naming, registry: Registry, objectives: list[Objective]
    ) -> None:
        self._namespace = namespace
        self._max_series = max_series
        self._naming = naming
        self._registry = registry
        self._lock = RLock()  # a GC callback or signal handler may declare what it counts
        renew_locks_after_fork(self, "_lock")
        self.families: dict[str, AnyFamily] = {}
        self.counted: dict[str, Counter | Gauge] = {}
        self.observed: dict[str, Histogram | Gauge] = {}
        self._owners: dict[str, str] = {}
        self._hear: list[Callable[[AnyFamily], object]] = []
        self._catalogue: dict[str, AnyFamily] = {
            metric.name: self._declare(metric, self.full(metric.name)) for metric in self._with_thresholds(objectives)
        }

    def custom(self, metric: Metric) -> AnyFamily:
        """Return the metric that is declared like this, a new one unless it is known.

        Raises:
            ConfigurationError: One of its names is taken by something else.
        """
        with self._lock:
            known = self.families.get(metric.name)
            if known is not None and _is_same(known.metric, metric):
                return known
            family = self._declare(metric, metric.name)
            hear = tuple(self._hear)
        for tell in hear:
            tell(family)
        return family

    def forward(self, hear: Callable[[AnyFamily], object]) -> None:
        """Hand over every metric, present and to come, each once."""
        with self._lock:
            self._hear.append(hear)
            families = self.all()
        for family in families:
            hear(family)

    def counter(self, name: str) -> Counter:
        """Return a counter of the catalogue."""
        return self._own(name, Counter)

    def gauge(self, name: str) -> Gauge:
        """Return a gauge of the catalogue."""
        return self._own(name, Gauge)

    def histogram(self, name: str) -> Histogram:
        """Return a histogram of the catalogue."""
        return self._own(name, Histogram)

    def _own(self, name: str, kind: type[F]) -> F:
        family = self._catalogue[name]
        assert isinstance(family, kind), name
        return family

    def find(self, name: str) -> AnyFamily | None:
        """Return the metric that answers to this name, a counter rather than a histogram."""
        return self.counted.get(name) or self.observed.get(name)

    def all(self) -> list[AnyFamily]:
        """Return all metrics in the order in which they were declared."""
        return list(self.families.copy().values())

    def full(self, name: str) -> str:
        """Return the full name of a metric of the catalogue."""
        return f"{self._namespace}_{name}" if self._namespace else name

    def _declare(self, metric: Metric, full: str) -> AnyFamily:
        for name in sorted(reserved(metric, full)):
            if name in self._owners:
                raise ConfigurationError(
                    f"metric {full} clashes with {self._owners[name]} over {name}: use another name"
                )
        room = _UNBOUNDED if metric.fixed else self._max_series
        if metric is _SECURITY:
            family: AnyFamily = SourceCounter(metric, full, room, self._registry, self._naming)
        else:
            family = _KINDS[metric.kind](metric, full, room, self._registry)
        self._owners.update(dict.fromkeys(reserved(metric, full), full))
        self.families[full] = family
        for alias in self._names(metric, full):
            if isinstance(family, Counter | Gauge):
                self.counted.setdefault(alias, family)
            if isinstance(family, Histogram | Gauge):
                self.observed.setdefault(alias, family)
        return family

    def _names(self, metric: Metric, full: str) -> set[str]:
        """Return all names that a metric answers to: with and without suffix, with and without the namespace."""
        short = aliases(metric)
        namespace = full.removesuffix(metric.name)
        return {*short, *(f"{namespace}{name}" for name in short)}

    def _with_thresholds(self, objectives: list[Objective]) -> list[Metric]:
        """Return the catalogue, the objectives' thresholds made bucket bounds."""
        wanted = thresholds(objectives)
        found: list[Metric] = []
        for metric in CATALOGUE:
            names = self._names(metric, self.full(metric.name))
            bounds = tuple(term.bound for term in wanted if term.metric in names)
            found.append(metric.with_bounds(bounds) if metric.kind == "histogram" else metric)
        return found

    def __repr__(self) -> str:
        return f"<Shelf of {len(self.families)} metrics>"


def _is_same(one: Metric, other: Metric) -> bool:
    return (one.kind, one.unit, one.labels, one.buckets) == (other.kind, other.unit, other.labels, other.buckets)
