"""What the demo shows: a live picture on a terminal, plain lines anywhere else, and the table of verdicts."""

from __future__ import annotations

import io
import os
import re
from collections import deque
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.demo.stage import SERVICES
from reliakit import SYSTEM_CLOCK

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from examples.demo.figures import Figures
    from examples.demo.interrupt import Output
    from examples.demo.tally import Tally
    from examples.demo.verdicts import Row

_COLOURS = {"met": "green", "at_risk": "yellow", "breached": "bold red", "told": "dim"}


class Screen:
    """Shows a run while it goes on and what came of it."""

    def __init__(self, output: Output) -> None:
        self._began = SYSTEM_CLOCK.monotonic()
        self._output = output
        self._is_live = output.isatty() and os.environ.get("TERM") != "dumb"
        self._console = Console(file=output) if self._is_live else None  # type: ignore[arg-type]  # writes like a file
        self._live: Live | None = None
        self._said: list[Text] = []
        self._recent: deque[Text] = deque(maxlen=8)
        self._picture: RenderableType = Text()
        self._table: RenderableType = Text()
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._console is not None:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_picture()

    def end_picture(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed(self) -> float:
        return SYSTEM_CLOCK.monotonic() - self._began

    def tell(self, what: str) -> None:
        """Say one thing that happened."""
        colour = {"fault:": "yellow", "over: ": "cyan"}.get(what[:6], "")
        line = Text(f"{self.elapsed:6.1f} s  {what}", style=colour)
        self._said.append(line)
        if self._console is not None:
            self._console.print(line)
        else:
            self._line(line.plain)

    def show(self, tally: Tally, figures: Figures | None, seconds: float, total: float) -> None:
        """Show where the run stands; a plain line once a second."""
        if self._live is not None:
            self._live.update(_picture(tally, figures, seconds, total))
        elif SYSTEM_CLOCK.monotonic() >= self._last_line + 1.0:
            self._last_line = SYSTEM_CLOCK.monotonic()
            each = ", ".join(f"{name} {tally.of(name)}" for name in SERVICES)
            failed = sum(tally.failed(name) for name in SERVICES)
            self._line(f"{self.elapsed:6.1f} s  {tally.requests} requests ({each}), {failed} failed")
        self._picture = _picture(tally, figures, seconds, total)

    def judge(self, rows: list[Row]) -> None:
        """Show the table."""
        self.end_picture()
        self._table = Group(_table(rows), Text(), _summary(rows))
        if self._console is not None:
            self._console.print(self._table)
            return
        width = max(len(row.name) for row in rows)
        room = max(len(row.value) for row in rows)
        for row in rows:
            if not row.value:
                self._line(f"\n{row.name}")
                continue
            objective = f"{row.objective:<14} {row.verdict.replace('_', ' ')}" if row.objective else ""
            self._line(f"  {row.name:<{width}}  {row.value:<{room}}  {objective}".rstrip())
        self._line(f"\n{_summary(rows)}")

    def save(self, file: Path) -> None:
        """Write what was on the screen as an SVG that asks nobody for fonts."""
        console = Console(file=io.StringIO(), record=True, width=118, force_terminal=True, color_system="truecolor")
        console.print(*self._said, self._picture, self._table, sep="\n")
        drawn = console.export_svg(title="python -m examples.demo", unique_id="reliakit-demo")
        drawn = re.sub(r"@font-face\s*\{.*?\}", "", drawn, flags=re.DOTALL)
        drawn = drawn.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace")
        file.write_text("\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n")

    def _line(self, text: str) -> None:
        self._output.write(text + "\n")
        self._output.flush()


def _picture(tally: Tally, figures: Figures | None, seconds: float, total: float) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for column in ("", "requests", "per second", "failed", "transactions", "tried again"):
        table.add_column(column, justify="left" if not column else "right")
    for name in SERVICES:
        cells = [name, f"{tally.of(name):,}", f"{tally.of(name) / max(seconds, 0.1):.0f}", str(tally.failed(name))]
        for status in ("commit", "retry"):
            count = figures and figures.total("reliakit_transaction_total", service=name, status=status)
            cells.append("" if count is None else f"{count:,.0f}")
        table.add_row(*cells)
    bar = ProgressBar(total=total, completed=min(seconds, total), width=60)
    return Group(Text(), Padding(bar, (0, 0, 1, 0)), table, Text())


def _table(rows: list[Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("figure", "measured", "objective", "verdict"):
        table.add_column(column, no_wrap=column != "measured")
    for row in rows:
        if not row.value:
            table.add_row(Text(f"\n{row.name}", style="bold"))
            continue
        style = _COLOURS[row.verdict]
        verdict = Text(row.verdict.replace("_", " ") if row.objective else "", style=style)
        table.add_row(f"  {row.name}", Text(row.value, style="" if row.objective else "dim"), row.objective, verdict)
    return table


def _summary(rows: list[Row]) -> Text:
    breached = [row.name for row in rows if row.verdict == "breached"]
    judged = sum(bool(row.objective) for row in rows)
    if breached:
        return Text(f"{len(breached)} of {judged} objectives breached: {', '.join(breached)}", style="bold red")
    return Text(f"none of {judged} objectives breached", style="bold green")
