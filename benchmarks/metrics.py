"""Metrics beside prometheus_client and the OpenTelemetry SDK: counting, measuring, scraping, memory, and an attack.

Each case is measured in small rounds, in random order, in one process; reliakit's own code runs a second time as the
control, whose ratio to the first shows the noise. Printed are medians and ratios of medians. Time is processor time,
so that other programs on the machine weigh less, but for `--threads`. How long an event loop stands still is what
this process computed between two turns of the loop.

    python benchmarks/metrics.py [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import prometheus_client
from interleave import skipped
from prometheus_client import CollectorRegistry, generate_latest

from reliakit.metrics import Metrics

Case = Callable[[], float]
LABELS = ("auth", "login", "commit")


def counted(work: Callable[[], object], times: int, threads: int = 1) -> Case:
    """Return a case that runs `work` that often and returns nanoseconds each."""
    now = time.thread_time_ns if threads == 1 else time.perf_counter_ns

    def case() -> float:
        repeat = range(times)
        start = now()
        for _ in repeat:
            work()
        return (now() - start) / times

    return case


def threaded(case: Case, threads: int) -> Case:
    """Return the case run by several threads at once; the median of their times."""

    def together() -> float:
        results: list[float] = []
        crowd = [threading.Thread(target=lambda: results.append(case())) for _ in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        return statistics.median(results)

    return case if threads == 1 else together


def counting(times: int, threads: int) -> dict[str, tuple[dict[str, Case], float]]:
    ours = Metrics()
    theirs = CollectorRegistry()
    names = ("service", "operation", "status")
    counter = ours.counter("jobs", "Jobs.", names)
    histogram = ours.histogram("work", "Work.", names, unit="seconds")
    their_counter = prometheus_client.Counter("jobs", "Jobs.", names, registry=theirs)
    their_histogram = prometheus_client.Histogram("work", "Work.", names, registry=theirs, buckets=histogram.bounds)
    inc, their_inc = counter.labels(*LABELS).inc, their_counter.labels(*LABELS).inc
    observe, their_observe = histogram.labels(*LABELS).observe, their_histogram.labels(*LABELS).observe
    named = dict(zip(names, LABELS, strict=True))
    pairs: dict[str, tuple[Callable[[], object], Callable[[], object], float]] = {
        "bound inc": (inc, their_inc, 0.4),
        "bound observe": (lambda: observe(0.042), lambda: their_observe(0.042), 0.4),
        "labels + inc": (
            lambda: counter.labels(*LABELS).inc(),
            lambda: their_counter.labels(*LABELS).inc(),
            0.5,
        ),
        "labels by name + inc": (
            lambda: counter.labels(**named).inc(),
            lambda: their_counter.labels(**named).inc(),
            0.5,
        ),
        "increment(name, ...)": (
            lambda: ours.increment("jobs", **named),
            lambda: their_counter.labels(**named).inc(),
            1.0,
        ),
    }
    otel = opentelemetry()
    return {
        name: (
            {
                "reliakit": threaded(counted(own, times, threads), threads),
                "control": threaded(counted(own, times, threads), threads),
                "prometheus_client": threaded(counted(other, times, threads), threads),
                **({"otel": threaded(counted(otel[name], times // 10, threads), threads)} if name in otel else {}),
            },
            target,
        )
        for name, (own, other, target) in pairs.items()
    }


def opentelemetry() -> dict[str, Callable[[], object]]:
    """Return the same cases for the OpenTelemetry SDK, if it is installed; it has no bound handles."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    except ImportError:
        skipped("opentelemetry-sdk")
        return {}
    meter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bench")
    add, record = meter.create_counter("jobs").add, meter.create_histogram("work").record
    names = dict(zip(("service", "operation", "status"), LABELS, strict=True))
    return {
        "labels by name + inc": lambda: add(1, {**names}),
        "bound inc": lambda: add(1, names),
        "bound observe": lambda: record(0.042, names),
    }


