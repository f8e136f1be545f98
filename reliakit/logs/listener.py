"""Events of reliakit's components as structured log records, each once and at a sensible level."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from reliakit.core import events
from reliakit.core.spine import Subscription, subscribe
from reliakit.logs.records import FIELDS, REQUEST_ID

__all__ = ["LogListener"]

_DENIALS_EVERY = 10.0
_MOST_LIMITERS = 256
Told = tuple[int, str, dict[str, Any], BaseException | None]
"""Level, message, fields and exception of the record that an event becomes."""


class LogListener:
    """Write a record for each event that an operator wants to read.

    Denials of rate limiters are told at most once in 10 s a limiter, with the number of those in between, so that an
    attack does not flood the log. `open()` subscribes, `close()` ends it. Safe from any thread.
    """

    def __init__(self) -> None:
        self._subscription: Subscription | None = None
        self._denials = _Sparing(_DENIALS_EVERY)

    def open(self) -> None:
        """Begin to listen."""
        if self._subscription is None:
            self._subscription = subscribe(self, *_RECORDS, events.LimitDecided)

    def close(self) -> None:
        """Stop listening. Closing twice is harmless."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def __call__(self, event: events.Event) -> None:
        """Write the record of one event."""
        if isinstance(event, events.LimitDecided):
            self._limit(event)
            return
        logger, tell = _RECORDS[type(event)]
        level, message, fields, error = tell(event)
        if logger.isEnabledFor(level):
            request_id = event.request_id if isinstance(event, events.RequestEnded) else None
            _write(logger, level, message, fields, error=error, request_id=request_id)

    def _limit(self, event: events.LimitDecided) -> None:
        if not event.denied or not _LIMITS.isEnabledFor(logging.WARNING):
            return
        before = self._denials.due(event.name, event.at)
        if before is None:
            return
        fields = {
            "limiter": event.name,
            "enforced": event.enforced,
            "degraded": event.degraded,
            "retry_after": event.retry_after,
            "denials": before + 1,
        }
        message = "rate limit reached" if event.enforced else "rate limit would have been reached"
        _write(_LIMITS, logging.WARNING, message, fields)

    def __repr__(self) -> str:
        return f"<LogListener {'open' if self._subscription else 'closed'}>"


