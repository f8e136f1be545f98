"""One connection to PostgreSQL below psycopg's cursors: prepared statements that answer with an array of numbers.

```
thread ── run ─────────> send, poll, receive                                   one answer
task   ── exchange ────> as a pipeline: send × n, each a transaction, receive  n answers
```

It uses libpq through `psycopg.pq`, so that a decision costs this process a third of what a cursor would, and so that
a wait ends when the store says so, not when psycopg has cancelled the statement at a server that may be stalled.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from psycopg import errors, generators, pq, waiting

from reliakit.core.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliakit.stores.ticks import Telling

__all__ = ["Line", "Request", "Statement"]

Reply: TypeAlias = "list[int] | Exception"

_OK: Final = int(pq.ExecStatus.TUPLES_OK)
_FAILED: Final = int(pq.ExecStatus.FATAL_ERROR)
_SYNC: Final = int(pq.ExecStatus.PIPELINE_SYNC)
_IDLE: Final = int(pq.TransactionStatus.IDLE)
_HOLDS: Final = int(pq.ConnStatus.OK)
# Errors of transactions that lost a race: under another isolation than READ COMMITTED, or in a deadlock.
_CONFLICTS: Final = frozenset({"40001", "40P01"})
# Nobody loses a race at this isolation level; a session that is not ours may have another one by default.
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE"
# A statement that the session has forgotten (DISCARD ALL, a pooler), or that another client has prepared.
_UNKNOWN, _KNOWN = "26000", "42P05"
_ATTEMPTS: Final = 20
_WaitTimeout = errors._WaitTimeout  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - documented by its waits
# What a server says when it ends a session.
_ENDED: Final = (errors.AdminShutdown, errors.ConnectionException)


class Statement:
    """A statement that is prepared once on each connection.

    Args:
        text: With $1 and so on, each cast to its type; it returns one array of whole numbers.
        binary: How many of the first parameters are bytes; the others are text.
        most: How many parameters there are.
    """

    __slots__ = ("formats", "name", "text")

    def __init__(self, text: str, *, binary: int, most: int) -> None:
        self.text: bytes = text.encode()
        # Made from its text, so that it is the same in every process.
        self.name: bytes = b"reliakit_" + hashlib.blake2b(self.text, digest_size=8).hexdigest().encode()
        self.formats: list[int] = [1] * binary + [0] * (most - binary)


class Request(NamedTuple):
    """One run of a statement."""

    statement: Statement
    params: Sequence[bytes | None]


class Line:
    """A connection that is in no transaction.

    Args:
        pgconn: The `pgconn` attribute of a psycopg connection of either colour.
        owner: That connection, if nothing else keeps it alive.
    """

    __slots__ = ("_known", "_owner", "_pg", "answers")

    def __init__(self, pgconn: Any, owner: object = None) -> None:
        self._pg = pgconn
        self._owner = owner
        self._known: set[bytes] = set()
        # How often the server has answered.
        self.answers: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether the server awaits the next statement."""
        return bool(self._pg.transaction_status == _IDLE)

    @property
    def pid(self) -> int:
        """The number of the server's process, or one that a pooler has made up."""
        return int(self._pg.backend_pid)

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection died of old age; one whose server merely takes too long did not."""
        return self.answers > 0 and (isinstance(error, _ENDED) or bool(self._pg.status != _HOLDS))

    def finish(self) -> None:
        """Close it without waiting for the server."""
        self._pg.finish()

    def ask(self, text: str, until: float) -> bytes | None:
        """Run plain statements in a thread and return the last one's first value."""
        self._pg.send_query(text.encode())
        value = self._value(self._wait(until))
        self.answers += 1
        return value

    async def aask(self, text: str) -> bytes | None:
        """Run plain statements in a task; the twin of `ask`."""
        self._pg.send_query(text.encode())
        results: list[Any] = []
        while (result := await self._next()) is not None:
            results.append(result)
        value = self._value(results)
        self.answers += 1
        return value

    def run(self, request: Request, until: float) -> list[int]:
        """Run a statement in a thread, until `until` on the monotonic clock."""
        pg = self._pg
        (statement, params), attempt, had_conflict = request, 1, False
        while True:
            if had_conflict:
                self.ask(_BEGIN, until)
            if statement.name in self._known:
                pg.send_query_prepared(statement.name, params, statement.formats)
            else:
                pg.send_prepare(statement.name, statement.text)
            reply = self._reply(statement, self._wait(until))
            if had_conflict:
                self.ask("COMMIT", until)  # which rolls back what has failed
            if isinstance(reply, list):
                return reply
            if reply is not None:
                if not self._may_go_on(statement, reply) or attempt == _ATTEMPTS:
                    raise reply
                attempt += 1
                had_conflict = had_conflict or _is_conflict(reply)

    async def exchange(self, requests: Sequence[Request], tell: Telling) -> None:
        """Run statements in a task, each in a transaction of its own, in one round trip; tell each answer at once.

        Raises:
            psycopg.Error: The connection is of no use any more; what was told by then stands.
        """
        left: dict[int, Exception | None] = dict.fromkeys(range(len(requests)))
        for _ in range(_ATTEMPTS):
            left = await self._exchange(requests, left, tell)
            if not left:
                return
        for at, error in left.items():
            tell(at, error)

    async def _exchange(
        self, requests: Sequence[Request], left: dict[int, Exception | None], tell: Telling
    ) -> dict[int, Exception | None]:
        """Run those that are left once, and return those that are to run again, with the error of each."""
        again: dict[int, Exception | None] = {}

        def hear(at: int, reply: Reply) -> None:
            if isinstance(reply, _ENDED):
                raise reply
            if isinstance(reply, Exception) and self._may_go_on(requests[at].statement, reply):
                again[at] = reply
            else:
                tell(at, reply)

        conflicts = [at for at, error in left.items() if _is_conflict(error)]
        others = [at for at in left if at not in conflicts]
        await self._piped([requests[at] for at in others], lambda at, reply: hear(others[at], reply))
        for at in conflicts:
            replies: dict[int, Reply] = {}
            await self.aask(_BEGIN)
            await self._piped([requests[at]], replies.__setitem__)
            await self.aask("COMMIT")  # before which it is not decided
            hear(at, replies[0])
        return again

    async def _piped(self, requests: Sequence[Request], tell: Telling) -> None:
        pg = self._pg
        pg.enter_pipeline_mode()
        for statement, params in requests:
            if statement.name not in self._known:
                pg.send_prepare(statement.name, statement.text)
                self._known.add(statement.name)
            pg.send_query_prepared(statement.name, params, statement.formats)
            pg.pipeline_sync()  # a transaction for each: none holds a row while it waits for another's
        at = 0
        results: list[Any] = []
        refused: dict[bytes, Reply] = {}
        while at < len(requests):
            result = await self._next()
            if result is None:
                continue
            if result.status != _SYNC:
                results.append(result)
                continue
            statement = requests[at].statement
            reply = self._reply(statement, results) or errors.InternalError("a statement without an answer")
            if len(results) > 1 and results[0].status == _FAILED:  # preparing it failed
                self._known.discard(statement.name)
                refused[statement.name] = reply
            elif getattr(reply, "sqlstate", None) == _UNKNOWN:  # then nobody's is, and all are told why
                reply = refused.get(statement.name, reply)
            tell(at, reply)
            at, results = at + 1, []
        pg.exit_pipeline_mode()

    async def _next(self) -> Any:
        pg = self._pg
        is_unsent = pg.flush()
        while pg.is_busy():
            await _ready(pg.socket, writing=bool(is_unsent))
            pg.consume_input()
            is_unsent = is_unsent and pg.flush()
        result = pg.get_result()
        if pg.status != _HOLDS:  # without this check it would return None for ever
            raise errors.OperationalError(f"connection lost: {pg.get_error_message()}")
        return result

    def _wait(self, until: float) -> list[Any]:
        left = until - SYSTEM_CLOCK.monotonic()
        if left > 0:
            try:
                return waiting.wait(generators.execute(self._pg), self._pg.socket, 0.1, left)
            except _WaitTimeout:
                pass
        raise TimeoutError("no answer in time")

    def _reply(self, statement: Statement, results: list[Any]) -> list[int] | Exception | None:
        """Return the outcome of a statement; None once it is prepared."""
        for result in results:
            if result.status == _FAILED:
                error = errors.error_from_result(result, encoding="utf-8")
                self.answers += not isinstance(error, _ENDED)
                return error
        self.answers += 1
        if results[-1].status == _OK:
            return [int(number) for number in results[-1].get_value(0, 0)[1:-1].split(b",")]
        self._known.add(statement.name)
        return None

    @staticmethod
    def _value(results: list[Any]) -> bytes | None:
        for result in results:
            if result.status == _FAILED:
                raise errors.error_from_result(result, encoding="utf-8")
        value: bytes | None = results[-1].get_value(0, 0) if results[-1].status == _OK else None
        return value

    def _may_go_on(self, statement: Statement, error: Exception) -> bool:
        """Return whether to run a statement again at once."""
        sqlstate = getattr(error, "sqlstate", None)
        if sqlstate == _KNOWN:
            self._known.add(statement.name)
        elif sqlstate == _UNKNOWN:
            self._known.discard(statement.name)
        else:
            return _is_conflict(error)
        return True


def _is_conflict(error: object) -> bool:
    """Return whether a statement lost a race, so that it may be run again."""
    return getattr(error, "sqlstate", None) in _CONFLICTS


async def _ready(fileno: int, *, writing: bool) -> None:
    """Wait until a socket has something to read, or, if `writing`, room to write."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fileno, _ring, ready)
    if writing:
        loop.add_writer(fileno, _ring, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fileno)
        if writing:
            loop.remove_writer(fileno)


def _ring(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
