"""Policies beside their peers and beside what could be written by hand: calls that succeed, in both colours.

    python benchmarks/policies.py [--quick]

Floor of a part: the least code that does its job for a call that succeeds, written by hand around it.

    Fallback, Retry, breaker   a wrapper that does nothing: they have nothing to do
    Timeout, plain             a wrapper that sets a context variable to now + seconds, and looks at the clock after
    Timeout, coroutine         a wrapper with `async with asyncio.timeout(seconds)`
    Bulkhead                   a wrapper that takes from a deque and puts back

The sum of the floors is these five around each other. A policy of the five patterns may cost twice as much over the
undecorated function. The sum stands in twice; the second is the control.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import logging
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from interleave import Case, compare, python, skipped

from reliakit import (
    AdaptiveLimit,
    Bulkhead,
    CircuitBreaker,
    Coalesce,
    Fallback,
    Hedge,
    Policy,
    Retry,
    Throttle,
    Timeout,
)

SECONDS = 30.0
LIMIT = 2.0
Decorator = Callable[[Any], Any]


def work(argument: int) -> int:
    return argument


async def work_async(argument: int) -> int:
    return argument


def repeat(fn: Callable[..., Any]) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            fn(1)

    return case


def repeat_async(fn: Callable[..., Any]) -> Case:
    async def all_of_them(times: int) -> None:
        for _ in range(times):
            await fn(1)

    def case(times: int) -> None:
        loop.run_until_complete(all_of_them(times))

    return case


# By hand


def nothing(fn: Any) -> Any:
    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return run


def nothing_async(fn: Any) -> Any:
    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return run


until: ContextVar[float | None] = ContextVar("until", default=None)


def limit(fn: Any) -> Any:
    now = time.monotonic  # noqa: TID251 - by hand, as users would

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        outer, mine = until.get(), now() + SECONDS
        token = until.set(mine if outer is None or mine < outer else outer)
        try:
            result = fn(*args, **kwargs)
        finally:
            until.reset(token)
        if now() > mine:
            raise TimeoutError
        return result

    return run


def limit_async(fn: Any) -> Any:
    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        async with asyncio.timeout(SECONDS):
            return await fn(*args, **kwargs)

    return run


def place(fn: Any) -> Any:
    free = deque(range(100))

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        mine = free.pop()
        try:
            return fn(*args, **kwargs)
        finally:
            free.append(mine)

    return run


def place_async(fn: Any) -> Any:
    free = deque(range(100))

    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        mine = free.pop()
        try:
            return await fn(*args, **kwargs)
        finally:
            free.append(mine)

    return run


def floor(fn: Any) -> Any:
    return nothing(nothing(nothing(limit(place(fn)))))


def floor_async(fn: Any) -> Any:
    return nothing_async(nothing_async(nothing_async(limit_async(place_async(fn)))))


def five() -> Policy:
    return Policy(Fallback(None), Retry(3), CircuitBreaker(), Timeout(SECONDS), Bulkhead(100))


# Peers


def peers(*, awaits: bool) -> dict[str, Decorator]:
    """Return what each peer that is installed can do of it, as one decorator."""
    found: dict[str, Decorator] = {}
    try:
        tenacity = importlib.import_module("tenacity")
        found["tenacity: retry alone"] = tenacity.retry(stop=tenacity.stop_after_attempt(3), reraise=True)
    except ImportError:
        skipped("tenacity")
    try:
        stamina = importlib.import_module("stamina")
        found["stamina: retry alone"] = stamina.retry(on=OSError, attempts=3)
    except ImportError:
        skipped("stamina")
    try:
        pyresilience = importlib.import_module("pyresilience")
        timeout = pyresilience.TimeoutConfig(seconds=SECONDS) if awaits else None
        found["pyresilience: all five" if awaits else "pyresilience: all but timeout"] = pyresilience.resilient(
            retry=pyresilience.RetryConfig(max_attempts=3),
            circuit_breaker=pyresilience.CircuitBreakerConfig(),
            bulkhead=pyresilience.BulkheadConfig(max_concurrent=100),
            fallback=pyresilience.FallbackConfig(handler=nothing_at_all),
            **({"timeout": timeout} if timeout else {}),
        )
    except ImportError:
        skipped("pyresilience")
    if awaits:
        try:
            found["hyx: all five"] = hyx_of_five()
        except ImportError:
            skipped("hyx")
    return found


def nothing_at_all(_error: Exception) -> None:
    return None


def hyx_of_five() -> Decorator:
    from hyx.bulkhead import bulkhead
    from hyx.circuitbreaker import consecutive_breaker
    from hyx.fallback import fallback
    from hyx.retry import retry
    from hyx.timeout import timeout

    async def stand_in(*_args: Any, **_kwargs: Any) -> None:
        return None

    async def decorated(fn: Any) -> Any:  # it wants a running loop
        fn = bulkhead(max_concurrency=100, max_capacity=100)(fn)
        fn = timeout(SECONDS)(fn)
        fn = consecutive_breaker(failure_threshold=5, recovery_time_secs=60)(fn)
        fn = retry(attempts=3)(fn)
        return fallback(stand_in)(fn)

    return lambda fn: loop.run_until_complete(decorated(fn))


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, below 20 seconds")
    quick = parser.parse_args().quick
    logging.disable()
    print(python())

    parts: dict[str, Decorator] = {
        "Fallback": Fallback(None),
        "Retry": Retry(3),
        "CircuitBreaker": CircuitBreaker(),
        "Timeout": Timeout(SECONDS),
        "Bulkhead": Bulkhead(100),
        "Throttle": Throttle(),
        "AdaptiveLimit": AdaptiveLimit(),
        "Coalesce": Coalesce(),
    }
    plain = {"sum of five floors": repeat(floor(work)), "sum of five floors (again)": repeat(floor(work))}
    plain["no wrapper"] = repeat(work)
    plain["floor of a timeout"], plain["floor of a bulkhead"] = repeat(limit(work)), repeat(place(work))
    plain["floor of the others"] = repeat(nothing(work))
    plain["policy of five"] = repeat(five()(work))
    plain |= {name: repeat(part(work)) for name, part in parts.items()}
    plain |= {name: repeat(decorate(work)) for name, decorate in peers(awaits=False).items()}
    functions = compare("plain function", plain, "sum of five floors", quick=quick)

    awaited = {
        "sum of five floors": repeat_async(floor_async(work_async)),
        "sum of five floors (again)": repeat_async(floor_async(work_async)),
        "no wrapper": repeat_async(work_async),
    }
    awaited["floor of a timeout"] = repeat_async(limit_async(work_async))
    awaited["floor of a bulkhead"] = repeat_async(place_async(work_async))
    awaited["floor of the others"] = repeat_async(nothing_async(work_async))
    awaited["policy of five"] = repeat_async(five()(work_async))
    awaited |= {name: repeat_async(part(work_async)) for name, part in parts.items()}
    awaited["Hedge"] = repeat_async(Hedge(SECONDS)(work_async))
    awaited |= {name: repeat_async(decorate(work_async)) for name, decorate in peers(awaits=True).items()}
    coroutines = compare("coroutine function", awaited, "sum of five floors", quick=quick, batch=500)

    print()
    for title, taken in (("plain", functions), ("coroutine", coroutines)):
        over, least = taken["policy of five"] - taken["no wrapper"], taken["sum of five floors"] - taken["no wrapper"]
        met = over <= LIMIT * least
        verdict = "met   " if met else "MISSED"
        print(f"{verdict}  a policy of five costs at most {LIMIT}x its floors, {title}: {over / least:.2f}x")


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    try:
        main()
    finally:
        loop.close()
