"""Advisory locks: one holder among all processes that use a database, without a table and without a lease to renew.

```
with db.advisory_lock("nightly report"):     a connection of its own, idle, holds it while the block runs
tx.advisory_lock("account 7")                the transaction's connection holds it until the transaction ends
```

Behind a pooler that shares sessions (see `pooler`) a transaction that stays open and idle holds the first kind too: a
lock of the session would be every client's.

The server releases the lock when the connection ends, so a killed process never keeps one. On the other hand, a block
whose connection died has lost its lock without noticing. It is told so when it ends; `held` tells sooner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import psycopg

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError, TransactionError, TransactionTimeoutError
from reliakit.core.flow import run_blocking
from reliakit.database.locking import number_of
from reliakit.database.places import owner_here
from reliakit.database.settings import Propagation, TransactionOptions, milliseconds
from reliakit.database.stopping import GRACE
from reliakit.database.work import Attempt, Work

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.database.engine import Engine
    from reliakit.database.session import Session

__all__ = ["AdvisoryLock", "AsyncAdvisoryLock"]

_NOT_AVAILABLE = "55P03"
# A transaction that holds a lock is idle for as long as the block takes.
_KEEP = "SET LOCAL idle_in_transaction_session_timeout = 0"


class _Lock:
    """The part that both colours share. One object is for one block."""

    def __init__(self, engine: Engine, key: int | str, *, shared: bool, timeout: float | None) -> None:
        self._number = number_of(key)
        self._waits = timeout != 0
        if timeout is not None:
            checks.seconds("timeout", timeout, zero=True)
        self._options = TransactionOptions(
            timeout=timeout or None, propagation=Propagation.REQUIRES_NEW, operation="advisory_lock"
        )
        self._engine = engine
        self._key = key
        self._shared = "_shared" if shared else ""
        self._timeout = timeout
        self._work: Work | None = None
        self._used = False

    @property
    def key(self) -> int | str:
        """The key that is locked."""
        return self._key

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as this side can see: its connection still stands. One system call.

        A long block should check this before each step that must not run twice at once. A network that has failed
        silently is not seen here.
        """
        session = None if self._work is None else self._work.session
        return session is not None and not session.hung_up()

    def __repr__(self) -> str:
        state = "held" if self.held else "not held"
        kind = self._shared[1:] or "exclusive"
        return f"<{type(self).__name__} {self._key!r} of {self._engine.name}, {kind}, {state}>"

    async def _acquire(self) -> None:
        if self._used:
            raise ConfigurationError("an advisory_lock() is for one block: call it again for the next one")
        self._used = True
        engine = self._engine
        until, seconds = engine.budget(self._options, engine.clock.monotonic())
        work = Work.of(
            self._options,
            isolation=engine.isolation,
            lock_timeout=None,
            owner=owner_here(),
            attempt=Attempt(),
            asked=engine.clock.monotonic(),
            bare=True,
            checkouts=engine.standing,
        )
        try:
            await engine.standing.take(work, until, seconds)
            if not await self._wait(work, until):
                raise self._not_free(seconds)
        except BaseException as error:
            interrupt = None if work.session is None else await self._let_go(work.session)
            interrupt = await engine.give_back(work) or interrupt
            if interrupt is not None and isinstance(error, Exception):
                raise interrupt from error
            raise
        self._work = work

    async def _wait(self, work: Work, until: float) -> bool:
        """Take the lock, replacing a pooled connection that proves dead; return whether it was free in time."""
        engine = self._engine
        replacements = engine.standing.size + 1
        while True:
            session = work.session
            assert session is not None
            try:
                return await (self._lock(session, until) if self._waits else self._try(session, until))
            except psycopg.Error:
                if session.alive or session.fresh or replacements == 0:
                    raise
            replacements -= 1
            await engine.standing.replace(work, until)

    async def _lock(self, session: Session, until: float) -> bool:
        # The lock outlives the transaction that takes it; that transaction's lock_timeout limits the server's wait
        # even if this process dies meanwhile.
        limit = milliseconds(until - session.clock.monotonic())
        begin = f"BEGIN; SET LOCAL lock_timeout = {limit}"
        if session.pooled:
            command = f"{begin}; {_KEEP}; SELECT pg_advisory_xact_lock{self._shared}({self._number})"
        else:
            command = f"{begin}; SELECT pg_advisory_lock{self._shared}({self._number}); COMMIT"
        answer = await session.command(command.encode("ascii"), until + GRACE / 4)
        if answer.interrupt is not None:
            raise answer.interrupt
        if answer.late or (answer.error is not None and answer.error.sqlstate == _NOT_AVAILABLE):
            return False
        if answer.error is not None:
            raise answer.error
        return True

    async def _try(self, session: Session, until: float) -> bool:
        function = f"SELECT pg_try_advisory_lock{self._shared}(%s)"
        if session.pooled:
            function = f"SELECT pg_try_advisory_xact_lock{self._shared}(%s)"
            answer = await session.command(f"BEGIN; {_KEEP}".encode("ascii"), until)
            if answer.interrupt is not None:
                raise answer.interrupt
            if answer.late:
                return False
            if answer.error is not None:
                raise answer.error
        try:
            return bool((await session.query(function.encode("ascii"), (self._number,)))[0][0])
        except TransactionError:  # the server did not answer in time
            return False

    async def _let_go(self, session: Session) -> BaseException | None:
        """Release what this connection may hold; if that is not certain to work, close it, which releases it too."""
        # An unlock without effect would leave a warning in the server's log, so only a needed one is sent.
        if session.pooled:
            if session.reusable:
                return None
            command, expected = b"ROLLBACK", b"ROLLBACK"
        else:
            command = b"" if session.reusable else b"ROLLBACK; "
            command, expected = command + b"SELECT pg_advisory_unlock_all()", b"SELECT 1"
        answer = await session.command(command, session.clock.monotonic() + 2 * GRACE, 2 * GRACE)
        if answer.tag != expected:  # it failed, or was interrupted before it was sent
            session.broken = True
        return answer.interrupt

    async def _release(self, error: BaseException | None) -> None:
        work, self._work = self._work, None
        assert work is not None
        session = work.session
        assert session is not None
        stood = session.alive
        interrupt = await self._let_go(session) if stood else None
        lost = not stood or not session.alive
        interrupt = await self._engine.give_back(work) or interrupt
        if interrupt is not None and (error is None or isinstance(error, Exception)):
            raise interrupt
        if lost:
            self._tell_lost(error)

    def _tell_lost(self, error: BaseException | None) -> None:
        lost = (
            f"the advisory lock {self._key!r} was lost before its block ended, because its connection was: "
            "another holder may have had it meanwhile"
        )
        if error is not None:
            error.add_note(f"reliakit: {lost}")
            return
        raise TransactionError(f"[{self._engine.name}] {lost}", name=self._engine.name)

    def _not_free(self, seconds: float) -> TransactionTimeoutError:
        waited = f"within {seconds:g} s" if self._waits else "at once"
        return TransactionTimeoutError(
            f"[{self._engine.name}] the advisory lock {self._key!r} was not free {waited}",
            name=self._engine.name,
            seconds=seconds if self._waits else 0.0,
        )


class AdvisoryLock(_Lock):
    """A `with` block that holds an advisory lock; made by `Database.advisory_lock` for one use."""

    def __enter__(self) -> Self:
        run_blocking(self._acquire())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        run_blocking(self._release(error))


class AsyncAdvisoryLock(_Lock):
    """An `async with` block that holds an advisory lock; made by `AsyncDatabase.advisory_lock` for one use."""

    async def __aenter__(self) -> Self:
        await self._acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._release(error)