def scraping(series: int) -> dict[str, tuple[dict[str, Case], float]]:
    def filled_ours(kind: str) -> Metrics:
        metrics = Metrics(max_series=series + 1)
        if kind == "counters":
            counter = metrics.counter("hits", "Hits.", ("key", "other"))
            for number in range(series):
                counter.labels(f"key-{number}", "a").inc(number)
        else:
            histogram = metrics.histogram("work", "Work.", ("key", "other"))
            for number in range(series // 19):
                histogram.labels(f"key-{number}", "a").observe(number / 1000)
        return metrics

    def filled_theirs(kind: str) -> CollectorRegistry:
        registry = CollectorRegistry()
        if kind == "counters":
            counter = prometheus_client.Counter("hits", "Hits.", ("key", "other"), registry=registry)
            for number in range(series):
                counter.labels(f"key-{number}", "a").inc(number)
        else:
            bounds = Metrics().histogram("work").bounds
            histogram = prometheus_client.Histogram("work", "W.", ("key", "other"), registry=registry, buckets=bounds)
            for number in range(series // 19):
                histogram.labels(f"key-{number}", "a").observe(number / 1000)
        return registry

    cases: dict[str, tuple[dict[str, Case], float]] = {}
    for kind in ("counters", "histograms"):
        ours, theirs = filled_ours(kind), filled_theirs(kind)
        cases[f"scrape {series} lines of {kind}"] = (
            {
                "reliakit": counted(ours.render, 1),
                "control": counted(ours.render, 1),
                "prometheus_client": counted(lambda theirs=theirs: generate_latest(theirs), 1),
            },
            0.2,
        )
    return cases


def run(cases: dict[str, tuple[dict[str, Case], float]], rounds: int) -> None:
    times: dict[tuple[str, str], list[float]] = {}
    plan = [(name, who, case) for name, (group, _) in cases.items() for who, case in group.items()]
    for _ in range(rounds):
        random.shuffle(plan)
        for name, who, case in plan:
            times.setdefault((name, who), []).append(case())
    print(f"{'case':34} {'reliakit':>12} {'prometheus':>12} {'ratio':>7} {'target':>7} {'A/A':>6} {'otel':>12}")
    for name, (_, target) in cases.items():
        own, control, other = (
            statistics.median(times[name, who]) for who in ("reliakit", "control", "prometheus_client")
        )
        verdict = "" if own / other <= target else "  missed"
        ratios = f"{own / other:7.2f} {target:7.2f} {control / own:6.2f}"
        otel = shown(statistics.median(times[name, "otel"])) if (name, "otel") in times else ""
        print(f"{name:34} {shown(own):>12} {shown(other):>12} {ratios} {otel:>12}{verdict}")


def holding(series: int) -> None:
    """Print what one histogram series with two labels and 16 buckets takes, all of its buckets counted in."""

    def taken(begin: Callable[[], Callable[[str], Any]]) -> float:
        labelled = begin()
        labelled("warm").observe(1)
        gc.collect()
        tracemalloc.start()
        for number in range(series):
            child = labelled(f"key-{number}")
            for bound in range(17):
                child.observe(bound * 0.6)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return used / series

    def ours() -> Callable[[str], Any]:
        histogram = Metrics(max_series=2 * series).histogram("work", "Work.", ("key", "other"), unit="seconds")
        return lambda key: histogram.labels(key, "a")

    def theirs() -> Callable[[str], Any]:
        bounds = Metrics().histogram("work").bounds
        histogram = prometheus_client.Histogram(
            "work", "W.", ("key", "other"), registry=CollectorRegistry(), buckets=bounds
        )
        return lambda key: histogram.labels(key, "a")

    own, control, other = taken(ours), taken(ours), taken(theirs)
    met = "" if own / other <= 1 / 3 else "  missed"
    print(f"bytes a 16-bucket series           {own:12.0f} {other:12.0f} {own / other:7.2f} {1 / 3:7.2f}", end="")
    print(f" {control / own:6.2f}{met}")


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def attack(values: int) -> None:
    """Print what so many distinct label values leave behind."""
    metrics = Metrics()
    jobs = metrics.counter("jobs", "Jobs.", ("user",))
    tracemalloc.start()
    for number in range(values // 2):
        jobs.labels(f"user-{number}").inc()
        metrics.increment("security", event="failed_login", source=address(number))
    gc.collect()
    half = tracemalloc.get_traced_memory()[0], len(jobs.series), len(metrics.render().body)
    for number in range(values // 2, values):
        jobs.labels(f"user-{number}").inc()
        metrics.increment("security", event="failed_login", source=address(number))
    gc.collect()
    full = tracemalloc.get_traced_memory()[0], len(jobs.series), len(metrics.render().body)
    tracemalloc.stop()
    for what, before, after in zip(("bytes held", "series", "bytes of a scrape"), half, full, strict=True):
        print(f"{what:18} after {values // 2} distinct values {before:9}, after {values} {after:9}")


def stalling(series: int, times: int) -> None:
    """Print how long an event loop stands still at most while it serves a scrape of so many series, gzipped."""
    metrics, registry = Metrics(max_series=series + 1), CollectorRegistry()
    counter = metrics.counter("hits", "Hits.", ("key", "other"))
    their_counter = prometheus_client.Counter("hits", "Hits.", ("key", "other"), registry=registry)
    for number in range(series):
        counter.labels(f"key-{number}", "a").inc(number)
        their_counter.labels(f"key-{number}", "a").inc(number)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"accept-encoding", b"gzip")],
    }

    async def longest(app: Any) -> float:
        gaps: list[float] = []

        async def tick() -> None:
            last = time.process_time()
            while True:
                await asyncio.sleep(0.0002)  # noqa: TID251 - the real loop is what is measured
                now = time.process_time()
                gaps.append(now - last)
                last = now

        async def receive() -> dict[str, object]:
            return {"type": "http.request"}

        async def send(_message: object) -> None:
            return

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.005)  # noqa: TID251
        gaps.clear()
        if app is not None:
            await app(scope, receive, send)
        await asyncio.sleep(0.005)  # noqa: TID251
        ticking.cancel()
        return max(gaps) * 1000

    apps = {
        "idle": None,
        "reliakit": metrics.asgi_app,
        "prometheus_client": prometheus_client.make_asgi_app(registry),
    }
    found: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(times):
        for name in random.sample(list(apps), len(apps)):
            found[name].append(asyncio.run(longest(apps[name])))
    for name, gaps in found.items():
        met = "  missed" if name == "reliakit" and statistics.median(gaps) >= 5 else ""
        print(f"longest stall of an event loop at a scrape of {series} series, {name:18}", end="")
        print(f" median {statistics.median(gaps):7.2f} ms, worst {max(gaps):7.2f} ms{met}")


