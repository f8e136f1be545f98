"""What flows ask of the outside world: the only place where blocking and suspending differ.

Flows are written once over `Io`. What `blocking.BlockingIo` offers never suspends, so a thread runs a flow in one
step; what `suspending.SuspendingIo` offers awaits.
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
    """What flows ask of the outside world."""

    asynchronous: bool
    # What `wait` waits with: psycopg's own, which returns the result, or an awaitable of it.
    drive: Callable[..., Any]
    depth: int  # of the caller's line, for `place_above` in a flow that was called by a method of a database

    async def wait(self, exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
        """Drive one exchange with the server to its end, or raise WaitTimeout after so many seconds."""
        ...

    async def query(
        self, connection: Any, query: bytes, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> list[tuple[Any, ...]]:
        """Run one of our own statements and return its rows, as tuples whatever the connection's row factory."""
        ...

    async def connect(self, conninfo: str, seconds: float, row_factory: Any) -> Connection:
        """Open a connection that commits nothing by itself being asked to (autocommit, as transactions are ours)."""
        ...

    async def cancel(self, connection: Any, seconds: float) -> bool:
        """Ask the server to cancel what the connection runs; return whether the request surely got through."""
        ...

    async def borrow(self, pool: Any, seconds: float) -> Connection:
        """Take a connection from a pool of psycopg_pool."""
        ...

    async def give_back(self, pool: Any, connection: Any, under_way: list[Any]) -> None:
        """Return a connection to its pool, whatever comes in between."""
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
        """Send commands, whose cursors are put into `heads`, and a statement in one go; return its cursor."""
        ...

    async def open_pool(self, pool: Any) -> None:
        """Open a pool of psycopg_pool."""
        ...

    async def close_pool(self, pool: Any) -> None:
        """Close it."""
        ...

    def give_back_later(self, pool: Any, connection: Any) -> None:
        """Return a connection to its pool without waiting for it; called by the garbage collector."""
        ...

    async def autocommit(self, connection: Any, *, value: bool) -> None:
        """Switch psycopg's own BEGIN on or off. No round trip."""
        ...

    def bell(self) -> Bell:
        """Make something to wait on for a slot."""
        ...

    async def park(self, bell: Any, seconds: float) -> None:
        """Wait for the bell, at most so long."""
        ...

    async def sleep(self, clock: Clock, seconds: float) -> None:
        """Pause between attempts."""
        ...

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], seconds: float | None) -> Outcome[Any]:
        """Call the user's code and return what came of it; where the colour can, cut it after so many seconds."""
        ...

    def call_now(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome[Any]:
        """Call it where nothing can be cut, and so nothing is awaited."""
        ...

    async def call_hook(self, hook: Callable[[], Any]) -> Outcome[Any]:
        """Call a hook, which here may be async where the database is, and return what came of it."""
        ...

    def install(self, session: Session) -> None:
        """Have every statement on the session's connection wait as long as the session has time."""
        ...


def cursor_of(connection: Any, row_factory: Any) -> Any:
    """Return a cursor, with a row factory if one is given."""
    return connection.cursor() if row_factory is None else connection.cursor(row_factory=row_factory)


def whole(seconds: float) -> int:
    """Return a connect_timeout: libpq knows whole seconds, and not fewer than 2."""
    return max(2, math.ceil(seconds))
