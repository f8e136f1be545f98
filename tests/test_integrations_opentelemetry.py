"""Spans stand under the right parents and hold no secret; what Metrics counts is what OpenTelemetry collects."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import anyio.lowlevel
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from reliakit import (
    AsyncDatabase,
    Backoff,
    CircuitBreaker,
    CircuitOpenError,
    Database,
    Masker,
    Policy,
    Retry,
    Timeout,
)
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import CallEnded, TransactionEnded
from reliakit.core.spine import Emitter
from reliakit.integrations.opentelemetry import Tracing, export
from reliakit.metrics import Metrics

SECRET = "password=hunter22"  # nothing real


@pytest.fixture
def spans():
    """Return what was exported; the provider is its own, no global one is set."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = provider.get_tracer("service")
    with Tracing(provider=provider):
        yield exporter
    assert trace.get_current_span() is trace.INVALID_SPAN
    provider.shutdown()


def named(spans):
    finished = spans.get_finished_spans()
    assert len({span.name for span in finished}) == len(finished), [span.name for span in finished]
    return {span.name: span for span in finished}


def parent_of(span, found):
    """Return the name of a span's parent."""
    return next(
        (one.name for one in found.values() if span.parent and one.context.span_id == span.parent.span_id), None
    )


class TestTransactions:
    def test_an_attempt_is_a_span_between_the_request_and_what_runs_within(self, spans, reliakit_dsn):
        with Database(reliakit_dsn, name="main") as db:
            with spans.tracer.start_as_current_span("request"):
                with db.transaction(operation="transfer") as tx:
                    tx.execute("SELECT 1")
                    with spans.tracer.start_as_current_span("within"):
                        pass
                with spans.tracer.start_as_current_span("after"):
                    pass
        found = named(spans)
        assert {name: parent_of(span, found) for name, span in found.items()} == {
            "request": None,
            "transaction transfer": "request",
            "within": "transaction transfer",
            "after": "request",
        }
        span = found["transaction transfer"]
        assert span.kind is SpanKind.CLIENT
        assert span.status.status_code is StatusCode.UNSET
        assert {
            "db.system.name": "postgresql",
            "db.client.connection.pool.name": "main",
            "reliakit.transaction.operation": "transfer",
            "reliakit.transaction.status": "commit",
            "reliakit.transaction.attempt": 1,
            "reliakit.transaction.statements": 1,
        }.items() <= span.attributes.items()
        assert span.start_time <= found["within"].start_time <= found["within"].end_time <= span.end_time

    def test_an_error_is_recorded_masked(self, spans, reliakit_dsn):
        with Database(reliakit_dsn) as db, pytest.raises(ValueError, match="hunter22"):
            with db.transaction(operation="transfer"):
                raise ValueError(f"refused {SECRET}")
        span = named(spans)["transaction transfer"]
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "ValueError"
        (recorded,) = span.events
        assert recorded.name == "exception"
        assert recorded.attributes["exception.type"] == "builtins.ValueError"
        assert "refused password=" in recorded.attributes["exception.message"]
        assert "test_integrations_opentelemetry.py" in recorded.attributes["exception.stacktrace"]
        assert "hunter22" not in str(recorded.attributes)

    def test_the_servers_error_code_is_told(self, spans, reliakit_dsn):
        with Database(reliakit_dsn) as db, pytest.raises(Exception, match="zero"):
            with db.transaction(operation="divide") as tx:
                tx.execute("SELECT 1/0")
        span = named(spans)["transaction divide"]
        assert (span.attributes["db.response.status_code"], span.attributes["error.type"]) == (
            "22012",
            "DivisionByZero",
        )

    @pytest.mark.anyio
    async def test_tasks_keep_their_spans_apart(self, spans, reliakit_dsn):
        both = asyncio.Barrier(2)

        async def serve(db, number):
            with spans.tracer.start_as_current_span(f"request {number}"):
                async with db.transaction(operation=f"op {number}") as tx:
                    await both.wait()
                    await tx.execute("SELECT 1")
                    with spans.tracer.start_as_current_span(f"within {number}"):
                        await both.wait()

        async with AsyncDatabase(reliakit_dsn, max_size=2) as db:
            await asyncio.gather(serve(db, 1), serve(db, 2))
        found = named(spans)
        for number in (1, 2):
            assert parent_of(found[f"within {number}"], found) == f"transaction op {number}"
            assert parent_of(found[f"transaction op {number}"], found) == f"request {number}"

    def test_an_end_without_a_beginning_is_a_span_of_its_length(self, spans):
        Emitter("main").emit(
            TransactionEnded, service=None, operation="late", attempt=1, status="timeout", duration=2.0, wait=2.0,
            statements=0, rows=0, error_type="TransactionTimeoutError", began=False,
        )  # fmt: skip
        span = named(spans)["transaction late"]
        assert 1.9e9 < span.end_time - span.start_time < 60e9
        assert span.attributes["error.type"] == "TransactionTimeoutError"


