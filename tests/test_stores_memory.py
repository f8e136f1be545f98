"""The memory store: exact, bounded, and nothing but time frees a key that is limited."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import Generator
from fractions import Fraction
from typing import Any

import pytest
from garbage import CollectingCost, abandon, held_elsewhere, in_time
from hypothesis import given
from hypothesis import strategies as st
from interloper import Interloper

from reliakit import SYSTEM_CLOCK, ConfigurationError, Limit, RateLimiter
from reliakit.stores import MemoryStore
from reliakit.stores.algorithms import machine_for
from reliakit.stores.protocol import ALGORITHMS, FOREVER, Algorithm, Op, Plan, Rule
from reliakit.testing import ManualClock

SECOND = 10**9
PLAN = Plan("login", (Rule("gcra", 5, 3600 * SECOND, 5),))


class Reference:
    """One rule as its definition reads, over everything that was ever spent; fractions, so nothing is rounded."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.spent: list[int] = []

    def admits(self, now: int, cost: int) -> bool:
        return getattr(self, f"_{self.rule.algorithm}")(now, cost)

    def spend(self, now: int, cost: int) -> None:
        self.spent += [now] * cost

    def _gcra(self, now: int, cost: int) -> bool:
        """A bucket of `burst` tokens that fills with limit / period."""
        rate = Fraction(self.rule.limit, self.rule.period)
        level, since = Fraction(self.rule.burst), 0
        for at in self.spent:
            level = min(Fraction(self.rule.burst), level + (at - since) * rate) - 1
            since = at
        return min(Fraction(self.rule.burst), level + (now - since) * rate) >= cost

    def _sliding_log(self, now: int, cost: int) -> bool:
        return sum(at > now - self.rule.period for at in self.spent) + cost <= self.rule.limit

    def _windows(self) -> dict[int, int]:
        """Return start -> sum, each window beginning with the first cost after the last one's end."""
        windows: dict[int, int] = {}
        for at in self.spent:
            start = max(windows, default=None)
            if start is None or at >= start + self.rule.period:
                start = at
            windows[start] = windows.get(start, 0) + 1
        return windows

    def _fixed_window(self, now: int, cost: int) -> bool:
        return (
            sum(n for start, n in self._windows().items() if now < start + self.rule.period) + cost <= self.rule.limit
        )

    def _sliding_counter(self, now: int, cost: int) -> bool:
        period = self.rule.period
        start, before, here = 0, 0, 0
        for at, units in [*((at, 1) for at in self.spent), (now, 0)]:
            while (before or here) and at >= start + period:
                start, before, here = start + period, here, 0
            if not (before or here):
                start = at
            here += units
        return Fraction(before * (start + period - now), period) + here + cost <= self.rule.limit


def rules(algorithms: tuple[Algorithm, ...] = ALGORITHMS) -> st.SearchStrategy[Rule]:
    def build(algorithm: Algorithm, limit: int, period: int, burst: int) -> Rule:
        return Rule(algorithm, limit, period, burst if algorithm == "gcra" else limit)

    return st.builds(
        build,
        st.sampled_from(algorithms),
        st.integers(1, 7),
        st.sampled_from([1, 3, 10, 60, 997]),
        st.integers(1, 9),
    )


PAUSES = st.one_of(st.just(0), st.integers(0, 20), st.integers(0, 2000))


class Nanoseconds(ManualClock):
    """A clock that is set to whole nanoseconds."""

    at = 1

    def monotonic(self) -> float:
        return self.at / 1e9


