"""A store's own connections, for any number of threads: each serves one thread at a time.

```
thread ── take ── one is idle ─────────────────────────────> request, answer ── put
               └─ none is: it waits, until its time is over ──> one more is made, by a thread of its own
```

A caller that gives up on a connection attempt leaves it to get ready for the next decision: over a slow network, or
through a handshake that takes longer than a decision may, there would never be a connection otherwise. What a thread
cannot be cut off from, such as looking up a host's name, delays no caller beyond its deadline.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, TypeVar

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import remaining
from reliakit.core.errors import StoreError
from reliakit.core.fork import tell_after_fork
from reliakit.core.threads import Bell, Errand
from reliakit.stores.unheard import Unheard

__all__ = ["CONNECTING", "Connections"]

C = TypeVar("C")

_SHORTEST: Final = 0.001
# Seconds that connecting may take, whichever caller waits for it.
CONNECTING: Final = 10.0


class Connections(Generic[C]):
    """Connections for any number of threads.

    Args:
        store: The store's name, for errors.
        timeout: Seconds that a decision may take if no deadline comes first.
        most: The most connections.
    """

    def __init__(self, store: str, *, timeout: float, most: int) -> None:
        self._store = store
        self._timeout = timeout
        self._most = most
        # Re-entrant: a finaliser that runs while it is held may give a connection back here.
        self._lock = threading.RLock()
        self._waiting: deque[Bell] = deque()
        # The connection used last is the one most likely to be alive.
        self._idle: list[C] = []
        self._size = 0
        self._attempts = 0
        # While an attempt to connect is younger than this, no other one begins.
        self._young_until = 0.0
        # The number of the last attempt that failed, and its error.
        self._failed: tuple[int, BaseException] | None = None
        # The number of the last attempt for which somebody has ceased to wait.
        self._given_up = 0
        self._unheard = Unheard()
        self._is_closed = False
        tell_after_fork(self, "forget")

    def _connect(self) -> C:
        """Return a new connection that is ready for requests."""
        raise NotImplementedError

    def _drop(self, line: C) -> None:
        """Close a connection without waiting for the server."""
        raise NotImplementedError

    def forget(self) -> None:
        """Leave a parent process's connections to the parent."""
        self._lock = threading.RLock()
        self._waiting = deque()
        _inherited.extend(self._idle)
        self._idle, self._size, self._young_until, self._failed = [], 0, 0.0, None

    def open(self) -> None:
        """Connect, if there is no connection yet."""
        line = self._take(SYSTEM_CLOCK.monotonic() + max(CONNECTING, self._timeout))
        self._put(line, is_good=True)

    def close(self) -> None:
        """Close the connections; those in use are closed when they come back."""
        self._is_closed = True
        self._close_idle()

    def _until(self) -> float:
        """Return by when a decision that begins now must have ended."""
        left = remaining()
        seconds = self._timeout if left is None else max(_SHORTEST, min(left, self._timeout))
        return SYSTEM_CLOCK.monotonic() + seconds

    def _take(self, until: float) -> C:
        try:
            return self._idle.pop()  # atomic, so that a decision needs no lock as a rule
        except IndexError:
            pass
        before = self._attempts
        while (line := self._idle_or_wait(until, before)) is None:
            pass
        return line

    def _idle_or_wait(self, until: float, before: int) -> C | None:
        """Return a connection, or None after a wait, when it is time to look again."""
        bell = errand = None
        try:
            with self._lock:
                now = SYSTEM_CLOCK.monotonic()
                if now >= until:  # which leaves one that has come for the next
                    self._given_up = self._attempts
                    raise TimeoutError("no connection in time")
                with suppress(IndexError):
                    return self._idle.pop()
                if self._is_closed:
                    raise StoreError("closed meanwhile", store=self._store)
                # An attempt that was under way already may have failed for a reason that is over by now.
                has_failed = self._failed is not None and self._failed[0] > before
                if self._failed is not None and has_failed and not self._size:
                    raise self._failed[1]
                bell = Bell()
                self._waiting.append(bell)
                # One at a time: a hundred threads that come first must not make a hundred connections.
                if self._size < self._most and now >= self._young_until and not has_failed:
                    self._attempts += 1
                    errand = Errand(partial(self._grow, self._attempts), "reliakit-store")
                    self._young_until = now + self._timeout
            if errand is not None:
                errand.begin()
            if not self._idle:  # one may have come back before the bell was in place
                bell.wait(until - now)
        except BaseException:
            if errand is not None and errand.take_back():
                self._young_until = 0.0
            self._unlist(bell)
            self._wake()  # the connection it was rung for goes to another waiter
            raise
        self._unlist(bell)
        return None

    def _unlist(self, bell: Bell | None) -> None:
        with self._lock:
            if bell is not None and bell in self._waiting:  # otherwise it was rung
                self._waiting.remove(bell)

    def _grow(self, attempt: int) -> None:
        # Counted here and not by the caller that starts it, which may be interrupted.
        with self._lock:
            self._size += 1
        try:
            line = self._connect()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for it
            with self._lock:
                self._young_until = 0.0
                self._size -= 1
                self._failed = (attempt, error)
                self._wake_all_locked()
            if attempt <= self._given_up:
                self._unheard.tell(error)
            return
        with self._lock:
            self._young_until = 0.0
        self._unheard.forget()
        self._put(line, is_good=True)

    def _put(self, line: C, *, is_good: bool) -> None:
        """Give a connection back, of which `is_good` says whether it awaits the next request."""
        is_kept = is_good and not self._is_closed
        if is_kept:
            # Before it looks for waiters, as they look for it after they are listed: one of the two sees the other.
            self._idle.append(line)
            if self._is_closed:  # in between
                self._close_idle()
        else:
            with self._lock:
                self._size -= 1
        if self._waiting:
            self._wake()
        if not is_kept:
            self._drop(line)

    def _wake(self) -> None:
        """Make the first waiter look again: there is a connection, or room for one."""
        with self._lock, suppress(IndexError):  # nobody waits
            self._waiting.popleft().set()

    def _wake_all_locked(self) -> None:
        while self._waiting:
            self._waiting.popleft().set()

    def _close_idle(self) -> None:
        # One by one: who gives a connection back takes no lock, and would put it into a list that is closed already.
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            with self._lock:
                self._size -= 1
            self._drop(line)
        with self._lock:
            self._wake_all_locked()


# A forked child neither uses nor closes its parent's connections: closing would end the parent's session too.
_inherited: list[Any] = []
