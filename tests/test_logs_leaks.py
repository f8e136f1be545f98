"""Every surface on which a secret can reach the log: none of them may show it, in the log or anywhere else."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import queue
import sys
import threading
import traceback
import warnings

import attrs
import pydantic
import pytest
from masker_cases import BASIC, CARD, JWT, PASSWORD, PEM, PEM_BODY, Account, Login, Slotted

from reliakit.core.context import request_context
from reliakit.logs import Masker, configure_logging, get_logger, log_context
from reliakit.logs import formatter as formatter_module

SECRET = PASSWORD
NAMED = f"password={SECRET}"


class Wall:
    """A stream, and standard error, in which nothing may leak."""

    def __init__(self, capsys):
        self.stream = io.StringIO()
        self._capsys = capsys

    def lines(self):
        captured = self._capsys.readouterr()
        text = self.stream.getvalue() + captured.out + captured.err
        for secret in (SECRET, SECRET[:7], CARD, JWT, PEM_BODY[:20], BASIC, "bob@example.com"):
            assert secret not in text
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def only_our_handler(monkeypatch):
    """Keep pytest's own handlers, which join the root logger again for each phase of a test, out of the way."""
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.emit", lambda self, record: None)


@pytest.fixture(params=[False, True], ids=["at once", "queue"])
def wall(request, capsys, only_our_handler):
    wall = Wall(capsys)
    masker = Masker()
    with configure_logging(
        service="svc", env="test", level="DEBUG", stream=wall.stream, masker=masker, queue=request.param
    ) as handle:
        wall.handle = handle
        wall.flush = handle.flush
        yield wall
    wall.lines()


log = get_logger("leaks")
plain = logging.getLogger("third.party")


def last(wall):
    wall.flush()
    return wall.lines()[-1]


def test_message(wall):
    log.info(f"login with {NAMED}")  # noqa: G004 - the leak that is tested
    assert last(wall)["message"] == "login with password=***"


def test_message_of_a_plain_logger(wall):
    plain.info("login with " + NAMED)
    assert last(wall)["message"] == "login with password=***"


def test_message_that_is_no_text(wall):
    log.info({"password": SECRET})
    log.info(ValueError(NAMED))
    log.info(Account("bob", SECRET))
    assert "***" in last(wall)["message"]


@pytest.mark.parametrize(
    ("template", "args"),
    [
        ("login with password=%s", (SECRET,)),
        ("login with password %s", (SECRET,)),
        ("password '%s'", (SECRET,)),
        ("token: %r for %s", (SECRET, "bob")),
        ("for %s the token is %s", ("bob", SECRET)),
        ("%s=%s", ("password", SECRET)),
        ("payload %s", ({"password": SECRET},)),
        ("payload %r", (Account("bob", SECRET),)),
        ("payload %s", (Login("bob", SECRET),)),
        ("payload %s", ({"body": b"password=" + SECRET.encode()},)),
        ("%(password)s", ({"password": SECRET},)),
        ("card %s", (CARD,)),
        ("api_key=%s, password=%s", (SECRET, SECRET)),
        ("split pass%s", ("word=" + SECRET,)),
        ("width %*d token %s", (5, 3, SECRET)),
        ("100%% token %s", (SECRET,)),
    ],
)
def test_arguments(wall, template, args):
    log.info(template, *args)
    plain.info(template, *args)
    wall.flush()
    assert len(wall.lines()) == 2


def test_extra_of_both_kinds_of_logger(wall):
    plain.info("x", extra={"password": SECRET, "note": NAMED, "deep": [{"token": SECRET}]})
    log.info("x", extra={"password": SECRET, "note": NAMED, "name": "n", "message": "m"})  # noqa: G101
    wall.flush()
    first, second = wall.lines()
    assert first["context"] == {"password": "***", "note": "password=***", "deep": [{"token": "***"}]}
    assert second["context"] == {"password": "***", "note": "password=***", "name": "n", "message": "m"}


def test_bound_context_and_request_fields(wall):
    with request_context(request_id=f"{JWT}", principal="bob@example.com", secret=SECRET), log_context(token=SECRET):
        log.bind(api_key=SECRET, note=NAMED).info("x")
        plain.info("x")
    assert last(wall)["context"] == {"secret": "***", "principal": "***", "token": "***"}


