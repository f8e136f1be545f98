"""The rate limiter: what a key may do, how long it waits, and that nothing is spent for nothing."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import re
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from garbage import CollectingKey, abandon, held_elsewhere, in_time
from hypothesis import given
from hypothesis import strategies as st
from interloper import Interloper

from reliakit import (
    ConfigurationError,
    DeadlineExceededError,
    Metrics,
    RateLimitedError,
    StoreError,
    deadline,
    subscribe,
)
from reliakit.core.events import LimitDecided, LimitDenied
from reliakit.ratelimit import Decision, Limit, LimiterStats, RateLimiter
from reliakit.stores import Answer, MemoryStore, Op, PostgresStore, RedisStore
from reliakit.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("10/s", Limit(10, per=1)),
        ("10/sec", Limit(10, per=1)),
        ("10 / second", Limit(10, per=1)),
        ("600/min burst 100", Limit(600, per=60, burst=100)),
        ("7/m", Limit(7, per=60)),
        ("3 per hour", Limit(3, per=3600)),
        ("3/H", Limit(3, per=3600)),
        ("1/d", Limit(1, per=86400)),
        ("2/day", Limit(2, per=86400)),
        ("5 per 30s", Limit(5, per=30)),
        ("5 per 0.5 s BURST 2", Limit(5, per=0.5, burst=2)),
        (" 5 per 2 minutes ", Limit(5, per=120)),
    ],
)
def test_a_text_says_what_it_reads_like(text: str, limit: Limit) -> None:
    assert Limit.parse(text) == limit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "s",
        "10/",
        "/s",
        "-1/s",
        "1.5/s",
        "10/fortnight",
        "10/s burst",
        "10/s burst x",
        "0/s",
        "10 s",
        "9" * 5000 + "/s",
        "1 per " + "9" * 400 + "s",
        "1/s burst " + "9" * 5000,
        None,
        7,
    ],
)
def test_a_text_that_is_no_limit_is_refused(text: Any) -> None:
    with pytest.raises(ConfigurationError):
        Limit.parse(text)


@given(
    st.builds(
        Limit,
        st.integers(1, 1000),
        per=st.sampled_from([1.0, 60.0, 3600.0, 86400.0, 30.0, 0.5]),
        burst=st.none() | st.integers(1, 50),
    )
)
def test_a_limit_shown_can_be_read_again(limit: Limit) -> None:
    assert Limit.parse(str(limit)).rule == limit.rule


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": 2.5}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": 1, "per": 0}, "per"),
        ({"amount": 1, "per": float("nan")}, "per"),
        ({"amount": 1, "per": 1e-10}, "per"),
        ({"amount": 1, "per": 1e300}, "per"),
        ({"amount": 10**15}, "amount"),
        ({"amount": 1, "burst": 10**400}, "burst"),
        ({"amount": 1, "burst": 0}, "burst"),
        ({"amount": 1, "algorithm": "leaky"}, "algorithm"),
        ({"amount": 5, "burst": 3, "algorithm": "sliding_log"}, "burst"),
    ],
)
def test_a_wrong_limit_is_refused_by_its_argument(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Limit(**arguments)


def test_without_a_burst_the_burst_is_the_limit(clock: ManualClock) -> None:
    limiter = RateLimiter("3/s", clock=clock)
    assert [limiter.hit("k").allowed for _ in range(4)] == [True, True, True, False]
    assert [RateLimiter("600/min burst 2", clock=clock).hit("k").allowed for _ in range(1)] == [True]


def test_a_decision_tells_what_is_left_and_when_to_come_back(clock: ManualClock) -> None:
    limiter = RateLimiter("2/s", clock=clock)
    assert limiter.hit("k") == Decision(True, 2, 1, 0.0, 0.5, False, Limit(2))
    assert limiter.hit("k") == Decision(True, 2, 0, 0.0, 1.0, False, Limit(2))
    denied = limiter.hit("k")
    assert denied == Decision(False, 2, 0, 0.5, 1.0, False, Limit(2))
    assert not denied
    assert limiter.peek("other")
    clock.advance(denied.retry_after)
    assert limiter.hit("k")


def test_a_period_that_the_limit_does_not_divide_is_exact(clock: ManualClock) -> None:
    limiter = RateLimiter("7/s burst 1", clock=clock)
    times = []
    for _ in range(71):
        decision = limiter.hit("k")
        while not decision:
            clock.advance(decision.retry_after)
            decision = limiter.hit("k")
        times.append(clock.monotonic())
    assert times[-1] - times[0] == pytest.approx(10.0, abs=1e-6)


def test_several_limits_are_all_or_nothing(clock: ManualClock) -> None:
    limiter = RateLimiter("20/min", "5/s", clock=clock)
    assert sum(limiter.hit("k").allowed for _ in range(100)) == 5
    assert limiter.peek("k").limit == 5
    clock.advance(1.0)
    assert limiter.peek("k").remaining == 5
    assert limiter.hit("k", cost=5).remaining == 0
    for _ in range(3):
        clock.advance(1.0)
        limiter.hit("k", cost=3)
    assert limiter.hit("k", 5).limit == 20


def test_a_cost_is_spent_at_once_or_not_at_all(clock: ManualClock) -> None:
    limiter = RateLimiter("10/s", clock=clock)
    assert limiter.hit("k", cost=7).remaining == 3
    assert not limiter.hit("k", cost=4)
    assert limiter.peek("k").remaining == 3


@pytest.mark.parametrize("cost", [0, -1, 11, 10**400, 1.0, 2.5, float("nan"), True, None, "1"])
def test_a_cost_that_is_none_is_refused_at_the_call(cost: Any, clock: ManualClock) -> None:
    limiter = RateLimiter("10/s", "100/min burst 50", clock=clock)
    for method in (limiter.hit, limiter.refund, limiter.acquire):
        with pytest.raises(ConfigurationError, match="cost"):
            method("k", cost)
    assert limiter.peek("k").remaining == 10


@pytest.mark.parametrize("key", ["", None, 7, b"k"])
def test_a_key_that_is_none_is_refused_at_the_call(key: Any, clock: ManualClock) -> None:
    limiter = RateLimiter("10/s", clock=clock)
    for method in (limiter.hit, limiter.peek, limiter.reset, limiter.refund, limiter.acquire):
        with pytest.raises(ConfigurationError, match="key"):
            method(key)


@pytest.mark.anyio
@pytest.mark.parametrize("key", ["", None, 7])
async def test_the_twins_refuse_the_same(key: Any, clock: ManualClock) -> None:
    limiter = RateLimiter("10/s", clock=clock)
    for method in (limiter.ahit, limiter.apeek, limiter.areset, limiter.arefund, limiter.aacquire):
        with pytest.raises(ConfigurationError, match="key"):
            await method(key)
    for spending in (limiter.ahit, limiter.arefund, limiter.aacquire):
        with pytest.raises(ConfigurationError, match="cost"):
            await spending("k", 11)


def test_peek_shows_what_is_left_before_spending(clock: ManualClock) -> None:
    limiter = RateLimiter("2/s", clock=clock)
    for _ in range(3):
        assert limiter.peek("k")[:4] == (True, 2, 2, 0.0)
    limiter.hit("k", 2)
    assert limiter.peek("k")[:4] == (False, 2, 0, 0.5)


def test_reset_forgets_and_refund_gives_back(clock: ManualClock) -> None:
    limiter = RateLimiter("5/s", clock=clock)
    limiter.hit("k", 5)
    limiter.refund("k", 2)
    assert limiter.peek("k").remaining == 2
    limiter.reset("k")
    assert limiter.peek("k").remaining == 5
    limiter.refund("k", 5)
    assert limiter.peek("k").remaining == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hit", "hit", "hit", "peek", "refund", "reset"]),
            st.sampled_from("ab"),
            st.integers(1, 3),
            st.sampled_from([0.0, 0.1, 0.25, 1.0, 30.0]),
        ),
        max_size=40,
    ),
    st.sampled_from(["gcra", "sliding_log", "sliding_counter", "fixed_window"]),
)
def test_threads_and_tasks_get_the_same_answers(history: list[tuple[str, str, int, float]], algorithm: Any) -> None:
    def limiter_on(clock: ManualClock) -> RateLimiter:
        return RateLimiter(Limit(4, per=2, algorithm=algorithm), "9/min", clock=clock)

    def play(clock: ManualClock) -> list[Any]:
        limiter, log = limiter_on(clock), []
        for method, key, cost, pause in history:
            arguments = (key, cost) if method in ("hit", "refund") else (key,)
            log.append(getattr(limiter, method)(*arguments))
            clock.advance(pause)
        return log

    async def aplay(clock: ManualClock) -> list[Any]:
        limiter, log = limiter_on(clock), []
        for method, key, cost, pause in history:
            arguments = (key, cost) if method in ("hit", "refund") else (key,)
            log.append(await getattr(limiter, f"a{method}")(*arguments))
            clock.advance(pause)
        return log

    assert play(ManualClock()) == asyncio.run(aplay(ManualClock()))


EVERY_WAY = [
    ("500/h",),  # a limit that divides its period, and one that does not
    ("499/h",),
    ("500/h", "700/h"),
    (Limit(500, 3600, algorithm="sliding_counter"),),
]


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("limits", EVERY_WAY)
def test_eight_threads_get_exactly_the_limit(limits: tuple[Any, ...], clock: ManualClock) -> None:
    limiter = RateLimiter(*limits, clock=clock)
    allowed: list[bool] = []

    def work() -> None:
        allowed.extend([limiter.hit("k").allowed for _ in range(150)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(allowed), sum(allowed)) == (1200, limiter.limits[0].amount)
    stats = limiter.stats()
    assert (stats.admitted, stats.denied) == (sum(allowed), 1200 - sum(allowed))


class Meanwhile(ManualClock):
    """A clock that lets something happen while it is read: what another thread may do, or garbage."""

    happens: Callable[[], object] | None = None

    def monotonic(self) -> float:
        happens, self.happens = self.happens, None
        if happens is not None:
            happens()
        return super().monotonic()


@pytest.mark.parametrize("limits", EVERY_WAY)
@pytest.mark.parametrize(
    ("method", "arguments", "left"), [("hit", ("k",), 2), ("refund", ("k", 1), 0), ("reset", ("k",), -1)]
)
def test_what_happens_in_the_midst_of_a_hit_is_not_lost(
    limits: tuple[Any, ...], method: str, arguments: tuple[Any, ...], left: int
) -> None:
    clock = Meanwhile()
    limiter = RateLimiter(*limits, clock=clock)
    before = limiter.hit("k", 10).remaining
    clock.happens = lambda: getattr(limiter, method)(*arguments)
    decision = limiter.hit("k")
    expected = before - left if left >= 0 else before + 9
    assert decision.remaining == limiter.peek("k").remaining == expected


@pytest.mark.parametrize("limits", EVERY_WAY)
def test_an_interrupted_hit_spends_once_or_not_at_all_and_leaves_nothing_locked(
    limits: tuple[Any, ...], clock: ManualClock
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    for at in itertools.count():
        limiter = RateLimiter(*limits, clock=clock)
        limiter.hit("k")
        before = limiter.hit("k")
        try:
            Interloper(interrupt, at).during(lambda limiter=limiter: limiter.hit("k"))
        except KeyboardInterrupt:
            spent = before.remaining - in_time(lambda limiter=limiter: limiter.hit("k")).remaining
            assert spent in {1, 2}, at
            assert limiter.stats().admitted in {3, spent + 2}, at
        else:
            break
    assert at > 4


@pytest.mark.parametrize("limits", EVERY_WAY)
def test_a_known_key_waits_for_nobody(limits: tuple[Any, ...], clock: ManualClock) -> None:
    store = MemoryStore()
    limiter = RateLimiter(*limits, store=store, clock=clock)
    limiter.hit("k")
    let_go = held_elsewhere(store._lock)
    try:
        while in_time(lambda: limiter.hit("k")):
            pass
        assert not in_time(lambda: limiter.hit("k", 2))
    finally:
        let_go()


def test_shadow_mode_allows_everybody_counts_and_tells(clock: ManualClock) -> None:
    heard: list[LimitDecided] = []
    limiter = RateLimiter("2/s", enforce=False, clock=clock, listeners=[heard.append])
    decisions = [limiter.hit("k") for _ in range(3)]
    assert [(decision.allowed, decision.remaining, decision.retry_after) for decision in decisions] == [
        (True, 1, 0.0),
        (True, 0, 0.0),
        (True, 0, 0.0),
    ]
    assert [(event.allowed, event.denied, event.enforced) for event in heard] == [
        (True, False, False),
        (True, False, False),
        (True, True, False),
    ]
    assert limiter.acquire("k").allowed
    assert clock.monotonic() == 1000.0
    assert limiter.peek("k").allowed


def test_decisions_are_told_from_the_moment_that_somebody_listens(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", name="search", clock=clock)
    heard: list[LimitDecided] = []
    limiter.hit("k")
    with subscribe(heard.append, LimitDecided):
        limiter.hit("k")
        limiter.peek("k")
    limiter.hit("k")
    (event,) = heard
    assert (event.name, event.key, event.allowed, event.denied, event.cost) == ("search", "k", False, True, 1)
    assert (event.retry_after, event.degraded, event.enforced) == (1.0, False, True)
    clock.advance(1.0)
    with subscribe(heard.append, LimitDecided):
        assert limiter.hit("k")
    assert (heard[-1].allowed, heard[-1].denied, heard[-1].retry_after) == (True, False, 0.0)


def test_acquire_waits_its_turn() -> None:
    clock = ManualClock(auto_advance=True)
    limiter = RateLimiter("2/s burst 1", clock=clock)
    times = []
    for _ in range(4):
        assert limiter.acquire("k").allowed
        times.append(clock.monotonic())
    assert times == [0.0, 0.5, 1.0, 1.5]
    assert limiter._waiting._lines == {}  # who has been served is remembered nowhere


def test_acquire_that_would_take_too_long_says_so_at_once(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", name="mail", clock=clock)
    limiter.acquire("k")
    with pytest.raises(RateLimitedError) as refused:
        limiter.acquire("k", timeout=0.5)
    assert (refused.value.name, refused.value.retry_after) == ("mail", 1.0)
    assert isinstance(refused.value.decision, Decision)
    with pytest.raises(RateLimitedError):
        limiter.acquire("k", timeout=0)
    # What was refused has taken no slot.
    assert limiter.peek("k").retry_after == 1.0


def test_a_wait_that_the_deadline_forbids_is_not_begun(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", clock=clock)
    limiter.acquire("k")
    with deadline(0.5, clock=clock), pytest.raises(RateLimitedError):
        limiter.acquire("k", timeout=10)
    with deadline(0.0, clock=clock), pytest.raises(DeadlineExceededError):
        limiter.acquire("other")


def test_a_timeout_may_be_longer_than_anybody_waits(clock: ManualClock) -> None:
    assert RateLimiter("1/s", clock=clock).acquire("k", timeout=1e300)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_a_timeout_that_is_none_is_refused(timeout: Any, clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        RateLimiter("1/s", clock=clock).acquire("k", timeout=timeout)


@pytest.mark.anyio
async def test_who_comes_first_is_served_first_whatever_it_costs() -> None:
    clock = ManualClock()
    limiter = RateLimiter("10/s", clock=clock)
    limiter.hit("k", 10)
    served: list[tuple[int, float]] = []

    async def wait(number: int, cost: int) -> None:
        await limiter.aacquire("k", cost)
        served.append((number, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for number, cost in enumerate([1, 10, 1, 1, 5]):
            group.create_task(wait(number, cost))
        await clock.await_for_sleepers(5)
        assert not limiter.hit("k")  # nor does a hit overtake
        for _ in range(20):
            clock.advance(0.1)
            await clock.asleep(0)
            await clock.asleep(0)
            await clock.asleep(0)
    assert served == [(0, 0.1), (1, 1.1), (2, 1.2), (3, 1.3), (4, 1.8)]


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ["gcra", "sliding_log", "sliding_counter", "fixed_window"])
async def test_a_cancelled_waiter_gives_its_slot_back(algorithm: Any) -> None:
    clock = ManualClock()
    limiter = RateLimiter(Limit(1, per=10, algorithm=algorithm), clock=clock)
    await limiter.aacquire("k")
    before = limiter.peek("k").retry_after
    waiters = [asyncio.create_task(limiter.aacquire("k")) for _ in range(3)]
    await clock.await_for_sleepers(3)
    assert limiter.peek("k").retry_after > before
    for waiter in reversed(waiters):
        waiter.cancel()
    for waiter in waiters:
        with pytest.raises(asyncio.CancelledError):
            await waiter
    assert limiter.peek("k").retry_after == before
    assert limiter._waiting._lines == {}


@pytest.mark.anyio
async def test_a_slot_with_others_behind_it_is_given_back_once_they_are_gone_too() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/s", clock=clock)
    await limiter.aacquire("k")
    first, second = (asyncio.create_task(limiter.aacquire("k")) for _ in range(2))
    await clock.await_for_sleepers(2)
    first.cancel()
    await asyncio.wait([first])
    assert limiter.peek("k").retry_after == 3.0
    second.cancel()
    await asyncio.wait([second])
    assert limiter.peek("k").retry_after == 1.0


@pytest.mark.anyio
async def test_a_slot_with_others_behind_it_goes_to_the_next_one_to_come() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/s", clock=clock)
    await limiter.aacquire("k")
    waiters = [asyncio.create_task(limiter.aacquire("k")) for _ in range(3)]
    await clock.await_for_sleepers(3)
    waiters[1].cancel()
    await asyncio.wait([waiters[1]])
    with pytest.raises(RateLimitedError) as refused:
        limiter.acquire("k", timeout=1.5)
    assert refused.value.retry_after == refused.value.decision.retry_after == 2.0
    late = asyncio.create_task(limiter.aacquire("k", timeout=2.0))
    await clock.await_for_sleepers(3)
    with pytest.raises(RateLimitedError) as refused:
        limiter.acquire("k", timeout=2.0)
    assert refused.value.retry_after == 4.0
    clock.advance(2.0)
    decision = await late
    assert (decision.allowed, decision.remaining, decision.retry_after) == (True, 0, 0.0)
    clock.advance(1.0)
    await asyncio.gather(waiters[0], waiters[2])
    assert limiter._waiting._lines == {}
    assert limiter.peek("k").retry_after == 1.0


@pytest.mark.anyio
async def test_a_slot_is_taken_in_parts_and_never_by_who_costs_more() -> None:
    clock = ManualClock()
    limiter = RateLimiter("10/s burst 4", clock=clock)
    await limiter.aacquire("k", 4)
    first = asyncio.create_task(limiter.aacquire("k", 3))
    await clock.await_for_sleepers(1)
    second = asyncio.create_task(limiter.aacquire("k", 1))
    await clock.await_for_sleepers(2)
    first.cancel()
    await asyncio.wait([first])
    with pytest.raises(RateLimitedError) as refused:
        await limiter.aacquire("k", 4, timeout=0)
    assert refused.value.retry_after == 0.8
    parts = [asyncio.create_task(limiter.aacquire("k", cost, timeout=0.3)) for cost in (2, 1)]
    await clock.await_for_sleepers(3)
    with pytest.raises(RateLimitedError) as refused:
        await limiter.aacquire("k", 1, timeout=0.3)
    assert refused.value.retry_after == 0.5
    clock.advance(0.4)
    await asyncio.gather(second, *parts)
    assert limiter._waiting._lines == {}


@pytest.mark.anyio
async def test_a_slot_that_was_taken_over_and_left_again_is_given_back() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/s", clock=clock)
    await limiter.aacquire("k")
    first, second = (asyncio.create_task(limiter.aacquire("k")) for _ in range(2))
    await clock.await_for_sleepers(2)
    first.cancel()
    await asyncio.wait([first])
    heir = asyncio.create_task(limiter.aacquire("k", timeout=1.0))
    await clock.await_for_sleepers(2)
    for task in (heir, second):
        task.cancel()
        await asyncio.wait([task])
    assert limiter.peek("k").retry_after == 1.0
    assert limiter._waiting._lines == {}


@pytest.fixture
def garbage_waits() -> Generator[None, None, None]:
    """Collect garbage when a test says so and never by itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("garbage_waits")
