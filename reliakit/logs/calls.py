"""What policies around calls report, as log records; a flood is not reported call by call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from reliakit.core import events

__all__ = ["RECORDS", "kind_of_flood"]

Told = tuple[int, str, dict[str, Any], BaseException | None]


def kind_of_flood(event: events.Event) -> tuple[str, str] | None:
    """Return what events must have in common to be reported together when there are many, or None to report each."""
    if isinstance(event, events.CallTimedOut | events.FallbackUsed):
        return type(event).__name__, event.name
    if isinstance(event, events.RetryEnded):
        return f"RetryEnded {event.outcome}", event.name
    return None


def _retried(event: events.RetryEnded) -> Told:
    fields: dict[str, Any] = {
        "retry": event.name,
        "outcome": event.outcome,
        "reason": event.reason,
        "attempts": event.attempts,
        "duration": event.duration,
    }
    if event.error_type is not None:
        fields["error_type"] = event.error_type
    if event.outcome == "success":
        return logging.INFO, "call succeeded after retries", fields, None
    return logging.WARNING, "call failed and is not tried again", fields, None


def _timed_out(event: events.CallTimedOut) -> Told:
    return logging.WARNING, "call timed out", {"timeout": event.name, "seconds": event.seconds}, None


def _stood_in(event: events.FallbackUsed) -> Told:
    fields = {"fallback": event.name, "error_type": event.error_type}
    return logging.WARNING, "fallback used instead of a result", fields, None


def _limit_moved(event: events.LimitMoved) -> Told:
    fields = {"limiter": event.name, "previous": event.previous, "limit": event.limit}
    return logging.DEBUG, "adaptive limit moved", fields, None


def _hedged(event: events.HedgeEnded) -> Told:
    fields = {
        "hedge": event.name,
        "copies": event.copies,
        "winner": event.winner,
        "failed": event.failed,
        "duration": event.duration,
    }
    return logging.DEBUG, "call was hedged", fields, None


RECORDS: dict[type[events.Event], tuple[logging.Logger, Callable[[Any], Told]]] = {
    events.RetryEnded: (logging.getLogger("reliakit.retry"), _retried),
    events.CallTimedOut: (logging.getLogger("reliakit.timeout"), _timed_out),
    events.FallbackUsed: (logging.getLogger("reliakit.fallback"), _stood_in),
    events.LimitMoved: (logging.getLogger("reliakit.adaptive"), _limit_moved),
    events.HedgeEnded: (logging.getLogger("reliakit.hedge"), _hedged),
}
