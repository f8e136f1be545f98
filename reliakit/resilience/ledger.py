"""What a breaker has counted since it was made, summed up only when read: calls cost nothing more for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import ref

from reliakit.core.events import CircuitFigures
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.resilience.circuit import Circuit
    from reliakit.resilience.verdict import Verdict

__all__ = ["Ledger"]


class Ledger:
    """One breaker's circuit, the lock around it, and its sums. Outlives the breaker while somebody reads it.

    Args:
        circuit: The circuit.
        breaker: The breaker that owns it; held weakly.
        clock: The clock of the window.
    """

    __slots__ = ("__weakref__", "_breaker", "_clock", "circuit", "counts", "lock")

    def __init__(self, circuit: Circuit, breaker: object, clock: Clock) -> None:
        self.circuit: Circuit = circuit
        # Re-entrant: a finaliser that runs while it is held may settle a permit of this very breaker.
        self.lock: threading.RLock = threading.RLock()
        self._breaker = ref(breaker)
        self._clock = clock
        # Outcomes settled under the lock; the others are counted by their lane.
        self.counts: dict[Verdict, int] = {"success": 0, "failure": 0, "ignored": 0}
        renew_locks_after_fork(self, "lock")
        tell_after_fork(self, "begin_anew")

    def begin_anew(self) -> None:
        """In a forked child, do not wait for the probes of the parent's threads."""
        self.circuit.take_probes_back()

    def read(self) -> CircuitFigures:
        """Return the sums and the breaker's state. At most waits for a decision under way."""
        now = self._clock.monotonic()
        with self.lock:
            circuit = self.circuit
            circuit.absorb()
            circuit.tally.forget(now)
            tally, counts = circuit.tally, self.counts
            return CircuitFigures(
                state=circuit.state.value,
                success=counts["success"] + circuit.passed,
                failure=counts["failure"],
                ignored=counts["ignored"],
                failure_ratio=tally.failures / tally.calls if tally.calls else None,
                is_gone=self._breaker() is None,
            )
