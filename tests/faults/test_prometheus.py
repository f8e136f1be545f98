"""A real Prometheus scrapes what we render, and stores numbers, units and exemplars."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.parse
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.context import request_context
from reliakit.metrics import Metrics

PROMETHEUS = shutil.which("prometheus")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CONFIG = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}
scrape_configs:
- {{job_name: service, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}
"""


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments):
        pass


class Recording:
    """Remembers what the scraper asked for."""

    def __init__(self, app):
        self.app = app
        self.asked = []

    def __call__(self, environ, start_response):
        self.asked.append((environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")))
        return self.app(environ, start_response)


@pytest.fixture
def scraped():
    metrics = Metrics()
    app = Recording(metrics.wsgi_app)
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield metrics, server.server_port, app
        server.shutdown()
        thread.join()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def asked(port, path, **parameters):
    address = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=20) as answer:
        return json.load(answer)["data"]


def until(ask, server):
    """Ask until there is an answer that is not empty."""
    for _ in range(1000):
        assert server.poll() is None, "prometheus has ended"
        try:
            found = ask()
        except OSError:  # not up yet
            found = None
        if found:
            return found
        SYSTEM_CLOCK.sleep(0.05)
    raise AssertionError("prometheus has not scraped")


@pytest.mark.skipif(PROMETHEUS is None and not os.environ.get("RELIAKIT_CI"), reason="needs a prometheus on the PATH")
def test_prometheus_scrapes_numbers_units_and_exemplars(scraped, tmp_path):
    assert PROMETHEUS is not None, "the checks need prometheus, see CONTRIBUTING.md"
    metrics, port, app = scraped
    jobs = metrics.counter("jobs", 'Jobs: "done" \\ and\nso on.', ("queue",))
    jobs.labels('odd "queue"\n\\ é \ud800').inc(41)
    jobs.labels("plain").inc(1.5)
    with request_context(trace_id=TRACE):
        metrics.observe("transaction", 0.04, status="commit", service="bank", operation="transfer")
    (tmp_path / "config.yml").write_text(CONFIG.format(port=port))
    listening = free_port()
    with subprocess.Popen(
        [
            PROMETHEUS,
            f"--config.file={tmp_path}/config.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{listening}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
        ],
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            found = until(lambda: asked(listening, "query", query="jobs_total")["result"], server)
            values = {one["metric"]["queue"]: float(one["value"][1]) for one in found}
            assert values == {'odd "queue"\n\\ é \ufffd': 41, "plain": 1.5}
            (up,) = asked(listening, "query", query="up")["result"]
            assert up["value"][1] == "1"
            bucket = 'reliakit_transaction_duration_seconds_bucket{le="0.05"}'
            (one,) = asked(listening, "query", query=bucket)["result"]
            assert (one["metric"]["service"], one["value"][1]) == ("bank", "1")
            (target,) = asked(listening, "targets")["activeTargets"]
            assert target["lastError"] == ""
            now = SYSTEM_CLOCK.time()
            (exemplars,) = until(
                lambda: asked(listening, "query_exemplars", query=bucket, start=now - 600, end=now + 600), server
            )
            assert exemplars["exemplars"][0]["labels"] == {"trace_id": TRACE}
            assert float(exemplars["exemplars"][0]["value"]) == 0.04
            (described,) = asked(listening, "metadata", metric="reliakit_transaction_duration_seconds").values()
            assert (described[0]["type"], described[0]["unit"]) == ("histogram", "seconds")
        finally:
            server.terminate()
    accept, encodings = app.asked[0]
    assert "application/openmetrics-text" in accept
    assert "gzip" in encodings
