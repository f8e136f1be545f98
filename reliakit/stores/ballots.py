"""How many processes agree on the state of one circuit: what each tells a shared store, and what it gets back.

```
process ── Ballot: my circuit is open for 12 s ──> store: counts, by its clock ── Count: 3 of 4 say so ──> process
```

One round trip, made every now and then and never by a call. All times are remaining seconds, so no two clocks are
compared.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Ballot", "BallotBox", "Count"]


class Ballot(NamedTuple):
    """What one process says about one circuit.

    Attributes:
        circuit: The breaker's name.
        member: The process that says it, by a unique name.
        lifetime: Seconds for which the process counts as alive without saying anything more.
        remaining: For how many seconds its own circuit stays open; 0.0 for no vote.
        era: The era it last heard of, -1 for none. A vote from an earlier era is not counted.
        wants_lease: Whether it is about to probe, or does so.
        lease: Seconds for which no other process may probe.
        has_closed: Whether its probes have succeeded: the circuit then closes for everybody, and a new era begins.
        quorum: How many votes open the circuit for everybody; 0 for two or 30 % of the living, whichever is more.
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
        votes: How many of them say that it is open; a dead process has no vote.
        quorum: How many votes are needed.
        remaining: For how many seconds it is open for everybody; 0.0 if it is not.
        has_lease: Whether the process that asked may probe.
        is_leased: Whether any process may.
        forced: For how many seconds it is forced open by hand; infinity for no end, 0.0 if it is not.
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
        """Return what is left of it `seconds` after it was asked for.

        Args:
            seconds: How late it arrives, such as in a process that was suspended meanwhile.
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
            StoreError: The store cannot be reached.
        """
        ...

    def force(self, circuit: str, seconds: float, /) -> None:
        """Force a circuit open for everybody for `seconds`; infinity for no end, 0.0 to release it.

        Raises:
            StoreError: The store cannot be reached.
        """
        ...
