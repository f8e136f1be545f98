"""What reliakit's components tell becomes numbers: real events through the real spine."""

from __future__ import annotations

import gc
import io
import itertools
import threading

import pytest
from amid import amid
from garbage import in_time
from prometheus_client.parser import text_string_to_metric_families

from reliakit import configure_logging, get_logger, subscribe
from reliakit.core import events as vocabulary
from reliakit.core.events import (
    AttemptFailed,
    CallCoalesced,
    CallEnded,
    CallRejected,
    CallTimedOut,
    CallWaited,
    CheckoutOverdue,
    CircuitChanged,
    CircuitFigures,
    CircuitPresent,
    CircuitSpared,
    ConnectionLeaked,
    DeadlineOverrun,
    ErrorOpened,
    ErrorSeen,
    Event,
    FallbackUsed,
    HedgeEnded,
    HookFailed,
    LimitDecided,
    LimitMoved,
    LogDropped,
    OutboxFailed,
    OutboxRelayed,
    PoolWaited,
    RequestEnded,
    RequestStarted,
    RetryEnded,
    SecretsMasked,
    SecurityNoticed,
    StoreFailed,
    StoreRecovered,
    TransactionEnded,
    TransactionStarted,
    ValidationFailed,
    WebsocketClosed,
    WebsocketOpened,
    WebsocketPassed,
)
from reliakit.core.spine import Emitter
from reliakit.core.tracking import report
from reliakit.metrics import Metrics
from reliakit.metrics.exposition import pieces
from reliakit.metrics.readings import Readings
from reliakit.resilience.breaker import CircuitBreaker
from reliakit.testing import ManualClock


@pytest.fixture
def metrics():
    with Metrics(clock=ManualClock()) as attached:
        yield attached


def value(metrics, name, /, **labels):
    """Return the sample with exactly these labels, or None; names go without the namespace."""
    for family in text_string_to_metric_families(metrics.render().body.decode()):
        for sample in family.samples:
            if sample.name == f"reliakit_{name}" and sample.labels == labels:
                return sample.value
    return None


def verdict(metrics, name):
    return next(found for found in metrics.slo() if found.objective == name)


def ended(emitter, status="commit", **fields):
    settings = {
        "service": "auth",
        "operation": "login",
        "attempt": 1,
        "duration": 0.01,
        "wait": 0.0,
        "statements": 1,
        "rows": 1,
    }
    emitter.emit(TransactionEnded, **{**settings, "status": status, **fields})


def started(emitter, **fields):
    settings = {
        "service": "auth",
        "operation": "login",
        "attempt": 1,
        "isolation": "serializable",
        "read_only": False,
    }
    emitter.emit(TransactionStarted, **{**settings, **fields})


LOGIN = {"service": "auth", "operation": "login"}