def test_garbage_that_waits_is_collected_inside_another_wait() -> None:
    class Endless:
        def __await__(self) -> Generator[None, None, None]:
            while True:
                yield

    class Suspending(ManualClock):
        async def asleep(self, seconds: float, /) -> None:
            await Endless()

    clock = Suspending(auto_advance=True)
    limiter = RateLimiter("1/s", clock=clock)
    limiter.hit("k")

    def waiter() -> Generator[None, None, None]:
        yield from limiter.aacquire("k").__await__()

    abandon(waiter)
    assert limiter.peek("k").retry_after == 2.0
    assert in_time(lambda: limiter.acquire(CollectingKey("k"))).allowed
    assert limiter._waiting._lines == {}
    # Its slot was given back before the other one asked, or stayed vacant: nobody waited longer for it.
    assert clock.monotonic() <= 2.0
    assert limiter.peek("k").retry_after == 1.0


@pytest.mark.anyio
async def test_a_cancelled_slot_is_not_given_back_after_its_time() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/s", clock=clock)
    await limiter.aacquire("k")
    first, second, third = (asyncio.create_task(limiter.aacquire("k")) for _ in range(3))
    await clock.await_for_sleepers(3)
    first.cancel()
    clock.advance(2.0)
    await second
    third.cancel()
    await asyncio.wait([first, third])
    # The slot of the second was used at 2 s, so the next is at 3 s.
    assert limiter.peek("k").retry_after == 1.0


