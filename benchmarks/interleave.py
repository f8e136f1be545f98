"""Measure cases side by side: small batches in an order shuffled anew in each round, medians, ratios of medians."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping

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

    def taking(run: Case) -> Callable[[], float]:
        def sample() -> float:
            begin = time.thread_time_ns()
            run(batch)
            return (time.thread_time_ns() - begin) / batch

        return sample

    for run in cases.values():
        run(batch)
    taken = interleave({name: taking(run) for name, run in cases.items()}, rounds)
    return report(f"{title} ({rounds} rounds of {batch}; ns, ratio to {reference!r})", taken, reference)


def interleave(samples: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Take one sample of each in every round, in an order shuffled anew, and return them by name."""
    taken: dict[str, list[float]] = {name: [] for name in samples}
    gc.collect()
    for _ in range(rounds):
        for name in random.sample(list(samples), len(samples)):
            taken[name].append(samples[name]())
    return taken


def report(
    title: str, taken: Mapping[str, list[float]], reference: str, asides: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Print the median of each, fastest first, with its ratio to the reference's; return the medians.

    In brackets stand the quartiles of the ratios within one round, which show how steady they were.

    Args:
        title: The heading.
        taken: The samples by name, of the same rounds.
        reference: The name that the others are compared to.
        asides: What else to print in a line.
    """
    medians = {name: statistics.median(samples) for name, samples in taken.items()}
    print(f"\n{title}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        low, middle, high = statistics.quantiles(
            (mine / theirs for mine, theirs in zip(taken[name], taken[reference], strict=True)),
            n=4,
            method="inclusive",
        )
        aside = asides.get(name, "") if asides else ""
        quartiles = f"[{low:.2f} {middle:.2f} {high:.2f}]"
        print(f"  {name:44} {median:9.0f}  {median / medians[reference]:7.2f}x  {quartiles}  {aside}".rstrip())
    return medians


def skipped(package: str) -> None:
    """Say that a peer is left out because it is not installed."""
    print(f"{package} is not installed and left out: pip install {package}")


def python() -> str:
    """Return the version that runs this."""
    return f"Python {sys.version.split()[0]}"
