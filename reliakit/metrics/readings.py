"""Figures that components keep themselves, and that are read on demand.

Reporting each call, or each line of a log, would cost more than the call. So a component announces itself once, and
each look counts what was added since the last one.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from reliakit.core.fork import renew_locks_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Readings"]

# How many components are followed; those that are gone make room.
_MOST = 10_000


class _Figures(Protocol):
    @property
    def is_gone(self) -> bool: ...


F = TypeVar("F", bound=_Figures)


class Readings(Generic[F]):
    """Follows every component that has announced itself. Safe from any thread; never waits.

    Args:
        count: Takes a component's name, its figures, and those of the last look.
    """

    def __init__(self, count: Callable[[str, F, F], None]) -> None:
        self._count = count
        self._last: dict[tuple[str, Callable[[], F]], F] = {}
        self._names: set[str] = set()
        # Two looks at once would both count what came since the last one, so what cannot be looked at now waits here.
        self._left: deque[tuple[str, Callable[[], F]]] = deque()
        self._lock = Lock()
        renew_locks_after_fork(self, "_lock")

    def follow(self, name: str, read: Callable[[], F]) -> bool:
        """Follow a component from now on, ignoring what it counted before; return whether it is a new one."""
        if (name, read) in self._last:
            return False
        if len(self._last) >= _MOST:
            self.refresh()  # nobody has looked for long: those that are gone make room
        if len(self._last) >= _MOST:
            return False
        self._last.setdefault((name, read), read())
        self._names.add(name)
        return True

    def follows(self, name: str) -> bool:
        """Return whether a component of this name is followed. O(1)."""
        return name in self._names

    def refresh(self) -> list[tuple[str, F]]:
        """Count what was added, and return all figures; return none while another thread does this."""
        found: list[tuple[str, F]] = []
        if not self._lock.acquire(blocking=False):
            return found
        try:
            # Copied in one step, as nothing else is: until Python 3.12 any allocation may collect, and let others in.
            for key in self._last.copy():
                figures = self._look_locked(key)
                if figures is not None:
                    found.append((key[0], figures))
            if any(figures.is_gone for _, figures in found):
                self._forget_names()
        finally:
            self._lock.release()
        self._catch_up()
        return found

    def look(self, name: str, read: Callable[[], F]) -> None:
        """Look at one component now; if another thread is looking, it does this one afterwards."""
        self._left.append((name, read))
        self._catch_up()

    def _catch_up(self) -> None:
        while self._left and self._lock.acquire(blocking=False):
            try:
                if self._left:  # else somebody else has just been at it
                    self._look_locked(self._left.popleft())
            finally:
                self._lock.release()

    def _look_locked(self, key: tuple[str, Callable[[], F]]) -> F | None:
        last = self._last.get(key)
        if last is None:
            return None  # it is not followed any more
        figures = key[1]()
        self._last[key] = figures
        self._count(key[0], figures, last)
        if figures.is_gone:
            self._last.pop(key, None)
        return figures

    def _forget_names(self) -> None:
        self._names = {name for name, _ in self._last.copy()}
        # A component that announced itself in between may have left its name with the previous set.
        self._names.update([name for name, _ in self._last.copy()])

    def begin_anew(self) -> None:
        """Leave to the parent what it counted before this process was forked, and has not looked at."""
        self._left.clear()
        for key in tuple(self._last):
            self._last[key] = key[1]()

    def leave(self) -> None:
        """Count a last time and stop following: what happens from now on is not counted."""
        self.refresh()
        self._last.clear()
        self._forget_names()
