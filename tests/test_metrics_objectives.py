"""Verdicts do not cry wolf, windows slide, and the default objectives read what they say."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from functools import partial

import pytest
from amid import amid
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reliakit.core.errors import ConfigurationError
from reliakit.metrics import Metrics, Objective, at_most, below, complete, count, pooled, ratio, zero
from reliakit.metrics.sketch import bucket_of, quantile
from reliakit.metrics.verdicts import Reading, judge, wilson
from reliakit.metrics.windows import Span, Window, Within
from reliakit.testing import ManualClock

NAMES = [
    "transaction_latency",
    "rollback_rate",
    "deadlocks",
    "leaked_connections",
    "errors_tracked",
    "error_resolution",
    "secrets_masked",
]


def verdict(metrics, name):
    (found,) = [verdict for verdict in metrics.slo() if verdict.objective == name]
    return found


def share_is_plausible(share, part, total):
    """Return whether a true share would be off from this sample by up to 1.96 standard errors: Wilson's own test."""
    return abs(part / total - share) <= 1.959963984540054 * math.sqrt(share * (1 - share) / total)


class TestWilson:
    @given(st.integers(1, 5000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
    def test_the_interval_holds_exactly_the_plausible_shares(self, sample):
        part, total = sample
        low, high = wilson(part, total)
        assert 0 <= low <= part / total <= high <= 1
        for share in (0.001, 0.01, 0.05, 0.3, 0.5, 0.9, 0.95, 0.99):
            if min(abs(share - low), abs(share - high)) > 1e-9:
                assert (low <= share <= high) == share_is_plausible(share, part, total)

    @given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([0.01, 0.05, 0.5]))
    def test_a_ratio_is_judged_by_its_whole_interval(self, bad, good, limit):
        total = bad + good
        found = judge(Objective("x", ratio("bad", "all", limit)), Reading(bad, total))
        if total < 30:
            assert found.verdict == "insufficient_data"
            return
        low, high = wilson(bad, total)
        assert found.verdict == ("met" if high <= limit else "breached" if low > limit else "at_risk")
        assert (found.value, found.low, found.high, found.count) == (bad / total, low, high, total)

    @given(st.integers(0, 5000), st.integers(0, 5000), st.sampled_from([0.5, 0.95, 0.99]))
    def test_a_share_below_a_threshold_is_judged_by_its_whole_interval(self, good, slow, share):
        total = good + slow
        found = judge(Objective("x", below("m", 0.1, share)), Reading(good, total))
        if total < 30:
            assert found.verdict == "insufficient_data"
            return
        low, high = wilson(good, total)
        assert found.verdict == ("met" if low >= share else "breached" if high < share else "at_risk")

    def test_a_quiet_hour_does_not_cry_wolf(self):
        objective = Objective("x", ratio("bad", "all", 0.01))
        assert judge(objective, Reading(1, 50)).verdict == "at_risk"
        assert judge(objective, Reading(0, 100)).verdict == "at_risk"
        assert judge(objective, Reading(0, 400)).verdict == "met"
        assert judge(objective, Reading(40, 400)).verdict == "breached"

    def test_no_data_is_no_value(self):
        for goal in (ratio("a", "b", 0.1), below("a", 1, 0.9), complete("a", "b")):
            found = judge(Objective("x", goal), Reading(0, 0))
            assert (found.verdict, found.value, found.low, found.count) == ("insufficient_data", None, None, 0)

    def test_one_counterexample_breaches_zero_and_complete_whatever_the_minimum(self):
        assert judge(Objective("x", zero("m")), Reading(1, None)).verdict == "breached"
        assert judge(Objective("x", zero("m", among="n")), Reading(1, 2)).verdict == "breached"
        assert judge(Objective("x", complete("m", "n")), Reading(1, 2)).verdict == "breached"

    def test_zero_and_complete_wait_for_enough_to_be_called_met(self):
        assert judge(Objective("x", zero("m", among="n")), Reading(0, 29)).verdict == "insufficient_data"
        assert judge(Objective("x", zero("m", among="n")), Reading(0, 30)).verdict == "met"
        assert judge(Objective("x", zero("m")), Reading(0, None)).verdict == "met"
        assert judge(Objective("x", complete("m", "n")), Reading(29, 29)).verdict == "insufficient_data"
        assert judge(Objective("x", complete("m", "n")), Reading(30, 30)).verdict == "met"


class TestArguments:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: Objective("", zero("m")),
            lambda: Objective("x", "zero"),
            lambda: Objective("x", zero("m"), window=0),
            lambda: Objective("x", zero("m"), window=math.inf),
            lambda: Objective("x", zero("m"), minimum=0),
            lambda: Objective("x", zero("m"), period=-1),
            lambda: below("m", 0, 0.9),
            lambda: below("m", 1, 1.1),
            lambda: below("m", 1, 0),
            lambda: ratio("a", "b", -0.1),
            lambda: ratio("a", "b", 2),
            lambda: at_most("m", math.nan),
            lambda: count(""),
            lambda: zero(""),
            lambda: zero(5),
            lambda: at_most(None, 1),
            lambda: Metrics(objectives=["x"]),
            lambda: Metrics().objective("x"),
        ],
    )
    def test_wrong_arguments_are_refused(self, make):
        with pytest.raises(ConfigurationError):
            make()

    def test_an_objective_of_the_same_name_takes_the_place_of_a_default(self):
        mine = Objective("rollback_rate", ratio(count("transaction", status="rollback"), "transaction", 0.5))
        metrics = Metrics(objectives=[mine, Objective("mine", zero("db_pool_timeouts"))])
        assert [found.objective for found in metrics.slo()] == [*NAMES, "mine"]
        for status in ("commit", "rollback") * 50:
            metrics.increment("transaction", status=status)
        assert verdict(metrics, "rollback_rate").target == 0.5
        assert verdict(metrics, "rollback_rate").verdict == "at_risk"

    def test_an_objective_on_a_declared_histogram_counts_from_then_on(self):
        metrics = Metrics(clock=ManualClock())
        checkout = metrics.histogram("checkout", unit="seconds", objectives=[0.3])
        metrics.objective(Objective("checkout_fast", below(checkout, 0.3, 0.9), minimum=3))
        for seconds in (0.1, 0.3, 0.30001):
            checkout.observe(seconds)
        found = verdict(metrics, "checkout_fast")
        assert (found.value, found.count, found.verdict) == (2 / 3, 3, "at_risk")

    def test_a_share_of_measurements_is_one_of_measurements_whatever_else_has_the_name(self):
        metrics = Metrics(objectives=[Objective("quick", below("transaction", 0.05, 0.9), minimum=4)])
        metrics.increment("transaction", 1000, status="commit")
        for seconds in (0.01, 0.02, 0.05, 0.06):
            metrics.observe("transaction", seconds, status="commit")
        assert (verdict(metrics, "quick").value, verdict(metrics, "quick").count) == (0.75, 4)

    def test_a_threshold_counts_with_labels_and_sums(self):
        metrics = Metrics()
        jobs = metrics.counter("jobs", labels=("result",))
        bad = count(jobs, result=("failed", "lost")) + count("db_pool_timeouts")
        metrics.objective(Objective("jobs", ratio(bad, count(jobs), 0.5), minimum=1))
        for result in ("ok", "failed", "lost", "ok", "ok", "ok"):
            jobs.labels(result).inc()
        metrics.increment("db_pool_timeouts", pool="main")
        assert verdict(metrics, "jobs").value == 0.5


