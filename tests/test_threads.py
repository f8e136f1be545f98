"""A Ctrl-C that falls into the beginning, waking or awaiting of a thread leaves no lock held and nothing lost.

It is raised at each line and each return of `reliakit.core.threads` and of `threading` itself, in the main thread.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

import psycopg
import pytest
import redis

from reliakit import (
    CircuitBreaker,
    LoggingHandle,
    Metrics,
    PostgresStore,
    RedisStore,
    SharedBreakers,
    Timeout,
    configure_logging,
)
from reliakit.core import threads
from reliakit.core.threads import Bell, Errand, start
from reliakit.integrations.statsd import Statsd
from reliakit.stores.ballots import Ballot, Count
from reliakit.stores.connections import Connections

FILES = {threading.__file__, threads.__file__}


class CtrlC:
    """Raises KeyboardInterrupt at the n-th place."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        # The tracer sees a `with` again on the way out, before the lock is released, where no real one comes.
        if event in {"line", "return"} and not ("with _" in line and "lock" in line):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def interruptions(step: Callable[[], object]) -> Iterator[int]:
    """Run a step again and again, interrupted at one place after the other, until it gets through."""
    for at in range(1, 1000):
        tracer, previous = CtrlC(at), sys.gettrace()
        sys.settrace(tracer)
        try:
            step()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        yield at
        if tracer.left > 0:
            return


def ends(step: Callable[[], object]) -> bool:
    """Whether a step ends, run in a thread that may be left behind if it hangs."""
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(20.0)
    return not thread.is_alive()


def named(name: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == name}


def join(name: str, besides: Collection[threading.Thread] = ()) -> None:
    """Wait for the threads of this name, also for one that is only just being started."""
    for thread in named(name).difference(besides):
        while True:
            with contextlib.suppress(RuntimeError):
                thread.join()
                break


def test_a_bell_ends_a_wait_before_and_after_it_began() -> None:
    bell = Bell()
    assert not bell.is_set()
    assert not bell.wait(0.0)
    assert not bell.wait(-1.0)
    bell.set()
    bell.set()
    assert bell.is_set()
    assert bell.wait()
    assert bell.wait(1e20)
    bell.clear()
    bell.clear()
    assert not bell.is_set()
    assert not bell.wait(0.0)
    threading.Thread(target=bell.set).start()
    assert bell.wait()


@pytest.mark.parametrize("name", [None, "errand"])
def test_an_errand_is_made_once_or_taken_back_wherever_a_ctrl_c_falls(name: str | None) -> None:
    made: list[str] = []

    def errand_of() -> Errand:
        return Errand(lambda: made.append(threading.current_thread().name), name)

    places = 0
    errand = errand_of()

    def begin() -> None:
        errand.begin()

    for at in interruptions(begin):
        if not errand.take_back():
            assert errand.wait(20.0), f"place {at}"
            assert name in {None, made.pop()}
        assert not errand.take_back()
        begin()
        assert made == []
        errand = errand_of()
        places = at
    assert places > 2


def test_a_thread_that_cannot_be_started_is_an_error_for_who_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        start(threading.Thread())
    limit = Timeout(30.0, threads=1, name="full")
    with pytest.raises(RuntimeError, match="can't start"):
        limit.call(lambda: None)
    monkeypatch.undo()
    assert limit.call(lambda: "again") == "again"


def test_a_call_in_a_worker_thread_gives_its_place_back_once() -> None:
    limit, held, go_on = Timeout(300.0, threads=2, name="places"), Bell(), Bell()

    def hold() -> None:
        held.set()
        go_on.wait()

    holder = threading.Thread(target=lambda: limit.call(hold))
    holder.start()
    held.wait()
    holding = named("reliakit-timeout-places")
    places = 0
    for at in interruptions(lambda: limit.call(lambda: None)):
        join("reliakit-timeout-places", besides=holding)
        assert limit._places.inside == 1, f"place {at}"  # the one that is held
        places = at
    go_on.set()
    holder.join()
    assert places > 20


class Box:
    """Where ballots go, and nobody else votes."""

    def vote(self, ballot: Ballot, /) -> Count:
        return Count(0, 1, 0, 2, 0.0, has_lease=False, is_leased=False, forced=0.0)

    def force(self, circuit: str, seconds: float, /) -> None:
        pass


def test_breakers_that_are_shared_wake_their_thread_and_end_it() -> None:
    sharing = SharedBreakers(Box(), interval=600.0)

    def use() -> None:
        breaker = sharing.add(CircuitBreaker("payments"))
        with sharing:
            breaker.force_open()

    def go_on() -> None:
        sharing.release("payments")
        sharing.open()
        sharing.close()

    places = 0
    for at in interruptions(use):
        assert ends(go_on), f"place {at}"
        sharing = SharedBreakers(Box(), interval=600.0)
        places = at
    assert places > 20


def test_statsd_is_closed_and_opened_again() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        statsd = Statsd(Metrics(), port=server.getsockname()[1], interval=600.0)

        def use() -> None:
            with statsd:
                pass

        places = 0
        for at in interruptions(use):
            assert ends(statsd.close), f"place {at}"
            places = at
    assert places > 20


def test_lines_behind_a_queue_are_written() -> None:
    def configure() -> LoggingHandle:
        return configure_logging(service="svc", env="test", stream=stream, queue=True)

    def use() -> None:
        log.warning("first")
        handle.flush()

    log, stream = logging.getLogger("app"), io.StringIO()
    handle = configure()
    places = 0
    for at in interruptions(use):
        log.warning("second")
        handle.close()
        assert "second" in stream.getvalue(), f"place {at}"
        handle.close()
        assert ends(lambda: join("reliakit-logs")), f"place {at}"
        stream = io.StringIO()
        handle = configure()
        places = at
    handle.close()
    assert places > 20


@pytest.mark.parametrize(
    "store", [PostgresStore("host=127.0.0.1 port=1 connect_timeout=2"), RedisStore("redis://127.0.0.1:1")], ids=repr
)
def test_a_store_looks_for_a_connection_again_and_counts_none_that_is_not_there(
    store: PostgresStore | RedisStore,
) -> None:
    connections = store._blocking
    assert isinstance(connections, Connections)

    def use() -> None:
        with pytest.raises((psycopg.OperationalError, redis.ConnectionError, TimeoutError)):
            connections.open()

    places = 0
    for at in interruptions(use):
        join("reliakit-store")
        assert connections._size == 0, f"place {at}"
        assert not connections._waiting, f"place {at}"
        assert ends(use), f"place {at}"
        places = at
    assert places > 20
