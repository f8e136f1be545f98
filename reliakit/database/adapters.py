"""What flows need from the outside world: the only place where blocking and suspending differ.

Flows are written once over `Io`. The methods of `blocking.BlockingIo` never suspend, so a thread runs a flow in one
step; those of `suspending.SuspendingIo` await.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from reliakit.core.clock import Clock
    from reliakit.core.flow import Outcome
    from reliakit.database.gate import Bell
    from reliakit.database.session import Session

__all__ = ["OPEN", "Connection", "Io", "cursor_of", "whole"]

T = TypeVar("T")
OPEN = int(psycopg.pq.TransactionStatus.INTRANS)
Connection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


class Io(Protocol):
    """What flows need from the outside world."""

    asynchronous: bool
    # The wait method of psycopg's own connection, which returns the result or an awaitable of it.
    drive: Callable[..., Any]
    depth: int  # how many frames up the caller's line is, for `place_above` in a flow called by a database's method

    async def wait(self, exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
        """Drive one exchange with the server to its end, or raise WaitTimeout after `seconds`."""
        ...

    async def query(
        self, connection: Any, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> list[tuple[Any, ...]]:
        """Run one of our own statements and return its rows as tuples, whatever the connection's row factory is."""
        ...

    async def connect(self, conninfo: str, seconds: float, row_factory: Any) -> Connection:
        """Open a connection in autocommit mode, because this package sends BEGIN and COMMIT itself."""
        ...

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Ask the server to cancel what the connection runs; return whether the request certainly got through."""
        ...

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Take a connection from a pool of psycopg_pool."""
        ...

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Return a connection to its pool, even if interrupted."""
        ...

    async def execute(
        self, connection: Any, query: Any, params: Any, options: Mapping[str, Any], row_factory: Any
    ) -> Any:
        """Run one statement on the connection, with a row factory if one is given, and return its cursor."""
        ...

    async def pipelined(  # noqa: PLR0917 - what a statement is made of
        self,
        connection: Any,
        commands: Iterable[bytes],
        heads: list[Any],
        query: Any,
        params: Any,
        options: Mapping[str, Any],
        row_factory: Any,
    ) -> Any:
        """Send commands, appending their cursors to `heads`, together with a statement; return its cursor."""
        ...

    async def open_pool(self, pool: Any) -> None:
        """Open a pool of psycopg_pool."""
        ...

    async def close_pool(self, pool: Any) -> None:
        """Close a pool of psycopg_pool."""
        ...

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Return a connection to its pool without waiting for it; for finalisers."""
        ...

    async def autocommit(self, connection: Any, *, value: bool) -> None:
        """Switch psycopg's own BEGIN on or off. No round trip."""
        ...

    def bell(self) -> Bell:
        """Make something to wait for a slot with."""
        ...

    async def park(self, bell: Any, seconds: float) -> None:
        """Wait for the bell, for at most `seconds`."""
        ...

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Pause between attempts."""
        ...

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:
        """Call the user's code and return its outcome; a task is cut off after `seconds`, a thread cannot be."""
        ...

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """Call the user's code without awaiting, where nothing could be cut off anyway."""
        ...

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a hook, which may be async if the database is, and return its outcome."""
        ...

    def install(self, session: Session) -> None:
        """Make every statement on the session's connection wait for as long as the session has time."""
        ...


def cursor_of(connection: Any, row_factory: Any) -> Any:
    """Return a cursor, with a row factory if one is given."""
    return connection.cursor() if row_factory is None else connection.cursor(row_factory=row_factory)


def whole(seconds: float) -> int:
    """Return the seconds as a connect_timeout: libpq takes whole seconds, and at least 2."""
    return max(2, math.ceil(seconds))
