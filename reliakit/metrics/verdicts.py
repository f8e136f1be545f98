"""Verdicts without false alarms: what was counted, compared with an objective.

A sampled share is known within its 95 % Wilson interval (E. B. Wilson, 1927). The verdict is `met` if the whole
interval is inside the target, `breached` if it is wholly outside, `at_risk` between, and `insufficient_data` below
the minimum. `zero` and `complete` look at everything that happened: one counterexample breaches them at once.

The error budget is what an objective forgives in its period: 1 % of a month's transactions, if 99 % must be good.
Pace is how fast it is spent: at 1 it lasts exactly the period. (Beyer et al., "The Site Reliability Workbook", 2018.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reliakit.metrics.objectives import AtMost, Below, Complete, Count, Objective, Ratio, Zero

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.metrics.objectives import Goal

__all__ = ["VERDICTS", "Reading", "Verdict", "Z", "judge", "pooled", "wilson"]

VerdictName = Literal["met", "at_risk", "breached", "insufficient_data"]
Kind = Literal["below", "ratio", "zero", "complete", "at_most"]
VERDICTS: tuple[VerdictName, ...] = ("met", "at_risk", "breached", "insufficient_data")

_KINDS: dict[type[Goal], Kind] = {
    Below: "below",
    Ratio: "ratio",
    Zero: "zero",
    Complete: "complete",
    AtMost: "at_most",
}
# The two-sided 95 % quantile of the normal distribution.
Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one objective now.

    Attributes:
        objective: The objective's name.
        verdict: "met", "at_risk", "breached" or "insufficient_data".
        value: What was measured: a share, a number of events or seconds; None without data.
        target: What the value is compared with.
        low: Lower end of the 95 % interval of the value, or None without data.
        high: Upper end of that interval, or None without data.
        count: How many events it is based on.
        window: How many seconds it looks back.
        kind: The function that made its goal, "below", "ratio", "zero", "complete" or "at_most"; `below` and
            `complete` want the value to be at least the target, the others at most.
        minimum: The fewest events that allow a verdict.
        period: How many seconds the error budget covers.
        quantile: For `below`, what the wanted share of the measurements did not exceed, within 1 %: 0.042 means that
            "p95 is 42 ms" if the target is 0.95. None without data, and for other kinds.
        budget_left: Share of the error budget of a whole period that is left: 1.0 untouched, 0.0 or less used up. The
            period's traffic is assumed to be like that seen so far.
        pace: How fast the budget is spent, judged by the last window: at 1.0 it lasts exactly the period. None
            without data.
        gone_after: Seconds until nothing is left of it at this pace; None if it renews as fast as it is spent.
    """

    objective: str
    verdict: VerdictName
    value: float | None
    target: float
    low: float | None
    high: float | None
    count: int
    window: float
    kind: Kind = "ratio"
    minimum: int = 30
    period: float = 30 * 86_400.0
    quantile: float | None = None
    budget_left: float | None = None
    pace: float | None = None
    gone_after: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What was counted for a goal.

    Attributes:
        part: How many of `total` in the window, or the gauge's value; None if nothing is known.
        total: Out of how many.
        period_part: The same as `part` within the period of the error budget.
        period_total: The same as `total` within that period.
        seen: For how many seconds the period was watched so far; 0 if no budget is asked for.
        quantile: What `below`'s share of the measurements did not exceed.
    """

    part: float | None
    total: float | None
    period_part: float = 0.0
    period_total: float = 0.0
    seen: float = 0.0
    quantile: float | None = None


def wilson(part: float, total: float) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the share `part / total`; `total` is above 0."""
    share = part / total
    square = Z * Z
    scale = 1 + square / total
    middle = (share + square / (2 * total)) / scale
    spread = Z / scale * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    # Without this, rounding would put a share of exactly 0 or 1 outside of its own interval.
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))


def judge(objective: Objective, reading: Reading) -> Verdict:
    """Return the verdict on what was read. Pure."""
    goal = objective.goal
    part, total = reading.part or 0, reading.total or 0
    match goal:
        case Below() | Ratio():
            verdict = _judge_share(objective, goal, part, total)
            return _with_budget(objective, goal, replace(verdict, quantile=reading.quantile), reading)
        case Zero():
            return _judge_zero(objective, part, reading.total)
        case Complete():
            return _judge_complete(objective, part, total)
        case AtMost():
            return _judge_value(objective, reading.part)


def _verdict(
    objective: Objective,
    verdict: VerdictName,
    value: float | None = None,
    interval: tuple[float, float] | None = None,
    *,
    number: float = 0,
    budget_left: float | None = None,
) -> Verdict:
    """Return a verdict; an exact value is its own interval."""
    low, high = interval or (value, value)
    return Verdict(
        objective=objective.name,
        verdict=verdict,
        value=value,
        target=objective.goal.target,
        low=low,
        high=high,
        count=int(number),
        window=objective.window,
        kind=_KINDS[type(objective.goal)],
        minimum=objective.minimum,
        period=objective.period,
        budget_left=budget_left,
    )