class TestTransactions:
    def test_each_attempt_is_counted_and_timed_by_its_status(self, metrics):
        db = Emitter("main")
        for status in ("commit", "commit", "rollback", "timeout", "unknown", "retry"):
            ended(db, status)
        expected = {"commit": 2, "rollback": 1, "timeout": 1, "unknown": 1, "retry": 1}
        for status, times in expected.items():
            assert value(metrics, "transaction_total", **LOGIN, status=status) == times
            assert value(metrics, "transaction_duration_seconds_count", **LOGIN, status=status) == times

    def test_every_status_exists_before_its_first_outcome(self, metrics):
        started(Emitter("main"))
        for status in ("commit", "rollback", "timeout", "unknown", "retry"):
            assert value(metrics, "transaction_total", **LOGIN, status=status) == 0
        assert value(metrics, "transaction_deliberate_rollbacks_total", **LOGIN) == 0
        assert value(metrics, "transaction_retries_total", **LOGIN, reason="deadlock") == 0
        for name in ("db_pool_leaked_connections_total", "db_pool_timeouts_total", "db_replica_fallbacks_total"):
            assert value(metrics, name, pool="main") == 0

    def test_open_transactions_are_those_begun_and_not_ended(self, metrics):
        db = Emitter("main")
        for _ in range(3):
            started(db)
        assert value(metrics, "transaction_in_progress", **LOGIN) == 3
        ended(db)
        ended(db, "rollback", began=False)
        assert value(metrics, "transaction_in_progress", **LOGIN) == 2
        for _ in range(5):
            ended(db)
        assert value(metrics, "transaction_in_progress", **LOGIN) == 0
        started(db)
        assert value(metrics, "transaction_in_progress", **LOGIN) == 1

    def test_open_transactions_are_exact_under_threads(self, metrics):
        db = Emitter("main")

        def work(number):
            for _ in range(200):
                started(db, operation=f"o{number % 2}")
                ended(db, operation=f"o{number % 2}")
            started(db, operation="o0")

        crowd = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert value(metrics, "transaction_in_progress", service="auth", operation="o0") == 8
        assert value(metrics, "transaction_in_progress", service="auth", operation="o1") == 0

    def test_endless_operations_share_one_count_of_open_ones(self, metrics):
        db = Emitter("main")
        for number in range(3000):
            started(db, operation=f"op-{number}")
        shown = list(metrics._shelf.gauge("transaction_in_progress").series)
        assert sum(series.get() for series in shown) == 3000
        assert len(shown) <= 1000
        for number in range(3000):
            ended(db, operation=f"op-{number}")
        assert {series.get() for series in shown} == {0}

    def test_retries_and_database_errors_are_told_apart(self, metrics):
        db = Emitter("main")
        ended(db, "retry", sqlstate="40001")
        ended(db, "retry", sqlstate="40P01")
        ended(db, "retry", sqlstate="57P01")
        ended(db, "retry")
        ended(db, "retry", sqlstate="55P03")
        ended(db, "rollback", sqlstate="23505")
        ended(db, "rollback", sqlstate="42P01")
        for reason, times in {"serialization": 1, "deadlock": 1, "connection": 2, "other": 1}.items():
            assert value(metrics, "transaction_retries_total", **LOGIN, reason=reason) == times
        for state in ("40001", "40P01", "57xxx", "55xxx", "23505", "42xxx"):
            assert value(metrics, "db_errors_total", sqlstate=state) == 1

    def test_an_outbox_counts_what_it_hands_over_and_what_fails(self, metrics):
        outbox = Emitter("mail")
        outbox.emit(OutboxRelayed, count=3, lag=0.5)
        assert value(metrics, "outbox_failures_total", outbox="mail", outcome="dead") == 0
        for delay in (1.0, 2.0, None):
            outbox.emit(OutboxFailed, message_id=1, topic="t", attempt=1, delay=delay, error_type="Oops")
        assert value(metrics, "outbox_relayed_total", outbox="mail") == 3
        assert value(metrics, "outbox_lag_seconds_sum", outbox="mail") == 0.5
        assert value(metrics, "outbox_failures_total", outbox="mail", outcome="retried") == 2
        assert value(metrics, "outbox_failures_total", outbox="mail", outcome="dead") == 1

    def test_only_a_deadlock_that_reached_the_caller_breaches(self, metrics):
        db = Emitter("main")
        for _ in range(100):
            ended(db)
            ended(db, "retry", sqlstate="40P01")
        assert verdict(metrics, "deadlocks").verdict == "met"
        ended(db, "rollback", sqlstate="40P01")
        found = verdict(metrics, "deadlocks")
        assert (found.verdict, found.value, found.target) == ("breached", 1, 0)

    def test_no_scrape_shows_a_retried_deadlock_as_one_that_reached_the_caller(self):
        metrics = Metrics()
        db = Emitter("main", [metrics])
        names = {"reliakit_db_errors_total": "40P01", "reliakit_transaction_retries_total": "deadlock"}

        def shown(families):
            text = "".join(pieces(families, openmetrics=False))
            samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
            return {one.name: one.value for one in samples if names[one.name] in one.labels.values()}

        families = [one for one in metrics.families() if one.name in names]
        for split in range(3):
            before = shown(families[:split])
            ended(db, "retry", sqlstate="40P01")
            errors, retries = ({**shown(families[split:]), **before}[name] for name in names)
            assert errors <= retries

    def test_the_rollback_rate_judges_what_nobody_asked_for(self, metrics):
        db = Emitter("main")
        for _ in range(400):
            ended(db)
            ended(db, "rollback", deliberate=True)
            ended(db, "retry", sqlstate="40001")
        found = verdict(metrics, "rollback_rate")
        assert (found.verdict, found.value, found.count) == ("met", 0.0, 400)
        for _ in range(40):
            ended(db, "rollback")
        found = verdict(metrics, "rollback_rate")
        assert (found.verdict, found.count) == ("breached", 440)
        assert found.value == pytest.approx(40 / 440)

    def test_latency_is_judged_by_attempts(self, metrics):
        db = Emitter("main")
        for _ in range(100):
            ended(db, duration=0.1)
        assert verdict(metrics, "transaction_latency").verdict == "met"
        for _ in range(100):
            ended(db, duration=0.2)
        found = verdict(metrics, "transaction_latency")
        assert (found.verdict, found.value, found.count) == ("breached", 0.5, 200)

    def test_pools_are_watched(self, metrics):
        pool = Emitter("main")
        pool.emit(PoolWaited, wait=0.03, granted=True)
        pool.emit(PoolWaited, wait=5.0, granted=False)
        assert value(metrics, "db_pool_wait_seconds_count", pool="main") == 2
        assert value(metrics, "db_pool_timeouts_total", pool="main") == 1
        assert value(metrics, "db_pool_overdue_checkouts_total", pool="main") == 0
        pool.emit(CheckoutOverdue, age=61.0, line="app.py:3")
        assert value(metrics, "db_pool_overdue_checkouts_total", pool="main") == 1
        assert verdict(metrics, "leaked_connections").verdict == "insufficient_data"
        pool.emit(ConnectionLeaked, reason="thread died")
        assert value(metrics, "db_pool_leaked_connections_total", pool="main") == 1
        assert verdict(metrics, "leaked_connections").verdict == "breached"


