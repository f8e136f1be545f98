"""The seven objectives that every `Metrics` judges, unless it is given others of the same names."""

from __future__ import annotations

from collections.abc import Iterable

from reliakit.core.errors import ConfigurationError
from reliakit.metrics.objectives import Objective, at_most, below, complete, count, ratio, zero

__all__ = ["DEFAULTS", "with_defaults"]

# Attempts of transactions are counted twice when events tell of them, once when only `increment` or `observe` does.
_COUNTED = count("transaction_total")
_TIMED = count("transaction_duration_seconds")
_ATTEMPTS = _COUNTED | _TIMED
_DELIBERATE = count("transaction_deliberate_rollbacks_total")
_ERRORS = count("error_total")
_SECRETS = count("log_secrets_total")

DEFAULTS: tuple[Objective, ...] = (
    Objective(
        "transaction_latency",
        below("transaction_duration_seconds", 0.1, 0.95),
        help="95 % of the attempts of transactions take 0.1 s or less.",
    ),
    Objective(
        "rollback_rate",
        ratio(
            bad=(count("transaction_total", status="rollback") - _DELIBERATE)
            | (count("transaction_duration_seconds", status="rollback") - _DELIBERATE),
            total=(_COUNTED - count("transaction_total", status="retry") - _DELIBERATE)
            | (_TIMED - count("transaction_duration_seconds", status="retry") - _DELIBERATE),
            limit=0.01,
        ),
        help="At most 1 % of the transactions are rolled back without the code having asked for it.",
    ),
    Objective(
        "deadlocks",
        # Those that reached the caller: a deadlock that a retry resolved is counted in both.
        zero(
            count("db_errors_total", sqlstate="40P01") - count("transaction_retries_total", reason="deadlock"),
            among=_ATTEMPTS,
        ),
        help="No deadlock reaches a caller; those that a retry resolves are no harm.",
    ),
    Objective(
        "leaked_connections",
        zero("db_pool_leaked_connections_total", among=_ATTEMPTS),
        help="No connection is lost to its pool.",
    ),
    Objective(
        "errors_tracked",
        complete(seen=_ERRORS + count("error_untracked_total"), tracked=_ERRORS),
        help="Every error that leaves a component is counted and tracked.",
    ),
    Objective(
        "error_resolution",
        at_most("error_oldest_open_seconds", 3600.0),
        help="No kind of error stays open for more than an hour.",
    ),
    Objective(
        "secrets_masked",
        complete(seen=_SECRETS, tracked=_SECRETS - count("log_secrets_total", result="leaked")),
        help="Every secret on its way to the log is masked.",
    ),
)


def with_defaults(objectives: Iterable[Objective]) -> list[Objective]:
    """Return the seven, each replaced by the one of the same name that is given, and then the others that are given.

    Raises:
        ConfigurationError: Something else than objectives is given.
    """
    if not isinstance(objectives, Iterable):
        raise ConfigurationError(f"objectives must be a sequence of Objective, got {objectives!r}")
    merged = {objective.name: objective for objective in DEFAULTS}
    for objective in objectives:
        if not isinstance(objective, Objective):
            raise ConfigurationError(f"objectives must hold Objective, got {objective!r}")
        merged[objective.name] = objective
    return list(merged.values())