def _judge_share(objective: Objective, goal: Below | Ratio, part: float, total: float) -> Verdict:
    if total <= 0:
        return _verdict(objective, "insufficient_data")
    part = min(max(part, 0), total)
    low, high = wilson(part, total)
    is_ratio = isinstance(goal, Ratio)
    inside = high <= goal.target if is_ratio else low >= goal.target
    outside = low > goal.target if is_ratio else high < goal.target
    verdict: VerdictName = "met" if inside else "breached" if outside else "at_risk"
    if total < objective.minimum:
        verdict = "insufficient_data"
    return _verdict(objective, verdict, part / total, (low, high), number=total)


def _judge_zero(objective: Objective, bad: float, among: float | None) -> Verdict:
    bad = float(max(bad, 0))
    if bad > 0:
        verdict: VerdictName = "breached"
    elif among is not None and among < objective.minimum:
        verdict = "insufficient_data"
    else:
        verdict = "met"
    number = bad if among is None else max(bad, among)
    return _verdict(objective, verdict, bad, number=number, budget_left=0.0 if bad > 0 else 1.0)


def _judge_complete(objective: Objective, tracked: float, seen: float) -> Verdict:
    if seen <= 0:
        return _verdict(objective, "insufficient_data")
    tracked = min(max(tracked, 0), seen)
    verdict: VerdictName = "met" if tracked >= seen else "breached"
    budget = 1.0 if verdict == "met" else 0.0
    if verdict == "met" and seen < objective.minimum:
        verdict = "insufficient_data"
    return _verdict(objective, verdict, tracked / seen, number=seen, budget_left=budget)


def _judge_value(objective: Objective, value: float | None) -> Verdict:
    if value is None:
        return _verdict(objective, "insufficient_data")
    return _verdict(objective, "met" if value <= objective.goal.target else "breached", value, number=1)


def _with_budget(objective: Objective, goal: Below | Ratio, verdict: Verdict, reading: Reading) -> Verdict:
    """Add how much of the error budget is left, how fast it is spent, and when it will be used up."""
    allowed = goal.target if isinstance(goal, Ratio) else 1 - goal.target
    if reading.seen <= 0 or allowed <= 0:
        return verdict
    spent = _bad_share(goal, reading.period_part, reading.period_total) or 0.0
    left = 1 - spent / allowed * min(1.0, reading.seen / objective.period)
    if verdict.value is None:
        return replace(verdict, budget_left=left)
    pace = (_bad_share(goal, verdict.value, 1.0) or 0.0) / allowed
    ends = pace > 1 or left <= 0 < pace
    gone_after = max(0.0, left) * objective.period / pace if ends else None
    return replace(verdict, budget_left=left, pace=pace, gone_after=gone_after)


def _bad_share(goal: Below | Ratio, part: float, total: float) -> float | None:
    if total <= 0:
        return None
    share = min(max(part / total, 0.0), 1.0)
    return share if isinstance(goal, Ratio) else 1 - share


def pooled(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return one verdict per objective over what several processes have counted, such as a service's workers.

    Counts are added up and judged anew, the greatest value of a gauge counts, and as much budget is left as in the
    process that has least. Pure.

    Args:
        verdicts: What the `Metrics.slo()` of each returned, with the same objectives.
    """
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.objective, []).append(verdict)
    return [_pool(group) for group in groups.values()]


def _pool(group: list[Verdict]) -> Verdict:
    known = [one for one in group if one.value is not None]
    if not known:
        return group[0]
    first, total = known[0], sum(one.count for one in known)
    values = [(one.value or 0.0, one.count) for one in known]
    if first.kind == "at_most":
        reading = Reading(max(value for value, _ in values), None)
    elif first.kind == "zero":
        # Without a whole that it could have happened to, no minimum is waited for.
        has_whole = not any(one.verdict == "met" and one.count < one.minimum for one in known)
        reading = Reading(sum(value for value, _ in values), total if has_whole else None)
    else:
        # Counts are whole numbers, and a share times its count is one but for the last rounding.
        reading = Reading(sum(round(value * number, 6) for value, number in values), total)
    nothing = Count(())
    goals: dict[Kind, Goal] = {
        "below": Below(nothing, nothing, 0.0, first.target),
        "ratio": Ratio(nothing, nothing, first.target),
        "zero": Zero(nothing, nothing),
        "complete": Complete(nothing, nothing),
        "at_most": AtMost("pooled", first.target),
    }
    objective = Objective(
        first.objective, goals[first.kind], window=first.window, minimum=first.minimum, period=first.period
    )
    return replace(
        judge(objective, reading),
        quantile=max((one.quantile for one in known if one.quantile is not None), default=None),
        budget_left=min((one.budget_left for one in known if one.budget_left is not None), default=None),
        pace=max((one.pace for one in known if one.pace is not None), default=None),
        gone_after=min((one.gone_after for one in known if one.gone_after is not None), default=None),
    )