class TestResilience:
    # Names of its own: breakers and limiters that other tests have left alive are shown, too.

    def test_a_real_breaker_shows_its_state_calls_and_transitions(self, metrics):
        breaker = CircuitBreaker("fed db", failure_threshold=2, clock=ManualClock())

        def fail():
            raise OSError("down")

        breaker.call(int)
        for _ in range(2):
            with pytest.raises(OSError, match="down"):
                breaker.call(fail)
        with pytest.raises(Exception, match="open"):
            breaker.call(int)
        for outcome, times in {"success": 1, "failure": 2, "rejected": 1, "ignored": 0}.items():
            assert value(metrics, "circuit_breaker_calls_total", name="fed db", outcome=outcome) == times
        assert value(metrics, "circuit_breaker_state", name="fed db", state="open") == 1
        assert value(metrics, "circuit_breaker_state", name="fed db", state="closed") == 0
        assert (
            value(metrics, "circuit_breaker_transitions_total", name="fed db", **{"from": "closed", "to": "open"})
            == 1
        )
        assert value(metrics, "calls_rejected_total", name="fed db", reason="CircuitOpenError") == 1
        assert value(metrics, "error_total", type="OSError", status="resource") is None
        assert value(metrics, "error_total", type="OSError", service="", status="resource") == 2

    def test_only_one_state_is_shown_at_a_time(self, metrics):
        # Other tests' breakers may still be there, and are shown too.
        breaker, states = Emitter("shown alone"), ("closed", "open", "half_open")
        for previous, state in (("closed", "open"), ("open", "half_open"), ("half_open", "closed")):
            breaker.emit(CircuitChanged, previous=previous, state=state, cause="x")
            shown = {
                each for each in states if value(metrics, "circuit_breaker_state", name=breaker.name, state=each)
            }
            assert shown == {state}

    def test_a_breaker_that_made_itself_known_is_read_and_not_told(self, metrics):
        figures = [CircuitFigures("closed", 7, 0, 0)]
        breaker = Emitter("fed db")
        outcomes = lambda: [  # noqa: E731 - three lines of it
            value(metrics, "circuit_breaker_calls_total", name="fed db", outcome=outcome)
            for outcome in ("success", "failure", "ignored")
        ]

        def read():
            return figures[0]

        for _ in range(2):
            breaker.emit(CircuitPresent, read=read)
        assert outcomes() == [0, 0, 0]  # what was before is not ours
        figures[0] = CircuitFigures("open", 17, 5, 2, failure_ratio=0.25)
        breaker.emit(CallEnded, verdict="success", duration=0.5)
        assert outcomes() == [10, 5, 2]
        assert value(metrics, "circuit_breaker_state", name="fed db", state="open") == 1
        assert value(metrics, "circuit_breaker_state", name="fed db", state="closed") == 0
        assert value(metrics, "circuit_breaker_failure_ratio", name="fed db") == 0.25
        figures[0] = CircuitFigures("open", 18, 5, 2, is_gone=True)
        assert outcomes() == [11, 5, 2]
        assert value(metrics, "circuit_breaker_state", name="fed db", state="open") == 0
        figures[0] = CircuitFigures("open", 99, 5, 2)
        assert outcomes() == [11, 5, 2]

    @pytest.mark.parametrize("how", ["close", "subscription"])
    def test_what_a_breaker_counts_while_nobody_is_attached_is_not_ours(self, how):
        metrics = Metrics()
        figures = [CircuitFigures("closed", 0, 0, 0)]
        calls = lambda: value(metrics, "circuit_breaker_calls_total", name="fed db", outcome="success")  # noqa: E731

        def read():
            return figures[0]

        subscription = metrics.attach()
        Emitter("fed db").emit(CircuitPresent, read=read)
        figures[0] = CircuitFigures("closed", 3, 0, 0)
        (metrics if how == "close" else subscription).close()
        figures[0] = CircuitFigures("closed", 50, 0, 0)
        assert calls() == 3
        with metrics:
            Emitter("fed db").emit(CircuitPresent, read=read)
            figures[0] = CircuitFigures("closed", 52, 0, 0)
            assert calls() == 5

    def test_breakers_that_are_gone_make_room_though_nobody_looks(self, monkeypatch):
        # On its own: the metrics of the process also follow the breakers that other tests have left alive.
        monkeypatch.setattr("reliakit.metrics.readings._MOST", 3)
        counts, counted = [0] * 8, []
        readings = Readings(lambda name, now, last: counted.append(now.success - last.success))
        for number in range(8):
            figures = lambda number=number: CircuitFigures(  # noqa: E731 - as a breaker's would be
                "closed", counts[number], 0, 0, is_gone=number < 7 and counts[number] > 0
            )
            assert readings.follow("fed db", figures)
            counts[number] += 1
        readings.refresh()
        assert sum(counted) == 8

    def test_a_name_is_followed_until_the_last_of_that_name_is_gone(self):
        gone = set()
        readings = Readings(lambda name, now, last: None)

        def component(number):
            return lambda: CircuitFigures("closed", 0, 0, 0, is_gone=number in gone)

        for number, name in enumerate(("fed db", "fed db", "fed mail")):
            readings.follow(name, component(number))
        for number, names in ((0, {"fed db", "fed mail"}), (2, {"fed db"}), (1, set())):
            gone.add(number)
            readings.refresh()
            assert {name for name in ("fed db", "fed mail") if readings.follows(name)} == names
        readings.follow("fed db", component(3))
        assert readings.follows("fed db")
        readings.leave()
        assert not readings.follows("fed db")

    def test_what_makes_itself_known_while_the_others_are_looked_at_disturbs_nobody(self):
        figures = CircuitFigures("closed", 1, 0, 0)
        readings = Readings(lambda name, now, last: None)

        late = itertools.count()

        def follow_another(_phase, _info):
            readings.follow(f"fed late {next(late)}", lambda: figures)

        for number in range(200):
            readings.follow(f"fed {number}", lambda: figures)
        before = gc.get_threshold()
        gc.callbacks.append(follow_another)
        gc.set_threshold(2)  # before 3.12 any allocation may collect, those of the look itself too
        try:
            assert len(readings.refresh()) >= 200
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(follow_another)

    def test_other_guards_rejections_are_no_breaker_calls(self, metrics):
        Emitter("fed pool").emit(CallRejected, reason="BulkheadFullError")
        assert value(metrics, "calls_rejected_total", name="fed pool", reason="BulkheadFullError") == 1
        assert value(metrics, "circuit_breaker_calls_total", name="fed pool", outcome="rejected") is None

    def test_calls_with_a_duration_are_timed_for_who_asks_for_it(self, metrics):
        assert not Emitter("fed db").hears(CallEnded)
        with subscribe(metrics, CallEnded):
            Emitter("fed db").emit(CallEnded, verdict="success", duration=0.2)
        assert value(metrics, "circuit_breaker_call_duration_seconds_sum", name="fed db") == 0.2

    def test_attempts_decisions_and_stores_are_counted(self, metrics):
        Emitter("fed http").emit(AttemptFailed, attempt=1, delay=0.5, error_type="OSError")
        assert value(metrics, "retry_attempts_total", name="fed http", outcome="retried") == 1
        limiter = Emitter("fed search")
        for allowed, denied, degraded in ((True, False, False), (False, True, False), (True, True, True)):
            with subscribe(metrics, LimitDecided):
                limiter.emit(
                    LimitDecided,
                    key="k",
                    allowed=allowed,
                    denied=denied,
                    enforced=not (allowed and denied),
                    degraded=degraded,
                    cost=1,
                    retry_after=0.0,
                )
        for decision in ("allowed", "limited", "shadow"):
            assert value(metrics, "rate_limit_decisions_total", limiter="fed search", decision=decision) == 1
        assert value(metrics, "rate_limit_degraded_total", limiter="fed search") == 1
        limiter.emit(StoreFailed, store="redis", reason="timeout")
        assert value(metrics, "store_failures_total", store="redis") == 1
        assert value(metrics, "store_up", store="redis") == 0
        limiter.emit(StoreRecovered, store="redis", outage=2.0)
        assert value(metrics, "store_up", store="redis") == 1

    def test_what_becomes_of_guarded_calls_is_counted(self, metrics):
        mail = Emitter("fed mail")
        mail.emit(RetryEnded, outcome="failure", reason="deadline", attempts=3, duration=1.0)
        assert value(metrics, "retry_attempts_total", name="fed mail", outcome="failure") == 1
        assert value(metrics, "retry_ended_total", name="fed mail", reason="deadline") == 1
        mail.emit(CircuitSpared, cause="x")
        assert value(metrics, "circuit_breaker_spared_total", name="fed mail") == 1
        mail.emit(CallTimedOut, seconds=2.0)
        mail.emit(FallbackUsed, error_type="OSError")
        mail.emit(CallCoalesced, wait=0.1)
        for name in ("call_timeouts_total", "call_fallbacks_total", "call_coalesced_total"):
            assert value(metrics, name, name="fed mail") == 1
        mail.emit(CallWaited, wait=0.5, granted=False)
        assert value(metrics, "call_wait_seconds_sum", name="fed mail", outcome="refused") == 0.5
        for winner in (1, 2, 3, None):
            mail.emit(HedgeEnded, copies=2, winner=winner, failed=0, duration=0.1)
        for winner, times in {"first": 1, "later": 2, "none": 1}.items():
            assert value(metrics, "hedge_calls_total", name="fed mail", winner=winner) == times
        assert value(metrics, "hedge_copies_total", name="fed mail") == 8
        mail.emit(LimitMoved, previous=10, limit=12)
        assert value(metrics, "adaptive_limit", name="fed mail") == 12
        mail.emit(DeadlineOverrun, seconds=1.0, elapsed=1.5)
        assert value(metrics, "deadline_overruns_total") == 1


