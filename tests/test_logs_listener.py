from __future__ import annotations

import io
import json
import logging
from wsgiref.util import setup_testing_defaults

import pytest

from reliakit import (
    CircuitBreaker,
    Database,
    Decision,
    ErrorTracker,
    Metrics,
    RateLimiter,
    configure_logging,
    deadline,
    get_logger,
    request_context,
    subscribe,
)
from reliakit.core import events
from reliakit.core.spine import Emitter
from reliakit.core.tracking import report
from reliakit.testing import ManualClock
from reliakit.web.wsgi import protect

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
        (
            events.RetryEnded,
            {"outcome": "failure", "reason": "attempts", "attempts": 3, "duration": 1.5, "error_type": "Oops"},
            "WARNING",
        ),
        (events.RetryEnded, {"outcome": "success", "reason": "success", "attempts": 2, "duration": 0.5}, "INFO"),
        (events.CallTimedOut, {"seconds": 2.0}, "WARNING"),
        (events.FallbackUsed, {"error_type": "Oops"}, "WARNING"),
        (events.LimitMoved, {"previous": 20, "limit": 19}, "DEBUG"),
        (events.HedgeEnded, {"copies": 2, "winner": 2, "failed": 0, "duration": 0.5}, "DEBUG"),
        (events.StoreFailed, {"store": "redis", "reason": "timeout"}, "WARNING"),
        (events.StoreRecovered, {"store": "redis", "outage": 3.0}, "INFO"),
        (events.CheckoutOverdue, {"age": 61.0, "line": "app.py:7"}, "WARNING"),
        (events.ConnectionLeaked, {"reason": "abandoned"}, "ERROR"),
        (
            events.OutboxFailed,
            {"message_id": 7, "topic": "mail", "attempt": 2, "delay": 1.5, "error_type": "Oops"},
            "WARNING",
        ),
        (
            events.OutboxFailed,
            {"message_id": 7, "topic": "mail", "attempt": 9, "delay": None, "error_type": "Oops"},
            "ERROR",
        ),
        (events.ReplicaFailed, {"operation": "report", "error_type": "Oops", "sqlstate": "57P03"}, "WARNING"),
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
        events.LimitDenied,
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


def test_a_flood_of_fallbacks_and_timeouts_is_told_in_numbers(told):
    prices = Emitter("prices", clock=told.clock)
    for _ in range(1000):
        told.emitter.emit(events.FallbackUsed, error_type="Oops")
        told.emitter.emit(events.CallTimedOut, seconds=2.0)
        prices.emit(events.FallbackUsed, error_type="Oops")
    assert len(told.lines()) == 3
    told.clock.advance(10)
    told.emitter.emit(events.FallbackUsed, error_type="Oops")
    *_, timeouts, prices_told, last = told.lines()
    assert last["context"]["left_out"] == 999
    assert timeouts["context"] == {"event": "CallTimedOut", "name": "main", "calls": 999}
    assert prices_told["context"] == {"event": "FallbackUsed", "name": "prices", "calls": 999}


def test_allowed_calls_are_not_told_and_shadow_denials_say_so(told):
    decide(told, denied=False, allowed=True)
    assert told.lines() == []
    decide(told, enforced=False, allowed=True)
    assert told.lines()[0]["message"] == "rate limit would have been reached"


def test_denials_of_very_many_limiters_stay_bounded(told):
    for number in range(2000):
        emitter = Emitter(f"limiter {number}", clock=told.clock)
        emitter.emit(
            events.LimitDenied,
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


# Boundaries, recoveries and errors that end


def test_the_beginning_of_a_transaction_is_told_for_who_looks_closely(told):
    line = told(
        events.TransactionStarted,
        service="svc",
        operation="transfer",
        attempt=2,
        isolation="repeatable read",
        read_only=False,
    )
    assert (line["level"], line["logger"], line["message"]) == ("DEBUG", "reliakit.transaction", "transaction began")
    assert line["context"] == {
        "database": "main",
        "operation": "transfer",
        "attempt": 2,
        "isolation": "repeatable read",
        "read_only": False,
    }


def test_a_real_transaction_is_told_at_both_ends_once(told, reliakit_dsn):
    with Database(reliakit_dsn, name="shop") as db:
        db.execute("CREATE TABLE told (id int)")
        with db.transaction(operation="transfer") as tx:
            tx.execute("INSERT INTO told VALUES (1)")
        with pytest.raises(LookupError), db.transaction(operation="transfer"):
            raise LookupError
    ends = [line for line in told.lines() if line["context"].get("operation") == "transfer"]
    assert [(line["level"], line["message"]) for line in ends] == [
        ("DEBUG", "transaction began"),
        ("DEBUG", "transaction committed"),
        ("DEBUG", "transaction began"),
        ("WARNING", "transaction rolled back"),
    ]


@pytest.mark.parametrize(
    ("state", "level"),
    [
        ("open", "WARNING"),
        ("forced_open", "WARNING"),
        ("disabled", "WARNING"),
        ("half_open", "INFO"),
        ("closed", "INFO"),
    ],
)
def test_a_circuit_that_recovers_is_no_warning(told, state, level):
    assert told(events.CircuitChanged, previous="x", state=state, cause="c")["level"] == level


def test_a_real_breaker_s_moves_are_told_once_each(told):
    breaker = CircuitBreaker("mail", failure_threshold=1, reset_timeout=5.0, clock=told.clock)
    with pytest.raises(OSError, match="down"), breaker:
        raise OSError("down")
    told.clock.advance(5)
    with breaker:
        pass
    moves = [line["context"]["state"] for line in told.lines() if line["logger"] == "reliakit.breaker"]
    assert moves == ["open", "half_open", "closed"]


def test_a_deadline_that_was_overrun_is_told_once(told):
    clock = ManualClock()
    with deadline(1.0, clock=clock):
        clock.advance(2.0)
    lines = [line for line in told.lines() if line["logger"] == "reliakit.deadline"]
    assert [(line["level"], line["context"]["elapsed"]) for line in lines] == [("WARNING", 2.0)]


def test_errors_that_open_come_back_and_are_resolved_are_told(told):
    with ErrorTracker(clock=told.clock, quiet=60) as tracker:
        for _ in range(2):
            report(told.emitter, ValueError("password=x9"))
        told.clock.advance(60)
        report(told.emitter, ValueError("password=x9"))
        tracker.resolve(tracker.snapshot()[0].fingerprint)
    lines = [line for line in told.lines() if line["logger"] == "reliakit.errors"]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("INFO", "error of a new kind"),
        ("INFO", "error resolved"),
        ("WARNING", "error came back"),
        ("INFO", "error resolved"),
    ]
    assert lines[1]["context"]["seconds"] == 60.0


