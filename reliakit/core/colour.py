"""How a function must be called: plain, `async def`, generator or async generator.

The colour is determined once, when the function is decorated. Anything whose colour could be guessed wrong is refused
loudly: a class, a coroutine object, a plain function that returns an awaitable.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import CoroutineType
from typing import Literal, NoReturn, cast

from reliakit.core.errors import ConfigurationError

__all__ = [
    "Colour",
    "colour_of",
    "is_awaitable",
    "name_of",
    "refuse_awaitable",
    "refuse_generator_function",
    "refuse_uncallable",
    "refuse_value",
]

Colour = Literal["plain", "async", "generator", "async generator"]
_PLAIN: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})


def colour_of(fn: object, *, by: str) -> Colour:
    """Return how a function must be called.

    Args:
        fn: What was passed to a decorator or to `call`.
        by: Names the decorator in the error message.

    Raises:
        ConfigurationError: `fn` is a class, a coroutine object or not callable.
    """
    if not callable(fn):
        refuse_uncallable(fn, by)
    if isinstance(fn, type):
        raise ConfigurationError(
            f"{by} takes a function, got the class {fn.__qualname__}: decorate its methods instead"
        )
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


def is_awaitable(result: object) -> bool:
    """Return whether this can be awaited. Looks at the class only; a no costs 150 ns on Python 3.11."""
    kind = type(result)
    return kind not in _PLAIN and hasattr(kind, "__await__")  # 40 ns for the classes in _PLAIN


def refuse_uncallable(fn: object, by: str) -> NoReturn:
    """Raise for something passed to `call` or `acall` that is not a function.

    Raises:
        ConfigurationError: Always.
    """
    if inspect.iscoroutine(fn):
        fn.close()
        raise ConfigurationError(f"{by} takes a function, got a coroutine object: leave out the parentheses after it")
    raise ConfigurationError(f"{by} takes a function, got {type(fn).__name__}")


def refuse_awaitable(fn: object, result: object, by: str) -> None:
    """Raise for a plain function that returned an awaitable: nothing would have been guarded.

    Raises:
        ConfigurationError: Always.
    """
    if isinstance(result, CoroutineType):
        result.close()
    if inspect.iscoroutinefunction(fn):
        raise ConfigurationError(f"{name_of(fn)} is async, so {by} would guard nothing: await acall instead")
    raise ConfigurationError(
        f"{name_of(fn)} is a plain function that returned an awaitable, so {by} would guard nothing: "
        "make it `async def` and await inside, or use acall"
    )


def refuse_generator_function(fn: object) -> None:
    """Raise for a generator function whose generator was not begun: only its creation would have been guarded.

    Raises:
        ConfigurationError: `fn` is a generator function.
    """
    # A plain function may return a generator that other code drives; a generator function's has done nothing yet.
    if colour_of(fn, by="call") != "plain":
        raise ConfigurationError(
            f"{name_of(fn)} is a generator function, so call would guard only its creation: decorate it instead"
        )


def refuse_value(fn: object, result: object) -> None:
    """Raise for a result that cannot be awaited.

    Raises:
        ConfigurationError: It cannot be awaited.
    """
    if not inspect.isawaitable(result):  # covers generator-based coroutines, whose class does not show it
        raise ConfigurationError(f"{name_of(fn)} returned nothing that can be awaited: use call for a plain function")


def name_of(fn: object) -> str:
    """Return a function's name for messages."""
    return str(getattr(fn, "__qualname__", None) or repr(fn))
