"""Every metric that reliakit itself keeps, declared once.

The registry, the series that exist at 0 from the start, and the reference pages are made from this table. Names
follow the Prometheus conventions: counters end in `_total`, quantities carry their unit.
"""

from __future__ import annotations

from dataclasses import replace

from reliakit.metrics.labels import Label, fold_sqlstate, fold_status, fold_words
from reliakit.metrics.metric import LATENCY, Across, Metric

__all__ = ["CATALOGUE", "STATES"]

RESOLUTION = (60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 86400.0)
# The bounds that OpenTelemetry's semantic conventions advise for HTTP servers.
HTTP = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

STATES = ("closed", "open", "half_open", "forced_open", "disabled", "metrics_only")
SECURITY_EVENTS = ("failed_login", "login_blocked", "rate_limit", "invalid_token", "forbidden", "validation")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")


def _only(name: str, *values: str) -> Label:
    """Return a label with these values and no others; none of them is born."""
    return Label(name, values, limit=0)


def _named(name: str, limit: int = 200) -> Label:
    """Return a label for names that people choose."""
    return Label(name, limit=limit)


_SERVICE = _named("service", 50)
_OPERATION = _named("operation")
_STATUS = Label.one_of("status", "commit", "rollback", "timeout", "unknown", "retry")
_POOL = _named("pool", 50)
_ROUTE = _named("route", 500)


def _counter(name: str, text: str, *labels: Label, unit: str = "", born: bool = False) -> Metric:
    return Metric(name=name, kind="counter", help=text, unit=unit, labels=labels, born=born)


def _gauge(
    name: str,
    text: str,
    *labels: Label,
    unit: str = "",
    absent: bool = False,
    fixed: bool = False,
    across: Across = "livesum",
) -> Metric:
    return Metric(
        name=name, kind="gauge", help=text, unit=unit, labels=labels, absent=absent, fixed=fixed, across=across
    )


def _timing(name: str, text: str, *labels: Label, buckets: tuple[float, ...] = LATENCY) -> Metric:
    return Metric(name=name, kind="histogram", help=text, unit="seconds", labels=labels, buckets=buckets)


_TRANSACTIONS = (
    _timing(
        "transaction_duration_seconds",
        "Time of one attempt of a transaction, from asking for a connection to its outcome.",
        _SERVICE,
        _OPERATION,
        _STATUS,
    ),
    _counter("transaction_total", "Attempts of transactions, by outcome.", _SERVICE, _OPERATION, _STATUS, born=True),
    _counter(
        "transaction_deliberate_rollbacks_total",
        "Attempts that the code itself asked to roll back; they are part of the rollbacks.",
        _SERVICE,
        _OPERATION,
        born=True,
    ),
    # Before the retries, which are counted first and shown last: no scrape may show a retried deadlock as one that
    # reached its caller.
    _counter(
        "db_errors_total",
        "Attempts of transactions that the database ended with an error, by SQLSTATE; retried ones included.",
        Label("sqlstate", limit=60, born=("40001", "40P01"), fold=fold_sqlstate),
    ),
    _counter(
        "transaction_retries_total",
        "Attempts that were tried again, by reason.",
        _SERVICE,
        _OPERATION,
        Label.one_of("reason", "serialization", "deadlock", "connection", "other"),
        born=True,
    ),
    _counter(
        "transaction_hook_failures_total", "Hooks after a commit or rollback that raised.", _OPERATION, born=True
    ),
    _gauge("transaction_in_progress", "Transactions that are open now.", _SERVICE, _OPERATION),
)

_POOLS = (
    _gauge("db_pool_connections", "Connections of the pool, by state.", _POOL, _only("state", "idle", "in_use")),
    _gauge("db_pool_max", "Connections that the pool may open.", _POOL),
    _gauge("db_pool_waiting", "Callers that wait for a connection.", _POOL),
    _timing("db_pool_wait_seconds", "Time waited for a connection.", _POOL),
    _timing("db_pool_use_seconds", "Time a connection was held.", _POOL),
    _timing("db_pool_create_seconds", "Time to open a connection.", _POOL),
    _counter("db_pool_timeouts_total", "Waits that ended without a connection.", _POOL),
    _counter("db_pool_leaked_connections_total", "Connections that the pool will never get back.", _POOL, born=True),
    _counter("db_replica_fallbacks_total", "Read-only transactions that a replica could not take.", _POOL),
    _counter("db_pool_overdue_checkouts_total", "Connections held suspiciously long.", _POOL),
    _counter("db_pool_discarded_total", "Connections thrown away.", _POOL, _named("reason", 20)),
    _gauge("db_pool_checkout_age_seconds", "Age of the oldest checkout.", _POOL, unit="seconds", across="livemax"),
)

_OUTBOX = _named("outbox", 50)
_OUTBOXES = (
    _counter("outbox_relayed_total", "Messages that a relay has handed over.", _OUTBOX),
    _counter(
        "outbox_failures_total",
        "Tries of a relay that failed; `dead` messages are set aside and not tried again.",
        _OUTBOX,
        Label.one_of("outcome", "retried", "dead"),
    ),
    _timing(
        "outbox_lag_seconds", "Time from publishing a message to handing it over, the oldest of each batch.", _OUTBOX
    ),
)