class TestDefaults:
    def test_the_seven_defaults_stand_in_their_order_with_their_targets(self):
        found = Metrics().slo()
        assert [one.objective for one in found] == NAMES
        assert [one.target for one in found] == [0.95, 0.01, 0, 0, 1.0, 3600.0, 1.0]
        assert {one.verdict for one in found} == {"insufficient_data"}
        assert {one.window for one in found} == {300.0}

    def test_latency_counts_what_took_up_to_a_tenth_of_a_second(self):
        metrics = Metrics()
        for seconds in (0.1, 0.05, 0.1000001, 3):
            for _ in range(50):
                metrics.observe("transaction", duration=seconds, status="commit")
        found = verdict(metrics, "transaction_latency")
        assert (found.value, found.count, found.verdict) == (0.5, 200, "breached")

    def test_the_rollback_rate_leaves_out_retries_and_deliberate_rollbacks(self):
        metrics = Metrics()
        metrics.increment("transaction", 990, status="commit")
        metrics.increment("transaction", 500, status="retry")
        metrics.increment("transaction", 110, status="rollback")
        metrics.increment("transaction_deliberate_rollbacks", 100)
        found = verdict(metrics, "rollback_rate")
        assert (found.value, found.count) == (0.01, 1000)

    @pytest.mark.parametrize("ways", [("increment",), ("observe",), ("increment", "observe")], ids="+".join)
    def test_transactions_count_once_whether_incremented_observed_or_both(self, ways):
        metrics = Metrics(clock=ManualClock())
        for status, times in {"commit": 90, "rollback": 10, "retry": 7}.items():
            for way, _ in itertools.product(ways, range(times)):
                amount = {"duration": 0.01} if way == "observe" else {}
                getattr(metrics, way)("transaction", status=status, service="auth", **amount)
        assert verdict(metrics, "rollback_rate").value == 0.1
        assert verdict(metrics, "rollback_rate").count == 100
        assert verdict(metrics, "rollback_rate").verdict == "breached"
        for name in ("deadlocks", "leaked_connections"):
            assert verdict(metrics, name).verdict == "met"
            assert verdict(metrics, name).count == 107

    def test_counts_of_the_same_in_several_places_are_not_added(self):
        metrics = Metrics(clock=ManualClock())
        for name, times in {"a": 3, "b": 5, "c": 4}.items():
            metrics.counter(name).inc(times)
        anywhere = count("a") | count("b") | count("c")
        metrics.objective(Objective("o", zero(anywhere)))
        for name, times in {"a": 3, "b": 5, "c": 4}.items():
            metrics.counter(name).inc(times)
        assert verdict(metrics, "o").value == 5
        for join in (lambda: anywhere + count("a"), lambda: count("a") - anywhere):
            with pytest.raises(ConfigurationError):
                join()

    def test_a_deadlock_that_a_retry_resolved_is_not_surfaced(self):
        metrics = Metrics()
        metrics.increment("transaction", 100, status="commit")
        metrics.increment("db_errors", sqlstate="40P01")
        metrics.increment("transaction_retries", reason="deadlock")
        assert verdict(metrics, "deadlocks").verdict == "met"
        metrics.increment("db_errors", sqlstate="40P01")
        found = verdict(metrics, "deadlocks")
        assert (found.value, found.verdict) == (1, "breached")

    def test_one_leaked_connection_breaches_at_once(self):
        metrics = Metrics()
        metrics.increment("db_pool_leaked_connections", pool="main")
        assert verdict(metrics, "leaked_connections").verdict == "breached"

    def test_an_error_that_cannot_be_counted_breaches(self):
        metrics = Metrics()
        metrics.increment("error", 40, type="E", service="s", status=500)
        assert verdict(metrics, "errors_tracked").verdict == "met"
        metrics.increment("error", typ="E")
        found = verdict(metrics, "errors_tracked")
        assert (found.value, found.verdict) == (40 / 41, "breached")

    def test_a_secret_found_in_the_log_breaches(self):
        metrics = Metrics()
        metrics.increment("log_secrets", 99, result="masked")
        assert verdict(metrics, "secrets_masked").verdict == "met"
        metrics.increment("log_secrets", result="leaked")
        found = verdict(metrics, "secrets_masked")
        assert (found.value, found.verdict) == (0.99, "breached")

    def test_error_resolution_says_nothing_until_somebody_knows(self):
        metrics = Metrics()
        assert verdict(metrics, "error_resolution").value is None
        metrics.observe("error_oldest_open_seconds", 3600)
        assert verdict(metrics, "error_resolution").verdict == "met"
        metrics.observe("error_oldest_open_seconds", 3601)
        assert verdict(metrics, "error_resolution").verdict == "breached"

    def test_a_gauge_that_was_cleared_breaches_nothing(self):
        metrics = Metrics()
        queue = metrics.gauge("queue")
        metrics.objective(Objective("short_queue", at_most(queue, 5)))
        assert verdict(metrics, "short_queue").verdict == "met"
        queue.set(6)
        assert verdict(metrics, "short_queue").verdict == "breached"
        queue.labels().clear()
        found = verdict(metrics, "short_queue")
        assert (found.verdict, found.value, found.count) == ("insufficient_data", None, 0)

    def test_the_verdicts_stand_in_the_scrape(self):
        metrics = Metrics()
        metrics.increment("db_pool_leaked_connections", pool="main")
        body = metrics.render().body.decode()
        assert 'reliakit_slo_verdict{slo="leaked_connections",verdict="breached"} 1.0' in body
        assert 'reliakit_slo_verdict{slo="leaked_connections",verdict="met"} 0.0' in body


