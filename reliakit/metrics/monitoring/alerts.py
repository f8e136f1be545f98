"""The alerts, each with the words of its runbook: what it means, where to look, what helps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reliakit.metrics.monitoring.conditions import (
    Burn,
    Happened,
    Level,
    Share,
    bad_and_total,
    burn_budget,
    has_few,
)
from reliakit.metrics.objectives import AtMost, Below, Count, Ratio, Term

if TYPE_CHECKING:
    from reliakit.metrics.monitoring.conditions import Condition
    from reliakit.metrics.monitoring.kit import Kit
    from reliakit.metrics.objectives import Objective

__all__ = ["Advice", "Alert", "alert_name", "alerts"]

Severity = Literal["page", "ticket"]


@dataclass(frozen=True, slots=True)
class Advice:
    """What a runbook says.

    Attributes:
        meaning: What has happened, for somebody who was asleep a minute ago.
        look: Where to look, one step each.
        act: What helps.
    """

    meaning: str
    look: tuple[str, ...]
    act: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: Its name, which is its place in the runbooks too.
        condition: When it fires.
        severity: "page" wakes somebody, "ticket" waits for the morning.
        summary: One line; `{label}` stands for a label's value.
        advice: What the runbook says.
        wait: Seconds for which the condition must hold.
    """

    name: str
    condition: Condition
    severity: Severity
    summary: str
    advice: Advice
    wait: float = 0.0


def alerts(kit: Kit) -> list[Alert]:
    """Return every alert: those on the objectives, then those on the components."""
    return [alert for objective in kit.objectives for alert in _of(objective)] + list(_COMPONENTS)


def alert_name(objective: Objective) -> str:
    """Return what the names of an objective's alerts begin with."""
    return "Reliakit" + "".join(word.capitalize() for word in re.split("[^a-zA-Z0-9]+", objective.name))


def _of(objective: Objective) -> list[Alert]:
    name = alert_name(objective)
    goal = objective.goal
    advice = _ADVICE.get(objective.name) or Advice(
        f"The objective `{objective.name}` is not met. {objective.help}".strip(),
        (f'`slo_verdict{{slo="{objective.name}"}}`, and the metrics that the objective looks at.',),
        ("Find what has changed since the verdict was `met`, and take it back.",),
    )
    if isinstance(goal, AtMost):
        condition = Level(goal.metric, goal.target, wait=300.0)
        return [Alert(name, condition, "ticket", _summary(objective), advice, wait=300.0)]
    if isinstance(goal, Below | Ratio):
        return _burning(name, objective, advice)
    bad, _ = bad_and_total(goal)
    severity: Severity = "page" if objective.name in _PAGES else "ticket"
    return [Alert(name, Happened(bad), severity, _summary(objective), advice)]


def _burning(name: str, objective: Objective, advice: Advice) -> list[Alert]:
    if burn_budget(objective) >= 1:
        return []  # nothing is forbidden
    summary = f"{{job}}: the error budget of {objective.name}"
    found = [
        Alert(
            f"{name}BurnsFast", Burn(objective, "fast"), "page", f"{summary} will be gone within days", advice, 120.0
        ),
        Alert(f"{name}BurnsSlowly", Burn(objective, "slow"), "ticket", f"{summary} will not last", advice, 900.0),
    ]
    # The others wait for so many events in an hour; what is fewer than these is nobody's business.
    if has_few(objective):
        summary = f"{{job}}: few events, and at least half of them fail {objective.name}"
        found.append(Alert(f"{name}FailsAtLowTraffic", Burn(objective, "few"), "ticket", summary, advice))
    return found


def _summary(objective: Objective) -> str:
    return "{job}: " + _BROKEN.get(objective.name, f"the objective {objective.name} is not met")


_PAGES = frozenset({"leaked_connections", "secrets_masked"})
_BROKEN = {
    "deadlocks": "a deadlock reached a caller",
    "leaked_connections": "a connection was lost to its pool",
    "errors_tracked": "an error was not counted or not tracked",
    "error_resolution": "a kind of error has been open for more than an hour",
    "secrets_masked": "a secret was found in the log",
}

