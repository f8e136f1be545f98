"""The one door to time and chance."""

from __future__ import annotations

from time import monotonic, time  # noqa: TID251 - the machine itself, to compare with

import pytest

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.testing import ManualClock


def test_the_system_clock_is_the_machine_s() -> None:
    before = monotonic()
    assert before <= SYSTEM_CLOCK.monotonic() <= monotonic()
    assert abs(SYSTEM_CLOCK.time() - time()) < 60


def test_chance_stays_below_one() -> None:
    drawn = [SYSTEM_CLOCK.random() for _ in range(1000)]
    assert all(0 <= value < 1 for value in drawn)
    assert len(set(drawn)) > 900


def test_sleeping_no_time_returns() -> None:
    SYSTEM_CLOCK.sleep(0)


@pytest.mark.anyio
async def test_sleeping_no_time_returns_to_a_task() -> None:
    await SYSTEM_CLOCK.asleep(0)


def test_both_clocks_keep_the_protocol() -> None:
    assert isinstance(SYSTEM_CLOCK, Clock)
    assert isinstance(ManualClock(), Clock)


def test_the_system_clock_shows_as_its_name() -> None:
    assert repr(SYSTEM_CLOCK) == "SYSTEM_CLOCK"
