"""Errors as they are seen and tracked, and refused input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reliakit.core.events.base import Event

__all__ = [
    "ErrorOpened",
    "ErrorResolved",
    "ErrorSeen",
    "ErrorUntracked",
    "ErrorsOpen",
    "NumbersWanted",
    "ValidationFailed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSeen(Event):
    """An exception left a transaction, a breaker, a policy, a web request or a logger call.

    Emitted once for each exception object, by the component that sees it first.

    Attributes:
        service: The service it happened in, if known.
        status: The HTTP status it leads to, as text, or None.
        category: Its category, see `classify`.
        retry: Whether a retry can help, see `classify`.
        sqlstate: PostgreSQL's error code, or None.
        fingerprint: Equal for errors with the same cause, see `classify`.
        error: The exception itself. Do not keep it: its traceback holds on to frames.
    """

    service: str | None
    status: str | None
    error_type: str
    category: str
    retry: str
    sqlstate: str | None
    fingerprint: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorOpened(Event):
    """An error of a new kind was seen, or one that had been resolved came back.

    Attributes:
        fingerprint: What errors of its kind have in common, see `classify`.
        service: The service it happened in, if known.
        reopened: Whether it had been resolved before.
    """

    fingerprint: str
    error_type: str
    category: str
    service: str | None
    reopened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResolved(Event):
    """Errors of one kind are over.

    Attributes:
        seconds: From the first error, or the one that reopened it, to the resolution.
        cause: "quiet" if none was seen for a set time, "call" if code resolved it.
    """

    fingerprint: str
    error_type: str
    seconds: float
    cause: Literal["quiet", "call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsOpen(Event):
    """How many kinds of errors are open now, and for how many seconds the oldest of them has been open."""

    count: int
    oldest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorUntracked(Event):
    """An error could not be tracked; `reason` is the class name of what went wrong."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersWanted(Event):
    """Numbers are about to be read: components with numbers that change with time alone report them now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFailed(Event):
    """A value was refused by a schema; `keywords` are the broken rules."""

    keywords: tuple[str, ...]
