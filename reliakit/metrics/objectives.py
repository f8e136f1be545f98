"""Objectives as values, and verdicts that do not cry wolf.

```
objective            looks at                                   met when
below(m, s, share)   the share of measurements up to s seconds  the interval lies in [share, 1]
ratio(bad, total, l) the share of bad ones                      the interval lies in [0, l]
zero(m)              how many there were                        none
complete(seen, trk)  the share that was tracked                 all
at_most(gauge, s)    a gauge                                    its value is up to s
```

A share that was sampled is known within its 95 % Wilson interval (E. B. Wilson, 1927). The verdict is `met` when the
whole interval is inside the target, `breached` when it is wholly outside, `at_risk` between, and `insufficient_data`
below the minimum. `zero` and `complete` look at everything that happened: one counterexample breaches them at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reliakit.metrics.family import AnyFamily

__all__ = [
    "DEFAULTS",
    "AtMost",
    "Below",
    "Complete",
    "Count",
    "Objective",
    "Ratio",
    "Reading",
    "Term",
    "Verdict",
    "Zero",
    "at_most",
    "below",
    "complete",
    "count",
    "judge",
    "ratio",
    "wilson",
    "zero",
]

VerdictName = Literal["met", "at_risk", "breached", "insufficient_data"]

# The two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Term:
    """The part of a metric that is counted: series with these label values, measurements up to `bound`."""

    metric: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    bound: float = math.inf

    def wants(self, labels: Mapping[str, str]) -> bool:
        """Return whether a series with these labels is meant."""
        return all(labels.get(name) in values for name, values in self.labels)


@dataclass(frozen=True, slots=True)
class Count:
    """How often something happened: terms that add up, less terms that are taken off. Made by `count`.

    `a | b` counts the same thing in two places, of which the fuller one holds.
    """

    plus: tuple[Term, ...]
    minus: tuple[Term, ...] = ()
    instead: Count | None = None

    def __add__(self, other: Count) -> Count:
        _check_single(self, other)
        return Count((*self.plus, *other.plus), (*self.minus, *other.minus))

    def __sub__(self, other: Count) -> Count:
        _check_single(self, other)
        return Count((*self.plus, *other.minus), (*self.minus, *other.plus))

    def __or__(self, other: Count) -> Count:
        last = other if self.instead is None else self.instead | other
        return Count(self.plus, self.minus, last)

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term that counts for it in some way."""
        return (*self.plus, *self.minus, *(() if self.instead is None else self.instead.terms))


def _check_single(*counts: Count) -> None:
    if any(one.instead is not None for one in counts):
        raise ConfigurationError("counts are added and subtracted before they are joined by |")


def count(metric: str | AnyFamily, /, **labels: str | tuple[str, ...]) -> Count:
    """Return how often a counter or histogram counted in the window; counts can be added and subtracted.

    Args:
        metric: A metric's name, or the handle of a declared one.
        labels: Only series with this value, or one of these values.
    """
    name = metric if isinstance(metric, str) else metric.name
    chosen = tuple((label, (value,) if isinstance(value, str) else tuple(value)) for label, value in labels.items())
    return Count((Term(checks.named("metric", name), chosen),))


@dataclass(frozen=True, slots=True)
class Below:
    """See `below`."""

    good: Count
    total: Count
    seconds: float
    target: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """See `ratio`."""

    bad: Count
    total: Count
    target: float


@dataclass(frozen=True, slots=True)
class Zero:
    """See `zero`."""

    bad: Count
    among: Count | None
    target: float = 0.0


@dataclass(frozen=True, slots=True)
class Complete:
    """See `complete`."""

    seen: Count
    tracked: Count
    target: float = 1.0


@dataclass(frozen=True, slots=True)
class AtMost:
    """See `at_most`."""

    metric: str
    target: float


Goal = Below | Ratio | Zero | Complete | AtMost


