"""Transactions that are interleaved step by step, as a script says, and what each step then shows.

```
1: UPDATE item SET value = 11 WHERE id = 1
2: UPDATE item SET value = 12 WHERE id = 1      | waits
1: commit
2: ...                                          | done | 40001 | 40001
2: commit                                       | done | - | -
```

A line is a step: which transaction takes it, and what it does. That is a statement, `commit` or `rollback`, which
leave the block, or `...`, which says that a statement that had to wait comes to its end. After the bars stands what
the step must show, once for all isolation levels or for READ COMMITTED, REPEATABLE READ and SERIALIZABLE:

    done            it worked; also what nothing after it means
    1=10 2=20       the rows of a query, their columns joined by =
    nothing         it worked, and there was no row to return or to change
    waits           it waits for a lock
    40001           it failed with this SQLSTATE, and its transaction was rolled back
    -               the transaction failed earlier and takes no more steps

A script needs no clock. One step runs at a time, so a statement waits if the server says that its connection waits
for a lock: nobody else is there who could release that meanwhile.
"""

from __future__ import annotations

import asyncio
import queue
import re
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

import psycopg

from reliakit.core.events import AttemptFailed
from reliakit.core.flow import run_blocking
from reliakit.database import AsyncDatabase, Database, Isolation

LEVELS = (Isolation.READ_COMMITTED, Isolation.REPEATABLE_READ, Isolation.SERIALIZABLE)
ENDS = ("commit", "rollback")
LOCKED = "SELECT wait_event_type = 'Lock' AND state = 'active' FROM pg_stat_activity WHERE pid = %s"
FOREVER = 30.0  # a step that takes as long hangs
Part = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True)
class Step:
    """One line of a script."""

    actor: int
    action: str
    expected: tuple[str, ...]  # by level


def steps_of(script: str) -> list[Step]:
    """Read a script."""
    steps = []
    for line in filter(None, map(str.strip, script.splitlines())):
        step, *expected = (word.strip() for word in line.split("|"))
        actor, _, action = step.partition(":")
        expected = expected or ["done"]
        assert len(expected) in (1, len(LEVELS)), line
        steps.append(Step(int(actor), action.strip(), tuple(expected * (len(LEVELS) // len(expected)))))
    return steps


class Rollback(Exception):
    """Raised by a script in a block that it rolls back."""


@dataclass(frozen=True)
class Way:
    """How a transaction is run, which ends up awaiting `part(tx)`: in threads or tasks, one attempt or several."""

    asynchronous: bool
    retried: bool

    def __str__(self) -> str:
        return f"{'AsyncDatabase' if self.asynchronous else 'Database'}.{'run' if self.retried else 'transaction'}"

    def take(self, dsn: str, level: Isolation, part: Part, listener: Callable[[AttemptFailed], None]) -> None:
        """Run one transaction to its end."""
        if self.asynchronous:
            asyncio.run(self._in_a_task(dsn, level, part, listener))
            return
        with Database(dsn, timeout=FOREVER, isolation=level, listeners=[listener]) as db:
            if self.retried:
                db.run(lambda tx: run_blocking(part(tx)))
                return
            with db.transaction() as tx:
                run_blocking(part(tx))

    async def _in_a_task(self, dsn: str, level: Isolation, part: Part, listener: Any) -> None:
        async with AsyncDatabase(dsn, timeout=FOREVER, isolation=level, listeners=[listener]) as db:
            if self.retried:
                await db.run(part)
                return
            async with db.transaction() as tx:
                await part(tx)


class Actor:
    """One transaction of a script, in a thread of its own."""

    def __init__(self, way: Way, dsn: str, level: Isolation, statements: list[str]) -> None:
        self.pid = 0
        self.attempts = 0
        self.failed = False
        self._statements = statements
        self._inbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(way, dsn, level), daemon=True)
        self._thread.start()
        assert self._outbox.get(timeout=FOREVER) == "ready"

    def do(self, action: str) -> None:
        """Have it take a step."""
        self._inbox.put(action)

    def shows(self, seconds: float = FOREVER) -> str | None:
        """Return what its step has shown, None if that takes longer."""
        try:
            return self._outbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def release(self) -> None:
        """Let its next attempt go through, if there is one, and roll back what the script left open."""
        self._inbox.put("again" if self.failed else "rollback")

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(FOREVER)
        assert not self._thread.is_alive()

    def _run(self, way: Way, dsn: str, level: Isolation) -> None:
        try:
            way.take(dsn, level, self._part, self._hear)
            self._outbox.put("done")
        except Rollback:
            self._outbox.put("done")
        except psycopg.Error as error:
            self._outbox.put(error.sqlstate or repr(error))
        except BaseException as error:
            self._outbox.put(repr(error))

    def _hear(self, event: object) -> None:
        if isinstance(event, AttemptFailed):
            self._outbox.put(event.sqlstate or repr(event))

    async def _part(self, tx: Any) -> None:
        self.attempts += 1
        if self.attempts > 1:
            assert self._inbox.get(timeout=FOREVER) == "again"
            for statement in self._statements:
                await self._execute(tx, statement)
            return
        self.pid = tx.connection.info.backend_pid
        self._outbox.put("ready")
        while (action := self._inbox.get(timeout=FOREVER)) not in ENDS:
            self._outbox.put(await self._execute(tx, action))
        if action == "rollback":
            raise Rollback

    async def _execute(self, tx: Any, statement: str) -> str:
        cursor = await _now(tx.execute(statement))
        if cursor.description is None:
            return "done" if cursor.rowcount else "nothing"
        rows: Iterable[tuple[object, ...]] = await _now(cursor.fetchall())
        return " ".join("=".join(map(str, row)) for row in rows) or "nothing"


class Stage:
    """Plays a script against a database whose tables are ready.

    Args:
        dsn: Where.
        level: The isolation level of all its transactions.
        way: How they are run.
    """

    def __init__(self, dsn: str, level: Isolation, way: Way) -> None:
        self._dsn = dsn
        self._level = level
        self._way = way

    def play(self, script: str) -> dict[int, Actor]:
        """Take every step, require that it shows what it must, and return the actors, all at their end."""
        steps = steps_of(script)
        actors: dict[int, Actor] = {}
        with psycopg.connect(self._dsn, autocommit=True) as watcher:
            try:
                for number in sorted({step.actor for step in steps}):
                    mine = [s.action for s in steps if s.actor == number and s.action not in (*ENDS, "...")]
                    actors[number] = Actor(self._way, self._dsn, self._level, mine)
                for step in steps:
                    expected = step.expected[LEVELS.index(self._level)]
                    shown = self._take(step, actors[step.actor], watcher)
                    assert shown == expected, f"{step.actor}: {step.action} showed {shown}, not {expected}"
            finally:
                for actor in actors.values():
                    actor.release()
                for actor in actors.values():
                    actor.join()
        return actors

    def _take(self, step: Step, actor: Actor, watcher: psycopg.Connection[Any]) -> str:
        if actor.failed:
            return "-"
        if step.action == "...":
            shown = actor.shows() or "hangs"
        else:
            actor.do(step.action)
            while (found := actor.shows(0.002)) is None:
                if watcher.execute(LOCKED, (actor.pid,)).fetchone() == (True,):
                    return "waits"
            shown = found
        actor.failed = re.fullmatch("[0-9A-Z]{5}", shown) is not None
        return shown


async def _now(value: Any) -> Any:
    return await value if isawaitable(value) else value
