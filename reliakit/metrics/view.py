"""All metrics as they are now, for those that read them: a scrape, a sink, a registry of prometheus_client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.apps import Scrape
from reliakit.metrics.exposition import OPENMETRICS, TEXT, pieces, wants_openmetrics
from reliakit.metrics.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reliakit.metrics.family import AnyFamily
    from reliakit.metrics.shared import SharedFiles
    from reliakit.metrics.shelf import Shelf
    from reliakit.metrics.verdicts import Verdict

__all__ = ["View"]

# Rendering more lines than this takes longer than an event loop should be blocked.
_MANY = 1000


class View:
    """Brings all metrics up to date and shows them. Takes no lock; safe from any thread.

    Args:
        shelf: The metrics.
        verdicts: Judges the objectives, and reads what components count themselves on the way.
        files: The shared files, or None if the numbers are in this process alone.
    """

    def __init__(self, shelf: Shelf, verdicts: Callable[[], list[Verdict]], files: SharedFiles | None) -> None:
        self._shelf = shelf
        self._verdicts = verdicts
        self._files = files
        self._results = Results(shelf)
        self._held = shelf.gauge("metrics_series")

    def families(self) -> list[AnyFamily]:
        """Return all metrics, those about the metrics themselves brought up to date."""
        self._results.show(self._verdicts())
        families = self._shelf.all()
        # Finding its series may give that metric another one, so all are found before any is set.
        full = [
            (self._held.labels(family.name), family) for family in families if family.series or family is self._held
        ]
        for gauge, family in full:
            gauge.set(len(family.series))
        return families

    def scrape(self, accept: str | None) -> Scrape:
        """Begin a scrape in the format that an Accept header prefers."""
        openmetrics = wants_openmetrics(accept)
        return Scrape(self._pieces(openmetrics), OPENMETRICS if openmetrics else TEXT)

    def _pieces(self, openmetrics: bool) -> Iterator[bytes]:
        families = self.families()
        if self._files is not None:
            yield self._files.render(openmetrics=openmetrics)
            return
        for piece in pieces(families, openmetrics=openmetrics):
            yield piece.encode("utf-8", "replace")

    def is_large(self) -> bool:
        """Return whether rendering takes longer than an event loop should be blocked."""
        return self._files is not None or sum(len(one.series) * one.width for one in self._shelf.all()) > _MANY

    def size(self) -> int:
        """Return how many series there are."""
        return sum(len(family.series) for family in self._shelf.all())
