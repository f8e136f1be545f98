"""The circuit as a pure machine: what a breaker decides, without clock, lock or listener.

```
            failures reach the threshold                   the break is over and somebody calls
  closed ──────────────────────────────> open ──────────────────────────────────────────> half_open
    ^                                     ^                                                 │   │
    │                                     └──────────────── a probe fails ──────────────────┘   │
    └───────────────────────────── half_open_calls probes succeed ──────────────────────────────┘

  forced_open: nobody passes      disabled: all pass, nothing counts      metrics_only: all pass, counted
```

Every state that begins is a new generation. A call carries the ticket of the generation that it began in, and its
outcome is dropped when that is over: a late failure never lengthens a break and a late success never closes a
circuit. Generations are from sony/gobreaker, the re-armed probe is from Polly.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

from reliakit.core import checks

if TYPE_CHECKING:
    from reliakit.resilience.verdict import Verdict

__all__ = ["BreakerSnapshot", "Change", "Circuit", "State", "Ticket"]


class State(StrEnum):
    """Where a circuit breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


_PASSING = frozenset({State.CLOSED, State.DISABLED, State.METRICS_ONLY})


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker's state at one instant, in plain values that survive JSON and another process.

    Attributes:
        state: Where it stands.
        failures: Failures in a row so far.
        opened_count: How many times it has opened since it was last closed.
        retry_after: The rest of the break in seconds, or None where there is no break or no end of it.
        break_length: The length of the current or last break in seconds, or None where there was none.
    """

    state: State
    failures: int = 0
    opened_count: int = 0
    retry_after: float | None = None
    break_length: float | None = None

    def __post_init__(self) -> None:
        # From JSON the state comes as plain text.
        object.__setattr__(self, "state", State(checks.choice("state", self.state, [*State])))
        checks.count("failures", self.failures, least=0)
        checks.count("opened_count", self.opened_count, least=0)
        for argument in ("retry_after", "break_length"):
            if getattr(self, argument) is not None:
                checks.seconds(argument, getattr(self, argument), zero=True)


class Ticket:
    """A call's leave to pass, good for one generation. While everybody passes, one ticket serves all calls."""

    __slots__ = ("generation", "is_out", "started")

    def __init__(self, generation: int, started: float | None = None) -> None:
        self.generation: int = generation
        self.started: float | None = started
        self.is_out: bool = False  # it is a probe's, and holds its place among the probes


class Change:
    """A move from one state to another, to be told to listeners in the order in which it happened."""

    __slots__ = ("cause", "previous", "retry_after", "state")

    def __init__(self, previous: State, state: State, cause: str, retry_after: float | None) -> None:
        self.previous: State = previous
        self.state: State = state
        self.cause: str = cause
        self.retry_after: float | None = retry_after


