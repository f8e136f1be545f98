"""The judgement: each figure of a run against its objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reliakit import pooled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from examples.demo.figures import Figures, Truth
    from examples.demo.planted import Planted, Scan
    from examples.demo.tally import Tally

_DURATION = "reliakit_transaction_duration_seconds"
_TRANSACTIONS = "reliakit_transaction_total"
_STATUSES = ("commit", "rollback", "timeout", "unknown")
Verdict = Literal["met", "at_risk", "breached", "told"]
# Too little to tell is too little to be sure either way.
_NAMES: dict[str, Verdict] = {
    "met": "met",
    "at_risk": "at_risk",
    "breached": "breached",
    "insufficient_data": "at_risk",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: What came out; empty for a heading.
        objective: What it had to be; empty for a line that only tells.
        verdict: "told" for a line without an objective; "at_risk" when there is too little to be sure either way.
    """

    name: str
    value: str = ""
    objective: str = ""
    verdict: Verdict = "told"


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that is known of a run."""

    tally: Tally
    figures: Figures
    truth: Truth
    planted: Planted
    scan: Scan
    people: int
    seconds: float
    with_faults: bool
    settled_after: float | None
    exit_codes: Mapping[str, int]
    sessions_left: int

    @property
    def guesses_allowed(self) -> int:
        """Five at once, then one after 1, 3, 7, 15 ... seconds; preparing the run and settling it take time too."""
        return 5 + int(math.log2(self.seconds + 10.0 + 1.0))


def judge(run: Run) -> list[Row]:
    """Return the table, in the order it is read."""
    return [*_requests(run), *_transactions(run), *_security(run), *_data(run), *_leftovers(run)]


def _requests(run: Run) -> list[Row]:
    tally = run.tally
    failed = sum(tally.problems.values())
    defects = tally.problems["500 internal_error"] + tally.problems["500 without a code"]
    rows = [
        Row("Requests"),
        Row("sent", f"{tally.requests:,} in {run.seconds:.0f} s, {tally.tried_again} of them again"),
        Row("failed", f"{failed} ({failed / tally.requests:.2%}){_list(tally.problems)}"),
        _row("failed by a defect", defects, "0", defects == 0),
        _objective(run.figures, "errors_tracked", "errors tracked", "{:.1%}", "{:.0%}"),
        _grouped(run.figures),
        _objective(run.figures, "error_resolution", "oldest open error", "{:.0f} s", "at most {:.0f} s"),
        Row("errors by type", _list(_whole(run.figures.by("reliakit_error_total", "type")), none="none")),
        Row("pages shown without names", str(tally.incomplete_pages)),
    ]
    if run.with_faults:
        opened = run.figures.total("reliakit_circuit_breaker_transitions_total", to="open")
        closed = run.figures.total("reliakit_circuit_breaker_transitions_total", to="closed")
        is_met = run.settled_after is not None and opened > 0 and closed > 0
        rows.append(_row("breaker opened, closed", f"{opened:.0f}, {closed:.0f}", "at least 1, 1", is_met))
    return rows


def _transactions(run: Run) -> list[Row]:
    figures = run.figures
    ended = {status: figures.total(_TRANSACTIONS, status=status) for status in _STATUSES}
    return [
        Row("Transactions"),
        Row("ended by", ", ".join(f"{status} {count:,.0f}" for status, count in ended.items())),
        Row(
            "tried again after",
            _list(_whole(figures.by("reliakit_transaction_retries_total", "reason")), none="none"),
        ),
        Row("p50, p95", f"{_ms(figures.quantile(_DURATION, 0.5))}, {_ms(figures.quantile(_DURATION, 0.95))}"),
        _objective(figures, "transaction_latency", "within 0.1 s", "{:.1%}", "at least {:.0%}"),
        _objective(figures, "rollback_rate", "rolled back", "{:.2%}", "at most {:.0%}"),
        _objective(figures, "deadlocks", "deadlocks surfaced", "{:.0f}", "{:.0f}"),
        _objective(figures, "leaked_connections", "connections leaked", "{:.0f}", "{:.0f}"),
    ]


def _objective(figures: Figures, name: str, title: str, value: str, target: str) -> Row:
    """Pool the services' verdicts on one objective; who is outside on its own is not talked away by the others."""
    told = [verdict for its in figures.verdicts.values() for verdict in its if verdict.objective == name]
    judged = next(iter(pooled(told)), None)
    if judged is None or judged.value is None:
        return Row(title, "nothing happened")
    verdict: Verdict = "breached" if any(one.verdict == "breached" for one in told) else _NAMES[judged.verdict]
    return Row(title, value.format(judged.value), target.format(judged.target), verdict)


