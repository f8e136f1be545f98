"""The short way of a decision in memory: it takes no lock, and loses nothing that anybody else does meanwhile."""

from __future__ import annotations

import asyncio
import dis
import itertools
import signal
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interloper import Interloper, breaks

from reliakit import ConfigurationError, DeadlineExceededError, Event, RateLimitedError, deadline, subscribe
from reliakit.core.events import LimitDenied, LimitWaited
from reliakit.ratelimit import Limit, RateLimiter
from reliakit.stores import MemoryStore, memory
from reliakit.stores.algorithms import machine_for
from reliakit.stores.protocol import ALGORITHMS, Algorithm, Answer, Op, Rule
from reliakit.stores.shelf import Shelf
from reliakit.testing import ManualClock

MANY = 100_000


def warm(limiter: RateLimiter, key: str = "k") -> Callable[..., Any]:
    """Spend twice, after which the key takes the short way, and return the short way."""
    limiter.hit(key)
    limiter.hit(key)
    short = cast("FunctionType", limiter._spend)
    assert short.__name__ == "spend"
    return short


@pytest.mark.parametrize("limits", [("5/h",), ("5/h", "50/h")], ids=["gcra", "several"])
def test_nothing_is_called_between_the_last_look_and_the_writing(limits: tuple[str, ...]) -> None:
    spend = list(dis.get_instructions(warm(RateLimiter(*limits))))
    writing = next(i for i, each in enumerate(spend) if each.opname == "STORE_SUBSCR")
    look = max(i for i, each in enumerate(spend[:writing]) if each.opname == "BINARY_SUBSCR")
    assert not breaks(spend[look:writing])
    put = list(dis.get_instructions(Shelf.put))
    look = next(i for i, each in enumerate(put) if each.opname == "CONTAINS_OP")
    assert not breaks(put[look:])


# (pause, which may be a step back; what; cost; patience)
STEPS = st.tuples(
    st.integers(-3, 12) | st.integers(-30, 120) | st.sampled_from([10, 40, 60]),
    st.sampled_from([Op.HIT, Op.HIT, Op.HIT, Op.REFUND]),
    st.integers(1, 3),
    st.sampled_from([0, 0, 0, 20]),
)


@pytest.mark.parametrize("algorithms", [*[(each,) for each in ALGORITHMS], ("gcra", "gcra"), ("gcra", "sliding_log")])
@given(
    limit=st.integers(1, 4),
    period=st.sampled_from([10, 40, 60]),
    burst=st.integers(1, 4),
    history=st.lists(STEPS, min_size=10, max_size=40),
)
def test_a_step_decides_as_a_hit_does(
    algorithms: tuple[Algorithm, ...], limit: int, period: int, burst: int, history: list[tuple[int, Op, int, int]]
) -> None:
    rules = [Rule(each, limit, period, burst if each == "gcra" else limit) for each in algorithms]
    machine = machine_for(tuple(rules))
    now, state, most = 10_000, None, min(rule.burst for rule in rules)
    for pause, op, cost, patience in history:
        now += pause
        if state is not None:
            stepped = machine.step(state, now)
            answer, after = machine.hit(state, now, 1, 0)
            if stepped is not None:
                assert (Answer(*stepped[:5]), stepped[5]) == (answer, after)
        _, state = machine.decide(op, state, now, min(cost, most), patience)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sixteen_threads_get_exactly_the_limit(algorithm: Algorithm) -> None:
    limiter = RateLimiter(Limit(500, per=3600, algorithm=algorithm), clock=ManualClock())
    warm(limiter)
    admitted: list[bool] = []

    def work() -> None:
        admitted.extend([limiter.hit("k").allowed for _ in range(100)])

    together(work)
    assert (len(admitted), sum(admitted)) == (1600, 498)
    stats = limiter.stats()
    assert (stats.admitted, stats.denied) == (500, 1102)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("limits", [(f"{MANY}/h",), (f"{MANY}/h", f"{2 * MANY}/h")], ids=["gcra", "several"])
