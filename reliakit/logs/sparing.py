"""What need not be written: repeats beyond a limit, and all but a share of what is logged in large numbers.

```
record ── an error? ──────────────────────────────── written
       ├─ outside of the sample ──────────────────── left out
       └─ too many of its template in this window? ─ left out, and reported as one number when the window is over
```
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from reliakit.core import checks
from reliakit.core.context import current_request
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.logs.context import context_fields
from reliakit.logs.records import FIELDS, REQUEST_ID, error_of

if TYPE_CHECKING:
    from reliakit.core.clock import Clock

__all__ = ["Repeats", "Sparing", "is_error"]

K = TypeVar("K", bound=Hashable)

WINDOW = 10.0
_MOST_KEYS = 1024
_MOST_NAMES = 4096
_WHOLE = 2**32


class Repeats(Generic[K]):
    """Let a number of each kind through in a window, and count the others. Pure and bounded.

    Its owner keeps other threads out. A finaliser that runs in the middle of a step may come in all the same, so
    nothing here relies on what it has just found still being there.

    Args:
        limit: How many of one kind pass in a window.
        window: How many seconds a window lasts; it begins with the first of its kind.
    """

    def __init__(self, limit: int, window: float = WINDOW) -> None:
        self.limit = limit
        self.window = window
        # Key -> beginning of the window, how many passed, how many did not; the oldest window first.
        self._kinds: OrderedDict[K, list[Any]] = OrderedDict()

    def take(self, key: K, now: float) -> int | None:
        """Return None for one that does not pass, else how many were held back in the previous window."""
        known = self._kinds.get(key)
        if known is None:
            self._kinds[key] = [now, 1, 0]
            return 0
        # Events carry their component's own clock, so a window may also have begun in what looks like the future.
        if abs(now - known[0]) >= self.window:
            self._kinds.pop(key, None)
            self._kinds[key] = [now, 1, 0]
            return int(known[2])
        if known[1] < self.limit:
            known[1] += 1
            return 0
        known[2] += 1
        return None

    def over(self, now: float) -> list[tuple[K, int]]:
        """Forget windows that are over, or too many, and return how many of each kind they held back."""
        told: list[tuple[K, int]] = []
        while self._kinds:
            key, known = next(iter(self._kinds.items()))
            if now - known[0] < self.window and len(self._kinds) <= _MOST_KEYS:
                break
            self._kinds.pop(key, None)
            if known[2]:
                told.append((key, known[2]))
        return told

    def rest(self) -> list[tuple[K, int]]:
        """Forget every window, and return how many of each kind they held back."""
        kinds, self._kinds = self._kinds, OrderedDict()
        return [(key, known[2]) for key, known in kinds.items() if known[2]]


Template = tuple[str, int, str]


class Sparing:
    """Decide which records of a handler are written. Safe from any thread.

    Errors always are: records of ERROR and above, and records with an exception. Records of events are not limited
    here, because those of one kind differ only in their fields.

    Args:
        repeat_limit: How many records of one logger, level and template pass in 10 s; None for all.
        sample: The share of records below WARNING that is written, or the share by logger.
        clock: Measures the windows and draws.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, repeat_limit: int | None, sample: float | Mapping[str, float], clock: Clock) -> None:
        limit = None if repeat_limit is None else checks.count("repeat_limit", repeat_limit)
        self._repeats: Repeats[Template] | None = None if limit is None else Repeats(limit)
        self._shares = _shares(sample)
        self._share_of: dict[str, float] = {}
        self._clock = clock
        # Re-entrant: a finaliser that runs while it is held may log.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        self.left_out: int = 0

    def admit(self, record: logging.LogRecord) -> tuple[bool, list[logging.LogRecord]]:
        """Return whether this record is written, and the reports to write before it of others that were left out."""
        repeats = self._repeats
        told: list[logging.LogRecord] = []
        now = self._clock.monotonic()
        with self._lock:
            if repeats is not None:
                told = [_told(key, held, repeats.window) for key, held in repeats.over(now)]
            admitted = is_error(record) or (self._is_sampled(record) and self._passes(record, now))
            if not admitted:
                self.left_out += 1
        return admitted, told

    def rest(self) -> list[logging.LogRecord]:
        """Return the reports of records that were left out, to be written before the handler ends."""
        if self._repeats is None:
            return []
        with self._lock:
            return [_told(key, held, self._repeats.window) for key, held in self._repeats.rest()]

    def __repr__(self) -> str:
        limit = "no" if self._repeats is None else self._repeats.limit
        return f"<Sparing, repeat_limit={limit}, sample={self._shares or 1.0}, {self.left_out} left out>"

    def _passes(self, record: logging.LogRecord, now: float) -> bool:
        if self._repeats is None or not isinstance(record.msg, str) or REQUEST_ID in record.__dict__:
            return True
        return self._repeats.take((record.name, record.levelno, record.msg), now) is not None

    def _is_sampled(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING or not self._shares:
            return True
        share = self._share(record.name)
        if share >= 1.0:
            return True
        request_id = _request_id(record)
        if request_id is None:
            return self._clock.random() < share
        # All records of one request or none, and the same ones in every service that the request passes through.
        return zlib.crc32(request_id.encode("utf-8", "replace")) < share * _WHOLE

    def _share(self, name: str) -> float:
        """Return the share of the nearest logger above that has one."""
        known = self._share_of.get(name)
        if known is None:
            nearest = name
            while nearest and nearest not in self._shares:
                nearest = nearest.rpartition(".")[0]
            if len(self._share_of) >= _MOST_NAMES:
                self._share_of.clear()
            known = self._share_of[name] = self._shares.get(nearest, 1.0)
        return known


def is_error(record: logging.LogRecord) -> bool:
    """Return whether a record tells of an error, which is never left out."""
    return record.levelno >= logging.ERROR or error_of(record) is not None or bool(record.exc_text)


def _shares(sample: float | Mapping[str, float]) -> dict[str, float]:
    """Return the share of each logger that has one; "" stands for all others."""
    if not isinstance(sample, Mapping):
        share = checks.share("sample", sample, zero=True)
        return {} if share == 1.0 else {"": share}
    shares: dict[str, float] = {}
    for name, share in sample.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"sample must name loggers by text, got {name!r}")
        shares["" if name == "root" else name] = checks.share(f"sample[{name!r}]", share, zero=True)
    return shares


def _request_id(record: logging.LogRecord) -> str | None:
    told: object = record.__dict__.get(REQUEST_ID)
    if told is None:
        request = current_request()
        told = context_fields().get("request_id") if request is None else request.request_id
    return told if isinstance(told, str) else None


def _told(key: Template, held: int, window: float) -> logging.LogRecord:
    """Return the record that stands for all of one kind that were left out."""
    name, level, template = key
    record = logging.LogRecord(name, level, __file__, 0, "repeats left out", (), None)
    record.__dict__[FIELDS] = {"template": template, "repeats": held, "seconds": window}
    record.__dict__[REQUEST_ID] = ""
    return record
