"""Time and chance, behind one small protocol, so that every wait and every draw can be driven by a test.

No other module reads a clock, sleeps or draws a random number.
"""

from __future__ import annotations

from random import random  # noqa: TID251
from time import monotonic, sleep, time  # noqa: TID251 - this is the Clock
from typing import Protocol, runtime_checkable

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


@runtime_checkable
class Clock(Protocol):
    """What a component asks of time. `reliakit.testing.ManualClock` is the one for tests."""

    def monotonic(self) -> float:
        """Return seconds from an arbitrary origin that never go back."""
        ...

    def time(self) -> float:
        """Return seconds since the Unix epoch; may step when the machine's clock is set."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Block this thread."""
        ...

    async def asleep(self, seconds: float, /) -> None:
        """Suspend this task."""
        ...

    def random(self) -> float:
        """Return a random number in [0, 1)."""
        ...


class SystemClock:
    """The machine's own clock and chance."""

    __slots__ = ()

    monotonic: staticmethod[[], float] = staticmethod(monotonic)
    time: staticmethod[[], float] = staticmethod(time)
    sleep: staticmethod[[float], None] = staticmethod(sleep)
    random: staticmethod[[], float] = staticmethod(random)

    async def asleep(self, seconds: float, /) -> None:
        """Suspend this asyncio task."""
        import asyncio  # noqa: PLC0415 - only programs that await pay for the import

        await asyncio.sleep(seconds)  # noqa: TID251 - this is the Clock

    def __repr__(self) -> str:
        return "SYSTEM_CLOCK"


SYSTEM_CLOCK: Clock = SystemClock()