class TestBudget:
    """A ratio objective of 1 % over a budget of 100 000 s."""

    @pytest.fixture
    def clock(self):
        return ManualClock(start=50.0)

    @pytest.fixture
    def metrics(self, clock):
        goal = ratio(count("transaction_total", status="rollback"), "transaction_total", 0.01)
        return Metrics(objectives=[Objective("rollback_rate", goal, period=100_000)], clock=clock)

    def test_nothing_spent_is_a_whole_budget_and_no_pace(self, metrics, clock):
        clock.advance(100)
        metrics.increment("transaction", 1000, status="commit")
        found = verdict(metrics, "rollback_rate")
        assert (found.budget_left, found.pace, found.gone_after) == (1.0, 0.0, None)

    def test_pace_says_when_the_budget_will_be_gone(self, metrics, clock):
        clock.advance(1000)
        metrics.increment("transaction", 950, status="commit")
        metrics.increment("transaction", 50, status="rollback")
        found = verdict(metrics, "rollback_rate")
        # Five times what is allowed, for a hundredth of the period.
        assert found.pace == pytest.approx(5)
        assert found.budget_left == pytest.approx(0.95)
        assert found.gone_after == pytest.approx(0.95 * 100_000 / 5)

    def test_what_renews_as_fast_as_it_is_spent_never_ends(self, metrics, clock):
        clock.advance(1000)
        metrics.increment("transaction", 990, status="commit")
        metrics.increment("transaction", 10, status="rollback")
        found = verdict(metrics, "rollback_rate")
        assert found.pace == pytest.approx(1)
        assert found.gone_after is None

    def test_a_budget_outlives_the_window_and_is_gone_when_it_is_spent(self, metrics, clock):
        metrics.increment("transaction", 10, status="rollback")
        clock.advance(50_000)
        assert verdict(metrics, "rollback_rate").value is None
        assert verdict(metrics, "rollback_rate").budget_left == pytest.approx(1 - 50)
        metrics.increment("transaction", 9990, status="commit")
        found = verdict(metrics, "rollback_rate")
        assert (found.pace, found.gone_after) == (0.0, None)
        assert found.budget_left == pytest.approx(1 - 0.1 * 0.5)
        metrics.increment("transaction", 1000, status="rollback")
        assert verdict(metrics, "rollback_rate").budget_left < 0
        assert verdict(metrics, "rollback_rate").gone_after == 0
        clock.advance(100_001)
        assert verdict(metrics, "rollback_rate").budget_left == 1.0

    def test_latency_has_a_budget_too(self, clock):
        metrics = Metrics(clock=clock)
        clock.advance(30 * 86_400 / 10)
        for seconds in (0.05,) * 60 + (0.2,) * 40:
            metrics.observe("transaction", seconds, status="commit")
        found = verdict(metrics, "transaction_latency")
        assert found.pace == pytest.approx(8)
        assert found.budget_left == pytest.approx(0.2)

    def test_what_must_never_happen_forgives_nothing(self):
        metrics = Metrics(clock=ManualClock())
        assert verdict(metrics, "leaked_connections").budget_left == 1.0
        metrics.increment("db_pool_leaked_connections", pool="main")
        assert verdict(metrics, "leaked_connections").budget_left == 0.0

    def test_the_scrape_carries_it_and_forgets_what_is_not_known_any_more(self, metrics, clock):
        clock.advance(1000)
        metrics.increment("transaction", 50, status="rollback")
        body = metrics.render().body.decode()
        assert 'reliakit_slo_burn_rate{slo="rollback_rate"} 100.0\n' in body
        assert 'reliakit_slo_error_budget_remaining_ratio{slo="rollback_rate",window="100000s"} 0.0\n' in body
        assert 'reliakit_slo_target{slo="rollback_rate",goal="ratio"} 0.01\n' in body
        clock.advance(1000)
        body = metrics.render().body.decode()
        assert 'reliakit_slo_burn_rate{slo="rollback_rate"}' not in body
        assert 'reliakit_slo_value{slo="rollback_rate"}' not in body
        assert 'reliakit_slo_events{slo="rollback_rate"} 0.0\n' in body


