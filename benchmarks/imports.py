"""What an import costs: `import reliakit` beside `import logging`, each in fresh processes.

Every statement runs in processes of its own, in an order that is shuffled anew in each round, so that a busy moment
of the machine falls on all of them alike. A process times its own statement and reports CPU-independent wall time of
that alone; starting the interpreter does not count. `import logging` stands in the list twice: the ratio of the two
is what chance alone makes of equal things.

    python benchmarks/imports.py [rounds]
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys

STATEMENTS = {
    "import logging": "import logging",
    "import logging (again)": "import logging",
    "import reliakit": "import reliakit",
    "from reliakit import CircuitBreaker": "from reliakit import CircuitBreaker",
    "from reliakit import classify": "from reliakit import classify",
    "import asyncio": "import asyncio",
    "import psycopg": "import psycopg",
    "import prometheus_client": "import prometheus_client",
}
TARGET = 2.0
CHILD = """
import sys, time
begin = time.perf_counter()
{statement}
print(time.perf_counter() - begin)
"""


def cost(statement: str) -> float:
    """Return the seconds that the statement takes in a fresh process."""
    # -I leaves the user's own site and PYTHON* variables out of it.
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD.format(statement=statement)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Print each statement's median and its ratio to `import logging`; `--quick` takes fewer rounds."""
    rounds = 9 if "--quick" in sys.argv else 31
    for statement in STATEMENTS.values():  # once for the disk's and the bytecode's caches
        cost(statement)
    taken: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name in random.sample(list(STATEMENTS), len(STATEMENTS)):
            taken[name].append(cost(STATEMENTS[name]))
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    reference = medians["import logging"]
    print(f"{rounds} fresh processes each, Python {sys.version.split()[0]}; median, ratio to `import logging`")
    for name, median in medians.items():
        low, _, high = statistics.quantiles(taken[name], n=4)
        print(f"{name:40} {median * 1e3:7.2f} ms  ({low * 1e3:.2f} to {high * 1e3:.2f})  {median / reference:5.2f}x")
    ratio = medians["import reliakit"] / reference
    print(f"target: `import reliakit` below {TARGET:g}x `import logging`: {'met' if ratio < TARGET else 'MISSED'}")


if __name__ == "__main__":
    main()
