"""Breakers by key: one for each, not too many, and never the wrong one let go."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
from garbage import held_elsewhere

from reliakit import CircuitBreaker, CircuitOpenError, ConfigurationError, KeyedBreakers, State
from reliakit.testing import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hosts(clock: ManualClock) -> KeyedBreakers[str]:
    return KeyedBreakers(lambda host: CircuitBreaker(host, failure_threshold=1, clock=clock), max_keys=3)


def trip(breakers: KeyedBreakers[str], *keys: str) -> None:
    for key in keys:
        breakers[key].acquire().failure()


def test_each_key_has_a_breaker_of_its_own(hosts: KeyedBreakers[str]) -> None:
    trip(hosts, "a")
    assert hosts["a"] is hosts["a"]
    assert (hosts["a"].state, hosts["b"].state) == (State.OPEN, State.CLOSED)
    assert ("a" in hosts, "c" in hosts, len(hosts)) == (True, False, 2)


def test_the_closed_one_that_was_not_used_for_longest_is_let_go(hosts: KeyedBreakers[str]) -> None:
    for key in ("a", "b", "c", "a", "d"):
        hosts[key]
    assert [key for key, _ in hosts.items()] == ["c", "a", "d"]


def test_an_open_one_outlives_closed_ones(hosts: KeyedBreakers[str]) -> None:
    trip(hosts, "dead")
    for number in range(50):
        hosts[f"junk {number}"]
    assert hosts["dead"].state is State.OPEN
    assert len(hosts) == 3


def test_where_all_are_open_the_one_goes_that_would_probe_first(
    hosts: KeyedBreakers[str], clock: ManualClock
) -> None:
    for key in ("a", "b", "c"):
        trip(hosts, key)
        clock.advance(10.0)
    hosts["a"]
    hosts["d"]  # closed, but it is the one that is asked for
    assert [key for key, _ in hosts.items()] == ["b", "c", "d"]
    assert hosts["a"].state is State.CLOSED


def test_what_was_set_by_hand_is_never_let_go(hosts: KeyedBreakers[str]) -> None:
    hosts["a"].force_open()
    hosts["b"].disable()
    hosts["c"].metrics_only()
    for key in ("d", "e", "f"):
        hosts[key]
    assert [key for key, _ in hosts.items()] == ["a", "b", "c", "f"]


def test_one_that_somebody_still_holds_comes_back_as_the_same(hosts: KeyedBreakers[str]) -> None:
    under_way = hosts["a"].acquire()
    for key in ("b", "c", "d"):
        hosts[key]
    assert "a" not in hosts
    under_way.failure()
    assert hosts["a"].state is State.OPEN


def test_one_that_nobody_holds_comes_back_as_new(hosts: KeyedBreakers[str]) -> None:
    hosts["a"].acquire().success()
    assert hosts["a"].snapshot().calls == 1
    for key in ("b", "c", "d"):
        hosts[key]
    gc.collect()
    assert hosts["a"].snapshot().calls == 0


def test_threads_get_one_breaker_for_a_key() -> None:
    made: list[str] = []
    start = threading.Barrier(8)
    got: list[CircuitBreaker] = []

    def make(key: str) -> CircuitBreaker:
        made.append(key)
        return CircuitBreaker(key)

    breakers = KeyedBreakers(make)

    def look_up() -> None:
        start.wait()
        got.append(breakers["a"])

    threads = [threading.Thread(target=look_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(breaker) for breaker in got}) == 1
    assert len(breakers) == 1


def test_make_may_look_up_other_keys(clock: ManualClock) -> None:
    def make(key: int) -> CircuitBreaker:
        if key:
            breakers[key - 1]
        return CircuitBreaker(clock=clock)

    breakers: KeyedBreakers[int] = KeyedBreakers(make)
    breakers[5]
    assert len(breakers) == 6


@pytest.mark.anyio
async def test_a_decorated_function_of_every_colour_goes_by_its_key(hosts: KeyedBreakers[str]) -> None:
    @hosts.guard(key=lambda host, **_: host)
    def plain(host: str, *, fails: bool = False) -> str:
        if fails:
            raise OSError(host)
        return host

    @hosts.guard(key=lambda host: host)
    async def asynchronous(host: str) -> str:
        return plain.__wrapped__(host)  # type: ignore[attr-defined,no-any-return]

    @hosts.guard(key=lambda host: host)
    def generator(host: str) -> Generator[str, None, None]:
        yield host

    @hosts.guard(key=lambda host: host)
    async def async_generator(host: str) -> AsyncGenerator[str, None]:
        yield host

    async def all_of(host: str) -> list[str]:
        return [item async for item in async_generator(host)]

    assert inspect.iscoroutinefunction(asynchronous)
    with pytest.raises(OSError):
        plain("a", fails=True)
    assert (plain("b"), await asynchronous("b"), list(generator("b")), await all_of("b")) == ("b", "b", ["b"], ["b"])
    for call in (lambda: plain("a"), lambda: list(generator("a"))):
        with pytest.raises(CircuitOpenError):
            call()
    for coroutine in (asynchronous("a"), all_of("a")):
        with pytest.raises(CircuitOpenError):
            await coroutine


def test_a_method_may_choose_by_its_object(clock: ManualClock) -> None:
    breakers: KeyedBreakers[str] = KeyedBreakers(lambda key: CircuitBreaker(key, failure_threshold=1, clock=clock))

    class Client:
        def __init__(self, host: str) -> None:
            self.host = host

        @breakers.guard(key=lambda self: self.host)
        def get(self) -> str:
            raise OSError

    for host in ("a", "b"):
        with pytest.raises(OSError):
            Client(host).get()
    with pytest.raises(CircuitOpenError):
        Client("a").get()


async def asynchronous_key(host: str) -> str:
    return host


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: KeyedBreakers(CircuitBreaker("x")), "make"),  # type: ignore[type-var]
        (lambda: KeyedBreakers(asynchronous_key), "make"),  # type: ignore[arg-type]
        (lambda: KeyedBreakers(int), "make"),  # type: ignore[arg-type]
        (lambda: KeyedBreakers(lambda _: CircuitBreaker(), max_keys=0), "max_keys"),
        (lambda: KeyedBreakers(lambda _: None)["a"], "make"),  # type: ignore[arg-type,return-value]
        (lambda: KeyedBreakers(lambda _: CircuitBreaker()).guard(key="host"), "key"),  # type: ignore[arg-type]
        (lambda: KeyedBreakers(lambda _: CircuitBreaker()).guard(key=len)(int), "class int"),  # type: ignore[type-var]
    ],
)
def test_wrong_use_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        wrong()


def test_the_class_itself_makes_breakers_named_by_their_keys() -> None:
    assert KeyedBreakers(CircuitBreaker)["a.example"].name == "a.example"


def test_it_shows_how_many_there_are(hosts: KeyedBreakers[str]) -> None:
    trip(hosts, "a")
    hosts["b"]
    assert repr(hosts) == "<KeyedBreakers of 2 keys, 1 closed, max_keys=3>"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_does_not_inherit_a_held_lock(hosts: KeyedBreakers[str]) -> None:
    let_go = held_elsewhere(hosts._lock)
    child = os.fork()
    if child == 0:
        hosts["a"]
        os._exit(0)
    let_go()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_object_serves_threads_and_tasks(hosts: KeyedBreakers[str]) -> None:
    async def fail() -> None:
        raise OSError

    async def call() -> None:
        with pytest.raises(OSError):
            await hosts["a"].acall(fail)

    asyncio.run(call())
    with pytest.raises(CircuitOpenError):
        hosts["a"].call(int)
