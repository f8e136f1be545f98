"""The one place where a guarded call has a colour.

```
permit = guard.enter()          may raise a RejectedError: the call is not tried
value  = fn(...)                the caller's code, one frame away
guard.leave(permit, error, value)
```

A guard decides and never waits, so one object serves threads and tasks at once. Which shell a function gets is
decided once, when it is decorated: plain, `async def`, generator or async generator. Anything whose colour would be
guessed wrong is refused loudly: a class, a coroutine object, a plain function that returns an awaitable.

A guard may keep an express lane, see `ExpressGuard`: while it has nothing to decide and nothing to count, a call
costs two attribute reads instead of two method calls (1.3 instead of 2.0 to 3.6 times a bare wrapper, see
benchmarks/resilience.py).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import partial, wraps
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, cast

from reliakit.core.errors import ConfigurationError

__all__ = [
    "Colour",
    "ExpressGuard",
    "Guard",
    "acall",
    "call",
    "colour_of",
    "guarded",
    "is_awaitable",
    "refuse_awaitable",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_PLAIN: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})
_GENERATORS = frozenset({GeneratorType, AsyncGeneratorType})
Colour = Literal["plain", "async", "generator", "async generator"]


class Guard(Protocol[T]):
    """What a pattern decides around a call. Never waits; safe from threads and tasks."""

    def enter(self) -> T:
        """Let the call pass and return its permit, or raise a RejectedError."""
        ...

    def leave(self, permit: T, error: BaseException | None, result: object, /) -> None:
        """Take the permit back with what the call came to. Called exactly once for each permit; never raises."""
        ...


class ExpressGuard(Guard[T], Protocol[T]):
    """A guard that most of the time lets every call pass and learns nothing from its success.

    Attributes:
        passing: While it is not None, it is the permit of every call that begins, and a call that succeeds while it
            is still the same object need not be reported: `leave` is called for errors only. `enter` never
            returns None.
    """

    passing: T | None


class _NoLane:
    """Stands for the express lane of a guard without one."""

    passing = None


def colour_of(fn: object, *, by: str) -> Colour:
    """Tell how a function must be called.

    Args:
        fn: What was handed to a decorator or to `call`.
        by: Who asks, for the message.

    Raises:
        ConfigurationError: It is a class, a coroutine object or no callable at all.
    """
    if inspect.iscoroutine(fn):
        fn.close()
        raise ConfigurationError(f"{by} takes a function, got a coroutine object: leave out the parentheses after it")
    if isinstance(fn, type):
        raise ConfigurationError(
            f"{by} takes a function, got the class {fn.__qualname__}: decorate its methods instead"
        )
    if not callable(fn):
        raise ConfigurationError(f"{by} takes a function, got {type(fn).__name__}")
    target: object = fn
    while isinstance(target, partial):
        target = cast("partial[object]", target).func
    for called in (target, type(target).__call__):  # a function, or an object with its own __call__
        if inspect.iscoroutinefunction(called):
            return "async"
        if inspect.isasyncgenfunction(called):
            return "async generator"
        if inspect.isgeneratorfunction(called):
            return "generator"
    return "plain"


def guarded(guard: Guard[Any], fn: Callable[P, R], *, by: str) -> Callable[P, R]:
    """Return `fn` behind the guard, in its own colour and with its own signature.

    Args:
        guard: Decides around each call.
        fn: A function, method, partial, staticmethod or classmethod of any colour.
        by: Who decorates, for messages.

    Raises:
        ConfigurationError: `fn` is nothing whose calls can be guarded.
    """
    if isinstance(fn, staticmethod | classmethod):
        method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
        return cast("Callable[P, R]", type(method)(guarded(guard, method.__func__, by=by)))
    shell = _SHELLS[colour_of(fn, by=by)]
    return cast("Callable[P, R]", shell(guard, cast("Callable[..., Any]", fn), by))


def call(guard: Guard[Any], fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a plain function once behind the guard.

    Raises:
        ConfigurationError: `fn` is no plain function: it returned an awaitable, or is a generator function.
    """
    permit = guard.enter()
    try:
        result = fn(*args, **kwargs)
        if is_awaitable(result):
            refuse_awaitable(fn, result, "call")
        if type(result) in _GENERATORS:
            _refuse_generator_function(fn)
    except BaseException as error:
        guard.leave(permit, error, None)
        raise
    guard.leave(permit, None, result)
    return result


