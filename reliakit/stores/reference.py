"""The decisions that any store must reach, computed from a plain value: what stores are tested against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from reliakit.stores.algorithms import Gcra
from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules, States, decide
from reliakit.stores.protocol import FOREVER, Answer, Op, Rule
from reliakit.stores.shared import machine_of

__all__ = ["AttemptReference", "Decide", "reference_machine"]

Decide: TypeAlias = Callable[[Op, Any, int, int, int], tuple[Answer, Any]]


def reference_machine(rules: tuple[Rule, ...], *, tick: int, aligned: bool) -> Decide:
    """Return a function of op, state, now, cost and patience that returns the answer and the state after it.

    Args:
        rules: At least one.
        tick: The shortest time that the store can represent, in nanoseconds.
        aligned: Whether windows begin at whole multiples of their period.
    """
    machine = machine_of(tuple(rule._replace(period=-(-rule.period // tick)) for rule in rules), aligned=aligned)

    def decide(op: Op, state: Any, now: int, cost: int, patience: int) -> tuple[Answer, Any]:
        answer, after = machine.decide(op, state, now // tick, cost, patience // tick)
        return answer._replace(wait=answer.wait * tick, reset=answer.reset * tick), after

    return decide


class AttemptReference:
    """Decides on attempts to log in, from states that it keeps for ever.

    Args:
        rules: The guard's rules.
        tick: The shortest time that the store can represent, in nanoseconds.
    """

    def __init__(self, rules: AttemptRules, *, tick: int) -> None:
        self._tick = tick
        times = ("base", "cap", "keep", "pair_keep", "device_keep")
        whole = {name: -(-getattr(rules, name) // tick) for name in times}
        self._rules = replace(rules, **whole, source=rules.source._replace(period=-(-rules.source.period // tick)))
        self._kept: dict[tuple[str, str], Any] = {}

    def __call__(self, op: AttemptOp, attempt: Attempt, now: int) -> AttemptAnswer:
        """Decide."""
        now //= self._tick
        places = list(zip(States._fields, attempt[:4], strict=True))
        found = [None if key is None else self._kept.get((name, key)) for name, key in places]
        account, pair, device = (
            state if state is not None and state.expires > now else None for state in (found[0], found[1], found[3])
        )
        source = found[2]
        if source is not None and Gcra(self._rules.source).full(source) <= now:
            source = None
        answer, after = decide(op, self._rules, attempt, States(account, pair, source, device), now)
        for (name, key), state in zip(places, after, strict=True):
            if key is not None:
                self._kept[name, key] = state
        return answer._replace(wait=answer.wait if answer.wait >= FOREVER else answer.wait * self._tick)
