"""Reliability for Python services: transactions, logs, breakers, limits, deadlines and metrics.

Every public name is importable from here and loaded on first use, so `from reliakit import CircuitBreaker` loads
neither psycopg nor prometheus_client nor asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.core.backoff import Backoff
    from reliakit.core.categories import ErrorClass, classify
    from reliakit.core.clock import SYSTEM_CLOCK, Clock
    from reliakit.core.context import RequestContext, current_request, request_context
    from reliakit.core.deadline import checkpoint, deadline, remaining
    from reliakit.core.errors import (
        BulkheadFullError,
        CircuitOpenError,
        CommitUnknownError,
        ConfigurationError,
        DeadlineExceededError,
        LoginBlockedError,
        NoInstanceError,
        OverloadedError,
        Problem,
        RateLimitedError,
        RejectedError,
        ReliakitError,
        RetryBudgetExceededError,
        StoreError,
        TransactionError,
        TransactionRolledBackError,
        TransactionTimeoutError,
        TransactionUsageError,
        ValidationError,
    )
    from reliakit.core.events import Event
    from reliakit.core.spine import Subscription, subscribe

__all__ = [
    "SYSTEM_CLOCK",
    "Backoff",
    "BulkheadFullError",
    "CircuitOpenError",
    "Clock",
    "CommitUnknownError",
    "ConfigurationError",
    "DeadlineExceededError",
    "ErrorClass",
    "Event",
    "LoginBlockedError",
    "NoInstanceError",
    "OverloadedError",
    "Problem",
    "RateLimitedError",
    "RejectedError",
    "ReliakitError",
    "RequestContext",
    "RetryBudgetExceededError",
    "StoreError",
    "Subscription",
    "TransactionError",
    "TransactionRolledBackError",
    "TransactionTimeoutError",
    "TransactionUsageError",
    "ValidationError",
    "checkpoint",
    "classify",
    "current_request",
    "deadline",
    "remaining",
    "request_context",
    "subscribe",
]

__version__ = "0.1.0"

# Public name -> home. The block above says the same to type checkers; a test compares the two.
_HOMES = {
    "Backoff": "reliakit.core.backoff",
    "ErrorClass": "reliakit.core.categories",
    "classify": "reliakit.core.categories",
    "Clock": "reliakit.core.clock",
    "SYSTEM_CLOCK": "reliakit.core.clock",
    "RequestContext": "reliakit.core.context",
    "current_request": "reliakit.core.context",
    "request_context": "reliakit.core.context",
    "checkpoint": "reliakit.core.deadline",
    "deadline": "reliakit.core.deadline",
    "remaining": "reliakit.core.deadline",
    "BulkheadFullError": "reliakit.core.errors",
    "CircuitOpenError": "reliakit.core.errors",
    "CommitUnknownError": "reliakit.core.errors",
    "ConfigurationError": "reliakit.core.errors",
    "DeadlineExceededError": "reliakit.core.errors",
    "LoginBlockedError": "reliakit.core.errors",
    "NoInstanceError": "reliakit.core.errors",
    "OverloadedError": "reliakit.core.errors",
    "Problem": "reliakit.core.errors",
    "RateLimitedError": "reliakit.core.errors",
    "RejectedError": "reliakit.core.errors",
    "ReliakitError": "reliakit.core.errors",
    "RetryBudgetExceededError": "reliakit.core.errors",
    "StoreError": "reliakit.core.errors",
    "TransactionError": "reliakit.core.errors",
    "TransactionRolledBackError": "reliakit.core.errors",
    "TransactionTimeoutError": "reliakit.core.errors",
    "TransactionUsageError": "reliakit.core.errors",
    "ValidationError": "reliakit.core.errors",
    "Event": "reliakit.core.events",
    "Subscription": "reliakit.core.spine",
    "subscribe": "reliakit.core.spine",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'reliakit' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
