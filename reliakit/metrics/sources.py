"""Which sources are behind the security events, told apart only when it matters.

A source is named once five of its events are certain; until then, and for all others, its events count as `_other`.
So the sum over sources is exact, an attacker with a million addresses adds no series, and one that keeps hammering is
named.

Source: Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams"
(2005): the Space-Saving algorithm with its stream summary, O(1) an event.
"""

from __future__ import annotations

import hmac
from collections import deque
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, get_args

from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.metrics.family import Counter
from reliakit.metrics.labels import (
    NETWORKS,
    OTHER,
    Places,
    fold_network,
    fold_prefix,
    fold_source,
    label_text,
)
from reliakit.metrics.series import MOST, CounterSeries

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.metrics.family import Registry
    from reliakit.metrics.metric import Metric

__all__ = ["HeavyHitters", "Naming", "SourceCounter", "SourceMode", "SpaceSaving"]

SourceMode = Literal["ip", "prefix", "network", "hmac", "off"]
_SHORTEST_KEY = 16


class SpaceSaving:
    """The most frequent keys of an endless stream in fixed memory. Not thread-safe.

    For every key that is kept: `count - error <= true count <= count`. Every key with more than n / capacity of n
    events is kept.

    Args:
        capacity: How many keys are kept.
    """

    __slots__ = ("_buckets", "_capacity", "_counts", "_errors", "_least")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._counts: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        # All keys with the same count; a dictionary, because it keeps order and forgets in O(1).
        self._buckets: dict[int, dict[str, None]] = {}
        self._least = 0

    def offer(self, key: str) -> int:
        """Count one event and return how many of this key's events are certain. O(1)."""
        count = self._counts.get(key)
        if count is not None:
            self._leave(key, count)
            count += 1
        elif len(self._counts) < self._capacity:
            count = self._least = 1
            self._errors[key] = 0
        else:
            evicted = next(iter(self._buckets[self._least]))
            error = self._counts.pop(evicted)
            del self._errors[evicted]
            self._leave(evicted, error)
            self._errors[key] = error
            count = error + 1
        self._counts[key] = count
        self._buckets.setdefault(count, {})[key] = None
        return count - self._errors[key]

    def _leave(self, key: str, count: int) -> None:
        bucket = self._buckets[count]
        del bucket[key]
        if not bucket:
            del self._buckets[count]
            if self._least == count:
                # Whoever leaves the lowest bucket goes, or makes room for one that goes, exactly one higher.
                self._least = count + 1

    def estimate(self, key: str) -> tuple[int, int] | None:
        """Return the key's count and its greatest possible error, or None for a key that is not kept."""
        count = self._counts.get(key)
        return None if count is None else (count, self._errors[key])

    def __len__(self) -> int:
        return len(self._counts)


class HeavyHitters:
    """Which sources have a name. Thread-safe; `is_named` never waits.

    Args:
        after: How many certain events earn a name.
        most: How many names there are; names are never taken away.
        capacity: How many candidates are watched.
    """

    def __init__(self, *, after: int = 5, most: int = 100, capacity: int = 512) -> None:
        self._after = after
        self._names: Places[str] = Places(most)
        self._most = most
        self._sketch = SpaceSaving(capacity)
        self._inbox: deque[str] = deque()
        self._lock = Lock()
        renew_locks_after_fork(self, "_lock")

    def is_named(self, source: str) -> bool:
        """Return whether this source has earned its name."""
        return self._names.find(source) is not None

    def notice(self, source: str, times: int = 1) -> None:
        """Count events of a source without a name. O(1)."""
        if len(self._names) >= self._most:
            return
        self._inbox.extend([source] * min(times, self._after))
        # Never waits: the holder of the lock processes what the others put in, and looks again before it leaves.
        while self._inbox and self._lock.acquire(blocking=False):
            try:
                self._work_off_locked()
            finally:
                self._lock.release()

    def _work_off_locked(self) -> None:
        while True:
            try:
                source = self._inbox.popleft()
            except IndexError:
                return
            if not self.is_named(source) and self._sketch.offer(source) >= self._after:
                self._names.add(source, source)


