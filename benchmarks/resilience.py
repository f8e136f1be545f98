"""The circuit breaker beside its peers: a closed call, a refused call, a failing call, in both colours.

    python benchmarks/resilience.py [--quick]

The reference is a bare wrapper, `def run(*args, **kwargs): return fn(*args, **kwargs)`: nothing that decorates can be
cheaper. It stands in twice; the second is the control.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import logging
from collections.abc import Callable
from typing import Any

from interleave import Case, compare, python, skipped

from reliakit.resilience.breaker import CircuitBreaker

TARGETS = {"closed": 1.3, "refused": 1.6, "peer": 2.0}


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


def with_block(breaker: CircuitBreaker) -> Case:
    def case(times: int) -> None:
        for _ in range(times):
            with breaker:
                work(1)

    return case


def peers() -> dict[str, Callable[[int], tuple[Callable[..., Any], Callable[..., Any] | None]]]:
    """Return, for each peer that is installed, what makes its decorators for a threshold: plain and async."""
    found: dict[str, Callable[[int], tuple[Callable[..., Any], Callable[..., Any] | None]]] = {}
    try:
        circuitbreaker = importlib.import_module("circuitbreaker")

        def decorators(threshold: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
            def decorate(fn: Callable[..., Any]) -> Any:
                return circuitbreaker.CircuitBreaker(failure_threshold=threshold, recovery_timeout=600)(fn)

            return decorate, decorate

        found["circuitbreaker"] = decorators
    except ImportError:
        skipped("circuitbreaker")
    try:
        pybreaker = importlib.import_module("pybreaker")
        found["pybreaker"] = lambda threshold: (
            pybreaker.CircuitBreaker(fail_max=threshold, reset_timeout=600),
            None,  # its own async needs tornado
        )
    except ImportError:
        skipped("pybreaker")
    try:
        purgatory = importlib.import_module("purgatory")
        found["purgatory"] = lambda threshold: (
            purgatory.SyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=600)("sync"),
            purgatory.AsyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=600)("async"),
        )
    except ImportError:
        skipped("purgatory")
    return found


def main() -> None:
    """Print all comparisons, and which targets they meet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, below 10 seconds")
    quick = parser.parse_args().quick
    logging.disable()
    known = peers()
    print(python())

    closed = {"bare": repeat(bare(work)), "bare (again)": repeat(bare(work)), "no wrapper": repeat(work)}
    closed["reliakit"] = repeat(CircuitBreaker()(work))
    closed["reliakit, somebody listens"] = repeat(CircuitBreaker(listeners=[id])(work))
    closed["reliakit, judging results"] = repeat(CircuitBreaker(failure_result=lambda result: result == 503)(work))
    closed["reliakit, with block"] = with_block(CircuitBreaker())
    closed |= {name: repeat(make(5)[0](work)) for name, make in known.items()}
    plain = compare("closed circuit, plain function", closed, "bare", quick=quick)

    awaited = {"bare": repeat_async(bare_async(work_async)), "bare (again)": repeat_async(bare_async(work_async))}
    awaited["reliakit"] = repeat_async(CircuitBreaker()(work_async))
    for name, make in known.items():
        decorate = make(5)[1]
        if decorate is not None:
            awaited[name] = repeat_async(decorate(work_async))
    coroutines = compare("closed circuit, coroutine function", awaited, "bare", quick=quick)

    open_now = CircuitBreaker(failure_threshold=1)
    refused = {"bare, raising": repeat_failing(bare(fail)), "bare, raising (again)": repeat_failing(bare(fail))}
    refused["reliakit"] = repeat_failing(open_now(fail))
    refused |= {name: repeat_failing(make(1)[0](fail)) for name, make in known.items()}
    refusals = compare("open circuit, a refusal", refused, "bare, raising", quick=quick)

    failing = {"bare, raising": repeat_failing(bare(fail)), "bare, raising (again)": repeat_failing(bare(fail))}
    failing["reliakit"] = repeat_failing(CircuitBreaker(failure_threshold=10**9)(fail))
    failing |= {name: repeat_failing(make(10**9)[0](fail)) for name, make in known.items()}
    compare("closed circuit, a failing call", failing, "bare, raising", quick=quick)

    checks = {
        f"closed plain call at most {TARGETS['closed']}x bare": plain["reliakit"]
        <= TARGETS["closed"] * plain["bare"],
        f"closed async call at most {TARGETS['closed']}x bare": coroutines["reliakit"]
        <= TARGETS["closed"] * coroutines["bare"],
        f"refusal at most {TARGETS['refused']}x raising": refusals["reliakit"]
        <= TARGETS["refused"] * refusals["bare, raising"],
    }
    for name in known:
        checks[f"{name} at least {TARGETS['peer']}x slower"] = plain[name] >= TARGETS["peer"] * plain["reliakit"]
    print()
    for target, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'}  {target}")


if __name__ == "__main__":
    loop = asyncio.new_event_loop()
    try:
        main()
    finally:
        loop.close()
