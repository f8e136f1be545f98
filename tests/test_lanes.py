"""The express lane: what a call costs that has nothing to decide, and when it must take the long way."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Generator
from math import inf
from typing import Any

import pytest

from reliakit import ConfigurationError
from reliakit.core.guard import guarded
from reliakit.core.lanes import Lane
from reliakit.testing import ManualClock


class LaneRecorder:
    """A guard with a lane that remembers what took the long way. `timing` makes calls of 2 s and more take it."""

    def __init__(self, *, timed: bool) -> None:
        self.clock = ManualClock()
        self.timing: tuple[Callable[[], float], float] | None = (self.clock.monotonic, 2.0) if timed else None
        self.lane = Lane()
        self.lane.until = inf
        self.passing: Lane | None = self.lane
        self.log: list[tuple[object, object]] = []

    def enter(self) -> str:
        return "long way"

    def permit_since(self, lane: Lane, began: float, /) -> tuple[Lane, float]:
        return lane, began

    def leave(self, permit: Any, error: BaseException | None, result: object, /) -> None:
        if permit is self.lane and error is None:
            self.lane.count += 1
        self.log.append((permit, result if error is None else type(error)))

    @property
    def permit(self) -> object:
        """What a call that begins now has for a permit."""
        return self.lane if self.timing is None else (self.lane, self.clock.monotonic())


@pytest.fixture(params=[False, True], ids=["untimed", "timed"])
def guard(request: pytest.FixtureRequest) -> LaneRecorder:
    return LaneRecorder(timed=request.param)


@pytest.fixture(params=["plain", "async"])
def run(request: pytest.FixtureRequest, guard: LaneRecorder) -> Callable[..., Callable[[], object]]:
    """Decorate a body in one colour or the other, and return how to call it."""

    def decorate(body: Callable[[], object]) -> Callable[[], object]:
        if request.param == "plain":
            return guarded(guard, body, by="a lane")

        async def awaited() -> object:
            return body()

        decorated = guarded(guard, awaited, by="a lane")
        return lambda: step_through(decorated())

    return decorate


def step_through(running: Awaitable[object]) -> object:
    try:
        next(running.__await__())
    except StopIteration as done:
        return done.value
    raise AssertionError("it suspended")


def test_a_success_only_counts(guard: LaneRecorder, run: Callable[..., Callable[[], object]]) -> None:
    call = run(lambda: 7)
    assert call() == 7  # looks at its class once, if it is plain
    guard.log.clear()
    before = guard.lane.count
    for _ in range(3):
        assert call() == 7
    assert guard.log == []
    assert guard.lane.count == before + 3


def test_an_error_takes_the_long_way_with_the_lane_s_permit(
    guard: LaneRecorder, run: Callable[..., Callable[[], object]]
) -> None:
    def fails() -> None:
        raise ValueError

    permit = guard.permit
    with pytest.raises(ValueError):
        run(fails)()
    assert guard.log == [(permit, ValueError)]
    assert guard.lane.count == 0


def test_while_the_lane_is_closed_calls_take_the_long_way(
    guard: LaneRecorder, run: Callable[..., Callable[[], object]]
) -> None:
    guard.passing = None
    call = run(lambda: 7)
    for _ in range(2):
        assert call() == 7
    assert guard.log == [("long way", 7)] * 2


def test_a_success_counts_on_the_lane_that_it_began_on(
    guard: LaneRecorder, run: Callable[..., Callable[[], object]]
) -> None:
    old, new = guard.lane, Lane()
    new.until = inf
    next_lane = [old, new]

    def change() -> int:
        guard.passing = next_lane.pop(0)
        return 7

    call = run(change)
    call()
    before = old.count
    call()
    assert (old.count, new.count) == (before + 1, 0)


def test_a_disguised_function_is_refused_on_the_lane_too(guard: LaneRecorder) -> None:
    async def asynchronous() -> None: ...

    results = iter([1, asynchronous()])
    disguised = guarded(guard, lambda: next(results), by="a lane")
    assert disguised() == 1
    guard.log.clear()
    permit = guard.permit
    with pytest.raises(ConfigurationError, match="returned an awaitable"):
        disguised()
    assert guard.log == [(permit, ConfigurationError)]


@pytest.mark.parametrize("guard", [True], indirect=True, ids=["timed"])
@pytest.mark.parametrize(("until", "took", "long"), [(inf, 1.9, False), (inf, 2.0, True), (1.0, 1.0, True)])
def test_a_success_that_is_slow_or_comes_too_late_takes_the_long_way(
    guard: LaneRecorder, run: Callable[..., Callable[[], object]], until: float, took: float, long: bool
) -> None:
    took_now = 0.0
    call = run(lambda: guard.clock.advance(took_now))
    call()
    guard.log.clear()
    guard.lane.until = guard.clock.monotonic() + until
    permit = guard.permit
    took_now = took
    call()
    assert guard.log == ([(permit, None)] if long else [])


def test_generators_take_the_long_way(guard: LaneRecorder) -> None:
    def steps() -> Generator[int, None, str]:
        yield 1
        return "end"

    assert list(guarded(guard, steps, by="a lane")()) == [1]
    assert guard.log == [("long way", "end")]


def test_an_interrupted_task_takes_the_long_way(guard: LaneRecorder) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(guarded(guard, wait, by="a lane")())
        await guard.clock.asleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    permit = guard.permit
    asyncio.run(cancel())
    assert guard.log == [(permit, asyncio.CancelledError)]


def test_threads_lose_no_success() -> None:
    guard = LaneRecorder(timed=False)
    call = guarded(guard, lambda: 7, by="a lane")
    call()
    before = guard.lane.count

    def work() -> None:
        for _ in range(5000):
            call()

    threads = [threading.Thread(target=work) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert guard.lane.count == before + 40_000


def declared(a: int, /, b: int = 2, *, c: int, d: int = 4) -> tuple[int, ...]:
    return a, b, c, d


def gathering(a: int, *rest: int, **more: int) -> tuple[object, ...]:
    return a, rest, more


def colliding(lane_: int, fn_: int) -> tuple[int, int]:
    return lane_, fn_


def shadowing(type: int, guard: int, BaseException: int) -> tuple[int, int, int]:  # noqa: A002 - what is tested
    return type, guard, BaseException


def closing(a: int) -> list[int]:
    return [a for _ in "x"]


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (declared, (1,), {"c": 3}),
        (declared, (1, 20), {"c": 30, "d": 40}),
        (declared, (1,), {"b": 20, "c": 30}),
        (gathering, (1, 2, 3), {"x": 4}),
        (gathering, (1,), {}),
        (colliding, (1,), {"fn_": 2}),
        (shadowing, (1,), {"guard": 2, "BaseException": 3}),
        (closing, (1,), {}),
        (functools.partial(declared, 1, c=3), (), {"d": 5}),
        (len, ("abc",), {}),
    ],
)
def test_arguments_arrive_as_they_are_given(
    guard: LaneRecorder, fn: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    assert guarded(guard, fn, by="a lane")(*args, **kwargs) == fn(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {"c": 1}), ((1,), {}), ((), {"a": 1, "c": 1}), ((1, 2, 3), {"c": 1}), ((1,), {"x": 1})]
)
def test_wrong_arguments_are_told_in_the_function_s_own_name(
    guard: LaneRecorder, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    with pytest.raises(TypeError) as expected:
        declared(*args, **kwargs)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError) as raised:
        guarded(guard, declared, by="a lane")(*args, **kwargs)  # type: ignore[arg-type]
    assert str(raised.value) == str(expected.value)
    assert guard.log == []


def test_a_traceback_shows_one_line_of_the_shell(
    guard: LaneRecorder, run: Callable[..., Callable[[], object]]
) -> None:
    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError) as raised:
        run(fails)()
    shown = "".join(traceback.format_exception(raised.value))
    assert shown.count("<reliakit shell") == 1
    assert "fn_(" in shown


def test_a_shell_looks_like_its_function(guard: LaneRecorder) -> None:
    shell = guarded(guard, declared, by="a lane")
    assert inspect.signature(shell) == inspect.signature(declared)
    assert (shell.__name__, shell.__module__, shell.__doc__) == (declared.__name__, __name__, declared.__doc__)
    assert shell.__globals__ is globals()
    assert "make_" not in globals()