def below(metric: str | AnyFamily, seconds: float, share: float) -> Below:
    """Return the goal that at least `share` of a histogram's measurements are `seconds` or less.

    "95 % below 0.1 s" is the same as "the 95th percentile is below 0.1 s", but can be counted exactly: `seconds` is
    made a bucket bound.

    Args:
        metric: A histogram.
        seconds: The threshold, in the histogram's unit.
        share: The share that must not exceed it, above 0 up to 1.
    """
    total = count(metric)
    bound = checks.seconds("seconds", seconds)
    good = Count(tuple(Term(term.metric, term.labels, bound) for term in total.plus))
    return Below(good, total, bound, checks.share("share", share))


def ratio(bad: Count | str | AnyFamily, total: Count | str | AnyFamily, limit: float) -> Ratio:
    """Return the goal that at most `limit` of `total` are `bad`.

    Args:
        bad: What must be rare: a counter, or a `count(...)` of one.
        total: What it is a part of.
        limit: The share of bad ones that is still good, from 0 up to 1.
    """
    return Ratio(_count(bad), _count(total), checks.share("limit", limit, zero=True))


def zero(metric: Count | str | AnyFamily, among: Count | str | AnyFamily | None = None) -> Zero:
    """Return the goal that something never happens.

    Args:
        metric: A counter, or a `count(...)` of one.
        among: What it could have happened to. With it the goal counts as met once there were enough of those; without
            it, as long as nothing happened.
    """
    return Zero(_count(metric), None if among is None else _count(among))


def complete(seen: Count | str | AnyFamily, tracked: Count | str | AnyFamily) -> Complete:
    """Return the goal that all of what was `seen` was also `tracked`.

    Args:
        seen: A counter, or a `count(...)` of one.
        tracked: The same of what was tracked.
    """
    return Complete(_count(seen), _count(tracked))


def at_most(metric: str | AnyFamily, limit: float) -> AtMost:
    """Return the goal that a gauge without labels is not above `limit`; nothing is known until the gauge is set."""
    name = metric if isinstance(metric, str) else metric.name
    return AtMost(checks.named("metric", name), checks.seconds("limit", limit, zero=True))


def _count(what: Count | str | AnyFamily) -> Count:
    return what if isinstance(what, Count) else count(what)


@dataclass(frozen=True, slots=True)
class Objective:
    """A goal with a name, judged over a sliding window.

    Args:
        name: What verdicts and dashboards call it.
        goal: What `below`, `ratio`, `zero`, `complete` or `at_most` returned.
        window: Seconds that the verdict looks back.
        minimum: Fewest events that allow a verdict, at least 1.

    Raises:
        ConfigurationError: An argument is no such thing.
    """

    name: str
    goal: Goal
    window: float = field(default=300.0, kw_only=True)
    minimum: int = field(default=30, kw_only=True)

    def __post_init__(self) -> None:
        checks.named("name", self.name)
        if not isinstance(self.goal, Goal):
            raise ConfigurationError(f"goal must come from below(), ratio(), zero() or complete(), got {self.goal!r}")
        checks.seconds("window", self.window)
        checks.count("minimum", self.minimum)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one objective now.

    Attributes:
        objective: The objective's name.
        verdict: "met", "at_risk", "breached" or "insufficient_data".
        value: What was measured: a share, a number of events or seconds; None without data.
        target: What it is held against.
        low: Lower end of the 95 % interval of the value, or None without data.
        high: Upper end of it.
        count: How many events it rests on.
        window: Seconds looked back.
    """

    objective: str
    verdict: VerdictName
    value: float | None
    target: float
    low: float | None
    high: float | None
    count: int
    window: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a goal's window holds: `part` of `total`, or the gauge's value as `part`; None where nothing is known."""

    part: float | None
    total: float | None


def wilson(part: float, total: float) -> tuple[float, float]:
    """Return the 95 % Wilson interval of the share `part / total`; `total` is above 0."""
    share = part / total
    square = _Z * _Z
    scale = 1 + square / total
    middle = (share + square / (2 * total)) / scale
    spread = _Z / scale * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    # Without this a share of exactly 0 or 1 would be outside of its own interval by one rounding.
    return max(0.0, min(share, middle - spread)), min(1.0, max(share, middle + spread))