class TestCalls:
    def test_calls_nest_and_refusals_are_events_of_who_called(self, spans):
        outer, inner = CircuitBreaker("outer"), CircuitBreaker("inner", failure_threshold=1)

        def fail():
            with spans.tracer.start_as_current_span("within"):
                raise OSError(SECRET)

        def both():
            with pytest.raises(OSError, match="hunter22"):
                inner.call(fail)
            with pytest.raises(CircuitOpenError):
                inner.call(fail)
            return 1

        with spans.tracer.start_as_current_span("request"):
            outer.call(both)
        found = named(spans)
        assert {name: parent_of(span, found) for name, span in found.items()} == {
            "request": None,
            "call outer": "request",
            "call inner": "call outer",
            "within": "call inner",
        }
        assert found["call outer"].attributes["reliakit.call.verdict"] == "success"
        assert found["call outer"].status.status_code is StatusCode.UNSET
        assert found["call inner"].attributes["error.type"] == "OSError"
        assert found["call inner"].status.status_code is StatusCode.ERROR
        events = [event.name for event in found["call outer"].events]
        assert events == ["reliakit.rejected"]
        assert found["call outer"].events[0].attributes["reliakit.reason"] == "CircuitOpenError"
        assert any(event.name == "reliakit.circuit_changed" for event in found["call inner"].events)
        recorded = [event for event in found["call inner"].events if event.name == "exception"]
        assert len(recorded) == 1
        assert "hunter22" not in str(recorded[0].attributes)

    @pytest.mark.anyio
    async def test_an_awaited_call_is_the_parent_of_what_it_awaits(self, spans):
        breaker = CircuitBreaker("mail")

        async def send(number):
            await anyio.lowlevel.checkpoint()
            with spans.tracer.start_as_current_span(f"within {number}"):
                await anyio.lowlevel.checkpoint()

        async def serve(number):
            with spans.tracer.start_as_current_span(f"request {number}"):
                await breaker.acall(send, number)

        await asyncio.gather(serve(1), serve(2))
        found = {span.name: span for span in spans.get_finished_spans()}
        calls = [span for span in spans.get_finished_spans() if span.name == "call mail"]
        for number in (1, 2):
            (call,) = [one for one in calls if one.parent.span_id == found[f"request {number}"].context.span_id]
            assert found[f"within {number}"].parent.span_id == call.context.span_id

    def test_a_result_that_is_a_failure_is_not_blamed_on_an_error_handled_meanwhile(self, spans):
        breaker = CircuitBreaker("mail", failure_result=lambda result: result == "bad")
        try:
            raise KeyError("somebody else's")
        except KeyError:
            breaker.call(lambda: "bad")
        span = named(spans)["call mail"]
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "failure"
        assert span.events == ()

    def test_a_policy_is_the_parent_of_every_attempt(self, spans):
        policy = Policy(Retry(3, wait=Backoff(base=0.0)), CircuitBreaker("mail"), name="mailing")
        answers = [OSError(SECRET), OSError(SECRET), None]

        def send():
            with spans.tracer.start_as_current_span("within"):
                if (error := answers.pop(0)) is not None:
                    raise error

        policy.call(send)
        finished = spans.get_finished_spans()
        (outer,) = [span for span in finished if span.name == "policy mailing"]
        calls = [span for span in finished if span.name == "call mail"]
        within = [span for span in finished if span.name == "within"]
        assert outer.status.status_code is StatusCode.UNSET
        assert [span.parent.span_id for span in calls] == [outer.context.span_id] * 3
        assert [span.parent.span_id for span in within] == [span.context.span_id for span in calls]
        assert [event.name for event in outer.events].count("reliakit.attempt_failed") == 2

    @pytest.mark.anyio
    async def test_an_awaited_policy_tells_the_error_that_leaves_it(self, spans):
        policy = Policy(Timeout(5.0), name="mailing")

        async def send():
            with spans.tracer.start_as_current_span("within"):
                await anyio.lowlevel.checkpoint()
                raise OSError(SECRET)

        with pytest.raises(OSError, match="hunter22"):
            await policy.acall(send)
        found = named(spans)
        assert parent_of(found["within"], found) == "policy mailing"
        outer = found["policy mailing"]
        assert outer.attributes["error.type"] == "OSError"
        assert "hunter22" not in str([event.attributes for event in outer.events])

    def test_a_permit_that_is_settled_by_hand_leaves_nothing_current(self, spans):
        permit = CircuitBreaker("mail").acquire()
        assert trace.get_current_span() is trace.INVALID_SPAN
        permit.success()
        assert named(spans)["call mail"].attributes["reliakit.call.verdict"] == "success"


