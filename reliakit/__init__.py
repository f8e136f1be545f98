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
    from reliakit.database import (
        AsyncDatabase,
        AsyncRepository,
        AsyncTransaction,
        Database,
        DatabaseStats,
        Isolation,
        Propagation,
        Repository,
        Transaction,
        TransactionRetry,
        transactional,
    )
    from reliakit.logs import Logger, LoggingHandle, Masker, configure_logging, get_logger, log_context
    from reliakit.metrics import (
        Counter,
        Exposition,
        Gauge,
        Histogram,
        Metrics,
        Objective,
        Verdict,
        below,
        complete,
        ratio,
        zero,
    )
    from reliakit.ratelimit import ConcurrencyLimiter, Decision, Limit, RateLimiter
    from reliakit.resilience.breaker import BreakerSnapshot, CircuitBreaker, Permit, State
    from reliakit.stores import MemoryStore
    from reliakit.validation import Schema, validated
    from reliakit.web import (
        BodyLimit,
        Cors,
        ProblemResponse,
        ProblemResponses,
        RateLimitHeaders,
        RequestObserver,
        RequestTimeout,
        SecurityHeaders,
        client_ip,
        problem,
    )

__all__ = [
    "SYSTEM_CLOCK",
    "AsyncDatabase",
    "AsyncRepository",
    "AsyncTransaction",
    "Backoff",
    "BodyLimit",
    "BreakerSnapshot",
    "BulkheadFullError",
    "CircuitBreaker",
    "CircuitOpenError",
    "Clock",
    "CommitUnknownError",
    "ConcurrencyLimiter",
    "ConfigurationError",
    "Cors",
    "Counter",
    "Database",
    "DatabaseStats",
    "DeadlineExceededError",
    "Decision",
    "ErrorClass",
    "Event",
    "Exposition",
    "Gauge",
    "Histogram",
    "Isolation",
    "Limit",
    "Logger",
    "LoggingHandle",
    "LoginBlockedError",
    "Masker",
    "MemoryStore",
    "Metrics",
    "NoInstanceError",
    "Objective",
    "OverloadedError",
    "Permit",
    "Problem",
    "ProblemResponse",
    "ProblemResponses",
    "Propagation",
    "RateLimitHeaders",
    "RateLimitedError",
    "RateLimiter",
    "RejectedError",
    "ReliakitError",
    "Repository",
    "RequestContext",
    "RequestObserver",
    "RequestTimeout",
    "RetryBudgetExceededError",
    "Schema",
    "SecurityHeaders",
    "State",
    "StoreError",
    "Subscription",
    "Transaction",
    "TransactionError",
    "TransactionRetry",
    "TransactionRolledBackError",
    "TransactionTimeoutError",
    "TransactionUsageError",
    "ValidationError",
    "Verdict",
    "below",
    "checkpoint",
    "classify",
    "client_ip",
    "complete",
    "configure_logging",
    "current_request",
    "deadline",
    "get_logger",
    "log_context",
    "problem",
    "ratio",
    "remaining",
    "request_context",
    "subscribe",
    "transactional",
    "validated",
    "zero",
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
    "AsyncDatabase": "reliakit.database",
    "AsyncRepository": "reliakit.database",
    "AsyncTransaction": "reliakit.database",
    "Database": "reliakit.database",
    "DatabaseStats": "reliakit.database",
    "Isolation": "reliakit.database",
    "Propagation": "reliakit.database",
    "Repository": "reliakit.database",
    "Transaction": "reliakit.database",
    "TransactionRetry": "reliakit.database",
    "transactional": "reliakit.database",
    "Logger": "reliakit.logs",
    "LoggingHandle": "reliakit.logs",
    "Masker": "reliakit.logs",
    "configure_logging": "reliakit.logs",
    "get_logger": "reliakit.logs",
    "log_context": "reliakit.logs",
    "Counter": "reliakit.metrics",
    "Exposition": "reliakit.metrics",
    "Gauge": "reliakit.metrics",
    "Histogram": "reliakit.metrics",
    "Metrics": "reliakit.metrics",
    "Objective": "reliakit.metrics",
    "Verdict": "reliakit.metrics",
    "below": "reliakit.metrics",
    "complete": "reliakit.metrics",
    "ratio": "reliakit.metrics",
    "zero": "reliakit.metrics",
    "ConcurrencyLimiter": "reliakit.ratelimit",
    "Decision": "reliakit.ratelimit",
    "Limit": "reliakit.ratelimit",
    "RateLimiter": "reliakit.ratelimit",
    "BreakerSnapshot": "reliakit.resilience.breaker",
    "CircuitBreaker": "reliakit.resilience.breaker",
    "Permit": "reliakit.resilience.breaker",
    "State": "reliakit.resilience.breaker",
    "MemoryStore": "reliakit.stores",
    "Schema": "reliakit.validation",
    "validated": "reliakit.validation",
    "BodyLimit": "reliakit.web",
    "Cors": "reliakit.web",
    "ProblemResponse": "reliakit.web",
    "ProblemResponses": "reliakit.web",
    "RateLimitHeaders": "reliakit.web",
    "RequestObserver": "reliakit.web",
    "RequestTimeout": "reliakit.web",
    "SecurityHeaders": "reliakit.web",
    "client_ip": "reliakit.web",
    "problem": "reliakit.web",
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
