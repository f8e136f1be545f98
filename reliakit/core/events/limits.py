"""Limits, the stores behind them, and security events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from reliakit.core.events.base import Event

__all__ = [
    "LimitDecided",
    "LimitDenied",
    "LimitFigures",
    "LimitWaited",
    "LimiterPresent",
    "SecurityNoticed",
    "StoreFailed",
    "StoreRecovered",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDecided(Event):
    """A rate limiter decided. `key` is the caller's key and may be personal data: listeners mask or fold it.

    Attributes:
        allowed: What the caller was told.
        enforced: False in shadow mode, where `denied` may differ from what the caller was told.
        denied: Whether the limits deny it.
        degraded: Whether a stand-in decided because the store did not answer.
    """

    key: str
    allowed: bool
    denied: bool
    enforced: bool
    degraded: bool
    cost: int
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDenied(LimitDecided):
    """A rate limiter denied, or would have in shadow mode. Listening to this alone costs other decisions nothing."""


class LimitFigures(NamedTuple):
    """What a rate limiter has decided since it was made; see `reliakit.ratelimit.LimiterStats`."""

    admitted: int
    denied: int
    shadow_denied: int
    degraded: int
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterPresent(Event):
    """A rate limiter exists. Sent to listeners that name this event, when it is made and when listeners change.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the limiter alive.
    """

    read: Callable[[], LimitFigures]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWaited(Event):
    """A caller waited `wait` seconds for its turn at a rate limiter, and got it."""

    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """A shared store stopped answering; sent once per outage."""

    store: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered(Event):
    """A shared store answers again."""

    store: str
    outage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityNoticed(Event):
    """A security event: a failed login, an invalid token, a limit hit.

    Attributes:
        event: What it was, such as "failed_login", "rate_limit" or "invalid_token".
        source: Where it came from, usually a client address; listeners limit how many values they keep.
        service: The service that noticed it.
        fields: More for the log line, masked there.
    """

    event: str
    source: str
    service: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
