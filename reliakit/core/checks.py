"""Checks of settings at construction, with one style of message: which argument, what was given, what to give."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.core.clock import Clock

__all__ = ["choice", "clock", "count", "named", "seconds", "share", "shown"]

T = TypeVar("T")
_LARGEST = sys.float_info.max
# Characters of what was given that a message holds.
_SHOWN = 200


def seconds(argument: str, value: float, *, zero: bool = False) -> float:
    """Return a duration as a float; refuse anything that is not a finite, positive number.

    Args:
        argument: The argument's name, for the message.
        value: The duration in seconds.
        zero: Whether 0 is a meaningful duration here.
    """
    good = _is_number(value) and 0 <= value <= _LARGEST and (zero or value > 0)
    if not good:
        kind = "zero or a positive number" if zero else "a positive number"
        raise ConfigurationError(f"{argument} must be {kind} of seconds, got {shown(value)}")
    return float(value)


def count(argument: str, value: int, *, least: int = 1) -> int:
    """Return a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{argument} must be a whole number of at least {least}, got {shown(value)}")
    return value


def share(argument: str, value: float, *, zero: bool = False) -> float:
    """Return a share of a whole: above 0 (or from 0, with `zero`) up to 1."""
    good = _is_number(value) and (0 < value <= 1 or (zero and value == 0))
    if not good:
        start = "from 0" if zero else "above 0"
        raise ConfigurationError(f"{argument} must be a share {start} up to 1, got {shown(value)}")
    return float(value)


def choice(argument: str, value: T, choices: Iterable[T]) -> T:
    """Return one of `choices`."""
    known = tuple(choices)
    if value not in known:
        raise ConfigurationError(f"{argument} must be one of {', '.join(map(repr, known))}, got {shown(value)}")
    return value


def named(argument: str, value: str) -> str:
    """Return a non-empty name."""
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{argument} must be a non-empty text, got {shown(value)}")
    return value


def clock(argument: str, value: Clock) -> Clock:
    """Return a clock; refuse what is easily passed by mistake: a class, or a function such as `time.monotonic`."""
    if isinstance(value, type) or not callable(getattr(value, "monotonic", None)):
        raise ConfigurationError(
            f"{argument} must be a clock such as SYSTEM_CLOCK or ManualClock(), got {shown(value)}"
        )
    return value


def shown(value: object) -> str:
    """Return what a message shows of what was given."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a whole number of 5000 digits has none; the argument is named anyway
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
