"""Waiting sequences, written once and run in both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.flow import BLOCKING, SUSPENDING, Outcome, Waiting, attempt, attempt_async, run_blocking
from reliakit.testing import ManualClock


async def flow(io: Waiting, clock: Clock, seen: list[float]) -> str:
    for pause in (1.0, 2.0):
        await io.sleep(clock, pause)
        seen.append(clock.monotonic())
    return "done"


def test_one_text_runs_in_a_thread() -> None:
    seen: list[float] = []
    assert run_blocking(flow(BLOCKING, ManualClock(auto_advance=True), seen)) == "done"
    assert seen == [1.0, 3.0]


@pytest.mark.anyio
async def test_the_same_text_runs_in_a_task() -> None:
    seen: list[float] = []
    assert await flow(SUSPENDING, ManualClock(auto_advance=True), seen) == "done"
    assert seen == [1.0, 3.0]


def test_a_flow_that_suspends_is_refused_and_cleaned_up() -> None:
    cleaned: list[str] = []

    async def suspends() -> None:
        try:
            await SYSTEM_CLOCK.asleep(0)
        finally:
            cleaned.append("up")

    running = suspends()
    with pytest.raises(RuntimeError, match="this flow suspends: give it adapters that block, or await it"):
        run_blocking(running)
    assert cleaned == ["up"]
    assert running.cr_frame is None


async def _cleanup_suspends() -> None:
    try:
        await SYSTEM_CLOCK.asleep(0)
    finally:
        await SYSTEM_CLOCK.asleep(0)


async def _cleanup_fails() -> None:
    try:
        await SYSTEM_CLOCK.asleep(0)
    finally:
        raise KeyError("cleanup")


@pytest.mark.parametrize("suspends", [_cleanup_suspends, _cleanup_fails])
def test_a_cleanup_that_goes_wrong_does_not_hide_the_reason(suspends: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="this flow suspends") as raised:
        run_blocking(suspends())  # type: ignore[arg-type]  # both are flows
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, SystemExit])
def test_an_error_in_the_flow_leaves_as_it_is(kind: type[BaseException]) -> None:
    mine = kind("mine")

    async def fails() -> None:
        raise mine

    with pytest.raises(kind) as raised:
        run_blocking(fails())
    assert raised.value is mine


def test_user_code_turned_into_an_outcome_may_raise_stop_iteration() -> None:
    def user_code() -> None:
        raise StopIteration("user's")

    async def guards() -> Outcome[None]:
        return attempt(user_code)

    outcome = run_blocking(guards())
    assert isinstance(outcome.error, StopIteration)
    with pytest.raises(StopIteration, match="user's"):
        outcome.unwrap()


@pytest.mark.parametrize(
    "kind", [ValueError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit, StopIteration]
)
def test_an_attempt_carries_whatever_was_raised(kind: type[BaseException]) -> None:
    mine = kind("mine")

    def fails() -> int:
        raise mine

    outcome = attempt(fails)
    assert outcome.error is mine
    with pytest.raises(kind) as raised:
        outcome.unwrap()
    assert raised.value is mine
    assert [entry.name for entry in raised.traceback][-1] == "fails"


def test_an_attempt_carries_the_value() -> None:
    assert attempt(divmod, 7, 2).unwrap() == (3, 1)
    assert attempt(int, "ff", base=16).unwrap() == 255
    assert attempt(lambda: None).unwrap() is None


@pytest.mark.anyio
async def test_an_awaited_attempt_carries_value_error_and_cancellation() -> None:
    async def returns(value: int, *, plus: int) -> int:
        return value + plus

    async def is_cancelled() -> None:
        raise asyncio.CancelledError

    assert (await attempt_async(returns, 1, plus=2)).unwrap() == 3
    assert isinstance((await attempt_async(is_cancelled)).error, asyncio.CancelledError)


def test_an_outcome_is_a_value() -> None:
    assert Outcome(7) == Outcome(7, None)
    assert Outcome(7) != Outcome(8)
