"""Counting is exact under threads, never raises, and holds a bounded number of series."""

from __future__ import annotations

import gc
import itertools
import math
import re
import signal
import sys
import threading
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from http import HTTPStatus
from typing import NamedTuple
from unittest.mock import Mock

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from reliakit.core.errors import ConfigurationError
from reliakit.metrics import Label, Metrics, Objective, below, count, zero
from reliakit.metrics.cells import Cells
from reliakit.metrics.labels import OTHER, Places, fold_source, fold_sqlstate, fold_status, label_text


def samples(metrics):
    """Return {name: {labels: value}} of what a scrape shows."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(metrics, name, /, **labels):
    return samples(metrics).get(name, {}).get(tuple(sorted(labels.items())))


def dropped(metrics, reason):
    return value(metrics, "reliakit_metrics_dropped_total", reason=reason)


def run_together(threads, work):
    gate = threading.Barrier(threads)

    def one(number):
        gate.wait()
        work(number)

    crowd = [threading.Thread(target=one, args=(number,)) for number in range(threads)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


@pytest.fixture
def restless():
    """Let threads switch far more often than usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class TestExactness:
    def test_eight_threads_lose_no_count(self, restless):
        metrics = Metrics()
        counter = metrics.counter("jobs", labels=("queue",))
        histogram = metrics.histogram("work", buckets=(1, 2))
        gauge = metrics.gauge("level")
        bound = counter.labels("bound")

        def work(number):
            for step in range(2000):
                bound.inc()
                counter.labels(f"queue-{step % 3}").inc(2)
                histogram.observe(step % 3 + 0.5)
                gauge.inc(3)
                gauge.dec(2)
                metrics.increment("error", type="E", service="s", status=500)

        run_together(8, work)
        assert bound.get() == 16_000
        assert sum(counter.labels(f"queue-{number}").get() for number in range(3)) == 32_000
        assert histogram.labels().get() == (16_000, 8 * sum(step % 3 + 0.5 for step in range(2000)))
        assert gauge.labels().get() == 16_000
        assert value(metrics, "reliakit_error_total", type="E", service="s", status="500") == 16_000

    def test_watched_series_and_their_windows_lose_no_count(self, restless):
        metrics = Metrics()
        lost = metrics.counter("lost", labels=("who",))
        metrics.objective(Objective("none_lost", zero(lost)))
        run_together(8, lambda number: [lost.labels(str(number % 3)).inc() for _ in range(2000)])
        verdict = next(verdict for verdict in metrics.slo() if verdict.objective == "none_lost")
        assert verdict.value == 16_000
        assert sum(lost.labels(str(number)).get() for number in range(3)) == 16_000

    def test_threads_that_come_and_go_leave_their_counts_and_no_rows(self):
        metrics = Metrics()
        counter = metrics.counter("jobs")
        for _ in range(1000):
            thread = threading.Thread(target=counter.inc)
            thread.start()
            thread.join()
        gc.collect()
        assert counter.labels().get() == 1000
        assert len(counter.cells._rows) <= 3

    def test_many_short_threads_at_once_stay_exact(self, restless):
        counter = Metrics().counter("jobs", labels=("n",))
        for _ in range(10):
            run_together(20, lambda number: [counter.labels(str(number % 5)).inc() for _ in range(10)])
        assert sum(counter.labels(str(number)).get() for number in range(5)) == 2000
        assert len(counter.cells._rows) <= 60

    def test_a_series_made_by_many_threads_at_once_exists_once(self, restless):
        for _ in range(20):
            metrics = Metrics(max_series=5)
            counter = metrics.counter("jobs", labels=("n",))
            run_together(8, lambda number, counter=counter: [counter.labels(str(n)).inc() for n in range(20)])
            assert len({series.values for series in counter.series}) == len(counter.series) <= 5
            assert sum(series.get() for series in counter.series) == 160

    def test_counting_from_a_gc_callback_neither_deadlocks_nor_loses(self):
        metrics = Metrics()
        counter = metrics.counter("jobs", labels=("n",))
        calls = 0

        def collected(phase, info):
            nonlocal calls
            calls += 1
            counter.labels("gc").inc()
            metrics.observe("transaction", 0.1, status="commit")
            metrics.increment("security", event="failed_login", source="192.0.2.1")

        threshold = gc.get_threshold()
        gc.callbacks.append(collected)
        gc.set_threshold(5)
        try:
            for number in range(2000):
                counter.labels("main").inc()
                metrics.observe("transaction", 0.1, status="commit", operation=str(number % 50))
                metrics.increment("security", event="failed_login", source=f"192.0.2.{number % 200}")
        finally:
            gc.callbacks.remove(collected)
            gc.set_threshold(*threshold)
        assert calls > 100
        assert counter.labels("main").get() == 2000
        assert counter.labels("gc").get() == calls

    @pytest.mark.anyio
    async def test_two_hundred_tasks_beside_threads_lose_no_count(self, restless):
        metrics = Metrics()
        counter, work = metrics.counter("jobs", labels=("n",)), metrics.histogram("work")

        async def task(number):
            for _ in range(10):
                counter.labels(number % 7).inc()
                work.observe(0.5)
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(task, number)
            for _ in range(4):
                group.start_soon(anyio.to_thread.run_sync, lambda: [counter.labels("0").inc() for _ in range(1000)])
        assert sum(series.get() for series in counter.series) == 6000
        assert work.labels().get() == (2000, 1000)

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
    def test_counting_from_a_signal_handler_neither_deadlocks_nor_loses(self):
        metrics = Metrics()
        counter, work, level = metrics.counter("jobs"), metrics.histogram("work"), metrics.gauge("level")
        calls = 0

        def everything():
            counter.inc()
            work.observe(0.5)
            level.inc()
            metrics.increment("security", event="failed_login", source="192.0.2.1")
            metrics.increment("error", type=f"E{calls % 50}", service="s")

        def interrupt(*_):
            nonlocal calls
            calls += 1
            everything()

        before = signal.signal(signal.SIGVTALRM, interrupt)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0002, 0.0002)
        rounds = 0
        try:
            while calls < 40:
                rounds += 1
                everything()
                if rounds % 100 == 0:
                    metrics.render()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
        total = rounds + calls
        assert (counter.labels().get(), work.labels().get(), level.labels().get()) == (
            total,
            (total, total / 2),
            total,
        )
        shown = samples(metrics)
        assert sum(shown["reliakit_security_total"].values()) == total
        assert sum(shown["reliakit_error_total"].values()) == total

    def test_a_new_thread_that_is_interrupted_as_it_takes_its_row_has_one_row(self):
        cells = Cells()
        place = Placed(0, 1)

        class Interrupting(list):
            def pop(self):
                del cells._spare  # once
                cells._spare = []
                cells.reach(place)[0] += 1  # what a GC callback or signal handler does in this very moment
                raise IndexError

        cells._spare = Interrupting()
        cells.reach(place)[0] += 1
        assert cells.own.row[0] == 2
        assert len(cells._spare) == 1
        assert cells._spare[0] is not cells.own.row
        assert cells.read(place) == [2]

    @settings(max_examples=30)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["a", "b", "c", "", "x" * 200]),
                st.one_of(st.integers(0, 1000), st.floats(0, 1e6)),
                st.booleans(),
            ),
            max_size=60,
        )
    )
    def test_counters_equal_a_dictionary_over_any_history(self, history):
        counter = Metrics().counter("jobs", labels=("n",))
        model = {}
        for label, amount, elsewhere in history:
            if elsewhere:
                thread = threading.Thread(target=lambda label=label, amount=amount: counter.labels(label).inc(amount))
                thread.start()
                thread.join()
            else:
                counter.labels(n=label).inc(amount)
            model[label[:128]] = model.get(label[:128], 0) + amount
        for label, total in model.items():
            assert counter.labels(label).get() == pytest.approx(total)

    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.sampled_from(["set", "inc", "dec"]), st.integers(-50, 50), st.booleans()), max_size=40)
    )
    def test_gauges_equal_a_number_over_any_history(self, history):
        gauge = Metrics().gauge("level").labels()
        model = 0
        for verb, amount, elsewhere in history:
            act = getattr(gauge, verb)
            if elsewhere:
                thread = threading.Thread(target=act, args=(amount,))
                thread.start()
                thread.join()
            else:
                act(amount)
            model = {"set": amount, "inc": model + amount, "dec": model - amount}[verb]
        assert gauge.get() == model

    @settings(max_examples=30)
    @given(st.lists(st.floats(0, 20)), st.lists(st.floats(0, 20), min_size=1, unique=True).map(sorted))
    def test_buckets_hold_what_is_not_above_their_bound(self, values, bounds):
        metrics = Metrics()
        histogram = metrics.histogram("work", buckets=bounds)
        for one in values:
            histogram.observe(one)
        shown = samples(metrics)
        for bound in bounds:
            assert shown["work_bucket"][("le", repr(float(bound))),] == sum(one <= bound for one in values)
        assert shown["work_bucket"][("le", "+Inf"),] == shown["work_count"][()] == len(values)
        assert shown["work_sum"][()] == pytest.approx(math.fsum(values))

    def test_a_gauge_set_after_counting_shows_the_set_value_exactly(self):
        gauge = Metrics().gauge("level")
        gauge.inc(3)
        gauge.set(0.1)
        assert gauge.labels().get() == 0.1

    def test_a_row_that_is_too_short_loses_nothing_of_a_measurement(self):
        histogram = Metrics().histogram("work", labels=("n",), buckets=(1,))
        for number in range(50):
            histogram.labels(str(number)).observe(0.5)
        assert all(series.get() == (1, 0.5) for series in histogram.series)