class TestQuantiles:
    @settings(max_examples=40)
    @given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60), st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]))
    def test_a_quantile_is_within_one_percent(self, values, share):
        wanted = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
        assert quantile(Counter(map(bucket_of, values)), share) == pytest.approx(wanted, rel=0.0101)

    def test_what_is_shown_is_the_windows_own(self):
        clock = ManualClock(start=7.0)
        metrics = Metrics(clock=clock)
        assert verdict(metrics, "transaction_latency").quantile is None
        metrics.observe("transaction", 9.0, status="commit")
        clock.advance(400)
        for thousandths in range(1, 101):
            metrics.observe("transaction", thousandths / 1000, status="commit")
        assert verdict(metrics, "transaction_latency").quantile == pytest.approx(0.095, rel=0.0101)
        assert 'reliakit_slo_quantile_seconds{slo="transaction_latency"} 0.09' in metrics.render().body.decode()
        clock.advance(320)
        assert verdict(metrics, "transaction_latency").quantile is None

    def test_nothing_is_too_small_or_too_great_to_be_counted(self):
        assert quantile(Counter([bucket_of(0.0)]), 1.0) == pytest.approx(1e-6, rel=0.02)
        assert quantile(Counter([bucket_of(1e200)]), 1.0) == pytest.approx(1e6, rel=0.02)
        assert quantile(Counter(), 0.5) is None


