"""A second try before the first has failed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from naps import nap

from reliakit import ConfigurationError, Hedge, RetryBudget, deadline
from reliakit.core.events import HedgeEnded
from reliakit.resilience.hedge import Latencies
from reliakit.testing import ManualClock, RecordingListener

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Server:
    """Each call takes as long as the script says, and then returns its number or raises."""

    def __init__(self, clock: ManualClock, *script: float | BaseException) -> None:
        self.clock = clock
        self.script = list(script)
        self.began: list[float] = []
        self.ended: list[object] = []

    async def __call__(self) -> int:
        number = len(self.began)
        self.began.append(self.clock.monotonic())
        step = self.script[number]
        try:
            if isinstance(step, BaseException):
                await nap()
                raise step
            await self.clock.asleep(step)
        except asyncio.CancelledError:
            await nap()  # cleaning up takes a moment
            self.ended.append(f"cancelled {number + 1}")
            raise
        self.ended.append(number + 1)
        return number + 1


async def pass_time(clock: ManualClock, *steps: float) -> None:
    for step in steps:
        for _ in range(10):
            await nap()
        clock.advance(step)
    for _ in range(10):
        await nap()


async def test_a_quick_call_is_made_once(clock: ManualClock) -> None:
    told = RecordingListener()
    server = Server(clock, 1.0)
    call = asyncio.create_task(Hedge(2.0, listeners=[told], clock=clock).acall(server))
    await pass_time(clock, 1.0)
    assert await call == 1
    assert server.began == [0.0]
    assert told.events == []


async def test_a_slow_call_is_started_again_and_the_first_result_is_taken(clock: ManualClock) -> None:
    told = RecordingListener()
    server = Server(clock, 9.0, 1.0)
    call = asyncio.create_task(Hedge(2.0, name="kv", listeners=[told], clock=clock).acall(server))
    await pass_time(clock, 2.0, 1.0)
    assert await call == 2
    assert server.began == [0.0, 2.0]
    assert server.ended == [2, "cancelled 1"]  # awaited too: nothing is left running
    (event,) = told.of(HedgeEnded)
    assert (event.name, event.copies, event.winner, event.failed, event.duration) == ("kv", 2, 2, 0, 3.0)


async def test_the_first_may_win_all_the_same(clock: ManualClock) -> None:
    server = Server(clock, 2.5, 9.0)
    call = asyncio.create_task(Hedge(2.0, clock=clock).acall(server))
    await pass_time(clock, 2.0, 0.5)
    assert await call == 1
    assert server.ended == [1, "cancelled 2"]


async def test_more_copies_come_one_after_another(clock: ManualClock) -> None:
    server = Server(clock, 9.0, 9.0, 0.5)
    call = asyncio.create_task(Hedge(1.0, max_hedges=2, clock=clock).acall(server))
    await pass_time(clock, 1.0, 1.0, 0.5)
    assert await call == 3
    assert server.began == [0.0, 1.0, 2.0]


async def test_a_failure_before_the_delay_is_the_answer(clock: ManualClock) -> None:
    mine = OSError("mine")
    server = Server(clock, mine)
    with pytest.raises(OSError) as raised:
        await Hedge(2.0, clock=clock).acall(server)
    assert raised.value is mine
    assert len(server.began) == 1


async def test_a_copy_that_fails_is_waited_over_while_another_runs(clock: ManualClock) -> None:
    server = Server(clock, 5.0, OSError("second"))
    call = asyncio.create_task(Hedge(2.0, clock=clock).acall(server))
    await pass_time(clock, 2.0, 3.0)
    assert await call == 1


async def test_if_all_fail_the_first_one_s_error_is_raised(clock: ManualClock) -> None:
    told = RecordingListener()
    gate = asyncio.Event()
    errors = [OSError("first"), OSError("second")]
    began = 0

    async def fails() -> None:
        nonlocal began
        began += 1
        mine = errors[began - 1]
        await gate.wait()
        raise mine

    call = asyncio.create_task(Hedge(2.0, listeners=[told], clock=clock).acall(fails))
    await pass_time(clock, 2.0)
    gate.set()
    with pytest.raises(OSError) as raised:
        await call
    assert raised.value is errors[0]
    assert (told.of(HedgeEnded)[0].winner, told.of(HedgeEnded)[0].failed) == (None, 2)


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_a_cancelled_caller_takes_all_copies_with_him(clock: ManualClock, after: int) -> None:
    budget, others = RetryBudget(), asyncio.all_tasks()
    server = Server(clock, 9.0, 9.0)
    call = asyncio.create_task(Hedge(2.0, budget=budget, clock=clock).acall(server))
    await pass_time(clock, *[2.0] * min(after, 1))
    call.cancel()
    if after == 2:
        await nap()
        call.cancel()  # again, while the copies clean up
    with pytest.raises(asyncio.CancelledError):
        await call
    if after < 2:
        assert len(server.ended) == len(server.began)
    assert (budget.calls, budget.retries) == (0, 0)
    assert asyncio.all_tasks() == others


async def test_the_budget_is_shared_and_when_spent_no_copy_is_started(clock: ManualClock) -> None:
    budget = RetryBudget(0.0, minimum=1)
    hedge = Hedge(2.0, budget=budget, clock=clock)
    servers = [Server(clock, 5.0, 5.0) for _ in range(3)]
    calls = [asyncio.create_task(hedge.acall(server)) for server in servers]
    await pass_time(clock, 2.0)
    assert (budget.calls, budget.retries) == (3, 1)
    await pass_time(clock, 3.0)
    assert await asyncio.gather(*calls) == [1, 1, 1]
    assert sorted(len(server.began) for server in servers) == [1, 1, 2]
    assert (budget.calls, budget.retries) == (0, 0)


async def test_nothing_is_started_that_the_deadline_leaves_no_time_for(clock: ManualClock) -> None:
    server = Server(clock, 3.0, 9.0)

    async def within() -> int:
        with deadline(2.0, clock=clock):
            return await Hedge(2.0, clock=clock).acall(server)

    call = asyncio.create_task(within())
    await pass_time(clock, 2.0, 1.0)
    assert await call == 1
    assert len(server.began) == 1


async def test_the_delay_is_what_most_calls_take(clock: ManualClock) -> None:
    hedge = Hedge(quantile=0.9, minimum_calls=10, clock=clock)
    server = Server(clock, *[float(number) for number in range(1, 11)], 99.0, 1.0)
    assert hedge.current_delay is None
    for seconds in range(1, 11):  # not hedged: too little is known
        call = asyncio.create_task(hedge.acall(server))
        await pass_time(clock, float(seconds))
        await call
    assert len(server.began) == 10
    assert hedge.current_delay == 10.0
    call = asyncio.create_task(hedge.acall(server))
    await pass_time(clock, 10.0, 1.0)
    assert await call == 12


def test_calls_that_were_cut_count_as_at_least_so_long() -> None:
    latencies = Latencies(0.95, 20)
    for _ in range(200):
        for _ in range(18):
            latencies.add(1.0)
        latencies.add(latencies.unusual or 1.0)
        latencies.add(5.0)
    assert latencies.unusual == 5.0
    assert latencies.median == 1.0


async def test_each_copy_has_the_caller_s_context(clock: ManualClock) -> None:
    mark: ContextVar[str] = ContextVar("mark")
    mark.set("mine")

    async def look() -> str:
        return mark.get()

    assert await Hedge(2.0, clock=clock).acall(look) == "mine"


async def test_an_error_that_left_is_not_kept_alive(clock: ManualClock) -> None:
    class Mine(Exception):
        pass

    async def fails() -> None:
        raise Mine

    gc.collect()
    gc.disable()
    try:
        try:
            await Hedge(2.0, clock=clock).acall(fails)
        except Mine as error:
            gone = weakref.ref(error)
        await nap()
        assert gone() is None
    finally:
        gc.enable()


def plain() -> None:
    pass


def generator() -> Iterator[int]:
    yield 1


async def asynchronous_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("fn", [plain, generator, asynchronous_generator])
def test_only_an_async_def_can_be_hedged(fn: Any) -> None:
    with pytest.raises(ConfigurationError, match="hedge 'default' takes an `async def`"):
        Hedge(1.0)(fn)
    with pytest.raises(ConfigurationError, match="takes an `async def`, got a plain one"):
        Hedge(1.0).call(plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delay": -1}, "delay must be"),
        ({"quantile": 2}, "quantile must be"),
        ({"minimum_calls": 1}, "minimum_calls must be"),
        ({"max_hedges": 0}, "max_hedges must be"),
        ({"budget": 1}, "budget must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Hedge(**settings)


def test_it_shows_its_settings() -> None:
    assert repr(Hedge(0.5)) == "<Hedge 'default' after 0.5 s, max_hedges=1>"
    assert repr(Hedge()).startswith("<Hedge 'default' not measured yet, quantile=0.95, minimum_calls=20")


async def test_a_copy_that_fails_as_its_caller_is_cancelled_is_not_told_as_forgotten() -> None:
    forgotten: list[dict[str, object]] = []
    callers: list[asyncio.Task[None]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))

    async def fail() -> None:
        callers[0].cancel()
        raise OSError("lost")

    callers.append(asyncio.create_task(Hedge(60.0).acall(fail)))
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    callers.clear()
    gc.collect()
    assert forgotten == []