def _grouped(figures: Figures) -> Row:
    errors = figures.total("reliakit_error_total")
    grouped = sum(group["count"] for group in figures.errors)
    is_open = sum(group["state"] == "open" for group in figures.errors)
    text = f"{grouped} of {errors:.0f}, {len(figures.errors)} causes, {is_open} of them open"
    return _row("errors grouped by cause", text, f"{errors:.0f}", grouped == errors)


def _security(run: Run) -> list[Row]:
    tally, scan = run.tally, run.scan
    let_in = sum(tally.surprises.values())
    counted = run.figures.total("reliakit_security_total", event="failed_login")
    found = ", ".join(sorted({f"{kind} in {file}" for kind, file in scan.found}))
    has_looked = scan.markers == len(run.planted.markers) > 0
    return [
        Row("Security"),
        Row("rejected logins", f"{tally.wrong_passwords} by password, {tally.guesses_turned_away} by the guard"),
        Row("failed logins counted", f"{counted:.0f}"),
        _row(
            "attacker's guesses looked at",
            f"{tally.guesses_answered} of {tally.guesses_answered + tally.guesses_turned_away}",
            f"at most {run.guesses_allowed}",
            tally.guesses_answered <= run.guesses_allowed,
        ),
        _row("forged tokens, bad input let in", f"{let_in}{_list(tally.surprises)}", "0", let_in == 0),
        _row(
            "planted secrets in logs",
            f"{found or 0} of {len(run.planted.secrets):,}, in {scan.lines:,} lines",
            "0",
            not scan.found and has_looked,
        ),
        _objective(run.figures, "secrets_masked", "secrets masked", "{:.1%}", "{:.0%}"),
    ]


def _data(run: Run) -> list[Row]:
    tally, truth = run.tally, run.truth
    kinds = ("raise", "transfer")
    acknowledged = sum(len(tally.ids(kind, "acknowledged")) for kind in kinds)
    refused = sum(len(tally.ids(kind, "refused")) for kind in kinds)
    unknown = sum(len(tally.ids(kind, "unknown")) for kind in kinds)
    lost = run.people - truth.people
    return [
        Row("Data"),
        _row("acknowledged writes missing", f"{truth.missing} of {acknowledged:,}", "0", truth.missing == 0),
        _row("refused writes that happened", f"{truth.ghosts} of {refused:,}", "0", truth.ghosts == 0),
        _row("writes without a final answer", unknown, "0", unknown == 0),
        _row("cents made or lost", truth.money, "0", truth.money == 0),
        _row("people made or lost", abs(lost), "0", lost == 0),
        _row("head counts that are wrong", truth.heads, "0", truth.heads == 0),
        _row("people on another project elsewhere", truth.untold, "0", truth.untold == 0),
    ]


def _leftovers(run: Run) -> list[Row]:
    unclean = {name: code for name, code in run.exit_codes.items() if code != 0}
    left, had = run.sessions_left, run.truth.sessions
    return [
        Row("Leftovers"),
        _row("sessions in a transaction", run.truth.stuck, "0", run.truth.stuck == 0),
        _row("sessions after the services", f"{left} of {had}", "0", left == 0),
        _row("services that ended badly", str(unclean or 0), "0", not unclean),
    ]


def _whole(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items()}


def _row(name: str, value: object, objective: str, is_met: bool) -> Row:
    return Row(name, str(value), objective, "met" if is_met else "breached")


def _list(counts: Mapping[str, int], none: str = "") -> str:
    """Name the four most frequent and count the rest."""
    ordered = sorted(((count, name) for name, count in counts.items() if count), reverse=True)
    named = [f"{name} {count}" for count, name in ordered[:4]]
    if ordered[4:]:
        named.append(f"others {sum(count for count, _ in ordered[4:])}")
    if none:
        return ", ".join(named) or none
    return f": {', '.join(named)}" if named else ""


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