def test_an_interrupted_thread_gives_its_slot_back() -> None:
    class Interrupting(ManualClock):
        def sleep(self, seconds: float, /) -> None:
            raise KeyboardInterrupt

    limiter = RateLimiter("1/s", clock=Interrupting())
    limiter.acquire("k")
    with pytest.raises(KeyboardInterrupt):
        limiter.acquire("k")
    assert limiter.peek("k").retry_after == 1.0


def test_threads_and_tasks_queue_together(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", clock=clock)
    limiter.hit("k")
    times: list[float] = []

    def work() -> None:
        limiter.acquire("k")
        times.append(clock.monotonic())

    async def work_async() -> None:
        await limiter.aacquire("k")
        times.append(clock.monotonic())

    async def tasks() -> None:
        await asyncio.gather(*(work_async() for _ in range(4)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
    for thread in threads:
        thread.start()
    for left in range(8, 0, -1):
        clock.wait_for_sleepers(left)
        clock.advance(1.0)
        while clock.sleepers > left - 1 or len(times) < 9 - left:
            pass
    for thread in threads:
        thread.join()
    assert times == [1000.0 + second for second in range(1, 9)]


def test_a_decorated_function_spends_by_its_arguments(clock: ManualClock) -> None:
    limiter = RateLimiter("2/s", name="search", clock=clock)

    @limiter.limit(key=lambda user, **_: f"user:{user}", cost=lambda user, **options: options.get("cost", 1))
    def search(user: int, **options: int) -> int:
        return user

    assert search(7) == 7
    assert search(8, cost=2) == 8
    assert search(7) == 7
    for user in (7, 8):
        with pytest.raises(RateLimitedError, match="'search'") as refused:
            search(user)
        assert refused.value.retry_after == 0.5
        assert str(user) not in str(refused.value)


@pytest.mark.anyio
async def test_every_colour_that_can_be_limited_is(clock: ManualClock) -> None:
    limiter = RateLimiter("1/h", clock=clock)
    ran: list[str] = []

    def limit(name: str) -> Callable[[Any], Any]:
        return limiter.limit(key=lambda *_: name)

    class Service:
        @limit("method")
        def method(self) -> None:
            ran.append("method")

        @limit("static")
        @staticmethod
        def static() -> None:
            ran.append("static")

    @limit("async")
    async def coroutine() -> None:
        ran.append("async")

    @limit("generator")
    def generator() -> Generator[int, None, str]:
        ran.append("generator")
        yield 1
        return "done"

    assert asyncio.iscoroutinefunction(coroutine)
    for _ in range(2):
        for call in (Service().method, Service.static, lambda: list(generator())):
            try:
                call()
            except RateLimitedError:
                ran.append("refused")
        try:
            await coroutine()
        except RateLimitedError:
            ran.append("refused")
    assert ran == ["method", "static", "generator", "async"] + ["refused"] * 4


def test_what_cannot_be_limited_is_refused_at_decoration(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", name="search", clock=clock)

    async def rows() -> AsyncGenerator[int, None]:
        yield 1

    async def key() -> str:
        return "k"

    for wrong in (rows, int, 7):
        with pytest.raises(ConfigurationError, match="search"):
            limiter.limit(key=lambda: "k")(wrong)  # type: ignore[type-var]  # what is tested
    with pytest.raises(ConfigurationError, match="key"):
        limiter.limit(key=key)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="key"):
        limiter.limit(key="k")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="cost"):
        limiter.limit(key=lambda: "k", cost=2)


def test_the_limiter_s_clock_drives_a_memory_store_that_has_none(clock: ManualClock) -> None:
    limiter = RateLimiter("1/s", store=MemoryStore(max_keys=10), clock=clock)
    assert [limiter.hit("k").allowed for _ in range(2)] == [True, False]
    clock.advance(1.0)
    assert limiter.hit("k").allowed


def test_limiters_share_a_store_by_name_and_rules(clock: ManualClock) -> None:
    store = MemoryStore(clock=clock)
    first = RateLimiter("1/s", name="a", store=store, clock=clock)
    same = RateLimiter("1/s", name="a", store=store, clock=clock)
    other = RateLimiter("1/s", name="b", store=store, clock=clock)
    changed = RateLimiter(Limit(1, algorithm="sliding_log"), name="a", store=store, clock=clock)
    assert first.hit("k")
    assert not same.hit("k")
    assert other.hit("k")
    assert changed.hit("k")


@pytest.mark.parametrize(
    ("limits", "settings", "named"),
    [
        ((), {}, "limit"),
        (("x",), {}, "limit"),
        (("1/s",), {"name": ""}, "name"),
        (("1/s",), {"listeners": [7]}, "listener"),
        (("1/s",), {"enforce": "no"}, "enforce"),
        (("1/s",), {"breach_limit": "x"}, "breach_limit"),
        (("1/s",), {"breach_limit": "0/h"}, "breach_limit"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(
    limits: tuple[str, ...], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        RateLimiter(*limits, **settings)


def test_it_shows_its_settings() -> None:
    limiter = RateLimiter(
        "10/s", "600/min burst 100", Limit(5, per=30, algorithm="sliding_log"), name="s", enforce=False
    )
    assert repr(limiter) == (
        "<RateLimiter 's' 10/s, 600/min burst 100, 5 per 30s sliding_log, enforce=False, "
        "store=<MemoryStore 0 keys, max_keys=100000>, on_store_error='local', store_timeout=0.05>"
    )


def test_it_tells_what_it_has_decided_and_whom_it_denied_most(clock: ManualClock) -> None:
    limiter = RateLimiter("2/h", clock=clock)
    for times, key in ((5, "a"), (3, "b"), (1, "c")):
        for _ in range(times):
            limiter.hit(key)
    limiter.acquire("d", 2)
    with pytest.raises(RateLimitedError):
        limiter.acquire("d", timeout=1.0)
    for _ in range(2):
        assert limiter.stats() == LimiterStats(
            admitted=6,
            denied=5,
            shadow_denied=0,
            degraded=0,
            waiting=0,
            top_denied=(("a", 3), ("b", 1), ("d", 1)),
        )
    shadow = RateLimiter("1/h", enforce=False, clock=clock)
    assert all(shadow.hit("k") for _ in range(3))
    assert shadow.stats() == LimiterStats(1, 0, 2, 0, 0, (("k", 2),))


@pytest.mark.anyio
async def test_it_tells_how_many_wait_and_what_a_stand_in_decided() -> None:
    class Down(MemoryStore):
        def apply(self, *_: Any) -> Any:
            raise StoreError("gone")

    clock = ManualClock()
    limiter = RateLimiter("1/s", store=Down(), clock=clock)
    await limiter.ahit("k")
    assert limiter.stats() == LimiterStats(1, 0, 0, 1, 0, ())
    waiter = asyncio.create_task(limiter.aacquire("k"))
    await clock.await_for_sleepers(1)
    assert limiter.stats().waiting == 1
    waiter.cancel()
    await asyncio.wait([waiter])
    assert limiter.stats().waiting == 0


def test_a_flood_of_denied_keys_is_counted_whole_and_hides_no_heavy_one(clock: ManualClock) -> None:
    limiter = RateLimiter("1/h", store=MemoryStore(max_keys=1), clock=clock)
    limiter._apply = lambda *_: Answer(False, 0, 0, 1, 1)  # type: ignore[method-assign]  # every key is denied
    for number in range(3000):
        limiter.hit(f"key {number}")
        limiter.hit("heavy")
    stats = limiter.stats()
    assert stats.denied == 6000
    assert stats.top_denied[0][0] == "heavy"
    assert len(stats.top_denied) == 10
    assert len(limiter._tally._keys) <= 512


@pytest.mark.parametrize("keys", [2, 17, 34, 1000])
def test_keys_that_are_denied_in_turn_are_counted_alike(keys: int, clock: ManualClock) -> None:
    limiter = RateLimiter("1/h", clock=clock)
    limiter._apply = lambda *_: Answer(False, 0, 0, 1, 1)  # type: ignore[method-assign]  # every key is denied
    for number in range(20_000):
        limiter.hit("heavy" if number % 10 == 9 else f"key {number % keys}")
    counts = dict(limiter.stats().top_denied)
    assert 1400 < counts.pop("heavy") < 2800
    assert max(counts.values()) < 3 * 20_000 / keys + 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_who_waits_in_the_parent_does_not_wait_in_its_child() -> None:
    parent, waits, is_over = os.getpid(), threading.Event(), threading.Event()

    class Held(ManualClock):
        def sleep(self, seconds: float) -> None:
            if os.getpid() != parent:
                self.advance(seconds)
                return
            waits.set()
            is_over.wait()

    limiter = RateLimiter("1/s", max_waiters=1, clock=Held())
    limiter.hit("k")
    waiter = threading.Thread(target=limiter.acquire, args=("k",))
    waiter.start()
    waits.wait()
    child = os.fork()
    if not child:
        fine = limiter.stats().waiting == 0
        limiter.hit("other")
        try:
            fine = fine and limiter.acquire("other").allowed  # there is room to wait in
        except RateLimitedError:
            fine = False
        os._exit(0 if fine else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert limiter.stats().waiting == 1
    is_over.set()
    waiter.join()
    assert status == 0


def test_counts_of_many_threads_add_up(clock: ManualClock) -> None:
    limiter = RateLimiter("100/h", clock=clock)

    def work() -> None:
        for _ in range(100):
            limiter.hit("k")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = limiter.stats()
    assert (stats.admitted, stats.denied) == (100, 700)


@pytest.mark.parametrize("limits", [("3/s",), ("7/s",), ("3/s", "5/min"), (Limit(3, algorithm="sliding_log"),)])
def test_the_short_way_of_a_hit_decides_as_the_long_one(limits: tuple[Any, ...], clock: ManualClock) -> None:
    short, long = RateLimiter(*limits, clock=clock), RateLimiter(*limits, clock=clock)
    long._spend = lambda _: None
    for number in range(60):
        for _ in range(2):
            assert short.hit("k") == long.hit("k")
        assert short.hit(f"other {number}") == long.hit(f"other {number}")
        clock.advance([0.0, 0.05, 0.4, 3.0, 61.0, 500.0][number % 6])


class LooksLikeK:
    """No text, but equal to one."""

    def __eq__(self, other: object) -> bool:
        return other == "k"

    def __hash__(self) -> int:
        return hash("k")


@pytest.mark.parametrize("limit", ["3/h", "5/h", "7/h"])
@pytest.mark.parametrize("key", [[], {}, 7, b"k", None, "", LooksLikeK()])
def test_what_cannot_be_a_key_is_refused_on_the_short_way_too(key: Any, limit: str, clock: ManualClock) -> None:
    limiter = RateLimiter(limit, clock=clock)
    for _ in range(2):
        limiter.hit("k")
        with pytest.raises(ConfigurationError, match="key"):
            limiter.hit(key)
    assert limiter.stats().admitted == 2


@pytest.mark.anyio
@pytest.mark.parametrize("algorithm", ["gcra", "sliding_log", "sliding_counter", "fixed_window"])
async def test_whoever_waits_for_much_is_not_starved_by_those_who_want_little(algorithm: Any) -> None:
    clock = ManualClock()
    limiter = RateLimiter(Limit(10, algorithm=algorithm), clock=clock)
    limiter.hit("k", 10)
    heavy = asyncio.create_task(limiter.aacquire("k", 10))
    await clock.await_for_sleepers(1)
    light: list[asyncio.Task[Decision]] = []
    for _ in range(30):  # they keep coming, and each would fit long before
        light.append(asyncio.create_task(limiter.aacquire("k")))
        await clock.await_for_sleepers(1 + len(light))
        assert not limiter.hit("k")
    clock.advance(2.0)
    assert (await heavy).allowed
    for task in light:
        task.cancel()
    await asyncio.gather(*light, return_exceptions=True)


class Distant(MemoryStore):
    """One that decides at once, and whose answers take until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def aapply(self, *args: Any) -> Answer:
        answer = self.apply(*args)
        await self.may_answer.wait()
        return answer


@pytest.mark.anyio
@pytest.mark.parametrize("others", [0, 1])
async def test_who_is_cancelled_before_the_store_has_answered_gives_his_slot_back(others: int) -> None:
    clock, store = ManualClock(), Distant()
    limiter = RateLimiter("1/s", store=store, store_timeout=1.0, clock=clock)
    limiter.hit("k")
    first, *behind = [asyncio.create_task(limiter.aacquire("k")) for _ in range(1 + others)]
    while store.apply(Op.PEEK, limiter._plan, "k", 1).wait < (2 + others) * 10**9:
        await clock.asleep(0)
    first.cancel()
    await clock.asleep(0)
    store.may_answer.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    await clock.await_for_sleepers(others)
    next_one = asyncio.create_task(limiter.aacquire("k"))
    await clock.await_for_sleepers(1 + others)
    clock.advance(1.0)
    assert (await next_one).allowed
    assert limiter.stats().waiting == others  # whose instants have stayed
    clock.advance(float(others))
    assert all([(await one).allowed for one in behind])
    assert limiter._waiting._lines == {}


@pytest.mark.anyio
async def test_no_more_may_wait_than_have_room() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/s", max_waiters=2, clock=clock)
    await limiter.aacquire("k")
    waiters = [asyncio.create_task(limiter.aacquire(key)) for key in ("k", "k")]
    await clock.await_for_sleepers(2)
    assert limiter.stats().waiting == 2
    with pytest.raises(RateLimitedError) as refused:
        await limiter.aacquire("k")
    assert refused.value.retry_after == 3.0
    assert limiter.acquire("another").allowed  # who need not wait needs no room
    waiters[0].cancel()
    await asyncio.wait(waiters[:1])
    waiters.append(asyncio.create_task(limiter.aacquire("k")))
    await clock.await_for_sleepers(2)
    clock.advance(3.0)
    await asyncio.gather(*waiters[1:])
    assert limiter._waiting._inside == 0


@pytest.mark.anyio
async def test_tasks_that_ask_a_slow_store_at_once_do_not_all_get_to_wait() -> None:
    clock = ManualClock()

    class Slow(MemoryStore):
        async def aapply(self, *arguments: Any) -> Any:
            await clock.asleep(0.01)
            return self.apply(*arguments)

    limiter = RateLimiter("1/s", store=Slow(), store_timeout=1.0, max_waiters=3, clock=clock)
    tasks = [asyncio.create_task(limiter.aacquire("k")) for _ in range(10)]
    await clock.await_for_sleepers(10)
    clock.advance(0.01)
    await clock.asleep(0)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    while sum(task.done() for task in tasks) < 8:
        await clock.asleep(0)
    assert limiter.stats().waiting == 2  # one was admitted at once
    clock.advance(10.0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(outcome, RateLimitedError) for outcome in outcomes) == 7


def test_a_key_that_is_denied_too_often_is_denied_everything_for_a_while(clock: ManualClock) -> None:
    limiter = RateLimiter("2/s", breach_limit="3/min", clock=clock)
    decisions = [limiter.hit("k") for _ in range(5)]
    assert [decision.allowed for decision in decisions] == [True, True, False, False, False]
    assert [decision.retry_after for decision in decisions[2:]] == [0.5, 0.5, 20.0]
    clock.advance(10.0)
    denied = limiter.hit("k")
    assert (denied.allowed, denied.retry_after, denied.rule) == (False, 10.0, Limit(3, per=60))
    assert not limiter.peek("k")
    assert limiter.hit("other")
    with pytest.raises(RateLimitedError, match="3/min"):
        limiter.acquire("k", timeout=1.0)
    clock.advance(10.0)  # being turned away has not made it longer
    assert [limiter.hit("k").allowed for _ in range(3)] == [True, True, False]
    assert not limiter.hit("k")
    limiter.reset("k")
    assert limiter.hit("k")
    assert "breach_limit='3/min'" in repr(limiter)


@pytest.mark.anyio
async def test_the_twin_for_tasks_limits_breaches_too(clock: ManualClock) -> None:
    class Shared(MemoryStore):
        """One that is asked as shared stores are."""

    limiter = RateLimiter("2/s", breach_limit="3/min", store=Shared(), clock=clock)
    assert [(await limiter.ahit("k")).allowed for _ in range(5)] == [True, True, False, False, False]
    clock.advance(10.0)
    assert (await limiter.ahit("k")).retry_after == 10.0
    assert not await limiter.apeek("k")
    await limiter.areset("k")
    await limiter.ahit("k")
    await limiter.arefund("k")
    assert (await limiter.apeek("k")).remaining == 2


def test_limits_on_denials_that_differ_by_little_are_kept_apart(clock: ManualClock) -> None:
    store = MemoryStore(clock=clock)
    for per in (1_000_000.0, 1_000_001.0):
        limiter = RateLimiter("1/h", breach_limit=Limit(1, per=per), store=store, clock=clock)
        assert [limiter.hit(f"{per}").allowed for _ in range(2)] == [True, False]
        assert limiter.hit(f"{per}").retry_after == per


@pytest.mark.parametrize(("setting", "wrong"), [("breach_limit", "x"), ("max_waiters", 0)])
def test_a_wrong_bound_is_refused(setting: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        RateLimiter("1/s", **{setting: wrong})


@pytest.mark.parametrize("kind", [RedisStore, PostgresStore])
def test_a_limit_that_a_shared_store_cannot_count_is_refused_at_once(kind: Any) -> None:
    store = kind("redis://localhost" if kind is RedisStore else "host=localhost")
    many = Limit(10_000_000, per=86_400, algorithm="sliding_counter")
    for settings in ((many, None), ("1/s", many)):
        with pytest.raises(ConfigurationError, match="shared store"):
            RateLimiter(settings[0], breach_limit=settings[1], store=store)


def test_keys_that_are_long_are_not_kept(clock: ManualClock) -> None:
    limiter = RateLimiter("2/min", clock=clock)
    keys = ["k" * 100_000 + end for end in "ab"]
    before = [sys.getrefcount(key) for key in keys]
    for key in keys:
        assert [limiter.hit(key).allowed for _ in range(3)] == [True, True, False]
        limiter.reset(key)
        assert limiter.acquire(key)
        limiter.refund(key)
        assert limiter.peek(key).remaining == 2
        assert limiter.hit(key)
    del key
    assert [sys.getrefcount(key) for key in keys] == before
    assert [(len(key) < 100, count) for key, count in limiter.stats().top_denied] == [(True, 1), (True, 1)]


def decisions(metrics: Metrics, name: str) -> dict[str, float]:
    text = metrics.render("text/plain").body.decode()
    found = re.findall(
        rf'rate_limit_(?:decisions|degraded)_total{{limiter="{name}"(?:,decision="(\w+)")?}} (\S+)', text
    )
    return {decision or "degraded": float(number) for decision, number in found}


def test_metrics_read_what_limiters_have_counted_and_cost_a_decision_nothing(clock: ManualClock) -> None:
    before = RateLimiter("2/h", name="before", clock=clock)
    before.hit("k")
    with Metrics() as metrics:
        later = RateLimiter("1/h", name="later", enforce=False, clock=clock)
        assert before._is_short
        for _ in range(3):
            before.hit("k")
            later.hit("k")
        assert decisions(metrics, "before") == {"allowed": 1, "limited": 2, "shadow": 0, "degraded": 0}
        assert decisions(metrics, "later") == {"allowed": 1, "limited": 0, "shadow": 2, "degraded": 0}
        twin = RateLimiter("5/h", name="before", clock=clock)
        twin.hit("k")
        assert decisions(metrics, "before")["allowed"] == 2
        del twin
        before.hit("k")
    assert decisions(metrics, "before") == {"allowed": 2, "limited": 3, "shadow": 0, "degraded": 0}
    before.hit("k")
    assert decisions(metrics, "before")["limited"] == 3


def test_denials_alone_are_told_to_who_listens_for_them_alone(clock: ManualClock) -> None:
    heard: list[LimitDenied] = []
    limiter, shadow = RateLimiter("2/h", clock=clock), RateLimiter("2/h", enforce=False, clock=clock)
    with subscribe(heard.append, LimitDenied):
        for _ in range(3):
            limiter.hit("k")
            shadow.hit("k")
    assert [(event.key, event.allowed, event.denied, event.cost) for event in heard] == [
        ("k", False, True, 1),
        ("k", True, True, 1),
    ]
    assert heard[0].retry_after == 1800.0


@pytest.mark.parametrize("limits", [("5/h",), ("5/h", "7/h")])
def test_keys_are_forgotten_while_only_one_is_asked_for_the_short_way(
    limits: tuple[str, ...], clock: ManualClock
) -> None:
    store = MemoryStore(clock=clock)
    limiter = RateLimiter(*limits, store=store, clock=clock)
    for number in range(200):
        limiter.hit(f"key {number}")
    for _ in range(300):
        limiter.hit("only one")
        clock.advance(60.0)
    assert len(store) == 1
