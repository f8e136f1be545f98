"""A storm of abandoned generators and waiters under an eager collector: nothing blocks and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from garbage import abandon, in_time

from reliakit import CircuitBreaker, CircuitOpenError, Limit, RateLimitedError, RateLimiter, State
from reliakit.testing import ManualClock, RecordingListener


class Suspending(ManualClock):
    """A clock on which a task sleeps for ever, without an event loop."""

    async def asleep(self, seconds: float, /) -> None:
        class Endless:
            def __await__(self) -> Generator[None, None, None]:
                while True:
                    yield

        await Endless()


@pytest.fixture
def eager() -> Iterator[None]:
    threshold = gc.get_threshold()
    gc.set_threshold(3, 2, 2)
    yield
    gc.set_threshold(*threshold)


def storm(acts: list[Callable[[random.Random], Any]], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(1500):
        with contextlib.suppress(CircuitOpenError, RateLimitedError, StopIteration):
            chance.choice(acts)(chance)


@pytest.mark.usefixtures("eager")
def test_a_storm_of_garbage_blocks_nobody_and_loses_nothing() -> None:
    clock = Suspending()
    heard = RecordingListener()
    breaker = CircuitBreaker(
        failure_threshold=3, half_open_calls=2, reset_timeout=1.0, clock=clock, listeners=[heard]
    )
    simple = RateLimiter("5/s burst 3", clock=clock)
    several = RateLimiter("5/s burst 3", Limit(100, per=60, algorithm="sliding_log"), clock=clock)

    @breaker
    def rows() -> Generator[int, None, None]:
        yield 1

    def waiter(limiter: RateLimiter) -> Callable[[], Generator[None, None, None]]:
        def wait() -> Generator[None, None, None]:
            yield from limiter.aacquire("k").__await__()

        return wait

    acts: list[Callable[[random.Random], Any]] = [
        lambda _: abandon(rows),
        lambda _: abandon(waiter(simple)),
        lambda _: abandon(waiter(several)),
        lambda _: simple.hit("k"),
        lambda chance: several.hit("k", chance.randint(1, 3)),
        lambda _: simple.peek("k"),
        lambda _: several.refund("k"),
        lambda _: clock.advance(0.3),
        lambda _: (breaker.retry_after, breaker.snapshot(), heard.events),
        lambda _: breaker.acquire().success(),
        lambda _: breaker.acquire().failure(),
    ]

    def four_threads() -> None:
        threads = [threading.Thread(target=storm, args=(acts, seed), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_time(four_threads)
    gc.collect()
    assert simple._waiting._lines == several._waiting._lines == {}
    clock.advance(1000.0)
    assert [simple.hit("k").allowed for _ in range(4)] == [True, True, True, False]
    assert [several.hit("k").allowed for _ in range(4)] == [True, True, True, False]
    breaker.close()
    breaker.force_open(1.0)
    clock.advance(1.0)
    probes = [breaker.acquire() for _ in range(2)]
    with pytest.raises(CircuitOpenError):
        breaker.acquire()
    for probe in probes:
        probe.success()
    assert breaker.state is State.CLOSED


def test_garbage_that_is_an_event_is_collected_while_a_recorder_is_read() -> None:
    heard = RecordingListener()
    breaker = CircuitBreaker(listeners=[heard])

    def guarded() -> Generator[None, None, None]:
        with breaker:
            yield

    threshold = gc.get_threshold()
    gc.disable()
    try:
        abandon(guarded)
        gc.set_threshold(1)

        def read() -> int:
            kept: list[list[int]] = [[] for _ in range(1000)]  # so that the next list is a new one
            gc.enable()
            return len(heard.events) + len(kept)

        in_time(read)
    finally:
        gc.enable()
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(heard.events) == 1


def test_garbage_that_slept_is_collected_while_its_clock_is_set() -> None:
    clock = ManualClock()

    class Wall(float):
        def __sub__(self, other: float) -> float:
            gc.collect()
            return float(self) - other

    async def begin() -> None:
        abandon(lambda: clock.asleep(5.0).__await__())
        assert clock.sleepers == 1
        await asyncio.to_thread(in_time, lambda: clock.set_wall(Wall(7.0)))

    asyncio.run(begin())
    assert clock.sleepers == 0
    assert clock.time() == 7.0
