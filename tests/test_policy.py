"""Several patterns around one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest
from guard_script import Call, histories, require_equal_logs
from hypothesis import given, settings
from naps import hides, nap

from reliakit import (
    AdaptiveLimit,
    Backoff,
    Bulkhead,
    BulkheadFullError,
    CircuitBreaker,
    CircuitOpenError,
    Coalesce,
    ConcurrencyLimiter,
    ConfigurationError,
    DeadlineExceededError,
    Fallback,
    Hedge,
    Policy,
    Retry,
    RetryBudget,
    Throttle,
    Timeout,
    checkpoint,
    remaining,
    subscribe,
)
from reliakit.core import fork
from reliakit.core.events import ErrorSeen
from reliakit.testing import ManualClock, RecordingListener


def fails(error: BaseException | None = None) -> Any:
    raise error or OSError


async def afails() -> Any:
    raise OSError


# Order


def test_the_leftmost_is_the_outermost() -> None:
    one, two = Bulkhead(1, name="one"), Timeout(2.0)
    assert Policy(one, two).parts == (one, two)
    assert (one | two | Retry(1)).parts[:2] == (one, two)
    breaker = CircuitBreaker()
    assert (breaker | two).parts == (breaker, two)
    assert (breaker | breaker).parts == (breaker, breaker)
    assert (Policy(one) | Policy(breaker, two)).parts == (one, breaker, two)


def test_retry_around_a_breaker_counts_each_attempt_and_within_it_all_as_one() -> None:
    clock = ManualClock(auto_advance=True)
    retry, breaker = Retry(3, wait=1.0, clock=clock), CircuitBreaker(failure_threshold=9)
    with pytest.raises(OSError):
        Policy(retry, breaker).call(fails)
    assert breaker.snapshot().failures == 3
    breaker.reset()
    with pytest.raises(OSError):
        Policy(breaker, retry).call(fails)
    assert breaker.snapshot().failures == 1


def test_fallback_retry_breaker_below_its_threshold_records_every_failure() -> None:
    breaker = CircuitBreaker(failure_threshold=5)
    policy = Fallback("stand-in") | Retry(3, wait=0) | breaker
    assert policy.call(fails) == "stand-in"
    assert (breaker.state, breaker.snapshot().failures) == ("closed", 3)


@pytest.mark.anyio
async def test_a_timeout_inside_a_breaker_is_a_failure_and_around_it_neutral() -> None:
    inside, around = CircuitBreaker(failure_threshold=1), CircuitBreaker(failure_threshold=1)
    with pytest.raises(DeadlineExceededError):
        await (inside | Timeout(0.001)).acall(asyncio.Event().wait)
    with pytest.raises(DeadlineExceededError):
        await (Timeout(0.001) | around).acall(asyncio.Event().wait)
    assert (inside.state, around.state) == ("open", "closed")


def test_so_it_is_for_a_plain_function_whose_waits_end_with_the_caller_s_time() -> None:
    clock = ManualClock()

    def slow() -> None:
        clock.advance(3.0)
        checkpoint()

    inside, around = CircuitBreaker(failure_threshold=1), CircuitBreaker(failure_threshold=1)
    with pytest.raises(DeadlineExceededError):
        (inside | Timeout(2.0, clock=clock)).call(slow)
    with pytest.raises(DeadlineExceededError):
        (Timeout(2.0, clock=clock) | around).call(slow)
    assert (inside.state, around.state) == ("open", "closed")


def test_two_breakers_with_different_failures_open_alone() -> None:
    for order in (1, -1):
        one = CircuitBreaker("one", failure=OSError, failure_threshold=1)
        other = CircuitBreaker("other", failure=KeyError, failure_threshold=1)
        with pytest.raises(KeyError):
            Policy(*[one, other][::order]).call(fails, KeyError())
        assert (one.state, other.state) == ("closed", "open")


def test_rejections_are_neither_retried_nor_counted() -> None:
    outer, inner = CircuitBreaker("outer", failure_threshold=1), Bulkhead(1)
    clock = ManualClock()
    policy = Retry(5, clock=clock) | outer | inner
    with inner, pytest.raises(BulkheadFullError):
        policy.call(fails)
    assert outer.state == "closed"
    assert clock.monotonic() == 0


# Every shell


@settings(max_examples=40)
@given(histories())
def test_every_shell_leaves_the_same_log(history: list[Call]) -> None:
    def make(clock: ManualClock) -> Policy:
        breaker = CircuitBreaker(failure_threshold=2, reset_timeout=30.0, clock=clock)
        return Policy(breaker, Bulkhead(2), ConcurrencyLimiter(2))

    require_equal_logs(history, make, observe=lambda policy: (policy.parts[0].state, policy.parts[1].running))


EVERYTHING: list[tuple[str, Callable[[], Any]]] = [
    (
        "policy",
        lambda: Policy(Fallback([]), Retry(2, wait=0), CircuitBreaker(), Timeout(9.0), Bulkhead(5)),
    ),
    ("retry", lambda: Retry(2, wait=0)),
    ("timeout", lambda: Timeout(9.0)),
    ("bulkhead", lambda: Bulkhead(5)),
    ("fallback", lambda: Fallback([])),
    ("throttle", Throttle),
    ("adaptive", AdaptiveLimit),
]
everything = pytest.mark.parametrize("make", [make for _, make in EVERYTHING], ids=[name for name, _ in EVERYTHING])


@everything
@pytest.mark.anyio
async def test_every_colour_keeps_its_protocol(make: Callable[[], Any]) -> None:
    guard = make()

    @guard
    def talk(first: int) -> Generator[int, int, str]:
        got = first
        while got:
            try:
                got = yield got + 1
            except KeyError:
                got = yield -1
        return "ended"

    @guard
    async def atalk(first: int) -> AsyncGenerator[int, int]:
        got = first
        while got:
            try:
                got = yield got + 1
            except KeyError:
                got = yield -1

    running = talk(1)
    assert (next(running), running.send(5), running.throw(KeyError()), running.send(7)) == (2, 6, -1, 8)
    with pytest.raises(StopIteration) as ended:
        running.send(0)
    assert ended.value.value == "ended"
    arunning = atalk(1)
    assert (await anext(arunning), await arunning.asend(5)) == (2, 6)
    assert (await arunning.athrow(KeyError()), await arunning.asend(7)) == (-1, 8)
    with pytest.raises(StopAsyncIteration):
        await arunning.asend(0)
    assert list(talk(0)) == []
    assert [item async for item in atalk(0)] == []
    assert talk.__name__ == "talk"
    assert guard.call(max, 1, 2) == 2
    assert await guard.acall(nap, "slept") == "slept"
    if isinstance(guard, Bulkhead | AdaptiveLimit):
        assert guard.running == 0


@everything
@pytest.mark.anyio
async def test_a_generator_that_is_closed_early_cleans_up_at_once(make: Callable[[], Any]) -> None:
    guard, cleaned = make(), []

    @guard
    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            cleaned.append("rows")

    @guard
    async def arows() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await nap()
            cleaned.append("arows")

    running: Any = rows()
    next(running)
    running.close()
    arunning: Any = arows()
    await anext(arunning)
    await arunning.aclose()
    assert cleaned == ["rows", "arows"]
    if isinstance(guard, Bulkhead | AdaptiveLimit):
        assert guard.running == 0


@everything
def test_methods_static_methods_and_partials_are_decorated(make: Callable[[], Any]) -> None:
    guard = make()

    class Shop:
        @guard
        def plain(self, value: int) -> tuple[object, int]:
            return self, value

        @guard
        @staticmethod
        def static(value: int) -> int:
            return value

        @guard
        @classmethod
        def of_class(cls, value: int) -> tuple[type, int]:
            return cls, value

    shop = Shop()
    assert shop.plain(1) == (shop, 1)
    assert Shop.static(2) == 2
    assert Shop.of_class(3) == (Shop, 3)
    assert guard(partial(max, 4))(3) == 4


@everything
def test_the_wrong_colour_is_refused(make: Callable[[], Any]) -> None:
    guard = make()
    for fn, words in ((int, "the class int"), (7, "got int"), (nap(), "coroutine object")):
        with pytest.raises(ConfigurationError, match=words):
            guard(fn)
    with pytest.raises(ConfigurationError, match=r"is async, .* await acall instead"):
        guard.call(afails)
    with pytest.raises(ConfigurationError, match="returned an awaitable"):
        guard(hides(afails))()

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(ConfigurationError, match="is a generator function"):
        guard.call(rows)
    with pytest.raises(ConfigurationError, match="returned nothing that can be awaited"):
        asyncio.run(guard.acall(max, 1, 2))
    with pytest.raises(ConfigurationError, match="call takes a function, got int"):
        guard.call(7)
    with pytest.raises(ConfigurationError, match="acall takes a function, got a coroutine object"):
        asyncio.run(guard.acall(nap()))


# What it tells


@pytest.mark.anyio
async def test_an_error_that_leaves_is_told_once_and_one_that_was_made_good_is_not() -> None:
    seen: list[ErrorSeen] = []
    attempts = iter([OSError("made good")])

    def sometimes() -> str:
        for error in attempts:
            raise error
        return "done"

    with subscribe(seen.append, ErrorSeen):
        policy = Policy(Retry(2, wait=0), Timeout(9.0), name="bank")
        assert policy.call(sometimes) == "done"
        assert seen == []
        with pytest.raises(OSError):
            policy.call(fails)
        with pytest.raises(OSError):
            await policy.acall(afails)
        with pytest.raises(OSError):
            list(policy(lambda_generator)())
        with pytest.raises(OSError):
            _ = [row async for row in policy(lambda_async_generator)()]
    assert [(event.name, event.error_type) for event in seen] == [("bank", "OSError")] * 4


def lambda_generator() -> Iterator[int]:
    raise OSError
    yield


async def lambda_async_generator() -> AsyncIterator[int]:
    raise OSError
    yield


def test_it_is_composed_once() -> None:
    class Counting(Retry):
        composed = 0

        def wrap(self, fn: Any, colour: Any) -> Any:
            Counting.composed += 1
            return super().wrap(fn, colour)

    policy = Policy(Counting(1))
    for _ in range(5):
        assert policy.call(max, 1, 2) == 2
    assert Counting.composed == 1


# Cancelled anywhere


def contended(clock: ManualClock) -> tuple[Policy, list[Any]]:
    budget, bulkhead, adaptive = RetryBudget(), Bulkhead(1, max_waiting=5, clock=clock), AdaptiveLimit(initial=5)
    together, throttle = Coalesce(clock=clock), Throttle()
    policy = Policy(
        together,
        Timeout(60.0, clock=clock),
        Retry(3, on=OSError, wait=Backoff(base=1.0, jitter=0), budget=budget, clock=clock),
        throttle,
        adaptive,
        Hedge(2.0, budget=budget, clock=clock),
        bulkhead,
    )
    return policy, [budget, bulkhead, adaptive, together]


@pytest.mark.anyio
@pytest.mark.parametrize("again", [False, True])
async def test_whenever_it_is_cancelled_nothing_is_left_behind(again: bool) -> None:
    """One call holds the only place of the bulkhead for a while, the other is cancelled one round later each time."""
    before, ended = asyncio.all_tasks(), 0
    for rounds in range(300):
        clock = ManualClock(auto_advance=True)
        policy, (budget, bulkhead, adaptive, together) = contended(clock)
        tries = 0

        async def work(clock: ManualClock = clock) -> str:
            nonlocal tries
            tries += 1
            await clock.asleep(3.0)
            if tries < 3:
                raise OSError
            return "done"

        with bulkhead:
            call = asyncio.create_task(policy.acall(work))
            for _ in range(min(rounds, 20)):
                await nap()
        for _ in range(rounds - 20):
            await nap()
        call.cancel()
        if again:
            await nap()
            call.cancel()
        try:
            assert await call == "done"
            ended += 1
        except asyncio.CancelledError:
            assert call.cancelled()
        assert (budget.calls, budget.retries) == (0, 0)
        assert (bulkhead.running, bulkhead.waiting, adaptive.running, together.under_way) == (0, 0, 0, 0)
        while asyncio.all_tasks() - before:  # the clock's own sleeps are cancelled, and end a round later
            await nap()
        if ended:
            break
    assert ended, "give it more rounds: it was never allowed to end"


def test_a_child_process_does_not_inherit_who_was_inside() -> None:
    budget, bulkhead, adaptive = RetryBudget(), Bulkhead(1, max_waiting=1), AdaptiveLimit(initial=1)
    together = Coalesce()
    with budget, bulkhead:
        budget.acquire()
        ticket = adaptive.enter()
        together._begin("key")
        for owner in (budget, bulkhead._places, adaptive, together):
            getattr(owner, fork._told[owner])()  # as in a child, where the threads that hold all this are not
        assert (budget.calls, budget.retries) == (0, 0)
        assert (bulkhead.running, adaptive.running, together.under_way) == (0, 0, 0)
    adaptive.leave(ticket, None, None)
    budget.release()
    assert (budget.calls, budget.retries) == (0, 0)
    assert (bulkhead.running, adaptive.running) == (0, 0)
    with bulkhead:
        assert bulkhead.running == 1


# In words


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Timeout(9) | CircuitBreaker("bank"), r"Timeout\(9\) around CircuitBreaker\('bank'\) is neutral to it"),
        (CircuitBreaker("bank") | Retry(3), "counts all attempts of a call as one"),
        (CircuitBreaker("bank") | Fallback(1), "hides failures from it"),
        (Retry(3) | Fallback(1), "leaves nothing to try again"),
        (Timeout(2) | Timeout(3), r"Timeout\(3\) inside Timeout\(2\) never ends first"),
        (Timeout(9) | Retry(3), "may be used up by one slow attempt"),
        (Retry(3, wait=Backoff(1.0)) | Timeout(2), r"without a deadline of the caller's one call may take 9 s"),
        (Retry(3) | Retry(4), "up to 12 attempts"),
        (Bulkhead(3) | Retry(3), "holds its place during the pauses"),
        (AdaptiveLimit() | Retry(3), "Put the AdaptiveLimit inside"),
        (Bulkhead(3) | Coalesce(), "holds a place for each caller that waits for the same call"),
        (Hedge(1.0) | Retry(3), "tries each copy again"),
        (Policy(*[Bulkhead(3)] * 2), "is in the policy twice"),
    ],
)
def test_known_traps_are_warned_of(policy: Policy, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = policy.explain()
    assert capsys.readouterr().out == text + "\n"
    (warning,) = [line for line in text.splitlines() if line.startswith("warning: ")]
    import re

    assert re.search(words, warning)


def test_the_order_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    Policy.standard("bank", max_concurrent=20, fallback=None).explain()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "policy 'bank', the outermost first:"
    assert [line.split()[1] for line in shown[1:]] == [
        "Fallback(None)",
        "Timeout(10)",
        "Retry(3)",
        "CircuitBreaker('bank')",
        "Timeout(2)",
        "Bulkhead(20)",
    ]
    assert not any(line.startswith("warning") for line in shown)


# The standard one


def test_the_standard_policy_is_in_the_right_order() -> None:
    clock = ManualClock(auto_advance=True)
    told = RecordingListener()
    policy = Policy.standard("bank", max_attempts=2, clock=clock, listeners=[told])
    assert [type(part).__name__ for part in policy.parts] == ["Timeout", "Retry", "CircuitBreaker", "Timeout"]
    assert policy.call(remaining) == 2.0
    with pytest.raises(OSError) as raised:
        policy.call(fails)
    assert "after 2 attempts" in raised.value.__notes__[0]
    for _ in range(2):
        with pytest.raises(OSError):
            policy.call(fails)
    with pytest.raises(CircuitOpenError):
        policy.call(fails)
    assert {event.name for event in told.events} == {"bank"}
    mine = CircuitBreaker("mine")
    alone = Policy.standard(timeout=None, max_attempts=1, breaker=mine)
    assert [type(part).__name__ for part in alone.parts] == ["CircuitBreaker", "Timeout"]
    assert alone.parts[0] is mine
    with pytest.raises(ConfigurationError, match="attempt_timeout must be at most timeout"):
        Policy.standard(timeout=1.0)


# Wrong use


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Policy, "at least one pattern"),
        (lambda: Policy(Retry), "got the class Retry: make an instance"),
        (lambda: Policy(fails), "Policy takes patterns such as Retry"),
        (lambda: Retry(3) | 3, "Policy takes patterns"),
        (lambda: CircuitBreaker() | 3, "Policy takes patterns"),
        (lambda: 3 | Retry(3), "Policy takes patterns"),
        (lambda: Policy(Retry(3), name=""), "name must be"),
    ],
)
def test_what_is_no_pattern_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_it_shows_its_parts() -> None:
    assert (
        repr(Policy(Timeout(3), Bulkhead(2), name="x"))
        == "<Policy 'x' Timeout(3) | <Bulkhead 'default' 0 of 2 running>>"
    )
