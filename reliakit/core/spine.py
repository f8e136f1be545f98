"""The event spine: components emit, listeners receive, and neither knows the other.

```
breaker ──┐                          ┌── metrics
database ─┼─ Emitter ── subscribe() ─┼── logs
limiter ──┘     └────── listeners= ──┴── yours
```

The list of process-wide listeners is the only mutable state that reliakit keeps at module level.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterable
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import BuiltinMethodType, CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast
from weakref import WeakSet

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import Event
from reliakit.core.fork import renew_locks_after_fork

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Emitter", "Listener", "Subscription", "Watcher", "subscribe", "watch"]

E = TypeVar("E", bound=Event)
_LAZY = (iscoroutinefunction, isasyncgenfunction, isgeneratorfunction)
Listener = Callable[[Any], object]

_log = logging.getLogger("reliakit")


class _Nesting(threading.local):
    """How many deliveries are in progress in this thread, one inside the other."""

    deep = 0


_nesting = _Nesting()
# A listener that makes a call hears of that call too; a finaliser that runs meanwhile may add another level.
_DEEPEST = 4


class _Route:
    """One listener, the types it wants, and how often it has raised."""

    __slots__ = ("_failures", "is_deaf_to", "listener", "types")

    def __init__(self, listener: Listener, types: tuple[type[Event], ...]) -> None:
        self.listener: Listener = listener
        self.types: tuple[type[Event], ...] = types
        # Looked up on the class: a mock object has every attribute that it is asked for.
        can_be_deaf = hasattr(type(listener), "is_deaf_to")
        self.is_deaf_to: Callable[[type[Event], str], bool] | None = (
            cast("Any", listener).is_deaf_to if can_be_deaf else None
        )
        self._failures = itertools.count().__next__

    def deliver(self, event: Event) -> None:
        """Call the listener. An error that it raises is logged the first time, and contained.

        So are circles: a listener that causes the events it hears does not receive the fifth of them in a row.
        """
        deep = _nesting.deep
        try:
            if deep >= _DEEPEST:
                raise RecursionError("a listener causes the events that it hears: leave it out of what it calls")
            _nesting.deep = deep + 1
            answer = self.listener(event)
            if answer is not None and hasattr(type(answer), "__await__"):
                _refuse_answer(answer)
        except Exception:  # noqa: BLE001
            # A listener's fault must not reach the caller: it is logged once, then contained silently.
            if self._failures() == 0:  # counting is one atomic step
                _tell(self.listener, event)
        finally:
            _nesting.deep = deep


def _refuse_answer(answer: object) -> None:
    if isinstance(answer, CoroutineType):
        answer.close()
    raise TypeError("a listener must be a plain function, this one returned an awaitable that nobody awaits")


def _tell(listener: Listener, event: Event) -> None:
    # If the log handler raises too, there is nobody left to tell, and the caller's result still comes first.
    with contextlib.suppress(Exception):
        _log.exception(
            "listener %s raised on %s; its next errors are not reported", _shown(listener), type(event).__name__
        )


def _shown(listener: object) -> str:
    try:
        return repr(listener)
    except Exception:  # noqa: BLE001 - the message matters more than a broken repr
        return f"<{type(listener).__name__}>"


class Watcher(Protocol):
    """A component that does less while nobody listens, and so must know when somebody does."""

    def listeners_changed(self) -> None:
        """Note that the process-wide listeners have changed. Must neither raise nor block."""


class _Listeners:
    """All process-wide listeners, copied on write so that emitting takes no lock.

    The lock is re-entrant: any allocation may trigger garbage collection, and a finaliser may close a generator that
    holds a subscription, or make a component, on this very thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.routes: tuple[_Route, ...] = ()
        self._watchers: WeakSet[Watcher] = WeakSet()
        renew_locks_after_fork(self, "_lock")

    def add(self, route: _Route) -> None:
        self._change(lambda routes: (*routes, route))

    def remove(self, route: _Route) -> None:
        self._change(lambda routes: tuple(known for known in routes if known is not route))

    def _change(self, changed: Callable[[tuple[_Route, ...]], tuple[_Route, ...]]) -> None:
        with self._lock:
            while True:
                before = self.routes
                after = changed(before)
                if self.routes is before:  # otherwise a finaliser changed it meanwhile, see above
                    break
            self.routes = after
            watchers = tuple(self._watchers)
        while True:
            _tell_all(watchers)
            if self.routes is after:
                return
            # Another thread has changed it and told them too, but a watcher may have heard of the two in wrong order.
            after = self.routes

    def watch(self, watcher: Watcher) -> None:
        # A set must not grow while another thread iterates over it.
        with self._lock:
            self._watchers.add(watcher)
        routes = None
        while routes is not self.routes:  # a listener that came or went meanwhile may have been reported too early
            routes = self.routes
            watcher.listeners_changed()


