"""What opens a circuit, and what the probes of a half-open one decide.

```
closed      any of: failures in a row, share of failures, share of slow calls; judged after every outcome
half_open   the same rates over all probes, as soon as no missing outcome could change the verdict
```
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.resilience.windows import CountWindow, TimeWindow

if TYPE_CHECKING:
    from reliakit.resilience.windows import Tally

__all__ = ["Probed", "Triggers", "triggers_of"]


@dataclass(slots=True)
class Probed:
    """The outcomes of the probes of one half-open period so far."""

    calls: int = 0
    failures: int = 0
    slow: int = 0


@dataclass(frozen=True, slots=True)
class Triggers:
    """The thresholds that a circuit is judged by; None for one that is off. Rates are inclusive.

    Attributes:
        in_a_row: Failures in a row.
        failure_rate: Share of failures.
        slow_rate: Share of slow calls.
        minimum: The number of outcomes below which no rate is judged.
        probes: How many probes decide.
    """

    in_a_row: int | None
    failure_rate: float | None
    slow_rate: float | None
    minimum: int
    probes: int

    @property
    def has_rates(self) -> bool:
        """Whether a rate is judged, so that a success may matter."""
        return self.failure_rate is not None or self.slow_rate is not None

    def exceeded(self, in_a_row: int, tally: Tally) -> str | None:
        """Return in words why the circuit opens now, or None."""
        if self.in_a_row is not None and in_a_row >= self.in_a_row:
            return f"{in_a_row} failures in a row" if in_a_row > 1 else "a call failed"
        if self.failure_rate is None and self.slow_rate is None:
            return None
        calls = tally.calls
        if calls < self.minimum:
            return None
        if self.failure_rate is not None and tally.failures / calls >= self.failure_rate:
            return f"{tally.failures} of {calls} calls failed"
        if self.slow_rate is not None and tally.slow / calls >= self.slow_rate:
            return f"{tally.slow} of {calls} calls were slow"
        return None

    def probes_failed(self, probed: Probed) -> str | None:
        """Return in words why the circuit opens again, or None while the probes may still succeed."""
        if self.failure_rate is not None:
            if probed.failures / self.probes >= self.failure_rate:
                return f"{probed.failures} of {self.probes} probes failed" if self.probes > 1 else "a probe failed"
        elif self.in_a_row is not None and probed.failures:
            return "a probe failed"
        if self.slow_rate is not None and probed.slow / self.probes >= self.slow_rate:
            return f"{probed.slow} of {self.probes} probes were slow" if self.probes > 1 else "a probe was slow"
        return None

    def probes_succeeded(self, probed: Probed) -> bool:
        """Return whether no missing outcome of a probe could open the circuit again."""
        missing = self.probes - probed.calls
        if missing <= 0:
            return True
        worst = Probed(self.probes, probed.failures + missing, probed.slow + missing)
        return self.probes_failed(worst) is None


def triggers_of(
    *,
    failure_threshold: int | None,
    failure_rate: float | None,
    slow_call: float | None,
    slow_rate: float | None,
    window: CountWindow | TimeWindow,
    minimum_calls: int,
    half_open_calls: int,
) -> Triggers:
    """Return the thresholds that these settings of a `CircuitBreaker` stand for.

    Raises:
        ConfigurationError: A setting is wrong, or two of them do not go together.
    """
    if failure_threshold is not None:
        checks.count("failure_threshold", failure_threshold)
    elif failure_rate is None and slow_rate is None:
        failure_threshold = 5
    if failure_rate is not None:
        failure_rate = checks.share("failure_rate", failure_rate)
    if slow_rate is not None:
        slow_rate = checks.share("slow_rate", slow_rate)
    if slow_call is not None:
        checks.seconds("slow_call", slow_call)
    if (slow_call is None) is not (slow_rate is None):
        given, missing = ("slow_rate", "slow_call") if slow_call is None else ("slow_call", "slow_rate")
        raise ConfigurationError(f"{given} means nothing without {missing}: give both, or neither")
    checks.count("minimum_calls", minimum_calls)
    if not isinstance(window, CountWindow | TimeWindow):
        raise ConfigurationError(f"window must be a CountWindow or a TimeWindow, got {window!r}")
    if isinstance(window, CountWindow) and minimum_calls > window.size:
        raise ConfigurationError(
            f"minimum_calls must not be more than the window holds, got {minimum_calls} of {window.size}: "
            "no rate would ever be judged"
        )
    checks.count("half_open_calls", half_open_calls)
    return Triggers(failure_threshold, failure_rate, slow_rate, minimum_calls, half_open_calls)
