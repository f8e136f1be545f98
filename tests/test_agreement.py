"""Breakers that share their verdicts, through somebody else's store that is as late or as forgetful as it pleases.

How they share through real stores, in one process and in several, is in faults/test_sharing.py.
"""

from __future__ import annotations

import logging
import os
import threading
from math import inf

import pytest
import redis.asyncio

from reliakit import CircuitBreaker, CircuitOpenError, ConfigurationError, SharedBreakers, StoreError
from reliakit.core.events import StoreFailed, StoreRecovered
from reliakit.resilience.circuit import State
from reliakit.stores import RedisStore
from reliakit.stores.ballots import Count
from reliakit.testing import ManualClock, RecordingListener

NOTHING = Count(0, members=2, votes=0, quorum=2, remaining=0.0, has_lease=False, is_leased=False, forced=0.0)
OPEN = NOTHING._replace(votes=2, remaining=30.0)
LEASED = NOTHING._replace(has_lease=True, is_leased=True)


class Box:
    """A store that counts what the test says, and does what it says before it answers."""

    def __init__(self):
        self.ballots = []
        self.counts = [NOTHING]
        self.meanwhile = list

    def vote(self, ballot):
        self.ballots.append(ballot)
        self.meanwhile()
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def force(self, circuit, seconds): ...


def fail():
    raise OSError("down")


def raising(error):
    """Return what raises this error."""

    def meanwhile():
        raise error

    return meanwhile


class Member:
    """A process with one breaker, whose rounds come when the test says so."""

    def __init__(self, **settings):
        self.clock, self.box = ManualClock(100.0), Box()
        self.breaker = CircuitBreaker("bank", failure_threshold=1, reset_timeout=30.0, clock=self.clock)
        self.shared = SharedBreakers(self.box, clock=self.clock, **settings)
        self.shared.add(self.breaker)

    def hear(self, *counts):
        """Hear of these, one round each; return the last ballot."""
        for count in counts:
            self.box.counts = [count]
            assert self.shared.refresh()
        return self.box.ballots[-1]

    def be_suspended_while_it_asks(self, seconds=60.0):
        self.box.meanwhile = lambda: self.clock.advance(seconds)

    def fail(self):
        with pytest.raises(OSError, match="down"):
            self.breaker.call(fail)

    def may_probe(self):
        try:
            self.breaker.call(len, "")
        except CircuitOpenError:
            return False
        return True


@pytest.fixture
def member():
    return Member()


def test_an_agreement_that_is_over_when_it_is_heard_of_opens_nothing(member):
    member.be_suspended_while_it_asks()
    member.hear(OPEN)
    assert member.breaker.state is State.CLOSED


def test_of_an_agreement_that_is_heard_of_late_only_the_rest_is_kept(member):
    member.be_suspended_while_it_asks(10.0)
    member.hear(OPEN)
    assert member.breaker.retry_after == 20.0 + 5.0  # and five rounds in which to get the lease


def test_a_lease_that_is_over_when_it_is_heard_of_lets_nobody_probe(member):
    member.hear(OPEN)
    member.clock.advance(30.0)
    member.be_suspended_while_it_asks()
    member.hear(LEASED)
    assert not member.may_probe()
    member.box.meanwhile = list
    member.hear(LEASED)
    assert member.may_probe()


def test_who_was_suspended_with_a_success_in_hand_hears_the_others_before_he_closes_their_circuits(member):
    member.hear(OPEN)
    member.clock.advance(30.0)
    member.hear(LEASED)
    assert member.may_probe()
    member.clock.advance(60.0)  # others have had the lease since, and their probe has failed
    assert not member.hear(OPEN).has_closed
    assert member.breaker.state is State.OPEN


def test_a_success_in_hand_closes_all_where_nobody_knows_better(member):
    member.hear(OPEN)
    member.clock.advance(30.0)
    member.hear(LEASED)
    assert member.may_probe()
    member.clock.advance(60.0)
    assert not member.hear(NOTHING).has_closed
    assert member.hear(NOTHING._replace(era=1)).has_closed
    assert not member.hear(NOTHING._replace(era=1)).has_closed


def test_a_store_that_has_forgotten_everything_closes_nothing_and_cuts_no_break_short(member):
    member.hear(NOTHING._replace(era=7), OPEN._replace(era=7), NOTHING)
    assert member.breaker.state is State.OPEN
    member.clock.advance(20.0)
    assert not member.hear(NOTHING).wants_lease
    member.clock.advance(10.0)
    assert member.hear(NOTHING).wants_lease


