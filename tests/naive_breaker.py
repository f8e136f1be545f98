"""The circuit breaker as one would first write it: outcomes in a list, each permit by itself, no lane, no lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reliakit import CircuitOpenError, CountWindow, RejectedError, TimeWindow
from reliakit.core.guard import guarded

if TYPE_CHECKING:
    from reliakit.testing import ManualClock

Outcome = tuple[float, bool, bool]
Permit = tuple[int, object, float]


class NaiveBreaker:
    """Counts ValueError and the result "bad" as failures, and ignores KeyError."""

    def __init__(
        self,
        clock: ManualClock,
        *,
        failure_threshold: int | None = None,
        failure_rate: float | None = None,
        slow_call: float | None = None,
        slow_rate: float | None = None,
        window: CountWindow | TimeWindow = CountWindow(100),  # noqa: B008 - frozen
        minimum_calls: int = 10,
        reset_timeout: float = 60.0,
        half_open_calls: int = 1,
        half_open_timeout: float | None = None,
    ) -> None:
        self.clock = clock
        self.threshold = failure_threshold
        if failure_threshold is None and failure_rate is None and slow_rate is None:
            self.threshold = 5
        self.failure_rate = failure_rate
        self.slow_call = slow_call
        self.slow_rate = slow_rate
        self.window = window
        self.minimum = minimum_calls
        self.reset = reset_timeout
        self.probes = half_open_calls
        self.probe_timeout = reset_timeout if half_open_timeout is None else half_open_timeout
        self.epoch = 0
        self.state = "closed"
        self.outcomes: list[Outcome] = []
        self.failures = 0
        self.opened_at = 0.0
        self.out: list[tuple[object, float]] = []
        self.probed: list[Outcome] = []

    @property
    def retry_after(self) -> float | None:
        now = self.clock.monotonic()
        if self.state == "open":
            return max(0.0, self.opened_at + self.reset - now)
        if self.state == "half_open" and len(self.out) + len(self.probed) == self.probes:
            return max(0.0, self.out[0][1] + self.probe_timeout - now)
        return 0.0

    @property
    def recent(self) -> list[Outcome]:
        if isinstance(self.window, CountWindow):
            return self.outcomes[-self.window.size :]
        now = self.clock.monotonic()
        return [outcome for outcome in self.outcomes if now - outcome[0] < self.window.seconds]

    @property
    def counts(self) -> tuple[int, int, int, int]:
        recent = self.recent
        return (
            self.failures,
            len(recent),
            sum(failed for _, failed, _ in recent),
            sum(slow for _, _, slow in recent),
        )

    def enter(self) -> Permit:
        now = self.clock.monotonic()
        if self.state == "open" and now >= self.opened_at + self.reset:
            self.go("half_open")
        token = object()
        if self.state == "half_open":
            if len(self.out) + len(self.probed) == self.probes and now - self.out[0][1] >= self.probe_timeout:
                self.out.pop(0)
            if len(self.out) + len(self.probed) == self.probes:
                raise CircuitOpenError(name="db", retry_after=self.retry_after)
            self.out.append((token, now))
        elif self.state == "open":
            raise CircuitOpenError(name="db", retry_after=self.retry_after)
        return self.epoch, token, now

    def leave(self, permit: Permit, error: BaseException | None, result: object, /) -> None:
        if error is None:
            verdict = "failure" if result == "bad" else "success"
        elif not isinstance(error, Exception) or isinstance(error, RejectedError | KeyError):
            verdict = "ignored"
        else:
            verdict = "failure" if isinstance(error, ValueError) else "success"
        self.count(permit, verdict)

    def count(self, permit: Permit, verdict: str) -> None:
        epoch, token, began = permit
        if epoch != self.epoch:
            return
        now = self.clock.monotonic()
        outcome = (now, verdict == "failure", self.slow_call is not None and now - began >= self.slow_call)
        if self.state == "half_open":
            self.count_probe(token, verdict, outcome)
        elif verdict != "ignored":
            self.failures = self.failures + 1 if verdict == "failure" else 0
            self.outcomes.append(outcome)
            if self.must_open():
                self.open()

    def must_open(self) -> bool:
        recent = self.recent
        if self.threshold is not None and self.failures >= self.threshold:
            return True
        return len(recent) >= self.minimum and self.rates_exceeded(recent, len(recent))

    def rates_exceeded(self, outcomes: list[Outcome], of: int) -> bool:
        failed, slow = sum(bad for _, bad, _ in outcomes), sum(late for _, _, late in outcomes)
        by_failures = self.failure_rate is not None and failed / of >= self.failure_rate
        return by_failures or (self.slow_rate is not None and slow / of >= self.slow_rate)

    def count_probe(self, token: object, verdict: str, outcome: Outcome) -> None:
        mine = [entry for entry in self.out if entry[0] is token]
        if not mine:
            return
        self.out.remove(mine[0])
        if verdict == "ignored":
            return
        self.probed.append(outcome)
        verdicts = {self.verdict_on(self.probed + rest) for rest in self.ways_to_end()}
        if verdicts == {True}:
            self.open()
        elif verdicts == {False}:
            self.go("closed")

    def ways_to_end(self) -> list[list[Outcome]]:
        missing = self.probes - len(self.probed)
        good, bad = [(0.0, False, False)], [(0.0, True, True)]
        return [bad * worst + good * (missing - worst) for worst in range(missing + 1)]

    def verdict_on(self, probed: list[Outcome]) -> bool:
        if self.failure_rate is None and self.threshold is not None and any(bad for _, bad, _ in probed):
            return True
        return self.rates_exceeded(probed, self.probes)

    def go(self, state: str) -> None:
        self.epoch += 1
        self.state, self.failures, self.outcomes, self.out, self.probed = state, 0, [], [], []

    def open(self) -> None:
        failures, outcomes = self.failures, self.outcomes
        self.go("open")
        self.failures, self.outcomes = failures, outcomes  # still to be looked at
        self.opened_at = self.clock.monotonic()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return guarded(self, fn, by="the naive one")
