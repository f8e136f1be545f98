"""The rate limiter in memory beside limits, throttled-py, pyrate-limiter and aiolimiter, algorithm by algorithm.

    python benchmarks/ratelimit.py [--quick]

One limit, a refusal, two limits, waiting for a slot that is free, in threads and in tasks; bytes for a key; how many
of N get through from 8 threads. The limiter stands in twice; the second is the control. Where a peer limits one key
only, a dictionary of its limiters stands for it; where it takes one limit only, two of its decisions stand for two
limits. A token bucket stands beside gcra, which is one.

A key that comes when it is as good as new is the commonest case and the cheapest one. "A burst running down" is the
other: each decision finds less left than the one before.

aiolimiter does less than the others, so it is the one that is not three times slower. Its limiter is for one key and
one event loop: it keeps no keys, threads may not use it, and it comes to no decision: `acquire` returns nothing once
there is room. The floors show the least that a decision over many keys takes in Python: a lookup, the clock, a
comparison, an addition and a write, without counts, other outcomes or any bound to its memory. On Python 3.13 even
this is not three times faster than aiolimiter.
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
from typing import Any, NamedTuple

from interleave import Case, compare, python, skipped

from reliakit.ratelimit import Limit, RateLimiter
from reliakit.stores import MemoryStore
from reliakit.stores.protocol import ALGORITHMS, Algorithm

KEYS = [f"user:{number}" for number in range(1000)]
MANY = 1_000_000
TARGET = 3.0
# How many in how many seconds.
MUCH, MORE, RUNNING_DOWN, ONE = (1_000_000, 1), (60_000_000, 60), (1_000_000, 3600), (1, 3600)
PACKAGES = {
    "limits": "limits",
    "throttled-py": "throttled",
    "pyrate-limiter": "pyrate_limiter",
    "aiolimiter": "aiolimiter",
}
HAVE = {package for package, module in PACKAGES.items() if find_spec(module)}
Hit = Callable[[str], Any]


# Each peer: a function that makes a function that decides over a key, for so many in so many seconds.


def ours(*limit: Any) -> Hit:
    return limiter(*limit).hit


def ours_awaited(*limit: Any) -> Hit:
    return limiter(*limit).ahit


def limiter(
    amount: int, per: int, algorithm: Algorithm = "gcra", other: tuple[int, int] | None = None
) -> RateLimiter:
    limits = [Limit(*each, algorithm=algorithm) for each in ((amount, per), other) if each]
    return RateLimiter(*limits, store=MemoryStore(max_keys=10 * MANY))


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


def acquiring(amount: int, per: int) -> Hit:
    return limiter(amount, per).acquire


def acquiring_awaited(amount: int, per: int) -> Hit:
    return limiter(amount, per).aacquire


def limits(amount: int, per: int, strategy: str, *, awaited: bool = False) -> Hit:
    module = import_module("limits.aio" if awaited else "limits")
    limiter = getattr(module.strategies, strategy)(module.storage.MemoryStorage())
    item = import_module("limits").RateLimitItemPerSecond(amount, per)
    return lambda key: limiter.hit(item, key)


def throttled(amount: int, per: int, using: str, *, awaited: bool = False, timeout: float | None = None) -> Hit:
    module = import_module("throttled.asyncio" if awaited else "throttled")
    quota = module.rate_limiter.per_duration(import_module("datetime").timedelta(seconds=per), amount)
    store = module.MemoryStore(options={"MAX_SIZE": 10 * MANY})  # its default forgets all but 1024 keys
    limiter = module.Throttled(using=using, quota=quota, store=store, timeout=timeout)
    hit: Hit = limiter.limit
    return hit


def pyrate(amount: int, per: int, bucket: str, *, awaited: bool = False, blocking: bool = False) -> Hit:
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
        return lambda key: limiter.try_acquire_async(key, blocking=blocking)
    return lambda key: limiter.try_acquire(key, blocking=blocking)


def aiolimiter(amount: int, per: int) -> Hit:
    make = import_module("aiolimiter").AsyncLimiter
    limiters: dict[str, Any] = {}

    def hit(key: str) -> Any:
        found = limiters.get(key)
        if found is None:
            found = limiters[key] = make(amount, per)
        return found.acquire()

    return hit


class Peer(NamedTuple):
    """A package's limiter by one algorithm, named as ours."""

    package: str
    algorithm: Algorithm
    make: Callable[[int, int], Hit]


