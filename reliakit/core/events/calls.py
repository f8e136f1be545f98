"""Guarded calls, circuits, policies and deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from reliakit.core.events.base import Event

__all__ = [
    "AttemptFailed",
    "CallCoalesced",
    "CallEnded",
    "CallRejected",
    "CallStarted",
    "CallTimedOut",
    "CallWaited",
    "CircuitChanged",
    "CircuitFigures",
    "CircuitPresent",
    "CircuitSpared",
    "DeadlineOverrun",
    "FallbackUsed",
    "HedgeEnded",
    "LimitMoved",
    "PolicyEnded",
    "PolicyStarted",
    "RetryEnded",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChanged(Event):
    """A circuit breaker moved to another state.

    Attributes:
        previous: The state it left.
        state: The state it entered.
        cause: Why, in a few words.
        retry_after: Seconds until a probe is let through, if that is known.
        within: What the breaker is part of, if that reports outages itself, such as "store".
    """

    previous: str
    state: str
    cause: str
    retry_after: float | None = None
    within: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSpared(Event):
    """A circuit breaker in `metrics_only` would have opened now; `cause` says why, in a few words."""

    cause: str


class CircuitFigures(NamedTuple):
    """What a circuit breaker has counted since it was made, and its state; refusals are reported by `CallRejected`.

    Attributes:
        state: Its state.
        success: Calls that counted as successes; calls let through while it was disabled are not counted.
        failure: Calls that counted as failures.
        ignored: Calls that counted as neither.
        failure_ratio: The share of failures in its window; None if it keeps none or it is empty.
        is_gone: Whether the breaker itself no longer exists, so that these are its last figures.
    """

    state: str
    success: int
    failure: int
    ignored: int
    failure_ratio: float | None = None
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPresent(Event):
    """A circuit breaker exists. Sent to listeners that name this event, when it is made and when listeners change.

    A listener that only needs sums can ask for them when it is asked itself, so calls stay free of it.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the breaker alive.
    """

    read: Callable[[], CircuitFigures]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(Event):
    """A guarded call begins, in this thread or task; not sent for permits that are settled by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A guarded call ran to its end; `verdict` says how its guard counted it."""

    verdict: Literal["success", "failure", "ignored"]
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRejected(Event):
    """A guard refused a call, so it was not tried; `reason` is the error's class name."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt failed and another one follows after `delay` seconds."""

    attempt: int
    delay: float
    error_type: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryEnded(Event):
    """A call that was tried more than once, or would have been, is over.

    Attributes:
        outcome: Whether its last attempt was a success.
        reason: Why there was no further attempt: it was a "success"; "attempts", "deadline" or "budget" were used
            up; the next one was "rejected"; the server asked for too long a pause ("retry_after"); or its "error" was
            one that is not retried.
        attempts: How many attempts were made.
        duration: Seconds from the beginning of the first one, pauses included.
        error_type: The class name of the error that it raised, or None.
    """

    outcome: Literal["success", "failure"]
    reason: Literal["success", "attempts", "deadline", "budget", "rejected", "retry_after", "error"]
    attempts: int
    duration: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStarted(Event):
    """A call through a policy begins, in this thread or task; not sent for generators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEnded(Event):
    """A call through a policy is over; sent in the same thread or task.

    Attributes:
        duration: Seconds with all attempts and pauses.
        error_type: The class name of the error that left it; None if it returned.
    """

    duration: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimedOut(Event):
    """A call was cut off after its own time limit of `seconds`, or its late result was refused."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWaited(Event):
    """A call queued for its turn: it got one after `wait` seconds, or not at all."""

    wait: float
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackUsed(Event):
    """A call failed, and its caller got a stand-in for the result."""

    error_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeEnded(Event):
    """A call that was started more than once is over.

    Attributes:
        copies: How many copies ran.
        winner: Which copy's result was taken, from 1; None if all failed or the caller went away.
        failed: How many failed.
        duration: Seconds since the first one began.
    """

    copies: int
    winner: int | None
    failed: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCoalesced(Event):
    """A call was not made because an equal one was under way; it shared that one's outcome after `wait` seconds."""

    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMoved(Event):
    """An adaptive limit changed how many calls may run at once."""

    previous: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineOverrun(Event):
    """Code that cannot be interrupted returned after its deadline; its result was kept."""

    seconds: float
    elapsed: float
