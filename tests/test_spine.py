"""Components emit, listeners receive, and a listener's fault is nobody else's."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from unittest import mock

import pytest
from garbage import abandon, in_time

from reliakit import ConfigurationError, Event, Subscription, subscribe
from reliakit.core import events
from reliakit.core.events import CallRejected, CircuitChanged, CircuitPresent, DeadlineOverrun
from reliakit.core.spine import Emitter, watch
from reliakit.testing import ManualClock, RecordingListener


def overrun(emitter: Emitter) -> None:
    emitter.emit(DeadlineOverrun, seconds=1.0, elapsed=2.0)


# Emitting


def test_an_event_is_built_only_if_somebody_listens() -> None:
    built: list[str] = []

    class Counted(Event):
        def __init__(self, **given: object) -> None:
            built.append("one")

    emitter, heard = Emitter("x"), RecordingListener()
    with subscribe(heard, DeadlineOverrun):
        emitter.emit(Counted)
    assert not built
    with subscribe(heard, Counted):
        emitter.emit(Counted)
    assert len(built) == len(heard) == 1


def test_without_listeners_nothing_is_heard_and_nothing_happens() -> None:
    emitter = Emitter("x")
    assert not emitter.hears(DeadlineOverrun)
    overrun(emitter)


def test_an_event_carries_name_time_and_sequence() -> None:
    clock, heard = ManualClock(start=5.0), RecordingListener()
    emitter = Emitter("payments", (heard,), clock)
    overrun(emitter)
    clock.advance(1.5)
    overrun(emitter)
    assert [(event.name, event.at, event.sequence) for event in heard] == [("payments", 5.0, 1), ("payments", 6.5, 2)]


def test_what_nobody_hears_is_not_counted() -> None:
    heard = RecordingListener()
    emitter = Emitter("x")
    overrun(emitter)
    with subscribe(heard, DeadlineOverrun):
        overrun(emitter)
        emitter.emit(CallRejected, reason="CircuitOpenError")
    overrun(emitter)
    with subscribe(heard):
        overrun(emitter)
    assert [event.sequence for event in heard] == [1, 2]


def test_a_subscription_hears_its_types_and_their_subclasses() -> None:
    everything, some = RecordingListener(), RecordingListener()
    emitter = Emitter("x")
    with subscribe(everything, Event), subscribe(some, DeadlineOverrun, CircuitChanged):
        assert emitter.hears(CallRejected)
        overrun(emitter)
        emitter.emit(CallRejected, reason="CircuitOpenError")
        emitter.emit(CircuitChanged, previous="closed", state="open", cause="five failures")
    assert [type(event) for event in everything] == [DeadlineOverrun, CallRejected, CircuitChanged]
    assert [type(event) for event in some] == [DeadlineOverrun, CircuitChanged]


def test_a_component_s_own_listeners_hear_that_component_alone_and_first() -> None:
    order: list[str] = []
    emitter = Emitter("x", (lambda event: order.append("own " + event.name),))
    with subscribe(lambda event: order.append("all " + event.name)):
        overrun(emitter)
        overrun(Emitter("y"))
    assert order == ["own x", "all x", "all y"]


@pytest.mark.parametrize("wrong", [print, RecordingListener(), 7, None, [7]])
def test_a_component_s_listeners_are_a_list_of_callables(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="listener"):
        Emitter("c", wrong)  # type: ignore[arg-type]  # what the test is about


def test_listeners_hear_in_the_order_in_which_they_came() -> None:
    order: list[int] = []
    first, second = subscribe(lambda _: order.append(1)), subscribe(lambda _: order.append(2))
    with first, second:
        overrun(Emitter("x"))
    assert order == [1, 2]


# Subscribing and closing


def test_closing_ends_the_listening_and_may_be_done_twice() -> None:
    heard = RecordingListener()
    subscription = subscribe(heard)
    subscription.close()
    subscription.close()
    overrun(Emitter("x"))
    assert not heard.events


def test_closing_one_of_two_subscriptions_leaves_the_other() -> None:
    heard = RecordingListener()
    emitter = Emitter("x")
    with subscribe(heard, DeadlineOverrun):
        subscribe(heard, DeadlineOverrun).close()
        overrun(emitter)
    assert len(heard) == 1


class Methods:
    def __init__(self) -> None:
        self.heard: list[Event] = []

    def hear(self, event: Event) -> None:
        self.heard.append(event)


def test_a_listener_given_twice_hears_an_event_once() -> None:
    heard, methods, lines = RecordingListener(), Methods(), list[Event]()
    emitter = Emitter("x", (heard, heard, methods.hear, methods.hear, lines.append))
    with subscribe(heard), subscribe(heard, DeadlineOverrun), subscribe(methods.hear), subscribe(lines.append):
        overrun(emitter)
    assert len(heard) == len(methods.heard) == len(lines) == 1


@dataclass
class Tally:
    """Two of these are equal while they have heard the same."""

    heard: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.heard.append(event)


def test_listeners_with_equal_contents_are_two_listeners() -> None:
    one, other = Tally(), Tally()
    with subscribe(other):
        overrun(Emitter("x", (one,)))
    assert len(one.heard) == len(other.heard) == 1


class Incomparable:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: Event) -> None:
        self.count += 1

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    __hash__ = object.__hash__


def test_a_listener_that_cannot_be_compared_is_heard_all_the_same() -> None:
    one, other = Incomparable(), Incomparable()
    overrun(Emitter("x", (one, other)))
    assert (one.count, other.count) == (1, 1)


def test_a_listener_may_subscribe_and_close_while_an_event_is_delivered() -> None:
    late = RecordingListener()
    emitter = Emitter("x")
    opened: list[Subscription] = []

    def restless(event: Event) -> None:
        mine.close()
        opened.append(subscribe(late))

    mine = subscribe(restless)
    overrun(emitter)
    overrun(emitter)
    assert len(opened) == 1
    assert [event.sequence for event in late] == [2]
    opened[0].close()


def test_a_listener_may_emit() -> None:
    heard = RecordingListener()
    inner = Emitter("inner", (heard,))
    overrun(Emitter("outer", (lambda _: overrun(inner),)))
    assert [event.name for event in heard] == ["inner"]


def test_a_subscription_shows_its_listener_and_types() -> None:
    with subscribe(print, DeadlineOverrun, CallRejected) as subscription:
        assert repr(subscription) == "<Subscription <built-in function print> to DeadlineOverrun, CallRejected>"
    assert repr(subscription) == "<Subscription closed>"
    with subscribe(print) as subscription:
        assert repr(subscription) == "<Subscription <built-in function print> to every event>"
    assert repr(Emitter("x")) == "<Emitter 'x'>"


def test_subscribing_closing_and_emitting_race_without_loss() -> None:
    rounds = 300
    steady = RecordingListener()
    emitter = Emitter("x")
    start = threading.Barrier(4)

    def emit() -> None:
        start.wait()
        for _ in range(rounds):
            overrun(emitter)

    def come_and_go() -> None:
        start.wait()
        for _ in range(rounds):
            with subscribe(RecordingListener()):
                pass

    with subscribe(steady, DeadlineOverrun):
        threads = [threading.Thread(target=work) for work in (emit, emit, come_and_go, come_and_go)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(event.sequence for event in steady) == list(range(1, 2 * rounds + 1))


class Watching:
    def __init__(self) -> None:
        self.told = 0

    def listeners_changed(self) -> None:
        self.told += 1


def test_a_component_that_watches_is_told_of_each_coming_and_going() -> None:
    component = Watching()
    watch(component)
    assert component.told == 1
    with subscribe(print):
        assert component.told == 2
    assert component.told == 3
    watched = weakref.ref(component)
    del component
    assert watched() is None


@pytest.mark.parametrize("is_new", [True, False])
def test_a_component_that_notices_late_is_told_again(is_new: bool) -> None:
    class Slow:
        """It looks, and before it has taken notice another thread's listener has come and been told of."""

        def __init__(self) -> None:
            self._emitter = Emitter("slow")
            self.is_heard = False
            self.meanwhile: list[Subscription] = []

        def listeners_changed(self) -> None:
            heard = self._emitter.hears(CallRejected)
            if not heard and not self.meanwhile:
                thread = threading.Thread(target=lambda: self.meanwhile.append(subscribe(heard_of.append)))
                thread.start()
                thread.join()
            self.is_heard = heard

    heard_of: list[Event] = []
    component = Slow()
    if is_new:
        watch(component)
    else:
        first = subscribe(heard_of.append, CallRejected)
        watch(component)
        first.close()
    assert component.is_heard
    component.meanwhile[0].close()
    assert not component.is_heard


