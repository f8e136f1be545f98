"""The windows of the circuit breaker, each beside a plain list of outcomes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliakit import ConfigurationError, CountWindow, TimeWindow
from reliakit.resilience.windows import Tally, tally_of

OUTCOMES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 1.0, 4.0, 9.0, 10.0]),  # pause
        st.sampled_from([(1, 0, 0), (1, 0, 0), (3, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 1)]),
    ),
    min_size=1,
    max_size=40,
)


def numbers(tally: Tally) -> tuple[int, int, int]:
    return tally.calls, tally.failures, tally.slow


def total(runs: list[tuple[int, int, int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*runs, strict=True))) if runs else (0, 0, 0)


@settings(max_examples=100)
@given(OUTCOMES, st.integers(1, 12))
def test_a_count_window_holds_the_last_outcomes(outcomes: list[Any], size: int) -> None:
    tally = tally_of(CountWindow(size))
    kept: list[tuple[int, int, int]] = []
    for at, (_, (calls, failures, slow)) in enumerate(outcomes):
        kept += [(1, 0, 0)] * (calls - 1) + [(1, failures, slow)]
        if failures or slow:
            tally.add(float(at), calls, failures, slow)
        else:
            tally.succeed(calls)
        assert numbers(tally) == total(kept[-size:])
    rebuilt = tally_of(CountWindow(size))
    for age, *run in tally.runs(0.0):
        rebuilt.add(-age, *run)
    assert rebuilt.runs(0.0) == tally.runs(0.0)
    for _ in range(size):  # the oldest leave in the same order
        tally.succeed(1)
        rebuilt.succeed(1)
        assert numbers(rebuilt) == numbers(tally)
    assert numbers(tally) == (size, 0, 0)


@settings(max_examples=100)
@given(OUTCOMES, st.sampled_from([4.0, 10.0, 17.0]))
def test_a_time_window_holds_the_outcomes_of_the_last_seconds(outcomes: list[Any], seconds: float) -> None:
    tally = tally_of(TimeWindow(seconds))
    kept: list[tuple[float, tuple[int, int, int]]] = []
    now = 1000.0
    for pause, run in outcomes:
        now += pause
        kept.append((now, run))
        if now < tally.settled_until and run[1:] == (0, 0):
            tally.succeed(run[0])
        else:
            tally.forget(now)
            tally.add(now, *run)
        assert numbers(tally) == total([run for at, run in kept if now - at < seconds])
    rebuilt = tally_of(TimeWindow(seconds))
    for age, *run in tally.runs(now):
        rebuilt.add(5.0 - age, *run)
    assert rebuilt.runs(5.0) == tally.runs(now)
    tally.forget(now + seconds)
    assert numbers(tally) == (0, 0, 0)


def test_a_time_window_moves_in_hundredths() -> None:
    tally = tally_of(TimeWindow(10.0))
    for step in range(20_000):
        tally.forget(step / 1000)
        tally.add(step / 1000, 1, 0, 0)
        if step > 10_000:
            assert 9_899 <= tally.calls <= 10_001
    assert len(tally.runs(20.0)) <= 101


def test_late_successes_of_a_time_window_that_ran_empty_are_dropped() -> None:
    tally = tally_of(TimeWindow(10.0))
    tally.succeed(3)
    assert numbers(tally) == (0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "value"), [(CountWindow, 0), (CountWindow, 2.5), (TimeWindow, 0.0), (TimeWindow, float("inf"))]
)
def test_a_wrong_window_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigurationError):
        kind(value)


def test_nothing_is_settled_beyond_the_moment_at_which_the_oldest_leaves() -> None:
    tally = tally_of(TimeWindow(10.0))
    tally.add(0.0, 1, 0, 0)
    assert tally.settled_until == 0.1
    tally.add(9.95, 1, 1, 0)
    assert tally.settled_until == 10.0