class TestTrouble:
    def test_an_exception_object_counts_once_however_often_it_is_seen(self, metrics):
        error = ValueError("no")
        for name in ("db", "breaker", "web"):
            report(Emitter(name), error, service="auth", status="422")
        assert value(metrics, "error_total", type="ValueError", service="auth", status="422") == 1
        for _ in range(30):
            report(Emitter("web"), KeyError("k"), service="auth")
        assert value(metrics, "error_total", type="KeyError", service="auth", status="programming") == 30
        assert verdict(metrics, "errors_tracked").verdict == "met"

    def test_kinds_of_errors_that_open_and_hooks_that_fail_are_counted(self, metrics):
        tracker = Emitter("errors")
        for reopened in (False, True, True):
            tracker.emit(
                ErrorOpened, fingerprint="f", error_type="E", category="data", service=None, reopened=reopened
            )
        assert value(metrics, "error_opened_total", kind="new") == 1
        assert value(metrics, "error_opened_total", kind="returned") == 2
        Emitter("main").emit(HookFailed, operation="login", hook="after_commit", error=ValueError())
        assert value(metrics, "transaction_hook_failures_total", operation="login") == 1

    def test_an_error_that_breaks_the_counting_is_told_by_the_objective(self, metrics, monkeypatch):
        monkeypatch.setattr(metrics._shelf.counter("error_total"), "labels", lambda *values: 1 / 0)
        report(Emitter("web"), ValueError("v"))
        assert verdict(metrics, "errors_tracked").verdict == "breached"

    def test_security_events_are_counted_by_source(self, metrics):
        web = Emitter("web")
        for _ in range(9):
            web.emit(SecurityNoticed, event="failed_login", source="203.0.113.9", fields={"account": "x"})
        assert value(metrics, "security_total", event="failed_login", source="_other") == 5
        assert value(metrics, "security_total", event="failed_login", source="203.0.113.9") == 4

    def test_broken_rules_secrets_and_lost_records_are_counted(self, metrics):
        Emitter("signup").emit(ValidationFailed, keywords=("required", "maximum", "required"))
        assert value(metrics, "validation_failures_total", schema="signup", keyword="required") == 2
        log = Emitter("logs")
        log.emit(SecretsMasked, count=40)
        log.emit(SecretsMasked, count=0, failed=True)
        log.emit(LogDropped, reason="queue full", count=3)
        assert value(metrics, "log_secrets_total", result="masked") == 40
        assert value(metrics, "log_secrets_total", result="withheld") == 1
        assert value(metrics, "log_dropped_total", reason="queue_full") == 3
        assert verdict(metrics, "secrets_masked").verdict == "met"


