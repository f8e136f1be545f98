"""Handlers that are not ours, behind the filter: nothing secret may reach them."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import pickle
import queue
import sys

import pytest
from masker_cases import PASSWORD, Account
from pythonjsonlogger.json import JsonFormatter

from reliakit.core.errors import ConfigurationError
from reliakit.logs import Masker, MaskingFilter, configure_logging, get_logger
from reliakit.logs import filter as filter_module

NAMED = f"password={PASSWORD}"


class Catcher(logging.Handler):
    """A handler that keeps what it is given, and everything that a formatter could make of it."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def logger(monkeypatch):
    # Pytest's own handlers raise for a record that cannot be shown.
    monkeypatch.setattr("_pytest.logging.LogCaptureHandler.emit", lambda self, record: None)
    logger = logging.getLogger("foreign")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    for existing in list(logger.filters):
        logger.removeFilter(existing)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def caught(logger):
    handler = Catcher()
    handler.addFilter(MaskingFilter())
    logger.addHandler(handler)
    yield handler.records
    for record in handler.records:
        everything = [repr(record.__dict__), record.getMessage(), logging.Formatter().format(record)]
        everything.append(JsonFormatter().format(record))
        everything.append(repr(pickle.loads(pickle.dumps(record)).__dict__))
        for text in everything:
            assert PASSWORD not in text
            assert "bob@example.com" not in text


def raised():
    try:
        try:
            raise KeyError(NAMED)
        except KeyError as first:
            first.add_note(f"note {NAMED}")
            raise RuntimeError(f"second {NAMED}") from first
    except RuntimeError as error:
        return error


def test_messages_arguments_and_extra_fields(logger, caught):
    logger.info("login %s", NAMED)
    logger.info("password %s for %s", PASSWORD, "bob@example.com")
    logger.info("payload %(password)s", {"password": PASSWORD})
    logger.info("x", extra={"password": PASSWORD, "deep": [{"note": NAMED}], "account": Account("bob", PASSWORD)})
    logger.info("x", extra={"bob@example.com": 1, "raw": b"password=" + PASSWORD.encode()})
    logger.info({"password": PASSWORD, "n": 1})
    logger.info(ValueError(NAMED))
    assert [record.getMessage() for record in caught[:2]] == ["login password=***", "password *** for ***"]
    assert caught[3].password == "***"
    assert caught[3].deep == [{"note": "password=***"}]
    assert caught[5].msg == {"password": "***", "n": 1}


def test_exceptions_become_masked_text_with_causes_and_notes(logger, caught):
    logger.error("x", exc_info=raised())
    [record] = caught
    assert record.exc_info is None
    text = logging.Formatter().format(record)
    assert "RuntimeError: second password=***" in text
    assert text.index("KeyError") < text.index("direct cause") < text.index("RuntimeError")
    assert "note password=***" in text
    assert "in raised" in text


def test_an_exception_text_that_another_handler_left_is_masked(logger, caught):
    first = logging.StreamHandler(io.StringIO())
    logger.handlers.insert(0, first)
    logger.error("x %s", NAMED, exc_info=raised(), stack_info=True)
    assert "password=***" in caught[0].exc_text
    assert getattr(caught[0], "message", "x password=***") == "x password=***"


def test_names_of_loggers_and_threads(logger, caught):
    logger.handle(logger.makeRecord(NAMED, logging.INFO, "f", 1, "x", (), None))
    assert caught[0].name == "password=***"


def test_arguments_that_do_not_fit_and_objects_that_cannot_be_shown(logger, caught):
    class Unshowable:
        def __str__(self):
            raise RuntimeError(NAMED)

        __repr__ = __str__

    logger.info("%d items", NAMED)
    logger.info(Unshowable())
    logger.info("%s", Unshowable(), extra={"x": Unshowable()})
    assert [record.getMessage() for record in caught] == ["%d items", "[unprintable Unshowable]", "%s"]


def test_a_fault_gives_a_record_that_says_so(logger, caught, monkeypatch):
    def fail(*args):
        raise RuntimeError(NAMED)

    monkeypatch.setattr(filter_module, "message_of", fail)
    logger.warning("unspeakable %s", NAMED, extra={"password": PASSWORD})
    [record] = caught
    assert record.getMessage() == "[masking failed]"
    assert record.levelname == "WARNING"
    assert "unspeakable" not in repr(record.__dict__)


def test_records_are_masked_before_they_enter_a_queue(logger):
    crossing: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(crossing)
    handler.addFilter(MaskingFilter())
    logger.addHandler(handler)
    logger.error("x %s", NAMED, exc_info=raised(), extra={"password": PASSWORD})
    record = crossing.get_nowait()
    assert PASSWORD not in repr(record.__dict__)
    assert "RuntimeError: second password=***" in record.getMessage()


def test_a_filter_on_a_logger_masks_for_every_handler_behind_it(logger):
    catchers = [Catcher(), Catcher()]
    for catcher in catchers:
        logger.addHandler(catcher)
    logger.addFilter(MaskingFilter())
    logger.info(NAMED)
    assert [catcher.records[0].getMessage() for catcher in catchers] == ["password=***"] * 2


def test_other_handlers_still_get_the_record_itself_where_python_lets_a_filter_replace_it(logger):
    masked, raw = Catcher(), Catcher()
    masked.addFilter(MaskingFilter())
    logger.addHandler(masked)
    logger.addHandler(raw)
    logger.info(NAMED)
    assert masked.records[0].getMessage() == "password=***"
    assert raw.records[0].getMessage() == (NAMED if sys.version_info >= (3, 12) else "password=***")


def test_our_own_handler_still_knows_the_exception_of_a_record_that_was_masked_before(logger):
    stream = io.StringIO()
    # Not handlers[0]: pytest's own may stand there, and would keep the filter.
    masked = Catcher()
    masked.addFilter(MaskingFilter())
    logger.handlers.insert(0, masked)
    logger.propagate = True
    with configure_logging(service="svc", env="test", level="DEBUG", stream=stream):
        logger.error("x %s", NAMED, exc_info=raised(), extra={"password": PASSWORD})
        get_logger("foreign").error("y", error=raised(), password=PASSWORD)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert PASSWORD not in stream.getvalue()
    assert first["error"]["type"] == second["error"]["type"] == "RuntimeError"
    assert first["error"]["causes"][0]["type"] == "KeyError"
    assert first["message"] == "x password=***"
    assert second["context"] == {"password": "***"}


def test_a_masker_of_your_own_is_used_and_another_thing_refused(logger):
    catcher = Catcher()
    masker = Masker(keys=["badge"])
    catcher.addFilter(MaskingFilter(masker))
    logger.addHandler(catcher)
    logger.info("x", extra={"badge": "b", "_logger": logger})
    assert catcher.records[0].badge == "***"
    assert catcher.records[0]._logger is logger
    assert "badge" in repr(catcher.filters[0])
    with pytest.raises(ConfigurationError, match="masker"):
        MaskingFilter("x")