def test_who_has_failed_again_while_he_told_of_his_success_stays_open(member):
    member.hear(OPEN)
    member.clock.advance(30.0)
    member.hear(LEASED)
    assert member.may_probe()
    member.box.meanwhile = member.fail
    closed = NOTHING._replace(era=1)
    assert member.hear(closed).has_closed
    member.box.meanwhile = list
    ballot = member.hear(closed)
    assert (ballot.era, ballot.remaining) == (1, 30.0)
    assert member.breaker.state is State.OPEN


def test_forced_open_is_over_for_who_hears_of_it_too_late(member):
    member.be_suspended_while_it_asks()
    member.hear(NOTHING._replace(forced=30.0))
    assert member.breaker.state is State.CLOSED
    member.hear(NOTHING._replace(forced=inf))
    assert (member.breaker.state, member.breaker.retry_after) == (State.FORCED_OPEN, None)


def test_a_store_that_raises_anything_leaves_it_to_each_alone_and_is_told_of_once(caplog):
    heard = RecordingListener()
    member = Member(listeners=[heard])
    member.box.meanwhile = raising(LookupError("no such box"))
    with caplog.at_level(logging.ERROR, "reliakit"):
        assert [member.shared.refresh() for _ in range(3)] == [False] * 3
    assert member.shared.status()[0].is_degraded
    member.box.meanwhile = list
    assert member.shared.refresh()
    assert not member.shared.status()[0].is_degraded
    assert [type(event) for event in heard.events] == [StoreFailed, StoreRecovered]
    assert len(caplog.records) == 1


def test_an_outage_of_days_does_not_end_the_thread_that_asks():
    member = Member(interval=0.05)
    member.box.meanwhile = raising(StoreError("down", store="Box"))
    assert not any(member.shared.refresh() for _ in range(2000))
    before = len(member.box.ballots)
    asked = threading.Event()
    vote = member.box.vote

    def asking(ballot):
        asked.set()
        return vote(ballot)

    member.box.vote = asking
    with member.shared:
        assert asked.wait(30)
        thread = next(thread for thread in threading.enumerate() if thread.name == "reliakit-sharing")
        thread.join(0.02)
        assert thread.is_alive()
    assert len(member.box.ballots) == before + 1


def test_closing_waits_for_one_answer_however_many_circuits_there_are():
    box = Box()
    asked, go_on = threading.Event(), threading.Event()

    def meanwhile():
        asked.set()
        assert go_on.wait(30)

    box.meanwhile = meanwhile
    shared = SharedBreakers(box)
    for number in range(50):
        shared.add(CircuitBreaker(f"bank {number}"))
    shared.open()
    assert asked.wait(30)
    closing = threading.Thread(target=shared.close)
    closing.start()
    while not shared._stop.is_set():
        closing.join(0.001)
    go_on.set()
    closing.join(30)
    assert len(box.ballots) == 1
    assert shared.refresh()  # by hand, also when it is closed
    assert len(box.ballots) == 51


def test_a_process_counts_as_alive_for_as_long_as_its_many_circuits_take(member):
    member.be_suspended_while_it_asks(4.0)
    ballot = member.hear(*[NOTHING] * 3)
    assert (ballot.lifetime, ballot.lease) == (20.0, 12.0)
    member.box.meanwhile = list
    ballot = member.hear(NOTHING, NOTHING)
    assert (ballot.lifetime, ballot.lease) == (5.0, 3.0)


def test_one_round_in_which_the_process_was_suspended_makes_no_lease_longer(member):
    member.hear(NOTHING)
    member.be_suspended_while_it_asks(60.0)
    member.hear(NOTHING)
    assert member.hear(NOTHING).lease == 3.0


def test_a_store_for_tasks_alone_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="for threads"):
        SharedBreakers(RedisStore(redis.asyncio.Redis()))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_somebody_else_and_begins_anew(member):
    with member.shared:
        member.shared.refresh()
        child = os.fork()
        if child == 0:
            parent = member.box.ballots[-1].member
            with member.shared:
                is_somebody_else = member.shared.refresh() and member.box.ballots[-1].member != parent
            os._exit(0 if is_somebody_else else 1)
        assert os.waitpid(child, 0)[1] == 0
