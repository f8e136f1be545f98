"""Makes a connection to PostgreSQL ready for decisions, and creates a store's table once.

```
connect ──> settings of the session; is the table there? ──yes──> ready
                                                          └─no──> created, by one process at a time ──> ready
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.errors import InsufficientPrivilege, UndefinedFunction, UndefinedTable

from reliakit.core.errors import ConfigurationError
from reliakit.stores.postgres_sql import definitions, functions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reliakit.stores.postgres_line import Line, Request
    from reliakit.stores.ticks import Telling

__all__ = ["Setup"]

# A statement sees what others have just committed, and does not wait for longer than the store does. Behind a pooler,
# which makes up the process ids that it gives its clients, nothing is set: other clients use the session next, and a
# crash of the server would lose what they were told is committed.
_SESSION = (
    "SELECT set_config(name, value, false) FROM (VALUES ('default_transaction_isolation', 'read committed'), "
    "('default_transaction_read_only', 'off'), ('synchronous_commit', 'off'), ('lock_timeout', '0'), "
    "('statement_timeout', '{milliseconds}')) AS setting (name, value) WHERE pg_backend_pid() = %d; "
)
# Reading any table makes the server notice what others have created; to_regclass alone may use an outdated cache.
_IS_MISSING = "SELECT to_regclass('{table}') IS NULL OR to_regproc('{last}') IS NULL FROM pg_catalog.pg_class LIMIT 1"
# What a server takes as a timeout at most, in seconds.
_LONGEST = (2**31 - 1) // 1000
_NO = b"f"
_MISSING = (UndefinedTable, UndefinedFunction)
# One process at a time creates the table, unless another one did while this one waited for the lock: creating it
# again would deadlock with that one's decisions. The number is arbitrary.
_MAKE = """
SET LOCAL statement_timeout = 0;
SET LOCAL check_function_bodies = off;
DO $make$ BEGIN
  PERFORM pg_advisory_xact_lock(7209065713364918381);
  IF ({question}) THEN
    {definitions}
  END IF;
END $make$
"""


class Setup:
    """Makes connections ready, and creates the table once.

    Args:
        table: The table.
        timeout: Seconds that a decision may take.
    """

    def __init__(self, table: str, timeout: float) -> None:
        self._table = table
        self._question = _IS_MISSING.format(table=table, last=functions(table)["force"])  # the last one that is made
        self._make = _MAKE.format(question=self._question, definitions=definitions(table))
        self._session = _SESSION.format(milliseconds=max(1, round(min(timeout, _LONGEST) * 1000)))
        self._is_there = False

    def ready(self, line: Line, until: float) -> None:
        """Make a new connection of the store's own ready."""
        session = self._session % line.pid
        if self._is_there:
            line.ask(session, until)
        elif line.ask(session + self._question, until) == _NO:
            self._is_there = True
        else:
            self.make(line, until)

    async def aready(self, line: Line) -> None:
        """Make a new connection of the store's own ready; the twin of `ready` for tasks."""
        session = self._session % line.pid
        if self._is_there:
            await line.aask(session)
        elif await line.aask(session + self._question) == _NO:
            self._is_there = True
        else:
            await self.amake(line)

    def ensure(self, line: Line, until: float) -> None:
        """Make sure that the table exists, on a connection of a user's pool."""
        if not self._is_there:
            if line.ask(self._question, until) == _NO:
                self._is_there = True
            else:
                self.make(line, until)

    async def aensure(self, line: Line) -> None:
        """Make sure that the table exists; the twin of `ensure` for tasks."""
        if not self._is_there:
            if await line.aask(self._question) == _NO:
                self._is_there = True
            else:
                await self.amake(line)

    def run(self, line: Line, request: Request, until: float) -> list[int]:
        """Run a statement in a thread; if the table was dropped, create it again."""
        try:
            return line.run(request, until)
        except _MISSING:
            self.make(line, until)
        return line.run(request, until)

    async def exchange(self, line: Line, requests: Sequence[Request], tell: Telling) -> None:
        """Run statements in a task, and tell their answers and errors; the twin of `run` for tasks."""
        missing: list[int] = []

        def hear(at: int, reply: Any) -> None:
            if isinstance(reply, _MISSING):
                missing.append(at)
            else:
                tell(at, reply)

        await line.exchange(requests, hear)
        if missing:
            await self.amake(line)
            await line.exchange([requests[at] for at in missing], lambda at, reply: tell(missing[at], reply))

    def make(self, line: Line, until: float) -> None:
        """Create the table if it does not exist."""
        try:
            line.ask(self._make, until)
        except InsufficientPrivilege as error:
            raise self._forbidden(error) from error
        self._is_there = True

    async def amake(self, line: Line) -> None:
        """Create the table if it does not exist; the twin of `make` for tasks."""
        try:
            await line.aask(self._make)
        except InsufficientPrivilege as error:
            raise self._forbidden(error) from error
        self._is_there = True

    def _forbidden(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"PostgresStore may not create its table {self._table!r} ({error}): have a role that may execute "
            "PostgresStore.ddl once and grant this one SELECT, INSERT, UPDATE and DELETE on the table, or give it "
            "CREATE on the schema"
        )
