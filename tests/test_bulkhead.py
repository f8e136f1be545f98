"""At most so many calls at once, and a queue."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import FrameType
from typing import Any

import pytest
from guard_script import Call, histories, require_equal_logs
from hypothesis import given, settings
from hypothesis import strategies as st
from naps import nap

from reliakit import Bulkhead, BulkheadFullError, ConfigurationError, DeadlineExceededError, deadline, request_context
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.events import CallRejected, CallWaited
from reliakit.resilience.places import Places, Ticket
from reliakit.resilience.waiter import ThreadWaiter
from reliakit.testing import ManualClock, RecordingListener


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@settings(max_examples=40)
@given(histories())
def test_every_shell_leaves_the_same_log(history: list[Call]) -> None:
    require_equal_logs(history, lambda clock: Bulkhead(2, clock=clock), observe=lambda guard: guard.running)


# Without a queue


@pytest.mark.anyio
async def test_one_too_many_is_refused() -> None:
    told = RecordingListener()
    guard = Bulkhead(2, name="reports", listeners=[told])
    async with guard:
        with guard:
            assert guard.running == 2
            with pytest.raises(BulkheadFullError, match="'reports' lets 2 calls run at once, and has no") as raised:
                guard.call(max, 1, 2)
            assert raised.value.name == "reports"
            with pytest.raises(BulkheadFullError):
                await guard.acall(nap)
    assert guard.running == 0
    assert [event.reason for event in told.of(CallRejected)] == ["BulkheadFullError"] * 2


def test_a_spent_deadline_is_no_reason_to_refuse_a_free_place(clock: ManualClock) -> None:
    with deadline(0, clock=clock):
        assert Bulkhead(1).call(max, 1, 2) == 2
        with Bulkhead(1) as guard, pytest.raises(BulkheadFullError):
            guard.call(max, 1, 2)


# With a queue


async def holds(guard: Bulkhead, seen: list[Any], mark: object, until: asyncio.Event) -> None:
    async with guard:
        seen.append(mark)
        await until.wait()


async def settle(guard: Bulkhead, waiting: int) -> None:
    while guard.waiting != waiting:
        await nap()


@pytest.mark.anyio
@pytest.mark.parametrize(("order", "expected"), [("fifo", [0, 1, 2, 3]), ("lifo", [0, 3, 2, 1])])
async def test_those_who_wait_are_served_in_order(order: Any, expected: list[int]) -> None:
    guard, seen, go = Bulkhead(1, max_waiting=3, order=order), [], asyncio.Event()
    tasks = []
    for mark in range(4):
        tasks.append(asyncio.create_task(holds(guard, seen, mark, go)))
        await settle(guard, mark)
    with pytest.raises(BulkheadFullError, match="lets 1 calls run at once, with a queue for 3 more"):
        await guard.acall(nap)
    go.set()
    await asyncio.gather(*tasks)
    assert seen == expected
    assert (guard.running, guard.waiting) == (0, 0)


@pytest.mark.anyio
async def test_the_more_important_are_served_first_and_displace_the_less_important() -> None:
    guard, seen, go = Bulkhead(1, max_waiting=3), [], asyncio.Event()
    tasks = [asyncio.create_task(holds(guard, seen, "first", go))]
    await settle(guard, 0)
    for number, priority in enumerate(["sheddable", "default", "sheddable", "critical"], 1):
        with request_context(priority=priority):  # type: ignore[arg-type]  # one of them
            tasks.append(asyncio.create_task(holds(guard, seen, f"{priority} {number}", go)))
        await settle(guard, min(number, 3))
        await nap()
    with request_context(priority="sheddable"), pytest.raises(BulkheadFullError):
        await guard.acall(nap)
    go.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert seen == ["first", "critical 4", "default 2", "sheddable 1"]
    assert [type(end) for end in ends if end] == [BulkheadFullError]


@pytest.mark.anyio
async def test_a_wait_ends_after_its_time_or_with_the_deadline(clock: ManualClock) -> None:
    told = RecordingListener()
    guard = Bulkhead(1, max_waiting=9, wait=5.0, listeners=[told], clock=clock)

    async def within(seconds: float) -> None:
        with deadline(seconds, clock=clock):
            async with guard:
                raise AssertionError("admitted")

    with guard:
        patient = asyncio.create_task(guard.acall(nap))
        hurried = asyncio.create_task(within(2.0))
        unhurried = asyncio.create_task(within(9.0))
        await clock.await_for_sleepers(3)
        clock.advance(2.0)
        with pytest.raises(DeadlineExceededError, match="after 2 s in the queue of bulkhead 'default'"):
            await hurried
        clock.advance(3.0)
        for task in (patient, unhurried):
            with pytest.raises(BulkheadFullError):
                await task
        with deadline(0, clock=clock), pytest.raises(DeadlineExceededError):
            await guard.acall(nap)
    assert [(event.wait, event.granted) for event in told.of(CallWaited)] == [
        (2.0, False),
        (5.0, False),
        (5.0, False),
    ]
    assert (guard.running, guard.waiting) == (0, 0)


@pytest.mark.parametrize("seconds", [None, 5.0])
def test_a_thread_waits_by_a_plain_lock_which_no_ctrl_c_leaves_held(seconds: float | None) -> None:
    entered: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename == threading.__file__:
            entered.append(frame.f_code.co_name)

    waiter = ThreadWaiter()
    previous = sys.gettrace()
    sys.settrace(note)
    try:
        waiter.wake()
        waiter.wake()
        waiter.wait(seconds, SYSTEM_CLOCK)
    finally:
        sys.settrace(previous)
    waiter.wait(None, SYSTEM_CLOCK)
    ThreadWaiter().wait(-1.0, SYSTEM_CLOCK)
    assert entered == []


def test_a_thread_waits_for_its_time(clock: ManualClock) -> None:
    guard = Bulkhead(1, max_waiting=1, wait=5.0, clock=clock)
    with guard:
        passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(5.0)))
        passing.start()
        with pytest.raises(BulkheadFullError):
            guard.call(max, 1, 2)
        passing.join()
        passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(2.0)))
        passing.start()
        with deadline(2.0, clock=clock), pytest.raises(DeadlineExceededError):
            guard.call(max, 1, 2)
        passing.join()
    assert guard.call(max, 1, 2) == 2


def test_on_the_system_clock_a_wait_ends_too() -> None:
    guard = Bulkhead(1, max_waiting=2, wait=0.001)
    with guard:
        with pytest.raises(BulkheadFullError):
            guard.call(max, 1, 2)
        with pytest.raises(BulkheadFullError):
            asyncio.run(guard.acall(nap))
        with deadline(0.0005), pytest.raises(DeadlineExceededError):
            guard.call(max, 1, 2)


@pytest.mark.anyio
async def test_a_cancelled_waiter_leaves_the_queue_and_hands_on_what_it_was_granted() -> None:
    guard, seen, go = Bulkhead(1, max_waiting=2), [], asyncio.Event()
    holder = asyncio.create_task(holds(guard, seen, "holder", go))
    await settle(guard, 0)
    gone = asyncio.create_task(holds(guard, seen, "gone", go))
    await settle(guard, 1)
    gone.cancel()
    await asyncio.wait([gone])
    assert (guard.running, guard.waiting) == (1, 0)

    holder.cancel()
    await asyncio.wait([holder])
    guard.enter()
    granted = asyncio.create_task(holds(guard, seen, "granted", go))
    await settle(guard, 1)
    last = asyncio.create_task(holds(guard, seen, "last", go))
    await settle(guard, 2)
    guard.leave()
    assert (guard.running, guard.waiting) == (1, 1)  # the place is handed over already
    granted.cancel()
    await asyncio.wait([granted])
    go.set()
    await last
    assert seen == ["holder", "last"]
    assert (guard.running, guard.waiting) == (0, 0)


def test_a_waiter_whose_loop_is_closed_keeps_nothing() -> None:
    guard = Bulkhead(1, max_waiting=2)
    loop = asyncio.new_event_loop()
    with guard:
        waiting = loop.create_task(guard.acall(nap))
        loop.run_until_complete(nap())
        assert guard.waiting == 1
        loop.close()
    assert (guard.running, guard.waiting) == (0, 0)
    waiting._log_destroy_pending = False  # type: ignore[attr-defined]  # it was left behind on purpose
    with pytest.raises(RuntimeError):
        waiting.get_coro().throw(RuntimeError)  # type: ignore[union-attr]
    del waiting
    gc.collect()
    assert (guard.running, guard.waiting) == (0, 0)


@pytest.mark.anyio
async def test_generators_hold_a_place_from_their_first_step_to_their_end() -> None:
    guard = Bulkhead(1)

    @guard
    def rows() -> Iterator[int]:
        yield guard.running

    @guard
    async def arows() -> AsyncIterator[int]:
        yield guard.running

    idle = rows()
    assert guard.running == 0
    assert list(idle) == [1]
    arunning: Any = arows()
    assert await anext(arunning) == 1
    with pytest.raises(BulkheadFullError):
        next(rows())
    await arunning.aclose()
    assert guard.running == 0


# Threads and tasks at once


def test_threads_and_tasks_share_the_places_and_none_is_lost() -> None:
    guard = Bulkhead(3, max_waiting=1000)
    lock, inside, most, done = threading.Lock(), 0, 0, Counter[str]()

    def enter() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)

    def leave(who: str) -> None:
        nonlocal inside
        with lock:
            inside -= 1
            done[who] += 1

    def work() -> None:
        enter()
        threading.Event().wait(0)
        leave("thread")

    async def awork() -> None:
        enter()
        try:
            await nap()
        finally:
            leave("task")

    async def tasks() -> None:
        running = [asyncio.create_task(guard.acall(awork)) for _ in range(100)]
        await nap()
        for task in running[::7]:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def calls() -> None:
        for _ in range(25):
            guard.call(work)

    threads = [threading.Thread(target=calls) for _ in range(6)]
    threads += [threading.Thread(target=lambda: asyncio.run(tasks())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done["thread"] == 150
    assert done["task"] >= 170
    assert most <= 3
    assert (guard.running, guard.waiting) == (0, 0)


# The queue against a reference


class Silent:
    def wake(self) -> None:
        pass


PRIORITIES = ("critical", "default", "sheddable")
steps = st.one_of(
    st.tuples(st.just("come"), st.sampled_from(PRIORITIES)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("withdraw"), st.integers(0, 9)),
)


@settings(max_examples=150)
@given(st.integers(1, 3), st.integers(0, 3), st.sampled_from(["fifo", "lifo"]), st.lists(steps, max_size=25))
def test_the_queue_does_what_a_plain_list_does(count: int, room: int, order: Any, script: list[Any]) -> None:
    places = Places(count, room, order)
    inside, queue = 0, []  # the reference: how many are inside, and the tickets in the order in which they came

    def serve() -> None:
        nonlocal inside
        while inside < count and queue:
            best = min(PRIORITIES.index(ticket.priority) for ticket in queue)
            equals = [ticket for ticket in queue if PRIORITIES.index(ticket.priority) == best]
            chosen = equals[0] if order == "fifo" else equals[-1]
            queue.remove(chosen)
            expected[chosen] = "granted"
            inside += 1

    expected: dict[Ticket, str] = {}
    for step, argument in script:
        if step == "come":
            if places.take():
                assert inside < count
                assert not queue
                inside += 1
                continue
            assert inside == count
            ticket = Ticket(Silent(), argument)  # type: ignore[arg-type]
            came = places.join(ticket)
            lesser = [other for other in queue if PRIORITIES.index(other.priority) > PRIORITIES.index(argument)]
            assert came == (len(queue) < room or bool(lesser))
            if not came:
                continue
            if len(queue) == room:
                worst = max(PRIORITIES.index(other.priority) for other in lesser)
                equals = [other for other in lesser if PRIORITIES.index(other.priority) == worst]
                out = equals[-1] if order == "fifo" else equals[0]
                queue.remove(out)
                expected[out] = "displaced"
            queue.append(ticket)
            expected[ticket] = "waiting"
        elif step == "leave" and inside:
            places.leave()
            inside -= 1
            serve()
        elif step == "withdraw" and queue:
            ticket = queue.pop(argument % len(queue))
            places.withdraw(ticket)
            expected[ticket] = "left"
        assert {ticket: ticket.state for ticket in expected} == expected
        assert (places.inside, places.waiting) == (inside, len(queue))


def test_who_comes_between_the_two_halves_of_a_leaving_does_not_barge_in() -> None:
    places = Places(1, 1, "fifo")
    assert places.take()
    waiting = Ticket(Silent(), "default")  # type: ignore[arg-type]
    assert places.join(waiting)
    places.free.append(None)  # the first half: there is a place, and nobody has been told yet
    assert not places.take()
    places.hand_out()
    assert waiting.state == "granted"


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_concurrent": 0}, "max_concurrent must be"),
        ({"max_concurrent": 1, "max_waiting": -1}, "max_waiting must be"),
        ({"max_concurrent": 1, "max_waiting": 1, "wait": -1}, "wait must be"),
        ({"max_concurrent": 1, "wait": 1}, "wait needs a queue"),
        ({"max_concurrent": 1, "order": "random"}, "order must be one of"),
        ({"max_concurrent": 1, "name": ""}, "name must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Bulkhead(**settings)


def test_it_shows_its_settings() -> None:
    assert repr(Bulkhead(3)) == "<Bulkhead 'default' 0 of 3 running>"
    assert (
        repr(Bulkhead(3, max_waiting=2, wait=1.5, order="lifo"))
        == "<Bulkhead 'default' 0 of 3 running, 0 of 2 waiting, wait=1.5, order='lifo'>"
    )
