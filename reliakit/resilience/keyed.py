"""One circuit breaker for each host, tenant or shard, however many keys there are.

```
hosts["a.example"] ──> closed      recently used      ┐
hosts["b.example"] ──> open        kept while open    ├ at most max_keys
hosts["c.example"] ──> closed      first to be let go ┘
```

Keys often come from outside, so the number of breakers is bounded. An open one stands between callers and a dead
dependency, so those that are closed are dropped first, and are made anew when needed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from math import inf
from typing import Any, Generic, TypeVar, cast
from weakref import WeakValueDictionary

from reliakit.core import checks
from reliakit.core.colour import colour_of
from reliakit.core.errors import ConfigurationError
from reliakit.core.fork import renew_locks_after_fork
from reliakit.resilience.breaker import CircuitBreaker, State
from reliakit.resilience.verdict import plain_callable

__all__ = ["KeyedBreakers"]

K = TypeVar("K", bound=Hashable)
F = TypeVar("F", bound=Callable[..., Any])
_ENDING = frozenset({State.OPEN, State.HALF_OPEN})


class KeyedBreakers(Generic[K]):
    """Keep one breaker for each key, at most `max_keys` of them.

    ```python
    hosts = KeyedBreakers(lambda host: CircuitBreaker("hosts", failure_threshold=3))

    hosts["a.example"].call(fetch, url)

    @hosts.guard(key=lambda host, path: host)       # def, async def, generators, async generators
    async def get(host, path): ...
    ```

    When there are too many, the closed breaker that was not used for longest is dropped. If none is closed, the open
    one that would let a probe through first is dropped. One that was forced open, disabled or set to metrics_only by
    hand is never dropped, even if that means more than `max_keys`. A breaker that is still referenced, such as by a
    call under way, comes back as the same object.

    Safe from threads and tasks. Looking up a key is O(1); so is making room, plus one step for each older breaker
    that is not closed.

    Args:
        make: Returns the breaker of a new key. Breakers of the same name are counted together in metrics.
        max_keys: How many breakers are kept.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    __slots__ = ("__weakref__", "_kept", "_known", "_lock", "_make", "_max_keys")

    def __init__(self, make: Callable[[K], CircuitBreaker], *, max_keys: int = 1000) -> None:
        if isinstance(make, CircuitBreaker):
            raise ConfigurationError("make must be a function that returns a new breaker for each key, not a breaker")
        self._make: Callable[[K], CircuitBreaker] = make
        given: object = make
        if given is not CircuitBreaker:  # the class itself makes breakers named after their keys
            plain_callable("make", given)
        self._max_keys = checks.count("max_keys", max_keys)
        self._kept: OrderedDict[K, CircuitBreaker] = OrderedDict()
        # Dropped breakers that are still referenced: a second breaker for the same key would make both wrong.
        self._known: WeakValueDictionary[K, CircuitBreaker] = WeakValueDictionary()
        # Re-entrant: a finaliser that runs while it is held may look up a key.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")

    def __getitem__(self, key: K) -> CircuitBreaker:
        """Return the breaker of this key, made now if there is none.

        Raises:
            ConfigurationError: `make` did not return a breaker.
        """
        with self._lock:
            breaker = self._known.get(key)
            if breaker is not None:
                return self._keep_locked(key, breaker)
        breaker = self._made(key)
        with self._lock:
            return self._keep_locked(key, self._known.setdefault(key, breaker))

    def guard(self, *, key: Callable[..., K]) -> Callable[[F], F]:
        """Decorate a function so that each call goes through the breaker of its key.

        Args:
            key: Called with the call's own arguments, returns the key. What it raises goes to the caller.

        Raises:
            ConfigurationError: `key` is not a plain function, or the decorated object cannot be guarded.
        """
        key_of = cast("Callable[..., K]", plain_callable("key", key))

        def decorate(fn: F) -> F:
            colour = colour_of(fn, by="KeyedBreakers.guard")
            if colour == "async":
                run: Any = _awaiting(self, fn, key_of)
            elif colour == "plain":
                run = _calling(self, fn, key_of)
            else:
                run = _iterating(self, fn, key_of)
            return cast("F", wraps(fn)(run))

        return decorate

    def items(self) -> tuple[tuple[K, CircuitBreaker], ...]:
        """Return all keys that are kept now with their breakers, the least recently used first."""
        with self._lock:
            return tuple(self._kept.copy().items())

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def _made(self, key: K) -> CircuitBreaker:
        breaker = self._make(key)
        if not isinstance(breaker, CircuitBreaker):
            raise ConfigurationError(f"make must return a CircuitBreaker, it returned {breaker!r}")
        return breaker

    def _keep_locked(self, key: K, breaker: CircuitBreaker) -> CircuitBreaker:
        self._kept[key] = breaker
        self._kept.move_to_end(key)
        if len(self._kept) > self._max_keys:
            spare = self._least_needed_locked()
            if spare is not None:
                self._kept.pop(spare, None)
        return breaker

    def _least_needed_locked(self) -> K | None:
        soonest: K | None = None
        shortest = inf
        newest = next(reversed(self._kept))
        for key, breaker in self._kept.copy().items():  # a copy: a finaliser may add a breaker meanwhile
            state = breaker.state
            if state is State.CLOSED and key != newest:
                return key
            if state in _ENDING:
                wait = breaker.retry_after
                if wait is not None and wait < shortest:
                    soonest, shortest = key, wait
        return soonest

    def __repr__(self) -> str:
        kept = self.items()
        closed = sum(breaker.state is State.CLOSED for _, breaker in kept)
        return f"<KeyedBreakers of {len(kept)} keys, {closed} closed, max_keys={self._max_keys}>"


def _calling(breakers: KeyedBreakers[Any], fn: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return breakers[key(*args, **kwargs)].call(fn, *args, **kwargs)

    return run


def _awaiting(breakers: KeyedBreakers[Any], fn: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await breakers[key(*args, **kwargs)].acall(fn, *args, **kwargs)

    return run


def _iterating(breakers: KeyedBreakers[Any], fn: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return breakers[key(*args, **kwargs)](fn)(*args, **kwargs)

    return run
