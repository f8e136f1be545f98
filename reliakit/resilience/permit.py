"""Permission for one call in two steps, for code that does not make the call through the breaker."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.resilience.breaker import CircuitBreaker
    from reliakit.resilience.circuit import Ticket
    from reliakit.resilience.verdict import Verdict

__all__ = ["Permit"]


class Permit:
    """Permission for one call that the breaker does not make itself; give it back with exactly one verdict.

    The first verdict counts; later ones change nothing. It may be settled from another thread or task. The duration
    of the call is measured from `acquire()` to the verdict.
    """

    __slots__ = ("_breaker", "_ticket")

    def __init__(self, breaker: CircuitBreaker, ticket: Ticket) -> None:
        self._breaker = breaker
        self._ticket = ticket

    def success(self) -> None:
        """Say that the dependency answered."""
        self._settle("success", None)

    def failure(self, error: BaseException | None = None) -> None:
        """Say that the dependency failed. With an error that the breaker ignores, this is the same as `ignore()`."""
        self._settle("failure", error)

    def ignore(self) -> None:
        """Say that the call tells nothing about the dependency: it neither counts nor resets anything."""
        self._settle("ignored", None)

    def claim(self) -> Ticket | None:
        """Return the ticket, once; for the breaker itself."""
        try:
            ticket = self._ticket
            del self._ticket  # atomic: of two threads that settle at once, one finds it gone
        except AttributeError:
            return None
        return ticket

    def _settle(self, verdict: Verdict, error: BaseException | None) -> None:
        ticket = self.claim()
        if ticket is not None:
            self._breaker.settle(ticket, verdict, error)

    def __repr__(self) -> str:
        return f"<Permit of {self._breaker.name!r}, {'open' if hasattr(self, '_ticket') else 'settled'}>"
