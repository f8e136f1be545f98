"""Breakers that share their verdicts through a real Redis, in one process and in four."""

from __future__ import annotations

import multiprocessing
import threading
from contextlib import suppress

import pytest

from reliakit import SYSTEM_CLOCK, CircuitBreaker, CircuitOpenError, ConfigurationError, SharedBreakers, StoreError
from reliakit.core.events import StoreFailed, StoreRecovered
from reliakit.resilience.circuit import State
from reliakit.stores import MemoryStore, PostgresStore, RedisStore
from reliakit.testing import RecordingListener

INTERVAL = 0.05


def until(is_true, patience=2000):
    """Wait for what other threads, processes or the server's clock are about to do."""
    for _ in range(patience):
        if is_true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came true")


class Fleet:
    """Some processes, each with a breaker of the same name, whose rounds come when the test says so."""

    def __init__(self, store, size, *, reset_timeout=30.0, **settings):
        self.store = store
        self.breakers, self.shared = [], []
        for _ in range(size):
            breaker = CircuitBreaker("bank", failure_threshold=1, reset_timeout=reset_timeout)
            shared = SharedBreakers(self.store, interval=5.0, **settings)
            shared.add(breaker)
            self.breakers.append(breaker)
            self.shared.append(shared)
        self.round()

    def round(self, *which):
        for index in which or range(len(self.shared)):
            assert self.shared[index].refresh()

    def states(self):
        return [str(breaker.state) for breaker in self.breakers]

    def fail(self, *which):
        for index in which:
            with pytest.raises(OSError):
                self.breakers[index].call(fail)

    def probe(self, fn, *args):
        """Call through every breaker; return which let the call pass."""
        passed = []
        for index, breaker in enumerate(self.breakers):
            try:
                breaker.call(fn, *args)
            except CircuitOpenError:
                continue
            except OSError:
                pass
            passed.append(index)
        return passed


def fail():
    raise OSError("down")


@pytest.fixture(params=["redis", "postgres"])
def store(request):
    """A store that processes share."""
    if request.param == "redis":
        made = RedisStore(request.getfixturevalue("reliakit_redis_url"))
    else:
        made = PostgresStore(request.getfixturevalue("reliakit_dsn"))
    with made:
        yield made


@pytest.fixture
def fleet(store):
    return lambda size, **settings: Fleet(store, size, **settings)


def test_a_quorum_opens_all_and_fewer_open_only_themselves(fleet):
    four = fleet(4)
    four.fail(0)
    four.round()
    assert four.states() == ["open", "closed", "closed", "closed"]
    four.fail(1)
    four.round()
    assert four.states() == ["open"] * 4
    with pytest.raises(CircuitOpenError):
        four.breakers[3].call(len, "")
    status = four.shared[3].status()[0]
    assert (status.name, status.members, status.votes, status.quorum) == ("bank", 4, 2, 2)
    assert status.is_shared
    assert not status.is_degraded


def test_a_quorum_is_three_in_ten_of_the_living(fleet):
    ten = fleet(10)
    ten.fail(0, 1)
    ten.round()
    assert ten.states().count("open") == 2
    ten.fail(2)
    ten.round()
    assert ten.states() == ["open"] * 10


def test_with_a_quorum_of_one_the_first_opens_all(fleet):
    three = fleet(3, quorum=1)
    three.fail(2)
    three.round(2, 0, 1)
    assert three.states() == ["open", "open", "open"]


def opened(fleet, size, **settings):
    """Return a fleet that is open by agreement, once the break is over and one of it may probe."""
    made = fleet(size, reset_timeout=0.5, **settings)
    made.fail(0, 1)
    made.round()
    made.round()
    assert made.states() == ["open"] * size
    assert made.probe(len, "") == []

    def is_leased():
        made.round()
        return any(breaker.retry_after == 0.0 for breaker in made.breakers)

    until(is_leased)
    return made


def test_one_probes_for_all_and_its_success_closes_all(fleet):
    four = opened(fleet, 4)
    assert len(four.probe(len, "")) == 1
    four.round()
    four.round()
    assert four.states() == ["closed"] * 4
    assert four.probe(len, "") == [0, 1, 2, 3]


def test_a_failing_probe_keeps_all_open(fleet):
    four = opened(fleet, 4)
    assert len(four.probe(fail)) == 1
    four.round()
    four.round()
    assert four.states() == ["open"] * 4
    assert four.probe(len, "") == []


