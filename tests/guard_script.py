"""The standing test of every guard: one random history, played through every shell, must leave equal logs.

```
history ──┬─ decorated def ──────────┐
          ├─ decorated async def ────┤
          ├─ decorated generators ───┼──> logs, all equal
          ├─ call / acall ───────────┤
          └─ with / async with ──────┘
```

A history is a list of `Call`s. Each says how long passes before it, how long it takes, which calls it makes while it
runs, and how it ends: with a result, a failure, an error that a guard may ignore, or what is no error at all
(cancellation, KeyboardInterrupt, SystemExit, GeneratorExit). Calls inside calls hold several permits at once.

For a guard of your own:

```python
@given(histories())
def test_every_shell_leaves_the_same_log(history):
    require_equal_logs(
        history,
        make=lambda clock: CircuitBreaker(failure_threshold=2, ignore=KeyError, clock=clock),
        observe=lambda breaker: (breaker.state, breaker.retry_after),
    )
```

`make` is called once for each shell, with a clock that stands still until the history moves it. The object must be a
decorator; `call`, `acall`, `with` and `async with` are played where it offers them. `observe` tells what is worth
comparing after each call. Results other than None are for guards that judge results: a block and an async generator
have none, so those shells are left out of such a history.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from types import coroutine
from typing import Any

from hypothesis import strategies as st

from reliakit import RejectedError
from reliakit.testing import ManualClock

__all__ = ["ENDS", "Call", "histories", "play", "require_equal_logs"]

ENDS: tuple[type[BaseException] | None, ...] = (
    None,
    None,
    ValueError,
    ValueError,
    KeyError,
    asyncio.CancelledError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)

Log = list[tuple[object, ...]]
Body = Callable[[], object]
AsyncBody = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Call:
    """One call: after `pause` seconds, making the calls `inside`, ending `work` seconds later."""

    pause: float
    inside: tuple[Call, ...]
    work: float
    error: type[BaseException] | None
    result: object = None


def histories(
    *,
    ends: Sequence[type[BaseException] | None] = ENDS,
    results: Sequence[object] = (None,),
    durations: st.SearchStrategy[float] | None = None,
    longest: int = 12,
) -> st.SearchStrategy[list[Call]]:
    """Draw histories.

    Args:
        ends: How a call may end; None returns a result. Repeat one to draw it more often.
        results: What a call may return.
        durations: Pauses and lengths of calls, in seconds.
        longest: The most calls in a row.
    """
    seconds = durations or st.sampled_from([0.0, 0.5, 1.0, 29.0, 30.0, 31.0, 60.0, 61.0])

    def call_of(inside: st.SearchStrategy[tuple[Call, ...]]) -> st.SearchStrategy[Call]:
        return st.builds(Call, seconds, inside, seconds, st.sampled_from(ends), st.sampled_from(results))

    leaf = call_of(st.just(()))
    tree = st.recursive(leaf, lambda inner: call_of(st.lists(inner, max_size=3).map(tuple)), max_leaves=6)
    return st.lists(tree, min_size=1, max_size=longest)


def require_equal_logs(
    history: Sequence[Call], make: Callable[[ManualClock], Any], observe: Callable[[Any], object] = lambda _: None
) -> Log:
    """Play the history through every shell that the guard offers, and return the one log that all of them left."""
    logs = play(history, make, observe)
    assert len(logs) > 1
    reference = logs["decorated"]
    for shell, log in logs.items():
        assert log == reference, f"{shell} differs from decorated"
    return reference


def play(
    history: Sequence[Call], make: Callable[[ManualClock], Any], observe: Callable[[Any], object]
) -> dict[str, Log]:
    """Play the history through every shell, and return each one's log."""
    plain_results = all(_has_no_results(call) for call in history)
    logs: dict[str, Log] = {}
    for name, (needed, has_results, shell) in {**_BLOCKING, **_AWAITING}.items():
        clock = ManualClock()
        guard = make(clock)
        if (has_results or plain_results) and all(hasattr(type(guard), method) for method in needed):
            stage = _Stage(guard, clock, shell() if isinstance(shell, type) else shell, observe)
            if name in _BLOCKING:
                stage.play(history)
            else:
                _step_through(stage.aplay(history))
            logs[name] = stage.log
    return logs


def _has_no_results(call: Call) -> bool:
    return call.result is None and all(_has_no_results(inner) for inner in call.inside)