class Circuit:
    """The states and counts of one breaker. Not thread-safe: its owner holds a lock around every call.

    That lock is re-entrant, so another step of the same thread may come in between: any allocation may collect
    garbage, and that may close a guarded generator. So whether a probe is out is told by its own ticket alone.

    Args:
        failure_threshold: Failures in a row that open it.
        half_open_calls: How many probes decide, and may be out at once.
        half_open_timeout: Seconds after which a probe loses its ticket to the next caller; None for the break length.
    """

    def __init__(self, failure_threshold: int, half_open_calls: int, half_open_timeout: float | None) -> None:
        self._failure_threshold = failure_threshold
        self._half_open_calls = half_open_calls
        self._half_open_timeout = half_open_timeout
        self.changes: deque[Change] = deque()
        self.state: State = State.CLOSED
        self.failures: int = 0
        self.opened_count: int = 0
        # When the break ends: inf while that is not known, -inf outside of breaks. Callers may be refused by this
        # one value without the lock.
        self.until: float = -inf
        # What every call gets while all may pass; None while each call needs a decision.
        self.shared: Ticket | None = Ticket(0)
        self.generation: int = 0
        self._break_length = inf
        self._probes: list[tuple[Ticket, float]] = []
        self._probe_successes = 0

    def admit(self, now: float) -> Ticket | None:
        """Return a ticket, or None when the call must not be tried. Begins the probes once the break is over."""
        if self.shared is not None:
            return self.shared
        if now < self.until:
            return None
        if self.state is not State.HALF_OPEN:
            self._move(State.HALF_OPEN, "the break is over")
        probes = self._probes_out()
        if len(probes) + self._probe_successes >= self._half_open_calls:
            oldest, began = probes.pop(0)
            if now - began < self._probe_timeout:
                return None
            oldest.is_out = False
        ticket = Ticket(self.generation, now)
        ticket.is_out = True
        self._probes = [*probes, (ticket, now)]
        return ticket

    def settle(self, ticket: Ticket, verdict: Verdict) -> bool:
        """Count an outcome. Return whether it opened the circuit, which then waits for `hold`."""
        if ticket.generation != self.generation or self.state is State.DISABLED:
            return False
        if self.state is State.HALF_OPEN:
            return self._settle_probe(ticket, verdict)
        if verdict == "success":
            self.failures = 0
        elif verdict == "failure":
            self.failures += 1
            if self.failures >= self._failure_threshold and self.state is State.CLOSED:
                return self._open(f"{self.failures} failures in a row" if self.failures > 1 else "a call failed")
        return False

    def hold(self, generation: int, now: float, length: float) -> None:
        """Say how long the break lasts that began in this generation."""
        if generation == self.generation:
            self._break_length = length
            if self.state is State.OPEN:
                self.until = now + length
            if self.changes and self.changes[-1].state is self.state:
                self.changes[-1].retry_after = length

    def retry_after(self, now: float) -> float | None:
        """Return the seconds until a call may pass, 0.0 when it may now, None when that is not known."""
        if self.until == inf:
            return None
        probes = self._probes_out()
        if self.state is State.HALF_OPEN and len(probes) + self._probe_successes >= self._half_open_calls:
            until = probes[0][1] + self._probe_timeout
            return max(0.0, until - now) if until < inf else None
        return max(0.0, self.until - now)

    def force_open(self, now: float, seconds: float | None) -> None:
        """Let nobody pass, for so many seconds or until told otherwise."""
        self._move(State.FORCED_OPEN, "forced open", seconds)
        self._break_length = inf if seconds is None else seconds
        self.until = now + self._break_length

    def switch(self, state: State) -> None:
        """Enter closed, disabled or metrics_only, with nothing counted; staying there changes nothing."""
        if self.state is not state:
            self._move(state, "set by hand")
            self.opened_count = 0

    def reset(self) -> None:
        """Begin anew: closed, with nothing counted."""
        self._move(State.CLOSED, "reset")
        self.opened_count = 0

    def snapshot(self, now: float) -> BreakerSnapshot:
        """Return everything that is worth keeping."""
        rest = max(0.0, self.until - now) if -inf < self.until < inf else None
        length = self._break_length if self._break_length < inf else None
        return BreakerSnapshot(self.state, self.failures, self.opened_count, rest, length)

    def restore(self, kept: BreakerSnapshot, now: float) -> bool:
        """Go on from a snapshot. Return whether the break's length is not known and waits for `hold`."""
        self._move(kept.state, "restored", kept.retry_after)
        self.failures = kept.failures
        self.opened_count = kept.opened_count
        self._break_length = inf if kept.break_length is None else kept.break_length
        if kept.state in (State.OPEN, State.FORCED_OPEN):
            self.until = now + (inf if kept.retry_after is None else kept.retry_after)
        if kept.state is State.OPEN:
            return kept.retry_after is None or kept.break_length is None
        return kept.state is State.HALF_OPEN and kept.break_length is None

    @property
    def _probe_timeout(self) -> float:
        return self._break_length if self._half_open_timeout is None else self._half_open_timeout

    def _probes_out(self) -> list[tuple[Ticket, float]]:
        return [probe for probe in self._probes if probe[0].is_out]

    def _settle_probe(self, ticket: Ticket, verdict: Verdict) -> bool:
        was_out, ticket.is_out = ticket.is_out, False
        if not was_out or verdict == "ignored":
            return False  # it had lost its place to a later caller, or gives it back unused
        if verdict == "failure":
            return self._open("a probe failed")
        self._probe_successes += 1
        if self._probe_successes >= self._half_open_calls:
            self._move(State.CLOSED, "the probes succeeded")
            self.opened_count = 0
        return False

    def _open(self, cause: str) -> bool:
        failures = self.failures
        self._move(State.OPEN, cause)
        self.failures = failures
        self.opened_count += 1
        self.until = inf  # refuses everybody until `hold` says how long
        return True

    def _move(self, state: State, cause: str, retry_after: float | None = None) -> None:
        if state is not self.state:
            self.changes.append(Change(self.state, state, cause, retry_after))
        self.generation += 1
        self.state = state
        self.failures = self._probe_successes = 0
        self._probes = []
        self.until = -inf
        self.shared = Ticket(self.generation) if state in _PASSING else None
