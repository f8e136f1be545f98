"""What every store of a rate limiter must do, as tests to run on your own store.

```python
from reliakit.testing.store_suite import Kept, StoreSuite


class TestMyStore(StoreSuite):
    def kept(self) -> Kept:
        clock = ManualClock()
        return Kept(MyStore(clock=clock), advance=clock.advance, now=lambda: round(clock.monotonic() * 1e9))
```

pytest collects the subclass and runs each test through `apply` and through `aapply`. A store's decisions are compared
with the pure machines that the memory store counts by, over random histories. Needs pytest and hypothesis.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliakit.stores.attempts import Attempt, AttemptOp, AttemptRules, Claim
from reliakit.stores.protocol import ALGORITHMS, Algorithm, Answer, Op, Plan, Rule, Store
from reliakit.stores.reference import AttemptReference, reference_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Kept", "StoreSuite"]

_SECOND = 10**9
_TWO_A_SECOND = Rule("gcra", 2, _SECOND, 2)
_FIVE_A_MINUTE = Rule("sliding_log", 5, 60 * _SECOND, 5)
_MILLISECOND = 10**6
_numbers = itertools.count(1)


def _gcra(limit: int, quarters: int, burst: int) -> Rule:
    return Rule("gcra", limit, quarters * 250 * _MILLISECOND, burst)


def _other(algorithm: Algorithm, limit: int, quarters: int) -> Rule:
    return Rule(algorithm, limit, quarters * 250 * _MILLISECOND, limit)


_rules = st.lists(
    st.one_of(
        st.builds(_gcra, st.integers(1, 7), st.integers(1, 12), st.integers(1, 9)),
        st.builds(_other, st.sampled_from(ALGORITHMS[1:]), st.integers(1, 7), st.integers(1, 12)),
    ),
    min_size=1,
    max_size=3,
)


class Step(NamedTuple):
    """One step of a history, before which so many milliseconds pass; or the last wait, or a tick less than that."""

    op: Op
    key: str
    cost: int
    patience: int
    passing: int | Literal["wait", "almost"]


_steps = st.lists(
    st.builds(
        Step,
        st.sampled_from([Op.HIT, Op.HIT, Op.HIT, Op.HIT, Op.PEEK, Op.REFUND, Op.RESET]),
        st.sampled_from(["a", "a", "a", "b"]),
        st.integers(1, 4),
        st.sampled_from([0, 0, 0, 300 * _MILLISECOND, 2 * _SECOND]),
        st.sampled_from([0, 0, 1, 40, 250, 333, 1000, 5000, "wait", "wait", "almost"]),
    ),
    min_size=1,
    max_size=30,
)


_RULES = AttemptRules(
    space="",
    free=2,
    base=_SECOND,
    cap=6 * _SECOND,
    stop=6,
    keep=60 * _SECOND,
    pair_keep=30 * _SECOND,
    device_keep=90 * _SECOND,
    source=Rule("gcra", 3, 20 * _SECOND, 3),
)


class Knock(NamedTuple):
    """One attempt to log in, before which so many seconds pass."""

    op: AttemptOp
    account: str
    source: str
    device: str | None
    passing: float


_attempts = st.lists(
    st.builds(
        Knock,
        st.sampled_from([*AttemptOp, *[AttemptOp.RESERVE] * 5]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["x", "x", "y"]),
        st.sampled_from([None, None, "phone"]),
        st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0, 6.0, 45.0]),
    ),
    min_size=1,
    max_size=30,
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A store under test.

    Attributes:
        store: The store, which may hold states already: each test has a namespace of its own.
        advance: Moves the store's clock on, by seconds.
        now: Returns the store's clock, in nanoseconds.
        tick: The shortest time that the store can represent, in nanoseconds.
        windows: Where windows of fixed_window and sliding_counter begin: with a key's "first hit", or at whole
            multiples of their period on the store's "clock".
    """

    store: Store
    advance: Callable[[float], object]
    now: Callable[[], int]
    tick: int = 1
    windows: Literal["first hit", "clock"] = "first hit"


class Driven:
    """A store's decisions as plain calls, made in threads or in tasks."""

    def __init__(self, kept: Kept, runner: asyncio.Runner | None) -> None:
        self.kept = kept
        self.advance: Callable[[float], object] = kept.advance
        self._runner = runner

    def __call__(self, op: Op, plan: Plan, key: str = "k", cost: int = 1, patience: int = 0) -> Answer:
        """Decide."""
        if self._runner is None:
            return self.kept.store.apply(op, plan, key, cost, patience)
        return self._runner.run(self.kept.store.aapply(op, plan, key, cost, patience))


def plan_of(*rules: Rule) -> Plan:
    """Return a plan in a space that nobody else uses."""
    return Plan(f"suite-{next(_numbers)}-{threading.get_ident()}", rules)


