"""Rates, slow calls and probes: what opens the circuit and what its probes decide, case by case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from reliakit import (
    BreakerSnapshot,
    CircuitBreaker,
    CircuitOpenError,
    ConfigurationError,
    CountWindow,
    State,
    TimeWindow,
    subscribe,
)
from reliakit.core.events import CallRejected, CircuitChanged, CircuitFigures, CircuitPresent, CircuitSpared
from reliakit.resilience import circuit
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def make(clock: ManualClock) -> Callable[..., CircuitBreaker]:
    """Make a breaker: half of at least five calls in 20 s, failed or as slow as 4 s, and four probes."""

    def make(**settings: Any) -> CircuitBreaker:
        chosen: dict[str, Any] = {
            "failure_rate": 0.5,
            "slow_call": 4.0,
            "slow_rate": 0.5,
            "window": TimeWindow(20.0),
            "minimum_calls": 5,
            "reset_timeout": 5.0,
            "half_open_calls": 4,
            "half_open_timeout": 1.0,
            "ignore": KeyError,
            "clock": clock,
        }
        return CircuitBreaker("db", **(chosen | settings))

    return make


def play(breaker: CircuitBreaker, clock: ManualClock, outcomes: str, *, apart: float = 0.0) -> None:
    """F a failure, S a success, f and s slow ones, I an ignored one."""
    for outcome in outcomes:
        permit = breaker.acquire()
        clock.advance(5.0 if outcome.islower() else 0.0)
        settle = {"F": permit.failure, "S": permit.success, "I": permit.ignore}[outcome.upper()]
        settle()
        clock.advance(apart)


def half_open(breaker: CircuitBreaker, clock: ManualClock) -> None:
    breaker.force_open(5.0)
    clock.advance(5.0)
    breaker.acquire().ignore()
    assert breaker.state is State.HALF_OPEN


# What opens it


def test_a_success_that_completes_the_minimum_opens(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make()
    heard = RecordingListener()
    with subscribe(heard, CircuitChanged, CallRejected):
        play(breaker, clock, "FFFS")
        assert breaker.state is State.CLOSED
        play(breaker, clock, "S")
        kept = breaker.snapshot()
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
    assert (breaker.state, kept.failure_rate, kept.calls, kept.failed_calls) == (State.OPEN, 0.6, 5, 3)
    assert [type(event) for event in heard.events] == [CircuitChanged, CallRejected]
    assert heard.events[0].cause == "3 of 5 calls failed"  # type: ignore[attr-defined]


def test_rates_are_inclusive(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make()
    play(breaker, clock, "SSSFF", apart=1.0)
    assert (breaker.state, breaker.snapshot().failure_rate) == (State.CLOSED, 0.4)
    play(breaker, clock, "F")
    assert breaker.state is State.OPEN


def test_slow_calls_open_whatever_they_came_to(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make(window=CountWindow(10))
    play(breaker, clock, "fsFS")
    assert breaker.state is State.CLOSED
    play(breaker, clock, "s")
    kept = breaker.snapshot()
    assert (breaker.state, kept.slow_rate, kept.failure_rate) == (State.OPEN, 0.6, 0.4)


def test_a_call_is_slow_from_slow_call_on(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make(slow_call=5.0, minimum_calls=1)
    play(breaker, clock, "S")
    assert breaker.state is State.CLOSED
    play(breaker, clock, "s")
    assert breaker.snapshot().slow_calls == 1


def test_a_success_opens_when_older_ones_have_left_the_window(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make(minimum_calls=4)
    guarded = breaker(lambda: 7)
    for _ in range(6):
        guarded()
    clock.advance(10.0)
    play(breaker, clock, "FFF")
    assert breaker.state is State.CLOSED
    clock.advance(10.0)
    assert guarded() == 7  # three of four
    assert breaker.state is State.OPEN


def test_outcomes_leave_a_time_window_at_its_length(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make()
    play(breaker, clock, "FFFF")
    clock.advance(19.9)
    assert breaker.snapshot().calls == 4
    clock.advance(0.1)
    assert breaker.snapshot().calls == 0
    play(breaker, clock, "F")
    assert breaker.state is State.CLOSED


def test_any_trigger_opens(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make(failure_threshold=3)
    play(breaker, clock, "FFF")
    assert breaker.state is State.OPEN


def test_with_a_rate_failures_in_a_row_alone_open_nothing(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make(minimum_calls=10)
    play(breaker, clock, "F" * 9)
    assert breaker.state is State.CLOSED


def test_the_window_begins_anew_once_the_circuit_has_closed(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make()
    play(breaker, clock, "FFFFF")
    clock.advance(5.0)
    play(breaker, clock, "SSS")
    assert (breaker.state, breaker.snapshot().calls) == (State.CLOSED, 0)


# What the probes decide


def test_probes_are_four_and_after_the_next_break_four_again(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make()
    for _ in range(2):
        half_open(breaker, clock)
        probes = [breaker.acquire() for _ in range(4)]
        for _ in range(2):
            with pytest.raises(CircuitOpenError):
                breaker.acquire()
        for probe in probes[:2]:
            probe.failure()
        assert breaker.state is State.OPEN


def test_ignored_probes_never_wedge_it(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make()
    half_open(breaker, clock)
    play(breaker, clock, "IIIIIIII")
    assert breaker.state is State.HALF_OPEN
    play(breaker, clock, "SSIS")
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(
    ("settings", "outcomes", "state"),
    [
        ({}, "SS", State.HALF_OPEN),
        ({}, "SSS", State.CLOSED),  # whatever the fourth says, a quarter at most has failed
        ({}, "FSS", State.HALF_OPEN),
        ({}, "FSSS", State.CLOSED),
        ({}, "FF", State.OPEN),
        ({}, "FSF", State.OPEN),
        ({}, "sS", State.HALF_OPEN),
        ({}, "ss", State.OPEN),
        ({}, "Fs", State.HALF_OPEN),
        ({"failure_rate": 1.0, "slow_call": None, "slow_rate": None}, "S", State.CLOSED),
        ({"failure_rate": 1.0, "slow_call": None, "slow_rate": None}, "FFF", State.HALF_OPEN),
        ({"failure_rate": 1.0, "slow_call": None, "slow_rate": None}, "FFFF", State.OPEN),
        ({"failure_rate": 0.25, "slow_call": None, "slow_rate": None}, "F", State.OPEN),
        ({"failure_rate": 0.25, "slow_call": None, "slow_rate": None}, "SSS", State.HALF_OPEN),
        # Failures decide by themselves where no rate is set for them, and where they can open it at all.
        ({"failure_rate": None, "failure_threshold": 3}, "F", State.OPEN),
        ({"failure_rate": None}, "FFF", State.CLOSED),
        ({"failure_rate": None}, "ss", State.OPEN),
    ],
)
def test_the_rate_over_the_probes_decides_as_soon_as_it_can(
    settings: dict[str, Any],
    outcomes: str,
    state: State,
    make: Callable[..., CircuitBreaker],
    clock: ManualClock,
) -> None:
    breaker = make(half_open_timeout=100.0, **settings)
    half_open(breaker, clock)
    play(breaker, clock, outcomes)
    assert breaker.state is state


def test_a_probe_that_is_over_once_the_verdict_stands_changes_nothing(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make()
    half_open(breaker, clock)
    late = breaker.acquire()
    play(breaker, clock, "SSS")
    late.failure()
    assert (breaker.state, breaker.snapshot().calls) == (State.CLOSED, 0)


# What the dependency asks for


class Busy(Exception):
    def __init__(self, retry_after: Any) -> None:
        self.retry_after = retry_after


def asked(failure: Any) -> Any:
    return getattr(failure, "retry_after", None)


def test_a_failure_that_asks_for_a_pause_opens_at_once_for_so_long(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    heard = RecordingListener()
    breaker = make(open_for=asked, listeners=[heard])
    breaker.acquire().failure(Busy(42.0))
    assert (breaker.state, breaker.retry_after) == (State.OPEN, 42.0)
    (change,) = [event for event in heard if isinstance(event, CircuitChanged)]
    assert (change.cause, change.retry_after) == ("the dependency asked for 42 s", 42.0)
    clock.advance(42.0)
    breaker.acquire().failure(Busy(7.0))  # the first of four probes
    assert (breaker.state, breaker.retry_after, breaker.snapshot().opened_count) == (State.OPEN, 7.0, 2)


def test_a_failing_result_may_ask_too(make: Callable[..., CircuitBreaker]) -> None:
    breaker = make(
        open_for=lambda failure: failure["retry_after"], failure_result=lambda result: result["status"] == 503
    )
    breaker.call(lambda: {"status": 200, "retry_after": 5.0})
    assert breaker.state is State.CLOSED
    breaker.call(lambda: {"status": 503, "retry_after": 5.0})
    assert (breaker.state, breaker.retry_after) == (State.OPEN, 5.0)


@pytest.mark.parametrize("wrong", [None, 0, -3.0, float("nan"), float("inf"), "soon"])
def test_what_asks_for_nothing_is_a_failure_like_any(
    wrong: Any, make: Callable[..., CircuitBreaker], caplog: pytest.LogCaptureFixture
) -> None:
    breaker = make(open_for=asked)
    for _ in range(2):
        breaker.acquire().failure(Busy(wrong))
    assert (breaker.state, breaker.snapshot().failures) == (State.CLOSED, 2)
    is_no_number_of_seconds = wrong is not None and not (isinstance(wrong, int | float) and wrong <= 0)
    assert len(caplog.records) == is_no_number_of_seconds  # told once


def test_an_ignored_error_a_late_one_and_one_without_a_cause_ask_for_nothing(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    class IgnoredBusy(Busy, KeyError):
        pass

    breaker = make(open_for=asked)
    breaker.acquire().failure(IgnoredBusy(42.0))
    breaker.acquire().failure()
    assert breaker.state is State.CLOSED
    late = breaker.acquire()
    half_open(breaker, clock)
    late.failure(Busy(42.0))
    assert breaker.state is State.HALF_OPEN
    hung = breaker.acquire()
    clock.advance(1.0)
    for _ in range(4):
        breaker.acquire()
    hung.failure(Busy(42.0))  # it had lost its place
    assert breaker.state is State.HALF_OPEN


@pytest.mark.parametrize("by_hand", ["disable", "metrics_only", "force_open"])
def test_a_state_set_by_hand_stays_whatever_the_dependency_asks_for(
    by_hand: str, make: Callable[..., CircuitBreaker]
) -> None:
    breaker = make(open_for=asked)
    early = breaker.acquire()
    getattr(breaker, by_hand)()
    state = breaker.state
    early.failure(Busy(42.0))
    if by_hand != "force_open":
        breaker.acquire().failure(Busy(42.0))
    assert breaker.state is state


# Looking on


def test_metrics_only_tells_once_that_it_would_have_opened(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    heard = RecordingListener()
    breaker = make(listeners=[heard])
    breaker.metrics_only()
    play(breaker, clock, "FFFSS")
    play(breaker, clock, "F")
    assert (breaker.state, breaker.snapshot().failed_calls) == (State.METRICS_ONLY, 4)
    assert [event.cause for event in heard if isinstance(event, CircuitSpared)] == ["3 of 5 calls failed"]
    play(breaker, clock, "SSSS")
    play(breaker, clock, "FFF")
    assert len([event for event in heard if isinstance(event, CircuitSpared)]) == 2


def test_a_snapshot_carries_the_window(make: Callable[..., CircuitBreaker], clock: ManualClock) -> None:
    breaker = make()
    play(breaker, clock, "FSF", apart=2.0)
    other_clock = ManualClock(start=7.0)
    other = make(clock=other_clock)
    other.restore(breaker.snapshot())
    assert other.snapshot() == breaker.snapshot()
    assert other.snapshot().window == ((6.0, 1, 1, 0), (4.0, 1, 0, 0), (2.0, 1, 1, 0))
    other_clock.advance(15.0)
    assert other.snapshot().calls == 2
    play(other, other_clock, "FSF")
    assert other.state is State.OPEN
    play(breaker, clock, "SF")  # the first one went on by itself
    assert breaker.state is State.OPEN


@pytest.mark.parametrize(
    "wrong",
    [[(1.0, 2, 3, 0)], [(0.0, 1, 0)], [(-1.0, 1, 0, 0)], [(0.0, 0, 0, 0)], [(0.0, 1.5, 0, 0)], "window", [7], 7],
)
def test_a_broken_window_in_a_snapshot_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="window"):
        BreakerSnapshot(State.CLOSED, window=wrong)


def test_its_figures_are_read_without_telling_a_call(clock: ManualClock) -> None:
    present: list[CircuitPresent] = []
    with subscribe(present.append, CircuitPresent):
        breaker = CircuitBreaker("figures", failure_threshold=2, clock=clock)
        (read,) = {event.read for event in present if event.name == "figures"}
        assert breaker.passing is not None  # calls do not go the long way for it
        guarded = breaker(lambda: 7)
        for _ in range(5):
            guarded()
        late = breaker.acquire()
        breaker.acquire().failure()
        breaker.acquire().ignore()
        assert read() == CircuitFigures("closed", 5, 1, 1, failure_ratio=1 / 6)
        breaker.acquire().failure()
        late.success()  # it has happened, though it says nothing about the circuit any more
        assert read() == CircuitFigures("open", 6, 2, 1, failure_ratio=2 / 7)
        breaker.disable()
        guarded()
        breaker.acquire().failure()
        assert read()[:4] == ("disabled", 6, 2, 1)
        breaker.close()
        guarded()
        del breaker, guarded, late
        assert read() == CircuitFigures("closed", 7, 2, 1, failure_ratio=0.0, is_gone=True)


def test_its_ratio_is_that_of_the_window_at_the_moment_of_reading(
    make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make()
    play(breaker, clock, "FS")
    assert breaker._ledger.read().failure_ratio == 0.5
    clock.advance(20.0)
    assert breaker._ledger.read().failure_ratio is None


@pytest.mark.parametrize("window", [CountWindow(10), TimeWindow(20.0)])
def test_calls_pass_by_once_the_minimum_is_complete(
    window: Any, make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make(window=window)
    play(breaker, clock, "SSSS")
    assert breaker.passing is None
    play(breaker, clock, "S")
    assert breaker.passing is not None
    breaker.close()
    breaker.reset()
    assert breaker.passing is None


@pytest.mark.anyio
@pytest.mark.parametrize("window", [CountWindow(100), TimeWindow(3000.0)])
async def test_calls_that_pass_by_are_timed_and_judged(
    window: Any, make: Callable[..., CircuitBreaker], clock: ManualClock
) -> None:
    breaker = make(window=window, failure_rate=1.0, slow_rate=1.0)
    play(breaker, clock, "SSSSS")

    def work(seconds: float, error: Exception | None) -> None:
        clock.advance(seconds)
        if error is not None:
            raise error

    async def awork(seconds: float, error: Exception | None) -> None:
        work(seconds, error)

    for seconds, error in ((1.0, None), (5.0, None), (1.0, OSError()), (5.0, OSError()), (5.0, KeyError())):
        for is_async in (False, True):
            breaker.acquire().success()  # the lane is open after it, also where the window moves in steps
            assert breaker.passing is not None
            with contextlib.suppress(OSError, KeyError):
                if is_async:
                    await breaker.acall(awork, seconds, error)
                else:
                    breaker.call(work, seconds, error)
    kept = breaker.snapshot()
    assert (kept.calls, kept.failed_calls, kept.slow_calls) == (5 + 10 + 8, 4, 4)


def test_the_sums_survive_many_changes_of_state(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    guarded = breaker(lambda: 7)
    for _ in range(50):
        guarded()
        breaker.reset()
    assert breaker._ledger.read().success == 50


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"failure_rate": 0.0}, "failure_rate"),
        ({"failure_rate": 1.1}, "failure_rate"),
        ({"failure_rate": 50}, "failure_rate"),
        ({"slow_rate": 0.5}, "slow_call"),
        ({"slow_call": 0.5}, "slow_rate"),
        ({"slow_call": 0.0, "slow_rate": 0.5}, "slow_call"),
        ({"slow_call": 1.0, "slow_rate": True}, "slow_rate"),
        ({"window": 100}, "window"),
        ({"window": TimeWindow}, "window"),
        ({"minimum_calls": 0}, "minimum_calls"),
        ({"minimum_calls": 101, "failure_rate": 0.5}, "minimum_calls"),
        ({"minimum_calls": 6, "window": CountWindow(5)}, "minimum_calls"),
        ({"open_for": 30.0}, "open_for"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        CircuitBreaker(**settings)


def test_it_shows_its_rates(make: Callable[..., CircuitBreaker]) -> None:
    assert repr(make(ignore=())) == (
        "<CircuitBreaker 'db' closed, 0 failures, failure_rate=0.5, slow_call=4.0, slow_rate=0.5, "
        "window=TimeWindow(seconds=20.0), minimum_calls=5, reset_timeout=5.0, half_open_calls=4, "
        "half_open_timeout=1.0>"
    )


def test_without_the_global_interpreter_lock_every_call_takes_the_long_way(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "GIL", False)
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    guarded = breaker(lambda: 7)
    for _ in range(3):
        assert guarded() == 7
    assert breaker.passing is None
    breaker.acquire().failure()
    guarded()
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (5, 0)
    assert breaker._ledger.read().success == 4