@given(rules(), st.lists(st.tuples(PAUSES, st.integers(1, 4)), max_size=60))
def test_each_machine_admits_exactly_what_its_definition_does(rule: Rule, history: list[tuple[int, int]]) -> None:
    machine, reference = machine_for((rule,)), Reference(rule)
    state: Any = None
    now = 1
    for pause, wanted in history:
        now += pause
        cost = min(wanted, rule.burst)
        remaining, full = machine.look(state, now)
        assert remaining == max((n for n in range(1, rule.burst + 1) if reference.admits(now, n)), default=0)
        answer, after = machine.hit(state, now, cost, 0)
        assert answer.admitted == reference.admits(now, cost)
        if answer.admitted:
            reference.spend(now, cost)
            assert answer.wait == 0
            state = after
        else:
            assert after == state
            # The wait is the true one: it fits then, and not a nanosecond before.
            assert reference.admits(now + answer.wait, cost)
            assert not reference.admits(now + answer.wait - 1, cost)
        assert (answer.remaining, now + answer.reset) == (
            machine.look(state, now)[0],
            max(now, machine.look(state, now)[1]),
        )
        if full <= now:
            assert machine.hit(None, now, cost, 0) == (answer, after)


@given(
    st.one_of(
        st.tuples(st.lists(rules(), min_size=1, max_size=2), st.just(1)),
        st.tuples(st.lists(rules(("gcra",)), min_size=1, max_size=1), st.just(420)),  # all that are drawn divide it
    ),
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from("aaab"), st.booleans()), min_size=10, max_size=50),
)
def test_a_limiter_admits_exactly_what_the_definitions_do(
    drawn: tuple[list[Rule], int], history: list[tuple[int, str, bool]]
) -> None:
    together, unit = drawn
    clock = Nanoseconds()
    limits = [Limit(rule.limit, rule.period * unit / 1e9, rule.burst, rule.algorithm) for rule in together]
    limiter = RateLimiter(*limits, clock=clock)
    references = {key: [Reference(limit.rule) for limit in limits] for key in "ab"}

    def left(key: str) -> int:
        counts = range(1, min(rule.burst for rule in together) + 1)
        return max((n for n in counts if all(each.admits(clock.at, n) for each in references[key])), default=0)

    async def play() -> None:
        for pause, key, is_task in history:
            clock.at += pause * unit
            is_due = left(key) > 0
            decision = await limiter.ahit(key) if is_task else limiter.hit(key)
            assert decision.allowed == is_due
            if decision:
                for reference in references[key]:
                    reference.spend(clock.at, 1)
                assert decision.retry_after == 0.0
            else:
                # The wait is the true one: it fits then, and not a nanosecond before.
                due = clock.at + round(decision.retry_after * 1e9)
                assert all(each.admits(due, 1) for each in references[key])
                assert not all(each.admits(due - 1, 1) for each in references[key])
            assert decision.remaining == left(key)
            assert decision.reset_after == limiter.peek(key).reset_after
            assert decision.rule in limits
            assert decision.limit == decision.rule.amount

    asyncio.run(play())
    stats = limiter.stats()
    assert stats.admitted + stats.denied == len(history)
    assert stats.admitted == sum(len(reference.spent) for reference in (each[0] for each in references.values()))


@given(rules(), st.lists(st.tuples(PAUSES, st.integers(1, 4)), max_size=40))
def test_reservations_never_break_the_limit_and_never_overtake(rule: Rule, history: list[tuple[int, int]]) -> None:
    # Whole nanoseconds for every limit drawn: an instant between two is rounded up, and the next one is not.
    rule = rule._replace(period=rule.period * 420)
    machine, reference = machine_for((rule,)), Reference(rule)
    state: Any = None
    now, last = 1, 0
    for pause, wanted in history:
        now += pause
        cost = min(wanted, rule.burst)
        answer, state = machine.hit(state, now, cost, FOREVER)
        due = now + answer.wait
        assert due >= max(now, last)
        assert reference.admits(due, cost)
        reference.spend(due, cost)
        last = due


