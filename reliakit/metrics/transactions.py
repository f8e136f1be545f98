"""Transactions and the pools they run on, counted directly, without an event, if a pool allows it.

```
pool ── PoolPresent ─┬─▶ read()  at each scrape: connections, who waits, what runs
                     ├─▶ meter   at each transaction: counts and durations
                     └─▶ watch   at each change, if other processes see only what is written: read() then
     ── events ────────▶ the same, for a pool that has this listener to itself
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.inflight import InFlight
from reliakit.metrics.pools import Pools
from reliakit.metrics.readings import Readings

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.events import (
        PoolFigures,
        PoolPresent,
        PoolReturned,
        PoolWaited,
        TransactionEnded,
        TransactionStarted,
    )
    from reliakit.core.spine import Listener
    from reliakit.metrics.family import Counter, Histogram
    from reliakit.metrics.series import CounterSeries, HistogramSeries
    from reliakit.metrics.shelf import Shelf

__all__ = ["Transactions"]

_REASONS = {"40001": "serialization", "40P01": "deadlock"}
# How many operations are found without asking for their labels.
_MOST = 1000
_Labels = tuple[str | None, str]


class Transactions:
    """Counts transactions and shows pools. Safe from any thread, and never waits.

    Args:
        shelf: Holds the metrics.
        clock: Measures how the age of a checkout grows between two looks.
        listener: The listener that receives the events, and on whose behalf meters are provided.
        written: Called after each change of a pool if other processes see only what is written; None if not.
    """

    def __init__(
        self, shelf: Shelf, clock: Clock, listener: Listener, *, written: Callable[[], None] | None = None
    ) -> None:
        self._counter = counter = shelf.counter
        self._gauge = shelf.gauge
        self._histogram = shelf.histogram
        self._listener = listener
        self._written = written
        self.pools: Pools = Pools(shelf, clock)
        self._readings: Readings[PoolFigures] = Readings(self._look)
        self._open: dict[_Labels, InFlight] = {}
        # What runs by pool, as it was at the last look: looks come one after the other, but who shows may overtake.
        self._running: dict[str, dict[InFlight, int]] = {}
        self._deliberate = counter("transaction_deliberate_rollbacks_total")
        self._retries = counter("transaction_retries_total")
        self.attempts: Counter = counter("transaction_total")
        self.durations: Histogram = shelf.histogram("transaction_duration_seconds")

    def present(self, event: PoolPresent) -> None:
        """Follow a pool from now on, and count its transactions."""
        name, read, written = event.name, event.read, self._written
        self._readings.follow(name, read)
        event.measure(self._listener, _Meter(self, name, event.service))
        if written is not None:

            def changed() -> None:
                self._readings.look(name, read)
                written()

            self._readings.look(name, read)
            event.watch(changed)

    def refresh(self) -> None:
        """Show the pools as they are now."""
        self._readings.refresh()

    def leave(self) -> None:
        """Look a last time and stop following: nothing is known of what is still running."""
        self._readings.leave()
        self._running.clear()
        for inflight in self._open.copy().values():
            inflight.show(0)

    def _look(self, name: str, figures: PoolFigures, last: PoolFigures) -> None:
        if self._written is None:
            self.pools.note(name, figures)
        else:
            self.pools.write(name, figures)
        before = self._running.get(figures.pool)
        if before is not None and figures.running == last.running and not figures.is_gone:
            return
        running: dict[InFlight, int] = {}
        for operation in figures.running:
            labels = (figures.service, operation)
            inflight = self.running(labels)
            running[inflight] = running.get(inflight, 0) + 1
            self.attempts.labels(*labels, "commit")  # exists before its first outcome, whichever that is
        if figures.is_gone:
            self._running.pop(figures.pool, None)
        else:
            self._running[figures.pool] = running
        pools = self._running.copy().values()
        for inflight in {**(before or {}), **running}:
            inflight.show(sum(pool.get(inflight, 0) for pool in pools))

    def running(self, labels: _Labels) -> InFlight:
        """Return the count of open transactions of a service and operation."""
        known = self._open.get(labels)
        if known is not None:
            return known
        gauge = self._gauge("transaction_in_progress").labels(*labels)
        # Operations beyond the label's bound share the overflow series, so they must share its count.
        shared = (gauge.values[0], gauge.values[1])
        running = self._open.setdefault(shared, InFlight(gauge))
        gauge.set_function(running.count)
        if len(self._open) < 2 * _MOST:
            self._open[labels] = running
        # Objectives take these off: a series that begins at 1 shows Prometheus no increase, and nothing is taken off.
        self._deliberate.labels(*labels)
        self._retries.labels(*labels, "deadlock")
        return running

    def started(self, event: TransactionStarted) -> None:
        """Count the begin of an attempt."""
        labels = (event.service, event.operation)
        self.running(labels).enter()
        self.born(event.name)
        self.attempts.labels(*labels, "commit")  # as above

    def ended(self, event: TransactionEnded) -> None:
        """Count the end of an attempt."""
        labels = (event.service, event.operation)
        running = self.running(labels) if event.began else None
        if running is not None:
            running.leave()
        self.count(labels, event.status, event.duration, event.sqlstate, deliberate=event.deliberate)

    def count(self, labels: _Labels, status: str, duration: float, sqlstate: str | None, *, deliberate: bool) -> None:
        """Count an attempt by how it ended. What objectives subtract comes first, because they read it last."""
        if deliberate and status == "rollback":
            self._deliberate.labels(*labels).inc()
        if status == "retry":
            self._retries.labels(*labels, _retry_reason(sqlstate)).inc()
        self.attempts.labels(*labels, status).inc()
        self.durations.labels(*labels, status).observe(duration)
        if sqlstate is not None:
            self._counter("db_errors_total").labels(sqlstate).inc()

    def born(self, pool: str) -> CounterSeries:
        """Make a pool's counters that alerts look at exist at 0, and return that of waits in vain."""
        self._counter("db_pool_leaked_connections_total").labels(pool)
        self._counter("db_pool_overdue_checkouts_total").labels(pool)
        self._counter("db_replica_fallbacks_total").labels(pool)
        return self._counter("db_pool_timeouts_total").labels(pool)

    def times(self, pool: str) -> tuple[HistogramSeries, HistogramSeries]:
        """Return the histograms of how long a pool's connections are waited for, and held."""
        return (
            self._histogram("db_pool_wait_seconds").labels(pool),
            self._histogram("db_pool_use_seconds").labels(pool),
        )

    def waited(self, event: PoolWaited) -> None:
        """Measure a wait."""
        self.pools.changed(event)
        _wait(self.times(event.name)[0], self.born(event.name), event.wait, granted=event.granted)

    def returned(self, event: PoolReturned) -> None:
        """Measure a checkout."""
        self.pools.changed(event)
        self.times(event.name)[1].observe(event.used)


