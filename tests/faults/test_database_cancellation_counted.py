"""Metrics that are handed numbers say what those say that hear events, whatever is cancelled, and gauges end at 0."""

from __future__ import annotations

import asyncio
import contextlib
import io

import pytest
from database_drivers import SOURCES, Injected, all_obtainable, opened
from test_database_cancellation import WORKS, Work, around, cancel, cancel_too_late, drive

from reliakit import configure_logging
from reliakit.metrics import Metrics

pytestmark = pytest.mark.anyio

# Two clocks stand beside each other here, so sums of seconds and their buckets may differ by a hair.
COUNTS = ("_total{", "_count{", "_in_progress{")


def counts(metrics: Metrics) -> dict[str, float]:
    """Return all that is counted of transactions and their pools, without what is 0."""
    lines = (line.rpartition(" ") for line in metrics.render().body.decode().splitlines())
    of_ours = ("reliakit_transaction", "reliakit_db_")
    found = {name: float(number) for name, _, number in lines if name.startswith(of_ours)}
    return {name: number for name, number in found.items() if number and any(part in name for part in COUNTS)}


def gauges(metrics: Metrics) -> dict[str, float]:
    """Return what is held, waited for and open now."""
    lines = (line.rpartition(" ") for line in metrics.render().body.decode().splitlines())
    wanted = ('state="in_use"', "db_pool_waiting{", "transaction_in_progress{", "checkout_age_seconds{")
    return {name: float(number) for name, _, number in lines if any(part in name for part in wanted)}


# Each on one kind of connections: what is counted of them is found out in one place for all.
@pytest.mark.parametrize(("work", "source"), list(zip(WORKS, SOURCES * len(WORKS), strict=False)))
async def test_what_is_cancelled_is_counted_once_by_whatever_way(reliakit_dsn: str, source: str, work: Work) -> None:
    handed, heard = Metrics(), Metrics()
    logs = configure_logging(service="svc", env="production", level="INFO", stream=io.StringIO())
    with contextlib.closing(logs), handed:
        async with opened("tasks", reliakit_dsn, source, listeners=[heard]) as db:
            await db.execute("CREATE TABLE item (id int PRIMARY KEY)")
            item, suspensions = 0, 1
            while item // 2 <= suspensions:
                at, fault = item // 2, (cancel, cancel_too_late)[item % 2]
                item += 1
                driver = Injected(work(db, item), {at: fault})
                with contextlib.suppress(asyncio.CancelledError, LookupError):
                    async with around(db, work):
                        await asyncio.create_task(drive(driver))
                suspensions = max(suspensions, driver.suspensions)
                await all_obtainable(db)
                assert counts(handed) == counts(heard), (at, fault)
                assert set(gauges(handed).values()) <= {0.0}, (at, fault)
                assert set(gauges(heard).values()) <= {0.0}, (at, fault)
            assert item > 4
