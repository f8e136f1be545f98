"""Who hears of a pool's connections and transactions, and how: told by events, or handed what they count.

```
PoolPresent ── listener ─┬─ gives a meter ──▶ measured for at once, asked for nothing else
                         └─ gives none ─────▶ PoolWaited, TransactionStarted, PoolReturned, TransactionEnded
```

An ordinary transaction makes four events. Building and delivering them costs half as much as the transaction itself,
so whoever counts all of them, such as the metrics, hands in a meter and is called with bare numbers.
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
    """What has a gate: the checkouts of a database."""

    gate: Gate
    size: int
    is_parents: bool


class Audience:
    """Those who listen, until somebody begins or stops to. Each is told by events or through a meter, never both.

    What could be asked at each transaction is found out once, when the listeners change.

    Attributes:
        emitter: Tells those without a meter.
        meters: What measures for the others.
        is_empty: Nobody listens to anything.
        hears_pool: Somebody may want events of the pool.
        hears_start: Somebody may want TransactionStarted.
        hears_end: Somebody may want TransactionEnded.
        wants_statements: Somebody wants to know what a slow transaction did.
    """

    __slots__ = (
        "_failed", "emitter", "hears_end", "hears_pool", "hears_start", "is_empty", "meters", "wants_statements",
    )  # fmt: skip

    def __init__(self, emitter: Emitter, metered: Sequence[tuple[Listener, PoolMeter]]) -> None:
        told = emitter.apart_from([listener for listener, _ in metered]) if metered else emitter
        self.emitter: Emitter = told
        self.meters: tuple[PoolMeter, ...] = tuple(meter for _, meter in metered)
        self.is_empty: bool = not emitter.is_heard
        self.hears_pool: bool = any(told.reaches(kind) for kind in (PoolChanged, PoolWaited, PoolReturned))
        self.hears_start: bool = told.reaches(TransactionStarted)
        self.hears_end: bool = told.reaches(TransactionEnded)
        self.wants_statements: bool = emitter.reaches(TransactionSlow)
        self._failed = False

    def waited(self, wait: float, *, granted: bool) -> None:
        """Have it measured how long a connection was waited for."""
        for meter in self.meters:
            try:
                meter.waited(wait, granted=granted)
            except Exception as error:  # noqa: BLE001 - as the spine contains its listeners
                self.contain(meter, error)

    def returned(self, used: float) -> None:
        """Have it measured how long a connection was held."""
        for meter in self.meters:
            try:
                meter.returned(used)
            except Exception as error:  # noqa: BLE001 - as above
                self.contain(meter, error)

    def ended(self, operation: str, status: str, duration: float, *, sqlstate: str | None, deliberate: bool) -> None:
        """Have the end of an attempt counted."""
        for meter in self.meters:
            try:
                meter.ended(operation, status, duration, sqlstate=sqlstate, deliberate=deliberate)
            except Exception as error:  # noqa: BLE001 - as above
                self.contain(meter, error)

    def contain(self, meter: PoolMeter, error: Exception) -> None:
        """Tell of a meter that raised, the first time: its fault is not the caller's."""
        if not self._failed:
            self._failed = True
            _log.error("meter %s raised; the next errors are not reported", type(meter).__name__, exc_info=error)


class Reader:
    """Reads a pool's figures without keeping the pool alive.

    Args:
        pool: Tells databases of one name apart.
        service: The service it belongs to.
        gated: What has the pool's gate; held weakly.
        revisions: What numbers the states of its gates.
        clock: What the age of a checkout is measured by.
    """

    def __init__(self, pool: str, service: str | None, gated: _Gated, revisions: Iterator[int], clock: Clock) -> None:
        self._gated = ref(gated)
        self._pool = pool
        self._service = service
        self._revisions = revisions
        self._clock = clock

    def read(self) -> PoolFigures:
        """Return the figures of this moment."""
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
    """Return who listens now; a pool that is to be seen is introduced first.

    Args:
        emitter: The pool's mouth.
        service: The service it belongs to.
        read: Returns its figures, None for one that is not to be seen: it was never used, or is closed.
    """
    metered: list[tuple[Listener, PoolMeter]] = []

    def measure(listener: Listener, meter: PoolMeter) -> None:
        metered.append((listener, meter))

    if read is not None:
        emitter.introduce(PoolPresent, service=service, read=read, measure=measure)
    return Audience(emitter, metered)
