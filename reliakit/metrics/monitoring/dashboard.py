"""The Grafana dashboard: every metric of the catalogue on a panel, or left out on purpose.

The text is the same at every run: ids count up, keys stand in one order, nothing depends on the day.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from reliakit.metrics.metric import Metric
    from reliakit.metrics.monitoring.kit import Kit

__all__ = ["LEFT_OUT", "ROWS", "Panel", "dashboard", "expressions"]

Unit = Literal["s", "percentunit", "short", "ops", "Bps", "bytes", "reqps"]
# A third of a row each, as Grafana counts: 24 columns.
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_WHERE = 'job=~"$job", instance=~"$instance"'

# What no panel shows, and why.
LEFT_OUT = {
    "slo_target": "the verdicts' table has no room for constants",
    "slo_events": "said by `python -m reliakit slo`, next to the value that rests on them",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart.

    Attributes:
        title: Its heading.
        metric: The metric that it shows: a counter as its rate, a histogram as quantiles, a gauge as it is.
        by: The labels that tell its lines apart.
        unit: The unit of its axis.
        where: Only series with these label values.
        further: Metrics of the same kind on the same chart.
    """

    title: str
    metric: str
    by: tuple[str, ...] = ()
    unit: Unit = "short"
    where: str = ""
    further: tuple[str, ...] = ()


ROWS: dict[str, tuple[Panel, ...]] = {
    "Objectives": (
        Panel("Breached or at risk", "slo_verdict", ("slo", "verdict"), where='verdict=~"breached|at_risk"'),
        Panel("Error budget left", "slo_error_budget_remaining_ratio", ("slo",), "percentunit"),
        Panel("Burn rate", "slo_burn_rate", ("slo",)),
        Panel("Value", "slo_value", ("slo",)),
        Panel("Quantile that the objective is about", "slo_quantile_seconds", ("slo",), "s"),
        Panel("Budget gone in", "slo_budget_gone_seconds", ("slo",), "s"),
    ),
    "HTTP": (
        Panel("Requests", "http_server_requests_total", ("status",), "reqps"),
        Panel("Duration", "http_server_request_duration_seconds", (), "s"),
        Panel("Active requests", "http_server_active_requests", ("instance",)),
        Panel("Timeouts", "http_server_timeouts_total", ("route", "phase"), "ops"),
        Panel(
            "Traffic",
            "http_server_response_body_bytes_total",
            (),
            "Bps",
            further=("http_server_request_body_bytes_total",),
        ),
        Panel("Websockets", "websocket_connections", ("route",)),
        Panel("Websocket messages", "websocket_messages_total", ("direction",), "ops"),
    ),
    "Transactions": (
        Panel("Attempts", "transaction_total", ("status",), "ops"),
        Panel("Duration", "transaction_duration_seconds", ("operation",), "s"),
        Panel("In progress", "transaction_in_progress", ("operation",)),
        Panel("Retries", "transaction_retries_total", ("reason",), "ops"),
        Panel("Errors of the database", "db_errors_total", ("sqlstate",), "ops"),
        Panel(
            "Deliberate rollbacks, failed hooks",
            "transaction_deliberate_rollbacks_total",
            (),
            "ops",
            further=("transaction_hook_failures_total",),
        ),
    ),
    "Pool": (
        Panel("Connections", "db_pool_connections", ("pool", "state"), further=()),
        Panel("Most connections", "db_pool_max", ("pool",)),
        Panel("Waiting callers", "db_pool_waiting", ("pool",)),
        Panel("Wait", "db_pool_wait_seconds", ("pool",), "s"),
        Panel("Use", "db_pool_use_seconds", ("pool",), "s"),
        Panel("Oldest checkout", "db_pool_checkout_age_seconds", ("pool",), "s"),
        Panel("Opening a connection", "db_pool_create_seconds", ("pool",), "s"),
        Panel("Connections thrown away", "db_pool_discarded_total", ("pool", "reason"), "ops"),
        Panel(
            "Timeouts, leaks, overdue checkouts, fallbacks",
            "db_pool_timeouts_total",
            ("pool",),
            "ops",
            further=(
                "db_pool_leaked_connections_total",
                "db_pool_overdue_checkouts_total",
                "db_replica_fallbacks_total",
            ),
        ),
    ),
    "Outbox": (
        Panel("Messages handed over", "outbox_relayed_total", ("outbox",), "ops"),
        Panel("Failures", "outbox_failures_total", ("outbox", "outcome"), "ops"),
        Panel("Lag", "outbox_lag_seconds", ("outbox",), "s"),
    ),
    "Breakers and guarded calls": (
        Panel("Breakers that are not closed", "circuit_breaker_state", ("name", "state"), where='state!="closed"'),
        Panel("Calls", "circuit_breaker_calls_total", ("name", "outcome"), "ops"),
        Panel("Transitions", "circuit_breaker_transitions_total", ("name", "to"), "ops"),
    ),
    "Limits and stores": (
        Panel("Decisions", "rate_limit_decisions_total", ("limiter", "decision"), "ops"),
        Panel("Waits", "rate_limit_wait_seconds", ("limiter",), "s"),
        Panel("Decided without the store", "rate_limit_degraded_total", ("limiter",), "ops"),
        Panel("Stores", "store_up", ("store",)),
        Panel("Outages", "store_failures_total", ("store",), "ops"),
    ),
    "Errors": (
        Panel("Errors", "error_total", ("type",), "ops"),
        Panel("Open kinds", "error_open", ()),
        Panel("Oldest open one", "error_oldest_open_seconds", (), "s"),
        Panel("Kinds that open", "error_opened_total", ("kind",), "ops"),
        Panel("Time to resolution", "error_resolution_seconds", (), "s"),
        Panel("Not counted", "error_untracked_total", (), "ops"),
        Panel("Refused values", "validation_failures_total", ("schema", "keyword"), "ops"),
    ),
    "Security and logs": (
        Panel("Security events", "security_total", ("event",), "ops"),
        Panel("Sources of failed logins", "security_total", ("source",), "ops", where='event="failed_login"'),
        Panel("Secrets on their way to the log", "log_secrets_total", ("result",), "ops"),
        Panel("Log records", "log_records_total", ("level",), "ops"),
        Panel("Log records lost", "log_dropped_total", ("reason",), "ops"),
        Panel("Values not counted", "metrics_dropped_total", ("reason",), "ops"),
        Panel("Series", "metrics_series", ("metric",)),
        Panel("Versions", "build_info", ("version", "python")),
    ),
}
# What no component tells stays folded: Grafana asks for nothing of it until somebody opens it.
_FOLDED = "Counted by your own code"