class TestNeverRaises:
    @pytest.mark.parametrize(
        "bad", [math.nan, math.inf, -math.inf, 10**400, 1e300, Decimal("NaN"), Decimal("Infinity")]
    )
    def test_what_is_not_finite_is_dropped_and_counted(self, bad):
        metrics = Metrics()
        counter, gauge, histogram = metrics.counter("c"), metrics.gauge("g"), metrics.histogram("h")
        counter.inc(bad)
        gauge.set(bad)
        gauge.inc(bad)
        histogram.observe(bad)
        metrics.observe("transaction", bad)
        assert counter.labels().get() == gauge.labels().get() == 0
        assert histogram.labels().get() == (0, 0)
        assert sum(dropped(metrics, reason) for reason in ("not_finite", "not_a_number")) == 5

    def test_a_proxy_of_what_is_gone_counts_as_other(self):
        class Unbound:
            def gone(self):
                raise RuntimeError("outside of a request")

            __class__ = property(gone)
            __str__ = __hash__ = __eq__ = __float__ = gone

        metrics = Metrics()
        jobs = metrics.counter("jobs", labels=("user",))
        jobs.labels(Unbound()).inc()
        jobs.labels(user=Unbound()).inc()
        jobs.labels("a").inc(Unbound())
        metrics.increment("security", event=Unbound(), source=Unbound())
        assert value(metrics, "jobs_total", user=OTHER) == 2
        assert value(metrics, "reliakit_security_total", event=OTHER, source=OTHER) == 1
        assert dropped(metrics, "not_a_number") == 1

    def test_what_is_negative_is_dropped_and_counted(self):
        metrics = Metrics()
        counter, histogram = metrics.counter("c"), metrics.histogram("h")
        counter.inc(-1)
        counter.inc(Decimal("-0.5"))
        histogram.observe(-0.001)
        metrics.observe("transaction", duration=-1, status="commit")
        assert counter.labels().get() == 0
        assert histogram.labels().get() == (0, 0)
        assert dropped(metrics, "negative") == 4
        assert next(v for v in metrics.slo() if v.objective == "transaction_latency").count == 0

    @pytest.mark.parametrize(
        "bad",
        [None, "1", object(), [], "x", b"1", Mock(spec=int), Mock(spec=float)],
        ids=["none", "digit", "object", "list", "text", "bytes", "int-like", "float-like"],
    )
    def test_what_is_no_number_is_dropped_and_counted(self, bad):
        metrics = Metrics()
        counter, gauge, histogram = metrics.counter("c"), metrics.gauge("g"), metrics.histogram("h")
        counter.inc(bad)
        gauge.set(bad)
        gauge.dec(bad)
        histogram.observe(bad)
        assert dropped(metrics, "not_a_number") == 4
        assert counter.labels().get() == gauge.labels().get() == histogram.labels().get()[0] == 0

    def test_other_kinds_of_numbers_count(self):
        counter = Metrics().counter("c")
        for number in (True, Decimal("0.5"), Fraction(1, 2), 2):
            counter.inc(number)
        assert counter.labels().get() == 4

    def test_a_number_that_counts_while_it_is_read_loses_nothing(self):
        counter = Metrics().counter("c")

        class Sneaky:
            def __float__(self):
                counter.inc(10)
                return 1.0

        counter.inc(Sneaky())
        assert counter.labels().get() == 11

    def test_unknown_names_labels_and_kinds_are_dropped_and_counted(self):
        metrics = Metrics()
        metrics.increment("no_such")
        metrics.observe("no_such", 1)
        metrics.increment("security", event="failed_login", sauce="192.0.2.1")
        metrics.observe("transaction", 0.1, stats="commit")
        metrics.increment("db_pool_wait")
        metrics.observe("error", 1)
        jobs = metrics.counter("jobs", labels=("queue",))
        jobs.labels("a", "b").inc()
        jobs.labels(quee="a").inc()
        jobs.labels("a", queue="a").inc()
        gauge = metrics.gauge("g", labels=("x",)).labels("a", "b")
        gauge.set(1)
        gauge.inc()
        gauge.dec()
        metrics.histogram("h", labels=("x",)).labels("a", "b").observe(1)
        assert dropped(metrics, "unknown_metric") == 2
        assert dropped(metrics, "unknown_label") == 9
        assert dropped(metrics, "wrong_kind") == 2
        metrics.increment(["error"])
        metrics.observe({}, 1)
        metrics.increment(None)
        assert dropped(metrics, "unknown_metric") == 5
        assert not jobs.series

    def test_labels_that_are_left_out_are_empty(self):
        metrics = Metrics()
        jobs = metrics.counter("jobs", labels=("queue", "kind"))
        jobs.inc()
        jobs.labels(kind="a").inc()
        metrics.increment("jobs")
        metrics.increment("security")
        assert {series.values: series.get() for series in jobs.series} == {("", ""): 2, ("", "a"): 1}
        assert sum(samples(metrics)["reliakit_security_total"].values()) == 1

    def test_label_values_of_any_kind_do_not_raise(self):
        class Broken:
            def __str__(self):
                raise RuntimeError

            def __hash__(self):
                raise RuntimeError

        class Odd(str):
            __slots__ = ()

            def __hash__(self):
                return 1

            def __eq__(self, other):
                raise RuntimeError

        metrics = Metrics()
        counter = metrics.counter("jobs", labels=("n",))
        for hostile in (Broken(), [], {}, None, b"x", 10**5000, float("nan"), Odd("odd"), "\ud800", 'a\nb"c\\'):
            counter.labels(hostile).inc()
            counter.labels(n=hostile).inc()
        assert sum(samples(metrics)["jobs_total"].values()) == 20

    def test_a_broken_value_counts_as_the_overflow_value(self):
        class Broken:
            def __str__(self):
                raise RuntimeError

        counter = Metrics().counter("jobs", labels=("n",))
        counter.labels(Broken()).inc()
        assert counter.labels(OTHER).get() == 1

    def test_a_reading_function_that_raises_shows_the_last_value(self):
        metrics = Metrics()
        gauge = metrics.gauge("level")
        gauge.set(7)
        gauge.set_function(lambda: 1 / 0)
        assert value(metrics, "level") == 7
        gauge.set_function(lambda: 8)
        assert value(metrics, "level") == 8

    def test_a_log_handler_that_raises_does_not_reach_the_caller(self, caplog, monkeypatch):
        monkeypatch.setattr("reliakit.metrics.family._log.warning", lambda *args: 1 / 0)
        counter = Metrics(max_series=2).counter("jobs", labels=("n",))
        for number in range(5):
            counter.labels(str(number)).inc()
        assert sum(series.get() for series in counter.series) == 5


