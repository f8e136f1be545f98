"""Every error tracked once: how often, since when, in which requests, and whether it is over.

```
transaction, breaker, ─┐                        ┌─ groups by fingerprint: snapshot(), resolve()
web request, log call ─┴─ ErrorSeen ── tracker ─┤
                     (once an exception object) └─ ErrorOpened, ErrorResolved, ErrorsOpen
```
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import current_request
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import (
    ErrorOpened,
    ErrorResolved,
    ErrorSeen,
    ErrorsOpen,
    ErrorUntracked,
    Event,
    NumbersWanted,
)
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.spine import Emitter, Listener, Subscription, subscribe
from reliakit.logs.context import context_fields
from reliakit.logs.failures import error_fields
from reliakit.logs.groups import NOTHING, Change, ErrorGroup, ErrorSample, Groups, Instant, Sighting
from reliakit.logs.masker import Masker
from reliakit.logs.objects import safe_text
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ErrorTracker"]


class ErrorTracker:
    """Group the errors of this process by their cause, and show which of them are still going on.

    ```python
    tracker = ErrorTracker()
    with tracker:
        serve()
    for group in tracker.snapshot():
        print(group.state, group.count, group.error_type, group.request_ids)
    ```

    It hears of every exception that leaves a transaction, a breaker, a policy, a web request or a logger call, each
    object once. A group is resolved when no error of its kind was seen for `quiet` seconds, or by `resolve`; if one
    is seen again, it is open again. No thread watches the time: groups are resolved when the tracker is used, and
    when `Metrics` are read. With `Metrics` attached it feeds the objectives `errors_tracked` and `error_resolution`.

    One object serves all threads and tasks. An error of a known kind costs a few microseconds; for one that opens a
    group, the traceback is masked as well. No exception is kept.

    Args:
        masker: Masks the samples and ids; `Masker()` by default.
        max_groups: How many kinds of errors are told apart. Resolved ones make room for new ones; any beyond that are
            counted as `_other`.
        quiet: Seconds without an error that resolve a group; None leaves it to `resolve`.
        name: The name that its own events carry.
        listeners: Listeners of this component alone.
        clock: Provides the time.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        *,
        masker: Masker | None = None,
        max_groups: int = 1000,
        quiet: float | None = 1800.0,
        name: str = "errors",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if masker is not None and not isinstance(masker, Masker):
            raise ConfigurationError(f"masker must be a Masker, got {masker!r}: masking cannot be switched off")
        self.name: str = checks.named("name", name)
        self.max_groups: int = checks.count("max_groups", max_groups)
        self.quiet: float | None = None if quiet is None else checks.seconds("quiet", quiet)
        self.masker: Masker = masker or Masker()
        self._clock = checks.clock("clock", clock)
        self._emitter = Emitter(self.name, listeners, clock)
        # Re-entrant: a finaliser that runs while it is held may report an error.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")
        self._groups = Groups(self.max_groups, self.quiet)
        self._subscriptions: list[Subscription] = []

    @property
    def total(self) -> int:
        """How many errors were seen; the sum of all groups' counts."""
        return self._groups.total

    def attach(self) -> Subscription:
        """Track every error in this process, until the subscription or this object is closed.

        Attaching twice counts once.

        Returns:
            The subscription, which is also a context manager.
        """
        subscription = subscribe(self, ErrorSeen, NumbersWanted)
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def close(self) -> None:
        """Stop listening; what was tracked stays. Closing twice is harmless."""
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            subscription.close()
        if subscriptions:
            self._emitter.emit(ErrorsOpen, count=0, oldest=0.0)

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event: a tracker is itself a listener, for `listeners=[tracker]`."""
        if isinstance(event, ErrorSeen):
            try:
                self._see(event)
            except BaseException as fault:
                # Counted for the objective that every error is tracked; the spine contains what is raised.
                self._emitter.emit(ErrorUntracked, reason=type(fault).__name__)
                raise
        elif isinstance(event, NumbersWanted):
            self._answer()

    def resolve(self, fingerprint: str) -> bool:
        """Resolve a group by hand, because its cause is fixed.

        Args:
            fingerprint: The group's, from `snapshot()` or a log record's `error.fingerprint`.

        Returns:
            Whether there was such an open group.
        """
        now = self._now()
        with self._lock:
            changes = self._groups.resolve(fingerprint, now)
        self._tell(changes)
        return any(change.cause == "call" for change in changes)

    def snapshot(self) -> tuple[ErrorGroup, ...]:
        """Return what is known of every group, the most recently seen first. O(groups)."""
        now = self._now()
        with self._lock:
            changes = self._groups.sweep(now)
            groups = self._groups.shown()
        self._tell(changes)
        return groups

    def _see(self, event: ErrorSeen) -> None:
        # Rendering and masking take a while and run foreign code: before the lock, and for a new group only.
        wanted = self._groups.wants_sample(event.fingerprint, self._now())
        sample = self._sample(event.error) if wanted else NOTHING
        seen = Sighting(
            event.fingerprint,
            event.error_type,
            event.category,
            event.retry,
            event.sqlstate,
            event.service,
            self._request_id(),
            sample,
        )
        now = self._now()
        with self._lock:
            changes = self._groups.see(seen, now)
        self._tell(changes)

    def _sample(self, error: BaseException) -> ErrorSample:
        try:
            shown = error_fields(error, Walk(self.masker, plain=True))
            causes = tuple(f"{cause['type']}: {cause['message']}" for cause in shown["causes"])
            return ErrorSample(shown["message"], shown["stack"], causes)
        except Exception:  # noqa: BLE001 - an error that cannot be shown is still counted
            return ErrorSample(FAILED, FAILED)

    def _request_id(self) -> str | None:
        request = current_request()
        known: object = context_fields().get("request_id") if request is None else request.request_id
        return None if known is None else self.masker.mask_text(safe_text(known))

    def _answer(self) -> None:
        now = self._now()
        with self._lock:
            changes = self._groups.sweep(now)
            count, oldest = self._groups.oldest(now)
        self._tell(changes)
        self._emitter.emit(ErrorsOpen, count=count, oldest=oldest)

    def _tell(self, changes: list[Change]) -> None:
        for group, cause in changes:
            if cause in {"quiet", "call"}:
                self._emitter.emit(
                    ErrorResolved,
                    fingerprint=group.fingerprint,
                    error_type=group.error_type,
                    seconds=group.time_to_resolution,
                    cause=cause,
                )
            else:
                self._emitter.emit(
                    ErrorOpened,
                    fingerprint=group.fingerprint,
                    error_type=group.error_type,
                    category=group.category,
                    service=group.service,
                    reopened=cause == "again",
                )

    def _now(self) -> Instant:
        return Instant(self._clock.monotonic(), self._clock.time())

    def __repr__(self) -> str:
        state = "attached" if self._subscriptions else "not attached"
        quiet = "never" if self.quiet is None else f"{self.quiet:g} s"
        return (
            f"<ErrorTracker {self.name!r}, {state}, max_groups={self.max_groups}, quiet={quiet}, total={self.total}>"
        )