def test_who_has_no_calls_lets_others_probe(fleet):
    four = opened(fleet, 4)
    first = [breaker.retry_after == 0.0 for breaker in four.breakers].index(True)

    def has_passed_on():
        four.round()
        return any(breaker.retry_after == 0.0 for breaker in four.breakers if breaker is not four.breakers[first])

    until(has_passed_on)


def test_forced_open_is_obeyed_by_all_until_it_is_let_go_of(fleet):
    three = fleet(3)
    three.shared[0].force_open("bank")
    three.round()
    assert three.states() == ["forced_open"] * 3
    assert [breaker.retry_after for breaker in three.breakers] == [None] * 3
    three.shared[2].release("bank")
    three.round()
    assert three.states() == ["closed"] * 3


def test_forced_open_for_a_while_ends_by_probes(fleet):
    two = fleet(2)
    two.shared[0].force_open("bank", 20.0)
    two.round()
    assert two.states() == ["forced_open"] * 2
    assert all(15.0 < breaker.retry_after <= 20.0 for breaker in two.breakers)


def test_who_joins_later_learns_that_the_circuit_is_open(fleet):
    two = fleet(2)
    two.fail(0, 1)
    two.round()
    third = CircuitBreaker("bank")
    shared = SharedBreakers(two.store)
    shared.add(third)
    assert shared.refresh()
    assert third.state is State.OPEN


def test_what_is_switched_by_hand_in_one_process_stays_so(fleet):
    three = fleet(3)
    three.breakers[2].disable()
    three.fail(0, 1)
    three.round()
    three.round()
    assert three.states() == ["open", "open", "disabled"]


def test_a_vote_of_before_the_circuit_was_closed_for_all_does_not_count(fleet):
    three = fleet(3)
    three.fail(0, 1)
    three.round()
    three.round()
    three.breakers[2].close()  # as a probe's success would
    three.round(2)
    three.round(0)
    assert three.states() == ["closed", "open", "closed"]
    three.round()
    assert three.states() == ["closed"] * 3


def test_who_has_voted_and_not_heard_of_the_quorum_closes_with_the_others(fleet):
    three = fleet(3)
    three.fail(0, 1)
    three.round(0)  # hears of one vote, its own
    three.round(1, 2)
    three.breakers[2].close()
    three.round(2, 0)
    assert three.states() == ["closed", "open", "closed"]


def test_who_has_died_has_no_vote_though_his_circuit_were_still_open(fleet):
    three = fleet(3)
    crashing = CircuitBreaker("bank", failure_threshold=1)
    shared = SharedBreakers(three.store, interval=INTERVAL)
    shared.add(crashing)
    with pytest.raises(OSError):
        crashing.call(fail)
    assert shared.refresh()

    def is_dead():
        three.round()
        return three.shared[0].status()[0].members == 3

    until(is_dead)
    three.fail(0)
    three.round()
    assert three.states() == ["open", "closed", "closed"]
    assert three.shared[0].status()[0].votes == 1


def test_circuits_of_other_names_are_left_alone(fleet):
    two = fleet(2)
    other = CircuitBreaker("mail")
    two.shared[0].add(other)
    two.fail(0, 1)
    two.round()
    two.round()
    assert other.state is State.CLOSED
    assert [status.name for status in two.shared[0].status()] == ["bank", "mail"]


def test_the_script_and_the_state_may_be_lost(reliakit_redis, reliakit_redis_url):
    two = Fleet(RedisStore(reliakit_redis_url), 2)
    reliakit_redis.flush()
    two.fail(0, 1)
    two.round()
    two.round()
    assert two.states() == ["open", "open"]


def test_a_store_that_was_emptied_closes_nothing(reliakit_redis, reliakit_redis_url):
    two = Fleet(RedisStore(reliakit_redis_url), 2)
    for _ in range(2):  # the second time in an era of which the emptied store knows nothing
        two.fail(0, 1)
        two.round()
        two.round()
        two.breakers[0].close()
        two.round()
    two.fail(0, 1)
    two.round()
    reliakit_redis.flush()
    for _ in range(3):
        two.round()
        assert two.states() == ["open", "open"]
        assert all(breaker.retry_after > 20.0 for breaker in two.breakers)
    assert two.shared[0].status()[0].votes == 2


