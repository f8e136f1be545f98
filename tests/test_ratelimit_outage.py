"""A limiter whose store fails: who decides, how often the store is asked, and what is told of it."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from typing import Any

import pytest

from reliakit import (
    ConfigurationError,
    DeadlineExceededError,
    RateLimitedError,
    StoreError,
    configure_logging,
    deadline,
    remaining,
    subscribe,
)
from reliakit.core.events import CircuitChanged, DeadlineOverrun, LimitDecided, StoreFailed, StoreRecovered
from reliakit.ratelimit import RateLimiter
from reliakit.stores import MemoryStore
from reliakit.testing import ManualClock, RecordingListener


class Flaky(MemoryStore):
    """A store that can be killed and revived, and counts how often it is asked."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock=clock)
        self.clock = clock
        self.error: BaseException | None = None
        self.takes = 0.0
        self.asked = 0
        self.budgets: list[float | None] = []
        self.keeps_time = False

    def apply(self, *args: Any) -> Any:
        self.asked += 1
        self.budgets.append(remaining())
        if self.takes:
            self.clock.advance(self.takes)
        if self.error is not None:
            raise self.error
        return super().apply(*args)

    async def aapply(self, *args: Any) -> Any:
        if self.takes:
            await self.clock.asleep(self.takes)
        return self.apply(*args)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def store(clock: ManualClock) -> Flaky:
    return Flaky(clock)


@pytest.fixture
def heard() -> RecordingListener:
    return RecordingListener()


def limiter_of(store: Flaky, heard: RecordingListener | None = None, **settings: Any) -> RateLimiter:
    listeners = [] if heard is None else [heard]
    return RateLimiter("2/s", name="search", store=store, clock=store.clock, listeners=listeners, **settings)


def in_both_colours(limiter: RateLimiter, method: str, *args: Any) -> list[Any]:
    return [getattr(limiter, method)(*args), asyncio.run(getattr(limiter, f"a{method}")(*args))]


@pytest.mark.parametrize("error", [StoreError("down"), OSError("down"), ValueError("not even a store's error")])
def test_a_memory_store_of_its_own_decides_while_the_store_does_not(error: Exception, store: Flaky) -> None:
    limiter = limiter_of(store)
    store.error = error
    decisions = in_both_colours(limiter, "hit", "k") + in_both_colours(limiter, "hit", "k")
    assert [decision.allowed for decision in decisions] == [True, True, False, False]
    assert [decision.remaining for decision in decisions] == [1, 0, 0, 0]
    assert all(decision.degraded for decision in decisions)
    assert limiter.peek("k").degraded
    assert decisions[-1].retry_after == 0.5


def test_open_allows_and_closed_denies(store: Flaky) -> None:
    store.error = StoreError("down")
    opened = limiter_of(store, on_store_error="open")
    assert all(decision and decision.degraded for _ in range(9) for decision in in_both_colours(opened, "hit", "k"))
    assert opened.acquire("k").allowed
    closed = limiter_of(store, on_store_error="closed")
    for decision in in_both_colours(closed, "hit", "k"):
        assert (decision.allowed, decision.remaining, decision.degraded) == (False, 0, True)
        assert decision.retry_after >= 1.0
    with pytest.raises(RateLimitedError) as refused:
        closed.acquire("k")
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1.0
    assert not closed.peek("k").allowed
    closed.reset("k")
    closed.refund("k", 1)


def test_shadow_mode_allows_whatever_decides(store: Flaky) -> None:
    store.error = StoreError("down")
    decision = limiter_of(store, on_store_error="closed", enforce=False).hit("k")
    assert decision.allowed
    assert decision.degraded


def test_a_dead_store_costs_a_few_attempts_and_not_one_for_each_call(store: Flaky, clock: ManualClock) -> None:
    limiter = limiter_of(store)
    store.error = StoreError("down")
    for _ in range(200):
        limiter.hit("k")
    assert store.asked == 3
    clock.advance(30.0)
    for _ in range(200):
        limiter.hit("k")
    assert store.asked == 4