def test_nothing_that_threads_spend_and_give_back_is_lost(limits: tuple[str, ...]) -> None:
    clock = ManualClock()
    limiter = RateLimiter(*limits, store=MemoryStore(max_keys=50), clock=clock)
    warm(limiter)
    limiter.hit("k", 10_000)
    junk = itertools.count()

    def work() -> None:
        for _ in range(60):
            assert limiter.hit("k")
            limiter.hit("k", 3)
            limiter.refund("k", 2)
            limiter.hit(f"junk {next(junk)}")
            assert limiter.hit("k")
            limiter.peek("k")

    together(work)
    assert limiter.peek("k").remaining == MANY - 10_002 - 16 * 60 * 3


def together(work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that interrupts")
@pytest.mark.parametrize("limits", [("1000000000/h",), ("1000000000/h", "2000000000/h")], ids=["gcra", "several"])
def test_nothing_that_a_signal_handler_spends_is_lost(limits: tuple[str, ...]) -> None:
    limiter = RateLimiter(*limits, clock=ManualClock())
    warm(limiter)
    handled: list[bool] = []
    before = signal.signal(signal.SIGVTALRM, lambda *_: handled.append(limiter.hit("k").allowed))
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0001, 0.0001)
    rounds = 0
    try:
        while len(handled) < 50:
            limiter.hit("k")
            rounds += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    spent = 2 + rounds + len(handled)
    assert limiter.peek("k").remaining == 10**9 - spent
    assert limiter.stats().admitted == spent


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_counter"])
@pytest.mark.parametrize("theirs", ["hit", "refund", "reset", "turn"])
def test_whoever_steps_into_the_short_way_is_counted_and_so_is_the_decision(
    algorithm: Algorithm, theirs: str
) -> None:
    for at in itertools.count():
        clock = ManualClock()
        limiter = RateLimiter(Limit(9, per=3600, algorithm=algorithm), clock=clock)
        clock.advance(1.0)
        warm(limiter)
        limiter.hit("k")
        shelf = next(iter(cast("MemoryStore", limiter._store)._shelves.values()))

        def step(limiter: RateLimiter = limiter, shelf: Shelf = shelf) -> None:
            if theirs == "turn":
                shelf._turn = shelf.due = 0
                limiter.hit("another")
                assert "k" in shelf.old
            else:
                getattr(limiter, theirs)("k")

        interloper = Interloper(step, at)
        if not interloper.during(lambda limiter=limiter: limiter.hit("k")):
            break
        left = limiter.peek("k").remaining
        assert left in {"hit": {4}, "refund": {6}, "reset": {8, 9}, "turn": {5}}[theirs], at
        assert not shelf.old.keys() & shelf.young.keys()
    assert at > 4


@pytest.mark.parametrize("limits", [("9/h",), ("9/h", "50/h")], ids=["gcra", "several"])
@pytest.mark.parametrize("cost", [1, 2])
def test_a_key_of_a_class_of_its_own_counts_as_its_text(limits: tuple[str, ...], cost: int) -> None:
    class Folded(str):
        __slots__ = ()
        left = 0

        def __hash__(self) -> int:
            Folded.left -= 1
            if Folded.left == 0:
                limiter.hit("k")
            return hash(self.lower())

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

    for at in range(1, 20):
        limiter = RateLimiter(*limits, clock=ManualClock())
        limiter.hit(Folded("k"))
        limiter.hit("k")
        Folded.left = at
        limiter.hit(Folded("k"), cost)
        others = Folded.left <= 0
        Folded.left = 0
        assert limiter.peek("k").remaining == 7 - cost - others, at
        assert limiter.peek("K").remaining == 9
        shelf = next(iter(cast("MemoryStore", limiter._store)._shelves.values()))
        assert {type(key) for key in shelf.young} == {str}


@pytest.mark.parametrize("limit", [3, 4], ids=["with rounding", "in place"])
def test_a_reader_with_a_generation_from_long_ago_decides_anew(limit: int) -> None:
    class Slow(ManualClock):
        meanwhile: Callable[[], object] = staticmethod(lambda: None)

        def monotonic(self) -> float:
            now = super().monotonic()
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return now

    clock = Slow()
    limiter = RateLimiter(f"{limit}/s", clock=clock)
    warm(limiter)
    shelf = next(iter(cast("MemoryStore", limiter._store)._shelves.values()))

    def age() -> None:
        for number in range(20):
            clock.advance(3.0)
            limiter.hit(f"other {number}")
        limiter.hit("k")
        limiter.hit("k")
        while shelf.due <= 1.0e9:  # old states would send the reader the long way
            limiter.peek("k")

    clock.meanwhile = age
    assert limiter.hit("k").remaining == limit - 3  # on what the others left
    assert limiter.peek("k").remaining == limit - 3


