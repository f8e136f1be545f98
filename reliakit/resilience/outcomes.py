"""How a breaker takes a call back: its verdict, where it is counted, and what follows from it.

```
a success on the lane        lane.count += 1
any other outcome            judged, then settled by the circuit under the lock, and reported after that
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.events import CallEnded
from reliakit.core.lanes import Lane
from reliakit.core.tracking import report
from reliakit.resilience.circuit import DISABLED, Entry
from reliakit.resilience.controls import Controls

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.resilience.circuit import Ticket
    from reliakit.resilience.verdict import Verdict

__all__ = ["Outcomes"]


class Outcomes(Controls):
    """The part of a `CircuitBreaker` that counts. Safe from threads and tasks; never waits."""

    __slots__ = ("_asks", "_tells_errors", "timing")

    timing: tuple[Callable[[], float], float] | None
    _asks: bool  # whether the dependency is asked how long to leave it alone
    _tells_errors: bool

    def leave(self, ticket: Ticket, error: BaseException | None, result: object, /) -> None:
        """Take a ticket back with the call's outcome, and judge it."""
        lane = self.passing
        if error is None and lane is not None and ticket is lane:
            lane.count += 1
            return
        verdict: Verdict = "ignored"
        asked = None
        try:
            verdict = self._judge.of_result(result) if error is None else self._judge.of_error(error)
            if self._asks and verdict == "failure":
                asked = self._length.asked_by(result if error is None else error)
        finally:
            # Even if a predicate is interrupted: a permit that is not given back would be lost.
            if ticket is lane and verdict == "failure":
                self._settle(ticket, verdict, 0.0, False, asked)  # a lane's outcome is neither timed nor reported
            else:
                self._count(ticket, verdict, asked)
        if error is not None and self._tells_errors:
            report(self._emitter, error)

    def settle(self, ticket: Ticket, verdict: Verdict, error: BaseException | None) -> None:
        """Take a ticket back with a given verdict; an error that is not to be counted overrules it."""
        neutral = True
        asked = None
        try:
            neutral = error is not None and self._judge.is_neutral(error)
            if verdict == "failure" and not neutral:
                asked = self._length.asked_by(error)
        finally:
            self._count(ticket, "ignored" if neutral else verdict, asked)
        if error is not None and self._tells_errors:
            report(self._emitter, error)

    def _count(self, ticket: Ticket, verdict: Verdict, asked: float | None = None) -> None:
        """Count an outcome, on its lane if that is all there is to do."""
        now, took, heard = 0.0, None, self._heard  # a count window needs no time
        if self.timing is not None or heard:
            now = self._now()
            if isinstance(ticket, Entry) and ticket.began is not None:
                took = now - ticket.began
        slow = took is not None and self.timing is not None and took >= self.timing[1]
        if verdict == "success" and not slow and not heard:
            lane = ticket if isinstance(ticket, Lane) else ticket.lane
            if now < lane.until:
                lane.count += 1
                return
        if self._settle(ticket, verdict, now, slow, asked) and heard:
            self._emitter.emit(CallEnded, verdict=verdict, duration=took)

    def _settle(self, ticket: Ticket, verdict: Verdict, now: float, slow: bool, asked: float | None) -> bool:
        """Let the circuit judge an outcome, and do what follows. Return whether it counts at all."""
        circuit, ledger = self._circuit, self._ledger
        lock, opened_count = ledger.lock, 0
        lock.acquire()  # not `with`, which takes twice as long: a tenth of what a failure costs
        try:
            opened = circuit.settle(ticket, verdict, now, slow, asked)
            counted = circuit.state is not DISABLED
            if counted:
                ledger.counts[verdict] += 1
            if opened:
                opened_count = circuit.opened_count
            lane = circuit.lane
            if lane is not self.passing:  # one that closes for a while lets nothing pass by: see `until`
                self._show_lane_locked()
        finally:
            lock.release()
        if opened:
            self._hold(lane, opened_count, asked)
        if circuit.changes:
            self._tell()
        return counted