# Floods


def notice(told, event="failed_login", source="203.0.113.9", **fields):
    told.emitter.emit(events.SecurityNoticed, event=event, source=source, fields=fields)


def security(told):
    return [line for line in told.lines() if line["logger"] == "reliakit.security"]


def test_a_flood_from_one_source_is_told_in_numbers(told):
    for _ in range(1000):
        notice(told)
    assert len(security(told)) == 5
    told.clock.advance(10)
    notice(told, source="198.51.100.7")
    *_, left_out, last = security(told)
    assert left_out["message"] == "security events left out"
    assert left_out["context"] == {"event": "failed_login", "source": "203.0.113.9", "events": 995}
    assert last["context"]["source"] == "198.51.100.7"


def test_a_flood_from_many_sources_is_told_in_numbers(told):
    for number in range(1000):
        notice(told, source=f"203.0.113.{number}")
    assert len(security(told)) == 50
    told.clock.advance(10)
    notice(told, event="invalid_token")
    assert {"event": "failed_login", "events": 950} in [line["context"] for line in security(told)]


def test_a_flood_does_not_hide_what_others_do(told):
    for _ in range(1000):
        notice(told)
    notice(told, source="198.51.100.7")
    notice(told, event="invalid_token")
    told_of = [(line["context"]["event"], line["context"]["source"]) for line in security(told)]
    assert told_of[5:] == [("failed_login", "198.51.100.7"), ("invalid_token", "203.0.113.9")]


def test_what_was_held_back_is_told_at_the_end():
    stream = io.StringIO()
    told = Told()
    with configure_logging(service="svc", level="INFO", stream=stream):
        for _ in range(8):
            notice(told)
            decide(told)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    late = [
        line["context"]
        for line in lines
        if line["message"] in {"security events left out", "rate limit reached, told late"}
    ]
    assert late == [
        {"limiter": "main", "denials": 7},
        {"event": "failed_login", "source": "203.0.113.9", "events": 3},
    ]
    assert "security events left out" not in told.stream.getvalue()


def test_denials_of_a_limiter_that_falls_silent_are_told_with_the_next(told):
    for _ in range(3):
        decide(told)
    told.clock.advance(10)
    other = Emitter("other", clock=told.clock)
    other.emit(
        events.LimitDenied,
        key="k",
        allowed=False,
        denied=True,
        enforced=True,
        degraded=False,
        cost=1,
        retry_after=1.0,
    )
    assert {"limiter": "main", "denials": 2} in [line["context"] for line in told.lines()]


class Foreign:
    """A limiter of somebody else's, which emits nothing."""

    name = "foreign"

    def hit(self, key):
        return Decision(allowed=False, limit=1, remaining=0, retry_after=1.0, reset_after=1.0, degraded=False)

    async def ahit(self, key):
        return self.hit(key)


@pytest.mark.parametrize(
    ("limiter", "logger"),
    [(RateLimiter("1/min", name="edge"), "reliakit.ratelimit"), (Foreign(), "reliakit.security")],
)
def test_a_refusal_at_the_web_edge_is_told_once(told, limiter, logger):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b""]

    served = protect(app, service="svc", limiter=limiter)
    for _ in range(3):
        environ = {"REMOTE_ADDR": "203.0.113.9"}
        setup_testing_defaults(environ)
        body = served(environ, lambda *_: lambda _: None)
        list(body)
        body.close()
    warned = [line for line in told.lines() if line["level"] == "WARNING"]
    assert {line["logger"] for line in warned} == {logger}
    if isinstance(limiter, RateLimiter):
        assert len(warned) == 1


# One call for all who count


def test_a_security_event_is_one_call_for_metrics_and_log(told):
    with Metrics() as metrics:
        for _ in range(6):
            get_logger("auth").bind(flow="sso").security(
                "failed_login", source="203.0.113.9", account="bob@example.com"
            )
        body = metrics.render().body.decode()
    counted = [line for line in body.splitlines() if line.startswith('reliakit_security_total{event="failed_login"')]
    assert sum(float(line.rpartition(" ")[2]) for line in counted) == 6
    assert len(security(told)) == 5
    assert security(told)[0]["context"] == {
        "flow": "sso",
        "account": "***",
        "event": "failed_login",
        "source": "203.0.113.9",
    }


def test_a_security_event_that_nobody_hears_costs_nothing():
    get_logger("auth").security("failed_login", source=None)
