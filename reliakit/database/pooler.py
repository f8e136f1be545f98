"""Whether a pooler that shares the server's sessions stands in front of it, such as PgBouncer.

```
client A ──┐            ┌── session 1      BEGIN ... COMMIT of A, then one of B, then a statement of A
client B ──┤   pooler   ├── session 2
client C ──┘            └── (no more)
```

Behind one, a client's next transaction may run in a session in which another client has left something: a setting, a
lock, a LISTEN, or a prepared statement. Psycopg numbers prepared statements, so the one under a given name may be
another client's, and would run without an error.

A pooler has to tell its clients' cancel requests apart, so it makes up the process ids that it gives them. A pooler
that keeps a session while its client stays (PgBouncer's `pool_mode = session`) cannot be told from the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from reliakit.database.session import Session

__all__ = ["THERE", "look", "prepare_nothing", "question"]

# The command tag of the answer where there is one; it is SELECT 0 where there is none.
THERE = b"SELECT 1"
# After how many runs psycopg prepares a statement if nobody says otherwise.
_USUAL_THRESHOLD = 5


def question(pgconn: PGconn) -> bytes:
    """Return the statement whose command tag tells."""
    return b"SELECT 1 WHERE pg_backend_pid() <> %d" % pgconn.backend_pid


async def look(session: Session, until: float) -> bool:
    """Ask on a session's connection, in one round trip, and note the answer; return whether there was one.

    Raises:
        psycopg.Error: A new connection of our own is dead already. A dead one that was borrowed is replaced when a
            transaction begins on it.
    """
    answer = await session.command(question(session.pgconn), until)
    if answer.interrupt is not None:
        raise answer.interrupt
    if answer.broken and session.owned:
        raise answer.error or psycopg.OperationalError("the connection was closed before its first use")
    session.pooled = answer.tag == THERE
    return not answer.broken


def prepare_nothing(session: Session) -> None:
    """Keep psycopg from preparing statements on a session's connection; a borrowed one is given back as it was.

    A borrowed one keeps a threshold that was chosen for it, as PgBouncer can support prepared statements since 1.21.
    """
    connection = session.connection
    if session.owned or connection.prepare_threshold == _USUAL_THRESHOLD:
        session.threshold = None if session.owned else connection.prepare_threshold
        connection.prepare_threshold = None
