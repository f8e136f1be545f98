"""When an alert fires, as values: each gives its expression, and the trials that it must stand.

```
condition ──> expression(kit)   for the rules
          └─> trials(kit)       what goes in, and whether it fires: for promtool
```
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reliakit.metrics.monitoring.kit import duration, quoted, simplified
from reliakit.metrics.objectives import Below, Complete, Count, Term, Zero

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reliakit.metrics.metric import Metric
    from reliakit.metrics.monitoring.kit import Kit
    from reliakit.metrics.objectives import Objective, Ratio

__all__ = [
    "Burn",
    "Condition",
    "Happened",
    "Level",
    "Share",
    "Trial",
    "bad_and_total",
    "burn_budget",
    "burn_limit",
    "has_few",
]

JOB = "job"
# When alerts are looked at.
MINUTES = 60
_WHERE = {"job": JOB, "instance": "one"}
# The windows and factors of the Site Reliability Workbook, 5: each says how fast a budget of 30 days may be spent.
FAST = ((14.4, "5m", "1h"), (6.0, "30m", "6h"))
SLOW = ((3.0, "2h", "1d"), (1.0, "6h", "3d"))
# Fewer bad ones than this are no pattern, however few there were at all.
FEWEST_BAD = 3
# Where so much is allowed, four times as much is as bad as it gets.
_LOOSE = 0.14


@dataclass(frozen=True, slots=True)
class Trial:
    """What an alert is put to: samples a minute apart, and whether it fires after an hour.

    Attributes:
        name: What is tried; the job that has these samples.
        series: Samples by series, as promtool writes them.
        fires: Whether the alert must fire; else it must not.
        labels: The labels that it fires with, beside the job.
    """

    name: str
    series: Mapping[str, str]
    fires: bool = False
    labels: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def job(self) -> str:
        """The job's name."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Happened:
    """A counter went up by more than `above` within the window."""

    counted: Count
    by: tuple[str, ...] = ()
    window: float = 900.0
    above: float = 0.0

    def expression(self, kit: Kit) -> str:
        """Return the expression of the rule."""
        by = ", ".join(("job", *self.by))
        text = kit.increase(self.counted, duration(self.window), by)
        return f"{text} > {_number(self.above)}"

    def trials(self, kit: Kit) -> list[Trial]:
        """Return what promtool tries."""
        (series,) = _series(kit, self.counted.plus[0])
        still = {other: "0x90" for term in self.counted.minus for other in _series(kit, term)}
        labels = {label: _example(series, label) for label in self.by}
        return [
            Trial("fires", {series: f"0x57 {math.ceil(self.above) + 1}x30", **still}, fires=True, labels=labels),
            Trial("happened long ago", {series: "7x90", **still}),
            Trial("no traffic", {series: "0x90", **still}),
            Trial("restarted", {series: "7x57 0x30", **still}),
        ]


@dataclass(frozen=True, slots=True)
class Level:
    """A gauge has been on the wrong side of a limit."""

    metric: str
    limit: float
    labels: tuple[tuple[str, str], ...] = ()
    by: tuple[str, ...] = ()
    below: bool = False
    wait: float = 0.0

    def expression(self, kit: Kit) -> str:
        """Return the expression of the rule."""
        by = ", ".join(("job", *self.by))
        selector = kit.selector(Term(self.metric, tuple((name, (value,)) for name, value in self.labels)))
        worst, compared = ("min", "<") if self.below else ("max", ">")
        return f"{worst} by ({by}) ({selector}) {compared} {_number(self.limit)}"

    def trials(self, kit: Kit) -> list[Trial]:
        """Return what promtool tries."""
        (series,) = _series(kit, Term(self.metric, tuple((name, (value,)) for name, value in self.labels)))
        labels = {label: _example(series, label) for label in self.by}
        sign = -1 if self.below else 1
        good, bad = _number(self.limit), _number(self.limit + sign)
        return [
            Trial("fires", {series: f"{bad}x90"}, fires=True, labels=labels),
            Trial("within the limit", {series: f"{good}x90"}),
            Trial("bad for a moment", {series: f"{good}x49 {bad} {good}x40"}),
            Trial("restarted", {series: f"{bad}x50 {good}x40"}),
        ]


