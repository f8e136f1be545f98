"""The concurrency limiter: so many at once, in every shell, and every place comes back."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest
from garbage import abandon

from reliakit import SYSTEM_CLOCK, CircuitBreaker, ConfigurationError, RateLimitedError
from reliakit.core.events import CallRejected
from reliakit.ratelimit import ConcurrencyLimiter, Place
from reliakit.testing import ManualClock, RecordingListener


def test_so_many_run_at_once_and_the_next_one_is_refused() -> None:
    limiter = ConcurrencyLimiter(2, name="reports")
    first, second = limiter.acquire(), limiter.acquire()
    with pytest.raises(RateLimitedError, match=r"'reports'.* 2 ") as refused:
        limiter.acquire()
    assert (refused.value.name, refused.value.retry_after) == ("reports", None)
    first.release()
    first.release()
    assert limiter.in_flight == 1
    with limiter.acquire():
        assert limiter.in_flight == 2
    second.release()
    assert limiter.in_flight == 0


def test_a_block_takes_a_place_and_gives_it_back_whatever_happens() -> None:
    limiter = ConcurrencyLimiter(2)
    with limiter, limiter, pytest.raises(RateLimitedError):
        limiter.acquire()
    with pytest.raises(KeyError), limiter:
        raise KeyError
    assert limiter.in_flight == 0


@pytest.mark.anyio
async def test_an_async_block_gives_its_place_back_on_a_cancel() -> None:
    limiter = ConcurrencyLimiter(1)

    async def work() -> None:
        async with limiter:
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await SYSTEM_CLOCK.asleep(0)
    with pytest.raises(RateLimitedError):
        async with limiter:
            pass
    task.cancel()
    await asyncio.wait([task])
    async with limiter:
        assert limiter.in_flight == 1
    async with limiter.acquire():
        assert limiter.in_flight == 1
    assert limiter.in_flight == 0


@pytest.mark.anyio
async def test_every_colour_can_be_limited() -> None:
    limiter = ConcurrencyLimiter(1)

    class Reports:
        @limiter
        def build(self) -> int:
            return limiter.in_flight

        @limiter
        async def build_async(self) -> int:
            return limiter.in_flight

        @limiter
        def lines(self) -> Generator[int, None, None]:
            yield limiter.in_flight

        @limiter
        async def lines_async(self) -> AsyncGenerator[int, None]:
            yield limiter.in_flight

    reports = Reports()
    assert reports.build() == await reports.build_async() == 1
    assert list(reports.lines()) == [line async for line in reports.lines_async()] == [1]
    assert limiter.in_flight == 0
    with limiter:
        with pytest.raises(RateLimitedError):
            reports.build()
        with pytest.raises(RateLimitedError):
            await reports.build_async()
        with pytest.raises(RateLimitedError):
            next(reports.lines())
        with pytest.raises(RateLimitedError):
            await anext(reports.lines_async())


def test_an_abandoned_generator_gives_its_place_back() -> None:
    limiter = ConcurrencyLimiter(1)

    @limiter
    def lines() -> Generator[int, None, None]:
        yield 1

    abandon(lines)
    assert limiter.in_flight == 1
    gc.collect()
    assert limiter.in_flight == 0


def test_eight_threads_are_never_more_than_the_limit() -> None:
    limiter = ConcurrencyLimiter(3)
    seen: list[int] = []

    def work() -> None:
        for _ in range(2000):
            try:
                with limiter:
                    seen.append(limiter.in_flight)
            except RateLimitedError:
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert max(seen) <= 3
    assert limiter.in_flight == 0


def ends_well(child: Callable[[], bool]) -> bool:
    """Return whether a forked child finds this true."""
    pid = os.fork()
    if not pid:
        fine = False
        try:
            fine = child()
        finally:
            os._exit(0 if fine else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def fills_up(limiter: ConcurrencyLimiter, free: int) -> bool:
    """Return whether exactly so many places are free."""
    for _ in range(free):
        limiter.acquire()
    try:
        limiter.acquire()
    except RateLimitedError:
        return True
    return False


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


@needs_fork
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_keeps_the_places_of_the_thread_that_forked_and_no_others() -> None:
    limiter = ConcurrencyLimiter(5)
    holds, is_over = threading.Event(), threading.Event()
    theirs: list[Place] = []

    def hold() -> None:
        async def wait() -> None:
            async with limiter:
                holds.set()
                is_over.wait()

        theirs.append(limiter.acquire())
        asyncio.run(wait())

    @limiter
    def lines() -> Generator[int, None, None]:
        yield 1

    def goes_on() -> bool:
        theirs[0].release()  # which the child knows, though its holder is not there
        fine = limiter.in_flight == 3
        mine.release()
        running.close()
        return fine and limiter.in_flight == 1 and fills_up(limiter, 4)

    other = threading.Thread(target=hold)
    other.start()
    holds.wait()
    running = lines()
    with limiter:
        mine = limiter.acquire()
        next(running)
        forked = ends_well(goes_on)
        assert limiter.in_flight == 5
    mine.release()
    running.close()
    is_over.set()
    other.join()
    theirs[0].release()
    assert forked
    assert limiter.in_flight == 0


@needs_fork
@pytest.mark.anyio
async def test_a_child_of_a_task_keeps_the_places_of_this_task_alone() -> None:
    limiter = ConcurrencyLimiter(4)

    async def wait() -> None:
        async with limiter:
            await asyncio.Event().wait()

    others = [asyncio.create_task(wait()) for _ in range(3)]
    await SYSTEM_CLOCK.asleep(0)
    async with limiter:
        assert limiter.in_flight == 4
        assert ends_well(lambda: limiter.in_flight == 1 and fills_up(limiter, 3))
        assert limiter.in_flight == 4
    for each in others:
        each.cancel()
    await asyncio.wait(others)
    assert limiter.in_flight == 0


@needs_fork
def test_a_child_of_a_full_limiter_may_be_forked_again_and_again() -> None:
    limiter = ConcurrencyLimiter(1)
    with limiter:
        assert ends_well(lambda: limiter.in_flight == 1 and ends_well(lambda: fills_up(limiter, 0)))
    assert ends_well(lambda: ends_well(lambda: fills_up(limiter, 1)))


def test_each_block_gives_back_its_own_place_in_whatever_thread_and_order() -> None:
    limiter = ConcurrencyLimiter(3)

    def block() -> Generator[None, None, None]:
        with limiter:
            yield

    first, second = block(), block()
    for each in (first, second):
        next(each)
    thread = threading.Thread(target=first.close)
    thread.start()
    thread.join()
    assert list(limiter._held) == [1]
    second.close()
    assert limiter.in_flight == 0
    with pytest.raises(ConfigurationError, match="without having been entered"):
        limiter.__exit__(None, None, None)
    assert limiter.in_flight == 0


def test_a_refusal_is_told_and_is_neutral_to_a_breaker() -> None:
    heard = RecordingListener()
    limiter = ConcurrencyLimiter(1, name="reports", listeners=[heard], clock=ManualClock(start=7.0))
    breaker = CircuitBreaker(failure_threshold=1)
    with limiter, pytest.raises(RateLimitedError):
        breaker.call(limiter(lambda: 1))
    assert breaker.state == "closed"
    (event,) = heard.of(CallRejected)
    assert (event.name, event.at, event.reason) == ("reports", 7.0, "RateLimitedError")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 10**12}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1, "name": ""}, "name"),
        ({"limit": 1, "listeners": print}, "listeners"),
        ({"limit": 1, "clock": 7}, "clock"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        ConcurrencyLimiter(**settings)


def test_what_cannot_be_limited_is_refused_at_decoration() -> None:
    with pytest.raises(ConfigurationError, match="'reports'"):
        ConcurrencyLimiter(1, name="reports")(int)


def test_it_shows_its_settings_and_state() -> None:
    limiter = ConcurrencyLimiter(20, name="reports")
    place = limiter.acquire()
    assert repr(limiter) == "<ConcurrencyLimiter 'reports' 1 of 20 running>"
    assert repr(place) == "<Place of 'reports', taken>"
    place.release()
    assert repr(place) == "<Place of 'reports', released>"