def importing() -> None:
    """Print whether `import reliakit`, and counting and rendering, load prometheus_client."""
    for code in ("import reliakit", "from reliakit import Metrics; m = Metrics(); m.increment('error'); m.render()"):
        asked = f"{code}\nimport sys; print('prometheus_client' in sys.modules, 'opentelemetry' in sys.modules)"
        told = subprocess.run(
            [sys.executable, "-c", asked], capture_output=True, text=True, check=True
        ).stdout.split()
        print(f"{code.split(';')[0]!r} loads prometheus_client: {told[0]}, opentelemetry: {told[1]}")


def shown(nanoseconds: float) -> str:
    return f"{nanoseconds:.0f} ns" if nanoseconds < 1e5 else f"{nanoseconds / 1e6:.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of a minute")
    parser.add_argument("--threads", type=int, default=1, help="threads that count at once")
    options = parser.parse_args()
    prometheus_client.disable_created_metrics()  # they would double its counters' lines
    rounds, times = (15, 2_000) if options.quick else (100, 10_000)
    if options.threads > 1:
        rounds //= 3
        times *= 10  # longer than the interpreter lets one thread run, so that they do meet
    run(counting(times, options.threads), rounds)
    print()
    run(scraping(10_000), 7 if options.quick else 40)
    print()
    holding(200 if options.quick else 1000)
    print()
    attack(10_000 if options.quick else 100_000)
    print()
    stalling(10_000, 5 if options.quick else 30)
    print()
    importing()


if __name__ == "__main__":
    main()
