"""The rate limiter in memory beside limits, throttled-py, pyrate-limiter and aiolimiter.

    python benchmarks/ratelimit.py [--quick]

One limit, two limits, a refusal, in threads and in tasks; bytes for a key; how many of N get through from 8 threads.
One limit of the limiter stands in twice; the second is the control. Where a peer limits one key only, a dictionary of
its limiters stands for it; where it takes one limit only, two of its decisions stand for two limits.

A key that comes when it is as good as new is the commonest case and the cheapest one. "A burst running down" is the
other: each decision finds less left than the one before.

aiolimiter does less than the others, so it is the one that is not three times slower. Its limiter is for one key and
one event loop: it keeps no keys, takes no lock, as threads may not use it, and comes to no decision: `acquire`
returns nothing once there is room. The floors show what the parts cost: an `async def` that returns a constant, and
functions that take a lock, read the clock, write to a dictionary and return a tuple made beforehand. On Python 3.11
the latter are two and a half times faster than aiolimiter.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interleave import Case, compare, python, skipped

from reliakit.ratelimit import Limit, RateLimiter
from reliakit.stores import MemoryStore

KEYS = [f"user:{number}" for number in range(1000)]
MANY = 1_000_000
TARGET = 3.0
OTHERS = ("sliding_log", "sliding_counter", "fixed_window")
PACKAGES = {
    "limits": "limits",
    "throttled-py": "throttled",
    "pyrate-limiter": "pyrate_limiter",
    "aiolimiter": "aiolimiter",
}
HAVE = {package for package, module in PACKAGES.items() if find_spec(module)}
Hit = Callable[[str], Any]


# Each peer: a function that makes a function that decides over a key, for so many in so many seconds.


def ours(amount: int, per: int, algorithm: Any = "gcra") -> Hit:
    return RateLimiter(Limit(amount, per=per, algorithm=algorithm), store=MemoryStore(max_keys=10 * MANY)).hit


def ours_awaited(amount: int, per: int) -> Hit:
    return RateLimiter(Limit(amount, per=per), store=MemoryStore(max_keys=10 * MANY)).ahit


# The least that a decision over many keys can do: no lock, no limits to its memory, no counts, only one outcome.


def floor() -> Hit:
    clock, arrivals, decision = time.monotonic_ns, dict.fromkeys(KEYS, 0), (True, 100, 99, 0.0, 0.01)

    def hit(key: str) -> Any:
        now = clock()
        if arrivals[key] <= now:
            arrivals[key] = now + 1000
        return decision

    return hit


def floor_awaited() -> Hit:
    clock, arrivals, decision = time.monotonic_ns, dict.fromkeys(KEYS, 0), (True, 100, 99, 0.0, 0.01)

    async def hit(key: str) -> Any:
        now = clock()
        if arrivals[key] <= now:
            arrivals[key] = now + 1000
        return decision

    return hit


async def constant(_: str) -> bool:
    return True


def limits(amount: int, per: int, strategy: str, *, awaited: bool = False) -> Hit:
    module = import_module("limits.aio" if awaited else "limits")
    limiter = getattr(module.strategies, strategy)(module.storage.MemoryStorage())
    item = import_module("limits").RateLimitItemPerSecond(amount, per)
    return lambda key: limiter.hit(item, key)


def throttled(amount: int, per: int, using: str, *, awaited: bool = False) -> Hit:
    module = import_module("throttled.asyncio" if awaited else "throttled")
    quota = module.rate_limiter.per_duration(import_module("datetime").timedelta(seconds=per), amount)
    store = module.MemoryStore(options={"MAX_SIZE": 10 * MANY})  # its default forgets all but 1024 keys
    limiter = module.Throttled(using=using, quota=quota, store=store)
    hit: Hit = limiter.limit
    return hit


def pyrate(amount: int, per: int, bucket: str, *, awaited: bool = False) -> Hit:
    module = import_module("pyrate_limiter")
    rates = [module.Rate(amount, per * 1000)]

    class Buckets(module.BucketFactory):  # a bucket limits one key, so there is one for each
        def __init__(self) -> None:
            self.buckets: dict[str, Any] = {}

        def wrap_item(self, name: str, weight: int = 1) -> Any:
            return module.RateItem(name, self.get_bucket(name).now(), weight=weight)

        def get(self, item: Any) -> Any:
            return self.get_bucket(item.name)

        def get_bucket(self, name: str) -> Any:
            found = self.buckets.get(name)
            if found is None:
                found = self.buckets[name] = (
                    module.InMemoryBucket(rates) if bucket == "log" else module.StateBucket(rates, module.GCRA())
                )
            return found

    limiter = module.Limiter(Buckets())
    if awaited:
        return lambda key: limiter.try_acquire_async(key, blocking=False)
    return lambda key: limiter.try_acquire(key, blocking=False)


def aiolimiter(amount: int, per: int) -> Hit:
    make = import_module("aiolimiter").AsyncLimiter
    limiters: dict[str, Any] = {}

    def hit(key: str) -> Any:
        found = limiters.get(key)
        if found is None:
            found = limiters[key] = make(amount, per)
        return found.acquire()

    return hit


PEERS: dict[str, tuple[str, Callable[[int, int], Hit]]] = {
    "limits fixed window": ("limits", lambda n, s: limits(n, s, "FixedWindowRateLimiter")),
    "limits moving window": ("limits", lambda n, s: limits(n, s, "MovingWindowRateLimiter")),
    "limits sliding counter": ("limits", lambda n, s: limits(n, s, "SlidingWindowCounterRateLimiter")),
    "throttled gcra": ("throttled-py", lambda n, s: throttled(n, s, "gcra")),
    "throttled token bucket": ("throttled-py", lambda n, s: throttled(n, s, "token_bucket")),
    "throttled fixed window": ("throttled-py", lambda n, s: throttled(n, s, "fixed_window")),
    "pyrate log": ("pyrate-limiter", lambda n, s: pyrate(n, s, "log")),
    "pyrate gcra": ("pyrate-limiter", lambda n, s: pyrate(n, s, "gcra")),
}
AWAITED: dict[str, tuple[str, Callable[[int, int], Hit]]] = {
    "limits fixed window": ("limits", lambda n, s: limits(n, s, "FixedWindowRateLimiter", awaited=True)),
    "throttled gcra": ("throttled-py", lambda n, s: throttled(n, s, "gcra", awaited=True)),
    "pyrate gcra": ("pyrate-limiter", lambda n, s: pyrate(n, s, "gcra", awaited=True)),
    "aiolimiter": ("aiolimiter", aiolimiter),
}


def peers(of: dict[str, tuple[str, Callable[[int, int], Hit]]]) -> dict[str, Callable[[int, int], Hit]]:
    return {name: make for name, (package, make) in of.items() if package in HAVE}


def over_keys(hit: Hit) -> Case:
    def case(times: int) -> None:
        for _ in range(times // len(KEYS)):
            for key in KEYS:
                hit(key)

    return case


def over_one(hit: Hit) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            hit("one")

    return case


def over_keys_awaited(hit: Callable[[str], Awaitable[Any]], loop: asyncio.AbstractEventLoop) -> Case:
    async def all_of_them(times: int) -> None:
        for _ in range(times // len(KEYS)):
            for key in KEYS:
                await hit(key)

    return lambda times: loop.run_until_complete(all_of_them(times))


def both(first: Hit, second: Hit) -> Hit:
    return lambda key: first(key) and second(key)


def timed(loop: asyncio.AbstractEventLoop, *, quick: bool) -> dict[str, bool]:
    """Print what a decision takes, and return which targets are met."""
    much, running_down = (1_000_000, 1), (1_000_000, 3600)
    one = {f"reliakit {name}": over_keys(ours(100, 1, name)) for name in OTHERS}
    one |= {name: over_keys(ours(*much)) for name in ("reliakit", "reliakit (again)")}
    one |= {"reliakit, a burst running down": over_keys(ours(*running_down)), "the floor": over_keys(floor())}
    one |= {name: over_keys(make(*much)) for name, make in peers(PEERS).items()}
    two = {"reliakit": over_keys(RateLimiter("1000000/s", "60000000/min").hit)}
    two |= {
        f"{name}, two decisions": over_keys(both(make(*much), make(60_000_000, 60)))
        for name, make in peers(PEERS).items()
        if name in {"limits fixed window", "throttled gcra"}
    }
    denied = {"reliakit": over_one(ours(1, 3600))}
    denied |= {f"reliakit {name}": over_one(ours(1, 3600, name)) for name in OTHERS}
    denied |= {name: over_one(make(1, 3600)) for name, make in peers(PEERS).items()}
    awaited = {
        "reliakit": over_keys_awaited(ours_awaited(*much), loop),
        "reliakit, a burst running down": over_keys_awaited(ours_awaited(*running_down), loop),
        "the floor": over_keys_awaited(floor_awaited(), loop),
        "the floor of an await": over_keys_awaited(constant, loop),
    }
    awaited |= {name: over_keys_awaited(make(*much), loop) for name, make in peers(AWAITED).items()}
    checks: dict[str, bool] = {}
    for title, cases in (
        ("one limit, 1000 keys", one),
        ("two limits at once", two),
        ("a refusal", denied),
        ("one limit, awaited", awaited),
    ):
        medians = compare(title, cases, "reliakit", quick=quick)
        for name, median in medians.items():
            if not name.startswith(("reliakit", "the floor")):
                checks[f"{title}: {name} at least {TARGET:g}x slower"] = median >= TARGET * medians["reliakit"]
    return checks


def bytes_for_a_key(name: str, count: int) -> None:
    """Print by how much this process grows for each key, its own text left out. For a process of its own."""
    make = ours if name == "reliakit" else peers(PEERS)[name]
    keys = [f"203.0.113.{number}" for number in range(count)]
    hit = make(1000, 3600)
    hit("warm")
    gc.collect()
    gc.disable()
    before = resident()
    for key in keys:
        hit(key)
    print((resident() - before) / count)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(*, quick: bool) -> dict[str, bool]:
    """Print the bytes that a key takes, and return which targets are met."""
    count = MANY // 10 if quick else MANY
    print(f"\nbytes for a key, its text left out, {count} keys (growth of a process of its own)")
    taken: dict[str, float] = {}
    for name in ("reliakit", *peers(PEERS)):
        command = [sys.executable, __file__, "--bytes", name, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {name:44}    failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        taken[name] = float(done.stdout)
        print(f"  {name:44} {taken[name]:9.0f}  {taken[name] / taken['reliakit']:7.2f}x", flush=True)
    others = [(value, name) for name, value in taken.items() if name != "reliakit"]
    if not others:
        return {}
    leanest = min(others)
    return {f"a key takes at most half of the leanest peer's ({leanest[1]})": 2 * taken["reliakit"] <= leanest[0]}


def exact() -> dict[str, bool]:
    """Print how many of 1000 get through from 8 threads that take turns often."""
    print("\nadmitted of 3200 tries from 8 threads, limit 1000, three times")
    checks: dict[str, bool] = {}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for name, make in {"reliakit": ours, **peers(PEERS)}.items():
            counts = [admitted(make(1000, 3600)) for _ in range(3)]
            print(f"  {name:44} {counts}")
            if name == "reliakit":
                checks["exactly 1000 of 3200 from 8 threads"] = counts == [1000] * 3
    finally:
        sys.setswitchinterval(interval)
    return checks


def admitted(hit: Hit) -> int:
    results: list[bool] = []

    def work() -> None:
        results.extend([passes(hit("k")) for _ in range(400)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(results)


def passes(result: Any) -> bool:
    limited = getattr(result, "limited", None)  # throttled's way to say it
    return bool(result) if limited is None else not limited


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and keys")
    parser.add_argument("--bytes", nargs=2, metavar=("WHO", "KEYS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bytes:
        bytes_for_a_key(given.bytes[0], int(given.bytes[1]))
        return
    print(python())
    for package in PACKAGES:
        if package not in HAVE:
            skipped(package)
    loop = asyncio.new_event_loop()
    try:
        checks = timed(loop, quick=given.quick)
    finally:
        loop.close()
    checks |= exact() | memory(quick=given.quick)
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


if __name__ == "__main__":
    main()
