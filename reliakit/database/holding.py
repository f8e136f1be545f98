"""A BEGIN that is held back until the first statement, and then travels with it.

```
block begins      nothing is sent
first statement   BEGIN; SET LOCAL ...; the statement; Sync      one round trip, in libpq's pipeline mode
...
block ends        COMMIT on its own: code that has not seen its results has not agreed to them
```

For a statement that cannot travel in a pipeline (several in one text, or one on a cursor of the caller's own), BEGIN
is sent in front of it as usual. A block without a statement sends nothing at all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import pq, sql

from reliakit.database import machine
from reliakit.database.settings import milliseconds

if TYPE_CHECKING:
    from reliakit.database.engine import Engine
    from reliakit.database.session import Session
    from reliakit.database.work import Work

__all__ = ["Held"]

_OPEN = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)


class Held:
    """The BEGIN of one transaction, not sent yet. Belongs to the transaction's owner."""

    __slots__ = ("_engine", "_work", "tried")

    def __init__(self, engine: Engine, work: Work) -> None:
        self._engine = engine
        self._work = work
        self.tried: bool = False  # whether a statement asked for it

    async def begin(self, session: Session, *, in_wait: bool = False) -> None:
        """Send it on its own, now.

        Args:
            session: Where it is held.
            in_wait: A statement of the caller's waits for it on this very connection, which cannot be replaced then.
        """
        self.tried = True
        session.held, session.in_wait = None, in_wait
        try:
            await self._engine.send_begin(self._work, session.until, replaceable=not in_wait)
        except BaseException:
            (self._work.session or session).held = self  # the session may be another one now
            raise
        finally:
            session.in_wait = False
        self._engine.teller.started(self._work)

    async def first(self, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any) -> Any:
        """Run the first statement, with BEGIN in front of it, and return its cursor. Raises as the statement alone.

        A connection that was already dead is replaced silently: nothing that was sent on it can have been committed.
        """
        work, self.tried = self._work, True
        replacements = work.checkouts.size + 1
        while True:
            session = work.session
            assert session is not None
            if not params and _is_several(query):
                await self.begin(session)
                session = work.session  # the session may be another one now
                assert session is not None
                return await self._engine.io.execute(session.connection, query, params, options, row_factory)
            # A connection known to be dead is not even tried: psycopg's pipeline would warn of it.
            if session.fresh or not session.hung_up():
                answer = await self._travel(session, query, params, options, row_factory)
                if not isinstance(answer, BaseException):
                    return answer
                dead = session.held is self and not session.alive and not session.fresh
                if not dead or replacements == 0 or not isinstance(answer, psycopg.Error):
                    raise answer
            elif replacements == 0:
                raise psycopg.OperationalError("the connection is closed")
            replacements -= 1
            await work.checkouts.replace(work, session.until)
            assert work.session is not None
            work.session.held = self

    async def _travel(self, session: Session, query: Any, params: Any, options: Any, row_factory: Any) -> Any:
        """Return the statement's cursor, or what was raised."""
        work = self._work
        mark = session.next_mark()
        limit = milliseconds(session.until - session.clock.monotonic())
        command = machine.begin_command(
            work.isolation, work.options.read_only, work.options.deferrable, limit, work.lock_timeout, mark
        )
        heads: list[Any] = []
        counted, began_at = session.statements, session.clock.monotonic()
        session.held, session.opening, session.inside = None, True, True
        result: Any = None
        handled = sys.exception()
        try:
            result = await self._engine.io.pipelined(
                session.connection, command.split(b"; "), heads, query, params, options, row_factory
            )
        except BaseException as error:  # noqa: BLE001 - returned, and raised by the caller
            result = _reason(error, handled)
        session.statements, session.opening = counted + 1, False
        if session.pgconn.transaction_status not in _OPEN and not (heads and heads[0].statusmessage == "BEGIN"):
            session.held, session.inside = self, False
            return result
        session.began(mark)
        self._engine.teller.started(work)
        if session.journal is not None:
            failed = isinstance(result, BaseException)
            state = (getattr(result, "sqlstate", None) or "") if failed else None
            rows = 0 if failed else max(0, result.rowcount)
            session.journal.note(query, session.clock.monotonic() - began_at, rows, state)
        return result


def _reason(error: BaseException, handled: BaseException | None) -> BaseException:
    """Return the real cause: an interrupt breaks psycopg's pipeline, whose own error then hides the interrupt."""
    reason: BaseException | None = error
    while isinstance(reason, psycopg.Error) and reason is not handled:
        reason = reason.__context__
    return error if reason is None or reason is handled else reason


def _is_several(query: Any) -> bool:
    """Return whether a text without parameters may hold several statements, which a pipeline does not accept."""
    if isinstance(query, sql.Composable):
        query = query.as_string(None)
    text = query.decode("utf-8", "replace") if isinstance(query, bytes) else str(query)
    return ";" in text.strip().rstrip(";")