def _tell_all(watchers: tuple[Watcher, ...]) -> None:
    for watcher in watchers:
        watcher.listeners_changed()


_everybody = _Listeners()


class Subscription:
    """A listener's place in the process-wide list; close it, or leave its `with` block, to stop listening."""

    __slots__ = ("_route",)

    def __init__(self, route: _Route) -> None:
        self._route: _Route | None = route

    def close(self) -> None:
        """Stop listening. Closing twice is harmless."""
        route, self._route = self._route, None
        if route is not None:
            _everybody.remove(route)

    @property
    def is_closed(self) -> bool:
        """Whether it has stopped listening."""
        return self._route is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._route is None:
            return "<Subscription closed>"
        wanted = ", ".join(kind.__name__ for kind in self._route.types) or "every event"
        return f"<Subscription {_shown(self._route.listener)} to {wanted}>"


def subscribe(listener: Listener, *event_types: type[Event]) -> Subscription:
    """Call `listener` with every event in this process, or with those of the given types.

    A listener is called in the thread or task that made the event, after the component's locks are released. It must
    not block. An error that it raises is logged once and contained; if it makes calls that cause the events it hears,
    it does not receive the fifth level of them. The same listener subscribed twice hears an event once. Safe from any
    thread, and from inside a listener; subscribing or closing while an event is being delivered takes effect with the
    next one.

    Args:
        listener: A plain callable that takes the event.
        event_types: Event classes; a class includes its subclasses. None given means every event.

    Returns:
        The subscription, which is also a context manager.

    Raises:
        ConfigurationError: The listener is not a plain callable, or a type is not an event class.
    """
    route = _route(listener, event_types)
    _everybody.add(route)
    return Subscription(route)


def watch(watcher: Watcher) -> None:
    """Tell this component of the listeners now, and again when the process-wide ones change. It is held weakly."""
    _everybody.watch(watcher)


