"""What is worth saving of a breaker: plain values that survive JSON, another process and another clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.resilience.circuit import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.resilience.circuit import Circuit
    from reliakit.resilience.windows import Run

__all__ = ["BreakerSnapshot", "snapshot_of"]


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker's state at one instant. `BreakerSnapshot(**json.loads(json.dumps(dataclasses.asdict(it)))) == it`.

    Attributes:
        state: The breaker's state.
        failures: Failures in a row so far.
        opened_count: How many times it has opened since it was last closed.
        retry_after: The rest of the break in seconds, or None if there is no break or it has no end.
        break_length: The length of the current or last break in seconds, or None if there was none.
        window: What is in the window, oldest first, as runs of (how many seconds ago, outcomes, failures among them,
            slow calls among them). In an open circuit, what was in it when it opened.
    """

    state: State
    failures: int = 0
    opened_count: int = 0
    retry_after: float | None = None
    break_length: float | None = None
    window: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        # From JSON the state comes as plain text, and the window as lists.
        object.__setattr__(self, "state", State(checks.choice("state", self.state, [*State])))
        checks.count("failures", self.failures, least=0)
        checks.count("opened_count", self.opened_count, least=0)
        for argument in ("retry_after", "break_length"):
            if getattr(self, argument) is not None:
                checks.seconds(argument, getattr(self, argument), zero=True)
        object.__setattr__(self, "window", _checked(self.window))

    @property
    def calls(self) -> int:
        """How many outcomes are in the window."""
        return sum(run[1] for run in self.window)

    @property
    def failed_calls(self) -> int:
        """How many outcomes in the window are failures."""
        return sum(run[2] for run in self.window)

    @property
    def slow_calls(self) -> int:
        """How many outcomes in the window were slow."""
        return sum(run[3] for run in self.window)

    @property
    def failure_rate(self) -> float | None:
        """The share of failures in the window, or None if it is empty."""
        return self.failed_calls / self.calls if self.calls else None

    @property
    def slow_rate(self) -> float | None:
        """The share of slow calls in the window, or None if it is empty."""
        return self.slow_calls / self.calls if self.calls else None


def _checked(window: object) -> tuple[Run, ...]:
    if not isinstance(window, list | tuple):
        raise ConfigurationError(f"window must be a list of runs of outcomes, got {window!r}")
    return tuple(_checked_run(run) for run in cast("Iterable[object]", window))


def _checked_run(given: object) -> Run:
    if not isinstance(given, list | tuple) or len(cast("tuple[object, ...]", given)) != 4:
        raise ConfigurationError(f"window must hold runs of (age, calls, failures, slow), got {given!r}")
    age, calls, failures, slow = cast("Run", given)
    checks.count("window", calls)
    checks.count("window", failures, least=0)
    checks.count("window", slow, least=0)
    if max(failures, slow) > calls:
        raise ConfigurationError(f"window must not hold more failures or slow calls than calls, got {given!r}")
    return checks.seconds("window", age, zero=True), calls, failures, slow


def snapshot_of(circuit: Circuit, now: float) -> BreakerSnapshot:
    """Return everything that is worth saving. The owner must hold its lock."""
    circuit.absorb()
    return BreakerSnapshot(
        circuit.state,
        circuit.failures,
        circuit.opened_count,
        circuit.rest_of_break(now),
        circuit.break_length,
        circuit.tally.runs(now),
    )
