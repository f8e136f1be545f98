"""What is rendered is what prometheus_client's parsers read, in whichever format the client asked for."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import threading

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as TheirCounter
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reliakit.core.context import request_context
from reliakit.core.errors import ConfigurationError
from reliakit.metrics import Metrics
from reliakit.metrics.exposition import OPENMETRICS, TEXT, pieces, wants_openmetrics
from reliakit.testing import ManualClock

OPEN = "application/openmetrics-text"
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


def parsed(parse, body):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def busy():
    metrics = Metrics(clock=ManualClock())
    for number in range(30):
        metrics.increment("error", type=f"E{number % 7}", service="s", status=500 + number % 3)
        metrics.observe("transaction", number / 20, service="s", operation=f"o{number % 3}", status="commit")
        metrics.increment("security", event="failed_login", source=f"203.0.113.{number % 2}")
    metrics.counter("plain", 'Help with "quotes", \\ and\nlines.').inc(2.5)
    metrics.histogram("bare", buckets=(1e-05, 0.5, 1e16)).observe(0.5)
    metrics.gauge("level", labels=("n",)).labels("x").set(-3.25)
    return metrics


class TestFormats:
    def test_both_formats_hold_the_same_samples(self):
        metrics = busy()
        text, opened = metrics.render(), metrics.render(OPEN)
        assert (text.content_type, opened.content_type) == (TEXT, OPENMETRICS)
        assert parsed(parse_text, text.body) == parsed(parse_openmetrics, opened.body)
        assert opened.body.endswith(b"# EOF\n")
        assert b"# EOF" not in text.body

    def test_a_fresh_registry_parses(self):
        metrics = Metrics()
        assert parsed(parse_text, metrics.render().body)
        assert parsed(parse_openmetrics, metrics.render(OPEN).body)

    def test_the_text_is_what_prometheus_client_would_write_for_the_same_numbers(self):
        metrics = busy()
        registry = CollectorRegistry()
        metrics.register(registry)
        assert parsed(parse_text, generate_latest(registry)) == parsed(parse_text, metrics.render().body)

    @settings(max_examples=25)
    @given(st.lists(st.text(st.characters(exclude_categories=()), max_size=200), max_size=8))
    def test_hostile_label_values_never_break_a_scrape(self, values):
        metrics = Metrics(objectives=())
        counter = metrics.counter("jobs", labels=("n",))
        for one in values:
            counter.labels(one).inc()
        for accept, parse in (("", parse_text), (OPEN, parse_openmetrics)):
            found = parsed(parse, metrics.render(accept).body)
            assert sum(value for (name, _), value in found.items() if name == "jobs_total") == len(values)

    @settings(max_examples=25)
    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=100), st.integers(0, 9), max_size=8
        )
    )
    def test_label_values_come_back_as_they_were_given(self, values):
        metrics = Metrics()
        counter = metrics.counter("jobs", labels=("n", "m"))
        for one, amount in values.items():
            counter.labels(one, one).inc(amount)
        found = {
            dict(labels)["n"]: value
            for (name, labels), value in parsed(parse_text, metrics.render().body).items()
            if name == "jobs_total"
        }
        assert found == values

    @settings(max_examples=25)
    @given(st.text(max_size=50))
    def test_any_help_text_survives(self, text):
        text = f"a{text}z"  # the parser strips white space at the ends
        metrics = Metrics()
        metrics.counter("jobs", text)
        families = {family.name: family for family in parse_openmetrics(metrics.render(OPEN).body.decode())}
        assert families["jobs"].documentation == text

    def test_units_and_types_are_told(self):
        body = Metrics().render(OPEN).body.decode()
        assert "# TYPE reliakit_transaction_duration_seconds histogram" in body
        assert "# UNIT reliakit_transaction_duration_seconds seconds" in body
        assert "# TYPE reliakit_error counter" in body
        assert "# TYPE reliakit_error_total counter" in Metrics().render().body.decode()

    @pytest.mark.parametrize("kind", ["counter", "gauge", "histogram"])
    def test_a_name_that_is_nothing_but_its_unit_does_not_spoil_the_scrape(self, kind):
        metrics, registry = Metrics(), CollectorRegistry()
        metric = getattr(metrics, kind)("bytes", unit="bytes")
        assert metric.name == ("bytes_total" if kind == "counter" else "bytes")
        metrics.register(registry)
        for body in (metrics.render(OPEN).body, generate_openmetrics(registry)):
            assert f"# TYPE bytes {kind}\n" in body.decode()
            assert parsed(parse_openmetrics, body)

    def test_rendering_while_counting_shows_consistent_histograms(self):
        metrics = Metrics()
        histogram = metrics.histogram("work", labels=("n",), buckets=(1, 2))
        stop = threading.Event()

        def work():
            number = 0
            while not stop.is_set():
                number += 1
                histogram.labels(str(number % 300)).observe(number % 3)

        crowd = [threading.Thread(target=work) for _ in range(3)]
        for thread in crowd:
            thread.start()
        try:
            for _ in range(5):
                found = parsed(parse_text, metrics.render().body)
                for (name, labels), value in found.items():
                    if name == "work_count":
                        assert found["work_bucket", tuple(sorted((*labels, ("le", "+Inf"))))] == value
        finally:
            stop.set()
            for thread in crowd:
                thread.join()


class TestExemplars:
    def exemplars(self, body):
        return {
            sample.labels["le"]: sample.exemplar
            for family in parse_openmetrics(body.decode())
            for sample in family.samples
            if sample.exemplar is not None
        }

    def test_a_bucket_shows_its_latest_measurement_within_a_trace(self):
        clock = ManualClock()
        metrics = Metrics(clock=clock)
        work = metrics.histogram("work", buckets=(1, 2))
        work.observe(0.9)
        with request_context(trace_id="a" * 32):
            work.observe(0.5)
            clock.advance(1)
            work.observe(0.25)
        with request_context(trace_id="b" * 32):
            work.observe(1.5)
        with request_context(request_id="no trace"):
            work.observe(3)
            work.observe(0.75)
        found = self.exemplars(metrics.render(OPEN).body)
        assert {le: (one.labels, one.value) for le, one in found.items()} == {
            "1.0": ({"trace_id": "a" * 32}, 0.25),
            "2.0": ({"trace_id": "b" * 32}, 1.5),
        }
        assert float(found["1.0"].timestamp) == clock.time()
        assert b"trace_id" not in metrics.render().body

    def test_the_very_first_measurement_of_a_thread_is_an_exemplar_too(self):
        metrics = Metrics()
        with request_context(trace_id="a" * 32):
            metrics.observe("transaction", 0.01, status="commit")
        assert len(self.exemplars(metrics.render(OPEN).body)) == 1

    @pytest.mark.parametrize(
        "trace_id", ['"} 1\n# EOF\n', "\ud800", "x" * 101, "x" * 5000, 7, b"x", ["x"], "é" * 100]
    )
    def test_hostile_trace_ids_never_break_a_scrape(self, trace_id):
        metrics = Metrics()
        work = metrics.histogram("work")
        with request_context(trace_id=trace_id):
            work.observe(0.5)
        body = metrics.render(OPEN).body
        assert parsed(parse_openmetrics, body)["work_count", ()] == 1
        assert all(len(one.labels["trace_id"]) <= 100 for one in self.exemplars(body).values())

    def test_a_prometheus_client_registry_shows_them_too(self):
        metrics, registry = Metrics(), CollectorRegistry()
        metrics.register(registry)
        with request_context(trace_id="a" * 32):
            metrics.histogram("work").observe(0.5)
        (shown,) = self.exemplars(generate_openmetrics(registry)).values()
        assert (shown.labels, shown.value) == ({"trace_id": "a" * 32}, 0.5)


class TestNegotiation:
    @pytest.mark.parametrize(
        "accept",
        [
            "",
            None,
            "*/*",
            "text/plain",
            "text/html,*/*;q=0.8",
            "text/plain, application/openmetrics-text",
            "text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4",
            "application/openmetrics-text;version=1.0.0;q=0",
            "application/openmetrics-text;version=2.0.0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=junk",
            "application/openmetrics-text;q=nan",
            "application/json",
            ";;,,;q=,=",
            "*/*,application/openmetrics-text",
        ],
    )
    def test_text_is_given_to(self, accept):
        assert not wants_openmetrics(accept)

    @pytest.mark.parametrize(
        "accept",
        [
            PROMETHEUS,
            OPEN,
            "Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8",
            'application/openmetrics-text;version="1.0.0"',
            "application/openmetrics-text, text/plain",
            "text/plain;q=0.5, application/openmetrics-text",
            "application/openmetrics-text;q=0.2",
        ],
    )
    def test_openmetrics_is_given_to(self, accept):
        assert wants_openmetrics(accept)

    @settings(max_examples=25)
    @given(st.text())
    def test_a_header_of_any_text_does_not_raise(self, accept):
        wants_openmetrics(accept)


async def call(app, method="GET", headers=()):
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    await app({"type": "http", "method": method, "path": "/", "headers": list(headers)}, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


class TestApplications:
    @pytest.mark.anyio
    @pytest.mark.parametrize("series", [1, 1500])
    async def test_the_asgi_application_serves_the_metrics(self, series):
        metrics = Metrics(max_series=2000)
        for number in range(series):
            metrics.increment("error", type=f"E{number}")
        status, headers, body = await call(metrics.asgi_app, headers=[(b"Accept", OPEN.encode())])
        assert (status, headers[b"content-type"]) == (200, OPENMETRICS.encode())
        assert int(headers[b"content-length"]) == len(body)
        names = [name for name, _ in parsed(parse_openmetrics, body)]
        assert names.count("reliakit_error_total") == series

    @pytest.mark.anyio
    async def test_the_asgi_application_compresses_for_who_takes_it(self):
        app = Metrics().asgi_app
        _, headers, body = await call(app, headers=[(b"accept-encoding", b"br, gzip;q=0.9")])
        assert headers[b"content-encoding"] == b"gzip"
        assert b"reliakit_error_total" in gzip.decompress(body)
        _, headers, body = await call(app, headers=[(b"accept-encoding", b"gzip;q=0")])
        assert b"content-encoding" not in headers

    @pytest.mark.anyio
    async def test_a_large_scrape_is_rendered_in_short_steps_off_the_event_loop(self):
        metrics = Metrics(max_series=3000)
        jobs = metrics.counter("jobs", labels=("n",))
        for number in range(3000):
            jobs.labels(number).inc()
        renderers, turns, done = set(), 0, False
        metrics.gauge("where").set_function(lambda: renderers.add(threading.get_ident()) or 1)

        async def others():
            nonlocal turns
            while not done:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(others)
            _, _, body = await call(metrics.asgi_app, headers=[(b"accept-encoding", b"gzip")])
            done = True
        assert gzip.decompress(body).count(b"\njobs_total{") == 3000
        assert renderers
        assert threading.get_ident() not in renderers
        assert turns >= 3000 / 400, "the loop had no turn between the pieces"
        sizes = [piece.count("\n") for piece in pieces(metrics.families(), openmetrics=True)]
        assert max(sizes) < 1000

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("header", "is_compressed"),
        [(b"*", True), (b"*;q=0, gzip", True), (b"*, gzip;q=0", False), (b"identity", False), (b"br;q=1.0", False)],
    )
    async def test_a_star_stands_for_what_is_not_named(self, header, is_compressed):
        _, headers, _ = await call(Metrics().asgi_app, headers=[(b"accept-encoding", header)])
        assert (b"content-encoding" in headers) == is_compressed

    @pytest.mark.anyio
    async def test_the_asgi_application_answers_head_and_refuses_the_rest(self):
        app = Metrics().asgi_app
        status, headers, body = await call(app, "HEAD")
        assert (status, body) == (200, b"")
        assert int(headers[b"content-length"]) > 0
        status, headers, body = await call(app, "POST")
        assert (status, headers[b"allow"]) == (405, b"GET, HEAD")

    @pytest.mark.anyio
    async def test_the_asgi_application_lives_and_dies_with_its_server(self):
        asked = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        said = []

        async def receive():
            return asked.pop(0)

        async def send(message):
            said.append(message["type"])

        await Metrics().asgi_app({"type": "lifespan"}, receive, send)
        assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    @pytest.mark.anyio
    async def test_a_router_takes_it_mounted_and_routed(self):
        from starlette.applications import Starlette
        from starlette.routing import Mount, Route

        metrics = Metrics()
        app = Starlette(routes=[Route("/metrics", metrics.asgi_app), Mount("/mounted", metrics.asgi_app)])
        for path in ("/metrics", "/mounted/"):
            sent = []

            async def receive():
                return {"type": "http.request"}

            async def send(message, sent=sent):
                sent.append(message)

            await app({"type": "http", "method": "GET", "path": path, "headers": [], "root_path": ""}, receive, send)
            assert sent[0]["status"] == 200
            assert b"reliakit_error_total" in sent[1]["body"]

    def test_the_wsgi_application_serves_the_metrics(self):
        metrics = Metrics()
        answers = []
        (body,) = metrics.wsgi_app(
            {"REQUEST_METHOD": "GET", "HTTP_ACCEPT": "*/*", "wsgi.input": io.BytesIO()},
            lambda status, headers: answers.append((status, dict(headers))),
        )
        status, headers = answers[0]
        assert (status, headers["Content-Type"]) == ("200 OK", TEXT)
        assert body == metrics.render().body
        metrics.wsgi_app({"REQUEST_METHOD": "PUT"}, lambda status, headers: answers.append((status, dict(headers))))
        assert answers[1][0] == "405 Method Not Allowed"
        assert answers[1][1]["Content-Type"] == "text/plain"  # servers that check their applications want one


class TestPrometheusClient:
    def test_a_registry_shows_everything_until_close(self):
        metrics, registry = Metrics(), CollectorRegistry()
        metrics.register(registry)
        metrics.register(registry)
        metrics.increment("error", type="E", service="s", status="500")
        metrics.counter("later", unit="bytes").inc(3)
        body = generate_latest(registry)
        assert body.count(b"# TYPE reliakit_error_total counter") == 1
        assert b"later_bytes_total 3.0" in body
        metrics.close()
        metrics.close()
        assert generate_latest(registry) == b""

    def test_a_registry_with_a_metric_of_the_same_name_is_refused(self):
        registry = CollectorRegistry()
        TheirCounter("reliakit_error", "Theirs.", registry=registry)
        with pytest.raises(ConfigurationError, match="namespace"):
            Metrics().register(registry)
        Metrics(namespace="other").register(registry)
        with pytest.raises(ConfigurationError, match="namespace"):
            Metrics(namespace="other").register(registry)
        with pytest.raises(ConfigurationError, match="registry"):
            Metrics().register("default")

    def test_counting_does_not_load_prometheus_client(self):
        code = (
            "import sys; from reliakit.metrics import Metrics; m = Metrics(); m.increment('error', type='E');"
            "m.render(); m.slo(); m.attach(); m.close();"
            "assert not {'prometheus_client', 'asyncio', 'psycopg'} & sys.modules.keys(), sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
