"""The circuit as a pure machine: what a breaker decides, without clock, lock or listener.

```
            a trigger is exceeded                          the break is over and somebody calls
  closed ──────────────────────────────> open ──────────────────────────────────────────> half_open
    ^                                     ^                                                 │   │
    │                                     └──────────────── the probes fail ────────────────┘   │
    └─────────────────────────────── the probes succeed ────────────────────────────────────────┘

  forced_open: nobody passes      disabled: all pass, nothing counts      metrics_only: all pass, counted
```

Every state that begins is a new generation, identified by its lane. A call carries the lane of the generation that it
began in, and its outcome is dropped when that generation is over: a late failure never lengthens a break and a late
success never closes a circuit. Generations are from sony/gobreaker, the probe that loses its permit is from Polly,
the rule that a success may open a circuit is from Resilience4j.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from reliakit.core.lanes import GIL, Lane
from reliakit.resilience.triggers import Probed, Triggers
from reliakit.resilience.windows import CountWindow, Tally, TimeWindow, tally_of

if TYPE_CHECKING:
    from reliakit.resilience.snapshot import BreakerSnapshot
    from reliakit.resilience.verdict import Verdict

__all__ = ["DISABLED", "Change", "Circuit", "Entry", "State", "Ticket"]


class State(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"
    METRICS_ONLY = "metrics_only"


# A call that ends after so many more changes of state is missing from the sum of all successes.
_LANES_KEPT = 16
# Looking a member up in its enum takes longer than most of what is done with it.
DISABLED, _HALF_OPEN, _METRICS_ONLY = State.DISABLED, State.HALF_OPEN, State.METRICS_ONLY
_PASSING = frozenset({State.CLOSED, DISABLED, _METRICS_ONLY})


class Entry:
    """One call's permission to pass, valid for the generation of its lane."""

    __slots__ = ("began", "is_out", "lane")

    def __init__(self, lane: Lane, began: float | None = None) -> None:
        self.lane: Lane = lane
        self.began: float | None = began
        self.is_out: bool = False  # whether it is a probe's and still holds its place among the probes


Ticket: TypeAlias = Entry | Lane


class Change:
    """A move from one state to another. Listeners are told of changes in the order in which they happened.

    If both states are the same, `metrics_only` kept the circuit from opening.
    """

    __slots__ = ("cause", "previous", "retry_after", "state")

    def __init__(self, previous: State, state: State, cause: str, retry_after: float | None = None) -> None:
        self.previous: State = previous
        self.state: State = state
        self.cause: str = cause
        self.retry_after: float | None = retry_after


