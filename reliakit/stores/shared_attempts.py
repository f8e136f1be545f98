"""Failed attempts to log in for stores outside this process, with the work divided as in `reliakit.stores.shared`.

The server keeps four states under their keys, decides, and writes its decision; from the states before, this process
derives the answer. The state of an account, pair or device is (number, until, generation, expires), that of a source
the two numbers of a gcra rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reliakit.stores.algorithms import Gcra
from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules, Failures, States, decide
from reliakit.stores.protocol import FOREVER
from reliakit.stores.shared import in_microseconds, micros, rule_numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DIMENSIONS", "SharedAttempts"]

DIMENSIONS = ("account", "pair", "source", "device")


class SharedAttempts:
    """A guard's rules for a server.

    Args:
        rules: The rules.
    """

    __slots__ = ("_rules", "_scale", "numbers")

    def __init__(self, rules: AttemptRules) -> None:
        self._rules = replace(
            rules,
            base=micros(rules.base),
            cap=micros(rules.cap),
            keep=micros(rules.keep),
            pair_keep=micros(rules.pair_keep),
            device_keep=micros(rules.device_keep),
            source=in_microseconds(rules.source),
        )
        own = self._rules
        self._scale = Gcra(own.source).scale
        # free, base, cap, stop, keep, pair_keep, device_keep, then the numbers of the source's rule.
        self.numbers: tuple[int, ...] = (
            *(own.free, own.base, own.cap, own.stop, own.keep, own.pair_keep, own.device_keep),
            *rule_numbers(own.source),
        )

    def answer(self, op: AttemptOp, attempt: Attempt, now: int, rows: Sequence[Sequence[int]]) -> AttemptAnswer:
        """Return the answer that belongs to a server's decision.

        Args:
            op: What the server was asked to do.
            attempt: The keys of the attempt.
            now: The server's clock, in microseconds.
            rows: The states before, by dimension, empty for none.
        """
        account, pair, source, device = rows
        arrival = source[0] * self._scale + source[1] if source else 0
        states = States(
            _failures(account, now),
            _failures(pair, now),
            arrival if arrival > now * self._scale else None,
            _failures(device, now),
        )
        answer = decide(op, self._rules, attempt, states, now)[0]
        return answer._replace(wait=FOREVER if answer.wait >= FOREVER else answer.wait * 1000)


def _failures(row: Sequence[int], now: int) -> Failures | None:
    return Failures(*row) if row and row[3] > now else None