class TestPooling:
    def test_workers_are_judged_together(self):
        workers = [Metrics(clock=ManualClock()) for _ in range(3)]
        for number, metrics in enumerate(workers):
            metrics.increment("transaction", 400 + number, status="commit")
            metrics.increment("transaction", number, status="rollback")
            metrics.increment("error", 20, type="E")
            metrics.observe("error_oldest_open_seconds", 10.0 * number)
        alone = [verdict(metrics, "rollback_rate").verdict for metrics in workers]
        assert alone == ["met", "at_risk", "at_risk"]
        together = {one.objective: one for one in pooled(one for metrics in workers for one in metrics.slo())}
        assert list(together) == NAMES
        rate = together["rollback_rate"]
        assert (rate.value, rate.count) == (3 / 1206, 1206)
        assert rate.verdict == judge(Objective("x", ratio("a", "b", 0.01)), Reading(3, 1206)).verdict == "met"
        assert (together["errors_tracked"].verdict, together["errors_tracked"].count) == ("met", 60)
        assert (together["error_resolution"].verdict, together["error_resolution"].value) == ("met", 20.0)
        assert together["deadlocks"].verdict == "met"
        assert together["secrets_masked"].verdict == "insufficient_data"

    def test_one_counterexample_is_not_talked_away(self):
        quiet, loud = Metrics(), Metrics()
        quiet.increment("transaction", 1000, status="commit")
        loud.increment("db_pool_leaked_connections", pool="main")
        together = {one.objective: one.verdict for one in pooled([*quiet.slo(), *loud.slo()])}
        assert together["leaked_connections"] == "breached"

    def test_what_never_happened_without_a_whole_stays_met(self):
        both = [Metrics(objectives=[Objective("mine", zero("db_pool_timeouts"))]) for _ in range(2)]
        assert {one.verdict for one in pooled(one for m in both for one in m.slo()) if one.objective == "mine"} == {
            "met"
        }


