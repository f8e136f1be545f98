"""Circuit breakers, read when somebody looks: a breaker that tells each call costs far more than the call itself.

```
breaker ── CircuitPresent(read) ──> Circuits ── refresh() at each scrape ──> what came on top since the last one
```
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from reliakit.core.fork import renew_locks_after_fork
from reliakit.metrics.catalogue import STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.events import CircuitFigures, CircuitPresent
    from reliakit.metrics.family import Counter, Gauge

    Read = Callable[[], CircuitFigures]

__all__ = ["Circuits"]

# How many breakers are followed; those that are gone make room.
_MOST = 10_000


class _Followed:
    """One breaker, and its figures at the last look."""

    __slots__ = ("last", "name", "read")

    def __init__(self, name: str, read: Read) -> None:
        self.name = name
        self.read = read
        self.last = read()


class Circuits:
    """Follows every breaker that has made itself known. Safe from any thread.

    Args:
        counter: Finds a counter of the catalogue by its name.
        gauge: Finds a gauge.
    """

    def __init__(self, counter: Callable[[str], Counter], gauge: Callable[[str], Gauge]) -> None:
        self._calls = counter("circuit_breaker_calls_total")
        self._states = gauge("circuit_breaker_state")
        self._ratios = gauge("circuit_breaker_failure_ratio")
        self._followed: dict[Read, _Followed] = {}
        # Two scrapes at once would both count what came since the last one.
        self._lock = Lock()
        renew_locks_after_fork(self, "_lock")

    def present(self, event: CircuitPresent) -> None:
        """Follow a breaker from now on; what it counted before is not ours."""
        if event.read in self._followed or len(self._followed) >= _MOST:
            return
        self._followed.setdefault(event.read, _Followed(event.name, event.read))
        self._calls.labels(event.name, "success")  # exists at 0, and its siblings with it

    def refresh(self) -> None:
        """Count what happened since the last look, and show where each breaker stands.

        Never waits: while another thread looks, this one is content with what was known before.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            standing = self._look_locked()
        finally:
            self._lock.release()
        for name, states in standing.items():
            self.show(name, states)

    def _look_locked(self) -> dict[str, set[str]]:
        standing: dict[str, set[str]] = {}
        for read, one in tuple(self._followed.items()):
            figures = read()
            self._count(one, figures)
            states = standing.setdefault(one.name, set())
            if figures.is_gone:
                self._followed.pop(read, None)
                continue
            states.add(figures.state)
            if figures.failure_ratio is not None:
                self._ratios.labels(one.name).set(figures.failure_ratio)
        return standing

    def show(self, name: str, current: set[str]) -> None:
        """Show the states of the breakers of one name."""
        for state in STATES:
            self._states.labels(name, state).set(1 if state in current else 0)

    def follows(self, name: str) -> bool:
        """Return whether a breaker of this name is read, so that its calls are not to be counted one by one."""
        return any(one.name == name for one in tuple(self._followed.values()))

    def leave(self) -> None:
        """Count a last time and follow nobody any more: what happens from now on is not ours."""
        self.refresh()
        self._followed.clear()

    def _count(self, one: _Followed, figures: CircuitFigures) -> None:
        last, one.last = one.last, figures
        for outcome in ("success", "failure", "ignored"):
            more = getattr(figures, outcome) - getattr(last, outcome)
            if more > 0:
                self._calls.labels(one.name, outcome).inc(more)
