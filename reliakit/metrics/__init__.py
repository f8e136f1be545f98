"""Metrics that cannot hurt their service, and verdicts on its objectives.

`Metrics` counts and measures, shows everything to Prometheus, and judges whether the objectives are met. It listens
to reliakit's events; nothing imports it.
"""

from __future__ import annotations

from reliakit.metrics.exposition import Exposition
from reliakit.metrics.family import Counter, Gauge, Histogram
from reliakit.metrics.labels import Label
from reliakit.metrics.objectives import Count, Objective, at_most, below, complete, count, ratio, zero
from reliakit.metrics.registry import Metrics
from reliakit.metrics.verdicts import Verdict, pooled

__all__ = [
    "Count",
    "Counter",
    "Exposition",
    "Gauge",
    "Histogram",
    "Label",
    "Metrics",
    "Objective",
    "Verdict",
    "at_most",
    "below",
    "complete",
    "count",
    "pooled",
    "ratio",
    "zero",
]
