"""Trying again what failed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naps import nap

from reliakit import (
    Backoff,
    BulkheadFullError,
    CircuitBreaker,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitedError,
    RejectedError,
    Retry,
    RetryBudget,
    deadline,
)
from reliakit.core.events import AttemptFailed, RetryEnded
from reliakit.testing import ManualClock, RecordingListener

EXACT = Backoff(base=1.0, jitter=0)


class Flaky:
    """Plays a script of outcomes: errors are raised, anything else is returned."""

    def __init__(self, *script: object, clock: ManualClock | None = None, takes: float = 0.0) -> None:
        self.script = list(script)
        self.calls = 0
        self.clock = clock
        self.takes = takes

    def __call__(self) -> object:
        outcome = self.script[min(self.calls, len(self.script) - 1)]
        self.calls += 1
        if self.clock is not None:
            self.clock.advance(self.takes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def asynchronous(self) -> object:
        await nap()
        return self()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(auto_advance=True)


def run(retry: Retry, flaky: Flaky, colour: str) -> object:
    return retry.call(flaky) if colour == "plain" else asyncio.run(retry.acall(flaky.asynchronous))


both = pytest.mark.parametrize("colour", ["plain", "async"])


@both
def test_an_error_is_tried_again_after_growing_pauses(colour: str, clock: ManualClock) -> None:
    flaky = Flaky(OSError(1), OSError(2), "done")
    assert run(Retry(3, wait=EXACT, clock=clock), flaky, colour) == "done"
    assert (flaky.calls, clock.monotonic()) == (3, 3.0)


@both
def test_the_last_real_error_is_raised_with_a_note_when_the_attempts_are_spent(
    colour: str, clock: ManualClock
) -> None:
    errors = [OSError(1), OSError(2), OSError(3)]
    with pytest.raises(OSError) as raised:
        run(Retry(3, wait=EXACT, clock=clock), Flaky(*errors), colour)
    assert raised.value is errors[2]
    assert raised.value.__notes__ == ["reliakit: gave up after 3 attempts in 3.000 s: no attempts are left"]
    assert raised.value.__context__ is None


@both
def test_a_circuit_that_opens_midway_leaves_the_last_real_error(colour: str, clock: ManualClock) -> None:
    breaker = CircuitBreaker("bank", failure_threshold=2, clock=clock)
    flaky = Flaky(OSError(1), OSError(2), "never")
    told = RecordingListener()
    policy = Retry(5, wait=EXACT, listeners=[told], clock=clock) | breaker
    with pytest.raises(OSError, match="2") as raised:
        run(policy, flaky, colour)  # type: ignore[arg-type]  # a policy is called alike
    assert flaky.calls == 2
    assert [event.attempts for event in told.of(RetryEnded)] == [2]
    assert raised.value.__notes__ == ["reliakit: gave up after 2 attempts in 3.000 s: the next one was rejected"]


@both
@pytest.mark.parametrize(
    "error", [CircuitOpenError(), BulkheadFullError(), CommitUnknownError(), ConfigurationError()]
)
def test_what_was_not_asked_for_is_not_tried_again(colour: str, error: Exception, clock: ManualClock) -> None:
    flaky = Flaky(error)
    with pytest.raises(type(error)) as raised:
        run(Retry(5, clock=clock), flaky, colour)
    assert raised.value is error
    assert flaky.calls == 1
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize(
    "on",
    [RejectedError, RateLimitedError, (OSError, RateLimitedError), lambda error: True],
    ids=["base", "type", "tuple", "predicate"],
)
def test_rejections_are_tried_again_if_named(on: Any, clock: ManualClock) -> None:
    flaky = Flaky(RateLimitedError(retry_after=7.0), "done")
    assert Retry(on=on, wait=EXACT, clock=clock).call(flaky) == "done"
    assert clock.monotonic() == 7.0


def test_naming_one_rejection_names_no_other(clock: ManualClock) -> None:
    flaky = Flaky(CircuitOpenError())
    with pytest.raises(CircuitOpenError):
        Retry(on=(Exception, RateLimitedError), clock=clock).call(flaky)
    assert flaky.calls == 1
    with pytest.raises(ConfigurationError):
        Retry(on=lambda error: True, clock=clock).call(Flaky(ConfigurationError()))


@both
def test_an_error_that_on_does_not_name_leaves_at_once(colour: str, clock: ManualClock) -> None:
    flaky = Flaky(OSError(1), KeyError(2), "never")
    with pytest.raises(KeyError) as raised:
        run(Retry(5, on=OSError, wait=EXACT, clock=clock), flaky, colour)
    assert raised.value.__notes__ == ["reliakit: gave up after 2 attempts in 1.000 s: this error is not tried again"]


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_ends_the_program_or_the_task_is_never_tried_again(
    colour: str, kind: type[BaseException], clock: ManualClock
) -> None:
    flaky = Flaky(kind("mine"), OSError(1))
    retry = Retry(5, on=BaseException, clock=clock)
    with pytest.raises(kind):
        if colour == "plain":
            retry.call(flaky)
        else:
            step(retry.acall(flaky.asynchronous))
    assert flaky.calls == 1


def step(coroutine: Any) -> None:
    # By hand: a loop has ideas of its own about KeyboardInterrupt and SystemExit.
    while True:
        coroutine.send(None)


@both
def test_a_result_may_be_one_to_try_again(colour: str, clock: ManualClock) -> None:
    flaky = Flaky(503, 503, 200)
    retry = Retry(3, retry_result=lambda status: status == 503, wait=EXACT, clock=clock)
    assert run(retry, flaky, colour) == 200
    assert run(retry, Flaky(503), colour) == 503  # the last one, when the attempts are spent


@both
def test_a_server_s_retry_after_is_a_pause_of_at_least_that(colour: str, clock: ManualClock) -> None:
    busy = SimpleNamespace(headers={"Retry-After": "20"})
    retry = Retry(3, retry_result=lambda result: result is busy, wait=EXACT, clock=clock)
    assert run(retry, Flaky(busy, "done"), colour) == "done"
    assert clock.monotonic() == 20.0
    error = OSError()
    error.retry_after = 0.1  # type: ignore[attr-defined]  # as clients do
    assert run(retry, Flaky(error, "done"), colour) == "done"
    assert clock.monotonic() == 21.0  # the own pause is longer


def test_a_server_that_asks_for_too_long_a_pause_is_not_waited_for(clock: ManualClock) -> None:
    error = OSError()
    error.retry_after = 301.0  # type: ignore[attr-defined]
    with pytest.raises(OSError) as raised:
        Retry(clock=clock).call(Flaky(error))
    assert "the server asks for too long a pause" in raised.value.__notes__[0]
    assert clock.monotonic() == 0.0


# Deadlines


@both
def test_a_pause_that_does_not_fit_the_deadline_is_not_begun(colour: str, clock: ManualClock) -> None:
    flaky = Flaky(OSError(1), OSError(2), OSError(3), "never")
    with deadline(4.0, clock=clock), pytest.raises(OSError, match="2") as raised:
        run(Retry(9, wait=Backoff(base=2.0, jitter=0), clock=clock), flaky, colour)
    assert clock.monotonic() == 2.0
    assert "the next one does not fit the deadline" in raised.value.__notes__[0]


def test_a_pause_as_long_as_what_is_left_does_not_fit(clock: ManualClock) -> None:
    flaky = Flaky(OSError(1), "never")
    with deadline(1.0, clock=clock), pytest.raises(OSError):
        Retry(wait=EXACT, clock=clock).call(flaky)
    assert clock.monotonic() == 0.0


def test_a_deadline_that_passes_in_a_later_attempt_leaves_the_last_real_error(clock: ManualClock) -> None:
    flaky = Flaky(OSError(1), DeadlineExceededError("cut"), clock=clock, takes=3.0)
    with deadline(5.0, clock=clock), pytest.raises(OSError, match="1") as raised:
        Retry(wait=EXACT, clock=clock).call(flaky)
    assert "after 2 attempts in 7.000 s: the next one does not fit the deadline" in raised.value.__notes__[0]


def test_an_attempt_that_was_cut_by_its_own_limit_is_tried_again(clock: ManualClock) -> None:
    flaky = Flaky(DeadlineExceededError("cut"), "done")
    with deadline(5.0, clock=clock):
        assert Retry(wait=EXACT, clock=clock).call(flaky) == "done"


# Generators


@pytest.mark.anyio
async def test_a_generator_is_tried_again_until_its_first_item_is_out(clock: ManualClock) -> None:
    begun = 0
    retry = Retry(3, wait=EXACT, clock=clock)

    def script(fails_before: int) -> Iterator[int]:
        nonlocal begun
        begun += 1
        if begun <= fails_before:
            raise OSError(begun)
        yield 1
        raise OSError("late")

    @retry
    def plain(fails_before: int) -> Iterator[int]:
        yield from script(fails_before)

    @retry
    async def asynchronous(fails_before: int) -> AsyncIterator[int]:
        for item in script(fails_before):
            yield item

    items: list[int] = []
    with pytest.raises(OSError, match="late"):
        items.extend(plain(2))
    assert begun == 3
    begun = 0
    with pytest.raises(OSError, match="late"):
        async for item in asynchronous(2):
            items.append(item)
    assert (begun, items) == (3, [1, 1])
    begun = 0
    with pytest.raises(OSError, match="3"):
        list(plain(9))


def test_a_result_of_a_generator_cannot_be_judged() -> None:
    retry = Retry(retry_result=lambda result: True)
    with pytest.raises(ConfigurationError, match="retry_result judges results, and a generator has none"):

        @retry
        def rows() -> Iterator[int]:
            yield 1


# Budget


def test_a_spent_budget_ends_the_retries_and_no_first_try(clock: ManualClock) -> None:
    budget = RetryBudget(0.2, minimum=0, clock=clock)
    flaky = Flaky(OSError(1), "never")
    with pytest.raises(OSError) as raised:
        Retry(budget=budget, clock=clock).call(flaky)
    assert "the retry budget is spent" in raised.value.__notes__[0]
    assert (budget.calls, budget.retries) == (0, 0)


@pytest.mark.anyio
async def test_only_so_many_of_the_calls_under_way_are_retries() -> None:
    clock = ManualClock()
    budget = RetryBudget(0.2, minimum=3)
    retry = Retry(2, budget=budget, wait=EXACT, clock=clock)
    attempts = 0

    async def fails() -> None:
        nonlocal attempts
        attempts += 1
        await nap()
        raise OSError

    tasks = [asyncio.create_task(retry.acall(fails)) for _ in range(50)]
    await clock.await_for_sleepers(10)
    assert (attempts, budget.retries, budget.limit) == (50, 10, 3)  # 40 have given up by now
    clock.advance(1.0)
    assert all(isinstance(error, OSError) for error in await asyncio.gather(*tasks, return_exceptions=True))
    assert attempts == 60
    assert (budget.calls, budget.retries) == (0, 0)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_in_its_pause_gives_the_budget_back() -> None:
    clock = ManualClock()
    budget = RetryBudget()
    flaky = Flaky(OSError(1))
    task = asyncio.create_task(Retry(budget=budget, wait=EXACT, clock=clock).acall(flaky.asynchronous))
    await clock.await_for_sleepers()
    assert (budget.calls, budget.retries) == (1, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (budget.calls, budget.retries) == (0, 0)


# Events, faults and settings


@both
def test_attempts_and_the_end_are_told(colour: str, clock: ManualClock) -> None:
    told = RecordingListener()
    retry = Retry(2, wait=EXACT, name="bank", listeners=[told], clock=clock)
    assert run(retry, Flaky("done"), colour) == "done"
    assert told.events == []
    run(retry, Flaky(OSError(1), "done"), colour)
    with pytest.raises(OSError):
        run(retry, Flaky(OSError(1)), colour)
    assert [
        (type(event), getattr(event, "reason", None), event.error_type)
        for event in told.events
        if isinstance(event, AttemptFailed | RetryEnded)
    ] == [
        (AttemptFailed, None, "OSError"),
        (RetryEnded, "success", None),
        (AttemptFailed, None, "OSError"),
        (RetryEnded, "attempts", "OSError"),
    ]
    ended = told.events[-1] if isinstance(told.events[-1], RetryEnded) else told.events[-2]
    assert isinstance(ended, RetryEnded)
    assert (ended.name, ended.attempts, ended.duration, ended.outcome) == ("bank", 2, 1.0, "failure")


def test_a_pause_is_asked_for_only_where_an_attempt_may_follow() -> None:
    asked: list[int] = []
    clock = ManualClock(auto_advance=True, random=[0.5, 0.0])
    with pytest.raises(OSError):
        Retry(3, wait=lambda number: asked.append(number) or 1.0, clock=clock).call(Flaky(*[OSError(1)] * 3))
    assert asked == [1, 2]
    for _ in range(2):  # each draws once, so the second draws what the first did not leave out
        with pytest.raises(OSError):
            Retry(2, wait=Backoff(8.0), clock=clock).call(Flaky(OSError(1), OSError(1)))
    assert clock.monotonic() == 2.0 + 4.0 + 0.0


@pytest.mark.parametrize("wait", [lambda number: 1 / 0, lambda number: float("nan"), lambda number: -1])
def test_a_faulty_wait_is_logged_and_stands_for_the_usual_pause(
    wait: Callable[[int], float], clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    assert Retry(2, wait=wait, clock=clock).call(Flaky(OSError(1), "done")) == "done"
    assert "wait of retry 'default' raised" in caplog.text


def test_a_faulty_predicate_leaves_the_error_as_it_is(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError):
        Retry(on=lambda error: 1 / 0, clock=clock).call(Flaky(OSError(1)))  # type: ignore[arg-type,return-value]
    assert "predicate" in caplog.text


def test_an_error_that_was_given_up_is_not_kept_alive() -> None:
    class Mine(Exception):
        pass

    def fails() -> None:
        raise Mine

    gc.collect()
    gc.disable()
    try:
        try:
            Retry(2, wait=0).call(fails)
        except Mine as error:
            gone = weakref.ref(error)
        assert gone() is None
    finally:
        gc.enable()


def test_one_error_object_that_is_raised_for_ever_does_not_collect_notes() -> None:
    error = OSError()
    for _ in range(100):
        with pytest.raises(OSError):
            Retry(2, wait=0).call(Flaky(error))
    assert len(error.__notes__) <= 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_attempts": 0}, "max_attempts must be"),
        ({"on": "OSError"}, "on must be"),
        ({"on": (OSError, 3)}, "on must be"),
        ({"wait": -1}, "wait must be"),
        ({"wait": "1s"}, "wait must be a function"),
        ({"budget": 3}, "budget must be a RetryBudget"),
        ({"retry_result": 503}, "retry_result must be"),
        ({"max_retry_after": -1}, "max_retry_after must be"),
        ({"name": ""}, "name must be"),
        ({"clock": 3}, "clock must be"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Retry(**settings)


def test_it_shows_its_settings() -> None:
    assert repr(Retry(4, on=(OSError, KeyError), wait=2.0)) == "Retry(4, on=(OSError, KeyError), wait=2.0)"
    assert repr(RetryBudget()) == "<RetryBudget 'default' 0 of 3 retries in 0 calls, ratio=0.2, minimum=3>"


# Against a reference

OUTCOMES = ("ok", "error", "other", "rejected", "named", "after", "cut")


@settings(max_examples=120)
@given(
    st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=6),
    st.integers(1, 5),
    st.none() | st.sampled_from([1.0, 2.5, 4.0, 9.0]),
    st.sampled_from([0.0, 0.75]),
)
def test_every_history_ends_as_the_rules_say(
    script: list[str], most: int, budget: float | None, takes: float
) -> None:
    for colour in ("plain", "async"):
        clock = ManualClock(auto_advance=True)
        retry = Retry(most, on=(OSError, TimeoutError, RateLimitedError), wait=EXACT, clock=clock)
        played = [_outcome(kind) for kind in script]
        flaky = Flaky(*played, clock=clock, takes=takes)
        expected = _expected(script, most, budget, takes)
        try:
            if budget is None:
                result: object = run(retry, flaky, colour)
            else:
                with deadline(budget, clock=clock):
                    result = run(retry, flaky, colour)
        except Exception as error:
            result = error
        index = min(expected[1], len(played) - 1)
        assert (flaky.calls, clock.monotonic()) == (expected[0], pytest.approx(expected[2]))
        assert result is played[index]


def _outcome(kind: str) -> object:
    after = OSError("after")
    after.retry_after = 3.0  # type: ignore[attr-defined]
    return {
        "ok": "ok",
        "error": OSError("error"),
        "other": KeyError("other"),
        "rejected": CircuitOpenError("rejected"),
        "named": RateLimitedError("named", retry_after=1.5),
        "after": after,
        "cut": DeadlineExceededError("cut"),
    }[kind]


def _expected(script: list[str], most: int, budget: float | None, takes: float) -> tuple[int, int, float]:
    """Return how many attempts there are, the place of the outcome that leaves, and the time, by the rules alone."""
    now, kept = 0.0, -1
    for number in range(1, most + 1):
        place = number - 1
        kind = script[min(place, len(script) - 1)]
        now += takes
        spent = budget is not None and now >= budget
        says_nothing = kind in ("rejected", "named") or (kind == "cut" and spent)
        if kept < 0 or not says_nothing:
            kept = place
        if kind in ("ok", "other", "rejected") or number == most:
            return number, kept, now
        pause = max({"named": 1.5, "after": 3.0}.get(kind, 0.0), 2.0 ** (number - 1))
        if budget is not None and pause >= budget - now:
            return number, kept, now
        now += pause
    raise AssertionError("unreachable")
