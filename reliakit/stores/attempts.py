"""Failed attempts to log in, as a store counts them: in whole nanoseconds, without clock, lock or rounding error.

```
RESERVE ──> do pair, account and source admit? ──yes──> all three count one ──> password is checked ──> SUCCEED
              │ a known device: it alone is asked                                └─ wrong: nothing to do
              │ a known device: only it is asked                                 └─ wrong: nothing to do
              └─no──> nothing is written

A reservation counts as a failure until the store is told otherwise, so guesses in parallel are counted before any
password is looked at. One count of failures, of a pair, an account or a known device:

```
failures     1 .. free-1   free    free+1   free+2   ...                       stop
next one     at once       base    2 base   4 base   ... never more than cap   none before a reset
```

A source counts the accounts that begin to fail from it, by a gcra rule. A denied attempt changes nothing, so nobody
can keep an account blocked by trying again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal, NamedTuple, Protocol, TypeAlias

from reliakit.stores.counters import Gcra
from reliakit.stores.protocol import FOREVER, Rule

__all__ = [
    "Attempt",
    "AttemptAnswer",
    "AttemptOp",
    "AttemptRules",
    "AttemptStore",
    "Claim",
    "Failures",
    "States",
    "decide",
]

Dimension: TypeAlias = Literal["", "pair", "account", "source", "device"]


class AttemptOp(StrEnum):
    """What to do with an attempt.

    Attributes:
        RESERVE: Count it as a failure, unless a count blocks it.
        SUCCEED: It was not a failure: forget the failures of pair and account, give back what its source counted for
            it, and remember its device. The attempt of a known device changes only that device.
        CANCEL: It was not an attempt: give back what was counted for it.
        LOOK: Return what RESERVE would answer, and change nothing.
        RESET: Forget the failures of the account with all its pairs and devices, and those of the source.
    """

    RESERVE = "reserve"
    SUCCEED = "succeed"
    CANCEL = "cancel"
    LOOK = "look"
    RESET = "reset"


class Claim(IntEnum):
    """What a reservation has counted; SUCCEED and CANCEL hand it back."""

    NOTHING = 0
    KNOWN_PAIR = 1
    NEW_PAIR = 2  # which its source has counted too
    DEVICE = 3


@dataclass(frozen=True, slots=True)
class AttemptRules:
    """How failures slow down what comes next, in whole numbers.

    Attributes:
        space: The namespace of the keys: differs whenever states cannot be shared.
        free: How many failures cause no wait.
        base: The first wait, in nanoseconds; each further one is twice as long.
        cap: The longest wait, in nanoseconds.
        stop: How many failures without a success stop an account until a reset.
        keep: Nanoseconds after the last wait for which an account's failures are remembered.
        pair_keep: The same for a pair.
        device_keep: Nanoseconds after its last success for which a device is known.
        source: A gcra rule: how many accounts may begin to fail from one source.
    """

    space: str
    free: int
    base: int
    cap: int
    stop: int
    keep: int
    pair_keep: int
    device_keep: int
    source: Rule

    def delay(self, failures: int) -> int:
        """Return how many nanoseconds the next attempt has to wait after so many failures."""
        over = failures - self.free
        return 0 if over < 0 else min(self.cap, self.base << min(over, 62))


class Attempt(NamedTuple):
    """An attempt to log in, as keys from which no name can be read.

    RESERVE, SUCCEED and CANCEL have all of them, except that the device is None if there is none. LOOK and RESET
    leave out what they are not asked about. A store may have to keep the four in one place, so they share the space.

    Attributes:
        account: The account.
        pair: The account together with the source.
        source: Where the attempt comes from.
        device: The account together with the device.
        claim: For SUCCEED and CANCEL, what RESERVE answered.
    """

    account: str | None = None
    pair: str | None = None
    source: str | None = None
    device: str | None = None
    claim: Claim = Claim.NOTHING


class AttemptAnswer(NamedTuple):
    """A store's answer to an attempt.

    Attributes:
        admitted: Whether the password may be looked at.
        binding: Which count blocks longest; "" if admitted.
        wait: Nanoseconds until it may be tried again; FOREVER if only a reset helps, 0 if admitted.
        failures: Of the account, or of the known device; this reservation included.
        claim: What was counted, for SUCCEED and CANCEL; for LOOK, what would be.
    """

    admitted: bool
    binding: Dimension
    wait: int
    failures: int
    claim: Claim


class AttemptStore(Protocol):
    """A store that can also count attempts; see `Store`, whose promises hold here too."""

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Do what `decide` does, in one atomic step and one round trip, by the store's own clock."""
        ...

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide like `attempt`, without blocking the event loop."""
        ...


class Failures(NamedTuple):
    """The state of a pair, an account or a known device.

    Attributes:
        number: Failures and reservations since the last success.
        until: The instant before which no attempt is admitted.
        generation: An account's generation changes with each reset. A pair or device that was written under another
            one than its account's has no failures any more.
        expires: The instant from which the state is to be forgotten: an account or pair starts afresh then, and a
            device is not known any more.
    """

    number: int
    until: int
    generation: int
    expires: int


class States(NamedTuple):
    """What a store keeps for an attempt; None for what is not kept. The source's is the state of a gcra rule."""

    account: Failures | None
    pair: Failures | None
    source: int | None
    device: Failures | None


