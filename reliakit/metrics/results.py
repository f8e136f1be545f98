"""The verdicts as gauges, so that a scrape carries them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.verdicts import VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.metrics.family import Gauge
    from reliakit.metrics.series import GaugeSeries
    from reliakit.metrics.shelf import Shelf
    from reliakit.metrics.verdicts import Verdict

__all__ = ["Results"]


class Results:
    """Shows verdicts; an unknown value has no sample.

    Args:
        shelf: Holds the gauges.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._gauge = shelf.gauge

    def show(self, verdicts: Iterable[Verdict]) -> None:
        """Set every gauge of these objectives."""
        for verdict in verdicts:
            slo = verdict.objective
            for possible in VERDICTS:
                self._gauge("slo_verdict").labels(slo, possible).set(1 if possible == verdict.verdict else 0)
            self._gauge("slo_target").labels(slo, verdict.kind).set(verdict.target)
            self._gauge("slo_events").labels(slo).set(verdict.count)
            for name, value in (
                ("slo_value", verdict.value),
                ("slo_quantile_seconds", verdict.quantile),
                ("slo_burn_rate", verdict.pace),
                ("slo_budget_gone_seconds", verdict.gone_after),
            ):
                _set(self._gauge(name), value, slo)
            _set(self._gauge("slo_error_budget_remaining_ratio"), verdict.budget_left, slo, _days(verdict.period))


def _set(gauge: Gauge, value: float | None, *labels: str) -> None:
    series: GaugeSeries = gauge.labels(*labels)
    if value is None:
        series.clear()
    else:
        series.set(value)


def _days(seconds: float) -> str:
    """Return a length of time as people write it, such as "30d" or "300s"."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"
