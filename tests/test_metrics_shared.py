"""Several processes count into one directory: a standard multiprocess scrape finds the sums of all of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from reliakit.core.clock import SYSTEM_CLOCK

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="prometheus_client's mode needs fork")


def samples(text, parse=parse_text):
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def scraped(directory):
    """Return what prometheus_client's own scrape finds, from a process that counts nothing itself."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))
    return samples(generate_latest(registry).decode())


def run(directory, code, *arguments):
    """Run a program that counts into the directory and return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


FORKS = """
import asyncio, os, sys, threading
from prometheus_client import Counter, multiprocess
from reliakit import Objective, below
from reliakit.core.events import TransactionStarted
from reliakit.metrics import Metrics

theirs = Counter("theirs", "Of prometheus_client's own.")
metrics = Metrics(objectives=[Objective("fast", below("transaction", 0.13, 0.9))])
jobs = metrics.counter("jobs", "Jobs.", ("queue",))
work = metrics.histogram("work", "Work.", ("queue",), buckets=(1, 2))
level = metrics.gauge("level", "Level.")
highest = metrics.gauge("highest", multiprocess_mode="livemax")
shy = metrics.gauge("shy", multiprocess_mode="all")
bound, measured = jobs.labels("a"), work.labels("a")
bound.inc(1000)  # the parent's own

def count():
    for step in range(500):
        bound.inc()
        measured.observe(step % 3 + 0.5)
        level.inc(3)
        level.dec(2)

async def tasks():
    async def one(number):
        for _ in range(5):
            jobs.labels(f"queue-{number % 2}").inc()
            await asyncio.sleep(0)
    await asyncio.gather(*(one(number) for number in range(200)))

children = []
for number in range(3):
    child = os.fork()
    if not child:
        sys.setswitchinterval(1e-6)
        assert bound.get() == 0, bound.get()  # what the parent counted stays the parent's
        theirs.inc()
        crowd = [threading.Thread(target=count) for _ in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        asyncio.run(tasks())
        highest.set(number)
        shy.set(number)
        metrics.observe("transaction", 0.12, status="commit")
        metrics.increment("security", event="failed_login", source="192.0.2.1")
        metrics(TransactionStarted(name="db", at=0, sequence=1, service="s", operation="o", attempt=1,
                                   isolation="x", read_only=False))
        assert (bound.get(), measured.get()[0]) == (4000, 4000)
        os._exit(0)
    children.append(child)
    os.waitpid(child, 0)
bound.inc()
for child in children[:2]:
    multiprocess.mark_process_dead(child)
print(metrics.render("application/openmetrics-text").body.decode(), end="")
"""


def test_forked_processes_add_up_and_gauges_of_dead_ones_go(tmp_path):
    shown = samples(run(tmp_path, FORKS), parse_openmetrics)
    found = scraped(tmp_path)
    for seen in (found, shown):
        assert seen["jobs_total", "a"] == 1001 + 3 * 4000
        assert seen["jobs_total", "queue-0"] == seen["jobs_total", "queue-1"] == 3 * 500
        assert seen["work_count", "a"] == seen["work_bucket", "+Inf", "a"] == 3 * 4000
        assert seen["work_bucket", "1.0", "a"] == 3 * 8 * 167
        assert seen["work_sum", "a"] == 3 * 8 * sum(step % 3 + 0.5 for step in range(500))
        assert seen["theirs_total",] == 3
        assert seen["reliakit_security_total", "failed_login", "_other"] == 3
        assert seen["reliakit_security_total", "rate_limit", "_other"] == 0  # born
        assert seen["reliakit_transaction_duration_seconds_bucket", "0.13", "", "", "commit"] == 3
        # Gauges: two of three children are dead, the parent has not set any.
        assert seen["level",] == 4000
        assert seen["highest",] == 2
        assert seen["reliakit_transaction_in_progress", "o", "s"] == 1
        assert len([name for name in seen if name[0] == "shy"]) == 4  # `all` keeps the dead, each with its pid
        assert seen["reliakit_build_info", sys.version.split()[0], "0.1.0"] == 1
    assert found.keys() == shown.keys()


WORKERS = """
import gc, os, signal, sys, traceback
from prometheus_client import CollectorRegistry, multiprocess
from reliakit import Database, Metrics
from reliakit.core.events import PoolReturned, PoolWaited, TransactionEnded, TransactionStarted

def outside(name, **labels):
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, os.environ["PROMETHEUS_MULTIPROC_DIR"])
    return registry.get_sample_value("reliakit_" + name, labels)