@dataclass(frozen=True, slots=True)
class Share:
    """Too great a share of what was counted in the window was bad, among enough to tell."""

    bad: Term
    total: Term
    above: float
    minimum: int = 30
    window: float = 300.0
    wait: float = 300.0

    def expression(self, kit: Kit) -> str:
        """Return the expression of the rule."""
        window = duration(self.window)
        bad = f"sum by (job) (increase({kit.selector(self.bad)}[{window}]))"
        total = f"sum by (job) (increase({kit.selector(self.total)}[{window}]))"
        return f"{bad} / ({total} >= {self.minimum}) > {_number(self.above)}"

    def trials(self, kit: Kit) -> list[Trial]:
        """Return what promtool tries."""
        (bad,) = _series(kit, self.bad)
        (good,) = _series(kit, self.total, avoid=self.bad)
        return [
            Trial("fires", {bad: "0+50x90", good: "0+50x90"}, fires=True),
            Trial("few among many", {bad: "0+1x90", good: "0+1000x90"}),
            Trial("all of a handful", {bad: "0+1x90", good: "0x90"}),
            Trial("no traffic", {bad: "5x90", good: "100x90"}),
            Trial("restarted", {bad: "5x57 0x30", good: "0+100x57 0+100x30"}),
        ]


@dataclass(frozen=True, slots=True)
class Burn:
    """The error budget of an objective is spent too fast, in a long window and still in a short one.

    Attributes:
        objective: Whose budget.
        speed: "fast" would take days, "slow" weeks, "few" looks at traffic too small to tell by shares.
    """

    objective: Objective
    speed: str
    pairs: tuple[tuple[float, str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", SLOW if self.speed == "slow" else FAST)

    def expression(self, kit: Kit) -> str:
        """Return the expression of the rule."""
        one = self.objective
        slo = f"slo={quoted(one.name)}"
        ratio, events, bad = (
            f"job:{kit.full(f'slo_{part}')}" for part in ("bad:ratio", "events:increase", "bad:increase")
        )
        if self.speed == "few":
            return (
                f"{bad}6h{{{slo}}} >= {FEWEST_BAD}\n"
                f"and {ratio}6h{{{slo}}} >= {_number(_few_limit(one))}\n"
                f"and {events}1h{{{slo}}} < {one.minimum}"
            )
        return "\nor\n".join(
            f"({ratio}{short}{{{slo}}} > {_number(burn_limit(one, factor))}\n"
            f"and {ratio}{long}{{{slo}}} > {_number(burn_limit(one, factor))}\n"
            f"and {events}{long}{{{slo}}} >= {one.minimum})"
            for factor, short, long in self.pairs
        )

    def trials(self, kit: Kit) -> list[Trial]:
        """Return what promtool tries."""
        allowed = burn_budget(self.objective)
        labels = {"slo": self.objective.name}
        # As many a minute as make enough of them in an hour.
        least = self.objective.minimum / 30

        def traffic(each: float, bad: float) -> dict[str, str]:
            return _traffic(kit, self.objective, good=each * (1 - bad), bad=each * bad)

        found = [Trial("all bad", traffic(max(10, least), 1), fires=self.speed != "few", labels=labels)]
        if has_few(self.objective):
            handful = traffic(4 / MINUTES, 1)
            found.append(Trial("four bad ones in an hour", handful, fires=self.speed == "few", labels=labels))
        if 0 < allowed < _LOOSE:
            often = traffic(max(1000, least), 4 * allowed)
            found.append(Trial("four times too many", often, fires=self.speed == "slow", labels=labels))
        healthy = traffic(max(1000, least), allowed / 2)
        return [
            *found,
            Trial("half of what is allowed", healthy),
            Trial("no traffic", dict.fromkeys(healthy, "0x90")),
            Trial(
                "restarted", {series: samples.replace("x90", "x30 ") + samples for series, samples in healthy.items()}
            ),
        ]


Condition = Happened | Level | Share | Burn


def burn_budget(objective: Objective) -> float:
    """Return the share of bad ones that an objective allows."""
    goal = objective.goal
    return 1 - goal.target if isinstance(goal, Below) else goal.target


def burn_limit(objective: Objective, factor: float) -> float:
    """Return the share of bad ones at which a budget burns so fast; never so high that it could not be reached."""
    allowed = burn_budget(objective)
    return round(min(factor * allowed, (1 + allowed) / 2), 6)


def _few_limit(objective: Objective) -> float:
    """Return the share of bad ones that is too great whatever their number: half, or where that is allowed more."""
    allowed = burn_budget(objective)
    return 0.5 if allowed < 0.5 else (1 + allowed) / 2


def has_few(objective: Objective) -> bool:
    """Return whether there can be so few events that shares do not tell, and yet a pattern among them."""
    return objective.minimum > FEWEST_BAD + 1


def bad_and_total(goal: Below | Ratio | Zero | Complete) -> tuple[Count, Count]:
    """Return what a goal wants to be rare, and the whole that it is a part of."""
    match goal:
        case Below():
            return simplified(goal.total - goal.good), goal.total
        case Zero():
            return goal.bad, goal.bad if goal.among is None else goal.among
        case Complete():
            return simplified(goal.seen - goal.tracked), goal.seen
        case _:
            return goal.bad, goal.total


def _traffic(kit: Kit, objective: Objective, *, good: float, bad: float) -> dict[str, str]:
    """Return the samples of so many good and bad events a minute."""

    def rising(each: float) -> str:
        return f"0+{_number(round(each, 6))}x90"

    goal = objective.goal
    if isinstance(goal, Below):
        (within,), (all_of_them,) = _series(kit, goal.good.plus[0]), _series(kit, goal.total.plus[0])
        return {within: rising(good), all_of_them: rising(good + bad)}
    wanted, whole = bad_and_total(goal)  # type: ignore[arg-type]  # gauges burn no budget
    (bad_one,) = _series(kit, wanted.plus[0])
    (good_one,) = _series(kit, whole.plus[0], avoid=wanted.plus[0], also=whole.minus)
    samples = {bad_one: rising(bad), good_one: rising(good)}
    for term in (*wanted.minus, *whole.minus):
        samples.update(dict.fromkeys(_series(kit, term), "0x90"))
    return samples


def _series(kit: Kit, term: Term, *, avoid: Term | None = None, also: tuple[Term, ...] = ()) -> list[str]:
    """Return the one series of a term that trials feed; with `avoid` one that those terms do not mean."""
    is_bucket = math.isfinite(term.bound)
    metric = kit.find(term.metric, measured=term.measured)
    suffix = "_bucket" if is_bucket else "_count" if metric.kind == "histogram" else ""
    others = () if avoid is None else (avoid, *also)
    labels = dict(_WHERE)
    for label in metric.labels:
        labels[label.name] = _value(metric, label.name, term, others)
    if is_bucket:
        labels["le"] = repr(term.bound)
    inner = ",".join(f"{name}={quoted(value)}" for name, value in labels.items())
    return [f"{kit.full(metric.name)}{suffix}{{{inner}}}"]


def _value(metric: Metric, label: str, term: Term, others: tuple[Term, ...]) -> str:
    wanted = dict(term.labels).get(label)
    if wanted is not None:
        return wanted[0]
    taken = {
        value
        for other in others
        if other.metric in {term.metric, metric.name}
        for value in dict(other.labels).get(label, ())
    }
    declared = next(one for one in metric.labels if one.name == label)
    if taken:
        return next((value for value in declared.values if value not in taken), "200")
    return declared.values[0] if declared.values and declared.is_closed else f"some-{label}"


def _example(series: str, label: str) -> str:
    """Return the value that a label has in a series."""
    found = re.search(rf'{label}="([^"]*)"', series)
    return found.group(1) if found else ""


def _number(number: float) -> str:
    return f"{number:g}" if abs(number) < 1e6 else repr(number)