def test_without_the_global_interpreter_lock_every_decision_takes_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "GIL", False)
    monkeypatch.setattr(Shelf, "put", under_lock(store := MemoryStore()))
    limiter = RateLimiter("3/h", store=store)
    assert [limiter.hit("k").allowed for _ in range(5)] == [True, True, True, False, False]
    assert limiter._spend("k") is None
    assert limiter.stats().denied == 2


def under_lock(store: MemoryStore) -> Callable[..., bool]:
    put = Shelf.put

    def checked(*args: Any) -> bool:
        assert cast("Any", store._lock)._is_owned()
        return put(*args)

    return checked


@pytest.mark.anyio
@pytest.mark.parametrize("limits", [("2/s",), ("2/s", "9/min"), (Limit(2, 1, algorithm="sliding_log"),)])
async def test_the_short_way_leads_only_to_a_slot_that_nobody_waits_for(limits: tuple[Any, ...]) -> None:
    clock = ManualClock()
    limiter = RateLimiter(*limits, clock=clock)
    # Who hears every decision hears of it the long way.
    slow = RateLimiter(*limits, clock=clock, listeners=[lambda _: None])
    for each in ("k", "k", "other", "other"):
        assert limiter.hit(each) == slow.hit(each)
    clock.advance(60.0)
    for each in ("k", "k", "other"):
        assert limiter.acquire(each) == slow.acquire(each)
    tasks = [asyncio.create_task(limiter.aacquire("k")) for _ in range(2)]
    await clock.await_for_sleepers(2)
    first, last = tasks
    first.cancel()
    await asyncio.wait([first])
    began = clock.monotonic()
    heir = asyncio.create_task(limiter.aacquire("k"))  # takes the place of the one that has left, before the last one
    assert await limiter.aacquire("other")
    await clock.await_for_sleepers(2)
    clock.advance(5.0)
    await asyncio.gather(heir, last)
    assert began < clock.monotonic()
    stats = limiter.stats()
    assert (stats.admitted, stats.denied, stats.waiting) == (11, 0, 0)


def test_the_short_way_to_a_slot_keeps_what_acquire_promises() -> None:
    heard: list[Event] = []
    clock = ManualClock()
    limiter = RateLimiter("3/h", clock=clock)
    warm(limiter)
    with subscribe(heard.append, LimitWaited):
        limiter.acquire("k")
    assert [type(event) for event in heard] == [LimitWaited]
    with pytest.raises(RateLimitedError):
        limiter.acquire("k", timeout=1)
    assert (limiter.stats().admitted, limiter.stats().denied) == (3, 1)
    clock.advance(3600.0)
    with pytest.raises(ConfigurationError, match="timeout"):
        limiter.acquire("k", timeout=-1)
    with deadline(1.0, clock=clock):
        clock.advance(2.0)
        with pytest.raises(DeadlineExceededError):
            limiter.acquire("k")
    assert limiter.peek("k").remaining == 3


@pytest.mark.parametrize("limits", [("1/h",), ("1/h", "9/h")], ids=["gcra", "several"])
def test_who_listens_later_hears_each_denial_and_the_counts_go_on(limits: tuple[str, ...]) -> None:
    heard: list[Event] = []
    limiter = RateLimiter(*limits, clock=ManualClock())
    for _ in range(3001):
        limiter.hit("k")
    with subscribe(heard.append, LimitDenied):
        for _ in range(100):
            limiter.hit("k")
    assert [type(event) for event in heard] == [LimitDenied] * 100
    for _ in range(3000):
        limiter.hit("k")
    stats = limiter.stats()
    assert (len(heard), stats.denied) == (100, 6100)
    ((key, count),) = stats.top_denied
    assert key == "k"
    assert 4500 < count < 7700