class TestBounds:
    def test_a_hundred_thousand_values_leave_series_and_caches_flat(self):
        metrics = Metrics(max_series=100)
        counter = metrics.counter("jobs", labels=("user",))
        for number in range(100_000):
            counter.labels(f"user-{number}").inc()
        assert len(counter.series) == 100
        assert len(counter._lookup) <= 200
        assert sum(series.get() for series in counter.series) == 100_000
        assert counter.labels(OTHER).get() == 100_000 - 99
        assert all(len(row) <= 200 for row in counter.cells._rows)

    def test_an_attack_takes_no_cells_from_series_that_come_later(self):
        metrics = Metrics(max_series=50)
        for number in range(5000):
            metrics.increment("transaction", operation=f"op-{number}", status="commit")
        metrics.increment("transaction", operation="late", status="rollback")
        family = metrics._shelf.counter("transaction_total")
        assert max(series.first for series in family.series) < 60
        assert all(len(row) < 100 for row in family.cells._rows)

    def test_every_label_of_the_catalogue_is_bounded_under_attack(self):
        metrics = Metrics(max_series=100)
        for family in metrics._families.values():
            for number in range(300):
                names = {label: f"{label}-{number}" for label in family.label_names}
                if family.metric.kind == "histogram":
                    metrics.observe(family.metric.name, 1, **names)
                else:
                    metrics.increment(family.metric.name, **names)
            most = 1010 if family.metric.fixed else 100
            assert len(family.series) <= most, family
            assert len(family._lookup) <= 2 * most, family

    def test_many_spellings_of_one_series_leave_the_cache_flat(self):
        counter = Metrics(max_series=10).counter("jobs", labels=tuple("abcdefgh"))
        for spelling in itertools.product((7, "7"), repeat=8):
            counter.labels(*spelling).inc()
        assert len(counter._lookup) == 20
        assert [series.get() for series in counter.series] == [256]

    def test_long_raw_values_are_not_kept(self):
        counter = Metrics().counter("jobs", labels=("n",))
        for number in range(50):
            counter.labels(f"{number:04}" + "x" * 100_000).inc()
        assert all(len(part) <= 128 for key in counter._lookup for part in key)

    def test_overflow_keeps_the_values_that_are_known_beforehand(self):
        metrics = Metrics(max_series=50)
        for number in range(200):
            metrics.increment("transaction", service="s", operation=f"op-{number}", status="rollback")
        shown = samples(metrics)["reliakit_transaction_total"]
        rollbacks = {labels: n for labels, n in shown.items() if ("status", "rollback") in labels}
        assert sum(rollbacks.values()) == 200
        assert len(shown) <= 50
        assert any(("operation", OTHER) in labels for labels in rollbacks)

    def test_no_series_stands_in_a_scrape_twice_when_its_own_values_are_the_overflow(self):
        metrics = Metrics(max_series=10)
        for number in range(30):
            metrics.increment("security", 9, event="failed_login", source=f"10.0.0.{number}")
            metrics.increment("security", event="failed_login", source=f"10.0.0.{number}")
        jobs = metrics.counter("jobs", labels=("n",))
        jobs.labels(OTHER).inc()
        for number in range(20):
            jobs.labels(str(number)).inc()
        for name in ("reliakit_security_total", "jobs_total"):
            lines = [line for line in metrics.render().body.decode().splitlines() if line.startswith(f"{name}{{")]
            assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)
        assert sum(samples(metrics)["reliakit_security_total"].values()) == 300
        assert sum(samples(metrics)["jobs_total"].values()) == 21

    def test_the_smallest_room_still_shows_every_verdict_and_every_metric(self):
        shown = samples(Metrics(max_series=1))
        assert len(shown["reliakit_slo_verdict"]) == 28
        assert {
            n for labels, n in shown["reliakit_slo_verdict"].items() if ("verdict", "insufficient_data") in labels
        } == {1}
        assert value(Metrics(max_series=1), "reliakit_metrics_series", metric="reliakit_slo_verdict") == 28

    def test_the_smallest_room_still_counts_everything(self):
        metrics = Metrics(max_series=1)
        counter = metrics.counter("jobs", labels=("n",))
        for number in range(10):
            counter.labels(str(number)).inc()
        metrics.increment("transaction", status="commit")
        assert [(series.values, series.get()) for series in counter.series] == [((OTHER,), 10)]
        assert sum(samples(metrics)["reliakit_transaction_total"].values()) == 1

    def test_a_flood_of_error_types_still_names_its_service_and_status(self):
        metrics = Metrics(max_series=20)
        for number in range(100):
            metrics.increment("error", type=f"E{number}", service="auth", status=500)
        for number in range(100):
            metrics.increment("error", type="Late", service=f"s{number}", status=500)
        counts = samples(metrics)["reliakit_error_total"]
        assert value(metrics, "reliakit_error_total", type=OTHER, service="auth", status="500") >= 80
        assert value(metrics, "reliakit_error_total", type=OTHER, service=OTHER, status=OTHER) >= 90
        assert sum(counts.values()) == 200
        assert len(counts) <= 20

    def test_a_status_that_does_not_exist_is_other(self):
        metrics = Metrics()
        metrics.increment("transaction", service="s", operation="o", status="comitted")
        assert value(metrics, "reliakit_transaction_total", service="s", operation="o", status=OTHER) == 1

    def test_the_first_of_a_label_bring_their_siblings_at_zero(self):
        metrics = Metrics()
        metrics.increment("transaction", service="s", operation="o", status="commit")
        for status, expected in (("commit", 1), ("rollback", 0), ("timeout", 0), ("unknown", 0), ("retry", 0)):
            assert value(metrics, "reliakit_transaction_total", service="s", operation="o", status=status) == expected

    def test_an_own_label_bounds_its_values(self):
        metrics = Metrics()
        counter = metrics.counter("jobs", labels=(Label("queue", limit=2), Label("result", ("ok", "bad"), limit=0)))
        for queue in "abcd":
            counter.labels(queue, "ok").inc()
        counter.labels("a", "odd").inc()
        assert {series.values for series in counter.series} == {("a", "ok"), ("b", "ok"), (OTHER, "ok"), ("a", OTHER)}

    def test_the_values_of_a_closed_label_exist_at_zero(self):
        counter = Metrics().counter("jobs", labels=(Label.one_of("result", "ok", "failed"),))
        assert {series.values: series.get() for series in counter.series} == {("ok",): 0, ("failed",): 0}
        counter.labels("failed").inc()
        assert {series.values: series.get() for series in counter.series} == {("ok",): 0, ("failed",): 1}

    def test_a_fold_that_raises_counts_as_other(self):
        counter = Metrics().counter("jobs", labels=(Label("n", fold=lambda text: text[5]),))
        counter.labels("abc").inc()
        assert counter.labels(OTHER).get() == 1

    @given(st.integers(0, 5), st.lists(st.sampled_from("abcdefgh")))
    def test_places_keep_the_first_keys(self, limit, keys):
        places = Places(limit)
        for key in keys:
            if places.find(key) is None:
                places.add(key, key)
        assert len(places) == min(limit, len(set(keys)))


