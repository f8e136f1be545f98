"""What a policy can do for generators: decide until the first item is out, then hand everything on.

```
begin: fn() ── first item ──┬── item ── item ── end
       may be tried again   │   the consumer has seen something: errors are his now
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
    """A generator that ended without an item."""

    __slots__ = ("value",)

    def __init__(self, value: object = None) -> None:
        self.value: object = value


class Begun:
    """A generator that has made its first item.

    Attributes:
        inner: The generator.
        item: Its first item.
        step: Takes each further step, a callable that is called at once; None to just call it.
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
    """The same for an async generator."""

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
    """Return a plain function that starts the generator as far as its first item."""

    def begin(*args: Any, **kwargs: Any) -> Begun | Ended:
        inner = fn(*args, **kwargs)
        try:
            return Begun(inner, next(inner))
        except StopIteration as done:
            return Ended(done.value)

    return begin


def afirst(fn: Callable[..., Any]) -> Callable[..., Awaitable[AsyncBegun | Ended]]:
    """Return a coroutine function that starts the async generator as far as its first item."""

    async def begin(*args: Any, **kwargs: Any) -> AsyncBegun | Ended:
        inner = fn(*args, **kwargs)
        try:
            return AsyncBegun(inner, await anext(inner))
        except StopAsyncIteration:
            return Ended()

    return begin


def stream(begin: Callable[..., Begun | Ended]) -> Callable[..., Any]:
    """Return a generator function that begins like this, and then hands on what comes."""

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
                    inner.close()  # a step that was not even begun leaves it half-way
                    raise
        finally:
            if begun.end is not None:
                begun.end()

    return run


def astream(begin: Callable[..., Awaitable[AsyncBegun | Ended]]) -> Callable[..., Any]:
    """Return an async generator function that begins like this, and then hands on what comes."""

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
