"""Several patterns around one call, composed once into one chain of closures.

```
Policy(Retry(3), breaker, Timeout(2.0))      Retry( breaker( Timeout( fn )))      the leftmost is the outermost
Retry(3) | breaker | Timeout(2.0)            the same
```

The order decides what a policy means, and `explain()` puts it into words. After Polly's pipelines and failsafe-go's
composition; every part is also usable alone, in the same ways.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from functools import wraps
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import PolicyEnded, PolicyStarted
from reliakit.core.guard import (
    Colour,
    Guard,
    colour_of,
    guarded,
    is_awaitable,
    refuse_awaitable,
    refuse_uncallable,
)
from reliakit.core.spine import Emitter, watch
from reliakit.core.tracking import report

if TYPE_CHECKING:
    from reliakit.core.backoff import Backoff
    from reliakit.core.spine import Listener
    from reliakit.resilience.breaker import CircuitBreaker

__all__ = ["Layer", "Part", "Policy", "parts_of"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_GENERATORS: tuple[type[object], ...] = (GeneratorType, AsyncGeneratorType)


class _Composed:
    """Anything that wraps calls: one pattern or several."""

    __slots__ = ("__weakref__", "_chains", "_clock", "_emitter", "name", "tells")

    def __init__(self, name: str, listeners: Iterable[Listener], clock: Clock) -> None:
        self.name: str = checks.named("name", name)
        self._emitter = Emitter(name, listeners, clock)
        self._clock = clock
        self._chains: dict[Colour, Callable[..., Any]] = {}
        # Whether anybody listens to every call, kept here because asking each time would cost 70 ns instead of 15.
        self.tells: bool = False

    def begin(self) -> float:
        """Report that a call begins, and return when."""
        self._emitter.emit(PolicyStarted)
        return self._clock.monotonic()

    def end(self, began: float, error: BaseException | None) -> None:
        """Report that a call is over."""
        self._emitter.emit(
            PolicyEnded,
            duration=self._clock.monotonic() - began,
            error_type=None if error is None else type(error).__name__,
        )

    def left(self, began: float | None, error: BaseException) -> None:
        """Report that a call is over if its beginning was reported, and its error if it was not."""
        if began is not None:
            self.end(began, error)
        report(self._emitter, error)

    def report(self, error: BaseException) -> None:
        """Report an error that leaves, unless it was reported already."""
        report(self._emitter, error)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The patterns, the outermost first."""
        raise NotImplementedError

    def __call__(self, fn: F) -> F:
        """Decorate a function, method, generator or coroutine function. It stays what it is, with its signature.

        Raises:
            ConfigurationError: `fn` is a class, a coroutine object or not callable, or a pattern does not apply to
                such functions.
        """
        if isinstance(fn, staticmethod | classmethod):
            method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
            return cast("F", type(method)(self(method.__func__)))
        colour = colour_of(fn, by=self._title)
        return cast("F", self._compose(fn, colour))

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a plain function once.

        Raises:
            ConfigurationError: `fn` is not a plain function, or a pattern does not apply to plain functions.
        """
        chain = self._chains.get("plain") or self._chain("plain", _invoke)
        return cast("R", chain(fn, *args, **kwargs))

    async def acall(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a coroutine function once and await it.

        Raises:
            ConfigurationError: `fn` returned something that cannot be awaited.
        """
        chain = self._chains.get("async") or self._chain("async", _ainvoke)
        return cast("R", await chain(fn, *args, **kwargs))

    def __or__(self, inner: object) -> Policy:
        """Put this around another pattern: `Retry(3) | Timeout(2.0)`."""
        return Policy(self, inner)

    def __ror__(self, outer: object) -> Policy:
        """Put another pattern around this one."""
        return Policy(outer, self)

    @property
    def _title(self) -> str:
        return f"{type(self).__name__.lower()} {self.name!r}"

    def _chain(self, colour: Colour, caller: Callable[..., Any]) -> Callable[..., Any]:
        # Two threads may both build it the first time; either result will do.
        chain = self._chains[colour] = self._compose(caller, colour, calls=True)
        return chain

    def _compose(self, fn: Callable[..., Any], colour: Colour, *, calls: bool = False) -> Callable[..., Any]:
        chain = fn
        for part in reversed(self.parts):
            if isinstance(part, Layer):
                chain = part.wrap_caller(chain, colour) if calls else part.wrap(chain, colour)
            else:
                chain = guarded(part, chain, by=self._title)
        return _SHELLS[colour](fn, chain, self, self._title)