class TestLabelText:
    @given(st.text(st.characters(exclude_categories=()), max_size=300))
    def test_any_text_becomes_short_and_encodable(self, text):
        shown = label_text(text)
        shown.encode()
        assert len(shown) <= 128
        if len(text) <= 128 and not any("\ud800" <= char <= "\udfff" for char in text):
            assert shown == text

    def test_enums_numbers_and_none_have_one_spelling(self):
        class Color(StrEnum):
            RED = "red"

        assert label_text(Color.RED) == "red"
        assert label_text(HTTPStatus.NOT_FOUND) == "404"
        assert label_text(None) == ""
        assert label_text(500) == "500"

    @pytest.mark.parametrize("order", [(1, True, 1.0, "1"), ("1", 1.0, True, 1)])
    def test_equal_values_that_read_differently_are_not_mixed_up(self, order):
        counter = Metrics().counter("jobs", labels=("n",))
        for one in order:
            counter.labels(one).inc()
            counter.labels(one).inc()
        assert {series.values[0]: series.get() for series in counter.series} == {"1": 4, "True": 2, "1.0": 2}

    @pytest.mark.parametrize(
        ("address", "folded"),
        [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("::FFFF:cb00:7109", "203.0.113.9"),
            ("2001:db8:0:1:aaaa::5", "2001:db8:0:1::/64"),
            ("[2001:db8::1]", "2001:db8::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("unix", "unix"),
            ("", ""),
            ("999.1.1.1", "999.1.1.1"),
        ],
    )
    def test_addresses_are_folded(self, address, folded):
        assert fold_source(address) == folded

    @pytest.mark.parametrize(
        ("code", "folded"),
        [("40001", "40001"), ("40P01", "40P01"), ("08006", "08xxx"), ("", ""), ("4000", OTHER), ("400-1", OTHER)],
    )
    def test_sqlstates_are_folded(self, code, folded):
        assert fold_sqlstate(code) == folded

    @pytest.mark.parametrize(
        ("code", "folded"), [("200", "200"), ("", "none"), ("99", OTHER), ("600", OTHER), ("٢٠٠", OTHER)]
    )
    def test_statuses_are_folded(self, code, folded):
        assert fold_status(code) == folded

    def test_errors_and_their_classes_are_counted_under_the_name_of_the_class(self):
        metrics = Metrics()
        for kind in (ValueError("it is hunter2"), ValueError, "ValueError"):
            metrics.increment("error", type=kind, service="auth", status=500)
        assert value(metrics, "reliakit_error_total", type="ValueError", service="auth", status="500") == 3


class TestDeclarations:
    @pytest.mark.parametrize(
        "buckets",
        [
            (2, 1),
            (1, 1),
            (1, math.nan),
            (),
            (math.inf,),
            (math.inf, 1),
            (-1, 1),
            ("a",),
            (True,),
            (1, math.inf, 2),
            5,
        ],
    )
    def test_bad_buckets_are_refused(self, buckets):
        with pytest.raises(ConfigurationError, match="buckets"):
            Metrics().histogram("h", buckets=buckets)

    @pytest.mark.parametrize("objectives", [(math.nan,), (0,), (-1,), ("a",), (math.inf,), 0.1])
    def test_bad_objectives_are_refused(self, objectives):
        with pytest.raises(ConfigurationError, match="objectives"):
            Metrics().histogram("h", objectives=objectives)

    @pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "ä", None, 5])
    def test_bad_names_are_refused(self, name):
        with pytest.raises(ConfigurationError, match="name"):
            Metrics().counter(name)

    @pytest.mark.parametrize(
        "labels",
        [
            "queue",
            ("a", "a"),
            ("le",),
            ("__x",),
            ("a-b",),
            (5,),
            5,
            ("quantile",),
            (Label("a", limit=-1),),
            (Label("a", ("x" * 200,)),),
        ],
    )
    def test_bad_labels_are_refused(self, labels):
        with pytest.raises(ConfigurationError, match="label"):
            Metrics().counter("c", labels=labels)

    @pytest.mark.parametrize(
        "settings",
        [{"namespace": "a-b"}, {"namespace": None}, {"max_series": 0}, {"max_series": 1.5}, {"objectives": 5}],
    )
    def test_bad_settings_are_refused_by_name(self, settings):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            Metrics(**settings)

    def test_the_same_declaration_returns_the_same_handle(self):
        metrics = Metrics()
        assert metrics.counter("jobs", "Jobs.", ("a",)) is metrics.counter("jobs_total", "Jobs.", ("a",))
        assert metrics.histogram("h", unit="seconds") is metrics.histogram("h_seconds", unit="seconds")
        assert metrics.gauge("g") is metrics.gauge("g")

    @pytest.mark.parametrize(
        "declare",
        [
            lambda metrics: metrics.counter("jobs", labels=("b",)),
            lambda metrics: metrics.gauge("jobs"),
            lambda metrics: metrics.histogram("work", buckets=(1, 2)),
            lambda metrics: metrics.gauge("work"),
            lambda metrics: metrics.gauge("work_sum"),
            lambda metrics: metrics.counter("work"),
            lambda metrics: metrics.gauge("jobs_created"),
            lambda metrics: metrics.counter("reliakit_error"),
            lambda metrics: metrics.gauge("reliakit_transaction_duration_seconds_count"),
        ],
    )
    def test_a_clashing_declaration_is_refused(self, declare):
        metrics = Metrics()
        metrics.counter("jobs", labels=("a",))
        metrics.histogram("work", buckets=(1, 3))
        with pytest.raises(ConfigurationError, match="clashes"):
            declare(metrics)
        metrics.render("application/openmetrics-text")

    def test_only_counters_end_in_total(self):
        with pytest.raises(ConfigurationError, match="counter"):
            Metrics().gauge("jobs_total")

    def test_suffixes_are_never_doubled_and_custom_names_take_no_namespace(self):
        metrics = Metrics()
        assert metrics.counter("jobs").name == "jobs_total"
        assert metrics.counter("sent", unit="bytes").name == "sent_bytes_total"
        assert metrics.counter("got_bytes_total", unit="bytes").name == "got_bytes_total"
        assert metrics.histogram("wait_seconds", unit="seconds").name == "wait_seconds"
        assert metrics.gauge("age", unit="seconds").name == "age_seconds"

    def test_a_threshold_without_a_bound_is_refused_with_the_way_out(self):
        late = Objective("fast", below("transaction", 0.13, 0.9))
        with pytest.raises(ConfigurationError, match=re.escape("Metrics(objectives=[...])")):
            Metrics().objective(late)
        with pytest.raises(ConfigurationError, match=re.escape("objectives=[0.13]")):
            Metrics().objective(late)

    def test_an_objective_becomes_a_bucket_bound(self):
        histogram = Metrics().histogram("h", objectives=[0.13])
        assert 0.13 in histogram.bounds
        assert list(histogram.bounds) == sorted(histogram.bounds)

    def test_an_objective_of_the_constructor_becomes_a_bound_of_the_catalogue(self):
        for name in ("transaction", "reliakit_transaction_duration_seconds"):
            metrics = Metrics(objectives=[Objective("fast", below(name, 0.13, 0.9))])
            metrics.observe("transaction", 0.12, status="commit")
            assert 'le="0.13"} 1.0' in metrics.render().body.decode()

    @pytest.mark.parametrize(
        "goal",
        [
            zero("no_such"),
            below("no_such", 0.1, 0.9),
            below("error", 0.1, 0.9),
            below("transaction", 0.123, 0.9),
            zero(count("error", kind="x")),
            zero("http_server_active_requests"),
        ],
    )
    def test_an_objective_on_what_is_not_declared_is_refused(self, goal):
        with pytest.raises(ConfigurationError):
            Metrics().objective(Objective("x", goal))

    def test_two_metrics_in_one_process_do_not_know_each_other(self):
        one, other = Metrics(), Metrics()
        one.increment("error", type="E")
        one.counter("jobs").inc()
        other.counter("jobs", labels=("a",)).labels("x").inc(5)
        assert sum(samples(other).get("reliakit_error_total", {}).values()) == 0
        assert value(one, "jobs_total") == 1

    def test_repr_shows_settings_and_state(self):
        metrics = Metrics("app", max_series=7)
        assert "'app'" in repr(metrics)
        assert "max_series=7" in repr(metrics)
        assert "not attached" in repr(metrics)
        with metrics:
            assert "not attached" not in repr(metrics)
        assert "jobs_total" in repr(metrics.counter("jobs", labels=("q",)))


