"""Something in place of a result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from naps import hides, nap

from reliakit import CircuitBreaker, ConfigurationError, DeadlineExceededError, Fallback
from reliakit.core.events import FallbackUsed
from reliakit.testing import RecordingListener


def fails(error: BaseException) -> Any:
    raise error


async def afails(error: BaseException) -> Any:
    raise error


@pytest.mark.anyio
@pytest.mark.parametrize("error", [OSError(), DeadlineExceededError(), TypeError()])
async def test_a_value_stands_in_for_an_error(error: Exception) -> None:
    assert Fallback(7).call(fails, error) == 7
    assert await Fallback(7).acall(afails, error) == 7


@pytest.mark.anyio
async def test_a_function_makes_the_stand_in_of_the_error() -> None:
    async def later(error: Exception) -> str:
        await nap()
        return f"later {error}"

    assert Fallback(repr).call(fails, OSError(1)) == "OSError(1)"
    assert await Fallback(repr).acall(afails, OSError(1)) == "OSError(1)"
    assert await Fallback(later).acall(afails, OSError(1)) == "later 1"
    assert await Fallback(hides(later)).acall(afails, OSError(1)) == "later 1"


def test_a_result_passes() -> None:
    told = RecordingListener()
    assert Fallback(7, listeners=[told]).call(int, "3") == 3
    assert told.events == []


def test_a_caller_gets_it_while_a_circuit_is_open() -> None:
    breaker = CircuitBreaker(failure_threshold=1)
    policy = Fallback("cached") | breaker
    for _ in range(3):
        assert policy.call(fails, OSError()) == "cached"
    assert breaker.state == "open"


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, ConfigurationError])
async def test_what_is_no_failure_of_the_call_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        Fallback(7, on=BaseException).call(fails, kind("mine"))
    with pytest.raises(asyncio.CancelledError):
        await Fallback(7, on=BaseException).acall(afails, asyncio.CancelledError())


def test_only_the_named_errors_are_stood_in_for() -> None:
    told = RecordingListener()
    guard = Fallback(7, on=(OSError, LookupError), name="prices", listeners=[told])
    assert guard.call(fails, KeyError()) == 7
    with pytest.raises(ValueError):
        guard.call(fails, ValueError())
    assert [(event.name, event.error_type) for event in told.of(FallbackUsed)] == [("prices", "KeyError")]
    assert Fallback(7, on=lambda error: error.errno == 2).call(fails, OSError(2, "")) == 7


@pytest.mark.parametrize("empty", [[], {}, set()])
def test_each_caller_gets_a_collection_of_his_own(empty: Any) -> None:
    guard = Fallback(empty)
    one, other = guard.call(fails, OSError()), guard.call(fails, OSError())
    assert one == other == empty
    assert one is not other


def test_a_stand_in_that_fails_leaves_with_the_first_error_as_its_context() -> None:
    first = OSError(1)
    with pytest.raises(ZeroDivisionError) as raised:
        Fallback(lambda error: 1 / 0).call(fails, first)
    assert raised.value.__context__ is first


@pytest.mark.anyio
async def test_for_a_generator_it_stands_in_while_no_item_is_out() -> None:
    @Fallback([1, 2])
    def rows(fails_at: int) -> Iterator[int]:
        for number in range(10, 13):
            if number - 10 == fails_at:
                raise OSError
            yield number

    @Fallback(lambda error: (item async for item in arange(2)))
    async def arows(fails_at: int) -> AsyncIterator[int]:
        for row in rows.__wrapped__(fails_at):  # type: ignore[attr-defined]  # functools sets it
            yield row

    async def arange(end: int) -> AsyncIterator[int]:
        for number in range(end):
            yield number

    assert list(rows(0)) == [1, 2]
    assert list(rows(9)) == [10, 11, 12]
    with pytest.raises(OSError):
        list(rows(1))
    assert [row async for row in arows(0)] == [0, 1]
    with pytest.raises(OSError):
        _ = [row async for row in arows(2)]


def test_what_cannot_be_iterated_cannot_stand_in_for_a_generator() -> None:
    @Fallback(7)
    def rows() -> Iterator[int]:
        raise OSError
        yield

    with pytest.raises(ConfigurationError, match="must be something to iterate over, got int"):
        list(rows())


def test_an_async_stand_in_cannot_serve_a_plain_function() -> None:
    with pytest.raises(ConfigurationError, match="is async and could not be awaited by a plain function"):
        Fallback(afails)(fails)
    with pytest.raises(ConfigurationError, match="returned an awaitable"):
        Fallback(hides(afails)).call(fails, OSError())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fallback(dict), "got the class dict: give `lambda error: dict"),
        (lambda: Fallback(lambda: 7), "and is not: give `lambda error"),
        (lambda: Fallback(7, on=7), "on must be"),
        (lambda: Fallback(7, name=""), "name must be"),
    ],
)
def test_wrong_settings_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


def test_it_shows_its_settings() -> None:
    assert repr(Fallback([1])) == "Fallback([1])"
    assert repr(Fallback(fails)) == "Fallback(fails)"