class Circuit:
    """The states and counts of one breaker. Not thread-safe: its owner holds a lock around every call.

    The lock is re-entrant, so another step on the same thread may come in between: any allocation may trigger garbage
    collection, and that may close a guarded generator. So only its own ticket says whether a probe is out.

    Args:
        triggers: What opens the circuit.
        window: Which recent outcomes the rates are computed over.
        half_open_timeout: Seconds after which a probe loses its ticket to the next caller; None for the break length.
    """

    def __init__(self, triggers: Triggers, window: CountWindow | TimeWindow, half_open_timeout: float | None) -> None:
        self._triggers = triggers
        self._has_rates = triggers.has_rates
        self._most_in_a_row = inf if triggers.in_a_row is None else triggers.in_a_row
        self._window = window
        self._half_open_timeout = half_open_timeout
        self.changes: deque[Change] = deque()
        self.state: State = State.CLOSED
        self.opened_count: int = 0
        # When the break ends: inf while that is not known, -inf outside of breaks. This one value is enough to refuse
        # a call without the lock.
        self.until: float = -inf
        self.lane: Lane = Lane()
        self._lanes = deque([self.lane])
        self._passed = 0
        self._counted = 0  # how many successes of the lane are in the tally
        self.tally: Tally = tally_of(window)
        self._in_a_row = 0
        self._is_exceeded = False
        self._break_length = inf
        self._probes: list[tuple[Entry, float]] = []
        self._probed = Probed()
        self._open_lane()

    @property
    def is_lane_open(self) -> bool:
        """Whether all calls may pass, and a success before `lane.until` is only counted."""
        return self.lane.until > -inf

    @property
    def passed(self) -> int:
        """How many successes all lanes have counted, calls that began on an earlier lane included."""
        return self._passed + sum(lane.count for lane in self._lanes)

    @property
    def failures(self) -> int:
        """Failures in a row so far."""
        self.absorb()
        return self._in_a_row

    def admit(self, now: float) -> Entry | None:
        """Return a ticket, or None if the call must not be tried. Begins the probes once the break is over."""
        if self.state in _PASSING:
            return Entry(self.lane, now)
        if now < self.until:
            return None
        if self.state is not State.HALF_OPEN:
            self._move(State.HALF_OPEN, "the break is over")
        probes = self._probes_out()
        if len(probes) + self._probed.calls >= self._triggers.probes:
            oldest, began = probes.pop(0)
            if now - began < self._probe_timeout:
                return None
            oldest.is_out = False
        ticket = Entry(self.lane, now)
        ticket.is_out = True
        self._probes = [*probes, (ticket, now)]
        return ticket

    def settle(self, ticket: Ticket, verdict: Verdict, now: float, slow: bool, asked: float | None) -> bool:
        """Count an outcome. Return whether it opened the circuit, which then waits for `hold`.

        Args:
            ticket: The call's ticket.
            verdict: Failure, success or neither.
            now: When the call ended.
            slow: Whether it took too long.
            asked: For how many seconds the dependency itself asks to be left alone.
        """
        lane = ticket if isinstance(ticket, Lane) else ticket.lane
        state, cause = self.state, None
        if lane is not self.lane or state is DISABLED:
            return False
        if state is _HALF_OPEN:
            assert isinstance(ticket, Entry)  # any other ticket's lane is closed
            was_out, ticket.is_out = ticket.is_out, False
            if not was_out or verdict == "ignored":
                return False  # the probe had lost its place to a later caller, or gives it back unused
            if asked is None:
                cause = self._count_probe(verdict, slow=slow)
        elif verdict == "ignored":
            return False
        else:
            cause = self._count(verdict == "failure", slow, now)
        if asked is not None:
            cause = f"the dependency asked for {asked:g} s"
        if cause is None or state is _METRICS_ONLY or lane is not self.lane:
            return False  # the lane check covers a finaliser that moved the circuit meanwhile
        self._open(cause)
        return True

    def absorb(self) -> None:
        """Take over what the lane has counted. Successes may be added late, if no other outcome came in between."""
        more = self.lane.count - self._counted
        if more > 0 and self.state is not DISABLED:
            self._counted += more
            self.tally.succeed(more)
            self._in_a_row = 0

    def hold(self, lane: Lane, now: float, length: float) -> None:
        """Set the length of the break that began with this lane."""
        if lane is self.lane:
            self._break_length = length
            if self.state is State.OPEN:
                self.until = now + length
            if self.changes and self.changes[-1].state is self.state:
                self.changes[-1].retry_after = length

    def trip(self, now: float, length: float, cause: str) -> None:
        """Open for `length` seconds, or make the current break end then."""
        if self.state is not State.OPEN:
            self._open(cause)
        self.hold(self.lane, now, length)

    def retry_after(self, now: float) -> float | None:
        """Return the seconds until a call may pass: 0.0 if it may now, None if they are not known."""
        if self.until == inf:
            return None
        probes = self._probes_out()
        if self.state is State.HALF_OPEN and len(probes) + self._probed.calls >= self._triggers.probes:
            until = probes[0][1] + self._probe_timeout
            return max(0.0, until - now) if until < inf else None
        return max(0.0, self.until - now)

    def force_open(self, now: float, seconds: float | None) -> None:
        """Let no call pass, for `seconds` or until told otherwise."""
        self._move(State.FORCED_OPEN, "forced open", seconds)
        self._break_length = inf if seconds is None else seconds
        self.until = now + self._break_length

    def switch(self, state: State) -> None:
        """Enter closed, disabled or metrics_only with all counts at zero; nothing changes if it is there already."""
        if self.state is not state:
            self._move(state, "set by hand")
            self.opened_count = 0

    def reset(self) -> None:
        """Start afresh: closed, with nothing counted."""
        self._move(State.CLOSED, "reset")
        self.opened_count = 0

    def take_probes_back(self) -> None:
        """Let other calls find out what the probes under way would have; their outcomes do not count any more."""
        for ticket, _ in self._probes:
            ticket.is_out = False
        self._probes = []

    def rest_of_break(self, now: float) -> float | None:
        """Return the seconds until the break is over, or None if there is no break or it has no end."""
        return max(0.0, self.until - now) if -inf < self.until < inf else None

    @property
    def break_length(self) -> float | None:
        """The length of the current or last break, None if there was none or it has no end."""
        return self._break_length if self._break_length < inf else None

    def restore(self, kept: BreakerSnapshot, now: float) -> bool:
        """Go on from a snapshot. Return whether the break's length is unknown and waits for `hold`."""
        self._move(State(kept.state), "restored", kept.retry_after)
        for age, calls, failures, slow in kept.window:
            self.tally.add(now - age, calls, failures, slow)
        self._in_a_row = kept.failures
        self.opened_count = kept.opened_count
        self._break_length = inf if kept.break_length is None else kept.break_length
        if self.state in (State.OPEN, State.FORCED_OPEN):
            self.until = now + (inf if kept.retry_after is None else kept.retry_after)
        self._open_lane()
        if self.state is State.OPEN:
            return kept.retry_after is None or kept.break_length is None
        return self.state is State.HALF_OPEN and kept.break_length is None

    @property
    def _probe_timeout(self) -> float:
        return self._break_length if self._half_open_timeout is None else self._half_open_timeout

    def _probes_out(self) -> list[tuple[Entry, float]]:
        return [probe for probe in self._probes if probe[0].is_out]

    def _count_probe(self, verdict: Verdict, *, slow: bool) -> str | None:
        """Count a probe's outcome. Closes the circuit, or returns why it must open."""
        probed = self._probed
        probed.calls += 1
        probed.failures += verdict == "failure"
        probed.slow += slow
        cause = self._triggers.probes_failed(probed)
        if cause is None and self._triggers.probes_succeeded(probed):
            self._move(State.CLOSED, "the probes succeeded")
            self.opened_count = 0
        return cause

    def _count(self, failed: bool, slow: bool, now: float) -> str | None:
        """Count an outcome in a state that lets all calls pass, and return why the circuit must open, or None."""
        if self.lane.count != self._counted:
            self.absorb()
        tally = self.tally
        if self._is_exceeded:  # in metrics_only: reported once, and again if things were good in between
            tally.forget(now)
            self._is_exceeded = self._triggers.exceeded(self._in_a_row, tally) is not None
        self._in_a_row = self._in_a_row + 1 if failed else 0
        tally.count(now, failed, slow)
        if self.lane.until < inf:  # otherwise the lane stays open for the rest of this generation
            self._open_lane()
        if self._in_a_row < self._most_in_a_row and not self._has_rates:
            return None
        cause = self._triggers.exceeded(self._in_a_row, tally)
        if cause is not None and self.state is _METRICS_ONLY and not self._is_exceeded:
            self._is_exceeded = True
            self.changes.append(Change(self.state, self.state, cause))
        return cause

    def _open_lane(self) -> None:
        """Open the express lane while successes are only counted: minimum reached, and nothing leaves the window."""
        triggers, tally = self._triggers, self.tally
        is_open = self.state in _PASSING and GIL and (not triggers.has_rates or tally.calls >= triggers.minimum)
        self.lane.until = (inf if self.state is DISABLED else tally.settled_until) if is_open else -inf

    def _open(self, cause: str) -> None:
        in_a_row, tally = self._in_a_row, self.tally
        self._move(State.OPEN, cause)
        self._in_a_row, self.tally = in_a_row, tally  # kept for display: nothing is counted now
        self.opened_count += 1
        self.until = inf  # refuse all calls until `hold` says for how long

    def _move(self, state: State, cause: str, retry_after: float | None = None) -> None:
        if state is not self.state:
            self.changes.append(Change(self.state, state, cause, retry_after))
        self.state = state
        self.tally = tally_of(self._window)
        self.lane.until = -inf
        self.lane = Lane()
        self._in_a_row = self._counted = 0
        if state is not DISABLED:
            self._lanes.append(self.lane)
        if len(self._lanes) > _LANES_KEPT:
            self._passed += self._lanes.popleft().count
        self._is_exceeded = False
        self._probes = []
        self._probed = Probed()
        self.until = -inf
        self._open_lane()