def dashboard(kit: Kit) -> str:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    number = top = 0
    for title, row in _rows(kit).items():
        heading = _heading(title, number + 1, top)
        charts = [_chart(kit, panel, number + 2 + place, place, top + 1) for place, panel in enumerate(row)]
        number += 1 + len(charts)
        top += 1
        panels.append(heading)
        if title == _FOLDED:
            heading.update(collapsed=True, panels=charts)
        else:
            panels += charts
            top += _HEIGHT * -(-len(row) // _PER_ROW)
    return json.dumps(_frame(kit, panels), indent=2, ensure_ascii=False) + "\n"


def expressions(kit: Kit) -> list[str]:
    """Return every expression of the dashboard."""
    return [text for row in _rows(kit).values() for panel in row for text, _ in _queries(kit, panel)]


def _rows(kit: Kit) -> dict[str, tuple[Panel, ...]]:
    """Return the rows, with a panel of its own for every metric that none of them names."""
    shown = {name for row in ROWS.values() for panel in row for name in (panel.metric, *panel.further)}
    rest = [metric for metric in kit.metrics if metric.name not in shown and metric.name not in LEFT_OUT]
    rows = {
        **ROWS,
        "More": tuple(_plain(metric) for metric in rest if not metric.by_hand),
        _FOLDED: tuple(_plain(metric) for metric in rest if metric.by_hand),
    }
    return {title: row for title, row in rows.items() if row}


def _plain(metric: Metric) -> Panel:
    units: dict[str, Unit] = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
    unit = units.get(metric.unit, "ops" if metric.kind == "counter" else "short")
    by = tuple(label.name for label in metric.labels[:2]) if metric.kind != "histogram" else ()
    return Panel(metric.help.partition(",")[0].rstrip("."), metric.name, by, unit)


def _queries(kit: Kit, panel: Panel) -> list[tuple[str, str]]:
    """Return the expressions of a panel, each with what its lines are called."""
    found: list[tuple[str, str]] = []
    for name in (panel.metric, *panel.further):
        metric = next(one for one in kit.metrics if one.name == name)
        where = f"{_WHERE}, {panel.where}" if panel.where else _WHERE
        legend = " ".join(f"{{{{{label}}}}}" for label in panel.by)
        if panel.further:
            legend = f"{name} {legend}".strip()
        found += _of_kind(kit, metric, where, panel.by, legend)
    return found


def _of_kind(kit: Kit, metric: Metric, where: str, by: tuple[str, ...], legend: str) -> list[tuple[str, str]]:
    full = kit.full(metric.name)
    if metric.kind == "histogram":
        labels = ", ".join(("le", *by))
        rate = f"sum by ({labels}) (rate({full}_bucket{{{where}}}[$__rate_interval]))"
        shares = (0.5, 0.95, 0.99)
        return [(f"histogram_quantile({share}, {rate})", f"p{share * 100:g} {legend}".strip()) for share in shares]
    grouped = f" by ({', '.join(by)})" if by else ""
    if metric.kind == "counter":
        return [(f"sum{grouped} (rate({full}{{{where}}}[$__rate_interval]))", legend or metric.name)]
    gathered = "min" if metric.across == "livemin" else "max" if metric.across == "livemax" else "sum"
    return [(f"{gathered}{grouped} ({full}{{{where}}})", legend or metric.name)]


def _heading(title: str, number: int, top: int) -> dict[str, Any]:
    place = {"h": 1, "w": 24, "x": 0, "y": top}
    return {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}


def _chart(kit: Kit, panel: Panel, number: int, place: int, top: int) -> dict[str, Any]:
    metric = next(one for one in kit.metrics if one.name == panel.metric)
    source = {"type": "prometheus", "uid": "$datasource"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": metric.help,
        "datasource": source,
        "gridPos": {
            "h": _HEIGHT,
            "w": _WIDTH,
            "x": place % _PER_ROW * _WIDTH,
            "y": top + place // _PER_ROW * _HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": text, "legendFormat": legend}
            for index, (text, legend) in enumerate(_queries(kit, panel))
        ],
    }


def _frame(kit: Kit, panels: list[dict[str, Any]]) -> dict[str, Any]:
    seen = kit.full("build_info")
    return {
        "uid": f"{kit.namespace or 'bare'}-overview",
        "title": f"{kit.namespace or 'reliakit'}: overview",
        "description": "Made by `python -m reliakit metrics dashboard` from the declarations of the metrics.",
        "tags": ["reliakit"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
                _variable("job", f"label_values({seen}, job)"),
                _variable("instance", f'label_values({seen}{{job=~"$job"}}, instance)'),
            ]
        },
        "panels": panels,
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "$datasource"},
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
