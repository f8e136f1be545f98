"""Which statements a transaction ran and how long each took, for the log of slow ones.

Kept only while somebody listens for slow transactions. The text of a statement is found where psycopg has it: among
the arguments of the exchange that is being waited for, so that cursors, COPY and whatever else runs on the connection
are seen as well. Parameters are arguments too, and are not touched.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable
from inspect import getgeneratorlocals
from types import GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg

from reliakit.core.events import StatementTimed
from reliakit.database.statements import NOT_KNOWN, WITHHELD, excerpt, shown

if TYPE_CHECKING:
    from collections.abc import Generator

    from reliakit.core.clock import Clock

__all__ = ["MOST_STATEMENTS", "Journal", "noting", "noting_async"]

T = TypeVar("T")

# How many statements are kept: the slowest ones.
MOST_STATEMENTS = 20
# The server found a name or the grammar wrong, so that what looks like a name may be a value nobody quoted.
_NOT_UNDERSTOOD = ("26", "34", "3B", "3D", "3F", "42")


class Journal:
    """The slowest statements of one transaction. Belongs to whoever has the connection."""

    __slots__ = ("_kept", "_number")

    def __init__(self) -> None:
        # A heap: duration, number, query, whether the server understood it, rows.
        self._kept: list[tuple[float, int, Any, bool, int]] = []
        self._number = 0

    def note(self, query: Any, duration: float, rows: int, sqlstate: str | None) -> None:
        """Note a statement that was run. O(log of those kept).

        Args:
            query: Anything that psycopg executes, None where it is not known.
            duration: Seconds that it was waited for.
            rows: Rows that it returned or changed.
            sqlstate: The error with which it failed, "" where that did not come from the server, None if it did not.
        """
        understood = sqlstate is None or (sqlstate != "" and not sqlstate.startswith(_NOT_UNDERSTOOD))
        self._number += 1
        entry = (duration, self._number, excerpt(query), understood, rows)
        if len(self._kept) < MOST_STATEMENTS:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def statements(self) -> tuple[StatementTimed, ...]:
        """Return those kept, in the order in which they ran, without anything that may be data."""
        return tuple(
            StatementTimed(_text(query, understood=understood), duration, rows)
            for duration, _, query, understood, rows in sorted(self._kept, key=lambda entry: entry[1])
        )

    @property
    def left_out(self) -> int:
        """How many were too many to be kept."""
        return self._number - len(self._kept)


def noting(wait: Callable[..., T], journal: Journal, clock: Clock) -> Callable[..., T]:
    """Return a `Connection.wait` that notes in the journal what it waits for."""

    def wait_noting(exchange: object, *more: Any, **others: Any) -> T:
        note = _Note(journal, clock, exchange)
        try:
            return wait(exchange, *more, **others)
        except BaseException as error:
            note.error = error
            raise
        finally:
            note.write()

    return wait_noting


def noting_async(wait: Callable[..., Awaitable[T]], journal: Journal, clock: Clock) -> Callable[..., Awaitable[T]]:
    """Return an `AsyncConnection.wait` that notes in the journal what it waits for."""

    async def wait_noting(exchange: object, *more: Any, **others: Any) -> T:
        note = _Note(journal, clock, exchange)
        try:
            return await wait(exchange, *more, **others)
        except BaseException as error:
            note.error = error
            raise
        finally:
            note.write()

    return wait_noting


class _Note:
    """One exchange that is being waited for."""

    __slots__ = ("_began", "_clock", "_cursor", "_journal", "_query", "error")

    def __init__(self, journal: Journal, clock: Clock, exchange: object) -> None:
        self._journal = journal
        self._clock = clock
        # Read before it begins: an exchange that is over has forgotten them.
        given: dict[str, Any] = {}
        if isinstance(exchange, GeneratorType):
            given = getgeneratorlocals(cast("Generator[Any, Any, Any]", exchange))
        self._query: Any = given.get("query", given.get("statement"))
        self._cursor: Any = given.get("self")
        self._began = clock.monotonic()
        self.error: BaseException | None = None

    def write(self) -> None:
        sqlstate = (self.error.sqlstate or "") if isinstance(self.error, psycopg.Error) else None
        rows = max(0, getattr(self._cursor, "rowcount", 0))
        self._journal.note(self._query, self._clock.monotonic() - self._began, rows, sqlstate)


def _text(query: Any, *, understood: bool) -> str:
    if query is None:
        return NOT_KNOWN
    return shown(query) if understood else WITHHELD
