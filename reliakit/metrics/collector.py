"""All series as one collector of prometheus_client, so that existing exporters serve them too."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as TheirExemplar

from reliakit.metrics.exposition import is_trace_id
from reliakit.metrics.family import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

    from reliakit.metrics.family import AnyFamily, Histogram
    from reliakit.metrics.series import Exemplar

__all__ = ["MetricsCollector"]


class MetricsCollector(Collector):
    """Gives prometheus_client what a `Metrics` holds.

    Args:
        families: Returns all metrics, freshly updated.
    """

    def __init__(self, families: Callable[[], list[AnyFamily]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """Yield one family after the other."""
        return [_collected(family) for family in self._families()]

    def describe(self) -> Iterable[Metric]:
        """Yield the families without samples, so that the registry can refuse a second metric of the same name."""
        return [_empty(family) for family in self._families()]


def _empty(family: AnyFamily) -> Any:
    metric = family.metric
    names = [label.name for label in metric.labels]
    kind = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}[
        metric.kind
    ]
    return kind(family.name, metric.help, labels=names, unit=metric.unit)


def _collected(family: AnyFamily) -> Any:
    collected = _empty(family)
    if isinstance(family, Gauge):
        for gauge in family.series[:]:
            value = gauge.get()
            if value == value:  # noqa: PLR0124 - not a number: nothing is known
                collected.add_metric(gauge.values, value)
    elif isinstance(family, Counter):
        for one, cells in family.read():
            collected.add_metric(one.values, cells[0])
    else:
        _add_buckets(collected, family)
    return collected


def _add_buckets(collected: Any, family: Histogram) -> None:
    bounds = [*map(repr, family.bounds), "+Inf"]
    for one, (*counts, total) in family.read():
        examples = one.exemplars.copy()
        buckets = [
            (bound, count, _exemplar(examples.get(number)))
            for number, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True))
        ]
        collected.add_metric(one.values, buckets=buckets, sum_value=total)


def _exemplar(exemplar: Exemplar | None) -> Any:
    if exemplar is None or not is_trace_id(exemplar.trace_id):
        return None
    return TheirExemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at)
