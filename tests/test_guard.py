"""The one place where a guarded call has a colour."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import threading
import traceback
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from typing import Any, Self, TypeVar
from unittest import mock

import pytest
from guard_script import Call, histories, require_equal_logs
from hypothesis import given

from reliakit import ConfigurationError, RejectedError
from reliakit.core import guard as guards
from reliakit.core.guard import colour_of, guarded
from reliakit.testing import ManualClock

F = TypeVar("F", bound=Callable[..., Any])


class Recorder:
    """A guard that lets `admits` calls in at once and remembers every entering and leaving."""

    def __init__(self, clock: ManualClock | None = None, *, admits: int = 1000) -> None:
        self.clock = clock or ManualClock()
        self.admits = admits
        self.log: list[tuple[object, ...]] = []
        self.inside: list[int] = []
        self.entered = 0

    def enter(self) -> int:
        if len(self.inside) >= self.admits:
            raise RejectedError("full", name="recorder", retry_after=self.clock.monotonic())
        self.entered += 1
        self.inside.append(self.entered)
        return self.entered

    def leave(self, permit: int, error: BaseException | None, result: object, /) -> None:
        self.inside.remove(permit)  # a permit that is given back twice is a ValueError
        self.log.append((permit, self.clock.monotonic(), type(error), result))

    def __call__(self, fn: F) -> F:
        return guarded(self, fn, by="a recorder")

    def call(self, fn: Callable[[], object]) -> object:
        return guards.call(self, fn)

    async def acall(self, fn: Callable[[], Awaitable[object]]) -> object:
        return await guards.acall(self, fn)

    @property
    def left(self) -> tuple[type, object]:
        """How the only call ended."""
        ((_, _, kind, result),) = self.log
        assert self.inside == []
        return kind, result  # type: ignore[return-value]  # a log entry's third is a class


class BlockRecorder(Recorder):
    """One that is a block too, for one thread."""

    def __init__(self, clock: ManualClock | None = None, *, admits: int = 1000) -> None:
        super().__init__(clock, admits=admits)
        self.open: list[int] = []

    def __enter__(self) -> Self:
        self.open.append(self.enter())
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.leave(self.open.pop(), error, None)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.__exit__(kind, error, trace)


@pytest.fixture
def guard() -> Recorder:
    return Recorder()


NONE = type(None)


# One history, every shell


@given(histories())
def test_every_shell_leaves_the_same_log(history: list[Call]) -> None:
    require_equal_logs(
        history,
        make=lambda clock: BlockRecorder(clock, admits=2),
        observe=lambda guard: (list(guard.log), list(guard.inside)),
    )


@given(histories(results=(None, 1, "two")))
def test_every_shell_that_sees_results_hands_them_on(history: list[Call]) -> None:
    require_equal_logs(history, make=Recorder, observe=lambda guard: list(guard.log))


def test_the_script_plays_every_shell_and_finds_one_that_differs() -> None:
    class Forgetful(BlockRecorder):
        async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
            self.leave(self.open.pop(), None, None)

    fails = [Call(0.0, (), 1.0, ValueError)]
    with pytest.raises(AssertionError, match="async with differs from decorated"):
        require_equal_logs(fails, Forgetful, lambda guard: guard.log)


# Colours


def plain(value: object) -> object:
    return value


async def asynchronous(value: object) -> object:
    return value


def generator(value: object) -> Generator[object, object, object]:
    return (yield value)


async def asynchronous_generator(value: object) -> AsyncGenerator[object, object]:
    yield value


class Callables:
    def plain(self, value: object) -> object:
        return value

    async def asynchronous(self, value: object) -> object:
        return value

    @staticmethod
    async def static(value: object) -> object:
        return value

    @classmethod
    def of_class(cls, value: object) -> object:
        return value


class PlainCallable:
    def __call__(self, value: object) -> object:
        return value


class AsyncCallable:
    async def __call__(self, value: object) -> object:
        return value


class AsyncDescriptor(AsyncCallable):
    """As written by those who decorate methods with a class."""

    def __get__(self, instance: object, owner: type) -> Self:
        return self


class GeneratorCallable:
    def __call__(self, value: object) -> Iterator[object]:
        yield value


class AsyncGeneratorCallable:
    async def __call__(self, value: object) -> AsyncIterator[object]:
        yield value


@pytest.mark.parametrize(
    ("fn", "colour"),
    [
        (plain, "plain"),
        (asynchronous, "async"),
        (generator, "generator"),
        (asynchronous_generator, "async generator"),
        (functools.partial(plain, 1), "plain"),
        (functools.partial(functools.partial(asynchronous), 1), "async"),
        (functools.partial(generator, 1), "generator"),
        (functools.partial(asynchronous_generator, 1), "async generator"),
        (functools.partial(AsyncCallable(), 1), "async"),
        (functools.partial(dict, a=1), "plain"),
        (Callables().plain, "plain"),
        (Callables().asynchronous, "async"),
        (Callables().static, "async"),
        (Callables.of_class, "plain"),
        (PlainCallable(), "plain"),
        (AsyncCallable(), "async"),
        (AsyncDescriptor(), "async"),
        (AsyncCallable().__call__, "async"),
        (GeneratorCallable(), "generator"),
        (AsyncGeneratorCallable(), "async generator"),
        (mock.AsyncMock(), "async"),
        (mock.Mock(), "plain"),
        (len, "plain"),
        ([].append, "plain"),
        (str.upper, "plain"),
        (functools.lru_cache(plain), "plain"),
        (lambda: None, "plain"),
        (types.MethodType(functools.partial(asynchronous), 1), "async"),
    ],
)
def test_the_colour_of_a_function_is_told(fn: object, colour: str) -> None:
    assert colour_of(fn, by="a test") == colour


def test_the_colour_survives_the_decoration(guard: Recorder) -> None:
    for fn in (plain, asynchronous, generator, asynchronous_generator):
        assert colour_of(guard(fn), by="a test") == colour_of(fn, by="a test")
        assert colour_of(guard(guard(fn)), by="a test") == colour_of(fn, by="a test")


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (Callables, "the class Callables: decorate its methods instead"),
        (int, "the class int"),
        (None, "got NoneType"),
        ("name", "got str"),
        (property(plain), "got property"),
        (functools.partialmethod(plain), "got partialmethod"),
        (functools.cached_property(plain), "got cached_property"),
    ],
)
def test_what_cannot_be_guarded_is_refused_at_decoration(fn: Any, words: str, guard: Recorder) -> None:
    with pytest.raises(ConfigurationError, match="a recorder takes a function") as raised:
        guard(fn)
    assert words in str(raised.value)


def test_a_coroutine_object_is_refused_and_closed(guard: Recorder) -> None:
    running = asynchronous(1)
    with pytest.raises(ConfigurationError, match="coroutine object: leave out the parentheses"):
        guard(running)  # type: ignore[type-var]  # what the test is about
    assert inspect.getcoroutinestate(running) == inspect.CORO_CLOSED


def test_a_class_inside_a_static_method_is_refused_too(guard: Recorder) -> None:
    with pytest.raises(ConfigurationError, match="the class int"):
        guard(staticmethod(int))


# A plain function in disguise


@pytest.mark.parametrize(
    "disguised",
    [lambda: asynchronous(1), functools.lru_cache(lambda: asynchronous(1)), lambda: AwaitableValue() or None],
)
def test_a_plain_function_that_returns_an_awaitable_is_refused(disguised: Callable[[], object]) -> None:
    for run in (lambda guard: guard(disguised)(), lambda guard: guard.call(disguised)):
        guard = Recorder()
        with pytest.raises(ConfigurationError, match="returned an awaitable"):
            run(guard)
        assert guard.left == (ConfigurationError, None)
    gc.collect()  # a coroutine that was not closed would warn here


class AwaitableValue:
    def __await__(self) -> Iterator[None]:
        yield


def test_call_refuses_an_async_function_by_its_name(guard: Recorder) -> None:
    with pytest.raises(ConfigurationError, match=r"asynchronous is async, .* await acall instead"):
        guards.call(guard, asynchronous, 1)
    gc.collect()


@pytest.mark.parametrize("fn", [generator, asynchronous_generator])
def test_call_refuses_a_generator_function(fn: Callable[[object], object], guard: Recorder) -> None:
    with pytest.raises(ConfigurationError, match=r"is a generator function, .* decorate it instead"):
        guard.call(functools.partial(fn, 1))
    assert guard.left == (ConfigurationError, None)


def test_a_plain_function_may_return_a_generator_that_others_drive(guard: Recorder) -> None:
    rows = generator(1)
    assert guard.call(lambda: rows) is rows
    assert guard(lambda: rows)() is rows
    rows.close()


@pytest.mark.anyio
async def test_acall_refuses_what_is_nothing_to_await(guard: Recorder) -> None:
    with pytest.raises(ConfigurationError, match="plain returned nothing that can be awaited: use call"):
        await guards.acall(guard, plain, 1)  # type: ignore[arg-type]  # what the test is about
    assert guard.left == (ConfigurationError, None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fn", [asynchronous, lambda value: asynchronous(value=value), AsyncCallable(), Callables.static]
)
async def test_acall_awaits_whatever_can_be_awaited(fn: Callable[[object], Awaitable[object]]) -> None:
    guard = Recorder()
    assert await guards.acall(guard, fn, 7) == 7
    assert guard.left == (NONE, 7)


@pytest.mark.anyio
async def test_acall_awaits_generator_based_coroutines_and_futures(guard: Recorder) -> None:
    @types.coroutine
    def old() -> Generator[None, None, int]:
        yield
        return 7

    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(8)
    assert await guards.acall(guard, old) == 7
    assert await guards.acall(guard, lambda: future) == 8


# What a call comes to


def test_a_result_and_its_arguments_pass(guard: Recorder) -> None:
    def add(a: int, /, b: int, *rest: int, c: int, **more: int) -> tuple[object, ...]:
        return a, b, rest, c, more

    expected = (1, 2, (3,), 4, {"d": 5, "guard": 6, "fn": 7, "self": 8})
    assert guard(add)(1, 2, 3, c=4, d=5, guard=6, fn=7, self=8) == expected
    assert guard.left == (NONE, expected)


@pytest.mark.parametrize(
    "kind",
    [
        ValueError,
        StopIteration,
        StopAsyncIteration,
        KeyboardInterrupt,
        SystemExit,
        GeneratorExit,
        asyncio.CancelledError,
    ],
)
def test_an_error_of_a_plain_function_passes_as_the_same_object(kind: type[BaseException]) -> None:
    mine = kind("mine")

    def fails() -> None:
        raise mine

    for run in (lambda guard: guard(fails)(), lambda guard: guard.call(fails)):
        guard = Recorder()
        with pytest.raises(kind) as raised:
            run(guard)
        assert raised.value is mine
        assert guard.left == (kind, None)


def test_a_guarded_next_ends_an_iteration(guard: Recorder) -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __iter__(self) -> Self:
            return self

        @guard
        def __next__(self) -> int:
            self.left -= 1
            if self.left < 0:
                raise StopIteration
            return self.left

    assert list(Countdown()) == [2, 1, 0]


def test_one_frame_stands_between_caller_and_function(guard: Recorder) -> None:
    @guard
    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError) as raised:
        fails()
    names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert names[1:] == ["run", "fails"]


def test_a_rejected_call_is_not_tried_and_leaves_nothing() -> None:
    guard = Recorder(admits=0)
    tried = mock.Mock()
    with pytest.raises(RejectedError):
        guard(tried)()
    with pytest.raises(RejectedError):
        guard.call(tried)
    with pytest.raises(RejectedError):
        next(guard(generator)(1))
    assert not tried.called
    assert guard.log == []


@pytest.mark.anyio
async def test_a_rejected_async_call_is_not_tried_and_leaves_nothing() -> None:
    guard = Recorder(admits=0)
    tried = mock.AsyncMock()
    with pytest.raises(RejectedError):
        await guard(tried)()
    with pytest.raises(RejectedError):
        await guard.acall(tried)
    with pytest.raises(RejectedError):
        await anext(guard(asynchronous_generator)(1))
    assert not tried.called
    assert guard.log == []


@pytest.mark.anyio
async def test_a_cancelled_task_leaves_as_cancelled(guard: Recorder) -> None:
    begun = asyncio.Event()

    @guard
    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await begun.wait()
    task.cancel("by the caller")
    with pytest.raises(asyncio.CancelledError, match="by the caller"):
        await task
    assert guard.left == (asyncio.CancelledError, None)


@pytest.mark.anyio
async def test_a_task_cancelled_before_its_first_step_never_enters(guard: Recorder) -> None:
    task = asyncio.create_task(guard(asynchronous)(1))  # type: ignore[arg-type]  # a coroutine
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guard.entered == 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_a_coroutine_that_is_never_awaited_never_enters(guard: Recorder) -> None:
    guard(asynchronous)(1)
    gc.collect()
    assert guard.entered == 0


def test_a_suspended_coroutine_that_is_closed_leaves_once(guard: Recorder) -> None:
    @guard
    async def waits() -> None:
        await AwaitableValue()

    running = waits()
    running.send(None)
    running.close()
    assert guard.left == (GeneratorExit, None)


def test_threads_and_tasks_share_one_guard(guard: Recorder) -> None:
    blocking, awaiting = guard(plain), guard(asynchronous)

    def work() -> None:
        for _ in range(200):
            blocking(1)
        for _ in range(2):
            asyncio.run(awaiting(1))  # type: ignore[arg-type]  # a coroutine

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(guard.log) == 4 * 202
    assert guard.inside == []


# Methods


class Service:
    guard = Recorder()

    @guard
    def method(self, value: int) -> tuple[object, int]:
        return self, value

    @guard
    async def amethod(self, value: int) -> tuple[object, int]:
        return self, value

    @guard
    @staticmethod
    def guarded_static(value: int) -> int:
        return value

    @staticmethod
    @guard
    def static_guarded(value: int) -> int:
        return value

    @guard
    @classmethod
    def guarded_class(cls, value: int) -> tuple[type, int]:
        return cls, value

    @classmethod
    @guard
    def class_guarded(cls, value: int) -> tuple[type, int]:
        return cls, value

    @property
    @guard
    def calculated(self) -> object:
        return self


class ChildService(Service):
    pass


@pytest.mark.anyio
async def test_methods_of_every_kind_are_bound_as_before() -> None:
    service = ChildService()
    before = Service.guard.entered
    assert service.method(1) == (service, 1)
    assert Service.method(service, 1) == (service, 1)
    assert await service.amethod(1) == (service, 1)
    assert service.guarded_static(1) == ChildService.static_guarded(1) == 1
    assert service.guarded_class(1) == ChildService.class_guarded(1) == (ChildService, 1)
    assert service.calculated is service
    assert Service.guard.entered == before + 8


def test_a_guarded_function_looks_like_itself(guard: Recorder) -> None:
    def documented(a: int, *, b: str = "x") -> bool:
        """Say something."""
        return bool(a) and bool(b)

    documented.route = "/x"  # type: ignore[attr-defined]  # as frameworks do
    wrapped = guard(documented)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__module__) == ("documented", "Say something.", __name__)
    assert wrapped.__qualname__ == documented.__qualname__
    assert wrapped.__annotations__ == documented.__annotations__
    assert wrapped.route == "/x"  # type: ignore[attr-defined]  # as frameworks do
    assert inspect.signature(wrapped) == inspect.signature(documented)
    assert inspect.unwrap(wrapped) is documented


def test_a_guarded_partial_or_object_keeps_its_signature(guard: Recorder) -> None:
    for fn in (functools.partial(plain, 1), PlainCallable()):
        assert inspect.signature(guard(fn)) == inspect.signature(fn)


# Generators


def test_a_generator_holds_its_permit_from_its_first_step_to_its_end(guard: Recorder) -> None:
    rows = guard(generator)("first")
    assert guard.entered == 0
    assert next(rows) == "first"
    assert guard.inside == [1]
    with pytest.raises(StopIteration) as done:
        rows.send("sent")
    assert done.value.value == "sent"
    assert guard.left == (NONE, "sent")


def test_a_generator_that_is_never_iterated_holds_no_permit(guard: Recorder) -> None:
    guard(generator)(1).close()
    assert guard.entered == 0


def test_closing_a_generator_early_leaves_with_generator_exit(guard: Recorder) -> None:
    cleaned: list[str] = []

    @guard
    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            cleaned.append("up")

    running = rows()
    next(running)
    running.close()  # type: ignore[attr-defined]  # a generator has it
    assert cleaned == ["up"]
    assert guard.left == (GeneratorExit, None)


def test_dropping_a_generator_leaves_too(guard: Recorder) -> None:
    running = guard(generator)(1)
    next(running)
    del running
    gc.collect()
    assert guard.left == (GeneratorExit, None)


def test_what_is_thrown_in_reaches_the_generator(guard: Recorder) -> None:
    @guard
    def rows() -> Generator[str, None, str]:
        try:
            yield "first"
        except KeyError as error:
            yield f"caught {error}"
        return "end"

    running = rows()
    next(running)
    assert running.throw(KeyError(7)) == "caught 7"
    mine = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        running.throw(mine)
    assert raised.value is mine
    assert guard.left == (ValueError, None)


def test_a_stop_iteration_inside_a_generator_is_what_python_makes_of_it(guard: Recorder) -> None:
    @guard
    def rows() -> Iterator[int]:
        yield next(iter(()))

    with pytest.raises(RuntimeError, match="generator raised StopIteration"):
        list(rows())
    assert guard.left == (RuntimeError, None)


@pytest.mark.anyio
async def test_an_async_generator_holds_its_permit_from_its_first_step_to_its_end(guard: Recorder) -> None:
    rows = guard(asynchronous_generator)("first")
    assert guard.entered == 0
    assert await anext(rows) == "first"
    assert guard.inside == [1]
    with pytest.raises(StopAsyncIteration):
        await anext(rows)
    assert guard.left == (NONE, None)


async def conversation(seen: list[object]) -> AsyncGenerator[object, object]:
    try:
        seen.append((yield "first"))
        seen.append((yield "second"))
    except KeyError as error:
        yield f"caught {error}"
    finally:
        seen.append("closed")


@pytest.mark.anyio
async def test_what_is_sent_reaches_the_async_generator(guard: Recorder) -> None:
    seen: list[object] = []
    rows = guard(conversation)(seen)
    assert await rows.asend(None) == "first"
    assert await rows.asend("hello") == "second"
    with pytest.raises(StopAsyncIteration):
        await rows.asend("bye")
    assert seen == ["hello", "bye", "closed"]
    assert guard.left == (NONE, None)


@pytest.mark.anyio
async def test_what_is_thrown_in_reaches_the_async_generator(guard: Recorder) -> None:
    seen: list[object] = []
    rows = guard(conversation)(seen)
    await anext(rows)
    assert await rows.athrow(KeyError(7)) == "caught 7"
    mine = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        await rows.athrow(mine)
    assert raised.value is mine
    assert seen == ["closed"]
    assert guard.left == (ValueError, None)


@pytest.mark.anyio
async def test_closing_an_async_generator_early_leaves_with_generator_exit(guard: Recorder) -> None:
    seen: list[object] = []
    rows = guard(conversation)(seen)
    await anext(rows)
    await rows.aclose()
    assert seen == ["closed"]
    assert guard.left == (GeneratorExit, None)


@pytest.mark.anyio
async def test_breaking_out_of_an_async_generator_leaves_when_it_is_dropped(guard: Recorder) -> None:
    seen: list[object] = []
    async for _ in guard(conversation)(seen):
        break
    gc.collect()
    for _ in range(5):  # the event loop closes it in a task of its own
        await asyncio.get_running_loop().run_in_executor(None, gc.collect)
    assert seen == ["closed"]
    assert guard.left == (GeneratorExit, None)


@pytest.mark.anyio
async def test_an_async_generator_that_is_cancelled_leaves_as_cancelled(guard: Recorder) -> None:
    begun = asyncio.Event()

    @guard
    async def rows() -> AsyncIterator[int]:
        yield 1
        begun.set()
        await asyncio.Event().wait()

    async def consume() -> None:
        async for _ in rows():
            pass

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert guard.left == (asyncio.CancelledError, None)


@pytest.mark.anyio
async def test_an_async_generator_that_refuses_to_end_is_told_by_python(guard: Recorder) -> None:
    @guard
    async def stubborn() -> AsyncIterator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    rows = stubborn()
    await anext(rows)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        await rows.aclose()  # type: ignore[attr-defined]  # an async generator has it
    assert guard.left == (RuntimeError, None)
