from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import re
import threading
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from uuid import UUID

import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit.core.context import request_context
from reliakit.core.errors import CircuitOpenError
from reliakit.core.events import ErrorSeen
from reliakit.core.spine import subscribe
from reliakit.logs import configure_logging, encode, get_logger, log_context
from reliakit.logs.records import extras_of

log = get_logger("app")


def made(message, **attributes):
    """Return a record as the standard library's receivers of pickled records make it."""
    return logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "levelno": 20, "msg": message, "created": 1.0, **attributes}
    )


class Lines(io.StringIO):
    def records(self):
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def last(self):
        return self.records()[-1]


@pytest.fixture
def lines():
    stream = Lines()
    with configure_logging(service="svc", env="staging", level="DEBUG", stream=stream):
        yield stream


def test_a_record_has_the_promised_shape(lines):
    log.info("Login attempt", user_id=7)
    line = lines.last()
    assert list(line) == ["timestamp", "level", "logger", "message", "service", "env", "context"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "level": "INFO",
        "logger": "app",
        "message": "Login attempt",
        "service": "svc",
        "env": "staging",
        "context": {"user_id": 7},
    }


def test_the_timestamp_is_the_records_own_time(lines):
    record = made("x", created=1700000000.0479)
    logging.getLogger("a").handle(record)
    assert lines.last()["timestamp"] == "2023-11-14T22:13:20.047Z"


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical"])
def test_each_level_has_its_method(lines, level):
    getattr(log, level)("x", a=1)
    assert lines.last()["level"] == level.upper()
    log.log(35, "y")
    assert lines.last()["level"] == "Level 35"


@given(st.dictionaries(st.text(max_size=12), st.integers(0, 9), max_size=5))
def test_no_field_name_can_collide_or_raise(fields):
    fields = {
        name: value
        for name, value in fields.items()
        if name not in {"error", "exc_info", "extra", "stack_info", "stacklevel"}
    }
    stream = Lines()
    with configure_logging(service="svc", env="x", level="DEBUG", stream=stream):
        log.info("x", **fields)
        log.info("x", extra=fields)
    for line in stream.records():
        assert line["message"] == "x"
        assert len(line["context"]) == len(fields)


RESERVED = dict.fromkeys(
    (*logging.makeLogRecord({}).__dict__, "message", "asctime", "self", "level", "timestamp", "service"), 1
)


def test_the_names_of_records_and_lines_are_plain_fields(lines):
    fields = {name: 1 for name in RESERVED if name not in {"exc_info", "stack_info"}}
    log.info("x", **fields)
    log.bind(**fields).info("x")
    with log_context(**fields):
        log.info("x")
    for line in lines.records():
        assert line["context"] == fields
        assert line["message"] == "x"
        assert line["level"] == "INFO"


def test_exc_info_extra_and_stack_info_of_bind_and_context_are_plain_fields(lines):
    fields = {"exc_info": True, "extra": {"a": 1}, "stack_info": True, "error": "e", "stacklevel": 9}
    log.bind(**fields).info("x")
    with log_context(**fields):
        log.info("x")
    for line in lines.records():
        assert line["context"] == fields
        assert "error" not in line
        assert "stack_info" not in line


def test_the_calls_fields_beat_bind_which_beats_context(lines):
    with (
        request_context(request_id="r", a="request", e="request"),
        log_context(a="context", b="context", e="context"),
    ):
        bound = log.bind(b="bound", c="bound")
        bound.info("x", c="call", d="call", extra={"d": "extra", "f": "extra"})
    assert lines.last()["context"] == {
        "a": "context",
        "b": "bound",
        "c": "call",
        "d": "call",
        "e": "context",
        "f": "extra",
    }


def test_bind_leaves_the_logger_as_it_was(lines):
    bound = log.bind(a=1)
    bound.bind(b=2).info("x")
    bound.info("y")
    log.info("z")
    assert [line["context"] for line in lines.records()] == [{"a": 1, "b": 2}, {"a": 1}, {}]


def test_request_and_trace_ids_have_their_own_places(lines):
    with request_context(request_id="r1", trace_id="t1", principal="7", tenant="x"):
        log.info("x")
        logging.getLogger("plain").info("y")
        with log_context(request_id="r2"):
            log.info("z")
    log.info("out")
    first, second, third, fourth = lines.records()
    assert (first["request_id"], first["trace_id"]) == ("r1", "t1")
    assert first["context"] == second["context"] == {"tenant": "x", "principal": "7"}
    assert third["request_id"] == "r2"
    assert "request_id" not in fourth


class Contrary:
    def __bool__(self):
        raise RuntimeError

    def __eq__(self, other):
        raise RuntimeError

    __hash__ = object.__hash__


