"""The circuit breaker beside a naive one: the same history through every shell, the same states and counts."""

from __future__ import annotations

from typing import Any

import pytest
from guard_script import ENDS, Call, histories, play, require_equal_logs
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_breaker import NaiveBreaker

from reliakit import CircuitBreaker, CircuitOpenError, CountWindow, RejectedError, TimeWindow
from reliakit.testing import ManualClock

SCRIPTED_ENDS = (*ENDS, ValueError, ValueError, ValueError, OSError, RejectedError)

HALF_OPEN = {
    "reset_timeout": st.sampled_from([30.0, 60.0]),
    "half_open_calls": st.integers(1, 4),
    "half_open_timeout": st.sampled_from([None, 1.0, 40.0]),
}
CLASSIC = st.fixed_dictionaries({"failure_threshold": st.integers(1, 4), **HALF_OPEN})
SHARES = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.6, 1.0])


@st.composite
def rates(draw: st.DrawFn) -> dict[str, Any]:
    """Draw settings with a rate or two. Steps of time windows are shorter than any pause that is drawn."""
    chosen = draw(st.sampled_from(["failures", "slow", "both"]))
    drawn = draw(st.fixed_dictionaries({"failure_threshold": st.sampled_from([None, None, 3]), **HALF_OPEN}))
    if chosen != "slow":
        drawn["failure_rate"] = draw(SHARES)
    if chosen != "failures":
        drawn |= {"slow_call": draw(st.sampled_from([0.5, 1.0, 30.0])), "slow_rate": draw(SHARES)}
    drawn["minimum_calls"] = minimum = draw(st.integers(1, 6))
    windows: list[CountWindow | TimeWindow] = [CountWindow(minimum + draw(st.integers(0, 8)))]
    windows += [TimeWindow(seconds) for seconds in (1.0, 30.0, 45.0)]
    drawn["window"] = draw(st.sampled_from(windows))
    return drawn


def breaker_like(clock: ManualClock, drawn: dict[str, Any], **more: Any) -> CircuitBreaker:
    return CircuitBreaker("db", failure=ValueError, ignore=KeyError, clock=clock, **drawn, **more)


def standing(breaker: Any) -> tuple[str, float | None]:
    return str(breaker.state), breaker.retry_after


def counts(breaker: CircuitBreaker) -> tuple[int, int, int, int]:
    kept = breaker.snapshot()
    return kept.failures, kept.calls, kept.failed_calls, kept.slow_calls


@settings(max_examples=60)
@given(histories(ends=SCRIPTED_ENDS, longest=20), CLASSIC | rates())
def test_every_shell_decides_like_the_naive_breaker(history: list[Call], drawn: dict[str, Any]) -> None:
    log = require_equal_logs(history, lambda clock: breaker_like(clock, drawn), standing)
    assert log == play(history, lambda clock: NaiveBreaker(clock, **drawn), standing)["decorated"]


@settings(max_examples=40)
@given(histories(ends=SCRIPTED_ENDS, results=(None, None, "bad"), longest=20), CLASSIC | rates())
def test_every_shell_that_sees_results_judges_them_like_the_naive_breaker(
    history: list[Call], drawn: dict[str, Any]
) -> None:
    def make(clock: ManualClock) -> CircuitBreaker:
        return breaker_like(clock, drawn, failure_result=lambda result: result == "bad")

    log = require_equal_logs(history, make, standing)
    assert log == play(history, lambda clock: NaiveBreaker(clock, **drawn), standing)["decorated"]


@settings(max_examples=40)
@given(histories(ends=SCRIPTED_ENDS, longest=20), CLASSIC | rates())
def test_every_shell_counts_like_the_naive_breaker(history: list[Call], drawn: dict[str, Any]) -> None:
    log = require_equal_logs(history, lambda clock: breaker_like(clock, drawn), counts)
    assert log == play(history, lambda clock: NaiveBreaker(clock, **drawn), lambda naive: naive.counts)["decorated"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.just(0)),
        st.tuples(st.sampled_from(["success", "success", "failure", "failure", "ignored"]), st.integers(0, 9)),
        st.tuples(st.just("advance"), st.sampled_from([0.5, 1.0, 29.0, 30.0, 60.0])),
        st.tuples(st.just("count"), st.just(0)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("listening", [False, True])
@settings(max_examples=100)
@given(steps=STEPS, drawn=CLASSIC | rates())
def test_overlapping_permits_are_counted_like_the_naive_breaker_does(
    listening: bool, steps: list[tuple[str, Any]], drawn: dict[str, Any]
) -> None:
    clock = ManualClock()
    naive = NaiveBreaker(clock, **drawn)
    breaker = breaker_like(clock, drawn, listeners=[lambda event: None] if listening else [])
    permits: list[tuple[Any, Any]] = []
    for step, argument in steps:
        if step == "advance":
            clock.advance(argument)
        elif step == "enter":
            outcomes: list[Any] = []
            for acquire in (naive.enter, breaker.acquire):
                try:
                    outcomes.append(acquire())
                except CircuitOpenError as error:
                    outcomes.append(error)
            refused = [error.retry_after for error in outcomes if isinstance(error, CircuitOpenError)]
            assert len(refused) in (0, 2)
            assert len(set(refused)) <= 1
            if not refused:
                permits.append((outcomes[0], outcomes[1]))
        elif step == "count":
            assert counts(breaker) == naive.counts
        elif permits:
            theirs, ours = permits.pop(argument % len(permits))
            naive.count(theirs, step)
            {"success": ours.success, "failure": ours.failure, "ignored": ours.ignore}[step]()
        assert standing(breaker) == standing(naive)


FLAT = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.5, 1.0, 7.0, 29.5, 60.0]),  # pause
        st.sampled_from([0.0, 0.0, 0.5, 1.0]),  # work
        st.sampled_from([None, None, None, ValueError]),
    ),
    min_size=15,
    max_size=50,
)


@pytest.mark.parametrize("colour", ["plain", "async"])
@settings(max_examples=100)
@given(history=FLAT, drawn=rates())
def test_one_function_called_often_decides_and_counts_like_the_naive_breaker(
    colour: str, history: list[tuple[float, float, type[Exception] | None]], drawn: dict[str, Any]
) -> None:
    clock = ManualClock()

    def work(seconds: float, error: type[Exception] | None) -> None:
        clock.advance(seconds)
        if error is not None:
            raise error

    async def async_work(seconds: float, error: type[Exception] | None) -> None:
        work(seconds, error)

    breaker, naive = breaker_like(clock, drawn), NaiveBreaker(clock, **drawn)
    guarded_work = breaker(async_work if colour == "async" else work)
    for pause, seconds, error in history:
        clock.advance(pause)
        expected: Any = None
        try:
            permit = naive.enter()
        except CircuitOpenError as refusal:
            expected = refusal.retry_after
        before = clock.monotonic()
        raised: Exception | None = None
        try:
            outcome = guarded_work(seconds, error)
            if colour == "async":
                next(outcome.__await__(), None)  # type: ignore[union-attr]  # a coroutine
        except Exception as caught:
            raised = caught
        if isinstance(raised, CircuitOpenError):
            assert raised.retry_after == expected
        else:
            assert (type(raised), expected) == (error or type(None), None)
            assert clock.monotonic() == before + seconds
            naive.leave(permit, raised, None)
        assert standing(breaker) == standing(naive)
    assert counts(breaker) == naive.counts
