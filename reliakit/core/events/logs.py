"""What the logger has written, masked and dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from reliakit.core.events.base import Event

__all__ = ["LogDropped", "LogFigures", "LogPresent", "SecretsMasked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsMasked(Event):
    """A log record held secrets, and they were masked; `failed` means a placeholder stands for the whole."""

    count: int
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDropped(Event):
    """A log record could not be written."""

    reason: str
    count: int = 1


class LogFigures(NamedTuple):
    """How many records a log has written since it was made, by level; other levels count as the next lower one."""

    debug: int
    info: int
    warning: int
    error: int
    critical: int
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPresent(Event):
    """A log exists. Sent to listeners that name this event, when it is made and when listeners change.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the log alive.
    """

    read: Callable[[], LogFigures]
