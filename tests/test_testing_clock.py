"""ManualClock: time stands still until a test moves it, for threads and tasks alike."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.testing import ManualClock

pytestmark = pytest.mark.anyio


def test_it_is_a_clock():
    assert isinstance(ManualClock(), Clock)


def test_time_stands_still_until_advanced():
    clock = ManualClock(5.0, wall=100.0)
    assert (clock.monotonic(), clock.time()) == (5.0, 100.0)
    assert (clock.monotonic(), clock.time()) == (5.0, 100.0)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.time()) == (7.5, 102.5)


def test_the_wall_clock_steps_without_the_monotonic_one():
    clock = ManualClock(5.0)
    clock.set_wall(50.0)
    assert (clock.monotonic(), clock.time()) == (5.0, 50.0)
    clock.advance(1.0)
    assert (clock.monotonic(), clock.time()) == (6.0, 51.0)
    clock.set_wall(10.0)
    assert (clock.monotonic(), clock.time()) == (6.0, 10.0)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "1", None])
def test_it_never_goes_back_or_nowhere(seconds):
    with pytest.raises(ConfigurationError, match="advance"):
        ManualClock().advance(seconds)


@pytest.mark.parametrize("instant", [float("nan"), float("inf"), "noon", None])
def test_it_stands_at_an_instant(instant):
    for argument in ("start", "wall"):
        with pytest.raises(ConfigurationError, match=argument):
            ManualClock(**{argument: instant})
    clock = ManualClock()
    with pytest.raises(ConfigurationError, match="at must be"):
        clock.set_wall(instant)
    assert clock.time() == ManualClock().time()


def test_a_thread_sleeps_until_the_clock_has_moved_that_far():
    clock, woken = ManualClock(), threading.Event()
    thread = threading.Thread(target=lambda: (clock.sleep(5.0), woken.set()))
    thread.start()
    clock.wait_for_sleepers(1)
    clock.advance(4.999)
    assert clock.sleepers == 1
    assert not woken.is_set()
    clock.advance(0.001)
    thread.join(10.0)
    assert woken.is_set()
    assert clock.sleepers == 0


async def test_a_task_sleeps_until_the_clock_has_moved_that_far():
    clock = ManualClock()
    task = asyncio.create_task(clock.asleep(5.0))
    await clock.await_for_sleepers(1)
    clock.advance(4.999)
    await SYSTEM_CLOCK.asleep(0)
    assert not task.done()
    clock.advance(0.001)
    await task


async def test_ten_steps_of_a_tenth_make_a_second():
    clock = ManualClock()
    task = asyncio.create_task(clock.asleep(1.0))
    await clock.await_for_sleepers(1)
    for _ in range(10):
        clock.advance(0.1)
    await task


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_to_sleep_is_no_sleep(seconds):
    clock = ManualClock()
    clock.sleep(seconds)
    await clock.asleep(seconds)
    assert clock.monotonic() == 0.0


async def test_a_cancelled_sleeper_is_forgotten():
    clock = ManualClock()
    task = asyncio.create_task(clock.asleep(5.0))
    await clock.await_for_sleepers(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleepers == 0
    clock.advance(10.0)


async def test_one_advance_wakes_threads_and_the_tasks_of_other_loops():
    clock, woken = ManualClock(), []
    threads = [
        threading.Thread(target=lambda: (clock.sleep(1.0), woken.append("thread"))),
        threading.Thread(target=lambda: (asyncio.run(clock.asleep(2.0)), woken.append("other loop"))),
    ]
    for thread in threads:
        thread.start()
    here = asyncio.create_task(clock.asleep(3.0))
    await clock.await_for_sleepers(3)
    clock.advance(3.0)
    await here
    for thread in threads:
        await asyncio.to_thread(thread.join, 10.0)
    assert sorted(woken) == ["other loop", "thread"]


def test_advances_of_many_threads_add_up():
    clock = ManualClock()
    threads = [threading.Thread(target=lambda: [clock.advance(1.0) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.monotonic() == 4000.0


def test_a_loop_closed_over_a_sleeper_does_not_break_the_advance():
    clock = ManualClock()
    loop = asyncio.new_event_loop()
    sleeping = clock.asleep(1.0)
    task = loop.create_task(sleeping)
    loop.run_until_complete(SYSTEM_CLOCK.asleep(0))
    loop.close()
    clock.advance(2.0)
    assert clock.monotonic() == 2.0
    task._log_destroy_pending = False  # the loop is closed under it on purpose
    sleeping.close()


async def test_waiting_for_sleepers_that_do_not_come_ends():
    clock = ManualClock()
    with pytest.raises(TimeoutError, match="0 of 2 sleepers"):
        clock.wait_for_sleepers(2, timeout=0.01)
    with pytest.raises(TimeoutError, match="0 of 2 sleepers"):
        await clock.await_for_sleepers(2, timeout=0.01)


def test_auto_advance_moves_the_clock_to_the_end_of_each_sleep():
    clock = ManualClock(auto_advance=True)
    clock.sleep(2.0)
    clock.sleep(0.5)
    assert clock.monotonic() == 2.5


async def test_auto_advance_lets_tasks_sleep_side_by_side():
    clock, woken = ManualClock(auto_advance=True), []

    async def nap(seconds: float) -> None:
        await clock.asleep(seconds)
        woken.append((seconds, clock.monotonic()))

    await asyncio.gather(nap(3.0), nap(1.0), nap(2.0))
    assert woken == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]


def test_chance_is_foreseeable():
    seeded = [ManualClock(random=7).random() for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert 0 <= seeded[0] < 1
    assert ManualClock(random=7).random() != ManualClock(random=8).random()
    constant = ManualClock(random=0.25)
    assert [constant.random(), constant.random()] == [0.25, 0.25]
    given_draws = ManualClock(random=[0.1, 0.9])
    assert [given_draws.random() for _ in range(3)] == [0.1, 0.9, 0.1]


@pytest.mark.parametrize("random", [1.0, -0.1, [], [0.5, 1.0], "0.5", [None], None])
def test_chance_outside_its_range_is_refused(random):
    with pytest.raises(ConfigurationError, match="random="):
        ManualClock(random=random)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("sleep"), st.integers(1, 8)),
        st.tuples(st.just("advance"), st.integers(0, 5)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    max_size=30,
)


@given(steps)
def test_sleepers_wake_in_due_order_and_never_early(script):
    """Against the naive model: a list of (due, order), sorted at every advance."""

    async def play() -> tuple[list[int], list[int]]:
        clock, woken, expected = ManualClock(), [], []
        tasks: list[asyncio.Task[None]] = []
        pending: list[tuple[float, int]] = []

        async def nap(number: int, seconds: int) -> None:
            await clock.asleep(seconds)
            woken.append(number)

        for what, amount in script:
            if what == "sleep":
                pending.append((clock.monotonic() + amount, len(tasks)))
                tasks.append(asyncio.create_task(nap(len(tasks), amount)))
                await clock.await_for_sleepers(len(pending))
            elif what == "cancel" and amount < len(tasks):
                tasks[amount].cancel()
                pending = [(due, number) for due, number in pending if number != amount]
            elif what == "advance":
                clock.advance(amount)
                expected += [number for due, number in sorted(pending) if due <= clock.monotonic()]
                pending = [(due, number) for due, number in pending if due > clock.monotonic()]
            for _ in range(3):
                await SYSTEM_CLOCK.asleep(0)
            assert clock.sleepers == len(pending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return woken, expected

    woken, expected = asyncio.run(play())
    assert woken == expected