def test_keys_of_dicts(wall):
    log.info("x", table={NAMED: 1, "bob@example.com": 2, ("password", SECRET): 3, b"password=" + SECRET.encode(): 4})
    assert last(wall)


@pytest.mark.parametrize(
    "value",
    [
        Account("bob", SECRET),
        Slotted(SECRET),
        Login("bob", SECRET),
        [Login("bob", SECRET)],
        {"a": {"b": {"c": [(1, {"password": SECRET})]}}},
        b"password=" + SECRET.encode(),
        bytearray(b"password=" + SECRET.encode()),
        memoryview(b"password=" + SECRET.encode()),
        {NAMED},
        ValueError(NAMED),
        [ValueError(NAMED)],
        type("Secretive", (), {"__str__": lambda self: NAMED})(),
        (item for item in [SECRET]),
        lambda: SECRET,
        int(CARD),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_fields(wall, value):
    log.info("x", value=value)
    assert "value" in last(wall)["context"]


def test_attrs_and_pydantic_models(wall):
    @attrs.define
    class A:
        name: str
        password: str

    class P(pydantic.BaseModel):
        name: str
        password: str

    log.info("x", a=A("bob", SECRET), p=P(name="bob", password=SECRET))
    assert last(wall)["context"] == {
        "a": {"name": "bob", "password": "***"},
        "p": {"name": "bob", "password": "***"},
    }


def raised():
    try:
        try:
            try:
                raise KeyError(NAMED)
            except KeyError as first:
                first.add_note(f"note {NAMED}")
                raise RuntimeError(f"second {NAMED}") from first
        except RuntimeError:
            raise ExceptionGroup("both", [ValueError(NAMED), TypeError(f"token: {SECRET}")])  # noqa: B904
    except ExceptionGroup as error:
        return error


def test_exceptions_with_causes_contexts_notes_and_groups(wall):
    error = raised()
    log.error("x", error=error)
    log.error("x", exc_info=error)
    try:
        raise error
    except ExceptionGroup:
        log.exception("x")
        plain.exception("x")
    wall.flush()
    for line in wall.lines():
        assert line["error"]["type"] == "ExceptionGroup"
        assert [cause["type"] for cause in line["error"]["causes"]] == ["RuntimeError", "KeyError"]
        assert "note password=***" in line["error"]["causes"][1]["stack"]
        assert "ValueError: password=***" in line["error"]["stack"]


class Unshowable(Exception):
    def __str__(self):
        raise RuntimeError(NAMED)

    __repr__ = __str__


def test_things_that_cannot_be_shown(wall):
    log.error(Unshowable(), Unshowable(), error=Unshowable(), x=Unshowable(), y=[Unshowable()])
    plain.error("%s", Unshowable(), extra={"x": Unshowable()})
    wall.flush()
    first, second = wall.lines()
    assert first["error"]["message"] == "[unprintable Unshowable]"
    assert first["context"]["y"] == ["Unshowable: [unprintable Unshowable]"]
    assert second["message"] == "%s"


@pytest.mark.parametrize("args", [(SECRET,), (SECRET, SECRET), ({"a": SECRET},)])
def test_a_format_that_does_not_fit_is_written_without_its_arguments(wall, args):
    for template in ("%d items", "%s %s %s", "%q", "%", "%(missing)s"):
        log.info(template, *args)
        plain.info(template, *args)
    wall.flush()
    lines = wall.lines()
    assert len(lines) == 10
    assert "%d items" in [line["message"] for line in lines]


def test_stack_info(wall):
    def call(password=NAMED):
        log.info("x", stack_info=True)
        plain.info("x", stack_info=True)

    call()
    wall.flush()
    assert all("in call" in line["stack_info"] for line in wall.lines())


def test_warnings(wall):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"careful, {NAMED}", UserWarning, stacklevel=1)
    line = last(wall)
    assert line["logger"] == "py.warnings"
    assert line["message"] == "careful, password=***"
    assert line["context"]["category"] == "UserWarning"


def test_records_that_crossed_a_foreign_queue(wall):
    crossing: queue.Queue[logging.LogRecord] = queue.Queue()
    sender = logging.getLogger("crossing")
    sender.propagate = False
    handler = logging.handlers.QueueHandler(crossing)
    sender.addHandler(handler)
    try:
        try:
            raise ValueError(NAMED)
        except ValueError:
            sender.exception("x %s", NAMED, extra={"password": SECRET})
    finally:
        sender.removeHandler(handler)
        sender.propagate = True
    record = crossing.get_nowait()
    logging.getLogger("received").handle(record)
    assert last(wall)["context"] == {"password": "***"}


def test_logger_names(wall):
    logging.getLogger(NAMED).warning("x")
    assert last(wall)["logger"] == "password=***"


@pytest.mark.parametrize(
    "text",
    [
        f"GET /a?token={SECRET}&b=1",
        f"postgresql://svc:{SECRET}@db/app",
        f"https://bob:{SECRET}@host/x",
        f"Authorization: Basic {BASIC}",
        json.dumps({"body": json.dumps({"password": SECRET})}),
        f"<login><password>{SECRET}</password></login>",
        f"user: bob\npassword: {SECRET}\n",
        PEM,
        JWT,
    ],
)
def test_bodies_and_addresses_in_any_place(wall, text):
    log.info(text)
    log.info("x", note=text)
    log.error("x", error=ValueError(text))
    wall.flush()
    assert len(wall.lines()) == 3


class BrokenStream(io.StringIO):
    def write(self, text):
        raise OSError(text)


@pytest.mark.parametrize("queued", [False, True])
def test_a_broken_stream_prints_nothing_of_the_record_anywhere(capsys, queued):
    with configure_logging(service="svc", env="test", level="DEBUG", stream=BrokenStream(), queue=queued) as handle:
        log.info("unspeakable", a="words")
        plain.error("unspeakable %d", "x", extra={"a": "words"})
        handle.flush()
        assert handle.dropped == 2
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_fault_in_the_formatter_tells_of_the_record_and_shows_nothing(wall, monkeypatch):
    def fail(*args):
        raise RuntimeError(NAMED)

    monkeypatch.setattr(formatter_module, "message_of", fail)
    log.info("unspeakable", password=SECRET)
    line = last(wall)
    assert line["message"] == "[masking failed]"
    assert line["level"] == "INFO"
    assert line["service"] == "svc"
    assert "unspeakable" not in json.dumps(line)


def test_a_failing_detector_shows_nothing(capsys):
    def fail(text):
        raise RuntimeError(text)

    wall = Wall(capsys)
    with configure_logging(
        service="svc", env="test", level="DEBUG", stream=wall.stream, masker=Masker(detectors=[fail])
    ):
        log.error("unspeakable", a="unspeakable", error=ValueError("unspeakable"))
    [line] = wall.lines()
    assert "unspeakable" not in json.dumps(line)
    assert line["message"] == "[masking failed]"


def test_locals_of_frames_are_not_shown(wall):
    def inner(credential):
        raise ValueError("no")

    try:
        inner("opensesame" + "now")
    except ValueError:
        log.exception("x")
    assert "opensesamenow" not in json.dumps(last(wall))


def test_nothing_is_left_of_an_error_that_is_too_long_to_scan(wall):
    log.error("x", error=ValueError("y " * 50_000 + NAMED))
    log.info("y " * 50_000 + NAMED)  # noqa: G003
    log.info("x", a=["y " * 50_000, NAMED])
    assert "[too long to scan]" in json.dumps(last(wall))


def test_values_are_taken_at_the_call_before_the_queue():
    stream = io.StringIO()
    with configure_logging(service="svc", env="test", level="DEBUG", stream=stream, queue=True):
        state = {"n": 1}
        with log_context(step="inside"):
            log.info("x", state=state)
        state["n"] = 2
    line = json.loads(stream.getvalue())
    assert line["context"] == {"step": "inside", "state": {"n": 1}}


def test_what_waits_in_the_queue_is_masked_already(monkeypatch):
    stream = io.StringIO()
    with configure_logging(service="svc", env="test", level="DEBUG", stream=stream, queue=True) as handle:
        seen = []
        writer = handle._handler._writer
        put = writer.put
        monkeypatch.setattr(writer, "put", lambda line, level: (seen.append(line), put(line, level))[1])
        log.info(NAMED, password=SECRET)
    assert len(seen) == 1
    assert SECRET not in seen[0]


def test_unhandled_errors_in_threads_do_not_disturb(wall):
    def work():
        log.error("x", error=ValueError(NAMED))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert last(wall)["error"]["message"] == "password=***"


def test_the_fixture_itself_would_see_a_leak(capsys):
    wall = Wall(capsys)
    sys.stderr.write(SECRET)
    with pytest.raises(AssertionError):
        wall.lines()
    assert traceback
