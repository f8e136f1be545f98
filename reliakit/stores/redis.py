"""A store in Redis or Valkey: one script for each decision, by the server's clock.

```
hit(key) ──> EVALSHA ──> server: clock, state of the key, decision, state and TTL written ──> Answer
ahit(key) × n in one tick of the event loop ──> one pipeline of n ──────────────────────> n Answers
```
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, Literal

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError, StoreError
from reliakit.stores.keys import hashed, short
from reliakit.stores.leasing import Leases
from reliakit.stores.protocol import Op
from reliakit.stores.redis_attempts import ATTEMPT
from reliakit.stores.redis_ballots import FORCE, VOTE, count_of, force_words, vote_words
from reliakit.stores.redis_clients import ClientBlockingWire, ClientTickWire, is_async
from reliakit.stores.redis_scripts import DECIDE, DECIDE_ONE
from reliakit.stores.redis_wire import BlockingWire, Call, Library, Request, TickWire
from reliakit.stores.remote import RemoteStore
from reliakit.stores.shared import SharedPlan
from reliakit.stores.shared_attempts import DIMENSIONS, SharedAttempts

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules
    from reliakit.stores.ballots import Ballot, Count
    from reliakit.stores.protocol import Answer, Plan
    from reliakit.stores.redis_scripts import Script

__all__ = ["RedisStore"]

# The layout of states; part of every key, so that another version starts afresh instead of misreading them.
_SCHEMA = "2"
_SCHEMA_OF_ATTEMPTS = _SCHEMA_OF_CIRCUITS = "1"
# Few different costs are used as a rule, so they are cached.
_MOST_CALLS = 64


class RedisStore(RemoteStore):
    """Keep the state of keys in Redis (6.2 or later) or Valkey, shared by all processes that use it.

    ```python
    store = RedisStore("redis://localhost:6379")
    limiter = RateLimiter("10/s", name="search", store=store)
    ```

    A decision is one round trip, whatever the number of limits, and its time is the server's. Tasks that decide in
    one tick of their event loop share a round trip. One store serves any mix of threads, tasks and event loops, and
    forked children. It connects when it is first used. Every key expires by itself.

    Args:
        source: An address (redis://, rediss://, unix://, valkey://, valkeys://), or a client of redis-py or
            valkey-py. With an address the store has connections of its own for threads and for tasks, and a
            thread's decision keeps to its deadline. A client keeps its own settings: give it short timeouts. An
            asynchronous client serves tasks of its loop; a plain one serves threads, and tasks through threads.
            Clients of clusters and sentinels work too.
        prefix: What every key begins with.
        lease: How many units of a key to take at once and spend in this process without asking the server again; what
            is left goes back at `close()`. Each process may then admit up to that many too many within one period,
            and `reset()` does not reach the leases of other processes. None, the default, asks for each decision.
            Attempts to log in are never leased.
        timeout: Seconds that a decision, or a step of connecting, may take; for an address. A deadline ends it
            earlier.
        clock: "server", or "client" for the clock of this machine, for servers that forbid TIME in scripts: if the
            machines' clocks differ, the limits are off by as much. Tests give a `Clock`.

    Raises:
        ConfigurationError: A setting is wrong, or there is no client library. From a decision: the address is that of
            one node of a cluster, which does not have the key.
    """

    _address, _given = "an address", "client"

    def __init__(
        self,
        source: Any,
        *,
        prefix: str = "reliakit",
        lease: int | None = None,
        timeout: float = 1.0,
        clock: Literal["server", "client"] | Clock = "server",
    ) -> None:
        self._prefix = checks.named("prefix", prefix)
        timeout = checks.seconds("timeout", timeout)
        super().__init__(clock)
        self._leases = None if lease is None else Leases(checks.count("lease", lease))
        self._plans: dict[Plan, _Shape] = {}
        self._guards: dict[AttemptRules, _Guard] = {}
        if isinstance(source, str):
            library = Library(source, timeout)
            self._shown = repr(library)
            self._blocking, self._ticks = BlockingWire(library), TickWire(library)
            return
        if isinstance(source, type) or not all(callable(getattr(source, name, None)) for name in ("evalsha", "eval")):
            raise ConfigurationError(
                f'source must be an address such as "redis://localhost" or a client of redis-py, got {source!r}'
            )
        self._shown = type(source).__name__
        if is_async(source):
            self._ticks = ClientTickWire(source, timeout)
        else:
            self._blocking = ClientBlockingWire(source)

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one round trip; see `Store.apply`."""
        leases = self._leases
        if leases is None:
            return self._decide(op, plan, key, cost, patience)
        key = short(key)
        if op is Op.HIT and not patience:
            answer = leases.spend(plan, key, cost)
            if answer is None:
                answer = self._begin_lease(leases, plan, key, cost)
            if answer is not None:
                return answer
        return self._with_lease(leases, op, plan, key, self._decide(op, plan, key, cost, patience))

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one round trip, which all decisions of this tick of the event loop share; see `Store.apply`."""
        leases = self._leases
        if leases is None:
            return await self._adecide(op, plan, key, cost, patience)
        key = short(key)
        if op is Op.HIT and not patience:
            answer = leases.spend(plan, key, cost)
            if answer is None:
                answer = await self._abegin_lease(leases, plan, key, cost)
            if answer is not None:
                return answer
        return self._with_lease(leases, op, plan, key, await self._adecide(op, plan, key, cost, patience))

    def _begin_lease(self, leases: Leases, plan: Plan, key: str, cost: int) -> Answer | None:
        """Spend more than the cost, so that the next hits need no round trip; None if that is not due or refused."""
        wanted = leases.take(plan, key, cost)
        if wanted <= cost:
            return None
        try:
            answer = self._decide(Op.HIT, plan, key, wanted, 0)
            return leases.begin(plan, key, wanted - cost, answer) if answer.admitted else None
        finally:
            leases.leave(plan, key)

    async def _abegin_lease(self, leases: Leases, plan: Plan, key: str, cost: int) -> Answer | None:
        """Spend more than the cost, so that the next hits need no round trip; otherwise as `_begin_lease`."""
        wanted = leases.take(plan, key, cost)
        if wanted <= cost:
            return None
        try:
            answer = await self._adecide(Op.HIT, plan, key, wanted, 0)
            return leases.begin(plan, key, wanted - cost, answer) if answer.admitted else None
        finally:
            leases.leave(plan, key)

    def _decide(self, op: Op, plan: Plan, key: str, cost: int, patience: int) -> Answer:
        shape = self._plans.get(plan) or self._shape(plan)
        return shape.answer(self._run(shape.request(op, key, cost, patience, self._now())), op, cost, patience)

    async def _adecide(self, op: Op, plan: Plan, key: str, cost: int, patience: int) -> Answer:
        shape = self._plans.get(plan) or self._shape(plan)
        reply = await self._arun(shape.request(op, key, cost, patience, self._now()))
        return shape.answer(reply, op, cost, patience)

    @staticmethod
    def _with_lease(leases: Leases, op: Op, plan: Plan, key: str, answer: Answer) -> Answer:
        if op is Op.RESET:
            leases.drop(plan, key)
        left = leases.left(plan, key) if op is Op.PEEK else 0
        if not left:
            return answer
        return answer._replace(admitted=True, remaining=answer.remaining + left, wait=0)

    def prepare(self, plan: Plan) -> None:
        """Refuse a plan, before anything is asked, that the server cannot count exactly.

        Raises:
            ConfigurationError: A rule comes to numbers that are too large.
        """
        self._shape(plan)

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, in one round trip; see `AttemptStore.attempt`."""
        shape = self._guards.get(rules) or self._guard(rules)
        return shape.answer(self._run(shape.request(op, attempt, self._now())), op, attempt)

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, in one round trip; see `AttemptStore.attempt`."""
        shape = self._guards.get(rules) or self._guard(rules)
        return shape.answer(await self._arun(shape.request(op, attempt, self._now())), op, attempt)

    def vote(self, ballot: Ballot, /) -> Count:
        """Take a ballot on a circuit and count, in one round trip; see `BallotBox.vote`."""
        return count_of(self._ask_circuit(VOTE, ballot.circuit, vote_words(ballot)))

    def force(self, circuit: str, seconds: float, /) -> None:
        """Force a circuit open for everybody, or release it, in one round trip; see `BallotBox.force`."""
        self._ask_circuit(FORCE, circuit, force_words(seconds))

    def _ask_circuit(self, script: Script, circuit: str, words: tuple[bytes, ...]) -> Any:
        key = f"{self._prefix}:{_SCHEMA_OF_CIRCUITS}:{{{_short(circuit)}}}:circuit".encode("utf-8", "surrogatepass")
        return self._run(Request(Call(script, 1, words), (key,)))

    def close(self) -> None:
        """Close the connections for threads; those for tasks go with their event loop. A given client stays open."""
        if not self._closed and self._leases is not None and self._blocking is not None:
            self._give_back(self._leases)
        super().close()

    async def aclose(self) -> None:
        """Close the connections for threads and those of this event loop. A given client stays open."""
        if not self._closed and self._leases is not None:
            if self._ticks is None:
                await asyncio.to_thread(self._give_back, self._leases)
            else:
                # All at once, so that a server that is stalled costs one timeout; what is not given back expires.
                rest = [self._adecide(Op.REFUND, plan, key, left, 0) for plan, key, left in self._leases.end()]
                await asyncio.gather(*rest, return_exceptions=True)
        await super().aclose()

    def _give_back(self, leases: Leases) -> None:
        for plan, key, left in leases.end():
            try:
                self._decide(Op.REFUND, plan, key, left, 0)
            except StoreError:
                return  # what is not given back expires

    def _failed(self, error: Exception) -> Exception:
        # Versions that are older than those errors show the server's own words.
        if type(error).__name__ not in {"MovedError", "AskError"} and not str(error).startswith(("MOVED ", "ASK ")):
            return super()._failed(error)
        return ConfigurationError(
            f"{self!r} has the address of one node of a cluster, which has not all keys ({error}): give it a client "
            "of the cluster, such as redis.RedisCluster.from_url(...) or, for tasks, redis.asyncio.RedisCluster"
        )

    def _now(self) -> bytes:
        return b"" if self._clock is None else b"%d" % round(self._clock.time() * 1e6)

    def _shape(self, plan: Plan) -> _Shape:
        return self._plans.setdefault(plan, _Shape(plan, self._prefix))

    def _guard(self, rules: AttemptRules) -> _Guard:
        return self._guards.setdefault(rules, _Guard(rules, self._prefix))

    def __repr__(self) -> str:
        clock = ", clock='client'" if self._clock else ""
        return f"<RedisStore {self._shown}, prefix={self._prefix!r}{clock}>"


class _Shape:
    """What all decisions under one plan have in common."""

    __slots__ = ("_calls", "_plan", "_prefix", "_rules", "_script", "_suffix", "answer")

    def __init__(self, plan: Plan, prefix: str) -> None:
        self._plan = SharedPlan(plan)
        self.answer = self._plan.answer
        self._script = DECIDE_ONE if self._plan.is_one_gcra else DECIDE
        self._rules = _packed(self._plan.numbers)
        self._calls: dict[tuple[Op, int, int], Call] = {}
        self._prefix = f"{prefix}:{_SCHEMA}:"
        self._suffix = f":{plan.space}"

    def request(self, op: Op, key: str, cost: int, patience: int, now: bytes) -> Request:
        call = None if now else self._calls.get((op, cost, patience))
        if call is None:
            call = Call(self._script, 1, (op.encode(), now, *self._words(cost, patience // 1000)))
            if not now and not patience and len(self._calls) < _MOST_CALLS:
                self._calls[op, cost, patience] = call
        return Request(call, (self._place(key),))

    def _words(self, cost: int, patience: int) -> tuple[bytes, ...]:
        if self._plan.is_one_gcra:
            return (_packed(self._plan.spending(cost, patience)),)
        return b"%d" % cost, b"%d" % patience, self._rules

    def _place(self, key: str) -> bytes:
        return f"{self._prefix}{{{_short(key)}}}{self._suffix}".encode("utf-8", "surrogatepass")


class _Guard:
    """What all attempts under one guard's rules have in common."""

    __slots__ = ("_numbers", "_place", "_rules")

    def __init__(self, rules: AttemptRules, prefix: str) -> None:
        self._rules = SharedAttempts(rules)
        self._numbers = tuple(b"%d" % number for number in self._rules.numbers)
        # In braces, because the four states of an attempt must lie in one slot of a cluster.
        self._place = f"{prefix}:{_SCHEMA_OF_ATTEMPTS}:{{{_short(rules.space)}}}:"

    def request(self, op: AttemptOp, attempt: Attempt, now: bytes) -> Request:
        keys = tuple(
            f"{self._place}{dimension}:{_short(key or '')}".encode("utf-8", "surrogatepass")
            for dimension, key in zip(DIMENSIONS, attempt[:4], strict=True)
        )
        meant = b"".join([b"0" if key is None else b"1" for key in attempt[:4]])
        args = (op.encode(), now, meant, b"%d" % attempt.claim, *self._numbers)
        return Request(Call(ATTEMPT, len(keys), args), keys)

    def answer(self, reply: Any, op: AttemptOp, attempt: Attempt) -> AttemptAnswer:
        now, *states = reply
        return self._rules.answer(op, attempt, now, [[int(number) for number in state.split()] for state in states])


def _short(key: str) -> str:
    """Return what stands for a key between the braces of a hash tag, which a brace of its own would end."""
    return hashed(key) if "}" in key else short(key)


def _packed(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)
