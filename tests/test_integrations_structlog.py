"""The processor for structlog, in chains as people build them: nothing secret leaves any of them."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from masker_cases import PASSWORD, Account

from reliakit.core.errors import ConfigurationError
from reliakit.integrations import structlog as ours
from reliakit.integrations.structlog import mask_event
from reliakit.logs import Masker

NAMED = f"password={PASSWORD}"


def chain(*processors, masker=None):
    stream = io.StringIO()
    log = structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=[*processors, mask_event(masker), structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    return log, stream


def told(stream):
    assert PASSWORD not in stream.getvalue()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def raised():
    try:
        try:
            raise KeyError(NAMED)
        except KeyError as first:
            raise RuntimeError(NAMED) from first
    except RuntimeError as error:
        return error


def test_events_bound_fields_and_nested_values_are_masked():
    log, stream = chain(structlog.contextvars.merge_contextvars, structlog.processors.add_log_level)
    with structlog.contextvars.bound_contextvars(api_key=PASSWORD):
        log.bind(token=PASSWORD).info(f"login {NAMED}", account=Account("bob", PASSWORD), n=1, deep=[{"pin": 48151}])
    assert told(stream) == [
        {
            "event": "login password=***",
            "level": "info",
            "api_key": "***",
            "token": "***",
            "account": {"name": "bob", "password": "***", "attempts": 0},
            "n": 1,
            "deep": [{"pin": "***"}],
        }
    ]


@pytest.mark.parametrize(
    "before",
    [
        [],
        [structlog.processors.format_exc_info],
        [structlog.processors.dict_tracebacks],
        [structlog.stdlib.PositionalArgumentsFormatter(), structlog.processors.StackInfoRenderer()],
    ],
)
def test_exceptions_are_masked_whatever_renders_them(before):
    log, stream = chain(*before)
    log.error("x", exc_info=raised())
    log.error("x", exc_info=(RuntimeError, raised(), None))
    log.error("x", exc_info=True, stack_info=True)  # noqa: LOG014 - there is none, and that must not matter
    try:
        raise raised()
    except RuntimeError:
        log.exception("x")
    log.error("x", error=raised())
    first, *_rest, last = told(stream)
    assert "password=***" in json.dumps(first["exception"])
    assert "KeyError" in json.dumps(first["exception"])
    assert last["error"] == "RuntimeError: password=***"


def test_positional_arguments_are_masked_on_either_side_of_their_formatter():
    for before in ([], [structlog.stdlib.PositionalArgumentsFormatter()]):
        stream = io.StringIO()
        log = structlog.wrap_logger(
            structlog.PrintLogger(stream),
            processors=[*before, mask_event(), structlog.processors.JSONRenderer()],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        log._proxy_to_logger("info", "login %s", NAMED)
        log._proxy_to_logger("info", "login %s", NAMED, positional_args=("a", "b"))
        assert told(stream)[0]["event"].startswith("login")


def test_events_through_the_formatter_for_the_standard_library_are_masked():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                mask_event(),
                structlog.processors.JSONRenderer(),
            ],
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(), mask_event()],
        )
    )
    plain = logging.getLogger("structlog-foreign")
    plain.propagate = False
    plain.addHandler(handler)
    try:
        plain.error("login %s", NAMED, exc_info=raised(), extra={"password": PASSWORD})
    finally:
        plain.removeHandler(handler)
        plain.propagate = True
    [line] = told(stream)
    assert line["event"] == "login password=***"
    assert line["password"] == "***"
    assert "KeyError" in line["exception"]


def test_a_rendered_event_is_masked_as_text():
    assert mask_event()(None, "info", f'{{"x": "{NAMED}"}}') == '{"x": "password=***"}'
    assert mask_event()(None, "info", b"password=x1") == b"password=***"


def test_the_event_itself_is_not_changed():
    event = {"event": NAMED, "password": PASSWORD, "exc_info": raised(), "deep": {"token": PASSWORD}}
    before = {**event, "deep": {**event["deep"]}}
    mask_event()(None, "info", event)
    assert event == before


def test_a_fault_shows_nothing(monkeypatch):
    def fail(*args):
        raise RuntimeError(NAMED)

    monkeypatch.setattr(ours, "_masked", fail)
    log, stream = chain()
    log.info("unspeakable", password=PASSWORD)
    assert told(stream) == [{"event": "[masking failed]", "level": "info"}]


def test_a_masker_of_your_own_is_used_and_another_thing_refused():
    log, stream = chain(masker=Masker(keys=["badge"]))
    log.info("x", badge="b")
    assert told(stream) == [{"event": "x", "badge": "***"}]
    with pytest.raises(ConfigurationError, match="masker"):
        mask_event("x")
