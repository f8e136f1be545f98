"""What must hold when the garbage collector runs in the middle of a step: keys and clocks that make it run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from reliakit.testing import ManualClock

T = TypeVar("T")


class CollectingKey(str):
    """A key that collects garbage whenever a table looks it up."""

    __slots__ = ()

    def __hash__(self) -> int:
        gc.collect(1)  # what was abandoned is young
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


class CollectingCost(int):
    """A cost that collects garbage whenever it is counted."""

    def __rmul__(self, other: int) -> int:
        gc.collect(1)  # what was abandoned is young
        return int(self) * other

    def __radd__(self, other: int) -> int:
        gc.collect(1)  # what was abandoned is young
        return other + int(self)


class CollectingClock(ManualClock):
    """A clock that collects garbage whenever it is read."""

    def monotonic(self) -> float:
        gc.collect(1)  # what was abandoned is young
        return super().monotonic()


def abandon(begin: Callable[[], Generator[Any, Any, Any]]) -> None:
    """Begin a generator and leave it behind, where only the garbage collector finds it."""
    running = begin()
    next(running)
    cycle: list[object] = [running]
    cycle.append(cycle)


def in_time(step: Callable[[], T]) -> T:
    """Return what a step comes to; a step that blocks itself for ever fails instead of hanging."""
    came: list[T] = []
    thread = threading.Thread(target=lambda: came.append(step()), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for a lock that its own thread holds"
    return came[0]


def held_elsewhere(lock: Any) -> Callable[[], None]:
    """Let another thread hold a lock, and return how to release it."""
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holds.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()

    def let_go() -> None:
        release.set()
        thread.join()

    return let_go