class _SourceSeries(CounterSeries):
    """Counts events of one source; decides at each event whether to count under its name."""

    __slots__ = ("_event", "_family", "_source")

    def __init__(self, family: SourceCounter, event: str, source: str) -> None:
        super().__init__(family, (event, source), 0, "")
        self._family = family
        self._event = event
        self._source = source

    def inc(self, amount: float = 1) -> None:
        self._family.count(self._event, self._source, amount)

    def get(self) -> float:
        return self._family.bound(self._event, self._source).get()


class Naming:
    """How sources are shown: which text stands for one, and whether it has to earn its name.

    Args:
        mode: "ip", "prefix", "network", "hmac" or "off", see `Metrics`.
        hmac_key: The key of the pseudonyms.

    Raises:
        ConfigurationError: There is no such mode, or the key does not belong to it.
    """

    def __init__(self, mode: str = "ip", hmac_key: bytes | str | None = None) -> None:
        if mode not in get_args(SourceMode):
            raise ConfigurationError(f"source must be one of {', '.join(get_args(SourceMode))}, got {mode!r}")
        if (mode == "hmac") != (hmac_key is not None):
            raise ConfigurationError('source="hmac" needs an hmac_key, and nothing else takes one')
        self.fold: Callable[[str], str] = _FOLDS[mode] if hmac_key is None else _pseudonyms(hmac_key)
        # So few that all of them exist from the start.
        self.known: tuple[str, ...] = NETWORKS if mode == "network" else ()
        self.is_closed: bool = mode in {"network", "off"}


def _pseudonyms(hmac_key: object) -> Callable[[str], str]:
    key = hmac_key.encode() if isinstance(hmac_key, str) else hmac_key
    if not isinstance(key, bytes) or len(key) < _SHORTEST_KEY:
        raise ConfigurationError(f"hmac_key must have at least {_SHORTEST_KEY} bytes")

    @lru_cache(maxsize=4096)
    def fold(text: str) -> str:
        source = fold_source(text)
        if source in {"", OTHER}:
            return source
        return f"hmac:{hmac.digest(key, source.encode('utf-8', 'replace'), 'sha256').hex()[:8]}"

    return fold


_FOLDS: dict[str, Callable[[str], str]] = {
    "ip": fold_source,
    "prefix": fold_prefix,
    "network": fold_network,
    "off": lambda _text: OTHER,
}


class SourceCounter(Counter):
    """The counter of security events by source."""

    def __init__(
        self, metric: Metric, name: str, max_series: int, registry: Registry, naming: Naming | None = None
    ) -> None:
        self._naming = naming or Naming()
        self._hitters = HeavyHitters()
        super().__init__(metric, name, max_series, registry)

    def labels(self, /, *values: object, **named: object) -> CounterSeries:
        """Return a handle for events of this source. Never raises."""
        chosen: tuple[object, ...] | None = values or ("", "")
        if named:
            chosen = None if values else self._by_name(named)
        if chosen is None or len(chosen) != 2:
            return self._lost
        event, source = chosen
        return _SourceSeries(self, label_text(event), self._naming.fold(label_text(source)))

    def count(self, event: str, source: str, amount: float) -> None:
        """Count under the source's name if it has one, else as `_other`."""
        self.bound(event, source).inc(amount)
        if source not in {"", OTHER} and not self._is_named(source):
            self._hitters.notice(source, _times(amount))
            if self._is_named(source):
                # Born at 0, so that the first event under the name is an increase.
                self.bound(event, source)

    def bound(self, event: str, source: str) -> CounterSeries:
        """Return the series that such an event counts in now."""
        return super().labels(event, source if self._is_named(source) else OTHER)

    def _is_named(self, source: str) -> bool:
        return self._naming.is_closed or self._hitters.is_named(source)

    def _add_siblings(self, _key: tuple[str, ...], /) -> None:
        # A named source of one event does not need a series for each of the others.
        return

    def _give_birth(self) -> None:
        for event in self.metric.labels[0].born:
            for source in (OTHER, *self._naming.known):
                self._place((event, source))


def _times(amount: Any) -> int:
    """Return how many events an amount stands for; 0 for one that will not be counted."""
    try:
        return int(amount) if 0 <= amount <= MOST else 0
    except Exception:  # noqa: BLE001 - a hostile amount; the series drops and counts it
        return 0
