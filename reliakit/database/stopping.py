"""What becomes of an exchange with the server whose wait was cut short: by the deadline, a cancellation or a Ctrl-C.

```
cancel request ─▶ the server's answer within GRACE ─▶ the connection goes on
      │                └─ none ─▶ it is closed
      └─ not certain to get through ─▶ the answer is awaited for less, and the connection closed after its use
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, pq

from reliakit.database.answers import collect
from reliakit.database.driver import INTERVAL, WaitTimeout

if TYPE_CHECKING:
    from psycopg.abc import PQGen

    from reliakit.database.answers import Answer
    from reliakit.database.session import Session

__all__ = ["GRACE", "insist", "stop"]

# What a cancel request, and then its answer, may each take beyond the deadline, in seconds: together they keep a
# dead network below timeout + 3 s, where psycopg alone needs timeout + 10 s.
GRACE = 1.0
_AGAIN = 0.1  # after which the request is made again, in seconds
_ACTIVE = int(pq.TransactionStatus.ACTIVE)  # see session


async def stop(session: Session, exchange: PQGen[Any]) -> bool:
    """Cancel the caller's running statement; return whether its answer came. At most 2 * GRACE."""
    try:
        until = await _ask_to_cancel(session, None)
        left = until - session.clock.monotonic()
        while not await _is_over(session, exchange, left if session.broken else min(left, _AGAIN)):
            left = until - session.clock.monotonic()
            if left <= 0 or session.broken:
                break
            # A request that overtakes its statement finds the server idle, and is lost, so it is repeated.
            session.broken = not await session.io.cancel(session.connection, left)
    except psycopg.Error as answer:
        session.failed = answer.sqlstate or session.failed  # QueryCanceled as asked for, or no answer
    except BaseException:
        session.abandon()  # interrupted twice: the caller does not want to wait any more
        raise
    if session.pgconn.transaction_status == _ACTIVE:
        session.abandon()
        return False
    return session.alive


async def insist(session: Session, answer: Answer, reason: BaseException, until: float, patience: float) -> None:
    """Go on waiting for the answer to a command of our own, for a bounded time; see `Session.command`."""
    pgconn = session.pgconn
    while True:
        late = isinstance(reason, WaitTimeout)
        if not late and isinstance(reason, Exception):
            if not isinstance(reason, psycopg.Error):
                raise reason  # a bug in this code, which waiting does not mend
            answer.error = reason
            return
        if not late:
            if answer.interrupt is None:
                answer.interrupt = reason
                until = min(until, session.clock.monotonic() + patience)
        elif answer.late:
            return
        else:
            answer.late = True
            until = await _ask_to_cancel(session, answer)
        if pgconn.transaction_status != _ACTIVE:
            return
        try:
            # Started anew, because an interrupt may have ended the first one: it goes on with what is there.
            left = max(0.0, until - session.clock.monotonic())
            collect(await session.io.wait(generators.execute(pgconn), pgconn.socket, INTERVAL, left), answer)
        except BaseException as again:  # noqa: BLE001 - kept in the answer in the next round
            reason = again
            continue
        return


async def _is_over(session: Session, exchange: PQGen[Any], seconds: float) -> bool:
    try:
        await session.io.wait(exchange, session.pgconn.socket, INTERVAL, seconds)
    except WaitTimeout:
        return False
    return True


async def _ask_to_cancel(session: Session, answer: Answer | None) -> float:
    """Send a cancel request and return until when to wait for its effect."""
    try:
        through = await session.io.cancel(session.connection, GRACE)
    except BaseException as interrupt:
        if answer is None:
            raise
        answer.interrupt = answer.interrupt or interrupt
        through = False
    if not through:
        # The request may still arrive, and would then hit the next user of the connection.
        session.broken = True
    # If not even the request gets through, it is not worth waiting for long.
    return session.clock.monotonic() + (GRACE if through else GRACE / 4)