class TestNames:
    @pytest.mark.parametrize("name", ["error", "error_total", "reliakit_error", "reliakit_error_total"])
    def test_a_counter_answers_with_and_without_its_suffix(self, name):
        metrics = Metrics()
        metrics.increment(name, type="ValueError", service="auth", status=500)
        assert value(metrics, "reliakit_error_total", type="ValueError", service="auth", status="500") == 1

    @pytest.mark.parametrize(
        "name",
        ["transaction", "transaction_duration", "transaction_duration_seconds", "reliakit_transaction_duration"],
    )
    def test_a_histogram_answers_with_and_without_its_suffix(self, name):
        metrics = Metrics()
        metrics.observe(name, duration=0.012, status="commit", service="auth")
        labels = {"service": "auth", "operation": "", "status": "commit"}
        labels.pop("operation")
        shown = samples(metrics)["reliakit_transaction_duration_seconds_count"]
        assert [n for found, n in shown.items() if labels.items() <= dict(found).items()] == [1]

    def test_every_metric_of_the_catalogue_answers_to_its_name(self):
        metrics = Metrics()
        for family in tuple(metrics._families.values()):
            labels = dict.fromkeys(family.label_names, "x")
            if family.metric.kind == "counter":
                metrics.increment(family.metric.name, **labels)
                metrics.increment(family.metric.name.removesuffix("_total"), **labels)
            else:
                metrics.observe(family.metric.name, 1, **labels)
        shown = samples(metrics)["reliakit_metrics_dropped_total"]
        # Each reason was also incremented by this test, as `_other`, for being called "x".
        assert {dict(labels)["reason"]: n for labels, n in shown.items() if n} == {OTHER: 2}

    def test_amount_and_value_can_be_given_by_name(self):
        metrics = Metrics()
        jobs = metrics.counter("jobs")
        metrics.increment("jobs", amount=3)
        metrics.increment("jobs", 2)
        metrics.observe("db_pool_max", value=4, pool="main")
        assert jobs.labels().get() == 5
        assert value(metrics, "reliakit_db_pool_max", pool="main") == 4

    def test_an_empty_namespace_gives_the_bare_names(self):
        metrics = Metrics(namespace="")
        metrics.increment("error", type="E", service="s", status="500")
        assert value(metrics, "error_total", type="E", service="s", status="500") == 1
        assert "reliakit" not in metrics.render().body.decode().replace("reliakit's", "")

    def test_what_cannot_even_be_looked_up_is_an_unknown_name(self):
        class Broken:
            def __hash__(self):
                raise RuntimeError

        metrics = Metrics()
        for name in (Broken(), [], None):
            metrics.increment(name)
            metrics.observe(name, 1)
        assert dropped(metrics, "unknown_metric") == 6

    def test_a_label_may_be_called_name(self):
        metrics = Metrics()
        metrics.increment("circuit_breaker_calls", name="db", outcome="success")
        assert value(metrics, "reliakit_circuit_breaker_calls_total", name="db", outcome="success") == 1


