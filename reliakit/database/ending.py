"""How a transaction ends: COMMIT and its answer, ROLLBACK, and the errors that say truthfully what happened.

```
COMMIT ─▶ tag COMMIT ───────────────────────────────▶ committed
       ─▶ tag ROLLBACK, an ordinary error ──────────▶ rolled back
       ─▶ cancelled or late ─▶ wait, bounded ─▶ answer ─▶ as above
                                              └ none ──▶ not known
```

Psycopg's own transaction status says COMMITTED before COMMIT is sent and never reads the tag, so it is not asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.categories import sqlstate_of
from reliakit.core.errors import (
    CommitUnknownError,
    TransactionError,
    TransactionRolledBackError,
    TransactionUsageError,
)
from reliakit.database import machine
from reliakit.database.stopping import GRACE

if TYPE_CHECKING:
    from reliakit.database.answers import Answer
    from reliakit.database.session import Session
    from reliakit.database.transaction import Handle
    from reliakit.database.work import Work

__all__ = [
    "as_timeout",
    "commit",
    "is_interrupt",
    "judge",
    "objection_to_bare",
    "objection_to_commit",
    "rollback",
    "rolled_back",
    "sqlstate_behind",
    "tell_out_of_hand",
    "with_verdict",
]

# The server's SQLSTATEs for "I cut this off": statement, idle transaction, whole transaction.
_CUT = frozenset({"57014", "25P03", "25P04"})


def objection_to_commit(work: Work, transaction: Handle, session: Session) -> BaseException | None:
    """Return why a transaction must not commit although its code ended well, or None."""
    session.notice_end()
    if session.disowned:
        return session.over()
    if session.ended:
        return TransactionUsageError(
            f"[{session.name}] the code inside this block ran COMMIT or ROLLBACK itself, so what came before is out "
            "of the block's hands and what came after was in no transaction: leave both to the block",
            name=session.name,
        )
    if session.clock.monotonic() >= session.until:
        return session.timed_out()
    if transaction.doomed and not transaction.deliberate:
        return rolled_back(work, session, "code that joined it failed")
    return None


def objection_to_bare(session: Session) -> TransactionUsageError | None:
    """Return why a block without a transaction is no success although its code ended well, or None."""
    if not session.left_open:
        return None
    return TransactionUsageError(
        f"[{session.name}] the code inside this block left a transaction, a COPY or a pipeline of its own open, and "
        "what it did there was rolled back: end it in the block, or use propagation=REQUIRED",
        name=session.name,
    )


def tell_out_of_hand(work: Work, error: BaseException) -> None:
    """Note on an error that the block's code ended the transaction itself, so that nobody retries it."""
    work.verdict = "unknown"
    if not isinstance(error, TransactionUsageError):
        error.add_note(
            f"reliakit: the code inside {work.operation!r} ran COMMIT or ROLLBACK itself, so what came before that "
            "may be committed"
        )


async def commit(work: Work, session: Session) -> BaseException | None:
    """Send COMMIT, record what became of the transaction, and return the error that says so. Never guesses."""
    if session.held is not None:  # BEGIN was not sent: there was no statement, or it came to nothing
        if session.held.tried and (session.failed or session.hung_up()):
            return rolled_back(work, session, "it could not begin")
        work.verdict = "committed"
        return None
    # If the server hung up before COMMIT was sent, it cannot have read it.
    gone = session.hung_up()
    session.inside = False
    work.verdict = "unknown"
    return judge(work, session, await session.command(b"COMMIT", session.until, GRACE), gone=gone)


