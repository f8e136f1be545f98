"""The circuit breaker: what opens it, who probes, and that nothing else can change its mind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import json
import os
import pickle
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import asdict
from typing import Any

import pytest
from garbage import CollectingClock, abandon, held_elsewhere, in_time

from reliakit import Backoff, CircuitOpenError, ConfigurationError, DeadlineExceededError, deadline, subscribe
from reliakit.core.errors import BulkheadFullError
from reliakit.core.events import CallEnded, CallRejected, CircuitChanged, ErrorSeen, Event
from reliakit.resilience.breaker import BreakerSnapshot, CircuitBreaker, State
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


def fail(breaker: CircuitBreaker, times: int = 1, error: BaseException | None = None) -> None:
    for _ in range(times):
        breaker.acquire().failure(error)


def opened(clock: ManualClock, **settings: Any) -> CircuitBreaker:
    breaker = CircuitBreaker("db", clock=clock, **settings)
    fail(breaker, settings.get("failure_threshold", 5))
    assert breaker.state is State.OPEN
    return breaker


def half_opened(clock: ManualClock, **settings: Any) -> CircuitBreaker:
    """Return a breaker whose break is just over; the first caller begins the probes."""
    breaker = opened(clock, **settings)
    clock.advance(60.0)
    return breaker


def test_alone_it_is_the_classic_breaker(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    fail(breaker, 4)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert breaker.state is State.OPEN
    assert breaker.retry_after == 60.0
    with pytest.raises(CircuitOpenError) as refused:
        breaker.call(lambda: 1)
    assert (refused.value.name, refused.value.retry_after) == ("default", 60.0)
    clock.advance(60.0)
    assert breaker.call(lambda: 1) == 1
    assert breaker.state is State.CLOSED


def test_a_success_between_failures_begins_the_count_anew(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    for _ in range(5):
        fail(breaker)
        breaker.call(int)
    assert breaker.state is State.CLOSED


def test_a_success_that_began_before_the_failure_resets_the_count_too(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    early = breaker.acquire()
    fail(breaker)
    early.success()
    fail(breaker)
    assert breaker.state is State.CLOSED


def test_the_state_moves_on_calls_only(clock: ManualClock) -> None:
    breaker = opened(clock)
    clock.advance(1000.0)
    assert (breaker.state, breaker.retry_after) == (State.OPEN, 0.0)
    breaker.acquire()
    assert breaker.state is State.HALF_OPEN


def test_the_failing_error_itself_leaves_also_when_it_opens_the_circuit(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    mine = OSError("down")

    @breaker
    def fetch() -> None:
        raise mine

    with pytest.raises(OSError, match="down") as raised:
        fetch()
    assert raised.value is mine


def test_an_error_that_is_neither_failure_nor_ignored_counts_as_success(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, failure=OSError, clock=clock)
    fail(breaker)
    with pytest.raises(ValueError):
        breaker.call(int, "x")
    fail(breaker)
    assert breaker.state is State.CLOSED


def test_ignore_beats_failure(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, failure=Exception, ignore=(KeyError, ValueError), clock=clock)
    with pytest.raises(ValueError):
        breaker.call(int, "x")
    assert breaker.state is State.CLOSED


def test_predicates_of_errors_and_results_decide(clock: ManualClock) -> None:
    breaker = CircuitBreaker(
        failure_threshold=1,
        failure=lambda error: "fatal" in str(error),
        ignore=lambda error: "boring" in str(error),
        failure_result=lambda result: result == 503,
        clock=clock,
    )

    def raising(text: str) -> None:
        raise ValueError(text)

    for text in ("harmless", "fatal but boring"):
        with pytest.raises(ValueError):
            breaker.call(raising, text)
    assert breaker.call(lambda: 200) == 200
    assert breaker.state is State.CLOSED
    assert breaker.call(lambda: 503) == 503
    assert breaker.state is State.OPEN


def test_a_block_has_no_result_to_judge(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, failure_result=lambda result: result is None, clock=clock)
    with breaker:
        pass
    breaker.acquire().success()
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("setting", ["failure", "ignore", "failure_result"])
def test_a_raising_predicate_never_reaches_the_caller(
    setting: str, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> bool:
        raise RuntimeError("predicate")

    breaker = CircuitBreaker(failure_threshold=3, half_open_calls=1, clock=clock, **{setting: broken})
    assert breaker.call(lambda: 7) == 7
    for _ in range(2):
        with pytest.raises(ValueError):
            breaker.call(int, "x")
    # A failure did happen, whatever the predicate would have said.
    assert breaker.snapshot().failures == 2
    assert len([record for record in caplog.records if "predicate" in record.message]) == 1


def test_an_interrupted_predicate_gives_the_permit_back(clock: ManualClock) -> None:
    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    breaker = half_opened(clock)
    judged = CircuitBreaker("db", failure_threshold=1, failure_result=interrupted, clock=clock)
    judged.restore(breaker.snapshot())
    with pytest.raises(KeyboardInterrupt):
        judged.call(lambda: 1)
    judged.acquire()
    assert judged.state is State.HALF_OPEN


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_error_of_the_dependency_is_neutral(kind: type[BaseException], clock: ManualClock) -> None:
    breaker = half_opened(clock)

    def leave() -> None:
        raise kind

    for _ in range(10):
        with pytest.raises(kind):
            breaker.call(leave)
        assert breaker.state is State.HALF_OPEN
    assert breaker.call(lambda: 1) == 1
    assert breaker.state is State.CLOSED


def test_a_cancelled_future_is_neutral(clock: ManualClock) -> None:
    breaker = half_opened(clock)
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        breaker.call(future.result)
    assert breaker.state is State.HALF_OPEN
    breaker.acquire()


def test_a_rejection_passing_through_is_neutral(clock: ManualClock) -> None:
    inner, outer = opened(clock), CircuitBreaker("outer", failure_threshold=1, clock=clock)
    with pytest.raises(CircuitOpenError, match="db"):
        outer.call(inner.call, int)
    assert outer.state is State.CLOSED


def test_a_timeout_after_the_caller_s_own_time_was_over_does_not_hide_later_ones(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)

    def times_out() -> None:
        raise DeadlineExceededError

    for spent, failures in ((True, 0), (False, 1), (True, 1), (False, 2)):
        with pytest.raises(DeadlineExceededError), deadline(1.0, clock=clock):
            clock.advance(float(spent))
            breaker.call(times_out)
        assert breaker.snapshot().failures == failures
    assert breaker.state is State.OPEN


def test_wrong_use_is_neutral(clock: ManualClock) -> None:
    breaker = half_opened(clock)

    async def coroutine() -> None: ...

    def generator() -> Iterator[None]:
        yield

    with pytest.raises(ConfigurationError):
        breaker.call(coroutine)
    assert breaker.state is State.HALF_OPEN
    breaker.acquire().success()
    for misused in (coroutine, generator, coroutine, generator):
        breaker.call(lambda: 7)
        with pytest.raises(ConfigurationError):
            breaker.call(misused)
    for _ in range(5):
        with pytest.raises(ConfigurationError, match="call takes a function, got int"):
            breaker.call(7)  # type: ignore[arg-type]  # what the test is about
    assert breaker.snapshot().failures == 0


def test_a_late_failure_neither_counts_nor_lengthens_the_break(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    late = [breaker.acquire() for _ in range(3)]
    fail(breaker)
    clock.advance(50.0)
    late[0].failure()
    assert breaker.retry_after == 10.0
    clock.advance(10.0)
    probe = breaker.acquire()
    late[1].failure()
    assert breaker.state is State.HALF_OPEN
    probe.success()
    late[2].failure()
    assert (breaker.state, breaker.snapshot().failures) == (State.CLOSED, 0)


def test_a_success_from_before_the_trip_never_closes_the_circuit(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    late = [breaker.acquire() for _ in range(2)]
    fail(breaker)
    late[0].success()
    assert breaker.state is State.OPEN
    clock.advance(60.0)
    breaker.acquire()
    late[1].success()
    assert breaker.state is State.HALF_OPEN


def test_exactly_the_allowed_probes_pass_and_all_must_succeed(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_calls=3)
    probes = [breaker.acquire() for _ in range(3)]
    for _ in range(2):
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
    for probe in probes[:2]:
        probe.success()
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    assert breaker.state is State.HALF_OPEN
    probes[2].success()
    assert breaker.state is State.CLOSED


def test_the_first_failing_probe_opens_it_again(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_calls=3)
    probes = [breaker.acquire() for _ in range(3)]
    probes[0].success()
    probes[1].failure()
    assert (breaker.state, breaker.retry_after) == (State.OPEN, 60.0)
    probes[2].success()
    assert breaker.state is State.OPEN


def test_an_ignored_probe_gives_exactly_one_permit_back(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_calls=2)
    first, _ = breaker.acquire(), breaker.acquire()
    first.ignore()
    breaker.acquire()
    with pytest.raises(CircuitOpenError):
        breaker.acquire()


def test_a_hung_probe_loses_its_permit_to_the_next_caller(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_timeout=5.0)
    hung = breaker.acquire()
    clock.advance(4.0)
    assert breaker.retry_after == 1.0
    with pytest.raises(CircuitOpenError) as refused:
        breaker.acquire()
    assert refused.value.retry_after == 1.0
    clock.advance(1.0)
    second = breaker.acquire()
    hung.failure()
    assert breaker.state is State.HALF_OPEN
    second.success()
    assert breaker.state is State.CLOSED


def test_a_slow_probe_that_nobody_replaced_still_decides(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_timeout=5.0)
    slow = breaker.acquire()
    clock.advance(500.0)
    slow.success()
    assert breaker.state is State.CLOSED


def test_without_a_timeout_of_its_own_a_probe_has_the_length_of_the_break(clock: ManualClock) -> None:
    breaker = half_opened(clock, reset_timeout=7.0)
    breaker.acquire()
    clock.advance(6.5)
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    clock.advance(0.5)
    breaker.acquire()


def test_fifty_threads_and_tasks_get_exactly_the_probes(clock: ManualClock) -> None:
    breaker = half_opened(clock, half_open_calls=3)
    start, reached, refused = threading.Barrier(25), [0], [0]
    done = threading.Event()
    lock = threading.Lock()

    def one() -> None:
        start.wait()
        try:
            permit = breaker.acquire()
        except CircuitOpenError:
            with lock:
                refused[0] += 1
                if refused[0] == 47:
                    done.set()
            return
        with lock:
            reached[0] += 1
        done.wait(30)
        permit.ignore()

    async def one_async() -> None:
        try:
            async with breaker as permit:
                reached[0] += 1
                while not done.is_set():
                    await clock.asleep(0)
                permit.ignore()
        except CircuitOpenError:
            with lock:
                refused[0] += 1
                if refused[0] == 47:
                    done.set()

    def loop() -> None:
        start.wait()

        async def all_of_them() -> None:
            await asyncio.gather(*(one_async() for _ in range(26)))

        asyncio.run(all_of_them())

    threads = [threading.Thread(target=one) for _ in range(24)] + [threading.Thread(target=loop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (reached[0], refused[0]) == (3, 47)


def test_a_growing_break_counts_from_one_and_starts_again_after_closing(clock: ManualClock) -> None:
    asked: list[int] = []

    def length(opened_count: int) -> float:
        asked.append(opened_count)
        return 10.0 * opened_count

    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=length, clock=clock)
    for expected in (10.0, 20.0, 30.0):
        fail(breaker)
        assert breaker.retry_after == expected
        clock.advance(expected)
    breaker.acquire().success()
    fail(breaker)
    assert breaker.retry_after == 10.0
    assert asked == [1, 2, 3, 1]


def test_a_backoff_makes_the_break_grow(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=Backoff(base=5, cap=12, jitter=0), clock=clock)
    lengths = []
    for _ in range(4):
        fail(breaker)
        lengths.append(breaker.retry_after)
        clock.advance(12.0)
    assert lengths == [5.0, 10.0, 12.0, 12.0]


@pytest.mark.parametrize(
    "wrong", [lambda _: 1 / 0, lambda _: float("nan"), lambda _: -1, lambda _: None, lambda _: "x"]
)
def test_a_reset_timeout_that_goes_wrong_still_opens(
    wrong: Callable[[int], Any], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = opened(clock, reset_timeout=wrong)
    assert breaker.retry_after == 60.0
    assert "reset_timeout" in caplog.text


def test_a_reset_timeout_may_ask_the_breaker_itself(clock: ManualClock) -> None:
    seen: list[Any] = []
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, reset_timeout=lambda _: look())

    def look() -> float:
        seen.append((breaker.state, breaker.retry_after))
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
        return 3.0

    fail(breaker)
    assert seen == [(State.OPEN, None)]
    assert breaker.retry_after == 3.0


def test_a_break_that_was_ended_while_its_length_was_thought_about_stays_ended(clock: ManualClock) -> None:
    def length(_: int) -> float:
        breaker.force_open()
        return 3.0

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, reset_timeout=length)
    fail(breaker)
    assert (breaker.state, breaker.retry_after) == (State.FORCED_OPEN, None)
    breaker.restore(BreakerSnapshot(State.OPEN, retry_after=50.0, break_length=50.0))
    assert breaker.retry_after == 50.0


def test_a_break_that_was_replaced_while_its_length_was_thought_about_keeps_the_other(clock: ManualClock) -> None:
    def length(_: int) -> float:
        breaker.restore(BreakerSnapshot(State.OPEN, retry_after=50.0, break_length=50.0))
        return 3.0

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, reset_timeout=length)
    fail(breaker)
    assert breaker.retry_after == 50.0


def test_forced_open_has_no_end_until_told_otherwise(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.force_open()
    clock.advance(1e6)
    assert (breaker.state, breaker.retry_after) == (State.FORCED_OPEN, None)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.acquire()
    assert refused.value.retry_after is None
    breaker.close()
    assert breaker.call(lambda: 1) == 1


def test_forced_open_for_so_long_ends_in_probes(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.force_open(30.0)
    clock.advance(29.0)
    with pytest.raises(CircuitOpenError) as refused:
        breaker.acquire()
    assert (breaker.state, refused.value.retry_after) == (State.FORCED_OPEN, 1.0)
    clock.advance(1.0)
    probe = breaker.acquire()
    assert breaker.state is State.HALF_OPEN
    probe.success()
    assert breaker.state is State.CLOSED


def test_a_success_that_arrives_while_forced_open_changes_nothing(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    early = breaker.acquire()
    breaker.force_open()
    early.success()
    assert breaker.state is State.FORCED_OPEN


def test_disabled_lets_all_pass_and_counts_nothing(clock: ManualClock) -> None:
    heard: list[Event] = []
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, listeners=[heard.append])
    breaker.disable()
    heard.clear()
    fail(breaker, 20)
    assert (breaker.state, breaker.snapshot().failures) == (State.DISABLED, 0)
    assert heard == []


def test_metrics_only_lets_all_pass_and_counts(clock: ManualClock) -> None:
    heard: list[Event] = []
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, listeners=[heard.append])
    breaker.metrics_only()
    heard.clear()
    fail(breaker, 20)
    assert (breaker.state, breaker.snapshot().failures) == (State.METRICS_ONLY, 20)
    ended = [event for event in heard if isinstance(event, CallEnded)]
    assert len(ended) == 20


def test_close_leaves_a_closed_circuit_as_it_is_and_reset_begins_anew(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=3, clock=clock)
    fail(breaker, 2)
    breaker.close()
    assert breaker.snapshot().failures == 2
    under_way = breaker.acquire()
    breaker.reset()
    assert breaker.snapshot().failures == 0
    under_way.failure()
    assert breaker.snapshot().failures == 0


def test_a_snapshot_carries_the_rest_of_the_break_to_another_clock(clock: ManualClock) -> None:
    breaker = opened(clock, reset_timeout=40.0)
    clock.advance(30.0)
    kept = BreakerSnapshot(**json.loads(json.dumps(asdict(breaker.snapshot()))))
    assert kept == pickle.loads(pickle.dumps(breaker.snapshot()))
    elsewhere = ManualClock(start=5.0)
    other = CircuitBreaker("db", clock=elsewhere)
    other.restore(kept)
    assert (other.state, other.retry_after) == (State.OPEN, 10.0)
    elsewhere.advance(10.0)
    other.acquire()
    elsewhere.advance(39.0)
    with pytest.raises(CircuitOpenError):  # the break length, and so the time of a probe, came along
        other.acquire()


@pytest.mark.parametrize("state", list(State))
def test_every_state_survives_a_snapshot(state: State, clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.restore(BreakerSnapshot(state, failures=2, opened_count=1))
    assert breaker.state is state
    again = CircuitBreaker(clock=clock)
    again.restore(breaker.snapshot())
    assert again.snapshot() == breaker.snapshot()


def test_a_restored_half_open_circuit_is_not_wedged_by_a_hung_probe(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.restore(BreakerSnapshot(State.HALF_OPEN))
    breaker.acquire()
    clock.advance(60.0)
    breaker.acquire().success()
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize(
    "wrong", [{"state": "ajar"}, {"state": "open", "failures": -1}, {"state": "open", "retry_after": -1.0}]
)
def test_a_broken_snapshot_is_refused(wrong: dict[str, Any], clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError):
        BreakerSnapshot(**wrong)
    with pytest.raises(ConfigurationError):
        CircuitBreaker(clock=clock).restore(wrong)  # type: ignore[arg-type]  # what is tested


def test_a_permit_counts_once(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    permit = breaker.acquire()
    permit.failure()
    permit.failure()
    permit.success()
    permit.ignore()
    assert breaker.snapshot().failures == 1


def test_a_permit_is_neutral_to_an_error_that_is(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, ignore=KeyError, clock=clock)
    fail(breaker, error=KeyError("x"))
    fail(breaker, error=asyncio.CancelledError())
    assert breaker.state is State.CLOSED
    fail(breaker, error=OSError("x"))
    assert breaker.state is State.OPEN


def test_a_block_checks_records_and_hands_out_its_permit(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)
    with breaker as permit:
        permit.ignore()
    with pytest.raises(ValueError), breaker:
        raise ValueError
    with pytest.raises(CircuitOpenError), breaker:
        raise AssertionError("the block ran")


def test_a_block_within_a_block_of_the_same_function_has_its_own_permit(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)
    with pytest.raises(OSError, match="outer"), breaker as outer:
        with contextlib.suppress(OSError), breaker as inner:
            assert inner is not outer
            raise OSError("inner")
        assert breaker.snapshot().failures == 1
        raise OSError("outer")
    assert breaker.state is State.OPEN


def test_blocks_of_generators_keep_their_own_permits(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)

    def steps() -> Generator[None, None, None]:
        with breaker:
            yield

    stale, probe = steps(), steps()
    next(stale)
    fail(breaker)
    clock.advance(60.0)
    next(probe)
    next(stale, None)  # its block began before the trip
    assert breaker.state is State.HALF_OPEN
    next(probe, None)
    assert breaker.state is State.CLOSED


@pytest.mark.anyio
async def test_an_async_block_may_be_left_in_another_context(clock: ManualClock) -> None:
    breaker = half_opened(clock)

    async def steps() -> AsyncGenerator[None, None]:
        async with breaker:
            yield

    running = steps()
    await asyncio.create_task(anext(running))  # type: ignore[arg-type]  # a coroutine for all that matters
    with pytest.raises(StopAsyncIteration):
        await asyncio.create_task(anext(running))  # type: ignore[arg-type]
    assert breaker.state is State.CLOSED


def test_a_block_may_be_entered_in_one_thread_and_left_in_another(clock: ManualClock) -> None:
    breaker = half_opened(clock)

    @contextlib.contextmanager
    def dependency() -> Generator[None, None, None]:
        with breaker:
            yield

    block = dependency()
    for step in (block.__enter__, lambda: block.__exit__(None, None, None)):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert breaker.state is State.CLOSED


def test_exit_stacks_keep_blocks_apart(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)

    def steps() -> Generator[None, None, None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(breaker)
            yield

    stale, probe = steps(), steps()
    next(stale)
    fail(breaker)
    clock.advance(60.0)
    next(probe)
    next(stale, None)
    assert breaker.state is State.HALF_OPEN
    next(probe, None)
    assert breaker.state is State.CLOSED


def test_an_exit_stack_may_be_handed_on(clock: ManualClock) -> None:
    breaker = half_opened(clock)

    def enter(stack: contextlib.ExitStack) -> None:
        stack.enter_context(breaker)

    with contextlib.ExitStack() as stack:
        enter(stack)
    assert breaker.state is State.CLOSED


def test_a_generator_dropped_inside_a_block_gives_the_permit_back(clock: ManualClock) -> None:
    breaker = half_opened(clock)

    def steps() -> Generator[None, None, None]:
        with breaker:
            yield

    running = steps()
    next(running)
    del running
    gc.collect()
    breaker.acquire()


def test_garbage_that_holds_a_permit_is_collected_inside_a_decision() -> None:
    clock = CollectingClock()
    breaker = half_opened(clock)

    @breaker
    def rows() -> Generator[int, None, None]:
        yield 1

    abandon(rows)
    assert breaker.state is State.HALF_OPEN
    # The clock is read while the lock is held, so that is where the permit comes back.
    assert in_time(lambda: breaker.retry_after) == 0.0
    breaker.acquire().success()
    assert breaker.state is State.CLOSED


def test_a_permit_that_fails_while_it_is_collected_opens_the_circuit() -> None:
    clock = CollectingClock()
    breaker = half_opened(clock)

    @breaker
    def rows() -> Generator[int, None, None]:
        try:
            yield 1
        finally:
            raise OSError("the cursor could not be closed")

    abandon(rows)
    # Nobody takes an error that leaves a generator in the hands of the garbage collector.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        in_time(breaker.snapshot)
    finally:
        sys.unraisablehook = hook
    assert breaker.state is State.OPEN


def test_leaving_a_block_that_was_never_entered_is_wrong_use(clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError):
        CircuitBreaker(clock=clock).__exit__(None, None, None)


@pytest.mark.anyio
async def test_a_cancelled_probe_gives_its_permit_back(clock: ManualClock) -> None:
    breaker = half_opened(clock)
    never = asyncio.Event()

    @breaker
    async def decorated() -> None:
        await never.wait()

    async def block() -> None:
        async with breaker:
            await never.wait()

    for way in (decorated, block, lambda: breaker.acall(never.wait)):
        task = asyncio.ensure_future(way())
        await clock.asleep(0)
        with pytest.raises(CircuitOpenError):
            breaker.acquire()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await breaker.acall(asyncio.to_thread, str, 7) == "7"
    assert breaker.state is State.CLOSED


def test_a_generator_closed_early_is_neutral_and_one_that_fails_counts(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, clock=clock)

    @breaker
    def rows() -> Generator[int, None, None]:
        yield 1
        raise OSError

    running = rows()
    next(running)
    running.close()
    assert breaker.state is State.CLOSED
    with pytest.raises(OSError):
        list(rows())
    assert breaker.state is State.OPEN


def test_methods_and_static_methods_share_the_breaker(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=2, clock=clock)

    class Client:
        @breaker
        def get(self, path: str) -> str:
            return path

        @breaker
        @staticmethod
        def ping() -> None:
            raise OSError

        @staticmethod
        @breaker
        def pong() -> None:
            raise OSError

    assert Client().get("/a") == "/a"
    for method in (Client().ping, Client().pong):
        with pytest.raises(OSError):
            method()
    with pytest.raises(CircuitOpenError):
        Client().get("/a")


def test_changes_are_told_in_order_even_to_a_listener_that_calls_back(clock: ManualClock) -> None:
    heard: list[tuple[str, str, str]] = []
    breaker = CircuitBreaker("db", failure_threshold=1, clock=clock)

    def listen(event: CircuitChanged) -> None:
        if event.state == "open":
            breaker.reset()
        heard.append((event.previous, event.state, event.cause))

    with subscribe(listen, CircuitChanged):
        fail(breaker)
    assert heard == [("closed", "open", "a call failed"), ("open", "closed", "reset")]


def test_a_change_tells_how_long_the_break_is(clock: ManualClock) -> None:
    heard: list[Event] = []
    with subscribe(heard.append, CircuitChanged):
        breaker = opened(clock)
        clock.advance(60.0)
        breaker.call(lambda: 1)
    assert [(event.name, event.previous, event.state, event.retry_after) for event in heard] == [  # type: ignore[attr-defined]
        ("db", "closed", "open", 60.0),
        ("db", "open", "half_open", None),
        ("db", "half_open", "closed", None),
    ]


def test_calls_are_told_from_the_moment_that_somebody_listens(clock: ManualClock) -> None:
    breaker = CircuitBreaker("db", clock=clock)
    heard: list[Any] = []

    @breaker
    def work() -> None:
        clock.advance(2.0)

    work()
    with subscribe(heard.append, CallEnded, CallRejected):
        work()
        breaker.force_open(5.0)
        with pytest.raises(CircuitOpenError):
            work()
    breaker.close()
    work()
    ended, rejected = heard
    assert (ended.verdict, ended.duration) == ("success", 2.0)
    assert (rejected.reason, rejected.retry_after) == ("CircuitOpenError", 5.0)
    assert breaker.passing is not None


def test_a_raising_listener_changes_nothing(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Event) -> None:
        raise RuntimeError("listener")

    breaker = CircuitBreaker(failure_threshold=1, clock=clock, listeners=[broken])
    assert breaker.call(lambda: 5) == 5
    with pytest.raises(ValueError):
        breaker.call(int, "x")
    assert breaker.state is State.OPEN


def test_an_error_is_reported_once_however_many_breakers_it_leaves(clock: ManualClock) -> None:
    inner, outer = CircuitBreaker("inner", clock=clock), CircuitBreaker("outer", ignore=ValueError, clock=clock)
    heard: list[Any] = []
    with subscribe(heard.append, ErrorSeen):
        with pytest.raises(ValueError):
            outer.call(inner.call, int, "x")
        opened_breaker = opened(clock)
        with pytest.raises(CircuitOpenError) as refused:
            outer.call(opened_breaker.call, int)
    assert [(event.name, event.error_type) for event in heard] == [
        ("inner", "ValueError"),
        (opened_breaker.name, "CircuitOpenError"),
    ]
    assert heard[-1].error is refused.value


def test_a_refusal_is_reported_however_it_was_asked_for(clock: ManualClock) -> None:
    breaker = opened(clock)
    heard: list[Any] = []
    with subscribe(heard.append, ErrorSeen):
        with pytest.raises(CircuitOpenError) as from_acquire:
            breaker.acquire()
        with pytest.raises(CircuitOpenError) as from_block, breaker:
            pass
    assert [event.error for event in heard] == [from_acquire.value, from_block.value]


def test_a_rejection_passing_through_is_reported_unless_that_was_done_before(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    heard: list[Any] = []
    refusal = BulkheadFullError("full")

    def refuse() -> None:
        raise refusal

    with subscribe(heard.append, ErrorSeen):
        for _ in range(2):
            with pytest.raises(BulkheadFullError):
                breaker.call(refuse)
    assert [event.error for event in heard] == [refusal]


def test_an_offer_refuses_without_an_error(clock: ManualClock) -> None:
    breaker = opened(clock)
    heard = RecordingListener()
    with subscribe(heard):
        assert breaker.offer() is None
    assert [type(event) for event in heard] == [CallRejected]
    breaker.close()
    ticket = breaker.offer()
    assert ticket is not None
    breaker.leave(ticket, None, None)


def test_repeated_refusals_do_not_grow_a_traceback(clock: ManualClock) -> None:
    breaker = opened(clock)
    depths = set()
    for _ in range(3):
        with pytest.raises(CircuitOpenError) as refused:
            breaker.call(lambda: 1)
        depths.add(len(refused.traceback))
        assert refused.value.__context__ is None
    assert len(depths) == 1


def test_a_breaker_nobody_holds_is_forgotten(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock=clock)
    with contextlib.suppress(OSError), breaker:
        raise OSError
    gone = weakref.ref(breaker)
    del breaker
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_does_not_inherit_a_held_lock(clock: ManualClock) -> None:
    heard: list[Event] = []
    breaker = CircuitBreaker(failure_threshold=1, clock=clock, listeners=[heard.append])
    let_go = held_elsewhere(breaker._ledger.lock)
    with breaker._telling:
        child = os.fork()
        if child == 0:
            fail(breaker)
            os._exit(0 if any(isinstance(event, CircuitChanged) for event in heard) else 1)
    let_go()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_does_not_wait_for_the_probe_of_a_thread_that_it_does_not_have(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=1, reset_timeout=60.0, clock=clock)
    fail(breaker)
    clock.advance(60.0)
    probe = breaker.acquire()
    child = os.fork()
    if child == 0:
        try:
            probe.failure()  # it has lost its place to whoever asks next
            breaker.acquire().success()
        finally:
            os._exit(0 if breaker.state == "closed" else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    probe.success()
    assert breaker.state == "closed"
    assert status == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", ""),
        ("failure_threshold", 0),
        ("failure_threshold", 2.5),
        ("failure_threshold", True),
        ("reset_timeout", 0),
        ("reset_timeout", -1.0),
        ("reset_timeout", float("nan")),
        ("reset_timeout", "60"),
        ("half_open_calls", 0),
        ("half_open_timeout", 0.0),
        ("clock", ManualClock),
        ("failure", "OSError"),
        ("failure", (OSError, "x")),
        ("failure", str),
        ("ignore", 7),
        ("failure_result", 503),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=setting):
        CircuitBreaker(**{setting: value})


@pytest.mark.parametrize("setting", ["failure", "ignore", "failure_result", "reset_timeout"])
def test_an_async_predicate_is_refused(setting: str) -> None:
    async def asynchronous(_: object) -> bool:
        return True

    with pytest.raises(ConfigurationError, match=setting):
        CircuitBreaker(**{setting: asynchronous})  # type: ignore[arg-type]  # what is tested


def test_what_cannot_be_decorated_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="'db'"):
        CircuitBreaker("db")(int)


@pytest.mark.parametrize("wrong", [print, RecordingListener(), 7, None])
def test_listeners_that_are_no_list_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="listeners"):
        CircuitBreaker(listeners=wrong)


def test_it_shows_every_setting_that_differs() -> None:
    shown = repr(CircuitBreaker(half_open_calls=2, half_open_timeout=9.0, failure=OSError, ignore=(KeyError,)))
    assert shown.endswith(
        ", half_open_calls=2, half_open_timeout=9.0, failure=<class 'OSError'>, ignore=(<class 'KeyError'>,)>"
    )
    assert repr(CircuitBreaker()).endswith("failure_threshold=5, reset_timeout=60.0>")


def test_it_shows_its_settings_and_state(clock: ManualClock) -> None:
    breaker = opened(clock, reset_timeout=Backoff(base=2.0))
    assert repr(breaker).startswith(
        "<CircuitBreaker 'db' open, 5 failures, failure_threshold=5, reset_timeout=Backoff("
    )
    assert repr(CircuitBreaker().acquire()) == "<Permit of 'default', open>"


def test_threads_lose_no_failure_and_no_success(clock: ManualClock) -> None:
    breaker = CircuitBreaker(failure_threshold=10**9, clock=clock)

    def work() -> None:
        for _ in range(2000):
            fail(breaker)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert breaker.snapshot().failures == 16000
    breaker.call(lambda: 1)
    assert breaker.snapshot().failures == 0
