"""The rate limiter in memory beside `limits`: one limit, two limits, a refusal, in both colours, and bytes for a key.

    python benchmarks/ratelimit.py [--quick]

One limit of the limiter stands in twice; the second is the control.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from interleave import Case, compare, python, skipped

from reliakit.ratelimit import Limit, RateLimiter
from reliakit.stores import MemoryStore

KEYS = [f"user:{number}" for number in range(1000)]
TARGET = 3.0


def over_keys(hit: Callable[[str], Any]) -> Case:
    def case(times: int) -> None:
        for _ in range(times // len(KEYS)):
            for key in KEYS:
                hit(key)

    return case


def over_one(hit: Callable[[str], Any]) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            hit("one")

    return case


def over_keys_async(hit: Callable[[str], Awaitable[Any]]) -> Case:
    async def all_of_them(times: int) -> None:
        for _ in range(times // len(KEYS)):
            for key in KEYS:
                await hit(key)

    def case(times: int) -> None:
        loop.run_until_complete(all_of_them(times))

    return case


def bytes_for_a_key(make: Callable[[], Callable[[str], Any]], count: int) -> float:
    """Return the memory that one key takes, its own text left out."""
    keys = [f"203.0.113.{number}" for number in range(count)]
    hit = make()
    tracemalloc.start()
    for key in keys:
        hit(key)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return used / count


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, below 10 seconds")
    quick = parser.parse_args().quick
    print(python())

    one = {f"reliakit {name}": over_keys(limiter_of(name).hit) for name in ("sliding_log", "sliding_counter")}
    one["reliakit fixed_window"] = over_keys(limiter_of("fixed_window").hit)
    one["reliakit"] = over_keys(RateLimiter("1000000/s").hit)
    one["reliakit (again)"] = over_keys(RateLimiter("1000000/s").hit)
    two = {"reliakit": over_keys(RateLimiter("1000000/s", "60000000/min").hit)}
    refused = RateLimiter("1/h")
    denied = {"reliakit": over_one(refused.hit)}
    awaited = {"reliakit": over_keys_async(RateLimiter("1000000/s").ahit)}
    memory: dict[str, Callable[[], Callable[[str], Any]]] = {
        "reliakit": lambda: RateLimiter("1000/h", store=MemoryStore(max_keys=10**7)).hit
    }
    try:
        limits = importlib.import_module("limits")
    except ImportError:
        skipped("limits")
    else:
        second, minute, hour = (limits.parse(text) for text in ("1000000/second", "60000000/minute", "1/hour"))

        def fixed() -> Any:
            return limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())

        def moving() -> Any:
            return limits.strategies.MovingWindowRateLimiter(limits.storage.MemoryStorage())

        for name, made in (("fixed window", fixed()), ("moving window", moving())):
            one[f"limits {name}"] = over_keys(lambda key, made=made: made.hit(second, key))
        made = fixed()
        two["limits fixed window, two hits"] = over_keys(lambda key: made.hit(second, key) and made.hit(minute, key))
        denied["limits fixed window"] = over_one(lambda key: made.hit(hour, key))
        aio = importlib.import_module("limits.aio")
        amade = aio.strategies.FixedWindowRateLimiter(aio.storage.MemoryStorage())
        awaited["limits fixed window"] = over_keys_async(lambda key: amade.hit(second, key))
        memory["limits fixed window"] = lambda: functools.partial(fixed().hit, limits.parse("1000/hour"))

    checks: dict[str, bool] = {}
    for title, cases in (
        ("one limit, 1000 keys", one),
        ("two limits at once", two),
        ("a refusal", denied),
        ("one limit, awaited", awaited),
    ):
        medians = compare(title, cases, "reliakit", quick=quick)
        for name, median in medians.items():
            if name.startswith("limits"):
                checks[f"{title}: {name} at least {TARGET:g}x slower"] = median >= TARGET * medians["reliakit"]
    count = 20_000 if quick else 200_000
    print(f"\nbytes for a key, its text left out, {count} keys")
    for name, make in memory.items():
        print(f"  {name:44} {bytes_for_a_key(make, count):9.0f}")
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


def limiter_of(algorithm: Any) -> RateLimiter:
    """Return a limiter that admits some and refuses most, so that its state stays small."""
    return RateLimiter(Limit(100, per=1.0, algorithm=algorithm))


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    try:
        main()
    finally:
        loop.close()
