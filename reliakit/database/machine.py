"""What a transaction decides, as pure functions: no connection, no clock, no lock.

```
step(propagation, inside)           BEGIN, JOIN, SAVEPOINT or BARE
begin_command(...)                  the one command that opens a transaction
judge_commit(...)                   committed, rolled back, or not known
pause_before_retry(...)             how long until the next attempt, or None
```
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Literal

from reliakit.core.categories import classify, sqlstate_of
from reliakit.core.errors import TransactionUsageError
from reliakit.database.settings import Isolation, Propagation, TransactionOptions, TransactionRetry, milliseconds

__all__ = [
    "BARE",
    "BEGIN",
    "MARKER",
    "OTHER_MARK",
    "Inside",
    "Step",
    "Verdict",
    "begin_command",
    "conflict_state",
    "judge_commit",
    "objection_to_join",
    "pause_before_retry",
    "step",
]

# A setting whose end shows that the transaction ended, whatever ended it and however (COMMIT AND CHAIN on a cursor,
# COMMIT; BEGIN in one text): the server reports every change of this setting by itself (since PostgreSQL 14), and one
# made with SET LOCAL ends with the transaction. It only affects later transactions. Costs 2 to 4 microseconds.
MARKER = b"default_transaction_read_only"
# What to set it to, given its present value, so that the end shows; nothing if the server does not report it.
OTHER_MARK: Mapping[bytes | None, bytes] = {b"off": b"on", b"on": b"off"}
# Lost races: the server has rolled everything back, and the same work may succeed on a new snapshot.
CONFLICTS = frozenset({"40001", "40P01"})
# The server itself does not know the outcome (statement_completion_unknown, transaction_resolution_unknown).
_UNKNOWN = frozenset({"40003", "08007"})
# Seconds below which an attempt is not begun: it would only be cut, and its timeout would hide the lost race.
_LEAST = 0.01

Inside = Literal["nothing", "transaction", "statements"]
Verdict = Literal["committed", "rolled_back", "unknown"]


# Looking a member up in its enum costs as much as a call in Python 3.11.
_REQUIRED, _REQUIRES_NEW = Propagation.REQUIRED, Propagation.REQUIRES_NEW


class Step(Enum):
    """What entering a block leads to."""

    BEGIN = "begin"
    JOIN = "join"
    SAVEPOINT = "savepoint"
    BARE = "bare"  # a connection without a transaction: each statement commits by itself


BEGIN, BARE = Step.BEGIN, Step.BARE  # as above


def step(propagation: Propagation, inside: Inside, name: str = "") -> Step:
    """Return what a block does.

    Args:
        propagation: What was asked for.
        inside: What already runs in this thread or task: nothing, a transaction, or a block without one.
        name: The database, for the message.

    Raises:
        TransactionUsageError: MANDATORY without a transaction, or NEVER within one.
    """
    if propagation is _REQUIRES_NEW or (propagation is _REQUIRED and inside == "nothing"):
        return BEGIN
    if inside == "transaction":
        if propagation is Propagation.NEVER:
            raise TransactionUsageError(
                f"[{name}] propagation NEVER, but a transaction runs here: call this outside of it", name=name
            )
        return Step.SAVEPOINT if propagation is Propagation.NESTED else Step.JOIN
    if propagation is Propagation.MANDATORY:
        raise TransactionUsageError(
            f"[{name}] propagation MANDATORY, but no transaction runs here: open one around this call", name=name
        )
    if propagation in (Propagation.SUPPORTS, Propagation.NEVER):
        return Step.JOIN if inside == "statements" else Step.BARE
    return Step.BEGIN


def objection_to_join(
    wanted: TransactionOptions, *, isolation: Isolation, read_only: bool, deferrable: bool
) -> str | None:
    """Return a request that the running transaction cannot fulfil, or None."""
    if wanted.isolation is not None and wanted.isolation is not isolation:
        return f"isolation {wanted.isolation.value} inside a transaction that runs {isolation.value}"
    if read_only and not wanted.read_only:
        return "writes inside a read-only transaction (say read_only=True, or use REQUIRES_NEW)"
    if wanted.deferrable and not deferrable:
        return "deferrable inside a transaction that is not"
    return None


def _begin(isolation: Isolation, *, read_only: bool, deferrable: bool) -> str:
    words = ["BEGIN ISOLATION LEVEL", isolation.value]
    # READ WRITE is never sent: it would fail on a standby, and would override the server's own default.
    words += ["READ ONLY"] if read_only else []
    words += ["DEFERRABLE"] if deferrable else []
    return " ".join(words)


@lru_cache(maxsize=1024)
def begin_command(  # noqa: PLR0917 - called for each transaction, and keywords cost a third of it
    isolation: Isolation,
    read_only: bool,
    deferrable: bool,
    limit: int,
    lock_timeout: float | None,
    mark: bytes | None = None,
) -> bytes:
    """Return the one command that opens a transaction and sets its limits: a single round trip.

    Args:
        isolation: The isolation level.
        read_only: Whether it only reads.
        deferrable: Whether a serializable read-only transaction may wait for a safe snapshot.
        limit: Milliseconds that the transaction may still take, commit included.
        lock_timeout: Seconds to wait for one lock, or None.
        mark: What `MARKER` is set to, or None to leave it.
    """
    # If this process dies, freezes or loses its network, the server ends the transaction by itself.
    command = (
        f"{_begin(isolation, read_only=read_only, deferrable=deferrable)}; SET LOCAL statement_timeout = {limit}; "
        f"SET LOCAL idle_in_transaction_session_timeout = {limit}"
    )
    if lock_timeout is not None:
        command += f"; SET LOCAL lock_timeout = {milliseconds(lock_timeout)}"
    if mark is not None:
        command += f"; SET LOCAL {MARKER.decode()} = {mark.decode()}"
    return command.encode("ascii")


def judge_commit(
    tag: bytes | None, *, sent: bool, alive: bool, answered_with_error: bool, sqlstate: str | None
) -> Verdict:
    """Return what became of a transaction whose COMMIT was sent. The command tag decides; nothing is guessed.

    Args:
        tag: The command tag of the answer; None if there was none.
        sent: False if it is certain that the server never read the COMMIT.
        alive: Whether the connection still works.
        answered_with_error: Whether the answer was an error.
        sqlstate: That error's SQLSTATE.
    """
    if tag == b"COMMIT":
        return "committed"
    if tag == b"ROLLBACK" or not sent:
        return "rolled_back"
    if answered_with_error and alive and sqlstate not in _UNKNOWN:
        # An ordinary error, such as a deferred constraint: the server aborted and says so. A fatal one closes the
        # connection and may come after the commit record was written.
        return "rolled_back"
    return "unknown"


def conflict_state(error: BaseException | None) -> str | None:
    """Return 40001 or 40P01 if that caused this error, also where code wrapped it (`raise ... from`)."""
    for _ in range(16):
        if error is None:
            return None
        state = sqlstate_of(error)
        if state in CONFLICTS:
            return state
        error = error.__cause__
    return None


def pause_before_retry(
    error: BaseException,
    *,
    began: bool,
    conflict: bool,
    attempt: int,
    retry: TransactionRetry,
    spent: float,
    left: float,
    random: Callable[[], float],
) -> float | None:
    """Return the seconds to pause before the next attempt, or None if there must be none.

    Args:
        error: What ended the attempt.
        began: Whether BEGIN had been answered.
        conflict: Whether the server had rolled the attempt back for a lost race.
        attempt: Its number, from 1.
        retry: The retry policy.
        spent: Seconds that the longest attempt took so far, without the wait for a connection.
        left: Seconds that are left of the budget.
        random: Draws from [0, 1).
    """
    if attempt >= retry.max_attempts or not isinstance(error, Exception):
        return None
    if not conflict and (began or classify(error).retry != "reconnect"):
        return None
    pause = retry.pauses(spent, left, conflict=conflict).delay(attempt, random)
    return pause if pause + _LEAST <= left else None