_RESILIENCE = (
    _gauge(
        "circuit_breaker_state",
        "1 for the state that the breaker is in.",
        _named("name"),
        _only("state", *STATES),
        across="livemax",
    ),
    _counter(
        "circuit_breaker_calls_total",
        "Calls that a breaker guarded, by outcome.",
        _named("name"),
        Label.one_of("outcome", "success", "failure", "ignored", "rejected"),
    ),
    _counter(
        "circuit_breaker_transitions_total",
        "Changes of state.",
        _named("name"),
        _only("from", *STATES),
        _only("to", *STATES),
    ),
    _counter(
        "circuit_breaker_spared_total",
        "Times that a breaker which only watches would have opened.",
        _named("name"),
    ),
    _timing("circuit_breaker_call_duration_seconds", "Time of guarded calls.", _named("name")),
    _gauge(
        "circuit_breaker_failure_ratio",
        "Share of failures in the window.",
        _named("name"),
        unit="ratio",
        across="livemax",
    ),
    _counter("calls_rejected_total", "Calls that a guard refused.", _named("name"), _named("reason", 20)),
    _counter(
        "retry_attempts_total",
        "Attempts of calls that were tried again, by what followed: another attempt, or the end of the call.",
        _named("name"),
        Label.one_of("outcome", "retried", "success", "failure"),
    ),
    _counter(
        "retry_ended_total",
        "Calls that were tried again, by why they were not tried once more.",
        _named("name"),
        Label.one_of("reason", "success", "attempts", "deadline", "budget", "rejected", "retry_after", "error"),
    ),
    _counter("call_timeouts_total", "Calls cut by their own time limit.", _named("name")),
    _timing(
        "call_wait_seconds",
        "Time that calls queued for their turn.",
        _named("name"),
        Label.one_of("outcome", "granted", "refused"),
    ),
    _counter("call_fallbacks_total", "Failed calls whose callers got a stand-in for the result.", _named("name")),
    _counter("call_coalesced_total", "Calls not made, as an equal one was under way.", _named("name")),
    _counter(
        "hedge_calls_total",
        "Calls started more than once, by which copy answered.",
        _named("name"),
        Label.one_of("winner", "first", "later", "none"),
    ),
    _counter("hedge_copies_total", "Copies that these calls ran.", _named("name")),
    _gauge("adaptive_limit", "Calls that an adaptive limit lets run at once.", _named("name"), absent=True),
    _counter("deadline_overruns_total", "Calls that returned after their deadline, as nothing could cut them."),
    _counter(
        "rate_limit_decisions_total",
        "Decisions of rate limiters; `shadow` would have been limited if the limiter were enforced.",
        _named("limiter"),
        Label.one_of("decision", "allowed", "limited", "shadow"),
    ),
    _counter("rate_limit_degraded_total", "Decisions made without the shared store.", _named("limiter")),
    _timing("rate_limit_wait_seconds", "Time waited for a limiter.", _named("limiter")),
    _counter("store_failures_total", "Outages of shared stores.", _named("store", 50)),
    _gauge(
        "store_up", "1 while the shared store answers, 0 during an outage.", _named("store", 50), across="livemin"
    ),
)

_TROUBLE = (
    _counter(
        "error_total",
        "Exceptions that left a transaction, breaker, policy, web request or logger call, each once.",
        Label("type"),
        _SERVICE,
        _named("status", 100),
    ),
    _counter("error_untracked_total", "Errors that could not be counted in error_total, or not be tracked."),
    _counter(
        "error_opened_total",
        "Kinds of errors that were seen for the first time, or again after they had been resolved.",
        Label.one_of("kind", "new", "returned"),
    ),
    _gauge("error_open", "Kinds of errors that are not resolved.", absent=True),
    _timing("error_resolution_seconds", "Time from an error's beginning to its resolution.", buckets=RESOLUTION),
    _gauge(
        "error_oldest_open_seconds",
        "Age of the oldest unresolved error.",
        unit="seconds",
        absent=True,
        across="livemax",
    ),
    _counter(
        "security_total",
        "Security events; a source is named once five events are certain to be its own.",
        Label("event", SECURITY_EVENTS, limit=20, born=SECURITY_EVENTS),
        Label("source"),
        born=True,
    ),
    _counter("validation_failures_total", "Broken rules of schemas.", _named("schema"), _named("keyword", 100)),
)

