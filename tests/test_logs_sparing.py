"""What is left out of the log, what never is, and how it is told."""

from __future__ import annotations

import gc
import io
import json
import logging
import threading

import pytest
from garbage import abandon, in_time
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reliakit import ConfigurationError, LoggingHandle, configure_logging, get_logger, log_context, request_context
from reliakit.core.events import RequestEnded
from reliakit.core.spine import Emitter
from reliakit.logs.sparing import Repeats
from reliakit.testing import ManualClock

log = get_logger("app")


class Log:
    def __init__(self, **settings):
        self.stream = io.StringIO()
        self.clock = ManualClock(random=settings.pop("random", 0.5))
        self.handle: LoggingHandle = configure_logging(
            service="svc", env="test", level="DEBUG", stream=self.stream, clock=self.clock, **settings
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.close()

    def lines(self):
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def messages(self):
        return [line["message"] for line in self.lines()]


def test_everything_is_written_unless_asked_otherwise():
    with Log() as written:
        for number in range(5000):
            log.info("again", number=number)
    assert len(written.lines()) == 5000
    assert written.handle.left_out == 0


# repeat_limit


def test_repeats_beyond_the_limit_are_told_once_as_a_number():
    with Log(repeat_limit=3) as written:
        for number in range(10):
            log.info("Polled %d", number, number=number)
        written.clock.advance(10)
        log.info("Something else")
    assert written.messages() == ["Polled 0", "Polled 1", "Polled 2", "repeats left out", "Something else"]
    told = written.lines()[3]
    assert told["context"] == {"template": "Polled %d", "repeats": 7, "seconds": 10.0}
    assert (told["level"], told["logger"]) == ("INFO", "app")
    assert written.handle.left_out == 7


def test_each_window_begins_anew():
    with Log(repeat_limit=1) as written:
        for _ in range(3):
            log.info("m")
            log.info("m")
            written.clock.advance(10)
    assert written.messages() == ["m", "repeats left out"] * 3


def test_what_is_left_out_is_told_when_the_handle_is_closed():
    with Log(repeat_limit=1) as written:
        log.info("m")
        log.info("m")
    assert written.messages() == ["m", "repeats left out"]


def test_loggers_levels_and_templates_are_limited_each_by_itself():
    with Log(repeat_limit=1) as written:
        log.info("m")
        log.info("n")
        log.warning("m")
        get_logger("other").info("m")
        logging.getLogger("plain").info("m")
    assert len(written.lines()) == 5


def test_errors_are_never_left_out():
    with Log(repeat_limit=1, sample=0.0) as written:
        for _ in range(20):
            log.error("m")
            log.critical("m")
            log.info("m", error=ValueError())
            log.debug("m", exc_info=ValueError())
            logging.getLogger("plain").error("m")
    assert len(written.lines()) == 100


def test_records_of_events_are_not_limited():
    ended = {"method": "GET", "route": "/", "status": 200, "outcome": "completed", "duration": 0.1, "service": None}
    with Log(repeat_limit=1) as written:
        for _ in range(20):
            Emitter("web").emit(RequestEnded, request_id="r", **ended)
    assert written.messages() == ["request ended"] * 20


def test_what_is_told_late_belongs_to_no_request():
    with Log(repeat_limit=1) as written:
        with request_context(request_id="r-1", principal="bob"), log_context(tenant="north"):
            log.info("m")
            log.info("m")
            written.clock.advance(10)
            log.info("other")
    told = written.lines()[1]
    assert "request_id" not in told
    assert set(told["context"]) == {"template", "repeats", "seconds"}


def test_a_template_is_masked_where_it_is_told():
    with Log(repeat_limit=1) as written:
        for _ in range(2):
            log.info("password=hunter22")
    assert "hunter22" not in written.stream.getvalue()
    assert written.lines()[1]["context"]["template"] == "password=***"


def test_a_queue_tells_what_was_left_out_too():
    with Log(repeat_limit=1, queue=True) as written:
        for _ in range(5):
            log.info("m")
    assert written.messages() == ["m", "repeats left out"]


def test_threads_count_every_repeat():
    with Log(repeat_limit=10) as written:

        def work():
            for _ in range(250):
                log.info("m")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    *passed, told = written.lines()
    assert len(passed) == 10
    assert told["context"]["repeats"] == 1990


def test_garbage_collected_inside_may_log():
    class Collecting(ManualClock):
        def monotonic(self):
            gc.collect(1)
            return super().monotonic()

    def begin():
        try:
            yield
        finally:
            log.info("from the garbage")

    stream = io.StringIO()
    with configure_logging(
        service="svc", level="INFO", stream=stream, clock=Collecting(), repeat_limit=5, queue=True
    ):
        abandon(begin)
        in_time(lambda: log.info("m"))
    assert {json.loads(line)["message"] for line in stream.getvalue().splitlines()} == {"m", "from the garbage"}


# sample


def test_a_share_of_what_is_below_a_warning_is_written():
    with Log(sample=0.25, random=[0.1, 0.2, 0.25, 0.9]) as written:
        for number in range(4):
            log.info("m", number=number)
            log.warning("w", number=number)
    assert [line["context"]["number"] for line in written.lines() if line["level"] == "INFO"] == [0, 1]
    assert len([line for line in written.lines() if line["level"] == "WARNING"]) == 4
    assert written.handle.left_out == 2


def test_of_one_request_all_is_written_or_nothing():
    with Log(sample=0.5) as written:
        for number in range(200):
            with request_context(request_id=f"r-{number}"):
                log.info("one")
                log.debug("two")
    by_request = {}
    for line in written.lines():
        by_request.setdefault(line["request_id"], []).append(line["message"])
    assert all(messages == ["one", "two"] for messages in by_request.values())
    assert 60 <= len(by_request) <= 140


def test_a_share_is_the_nearest_loggers():
    with Log(sample={"app": 0.0, "app.kept": 1.0, "": 0.0, "other": 1.0}) as written:
        for name in ("app", "app.x", "app.kept.x", "other", "application", "root"):
            get_logger(name).info(name)
    assert written.messages() == ["app.kept.x", "other"]


def test_the_access_record_is_sampled_with_its_request():
    ended = {"method": "GET", "route": "/", "status": 200, "outcome": "completed", "duration": 0.1, "service": None}
    with Log(sample={"reliakit.access": 0.5}) as written:
        for number in range(200):
            Emitter("web").emit(RequestEnded, request_id=f"r-{number}", **ended)
    assert 60 <= len(written.lines()) <= 140


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("repeat_limit", 0),
        ("repeat_limit", True),
        ("repeat_limit", 1.5),
        ("sample", 1.5),
        ("sample", -0.1),
        ("sample", "x"),
        ("sample", {"a": 2}),
        ("sample", {7: 0.5}),
        ("queue", -1),
        ("queue", 1.5),
        ("levels", "INFO"),
        ("levels", {"a": "loud"}),
        ("levels", {"": "INFO"}),
        ("levels", {"root": "INFO"}),
        ("levels", {7: "INFO"}),
        ("clock", 7),
    ],
)
def test_wrong_settings_name_their_argument(argument, value):
    with pytest.raises(ConfigurationError, match=argument):
        configure_logging(**{"service": "svc", "repeat_limit": 5, argument: value})


