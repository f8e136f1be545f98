"""The pages for people: every metric and objective, and what to do about every alert."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.monitoring.alerts import alerts
from reliakit.metrics.monitoring.conditions import Burn
from reliakit.metrics.monitoring.kit import duration
from reliakit.metrics.objectives import AtMost, Below, Complete, Ratio, Zero

if TYPE_CHECKING:
    from reliakit.metrics.labels import Label
    from reliakit.metrics.metric import Metric
    from reliakit.metrics.monitoring.alerts import Alert
    from reliakit.metrics.monitoring.kit import Kit
    from reliakit.metrics.objectives import Goal

__all__ = ["catalogue", "runbooks"]

# Where each group of names begins; what stands under none of them is of the last.
_CHAPTERS = (
    ("Transactions", ("transaction_", "db_errors")),
    ("Connection pools", ("db_",)),
    ("Outboxes", ("outbox_",)),
    ("Circuit breakers", ("circuit_",)),
    ("Guarded calls", ("call", "retry_", "hedge_", "adaptive_", "deadline_")),
    ("Rate limits, logins and stores", ("rate_limit_", "login", "store_")),
    ("Errors, security, validation", ("error_", "security_", "validation_")),
    ("Web", ("http_", "websocket_")),
    ("Caches, services, checks", ("cache_", "service_", "health_", "lb_")),
    ("Logs", ("log_",)),
    ("Objectives", ("slo_",)),
    ("The metrics themselves", ("",)),
)


_YOUR_OWN: tuple[str, tuple[str, ...]] = ("Your own", ())
_INTRODUCTION = (
    "This page lists every metric and every objective. A label in **bold** has exactly the values that are listed."
    " The number after any other label says how many values it may have; `_other` stands for all further ones. An"
    " empty value means that none was given. "
)
_BY_HAND = (
    "No component of reliakit counts these. They are names for what your own service has of this kind; count it with"
    " `increment` and `observe`."
)


def catalogue(kit: Kit) -> str:
    """Return the page of all metrics and objectives, as Markdown."""
    lines = [
        "# All metrics",
        "",
        f"{_INTRODUCTION}In a scrape, a name appears as `{kit.full('...')}`.",
        "",
    ]
    left = list(kit.metrics)
    for title, starts in (_YOUR_OWN, *_CHAPTERS):
        chosen = [one for one in left if one.name.startswith(starts) or (not starts and one.name in kit.bare)]
        left = [metric for metric in left if metric not in chosen]
        if chosen:
            by_hand = [_BY_HAND, ""] if all(metric.by_hand for metric in chosen) else []
            lines += [f"## {title}", "", *by_hand, "| metric | kind | labels | meaning |", "|---|---|---|---|"]
            lines += [_line(metric) for metric in chosen]
            lines.append("")
    lines += ["## Buckets", ""]
    lines += _buckets(kit)
    lines += [
        "",
        "## Objectives",
        "",
        "| objective | is met if | window, budget for | meaning |",
        "|---|---|---|---|",
    ]
    for one in kit.objectives:
        looks = f"{duration(one.window)}, {duration(one.period)}"
        lines.append(f"| `{one.name}` | {_goal(one.goal)} | {looks} | {one.help} |")
    return "\n".join(lines) + "\n"


def _line(metric: Metric) -> str:
    labels = ", ".join(_label(label) for label in metric.labels) or "none"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def _label(label: Label) -> str:
    values = tuple(dict.fromkeys((*label.values, *label.born)))
    if label.is_closed:
        return f"**{label.name}**: {', '.join(values)}"
    room = "" if label.limit is None else f" {label.limit}"
    known = f" ({', '.join(values)}, ...)" if values else ""
    return f"{label.name}{room}{known}"


def _buckets(kit: Kit) -> list[str]:
    spread: dict[tuple[float, ...], list[str]] = {}
    for metric in kit.metrics:
        if metric.kind == "histogram":
            spread.setdefault(metric.buckets, []).append(f"`{metric.name}`")
    lines: list[str] = []
    for bounds, names in spread.items():
        lines.append(f"- {', '.join(f'{bound:g}' for bound in bounds)}: {', '.join(names)}")
    return lines


def _goal(goal: Goal) -> str:
    match goal:
        case Below():
            return f"at least {goal.target:g} of the measurements are {goal.seconds:g} s or less"
        case Ratio():
            return f"at most {goal.target:g} are bad"
        case Zero():
            return "it never happens"
        case Complete():
            return "all of them"
        case AtMost():
            return f"`{goal.metric}` is at most {goal.target:g}"


def runbooks(kit: Kit) -> str:
    """Return the page with a chapter for each alert, as Markdown."""
    lines = [
        "# Runbooks",
        "",
        (
            "This page says what to do when an alert of the [rules](metrics.md#prometheus-and-grafana) fires. A"
            " `page` wakes somebody up; a `ticket` waits for the morning."
        ),
        "",
    ]
    for alert in alerts(kit):
        lines += _chapter(kit, alert)
    return "\n".join(lines).rstrip() + "\n"


def _chapter(kit: Kit, alert: Alert) -> list[str]:
    advice = alert.advice
    held = f" for {duration(alert.wait)}" if alert.wait else ""
    return [
        f"## {alert.name}",
        "",
        advice.meaning,
        *(["", _speed(alert.condition)] if isinstance(alert.condition, Burn) else []),
        "",
        f"It fires with severity {alert.severity} when this holds{held}:",
        "",
        "```text",
        alert.condition.expression(kit),
        "```",
        "",
        "Where to look:",
        "",
        *(f"- {step}" for step in advice.look),
        "",
        "What helps:",
        "",
        *(f"- {step}" for step in advice.act),
        "",
    ]


def _speed(burn: Burn) -> str:
    if burn.speed == "few":
        return (
            "There are too few events to judge their share, but at least half of those in the last six hours failed."
        )
    paces = ", or of ".join(
        f"more than {factor:g} over the last {long} and still over the last {short}"
        for factor, short, long in burn.pairs
    )
    period = duration(burn.objective.period)
    return (
        f"The error budget is being spent too fast: at a pace of {paces}. At a pace of 1 it lasts exactly its"
        f" period of {period}."
    )
