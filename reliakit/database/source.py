"""Where connections come from: opened here, or borrowed from a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from psycopg import pq
from psycopg.conninfo import make_conninfo

from reliakit.database import pooler
from reliakit.database.session import Session

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.database.adapters import Io
    from reliakit.database.gate import Slot

__all__ = ["Source"]


class Source:
    """Where connections come from: opened here, or borrowed from a pool."""

    lasting = True  # whether what is committed on them stays

    def __init__(self, io: Io, *, conninfo: str = "", pool: Any = None, row_factory: Any = None) -> None:
        self.io = io
        self.conninfo = conninfo
        self.pool = pool
        self.row_factory = row_factory
        self._opened_pool = False
        # What is known of borrowed connections: whether a pooler shares the server's sessions among them.
        self._pooled: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    async def obtain(self, slot: Slot, seconds: float, clock: Clock, name: str) -> Session:
        """Open a connection within about `seconds`, put its session into the slot, and return it."""
        until = clock.monotonic() + seconds
        session = Session(self.io, clock, name, pool=self.pool)
        slot.session = session  # before it has a connection, which a Ctrl-C in between would otherwise lose
        try:
            if self.pool is None:
                session.connection = await self.io.connect(self.conninfo, seconds, self.row_factory)
            else:
                session.connection = await self.io.borrow(self.pool, seconds)
        except BaseException:
            if session.connection is None:
                slot.session = None
            raise
        await session.adopt()
        await self._look_for_pooler(slot, session, until)
        return session

    async def _look_for_pooler(self, slot: Slot, session: Session, until: float) -> None:
        """Find out, once for each connection, whether a pooler shares the server's sessions."""
        known = None if session.owned else self._pooled.get(session.connection)
        if known is None:
            try:
                answered = await pooler.look(session, until)
            except BaseException:
                slot.session = None
                session.let_go()
                raise
            if answered and not session.owned:
                self._pooled[session.connection] = session.pooled
        else:
            session.pooled = known
        if session.pooled:
            pooler.prepare_nothing(session)

    async def connect_apart(self, seconds: float) -> Any:
        """Open a connection that is not part of any pool; return None if the pool does not say how."""
        if self.pool is None:
            return await self.io.connect(self.conninfo, seconds, None)
        conninfo: Any = getattr(self.pool, "conninfo", None)
        settings: Any = getattr(self.pool, "kwargs", None) or {}
        if not isinstance(conninfo, str) or not isinstance(settings, dict):
            return None  # the pool uses functions to connect, or is not psycopg's
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        given = {name: value for name, value in cast("dict[str, Any]", settings).items() if name in known}
        return await self.io.connect(make_conninfo(conninfo, **given), seconds, None)

    async def dispose(self, session: Session) -> None:
        """Part with a session: close its connection, or give it back to the pool, which replaces a closed one."""
        if session.owned or session.disowned or session.connection is None:
            session.abandon()
            return
        if not session.returning:  # once that has begun, the connection may be in another caller's hands
            reusable = session.reusable
            await session.release()
            if not reusable:
                session.abandon()
        await self.io.give_back(self.pool, session.connection, session.returning)

    async def open(self) -> None:
        """Open a pool that is not open yet."""
        if self.pool is not None and self.pool.closed:
            await self.io.open_pool(self.pool)
            self._opened_pool = True

    async def close(self) -> None:
        """Close the pool if it was opened here."""
        if self._opened_pool:
            self._opened_pool = False
            await self.io.close_pool(self.pool)
