"""A metric as it is declared: reliakit's own in the catalogue, yours by `Metrics.counter` and its siblings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from reliakit.metrics.labels import Label

__all__ = ["LATENCY", "Across", "Kind", "Metric"]

Kind = Literal["counter", "gauge", "histogram"]
# The words are prometheus_client's; "live" leaves out processes that are gone.
Across = Literal["all", "liveall", "sum", "livesum", "max", "livemax", "min", "livemin"]

# The bounds of what takes time, unless others are given.
LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric as it is declared.

    Attributes:
        name: Its name with unit and suffix, without the namespace.
        kind: Counter, gauge or histogram.
        help: One sentence for people.
        unit: Its base unit, such as "seconds" or "bytes"; "" for a plain number.
        labels: Its dimensions.
        buckets: A histogram's upper bounds, without the infinite one.
        born: Whether series exist from the start although some label is open; that label is then empty.
        absent: Whether a gauge has no series until it is set, because 0 would be a claim.
        fixed: Whether its labels name only what was declared, so that `max_series` need not limit them.
        across: How the values of a gauge in several processes are combined.
        by_hand: Whether no component reports it, so that only `increment` and `observe` count it.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    born: bool = False
    absent: bool = False
    fixed: bool = False
    across: Across = "livesum"
    by_hand: bool = False

    def with_bounds(self, bounds: tuple[float, ...]) -> Metric:
        """Return this histogram with further bucket bounds."""
        return replace(self, buckets=tuple(sorted({*self.buckets, *bounds})))