def pool(name="main"):
    connections = [outside("db_pool_connections", pool=name, state=state) for state in ("idle", "in_use")]
    return (*connections, outside("db_pool_max", pool=name), outside("db_pool_waiting", pool=name))

def counts(status="commit"):
    labels = dict(service="shop", operation="buy")
    return (
        outside("transaction_total", **labels, status=status),
        outside("transaction_duration_seconds_count", **labels, status=status),
        outside("transaction_in_progress", **labels),
    )

def buy(tx):
    tx.execute("SELECT 1")

def in_child(work):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            work(lambda: (os.write(writing, b"."), signal.pause()))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    if os.read(reading, 1):  # it waits now, for the harshest end that there is
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    else:
        assert os.waitpid(child, 0)[1] == 0
    os.close(reading)
    return child

metrics = Metrics()
db = Database(sys.argv[1], service="shop", max_size=3)
fresh = Database(sys.argv[1], name="fresh", service="shop", max_size=2)
with metrics:
    db.open()
    assert pool() == (1, 0, 3, 0), pool()
    for _ in range(3):
        db.run(buy, operation="buy")
    told = db._engine.checkouts.audience.emitter
    assert not any(told.hears(kind) for kind in (PoolWaited, TransactionStarted, PoolReturned, TransactionEnded))
    assert (counts(), pool()) == ((3, 3, 0), (1, 0, 3, 0))
    with db.transaction(operation="buy"):
        assert (counts(), pool()) == ((3, 3, 1), (0, 1, 3, 0))
        with fresh.transaction(operation="buy"):
            assert (counts(), pool("fresh")) == ((3, 3, 2), (0, 1, 2, 0))
    try:
        with db.transaction(operation="buy"):
            1 / 0
    except ZeroDivisionError:
        pass
    assert (counts(), counts("rollback")[0], pool()) == ((5, 5, 0), 1, (1, 0, 3, 0))
    fresh.close()
    assert pool("fresh") == (0, 0, 0, 0)

    def killed(wait):
        db.close()
        db.open()
        for _ in range(20):
            db.run(buy, operation="buy")
        with db.transaction(operation="buy"):
            wait()

    child = in_child(killed)
    assert (counts(), pool()) == ((25, 25, 1), (1, 1, 6, 0)), (counts(), pool())
    multiprocess.mark_process_dead(child)
    assert (counts(), pool()) == ((25, 25, 0), (1, 0, 3, 0)), (counts(), pool())

    def ordinary(wait):
        own = Database(sys.argv[1], name="own", service="shop")
        own.run(buy, operation="buy")

    in_child(ordinary)
    assert (counts(), pool("own")) == ((26, 26, 0), (1, 0, 10, 0)), (counts(), pool("own"))
assert (counts(), pool()) == ((26, 26, 0), (1, 0, 3, 0))
db.run(buy, operation="buy")
assert counts() == (26, 26, 0)  # nobody listens
with db.transaction(operation="buy"):
    with metrics:
        assert (counts(), pool()) == ((26, 26, 1), (0, 1, 3, 0))
    assert counts() == (26, 26, 0)  # of what runs on nothing is known
with metrics:
    db.run(buy, operation="buy")
db.close()
del db, fresh
gc.collect()
assert counts() == (27, 27, 0)
"""


def test_a_transaction_is_written_as_it_happens_without_an_event_and_a_killed_process_loses_none(
    tmp_path, reliakit_dsn
):
    run(tmp_path, WORKERS, reliakit_dsn)


JUDGED = """
import sys
from reliakit import Database, Metrics
from reliakit.testing import ManualClock

clock = ManualClock()
metrics = Metrics(clock=clock)
with Database(sys.argv[1], service="shop") as db, metrics:
    for number in range(60):
        try:
            with db.transaction(operation="buy") as tx:
                if number % 3 == 1:
                    tx.set_rollback_only()
                if number % 3 == 2:
                    1 / 0
        except ZeroDivisionError:
            pass
        clock.advance(1)
    early = {verdict.objective: verdict for verdict in metrics.slo()}
    clock.advance(285)
    late = {verdict.objective: verdict for verdict in metrics.slo()}
