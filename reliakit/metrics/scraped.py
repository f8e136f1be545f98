"""The verdicts in a scrape, read back by a client that asks a service from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

__all__ = ["Judged", "fetched", "judged"]

# No scrape of ours is so long; what is longer is not one.
_LONGEST = 64 * 1024 * 1024


@dataclass(slots=True)
class Judged:
    """What a service says of one objective."""

    objective: str
    verdict: str = ""
    kind: str = ""
    value: float | None = None
    target: float | None = None
    quantile: float | None = None
    events: float | None = None
    budget_left: float | None = None
    pace: float | None = None
    gone_after: float | None = None

    def row(self) -> tuple[str, ...]:
        """Return its line of a table."""
        share = self.kind in {"below", "ratio", "complete"}
        return (
            self.objective,
            self.verdict,
            self._value(share),
            "" if self.target is None else f"{self._wants()} {_shown(self.target, share)}",
            "" if self.events is None else f"{self.events:.0f}",
            "" if self.budget_left is None else f"{self.budget_left:.0%}",
            self._pace(),
        )

    def _wants(self) -> str:
        return "at least" if self.kind in _AT_LEAST else "at most"

    def _value(self, share: bool) -> str:
        if self.value is None:
            return "nothing known"
        quantile = "" if self.quantile is None else f", p{100 * (self.target or 0):g} {self.quantile * 1000:.3g} ms"
        return _shown(self.value, share) + quantile

    def _pace(self) -> str:
        if self.pace is None:
            return ""
        text = f"{self.pace:.2g} times what it may"
        return text if self.gone_after is None else f"{text}: budget gone in {_span(self.gone_after)} at this pace"


def _shown(value: float, share: bool) -> str:
    return f"{value * 100:.4g} %" if share else f"{value:g}"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


_AT_LEAST = frozenset({"below", "complete"})
_WORST_FIRST = ("breached", "at_risk", "insufficient_data", "met")
_FIELDS = {
    "slo_value": "value",
    "slo_target": "target",
    "slo_quantile_seconds": "quantile",
    "slo_events": "events",
    "slo_error_budget_remaining_ratio": "budget_left",
    "slo_burn_rate": "pace",
    "slo_budget_gone_seconds": "gone_after",
}


def judged(text: str) -> list[Judged]:
    """Return the verdicts in a scrape, whatever its namespace.

    Raises:
        ValueError: There are none, or the text is not a scrape.
    """
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - loads slowly

    told: dict[str, dict[str, list[float]]] = {}
    found: dict[str, Judged] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            slo = sample.labels.get("slo")
            if slo is not None:
                _take(found.setdefault(slo, Judged(slo)), told.setdefault(slo, {}), sample)
    verdicts = [one for one in found.values() if one.verdict]
    if not verdicts:
        raise ValueError("these are not metrics of reliakit: there is no slo_verdict among them")
    for one in verdicts:
        _settle(one, told[one.objective])
    return verdicts


def _take(one: Judged, told: dict[str, list[float]], sample: Any) -> None:
    if sample.name.endswith("slo_verdict") and sample.value > 0:
        # Several processes behind one scrape may disagree: the worst verdict is reported.
        one.verdict = min(one.verdict, sample.labels.get("verdict", ""), key=_severity)
    for name, field in _FIELDS.items():
        if sample.name == name or sample.name.endswith(f"_{name}"):
            told.setdefault(field, []).append(sample.value)
            if field == "target":
                one.kind = sample.labels.get("goal", "")


def _severity(verdict: str) -> int:
    return _WORST_FIRST.index(verdict) if verdict in _WORST_FIRST else len(_WORST_FIRST)


def _settle(one: Judged, told: dict[str, list[float]]) -> None:
    """Of what several processes tell take the worst."""
    lower_is_worse = {"budget_left", "gone_after", *(("value",) if one.kind in _AT_LEAST else ())}
    for field, values in told.items():
        setattr(one, field, min(values) if field in lower_is_worse else max(values))


def fetched(url: str, timeout: float) -> str:
    """Return what an address serves, as plain text.

    Raises:
        ValueError: It is not an address of the web.
        OSError: It cannot be reached, or does not answer properly.
    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise ValueError("the address must begin with http:// or https://")
    request = Request(url, headers={"Accept": "text/plain"})  # noqa: S310 - the scheme was just looked at
    with urlopen(request, timeout=timeout) as answer:  # noqa: S310 - likewise
        body: bytes = answer.read(_LONGEST)
    return body.decode("utf-8", "replace")
