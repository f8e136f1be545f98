"""A limit on denials: a key that is denied too often is turned away altogether for a while.

```
hit ──> too many denials lately? ──yes──> denied, and nothing is counted
              └no──> the limits decide ── denied ──> one more denial
```

It asks the store one more question for each decision, and a third one for each denial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.stores.protocol import Op

if TYPE_CHECKING:
    from reliakit.ratelimit.outage import GuardedStore
    from reliakit.stores.protocol import Answer, Plan, Store

__all__ = ["BreachLimited"]


class BreachLimited:
    """Decide as the store does, and count the denials of each key. Safe from threads and tasks, if the store is.

    Args:
        store: The store.
        denials: The plan under which denials are counted.
        binding: The number by which answers name the limit on denials: one past the limiter's last limit.
    """

    def __init__(self, store: Store | GuardedStore, denials: Plan, binding: int) -> None:
        self._store = store
        self._denials = denials
        self._binding = binding

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide like `Store.apply`."""
        store, denials = self._store, self._denials
        if op is Op.RESET:
            store.apply(op, denials, key, 1, 0)
        if op is Op.HIT or op is Op.PEEK:
            standing = store.apply(Op.PEEK, denials, key, 1, 0)
            if not standing.admitted:
                return self._turned_away(standing)
        answer = store.apply(op, plan, key, cost, patience)
        if op is Op.HIT and not answer.admitted and not store.apply(op, denials, key, 1, 0).remaining:
            return self._later(answer, store.apply(Op.PEEK, denials, key, 1, 0))
        return answer

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide like `Store.aapply`; the twin of `apply` for tasks."""
        store, denials = self._store, self._denials
        if op is Op.RESET:
            await store.aapply(op, denials, key, 1, 0)
        if op is Op.HIT or op is Op.PEEK:
            standing = await store.aapply(Op.PEEK, denials, key, 1, 0)
            if not standing.admitted:
                return self._turned_away(standing)
        answer = await store.aapply(op, plan, key, cost, patience)
        if op is Op.HIT and not answer.admitted and not (await store.aapply(op, denials, key, 1, 0)).remaining:
            return self._later(answer, await store.aapply(Op.PEEK, denials, key, 1, 0))
        return answer

    def _turned_away(self, standing: Answer) -> Answer:
        return standing._replace(binding=self._binding)

    def _later(self, answer: Answer, standing: Answer) -> Answer:
        """Return a denial whose wait also covers the limit on denials, which this denial used up."""
        return answer if standing.wait <= answer.wait else answer._replace(binding=self._binding, wait=standing.wait)
