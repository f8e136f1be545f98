"""A transaction with `pipeline=True` whose first statement finds no connection: it ends as any other that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from database_drivers import COLOURS, SOURCES, Anybase, block, got, play, run

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.deadline import deadline
from reliakit.core.errors import DeadlineExceededError, TransactionRolledBackError, TransactionTimeoutError
from reliakit.testing import FaultProxy

Proxy = Callable[[str], FaultProxy]


async def lose_server(db: Anybase, proxy: FaultProxy, dsn: str) -> None:
    """Leave idle connections whose server has ended, and nobody who answers."""
    proxy.heal()
    assert await got(db.fetch_value("SELECT 1")) == 1
    end_connections(proxy, dsn)


def end_connections(proxy: FaultProxy, dsn: str) -> None:
    proxy.refuse()
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with psycopg.connect(dsn, autocommit=True) as killer:
        quiet = 0
        while quiet < 5:  # a pool may have begun to connect before the proxy refused it
            quiet = 0 if killer.execute(f"SELECT pg_terminate_backend(pid) {others}").fetchall() else quiet + 1
            SYSTEM_CLOCK.sleep(0.01)


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT 1; SELECT 2"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("colour", COLOURS)
def test_its_error_leaves_and_is_not_hidden_by_swallowing_it(
    colour: str, source: str, statement: str, reliakit_dsn: str, fault_proxy: Proxy
) -> None:
    proxy = fault_proxy(reliakit_dsn)

    async def script(db: Any) -> None:
        hooks: list[str] = []
        await lose_server(db, proxy, reliakit_dsn)
        with pytest.raises((psycopg.OperationalError, TransactionTimeoutError)):
            async with block(db, pipeline=True, timeout=0.5) as tx:
                tx.after_rollback(lambda: hooks.append("rolled back"))
                await got(tx.execute(statement))
        assert hooks == ["rolled back"]

        await lose_server(db, proxy, reliakit_dsn)
        with pytest.raises((TransactionRolledBackError, TransactionTimeoutError)) as caught:
            async with block(db, pipeline=True, timeout=0.5) as tx:
                with contextlib.suppress(psycopg.Error, TransactionTimeoutError):
                    await got(tx.execute(statement))
        assert (caught.value.name, caught.value.attempts) == ("main", 1)
        proxy.heal()

    play(colour, proxy.dsn(), script, source)


@pytest.mark.parametrize("colour", COLOURS)
def test_it_is_tried_again_as_nothing_was_sent(colour: str, reliakit_dsn: str, fault_proxy: Proxy) -> None:
    proxy = fault_proxy(reliakit_dsn)

    async def script(db: Any) -> None:
        attempts: list[int] = []

        async def work(tx: Any) -> int:
            attempts.append(tx.attempt)
            if len(attempts) == 1:
                end_connections(proxy, reliakit_dsn)
            try:
                return int(await got(tx.fetch_value("SELECT 7")))
            finally:
                proxy.heal()

        assert await run(db, work, pipeline=True) == 7
        assert attempts[0] == 1
        assert len(attempts) == 2

    play(colour, proxy.dsn(), script)


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
def test_it_never_starts_without_time(colour: str, pipeline: bool, reliakit_dsn: str) -> None:
    async def script(db: Any) -> None:
        for _ in range(20):
            with pytest.raises(DeadlineExceededError), deadline(0):
                async with block(db, pipeline=pipeline):
                    pytest.fail("the block was entered")

    play(colour, reliakit_dsn, script)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_block_without_a_statement_does_not_mind(colour: str, reliakit_dsn: str, fault_proxy: Proxy) -> None:
    proxy = fault_proxy(reliakit_dsn)

    async def script(db: Any) -> None:
        await lose_server(db, proxy, reliakit_dsn)
        async with block(db, pipeline=True):
            pass
        proxy.heal()

    play(colour, proxy.dsn(), script)
