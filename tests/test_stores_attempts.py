"""How stores count failed attempts: what the machine decides, and that the memory store does the same, bounded."""

from __future__ import annotations

import dis
import itertools
import sys
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interloper import Interloper, breaks

from reliakit.stores import MemoryStore, ledger
from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules, Claim, States, decide
from reliakit.stores.protocol import FOREVER, Rule
from reliakit.testing import ManualClock

SECOND = 10**9
HOUR = 3600 * SECOND
RULES = AttemptRules(
    space="login",
    free=3,
    base=SECOND,
    cap=8 * SECOND,
    stop=12,
    keep=30 * 24 * HOUR,
    pair_keep=24 * HOUR,
    device_keep=90 * 24 * HOUR,
    source=Rule("gcra", 4, HOUR, 4),
)


def attempt(
    account: str = "a", source: str = "s", device: str | None = None, claim: Claim = Claim.NOTHING
) -> Attempt:
    return Attempt(account, f"{account}@{source}", source, None if device is None else f"{account}#{device}", claim)


class Guarded:
    """A memory store under these rules, and its clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(start=50.0)
        self.store = MemoryStore(clock=self.clock, **settings)

    def __call__(self, op: AttemptOp, whose: Attempt) -> AttemptAnswer:
        return self.store.attempt(op, RULES, whose)

    def fail(self, *whose: str | None) -> AttemptAnswer:
        return self(AttemptOp.RESERVE, attempt(*whose))  # type: ignore[arg-type]

    def succeed(self, *whose: str | None) -> AttemptAnswer:
        reserved = self.fail(*whose)
        assert reserved.admitted
        self(AttemptOp.SUCCEED, attempt(*whose, claim=reserved.claim))  # type: ignore[arg-type, misc]
        return reserved


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_after_the_free_failures_each_wait_is_twice_the_last_up_to_the_cap(guarded: Guarded) -> None:
    waits: list[float] = []
    for number in range(1, 9):
        answer = guarded.fail()
        assert (answer.admitted, answer.failures) == (True, number)
        waits.append(guarded(AttemptOp.LOOK, attempt()).wait / SECOND)
        guarded.clock.advance(waits[-1])
    assert waits == [0, 0, 1, 2, 4, 8, 8, 8]


def test_what_is_denied_changes_nothing(guarded: Guarded) -> None:
    for _ in range(3):
        guarded.fail()
    for _ in range(9):
        guarded.clock.advance(0.1)
        refused = guarded.fail()
        assert (refused.admitted, refused.wait) == (False, round((51 - guarded.clock.monotonic()) * 1e9))
    guarded.clock.advance(0.1)
    assert guarded.fail().failures == 4


def test_a_source_counts_accounts_that_begin_to_fail_and_no_success_clears_it(guarded: Guarded) -> None:
    for account in "abcd":
        assert guarded.fail(account).claim is Claim.NEW_PAIR
    for account in "abc":
        assert guarded.fail(account, "t").claim is Claim.NEW_PAIR
    refused = guarded.fail("e")
    assert (refused.admitted, refused.binding, refused.wait) == (False, "source", HOUR // 4)
    assert not guarded.fail("a").admitted
    assert guarded.fail("e", "elsewhere").admitted


def test_successes_from_one_source_cost_it_nothing_and_clear_nothing(guarded: Guarded) -> None:
    for account in "abc":
        guarded.fail(account)
    for number in range(20):
        guarded.succeed(f"own {number}")
    assert guarded.fail("d").admitted
    assert guarded.fail("e").binding == "source"


def test_an_account_that_fails_too_often_in_a_row_is_stopped_until_a_reset(guarded: Guarded) -> None:
    for number in range(12):
        assert guarded.fail("a", f"s{number}").admitted
        guarded.clock.advance(8)
    refused = guarded.fail("a", "another")
    assert (refused.admitted, refused.binding, refused.wait) == (False, "account", FOREVER)
    guarded(AttemptOp.RESET, Attempt(account="a"))
    assert guarded.fail("a", "another").failures == 1


def test_a_reset_of_an_account_frees_its_pairs_and_devices_too(guarded: Guarded) -> None:
    guarded.succeed("a", "s", "phone")
    for _ in range(3):
        guarded.fail()
        guarded.fail("a", "s", "phone")
    assert [guarded.fail(*whose).binding for whose in (("a", "s"), ("a", "t"), ("a", "s", "phone"))] == [
        "pair",
        "account",
        "device",
    ]
    guarded(AttemptOp.RESET, Attempt(account="a"))
    assert [guarded.fail().failures, guarded.fail("a", "s", "phone").failures] == [1, 1]


def test_a_known_device_answers_for_itself_alone(guarded: Guarded) -> None:
    assert guarded.succeed("a", "s", "phone").claim is Claim.NEW_PAIR
    for number in range(3):
        guarded.fail("a", f"s{number}")
    for account in "bcde":
        guarded.fail(account)
    assert not guarded.fail("a", "elsewhere").admitted
    assert guarded.fail("a", "s", "unknown").binding == "source"
    spared = guarded.succeed("a", "s", "phone")
    assert (spared.admitted, spared.failures, spared.claim) == (True, 1, Claim.DEVICE)
    assert not guarded.fail("a", "elsewhere").admitted  # its success says nothing of the others' failures
    for _ in range(3):
        assert guarded.fail("a", "s", "phone").admitted
    assert guarded.fail("a", "s", "phone")[:3] == (False, "device", SECOND)
    assert guarded.fail("f", "elsewhere", "phone").claim is Claim.NEW_PAIR  # it is known for one account


def test_what_is_cancelled_leaves_no_trace(guarded: Guarded) -> None:
    for account in "abc":
        guarded.fail(account)
    for _ in range(5):
        reserved = guarded.fail("d")
        assert (reserved.failures, reserved.claim) == (1, Claim.NEW_PAIR)
        guarded(AttemptOp.CANCEL, attempt("d", claim=reserved.claim))
    assert guarded.fail("d").failures == 1
    assert guarded.fail("e").binding == "source"


def test_looking_tells_what_a_reservation_would_and_changes_nothing(guarded: Guarded) -> None:
    assert guarded(AttemptOp.LOOK, attempt()) == (True, "", 0, 0, Claim.NEW_PAIR)
    for _ in range(3):
        guarded.fail()
    for _ in range(2):
        assert guarded(AttemptOp.LOOK, attempt())[1:4] == ("pair", SECOND, 3)
    assert guarded(AttemptOp.LOOK, Attempt(account="a"))[:4] == (False, "account", SECOND, 3)
    assert guarded(AttemptOp.LOOK, Attempt(source="s"))[:3] == (True, "", 0)
    assert len(guarded.store) == 3


def test_everything_is_forgotten_in_time(guarded: Guarded) -> None:
    guarded.succeed("a", "s", "phone")
    guarded.fail()
    assert len(guarded.store) == 4
    guarded.clock.advance(200 * 24 * 3600)
    for number in range(40):
        guarded.clock.advance(24 * 3600)
        guarded.fail(f"x{number}", "t")
    assert guarded.fail("a", "s", "phone").claim is Claim.NEW_PAIR
    assert len(guarded.store) < 50


def test_junk_accounts_neither_grow_memory_nor_free_one_that_is_blocked() -> None:
    guarded = Guarded(max_keys=30)
    for _ in range(3):
        guarded.fail("victim", "s")
    assert not guarded.fail("victim", "other").admitted
    for number in range(2000):
        guarded.fail(f"junk {number}", f"source {number}")
    assert not guarded.fail("victim", "other").admitted
    assert len(guarded.store) <= 30 + 3 * 2000
    late = [guarded.fail("late", "late").admitted for _ in range(20)]
    assert sum(late) <= 3
    # A success where states are shared forgets nothing but its own attempt.
    guarded = Guarded(max_keys=1)
    guarded.store._place = lambda *_: 7  # type: ignore[method-assign]  # all share one state
    for number in range(2):
        guarded.fail(f"x{number}", f"s{number}")
    guarded.succeed("own", "own")
    assert guarded.fail("x", "x").failures == 3
    assert not guarded.fail("y", "y").admitted


@pytest.mark.parametrize("most", range(1, 9))
def test_no_more_keys_than_allowed_have_states_of_their_own(most: int) -> None:
    guarded = Guarded(max_keys=most)
    for number in range(9):
        guarded.succeed(f"a{number}", f"s{number}", f"phone{number}")
        guarded.fail(f"b{number}", f"s{number}")
        assert sum(shelf.own for shelf in guarded.store._shelves.values()) <= most
    assert sum(shelf.own for shelf in guarded.store._shelves.values()) == most


def test_parallel_guesses_get_exactly_the_free_ones(guarded: Guarded) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        admitted: list[bool] = []
        threads = [
            threading.Thread(target=lambda: admitted.extend([guarded.fail().admitted for _ in range(20)]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert (len(admitted), sum(admitted)) == (160, 3)


class Kept:
    """The machine over a plain dictionary that is never cleared."""

    def __init__(self) -> None:
        self.states: dict[tuple[int, str | None], Any] = {}

    def __call__(self, op: AttemptOp, whose: Attempt, now: int) -> AttemptAnswer:
        places = [None if key is None else (index, key) for index, key in enumerate(whose[:4])]
        found = []
        for index, place in enumerate(places):
            state = None if place is None else self.states.get(place)
            if state is not None and index != 2 and state.expires <= now:
                state = None
            found.append(state)
        answer, after = decide(op, RULES, whose, States(*found), now)
        for place, state in zip(places, after, strict=True):
            if place is not None:
                self.states[place] = state
        return answer

    def live(self, now: int) -> dict[tuple[int, str | None], Any]:
        """Return the states that still count."""
        expiries = {place: state if place[0] == 2 else state.expires for place, state in self.states.items() if state}
        return {place: self.states[place] for place, expires in expiries.items() if expires > now}


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["reserve", "reserve", "reserve", "succeed", "cancel", "look", "reset"]),
            st.sampled_from("ab"),
            st.sampled_from("st"),
            st.sampled_from([None, "phone"]),
            st.sampled_from([0.0, 0.5, 1.0, 8.0, 3600.0, 90_000.0, 5_000_000.0]),
        ),
        max_size=40,
    )
)
def test_the_memory_store_does_what_the_machine_says(history: list[tuple[str, str, str, str | None, float]]) -> None:
    guarded, kept = Guarded(), Kept()
    claims: dict[tuple[str, str, str | None], Claim] = {}
    for op, account, source, device, pause in history:
        guarded.clock.advance(pause)
        whose = attempt(account, source, device, claims.get((account, source, device), Claim.NOTHING))
        answer = guarded(AttemptOp(op), whose)
        assert answer == kept(AttemptOp(op), whose, round(guarded.clock.monotonic() * 1e9))
        if op == "reserve" and answer.admitted:
            claims[account, source, device] = answer.claim


def test_nothing_is_called_between_the_first_look_at_the_states_and_the_last_writing() -> None:
    swap = list(dis.get_instructions(ledger._swap))
    look = next(i for i, each in enumerate(swap) if each.opname == "BINARY_SUBSCR")
    assert sum(each.opname == "STORE_SUBSCR" for each in swap[look:]) == 4
    assert not breaks(swap[look:])


Move = tuple[AttemptOp, Attempt]
MINE, PHONE = attempt("a", "s"), attempt("a", "t", "phone")


def played(*moves: Move) -> tuple[Guarded, Kept, list[Move]]:
    """Return a store and its model after some failures, and these moves with the claims that they hand back."""
    guarded, kept = Guarded(), Kept()
    now = guarded.store._now()
    claims: dict[Attempt, Claim] = {}
    for whose in (MINE, PHONE, attempt("b", "s")):
        claims[whose] = guarded(AttemptOp.RESERVE, whose).claim
        kept(AttemptOp.RESERVE, whose, now)
    return guarded, kept, [(op, whose._replace(claim=claims[whose])) for op, whose in moves]


def live(guarded: Guarded) -> dict[tuple[int, Any], Any]:
    """Return the states that still count, by kind and key; nothing else is kept, and each only once."""
    (kept,) = guarded.store._ledgers.values()
    for shelf in kept.shelves:
        assert not shelf.old.keys() & shelf.young.keys()
        assert shelf.own == len(shelf.old) + len(shelf.young)
    return {
        (index, place): state
        for index, shelf in enumerate(kept.shelves)
        for place, state in {**shelf.old, **shelf.young}.items()
    }


@pytest.mark.parametrize(
    ("mine", "theirs", "turned"),
    [
        ((AttemptOp.RESERVE, MINE), (AttemptOp.RESERVE, MINE), False),
        ((AttemptOp.RESERVE, PHONE), (AttemptOp.RESERVE, MINE), True),
        ((AttemptOp.RESERVE, MINE), (AttemptOp.RESERVE, attempt("b", "s")), False),
        ((AttemptOp.RESERVE, MINE), (AttemptOp.RESET, MINE), False),
        ((AttemptOp.RESERVE, MINE), (AttemptOp.SUCCEED, PHONE), True),
        ((AttemptOp.SUCCEED, PHONE), (AttemptOp.RESERVE, MINE), False),
        ((AttemptOp.CANCEL, MINE), (AttemptOp.RESERVE, PHONE), False),
        ((AttemptOp.RESET, MINE), (AttemptOp.RESERVE, MINE), True),
    ],
)
def test_whoever_steps_into_an_attempt_came_before_it_or_after_it(mine: Move, theirs: Move, turned: bool) -> None:
    expected: list[Any] = []
    for step in (1, -1):
        guarded, kept, moves = played(mine, theirs)
        now = guarded.store._now()
        answers = [kept(*move, now) for move in moves[::step]]
        expected.append((answers[::step], kept.live(now)))
    for at in itertools.count():
        guarded, _, (first, second) = played(mine, theirs)
        for shelf in next(iter(guarded.store._ledgers.values())).shelves if turned else ():
            shelf._turn = shelf.due = 0
        found: dict[str, AttemptAnswer] = {}

        def attempt_mine(guarded: Guarded = guarded, found: Any = found, move: Move = first) -> None:
            found["mine"] = guarded(*move)

        def attempt_theirs(guarded: Guarded = guarded, found: Any = found, move: Move = second) -> None:
            found["theirs"] = guarded(*move)

        if not Interloper(attempt_theirs, at).during(attempt_mine):
            break
        assert ([found["mine"], found["theirs"]], live(guarded)) in expected, at
    assert at > 50


@pytest.mark.anyio
async def test_the_twin_for_tasks_decides_alike(guarded: Guarded) -> None:
    answers = [await guarded.store.aattempt(AttemptOp.RESERVE, RULES, attempt()) for _ in range(4)]
    assert [answer.admitted for answer in answers] == [True, True, True, False]
