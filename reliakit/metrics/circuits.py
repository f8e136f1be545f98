"""Circuit breakers, whose counts are read at each scrape.

```
breaker ── CircuitPresent(read) ──> Circuits ── refresh() at each scrape ──> calls, states, failure ratios
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.catalogue import STATES
from reliakit.metrics.readings import Readings

if TYPE_CHECKING:
    from reliakit.core.events import CircuitFigures, CircuitPresent
    from reliakit.metrics.shelf import Shelf

__all__ = ["Circuits"]


class Circuits:
    """Shows every breaker that has announced itself. Safe from any thread.

    Args:
        shelf: Holds the metrics.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._calls = shelf.counter("circuit_breaker_calls_total")
        self._states = shelf.gauge("circuit_breaker_state")
        self._ratios = shelf.gauge("circuit_breaker_failure_ratio")
        self._readings: Readings[CircuitFigures] = Readings(self._count)

    def present(self, event: CircuitPresent) -> None:
        """Follow a breaker from now on."""
        if self._readings.follow(event.name, event.read):
            self._calls.labels(event.name, "success")  # exists at 0, and its siblings with it

    def follows(self, name: str) -> bool:
        """Return whether a breaker of this name is read, so that its calls must not be counted one by one."""
        return self._readings.follows(name)

    def refresh(self) -> None:
        """Count what happened since the last look, and show the state of each breaker."""
        standing: dict[str, set[str]] = {}
        for name, figures in self._readings.refresh():
            states = standing.setdefault(name, set())
            if not figures.is_gone:
                states.add(figures.state)
                if figures.failure_ratio is not None:
                    self._ratios.labels(name).set(figures.failure_ratio)
        for name, states in standing.items():
            self.show(name, states)

    def show(self, name: str, current: set[str]) -> None:
        """Show the states of the breakers of one name."""
        for state in STATES:
            self._states.labels(name, state).set(1 if state in current else 0)

    def begin_anew(self) -> None:
        """Leave what came before a fork to the parent."""
        self._readings.begin_anew()

    def leave(self) -> None:
        """Count a last time and stop following."""
        self._readings.leave()

    def _count(self, name: str, figures: CircuitFigures, last: CircuitFigures) -> None:
        for outcome in ("success", "failure", "ignored"):
            more = getattr(figures, outcome) - getattr(last, outcome)
            if more > 0:
                self._calls.labels(name, outcome).inc(more)