class StoreSuite:
    """Tests of a store; subclass it and return your store from `kept`."""

    examples: int = 100
    threads: int = 8

    def kept(self) -> Kept:
        """Return a store and its clock. Called for every test; it may be the same store each time."""
        raise NotImplementedError

    @pytest.fixture(params=["blocking", "awaited"])
    def runner(self, request: pytest.FixtureRequest) -> Iterator[asyncio.Runner | None]:
        """Run what is awaited, or None for plain calls."""
        if request.param == "blocking":
            yield None
            return
        with asyncio.Runner() as runner:
            yield runner

    @pytest.fixture
    def decide(self, runner: asyncio.Runner | None) -> Driven:
        """Return the store's decisions, in threads and in tasks."""
        return Driven(self.kept(), runner)

    def test_it_admits_up_to_the_burst_and_tells_the_wait(self, decide: Driven) -> None:
        """A burst, then a wait."""
        plan = plan_of(_TWO_A_SECOND)
        assert decide(Op.HIT, plan) == (True, 0, 1, 0, _SECOND // 2)
        assert decide(Op.HIT, plan) == (True, 0, 0, 0, _SECOND)
        assert decide(Op.HIT, plan) == (False, 0, 0, _SECOND // 2, _SECOND)
        decide.advance(0.5)
        assert decide(Op.HIT, plan).admitted

    def test_what_one_rule_refuses_none_counts(self, decide: Driven) -> None:
        """All rules or none."""
        plan = plan_of(_FIVE_A_MINUTE, _TWO_A_SECOND)
        answers = [decide(Op.HIT, plan) for _ in range(20)]
        assert [answer.admitted for answer in answers] == [True] * 2 + [False] * 18
        assert answers[-1].binding == 1
        decide.advance(1.0)
        assert decide(Op.HIT, plan, cost=2).admitted
        decide.advance(1.0)
        assert decide(Op.HIT, plan).admitted
        refused = decide(Op.HIT, plan)
        assert (refused.admitted, refused.binding, refused.wait) == (False, 0, 58 * _SECOND)

    def test_looking_changes_nothing(self, decide: Driven) -> None:
        """PEEK."""
        for rule in (_TWO_A_SECOND, _FIVE_A_MINUTE):
            plan = plan_of(rule)
            seen = [decide(Op.PEEK, plan)[:3] for _ in range(3)]
            assert seen == [(True, 0, rule.burst)] * 3
            decide(Op.HIT, plan, cost=rule.burst)
            assert [decide(Op.PEEK, plan)[:3] for _ in range(3)] == [(False, 0, 0)] * 3

    def test_giving_back_and_forgetting(self, decide: Driven) -> None:
        """REFUND and RESET."""
        plan = plan_of(_FIVE_A_MINUTE)
        decide(Op.HIT, plan, cost=4)
        decide(Op.REFUND, plan, cost=2)
        assert decide(Op.PEEK, plan).remaining == 3
        decide(Op.RESET, plan)
        assert decide(Op.PEEK, plan).remaining == 5
        decide(Op.REFUND, plan, cost=5)
        assert decide(Op.PEEK, plan).remaining == 5

    @pytest.mark.parametrize(
        "rules", [(_TWO_A_SECOND,), (_TWO_A_SECOND, _FIVE_A_MINUTE._replace(limit=50, burst=50))]
    )
    def test_patience_takes_slots_to_come_in_order(self, decide: Driven, rules: tuple[Rule, ...]) -> None:
        """Reservations."""
        plan = plan_of(*rules)
        decide(Op.HIT, plan, cost=2)
        waits = [decide(Op.HIT, plan, patience=2 * _SECOND).wait for _ in range(4)]
        assert waits == [_SECOND // 2, _SECOND, 3 * _SECOND // 2, 2 * _SECOND]
        assert not decide(Op.HIT, plan, patience=2 * _SECOND).admitted
        decide(Op.REFUND, plan)
        assert decide(Op.HIT, plan, patience=2 * _SECOND).wait == 2 * _SECOND
        decide.advance(1.0)
        assert not decide(Op.HIT, plan).admitted  # nobody overtakes who waits

    @pytest.mark.parametrize("other", [None, "gcra", "sliding_log", "sliding_counter", "fixed_window"])
    def test_little_does_not_overtake_much_that_waits(self, decide: Driven, other: Algorithm | None) -> None:
        """Reservations, of which a decision must not lose sight because it fits at once."""
        plan = plan_of(_TWO_A_SECOND, *[] if other is None else [Rule(other, 50, 60 * _SECOND, 50)])
        assert decide(Op.HIT, plan).remaining == 1
        assert decide(Op.HIT, plan, cost=2, patience=_SECOND).wait == _SECOND // 2
        assert decide(Op.PEEK, plan).remaining == 0
        assert decide(Op.HIT, plan)[:3] == (False, 0, 0)

    def test_spaces_and_keys_are_kept_apart(self, decide: Driven) -> None:
        """Spaces and keys."""
        first, second = plan_of(_TWO_A_SECOND), plan_of(_TWO_A_SECOND)
        decide(Op.HIT, first, cost=2)
        assert not decide(Op.HIT, first).admitted
        assert decide(Op.HIT, first, "other").admitted
        assert decide(Op.HIT, second).admitted

    def test_any_text_is_a_key_of_its_own(self, decide: Driven) -> None:
        """Keys."""
        plan = plan_of(_TWO_A_SECOND)
        keys = [" ", "}", "{", "{}", "a}", "a", "é", "\0", "\n", "\ud800", "x" * 1000, "x" * 1001, "%s", "a:b", "#a"]
        for key in keys:
            assert decide(Op.HIT, plan, key, 2).remaining == 0
        assert not any(decide(Op.HIT, plan, key).admitted for key in keys)

    def test_what_is_as_good_as_new_is_new(self, decide: Driven) -> None:
        """Expiry."""
        for algorithm in ALGORITHMS:
            plan = plan_of(Rule(algorithm, 3, _SECOND, 3), _FIVE_A_MINUTE)
            decide(Op.HIT, plan, cost=3)
            decide.advance(120.0)
            assert decide(Op.PEEK, plan) == (True, 0, 3, 0, 0)
            assert decide(Op.HIT, plan, cost=3).admitted

    def test_it_decides_like_the_reference(self, runner: asyncio.Runner | None) -> None:
        """Random histories."""
        kept = self.kept()
        decide = Driven(kept, runner)

        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
        )
        @given(_rules, _steps)
        def same(rules: list[Rule], steps: list[Step]) -> None:
            plan = plan_of(*rules)
            burst = min(rule.burst for rule in rules)
            machine = reference_machine(plan.rules, tick=kept.tick, aligned=kept.windows == "clock")
            states: dict[str, Any] = {}
            waits = {"wait": 0, "almost": 0}
            for op, key, wanted, patience, passing in steps:
                kept.advance(waits[passing] / 1e9 if isinstance(passing, str) else passing / 1000)
                cost = min(wanted, burst)
                expected, states[key] = machine(op, states.get(key), kept.now(), cost, patience)
                answer = decide(op, plan, key, cost, patience)
                assert answer == expected, (op, key, cost, patience)
                waits = {"wait": answer.wait, "almost": max(0, answer.wait - kept.tick)}

        same()

    def test_it_counts_attempts_like_the_reference(self, runner: asyncio.Runner | None) -> None:
        """Failed attempts to log in, for stores that can count them."""
        kept = self.kept()
        store: Any = kept.store
        if not hasattr(store, "attempt"):
            pytest.skip("this store does not count attempts to log in")

        @settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
        )
        @given(_attempts)
        def same(steps: list[Knock]) -> None:
            rules = replace(_RULES, space=f"suite-{next(_numbers)}-{threading.get_ident()}")
            reference = AttemptReference(rules, tick=kept.tick)
            claims: dict[tuple[str, str], Claim] = {}
            for op, account, source, device, passing in steps:
                kept.advance(passing)
                claim = claims.pop((account, source), Claim.NOTHING)
                attempt = Attempt(
                    account, f"{account} from {source}", source, device and f"{account} on {device}", claim
                )
                if op is AttemptOp.RESET:
                    attempt = Attempt(account=account) if device else Attempt(source=source)
                if runner is None:
                    answer = store.attempt(op, rules, attempt)
                else:
                    answer = runner.run(store.aattempt(op, rules, attempt))
                assert answer == reference(op, attempt, kept.now()), (op, attempt)
                if op is AttemptOp.RESERVE:
                    claims[account, source] = answer.claim if answer.admitted else Claim.NOTHING

        same()

    def test_threads_get_exactly_what_there_is(self) -> None:
        """Threads."""
        kept = self.kept()
        plan = plan_of(Rule("gcra", 100, 3600 * _SECOND, 100), Rule("fixed_window", 150, 3600 * _SECOND, 150))
        start = threading.Barrier(self.threads)
        admitted: list[bool] = []

        def work() -> None:
            start.wait()
            admitted.extend([kept.store.apply(Op.HIT, plan, "k", 1).admitted for _ in range(25)])

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(admitted) == 25 * self.threads
        assert sum(admitted) == min(100, 25 * self.threads)

    def test_tasks_of_several_loops_get_exactly_what_there_is(self) -> None:
        """Event loops."""
        kept = self.kept()
        plan = plan_of(Rule("sliding_log", 30, 3600 * _SECOND, 30))

        async def work() -> list[Answer]:
            return await asyncio.gather(*[kept.store.aapply(Op.HIT, plan, "k", 1) for _ in range(20)])

        answers: list[Answer] = []
        threads = [threading.Thread(target=lambda: answers.extend(asyncio.run(work()))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(answer.admitted for answer in answers) == 30
        assert len(answers) == 60
