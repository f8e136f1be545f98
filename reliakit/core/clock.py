"""Time and random numbers behind one small protocol, so that a test can drive every wait and every draw.

No other module reads a clock, sleeps or draws a random number.
"""

from __future__ import annotations

from random import random  # noqa: TID251 - this is the Clock
from time import monotonic, monotonic_ns, sleep, time  # noqa: TID251 - likewise
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "nanoseconds_of"]


@runtime_checkable
class Clock(Protocol):
    """Where a component gets time and random numbers from. For tests there is `reliakit.testing.ManualClock`."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary origin; never goes back."""
        ...

    def time(self) -> float:
        """Return seconds since the Unix epoch; jumps when the machine's clock is set."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Block this thread for `seconds`."""
        ...

    async def asleep(self, seconds: float, /) -> None:
        """Suspend this task for `seconds`."""
        ...

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class SystemClock:
    """The machine's own clock and random numbers."""

    __slots__ = ()

    monotonic: staticmethod[[], float] = staticmethod(monotonic)
    time: staticmethod[[], float] = staticmethod(time)
    sleep: staticmethod[[float], None] = staticmethod(sleep)
    random: staticmethod[[], float] = staticmethod(random)

    async def asleep(self, seconds: float, /) -> None:
        """Suspend this asyncio task for `seconds`."""
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        await asyncio.sleep(seconds)  # noqa: TID251 - this is the Clock

    def __repr__(self) -> str:
        return "SYSTEM_CLOCK"


SYSTEM_CLOCK: Clock = SystemClock()
"""The machine's clock and random numbers, the default of every `clock=`."""


def nanoseconds_of(clock: Clock) -> Callable[[], int]:
    """Return a function that reads this clock's monotonic time in whole nanoseconds."""
    if clock is SYSTEM_CLOCK:
        return monotonic_ns  # half the cost of a float and rounding it

    def read() -> int:
        # Rounded, not truncated: a float meant as 0.3 s may be slightly less.
        return round(clock.monotonic() * 1e9)

    return read