def test_contrary_objects_cost_nothing_of_the_record(lines):
    log.info("x", request_id=Contrary(), trace_id=Contrary(), exc_info=Contrary(), a=[Contrary()], b={Contrary(): 1})
    line = lines.last()
    assert line["message"] == "x"
    assert "Contrary object" in line["request_id"]
    assert len(line["context"]) == 4


def test_log_context_ends_with_its_block_and_nests(lines):
    with log_context(a=1):
        with log_context(a=2, b=3):
            log.info("x")
        log.info("y")
    log.info("z")
    assert [line["context"] for line in lines.records()] == [{"a": 2, "b": 3}, {"a": 1}, {}]


def test_log_context_can_be_entered_again(lines):
    block = log_context(a=1)
    with block, block:
        log.info("x")
    log.info("y")
    assert [line["context"] for line in lines.records()] == [{"a": 1}, {}]


@pytest.mark.anyio
async def test_tasks_keep_their_own_context(lines):
    async def work(number):
        with log_context(number=number):
            await anyio.lowlevel.checkpoint()
            log.info("x", expected=number)

    await asyncio.gather(*(work(number) for number in range(20)))
    told = [line["context"] for line in lines.records() if line["logger"] == "app"]
    assert len(told) == 20
    assert all(context["number"] == context["expected"] for context in told)


def test_a_block_left_in_another_context_does_not_raise():
    block = log_context(a=1)
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)


def test_stdlib_style_works(lines):
    log.info("%s bought %d", "bob", 3)
    log.info("%(a)s", {"a": 1})
    log.info("100%")
    log.info("x", extra={"a": 1})
    log.info("x", extra=None)
    log.info("x", extra=[("a", 1)])
    messages = [line["message"] for line in lines.records()]
    assert messages[:3] == ["bob bought 3", "1", "100%"]
    assert [line["context"] for line in lines.records()][3:] == [{"a": 1}, {}, {"extra": [["a", 1]]}]


def failing():
    try:
        raise KeyError("inner")
    except KeyError as cause:
        raise ValueError("outer") from cause


def test_an_error_is_told_with_kind_fingerprint_stack_and_causes(lines):
    try:
        failing()
    except ValueError as error:
        log.error("x", error=error)
        log.exception("x")
        log.error("x", exc_info=True)  # noqa: G201 - the form that is tested
        log.error("x", exc_info=error)
        log.error("x", error=True, exc_info=error)
        log.error("x", exc_info=(type(error), error, error.__traceback__))
        logging.getLogger("plain").exception("x")
    told = [line["error"] for line in lines.records()]
    for entry in told:
        assert list(entry) == ["type", "message", "category", "retry", "sqlstate", "fingerprint", "stack", "causes"]
        assert entry["type"] == "ValueError"
        assert entry["message"] == "outer"
        assert (entry["category"], entry["retry"], entry["sqlstate"]) == ("validation", "never", None)
        assert "in failing" in entry["stack"]
        assert [cause["type"] for cause in entry["causes"]] == ["KeyError"]
    assert len({entry["fingerprint"] for entry in told}) == 1


def test_causes_are_nearest_first_without_the_error_itself_and_without_cycles(lines):
    one, two, three = ValueError("1"), ValueError("2"), ValueError("3")
    one.__cause__, two.__context__ = two, three
    three.__cause__ = one
    log.error("x", error=one)
    assert [cause["message"] for cause in lines.last()["error"]["causes"]] == ["2", "3"]
    two.__suppress_context__ = True
    log.error("x", error=one)
    assert [cause["message"] for cause in lines.last()["error"]["causes"]] == ["2"]


@pytest.mark.parametrize("given", ["boom", 7, ["a"], {"b": 1}, ValueError, False])
def test_an_error_that_is_no_exception_is_shown(lines, given):
    log.error("x", error=given)
    line = lines.last()
    assert line["context"] == {}
    assert str(getattr(given, "__name__", given)) in str(line["error"]["message"])


@pytest.mark.parametrize("given", [None, False, True, "x", 7, (None, None, None), (1, 2)])
def test_exc_info_without_an_exception_is_harmless(lines, given):
    log.info("x", exc_info=given)
    log.info("x", error=None)
    assert all("error" not in line for line in lines.records())


def test_an_error_that_was_never_raised_is_told(lines):
    log.error("x", error=CircuitOpenError("open", name="db"))
    assert lines.last()["error"]["category"] == "resource" or lines.last()["error"]["category"] == "dependency"