class TestLogs:
    def test_records_are_counted_by_level_from_the_moment_of_attaching(self):
        metrics, stream = Metrics(), io.StringIO()
        handle = configure_logging(service="s", stream=stream, level="DEBUG")
        log = get_logger("test")
        try:
            log.info("not ours")
            with metrics:
                for say in (log.debug, log.info, log.info, log.warning, log.error, log.critical):
                    say("x")
                log.log(25, "between")
                found = {
                    level: value(metrics, "log_records_total", level=level)
                    for level in ("debug", "info", "warning", "error", "critical")
                }
        finally:
            handle.close()
        assert found == {"debug": 1, "info": 3, "warning": 1, "error": 1, "critical": 1}
        log.info("nor this")
        assert value(metrics, "log_records_total", level="info") == 3

    def test_a_log_that_begins_later_counts_too_and_its_last_words_are_not_lost(self, metrics):
        handle = configure_logging(service="s", stream=io.StringIO())
        get_logger("test").warning("x")
        handle.close()
        del handle
        gc.collect()
        for _ in range(2):
            assert value(metrics, "log_records_total", level="warning") == 1


class TestRequests:
    def end(self, emitter, **fields):
        settings = {
            "service": "auth",
            "method": "GET",
            "route": "/users/{id}",
            "status": 200,
            "outcome": "completed",
            "duration": 0.02,
            "request_id": "r",
            "response_bytes": 10,
            "request_bytes": 7,
        }
        emitter.emit(RequestEnded, **{**settings, **fields})

    def test_requests_are_counted_timed_and_weighed(self, metrics):
        web = Emitter("web")
        web.emit(RequestStarted, method="GET")
        web.emit(RequestStarted, method="GET")
        assert value(metrics, "http_server_active_requests") == 2
        self.end(web)
        assert value(metrics, "http_server_active_requests") == 1
        assert value(metrics, "http_server_requests_total", method="GET", route="/users/{id}", status="200") == 1
        timed = {"method": "GET", "route": "/users/{id}", "status_class": "2xx", "outcome": "completed"}
        assert value(metrics, "http_server_request_duration_seconds_count", **timed) == 1
        assert value(metrics, "http_server_response_body_bytes_total", route="/users/{id}") == 10
        assert value(metrics, "http_server_request_body_bytes_total", route="/users/{id}") == 7

    def test_no_answer_unknown_methods_and_timeouts_have_their_values(self, metrics):
        web = Emitter("web")
        self.end(web, method="_OTHER", status=None, outcome="cancelled")
        assert value(metrics, "http_server_requests_total", method="_other", route="/users/{id}", status="none") == 1
        self.end(web, status=504, outcome="timeout")
        self.end(web, status=200, outcome="timeout")
        assert value(metrics, "http_server_timeouts_total", route="/users/{id}", phase="first_byte") == 1
        assert value(metrics, "http_server_timeouts_total", route="/users/{id}", phase="idle") == 1

    def test_websockets_are_counted_while_they_are_open(self, metrics):
        web = Emitter("web")
        for _ in range(3):
            web.emit(WebsocketOpened, service="s", route="/chat")
        web.emit(WebsocketPassed, direction="in")
        web.emit(WebsocketClosed, service="s", route="/chat", code=1000, duration=1.0)
        assert value(metrics, "websocket_connections", route="/chat") == 2
        assert value(metrics, "websocket_messages_total", direction="in") == 1
        assert value(metrics, "websocket_messages_total", direction="out") == 0
        for number in range(2000):
            web.emit(WebsocketOpened, service="s", route=f"/{number}")
        assert len(metrics._shelf.gauge("websocket_connections").series) <= 1000

    def test_hostile_routes_and_methods_leave_the_series_flat(self, metrics):
        web = Emitter("web")
        for number in range(5000):
            self.end(web, method=f"M{number}", route=f"/r/{number}", status=100 + number % 500)
        body = metrics.render().body.decode()
        assert body.count("\nreliakit_http_server_requests_total{") <= 1000
        assert body.count("\nreliakit_http_server_request_duration_seconds_count{") <= 1000


