"""Blocks that are collected as garbage in the middle of somebody else's step: nothing blocks and nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Callable, Generator, Iterator

import pytest
from garbage import abandon, in_time

from reliakit.core.errors import TransactionUsageError
from reliakit.database import Database, Propagation
from reliakit.database.gate import Gate, Lease


def lease_of(gate: Gate) -> Lease:
    return Lease(gate, object(), 0.0, (None, 0))  # type: ignore[arg-type]


def abandoned(gate: Gate) -> Lease:
    """Return a lease that has a slot and leaves when the collector finds its block."""
    lease = lease_of(gate)
    assert gate.enter(lease, Collecting)

    def block() -> Generator[None, None, None]:
        try:
            yield
        finally:
            gate.leave(lease)

    abandon(block)
    return lease


class Collecting:
    """A bell that collects garbage when it is made and when it rings."""

    def __init__(self) -> None:
        gc.collect()

    def ring(self) -> None:
        gc.collect()


@pytest.fixture
def lazy() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("lazy")
def test_a_block_that_is_collected_while_its_gate_hands_a_slot_over_gives_its_own_to_one_who_waits() -> None:
    gate = Gate("main", 2)
    first, second, third = (lease_of(gate) for _ in range(3))
    assert gate.enter(first, Collecting)
    lost = lease_of(gate)
    assert gate.enter(lost, Collecting)
    assert not gate.enter(second, Collecting)
    assert not gate.enter(third, Collecting)

    def block() -> Generator[None, None, None]:
        try:
            yield
        finally:
            gate.leave(lost)

    abandon(block)
    in_time(lambda: gate.leave(first))
    assert (second.holds, third.holds, lost.holds, gate.waiting) == (True, True, False, 0)
    assert second.slot is not third.slot
    gate.leave(second)
    gate.leave(third)
    assert not gate.held()


@pytest.mark.usefixtures("lazy")
def test_a_block_that_is_collected_while_somebody_queues_makes_room_for_them() -> None:
    gate = Gate("main", 1)
    abandoned(gate)
    lease = lease_of(gate)
    assert in_time(lambda: gate.enter(lease, Collecting))
    assert lease.holds
    assert gate.waiting == 0


@pytest.mark.usefixtures("lazy")
def test_one_slot_that_comes_free_twice_is_handed_over_once() -> None:
    gate = Gate("main", 2)
    abandoned(gate)
    first, second = lease_of(gate), lease_of(gate)
    assert gate.enter(first, Collecting)
    waits = Lease(gate, threading.current_thread(), 0.0, (None, 0))
    # Queued without a collection: the bell is only rung.
    assert not gate.enter(waits, lambda: Collecting.__new__(Collecting))
    in_time(lambda: gate.leave(first))
    assert waits.holds
    assert gate.enter(second, Collecting)
    assert waits.slot is not second.slot
    assert len(gate.held()) == 2


def test_a_storm_of_abandoned_blocks_under_an_eager_collector_blocks_nobody_and_loses_nothing(
    reliakit_dsn: str,
) -> None:
    size = 3
    with Database(reliakit_dsn, max_size=size) as db:

        def rows() -> Generator[int, None, None]:
            with db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=30) as tx:
                yield tx.fetch_value("SELECT 1")

        def leave_behind() -> None:
            with contextlib.suppress(TransactionUsageError):
                abandon(rows)

        def one() -> None:
            with contextlib.suppress(TransactionUsageError):  # where all slots are held by blocks not collected yet
                with db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=30) as tx:
                    assert tx.fetch_value("SELECT 2") == 2

        def wasteful() -> None:
            kept: list[list[int]] = [[] for _ in range(20)]
            kept.append([len(kept)])

        acts: list[Callable[[], object]] = [
            leave_behind,
            one,
            db.stats,
            wasteful,
        ]

        def storm(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(60):
                chance.choice(acts)()

        def three_threads() -> None:
            threads = [threading.Thread(target=storm, args=(seed,), daemon=True) for seed in range(size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        threshold = gc.get_threshold()
        gc.set_threshold(3, 2, 2)
        try:
            in_time(three_threads)
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        with contextlib.ExitStack() as stack:
            for _ in range(size):
                stack.enter_context(db.transaction(propagation=Propagation.REQUIRES_NEW, timeout=5))
        assert db.stats().in_use == 0
