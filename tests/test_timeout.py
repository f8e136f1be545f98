"""A time limit for one call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from reliakit import (
    ConfigurationError,
    DeadlineExceededError,
    Timeout,
    checkpoint,
    deadline,
    remaining,
    request_context,
    subscribe,
)
from reliakit.core.context import current_request
from reliakit.core.events import CallTimedOut, DeadlineOverrun, ErrorSeen
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def told() -> RecordingListener:
    return RecordingListener()


# Coroutines


@pytest.mark.anyio
async def test_a_coroutine_is_cut_at_its_limit(clock: ManualClock, told: RecordingListener) -> None:
    limit = Timeout(2.0, name="bank", listeners=[told], clock=clock)
    call = asyncio.create_task(limit.acall(asyncio.Event().wait))
    await clock.await_for_sleepers()
    clock.advance(2.0)
    with pytest.raises(DeadlineExceededError, match="the deadline of 2 s has passed") as raised:
        await call
    assert raised.value.seconds == 2.0
    assert [(event.name, event.seconds) for event in told.of(CallTimedOut)] == [("bank", 2.0)]


@pytest.mark.anyio
async def test_the_caller_s_cancellation_stays_one(clock: ManualClock, told: RecordingListener) -> None:
    call = asyncio.create_task(Timeout(2.0, listeners=[told], clock=clock).acall(asyncio.Event().wait))
    await clock.await_for_sleepers()
    call.cancel("mine")
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert told.of(CallTimedOut) == []


@pytest.mark.anyio
async def test_the_function_s_own_timeout_error_stays_its_own(clock: ManualClock) -> None:
    mine = TimeoutError("mine")

    async def fails() -> None:
        raise mine

    with pytest.raises(TimeoutError) as raised:
        await Timeout(2.0, clock=clock).acall(fails)
    assert raised.value is mine


@pytest.mark.anyio
async def test_the_system_clock_cuts_too() -> None:
    with pytest.raises(DeadlineExceededError):
        await Timeout(0.001).acall(asyncio.Event().wait)


@pytest.mark.anyio
async def test_on_the_system_clock_too_each_cancellation_is_whose_it_was(told: RecordingListener) -> None:
    short, long = Timeout(0.001, name="short", listeners=[told]), Timeout(60.0, name="long", listeners=[told])
    mine, begun = TimeoutError("mine"), asyncio.Event()

    async def fails(error: BaseException) -> None:
        raise error

    async def cut_and_fails() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise mine

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError) as raised:
        await long.acall(fails, mine)
    assert raised.value is mine
    with pytest.raises(TimeoutError) as raised:
        await short.acall(cut_and_fails)
    assert raised.value is mine  # it was cut, and has said something else

    call = asyncio.create_task(long.acall(hangs))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0.001):
            await long.acall(hangs)
    assert not isinstance(raised.value, DeadlineExceededError)
    assert told.of(CallTimedOut) == []

    for policy in (long | short, short | long):
        with pytest.raises(DeadlineExceededError) as raised:
            await policy.acall(hangs)
        assert raised.value.seconds == 0.001
    assert {event.name for event in told.of(CallTimedOut)} == {"short"}
    assert remaining() is None
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.anyio
async def test_what_runs_inside_reads_the_limit_and_it_only_shrinks(clock: ManualClock) -> None:
    async def left() -> float | None:
        return remaining()

    async with deadline(5.0, clock=clock):
        assert await Timeout(2.0, clock=clock).acall(left) == 2.0
        assert await Timeout(9.0, clock=clock).acall(left) == 5.0
        assert Timeout(1.0, clock=clock).call(remaining) == 1.0
        assert remaining() == 5.0


@pytest.mark.anyio
async def test_a_spent_deadline_lets_nothing_begin(clock: ManualClock) -> None:
    async def tried() -> None:
        raise AssertionError("begun")

    def tried_plainly() -> None:
        raise AssertionError("begun")

    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError, match="the deadline of 1 s has passed"):
            await Timeout(2.0, clock=clock).acall(tried)
        with pytest.raises(DeadlineExceededError):
            Timeout(2.0, clock=clock).call(tried_plainly)
        with pytest.raises(DeadlineExceededError):
            Timeout(2.0, threads=1, clock=clock).call(tried_plainly)


# Plain functions


def test_a_late_result_is_kept_and_told(clock: ManualClock, told: RecordingListener) -> None:
    def slow() -> str:
        clock.advance(3.0)
        return "late"

    assert Timeout(2.0, name="bank", listeners=[told], clock=clock).call(slow) == "late"
    (event,) = told.of(DeadlineOverrun)
    assert (event.name, event.seconds, event.elapsed) == ("bank", 2.0, 3.0)
    assert told.of(CallTimedOut) == []


@pytest.mark.anyio
async def test_strict_refuses_a_late_result(clock: ManualClock, told: RecordingListener) -> None:
    def slow() -> str:
        clock.advance(3.0)
        return "late"

    async def blocks() -> str:
        return slow()

    limit = Timeout(2.0, strict=True, listeners=[told], clock=clock)
    with pytest.raises(DeadlineExceededError, match="the deadline of 2 s"):
        limit.call(slow)
    with pytest.raises(DeadlineExceededError):
        await limit.acall(blocks)
    assert [event.seconds for event in told.of(CallTimedOut)] == [2.0, 2.0]
    assert told.of(DeadlineOverrun) == []


def test_waits_and_checkpoints_inside_a_plain_function_raise(clock: ManualClock, told: RecordingListener) -> None:
    def loop() -> None:
        while True:
            clock.advance(0.5)
            checkpoint()

    with pytest.raises(DeadlineExceededError):
        Timeout(2.0, listeners=[told], clock=clock).call(loop)
    assert clock.monotonic() == 2.0
    assert len(told.of(CallTimedOut)) == 1


def test_only_the_limit_that_was_reached_is_told(clock: ManualClock, told: RecordingListener) -> None:
    def slow() -> None:
        clock.advance(3.0)
        checkpoint()

    inner = Timeout(9.0, name="inner", listeners=[told], clock=clock)
    with pytest.raises(DeadlineExceededError):
        Timeout(2.0, name="outer", listeners=[told], clock=clock).call(inner(slow))
    assert [event.name for event in told.of(CallTimedOut)] == ["outer"]


# Generators


def test_a_generator_s_own_work_is_limited_and_not_its_consumer_s(clock: ManualClock) -> None:
    @Timeout(2.0, clock=clock)
    def rows() -> Iterator[float | None]:
        for _ in range(9):
            clock.advance(0.75)
            checkpoint()
            yield remaining()

    seen: list[float | None] = []
    with pytest.raises(DeadlineExceededError, match="the deadline of 2 s"):
        for row in rows():
            assert remaining() is None  # nothing of it is left in the consumer's context
            clock.advance(100)
            seen.append(row)
    assert seen == [1.25, 0.5]


@pytest.mark.anyio
async def test_an_async_generator_is_cut_in_its_own_work(clock: ManualClock) -> None:
    cleaned: list[str] = []

    @Timeout(2.0, clock=clock)
    async def rows() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            cleaned.append("up")

    stream = rows()
    assert await anext(stream) == 1
    assert remaining() is None
    clock.advance(100)
    step = asyncio.ensure_future(anext(stream))
    await clock.await_for_sleepers()
    clock.advance(2.0)
    with pytest.raises(DeadlineExceededError):
        await step
    assert cleaned == ["up"]


def test_a_generator_whose_time_is_spent_is_closed(clock: ManualClock) -> None:
    closed: list[bool] = []

    @Timeout(2.0, clock=clock)
    def rows() -> Iterator[int]:
        try:
            clock.advance(3.0)
            yield 1
            yield 2
        finally:
            closed.append(True)

    stream = rows()
    assert next(stream) == 1  # it came too late, and is kept
    with pytest.raises(DeadlineExceededError) as raised:
        next(stream)
    assert closed == [True]  # at once, and not when its frame goes with the error
    assert raised.value.seconds == 2.0


# Worker threads


def test_a_function_in_a_thread_is_let_go_at_its_limit(clock: ManualClock, told: RecordingListener) -> None:
    go_on, done = threading.Event(), threading.Event()
    limit = Timeout(2.0, threads=1, name="bank", listeners=[told], clock=clock)

    def stuck() -> None:
        go_on.wait()
        done.set()

    passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(2.0)))
    passing.start()
    with pytest.raises(DeadlineExceededError, match="the deadline of 2 s"):
        limit.call(stuck)
    passing.join()
    assert not done.is_set()
    assert [event.name for event in told.of(CallTimedOut)] == ["bank"]

    # Its thread is not free before it has returned: the next one waits for it in vain.
    passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(2.0)))
    passing.start()
    with pytest.raises(DeadlineExceededError):
        limit.call(lambda: "never")
    passing.join()

    go_on.set()
    done.wait()
    passing = threading.Thread(target=lambda: None)
    assert limit.call(lambda: "again") == "again"


def test_a_thread_has_the_caller_s_context_and_deadline() -> None:
    mark: ContextVar[str] = ContextVar("mark", default="unset")

    def look() -> tuple[Any, ...]:
        request, left = current_request(), remaining()
        seen = mark.get()
        mark.set("changed")
        return threading.current_thread().name, seen, request and request.request_id, left is not None and left <= 30

    mark.set("mine")
    with request_context(request_id="a1"):
        assert Timeout(30.0, threads=1, name="bank").call(look) == ("reliakit-timeout-bank", "mine", "a1", True)
    assert mark.get() == "mine"


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_an_error_in_a_thread_leaves_as_itself(kind: type[BaseException]) -> None:
    mine = kind("mine")

    def fails() -> None:
        raise mine

    limit = Timeout(30.0, threads=1)
    for _ in range(2):
        with pytest.raises(kind) as raised:
            limit.call(fails)
        assert raised.value is mine


def test_an_error_that_nobody_waited_for_is_told(clock: ManualClock) -> None:
    go_on, heard = threading.Event(), threading.Event()

    def stuck() -> None:
        go_on.wait()
        raise ValueError("unheard")

    errors: list[str] = []

    def hear(event: ErrorSeen) -> None:
        errors.append(event.error_type)
        if event.error_type == "ValueError":
            heard.set()

    passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(2.0)))
    passing.start()
    with subscribe(hear, ErrorSeen):
        with pytest.raises(DeadlineExceededError):
            Timeout(2.0, threads=1, clock=clock).call(stuck)
        passing.join()
        go_on.set()
        assert heard.wait(30)
    assert errors == ["DeadlineExceededError", "ValueError"]


def test_no_more_threads_run_than_are_allowed() -> None:
    limit = Timeout(30.0, threads=3)
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1

    callers = [threading.Thread(target=limit.call, args=(work,)) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most <= 3


def test_a_generator_cannot_run_in_a_thread() -> None:
    with pytest.raises(ConfigurationError, match="threads is for functions"):

        @Timeout(1.0, threads=1)
        def rows() -> Iterator[int]:
            yield 1


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds": 0}, "seconds must be"),
        ({"seconds": "2s"}, "seconds must be"),
        ({"seconds": float("inf")}, "seconds must be"),
        ({"seconds": 1, "threads": 0}, "threads must be"),
        ({"seconds": 1, "clock": 1}, "clock must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Timeout(**settings)


def test_it_shows_its_settings() -> None:
    assert repr(Timeout(2)) == "Timeout(2)"
    assert (
        repr(Timeout(0.5, strict=True, threads=4)) == "<Timeout 'default' 0.5 s, 0 of 4 threads in use, strict=True>"
    )
