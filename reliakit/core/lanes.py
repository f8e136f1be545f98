"""The express lane around a call: for a guard that most of the time lets every call pass and only counts successes.

```
lane = guard.passing            None: the call takes the long way, by enter and leave
value = fn(...)                 an error always takes the long way
lane.count += 1                 all that a success costs
```

On the long way two methods are called around each call, which makes it 2.0 to 3.6 times as long as a bare wrapper
function; the lane's own numbers are printed by benchmarks/resilience.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from math import inf
from typing import Any, Protocol, TypeVar

from reliakit.core.colour import is_awaitable, refuse_awaitable

__all__ = ["GIL", "Lane", "LaneGuard", "lane_shell"]

T = TypeVar("T")

# Without the global interpreter lock `count += 1` may lose one of two, so no lane may be opened.
GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class Lane:
    """A permit that is good for any number of calls, and counts those that succeeded.

    `lane.count += 1` is safe from threads and needs no lock: CPython switches threads, runs signal handlers and
    collects garbage at calls and backward jumps only, and this is neither. Whoever begins a new lane leaves late
    successes to the old one, so the lane that a call began on also tells whether its outcome still matters.

    Attributes:
        count: The successes so far.
        until: The instant from which a success must take the long way, for a guard with `timing`; inf for never.
    """

    __slots__ = ("count", "until")

    def __init__(self) -> None:
        self.count: int = 0
        self.until: float = -inf


class LaneGuard(Protocol[T]):
    """A `Guard` with an express lane.

    Attributes:
        passing: While it is not None, every call that begins may pass, with it as its permit.
        timing: None, or what tells the time and how many seconds make a call too long for the lane (inf for none).
            With it, permits handed to `leave` are made by `permit_since`.
    """

    passing: Lane | None
    timing: tuple[Callable[[], float], float] | None

    def permit_since(self, lane: Lane, began: float, /) -> T:
        """Return the permit of a call that began on this lane at this instant."""
        ...

    def leave(self, permit: T | Lane, error: BaseException | None, result: object, /) -> None:
        """Take the permit back with what the call came to."""
        ...


class _Unseen:
    """No function's result is of this class."""


def lane_shell(
    guard: LaneGuard[Any], fn: Callable[..., Any], long_way: Callable[..., Any], by: str, *, is_async: bool
) -> Callable[..., Any]:
    """Return `fn` behind the guard's lane, and behind `long_way`, its shell without one, while the lane is closed."""
    if is_async:
        return _async_timed(guard, fn, long_way) if guard.timing else _async(guard, fn, long_way)
    return _plain_timed(guard, fn, long_way, by) if guard.timing else _plain(guard, fn, long_way, by)


def _plain(
    guard: LaneGuard[Any], fn: Callable[..., Any], long_way: Callable[..., Any], by: str
) -> Callable[..., Any]:
    leave = guard.leave
    # The class of the last result that proved to be no awaitable: looking it up anew costs more than the guard.
    known: type[object] = _Unseen

    def finish(lane: Lane, result: Any) -> Any:
        nonlocal known
        known = _no_awaitable(leave, lane, result, fn, by)
        leave(lane, None, result)
        return result

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        lane = guard.passing
        if lane is None:
            return long_way(*args, **kwargs)
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            leave(lane, error, None)
            raise
        if type(result) is known:
            lane.count += 1
            return result
        return finish(lane, result)

    return run


def _plain_timed(
    guard: LaneGuard[Any], fn: Callable[..., Any], long_way: Callable[..., Any], by: str
) -> Callable[..., Any]:
    leave, permit_since = guard.leave, guard.permit_since
    assert guard.timing is not None
    now, too_long = guard.timing
    known: type[object] = _Unseen

    def finish(permit: Any, result: Any) -> Any:
        nonlocal known
        if type(result) is not known:
            known = _no_awaitable(leave, permit, result, fn, by)
        leave(permit, None, result)
        return result

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        lane = guard.passing
        if lane is None:
            return long_way(*args, **kwargs)
        began = now()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            leave(permit_since(lane, began), error, None)
            raise
        ended = now()
        if ended < lane.until and ended - began < too_long and type(result) is known:
            lane.count += 1
            return result
        return finish(permit_since(lane, began), result)

    return run


def _async(guard: LaneGuard[Any], fn: Callable[..., Any], long_way: Callable[..., Any]) -> Callable[..., Any]:
    leave = guard.leave

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        lane = guard.passing
        if lane is None:
            return await long_way(*args, **kwargs)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            leave(lane, error, None)
            raise
        lane.count += 1
        return result

    return run


def _async_timed(guard: LaneGuard[Any], fn: Callable[..., Any], long_way: Callable[..., Any]) -> Callable[..., Any]:
    leave, permit_since = guard.leave, guard.permit_since
    assert guard.timing is not None
    now, too_long = guard.timing

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        lane = guard.passing
        if lane is None:
            return await long_way(*args, **kwargs)
        began = now()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            leave(permit_since(lane, began), error, None)
            raise
        ended = now()
        if ended < lane.until and ended - began < too_long:
            lane.count += 1
        else:
            leave(permit_since(lane, began), None, result)
        return result

    return run


def _no_awaitable(
    leave: Callable[..., None], permit: object, result: object, fn: Callable[..., Any], by: str
) -> type[object]:
    """Return the class of a result that is no awaitable; give the permit back and raise for one that is."""
    try:
        if is_awaitable(result):
            refuse_awaitable(fn, result, by)
    except BaseException as error:
        leave(permit, error, None)
        raise
    return type(result)
