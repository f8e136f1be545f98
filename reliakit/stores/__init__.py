"""Where counts are kept that decide over keys: one small protocol, and the stores that speak it."""

from reliakit.stores.memory import MemoryStore
from reliakit.stores.protocol import Answer, Op, Plan, Rule, Store

__all__ = ["Answer", "MemoryStore", "Op", "Plan", "Rule", "Store"]
