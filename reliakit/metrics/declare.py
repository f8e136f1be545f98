"""Checks declarations of metrics at the start, so that counting never has to."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.metrics.labels import LONGEST, Label, label_text
from reliakit.metrics.metric import Metric

if TYPE_CHECKING:
    from reliakit.metrics.metric import Kind

__all__ = ["aliases", "declared", "is_name", "reserved"]

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_RESERVED = frozenset({"le", "quantile"})


def is_name(text: object) -> bool:
    """Return whether this can be (a part of) a metric's name."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def declared(
    kind: Kind,
    name: str,
    text: str,
    *,
    labels: Iterable[str | Label],
    unit: str = "",
    buckets: Iterable[float] = (),
    objectives: Iterable[float] = (),
) -> Metric:
    """Return the declaration with its full name, or say what is wrong with it."""
    if not is_name(name):
        raise ConfigurationError(f"name must be letters, digits and _, not beginning with a digit, got {name!r}")
    if not isinstance(text, str):
        raise ConfigurationError(f"help must be a text, got {text!r}")
    if unit and not is_name(unit):
        raise ConfigurationError(f"unit must be a word such as 'seconds' or 'bytes', got {unit!r}")
    if kind != "counter" and name.endswith("_total"):
        raise ConfigurationError(f"name {name!r} ends in _total, which says that it is a counter: use counter()")
    base = name.removesuffix("_total") if kind == "counter" else name
    if unit and base != unit and not base.endswith(f"_{unit}"):
        base = f"{base}_{unit}"
    full = f"{base}_total" if kind == "counter" else base
    bounds = _bounds(buckets, objectives) if kind == "histogram" else ()
    if base == unit:
        unit = ""  # OpenMetrics wants a word before the unit: a scrape that tells of one without it is refused whole
    return Metric(name=full, kind=kind, help=text, unit=unit, labels=_labels(labels), buckets=bounds)


def _labels(labels: Iterable[str | Label]) -> tuple[Label, ...]:
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ConfigurationError(f"labels must be a sequence of names such as ('queue',), got {labels!r}")
    found = tuple(label if isinstance(label, Label) else Label(label) for label in labels)
    for label in found:
        if not is_name(label.name) or label.name.startswith("__") or label.name in _RESERVED:
            raise ConfigurationError(f"labels must be letters, digits and _, not le or quantile, got {label.name!r}")
        if label.limit is not None:
            checks.count(f"limit of label {label.name!r}", label.limit, least=0)
        if not all(isinstance(value, str) and value == label_text(value) for value in (*label.values, *label.born)):
            raise ConfigurationError(f"values of label {label.name!r} must be texts of at most {LONGEST} characters")
    names = [label.name for label in found]
    if len(set(names)) != len(names):
        raise ConfigurationError(f"labels must differ, got {names!r}")
    return found


def _bounds(buckets: Iterable[float], objectives: Iterable[float]) -> tuple[float, ...]:
    for argument, given in (("buckets", buckets), ("objectives", objectives)):
        if not isinstance(given, Iterable):
            raise ConfigurationError(f"{argument} must be a sequence of numbers such as (0.1, 1.0), got {given!r}")
    bounds = [_bound("buckets", bound) for bound in buckets]
    if bounds and bounds[-1] == math.inf:
        bounds.pop()  # always there
    if not bounds or any(not math.isfinite(bound) for bound in bounds):
        raise ConfigurationError(f"buckets must be at least one finite upper bound, got {bounds!r}")
    if any(low >= high for low, high in pairwise(bounds)):
        raise ConfigurationError(f"buckets must grow from bound to bound, got {bounds!r}")
    forced = [checks.seconds("objectives", _bound("objectives", bound)) for bound in objectives]
    return tuple(sorted({*bounds, *forced}))


def _bound(argument: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        raise ConfigurationError(f"{argument} must be numbers of zero or more, got {value!r}")
    return float(value)


def reserved(metric: Metric, full: str) -> set[str]:
    """Return every name that this metric takes up in a scrape, its family's included."""
    names = {full}
    if metric.kind == "counter":
        names |= {full.removesuffix("_total"), f"{full.removesuffix('_total')}_created"}
    if metric.kind == "histogram":
        names |= {f"{full}_{suffix}" for suffix in ("bucket", "count", "sum", "created")}
    return names


def aliases(metric: Metric) -> list[str]:
    """Return the names that a metric answers to: with and without its suffix and its unit."""
    names = [metric.name]
    for suffix in ("_total", f"_{metric.unit}", "_duration"):
        shorter = names[-1].removesuffix(suffix)
        if shorter != names[-1]:
            names.append(shorter)
    return names