class TestAttaching:
    def test_without_a_real_provider_nothing_is_listened_to(self):
        emitter = Emitter("x")
        with Tracing() as tracing:
            assert not tracing.is_attached
            assert not emitter.hears(CallEnded)
        assert "not attached" in repr(tracing)

    def test_attaching_and_closing_twice_is_harmless(self, spans):
        tracing = Tracing(provider=TracerProvider(shutdown_on_exit=False), masker=Masker())
        emitter = Emitter("x")
        tracing.attach().attach()
        assert tracing.is_attached
        tracing.close()
        tracing.close()
        assert not tracing.is_attached
        assert emitter.hears(CallEnded)  # the fixture's

    @pytest.mark.parametrize("settings", [{"provider": object()}, {"masker": object()}])
    def test_bad_settings_are_refused_by_name(self, settings):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            Tracing(**settings)

    def test_reliakit_does_not_load_it_by_itself(self):
        code = (
            "import sys, reliakit.metrics, reliakit.logs, reliakit.database; sys.exit('opentelemetry' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestExport:
    @pytest.fixture
    def collected(self):
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)

        def collect():
            data = reader.get_metrics_data()
            return {
                metric.name: metric
                for resource in data.resource_metrics
                for scope in resource.scope_metrics
                for metric in scope.metrics
            }

        collect.provider = provider
        yield collect
        provider.shutdown()

    def test_every_kind_arrives_with_its_unit_labels_and_numbers(self, collected):
        metrics = Metrics()
        jobs = metrics.counter("jobs", "Jobs.", ("queue",))
        export(metrics, collected.provider)
        jobs.labels("mail").inc(3)
        metrics.gauge("level", "Level.", unit="bytes").set(-2)
        late = metrics.histogram("took", "Time.", ("page",), unit="seconds", buckets=(0.1, 1))
        late.labels("home").observe(0.05)
        late.labels("home").observe(0.5)
        late.labels("home").observe(float("nan"))
        metrics.increment("security", event="failed_login", source="192.0.2.1")
        for _ in range(2):  # collecting changes nothing
            found = collected()
            (point,) = found["jobs"].data.data_points
            assert (point.value, dict(point.attributes), found["jobs"].data.is_monotonic) == (
                3,
                {"queue": "mail"},
                True,
            )
            assert found["level"].data.data_points[0].value == -2
            assert found["level"].unit == "By"
            (measured,) = found["took"].data.data_points
            assert (found["took"].unit, found["took"].description) == ("s", "Time.")
            assert measured.explicit_bounds == (0.1, 1)
            assert tuple(measured.bucket_counts) == (1, 1, 0)
            assert measured.sum == 0.55
            security = {
                tuple(one.attributes.values()): one.value for one in found["reliakit_security"].data.data_points
            }
            assert security["failed_login", "_other"] == 1
            verdicts = found["reliakit_slo_verdict"].data.data_points  # brought up to date for each collection
            assert sum(one.value for one in verdicts) == 7
        assert "reliakit_slo_budget_gone_seconds" not in found  # nothing is known, so nothing is claimed

    def test_bad_arguments_are_refused_by_name(self, collected):
        with pytest.raises(ConfigurationError, match="metrics"):
            export(None)
        with pytest.raises(ConfigurationError, match="provider"):
            export(Metrics(), object())