async def acall(guard: Guard[Any], fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Await one call behind the guard.

    Raises:
        ConfigurationError: What `fn` returned is nothing to await.
    """
    permit = guard.enter()
    try:
        pending = fn(*args, **kwargs)
        if not is_awaitable(pending):
            _refuse_value(fn, pending)
        result = await pending
    except BaseException as error:
        guard.leave(permit, error, None)
        raise
    guard.leave(permit, None, result)
    return result


def is_awaitable(result: object) -> bool:
    """Return whether this is something to be awaited. Looks at the class alone; a no costs 150 ns on Python 3.11."""
    kind = type(result)
    return kind not in _PLAIN and hasattr(kind, "__await__")  # 40 ns for those


def refuse_awaitable(fn: object, result: object, by: str) -> None:
    """Raise for a plain function that returned an awaitable: nothing would have been guarded.

    Raises:
        ConfigurationError: Always.
    """
    if isinstance(result, CoroutineType):
        result.close()
    if inspect.iscoroutinefunction(fn):
        raise ConfigurationError(f"{_name_of(fn)} is async, so {by} would guard nothing: await acall instead")
    raise ConfigurationError(
        f"{_name_of(fn)} is a plain function that returned an awaitable, so {by} would guard nothing: "
        "make it `async def` and await inside, or use acall"
    )


def _refuse_generator_function(fn: object) -> None:
    # A plain function may well return a generator that somebody else drives; a generator function does nothing yet.
    if colour_of(fn, by="call") != "plain":
        raise ConfigurationError(
            f"{_name_of(fn)} is a generator function, so call would guard only its creation: decorate it instead"
        )


def _refuse_value(fn: object, result: object) -> None:
    if not inspect.isawaitable(result):  # a generator-based coroutine is one, though its class does not say so
        raise ConfigurationError(f"{_name_of(fn)} returned nothing to await: use call for a plain function")


def _name_of(fn: object) -> str:
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def _plain(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:
    enter, leave = guard.enter, guard.leave
    has_lane = hasattr(guard, "passing")
    lane: Any = guard if has_lane else _NoLane
    # The class of the last result that proved to be no awaitable: looking it up anew costs more than the guard.
    # `express` is the same for a guard with a lane and stays no class of any result for one without.
    known: type[object] = _NoLane
    express: type[object] = _NoLane

    def finish(permit: Any, result: Any) -> Any:
        nonlocal known, express
        if type(result) is not known:
            try:
                if is_awaitable(result):
                    refuse_awaitable(fn, result, by)
            except BaseException as error:
                leave(permit, error, None)
                raise
            known = cast("type[object]", type(result))
            if has_lane:
                express = known
        if not has_lane or permit is not lane.passing:
            leave(permit, None, result)
        return result

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        permit = lane.passing
        if permit is None:
            permit = enter()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            leave(permit, error, None)
            raise
        if permit is lane.passing and type(result) is express:
            return result
        return finish(permit, result)

    return run


def _async(guard: Guard[Any], fn: Callable[..., Any], by: str) -> Callable[..., Any]:  # noqa: ARG001 - one signature for all shells
    enter, leave = guard.enter, guard.leave
    lane: Any = guard if hasattr(guard, "passing") else _NoLane

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        permit = lane.passing
        if permit is None:
            permit = enter()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            leave(permit, error, None)
            raise
        if permit is not lane.passing or permit is None:
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