_ADVICE = {
    "transaction_latency": Advice(
        "Too many attempts of transactions take longer than 0.1 s, from asking for a connection to the outcome.",
        (
            "`transaction_duration_seconds` by `operation`: one operation, or all of them?",
            "`db_pool_wait_seconds`: if the time goes into waiting for a connection, see ReliakitPoolExhausted.",
            "The log lines of slow transactions name their slowest statements.",
            "`transaction_retries_total`: attempts that collide wait for each other first.",
        ),
        (
            "One operation: EXPLAIN its slowest statement; the usual answer is an index or a shorter transaction.",
            "All operations: look at the database server, its disk, locks and the last deployment.",
            "A batch job beside the traffic: give it its own pool, or let it run at night.",
        ),
    ),
    "rollback_rate": Advice(
        "Too many transactions are rolled back although no code asked for it with `set_rollback_only()`.",
        (
            "`db_errors_total` by `sqlstate`: constraints (23xxx), timeouts (57014), lost connections (08xxx)?",
            '`transaction_total{status="rollback"}` by `operation`.',
            "`error_total` by `type`: an exception in the code causes a rollback, too.",
        ),
        (
            "Exceptions that are part of normal business: call `set_rollback_only()` before you raise them.",
            "Constraint violations: validate the input before the transaction.",
            "After a deployment: roll the deployment back.",
        ),
    ),
    "deadlocks": Advice(
        "The database ended a transaction because it and another waited for each other, and no retry followed.",
        (
            "The error's log line has the operation; the server's log has both statements.",
            '`transaction_retries_total{reason="deadlock"}`: deadlocks that were retried, and did no harm.',
        ),
        (
            "Lock rows in the same order everywhere, for instance by primary key.",
            "Run the operation with `db.run(...)` or `@db.transactional`, which try it again.",
        ),
    ),
    "leaked_connections": Advice(
        "A connection was taken from the pool and will never come back. When all are gone the service stands still.",
        (
            "The warning in the log names the line that took the connection.",
            "`db_pool_connections` and `db_pool_waiting`: how many are left?",
        ),
        (
            "Take connections in a `with` block.",
            "Restart the service if few connections are left; the leak comes back until that line is fixed.",
        ),
    ),
    "errors_tracked": Advice(
        "An error was seen that could not be counted or tracked, so the other figures on errors are too low.",
        (
            "`metrics_dropped_total` by `reason`: a wrong label or metric name?",
            "The log has one line about the listener that raised.",
        ),
        ("Fix the listener or the call; please report errors of the library itself.",),
    ),
    "error_resolution": Advice(
        "A kind of error has been open for longer than an hour.",
        (
            "The error tracker lists the open kinds of errors with their fingerprint, count and last request.",
            '`error_opened_total{kind="returned"}`: is it one that came back after it had been resolved?',
        ),
        ("Fix it, or if it is known and harmless, resolve it by hand: `tracker.resolve(fingerprint)`.",),
    ),
    "secrets_masked": Advice(
        "Somebody found a planted or known secret in the log: masking has a hole.",
        (
            "`log_secrets_total` by `result`.",
            "Search the log store for the planted value and see which logger and field carried it.",
        ),
        (
            "Revoke the secret, then remove the lines from every log store.",
            "Add the key or a detector to the masker, or `register_secret` the value.",
        ),
    ),
}


def _term(metric: str, **labels: str | tuple[str, ...]) -> Term:
    return Term(
        metric, tuple((name, (value,) if isinstance(value, str) else value) for name, value in labels.items())
    )


def _count(metric: str, **labels: str | tuple[str, ...]) -> Count:
    return Count((_term(metric, **labels),))


