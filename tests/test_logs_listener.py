from __future__ import annotations

import io
import json
import logging

import pytest

from reliakit.core import events
from reliakit.core.context import request_context
from reliakit.core.spine import Emitter, subscribe
from reliakit.logs import configure_logging
from reliakit.testing import ManualClock

TRANSACTION = {
    "service": "svc",
    "operation": "transfer",
    "attempt": 1,
    "duration": 0.5,
    "wait": 0.1,
    "statements": 3,
    "rows": 2,
}


class Told:
    def __init__(self):
        self.stream = io.StringIO()
        self.clock = ManualClock()
        self.emitter = Emitter("main", clock=self.clock)

    def lines(self):
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def __call__(self, kind, **fields):
        self.emitter.emit(kind, **fields)
        return self.lines()[-1]


@pytest.fixture
def told():
    told = Told()
    with configure_logging(service="svc", env="x", level="DEBUG", stream=told.stream):
        yield told


@pytest.mark.parametrize(
    ("status", "level"),
    [("commit", "DEBUG"), ("rollback", "WARNING"), ("timeout", "WARNING"), ("unknown", "ERROR"), ("retry", "INFO")],
)
def test_the_end_of_a_transaction_is_told_at_its_level(told, status, level):
    line = told(
        events.TransactionEnded, status=status, sqlstate="40001", error_type="SerializationFailure", **TRANSACTION
    )
    assert (line["level"], line["logger"]) == (level, "reliakit.transaction")
    assert line["context"] == {
        "database": "main",
        "operation": "transfer",
        "status": status,
        "attempt": 1,
        "duration": 0.5,
        "wait": 0.1,
        "statements": 3,
        "rows": 2,
        "sqlstate": "40001",
        "error_type": "SerializationFailure",
    }


def test_a_rollback_that_was_asked_for_is_no_warning(told):
    assert told(events.TransactionEnded, status="rollback", deliberate=True, **TRANSACTION)["level"] == "INFO"


@pytest.mark.parametrize(
    ("kind", "fields", "level"),
    [
        (
            events.CircuitChanged,
            {"previous": "closed", "state": "open", "cause": "failures", "retry_after": 5.0},
            "WARNING",
        ),
        (events.DeadlineOverrun, {"seconds": 1.0, "elapsed": 2.0}, "WARNING"),
        (events.StoreFailed, {"store": "redis", "reason": "timeout"}, "WARNING"),
        (events.StoreRecovered, {"store": "redis", "outage": 3.0}, "INFO"),
        (events.CheckoutOverdue, {"age": 61.0, "line": "app.py:7"}, "WARNING"),
        (events.ConnectionLeaked, {"reason": "abandoned"}, "ERROR"),
    ],
)
def test_events_become_records_with_their_fields(told, kind, fields, level):
    line = told(kind, **fields)
    assert line["level"] == level
    assert fields.items() <= line["context"].items()


def test_the_end_of_a_request_is_the_access_record(told):
    with request_context(request_id="r1"):
        line = told(
            events.RequestEnded,
            service="svc",
            method="GET",
            route="/orders/{id}",
            status=200,
            outcome="completed",
            duration=0.25,
            request_id="r2",
            response_bytes=10,
            client="203.0.113.9",
        )
    assert (line["level"], line["logger"], line["request_id"]) == ("INFO", "reliakit.access", "r2")
    assert line["context"] == {
        "method": "GET",
        "route": "/orders/{id}",
        "status": 200,
        "duration": 0.25,
        "outcome": "completed",
    }


def test_security_events_are_told_and_masked(told):
    line = told(
        events.SecurityNoticed,
        event="failed_login",
        source="203.0.113.9",
        service="svc",
        fields={"account": "bob@example.com", "password": "x9", "event": "other"},
    )
    assert line["level"] == "WARNING"
    assert line["context"] == {
        "account": "***",
        "password": "***",
        "event": "failed_login",
        "source": "203.0.113.9",
    }


def test_a_failed_hook_is_told_with_its_error(told):
    line = told(events.HookFailed, operation="transfer", hook="notify", error=ValueError("password=x9"))
    assert line["level"] == "ERROR"
    assert line["error"]["message"] == "password=***"


def decide(told, **fields):
    told.emitter.emit(
        events.LimitDecided,
        **{
            "key": "bob",
            "allowed": False,
            "denied": True,
            "enforced": True,
            "degraded": False,
            "cost": 1,
            "retry_after": 2.0,
            **fields,
        },
    )


def test_denials_are_told_without_their_key_and_without_a_flood(told):
    for _ in range(1000):
        decide(told)
    told.clock.advance(9.9)
    decide(told)
    assert len(told.lines()) == 1
    told.clock.advance(0.2)
    decide(told)
    first, second = told.lines()
    assert first["level"] == "WARNING"
    assert (first["context"]["denials"], second["context"]["denials"]) == (1, 1001)
    assert "bob" not in told.stream.getvalue()


def test_allowed_calls_are_not_told_and_shadow_denials_say_so(told):
    decide(told, denied=False, allowed=True)
    assert told.lines() == []
    decide(told, enforced=False, allowed=True)
    assert told.lines()[0]["message"] == "rate limit would have been reached"


def test_denials_of_very_many_limiters_stay_bounded(told):
    for number in range(2000):
        emitter = Emitter(f"limiter {number}", clock=told.clock)
        emitter.emit(
            events.LimitDecided,
            key="k",
            allowed=False,
            denied=True,
            enforced=True,
            degraded=False,
            cost=1,
            retry_after=1.0,
        )
    assert len(told.lines()) == 2000


def test_events_below_the_level_are_not_written():
    stream = io.StringIO()
    with configure_logging(service="svc", level="INFO", stream=stream):
        Emitter("main").emit(events.TransactionEnded, status="commit", **TRANSACTION)
    assert stream.getvalue() == ""


def test_the_listener_ends_with_the_handle():
    stream = io.StringIO()
    configure_logging(service="svc", stream=stream).close()
    emitter = Emitter("main")
    assert not emitter.hears(events.CircuitChanged)
    emitter.emit(events.ConnectionLeaked, reason="x")
    assert stream.getvalue() == ""


def test_configuring_twice_tells_each_event_once(told):
    stream = io.StringIO()
    with configure_logging(service="svc", stream=stream):
        told.emitter.emit(events.ConnectionLeaked, reason="x")
    assert len(stream.getvalue().splitlines()) == 1
    assert told.lines() == []


def test_records_made_of_events_make_no_events(told):
    seen = []
    with subscribe(seen.append, events.SecretsMasked, events.ErrorSeen):
        told(events.HookFailed, operation="x", hook="password=x9", error=ValueError("x"))
    assert seen == []


def test_levels_of_single_areas_can_be_set(told):
    logger = logging.getLogger("reliakit.transaction")
    logger.setLevel(logging.ERROR)
    try:
        told.emitter.emit(events.TransactionEnded, status="rollback", **TRANSACTION)
    finally:
        logger.setLevel(logging.NOTSET)
    assert told.lines() == []