def test_an_outage_is_told_once_and_so_is_its_end(store: Flaky, clock: ManualClock, heard: RecordingListener) -> None:
    limiter = limiter_of(store, heard)
    for _ in range(2):
        heard.clear()
        assert not limiter.hit("k").degraded
        store.error = StoreError("down")
        for _ in range(5):
            limiter.hit("k")
        assert [event.reason for event in heard.of(StoreFailed)] == ["StoreError"]
        assert [event.degraded for event in heard.of(LimitDecided)] == [False] + [True] * 5
        clock.advance(40.0)
        store.error = None
        assert not limiter.hit("k").degraded
        limiter.hit("k")
        assert [(event.store, event.outage) for event in heard.of(StoreRecovered)] == [("Flaky", 40.0)]
        assert len(heard.of(StoreFailed)) == 1
        assert {event.name for event in heard} == {"search"}


def test_a_long_outage_is_one_record_and_its_end_another(store: Flaky, clock: ManualClock) -> None:
    written = io.StringIO()
    limiter = limiter_of(store)
    with configure_logging(service="s", env="production", stream=written), subscribe(heard := RecordingListener()):
        store.error = StoreError("down")
        for _ in range(200):
            limiter.peek("k")
            clock.advance(1.0)
        store.error = None
        limiter.peek("k")
        clock.advance(30.0)
        limiter.peek("k")
    messages = [json.loads(line)["message"] for line in written.getvalue().splitlines()]
    assert messages == ["store failed", "store recovered"]
    assert {change.within for change in heard.of(CircuitChanged)} == {"store"}


@pytest.mark.anyio
async def test_what_began_before_the_outage_does_not_end_it(
    store: Flaky, clock: ManualClock, heard: RecordingListener
) -> None:
    limiter = limiter_of(store, heard, store_timeout=100.0)
    store.takes = 5.0
    early = asyncio.create_task(limiter.ahit("k"))
    await clock.await_for_sleepers(1)
    clock.advance(1.0)
    store.takes = 0.0
    store.error = StoreError("down")
    await limiter.ahit("k")
    store.error = None
    clock.advance(4.0)
    assert not (await early).degraded
    assert len(heard.of(StoreFailed)) == 1
    assert heard.of(StoreRecovered) == []
    await limiter.ahit("k")
    assert len(heard.of(StoreRecovered)) == 1


@pytest.mark.parametrize("on_store_error", ["local", "open", "closed"])
def test_wrong_use_is_wrong_whatever_the_state_of_the_store(on_store_error: Any, store: Flaky) -> None:
    limiter = limiter_of(store, on_store_error=on_store_error)
    store.error = StoreError("down")
    for args in [("",), (None,), ("k", 3), ("k", 0), ("k", float("nan"))]:
        with pytest.raises(ConfigurationError):
            limiter.hit(*args)
    store.error = ConfigurationError("the store has no schema")
    with pytest.raises(ConfigurationError, match="schema"):
        limiter.hit("k")


def test_an_interrupt_passes_and_blames_nobody(store: Flaky, heard: RecordingListener) -> None:
    limiter = limiter_of(store, heard)
    store.error = KeyboardInterrupt()
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            limiter.hit("k")
    store.error = None
    assert not limiter.hit("k").degraded
    assert heard.of(StoreFailed) == []