@given(rules(), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), max_size=80))
def test_no_window_holds_more_than_the_algorithm_s_bound(rule: Rule, history: list[tuple[int, int]]) -> None:
    machine = machine_for((rule,))
    state: Any = None
    spent: list[int] = []
    now = 1
    for pause, wanted in history:
        now += pause
        cost = min(wanted, rule.burst)
        answer, state = machine.hit(state, now, cost, 0)
        if answer.admitted:
            spent += [now] * cost
    bound = {
        "gcra": rule.burst + rule.limit - 1,
        "sliding_log": rule.limit,
        "sliding_counter": 2 * rule.limit,
        "fixed_window": 2 * rule.limit,
    }[rule.algorithm]
    for start in spent:
        assert sum(start <= at < start + rule.period for at in spent) <= bound


@given(
    st.lists(rules(), min_size=2, max_size=3).map(tuple),
    st.lists(st.tuples(PAUSES, st.integers(1, 3), st.sampled_from([0, 0, 50, 10**6])), max_size=40),
)
def test_several_rules_are_all_or_nothing(together: tuple[Rule, ...], history: list[tuple[int, int, int]]) -> None:
    machine, references = machine_for(together), [Reference(rule) for rule in together]
    least = min(rule.burst for rule in together)
    state: Any = None
    now, last = 1, 0
    for pause, wanted, patience in history:
        now += pause
        cost = min(wanted, least)
        answer, state = machine.hit(state, now, cost, patience)
        due = now + answer.wait
        assert answer.admitted == (answer.wait <= patience)
        assert all(reference.admits(due, cost) for reference in references)
        if answer.admitted:
            assert due >= last
            last = due
            for reference in references:
                reference.spend(due, cost)
        elif last <= now:
            assert not all(reference.admits(due - 1, cost) for reference in references)
            assert not references[answer.binding].admits(now, cost)


@given(
    st.lists(rules(), min_size=1, max_size=2).map(tuple),
    st.lists(st.tuples(PAUSES, st.integers(1, 4)), max_size=12),
    st.integers(1, 12),
    st.lists(st.tuples(PAUSES, st.integers(1, 4)), max_size=6),
)
def test_reservations_given_back_last_first_leave_no_trace(
    together: tuple[Rule, ...], before: list[tuple[int, int]], count: int, after: list[tuple[int, int]]
) -> None:
    machine = machine_for(together)
    least = min(rule.burst for rule in together)
    state: Any = None
    now = 1
    for pause, wanted in before:
        now += pause
        _, state = machine.hit(state, now, min(wanted, least), FOREVER)
    untouched, reservations = state, 0
    for _ in range(count):
        answer, state = machine.hit(state, now, 1, FOREVER)
        if answer.wait:
            reservations += 1
        else:
            untouched = state
    for _ in range(reservations):
        state = machine.refund(state, now, 1)
    for pause, wanted in after:
        now += pause
        cost = min(wanted, least)
        (ours, state), (expected, untouched) = (machine.hit(each, now, cost, FOREVER) for each in (state, untouched))
        assert ours == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_giving_back_never_leads_to_more_than_the_burst(algorithm: Algorithm) -> None:
    machine = machine_for((Rule(algorithm, 3, 10, 3),))
    state: Any = None
    for _ in range(2):
        _, state = machine.hit(state, 1, 1, 0)
    for _ in range(5):
        state = machine.refund(state, 1, 2)
        assert machine.look(state, 1)[0] <= 3
    assert machine.look(state, 1)[0] == 3


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([0, 1, 30, 3599, 3600, 9000])), max_size=80))
def test_keys_never_disturb_each_other_and_expire_by_themselves(history: list[tuple[str, int]]) -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    machine = machine_for(PLAN.rules)
    alone: dict[str, Any] = {}
    for key, pause in history:
        clock.advance(pause)
        answer, alone[key] = machine.hit(alone.get(key), round(clock.monotonic() * 1e9), 1, 0)
        assert store.apply(Op.HIT, PLAN, key, 1) == answer


def test_keys_that_are_as_good_as_new_are_forgotten_without_a_thread_or_a_scan() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    for number in range(1000):
        store.apply(Op.HIT, PLAN, f"key {number}", 1)
    assert len(store) == 1000
    clock.advance(3 * 3600)
    before = threading.active_count()
    for _ in range(600):
        store.apply(Op.HIT, PLAN, "only one", 1)
        clock.advance(13)
    assert len(store) == 1
    assert threading.active_count() == before