class TestAttaching:
    def test_attaching_twice_counts_once(self, metrics):
        metrics.attach()
        ended(Emitter("main"))
        ended(Emitter("other", listeners=[metrics]))
        assert value(metrics, "transaction_total", **LOGIN, status="commit") == 2

    def test_a_closed_subscription_leaves_the_other_one(self):
        metrics = Metrics()
        first, second = metrics.attach(), metrics.attach()
        first.close()
        ended(Emitter("main"))
        second.close()
        ended(Emitter("main"))
        assert value(metrics, "transaction_total", **LOGIN, status="commit") == 1

    @pytest.mark.parametrize("file", ["registry", "shelf"])
    def test_what_interrupts_attaching_and_declaring_may_do_the_same(self, file):
        def step():
            with metrics:
                metrics.counter("jobs")

        def other():
            with metrics:
                metrics.counter("letters").inc()

        for at in itertools.count(1):
            metrics = Metrics()
            if not in_time(lambda at=at: amid(f"metrics/{file}.py", at, step, other)):
                break
            assert repr(metrics).endswith("not attached>")
            assert metrics.counter("letters").labels().get() == 1
        assert at > 10

    def test_close_ends_all_of_them_and_what_was_counted_stays(self):
        metrics = Metrics()
        metrics.attach()
        with metrics:
            ended(Emitter("main"))
        metrics.close()
        assert not Emitter("main").hears(TransactionEnded)
        assert value(metrics, "transaction_total", **LOGIN, status="commit") == 1
        with metrics:
            ended(Emitter("main"))
        assert value(metrics, "transaction_total", **LOGIN, status="commit") == 2

    def test_two_metrics_both_count_and_one_that_was_closed_does_not(self):
        one, other = Metrics(), Metrics("other")
        with one:
            with other:
                ended(Emitter("main"))
            ended(Emitter("main"))
        assert value(one, "transaction_total", **LOGIN, status="commit") == 2
        assert 'other_transaction_total{service="auth",operation="login",status="commit"} 1.0' in (
            other.render().body.decode()
        )

    def test_one_components_listener_counts_without_attaching(self):
        metrics = Metrics()
        ended(Emitter("main", listeners=[metrics]))
        ended(Emitter("main"))
        assert value(metrics, "transaction_total", **LOGIN, status="commit") == 1

    def test_every_event_is_counted_or_left_out_on_purpose(self):
        # A database remembers every statement once somebody listens for slow transactions, and a breaker tells every
        # call once somebody listens for them, as a limiter tells each decision.
        left_out = {
            "CallEnded",
            "CallStarted",
            "NumbersWanted",
            "PolicyEnded",
            "PolicyStarted",
            "TransactionSlow",
            "Event",
            "LimitDecided",
            "LimitDenied",
        }
        known = {name for name in vocabulary.__all__ if issubclass(getattr(vocabulary, name), Event)}
        heard = {kind.__name__ for kind in Metrics()._feed.types}
        assert known - heard == left_out

    def test_a_users_own_subclass_counts_as_what_it_is(self, metrics):
        class Mine(LogDropped):
            pass

        Emitter("logs").emit(Mine, reason="queue_full")
        assert value(metrics, "log_dropped_total", reason="queue_full") == 1

    def test_an_event_of_another_kind_counts_nothing(self):
        Metrics()(Event(name="x", at=0.0, sequence=1))

    def test_nobody_needs_to_build_an_error_event_for_a_metric_that_is_not_there(self):
        assert not Emitter("main").hears(ErrorSeen)


def test_a_look_asked_for_amid_another_one_is_taken_after_it_and_by_itself() -> None:
    state, seen, inside = 0, [], []

    def read() -> CircuitFigures:
        return CircuitFigures("closed", state, 0, 0)

    def count(name: str, figures: CircuitFigures, last: CircuitFigures) -> None:
        nonlocal state
        assert not inside
        inside.append(name)
        if state == 1:  # another thread, or garbage collected in this one
            state = 2
            readings.look("mail", read)
        seen.append((last.success, figures.success))
        inside.pop()

    readings = Readings(count)
    readings.look("mail", read)
    assert seen == []  # nobody follows it yet
    readings.follow("mail", read)
    state = 1
    readings.look("mail", read)
    assert seen == [(0, 1), (1, 2)]
    state, seen[:] = 1, []
    readings.refresh()
    assert seen == [(2, 1), (1, 2)]