PEERS = {
    "limits fixed window": Peer("limits", "fixed_window", lambda n, s: limits(n, s, "FixedWindowRateLimiter")),
    "limits moving window": Peer("limits", "sliding_log", lambda n, s: limits(n, s, "MovingWindowRateLimiter")),
    "limits sliding counter": Peer(
        "limits", "sliding_counter", lambda n, s: limits(n, s, "SlidingWindowCounterRateLimiter")
    ),
    "throttled gcra": Peer("throttled-py", "gcra", lambda n, s: throttled(n, s, "gcra")),
    "throttled token bucket": Peer("throttled-py", "gcra", lambda n, s: throttled(n, s, "token_bucket")),
    "throttled fixed window": Peer("throttled-py", "fixed_window", lambda n, s: throttled(n, s, "fixed_window")),
    "throttled sliding window": Peer(
        "throttled-py", "sliding_counter", lambda n, s: throttled(n, s, "sliding_window")
    ),
    "pyrate log": Peer("pyrate-limiter", "sliding_log", lambda n, s: pyrate(n, s, "log")),
    "pyrate gcra": Peer("pyrate-limiter", "gcra", lambda n, s: pyrate(n, s, "gcra")),
}
AWAITED = {
    "limits fixed window": Peer(
        "limits", "fixed_window", lambda n, s: limits(n, s, "FixedWindowRateLimiter", awaited=True)
    ),
    "limits moving window": Peer(
        "limits", "sliding_log", lambda n, s: limits(n, s, "MovingWindowRateLimiter", awaited=True)
    ),
    "limits sliding counter": Peer(
        "limits", "sliding_counter", lambda n, s: limits(n, s, "SlidingWindowCounterRateLimiter", awaited=True)
    ),
    "throttled gcra": Peer("throttled-py", "gcra", lambda n, s: throttled(n, s, "gcra", awaited=True)),
    "throttled fixed window": Peer(
        "throttled-py", "fixed_window", lambda n, s: throttled(n, s, "fixed_window", awaited=True)
    ),
    "pyrate gcra": Peer("pyrate-limiter", "gcra", lambda n, s: pyrate(n, s, "gcra", awaited=True)),
    "aiolimiter": Peer("aiolimiter", "gcra", aiolimiter),
}
WAITING = {
    "throttled gcra": Peer("throttled-py", "gcra", lambda n, s: throttled(n, s, "gcra", timeout=1.0)),
    "pyrate gcra": Peer("pyrate-limiter", "gcra", lambda n, s: pyrate(n, s, "gcra", blocking=True)),
}
AWAITING = {
    "throttled gcra": Peer("throttled-py", "gcra", lambda n, s: throttled(n, s, "gcra", awaited=True, timeout=1.0)),
    "pyrate gcra": Peer("pyrate-limiter", "gcra", lambda n, s: pyrate(n, s, "gcra", awaited=True, blocking=True)),
    "aiolimiter": Peer("aiolimiter", "gcra", aiolimiter),
}


def peers(of: dict[str, Peer], algorithm: str | None = None) -> dict[str, Callable[[int, int], Hit]]:
    return {
        name: peer.make for name, peer in of.items() if peer.package in HAVE and algorithm in {None, peer.algorithm}
    }


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
    tables: dict[str, dict[str, Case]] = {}
    for algorithm in ALGORITHMS:
        tables[f"{algorithm}: one limit, 1000 keys"] = {
            "reliakit": over_keys(ours(*MUCH, algorithm)),
            "reliakit (again)": over_keys(ours(*MUCH, algorithm)),
            "reliakit, a burst running down": over_keys(ours(*RUNNING_DOWN, algorithm)),
        } | {name: over_keys(make(*MUCH)) for name, make in peers(PEERS, algorithm).items()}
        tables[f"{algorithm}: a refusal"] = {"reliakit": over_one(ours(*ONE, algorithm))} | {
            name: over_one(make(*ONE)) for name, make in peers(PEERS, algorithm).items()
        }
        tables[f"{algorithm}: two limits at once"] = {"reliakit": over_keys(ours(*MUCH, algorithm, MORE))} | {
            f"{name}, two decisions": over_keys(both(make(*MUCH), make(*MORE)))
            for name, make in peers(PEERS, algorithm).items()
        }
        tables[f"{algorithm}: one limit, awaited"] = {
            "reliakit": over_keys_awaited(ours_awaited(*MUCH, algorithm), loop),
            "reliakit, a burst running down": over_keys_awaited(ours_awaited(*RUNNING_DOWN, algorithm), loop),
        } | {name: over_keys_awaited(make(*MUCH), loop) for name, make in peers(AWAITED, algorithm).items()}
    tables["gcra: acquire, a slot is free"] = {"reliakit": over_keys(acquiring(*MUCH))} | {
        name: over_keys(make(*MUCH)) for name, make in peers(WAITING).items()
    }
    tables["gcra: acquire, a slot is free, awaited"] = {
        "reliakit": over_keys_awaited(acquiring_awaited(*MUCH), loop)
    } | {name: over_keys_awaited(make(*MUCH), loop) for name, make in peers(AWAITING).items()}
    tables["gcra: one limit, 1000 keys"]["the floor"] = over_keys(floor())
    awaited = {"the floor": floor_awaited(), "the floor of an await": constant}
    tables["gcra: one limit, awaited"] |= {name: over_keys_awaited(hit, loop) for name, hit in awaited.items()}
    checks: dict[str, bool] = {}
    for title, cases in tables.items():
        medians = compare(title, cases, "reliakit", quick=quick)
        for name, median in medians.items():
            if not name.startswith(("reliakit", "the floor")):
                checks[f"{title}: {name} at least {TARGET:g}x slower"] = median >= TARGET * medians["reliakit"]
    return checks


async def end_tasks() -> None:
    """End what peers have left running."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


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
        loop.run_until_complete(end_tasks())
        loop.close()
    checks |= exact() | memory(quick=given.quick)
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


if __name__ == "__main__":
    main()