def test_while_the_store_is_down_each_decides_alone_and_it_is_told_once(reliakit_redis, reliakit_redis_url):
    heard = RecordingListener()
    breaker = CircuitBreaker("bank", failure_threshold=1, reset_timeout=0.01)
    shared = SharedBreakers(RedisStore(reliakit_redis_url), interval=INTERVAL, quorum=1, listeners=[heard])
    shared.add(breaker)
    try:
        with shared:
            until(lambda: shared.status()[0].members > 0)
            reliakit_redis.kill()
            until(lambda: shared.status()[0].is_degraded)
            with pytest.raises(OSError):
                breaker.call(fail)
            until(lambda: breaker.retry_after == 0.0)
            assert breaker.call(len, "abc") == 3
            assert breaker.state is State.CLOSED
            with pytest.raises(StoreError):
                shared.force_open("bank")
            reliakit_redis.start()
            until(lambda: not shared.status()[0].is_degraded)
    finally:
        reliakit_redis.start()
    assert [type(event) for event in heard.events] == [StoreFailed, StoreRecovered]


def test_calls_never_wait_for_a_store_that_stalls(reliakit_redis, reliakit_redis_url):
    breaker = CircuitBreaker("bank", failure_threshold=1)
    with SharedBreakers(RedisStore(reliakit_redis_url, timeout=0.2), interval=INTERVAL) as shared:
        shared.add(breaker)
        until(lambda: shared.status()[0].members > 0)
        reliakit_redis.pause()
        try:
            assert breaker.call(len, "abc") == 3  # or it would wait for as long as the server is stopped
            with pytest.raises(OSError):
                breaker.call(fail)
            assert breaker.state is State.OPEN
        finally:
            reliakit_redis.resume()


def _member(store, address, skew, commands, answers):
    class Skewed(type(SYSTEM_CLOCK)):
        def time(self):
            return super().time() + skew

        def monotonic(self):
            return super().monotonic() + skew

    breaker = CircuitBreaker("bank", failure_threshold=1, reset_timeout=60.0, clock=Skewed())
    shared = SharedBreakers(store(address), interval=0.25, clock=Skewed())
    shared.add(breaker)
    with shared:
        for command in iter(commands.get, "stop"):
            if command == "fail":
                with suppress(OSError):
                    breaker.call(fail)
            elif command == "close":
                breaker.close()
            answers.put((str(breaker.state), shared.status()[0].members))


@pytest.mark.parametrize(("store", "fixture"), [(RedisStore, "reliakit_redis_url"), (PostgresStore, "reliakit_dsn")])
def test_four_processes_whose_clocks_differ_agree(store, fixture, request):
    address = request.getfixturevalue(fixture)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    commands = [spawn.Queue() for _ in range(4)]
    members = [
        spawn.Process(target=_member, args=(store, address, skew, commands[index], answers), daemon=True)
        for index, skew in enumerate((0.0, 3600.0, -3600.0, 61.0))
    ]
    for member in members:
        member.start()

    def ask(index, command="tell"):
        commands[index].put(command)
        return answers.get(timeout=50)

    try:
        until(lambda: all(ask(index)[1] == 4 for index in range(4)))
        ask(0, "fail")
        ask(3, "fail")
        until(lambda: all(ask(index)[0] == "open" for index in range(4)))
        ask(1, "close")
        until(lambda: all(ask(index)[0] == "closed" for index in range(4)))
    finally:
        for queue in commands:
            queue.put("stop")
        for member in members:
            member.join(20)
    assert [member.exitcode for member in members] == [0] * 4


def test_wrong_settings_are_refused(reliakit_redis_url):
    store = RedisStore(reliakit_redis_url)
    for settings in ({"quorum": 0}, {"interval": 0.01}, {"interval": float("nan")}, {"member": ""}):
        with pytest.raises(ConfigurationError):
            SharedBreakers(store, **settings)
    with pytest.raises(ConfigurationError, match="processes share"):
        SharedBreakers(MemoryStore())
    shared = SharedBreakers(store)
    shared.add(CircuitBreaker("a"))
    with pytest.raises(ConfigurationError, match="another name"):
        shared.add(CircuitBreaker("a"))
    with pytest.raises(ConfigurationError, match="CircuitBreaker"):
        shared.add("a")
