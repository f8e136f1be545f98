"""The decisions that any store must come to, from a state that is only a value: what stores are tested against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from reliakit.stores.protocol import Answer, Op, Rule
from reliakit.stores.shared import machine_of

__all__ = ["Decide", "reference_machine"]

Decide: TypeAlias = Callable[[Op, Any, int, int, int], tuple[Answer, Any]]


def reference_machine(rules: tuple[Rule, ...], *, tick: int, aligned: bool) -> Decide:
    """Return a function of op, state, now, cost and patience that returns the answer and the state after it.

    Args:
        rules: At least one.
        tick: The shortest time that the store knows, in nanoseconds.
        aligned: Whether windows begin at whole multiples of their period.
    """
    machine = machine_of(tuple(rule._replace(period=-(-rule.period // tick)) for rule in rules), aligned=aligned)

    def decide(op: Op, state: Any, now: int, cost: int, patience: int) -> tuple[Answer, Any]:
        answer, after = machine.decide(op, state, now // tick, cost, patience // tick)
        return answer._replace(wait=answer.wait * tick, reset=answer.reset * tick), after

    return decide
