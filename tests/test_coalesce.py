"""One call for all who ask the same at the same time."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from naps import nap

from reliakit import Coalesce, ConfigurationError, DeadlineExceededError, deadline
from reliakit.core.events import CallCoalesced
from reliakit.testing import ManualClock, RecordingListener


class Backend:
    """Counts its calls, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self.cancelled = 0
        self.error: BaseException | None = None

    async def ask(self, key: object = None, **more: object) -> object:
        self.calls += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            await nap()
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return [key]


async def naps(times: int = 8) -> None:
    for _ in range(times):
        await nap()


# Tasks


@pytest.mark.anyio
async def test_all_who_ask_the_same_share_one_call_and_its_result() -> None:
    told = RecordingListener()
    backend, together = Backend(), Coalesce(name="profile", listeners=[told])
    ask = together(backend.ask)
    tasks = [asyncio.create_task(ask(7)) for _ in range(5)]
    await naps()
    assert (backend.calls, together.under_way) == (1, 1)
    backend.go.set()
    results = await asyncio.gather(*tasks)
    assert all(result is results[0] for result in results)
    assert together.under_way == 0
    assert [event.name for event in told.of(CallCoalesced)] == ["profile"] * 4
    assert await ask(7) == [7]
    assert backend.calls == 2  # nothing is kept


@pytest.mark.anyio
async def test_different_arguments_are_different_calls() -> None:
    backend, other = Backend(), Backend()
    together = Coalesce()
    ask = together(backend.ask)
    tasks = [asyncio.create_task(ask(key)) for key in (1, 1.0, True, "1", None)]
    tasks += [asyncio.create_task(ask(key=1)), asyncio.create_task(ask(1, more=2))]
    tasks += [asyncio.create_task(together.acall(backend.ask, 1)), asyncio.create_task(together.acall(other.ask, 1))]
    await naps()
    assert (backend.calls, other.calls, together.under_way) == (7, 1, 8)  # decorated or called, it is the same
    backend.go.set()
    other.go.set()
    await asyncio.gather(*tasks)


@pytest.mark.anyio
async def test_a_key_says_what_is_the_same() -> None:
    backend = Backend()
    together = Coalesce(key=lambda key, **more: key["id"])
    ask = together(backend.ask)
    tasks = [asyncio.create_task(ask({"id": 7}, trace=number)) for number in range(3)]
    called = [asyncio.create_task(together.acall(backend.ask, {"id": 7})) for _ in range(3)]
    await naps()
    assert backend.calls == 1  # decorated or called, it is the same
    backend.go.set()
    await asyncio.gather(*tasks, *called)


@pytest.mark.anyio
async def test_an_error_is_shared_and_its_traceback_does_not_grow() -> None:
    async def length_of(task: asyncio.Task[Any], error: BaseException) -> int:
        with pytest.raises(OSError) as raised:
            await task
        assert raised.value is error
        assert raised.value.__context__ is None
        return len(traceback.extract_tb(raised.value.__traceback__))

    lengths = []
    for callers in (1, 20):
        backend, together = Backend(), Coalesce()
        backend.error = OSError("mine")
        tasks = [asyncio.create_task(together.acall(backend.ask)) for _ in range(callers)]
        await naps()
        backend.go.set()
        lengths.append({await length_of(task, backend.error) for task in tasks})
        assert backend.calls == 1
    assert lengths[0] == lengths[1]


@pytest.mark.anyio
@pytest.mark.parametrize("who", [0, 1, 2])
async def test_a_cancelled_caller_leaves_the_others_alone(who: int) -> None:
    backend, together = Backend(), Coalesce()
    tasks = [asyncio.create_task(together.acall(backend.ask, 7)) for _ in range(3)]
    await naps()
    tasks[who].cancel()
    await asyncio.wait([tasks[who]])
    assert tasks[who].cancelled()
    backend.go.set()
    others = [task for task in tasks if task is not tasks[who]]
    assert await asyncio.gather(*others) == [[7], [7]]
    assert (backend.calls, backend.cancelled) == (1, 0)


@pytest.mark.anyio
async def test_when_the_last_caller_leaves_the_call_is_cancelled_and_awaited() -> None:
    backend, together, before = Backend(), Coalesce(), asyncio.all_tasks()
    tasks = [asyncio.create_task(together.acall(backend.ask, 7)) for _ in range(3)]
    await naps()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (backend.calls, backend.cancelled, together.under_way) == (1, 1, 0)
    assert asyncio.all_tasks() == before
    backend.go.set()
    assert await together.acall(backend.ask, 7) == [7]


@pytest.mark.anyio
async def test_who_asks_while_an_abandoned_call_cleans_up_gets_one_of_his_own() -> None:
    backend, together = Backend(), Coalesce()
    gone = asyncio.create_task(together.acall(backend.ask, 7))
    await naps()
    gone.cancel()
    await nap()
    backend.go.set()
    assert await together.acall(backend.ask, 7) == [7]
    assert backend.calls == 2
    await asyncio.wait([gone])
    assert gone.cancelled()


@pytest.mark.anyio
async def test_a_call_that_cancels_itself_is_made_again_for_the_others() -> None:
    together, calls = Coalesce(), 0

    async def ask() -> int:
        nonlocal calls
        calls += 1
        await nap()
        if calls == 1:
            raise asyncio.CancelledError
        return calls

    tasks = [asyncio.create_task(together.acall(ask)) for _ in range(3)]
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert ends[1:] == [2, 2]