def decide(
    op: AttemptOp, rules: AttemptRules, attempt: Attempt, states: States, now: int
) -> tuple[AttemptAnswer, States]:
    """Return the answer and the states after it; every store does what this does.

    Args:
        op: What to do.
        rules: The guard's rules.
        attempt: The keys of the attempt.
        states: What is kept for it, without what has expired.
        now: The instant.
    """
    if op is AttemptOp.RESET:
        return _DONE, _reset(rules, attempt, states, now)
    if op is AttemptOp.SUCCEED:
        return _DONE, _succeeded(rules, attempt, states, now)
    if op is AttemptOp.CANCEL:
        return _DONE, _cancelled(rules, attempt.claim, states, now)
    answer = _look(rules, attempt, states, now)
    if op is AttemptOp.LOOK or not answer.admitted:
        return answer, states
    return answer._replace(failures=answer.failures + 1), _reserved(rules, answer.claim, states, now)


_DONE = AttemptAnswer(True, "", 0, 0, Claim.NOTHING)
_CLEAN = Failures(0, 0, 0, 0)


def _generation(states: States) -> int:
    return states.account.generation if states.account else 0


def _live(state: Failures | None, generation: int) -> Failures:
    """Return what still counts of a state under the account's present generation."""
    return _CLEAN if state is None or state.generation != generation else state


def _look(rules: AttemptRules, attempt: Attempt, states: States, now: int) -> AttemptAnswer:
    generation = _generation(states)
    if states.device is not None:
        device = _live(states.device, generation)
        return _answer([("device", _wait(rules, device, now))], device.number, Claim.DEVICE)
    account, pair = _live(states.account, generation), _live(states.pair, generation)
    waits: list[tuple[Dimension, int]] = [("pair", _wait(rules, pair, now)), ("account", _wait(rules, account, now))]
    if attempt.source is not None:
        waits.append(("source", Gcra(rules.source).due(states.source, now, 1) - now))
    return _answer(waits, account.number, Claim.KNOWN_PAIR if pair.number else Claim.NEW_PAIR)


def _wait(rules: AttemptRules, state: Failures, now: int) -> int:
    return FOREVER if state.number >= rules.stop else max(0, state.until - now)


def _answer(waits: list[tuple[Dimension, int]], failures: int, claim: Claim) -> AttemptAnswer:
    binding, wait = max(waits, key=lambda one: one[1])
    return AttemptAnswer(not wait, binding if wait else "", wait, failures, claim)


def _reserved(rules: AttemptRules, claim: Claim, states: States, now: int) -> States:
    generation = _generation(states)
    if states.device is not None:
        device = _with_one_more(rules, _live(states.device, generation), now, generation)
        return states._replace(device=device._replace(expires=states.device.expires))
    account, pair = (
        _with_one_more(rules, _live(state, generation), now, generation) for state in (states.account, states.pair)
    )
    source = Gcra(rules.source).spend(states.source, now, 1) if claim is Claim.NEW_PAIR else states.source
    return States(
        account._replace(expires=account.until + rules.keep),
        pair._replace(expires=pair.until + rules.pair_keep),
        source,
        None,
    )


def _with_one_more(rules: AttemptRules, state: Failures, now: int, generation: int) -> Failures:
    number = state.number + 1
    return Failures(number, now + rules.delay(number), generation, 0)


def _succeeded(rules: AttemptRules, attempt: Attempt, states: States, now: int) -> States:
    generation = _generation(states)
    device = Failures(0, 0, generation, now + rules.device_keep) if attempt.device else None
    if attempt.claim is Claim.DEVICE:
        return states._replace(device=device)
    account = states.account._replace(number=0, until=0) if states.account and generation else None
    return States(account, None, _refunded(rules, attempt.claim, states.source, now), device)


def _cancelled(rules: AttemptRules, claim: Claim, states: States, now: int) -> States:
    if claim is Claim.NOTHING:
        return states
    if claim is Claim.DEVICE:
        return states._replace(device=_with_one_less(rules, states.device, now))
    return states._replace(
        account=_with_one_less(rules, states.account, now),
        pair=_with_one_less(rules, states.pair, now),
        source=_refunded(rules, claim, states.source, now),
    )


def _with_one_less(rules: AttemptRules, state: Failures | None, now: int) -> Failures | None:
    if state is None or not state.number:
        return state
    number = state.number - 1
    return state._replace(number=number, until=min(state.until, now + rules.delay(number)))


def _refunded(rules: AttemptRules, claim: Claim, source: int | None, now: int) -> int | None:
    return Gcra(rules.source).refund(source, now, 1) if claim is Claim.NEW_PAIR else source


def _reset(rules: AttemptRules, attempt: Attempt, states: States, now: int) -> States:
    if attempt.account is None:
        return states._replace(source=None if attempt.source else states.source)
    # Later than any generation before, even a forgotten one: what was written under those stays void.
    generation = max(now, _generation(states) + 1)
    account = Failures(0, 0, generation, now + max(rules.keep, rules.pair_keep, rules.device_keep))
    return states._replace(account=account, source=None if attempt.source else states.source)