_COMPONENTS = (
    Alert(
        "ReliakitCommitUnknown",
        Happened(_count("transaction_total", status="unknown")),
        "ticket",
        "{job}: the outcome of a commit is not known",
        Advice(
            "A connection broke while COMMIT was under way: the write may or may not have happened.",
            (
                "The log line of the CommitUnknownError has the operation, and the transaction's id if it is known.",
                "`db.outcome(id)`, or `pg_xact_status(id)` in SQL, says what became of it.",
            ),
            (
                "Give writes an idempotency key, so that they can be repeated safely.",
                "Many at once: look at the network, the proxy and failovers of the database.",
            ),
        ),
    ),
    Alert(
        "ReliakitPoolExhausted",
        Happened(_count("db_pool_timeouts_total"), by=("pool",), window=300.0),
        "page",
        "{job}: callers of pool {pool} waited for a connection in vain",
        Advice(
            "All connections of the pool are in use, and callers gave up waiting.",
            (
                "`db_pool_checkout_age_seconds`: one connection held for long points to a slow statement or a leak.",
                "`db_pool_use_seconds`: are connections held while something else is waited for?",
                "`db_pool_waiting` and the traffic: is there simply more to do?",
            ),
            (
                "Do not call other services while a connection is held.",
                "A larger `max_size` helps only while the database server has room for it.",
                "Limit the callers: a RateLimiter or Bulkhead in front fails fast instead of late.",
            ),
        ),
    ),
    Alert(
        "ReliakitPoolQueueing",
        Level("db_pool_waiting", 0.0, by=("pool",), wait=300.0),
        "ticket",
        "{job}: callers of pool {pool} queue for connections all the time",
        Advice(
            "For minutes, every look at the pool has found callers waiting: it is too small for its work.",
            ("`db_pool_wait_seconds` shows how long, `db_pool_use_seconds` what they wait for.",),
            ("Hold connections for a shorter time, or raise `max_size`.",),
        ),
        wait=300.0,
    ),
    Alert(
        "ReliakitCheckoutOverdue",
        Happened(_count("db_pool_overdue_checkouts_total"), by=("pool",)),
        "ticket",
        "{job}: a connection of pool {pool} was held suspiciously long",
        Advice(
            "A connection was held for longer than `leak_after`: slow work, or a leak about to happen.",
            ("The log line names the caller's line that took it.",),
            ("Split the work into shorter transactions, or raise `leak_after` for a job that may take its time.",),
        ),
    ),
    Alert(
        "ReliakitReplicaUnreachable",
        Happened(_count("db_replica_fallbacks_total"), by=("pool",)),
        "ticket",
        "{job}: read-only transactions of {pool} went to the primary, as a replica did not answer",
        Advice(
            "A replica cannot be reached. The service works, and the primary carries the reads too.",
            ("The replica's server, its replication, and the network to it.",),
            ("Bring the replica back, or take it out of the configuration.",),
        ),
    ),
    Alert(
        "ReliakitOutboxDead",
        Happened(_count("outbox_failures_total", outcome="dead"), by=("outbox",)),
        "page",
        "{job}: a message of outbox {outbox} was given up",
        Advice(
            "A relay has used up the attempts of a message and set it aside: its receiver has not got it.",
            ("The outbox's table has the dead message with its last error.",),
            ("Fix the handler or the message, then try it again with `outbox.redrive(db)`.",),
        ),
    ),
    Alert(
        "ReliakitCircuitOpen",
        Level("circuit_breaker_state", 0.0, labels=(("state", "open"),), by=("name",), wait=300.0),
        "ticket",
        "{job}: circuit breaker {name} has been open for minutes",
        Advice(
            "A dependency keeps failing, so it is not called. Callers get CircuitOpenError, or their fallback.",
            (
                "`circuit_breaker_transitions_total`: does it close in between?",
                "`error_total` by `type`, and the dependency's own monitoring.",
            ),
            ("Bring the dependency back. The breaker finds out by itself, with one probe per break.",),
        ),
        wait=300.0,
    ),
    Alert(
        "ReliakitStoreDown",
        Level("store_up", 1.0, by=("store",), below=True, wait=60.0),
        "ticket",
        "{job}: shared store {store} does not answer",
        Advice(
            "The shared store is down. Limiters decide locally, or as `on_store_error` says, so limits are looser.",
            ("The store's server, its memory and connections, and the network to it.",),
            ("Bring the store back; the service finds it again by itself.",),
        ),
        wait=60.0,
    ),
    Alert(
        "ReliakitServerErrors",
        Share(
            _term("http_server_request_duration_seconds", status_class="5xx"),
            _term("http_server_request_duration_seconds"),
            above=0.05,
        ),
        "page",
        "{job}: more than 5 % of the requests end in a server error",
        Advice(
            "Requests fail because of a fault in the service, not in the request.",
            (
                "`http_server_requests_total` by `route` and `status`, `error_total` by `type`.",
                "The log lines of these errors, by request id.",
            ),
            ("After a deployment: roll the deployment back. Else look into the most frequent error.",),
        ),
        wait=300.0,
    ),
    Alert(
        "ReliakitLoginsFail",
        Happened(_count("security_total", event="failed_login"), window=300.0, above=100.0),
        "ticket",
        "{job}: more than 100 failed logins in five minutes",
        Advice(
            "Somebody may be guessing passwords, or a client has an old one.",
            ('`security_total{event="failed_login"}` by `source`: one address, or many?',),
            (
                "One source: block it in front of the service. A LoginGuard slows guessing down.",
                "Many sources and many accounts: expect stolen passwords; force new ones where a login succeeded.",
            ),
        ),
    ),
    Alert(
        "ReliakitLogsDropped",
        Happened(_count("log_dropped_total"), by=("reason",)),
        "ticket",
        "{job}: log records were not written ({reason})",
        Advice(
            "The log is not complete.",
            ("`reason`: a full queue means that the stream is too slow, an error that it is broken.",),
            ("Make whatever reads the stream faster, or log less; free the disk.",),
        ),
    ),
    Alert(
        "ReliakitMetricsDropped",
        Happened(_count("metrics_dropped_total"), by=("reason",)),
        "ticket",
        "{job}: values were not counted ({reason})",
        Advice(
            "Code counts something under a name, label or value that does not exist, so the figures lack it.",
            ("`reason`, and the last deployment.",),
            ("Correct the call; declare the metric first.",),
        ),
    ),
)
