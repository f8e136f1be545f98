"""Growing pauses with a cap and jitter."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit import Backoff, ConfigurationError

durations = st.floats(0, 1e6)
backoffs = st.builds(Backoff, base=durations, factor=st.floats(1, 1e3), cap=durations, jitter=st.floats(0, 1))
draws = st.floats(0, 1, exclude_max=True)


def test_the_defaults_double_from_one_second_to_a_minute_with_full_jitter() -> None:
    backoff = Backoff()
    assert [backoff.pause(attempt) for attempt in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.delay(3, lambda: 0.0) == 0.0
    assert backoff.delay(3, lambda: 0.5) == 2.0


def test_without_jitter_every_pause_is_exact() -> None:
    backoff = Backoff(base=0.1, factor=3, cap=10, jitter=0)
    assert backoff.delay(2, lambda: 0.999) == pytest.approx(0.3)


def test_jitter_is_the_share_that_is_random() -> None:
    backoff = Backoff(base=10, factor=1, jitter=0.2)
    assert backoff.delay(1, lambda: 0.0) == pytest.approx(8.0)
    assert backoff.delay(1, lambda: 0.5) == pytest.approx(9.0)


@given(backoffs, st.integers(1, 10**9), draws)
def test_a_delay_lies_between_its_fixed_share_and_its_pause(backoff: Backoff, attempt: int, draw: float) -> None:
    pause = backoff.pause(attempt)
    delay = backoff.delay(attempt, lambda: draw)
    assert 0 <= pause <= backoff.cap
    assert pause * (1 - backoff.jitter) * 0.999 <= delay <= pause * 1.001


@given(backoffs, st.integers(1, 2000))
def test_pauses_never_shrink(backoff: Backoff, attempt: int) -> None:
    assert backoff.pause(attempt) <= backoff.pause(attempt + 1)


def test_a_huge_attempt_of_whole_numbers_is_the_cap_at_once() -> None:
    assert Backoff(base=1, factor=2, cap=60).pause(10**12) == 60
    assert Backoff(base=0, factor=2, cap=60).pause(10**12) == 0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"base": -1.0}, "base"),
        ({"base": float("nan")}, "base"),
        ({"base": "1"}, "base"),
        ({"base": True}, "base"),
        ({"cap": float("inf")}, "cap"),
        ({"cap": 10**400}, "cap"),
        ({"cap": None}, "cap"),
        ({"factor": 0.5}, "factor"),
        ({"factor": float("nan")}, "factor"),
        ({"factor": float("inf")}, "factor"),
        ({"factor": "2"}, "factor"),
        ({"factor": True}, "factor"),
        ({"factor": 10**400}, "factor"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        Backoff(**settings)


def test_a_backoff_is_a_value() -> None:
    backoff = Backoff(base=0.5)
    assert backoff == copy.copy(backoff) == pickle.loads(pickle.dumps(backoff))
    assert hash(backoff) == hash(Backoff(base=0.5))
    assert repr(backoff) == "Backoff(base=0.5, factor=2.0, cap=60.0, jitter=1.0)"


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 30))
def test_a_decorrelated_pause_lies_between_the_base_and_three_times_the_last_one(draw: float, attempt: int) -> None:
    backoff = Backoff(base=0.5, cap=20.0, jitter="decorrelated")
    pause = backoff.delay(attempt, lambda: draw, 2.0)
    assert 0.5 <= pause <= 6.0
    assert 0.5 <= backoff.delay(attempt, lambda: draw) <= backoff.pause(attempt) <= 20.0
    assert backoff.delay(1, lambda: 0.999999, 19.0) == 20.0


def test_decorrelated_pauses_grow_from_one_to_the_next() -> None:
    backoff = Backoff(base=1.0, cap=60.0, jitter="decorrelated")
    pauses = [backoff.base]
    for attempt in range(1, 5):
        pauses.append(backoff.delay(attempt, lambda: 0.5, pauses[-1]))
    assert pauses == [1.0, 2.0, 3.5, 5.75, 9.125]


def test_no_other_word_is_a_jitter() -> None:
    with pytest.raises(ConfigurationError, match="jitter must be a share"):
        Backoff(jitter="full")  # type: ignore[arg-type]  # what the test is about