class Layer(_Composed):
    """One pattern, usable alone or as a part of a `Policy`."""

    __slots__ = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """This pattern alone."""
        return (self,)

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` within this pattern, in the same colour.

        Raises:
            ConfigurationError: The pattern does not apply to this colour.
        """
        raise NotImplementedError

    def wrap_caller(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return the same for a caller: a function that calls its first argument with the others."""
        return self.wrap(fn, colour)


Part = Layer | Guard[Any]


def parts_of(given: object) -> tuple[Part, ...]:
    """Return the patterns that an argument of `Policy` stands for.

    Raises:
        ConfigurationError: It is not a pattern.
    """
    if isinstance(given, _Composed):
        return given.parts
    if isinstance(given, type):
        raise ConfigurationError(f"Policy takes patterns, got the class {given.__qualname__}: make an instance of it")
    if callable(getattr(given, "enter", None)) and callable(getattr(given, "leave", None)):
        return (cast("Guard[Any]", given),)
    raise ConfigurationError(
        f"Policy takes patterns such as Retry(3) or a circuit breaker, the outermost first, got {given!r}"
    )


class Policy(_Composed):
    """Combine several patterns around one call, the outermost first.

    ```python
    payments = Policy(Retry(3), CircuitBreaker("payments"), Timeout(2.0))

    @payments                               # def, async def, generators, async generators, methods
    async def pay(order): ...

    payments.call(fn, 1)                    # or await payments.acall(fn, 1)
    print(payments.explain())
    ```

    It is composed once, when it decorates a function or first makes a call. Rejections are neither retried nor
    counted as failures. One object is safe for any mix of threads and tasks.

    Args:
        parts: Retry, Timeout, Bulkhead, Fallback, Throttle, AdaptiveLimit, Hedge, Coalesce, circuit breakers,
            concurrency limiters, and policies, which stand for their own parts.
        name: Names the policy in events.
        listeners: Callables that receive the policy's own events; each part has its own listeners too.
        clock: Where the time of events comes from.

    Raises:
        ConfigurationError: There are no parts, or one of them is not a pattern.
    """

    __slots__ = ("_parts",)

    def __init__(
        self,
        *parts: object,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self._parts: tuple[Part, ...] = tuple(part for given in parts for part in parts_of(given))
        if not self._parts:
            raise ConfigurationError("Policy takes at least one pattern, the outermost first")
        watch(self)

    def listeners_changed(self) -> None:
        """Report each call while somebody listens; see `reliakit.core.spine.watch`."""
        self.tells: bool = self._emitter.hears(PolicyStarted) or self._emitter.hears(PolicyEnded)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The patterns, the outermost first."""
        return self._parts

    def explain(self) -> str:
        """Print the patterns in order, what each means there, and warnings of known traps; return the text."""
        from reliakit.resilience.explain import explained  # noqa: PLC0415 - knows every pattern, which need this module

        text = explained(self)
        print(text)  # noqa: T201 - what it is for
        return text

    @classmethod
    def standard(
        cls,
        name: str = "default",
        *,
        timeout: float | None = 10.0,
        attempt_timeout: float = 2.0,
        max_attempts: int = 3,
        wait: Backoff | None = None,
        on: Any = Exception,
        max_concurrent: int | None = None,
        breaker: CircuitBreaker | None = None,
        fallback: object = ...,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> Policy:
        """Return a policy with what most outgoing calls need, in the one right order.

        From the outside in: a fallback, if one is given; the time limit of the whole call; retries that share a
        budget; a circuit breaker; the time limit of each attempt; a bulkhead, if a size is given.

        Args:
            name: Names the policy and its parts in errors and events.
            timeout: Seconds for the whole call with all its attempts; None if only the caller's deadline limits it.
            attempt_timeout: Seconds for each attempt.
            max_attempts: The total number of attempts; 1 for no retries.
            wait: The pause after each failed attempt; by default from 0.1 s, doubling to 10 s, with full jitter.
            on: Which errors are retried, see `Retry`.
            max_concurrent: How many calls may run at once, or None for any number.
            breaker: The circuit breaker; by default a new one named `name`.
            fallback: What stands in for the result, see `Fallback`; if left out, errors pass.
            listeners: Callables that receive the events of all parts.
            clock: Provides the time and the random numbers.
        """
        from reliakit.resilience.standard import standard_parts  # noqa: PLC0415 - as above

        own = tuple(listeners)
        parts = standard_parts(
            name,
            timeout=timeout,
            attempt_timeout=attempt_timeout,
            max_attempts=max_attempts,
            wait=wait,
            on=on,
            max_concurrent=max_concurrent,
            breaker=breaker,
            fallback=fallback,
            listeners=own,
            clock=clock,
        )
        return cls(*parts, name=name, listeners=own, clock=clock)

    def __repr__(self) -> str:
        return f"<Policy {self.name!r} {' | '.join(map(repr, self._parts))}>"


# The outermost frame of every chain: reports the error that leaves, and detects functions of another colour.


def _invoke(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if not callable(fn):
        refuse_uncallable(fn, "call")
    result: Any = fn(*args, **kwargs)
    if type(result) in _GENERATORS and colour_of(fn, by="call") != "plain":
        raise ConfigurationError(
            f"{fn!r} is a generator function, so call would guard only its creation: decorate it instead"
        )
    if is_awaitable(result):
        refuse_awaitable(fn, result, "call")
    return result


async def _ainvoke(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    if not callable(fn):
        refuse_uncallable(fn, "acall")
    pending = fn(*args, **kwargs)
    if not is_awaitable(pending):
        from inspect import isawaitable  # noqa: PLC0415 - knows coroutines made of generators, which are rare

        if not isawaitable(pending):
            raise ConfigurationError(f"{fn!r} returned nothing that can be awaited: use call for a plain function")
    return await pending


def _plain(fn: Callable[..., Any], chain: Callable[..., Any], policy: _Composed, by: str) -> Callable[..., Any]:
    known: type[object] = _Composed  # the class of the last result that was not awaitable

    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal known
        began = policy.begin() if policy.tells else None
        try:
            result = chain(*args, **kwargs)
            if type(result) is not known:
                if is_awaitable(result):
                    refuse_awaitable(fn, result, by)
                known = cast("type[object]", type(result))
        except BaseException as error:
            policy.left(began, error)
            raise
        if began is not None:
            policy.end(began, None)
        return result

    return run


def _async(fn: Callable[..., Any], chain: Callable[..., Any], policy: _Composed, by: str) -> Callable[..., Any]:  # noqa: ARG001 - one signature for all shells
    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        began = policy.begin() if policy.tells else None
        try:
            result = await chain(*args, **kwargs)
        except BaseException as error:
            policy.left(began, error)
            raise
        if began is not None:
            policy.end(began, None)
        return result

    return run


def _generator(fn: Callable[..., Any], chain: Callable[..., Any], policy: _Composed, by: str) -> Callable[..., Any]:  # noqa: ARG001
    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        try:
            return (yield from cast("Generator[Any, Any, Any]", chain(*args, **kwargs)))
        except Exception as error:
            policy.report(error)
            raise

    return run


def _async_generator(
    fn: Callable[..., Any],
    chain: Callable[..., Any],
    policy: _Composed,
    by: str,
) -> Callable[..., Any]:
    class Telling:
        def enter(self) -> None:
            return None

        def leave(self, permit: None, error: BaseException | None, result: object, /) -> None:  # noqa: ARG002
            if isinstance(error, Exception):
                policy.report(error)

    run: Callable[..., AsyncGenerator[Any, Any]] = guarded(Telling(), chain, by=by)
    return wraps(fn)(run)


_SHELLS: dict[Colour, Callable[[Callable[..., Any], Callable[..., Any], _Composed, str], Callable[..., Any]]] = {
    "plain": _plain,
    "async": _async,
    "generator": _generator,
    "async generator": _async_generator,
}