@pytest.mark.anyio
async def test_a_cancelled_task_blames_nobody(store: Flaky, clock: ManualClock, heard: RecordingListener) -> None:
    limiter = limiter_of(store, heard, store_timeout=100.0)
    store.takes = 50.0
    for _ in range(5):
        task = asyncio.create_task(limiter.ahit("k"))
        await clock.await_for_sleepers(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    store.takes = 0.0
    assert not (await limiter.ahit("k")).degraded
    assert heard.of(StoreFailed) == []


def test_what_waits_is_admitted_by_the_stand_in_and_given_back_to_it(store: Flaky, clock: ManualClock) -> None:
    class Interrupting(ManualClock):
        def sleep(self, seconds: float, /) -> None:
            store.error = None
            clock.advance(60.0)
            raise KeyboardInterrupt

    limiter = RateLimiter("1/s", store=store, clock=Interrupting())
    store.error = StoreError("down")
    limiter.acquire("k")
    with pytest.raises(KeyboardInterrupt):
        limiter.acquire("k")
    # The store has recovered meanwhile and must not get back what it never gave.
    assert store.asked == 2
    store.error = StoreError("down")
    assert limiter.peek("k").retry_after == 1.0


def test_a_reset_reaches_what_the_stand_in_counted(store: Flaky, clock: ManualClock) -> None:
    limiter = limiter_of(store)
    store.error = StoreError("down")
    limiter.hit("k", 2)
    store.error = None
    limiter.reset("k")
    store.error = StoreError("down")
    assert limiter.hit("k", 2).allowed


def test_a_thread_s_store_finds_its_time_as_the_deadline(store: Flaky) -> None:
    limiter_of(store).hit("k")
    limiter_of(store, store_timeout=0.2).hit("k")
    with deadline(0.1, clock=store.clock):
        limiter_of(store, store_timeout=0.2).hit("k")
    assert store.budgets == pytest.approx([0.05, 0.2, 0.1])


def test_a_store_that_answers_late_is_believed_and_soon_not_asked(store: Flaky, heard: RecordingListener) -> None:
    limiter = limiter_of(store, heard)
    store.takes = 0.06
    decisions = [limiter.hit(key) for key in "abcdef"]
    assert [decision.degraded for decision in decisions] == [False, False, False, True, True, True]
    assert store.asked == 3
    assert [event.reason for event in heard.of(StoreFailed)] == ["answered after more than 0.05 s"]


@pytest.mark.anyio
async def test_a_late_store_is_told_of_once_and_its_time_binds_nobody_afterwards(store: Flaky) -> None:
    overrun = RecordingListener()
    limiter = limiter_of(store)
    store.takes = 0.06
    with subscribe(overrun, DeadlineOverrun), deadline(9.0, clock=store.clock):
        limiter.hit("a")
        store.error = StoreError("down", store="Flaky")
        limiter.hit("a")
        assert remaining() == pytest.approx(9.0 - 0.12)
        store.takes = 0.0
        store.keeps_time = True
        await limiter_of(store).ahit("a")
        assert remaining() == pytest.approx(9.0 - 0.12)
    assert store.budgets == pytest.approx([0.05] * 3)
    assert remaining() is None
    assert not overrun.events


@pytest.mark.anyio
async def test_a_task_is_cut_from_a_stalled_store() -> None:
    class Stalled(MemoryStore):
        async def aapply(self, *args: Any) -> Any:
            await asyncio.Event().wait()

    limiter = RateLimiter("2/s", store=Stalled(), store_timeout=0.001)
    assert [(await limiter.ahit("k")).degraded for _ in range(9)] == [True] * 9


@pytest.mark.anyio
async def test_the_caller_s_own_deadline_is_not_the_store_s_fault(
    store: Flaky, clock: ManualClock, heard: RecordingListener
) -> None:
    limiter = limiter_of(store, heard, store_timeout=10.0)
    store.takes = 5.0

    async def hurried() -> None:
        async with deadline(1.0, clock=clock):
            await limiter.ahit("k")

    for _ in range(5):
        task = asyncio.create_task(hurried())
        await clock.await_for_sleepers(3)  # the store, and who watches the two deadlines
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            await task
    store.takes = 0.0
    assert not (await limiter.ahit("k")).degraded
    assert heard.of(StoreFailed) == []


def test_a_thread_s_own_deadline_is_not_the_store_s_fault(
    store: Flaky, clock: ManualClock, heard: RecordingListener
) -> None:
    limiter = limiter_of(store, heard)
    store.error = StoreError("no answer in time")
    store.takes = 0.02
    for _ in range(5):
        with deadline(0.02, clock=clock):
            assert limiter.hit("k").degraded
    store.error = None
    store.takes = 0.0
    assert not limiter.hit("k").degraded
    assert heard.of(StoreFailed) == []


def test_many_threads_tell_one_outage(store: Flaky, heard: RecordingListener) -> None:
    limiter = limiter_of(store, heard)
    store.error = StoreError("down")
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for _ in range(50):
            limiter.hit("k")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard.of(StoreFailed)) == 1
    assert store.asked <= 3 + 8


def test_a_plain_memory_store_is_asked_without_a_guard(clock: ManualClock) -> None:
    limiter = RateLimiter("2/s", store=MemoryStore(clock=clock), clock=clock)
    assert limiter._guard is None
    assert not limiter.hit("k").degraded


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"on_store_error": "maybe"}, "on_store_error"),
        ({"on_store_error": None}, "on_store_error"),
        ({"store_timeout": 0}, "store_timeout"),
        ({"store_timeout": "1"}, "store_timeout"),
        ({"store": "redis://localhost"}, "store"),
        ({"store": MemoryStore}, "store"),
        ({"store": object()}, "store"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RateLimiter("1/s", **settings)