for found in (early, late):
    print(found["transaction_latency"].count)
    print([found[name] for name in ("rollback_rate", "deadlocks", "leaked_connections", "errors_tracked")])
"""


BEFORE_A_FORK = """
import io, os
from reliakit import CircuitBreaker, Metrics, RateLimiter, configure_logging, get_logger

handle = configure_logging(service="s", level="INFO", stream=io.StringIO())
metrics, log, breaker, limiter = Metrics(), get_logger("s"), CircuitBreaker("b"), RateLimiter("100/s", name="l")

def work():
    log.info("told")
    breaker.call(len, "x")
    limiter.hit("somebody")

with metrics:
    for _ in range(5):
        work()
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            work()
            metrics.close()
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    print(metrics.render().body.decode())
handle.close()
"""


def test_what_a_component_counted_before_a_fork_is_counted_by_the_parent_alone(tmp_path):
    found = samples(run(tmp_path, BEFORE_A_FORK))
    assert found["reliakit_log_records_total", "info"] == 8
    assert found["reliakit_circuit_breaker_calls_total", "b", "success"] == 8
    assert found["reliakit_rate_limit_decisions_total", "allowed", "l"] == 8


def test_verdicts_are_those_of_a_process_by_itself(tmp_path, reliakit_dsn):
    among_others, alone = run(tmp_path, JUDGED, reliakit_dsn), run("", JUDGED, reliakit_dsn)
    assert among_others == alone
    assert "count=40" in alone  # deliberate rollbacks are left out


INTERRUPTED = """
import gc, signal
from prometheus_client import Counter
from reliakit.metrics import Metrics

theirs = Counter("theirs", "Of prometheus_client's own.", ("n",))
metrics = Metrics()
jobs, level, work = metrics.counter("jobs", "", ("n",)), metrics.gauge("level"), metrics.histogram("work", "", ("n",))
level.set_function(lambda: calls)
calls = 0
busy = False

def interrupt(*_):
    global calls, busy
    if busy:
        return
    busy = True
    calls += 1
    jobs.labels(str(calls % 300)).inc()
    work.labels(str(calls % 40)).observe(0.5)
    level.labels().refresh()
    busy = False

gc.callbacks.append(interrupt)
gc.set_threshold(2)
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range(4000):
    theirs.labels(str(number % 500)).inc()
    jobs.labels("main").inc()
signal.setitimer(signal.ITIMER_REAL, 0)
gc.callbacks.clear()
for number in range(300):
    jobs.labels(str(number)).inc(0)
for number in range(40):
    work.labels(str(number)).observe(0)
level.labels().refresh()
print(calls)
"""


def test_a_gc_callback_or_signal_amid_prometheus_clients_own_lock_neither_deadlocks_nor_loses(tmp_path):
    calls = int(run(tmp_path, INTERRUPTED))
    found = scraped(tmp_path)
    assert calls > 100
    assert sum(value for name, value in found.items() if name[0] == "theirs_total") == 4000
    assert found["jobs_total", "main"] == 4000
    assert sum(value for name, value in found.items() if name[0] == "jobs_total") == 4000 + calls
    assert sum(value for name, value in found.items() if name[0] == "work_count") == calls + 40
    assert found["level",] == calls


FULL = """
import logging
from reliakit.core.events import CircuitFigures, CircuitPresent
from reliakit.metrics import Metrics, shared

metrics = Metrics()
jobs = metrics.counter("jobs", "", ("n",))
told = []
logging.getLogger("reliakit").error = lambda *a, **k: told.append(a)
place, shared.SharedFiles.place = shared.SharedFiles.place, lambda *a, **k: 1 / 0
for number in range(5):
    jobs.labels("a").inc()