def test_a_deep_stack_is_shortened(lines):
    def dive(depth):
        if depth == 0:
            raise ValueError("deep")
        dive(depth - 1)

    try:
        dive(300)
    except ValueError:
        log.exception("x")
    stack = lines.last()["error"]["stack"]
    assert "frames left out" in stack
    assert len(stack) < 20_000


def test_the_record_names_its_caller_for_other_handlers():
    seen = []

    class Keeper(logging.Handler):
        def emit(self, record):
            seen.append((record.funcName, record.filename, record.lineno > 0))

    keeper = Keeper()
    logging.getLogger("app").addHandler(keeper)
    try:
        with configure_logging(service="svc", level="DEBUG", stream=io.StringIO()):

            def helper():
                log.warning("x", stacklevel=2)

            log.info("x")
            helper()
            log.info("x", stacklevel=10_000)
            log.info("x", stacklevel="x")
    finally:
        logging.getLogger("app").removeHandler(keeper)
    here = test_the_record_names_its_caller_for_other_handlers.__name__
    assert [name for name, _, _ in seen[:2]] == [here, here]
    assert seen[0][1] == "test_logs_logger.py"


def test_a_level_that_is_off_costs_no_formatting():
    class Loud:
        def __str__(self):
            raise AssertionError("formatted")

    with configure_logging(service="svc", level="ERROR", stream=io.StringIO()):
        log.debug(Loud(), a=Loud())
        assert not log.is_enabled_for(logging.DEBUG)
        assert log.is_enabled_for(logging.ERROR)


class Colour(Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Number(int):
    def __repr__(self):
        return "not json"


VALUES = {
    "none": None,
    "bool": True,
    "int": 7,
    "big": 2**80,
    "float": 1.5,
    "small": 1e-05,
    "tiny": 1.5e-07,
    "huge": 1e300,
    "nan": float("nan"),
    "inf": float("-inf"),
    "text": 'ü "\\\n\u2028\x85\x00 😀',
    "surrogate": "\ud800 x",
    "list": [1, "a", None],
    "tuple": (1, 2),
    "set": {3, 1, 2},
    "dict": {7: "a", None: "b", 2.5: "c", True: "d", (1, 2): "e"},
    "datetime": datetime(2024, 1, 2, 3, 4, 5, 678901, UTC),
    "date": date(2024, 1, 2),
    "delta": timedelta(minutes=1),
    "uuid": UUID(int=5),
    "decimal": Decimal("1.50"),
    "enum": Colour.RED,
    "path": PurePosixPath("/a/b"),
    "bytes": b"a\xff",
    "type": dict,
    "str subclass": Text("x"),
    "int subclass": Number(5),
    "object": object,
}


def render(fields):
    stream = Lines()
    with configure_logging(service="svc", env="x", level="DEBUG", stream=stream):
        logging.getLogger("app").handle(made("x", fields=fields))
    return stream.getvalue()


def test_every_value_becomes_json():
    context = json.loads(render(VALUES))["context"]["fields"]
    assert context["int"] == 7
    assert context["big"] == 2**80
    assert (context["small"], context["tiny"]) == (1e-05, 1.5e-07)
    assert context["nan"] == "nan"
    assert context["inf"] == "-inf"
    assert context["text"] == VALUES["text"]
    assert context["set"] == [1, 2, 3]
    assert context["datetime"] == "2024-01-02T03:04:05.678901+00:00"
    assert context["delta"] == 60.0
    assert context["uuid"] == str(UUID(int=5))
    assert context["enum"] == "red"
    assert context["int subclass"] == 5
    assert context["path"] == "/a/b"


@pytest.mark.parametrize("name", VALUES)
def test_the_output_is_the_same_with_and_without_orjson(monkeypatch, name):
    with_orjson = render({name: VALUES[name]})
    monkeypatch.setattr(encode, "orjson", None)
    assert render({name: VALUES[name]}) == with_orjson


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=8), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@given(json_values, st.text())
def test_any_value_and_message_give_one_line_of_json_the_same_with_and_without_orjson(value, message):
    outputs = []
    original = encode.orjson
    for encoder in (original, None):
        encode.orjson = encoder
        try:
            stream = Lines()
            with configure_logging(service="svc", env="x", level="DEBUG", stream=stream):
                logging.getLogger("app").handle(made(message, v=value))
        finally:
            encode.orjson = original
        outputs.append(stream.getvalue())
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == 1
    json.loads(outputs[0])


def test_lines_of_many_threads_never_interleave():
    pieces = []

    class Slow(io.StringIO):
        def write(self, text):
            pieces.append(text)
            return len(text)

    with configure_logging(service="svc", level="DEBUG", stream=Slow()):

        def work(number):
            for count in range(100):
                log.info("x" * 50, number=number, count=count, password="p")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = [json.loads(line) for line in "".join(pieces).splitlines()]
    assert len(records) == 800
    for number in range(8):
        counts = [line["context"]["count"] for line in records if line["context"]["number"] == number]
        assert counts == list(range(100))


