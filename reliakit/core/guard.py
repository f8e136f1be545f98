"""The one place where a guarded call has a colour.

```
permit = guard.enter()          may raise a RejectedError: the call is not tried
value  = fn(...)                the caller's code, one frame away
guard.leave(permit, error, value)
```

A guard decides and never waits, so one object serves threads and tasks at once. Which wrapper a function gets is
decided once, when it is decorated, see `colour.py`. A guard that only sometimes has something to decide may keep an
express lane for the calls in between, see `lanes.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import wraps
from types import AsyncGeneratorType, GeneratorType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from reliakit.core.colour import (
    Colour,
    colour_of,
    is_awaitable,
    refuse_awaitable,
    refuse_generator_function,
    refuse_uncallable,
    refuse_value,
)
from reliakit.core.lanes import LaneGuard, lane_shell

__all__ = [
    "Colour",
    "Guard",
    "acall",
    "call",
    "colour_of",
    "guarded",
    "is_awaitable",
    "refuse_awaitable",
    "refuse_uncallable",
    "result_type",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_GENERATORS = frozenset({GeneratorType, AsyncGeneratorType})
# A generator's own steps cost more than a lane would save.
_WITH_LANE = frozenset({"plain", "async"})


class _Unseen:
    """A class that no function's result has."""


class Guard(Protocol[T]):
    """What a pattern decides around a call. Never waits; safe from threads and tasks."""

    def enter(self) -> T:
        """Let the call pass and return its permit, or raise a RejectedError."""
        ...

    def leave(self, permit: T, error: BaseException | None, result: object, /) -> None:
        """Take the permit back with the call's outcome. Called exactly once for each permit; never raises."""
        ...


def guarded(guard: Guard[Any], fn: Callable[P, R], *, by: str) -> Callable[P, R]:
    """Return `fn` behind the guard, in its own colour and with its own signature.

    Args:
        guard: Decides around each call.
        fn: A function, method, partial, staticmethod or classmethod of any colour.
        by: Names the decorator in error messages.

    Raises:
        ConfigurationError: The calls of `fn` cannot be guarded.
    """
    if isinstance(fn, staticmethod | classmethod):
        method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
        return cast("Callable[P, R]", type(method)(guarded(guard, method.__func__, by=by)))
    colour = colour_of(fn, by=by)
    called = cast("Callable[..., Any]", fn)
    if hasattr(guard, "passing") and colour in _WITH_LANE:
        shell = lane_shell(cast("LaneGuard[Any]", guard), called, by, is_async=colour == "async")
    else:
        shell = _SHELLS[colour](guard, called, by)
    return cast("Callable[P, R]", shell)


def call(guard: Guard[Any], fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a plain function once behind the guard.

    Raises:
        ConfigurationError: `fn` is not a plain function: it returned an awaitable, or is a generator function.
    """
    if not callable(fn):
        refuse_uncallable(fn, "call")
    permit = guard.enter()
    try:
        result = fn(*args, **kwargs)
        result_type(fn, result)
    except BaseException as error:
        guard.leave(permit, error, None)
        raise
    guard.leave(permit, None, result)
    return result


def result_type(fn: object, result: object) -> type[object] | None:
    """Return the class of a result of `call`, if results of this class never show that nothing was guarded.

    Raises:
        ConfigurationError: This result shows it: it is an awaitable, or a generator that was not begun.
    """
    if is_awaitable(result):
        refuse_awaitable(fn, result, "call")
    kind = type(result)
    if kind not in _GENERATORS:
        return kind
    refuse_generator_function(fn)
    return None  # the next result may come from another function


async def acall(guard: Guard[Any], fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Await one call behind the guard.

    Raises:
        ConfigurationError: `fn` returned something that cannot be awaited.
    """
    if not callable(fn):
        refuse_uncallable(fn, "acall")
    permit = guard.enter()
    try:
        pending = fn(*args, **kwargs)
        if not is_awaitable(pending):
            refuse_value(fn, pending)
        result = await pending
    except BaseException as error:
        guard.leave(permit, error, None)
        raise
    guard.leave(permit, None, result)
    return result


def _plain(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:
    enter, leave = guard.enter, guard.leave
    # The class of the last result that was not awaitable: checking it anew costs more than the guard.
    known: type[object] = _Unseen

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        permit = enter()
        try:
            result = fn(*args, **kwargs)
            if type(result) is not known:
                if is_awaitable(result):
                    refuse_awaitable(fn, result, by)
                known = cast("type[object]", type(result))
        except BaseException as error:
            leave(permit, error, None)
            raise
        leave(permit, None, result)
        return result

    return run


def _async(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:  # noqa: ARG001 - one signature for all shells
    enter, leave = guard.enter, guard.leave

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        permit = enter()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            leave(permit, error, None)
            raise
        leave(permit, None, result)
        return result

    return run


def _generator(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:  # noqa: ARG001
    enter, leave = guard.enter, guard.leave

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        # The body of a generator starts at its first step: one that is never iterated holds no permit.
        permit = enter()
        try:
            result = yield from cast("Generator[Any, Any, Any]", fn(*args, **kwargs))
        except BaseException as error:
            leave(permit, error, None)
            raise
        leave(permit, None, result)
        return result

    return run


def _async_generator(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:  # noqa: ARG001
    enter, leave = guard.enter, guard.leave

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        permit = enter()
        try:
            inner = fn(*args, **kwargs)
            step = await anext(inner)
            while True:
                try:
                    sent = yield step
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - handed on to where the caller meant it
                    step = await inner.athrow(thrown)
                else:
                    step = await inner.asend(sent)
        except StopAsyncIteration:
            leave(permit, None, None)
        except BaseException as error:
            leave(permit, error, None)
            raise

    return run


_SHELLS: dict[Colour, Callable[[Guard[Any], Callable[..., Any], str], Callable[..., Any]]] = {
    "plain": _plain,
    "async": _async,
    "generator": _generator,
    "async generator": _async_generator,
}
