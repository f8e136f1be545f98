"""What a Metrics counts arrives at a statsd server, and whatever the network does, counting does not notice."""

from __future__ import annotations

import os
import re
import socket
import threading
import warnings

import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError
from reliakit.integrations.statsd import Statsd
from reliakit.metrics import Metrics
from reliakit.resilience.breaker import CircuitBreaker

NEVER = 1000.0


@pytest.fixture
def server():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(20)
        yield listening


def sender(server, metrics, **options):
    return Statsd(metrics, port=server.getsockname()[1], **{"interval": NEVER, **options})


def received(server, until):
    """Return all lines up to one that begins like this."""
    lines = []
    while not any(line.startswith(until) for line in lines):
        packet = server.recv(65536)
        assert len(packet) <= 1432
        lines += packet.decode().split("\n")
    return lines


def last(server, sending):
    """Let everything be sent and return it: the mark is the last of all metrics."""
    marks = next((one for one in sending._metrics.families() if one.name == "zz_mark_total"), None)
    marks = marks or sending._metrics.counter("zz_mark")
    marks.inc()
    sending.flush()
    return [
        line
        for line in received(server, f"{sending.prefix}zz_mark")
        if "reliakit_" not in line and "mark" not in line
    ]


def test_counters_gauges_and_histograms_arrive_with_tags(server):
    metrics = Metrics()
    early = metrics.counter("early", labels=("queue",))
    early.labels("a").inc(2)
    with sender(server, metrics, prefix="shop.") as sending:
        metrics.gauge("level").set(-2.5)
        metrics.histogram("took", unit="seconds", labels=("page",)).labels("x,y|z#:\n").observe(0.25)
        metrics.histogram("size", unit="bytes").observe(100)
        early.labels("a").inc()
        assert last(server, sending) == [
            "shop.took_seconds:250|ms|#page:x_y_z___",
            "shop.size_bytes:100|h",
            "shop.early_total:1|c|#queue:a",
            "shop.level:0|g",
            "shop.level:-2.5|g",
        ]
        early.labels("a").inc(4)
        assert last(server, sending) == ["shop.early_total:4|c|#queue:a"]
        assert last(server, sending) == []
        assert sending.lost == 0


def test_plain_statsd_has_label_values_in_the_name(server):
    metrics = Metrics()
    with sender(server, metrics, tags=False) as sending:
        metrics.counter("jobs", labels=("queue", "kind")).labels("a.b", "c").inc()
        metrics.histogram("size").observe(3)
        assert last(server, sending) == ["size:3|ms", "jobs_total.a_b.c:1|c"]


def test_each_measurement_is_sent_once_however_many_threads_make_their_series(server):
    metrics = Metrics()
    work = metrics.histogram("work", labels=("n",))
    with sender(server, metrics) as sending:
        gate = threading.Barrier(8)

        def count():
            gate.wait()
            for number in range(50):
                work.labels(str(number % 10)).observe(number)

        crowd = [threading.Thread(target=count) for _ in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert len(last(server, sending)) == 400
        assert sum(series.get()[0] for series in work.series) == 400


def test_events_of_components_arrive_too_and_the_thread_sends_by_itself(server):
    metrics = Metrics()
    with sender(server, metrics, interval=0.01), metrics:
        metrics.increment("security", event="failed_login", source="2001:db8::1")
        line = received(server, "reliakit_security_total")
        assert "reliakit_security_total:1|c|#event:failed_login,source:_other" in line


def test_closing_sends_what_is_left_and_stops(server):
    metrics = Metrics()
    jobs, work = metrics.counter("jobs"), metrics.histogram("work")
    sending = sender(server, metrics)
    work.observe(1)  # not yet
    sending.open()
    sending.open()
    jobs.inc()
    work.observe(2)
    sending.close()
    sending.close()
    work.observe(3)
    lines = received(server, "jobs_total")
    assert "work:2|h" in lines
    assert not {"work:1|h", "work:3|h"} & set(lines)
    assert not any(thread.name == "reliakit-statsd" for thread in threading.enumerate())
    with sending:  # again
        jobs.inc(5)
    assert "jobs_total:5|c" in received(server, "jobs_total")


def test_what_was_counted_before_is_not_sent_again_by_a_second_one(server):
    metrics = Metrics()
    jobs, breaker = metrics.counter("jobs"), CircuitBreaker("mail")
    with metrics:
        with sender(server, metrics) as first:
            jobs.inc(3)
            assert last(server, first) == ["jobs_total:3|c"]
        breaker.call(len, "a")  # told when somebody looks
        jobs.inc(2)
        with sender(server, metrics) as second:
            jobs.inc()
            breaker.call(len, "a")
            second.flush()
            lines = received(server, "jobs_total")
            assert "jobs_total:1|c" in lines
            assert "reliakit_circuit_breaker_calls_total:1|c|#name:mail,outcome:success" in lines


def test_a_server_that_is_not_there_and_a_full_queue_only_lose(server):
    metrics = Metrics()
    work = metrics.histogram("work")
    sending = sender(server, metrics)
    server.close()
    with sending:
        for number in range(10_100):
            work.observe(number)
        assert sending.lost == 100
        for _ in range(3):  # the kernel tells of nobody listening at the next packet
            metrics.counter("jobs").inc()
            sending.flush()
        assert sending.lost > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_sends_its_own_counts_and_no_others(server):
    metrics = Metrics()
    jobs = metrics.counter("jobs")
    with sender(server, metrics, interval=0.02):
        jobs.inc(3)
        received(server, "jobs_total:3|c")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads: ours stay behind
            child = os.fork()
        if not child:
            jobs.inc(4)
            SYSTEM_CLOCK.sleep(20)
            os._exit(1)  # pragma: no cover - killed before
        try:
            assert "jobs_total:4|c" in received(server, "jobs_total:4|c")
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
        jobs.inc(5)
        received(server, "jobs_total:5|c")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_was_not_sent_at_the_fork_is_the_parents_to_send(server):
    metrics = Metrics()
    jobs = metrics.counter("jobs")
    with sender(server, metrics) as sending:
        jobs.inc(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            child = os.fork()
        if not child:
            try:
                jobs.inc(4)
                sending.flush()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        assert "jobs_total:4|c" in received(server, "jobs_total")
        sending.flush()
        assert "jobs_total:3|c" in received(server, "jobs_total")


@pytest.mark.parametrize(
    "settings",
    [
        {"host": ""},
        {"host": 5},
        {"port": 0},
        {"port": "x"},
        {"prefix": "a b"},
        {"interval": 0},
        {"interval": float("nan")},
    ],
)
def test_bad_settings_are_refused_by_name(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        Statsd(Metrics(), **settings)


def test_what_is_no_metrics_and_a_host_that_is_not_known_are_refused():
    with pytest.raises(ConfigurationError, match="metrics"):
        Statsd(None)
    with pytest.raises(ConfigurationError, match=re.escape("'no host'")):
        Statsd(Metrics(), host="no host").open()
