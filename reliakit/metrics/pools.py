"""The gauges of connection pools, read from the latest figures that each pool has told.

Events of one pool may arrive in another order than they were made, as threads emit them without a lock. Each carries
the number of the state that it shows, so the latest one is found in any order, and an idle pool always shows 0.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.events import PoolChanged, PoolFigures
    from reliakit.metrics.series import GaugeSeries
    from reliakit.metrics.shelf import Shelf

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
    """The pools that share the series of one name: databases of one name, and those beyond the label's bound.

    Attributes:
        pools: The latest states of each.
        shown: The gauges of the name, and which number of `whole` each shows.
    """

    def __init__(self) -> None:
        self.pools: dict[tuple[str, str], deque[_State]] = {}
        self.shown: tuple[tuple[GaugeSeries, Callable[[_State], float]], ...] = ()

    def whole(self) -> _State:
        """Return all pools of the name as one."""
        states = [_latest(states) for states in self.pools.copy().values()]
        if len(states) == 1:
            return states[0]
        return _State(
            0,
            sum(state.max_size for state in states),
            sum(state.idle for state in states),
            sum(state.in_use for state in states),
            sum(state.waiting for state in states),
            min((state.oldest for state in states if state.oldest is not None), default=None),
        )

    def closed(self) -> list[tuple[str, str]]:
        """Return the pools that have no room for any connection."""
        return [key for key, states in self.pools.copy().items() if _latest(states).max_size == 0]


def _reader(series: _Series, of: Callable[[_State], float]) -> Callable[[], float]:
    return lambda: of(series.whole())


def _latest(states: deque[_State]) -> _State:
    return max(tuple(states), default=_NOTHING)


class Pools:
    """Keeps the latest figures of each pool. Takes no lock; safe from any thread.

    Args:
        shelf: Holds the gauges.
        clock: What the age of a checkout grows by between two events.
    """

    def __init__(self, shelf: Shelf, clock: Clock) -> None:
        self._gauge = shelf.gauge
        self._clock = clock
        self._known: dict[tuple[str, str], _Series] = {}
        self._series: dict[str, _Series] = {}

    def changed(self, event: PoolChanged) -> None:
        """Take note of a pool's figures, as an event tells them."""
        if event.revision != 0:
            self.note(event.name, event)

    def note(self, name: str, figures: PoolChanged | PoolFigures) -> None:
        """Take note of a pool's figures."""
        key = (name, figures.pool)
        series = self._known.get(key) or self._begin(key)
        states = series.pools.get(key)
        if states is not None:
            states.append(self._state(figures))
        for gauge, _ in series.shown:
            gauge.refresh()

    def write(self, name: str, figures: PoolFigures) -> None:
        """Write a pool's figures for other processes to see. Only one thread may do so at a time."""
        key = (name, figures.pool)
        series = self._known.get(key) or self._begin(key)
        if key in series.pools:
            series.pools[key] = deque((self._state(figures),), _LATEST)
        whole = series.whole()
        for gauge, of in series.shown:
            gauge.set(of(whole))

    def _state(self, figures: PoolChanged | PoolFigures) -> _State:
        oldest = figures.oldest_checkout
        if oldest is not None:
            oldest = self._clock.monotonic() - oldest
        idle = max(0, figures.size - figures.in_use)
        return _State(figures.revision, figures.max_size, idle, figures.in_use, figures.waiting, oldest)

    def _begin(self, key: tuple[str, str]) -> _Series:
        if len(self._known) >= _MOST:
            self._forget_closed()
        if len(self._known) >= _MOST:
            return _Series()
        shown = self._gauge("db_pool_max").labels(key[0]).values[0]
        series = self._series.get(shown)
        if series is None:
            series = self._series.setdefault(shown, _Series())
            self._show(shown, series)
        series.pools.setdefault(key, deque(maxlen=_LATEST))
        self._known[key] = series
        return series

    def _forget_closed(self) -> None:
        for series in self._series.copy().values():
            for key in series.closed():
                series.pools.pop(key, None)
                self._known.pop(key, None)

    def _show(self, name: str, series: _Series) -> None:
        connections = self._gauge("db_pool_connections")
        series.shown = (
            (connections.labels(name, "idle"), lambda whole: whole.idle),
            (connections.labels(name, "in_use"), lambda whole: whole.in_use),
            (self._gauge("db_pool_max").labels(name), lambda whole: whole.max_size),
            (self._gauge("db_pool_waiting").labels(name), lambda whole: whole.waiting),
            (self._gauge("db_pool_checkout_age_seconds").labels(name), self._age),
        )
        for gauge, of in series.shown:
            gauge.set_function(_reader(series, of))

    def _age(self, whole: _State) -> float:
        return 0.0 if whole.oldest is None else max(0.0, self._clock.monotonic() - whole.oldest)
