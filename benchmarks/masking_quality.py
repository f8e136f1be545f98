"""How much of a labelled corpus masking hides, and how much it hides that is none.

The corpus is a Python file with a function `corpus()` that returns cases. A case has `kind`, `positive`, `payload` (a
text or a record), `secrets` (none of which may survive, nor five characters in a row of one of them) and `keep` (what
must survive). Printed are recall, the share of harmless cases that were touched, the share of surroundings that were
lost, and every kind that fell short, with one example of each.

    python benchmarks/masking_quality.py [PATH] [--sample N]

Without a path it is the corpus of this repository's tests, which were written beside the rules: that only shows that
the script works.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reliakit.logs import Masker

LEAST_LEAK = 5
RECALL, FALSE_POSITIVES = 1.0, 0.02


def load(path: str) -> Any:
    """Return the corpus module at a path."""
    spec = importlib.util.spec_from_file_location("masking_corpus_under_test", path)
    if spec is None or spec.loader is None:
        sys.exit(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rendered(value: object) -> str:
    """Return a value as the text in which leaks are looked for."""

    def plain(item: Any) -> object:
        if isinstance(item, dict):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple | set | frozenset):
            return [plain(entry) for entry in item]
        if isinstance(item, bytes | bytearray):
            return bytes(item).decode("utf-8", "replace")
        return item

    return value if isinstance(value, str) else json.dumps(plain(value), default=str, ensure_ascii=False)


def leaks(secret: str, out: str) -> bool:
    """Return whether a secret, or a recognisable piece of it, is left."""
    if len(secret) <= 8:
        return secret in out
    return any(secret[at : at + LEAST_LEAK] in out for at in range(len(secret) - LEAST_LEAK + 1))


@dataclass
class Own:
    """A case of the tests, as this script wants one."""

    kind: str
    positive: bool
    payload: object
    secrets: list[str] = field(default_factory=list)
    keep: list[str] = field(default_factory=list)


def own_corpus() -> Iterator[Own]:
    """Yield the cases of the tests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import masker_cases as cases

    for kind, found in (
        ("keys", cases.KEYS),
        ("texts", cases.TEXTS),
        ("shapes", cases.SHAPES),
        ("tokens", cases.VENDORS),
    ):
        yield from (Own(kind, True, case.value, case.secrets, case.keep) for case in found)
    yield from (Own("text", False, text, keep=[text]) for text in cases.HARMLESS_TEXTS if "clone" not in text)
    yield from (
        Own("field", False, {name: value}, keep=[str(value)])
        for name, value in cases.HARMLESS_FIELDS.items()
        if isinstance(value, str) or type(value) is int
    )


class Score:
    """What was found in one corpus."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[bool, str]] = Counter()
        self.missed: dict[str, list[str]] = defaultdict(list)
        self.touched: dict[str, list[str]] = defaultdict(list)
        self.lost: dict[str, list[str]] = defaultdict(list)
        self.kept = 0

    def add(self, case: Any, out: str) -> None:
        """Judge one case by what came out."""
        self.seen[case.positive, case.kind] += 1
        gone = [text for text in case.keep if text not in out]
        if not case.positive:
            if gone:
                self.touched[case.kind].append(f"{rendered(case.payload)}  ->  {out}")
            return
        if any(leaks(secret, out) for secret in case.secrets):
            self.missed[case.kind].append(f"{rendered(case.payload)}  ->  {out}")
        self.kept += len(case.keep)
        self.lost[case.kind] += [f"{text!r} from {rendered(case.payload)}  ->  {out}" for text in gone]

    def total(self, *, positive: bool) -> int:
        """Return how many cases of this label there are."""
        return sum(count for (label, _), count in self.seen.items() if label is positive)


def judge(mask: Callable[[Any], Any], cases: Iterable[Any]) -> Score:
    """Mask every case and judge it."""
    score = Score()
    for case in cases:
        score.add(case, rendered(mask(copy.deepcopy(case.payload))))
    return score


def report(score: Score, sample: int) -> bool:
    """Print the figures; return whether both bars are met."""
    positives, negatives = score.total(positive=True), score.total(positive=False)
    misses, touched = sum(map(len, score.missed.values())), sum(map(len, score.touched.values()))
    lost = sum(map(len, score.lost.values()))
    kinds = Counter(label for label, _ in score.seen)
    recall = 1 - misses / positives if positives else 1.0
    false = touched / negatives if negatives else 0.0
    print(f"{positives} positives in {kinds[True]} kinds, {negatives} negatives in {kinds[False]} kinds")
    print(f"recall           {recall:.4f}  (bar {RECALL:.2f})")
    print(f"false positives  {false:.4f}  (bar {FALSE_POSITIVES:.2f})")
    print(f"over-masked      {lost / score.kept if score.kept else 0.0:.4f}")
    for title, found, positive in (
        ("missed", score.missed, True),
        ("touched although harmless", score.touched, False),
        ("surroundings lost", score.lost, True),
    ):
        for kind, examples in sorted(found.items()):
            if examples:
                print(f"\n{title}: {kind}, {len(examples)} of {score.seen[positive, kind]}")
                for example in examples[:sample]:
                    print(f"    {example[:400]}")
    return recall >= RECALL and false <= FALSE_POSITIVES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", help="a Python file with a function corpus()")
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes a second")
    parser.add_argument("--sample", type=int, default=1, help="how many examples of each kind that fell short")
    given = parser.parse_args()
    cases = list(load(given.path).corpus() if given.path else own_corpus())
    start = time.perf_counter()
    score = judge(Masker().mask, cases)
    taken = time.perf_counter() - start
    met = report(score, given.sample)
    print(f"\n{taken / max(1, len(cases)) * 1e6:.0f} microseconds a case")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
