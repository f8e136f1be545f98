"""How many processes agree on the state of one circuit: what each tells a shared store, and what it hears back.

```
process ── Ballot: my circuit is open for 12 s ──> store: counts, by its clock ── Count: 3 of 4 say so ──> process
```

One round trip, made now and then and never by a call. All times are seconds that remain, so that no two clocks are
compared.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Ballot", "BallotBox", "Count"]


class Ballot(NamedTuple):
    """What one process tells about one circuit.

    Attributes:
        circuit: The breaker's name.
        member: Who tells it, unique to the process.
        lifetime: Seconds for which the process counts as alive without telling anything more.
        remaining: For how many seconds its own circuit stays open; 0.0 for no vote.
        era: The era it last heard of, -1 for none. A vote from an earlier era is not counted.
        wants_lease: Whether it is about to probe, or does so.
        lease: Seconds for which nobody else may probe.
        has_closed: Its probes have succeeded: the circuit is closed for everybody, and a new era begins.
        quorum: How many votes open the circuit for everybody; 0 for two or 30 % of the living, whatever is more.
    """

    circuit: str
    member: str
    lifetime: float
    remaining: float
    era: int
    wants_lease: bool
    lease: float
    has_closed: bool
    quorum: int


class Count(NamedTuple):
    """What the store knows about one circuit.

    Attributes:
        era: Counts how often the circuit was closed for everybody.
        members: How many processes are alive.
        votes: How many of them say that it is open; who is dead has no vote.
        quorum: How many are needed.
        remaining: For how many seconds it is open for everybody; 0.0 when it is not.
        has_lease: Whether the process that asked may probe.
        is_leased: Whether anybody may.
        forced: For how many seconds it is forced open by hand, infinity for no end, 0.0 when it is not.
    """

    era: int
    members: int
    votes: int
    quorum: int
    remaining: float
    has_lease: bool
    is_leased: bool
    forced: float

    def aged(self, seconds: float, lease: float) -> Count:
        """Return what is left of it so many seconds after it was asked for.

        Args:
            seconds: How late it comes, as to a process that was suspended meanwhile.
            lease: For how many seconds the lease was asked for.
        """
        return self._replace(
            remaining=max(0.0, self.remaining - seconds),
            has_lease=self.has_lease and seconds < lease,
            forced=max(0.0, self.forced - seconds),
        )


class BallotBox(Protocol):
    """A store in which processes agree on circuits."""

    def vote(self, ballot: Ballot, /) -> Count:
        """Take one process's ballot and count, in one atomic step and one round trip.

        Raises:
            StoreError: The store cannot be asked.
        """
        ...

    def force(self, circuit: str, seconds: float, /) -> None:
        """Force a circuit open for everybody: for so many seconds, infinity for no end, or 0.0 to let go of it.

        Raises:
            StoreError: The store cannot be asked.
        """
        ...
