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
    "A label in **bold** has the values that are listed and no others. Any other has at most so many values, and"
    " `_other` stands for the rest; an empty value means that nobody said. "
)
_BY_HAND = (
    "No component of reliakit tells these: they are names for what your service has of the kind, counted with"
    " `increment` and `observe`."
)


def catalogue(kit: Kit) -> str:
    """Return the page of all metrics and objectives, as Markdown."""
    lines = [
        "# All metrics",
        "",
        f"{_INTRODUCTION}Names stand in a scrape as `{kit.full('...')}`.",
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
        "| objective | holds | window, budget for | wants |",
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
            "What to do when an alert of the [rules](metrics.md#prometheus-and-grafana) fires. `page` wakes somebody,"
            " `ticket` waits for the morning."
        ),
        "",
    ]
    for alert in alerts(kit):
        lines += _chapter(kit, alert)
    return "\n".join(lines).rstrip() + "\n"


def _chapter(kit: Kit, alert: Alert) -> list[str]:
    advice = alert.advice
    held = f", for {duration(alert.wait)}" if alert.wait else ""
    return [
        f"## {alert.name}",
        "",
        advice.meaning,
        *(["", _speed(alert.condition)] if isinstance(alert.condition, Burn) else []),
        "",
        f"It fires ({alert.severity}{held}) on:",
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
        return "There are too few events to judge shares, yet at least half of them failed within six hours."
    pairs = " or ".join(
        f"{factor:g} times, seen over {long} and still over {short}" for factor, short, long in burn.pairs
    )
    return f"The budget of {duration(burn.objective.period)} is spent faster than it may be: {pairs}."