def test_components_may_be_made_while_listeners_come_and_go() -> None:
    kept: list[Watching] = []
    start = threading.Barrier(2)

    def make() -> None:
        start.wait()
        for _ in range(2000):
            kept.append(Watching())
            watch(kept[-1])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread = threading.Thread(target=make)
        thread.start()
        start.wait()
        while thread.is_alive():
            subscribe(print).close()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(kept) == 2000


class Collecting(Watching):
    """A component whose place among those that watch is found by collecting garbage."""

    def __hash__(self) -> int:
        gc.collect()
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def test_garbage_that_listens_is_collected_while_a_component_begins_to_watch() -> None:
    heard: list[Event] = []

    def listening() -> Iterator[None]:
        with subscribe(heard.append):
            yield

    component = Collecting()
    abandon(listening)
    in_time(lambda: watch(component))
    overrun(Emitter("c"))
    assert heard == []


# Listeners that go wrong


def boom(event: Event) -> None:
    raise ValueError("boom")


def test_a_raising_listener_is_told_once_and_the_others_still_hear(caplog: pytest.LogCaptureFixture) -> None:
    heard = RecordingListener()
    emitter = Emitter("x")
    with subscribe(boom), subscribe(heard):
        overrun(emitter)
        overrun(emitter)
        overrun(Emitter("y"))
    assert len(heard) == 3
    (record,) = caplog.records
    assert record.name == "reliakit"
    assert "boom" in record.getMessage()
    assert "DeadlineOverrun" in record.getMessage()
    assert record.exc_info is not None


