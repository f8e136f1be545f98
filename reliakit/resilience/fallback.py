"""Something in place of a result: yesterday's prices, an empty list, an answer made from the error.

```
fn() ── error ──> value, or what fn(error) returns
```
"""

from __future__ import annotations

import reprlib
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from copy import copy
from inspect import iscoroutinefunction, signature
from typing import TYPE_CHECKING, Any

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import FallbackUsed
from reliakit.core.guard import is_awaitable, refuse_awaitable
from reliakit.resilience.policy import Layer
from reliakit.resilience.streams import AsyncBegun, Begun, Ended, afirst, areplay, astream, first, replay, stream
from reliakit.resilience.verdict import ErrorFilter, Question, matching, shown

if TYPE_CHECKING:
    from reliakit.core.guard import Colour
    from reliakit.core.spine import Listener

__all__ = ["Fallback"]

_COPIED = frozenset({list, dict, set})


class Fallback(Layer):
    """Answer with something else when a call fails.

    ```python
    @Fallback([], on=OSError)               # or Fallback(lambda error: cached_prices())
    async def prices(): ...
    ```

    Rejections are errors too, so the fallback also stands in while a circuit is open. Cancellation,
    KeyboardInterrupt, SystemExit, GeneratorExit and ConfigurationError always pass. If the stand-in itself fails, its
    error is raised, with the first one as its context. For a generator the stand-in is an iterable, used as long as
    no item has been yielded; after that, an error passes. One object is safe for any mix of threads and tasks.

    Args:
        fallback: The stand-in itself, or a function that takes the error and returns it; it may be `async def` if the
            functions that it stands in for are. A list, dict or set is copied for each caller.
        on: Which errors it stands in for: a type, a tuple of types, or a predicate of the error.
        name: Names it in events.
        listeners: Callables that receive its events.
        clock: Provides the time of events.

    Raises:
        ConfigurationError: A setting is wrong; or, at decoration, an `async def` stands in for a plain function.
    """

    __slots__ = ("_fallback", "_is_async", "_settings", "_shown", "_wants")

    def __init__(
        self,
        fallback: Any,
        /,
        *,
        on: ErrorFilter = Exception,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        if isinstance(fallback, type):
            raise ConfigurationError(
                f"Fallback takes a value or a function of the error, got the class {fallback.__qualname__}: "
                f"give `lambda error: {fallback.__name__}()`"
            )
        # Shortened for messages: values may be of any size.
        self._shown = getattr(fallback, "__qualname__", None) or reprlib.repr(fallback)
        self._settings = "" if on is Exception else f", on={shown(on)}"
        if callable(fallback) and not _takes_an_error(fallback):
            raise ConfigurationError(
                f"Fallback {self._shown} must be callable with the error alone, and is not: give `lambda error: ...`"
            )
        self._fallback = fallback
        self._is_async = iscoroutinefunction(fallback) or iscoroutinefunction(type(fallback).__call__)
        self._wants = Question(matching("on", on), otherwise=False)

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` with its stand-in, in the same colour."""
        if self._is_async and colour in {"plain", "generator"}:
            raise ConfigurationError(
                f"Fallback {self._shown} is async and could not be awaited by a plain function: give a plain one"
            )
        if colour == "plain":
            return self._plain(fn, lambda answer: answer)
        if colour == "async":
            return self._async(fn, _itself)
        if colour == "generator":
            return stream(self._plain(first(fn), self._items))
        return astream(self._async(afirst(fn), self._aitems))

    def _plain(self, fn: Callable[..., Any], made: Callable[[Any], Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return fn(*args, **kwargs)
            except Exception as error:
                if not self._takes(error):
                    raise
                answer = self._answer(error)
                if is_awaitable(answer):
                    refuse_awaitable(self._fallback, answer, "Fallback of a plain function")
                return made(answer)

        return run

    def _async(self, fn: Callable[..., Any], made: Callable[[Any], Awaitable[Any]]) -> Callable[..., Any]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return await fn(*args, **kwargs)
            except Exception as error:
                if not self._takes(error):
                    raise
                answer = self._answer(error)
                return await made(await answer if callable(self._fallback) and is_awaitable(answer) else answer)

        return run

    def _takes(self, error: Exception) -> bool:
        return not isinstance(error, ConfigurationError) and self._wants(error)

    def _answer(self, error: Exception) -> Any:
        self._emitter.emit(FallbackUsed, error_type=type(error).__name__)
        fallback = self._fallback
        if callable(fallback):
            return fallback(error)
        return copy(fallback) if type(fallback) in _COPIED else fallback

    def _items(self, answer: Any) -> Begun | Ended:
        if not isinstance(answer, Iterable):
            raise self._no_items(answer)
        return first(replay)(answer)

    async def _aitems(self, answer: Any) -> AsyncBegun | Ended:
        if not isinstance(answer, Iterable | AsyncIterable):
            raise self._no_items(answer)
        return await afirst(areplay)(answer)

    def _no_items(self, answer: object) -> ConfigurationError:
        return ConfigurationError(
            f"Fallback {self._shown} stands in for a generator, so it must be something to iterate over, "
            f"got {type(answer).__name__}"
        )

    def __repr__(self) -> str:
        return f"Fallback({self._shown}{self._settings})"


def _takes_an_error(fn: Callable[..., Any]) -> bool:
    try:
        parameters = signature(fn)
    except (TypeError, ValueError):
        return True  # functions that are not written in Python need not have a signature
    try:
        parameters.bind(None)
    except TypeError:
        return False
    return True


async def _itself(answer: Any) -> Any:
    return answer