@pytest.mark.anyio
async def test_nobody_waits_beyond_his_deadline() -> None:
    clock = ManualClock()
    backend, together = Backend(), Coalesce(name="profile", clock=clock)
    patient = asyncio.create_task(together.acall(backend.ask))
    await naps()

    async def hurried() -> None:
        with deadline(2.0, clock=clock):
            await together.acall(backend.ask)

    task = asyncio.create_task(hurried())
    await clock.await_for_sleepers()
    clock.advance(2.0)
    with pytest.raises(DeadlineExceededError, match="while coalesce 'profile' waited"):
        await task
    backend.go.set()
    await patient
    assert backend.calls == 1
    backend.go.clear()
    alone = asyncio.create_task(hurried())
    await clock.await_for_sleepers()
    clock.advance(2.0)
    with pytest.raises(DeadlineExceededError):
        await alone
    assert backend.cancelled == 1


@pytest.mark.anyio
async def test_a_call_that_asks_the_same_again_does_not_wait_for_itself() -> None:
    together = Coalesce()

    @together
    async def deep(left: int, key: str) -> int:
        return left

    @Coalesce(key=lambda left: "same")
    async def recursive(left: int) -> int:
        return 0 if left == 0 else 1 + await recursive(left - 1)

    @Coalesce(key=lambda left: "same")
    def plain(left: int) -> int:
        return 0 if left == 0 else 1 + plain(left - 1)

    assert await recursive(3) == 3
    assert plain(3) == 3
    assert await deep(1, "a") == 1


@pytest.mark.anyio
async def test_tasks_of_two_event_loops_share_one_call() -> None:
    together, calls = Coalesce(), 0
    begun, release = threading.Event(), threading.Event()

    async def ask() -> int:
        nonlocal calls
        calls += 1
        begun.set()
        await asyncio.to_thread(release.wait)
        return 7

    shared: list[int] = []
    thread = threading.Thread(target=lambda: shared.append(asyncio.run(together.acall(ask))))
    thread.start()
    await asyncio.to_thread(begun.wait)
    mine = asyncio.create_task(together.acall(ask))
    await naps()
    release.set()
    assert await mine == 7
    await asyncio.to_thread(thread.join)
    assert (shared, calls) == ([7], 1)


# Threads


def in_threads(count: int, work: Any) -> list[Any]:
    ends: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            ends[number] = work(number)
        except BaseException as error:
            ends[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def gather_waiters(together: Coalesce, count: int) -> None:
    """Wait until that many threads wait for the call under way."""
    while sum(len(flight.waiters) for flight in list(together._flights.values())) < count:
        threading.Event().wait(0.0005)


@pytest.mark.parametrize("error", [None, OSError("mine")])
def test_threads_share_one_call(error: Exception | None) -> None:
    together, calls = Coalesce(), []

    @together
    def ask() -> list[int]:
        calls.append(1)
        gather_waiters(together, 4)
        if error is not None:
            raise error
        return calls

    ends = in_threads(5, lambda number: ask())
    assert ends == [error or calls] * 5
    assert len(calls) == 1
    assert together.under_way == 0


def test_a_thread_that_is_stopped_is_no_answer_for_the_others() -> None:
    together, calls = Coalesce(), []

    @together
    def ask() -> int:
        calls.append(1)
        if len(calls) == 1:
            gather_waiters(together, 2)
            raise SystemExit
        return len(calls)

    ends = in_threads(3, lambda number: ask())
    assert sum(isinstance(end, SystemExit) for end in ends) == 1
    assert next(end for end in ends if not isinstance(end, SystemExit)) >= 2


def test_a_thread_does_not_wait_beyond_its_deadline() -> None:
    clock = ManualClock()
    together, go = Coalesce(clock=clock), threading.Event()
    begun = threading.Event()

    @together
    def ask() -> int:
        begun.set()
        go.wait()
        return 7

    leader = threading.Thread(target=ask)
    leader.start()
    begun.wait()
    passing = threading.Thread(target=lambda: (clock.wait_for_sleepers(), clock.advance(2.0)))
    passing.start()
    with deadline(2.0, clock=clock), pytest.raises(DeadlineExceededError):
        ask()
    passing.join()
    go.set()
    leader.join()


@pytest.mark.anyio
async def test_an_error_that_left_is_not_kept_alive() -> None:
    class Mine(Exception):
        pass

    @Coalesce()
    def fails() -> None:
        raise Mine

    @Coalesce()
    async def afails() -> None:
        raise Mine

    gc.collect()
    gc.disable()
    try:
        try:
            fails()
        except Mine as error:
            gone = weakref.ref(error)
        assert gone() is None
        try:
            await afails()
        except Mine as error:
            gone = weakref.ref(error)
        await nap()
        assert gone() is None
    finally:
        gc.enable()


# Wrong use


def test_what_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot compare such arguments .*give key="):
        Coalesce().call(len, [1])


def test_the_items_of_a_generator_cannot_be_shared() -> None:
    def rows() -> Iterator[int]:
        yield 1

    async def arows() -> AsyncIterator[int]:
        yield 1

    for fn in (rows, arows):
        with pytest.raises(ConfigurationError, match="generator's items cannot be shared"):
            Coalesce()(fn)


def test_wrong_settings_are_refused() -> None:
    async def key() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="key must be"):
        Coalesce(key="id")  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ConfigurationError, match="is async"):
        Coalesce(key=key)
    assert repr(Coalesce(name="x")) == "<Coalesce 'x' 0 under way>"
