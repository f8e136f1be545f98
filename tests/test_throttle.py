"""A client that holds itself back."""

from __future__ import annotations

from typing import Any

import pytest
from guard_script import Call, histories, require_equal_logs
from hypothesis import given, settings
from hypothesis import strategies as st
from naps import nap

from reliakit import CircuitOpenError, ConfigurationError, OverloadedError, Throttle, request_context
from reliakit.core.events import CallRejected
from reliakit.testing import ManualClock, RecordingListener


def fails(error: BaseException | None = None) -> Any:
    raise error or OSError


def tried(throttle: Throttle, times: int, fn: Any = fails) -> int:
    passed = 0
    for _ in range(times):
        try:
            throttle.call(fn)
        except OverloadedError:
            continue
        except OSError:
            pass
        passed += 1
    return passed


@settings(max_examples=30)
@given(histories())
def test_every_shell_leaves_the_same_log(history: list[Call]) -> None:
    require_equal_logs(
        history,
        lambda clock: Throttle(1.0, minimum_calls=0, window=60.0, clock=clock),
        observe=lambda throttle: throttle.rejection,
    )


def test_nothing_is_refused_while_one_in_k_is_accepted() -> None:
    throttle = Throttle(2.0, minimum_calls=0, clock=ManualClock(random=0.0))
    for _ in range(50):
        assert tried(throttle, 1, lambda: None) == 1
        assert tried(throttle, 1) == 1
    assert throttle.rejection == 0.0


def test_the_share_that_is_refused_is_that_of_the_formula() -> None:
    throttle = Throttle(2.0, minimum_calls=0, clock=ManualClock(random=0.999))
    tried(throttle, 10, lambda: None)
    tried(throttle, 30)
    assert throttle.rejection == pytest.approx((40 - 2 * 10) / 41)
    tried(throttle, 1000)
    assert throttle.rejection == 0.9  # never more, so that some find out


def test_some_always_pass_and_find_out_when_the_server_is_well() -> None:
    clock = ManualClock(random=7)
    throttle = Throttle(clock=clock)
    assert tried(throttle, 10) == 10  # too few to judge
    assert 10 < tried(throttle, 500) < 150
    for _ in range(600):  # seconds: the share halves with each window
        clock.advance(1.0)
        tried(throttle, 5, lambda: None)
    assert throttle.rejection == 0.0


@pytest.mark.anyio
async def test_a_request_counts_before_it_ends() -> None:
    throttle = Throttle(2.0, minimum_calls=3, clock=ManualClock(random=0.5))
    hanging = [throttle.enter() for _ in range(3)]
    with pytest.raises(OverloadedError, match="throttle 'default' refused 75% of the calls") as raised:
        await throttle.acall(nap)
    assert raised.value.name == "default"
    for begun in hanging:
        throttle.leave(begun, None, None)
    assert await throttle.acall(nap, 7) == 7


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CircuitOpenError(), ConfigurationError(), KeyError()])
def test_what_says_nothing_of_the_server_is_not_counted(error: BaseException) -> None:
    throttle = Throttle(minimum_calls=0, ignore=KeyError, clock=ManualClock(random=0.0))
    for _ in range(20):
        with pytest.raises(type(error)):
            throttle.call(fails, error)
    assert throttle.rejection == 0.0


def test_an_error_that_is_no_failure_is_accepted_and_a_result_may_be_one() -> None:
    throttle = Throttle(
        minimum_calls=0,
        failure=KeyError,
        failure_result=lambda result: result == 503,
        clock=ManualClock(random=0.999),
    )
    tried(throttle, 20)
    assert throttle.rejection == 0.0
    tried(throttle, 40, lambda: 503)
    assert throttle.rejection == pytest.approx((60 - 40) / 61)


def test_what_happened_longer_ago_than_the_window_is_forgotten() -> None:
    clock = ManualClock(random=0.999)
    throttle = Throttle(window=120.0, minimum_calls=0, clock=clock)
    late = throttle.enter()
    tried(throttle, 30)
    assert throttle.rejection == 0.9
    clock.advance(121.0)
    assert tried(throttle, 1, lambda: None) == 1
    throttle.leave(late, None, None)  # its request is forgotten, and so it is not counted
    assert throttle.rejection == 0.0
    tried(throttle, 3)
    assert throttle.rejection == pytest.approx((4 - 2) / 5)
    clock.advance(121.0)
    assert throttle.rejection == 0.0  # also while nobody calls


def test_the_less_important_are_refused_earlier() -> None:
    throttle = Throttle(2.0, minimum_calls=0, clock=ManualClock(random=0.0))
    tried(throttle, 40, lambda: None)
    refused = {}
    for priority in ("critical", "default", "sheddable"):
        hanging = []
        with request_context(priority=priority):  # type: ignore[arg-type]  # one of them
            try:
                while True:
                    hanging.append(throttle.enter())
            except OverloadedError:
                refused[priority] = len(hanging) + 40
        for begun in [*hanging]:
            throttle.leave(begun, KeyboardInterrupt(), None)
    # The refused ones stay counted, one for each priority before.
    assert refused == {"critical": 161, "default": 80, "sheddable": 59}


def test_refusals_are_told() -> None:
    told = RecordingListener()
    throttle = Throttle(minimum_calls=0, name="search", listeners=[told], clock=ManualClock(random=0.0))
    tried(throttle, 2)
    assert [(event.name, event.reason) for event in told.of(CallRejected)] == [("search", "OverloadedError")]


calls = st.tuples(st.sampled_from([0.0, 1.0, 9.0, 10.0, 25.0, 130.0]), st.sampled_from(["ok", "fail", "ignore"]))


@settings(max_examples=80)
@given(st.lists(calls, max_size=40))
def test_the_window_counts_what_a_list_of_all_calls_does(script: list[tuple[float, str]]) -> None:
    clock = ManualClock(random=0.999999)
    throttle = Throttle(2.0, window=120.0, minimum_calls=0, max_rejection=0.99, clock=clock)
    history: list[tuple[int, str]] = []
    for pause, end in script:
        clock.advance(pause)
        now = int(clock.monotonic() // 10.0)
        known = [known for began, known in history if began > now - 12 and known != "ignore"]
        requests, accepts = len(known), known.count("ok")
        begun = throttle.enter()
        error = {"ok": None, "fail": OSError(), "ignore": KeyboardInterrupt()}[end]
        history.append((now, end))
        throttle.leave(begun, error, None)
        known = [known for began, known in history if began > now - 12 and known != "ignore"]
        requests, accepts = len(known), known.count("ok")
        assert throttle.rejection == pytest.approx(min(0.99, max(0.0, (requests - 2 * accepts) / (requests + 1))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 0.5}, "k must be a number from 1"),
        ({"k": "2"}, "k must be"),
        ({"window": 0}, "window must be"),
        ({"minimum_calls": -1}, "minimum_calls must be"),
        ({"max_rejection": 1.5}, "max_rejection must be"),
        ({"failure": 7}, "failure must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Throttle(**settings)


def test_it_shows_its_settings() -> None:
    assert repr(Throttle()).startswith("<Throttle 'default' 0 of 0 accepted, k=2, window=120")
