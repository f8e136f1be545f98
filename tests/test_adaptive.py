"""A limit that finds its own size."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from guard_script import Call, histories, require_equal_logs
from hypothesis import given, settings
from naps import nap

from reliakit import AIMD, AdaptiveLimit, ConfigurationError, Gradient2, OverloadedError, request_context
from reliakit.core.events import CallRejected, LimitMoved
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def rounds(guard: AdaptiveLimit, clock: ManualClock, times: int, *, load: int, takes: Any) -> None:
    """Let so many calls arrive at once, time and again; each round takes as long as `takes(running)` says."""
    for _ in range(times):
        running = []
        for _ in range(load):
            try:
                running.append(guard.enter())
            except OverloadedError:
                break
        clock.advance(takes(len(running)))
        for ticket in running:
            guard.leave(ticket, None, None)


@settings(max_examples=30)
@given(histories())
def test_every_shell_leaves_the_same_log(history: list[Call]) -> None:
    require_equal_logs(
        history,
        lambda clock: AdaptiveLimit(AIMD(slow=30.0), initial=2, clock=clock),
        observe=lambda guard: (guard.limit, guard.running),
    )


@pytest.mark.anyio
async def test_beyond_the_limit_it_refuses() -> None:
    told = RecordingListener()
    guard = AdaptiveLimit(initial=2, name="stock", listeners=[told])
    tickets = [guard.enter(), guard.enter()]
    with pytest.raises(OverloadedError, match="adaptive limit 'stock' lets 2 calls run at once now"):
        await guard.acall(nap)
    for ticket in tickets:
        guard.leave(ticket, None, None)
    assert await guard.acall(nap, 7) == 7
    assert guard.running == 0
    assert [event.reason for event in told.of(CallRejected)] == ["OverloadedError"]


def test_the_limit_grows_while_calls_take_as_long_as_usual(clock: ManualClock) -> None:
    guard = AdaptiveLimit(initial=10, maximum=50, clock=clock)
    rounds(guard, clock, 700, load=100, takes=lambda running: 0.1)
    assert guard.limit == 50


def test_the_limit_shrinks_when_calls_take_longer_and_comes_back(clock: ManualClock) -> None:
    told = RecordingListener()
    guard = AdaptiveLimit(initial=20, maximum=200, listeners=[told], clock=clock)
    rounds(guard, clock, 300, load=20, takes=lambda running: 0.1)
    before = guard.limit
    rounds(guard, clock, 30, load=500, takes=lambda running: 1.0)
    shrunk = guard.limit
    assert shrunk < before / 2
    rounds(guard, clock, 600, load=500, takes=lambda running: 0.1)
    assert guard.limit > before
    moves = told.of(LimitMoved)
    assert all(event.previous != event.limit for event in moves)
    assert moves[-1].limit == guard.limit


def test_a_young_limit_does_not_take_a_server_s_trouble_for_what_is_usual(clock: ManualClock) -> None:
    guard = AdaptiveLimit(initial=20, clock=clock)
    rounds(guard, clock, 300, load=20, takes=lambda running: 0.1)
    before = guard.limit
    rounds(guard, clock, 60, load=500, takes=lambda running: 1.0)  # twice as long as it was well
    assert guard.limit < before


def test_it_finds_the_size_of_a_server_with_a_queue(clock: ManualClock) -> None:
    """A server with room for 30 at 100 ms: more of them wait for each other."""
    guard = AdaptiveLimit(initial=5, maximum=1000, clock=clock)
    rounds(guard, clock, 800, load=1000, takes=lambda running: 0.1 * max(1.0, running / 30))
    assert 30 <= guard.limit <= 100


def test_a_limit_that_nobody_reaches_does_not_grow(clock: ManualClock) -> None:
    guard = AdaptiveLimit(initial=100, clock=clock)
    rounds(guard, clock, 200, load=10, takes=lambda running: 0.1)
    assert guard.limit == 100


def test_aimd_grows_by_one_a_round_and_shrinks_once_for_one_overload(clock: ManualClock) -> None:
    guard = AdaptiveLimit(AIMD(backoff=0.5), initial=10, clock=clock)
    rounds(guard, clock, 3, load=100, takes=lambda running: 0.1)
    assert 12 <= guard.limit <= 13
    tickets = [guard.enter() for _ in range(guard.limit)]
    clock.advance(1.0)
    for ticket in tickets:
        guard.leave(ticket, TimeoutError(), None)
    assert guard.limit == 6
    rounds(guard, clock, 1, load=100, takes=lambda running: 0.1)
    assert guard.limit >= 6
    slow = AdaptiveLimit(AIMD(slow=2.0), initial=10, clock=clock)
    rounds(slow, clock, 1, load=10, takes=lambda running: 2.0)
    assert slow.limit == 9


def test_gradient_takes_drops_into_account(clock: ManualClock) -> None:
    guard = AdaptiveLimit(Gradient2(samples=1, period=0.1), initial=100, clock=clock)
    ticket = guard.enter()
    clock.advance(1.0)
    guard.leave(ticket, TimeoutError(), None)
    ticket = guard.enter()
    clock.advance(1.0)
    guard.leave(ticket, None, None)
    assert guard.limit == 90


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), GeneratorExit()])
def test_other_errors_teach_nothing(error: BaseException, clock: ManualClock) -> None:
    guard = AdaptiveLimit(AIMD(slow=1.0), initial=10, clock=clock)
    for _ in range(50):
        ticket = guard.enter()
        clock.advance(5.0)
        guard.leave(ticket, error, None)
    assert (guard.limit, guard.running) == (10, 0)


@pytest.mark.parametrize(("priority", "places"), [("critical", 12), ("default", 10), ("sheddable", 8)])
def test_the_more_important_may_use_more_of_it(priority: Any, places: int) -> None:
    guard = AdaptiveLimit(initial=10)
    with request_context(priority=priority), pytest.raises(OverloadedError):
        for _ in range(20):
            guard.enter()
    assert guard.running == places


def test_the_limit_stays_within_its_bounds(clock: ManualClock) -> None:
    guard = AdaptiveLimit(AIMD(backoff=0.1), initial=5, minimum=3, maximum=6, clock=clock)
    rounds(guard, clock, 99, load=100, takes=lambda running: 0.1)
    assert guard.limit == 6
    for _ in range(5):
        ticket = guard.enter()
        clock.advance(1.0)
        guard.leave(ticket, TimeoutError(), None)
    assert guard.limit == 3


def test_no_call_is_counted_twice_or_lost_under_threads() -> None:
    guard = AdaptiveLimit(initial=3, maximum=3)
    most, refused, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most
        with lock:
            most = max(most, guard.running)

    def calls() -> None:
        nonlocal refused
        for _ in range(300):
            try:
                guard.call(work)
            except OverloadedError:
                with lock:
                    refused += 1

    threads = [threading.Thread(target=calls) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert guard.running == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaptiveLimit("aimd"), "algorithm must be Gradient2"),  # type: ignore[arg-type]
        (lambda: AdaptiveLimit(initial=0), "initial must be"),
        (lambda: AdaptiveLimit(initial=9, maximum=5), "initial must be at most maximum"),
        (lambda: AdaptiveLimit(minimum=9, maximum=5), "maximum must be"),
        (lambda: AdaptiveLimit(overload=7), "overload must be"),  # type: ignore[arg-type]
        (lambda: Gradient2(tolerance=0.5), "tolerance must be"),
        (lambda: Gradient2(queue=-1), "queue must be"),
        (lambda: Gradient2(smoothing=0), "smoothing must be"),
        (lambda: Gradient2(samples=0), "samples must be"),
        (lambda: AIMD(backoff=1.5), "backoff must be"),
        (lambda: AIMD(backoff=1.0), "backoff must be below 1"),
        (lambda: AIMD(slow=0), "slow must be"),
    ],
)
def test_wrong_settings_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_it_shows_its_state() -> None:
    shown = repr(AdaptiveLimit(AIMD(), initial=4, name="x"))
    assert shown == "<AdaptiveLimit 'x' 0 of 4 running, AIMD(backoff=0.9, slow=None)>"
