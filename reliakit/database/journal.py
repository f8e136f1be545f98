"""Which statements a transaction ran and how long each took, for the log of slow ones.

Kept only while somebody listens for slow transactions. The text of a statement is found where psycopg keeps it: among
the arguments of the exchange that is being waited for, so that cursors, COPY and everything else on the connection
are seen as well. Parameters are arguments too, and are left alone.
"""

from __future__ import annotations

import heapq
from types import GeneratorType
from typing import TYPE_CHECKING, Any

import psycopg

from reliakit.core.events import StatementTimed
from reliakit.database.statements import NOT_KNOWN, WITHHELD, excerpt, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MOST_STATEMENTS", "Journal", "Note"]

Note = tuple[Any, Any]  # the query and the cursor of an exchange, as far as they are known

# How many statements are kept, the slowest ones.
MOST_STATEMENTS = 20
# The server found a name or the grammar wrong, so what looks like a name may be a value that was not quoted.
_NOT_UNDERSTOOD = ("26", "34", "3B", "3D", "3F", "42")


class Journal:
    """The slowest statements of one transaction. Belongs to the owner of the connection.

    The code that waits for the server calls `begin` and `end` around each exchange.
    """

    __slots__ = ("_kept", "_number")

    def __init__(self) -> None:
        # A heap: duration, number, query, whether the server understood it, rows.
        self._kept: list[tuple[float, int, Any, bool, int]] = []
        self._number = 0

    @staticmethod
    def begin(exchange: object) -> Note:
        """Return what must be known of an exchange before it begins: after it ends, it has forgotten."""
        if type(exchange) is not GeneratorType:
            return None, None
        # From the frame directly: `inspect.getgeneratorlocals` does the same at twice the cost.
        frame = exchange.gi_frame
        given: Mapping[str, Any] = {} if frame is None else frame.f_locals
        return given.get("query", given.get("statement")), given.get("self")

    def end(self, note: Note, duration: float, error: BaseException | None = None) -> None:
        """Record an exchange that is over, and the error it raised."""
        query, cursor = note
        sqlstate = (error.sqlstate or "") if isinstance(error, psycopg.Error) else None
        self.note(query, duration, max(0, getattr(cursor, "rowcount", 0)), sqlstate)

    def note(self, query: Any, duration: float, rows: int, sqlstate: str | None) -> None:
        """Record a statement that was run. O(log of those kept).

        Args:
            query: Anything that psycopg executes; None if it is not known.
            duration: Seconds that it was waited for.
            rows: Rows that it returned or changed.
            sqlstate: The SQLSTATE with which it failed, "" if its error did not come from the server, None if it did
                not fail.
        """
        understood = sqlstate is None or (sqlstate != "" and not sqlstate.startswith(_NOT_UNDERSTOOD))
        self._number += 1
        entry = (duration, self._number, excerpt(query), understood, rows)
        if len(self._kept) < MOST_STATEMENTS:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def statements(self) -> tuple[StatementTimed, ...]:
        """Return the statements that were kept, in the order in which they ran, without anything that may be data."""
        return tuple(
            StatementTimed(_text(query, understood=understood), duration, rows)
            for duration, _, query, understood, rows in sorted(self._kept, key=lambda entry: entry[1])
        )

    @property
    def left_out(self) -> int:
        """How many statements were too many to be kept."""
        return self._number - len(self._kept)


def _text(query: Any, *, understood: bool) -> str:
    if query is None:
        return NOT_KNOWN
    return shown(query) if understood else WITHHELD