def test_a_listener_that_raises_in_many_threads_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    emitter = Emitter("x", (boom,))
    threads = [threading.Thread(target=overrun, args=(emitter,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


class Unshowable:
    def __call__(self, event: Event) -> None:
        raise ValueError("boom")

    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


def test_a_raising_listener_with_a_broken_repr_is_told_by_its_class(caplog: pytest.LogCaptureFixture) -> None:
    with subscribe(Unshowable()) as subscription:
        overrun(Emitter("x"))
        assert "<Unshowable>" in repr(subscription)
    (record,) = caplog.records
    assert "<Unshowable>" in record.getMessage()


def test_a_log_handler_that_raises_does_not_reach_the_caller() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("no log either")

    handler = Broken()
    logging.getLogger("reliakit").addHandler(handler)
    try:
        overrun(Emitter("x", (boom,)))
    finally:
        logging.getLogger("reliakit").removeHandler(handler)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_what_is_no_exception_passes_through(kind: type[BaseException]) -> None:
    def interrupted(event: Event) -> None:
        raise kind

    with pytest.raises(kind):
        overrun(Emitter("x", (interrupted,)))


async def async_listener(event: Event) -> None: ...


async def async_generator_listener(event: Event) -> AsyncIterator[int]:
    yield 1


def generator_listener(event: Event) -> Iterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self, event: Event) -> None: ...

    async def method(self, event: Event) -> None: ...


@pytest.mark.parametrize(
    "listener",
    [
        async_listener,
        async_generator_listener,
        generator_listener,
        functools.partial(async_listener),
        AsyncCallable(),
        AsyncCallable().method,
        mock.AsyncMock(),
    ],
)
def test_an_async_or_generator_listener_is_refused(listener: object) -> None:
    with pytest.raises(ConfigurationError, match="listener must be a plain function"):
        subscribe(listener)  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ConfigurationError, match="each of listeners must be a plain function"):
        Emitter("x", (listener,))  # type: ignore[arg-type]  # what the test is about


def test_an_async_listener_in_disguise_is_told_when_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    with subscribe(lambda event: async_listener(event=event)):
        overrun(Emitter("x"))
        overrun(Emitter("x"))
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "awaitable" in str(record.exc_info[1])


@pytest.mark.parametrize("listener", [None, 7, "print", object()])
def test_what_cannot_be_called_is_refused(listener: object) -> None:
    with pytest.raises(ConfigurationError, match="listener must be a callable"):
        subscribe(listener)  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ConfigurationError, match="each of listeners must be a callable"):
        Emitter("x", (listener,))  # type: ignore[arg-type]  # what the test is about


