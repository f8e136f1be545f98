"""What every event has."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Event"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in one component.

    Attributes:
        name: The component, such as a breaker's or a database's name.
        at: The component's monotonic clock when it happened, in seconds.
        sequence: Numbers the events that this component built, from 1. Events that nobody listens for are neither
            built nor counted; a listener of only some types sees gaps where the others were.
    """

    name: str
    at: float
    sequence: int
