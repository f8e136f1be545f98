"""What a policy can do for generators: act until the first item, then pass everything on.

```
begin: fn() ── first item ──┬── item ── item ── end
       may be tried again   │   the consumer has seen something: errors are passed on to it
```

`send`, `throw` and `close` reach the generator inside, as with `yield from`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from functools import partial
from typing import Any

__all__ = ["AsyncBegun", "Begun", "Ended", "afirst", "areplay", "astream", "first", "replay", "stream"]

Step = Callable[[Callable[[], Any]], Any]
AsyncStep = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


class Ended:
    """A generator that ended without yielding an item."""

    __slots__ = ("value",)

    def __init__(self, value: object = None) -> None:
        self.value: object = value


class Begun:
    """A generator that has yielded its first item.

    Attributes:
        inner: The generator.
        item: Its first item.
        step: Runs each further step, given a callable to call at once; None to just call it.
        end: Called once the stream is over, however it ends; None for nothing.
    """

    __slots__ = ("end", "inner", "item", "step")

    def __init__(
        self,
        inner: Generator[Any, Any, Any],
        item: object,
        step: Step | None = None,
        end: Callable[[], object] | None = None,
    ) -> None:
        self.inner: Generator[Any, Any, Any] = inner
        self.item: object = item
        self.step: Step | None = step
        self.end: Callable[[], object] | None = end


class AsyncBegun:
    """An async generator that has yielded its first item; see `Begun`."""

    __slots__ = ("end", "inner", "item", "step")

    def __init__(
        self,
        inner: AsyncGenerator[Any, Any],
        item: object,
        step: AsyncStep | None = None,
        end: Callable[[], object] | None = None,
    ) -> None:
        self.inner: AsyncGenerator[Any, Any] = inner
        self.item: object = item
        self.step: AsyncStep | None = step
        self.end: Callable[[], object] | None = end


def first(fn: Callable[..., Any]) -> Callable[..., Begun | Ended]:
    """Return a plain function that runs the generator up to its first item."""

    def begin(*args: Any, **kwargs: Any) -> Begun | Ended:
        inner = fn(*args, **kwargs)
        try:
            return Begun(inner, next(inner))
        except StopIteration as done:
            return Ended(done.value)

    return begin


def afirst(fn: Callable[..., Any]) -> Callable[..., Awaitable[AsyncBegun | Ended]]:
    """Return a coroutine function that runs the async generator up to its first item."""

    async def begin(*args: Any, **kwargs: Any) -> AsyncBegun | Ended:
        inner = fn(*args, **kwargs)
        try:
            return AsyncBegun(inner, await anext(inner))
        except StopAsyncIteration:
            return Ended()

    return begin


def stream(begin: Callable[..., Begun | Ended]) -> Callable[..., Any]:
    """Return a generator function that begins with `begin`, and then passes on what comes."""

    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        begun = begin(*args, **kwargs)
        if isinstance(begun, Ended):
            return begun.value
        inner, item, step = begun.inner, begun.item, begun.step or _call
        try:
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    inner.close()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - handed on to where the caller meant it
                    advance = partial(inner.throw, thrown)
                else:
                    advance = partial(inner.send, sent)
                try:
                    item = step(advance)
                except StopIteration as done:
                    return done.value
                except BaseException:
                    inner.close()  # the step never began, so the generator would be left suspended
                    raise
        finally:
            if begun.end is not None:
                begun.end()

    return run


def astream(begin: Callable[..., Awaitable[AsyncBegun | Ended]]) -> Callable[..., Any]:
    """Return an async generator function that begins with `begin`, and then passes on what comes."""

    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        begun = await begin(*args, **kwargs)
        if isinstance(begun, Ended):
            return
        inner, item, step = begun.inner, begun.item, begun.step or _acall
        try:
            while True:
                try:
                    sent = yield item
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as thrown:  # noqa: BLE001 - handed on to where the caller meant it
                    advance = partial(inner.athrow, thrown)
                else:
                    advance = partial(inner.asend, sent)
                try:
                    item = await step(advance)
                except StopAsyncIteration:
                    return
                except BaseException:
                    await inner.aclose()
                    raise
        finally:
            if begun.end is not None:
                begun.end()

    return run


def replay(items: Iterable[Any]) -> Generator[Any, Any, None]:
    """Return any iterable as a generator."""
    yield from items


async def areplay(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, Any]:
    """Return any iterable, async or not, as an async generator."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _call(advance: Callable[[], Any]) -> Any:
    return advance()


async def _acall(advance: Callable[[], Awaitable[Any]]) -> Any:
    return await advance()
