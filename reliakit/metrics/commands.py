"""`python -m reliakit metrics ...` and `python -m reliakit slo URL`.

The first prints what is made from the declarations; the second reads the verdicts in a service's own scrape.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.metrics.declare import is_name
from reliakit.metrics.monitoring.dashboard import dashboard
from reliakit.metrics.monitoring.kit import Kit
from reliakit.metrics.monitoring.pages import catalogue, runbooks
from reliakit.metrics.monitoring.rules import RULES_FILE, rules, rules_test
from reliakit.metrics.registry import Metrics
from reliakit.metrics.scraped import Judged, fetched, judged

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_RUNBOOKS = "docs/runbooks.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 1 for a breached objective, or 2 if it cannot be done."""
    asked = _parser().parse_args(arguments)
    return _slo(asked) if asked.command == "slo" else _metrics(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m reliakit", description="Commands around a service's metrics.")
    commands = parser.add_subparsers(dest="command", required=True)
    metrics = commands.add_parser("metrics", help="print what the declarations of the metrics make")
    metrics.add_argument(
        "what",
        choices=("catalogue", "rules", "rules-test", "dashboard", "runbooks"),
        help="a page of all metrics; Prometheus rules; their tests for promtool; a Grafana dashboard; the runbooks",
    )
    metrics.add_argument("--namespace", default="reliakit", help="what Metrics(namespace) was given (reliakit)")
    metrics.add_argument(
        "--of", metavar="MODULE:NAME", help="a Metrics of yours, or a function that returns it: its own declarations"
    )
    metrics.add_argument("--runbooks", default=_RUNBOOKS, metavar="URL", help="where the alerts link to")
    metrics.add_argument("--rules-file", default=RULES_FILE, metavar="FILE", help="the rules that rules-test tests")
    slo = commands.add_parser("slo", help="print a service's verdicts; exit 1 if an objective is breached")
    slo.add_argument("url", nargs="+", help="where the service shows its metrics, or - for standard input")
    slo.add_argument("--strict", action="store_true", help="exit 1 unless every objective is met")
    slo.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each URL (10)")
    return parser


def _metrics(asked: argparse.Namespace) -> int:
    try:
        kit = _kit(asked)
    except (ConfigurationError, ImportError, AttributeError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    made = {
        "catalogue": lambda: catalogue(kit),
        "rules": lambda: rules(kit, asked.runbooks),
        "rules-test": lambda: rules_test(kit, asked.runbooks, asked.rules_file),
        "dashboard": lambda: dashboard(kit),
        "runbooks": lambda: runbooks(kit),
    }
    sys.stdout.write(made[asked.what]())
    return 0


def _kit(asked: argparse.Namespace) -> Kit:
    if asked.of:
        module, _, name = asked.of.partition(":")
        found = getattr(importlib.import_module(module), name or "metrics")
        metrics = found() if callable(found) and not isinstance(found, Metrics) else found
        if not isinstance(metrics, Metrics):
            raise ConfigurationError(f"--of must lead to a Metrics, {asked.of} is {metrics!r}")
        return Kit.of(metrics)
    if asked.namespace and not is_name(asked.namespace):
        raise ConfigurationError(f"--namespace must be letters, digits and _, or empty, got {asked.namespace!r}")
    return Kit(namespace=asked.namespace)


def _slo(asked: argparse.Namespace) -> int:
    worst = 0
    for url in asked.url:
        try:
            text = sys.stdin.read() if url == "-" else fetched(url, asked.timeout)
            found = judged(text)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"{url}: {error}\n")
            worst = 2
            continue
        if len(asked.url) > 1:
            sys.stdout.write(f"{url}\n")
        sys.stdout.write("".join(f"{line}\n" for line in _table(found)))
        bad = ("breached", "at_risk", "insufficient_data") if asked.strict else ("breached",)
        worst = max(worst, int(any(one.verdict in bad for one in found)))
    return worst


def _table(found: list[Judged]) -> list[str]:
    rows: list[tuple[str, ...]] = [("objective", "verdict", "value", "target", "events", "budget left", "pace")]
    rows += [one.row() for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
