"""Which listeners hear of a pool's connections and transactions, and how: by events, or by calls to a meter.

```
PoolPresent ── listener ─┬─ gives a meter ──▶ measured through it from now on, and sent none of these events
                         └─ gives none ─────▶ PoolWaited, TransactionStarted, PoolReturned, TransactionEnded
```

An ordinary transaction makes four events. Building and delivering them costs half as much as the transaction itself,
so a listener that only counts them, such as the metrics, provides a meter and is called with bare numbers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from reliakit.core.events import (
    PoolChanged,
    PoolFigures,
    PoolPresent,
    PoolReturned,
    PoolWaited,
    TransactionEnded,
    TransactionSlow,
    TransactionStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reliakit.core.clock import Clock
    from reliakit.core.events import PoolMeter
    from reliakit.core.spine import Emitter, Listener
    from reliakit.database.gate import Gate

__all__ = ["Audience", "Reader", "audience_of"]

_log = logging.getLogger("reliakit")


class _Gated(Protocol):
    """An object with a gate: the checkouts of a database."""

    gate: Gate
    size: int
    is_parents: bool


class Audience:
    """The present listeners, until that changes. Each hears by events or through a meter, never both.

    What would have to be asked at each transaction is found out once, when the listeners change.

    Attributes:
        emitter: Sends events to listeners without a meter.
        meters: The meters of the others.
        watchers: Functions that are called after each change of the pool's figures.
        is_empty: Whether nobody listens to anything.
        hears_pool: Whether anybody may want events of the pool.
        hears_start: Whether anybody may want TransactionStarted.
        hears_end: Whether anybody may want TransactionEnded.
        wants_statements: Whether anybody wants to know what a slow transaction did.
    """

    __slots__ = (
        "_failed", "emitter", "hears_end", "hears_pool", "hears_start", "is_empty", "meters", "wants_statements",
        "watchers",
    )  # fmt: skip

    def __init__(
        self,
        emitter: Emitter,
        metered: Sequence[tuple[Listener, PoolMeter]] = (),
        watchers: Sequence[Callable[[], object]] = (),
    ) -> None:
        told = emitter.apart_from([listener for listener, _ in metered]) if metered else emitter
        self.emitter: Emitter = told
        self.meters: tuple[PoolMeter, ...] = tuple(meter for _, meter in metered)
        self.watchers: tuple[Callable[[], object], ...] = tuple(watchers)
        self.is_empty: bool = not emitter.is_heard
        self.hears_pool: bool = any(told.reaches(kind) for kind in (PoolChanged, PoolWaited, PoolReturned))
        self.hears_start: bool = told.reaches(TransactionStarted)
        self.hears_end: bool = told.reaches(TransactionEnded)
        self.wants_statements: bool = emitter.reaches(TransactionSlow)
        self._failed = False

    def waited(self, wait: float, *, granted: bool) -> None:
        """Report how long a connection was waited for."""
        for meter in self.meters:
            try:
                meter.waited(wait, granted=granted)
            except Exception as error:  # noqa: BLE001 - as the spine contains its listeners
                self.contain(meter, error)

    def returned(self, used: float) -> None:
        """Report how long a connection was held."""
        for meter in self.meters:
            try:
                meter.returned(used)
            except Exception as error:  # noqa: BLE001 - as above
                self.contain(meter, error)

    def ended(self, operation: str, status: str, duration: float, *, sqlstate: str | None, deliberate: bool) -> None:
        """Report the end of an attempt."""
        for meter in self.meters:
            try:
                meter.ended(operation, status, duration, sqlstate=sqlstate, deliberate=deliberate)
            except Exception as error:  # noqa: BLE001 - as above
                self.contain(meter, error)

    def changed(self) -> None:
        """Tell the watchers that the pool's figures have changed."""
        for watcher in self.watchers:
            try:
                watcher()
            except Exception as error:  # noqa: BLE001 - as above
                self.contain(watcher, error)

    def contain(self, meter: object, error: Exception) -> None:
        """Log the first error that a meter or watcher raises: its fault must not reach the caller."""
        if not self._failed:
            self._failed = True
            named = getattr(meter, "__qualname__", type(meter).__name__)
            _log.error("meter %s raised; the next errors are not reported", named, exc_info=error)


class Reader:
    """Reads a pool's figures without keeping the pool alive.

    Args:
        pool: Tells databases of the same name apart.
        service: The service it belongs to.
        gated: The object that has the pool's gate; held weakly.
        revisions: Numbers the states of its gates.
        clock: Measures the age of a checkout.
    """

    def __init__(self, pool: str, service: str | None, gated: _Gated, revisions: Iterator[int], clock: Clock) -> None:
        self._gated = ref(gated)
        self._pool = pool
        self._service = service
        self._revisions = revisions
        self._clock = clock

    def read(self) -> PoolFigures:
        """Return the figures as they are now."""
        gated = self._gated()
        if gated is None or gated.is_parents:
            return PoolFigures(self._pool, self._service, next(self._revisions), is_gone=gated is None)
        gate, size = gated.gate, gated.size
        found = gate.figures()
        age = None if found.oldest is None else max(0.0, self._clock.monotonic() - found.oldest)
        return PoolFigures(
            self._pool,
            self._service,
            found.revision,
            0 if gate.closed else size,
            found.size,
            found.in_use,
            found.waiting,
            age,
            found.running,
        )


def audience_of(emitter: Emitter, service: str | None, read: Callable[[], PoolFigures] | None) -> Audience:
    """Return who listens now; the pool is introduced to listeners first, if it is to be seen.

    Args:
        emitter: Emits the pool's events.
        service: The service it belongs to.
        read: Returns the pool's figures; None for a pool that was never used or is closed.
    """
    metered: list[tuple[Listener, PoolMeter]] = []
    watchers: list[Callable[[], object]] = []

    def measure(listener: Listener, meter: PoolMeter) -> None:
        metered.append((listener, meter))

    if read is not None:
        emitter.introduce(PoolPresent, service=service, read=read, measure=measure, watch=watchers.append)
    return Audience(emitter, metered, watchers)