class _Stage:
    """One guard in one shell, and what came of each call."""

    def __init__(self, guard: Any, clock: ManualClock, shell: Any, observe: Callable[[Any], object]) -> None:
        self.guard = guard
        self.clock = clock
        self.shell = shell
        self.observe = observe
        self.log: Log = []

    def play(self, history: Sequence[Call]) -> None:
        for call in history:
            self.clock.advance(call.pause)
            scripted = call.error("scripted") if call.error else None

            def body(call: Call = call, scripted: BaseException | None = scripted) -> object:
                self.play(call.inside)
                return self._end(call, scripted)

            try:
                self._note("returned", self.shell(self.guard, body))
            except BaseException as error:
                self._note_error(error, scripted)

    async def aplay(self, history: Sequence[Call]) -> None:
        for call in history:
            self.clock.advance(call.pause)
            scripted = call.error("scripted") if call.error else None

            async def body(call: Call = call, scripted: BaseException | None = scripted) -> object:
                await _suspend()
                await self.aplay(call.inside)
                await _suspend()
                return self._end(call, scripted)

            try:
                self._note("returned", await self.shell(self.guard, body))
            except BaseException as error:
                self._note_error(error, scripted)

    def _end(self, call: Call, scripted: BaseException | None) -> object:
        self.clock.advance(call.work)
        if scripted is not None:
            raise scripted
        return call.result

    def _note_error(self, error: BaseException, scripted: BaseException | None) -> None:
        if error is scripted:
            self._note("raised", type(error))
        elif isinstance(error, RejectedError):
            self._note("rejected", type(error), error.name, error.retry_after)
        else:  # the guard's own fault, or a real Ctrl-C
            raise error

    def _note(self, *entry: object) -> None:
        self.log.append((*entry, self.clock.monotonic(), self.observe(self.guard)))


def _with(guard: Any, body: Body) -> object:
    with guard:
        return body()


def _generator(guard: Any, body: Body) -> object:
    def steps() -> Generator[str, str, object]:
        assert (yield "first") == "second"
        return body()

    running = guard(steps)()
    assert next(running) == "first"
    try:
        running.send("second")
    except StopIteration as done:
        return done.value
    raise AssertionError("the generator went on")


class _DecoratedOnce:
    """One function for all calls, as a program has it: what a shell learns from one call matters in the next."""

    def __init__(self) -> None:
        self.function: Any = None

    def __call__(self, guard: Any, body: Body) -> object:
        def work(body: Body) -> object:
            return body()

        self.function = self.function or guard(work)
        return self.function(body)


class _AsyncDecoratedOnce(_DecoratedOnce):
    def __call__(self, guard: Any, body: Any) -> Any:
        async def work(body: AsyncBody) -> object:
            return await body()

        self.function = self.function or guard(work)
        return self.function(body)


async def _async_decorated(guard: Any, body: AsyncBody) -> object:
    return await guard(body)()


async def _acall(guard: Any, body: AsyncBody) -> object:
    return await guard.acall(body)


async def _async_with(guard: Any, body: AsyncBody) -> object:
    async with guard:
        return await body()


async def _async_generator(guard: Any, body: AsyncBody) -> object:
    async def steps() -> AsyncGenerator[str, str]:
        assert (yield "first") == "second"
        await body()

    running = guard(steps)()
    assert await anext(running) == "first"
    try:
        await running.asend("second")
    except StopAsyncIteration:
        return None
    raise AssertionError("the generator went on")


# Name -> what the guard's class must offer, whether the shell sees results, and the shell.
_BLOCKING: dict[str, tuple[tuple[str, ...], bool, Any]] = {
    "decorated": (("__call__",), True, lambda guard, body: guard(body)()),
    "decorated once": (("__call__",), True, _DecoratedOnce),
    "decorated generator": (("__call__",), True, _generator),
    "call": (("call",), True, lambda guard, body: guard.call(body)),
    "with": (("__enter__", "__exit__"), False, _with),
}
_AWAITING: dict[str, tuple[tuple[str, ...], bool, Any]] = {
    "decorated async": (("__call__",), True, _async_decorated),
    "decorated async once": (("__call__",), True, _AsyncDecoratedOnce),
    "decorated async generator": (("__call__",), False, _async_generator),
    "acall": (("acall",), True, _acall),
    "async with": (("__aenter__", "__aexit__"), False, _async_with),
}


@coroutine
def _suspend() -> Generator[None, None, None]:
    yield


def _step_through(running: Coroutine[Any, Any, None]) -> None:
    # By hand, without an event loop: a loop has ideas of its own about KeyboardInterrupt and SystemExit.
    try:
        while True:
            running.send(None)
    except StopIteration:
        pass