level = metrics.gauge("level")
level.set(3)
assert jobs.labels("a").get() == 5 and level.labels().get() == 3
shared.SharedFiles.place = place
jobs.labels("a").inc()
level.inc()
calls = 0
metrics(CircuitPresent(name="mail", at=0, sequence=1, read=lambda: CircuitFigures("closed", calls, 0, 0)))
calls = 7  # read when somebody looks, and nobody does
print(len(told))
"""


def test_a_full_disk_costs_the_caller_nothing_and_a_process_that_ends_tells_what_it_knows(tmp_path):
    assert run(tmp_path, FULL) == "2\n"  # told once for each metric
    found = scraped(tmp_path)
    assert found["jobs_total", "a"] == 6
    assert found["level",] == 4
    assert found["reliakit_circuit_breaker_calls_total", "mail", "success"] == 7


def test_a_directory_that_does_not_exist_is_refused_at_the_start(tmp_path):
    code = (
        "from reliakit import ConfigurationError, Metrics\n"
        "try: Metrics()\n"
        "except ConfigurationError as error: print(error)"
    )
    assert "PROMETHEUS_MULTIPROC_DIR" in run(tmp_path / "none", code)


def test_a_mode_that_does_not_exist_is_refused(tmp_path):
    from reliakit.core.errors import ConfigurationError
    from reliakit.metrics import Metrics

    with pytest.raises(ConfigurationError, match="multiprocess_mode"):
        Metrics().gauge("level", multiprocess_mode="latest")


APP = """
import os
from reliakit import CircuitBreaker, Database, Metrics

metrics = Metrics()
metrics.attach()
served = metrics.counter("served", "Requests.", ("kind",)).labels("page")
took = metrics.histogram("took", "Seconds.", unit="seconds")
breaker = CircuitBreaker("page")
db = Database(os.environ["SERVICE_DSN"], service="page", max_size=4)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics.wsgi_app(environ, start_response)
    breaker.call(served.inc)
    took.observe(0.01)
    db.execute("SELECT 1")
    metrics.increment("security", event="failed_login", source="192.0.2.1")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


def ask(address, path):
    """Send one request and return the body of its answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(address)
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"200", head
    return body.decode()


def served(tmp_path, dsn, *options):
    (tmp_path / "service.py").write_text(APP)
    (tmp_path / "numbers").mkdir()
    (tmp_path / "config.py").write_text(
        "from prometheus_client import multiprocess\n"
        "def child_exit(server, worker):\n"
        "    multiprocess.mark_process_dead(worker.pid)\n"
    )
    root = str(Path(__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-b", f"unix:{tmp_path}/s", "-c", "config.py", *options, "service:app"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": root,
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "numbers"),
            "SERVICE_DSN": dsn,
        },
        stderr=subprocess.PIPE,
    )


def until_served(server, address):
    for _ in range(1200):
        assert server.poll() is None, server.stderr.read()
        try:
            return ask(address, "/metrics")
        except OSError:
            SYSTEM_CLOCK.sleep(0.025)
    raise AssertionError("gunicorn does not answer")


def test_gunicorn_with_recycled_workers_loses_no_count(tmp_path, reliakit_dsn):
    pytest.importorskip("gunicorn")
    server = served(
        tmp_path, reliakit_dsn, "-w", "2", "-k", "gthread", "--threads", "4", "--max-requests", "12", "--preload",
        "--graceful-timeout", "20",
    )  # fmt: skip
    try:
        address = f"{tmp_path}/s"
        until_served(server, address)
        answered, failed = [], []

        def load():
            for _ in range(15):
                try:
                    answered.append(ask(address, "/page"))
                except (OSError, AssertionError, IndexError) as error:  # a worker that goes may drop what it accepted
                    failed.append(error)

        crowd = [threading.Thread(target=load) for _ in range(4)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert len(set(answered)) > 2, "no worker was recycled"
        shown = samples(ask(address, "/metrics"))
        assert len(answered) <= shown["served_total", "page"] <= len(answered) + len(failed)
        total = shown["served_total", "page"]
        assert shown["took_seconds_count",] == shown["took_seconds_bucket", "+Inf"] == total
        assert shown["reliakit_db_pool_use_seconds_count", "main"] == total
        assert shown["reliakit_db_pool_connections", "main", "in_use"] == 0
        assert (
            shown["reliakit_security_total", "failed_login", "_other"]
            + shown.get(("reliakit_security_total", "failed_login", "192.0.2.1"), 0)
            == total
        )
        found = scraped(tmp_path / "numbers")
        assert found["served_total", "page"] == total
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    # Those that are gone have told of every call, also of those that are counted only when somebody looks.
    assert scraped(tmp_path / "numbers")["reliakit_circuit_breaker_calls_total", "page", "success"] == total