class TestWindows:
    def test_what_is_older_than_the_window_is_forgotten(self):
        clock = ManualClock(start=1000.5)
        metrics = Metrics(clock=clock)
        metrics.increment("transaction", 100, status="rollback")
        clock.advance(298)
        assert verdict(metrics, "rollback_rate").count == 100
        clock.advance(2)
        assert verdict(metrics, "rollback_rate").verdict == "insufficient_data"
        assert verdict(metrics, "rollback_rate").count == 0

    def test_a_window_that_nobody_reads_does_not_grow(self):
        clock = ManualClock()
        window = Window(Span(300.0, 3000.0), clock)
        for _ in range(2_000):
            window.add(1)
            clock.advance(5)
        (row,) = window._rows
        assert len(row.window) <= 102
        assert len(row.period) <= 102

    def test_what_left_the_window_stays_in_the_period_until_that_is_over(self):
        clock = ManualClock(start=1000.0)
        window = Window(Span(300.0, 30_000.0), clock)
        window.add(5)
        clock.advance(400)
        assert window.totals() == (0, 5)  # not moved yet
        window.add(1)
        clock.advance(400)
        window.add(1)
        assert window.totals() == (1, 7)
        clock.advance(29_000)
        assert window.totals() == (0, 7)
        clock.advance(1_000)
        assert window.totals() == (0, 0)

    def test_a_short_lived_thread_leaves_its_row_to_the_next(self):
        window = Window(Span(300.0, 3000.0), ManualClock())
        for _ in range(50):
            thread = threading.Thread(target=window.add, args=(1,))
            thread.start()
            thread.join()
        assert window.totals()[0] == 50
        assert len(window._rows) <= 3

    def test_threads_lose_nothing_in_a_window(self):
        window = Window(Span(300.0, 3000.0), ManualClock())
        totals = []

        def work():
            for _ in range(3000):
                window.add(1)
            totals.append(window.totals()[0])

        crowd = [threading.Thread(target=work) for _ in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        assert window.totals()[0] == 24_000
        assert max(totals) <= 24_000

    def test_counting_in_the_middle_of_a_turn_neither_raises_nor_loses(self):
        for at in itertools.count(1):
            clock = ManualClock()
            window = Within(Span(300.0, 30_000.0), 0.1, clock)
            for seconds in (40_000, 4, 4, 400):  # the next turn empties the window, and a slot of the period
                window.add(0.05)
                clock.advance(seconds)
            if not amid("metrics/windows.py", at, partial(window.add, 0.05), partial(window.add, 0.2)):
                break
            assert window.totals(0) == (2, 5)
            assert window.totals(1) == (1, 4)
            assert window.quantile(1.0) == pytest.approx(0.2, rel=0.01)
        assert at > 40


class WindowMachine(RuleBasedStateMachine):
    """A window against the list of everything that was added."""

    def __init__(self):
        super().__init__()
        self.clock = ManualClock(start=12.34)
        self.window = Window(Span(30.0, 60.0), self.clock)
        self.history = []

    @rule(amount=st.integers(1, 9), times=st.integers(1, 3))
    def add(self, amount, times):
        for _ in range(times):
            self.window.add(amount)
            self.history.append((self.clock.monotonic(), amount))

    @rule(seconds=st.one_of(st.floats(0.001, 1), st.floats(1, 40), st.just(0.1), st.just(30.0)))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def holds_the_window_to_the_nearest_slot(self):
        now = self.clock.monotonic()
        slot, rounding = 30.0 / 100, 1e-9
        surely = sum(amount for at, amount in self.history if now - at < 30.0 - slot - rounding)
        possibly = sum(amount for at, amount in self.history if now - at <= 30.0 + rounding)
        assert surely <= self.window.totals()[0] <= possibly


TestWindowMachine = WindowMachine.TestCase
TestWindowMachine.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_part_never_exceeds_its_whole_while_threads_count():
    metrics = Metrics()
    stop = threading.Event()

    def work():
        for number in itertools.count():
            if stop.is_set():
                return
            metrics.observe("transaction", 0.01 if number % 2 else 1.0, status="commit")

    crowd = [threading.Thread(target=work) for _ in range(3)]
    for thread in crowd:
        thread.start()
    try:
        for _ in range(200):
            found = verdict(metrics, "transaction_latency")
            assert found.value is None or 0 <= found.value <= 1
    finally:
        stop.set()
        for thread in crowd:
            thread.join()
