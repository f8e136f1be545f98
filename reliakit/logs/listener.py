"""Events of reliakit's components as structured log records, each once and at a sensible level."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from reliakit.core import events
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.spine import Subscription, subscribe
from reliakit.logs.calls import RECORDS, kind_of_flood
from reliakit.logs.records import FIELDS, REQUEST_ID
from reliakit.logs.sparing import Repeats

__all__ = ["LogListener"]

_PER_SOURCE = 5
_PER_EVENT = 50
_MOST_LIMITERS = 1024
Told = tuple[int, str, dict[str, Any], BaseException | None]
"""Level, message, fields and exception of the record that an event becomes."""


class LogListener:
    """Write a record for each event that an operator wants to read.

    Neither an attack nor an outage floods the log: denials are reported once in 10 s per limiter; calls that failed
    after retries, timed out or got a fallback, once in 10 s per policy; security events of one kind at most 5 times
    from one source and 50 times in all; each time with the number of those left out. If a limiter has reported a
    refusal at the web edge, it is not reported again as a security event. `open()` subscribes, `close()` ends it.
    Safe from any thread.
    """

    def __init__(self) -> None:
        self._subscription: Subscription | None = None
        # Re-entrant: a finaliser that runs while it is held may emit an event.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        self._denials: Repeats[str] = Repeats(1)
        self._limiters: dict[str, None] = {}
        self._by_source: Repeats[tuple[str, ...]] = Repeats(_PER_SOURCE)
        self._by_event: Repeats[tuple[str, ...]] = Repeats(_PER_EVENT)
        self._calls: Repeats[tuple[str, str]] = Repeats(1)

    def open(self) -> None:
        """Start listening."""
        if self._subscription is None:
            self._subscription = subscribe(self, *_RECORDS, events.LimitDenied, events.SecurityNoticed)

    def close(self) -> None:
        """Stop listening, and report what was left out. Closing twice is harmless."""
        if self._subscription is None:
            return
        self._subscription.close()
        self._subscription = None
        with self._lock:
            denials = self._denials.rest()
            noticed = [*self._by_source.rest(), *self._by_event.rest()]
            calls = self._calls.rest()
        _tell_denials(denials)
        _tell_calls(calls)
        _tell_noticed(noticed)

    def is_deaf_to(self, kind: type[events.Event], status: str) -> bool:
        """Return whether an event would only be thrown away: most transactions are logged at DEBUG."""
        is_quiet = kind is events.TransactionStarted or (status == "commit" and kind is events.TransactionEnded)
        return is_quiet and not _TRANSACTIONS.isEnabledFor(logging.DEBUG)

    def __call__(self, event: events.Event) -> None:
        """Write the record of one event."""
        if isinstance(event, events.LimitDecided):
            self._limit(event)
        elif isinstance(event, events.SecurityNoticed):
            self._notice(event)
        elif not self.is_deaf_to(type(event), getattr(event, "status", "")):
            logger, tell = _RECORDS[type(event)]
            level, message, fields, error = tell(event)
            if logger.isEnabledFor(level) and self._is_told(event, fields):
                request_id = event.request_id if isinstance(event, events.RequestEnded) else None
                _write(logger, level, message, fields, error=error, request_id=request_id)

    def _limit(self, event: events.LimitDecided) -> None:
        if not event.denied or not _LIMITS.isEnabledFor(logging.WARNING):
            return
        with self._lock:
            if len(self._limiters) >= _MOST_LIMITERS:
                self._limiters.clear()
            self._limiters[event.name] = None
            over = dict(self._denials.over(event.at))
            before = over.pop(event.name, 0)
            passed = self._denials.take(event.name, event.at)
        _tell_denials(list(over.items()))
        if passed is None:
            return
        fields = {
            "limiter": event.name,
            "enforced": event.enforced,
            "degraded": event.degraded,
            "retry_after": event.retry_after,
            "denials": before + passed + 1,
        }
        message = "rate limit reached" if event.enforced else "rate limit would have been reached"
        _write(_LIMITS, logging.WARNING, message, fields)

    def _notice(self, event: events.SecurityNoticed) -> None:
        if not _SECURITY.isEnabledFor(logging.WARNING) or self._was_told(event):
            return
        with self._lock:
            over = [*self._by_source.over(event.at), *self._by_event.over(event.at)]
            passed = self._by_source.take((event.event, event.source), event.at)
            # Events of one source beyond its limit must not use up the limit for the others.
            if passed is not None:
                passed = self._by_event.take((event.event,), event.at)
        _tell_noticed(over)
        if passed is not None:
            fields = {**event.fields, "event": event.event, "source": event.source}
            _write(_SECURITY, logging.WARNING, "security event", fields)

    def _is_told(self, event: events.Event, fields: dict[str, Any]) -> bool:
        """Return whether this event gets a record, after adding to it how many before it did not."""
        kind = kind_of_flood(event)
        if kind is None:
            return True
        with self._lock:
            over = dict(self._calls.over(event.at))
            before = over.pop(kind, 0)
            passed = self._calls.take(kind, event.at)
        _tell_calls(list(over.items()))
        if passed is None:
            return False
        if before + passed:
            fields["left_out"] = before + passed
        return True

    def _was_told(self, event: events.SecurityNoticed) -> bool:
        """Return whether one of our limiters has reported this refusal itself."""
        return event.event == "rate_limit" and event.fields.get("limiter") in self._limiters

    def __repr__(self) -> str:
        return f"<LogListener {'open' if self._subscription else 'closed'}>"


def _tell_denials(left_out: Sequence[tuple[str, int]]) -> None:
    for name, count in left_out:
        _write_apart(_LIMITS, "rate limit reached, told late", {"limiter": name, "denials": count})


def _tell_noticed(left_out: Sequence[tuple[tuple[str, ...], int]]) -> None:
    for kind, count in left_out:
        named = dict(zip(("event", "source"), kind, strict=False))
        _write_apart(_SECURITY, "security events left out", {**named, "events": count})


def _tell_calls(left_out: Sequence[tuple[tuple[str, str], int]]) -> None:
    for (kind, name), count in left_out:
        _write_apart(_CALLS, "calls left out", {"event": kind, "name": name, "calls": count})


def _write_apart(logger: logging.Logger, message: str, fields: dict[str, Any]) -> None:
    """Write a record that does not belong to the request being served."""
    Context().run(_write, logger, logging.WARNING, message, fields, request_id="")


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


def _began(event: events.TransactionStarted) -> Told:
    fields = {
        "database": event.name,
        "operation": event.operation,
        "attempt": event.attempt,
        "isolation": event.isolation,
        "read_only": event.read_only,
    }
    return logging.DEBUG, "transaction began", fields, None


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
    level = logging.INFO if event.state in {"closed", "half_open"} else logging.WARNING
    if event.within is not None:
        level = logging.DEBUG
    return level, "circuit changed", fields, None


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


def _store_failed(event: events.StoreFailed) -> Told:
    return logging.WARNING, "store failed", {"store": event.store, "user": event.name, "reason": event.reason}, None


def _store_recovered(event: events.StoreRecovered) -> Told:
    return logging.INFO, "store recovered", {"store": event.store, "user": event.name, "outage": event.outage}, None


def _overdue(event: events.CheckoutOverdue) -> Told:
    fields = {"database": event.name, "age": event.age, "line": event.line}
    return logging.WARNING, "connection is held for too long", fields, None


def _replica_failed(event: events.ReplicaFailed) -> Told:
    fields = {"database": event.name, "operation": event.operation, "error_type": event.error_type}
    if event.sqlstate is not None:
        fields["sqlstate"] = event.sqlstate
    return logging.WARNING, "replica could not be reached, so the primary is read", fields, None


def _outbox_failed(event: events.OutboxFailed) -> Told:
    fields = {
        "outbox": event.name,
        "message_id": event.message_id,
        "topic": event.topic,
        "attempt": event.attempt,
        "delay": event.delay,
        "error_type": event.error_type,
    }
    if event.delay is None:
        return logging.ERROR, "outbox message set aside as dead", fields, None
    return logging.WARNING, "outbox message failed and is tried again", fields, None


def _leaked(event: events.ConnectionLeaked) -> Told:
    return logging.ERROR, "connection leaked", {"database": event.name, "reason": event.reason}, None


def _hook(event: events.HookFailed) -> Told:
    fields = {"database": event.name, "operation": event.operation, "hook": event.hook}
    return logging.ERROR, "transaction hook failed", fields, event.error


def _opened(event: events.ErrorOpened) -> Told:
    fields = {
        "fingerprint": event.fingerprint,
        "type": event.error_type,
        "category": event.category,
        "reopened": event.reopened,
    }
    if event.reopened:
        return logging.WARNING, "error came back", fields, None
    return logging.INFO, "error of a new kind", fields, None


def _resolved(event: events.ErrorResolved) -> Told:
    fields = {
        "fingerprint": event.fingerprint,
        "type": event.error_type,
        "seconds": event.seconds,
        "cause": event.cause,
    }
    return logging.INFO, "error resolved", fields, None


_TRANSACTIONS = logging.getLogger("reliakit.transaction")
_CALLS = logging.getLogger("reliakit.calls")
_LIMITS = logging.getLogger("reliakit.ratelimit")
_SECURITY = logging.getLogger("reliakit.security")
_RECORDS: dict[type[events.Event], tuple[logging.Logger, Callable[[Any], Told]]] = {
    events.TransactionStarted: (_TRANSACTIONS, _began),
    events.TransactionEnded: (_TRANSACTIONS, _transaction),
    events.TransactionSlow: (_TRANSACTIONS, _slow),
    events.CheckoutOverdue: (logging.getLogger("reliakit.database"), _overdue),
    events.ConnectionLeaked: (logging.getLogger("reliakit.database"), _leaked),
    events.ReplicaFailed: (logging.getLogger("reliakit.database"), _replica_failed),
    events.OutboxFailed: (logging.getLogger("reliakit.outbox"), _outbox_failed),
    events.HookFailed: (_TRANSACTIONS, _hook),
    events.CircuitChanged: (logging.getLogger("reliakit.breaker"), _circuit),
    events.DeadlineOverrun: (logging.getLogger("reliakit.deadline"), _overrun),
    **RECORDS,
    events.RequestEnded: (logging.getLogger("reliakit.access"), _access),
    events.ErrorOpened: (logging.getLogger("reliakit.errors"), _opened),
    events.ErrorResolved: (logging.getLogger("reliakit.errors"), _resolved),
    events.StoreFailed: (logging.getLogger("reliakit.store"), _store_failed),
    events.StoreRecovered: (logging.getLogger("reliakit.store"), _store_recovered),
}
