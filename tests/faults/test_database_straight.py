"""The straight way: ordinary transactions take it, and whatever is not ordinary is left to the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from database_drivers import COLOURS, block, got, play, run

from reliakit.core.errors import TransactionRolledBackError
from reliakit.core.events import Event, TransactionEnded
from reliakit.database import Isolation, Propagation
from reliakit.testing import ManualClock

pytestmark = pytest.mark.parametrize("colour", COLOURS)


def watched(db: Any) -> list[str]:
    """Return a list of what the engine has been asked for from now on."""
    asked: list[str] = []

    def watch(name: str) -> None:
        original: Callable[..., Any] = getattr(db._engine, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return original(*args, **kwargs)

        setattr(db._engine, name, noting)

    for name in ("enter", "enter_after", "leave", "leave_after"):
        watch(name)
    return asked


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"read_only": True, "deferrable": True, "isolation": Isolation.SERIALIZABLE},
        {"timeout": 1.5, "lock_timeout": 0.5},
    ],
)
def test_an_ordinary_transaction_never_meets_the_engine(
    reliakit_dsn: str, colour: str, options: dict[str, Any], heard: bool
) -> None:
    async def limits(tx: Any) -> Any:
        return await got(
            tx.fetch_one(
                "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only'), "
                "current_setting('transaction_deferrable'), current_setting('statement_timeout'), "
                "current_setting('idle_in_transaction_session_timeout'), current_setting('lock_timeout')"
            )
        )

    async def script(db: Any) -> None:
        async with block(db, **options) as tx:
            first = await limits(tx)  # the first one connects, by the engine
        asked = watched(db)
        events.clear()
        async with block(db, **options) as tx:
            assert await limits(tx) == first
        assert await run(db, limits, **options) == first
        assert asked == []
        told = ["PoolWaited", "TransactionStarted", "PoolReturned", "TransactionEnded"]
        assert [type(event).__name__ for event in events] == (told + told if heard else [])
        for event in events:
            if isinstance(event, TransactionEnded):
                assert (event.status, event.statements, event.began) == ("commit", 1, True)
                assert event.duration >= event.hold >= 0

    events: list[Event] = []
    # A clock that stands still, so that the limits are the same whatever connecting has taken.
    play(colour, reliakit_dsn, script, listeners=[events.append] if heard else [], clock=ManualClock())


def test_what_is_not_ordinary_is_left_to_the_engine(reliakit_dsn: str, colour: str) -> None:
    async def script(db: Any) -> None:
        await got(db.execute("SELECT 1"))
        asked = watched(db)
        async with block(db) as tx:
            async with block(db, propagation=Propagation.NESTED):
                assert asked == ["enter"]
            tx.after_commit(lambda: asked.append("hook"))
        assert asked == ["enter", "leave", "leave_after", "hook"]
        asked.clear()
        with pytest.raises(TransactionRolledBackError):
            async with block(db) as tx:
                with pytest.raises(psycopg.errors.DivisionByZero):
                    await got(tx.execute("SELECT 1 / 0"))
        async with block(db) as tx:
            tx.set_rollback_only()
        assert asked == ["leave", "leave"]
        asked.clear()
        async with block(db) as tx:
            pid = await got(tx.fetch_value("SELECT pg_backend_pid()"))
            async with block(db, propagation=Propagation.REQUIRES_NEW) as other:
                assert asked == ["enter"]
                await got(other.execute("SELECT pg_backend_pid()"))
        asked.clear()
        with psycopg.connect(reliakit_dsn, autocommit=True) as killer:
            killer.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        async with block(db) as tx:  # on a connection that proves dead and is replaced
            assert await got(tx.fetch_value("SELECT pg_backend_pid()")) != pid
        assert asked == ["enter_after"]

    play(colour, reliakit_dsn, script)
