"""One time budget for everything that a request does."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit import (
    SYSTEM_CLOCK,
    ConfigurationError,
    DeadlineExceededError,
    checkpoint,
    deadline,
    deadline_headers,
    grpc_timeout,
    remaining,
    subscribe,
)
from reliakit.core.events import DeadlineOverrun
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def forever() -> None:
    await asyncio.Event().wait()


# A plain block


def test_without_a_deadline_nothing_is_limited() -> None:
    assert remaining() is None
    checkpoint()


def test_the_budget_runs_down_and_never_below_zero(clock: ManualClock) -> None:
    with deadline(2.0, clock=clock) as block:
        assert remaining() == block.remaining() == 2.0
        clock.advance(0.5)
        assert remaining() == block.remaining() == 1.5
        clock.advance(9)
        assert remaining() == block.remaining() == 0.0
    assert remaining() is None


def test_a_checkpoint_raises_from_the_last_instant_on(clock: ManualClock) -> None:
    with deadline(2.0, clock=clock):
        clock.advance(1.999)
        checkpoint()
        clock.advance(0.001)
        with pytest.raises(DeadlineExceededError, match="deadline of 2 s") as raised:
            checkpoint()
    assert raised.value.seconds == 2.0
    assert isinstance(raised.value, TimeoutError)


def test_a_budget_of_nothing_is_spent_at_once(clock: ManualClock) -> None:
    with deadline(0, clock=clock):
        assert remaining() == 0.0
        with pytest.raises(DeadlineExceededError):
            checkpoint()


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), max_size=6))
def test_nested_deadlines_only_shrink(blocks: list[tuple[float, float]]) -> None:
    clock = ManualClock()
    until = [float("inf")]

    def enter(rest: list[tuple[float, float]]) -> None:
        if not rest:
            return
        (seconds, pause), *others = rest
        with deadline(seconds, clock=clock):
            until.append(min(until[-1], clock.monotonic() + seconds))
            assert remaining() == pytest.approx(max(0.0, until[-1] - clock.monotonic()))
            clock.advance(pause)
            enter(others)
            assert remaining() == pytest.approx(max(0.0, until[-1] - clock.monotonic()))
            until.pop()

    enter(blocks)
    assert remaining() is None


def test_the_error_of_an_inner_block_names_the_budget_that_ran_out(clock: ManualClock) -> None:
    with deadline(1.0, clock=clock), deadline(30.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError, match="deadline of 1 s"):
            checkpoint()


def test_an_overrun_is_noticed_at_the_end_and_the_result_is_kept(clock: ManualClock) -> None:
    heard = RecordingListener()

    def work() -> str:
        with deadline(2.0, clock=clock):
            clock.advance(2.5)
            return "kept"

    with subscribe(heard, DeadlineOverrun):
        assert work() == "kept"
    assert [(event.seconds, event.elapsed) for event in heard.of(DeadlineOverrun)] == [(2.0, 2.5)]


def test_an_overrun_is_told_once_by_the_block_whose_budget_it_was(clock: ManualClock) -> None:
    heard = RecordingListener()
    with subscribe(heard, DeadlineOverrun), deadline(2.0, clock=clock), deadline(30.0, clock=clock):
        clock.advance(3.0)
    assert [event.seconds for event in heard.of(DeadlineOverrun)] == [2.0]


def test_in_time_or_with_an_error_there_is_no_overrun(clock: ManualClock) -> None:
    heard = RecordingListener()
    with subscribe(heard):
        with deadline(2.0, clock=clock):
            clock.advance(2.0)
        with pytest.raises(DeadlineExceededError), deadline(2.0, clock=clock):
            clock.advance(3.0)
            checkpoint()
    assert heard.events == []


def test_the_user_s_own_error_passes(clock: ManualClock) -> None:
    mine = TimeoutError("mine")
    with pytest.raises(TimeoutError) as raised, deadline(1.0, clock=clock):
        clock.advance(5)
        raise mine
    assert raised.value is mine
    assert remaining() is None


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), None, "2", True])
def test_a_wrong_budget_is_refused_at_construction(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match="seconds must be"):
        deadline(seconds)


def test_one_object_serves_one_block_at_a_time(clock: ManualClock) -> None:
    block = deadline(2.0, clock=clock)
    with block:
        clock.advance(1.0)
        with pytest.raises(ConfigurationError, match="running already"), block:
            raise AssertionError("entered twice")
        assert remaining() == 1.0
    with block:
        assert remaining() == 2.0


def test_a_deadline_shows_its_budget_and_what_is_left(clock: ManualClock) -> None:
    block = deadline(2.0, clock=clock)
    assert repr(block) == "deadline(2)"
    with block:
        clock.advance(0.5)
        assert repr(block) == "<deadline(2) with 1.5 s left>"


# Threads and generators


def test_a_bare_thread_has_its_own_budget(clock: ManualClock) -> None:
    found: list[float | None] = []
    with deadline(2.0, clock=clock):
        thread = threading.Thread(target=lambda: found.append(remaining()))
        thread.start()
        thread.join()
    assert found == [None]


@pytest.mark.anyio
async def test_a_worker_thread_of_asyncio_shares_the_budget(clock: ManualClock) -> None:
    async with deadline(2.0, clock=clock):
        assert await asyncio.to_thread(remaining) == 2.0


def _rows(clock: ManualClock, seconds: float) -> Iterator[int]:
    with deadline(seconds, clock=clock):
        yield 1
        yield 2


def test_generators_that_end_out_of_order_leave_no_budget_behind(clock: ManualClock) -> None:
    first, second = _rows(clock, 5.0), _rows(clock, 3.0)
    next(first)
    next(second)
    first.close()
    assert remaining() == 3.0
    second.close()
    clock.advance(100)
    assert remaining() is None
    checkpoint()


def test_a_generator_closed_in_another_context_touches_neither(clock: ManualClock) -> None:
    rows = _rows(clock, 5.0)
    began = contextvars.copy_context()
    began.run(next, rows)
    with deadline(3.0, clock=clock):
        rows.close()
        assert remaining() == 3.0
    assert began.run(remaining) is None


@pytest.mark.anyio
async def test_an_async_generator_that_is_abandoned_leaves_no_budget_behind(clock: ManualClock) -> None:
    async def rows() -> AsyncIterator[int]:
        async with deadline(5.0, clock=clock):
            yield 1
            yield 2

    began = rows()
    async for _ in began:
        break
    # As the event loop does with a generator that nobody refers to any more: in a task of its own.
    await asyncio.create_task(began.aclose())  # type: ignore[attr-defined]  # an async generator has it
    assert remaining() is None


# A block that is enforced


@pytest.mark.anyio
async def test_the_block_is_cut_when_the_clock_says_so(clock: ManualClock) -> None:
    async def work() -> None:
        async with deadline(2.0, clock=clock):
            await forever()

    task = asyncio.create_task(work())
    await clock.await_for_sleepers()
    clock.advance(1.999)
    await SYSTEM_CLOCK.asleep(0)
    assert not task.done()
    clock.advance(0.001)
    with pytest.raises(DeadlineExceededError, match="deadline of 2 s") as raised:
        await task
    assert raised.value.seconds == 2.0
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert task.cancelling() == 0
    assert clock.sleepers == 0


@pytest.mark.anyio
async def test_the_block_is_cut_by_the_machine_s_clock() -> None:
    with pytest.raises(DeadlineExceededError):
        async with deadline(0):
            await forever()
    assert remaining() is None


@pytest.mark.anyio
async def test_a_block_that_never_waits_is_not_cut() -> None:
    async with deadline(0):
        done = True
    assert done


@pytest.mark.anyio
async def test_a_block_in_time_leaves_nothing_behind(clock: ManualClock) -> None:
    before = asyncio.all_tasks()
    async with deadline(2.0, clock=clock) as block:
        await SYSTEM_CLOCK.asleep(0)
        clock.advance(1.5)
        assert remaining() == block.remaining() == 0.5
    await SYSTEM_CLOCK.asleep(0)
    await SYSTEM_CLOCK.asleep(0)
    assert clock.sleepers == 0
    assert asyncio.all_tasks() == before


@pytest.mark.anyio
async def test_blocking_code_that_overran_is_told_and_keeps_its_result(clock: ManualClock) -> None:
    heard = RecordingListener()
    with subscribe(heard, DeadlineOverrun):
        async with deadline(2.0, clock=clock):
            clock.advance(3.0)
    assert len(heard) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("manual", [True, False])
async def test_the_caller_s_own_cancellation_keeps_its_identity(manual: bool, clock: ManualClock) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with deadline(60.0, clock=clock) if manual else deadline(60.0):
            begun.set()
            await forever()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel("by the caller")
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert raised.value.args == ("by the caller",)
    assert task.cancelled()


@pytest.mark.anyio
async def test_a_cancellation_that_comes_together_with_the_cut_wins(clock: ManualClock) -> None:
    async def work() -> None:
        async with deadline(2.0, clock=clock):
            await forever()

    task = asyncio.create_task(work())
    await clock.await_for_sleepers()
    clock.advance(2.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_the_user_s_own_timeout_error_stays_his_own(clock: ManualClock) -> None:
    mine = TimeoutError("mine")
    with pytest.raises(TimeoutError) as raised:
        async with deadline(2.0, clock=clock):
            await SYSTEM_CLOCK.asleep(0)
            raise mine
    assert raised.value is mine


@pytest.mark.anyio
async def test_a_timeout_of_asyncio_inside_stays_that_timeout(clock: ManualClock) -> None:
    with pytest.raises(TimeoutError) as raised:
        async with deadline(2.0, clock=clock):
            async with asyncio.timeout(0):
                await forever()
    assert not isinstance(raised.value, DeadlineExceededError)


@pytest.mark.anyio
async def test_an_error_of_the_cleanup_takes_the_place_of_the_cut() -> None:
    with pytest.raises(KeyError):
        async with deadline(0):
            try:
                await forever()
            finally:
                raise KeyError("cleanup")
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # a test runs in a task


@pytest.mark.anyio
async def test_who_swallows_the_cut_goes_on_and_is_told_of_as_an_overrun(clock: ManualClock) -> None:
    heard = RecordingListener()

    async def stubborn() -> str:
        async with deadline(2.0, clock=clock):
            try:
                await forever()
            except asyncio.CancelledError:
                clock.advance(1.0)
            with pytest.raises(DeadlineExceededError):
                checkpoint()
            return "went on"

    with subscribe(heard, DeadlineOverrun):
        task = asyncio.create_task(stubborn())
        await clock.await_for_sleepers()
        clock.advance(2.0)
        assert await task == "went on"
    assert [event.elapsed for event in heard.of(DeadlineOverrun)] == [3.0]
    assert task.cancelling() == 0


@pytest.mark.anyio
async def test_an_outer_deadline_that_comes_first_cuts_the_inner_block(clock: ManualClock) -> None:
    seen: list[str] = []

    async def work() -> None:
        async with deadline(1.0, clock=clock):
            try:
                async with deadline(30.0, clock=clock):
                    await forever()
            finally:
                seen.append("cleaned up")

    task = asyncio.create_task(work())
    await clock.await_for_sleepers(2)
    clock.advance(1.0)
    with pytest.raises(DeadlineExceededError, match="deadline of 1 s"):
        await task
    assert seen == ["cleaned up"]


@pytest.mark.anyio
async def test_an_inner_deadline_that_comes_first_leaves_the_outer_block_running(clock: ManualClock) -> None:
    async def work() -> float | None:
        async with deadline(30.0, clock=clock):
            with pytest.raises(DeadlineExceededError, match="deadline of 1 s"):
                async with deadline(1.0, clock=clock):
                    await forever()
            await SYSTEM_CLOCK.asleep(0)
            return remaining()

    task = asyncio.create_task(work())
    await clock.await_for_sleepers(2)
    clock.advance(1.0)
    assert await task == 29.0


@pytest.mark.anyio
async def test_a_plain_outer_block_is_enforced_where_an_async_one_stands_in_it(clock: ManualClock) -> None:
    async def work() -> None:
        with deadline(1.0, clock=clock):
            async with deadline(30.0, clock=clock):
                await forever()

    task = asyncio.create_task(work())
    await clock.await_for_sleepers()
    clock.advance(1.0)
    with pytest.raises(DeadlineExceededError, match="deadline of 1 s"):
        await task


@pytest.mark.anyio
async def test_a_task_started_in_the_block_shares_its_budget(clock: ManualClock) -> None:
    async def child() -> float | None:
        async with deadline(30.0, clock=clock):
            return remaining()

    async with deadline(2.0, clock=clock):
        assert await asyncio.create_task(child()) == 2.0


@pytest.mark.anyio
async def test_work_that_outlives_the_block_is_bound_by_it_no_longer(clock: ManualClock) -> None:
    go_on = asyncio.Event()

    async def afterwards() -> float | None:
        await go_on.wait()
        checkpoint()
        return remaining()

    async with deadline(2.0, clock=clock):
        task = asyncio.create_task(afterwards())
        await SYSTEM_CLOCK.asleep(0)
    clock.advance(100)
    go_on.set()
    assert await task is None


@pytest.mark.anyio
async def test_a_clock_that_jumps_over_sleeps_does_not_jump_to_the_deadline() -> None:
    clock = ManualClock(auto_advance=True)
    async with deadline(5.0, clock=clock):
        await clock.asleep(1.0)
        for _ in range(20):
            await SYSTEM_CLOCK.asleep(0)
        assert remaining() == 4.0
    with pytest.raises(DeadlineExceededError):
        async with deadline(5.0, clock=clock):
            await clock.asleep(9.0)
            await forever()


@pytest.mark.anyio
async def test_a_task_group_in_the_block_is_cut_as_one(clock: ManualClock) -> None:
    ended: list[str] = []

    async def child(name: str) -> None:
        try:
            await forever()
        finally:
            ended.append(name)

    async def work() -> None:
        async with deadline(2.0, clock=clock), asyncio.TaskGroup() as group:
            group.create_task(child("a"))
            group.create_task(child("b"))

    task = asyncio.create_task(work())
    await clock.await_for_sleepers()
    await SYSTEM_CLOCK.asleep(0)
    clock.advance(2.0)
    with pytest.raises(DeadlineExceededError):
        await task
    assert sorted(ended) == ["a", "b"]


@pytest.mark.anyio
async def test_a_spent_plain_deadline_cuts_an_async_block_at_its_first_wait(clock: ManualClock) -> None:
    with deadline(1.0, clock=clock):
        clock.advance(5.0)
        with pytest.raises(DeadlineExceededError):
            async with deadline(1.0, clock=clock):
                await forever()


def test_an_async_block_needs_a_task_and_leaves_nothing_behind_without_one() -> None:
    step = deadline(1.0).__aenter__()
    with pytest.raises(RuntimeError):
        step.send(None)
    assert remaining() is None


# What the next service is told


def test_the_next_service_is_told_what_is_left(clock: ManualClock) -> None:
    assert deadline_headers() == {}
    assert grpc_timeout() is None
    with deadline(2.0, clock=clock):
        clock.advance(0.07)
        assert deadline_headers() == {"X-Request-Deadline-Ms": "1930"}
        assert deadline_headers(margin=0.0305) == {"X-Request-Deadline-Ms": "1899"}
        assert grpc_timeout() == "1930m"
        clock.advance(5)
        assert deadline_headers() == {"X-Request-Deadline-Ms": "0"}
        assert grpc_timeout(margin=1.0) == "0m"


def test_a_very_long_deadline_is_told_in_the_digits_that_peers_read(clock: ManualClock) -> None:
    with deadline(1e12, clock=clock):
        assert deadline_headers() == {"X-Request-Deadline-Ms": "999999999"}
        assert grpc_timeout() == "99999999S"


def test_a_wrong_margin_is_refused() -> None:
    for tell in (deadline_headers, grpc_timeout):
        with pytest.raises(ConfigurationError, match="margin must be"):
            tell(margin=-1.0)
