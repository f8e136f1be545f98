"""A store in PostgreSQL, for services without Redis: one statement for each decision, by the server's clock.

```
hit(key) ──> SELECT decide(...) ──> server: row of the key locked, clock, decision, row written ──> Answer
             on an autocommit connection of its own, never in the caller's transaction
```
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.stores.postgres_ballots import count_of, force_words, vote_words
from reliakit.stores.postgres_line import Request, Statement
from reliakit.stores.postgres_pools import PoolConnections, TaskPool, is_async
from reliakit.stores.postgres_setup import Setup
from reliakit.stores.postgres_sql import definitions, functions
from reliakit.stores.postgres_wire import TaskConnections, ThreadConnections
from reliakit.stores.protocol import Op
from reliakit.stores.remote import RemoteStore
from reliakit.stores.shared import SharedPlan
from reliakit.stores.shared_attempts import DIMENSIONS, SharedAttempts

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules
    from reliakit.stores.ballots import Ballot, Count
    from reliakit.stores.protocol import Answer, Plan

__all__ = ["PostgresStore"]

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,40}(?:\.[a-z_][a-z0-9_]{0,40})?")
_CIRCUITS = b"circuit\0"
# Few different costs are used as a rule, so they are cached.
_MOST_COSTS = 64


class PostgresStore(RemoteStore):
    """Keep the state of keys in PostgreSQL (13 or later), shared by all processes that use it.

    ```python
    store = PostgresStore("postgresql://localhost/app")
    limiter = RateLimiter("10/s", name="search", store=store)
    ```

    A decision is one statement, whatever the number of limits, on an autocommit connection: the caller's transactions
    neither hold it up nor take it back. Its time is the server's. One store serves any mix of threads, tasks and
    event loops, and forked children. It connects when it is first used, and creates its UNLOGGED table then. A crash
    of the server empties the table. Keys are stored as hashes.

    Args:
        source: A connection string, or a pool of psycopg_pool (or one like it): a ConnectionPool serves threads, and
            tasks through threads; an AsyncConnectionPool serves tasks of its loop. A pool's connections are given
            back as they were.
        table: The table's name, which may include a schema; its functions are named after it.
        max_size: The most connections of its own, for threads and for each event loop.
        timeout: Seconds that a decision may take if no deadline comes first.
        clock: "server", or "client" for the clock of this machine. Tests give a `Clock`.

    Raises:
        ConfigurationError: A setting is wrong. From a decision: the table cannot be created.
    """

    _address, _given = "a conninfo", "pool"

    def __init__(
        self,
        source: Any,
        *,
        table: str = "reliakit_limits",
        max_size: int = 8,
        timeout: float = 1.0,
        clock: Literal["server", "client"] | Clock = "server",
    ) -> None:
        if not isinstance(table, str) or not _NAME.fullmatch(table):
            given = checks.shown(table)
            raise ConfigurationError(f"table must be a lower-case name, with or without a schema, got {given}")
        most = checks.count("max_size", max_size)
        timeout = checks.seconds("timeout", timeout)
        super().__init__(clock)
        self._table = table
        self._names = functions(table)
        self._plans: dict[Plan, _Shape] = {}
        self._guards: dict[AttemptRules, _Guard] = {}
        self._vote = _call(self._names["vote"], "bytea text bigint bigint bigint boolean bigint boolean bigint")
        self._force = _call(self._names["force"], "bytea bigint")
        setup = Setup(table, timeout)
        if isinstance(source, str):
            _check(source)
            self._blocking = ThreadConnections(source, setup, timeout=timeout, most=most)
            self._ticks = TaskConnections(source, setup, timeout=timeout, most=most)
        elif isinstance(source, type) or not callable(getattr(source, "getconn", None)):
            given = checks.shown(source)
            raise ConfigurationError(f"source must be a connection string or a pool of psycopg_pool, got {given}")
        elif is_async(source):
            self._ticks = TaskPool(source, setup, timeout=timeout)
        else:
            self._blocking = PoolConnections(source, setup, timeout=timeout)

    def apply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one statement; see `Store.apply`."""
        shape = self._plans.get(plan) or self._shape(plan)
        return shape.answer(self._run(shape.request(op, key, cost, patience, self._now())), op, cost, patience)

    async def aapply(self, op: Op, plan: Plan, key: str, cost: int, patience: int = 0, /) -> Answer:
        """Decide in one statement, in a round trip that this tick of the event loop shares; see `Store.apply`."""
        shape = self._plans.get(plan) or self._shape(plan)
        reply = await self._arun(shape.request(op, key, cost, patience, self._now()))
        return shape.answer(reply, op, cost, patience)

    def prepare(self, plan: Plan) -> None:
        """Refuse a plan, before anything is asked, that the server cannot count exactly.

        Raises:
            ConfigurationError: A rule comes to numbers that are too large.
        """
        self._shape(plan)

    def attempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, in one statement; see `AttemptStore.attempt`."""
        guard = self._guards.get(rules) or self._guard(rules)
        return guard.answer(self._run(guard.request(op, attempt, self._now())), op, attempt)

    async def aattempt(self, op: AttemptOp, rules: AttemptRules, attempt: Attempt, /) -> AttemptAnswer:
        """Decide on an attempt to log in, in one statement; see `AttemptStore.attempt`."""
        guard = self._guards.get(rules) or self._guard(rules)
        return guard.answer(await self._arun(guard.request(op, attempt, self._now())), op, attempt)

    def vote(self, ballot: Ballot, /) -> Count:
        """Take a ballot on a circuit and count, in one statement; see `BallotBox.vote`."""
        return count_of(self._run(Request(self._vote, (_place(_CIRCUITS, ballot.circuit), *vote_words(ballot)))))

    def force(self, circuit: str, seconds: float, /) -> None:
        """Force a circuit open for everybody, or release it, in one statement; see `BallotBox.force`."""
        self._run(Request(self._force, (_place(_CIRCUITS, circuit), *force_words(seconds))))

    @property
    def ddl(self) -> str:
        """The statements that create the table and its functions, for a service whose own role may not do so."""
        return definitions(self._table)

    def _now(self) -> bytes | None:
        return None if self._clock is None else b"%d" % round(self._clock.time() * 1e6)

    def _shape(self, plan: Plan) -> _Shape:
        return self._plans.setdefault(plan, _Shape(plan, self._names))

    def _guard(self, rules: AttemptRules) -> _Guard:
        return self._guards.setdefault(rules, _Guard(rules, self._names))

    def __repr__(self) -> str:
        clock = ", clock='client'" if self._clock else ""
        return f"<PostgresStore table={self._table!r}{clock}>"


class _Shape:
    """What all decisions under one plan have in common."""

    __slots__ = ("_decide", "_hit", "_numbers", "_plan", "_space", "_spent", "answer")

    def __init__(self, plan: Plan, names: dict[str, str]) -> None:
        self._plan = SharedPlan(plan)
        self.answer = self._plan.answer
        self._space = plan.space.encode("utf-8", "surrogatepass") + b"\0"
        self._numbers = _array(self._plan.numbers)
        self._spent: dict[int, tuple[bytes, ...]] = {}
        self._hit = _call(names["hit"], "bytea bigint bigint bigint bigint bigint bigint")
        self._decide = _call(names["decide"], "bytea text bigint bigint bigint bigint[]")

    def request(self, op: Op, key: str, cost: int, patience: int, now: bytes | None) -> Request:
        """Return the request that decides."""
        place = _place(self._space, key)
        if op is not Op.HIT or not self._plan.is_one_gcra:
            words = (op.encode(), now, b"%d" % cost, b"%d" % (patience // 1000), self._numbers)
            return Request(self._decide, (place, *words))
        spent = None if patience else self._spent.get(cost)
        return Request(self._hit, (place, now, *(spent or self._spending(cost, patience))))

    def _spending(self, cost: int, patience: int) -> tuple[bytes, ...]:
        words = tuple([b"%d" % number for number in self._plan.spending(cost, patience // 1000)])
        if not patience and len(self._spent) < _MOST_COSTS:
            self._spent[cost] = words
        return words


class _Guard:
    """What all attempts under one guard's rules have in common."""

    __slots__ = ("_numbers", "_rules", "_spaces", "_statement")

    def __init__(self, rules: AttemptRules, names: dict[str, str]) -> None:
        self._rules = SharedAttempts(rules)
        self._numbers = _array(self._rules.numbers)
        space = rules.space.encode("utf-8", "surrogatepass")
        self._spaces = [space + b"\0" + dimension.encode() + b"\0" for dimension in DIMENSIONS]
        self._statement = Statement(
            f"SELECT {names['attempt']}(ARRAY[$1, $2, $3, $4]::bytea[], $5::text, $6::bigint, $7::bigint, "
            "$8::bigint[])",
            binary=4,
            most=8,
        )

    def request(self, op: AttemptOp, attempt: Attempt, now: bytes | None) -> Request:
        """Return the request that decides."""
        places = [
            None if key is None else _place(space, key) for space, key in zip(self._spaces, attempt[:4], strict=True)
        ]
        return Request(self._statement, (*places, op.encode(), now, b"%d" % attempt.claim, self._numbers))

    def answer(self, reply: Any, op: AttemptOp, attempt: Attempt) -> AttemptAnswer:
        now, *numbers = reply
        rows: list[list[int]] = []
        for _ in DIMENSIONS:
            width = numbers[0]
            rows.append(numbers[1 : width + 1])
            del numbers[: width + 1]
        return self._rules.answer(op, attempt, now, rows)


def _check(conninfo: str) -> None:
    try:
        conninfo_to_dict(conninfo)
    except (psycopg.Error, UnicodeError):
        # Not chained: the driver's message may repeat the text, password included.
        raise ConfigurationError("source is not a valid PostgreSQL connection string") from None


def _call(function: str, types: str) -> Statement:
    """Return the call of a function whose first parameter is bytes."""
    kinds = types.split()
    words = ", ".join([f"${number}::{kind}" for number, kind in enumerate(kinds, 1)])
    return Statement(f"SELECT {function}({words})", binary=1, most=len(kinds))


def _array(numbers: tuple[int, ...]) -> bytes:
    return b"{%b}" % b",".join([b"%d" % number for number in numbers])


def _place(space: bytes, key: str) -> bytes:
    return hashlib.blake2b(space + key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
