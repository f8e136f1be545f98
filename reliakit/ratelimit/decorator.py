"""Functions whose calls spend from a limiter: what runs before each call, whether sync or async."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from reliakit.core.errors import ConfigurationError
from reliakit.core.guard import colour_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from reliakit.ratelimit.limiter import RateLimiter

__all__ = ["Spend", "limited"]


class Spend:
    """What each call of a decorated function does before the function runs.

    Args:
        limiter: The limiter it spends from.
        key: Called with the call's arguments, returns the key.
        cost: What a call costs, or a callable that computes it from the call's arguments.
    """

    def __init__(self, limiter: RateLimiter, key: Callable[..., str], cost: int | Callable[..., int]) -> None:
        self._limiter = limiter
        self._key = key
        self._cost = cost

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Spend in this thread, or raise RateLimitedError."""
        key, cost = self._price(args, kwargs)
        decision = self._limiter.hit(key, cost)
        if not decision:
            raise self._limiter.refusal(decision)

    async def in_task(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Spend in this task, or raise RateLimitedError."""
        key, cost = self._price(args, kwargs)
        decision = await self._limiter.ahit(key, cost)
        if not decision:
            raise self._limiter.refusal(decision)

    def _price(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, int]:
        cost = self._cost
        return self._key(*args, **kwargs), cost if isinstance(cost, int) else cost(*args, **kwargs)


def limited(fn: Callable[..., Any], spend: Spend, by: str) -> Callable[..., Any]:
    """Return the function with `spend` run before each of its calls.

    Args:
        fn: A function, coroutine function or generator function, or one of them as static or class method.
        spend: What to run before each call.
        by: Names the decorator in the error message.

    Raises:
        ConfigurationError: `fn` is none of these.
    """
    if isinstance(fn, staticmethod | classmethod):
        method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
        return cast("Callable[..., Any]", type(method)(limited(method.__func__, spend, by)))
    colour = colour_of(fn, by=by)
    if colour == "async generator":
        raise ConfigurationError(f"{by} cannot decorate an async generator: await ahit() or aacquire() in its body")

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        spend(args, kwargs)
        return fn(*args, **kwargs)

    @wraps(fn)
    async def run_async(*args: Any, **kwargs: Any) -> Any:
        await spend.in_task(args, kwargs)
        return await fn(*args, **kwargs)

    @wraps(fn)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        spend(args, kwargs)
        return (yield from cast("Generator[Any, Any, Any]", fn(*args, **kwargs)))

    return {"plain": run, "async": run_async, "generator": generate}[colour]
