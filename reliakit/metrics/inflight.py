"""How many of something are in flight now: open transactions, requests, websockets."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.metrics.series import GaugeSeries

__all__ = ["InFlight"]


class InFlight:
    """Counts what has begun and not ended, by one token each, so it needs no lock and never falls below 0.

    An end whose beginning was not seen, because listening began in between, takes a token that is not its own; the
    count is right again as soon as nothing is in flight.
    """

    __slots__ = ("_read", "_shown", "tokens")

    def __init__(self, shown: GaugeSeries) -> None:
        self.tokens: deque[None] = deque()
        self._read = 0  # how many more there were at the last look at those who count themselves
        self._shown = shown

    def count(self) -> int:
        """Return how many are in flight."""
        return len(self.tokens) + self._read

    def show(self, read: int) -> None:
        """Show that so many more are in flight than those that were told."""
        if read != self._read:
            self._read = read
            self._shown.refresh()

    def enter(self) -> None:
        """One has begun."""
        self.tokens.append(None)
        self._shown.refresh()

    def leave(self) -> None:
        """One has ended."""
        try:
            self.tokens.pop()
        except IndexError:
            return
        self._shown.refresh()
