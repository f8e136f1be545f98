"""Errors in groups by fingerprint, and whether each group is open: the decisions of the error tracker.

```
          first seen             quiet for long, or resolve()
(unknown) ──────────> open ────────────────────────────────> resolved
                        ^               seen again              │
                        └───────────────────────────────────────┘
```

Groups are bounded: beyond the bound, resolved groups are dropped, the longest resolved first; when all are open, a
new kind of error is counted in the group `_other`. The counts of dropped groups are kept there too, so that the sum
is exact at any time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["NOTHING", "OTHER", "Change", "ErrorGroup", "ErrorSample", "Groups", "Instant", "Sighting"]

OTHER = "_other"
_MOST_REQUESTS = 5


class Instant(NamedTuple):
    """One moment on both clocks."""

    at: float
    wall: float


@dataclass(frozen=True, slots=True)
class ErrorSample:
    """One error of a group, masked.

    Attributes:
        message: The error's message.
        stack: Its traceback, without the frames' variables.
        causes: Type and message of its causes, nearest first.
    """

    message: str
    stack: str
    causes: tuple[str, ...] = ()


NOTHING = ErrorSample("", "")
"""Given with a sighting of a group that is open already."""


@dataclass(frozen=True, slots=True)
class ErrorGroup:
    """What is known of all errors with one fingerprint.

    Attributes:
        fingerprint: What the errors have in common, see `classify`; "_other" for those beyond the tracker's bound.
        error_type: Their class name.
        category: Their category, see `classify`.
        retry: Whether a retry can help, see `classify`.
        sqlstate: PostgreSQL's error code, or None.
        service: The service that the last one happened in, if known.
        state: "open", or "resolved" until another one is seen.
        count: How many were seen, each exception object once.
        first_seen: When the first one was seen, in seconds since 1970.
        last_seen: When the last one was seen, in seconds since 1970.
        first_seen_at: The same as `first_seen`, on the tracker's monotonic clock.
        last_seen_at: The same as `last_seen`, on the tracker's monotonic clock.
        opened_at: When the group was last opened or reopened, on the tracker's monotonic clock.
        reopened: How often it came back after it had been resolved.
        time_to_resolution: Seconds from the last opening to the resolution; None while it is open.
        request_ids: The last requests that it was seen in, newest last.
        sample: The error that opened or reopened it.
    """

    fingerprint: str
    error_type: str
    category: str
    retry: str
    sqlstate: str | None
    service: str | None
    state: Literal["open", "resolved"]
    count: int
    first_seen: float
    last_seen: float
    first_seen_at: float
    last_seen_at: float
    opened_at: float
    reopened: int
    time_to_resolution: float | None
    request_ids: tuple[str, ...]
    sample: ErrorSample


class Sighting(NamedTuple):
    """One error as it is seen."""

    fingerprint: str
    error_type: str
    category: str
    retry: str
    sqlstate: str | None
    service: str | None
    request_id: str | None
    sample: ErrorSample


class Change(NamedTuple):
    """A group that was opened, reopened or resolved."""

    group: ErrorGroup
    cause: Literal["new", "again", "quiet", "call"]


class _Group:
    """A group that is still being written."""

    __slots__ = ("count", "first", "last", "opened_at", "reopened", "requests", "seen", "service", "took")

    def __init__(self, seen: Sighting, now: Instant) -> None:
        self.seen = seen
        self.service = seen.service
        self.count = 0
        self.first = self.last = now
        self.opened_at = now.at
        self.reopened = 0
        self.took: float | None = None
        self.requests: tuple[str, ...] = ()

    def add(self, seen: Sighting, now: Instant) -> None:
        self.count += 1
        self.first, self.last = min(self.first, now), max(self.last, now)
        self.service = seen.service or self.service
        if seen.request_id is not None:
            others = tuple(known for known in self.requests if known != seen.request_id)
            self.requests = (*others[1 - _MOST_REQUESTS :], seen.request_id)

    def shown(self) -> ErrorGroup:
        seen = self.seen
        return ErrorGroup(
            fingerprint=seen.fingerprint,
            error_type=seen.error_type,
            category=seen.category,
            retry=seen.retry,
            sqlstate=seen.sqlstate,
            service=self.service,
            state="open" if self.took is None else "resolved",
            count=self.count,
            first_seen=self.first.wall,
            last_seen=self.last.wall,
            first_seen_at=self.first.at,
            last_seen_at=self.last.at,
            opened_at=self.opened_at,
            reopened=self.reopened,
            time_to_resolution=self.took,
            request_ids=self.requests,
            sample=seen.sample,
        )


class Groups:
    """All groups of one tracker. Pure: takes the time and returns what changed; not thread-safe.

    Each step costs O(1), and O(1) more for each group that it resolves.

    Args:
        most: How many groups are told apart.
        quiet: Seconds without an error that resolve a group; None for never.
    """

    def __init__(self, most: int, quiet: float | None) -> None:
        self._most = most
        self._quiet = quiet
        self._groups: dict[str, _Group] = {}
        # Open ones by when they were last seen, resolved ones by when they were resolved, the oldest first.
        self._open: OrderedDict[str, _Group] = OrderedDict()
        self._resolved: OrderedDict[str, _Group] = OrderedDict()
        self.total: int = 0

    def wants_sample(self, fingerprint: str, now: Instant) -> bool:
        """Return whether such an error would open a group. Needs no lock: a stale answer costs a sample only."""
        if fingerprint not in self._groups and self._is_full():
            fingerprint = OTHER
        group = self._open.get(fingerprint)
        return group is None or (self._quiet is not None and group.last.at + self._quiet <= now.at)

    def see(self, seen: Sighting, now: Instant) -> list[Change]:
        """Count one error."""
        changes = self.sweep(now)
        self.total += 1
        if not self._has_room(seen.fingerprint):
            seen = _without_kind(seen)
        # A finaliser that runs at any point of this may report an error too and come in here: what is looked up is
        # kept to the end, and what is missing is made in one step.
        group = self._groups.get(seen.fingerprint) or self._groups.setdefault(seen.fingerprint, _Group(seen, now))
        opened = self._open_again(group, seen, now)
        group.add(seen, now)
        self._open.pop(seen.fingerprint, None)
        self._open[seen.fingerprint] = group
        if opened is not None:
            changes.append(Change(group.shown(), opened))
        return changes

    def _open_again(self, group: _Group, seen: Sighting, now: Instant) -> Literal["new", "again"] | None:
        if group.count == 0:
            return "new"
        if group.took is None:
            return None
        self._resolved.pop(seen.fingerprint, None)
        group.seen = seen if seen.sample != NOTHING else seen._replace(sample=group.seen.sample)
        group.opened_at, group.took = now.at, None
        group.reopened += 1
        return "again"

    def _has_room(self, fingerprint: str) -> bool:
        """Return whether errors of this kind have a group, or can have one."""
        if fingerprint in self._groups or len(self._groups) - (OTHER in self._groups) < self._most:
            return True
        oldest = None if self._is_full() else next((key for key in self._resolved if key != OTHER), None)
        if oldest is None:
            return False
        self._resolved.pop(oldest, None)
        group = self._groups.pop(oldest, None)
        if group is not None:
            self._fold(group)
        return True

    def _is_full(self) -> bool:
        """Return whether all groups are open, and there are as many as there may be."""
        return len(self._open) - (OTHER in self._open) >= self._most

    def _fold(self, gone: _Group) -> None:
        """Keep the count of a group that gives way."""
        other = self._groups.get(OTHER)
        if other is None:
            other = _Group(_without_kind(gone.seen), gone.last)
            other.opened_at, other.took = gone.opened_at, gone.took
            other = self._groups.setdefault(OTHER, other)
            self._resolved[OTHER] = other
        other.count += gone.count
        other.first, other.last = min(other.first, gone.first), max(other.last, gone.last)

    def sweep(self, now: Instant) -> list[Change]:
        """Resolve groups that were quiet for long enough."""
        changes: list[Change] = []
        while self._quiet is not None and self._open:
            oldest = next(iter(self._open.values()))
            over = oldest.last.at + self._quiet
            if over > now.at:
                break
            changes.append(self._resolve(oldest, over, "quiet"))
        return changes

    def resolve(self, fingerprint: str, now: Instant) -> list[Change]:
        """Resolve a group on request."""
        changes = self.sweep(now)
        group = self._open.get(fingerprint)
        if group is not None:
            changes.append(self._resolve(group, now.at, "call"))
        return changes

    def _resolve(self, group: _Group, at: float, cause: Literal["quiet", "call"]) -> Change:
        key = group.seen.fingerprint
        group.took = max(0.0, at - group.opened_at)
        self._open.pop(key, None)
        self._resolved[key] = group
        return Change(group.shown(), cause)

    def oldest(self, now: Instant) -> tuple[int, float]:
        """Return how many groups are open, and for how long the oldest has been. O(groups)."""
        ages = [now.at - group.opened_at for group in tuple(self._open.values())]
        return len(ages), max(0.0, *ages) if ages else 0.0

    def shown(self) -> tuple[ErrorGroup, ...]:
        """Return all groups, the last seen first."""
        groups = [group.shown() for group in tuple(self._groups.values())]
        return tuple(sorted(groups, key=lambda group: group.last_seen_at, reverse=True))


def _without_kind(seen: Sighting) -> Sighting:
    return Sighting(OTHER, OTHER, "internal", "never", None, None, seen.request_id, seen.sample)