def judge(work: Work, session: Session, answer: Answer, *, gone: bool) -> BaseException | None:
    """Record what became of a transaction by the answer to its COMMIT, and return the error that says so.

    Args:
        work: The transaction.
        session: Its connection.
        answer: The answer to COMMIT.
        gone: Whether the server had hung up before COMMIT was sent.
    """
    if answer.tag == b"COMMIT" and answer.error is None and answer.interrupt is None:
        work.verdict = "committed"
        return None
    if answer.error is not None:
        work.sqlstate = answer.error.sqlstate
    work.verdict = machine.judge_commit(
        answer.tag if answer.error is None else None,
        sent=answer.sent and not gone,
        alive=not answer.broken,
        answered_with_error=answer.error is not None,
        sqlstate=None if answer.error is None else answer.error.sqlstate,
    )
    return _error_of(work, session, answer)


def _error_of(work: Work, session: Session, answer: Answer) -> BaseException | None:
    if answer.interrupt is not None:
        return with_verdict(answer.interrupt, work, answer.error)
    if work.verdict == "committed":
        return None
    if work.verdict == "unknown":
        return _unknown(work, answer.error)
    if answer.late:
        late = session.timed_out()
        late.__cause__ = answer.error
        return late
    return answer.error or rolled_back(work, session, "an earlier statement in it failed")


def with_verdict(interrupt: BaseException, work: Work, error: BaseException | None = None) -> BaseException:
    """Return a cancellation or Ctrl-C with a note or cause that tells what became of the transaction."""
    if work.verdict == "unknown":
        interrupt.__cause__ = error if isinstance(error, CommitUnknownError) else _unknown(work, error)
    elif not work.bare:
        known = "committed" if work.verdict == "committed" else "rolled back"
        interrupt.add_note(f"reliakit: the transaction {work.operation!r} was {known}")
    return interrupt


def _unknown(work: Work, cause: BaseException | None) -> CommitUnknownError:
    unknown = CommitUnknownError(
        f"[{work.checkouts.name}] COMMIT was sent and its answer never came, so {work.operation!r} happened wholly "
        "or not at all: look before trying it again",
        name=work.checkouts.name,
        attempts=work.attempt.number,
        transaction_id=work.transaction_id,
    )
    unknown.__cause__ = cause
    return unknown


async def rollback(session: Session) -> BaseException | None:
    """Roll back, or close the connection, which has the same effect. Bounded; returns a cancellation that came."""
    session.inside = False
    if session.reusable or not session.alive:
        return None
    answer = await session.command(b"ROLLBACK", session.clock.monotonic() + GRACE, GRACE)
    if not session.reusable:
        session.abandon()
    return answer.interrupt


def rolled_back(work: Work, session: Session, why: str) -> TransactionRolledBackError:
    """Return the error for a transaction that reached its end and could not commit."""
    state = f" (SQLSTATE {session.failed})" if session.failed else ""
    return TransactionRolledBackError(
        f"[{session.name}] {work.operation!r} reached its end and was rolled back, because {why}{state} and the "
        "error was swallowed: let it leave the block, or put what may fail into a block with propagation=NESTED",
        name=session.name,
        attempts=work.attempt.number,
    )


def as_timeout(session: Session, error: BaseException | None) -> BaseException | None:
    """Return the error for a spent budget, whether this side cut the statement off or the server by its own clock."""
    if error is None or sqlstate_of(error) not in _CUT:
        return error
    if session.clock.monotonic() < session.until:
        return error  # somebody else's cancellation, or a limit that the caller's code set
    late = session.timed_out()
    late.__cause__ = error
    return late


def sqlstate_behind(work: Work, error: BaseException) -> str | None:
    """Return the SQLSTATE with which the server ended a transaction, whatever became of its error since.

    The block's code may have swallowed it or raised another one for it. An error that this side asked for counts as
    well: the server answers a cancel request with an error like any other.
    """
    if work.sqlstate:
        return work.sqlstate
    behind = error.__cause__ if isinstance(error, TransactionError) else None
    return sqlstate_of(error) or (None if behind is None else sqlstate_of(behind))


def is_interrupt(error: BaseException | None) -> bool:
    """Return whether it is a cancellation or a Ctrl-C, which no other error may replace."""
    return error is not None and not isinstance(error, Exception)