class _Meter:
    """Counts what one pool measures, see `reliakit.core.events.PoolMeter`."""

    __slots__ = ("_commits", "_owner", "_service", "_timeouts", "_use", "_wait")

    def __init__(self, owner: Transactions, pool: str, service: str | None) -> None:
        self._owner = owner
        self._service = service
        self._timeouts = owner.born(pool)
        self._wait, self._use = owner.times(pool)
        self._commits: dict[str, tuple[CounterSeries, HistogramSeries, InFlight]] = {}

    def waited(self, wait: float, /, *, granted: bool) -> None:
        _wait(self._wait, self._timeouts, wait, granted=granted)

    def returned(self, used: float, /) -> None:
        self._use.observe(used)

    def ended(
        self, operation: str, status: str, duration: float, /, *, sqlstate: str | None, deliberate: bool
    ) -> None:
        labels = (self._service, operation)
        self._owner.running(labels).leave()
        self._owner.count(labels, status, duration, sqlstate, deliberate=deliberate)

    def committed(self, operation: str, duration: float, used: float, /, *, at_once: bool) -> None:
        total, durations, running = self._commits.get(operation) or self._bind(operation)
        total.inc()
        durations.observe(duration)
        self._use.observe(used)
        if at_once:
            self._wait.observe(0.0)
        if running.tokens:
            running.leave()

    def _bind(self, operation: str) -> tuple[CounterSeries, HistogramSeries, InFlight]:
        labels, owner = (self._service, operation), self._owner
        bound = (
            owner.attempts.labels(*labels, "commit"),
            owner.durations.labels(*labels, "commit"),
            owner.running(labels),
        )
        if len(self._commits) < _MOST:
            self._commits[operation] = bound
        return bound


def _wait(times: HistogramSeries, timeouts: CounterSeries, wait: float, *, granted: bool) -> None:
    times.observe(wait)
    if not granted:
        timeouts.inc()


def _retry_reason(sqlstate: str | None) -> str:
    if sqlstate is None or sqlstate.startswith(("08", "57P")):
        return "connection"
    return _REASONS.get(sqlstate, "other")