class _Sparing:
    """Let one of many through in a while, counting the others. Bounded."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._lock = threading.Lock()
        self._names: dict[str, tuple[float, int]] = {}

    def due(self, name: str, now: float) -> int | None:
        """Return how many were held back since the last one, or None when this one is held back too."""
        with self._lock:
            since, held = self._names.get(name, (-self._every, 0))
            if name in self._names and now - since < self._every:
                self._names[name] = (since, held + 1)
                return None
            if name not in self._names and len(self._names) >= _MOST_LIMITERS:
                self._names.pop(next(iter(self._names)))
            self._names[name] = (now, 0)
            return held


def _write(
    logger: logging.Logger,
    level: int,
    message: str,
    fields: dict[str, Any],
    *,
    error: BaseException | None = None,
    request_id: str | None = None,
) -> None:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logger.makeRecord(logger.name, level, __file__, 0, message, (), info)
    record.__dict__[FIELDS] = fields
    record.__dict__[REQUEST_ID] = request_id
    logger.handle(record)


def _transaction(event: events.TransactionEnded) -> Told:
    level = {
        "commit": logging.DEBUG,
        "retry": logging.INFO,
        "rollback": logging.INFO if event.deliberate else logging.WARNING,
        "timeout": logging.WARNING,
        "unknown": logging.ERROR,
    }[event.status]
    fields: dict[str, Any] = {
        "database": event.name,
        "operation": event.operation,
        "status": event.status,
        "attempt": event.attempt,
        "duration": event.duration,
        "wait": event.wait,
        "statements": event.statements,
        "rows": event.rows,
    }
    if event.hold is not None:
        fields["hold"] = event.hold
    if event.sqlstate is not None:
        fields["sqlstate"] = event.sqlstate
    if event.error_type is not None:
        fields["error_type"] = event.error_type
    if event.transaction_id is not None:
        fields["transaction_id"] = event.transaction_id
    return level, _TRANSACTION_MESSAGES[event.status], fields, None


def _slow(event: events.TransactionSlow) -> Told:
    fields: dict[str, Any] = {
        "database": event.name,
        "operation": event.operation,
        "status": event.status,
        "attempt": event.attempt,
        "duration": event.duration,
        "wait": event.wait,
        "hold": event.hold,
        "slow_after": event.slow_after,
        "statements": [statement._asdict() for statement in event.statements],
        "left_out": event.left_out,
    }
    return logging.WARNING, "transaction is slow", fields, None


_TRANSACTION_MESSAGES = {
    "commit": "transaction committed",
    "rollback": "transaction rolled back",
    "timeout": "transaction timed out",
    "unknown": "outcome of the transaction's commit is unknown",
    "retry": "transaction is tried again",
}


def _circuit(event: events.CircuitChanged) -> Told:
    fields = {"breaker": event.name, "previous": event.previous, "state": event.state, "cause": event.cause}
    if event.retry_after is not None:
        fields["retry_after"] = event.retry_after  # type: ignore[assignment]  # a number among texts
    return logging.WARNING, "circuit changed", fields, None


def _overrun(event: events.DeadlineOverrun) -> Told:
    return logging.WARNING, "deadline overrun", {"seconds": event.seconds, "elapsed": event.elapsed}, None


def _access(event: events.RequestEnded) -> Told:
    fields = {
        "method": event.method,
        "route": event.route,
        "status": event.status,
        "duration": event.duration,
        "outcome": event.outcome,
    }
    return logging.INFO, "request ended", fields, None


def _security(event: events.SecurityNoticed) -> Told:
    return logging.WARNING, "security event", {**event.fields, "event": event.event, "source": event.source}, None


def _store_failed(event: events.StoreFailed) -> Told:
    return logging.WARNING, "store failed", {"store": event.store, "user": event.name, "reason": event.reason}, None


def _store_recovered(event: events.StoreRecovered) -> Told:
    return logging.INFO, "store recovered", {"store": event.store, "user": event.name, "outage": event.outage}, None


def _overdue(event: events.CheckoutOverdue) -> Told:
    fields = {"database": event.name, "age": event.age, "line": event.line}
    return logging.WARNING, "connection is held for too long", fields, None


def _leaked(event: events.ConnectionLeaked) -> Told:
    return logging.ERROR, "connection leaked", {"database": event.name, "reason": event.reason}, None


def _hook(event: events.HookFailed) -> Told:
    fields = {"database": event.name, "operation": event.operation, "hook": event.hook}
    return logging.ERROR, "transaction hook failed", fields, event.error


_LIMITS = logging.getLogger("reliakit.ratelimit")
_RECORDS: dict[type[events.Event], tuple[logging.Logger, Callable[[Any], Told]]] = {
    events.TransactionEnded: (logging.getLogger("reliakit.transaction"), _transaction),
    events.TransactionSlow: (logging.getLogger("reliakit.transaction"), _slow),
    events.CheckoutOverdue: (logging.getLogger("reliakit.database"), _overdue),
    events.ConnectionLeaked: (logging.getLogger("reliakit.database"), _leaked),
    events.HookFailed: (logging.getLogger("reliakit.transaction"), _hook),
    events.CircuitChanged: (logging.getLogger("reliakit.breaker"), _circuit),
    events.DeadlineOverrun: (logging.getLogger("reliakit.deadline"), _overrun),
    events.RequestEnded: (logging.getLogger("reliakit.access"), _access),
    events.SecurityNoticed: (logging.getLogger("reliakit.security"), _security),
    events.StoreFailed: (logging.getLogger("reliakit.store"), _store_failed),
    events.StoreRecovered: (logging.getLogger("reliakit.store"), _store_recovered),
}
