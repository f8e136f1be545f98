"""The public test kit: what users of reliakit need to test their own code as reliakit tests itself.

    ManualClock            time and random numbers under the test's control, for threads and tasks
    RecordingListener      the events that were emitted, in order
    EmbeddedPostgres       a real PostgreSQL on a machine that may have none
    EmbeddedRedis          a real Redis, likewise
    rolled_back            whatever a database commits in a test is rolled back after it
    FaultProxy             latency, black holes, resets and cuts between a client and its server

As a pytest plugin it is registered by installation: fixtures `manual_clock`, `recording_listener`,
`reliakit_postgres`, `reliakit_dsn`, `reliakit_redis`, `reliakit_redis_url` and `fault_proxy`. Names load when
they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.testing.clock import ManualClock
    from reliakit.testing.fault_proxy import Cut, Fault, FaultProxy, ProxyStats
    from reliakit.testing.listeners import RecordingListener
    from reliakit.testing.postgres import EmbeddedPostgres
    from reliakit.testing.redis import EmbeddedRedis
    from reliakit.testing.sandbox import rolled_back

__all__ = [
    "Cut",
    "EmbeddedPostgres",
    "EmbeddedRedis",
    "Fault",
    "FaultProxy",
    "ManualClock",
    "ProxyStats",
    "RecordingListener",
    "rolled_back",
]

_HOMES = {
    "Cut": "fault_proxy",
    "EmbeddedPostgres": "postgres",
    "EmbeddedRedis": "redis",
    "Fault": "fault_proxy",
    "FaultProxy": "fault_proxy",
    "ManualClock": "clock",
    "ProxyStats": "fault_proxy",
    "RecordingListener": "listeners",
    "rolled_back": "sandbox",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
