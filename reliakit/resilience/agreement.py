"""What one breaker tells the others of its name, and what it does when they agree. Pure: no store and no waiting.

```
ballot(state, rest) ──> the store counts ──> heed(count) ──> Order: open for so long, forced open, closed, or nothing
```
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from reliakit.resilience.circuit import State

if TYPE_CHECKING:
    from reliakit.stores.ballots import Ballot, Count

__all__ = ["Agreement", "Order"]

# A process that holds the lease but has no calls to probe with gives it up after so many rounds.
_IDLE_ROUNDS = 3
_BY_HAND = frozenset({State.FORCED_OPEN, State.DISABLED, State.METRICS_ONLY})


@dataclass(frozen=True, slots=True)
class Order:
    """What a breaker has to do: be "open" or "forced" for `seconds` (None: without end), or "closed"."""

    state: str
    seconds: float | None = None


@dataclass(slots=True)
class Agreement:
    """One breaker's part in the agreement: how it votes, and what the count means for it. Pure: no store, no waiting.

    While a circuit is open by agreement, its break is made longer than it is, by `hold`, so that a process without
    the lease does not probe even if its next round comes late.

    Attributes:
        interval: Seconds between two rounds.
        hold: Seconds after which a process whose rounds have stopped decides alone.
        era: The era it last heard of, -1 for none yet.
        is_shared: Whether the circuit is open because a quorum agrees, whichever process opened first.
        is_forced: Whether the store forces it open.
        is_probing: Whether it was told to probe.
        is_voting: Whether its last ballot said that its own calls have opened it.
        has_voted: Whether the ballot before that one did.
        until: When the break that all agree on is over.
        own_until: When the break that its own calls began is over.
        idle: How many rounds it was meant to probe and did not.
        heard_at: When it last heard of the others.
    """

    interval: float
    hold: float
    era: int = -1
    is_shared: bool = False
    is_forced: bool = False
    is_probing: bool = False
    is_voting: bool = False
    has_voted: bool = False
    until: float = 0.0
    own_until: float = 0.0
    idle: int = 0
    heard_at: float = -inf

    def ballot(self, ballot: Ballot, state: State, rest: float | None, now: float) -> Ballot:
        """Return this round's ballot.

        Args:
            ballot: The part that does not change from round to round.
            state: The breaker's state.
            rest: The breaker's `retry_after`.
            now: When both were read.
        """
        is_open = state is State.OPEN and rest is not None
        has_failed = self.is_probing and is_open and (rest or 0.0) > 0
        if is_open and (not self.is_shared or has_failed):
            self.own_until = now + (rest or 0.0)
        is_over = is_open and now >= self.until and not has_failed
        wants_lease = self.is_shared and (
            state is State.HALF_OPEN or has_failed or (is_over and self.idle < _IDLE_ROUNDS)
        )
        remaining = max(0.0, self.own_until - now) if is_open else 0.0
        # An expired lease may be another process's by now, whose probes know better: what it says is heard first.
        is_news = now - self.heard_at < ballot.lease
        self.has_voted, self.is_voting = self.is_voting, remaining > 0
        return ballot._replace(
            remaining=remaining,
            era=self.era,
            wants_lease=wants_lease,
            has_closed=self.is_shared and state is State.CLOSED and is_news,
        )

    def heed(self, count: Count, state: State, rest: float | None, now: float) -> Order | None:
        """Take in the store's count, and return what the breaker has to do, or None for nothing."""
        is_new_era = -1 < self.era < count.era  # an era that starts again means a flushed store, not a closed circuit
        self.era, self.heard_at = count.era, now
        if count.forced > 0 or self.is_forced:
            return self._obey(count, state, rest)
        if state in _BY_HAND:
            self._leave()
            return None
        if is_new_era:
            # Also a process that helped to open the circuit and has not heard yet that it is open.
            took_part = self.is_shared or self.has_voted
            self._leave()
            return Order("closed") if took_part and state is not State.CLOSED else None
        if count.remaining > 0:
            return self._join(count, state, rest, now)
        return self._linger(count, state, rest, now) if self.is_shared else None

    def has_told(self, count: Count) -> None:
        """Note that the others have heard that it closed, although its state has changed again meanwhile."""
        self.era = count.era
        self._leave()

    def alone(self, state: State, rest: float | None, now: float) -> Order | None:
        """Return what the breaker has to do while the store does not answer: keep to the break, without `hold`."""
        left = max(0.0, self.until - now)
        is_held = self.is_shared and state is State.OPEN and rest is not None and rest > left + self.interval
        return Order("open", left) if is_held and not self.is_probing else None

    def _leave(self) -> None:
        self.is_shared = self.is_probing = self.is_voting = self.has_voted = False
        self.until = self.own_until = 0.0
        self.idle = 0

    def _obey(self, count: Count, state: State, rest: float | None) -> Order | None:
        was_forced, self.is_forced = self.is_forced, count.forced > 0
        self._leave()
        if not was_forced:
            return Order("forced", None if count.forced == inf else count.forced)
        # Released by hand, it closes; if the time just ran out, probes decide.
        is_let_go = not self.is_forced and (rest is None or rest > 2 * self.interval)
        return Order("closed") if is_let_go and state is State.FORCED_OPEN else None

    def _join(self, count: Count, state: State, rest: float | None, now: float) -> Order | None:
        """Follow a quorum that says that the circuit is open."""
        self.is_shared, self.until = True, now + count.remaining
        if state is State.HALF_OPEN and count.has_lease:
            return None
        self.is_probing = False
        return self._held(state, rest, count.remaining)

    def _held(self, state: State, rest: float | None, left: float) -> Order | None:
        """Return the order that keeps all calls out for `left` seconds and until the round after."""
        is_held = state is State.OPEN and rest is not None and rest >= left + self.hold - self.interval
        return None if is_held else Order("open", left + self.hold)

    def _linger(self, count: Count, state: State, rest: float | None, now: float) -> Order | None:
        """Act after the break is over: the holder of the lease probes, and all others wait for the outcome."""
        if state is State.CLOSED:
            return None
        # Breaks are never cut short: a store that knows of none was flushed, and the agreed break goes on.
        left = self.until - now if self.until - now > self.interval else 0.0
        self.until = min(self.until, now + left)
        if left or not count.has_lease:
            self.is_probing, self.idle = False, 0
            return self._held(state, rest, left)
        if state is State.OPEN and not self.is_probing:
            self.is_probing = True
            return Order("open", 0.0)
        self.idle = self.idle + 1 if state is State.OPEN and rest == 0 else 0
        return None
