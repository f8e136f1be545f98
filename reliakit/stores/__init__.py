"""Where the counts of keys are kept: one small protocol, and the stores that implement it.

RedisStore and PostgresStore are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from reliakit.stores.memory import MemoryStore
from reliakit.stores.protocol import Answer, Op, Plan, Rule, Store

if TYPE_CHECKING:
    from reliakit.stores.postgres import PostgresStore
    from reliakit.stores.redis import RedisStore

__all__ = ["Answer", "MemoryStore", "Op", "Plan", "PostgresStore", "RedisStore", "Rule", "Store"]

_HOMES = {"PostgresStore": "reliakit.stores.postgres", "RedisStore": "reliakit.stores.redis"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