_WEB = (
    _timing(
        "http_server_request_duration_seconds",
        "Time to the last byte of the response.",
        _only("method", *_METHODS),
        _ROUTE,
        _only("status_class", *_CLASSES),
        _only("outcome", "completed", "client_disconnect", "cancelled", "timeout", "error"),
        buckets=HTTP,
    ),
    _counter(
        "http_server_requests_total",
        "Requests, by the status that was sent.",
        _only("method", *_METHODS),
        _ROUTE,
        Label("status", fold=fold_status),
    ),
    _gauge("http_server_active_requests", "Requests that are being served."),
    _counter("http_server_response_body_bytes_total", "Bytes of body sent.", _ROUTE, unit="bytes"),
    _counter("http_server_request_body_bytes_total", "Bytes of body received.", _ROUTE, unit="bytes"),
    _counter(
        "http_server_timeouts_total",
        "Requests cut by a timeout.",
        _ROUTE,
        Label.one_of("phase", "first_byte", "idle"),
    ),
    _gauge("websocket_connections", "Open websockets.", _ROUTE),
    _counter("websocket_messages_total", "Messages over websockets.", Label.one_of("direction", "in", "out")),
)

# Rooms that reliakit does not have: names for what a service of yours has of them.
_BY_HAND = (
    _counter(
        "cache_requests_total",
        "Lookups in caches.",
        _named("cache"),
        Label.one_of("result", "hit", "miss", "stale", "bypass", "error"),
    ),
    _gauge("cache_entries", "Entries in a cache.", _named("cache")),
    _gauge("cache_bytes", "Bytes in a cache.", _named("cache"), unit="bytes"),
    _counter("cache_evictions_total", "Entries pushed out.", _named("cache"), _named("reason", 20)),
    _counter("cache_invalidations_total", "Entries declared stale.", _named("cache"), _named("reason", 20)),
    _timing("cache_load_duration_seconds", "Time to load a missing entry.", _named("cache")),
    _gauge(
        "service_instances", "Known instances.", _SERVICE, _only("state", "up", "down", "draining"), across="livemax"
    ),
    _gauge("health_check_status", "1 while the check passes.", _named("check"), across="livemin"),
    _timing("health_check_duration_seconds", "Time of a health check.", _named("check")),
    _counter("lb_requests_total", "Calls handed to an instance.", _SERVICE, _named("outcome", 20)),
)

_OURSELVES = (
    _counter(
        "log_records_total",
        "Log records written.",
        Label.one_of("level", "debug", "info", "warning", "error", "critical"),
    ),
    _counter(
        "log_dropped_total",
        "Log records that were not written.",
        Label("reason", limit=20, born=("queue_full", "error"), fold=fold_words),
    ),
    _counter(
        "log_secrets_total",
        "Secrets on their way to the log: masked, withheld with the whole text as masking failed, or found in it.",
        Label.one_of("result", "masked", "withheld", "leaked"),
    ),
    _gauge(
        "slo_verdict",
        "1 for the verdict on the objective.",
        _named("slo"),
        _only("verdict", "met", "at_risk", "breached", "insufficient_data"),
        fixed=True,
        across="livemax",
    ),
    _gauge(
        "slo_value",
        "What the objective is about, in its window: a share, a number of events, or seconds.",
        _named("slo"),
        fixed=True,
        across="liveall",
    ),
    _gauge(
        "slo_target",
        "What the value is held against: at least, where the goal is `below` or `complete`, else at most.",
        _named("slo"),
        _only("goal", "below", "ratio", "zero", "complete", "at_most"),
        fixed=True,
        across="livemax",
    ),
    _gauge("slo_events", "Events that the verdict rests on.", _named("slo"), fixed=True),
    _gauge(
        "slo_quantile_seconds",
        "What the wanted share of the measurements did not exceed, within 1 %.",
        _named("slo"),
        unit="seconds",
        fixed=True,
        across="liveall",
    ),
    _gauge(
        "slo_error_budget_remaining_ratio",
        "Share of the error budget of the window that is left; below 0 it is overspent.",
        _named("slo"),
        _named("window"),
        unit="ratio",
        fixed=True,
        across="liveall",
    ),
    _gauge(
        "slo_burn_rate",
        "How fast the error budget is spent: at 1 it lasts exactly its window.",
        _named("slo"),
        fixed=True,
        across="liveall",
    ),
    _gauge(
        "slo_budget_gone_seconds",
        "Seconds until no error budget is left at this pace; no series while it renews as fast as it is spent.",
        _named("slo"),
        unit="seconds",
        fixed=True,
        across="liveall",
    ),
    _gauge("metrics_series", "Series that the metric holds.", _named("metric", 1000), fixed=True, across="livemax"),
    _counter(
        "metrics_dropped_total",
        "Values that could not be counted.",
        Label.one_of(
            "reason", "unknown_metric", "unknown_label", "wrong_kind", "not_finite", "negative", "not_a_number"
        ),
    ),
    _gauge(
        "build_info",
        "1, with the versions as labels.",
        _named("version", 5),
        _named("python", 5),
        absent=True,
        across="livemax",
    ),
)

CATALOGUE: tuple[Metric, ...] = (
    *_TRANSACTIONS,
    *_POOLS,
    *_OUTBOXES,
    *_RESILIENCE,
    *_TROUBLE,
    *_WEB,
    *(replace(metric, by_hand=True) for metric in _BY_HAND),
    *_OURSELVES,
)