@pytest.mark.parametrize(
    "kind", [None, "DeadlineOverrun", ValueError, DeadlineOverrun(name="", at=0, sequence=1, seconds=1, elapsed=2)]
)
def test_what_is_no_event_class_is_refused(kind: object) -> None:
    with pytest.raises(ConfigurationError, match="event_types must be event classes"):
        subscribe(print, kind)  # type: ignore[arg-type]  # what the test is about


class Odd:
    """Callable by a metaclass or by instance attributes, which is not the same thing."""

    def __init__(self) -> None:
        self.__call__ = async_listener  # not what Python calls
        self.heard = 0

    def __call__(self, event: Event) -> str:  # type: ignore[no-redef]  # the class's own one is what counts
        self.heard += 1
        return "ignored"


def test_only_the_class_s_own_call_decides_and_a_plain_answer_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    odd = Odd()
    with subscribe(odd):
        overrun(Emitter("x"))
    assert odd.heard == 1
    assert not caplog.records


# The vocabulary


def test_every_event_is_a_frozen_value_with_slots() -> None:
    kinds = [getattr(events, name) for name in events.__all__]
    parts = (
        events.CircuitFigures,
        events.LimitFigures,
        events.LogFigures,
        events.PoolFigures,
        events.PoolMeter,
        events.StatementTimed,
    )
    assert [kind for kind in kinds if not issubclass(kind, Event)] == [*parts]
    for kind in kinds:
        if kind in parts:
            continue
        assert is_dataclass(kind)
        assert not hasattr(kind, "__dict__") or "__dict__" not in dir(object.__new__(kind))
        assert [own.name for own in fields(kind)][:3] == ["name", "at", "sequence"]
        assert kind.__doc__


def test_an_introduction_is_heard_by_who_named_it_alone() -> None:
    everything, named, own = RecordingListener(), RecordingListener(), RecordingListener()
    emitter = Emitter("main", listeners=[own])
    with subscribe(everything), subscribe(named, CircuitPresent), subscribe(named, CircuitPresent):
        emitter.introduce(CircuitPresent, read=lambda: None)
    mine = [[event for event in heard.events if event.name == "main"] for heard in (everything, named, own)]
    assert [len(events) for events in mine] == [0, 1, 0]


def test_whoever_is_told_otherwise_hears_nothing_from_that_mouth() -> None:
    first: list[Event] = []
    second, own = RecordingListener(), RecordingListener()
    emitter = Emitter("x", listeners=[own, first.append])
    apart = emitter.apart_from([second, first.append])
    with subscribe(first.append, DeadlineOverrun), subscribe(second):
        overrun(apart)
        overrun(emitter)
    assert [len(first), len(second.events), len(own.events)] == [1, 1, 2]
    assert [event.sequence for event in own.events] == [1, 2]  # one component, whichever mouth
    assert apart.hears(DeadlineOverrun)
    assert not Emitter("x", listeners=[second]).apart_from([second]).hears(DeadlineOverrun)


class Choosy(RecordingListener):
    """Does not want to hear of what is usual, or raises when it is asked."""

    def is_deaf_to(self, kind: type[Event], status: str) -> bool:
        if status == "odd":
            raise ValueError(status)
        return kind is DeadlineOverrun and status == "usual"


def test_an_event_need_not_be_built_for_a_listener_that_is_deaf_to_it() -> None:
    emitter = Emitter("x", listeners=[Choosy()])
    assert [emitter.hears(DeadlineOverrun, status) for status in ("usual", "rare", "odd", "")] == [
        False, True, True, True,
    ]  # fmt: skip
    assert emitter.hears(CallRejected, "usual")
    assert emitter.reaches(DeadlineOverrun)
    assert Emitter("x", listeners=[mock.Mock()]).hears(DeadlineOverrun, "usual")
    with subscribe(RecordingListener(), DeadlineOverrun):
        assert emitter.hears(DeadlineOverrun, "usual")


def test_a_listener_that_causes_what_it_hears_goes_in_no_endless_circle(caplog: pytest.LogCaptureFixture) -> None:
    emitter, other, heard = Emitter("x"), Emitter("other"), RecordingListener()

    def twice(event: Event) -> None:
        overrun(emitter)
        overrun(emitter)

    with subscribe(twice, DeadlineOverrun), subscribe(heard, DeadlineOverrun):
        overrun(emitter)
        assert len(heard.events) == 2 + 4 + 8 + 1
        overrun(other)
    assert len(heard.events) == 2 * (2 + 4 + 8 + 1)
    assert "causes the events that it hears" in caplog.text
