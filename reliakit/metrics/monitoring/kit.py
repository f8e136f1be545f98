"""What all output for Prometheus and Grafana is made from: the metrics, the objectives, their names in a scrape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.metrics.catalogue import CATALOGUE
from reliakit.metrics.declare import aliases
from reliakit.metrics.defaults import DEFAULTS
from reliakit.metrics.objectives import Count

if TYPE_CHECKING:
    from reliakit.metrics.metric import Metric
    from reliakit.metrics.objectives import Objective, Term
    from reliakit.metrics.registry import Metrics

__all__ = ["Kit", "duration", "quoted", "simplified"]


@dataclass(frozen=True, slots=True)
class Kit:
    """The declarations behind rules, tests, dashboard and pages.

    Attributes:
        metrics: Every metric.
        objectives: Every objective.
        namespace: What stands before the metrics' names.
        bare: Names of metrics of one's own, before which nothing stands.
    """

    metrics: tuple[Metric, ...] = CATALOGUE
    objectives: tuple[Objective, ...] = DEFAULTS
    namespace: str = "reliakit"
    bare: frozenset[str] = frozenset()

    @classmethod
    def of(cls, metrics: Metrics) -> Kit:
        """Return what one `Metrics` has declared, your own metrics and objectives included."""
        declared = metrics.declared
        own = frozenset(name for name, metric in declared.items() if name == metric.name)
        return cls(
            tuple(declared.values()), metrics.objectives, metrics.namespace, own if metrics.namespace else frozenset()
        )

    def full(self, name: str) -> str:
        """Return a metric's name as it stands in a scrape."""
        return f"{self.namespace}_{name}" if self.namespace and name not in self.bare else name

    def find(self, name: str, *, measured: bool = False) -> Metric:
        """Return the metric that answers to this name, a counter rather than a histogram unless it is `measured`."""
        kinds = ("histogram",) if measured else ("counter", "gauge", "histogram")
        for kind in kinds:
            for metric in self.metrics:
                if metric.kind == kind and name in (self.full(metric.name), *aliases(metric)):
                    return metric
        raise ConfigurationError(f"no metric answers to {name!r}")

    def selector(self, term: Term) -> str:
        """Return the series that a term counts."""
        metric = self.find(term.metric, measured=term.measured)
        name, matchers = self.full(metric.name), [_matcher(label, values) for label, values in term.labels]
        if math.isfinite(term.bound):
            name, matchers = f"{name}_bucket", [*matchers, f'le="{term.bound!r}"']
        elif metric.kind == "histogram":
            name = f"{name}_count"
        return f"{name}{{{', '.join(matchers)}}}" if matchers else name

    def increase(self, count: Count, window: str, by: str = "job") -> str:
        """Return how much was counted within a window, for each job."""
        return _summed(self, simplified(count), window, by)


def _summed(kit: Kit, count: Count, window: str, by: str) -> str:
    def one(term: Term) -> str:
        return f"sum by ({by}) (increase({kit.selector(term)}[{window}]))"

    text = " + ".join(one(term) for term in count.plus) or "0"
    text += "".join(f" - {one(term)}" for term in count.minus)
    if count.instead is None:
        return text
    # The fuller one of two places that count the same; either may have no series.
    other = _summed(kit, count.instead, window, by)
    return f"((({text}) >= ({other})) or ({other}) or ({text}))"


def simplified(count: Count) -> Count:
    """Return the same count without what is both added and taken off."""
    plus, minus = list(count.plus), list(count.minus)
    for term in count.plus:
        if term in minus:
            plus.remove(term)
            minus.remove(term)
    return Count(tuple(plus), tuple(minus), None if count.instead is None else simplified(count.instead))


def _matcher(label: str, values: tuple[str, ...]) -> str:
    if len(values) == 1:
        return f"{label}={quoted(values[0])}"
    return f"{label}=~{quoted('|'.join(values))}"


def quoted(text: str) -> str:
    """Return a text as PromQL writes it."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def duration(seconds: float) -> str:
    """Return a length of time as Prometheus writes it, such as "5m" or "90s"."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s" if seconds == int(seconds) else f"{seconds * 1000:.0f}ms"
