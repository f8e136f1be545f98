"""Measure cases side by side: small batches in an order shuffled anew in each round, medians, ratios of medians."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable

Case = Callable[[int], None]


def compare(
    title: str, cases: dict[str, Case], reference: str, *, quick: bool, batch: int = 2000
) -> dict[str, float]:
    """Run each case, a callable that does its work so many times, and print what one time takes.

    A case that stands in twice under two names is the control: its ratio to itself is what chance makes of equals.
    Time is the processor time of this thread, so that other programs on the machine weigh less.

    Returns:
        Nanoseconds for one time, by case: the median over all rounds.
    """
    rounds = 15 if quick else 101
    for run in cases.values():
        run(batch)
    taken: dict[str, list[float]] = {name: [] for name in cases}
    gc.collect()
    for _ in range(rounds):
        for name in random.sample(list(cases), len(cases)):
            begin = time.thread_time_ns()
            cases[name](batch)
            taken[name].append((time.thread_time_ns() - begin) / batch)
    medians = {name: statistics.median(samples) for name, samples in taken.items()}
    print(f"\n{title} ({rounds} rounds of {batch}; ns, ratio to {reference!r})")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        print(f"  {name:44} {median:9.0f}  {median / medians[reference]:7.2f}x")
    return medians


def skipped(package: str) -> None:
    """Say that a peer is left out because it is not installed."""
    print(f"{package} is not installed and left out: pip install {package}")


def python() -> str:
    """Return the version that runs this."""
    return f"Python {sys.version.split()[0]}"
