"""A breaker's state, and the methods that change it by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import CircuitChanged, CircuitSpared
from reliakit.resilience.breaks import FALLBACK
from reliakit.resilience.circuit import State
from reliakit.resilience.snapshot import BreakerSnapshot, snapshot_of

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.lanes import Lane
    from reliakit.core.spine import Emitter
    from reliakit.resilience.breaks import BreakLength
    from reliakit.resilience.circuit import Change, Circuit
    from reliakit.resilience.ledger import Ledger
    from reliakit.resilience.verdict import Judge

__all__ = ["Controls"]


class Controls:
    """The part of a `CircuitBreaker` that is not about calls. Safe from threads and tasks; never waits."""

    __slots__ = (
        "_circuit",
        "_clock",
        "_emitter",
        "_heard",
        "_judge",
        "_ledger",
        "_length",
        "_now",
        "_telling",
        "name",
        "passing",
    )

    name: str
    passing: Lane | None
    _circuit: Circuit
    _clock: Clock
    _emitter: Emitter
    _heard: bool
    _judge: Judge
    _ledger: Ledger
    _length: BreakLength
    _now: Callable[[], float]
    _telling: threading.Lock
    _within: ClassVar[str | None] = None

    @property
    def state(self) -> State:
        """The circuit's state. It changes on calls only: after the break it stays open until somebody calls."""
        return self._circuit.state

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may pass: 0.0 if it may now, None if they are not known."""
        with self._ledger.lock:
            return self._circuit.retry_after(self._now())

    def snapshot(self) -> BreakerSnapshot:
        """Return the state, the counts and the rest of the break as plain values that another process can restore."""
        with self._ledger.lock:
            return snapshot_of(self._circuit, self._now())

    def restore(self, snapshot: BreakerSnapshot) -> None:
        """Go on from a snapshot of this breaker or of one in another process. Calls under way are not counted."""
        if not isinstance(snapshot, BreakerSnapshot):
            raise ConfigurationError(f"restore takes a BreakerSnapshot, got {type(snapshot).__name__}")
        with self._ledger.lock:
            unknown = self._circuit.restore(snapshot, self._now())
            lane = self._circuit.lane
            self._show_lane_locked()
        if unknown:
            self._hold(lane, snapshot.opened_count)
        self._tell()

    def force_open(self, seconds: float | None = None) -> None:
        """Refuse every call, for `seconds` or until told otherwise. After `seconds`, probes decide.

        Args:
            seconds: How long, such as a server's Retry-After; None for no end.
        """
        if seconds is not None:
            seconds = checks.seconds("seconds", seconds, zero=True)
        with self._ledger.lock:
            self._circuit.force_open(self._now(), seconds)
            self._show_lane_locked()
        self._tell()

    def trip(self, seconds: float, *, cause: str = "tripped by hand") -> None:
        """Open the circuit as failures would, for `seconds`, after which probes decide.

        Args:
            seconds: The length of the break. If the circuit is open already, its break now ends after this time.
            cause: The reason, for events and logs.
        """
        seconds = checks.seconds("seconds", seconds, zero=True)
        with self._ledger.lock:
            self._circuit.trip(self._clock.monotonic(), seconds, cause)
            self._show_lane_locked()
        self._tell()

    def disable(self) -> None:
        """Let every call pass and count nothing, until told otherwise."""
        self._switch(State.DISABLED)

    def metrics_only(self) -> None:
        """Let every call pass, but go on counting and telling listeners, until told otherwise."""
        self._switch(State.METRICS_ONLY)

    def close(self) -> None:
        """Close the circuit, whatever its state. A circuit that is closed keeps its counts."""
        self._switch(State.CLOSED)

    def reset(self) -> None:
        """Start afresh: closed, with nothing counted. Outcomes of calls under way will not be counted either."""
        with self._ledger.lock:
            self._circuit.reset()
            self._show_lane_locked()
        self._tell()

    def _switch(self, state: State) -> None:
        with self._ledger.lock:
            self._circuit.switch(state)
            self._show_lane_locked()
        self._tell()

    def _hold(self, lane: Lane, opened_count: int, asked: float | None = None) -> None:
        """Set the length of the break. Until then all calls are refused, so the caller's code may take its time."""
        now, length = self._now(), FALLBACK
        try:
            length = self._length.after(max(1, opened_count), self._clock.random) if asked is None else asked
        finally:
            with self._ledger.lock:
                self._circuit.hold(lane, now, length)

    def _show_lane_locked(self) -> None:
        """Open the express lane while a success would change nothing and nobody listens to it."""
        circuit = self._circuit
        is_open = circuit.is_lane_open and not self._heard and not self._judge.reads_results
        self.passing = circuit.lane if is_open else None

    def _tell(self) -> None:
        """Emit the changes in order. One thread does it; others that come meanwhile leave their changes to it."""
        changes = self._circuit.changes
        while changes and self._telling.acquire(blocking=False):
            try:
                while changes:
                    self._emit(changes.popleft())
            finally:
                self._telling.release()

    def _emit(self, change: Change) -> None:
        if change.previous is change.state:
            self._emitter.emit(CircuitSpared, cause=change.cause)
            return
        self._emitter.emit(
            CircuitChanged,
            previous=change.previous.value,
            state=change.state.value,
            cause=change.cause,
            retry_after=change.retry_after,
            within=self._within,
        )