class Emitter:
    """Emits one component's events: names and numbers them, and builds an event only if somebody listens.

    Args:
        name: The component's name, carried by every event.
        listeners: Listeners of this component alone, called before the process-wide ones.
        clock: Provides `at`.

    Raises:
        ConfigurationError: `listeners` is not a list of plain callables, or `clock` is not a clock.
    """

    __slots__ = ("_apart", "_clock", "_next", "_own", "_table", "name")

    def __init__(self, name: str, listeners: Iterable[Listener] = (), clock: Clock = SYSTEM_CLOCK) -> None:
        self.name: str = name
        self._clock = checks.clock("clock", clock)
        self._own = _own_routes(listeners)
        self._apart: tuple[Listener, ...] = ()  # listeners that are told in another way
        self._next = itertools.count(1).__next__
        # The process-wide routes that the table was made from, and which listeners want which type.
        self._table: tuple[tuple[_Route, ...], dict[type[Event], tuple[_Route, ...]]] = ((), {})

    def apart_from(self, listeners: Iterable[Listener]) -> Emitter:
        """Return an emitter of the same component without these listeners, which are told in another way."""
        other = Emitter(self.name, clock=self._clock)
        other._own, other._next, other._apart = self._own, self._next, (*self._apart, *listeners)
        return other

    def hears(self, kind: type[Event], status: str = "") -> bool:
        """Return whether anybody listens for this type. Two attribute reads and a lookup, no lock.

        A listener that has a method `is_deaf_to(kind, status)` is asked, because it may know that it would only throw
        the event away, such as a log whose level leaves it out.

        Args:
            kind: The type of event.
            status: The status that the event will carry, if it has one.
        """
        made_from, table = self._table
        routes = table[kind] if made_from is _everybody.routes and kind in table else self._routes(kind)
        for route in routes:
            try:
                if route.is_deaf_to is None or not route.is_deaf_to(kind, status):
                    return True
            except Exception:  # noqa: BLE001 - it then receives the event; what it raises there is logged and contained
                return True
        return False

    def reaches(self, kind: type[Event]) -> bool:
        """Return whether anybody subscribed to this type, even if deaf to it at the moment."""
        return bool(self._routes(kind))

    @property
    def listeners(self) -> object:
        """An object that is replaced by another one when a listener is added or removed."""
        return _everybody.routes

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens for anything."""
        return bool(_everybody.routes or self._own)

    def emit(self, kind: type[E], /, **fields: Any) -> None:
        """Build and deliver one event, if anybody listens for its type. Never raises a listener's error."""
        routes = self._routes(kind)
        if routes:
            self._deliver(routes, kind, fields)

    def introduce(self, kind: type[E], /, **fields: Any) -> None:
        """Emit an event only to the process-wide listeners that named this very type.

        For components that announce themselves again and again to those concerned: nothing has happened.
        """
        named = tuple(route for route in _everybody.routes if kind in route.types)
        routes = _interested(kind, (), named, ()) if named else ()
        if routes:
            self._deliver(routes, kind, fields)

    def _deliver(self, routes: tuple[_Route, ...], kind: type[Event], fields: dict[str, Any]) -> None:
        event = kind(name=self.name, at=self._clock.monotonic(), sequence=self._next(), **fields)
        for route in routes:
            route.deliver(event)

    def _routes(self, kind: type[Event]) -> tuple[_Route, ...]:
        everybody = _everybody.routes
        made_from, table = self._table
        if made_from is not everybody:
            table = {}
            self._table = (everybody, table)
        try:
            return table[kind]
        except KeyError:
            routes = table[kind] = _interested(kind, self._own, everybody, self._apart)
            return routes

    def __repr__(self) -> str:
        return f"<Emitter {self.name!r}>"


def _interested(
    kind: type[Event], own: tuple[_Route, ...], everybody: tuple[_Route, ...], apart: tuple[Listener, ...]
) -> tuple[_Route, ...]:
    """Return the routes that want this type, each listener once, however often it was given."""
    chosen: list[_Route] = []
    for route in (*own, *everybody):
        wanted = not route.types or issubclass(kind, route.types)
        known = (*apart, *(other.listener for other in chosen))
        if wanted and not any(_is_same(route.listener, listener) for listener in known):
            chosen.append(route)
    return tuple(chosen)


def _is_same(one: Listener, other: Listener) -> bool:
    # Bound methods are made anew at each access, so they need `==`. Any other `==` may compare contents.
    return one is other or (isinstance(one, MethodType | BuiltinMethodType) and one == other)


def _own_routes(listeners: object) -> tuple[_Route, ...]:
    # A single listener that is iterable, such as a recorder of events, would pass for an empty list.
    if callable(listeners) or not isinstance(listeners, Iterable):
        raise ConfigurationError(f"listeners must be a list of callables that take an event, got {listeners!r}")
    return tuple(_route(listener, (), "each of listeners") for listener in cast("Iterable[object]", listeners))


def _route(listener: object, types: tuple[type[Event], ...], argument: str = "listener") -> _Route:
    if not callable(listener):
        raise ConfigurationError(f"{argument} must be a callable that takes an event, got {listener!r}")
    called = (listener, type(listener).__call__)
    if any(is_lazy(target) for target in called for is_lazy in _LAZY):
        raise ConfigurationError(
            f"{argument} must be a plain function, {listener!r} is async or a generator: hand over to a task yourself"
        )
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, Event)):
            raise ConfigurationError(f"event_types must be event classes, got {kind!r}")
    return _Route(cast("Listener", listener), types)
