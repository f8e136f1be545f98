"""The gauges of connection pools, read from the latest figures that each pool has told.

Events of one pool may arrive in another order than they were made, as threads tell them without a lock. Each carries
the number of the state that it shows, so the latest one is found whatever the order, and an idle pool always shows 0.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.events import PoolChanged, PoolFigures
    from reliakit.metrics.family import Gauge
    from reliakit.metrics.series import GaugeSeries

__all__ = ["Pools"]

# How many events may overtake the latest one before it is forgotten, and how many pools are followed.
_LATEST = 64
_MOST = 1000


class _State(NamedTuple):
    revision: int
    max_size: int
    idle: int
    in_use: int
    waiting: int
    oldest: float | None  # by the clock of the metrics


_NOTHING = _State(0, 0, 0, 0, 0, None)


class _Series:
    """The pools that share the series of one name: databases of one name, and those beyond the label's bound."""

    def __init__(self) -> None:
        self.pools: dict[tuple[str, str], deque[_State]] = {}
        self.shown: tuple[GaugeSeries, ...] = ()

    def total(self, of: Callable[[_State], int]) -> int:
        return sum(of(state) for state in self._states())

    def oldest(self) -> float | None:
        return min((state.oldest for state in self._states() if state.oldest is not None), default=None)

    def closed(self) -> list[tuple[str, str]]:
        return [
            key for key, states in self.pools.copy().items() if max(tuple(states), default=_NOTHING).max_size == 0
        ]

    def _states(self) -> list[_State]:
        return [_latest(states) for states in self.pools.copy().values()]


def _latest(states: deque[_State]) -> _State:
    return max(tuple(states), default=_NOTHING)


class Pools:
    """Keeps the latest figures of each pool. Takes no lock; safe from any thread.

    Args:
        gauge: Finds a gauge of the catalogue by its name.
        clock: What the age of a checkout grows by between two events.
    """

    def __init__(self, gauge: Callable[[str], Gauge], clock: Clock) -> None:
        self._gauge = gauge
        self._clock = clock
        self._known: dict[tuple[str, str], deque[_State]] = {}
        self._series: dict[str, _Series] = {}
        self._shown: dict[tuple[str, str], tuple[GaugeSeries, ...]] = {}

    def changed(self, event: PoolChanged) -> None:
        """Take note of a pool's figures, as an event tells them."""
        if event.revision != 0:
            self.note(event.name, event)

    def note(self, name: str, figures: PoolChanged | PoolFigures) -> None:
        """Take note of a pool's figures."""
        key = (name, figures.pool)
        states = self._known.get(key)
        if states is None:
            states = self._begin(key)
        oldest = figures.oldest_checkout
        if oldest is not None:
            oldest = self._clock.monotonic() - oldest
        idle = max(0, figures.size - figures.in_use)
        states.append(_State(figures.revision, figures.max_size, idle, figures.in_use, figures.waiting, oldest))
        for gauge in self._shown.get(key, ()):
            gauge.refresh()

    def _begin(self, key: tuple[str, str]) -> deque[_State]:
        if len(self._known) >= _MOST:
            self._forget_closed()
        if len(self._known) >= _MOST:
            return deque(maxlen=1)
        states = self._known.setdefault(key, deque(maxlen=_LATEST))
        shown = self._gauge("db_pool_max").labels(key[0]).values[0]
        series = self._series.get(shown)
        if series is None:
            series = self._series.setdefault(shown, _Series())
            self._show(shown, series)
        series.pools[key] = states
        self._shown[key] = series.shown
        return states

    def _forget_closed(self) -> None:
        for series in self._series.copy().values():
            for key in series.closed():
                series.pools.pop(key, None)
                self._known.pop(key, None)
                self._shown.pop(key, None)

    def _show(self, name: str, series: _Series) -> None:
        connections = self._gauge("db_pool_connections")
        functions: dict[GaugeSeries, Callable[[], float]] = {
            connections.labels(name, "idle"): lambda: series.total(lambda state: state.idle),
            connections.labels(name, "in_use"): lambda: series.total(lambda state: state.in_use),
            self._gauge("db_pool_max").labels(name): lambda: series.total(lambda state: state.max_size),
            self._gauge("db_pool_waiting").labels(name): lambda: series.total(lambda state: state.waiting),
            self._gauge("db_pool_checkout_age_seconds").labels(name): lambda: self._age(series),
        }
        for gauge, read in functions.items():
            gauge.set_function(read)
        series.shown = tuple(functions)

    def _age(self, series: _Series) -> float:
        oldest = series.oldest()
        return 0.0 if oldest is None else max(0.0, self._clock.monotonic() - oldest)