def test_a_limited_key_stays_limited_while_old_ones_are_drained() -> None:
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    for _ in range(5):
        store.apply(Op.HIT, PLAN, "victim", 1)
    for number in range(2000):
        clock.advance(0.3)
        store.apply(Op.HIT, PLAN, f"other {number}", 1)
    assert not store.apply(Op.HIT, PLAN, "victim", 1).admitted


def test_junk_keys_neither_grow_memory_nor_free_a_limited_key() -> None:
    clock = ManualClock()
    store = MemoryStore(max_keys=100, clock=clock)
    admitted = 0
    for number in range(40_000):
        if number % 400 == 0:
            admitted += store.apply(Op.HIT, PLAN, "attacker", 1).admitted
        store.apply(Op.HIT, PLAN, f"junk {number}", 1)
    assert admitted == 5
    assert len(store) <= 100 + 2**16


def test_a_key_that_comes_when_there_is_no_room_is_limited_too() -> None:
    clock = ManualClock()
    store = MemoryStore(max_keys=10, clock=clock)
    for number in range(10):
        store.apply(Op.HIT, PLAN, f"junk {number}", 1)
    assert sum(store.apply(Op.HIT, PLAN, "late", 1).admitted for _ in range(50)) == 5


def test_room_that_comes_back_does_not_forget_what_was_spent_without_it() -> None:
    clock = ManualClock()
    store = MemoryStore(max_keys=1, clock=clock)
    plan = Plan("slow", (Rule("gcra", 5, 3600 * SECOND, 5),))
    store.apply(Op.HIT, plan, "first", 1)
    assert [store.apply(Op.HIT, plan, "late", 1).admitted for _ in range(6)] == [True] * 5 + [False]
    store.apply(Op.RESET, plan, "first", 1)
    assert not store.apply(Op.HIT, plan, "late", 1).admitted
    clock.advance(720)
    assert store.apply(Op.HIT, plan, "late", 1).admitted
    assert not store.apply(Op.HIT, plan, "late", 1).admitted


def test_a_silent_limiter_gives_its_room_to_others() -> None:
    clock = ManualClock()
    store = MemoryStore(max_keys=50, clock=clock)
    silent = Plan("silent", (Rule("gcra", 1, SECOND, 1),))
    for number in range(50):
        store.apply(Op.HIT, silent, f"key {number}", 1)
    clock.advance(10_000)
    for number in itertools.count():
        store.apply(Op.HIT, PLAN, f"new {number}", 1)
        if sum(shelf.own for shelf in [store._shelves["login"]]) == 20:
            break
        assert number < 200


def test_spaces_keep_equal_keys_apart() -> None:
    store = MemoryStore(clock=ManualClock())
    other = Plan("other", PLAN.rules)
    for _ in range(5):
        store.apply(Op.HIT, PLAN, "k", 1)
    assert not store.apply(Op.HIT, PLAN, "k", 1).admitted
    assert store.apply(Op.HIT, other, "k", 1).admitted


def test_looking_writes_nothing() -> None:
    store = MemoryStore(clock=ManualClock())
    assert store.apply(Op.PEEK, PLAN, "k", 1).remaining == 5
    assert len(store) == 0


