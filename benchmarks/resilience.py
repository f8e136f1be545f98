"""The circuit breaker beside its peers: closed, refused and failing calls, in both colours, and in threads.

    python benchmarks/resilience.py [--quick]

The reference is a bare wrapper, `def run(*args, **kwargs): return fn(*args, **kwargs)`. It stands in twice; the
second is the control. Peers count failures in a row, except pyresilience with a window. Where one of ours has a
window, it holds enough calls to be judged before anything is measured. Metrics are attached to all of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import functools
import importlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from interleave import Case, compare, interleave, python, report, skipped

from reliakit import CircuitBreaker, Metrics, TimeWindow

REFUSED = 1.6
PEER = 2.0


def work(argument: int) -> int:
    return argument


async def work_async(argument: int) -> int:
    return argument


def fail(argument: int) -> int:
    raise OSError(argument)


def bare(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return run


def bare_async(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    return run


def repeat(fn: Callable[..., Any]) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            fn(1)

    return case


def repeat_failing(fn: Callable[..., Any]) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            try:  # noqa: SIM105 - suppress() costs more than what is measured
                fn(1)
            except Exception:
                pass

    return case


def repeat_async(fn: Callable[..., Any]) -> Case:
    async def all_of_them(times: int) -> None:
        for _ in range(times):
            await fn(1)

    def case(times: int) -> None:
        loop.run_until_complete(all_of_them(times))

    return case


def opened() -> CircuitBreaker:
    breaker = CircuitBreaker()
    breaker.force_open(3600.0)
    return breaker


def with_block(breaker: CircuitBreaker) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            with breaker:
                work(1)

    return case


def two_steps(breaker: CircuitBreaker) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            permit = breaker.acquire()
            work(1)
            permit.success()

    return case


def acalls(breaker: CircuitBreaker) -> Case:
    return repeat_async(functools.partial(breaker.acall, work_async))


def async_with_block(breaker: CircuitBreaker) -> Case:
    async def guarded(argument: int) -> None:
        async with breaker:
            await work_async(argument)

    return repeat_async(guarded)


Decorator = Callable[[Callable[..., Any]], Any]
Maker = Callable[[int], tuple[Decorator | None, Decorator | None]]


def peers() -> dict[str, Maker]:
    """Return, for each peer that is installed, what makes its decorators for a threshold: plain and async."""
    found: dict[str, Maker] = {}
    for package, add in PEERS.items():
        try:
            found |= add(importlib.import_module(package))
        except ImportError:
            skipped(package)
    return found


def both(make: Callable[[int], Decorator]) -> Maker:
    return lambda threshold: (make(threshold), make(threshold))


def aiobreaker_of(module: Any) -> dict[str, Maker]:
    pause = dt.timedelta(seconds=600)
    return {"aiobreaker": both(lambda threshold: module.CircuitBreaker(fail_max=threshold, timeout_duration=pause))}


def circuitbreaker_of(module: Any) -> dict[str, Maker]:
    return {
        "circuitbreaker": both(
            lambda threshold: module.CircuitBreaker(failure_threshold=threshold, recovery_timeout=600)
        )
    }


def hyx_of(module: Any) -> dict[str, Maker]:
    return {  # it knows coroutines only
        "hyx": lambda threshold: (
            None,
            module.consecutive_breaker(failure_threshold=threshold, recovery_time_secs=600),
        )
    }


def purgatory_of(module: Any) -> dict[str, Maker]:
    return {
        "purgatory": lambda threshold: (
            module.SyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=600)("sync"),
            module.AsyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=600)("async"),
        )
    }


def pybreaker_of(module: Any) -> dict[str, Maker]:
    return {  # its own async needs tornado
        "pybreaker": lambda threshold: (module.CircuitBreaker(fail_max=threshold, reset_timeout=600), None)
    }


def pyresilience_of(module: Any) -> dict[str, Maker]:
    def make(**window: Any) -> Maker:
        return both(
            lambda threshold: module.resilient(
                circuit_breaker=module.CircuitBreakerConfig(
                    failure_threshold=threshold, recovery_timeout=600, **window
                )
            )
        )

    return {
        "pyresilience": make(),
        "pyresilience, window of 100": make(sliding_window_size=100, minimum_calls=10),
    }


PEERS: dict[str, Callable[[Any], dict[str, Maker]]] = {
    "aiobreaker": aiobreaker_of,
    "circuitbreaker": circuitbreaker_of,
    "hyx.circuitbreaker": hyx_of,
    "purgatory": purgatory_of,
    "pybreaker": pybreaker_of,
    "pyresilience": pyresilience_of,
}


def ours() -> dict[str, CircuitBreaker]:
    return {
        "reliakit": CircuitBreaker(),
        "reliakit, count window": CircuitBreaker(failure_rate=0.5),
        "reliakit, time window": CircuitBreaker(failure_rate=0.5, window=TimeWindow(30.0)),
        "reliakit, time window and slow calls": slow(),
    }


def slow() -> CircuitBreaker:
    return CircuitBreaker(failure_rate=0.5, slow_call=1.0, slow_rate=0.5, window=TimeWindow(30.0))


def warm(breaker: CircuitBreaker) -> CircuitBreaker:
    for _ in range(100):
        breaker.acquire().success()
    return breaker


def in_threads(fn: Callable[..., Any], number: int, times: int) -> float:
    """Return the seconds from the first of so many threads' beginning to the last one's end."""
    start = threading.Barrier(number + 1)

    def work_off() -> None:
        start.wait()
        for _ in range(times):
            fn(1)

    threads = [threading.Thread(target=work_off) for _ in range(number)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def threads_beside_one(known: dict[str, Maker], *, quick: bool) -> dict[str, float]:
    """Compare eight threads that sleep in their calls with a bare wrapper: a lock that is held meanwhile shows."""

    pause = threading.Event().wait

    def sleeping(_: int) -> None:
        pause(0.002)

    cases = {"bare": bare(sleeping), "reliakit": CircuitBreaker()(sleeping)}
    cases["reliakit, time window and slow calls"] = warm(list(ours().values())[-1])(sleeping)
    for name, make in known.items():
        decorate = make(5)[0]
        if decorate is not None:
            cases[name] = decorate(sleeping)
    taken = interleave(
        {name: functools.partial(in_threads, fn, 8, 20) for name, fn in cases.items()}, rounds=3 if quick else 11
    )
    return report(
        "8 threads, a call of 2 ms (ns a call and thread, wall)",
        {name: [sample / 20 * 1e9 for sample in samples] for name, samples in taken.items()},
        "bare",
    )


def busy_threads(*, quick: bool) -> None:
    """Compare eight busy threads with one, call for call."""
    for number in (1, 8):
        cases = {"bare": bare(work), "reliakit": CircuitBreaker()(work)}
        cases |= {name: warm(breaker)(work) for name, breaker in ours().items()}
        each = 40_000 // number
        taken = interleave(
            {name: functools.partial(in_threads, fn, number, each) for name, fn in cases.items()},
            rounds=5 if quick else 21,
        )
        report(
            f"{number} busy thread{'s' * (number > 1)} (ns a call, wall)",
            {name: [sample / 40_000 * 1e9 for sample in samples] for name, samples in taken.items()},
            "bare",
        )


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, below 10 seconds")
    quick = parser.parse_args().quick
    logging.disable()
    known = peers()
    print(python())

    closed = {"bare": repeat(bare(work)), "bare (again)": repeat(bare(work)), "no wrapper": repeat(work)}
    closed |= {name: repeat(warm(breaker)(work)) for name, breaker in ours().items()}
    closed["bare around a function with *args"] = repeat(bare(bare(work)))
    closed["reliakit around a function with *args"] = repeat(CircuitBreaker()(bare(work)))
    closed["reliakit, somebody listens to each call"] = repeat(CircuitBreaker(listeners=[id])(work))
    closed["reliakit, judging results"] = repeat(CircuitBreaker(failure_result=lambda result: result == 503)(work))
    closed["reliakit, call"] = repeat(functools.partial(CircuitBreaker().call, work))
    closed["reliakit, call, time window and slow calls"] = repeat(functools.partial(warm(slow()).call, work))
    closed["reliakit, with block"] = with_block(CircuitBreaker())
    closed["reliakit, with block, time window and slow calls"] = with_block(warm(slow()))
    closed["reliakit, two steps"] = two_steps(CircuitBreaker())
    metrics = Metrics()
    metrics.attach()  # to all of ours
    plain_peers = {name: make(5)[0] for name, make in known.items()}
    closed |= {name: repeat(decorate(work)) for name, decorate in plain_peers.items() if decorate}
    plain = compare("closed circuit, plain function", closed, "bare", quick=quick)
    metrics.close()

    awaited = {"bare": repeat_async(bare_async(work_async)), "bare (again)": repeat_async(bare_async(work_async))}
    awaited |= {name: repeat_async(warm(breaker)(work_async)) for name, breaker in ours().items()}
    awaited["reliakit, acall"] = acalls(CircuitBreaker())
    awaited["reliakit, async with block"] = async_with_block(CircuitBreaker())
    for name, make in known.items():
        decorate = make(5)[1]
        if decorate is not None:
            awaited[name] = repeat_async(decorate(work_async))
    coroutines = compare("closed circuit, coroutine function", awaited, "bare", quick=quick)

    refused = {"bare, raising": repeat_failing(bare(fail)), "bare, raising (again)": repeat_failing(bare(fail))}
    refused["reliakit"] = repeat_failing(opened()(fail))
    for name, make in known.items():
        decorate = make(1)[0]
        if decorate is not None:
            refused[name] = repeat_failing(decorate(fail))
    refusals = compare("open circuit, a refusal", refused, "bare, raising", quick=quick)

    failing = {"bare, raising": repeat_failing(bare(fail)), "bare, raising (again)": repeat_failing(bare(fail))}
    failing["reliakit"] = repeat_failing(CircuitBreaker(failure_threshold=10**9)(fail))
    for name, make in known.items():
        decorate = make(10**9)[0]
        if decorate is not None and "window" not in name:
            failing[name] = repeat_failing(decorate(fail))
    failures = compare("closed circuit, a failing call", failing, "bare, raising", quick=quick)

    busy_threads(quick=quick)
    sleeping = threads_beside_one(known, quick=quick)

    slowest = "reliakit, time window and slow calls"
    checks: dict[str, bool] = {}
    for colour, taken in (("plain", plain), ("async", coroutines)):
        for name, most in {"reliakit": 1.3, "reliakit, count window": 1.3, slowest: 2.5}.items():
            checks[f"{name}: closed {colour} call at most {most}x bare"] = taken[name] <= most * taken["bare"]
        shells = {"plain": {"call": 2.5, "with block": 6.5}, "async": {"acall": 2.5, "async with block": 6.5}}[colour]
        for name, most in shells.items():
            checks[f"reliakit, {name}: at most {most}x bare"] = taken[f"reliakit, {name}"] <= most * taken["bare"]
        for name in known:
            if name in taken:
                checks[f"{name}: closed {colour} call at least {PEER}x ours"] = (
                    taken[name] >= PEER * taken["reliakit"]
                )
    limit = REFUSED * refusals["bare, raising"]
    checks[f"reliakit: refusal at most {REFUSED}x raising"] = refusals["reliakit"] <= limit
    for name in failures.keys() & known.keys():
        checks[f"{name}: a failing call takes longer than ours"] = failures[name] > failures["reliakit"]
    for name in ("reliakit", slowest):
        checks[f"{name}: 8 sleeping threads at most 1.2x bare"] = sleeping[name] <= 1.2 * sleeping["bare"]
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    try:
        main()
    finally:
        loop.close()
