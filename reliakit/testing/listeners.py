"""A listener that records events, to assert on what a component reported."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from reliakit.core.events import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RecordingListener"]

E = TypeVar("E", bound=Event)


class RecordingListener:
    """Records every event it hears, in the order in which they came. Safe from any thread.

    ```
    heard = RecordingListener()
    breaker = CircuitBreaker("payments", listeners=(heard,))      # one component, or
    with subscribe(heard): ...                                    # everything in the process
    assert [change.state for change in heard.of(CircuitChanged)] == ["open"]
    ```
    """

    def __init__(self) -> None:
        # Re-entrant: copying the list may run a finaliser, which may emit an event.
        self._lock = threading.RLock()
        self._events: list[Event] = []

    def __call__(self, event: Event) -> None:
        """Record one event."""
        with self._lock:
            self._events.append(event)

    @property
    def events(self) -> list[Event]:
        """Everything heard so far, as a list of your own."""
        with self._lock:
            return list(self._events)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one class and its subclasses, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def clear(self) -> None:
        """Forget what was heard."""
        with self._lock:
            self._events.clear()

    def __len__(self) -> int:
        return len(self._events)

    def __bool__(self) -> bool:
        # An empty recorder is still a listener: `listener or default` must keep it.
        return True

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def __repr__(self) -> str:
        return f"<RecordingListener of {len(self)} events>"
