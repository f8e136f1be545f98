"""What goes wrong, and when: shares of the run, so that a shorter run has the same story."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from reliakit import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from examples.demo.stage import Stage

FULL_RUN = 15.0
SHORTEST_RUN = 4.0
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at: Share of the run at which it begins.
        name: What the screen says.
        happen: Does it, and returns when it is over with what there is to say.
    """

    at: float
    name: str
    happen: Callable[[], Awaitable[str]]


def plan(stage: Stage, seconds: float, has_opened: Callable[[], bool]) -> list[Fault]:
    """Return the faults of a run of so many seconds, in order; has_opened tells whether a breaker has."""
    scale = min(1.0, seconds / FULL_RUN)
    slow = max(1.6, 2.5 * scale)

    async def kill_backends() -> str:
        killed = [await kill_backend(dsn) for dsn in stage.dsns.values()]
        return f"{len(killed)} backends killed, {killed.count(True)} of them in the middle of a transaction"

    async def black_hole() -> str:
        with stage.database_network.black_hole():
            await SYSTEM_CLOCK.asleep(2.0 * scale)
        return "the network to PostgreSQL is back"

    async def slow_service() -> str:
        with stage.employee_network.latency(0.6):
            await SYSTEM_CLOCK.asleep(slow)
            # On a busy machine it takes longer until a breaker has seen five calls fail.
            until = SYSTEM_CLOCK.monotonic() + _PATIENCE
            while not has_opened() and SYSTEM_CLOCK.monotonic() < until:
                await SYSTEM_CLOCK.asleep(0.1)
        return "the employee service is as fast as before"

    return [
        Fault(0.20, "kill a PostgreSQL backend of each service", kill_backends),
        Fault(0.35, f"black-hole the database for {2.0 * scale:.1f} s", black_hole),
        Fault(0.55, f"slow the employee service down for {slow:.1f} s", slow_service),
    ]


async def kill_backend(dsn: str) -> bool:
    """Terminate one connection of a service, if possible one in a transaction; return whether it was in one."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for attempt in range(100):
            # The last time round any connection will do.
            condition = "xact_start IS NOT NULL" if attempt < 99 else "true"
            cursor = await connection.execute(
                "SELECT pg_terminate_backend(pid), busy FROM (SELECT pid, xact_start IS NOT NULL AS busy"
                " FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                f" AND backend_type = 'client backend' AND {condition} LIMIT 1) AS chosen".encode()
            )
            killed = await cursor.fetchone()
            if killed is not None:
                return bool(killed[1])
            await SYSTEM_CLOCK.asleep(0.005)
    return False


async def play(faults: list[Fault], seconds: float, tell: Callable[[str], None]) -> None:
    """Let the faults happen, each at its time."""
    began = asyncio.get_running_loop().time()
    for fault in faults:
        await SYSTEM_CLOCK.asleep(max(0.0, began + fault.at * seconds - asyncio.get_running_loop().time()))
        tell(f"fault: {fault.name}")
        tell(f"over:  {await fault.happen()}")