# The machine beside a naive model


class RepeatsMachine(RuleBasedStateMachine):
    """Windows beside a model that keeps every single one that came."""

    limit = 2

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.repeats: Repeats[str] = Repeats(self.limit, 10.0)
        self.windows: dict[str, list[float]] = {}
        self.held = self.told = 0

    @rule(key=st.sampled_from("abc"), sweeps=st.booleans())
    def take(self, key, sweeps):
        if sweeps:
            self.told += sum(held for _, held in self.repeats.over(self.now))
        answer = self.repeats.take(key, self.now)
        came = self.windows.get(key)
        if came is None or self.now - came[0] >= 10.0:
            came = self.windows[key] = []
        came.append(self.now)
        assert (answer is None) == (len(came) > self.limit)
        if answer is None:
            self.held += 1
        else:
            self.told += answer

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule()
    def end(self):
        self.told += sum(held for _, held in self.repeats.rest())
        self.windows.clear()

    @invariant()
    def nothing_is_told_twice_or_lost(self):
        assert self.told <= self.held
        waiting = sum(max(0, len(came) - self.limit) for came in self.windows.values())
        assert self.told + waiting >= self.held


RepeatsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRepeats = RepeatsMachine.TestCase


def test_kinds_are_bounded_and_none_of_their_counts_lost():
    repeats: Repeats[int] = Repeats(1)
    told = 0
    for number in range(5000):
        told += sum(held for _, held in repeats.over(0.0))
        assert repeats.take(number, 0.0) == 0
        assert repeats.take(number, 0.0) is None
        assert len(repeats._kinds) <= 1025
    assert told + sum(held for _, held in repeats.rest()) == 5000
