"""Recording and alerting rules for Prometheus, and the trials that promtool puts them to.

The verdicts are recorded by the same arithmetic as `Metrics.slo()` judges with, over all instances of a job. Burn
rates follow "The Site Reliability Workbook" (Beyer et al., 2018), 5, with a least number of events beside each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reliakit.metrics.monitoring.alerts import alert_name, alerts
from reliakit.metrics.monitoring.conditions import JOB, MINUTES, bad_and_total
from reliakit.metrics.monitoring.kit import duration, quoted
from reliakit.metrics.monitoring.yaml import dump
from reliakit.metrics.objectives import AtMost, Below, Complete, Ratio
from reliakit.metrics.verdicts import VERDICTS, Z

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reliakit.metrics.monitoring.alerts import Alert
    from reliakit.metrics.monitoring.kit import Kit
    from reliakit.metrics.objectives import Objective

__all__ = ["RULES_FILE", "rules", "rules_test"]

RULES_FILE = "rules.yml"
Rule = dict[str, Any]
Fill = Callable[[str, "Alert"], str]
_WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
_HEADER = "# Made by `python -m reliakit metrics {command}` from the declarations of the metrics; do not edit.\n"


def rules(kit: Kit, runbooks: str = "docs/runbooks.md") -> str:
    """Return the rules file.

    Args:
        kit: What is declared.
        runbooks: Where the runbooks are; each alert's `runbook_url` is this with the alert's place in it.
    """
    named = alerts(kit)
    mine = [alert for alert in named if not _is_component(kit, alert)]
    rest = [alert for alert in named if _is_component(kit, alert)]
    groups = [
        {
            "name": f"{kit.namespace or 'bare'}-objectives",
            "rules": [*_recorded(kit), *_alerting(kit, mine, runbooks)],
        },
        {"name": f"{kit.namespace or 'bare'}-components", "rules": _alerting(kit, rest, runbooks)},
    ]
    return _HEADER.format(command="rules") + dump({"groups": groups})


def _is_component(kit: Kit, alert: Alert) -> bool:
    return not any(alert.name.startswith(alert_name(one)) for one in kit.objectives)


def _alerting(kit: Kit, chosen: list[Alert], runbooks: str) -> list[Rule]:
    found: list[Rule] = []
    for alert in chosen:
        rule: Rule = {"alert": alert.name, "expr": alert.condition.expression(kit)}
        if alert.wait:
            rule["for"] = duration(alert.wait)
        rule["labels"] = {"severity": alert.severity}
        rule["annotations"] = _annotations(alert, runbooks, _templates)
        found.append(rule)
    return found


def _templates(text: str, alert: Alert) -> str:
    for label in _labels(alert):
        text = text.replace(f"{{{label}}}", f"{{{{ $labels.{label} }}}}")
    return text


def _labels(alert: Alert) -> tuple[str, ...]:
    return ("job", *getattr(alert.condition, "by", ()))


def _annotations(alert: Alert, runbooks: str, fill: Fill) -> dict[str, str]:
    return {
        "summary": fill(alert.summary, alert),
        "description": alert.advice.meaning,
        "runbook_url": f"{runbooks}#{alert.name.lower()}",
    }


def _recorded(kit: Kit) -> list[Rule]:
    return [rule for one in kit.objectives for rule in (*_counts(kit, one), *_verdict(kit, one))]


def _counts(kit: Kit, objective: Objective) -> list[Rule]:
    """Return what records the bad and all events of an objective, in each window that is asked for."""
    goal = objective.goal
    if isinstance(goal, AtMost):
        return []
    own = duration(objective.window)
    windows = tuple(dict.fromkeys((own, *_WINDOWS))) if isinstance(goal, Below | Ratio) else (own,)
    bad, total = bad_and_total(goal)
    slo, chosen = {"slo": objective.name}, f"slo={quoted(objective.name)}"
    found: list[Rule] = []
    for window in windows:
        counted, whole = (f"job:{kit.full(name)}:increase{window}" for name in ("slo_bad", "slo_events"))
        found += [
            {"record": counted, "labels": slo, "expr": f"clamp_min({kit.increase(bad, window)}, 0)"},
            {"record": whole, "labels": slo, "expr": f"clamp_min({kit.increase(total, window)}, 0)"},
        ]
        if isinstance(goal, Below | Ratio):
            expression = f"clamp_max({counted}{{{chosen}}} / ({whole}{{{chosen}}} > 0), 1)"
            found.append({"record": f"job:{kit.full('slo_bad')}:ratio{window}", "labels": slo, "expr": expression})
    return found


def _verdict(kit: Kit, objective: Objective) -> list[Rule]:
    """Return what records 1 for the verdict that holds and 0 for the others."""
    goal, own = objective.goal, duration(objective.window)
    slo = f"slo={quoted(objective.name)}"
    bad = f"job:{kit.full('slo_bad')}:increase{own}{{{slo}}}"
    events = f"job:{kit.full('slo_events')}:increase{own}{{{slo}}}"
    # Counts are extrapolated by Prometheus; what is a hundredth away from a whole number is that number.
    enough = f"{events} > bool {objective.minimum - 0.01:g}"
    when: Mapping[str, str]
    if isinstance(goal, AtMost):
        value = f"max by (job) ({kit.full(kit.find(goal.metric).name)})"
        when = {"met": f"{value} <= bool {goal.target:g}", "breached": f"{value} > bool {goal.target:g}"}
        return [_says(kit, objective, name, expression) for name, expression in when.items()]
    if not isinstance(goal, Below | Ratio):
        broken = f"{bad} > bool 0.01"
        has_minimum = isinstance(goal, Complete) or goal.among is not None
        unsure = f"({bad} <= bool 0.01) * ({events} <= bool {objective.minimum - 0.01:g})"
        when = {
            "met": f"({bad} <= bool 0.01) * ({enough})" if has_minimum else f"{bad} <= bool 0.01",
            "breached": broken,
            "insufficient_data": unsure if has_minimum else f"0 * {bad}",
        }
        return [_says(kit, objective, name, expression) for name, expression in when.items()]
    limit = 1 - goal.target if isinstance(goal, Below) else goal.target
    low, high = (f"job:{kit.full('slo_bad')}:{end}{own}" for end in ("low", "high"))
    bounds = [
        {"record": name, "labels": {"slo": objective.name}, "expr": _wilson(kit, slo, own, sign)}
        for name, sign in ((low, "-"), (high, "+"))
    ]
    inside, outside = f"({high}{{{slo}}} <= bool {limit:.12g})", f"({low}{{{slo}}} > bool {limit:.12g})"
    when = {
        "met": f"{inside} * ({enough})",
        "at_risk": f"(1 - {inside}) * (1 - {outside}) * ({enough})",
        "breached": f"{outside} * ({enough})",
        "insufficient_data": f"{events} <= bool {objective.minimum - 0.01:g}",
    }
    return [*bounds, *(_says(kit, objective, name, when[name]) for name in VERDICTS)]


def _says(kit: Kit, objective: Objective, verdict: str, expression: str) -> Rule:
    name = f"job:{kit.full('slo_verdict')}:increase{duration(objective.window)}"
    return {"record": name, "labels": {"slo": objective.name, "verdict": verdict}, "expr": expression}


def _wilson(kit: Kit, slo: str, window: str, sign: str) -> str:
    """Return one end of the 95 % interval of the share of bad events, see `wilson`."""
    share = f"job:{kit.full('slo_bad')}:ratio{window}{{{slo}}}"
    total = f"job:{kit.full('slo_events')}:increase{window}{{{slo}}}"
    square = Z * Z
    middle = f"{share} + {square / 2:.12g} / {total}"
    spread = f"{Z:.12g} * sqrt({share} * (1 - {share}) / {total} + {square / 4:.12g} / {total} ^ 2)"
    return f"({middle}\n{sign} {spread})\n/ (1 + {square:.12g} / {total})"


def rules_test(kit: Kit, runbooks: str = "docs/runbooks.md", file: str = RULES_FILE) -> str:
    """Return the tests of the rules for `promtool test rules`.

    Args:
        kit: What is declared.
        runbooks: The same as for the rules.
        file: The rules file, seen from where the tests are.
    """
    tests = [_tried(kit, alert, runbooks) for alert in alerts(kit)]
    head: Rule = {"rule_files": [file], "evaluation_interval": "10m", "tests": tests}
    return _HEADER.format(command="rules-test") + dump(head)


def _tried(kit: Kit, alert: Alert, runbooks: str) -> Rule:
    """Return the test of one alert; each trial is a job of its own."""
    series: list[dict[str, str]] = []
    fired: list[Rule] = []
    for trial in alert.condition.trials(kit):
        for name, values in trial.series.items():
            series.append({"series": name.replace(f'job="{JOB}"', f'job="{trial.job}"'), "values": values})
        if trial.fires:
            labels = {"job": trial.job, **trial.labels}
            annotations = _annotations(alert, runbooks, _filled(labels))
            fired.append({"exp_labels": {**labels, "severity": alert.severity}, "exp_annotations": annotations})
    looked = {"eval_time": f"{MINUTES}m", "alertname": alert.name, "exp_alerts": fired}
    return {"name": alert.name, "interval": "1m", "input_series": series, "alert_rule_test": [looked]}


def _filled(labels: Mapping[str, str]) -> Fill:
    def fill(text: str, _alert: Alert) -> str:
        for name, value in labels.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    return fill
