"""Each exception object is told once, by whoever sees it first."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading

import pytest

from reliakit import classify, subscribe
from reliakit.core.events import ErrorSeen
from reliakit.core.spine import Emitter
from reliakit.core.tracking import report
from reliakit.testing import RecordingListener


@pytest.fixture
def heard() -> RecordingListener:
    return RecordingListener()


def test_an_error_is_told_with_what_is_known_of_it(heard: RecordingListener) -> None:
    error = ConnectionResetError("by peer")
    report(Emitter("main", (heard,)), error, service="auth", status="503")
    (event,) = heard.of(ErrorSeen)
    assert (event.name, event.service, event.status, event.error_type) == (
        "main",
        "auth",
        "503",
        "ConnectionResetError",
    )
    assert (event.category, event.retry, event.sqlstate) == ("dependency", "reconnect", None)
    assert len(event.fingerprint) == 16
    assert event.error is error


def test_whoever_sees_it_later_says_nothing(heard: RecordingListener) -> None:
    error = ValueError()
    with subscribe(heard):
        for name in ("transaction", "breaker", "web"):
            report(Emitter(name), error)
    assert [event.name for event in heard] == ["transaction"]


def test_an_error_that_was_told_of_keeps_its_fingerprint_on_its_way_out(heard: RecordingListener) -> None:
    def inner() -> None:
        try:
            raise ValueError
        except ValueError as error:
            report(Emitter("inner", (heard,)), error)
            raise

    with pytest.raises(ValueError) as caught:
        inner()
    assert classify(caught.value).fingerprint == heard.of(ErrorSeen)[0].fingerprint
    assert classify(caught.value) == classify(pickle.loads(pickle.dumps(caught.value)))


def test_equal_errors_are_two_errors(heard: RecordingListener) -> None:
    emitter = Emitter("x", (heard,))
    for _ in range(2):
        report(emitter, ValueError("same"))
    assert len(heard) == 2


def test_a_group_and_its_members_are_errors_of_their_own(heard: RecordingListener) -> None:
    emitter = Emitter("x", (heard,))
    member = ValueError()
    report(emitter, member)
    report(emitter, ExceptionGroup("several", [member]))
    report(emitter, member)
    assert [event.error_type for event in heard.of(ErrorSeen)] == ["ValueError", "ExceptionGroup"]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("", [SystemExit()]),
    ],
)
def test_what_is_no_exception_is_no_error(error: BaseException, heard: RecordingListener) -> None:
    report(Emitter("x", (heard,)), error)
    assert not heard.events


def test_while_nobody_listens_nothing_is_marked(heard: RecordingListener) -> None:
    error = ValueError()
    report(Emitter("x"), error)
    assert vars(error) == {}
    report(Emitter("x", (heard,)), error)
    assert len(heard) == 1


def test_threads_that_hold_the_same_error_tell_it_once(heard: RecordingListener) -> None:
    emitter = Emitter("x", (heard,))
    for _ in range(50):
        error = ValueError()
        start = threading.Barrier(4)

        def see(error: ValueError = error, start: threading.Barrier = start) -> None:
            start.wait()
            report(emitter, error)

        threads = [threading.Thread(target=see) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 50


class Slotted(Exception):
    __slots__ = ("code",)


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("frozen")


class Hidden(Exception):
    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]  # what the test is about
        raise RuntimeError("nothing to see")


class Guarded(Exception):
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("nothing to see")


@pytest.mark.parametrize("kind", [Slotted, Frozen])
def test_odd_classes_are_told_once_too(kind: type[Exception], heard: RecordingListener) -> None:
    emitter, error = Emitter("x", (heard,)), kind()
    report(emitter, error)
    report(emitter, error)
    assert len(heard) == 1


@pytest.mark.parametrize("kind", [Hidden, Guarded])
def test_an_error_that_cannot_be_marked_is_told_rather_than_lost(
    kind: type[Exception], heard: RecordingListener
) -> None:
    report(Emitter("x", (heard,)), kind())
    assert [event.error_type for event in heard.of(ErrorSeen)] == [kind.__name__]


def test_a_marked_error_still_travels(heard: RecordingListener) -> None:
    error = ValueError("m")
    report(Emitter("x", (heard,)), error)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert (type(other), other.args) == (ValueError, ("m",))


def test_a_listener_that_raises_does_not_reach_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    def boom(event: ErrorSeen) -> None:
        raise RuntimeError("boom")

    report(Emitter("x", (boom,)), ValueError())
    assert len(caplog.records) == 1