def test_an_exception_given_to_a_logger_is_counted_once():
    seen = []
    with subscribe(lambda event: seen.append((event.error_type, event.service)), ErrorSeen):
        with configure_logging(service="svc", level="DEBUG", stream=io.StringIO()):
            error = ValueError("x")
            log.error("x", error=error)
            log.warning("x", error=error)
            logging.getLogger("plain").error("x", exc_info=error)
            logging.getLogger("plain").error("x", exc_info=KeyError("y"))
        get_logger("unconfigured").error("x", error=TypeError("z"))
    assert seen == [("ValueError", "svc"), ("KeyError", "svc"), ("TypeError", None)]


def test_repr_names_the_logger_and_what_is_bound():
    assert repr(log.bind(a="secret")) == "<Logger 'app' with a>"
    assert log.name == "app"


# As users of logging and of structlog know it


def test_fields_can_be_unbound_and_begun_anew(lines):
    bound = log.bind(a=1, b=2)
    bound.unbind("a", "missing").info("x")
    bound.new(c=3).info("x")
    bound.info("x")
    assert [line["context"] for line in lines.records()] == [{"b": 2}, {"c": 3}, {"a": 1, "b": 2}]


@pytest.mark.parametrize(
    ("level", "name"),
    [("info", "INFO"), (" Warning ", "WARNING"), (35, "Level 35"), ("loud", "WARNING"), (None, "WARNING")],
)
def test_a_level_may_be_a_name_and_a_wrong_one_loses_no_record(lines, level, name):
    log.log(level, "x %d", 1, a=2)
    (line,) = lines.records()
    assert (line["level"], line["message"], line["context"]) == (name, "x 1", {"a": 2})


def test_the_names_of_both_worlds_are_there(lines):
    log.warning("a")
    log.fatal("b")
    assert [line["level"] for line in lines.records()] == ["WARNING", "CRITICAL"]
    assert log.isEnabledFor(logging.INFO)
    assert log.is_enabled_for("info")
    assert not log.is_enabled_for("loud")


def test_a_level_that_is_set_later_holds_at_once():
    stream = Lines()
    plain = logging.getLogger("app.later")
    logger = get_logger("app.later")
    with configure_logging(service="svc", level="INFO", stream=stream):
        logger.debug("no")
        plain.setLevel("DEBUG")
        logger.debug("yes")
        logging.disable(logging.CRITICAL)
        try:
            logger.error("no")
        finally:
            logging.disable(logging.NOTSET)
        plain.disabled = True
        logger.error("no")
        plain.disabled = False
        logger.error("yes")
        plain.setLevel("CRITICAL")
        logger.error("no")
    plain.setLevel("NOTSET")
    assert [line["message"] for line in stream.records()] == ["yes", "yes"]


def test_what_was_given_as_extra_is_found_wherever_it_stands_in_the_record():
    def made(**extra):
        return logging.getLogger("x").makeRecord("x", 20, "f.py", 1, "m", (), None, "f", extra)

    class Own(logging.LogRecord):
        def __init__(self, *args, **options):
            self.first = 1
            super().__init__(*args, **options)

    plain, formatted, moved, less, own = (
        made(a=1, b=2),
        made(a=1),
        made(a=1),
        made(a=1),
        Own("x", 20, "", 1, "m", (), None),
    )
    logging.Formatter("%(asctime)s %(message)s").format(formatted)
    moved.__dict__["args"] = moved.__dict__.pop("args")
    moved.late = 2
    del less.process
    own.last = 2
    assert list(extras_of(plain.__dict__).items()) == [("a", 1), ("b", 2)]
    assert extras_of(formatted.__dict__) == {"a": 1}
    assert extras_of(moved.__dict__) == {"a": 1, "late": 2}
    assert extras_of(less.__dict__) == {"a": 1}
    assert extras_of(own.__dict__) == {"first": 1, "last": 2}
    assert extras_of(made().__dict__) == {}


def test_a_request_id_of_none_among_the_fields_leaves_that_of_the_request():
    stream = io.StringIO()
    with configure_logging(service="bank", env="production", stream=stream), request_context(request_id="r-7"):
        get_logger("x").info("a", request_id=None)
        get_logger("x").info("b", request_id="own", text="much " * 20_000)
        get_logger("x").info("c", text="much " * 20_000)
    assert [json.loads(line)["request_id"] for line in stream.getvalue().splitlines()] == ["r-7", "own", "r-7"]
