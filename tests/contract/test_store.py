"""What every store must do, whatever it keeps its states in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from reliakit.stores import Answer, MemoryStore, Op, Plan, Rule, Store
from reliakit.testing import ManualClock

SECOND = 10**9
TWO_A_SECOND = Rule("gcra", 2, SECOND, 2)
FIVE_A_MINUTE = Rule("sliding_log", 5, 60 * SECOND, 5)

# Name -> a new store, and what lets its clock go on.
STORES: dict[str, Callable[[], tuple[Store, Callable[[float], None]]]] = {}


def in_memory() -> tuple[Store, Callable[[float], None]]:
    clock = ManualClock()
    return MemoryStore(clock=clock), clock.advance


STORES["memory"] = in_memory
Decide = Callable[..., Answer]


@pytest.fixture(params=[f"{name} {colour}" for name in STORES for colour in ("blocking", "awaited")])
def kept(request: pytest.FixtureRequest) -> tuple[Decide, Callable[[float], None]]:
    """Return the store's decision, as a plain function in both colours, and its passing of time."""
    name, colour = request.param.split()
    store, advance = STORES[name]()
    if colour == "blocking":
        return store.apply, advance

    def awaited(*arguments: object) -> Answer:
        return asyncio.run(store.aapply(*arguments))  # type: ignore[arg-type]  # the same as apply's

    return awaited, advance


def test_it_admits_up_to_the_burst_and_tells_the_wait(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, advance = kept
    plan = Plan("a", (TWO_A_SECOND,))
    assert decide(Op.HIT, plan, "k", 1) == (True, 0, 1, 0, SECOND // 2)
    assert decide(Op.HIT, plan, "k", 1) == (True, 0, 0, 0, SECOND)
    assert decide(Op.HIT, plan, "k", 1) == (False, 0, 0, SECOND // 2, SECOND)
    advance(0.5)
    assert decide(Op.HIT, plan, "k", 1).admitted


def test_what_one_rule_refuses_none_counts(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, advance = kept
    plan = Plan("a", (FIVE_A_MINUTE, TWO_A_SECOND))
    for _ in range(20):
        last = decide(Op.HIT, plan, "k", 1)
    assert (last.admitted, last.binding) == (False, 1)
    advance(1.0)
    assert decide(Op.HIT, plan, "k", 2).admitted
    advance(1.0)
    assert decide(Op.HIT, plan, "k", 1).admitted
    refused = decide(Op.HIT, plan, "k", 1)
    assert (refused.admitted, refused.binding, refused.wait) == (False, 0, 58 * SECOND)


def test_looking_changes_nothing(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, _ = kept
    plan = Plan("a", (TWO_A_SECOND,))
    for _ in range(3):
        assert decide(Op.PEEK, plan, "k", 1)[:3] == (True, 0, 2)


def test_giving_back_and_forgetting(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, _ = kept
    plan = Plan("a", (FIVE_A_MINUTE,))
    decide(Op.HIT, plan, "k", 4)
    decide(Op.REFUND, plan, "k", 2)
    assert decide(Op.PEEK, plan, "k", 1).remaining == 3
    decide(Op.RESET, plan, "k", 1)
    assert decide(Op.PEEK, plan, "k", 1).remaining == 5
    decide(Op.REFUND, plan, "k", 5)
    assert decide(Op.PEEK, plan, "k", 1).remaining == 5


def test_patience_takes_slots_to_come_in_order(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, advance = kept
    plan = Plan("a", (TWO_A_SECOND,))
    decide(Op.HIT, plan, "k", 2)
    waits = [decide(Op.HIT, plan, "k", 1, 2 * SECOND).wait for _ in range(4)]
    assert waits == [SECOND // 2, SECOND, 3 * SECOND // 2, 2 * SECOND]
    assert not decide(Op.HIT, plan, "k", 1, 2 * SECOND).admitted
    decide(Op.REFUND, plan, "k", 1)
    assert decide(Op.HIT, plan, "k", 1, 2 * SECOND).wait == 2 * SECOND
    advance(1.0)
    assert not decide(Op.HIT, plan, "k", 1).admitted  # nobody overtakes who waits


def test_spaces_and_keys_are_kept_apart(kept: tuple[Decide, Callable[[float], None]]) -> None:
    decide, _ = kept
    first, second = Plan("a", (TWO_A_SECOND,)), Plan("b", (TWO_A_SECOND,))
    decide(Op.HIT, first, "k", 2)
    assert not decide(Op.HIT, first, "k", 1).admitted
    assert decide(Op.HIT, first, "other", 1).admitted
    assert decide(Op.HIT, second, "k", 1).admitted
