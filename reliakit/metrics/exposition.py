"""The two text formats that Prometheus reads, and which one a client asked for.

Sources: the Prometheus text format 0.0.4 and OpenMetrics 1.0. Most of a line never changes, so a series keeps its
label text ready and a scrape only appends numbers.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from reliakit.metrics.family import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from reliakit.metrics.family import AnyFamily
    from reliakit.metrics.series import Exemplar, HistogramSeries

__all__ = ["OPENMETRICS", "TEXT", "Exposition", "is_trace_id", "pieces", "wants_openmetrics"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
# How many lines make one piece, which takes about a quarter of a millisecond.
_PIECE = 400
# OpenMetrics allows 128 characters for name and value together, and not every parser handles escapes there.
_TRACE_ID = re.compile("[0-9A-Za-z_-]{1,100}")
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Exposition(NamedTuple):
    """The metrics as text, as a scrape gets them.

    Attributes:
        body: The metrics, UTF-8.
        content_type: The value of the Content-Type header.
    """

    body: bytes
    content_type: str


def pieces(families: Iterable[AnyFamily], *, openmetrics: bool) -> Iterator[str]:
    """Yield all series as text, in the order in which they were declared and made.

    Each piece takes a fraction of a millisecond, however many series there are.
    """
    lines: list[str] = []
    held = 0
    for family in families:
        lines.append(_head(family, openmetrics=openmetrics))
        for sample in _samples(family, openmetrics=openmetrics):
            lines.append(sample)
            held += family.width
            if held >= _PIECE:
                yield "".join(lines)
                lines.clear()
                held = 0
    if openmetrics:
        lines.append("# EOF\n")
    yield "".join(lines)


def _head(family: AnyFamily, *, openmetrics: bool) -> str:
    metric = family.metric
    name = family.name
    if openmetrics and metric.kind == "counter":
        name = name.removesuffix("_total")
    unit = f"# UNIT {name} {metric.unit}\n" if openmetrics and metric.unit else ""
    return f"# HELP {name} {_help(metric.help, quotes=openmetrics)}\n# TYPE {name} {metric.kind}\n{unit}"


def _samples(family: AnyFamily, *, openmetrics: bool) -> Iterator[str]:
    name = family.name
    if isinstance(family, Gauge):
        for gauge in family.series[:]:
            value = gauge.get()
            if value == value:  # noqa: PLR0124 - not a number: nothing is known
                yield _line(name, gauge.prefix, value)
    elif isinstance(family, Counter):
        for one, cells in family.read():
            yield _line(name, one.prefix, cells[0])
    else:
        bounds = [f'le="{bound!r}"}} ' for bound in family.bounds] + ['le="+Inf"} ']
        for series, cells in family.read():
            yield _histogram(name, series, bounds, cells, exemplars=openmetrics)


def _line(name: str, labels: str, value: float) -> str:
    return f"{name}{{{labels}}} {float(value)!r}\n" if labels else f"{name} {float(value)!r}\n"


def _histogram(
    name: str, series: HistogramSeries, bounds: list[str], cells: Sequence[float], *, exemplars: bool
) -> str:
    labels = series.prefix
    start = f"{name}_bucket{{{labels}," if labels else f"{name}_bucket{{"
    *counts, total = cells
    running = list(accumulate(counts))
    lines = [f"{start}{bound}{float(count)!r}\n" for bound, count in zip(bounds, running, strict=True)]
    if exemplars and series.exemplars:
        for bucket, exemplar in series.exemplars.copy().items():
            # An exemplar may be newer than the counts that were read before it; its bucket is then shown without it.
            if counts[bucket]:
                lines[bucket] = f"{lines[bucket][:-1]}{_exemplar(exemplar)}\n"
    return f"{''.join(lines)}{_line(f'{name}_count', labels, running[-1])}{_line(f'{name}_sum', labels, total)}"


def _exemplar(exemplar: Exemplar) -> str:
    if not is_trace_id(exemplar.trace_id):
        return ""
    return f' # {{trace_id="{exemplar.trace_id}"}} {float(exemplar.value)!r} {exemplar.at:.3f}'


def is_trace_id(trace_id: object) -> bool:
    """Return whether an exemplar can carry this id."""
    return isinstance(trace_id, str) and _TRACE_ID.fullmatch(trace_id) is not None


def _help(text: str, *, quotes: bool) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if quotes else escaped


def wants_openmetrics(accept: str | None) -> bool:
    """Return whether an Accept header prefers OpenMetrics 1.0 to the plain text format.

    The greater `q` wins, and among equals the one that comes first. No header, `*/*` and anything that names neither
    mean plain text, which every client of the last decade reads.
    """
    best: dict[bool, tuple[float, int]] = {}
    for position, part in enumerate((accept or "").split(",")):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        settings = {name: value.strip('"') for name, _, value in (piece.partition("=") for piece in parameters)}
        is_open = kind == "application/openmetrics-text" and settings.get("version", "1.0.0") == "1.0.0"
        if is_open or kind in {"text/plain", "text/*", "*/*"}:
            rank = (_quality(settings.get("q", "1")), -position)
            best[is_open] = max(best.get(is_open, (0.0, 0)), rank)
    opened = best.get(True, (0.0, 0))
    return opened[0] > 0 and opened > best.get(False, (0.0, 0))


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