def test_ten_steps_of_a_tenth_are_a_second() -> None:
    class Drifting(ManualClock):
        def monotonic(self) -> float:
            return sum([0.1] * round(self._now * 10))  # 0.9999999999999999 after ten

    clock = Drifting()
    store = MemoryStore(clock=clock)
    plan = Plan("one", (Rule("fixed_window", 1, SECOND, 1),))
    store.apply(Op.HIT, plan, "k", 1)
    clock.advance(1.0)
    assert store.apply(Op.HIT, plan, "k", 1).admitted


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_eight_threads_get_exactly_the_limit(algorithm: Algorithm) -> None:
    store = MemoryStore(clock=ManualClock())
    plan = Plan("many", (Rule(algorithm, 500, SECOND, 500), Rule("gcra", 700, SECOND, 700)))
    admitted: list[bool] = []

    def work() -> None:
        admitted.extend([store.apply(Op.HIT, plan, "k", 1).admitted for _ in range(200)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(admitted), sum(admitted)) == (1600, 500)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_does_not_inherit_a_held_lock() -> None:
    store = MemoryStore(clock=ManualClock())
    let_go = held_elsewhere(store._lock)
    child = os.fork()
    if child == 0:
        os._exit(0 if store.apply(Op.HIT, PLAN, "k", 1).admitted else 1)
    let_go()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def garbage_waits() -> Generator[None, None, None]:
    """Collect garbage when a test says so and never by itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("garbage_waits")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("known", [True, False])
def test_garbage_that_gives_back_is_collected_inside_a_decision(algorithm: Algorithm, known: bool) -> None:
    store = MemoryStore(clock=ManualClock())
    plan = Plan("p", (Rule(algorithm, 5, 3600 * SECOND, 5),))
    if known:
        store.apply(Op.HIT, plan, "k", 2)

    def waiter() -> Generator[None, None, None]:
        try:
            yield
        finally:
            store.apply(Op.REFUND, plan, "k", 1)

    abandon(waiter)
    assert in_time(lambda: store.apply(Op.HIT, plan, "k", CollectingCost(1))).admitted
    # Two were spent and one given back, and nothing of it is lost.
    assert store.apply(Op.PEEK, plan, "k", 1).remaining == (3 if known else 4)
    assert len(store) == 1


@pytest.mark.usefixtures("garbage_waits")
def test_garbage_that_spends_is_collected_inside_a_decision() -> None:
    store = MemoryStore(clock=ManualClock())
    store.apply(Op.HIT, PLAN, "k", 1)

    def spender() -> Generator[None, None, None]:
        try:
            yield
        finally:
            store.apply(Op.HIT, PLAN, "k", 1)

    abandon(spender)
    assert in_time(lambda: store.apply(Op.HIT, PLAN, "k", CollectingCost(1))).remaining == 2
    assert store.apply(Op.PEEK, PLAN, "k", 1).remaining == 2


def store_with_old_keys(plan: Plan, *, turned: bool) -> MemoryStore:
    """Return a store in which two of five were spent for the last of six keys, before a generation's end or after."""
    clock = ManualClock()
    store = MemoryStore(clock=clock)
    store.apply(Op.HIT, plan, "first", 1)
    clock.advance(2 * 3600 - 1)
    for number in range(5):
        store.apply(Op.HIT, plan, f"other {number}", 1)
    store.apply(Op.HIT, plan, "k", 2)
    clock.advance(2)
    if turned:
        store.apply(Op.PEEK, plan, "another", 1)
        assert "k" in store._shelves[plan.space].old
    return store


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_counter"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("mine", "key"), [(Op.HIT, "k"), (Op.REFUND, "k"), (Op.HIT, "another")])
@pytest.mark.parametrize("theirs", [Op.HIT, Op.REFUND, Op.RESET])
def test_whoever_steps_into_a_decision_is_counted_and_so_is_the_decision(
    algorithm: Algorithm, turned: bool, mine: Op, key: str, theirs: Op
) -> None:
    plan = Plan("p", (Rule(algorithm, 5, 3600 * SECOND, 5),))
    change = {Op.HIT: -1, Op.REFUND: 1}
    for at in itertools.count():
        store = store_with_old_keys(plan, turned=turned)
        interloper = Interloper(lambda store=store: store.apply(theirs, plan, "k", 1), at)
        if not interloper.during(lambda store=store: store.apply(mine, plan, key, 1)):
            break
        left = store.apply(Op.PEEK, plan, "k", 1).remaining
        own = change[mine] if key == "k" else 0
        if theirs is Op.RESET:
            assert left in {5, min(5, 5 + own)}, at
        else:
            assert left == 3 + own + change[theirs], at
        shelf = store._shelves["p"]
        for _ in range(9):
            store.apply(Op.PEEK, plan, "k", 1)
        assert not shelf.old.keys() & shelf.young.keys()
        assert len(store) == len(shelf.old) + len(shelf.young)
    assert at > 10


@pytest.mark.parametrize("taken", [1, 2])
@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("theirs", ["k", "yk", "Xk", "kX"])
def test_whoever_steps_in_at_the_last_free_place_is_counted_with_the_decision(
    taken: int, is_over: bool, theirs: str
) -> None:
    plan, other = PLAN, Plan("other", (Rule("gcra", 5, SECOND, 5),))
    for at in itertools.count():
        clock = ManualClock()
        store = MemoryStore(max_keys=2, clock=clock)
        for key in "xz"[:taken]:
            store.apply(Op.HIT, other if is_over else plan, key, 1)
        clock.advance(9.0)

        def step(store: MemoryStore = store) -> None:
            for key in theirs:
                store.apply(Op.RESET if key.isupper() else Op.HIT, plan, key.lower(), 1)

        if not Interloper(step, at).during(lambda store=store: store.apply(Op.HIT, plan, "k", 1)):
            break
        assert store.apply(Op.PEEK, plan, "k", 1).remaining == 3, at
        assert sum(shelf.own for shelf in store._shelves.values()) <= 2
    assert at > 10


def test_a_store_without_a_clock_follows_the_first_one_that_is_not_the_machine_s() -> None:
    store, clock = MemoryStore(), ManualClock(start=7.0)
    store.follow(SYSTEM_CLOCK)
    store.follow(clock)
    store.follow(clock)
    store.apply(Op.HIT, PLAN, "k", 5)
    assert not store.apply(Op.HIT, PLAN, "k", 1).admitted
    clock.advance(3600)
    assert store.apply(Op.HIT, PLAN, "k", 5).admitted
    with pytest.raises(ConfigurationError, match="clock"):
        store.follow(ManualClock())
    own = MemoryStore(clock=clock)
    own.follow(ManualClock())
    assert own._clock is clock


def test_a_store_that_has_counted_by_one_clock_does_not_follow_another() -> None:
    store = MemoryStore()
    store.apply(Op.HIT, PLAN, "k", 1)
    with pytest.raises(ConfigurationError, match="clock"):
        store.follow(ManualClock())


@pytest.mark.parametrize("wrong", [7, ManualClock, sum])
def test_a_clock_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="clock"):
        MemoryStore(clock=wrong)


@pytest.mark.anyio
async def test_it_forgets_all_when_closed() -> None:
    store = MemoryStore(clock=ManualClock())
    await store.aapply(Op.HIT, PLAN, "k", 1)
    store.close()
    assert len(store) == 0
    await store.aapply(Op.HIT, PLAN, "k", 1)
    await store.aclose()
    assert repr(store) == "<MemoryStore 0 keys, max_keys=100000>"


@pytest.mark.parametrize("wrong", [0, -1, 2.5, None])
def test_a_wrong_number_of_keys_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_keys"):
        MemoryStore(max_keys=wrong)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("others", [(), (Rule("gcra", 3, SECOND, 3),)], ids=["alone", "beside another"])
def test_more_than_the_burst_can_be_given_back_at_once(algorithm: Algorithm, others: tuple[Rule, ...]) -> None:
    store = MemoryStore(clock=ManualClock())
    plan = Plan("p", (Rule(algorithm, 5, SECOND, 5), *others))
    for _ in range(20):
        store.apply(Op.HIT, plan, "k", 1, FOREVER)
    answer = store.apply(Op.REFUND, plan, "k", 20)
    assert answer.admitted
    assert answer.remaining == store.apply(Op.PEEK, plan, "k", 1).remaining <= 5
