"""Sources of security events: the sums are exact, the heavy ones are named, and no attack adds series."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit.core.errors import ConfigurationError
from reliakit.metrics import Metrics
from reliakit.metrics.labels import OTHER
from reliakit.metrics.sources import HeavyHitters, SpaceSaving


def events(metrics, event="failed_login"):
    """Return {source: count} of one kind of event."""
    family = next(family for family in metrics._families.values() if family.name.endswith("security_total"))
    totals = {}
    for series in family.series:
        if series.values[0] == event:
            assert series.values[1] not in totals
            totals[series.values[1]] = series.get()
    return totals


class TestSpaceSaving:
    @given(st.integers(1, 12), st.lists(st.integers(0, 30).map(str)))
    def test_the_guarantees_of_the_paper_hold(self, capacity, stream):
        sketch, true = SpaceSaving(capacity), Counter()
        for key in stream:
            true[key] += 1
            certain = sketch.offer(key)
            count, error = sketch.estimate(key)
            assert certain == count - error
            assert len(sketch) <= capacity
        for key, times in true.items():
            estimate = sketch.estimate(key)
            if estimate is None:
                assert times <= len(stream) / capacity
            else:
                count, error = estimate
                assert count - error <= times <= count
                assert error <= len(stream) / capacity
        kept = [sketch.estimate(key) for key in true if sketch.estimate(key) is not None]
        assert sum(count for count, _ in kept) == len(stream)

    @given(st.integers(1, 5), st.lists(st.integers(0, 12).map(str), max_size=60))
    def test_it_equals_the_naive_algorithm(self, capacity, stream):
        sketch, naive = SpaceSaving(capacity), {}
        order = itertools.count()
        for key in stream:
            if key in naive:
                naive[key] = (naive[key][0] + 1, naive[key][1], next(order))
            elif len(naive) < capacity:
                naive[key] = (1, 0, next(order))
            else:
                victim = min(naive, key=lambda known: (naive[known][0], naive[known][2]))
                least = naive.pop(victim)[0]
                naive[key] = (least + 1, least, next(order))
            sketch.offer(key)
        assert {key: sketch.estimate(key) for key in naive} == {key: (n, e) for key, (n, e, _) in naive.items()}

    def test_an_event_costs_the_same_however_many_keys_are_kept(self):
        sketch = SpaceSaving(512)
        for number in range(5000):
            sketch.offer(str(number))
        # All keys stand in the two lowest buckets, which is all that an eviction looks at.
        assert len(sketch._buckets) <= 2


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "sources", "shown"),
        [
            ("ip", ["203.0.113.9", "2001:db8:1:2::9"], {"203.0.113.9", "2001:db8:1:2::/64"}),
            ("prefix", ["203.0.113.9", "203.0.113.77", "2001:db8:1:2::9"], {"203.0.113.0/24", "2001:db8:1::/48"}),
            ("prefix", ["::ffff:203.0.113.9", "unix"], {"203.0.113.0/24", "unix"}),
            ("off", ["203.0.113.9", "unix"], set()),
        ],
    )
    def test_a_source_that_is_often_seen_is_shown_as_the_mode_says(self, mode, sources, shown):
        metrics = Metrics(source=mode)
        for source in sources * 5:
            metrics.increment("security", event="failed_login", source=source)
        assert set(events(metrics)) == shown | {OTHER}
        assert sum(events(metrics).values()) == 5 * len(sources)

    def test_networks_are_few_so_all_exist_from_the_start_and_count_at_once(self):
        metrics = Metrics(source="network")
        assert events(metrics) == {OTHER: 0, "loopback": 0, "private": 0, "public": 0}
        for source in (
            "127.0.0.1",
            "::1",
            "unix",
            "10.1.2.3",
            "fd00::1",
            "100.64.0.1",
            "8.8.8.8",
            "::ffff:8.8.8.8",
            "x",
        ):
            metrics.increment("security", event="failed_login", source=source)
        assert events(metrics) == {OTHER: 1, "loopback": 3, "private": 3, "public": 2}

    def test_pseudonyms_are_equal_for_equal_addresses_under_one_key_only(self):
        def named(key, source):
            metrics = Metrics(source="hmac", hmac_key=key)
            metrics.increment("security", 5, event="failed_login", source=source)
            (name,) = set(events(metrics)) - {OTHER}
            return name

        one = named("k" * 16, "2001:db8::1")
        assert one == named(b"k" * 16, "2001:db8::2")  # the same /64
        assert len({one, named("l" * 16, "2001:db8::1"), named("k" * 16, "192.0.2.1")}) == 3
        assert one.startswith("hmac:")
        assert "2001" not in one

    @pytest.mark.parametrize(
        "settings",
        [
            {"source": "addresses"},
            {"source": None},
            {"source": "hmac"},
            {"source": "ip", "hmac_key": "k" * 16},
            {"source": "hmac", "hmac_key": "short"},
            {"source": "hmac", "hmac_key": 5},
        ],
    )
    def test_bad_settings_are_refused(self, settings):
        with pytest.raises(ConfigurationError, match=r"source|hmac_key"):
            Metrics(**settings)


class TestNames:
    def test_a_source_is_named_after_five_events(self):
        metrics = Metrics()
        for number in range(12):
            metrics.increment("security", event="failed_login", source="203.0.113.9")
            assert ("203.0.113.9" in events(metrics)) == (number >= 4)
        assert events(metrics) == {OTHER: 5, "203.0.113.9": 7}

    def test_a_named_source_is_born_at_zero(self):
        metrics = Metrics()
        metrics.increment("security", 5, event="failed_login", source="203.0.113.9")
        assert events(metrics)["203.0.113.9"] == 0

    def test_sources_fold_before_they_count(self):
        metrics = Metrics()
        for number in range(5):
            metrics.increment("security", event="failed_login", source=f"2001:db8:1:2::{number}")
            metrics.increment(
                "security", event="failed_login", source="::ffff:192.0.2.1" if number % 2 else "192.0.2.1"
            )
        assert set(events(metrics)) == {OTHER, "2001:db8:1:2::/64", "192.0.2.1"}

    def test_a_hundred_thousand_addresses_add_no_series_and_heavy_ones_are_found(self):
        metrics = Metrics()
        draw = random.Random(7)
        heavy = [f"198.51.100.{number}" for number in range(8)]
        sent = Counter()
        for number in range(100_000):
            source = draw.choice(heavy) if number % 10 == 0 else f"10.{draw.randrange(1 << 24)}"
            sent[source] += 1
            metrics.increment("security", event="failed_login", source=source)
        found = events(metrics)
        assert set(heavy) <= found.keys()
        assert len(found) <= 101
        assert sum(found.values()) == 100_000
        assert all(found[source] <= sent[source] for source in heavy)

    def test_at_most_a_hundred_are_named(self):
        metrics = Metrics()
        for number in range(300):
            for _ in range(10):
                metrics.increment("security", event="rate_limit", source=f"192.0.2.{number}")
        found = events(metrics, "rate_limit")
        assert len(found) == 101
        assert sum(found.values()) == 3000

    def test_unknown_events_are_bounded_and_the_rest_is_other(self):
        metrics = Metrics()
        for number in range(500):
            metrics.increment("security", event=f"event-{number}", source="192.0.2.1")
        family = next(family for family in metrics._families.values() if family.name.endswith("security_total"))
        assert len(family.series) < 60
        assert sum(series.get() for series in family.series) == 500

    def test_a_bound_handle_follows_its_source_to_its_name(self):
        metrics = Metrics()
        handle = metrics._shelf.counter("security_total").labels("failed_login", "192.0.2.1")
        for _ in range(7):
            handle.inc()
        assert events(metrics) == {OTHER: 5, "192.0.2.1": 2}
        assert handle.get() == 2

    @pytest.mark.parametrize("source", ["", None, OTHER, "unix", "x" * 500, "\ud800", 5, "a\n"])
    def test_odd_sources_count(self, source):
        metrics = Metrics()
        for _ in range(10):
            metrics.increment("security", event="failed_login", source=source)
        assert sum(events(metrics).values()) == 10

    @pytest.mark.parametrize("amount", [float("nan"), -1, None, "x", 1e300])
    def test_odd_amounts_are_dropped_and_earn_no_name(self, amount):
        metrics = Metrics()
        for _ in range(10):
            metrics.increment("security", amount, event="failed_login", source="192.0.2.1")
        assert events(metrics) == {OTHER: 0}

    def test_threads_lose_no_event_and_no_name(self):
        metrics = Metrics()

        def work(number):
            for step in range(1000):
                metrics.increment("security", event="failed_login", source=f"192.0.2.{step % 20}")

        crowd = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        found = events(metrics)
        assert sum(found.values()) == 8000
        assert len(found) == 21

    def test_noticing_never_waits_for_the_lock(self):
        hitters = HeavyHitters()
        with hitters._lock:
            hitters.notice("a", 5)
            assert not hitters.is_named("a")
        hitters.notice("b")
        assert hitters.is_named("a")