class TestBirth:
    @pytest.mark.parametrize(
        ("name", "label", "values"),
        [
            ("reliakit_transaction_total", "status", {"commit", "rollback", "timeout", "unknown", "retry"}),
            ("reliakit_db_errors_total", "sqlstate", {"40001", "40P01"}),
            ("reliakit_security_total", "event", {"failed_login", "rate_limit", "invalid_token"}),
            (
                "reliakit_metrics_dropped_total",
                "reason",
                {"unknown_metric", "unknown_label", "not_finite", "negative"},
            ),
        ],
    )
    def test_known_series_are_born_at_zero(self, name, label, values):
        born = {dict(labels)[label]: n for labels, n in samples(Metrics())[name].items()}
        assert values <= born.keys()
        assert set(born.values()) == {0}

    def test_a_gauge_that_nobody_set_claims_nothing(self):
        assert "reliakit_error_oldest_open_seconds" not in samples(Metrics())


class Placed(NamedTuple):
    first: int
    width: int


def test_cells_sum_over_threads_of_different_length():
    cells = Cells()
    cells.reach(Placed(2, 1))[2] += 5

    def work():
        cells.reach(Placed(0, 1))[0] += 2

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert list(cells.sums(0, 4)) == [2, 0, 5, 0]
    assert list(cells.sums(98, 100)) == [0, 0]
    assert list(cells.read_all([Placed(0, 1), Placed(90, 2), Placed(2, 1)])) == [[2], [0, 0], [5]]
    assert list(cells.read_all([Placed(0, 2), Placed(2, 1)])) == [[2, 0], [5]]