def judge(objective: Objective, reading: Reading) -> Verdict:
    """Return the verdict on what was read. Pure."""
    match objective.goal:
        case Below() | Ratio() as goal:
            return _judge_share(objective, goal, reading.part or 0, reading.total or 0)
        case Zero():
            return _judge_zero(objective, reading.part or 0, reading.total)
        case Complete():
            return _judge_complete(objective, reading.part or 0, reading.total or 0)
        case AtMost():
            return _judge_value(objective, reading.part)


def _judge_share(objective: Objective, goal: Below | Ratio, part: float, total: float) -> Verdict:
    if total <= 0:
        return _nothing(objective)
    part = min(max(part, 0), total)
    low, high = wilson(part, total)
    is_ratio = isinstance(goal, Ratio)
    inside = high <= goal.target if is_ratio else low >= goal.target
    outside = low > goal.target if is_ratio else high < goal.target
    verdict: VerdictName = "met" if inside else "breached" if outside else "at_risk"
    if total < objective.minimum:
        verdict = "insufficient_data"
    return Verdict(objective.name, verdict, part / total, goal.target, low, high, int(total), objective.window)


def _judge_zero(objective: Objective, bad: float, among: float | None) -> Verdict:
    bad = float(max(bad, 0))
    if bad > 0:
        verdict: VerdictName = "breached"
    elif among is not None and among < objective.minimum:
        verdict = "insufficient_data"
    else:
        verdict = "met"
    number = int(bad if among is None else max(bad, among))
    return Verdict(objective.name, verdict, bad, 0.0, bad, bad, number, objective.window)


def _judge_complete(objective: Objective, tracked: float, seen: float) -> Verdict:
    if seen <= 0:
        return _nothing(objective)
    tracked = min(max(tracked, 0), seen)
    value = tracked / seen
    verdict: VerdictName = "met" if tracked >= seen else "breached"
    if verdict == "met" and seen < objective.minimum:
        verdict = "insufficient_data"
    return Verdict(objective.name, verdict, value, 1.0, value, value, int(seen), objective.window)


def _judge_value(objective: Objective, value: float | None) -> Verdict:
    if value is None:
        return _nothing(objective)
    verdict: VerdictName = "met" if value <= objective.goal.target else "breached"
    return Verdict(objective.name, verdict, value, objective.goal.target, value, value, 1, objective.window)


def _nothing(objective: Objective) -> Verdict:
    target = objective.goal.target
    return Verdict(objective.name, "insufficient_data", None, target, None, None, 0, objective.window)


# Attempts of transactions are counted twice when events tell of them, once when only `increment` or `observe` does.
_COUNTED = count("transaction_total")
_TIMED = count("transaction_duration_seconds")
_ATTEMPTS = _COUNTED | _TIMED
_DELIBERATE = count("transaction_deliberate_rollbacks_total")
_ERRORS = count("error_total")
_SECRETS = count("log_secrets_total")

DEFAULTS: tuple[Objective, ...] = (
    Objective("transaction_latency", below("transaction_duration_seconds", 0.1, 0.95)),
    Objective(
        "rollback_rate",
        ratio(
            bad=(count("transaction_total", status="rollback") - _DELIBERATE)
            | (count("transaction_duration_seconds", status="rollback") - _DELIBERATE),
            total=(_COUNTED - count("transaction_total", status="retry") - _DELIBERATE)
            | (_TIMED - count("transaction_duration_seconds", status="retry") - _DELIBERATE),
            limit=0.01,
        ),
    ),
    Objective(
        "deadlocks",
        # Those that reached the caller: a deadlock that a retry resolved is counted in both.
        zero(
            count("db_errors_total", sqlstate="40P01") - count("transaction_retries_total", reason="deadlock"),
            among=_ATTEMPTS,
        ),
    ),
    Objective("leaked_connections", zero("db_pool_leaked_connections_total", among=_ATTEMPTS)),
    Objective("errors_tracked", complete(seen=_ERRORS + count("error_untracked_total"), tracked=_ERRORS)),
    Objective("error_resolution", at_most("error_oldest_open_seconds", 3600.0)),
    Objective(
        "secrets_masked",
        complete(seen=_SECRETS, tracked=_SECRETS - count("log_secrets_total", result="leaked")),
    ),
)
