"""Metrics beside prometheus_client: counting, measuring, looking up a series, and a scrape of 10 000 series.

Each case is measured in small rounds, in random order, in one process; reliakit's own code runs a second time as the
control, whose ratio to the first shows the noise. Printed are medians and ratios of medians.

    python benchmarks/metrics.py [--quick] [--threads N]
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, generate_latest

from reliakit.metrics import Metrics

Case = Callable[[], float]
LABELS = ("auth", "login", "commit")


def counted(work: Callable[[], object], times: int) -> Case:
    """Return a case that runs `work` that often and returns nanoseconds each."""

    def case() -> float:
        repeat = range(times)
        start = time.perf_counter_ns()
        for _ in repeat:
            work()
        return (time.perf_counter_ns() - start) / times

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
    return {
        name: (
            {
                "reliakit": threaded(counted(own, times), threads),
                "control": threaded(counted(own, times), threads),
                "prometheus_client": threaded(counted(other, times), threads),
            },
            target,
        )
        for name, (own, other, target) in pairs.items()
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
    print(f"{'case':34} {'reliakit':>12} {'prometheus':>12} {'ratio':>7} {'target':>7} {'A/A':>6}")
    for name, (_, target) in cases.items():
        own, control, other = (
            statistics.median(times[name, who]) for who in ("reliakit", "control", "prometheus_client")
        )
        verdict = "" if own / other <= target else "  missed"
        ratios = f"{own / other:7.2f} {target:7.2f} {control / own:6.2f}"
        print(f"{name:34} {shown(own):>12} {shown(other):>12} {ratios}{verdict}")


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


if __name__ == "__main__":
    main()
