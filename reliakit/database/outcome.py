"""What became of a transaction whose COMMIT was never answered: the server is asked; nothing is guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from psycopg import errors

from reliakit.core.errors import ConfigurationError
from reliakit.database.settings import Isolation, Propagation, TransactionOptions

if TYPE_CHECKING:
    from reliakit.database.engine import Engine, Entered

__all__ = ["TransactionOutcome", "outcome_of"]

TransactionOutcome = Literal["committed", "aborted", "in progress"]
"""What became of a transaction, as `Database.outcome` says."""

# In a transaction of its own: the running one may be the failed one. It only reads, but is not marked as read-only,
# as a replica may not have heard of the transaction yet.
_OPTIONS = TransactionOptions(
    isolation=Isolation.READ_COMMITTED, propagation=Propagation.REQUIRES_NEW, operation="outcome"
)
# Ids below the first are special marks of the server's own and always "committed".
_FIRST, _LAST = 3, 2**64 - 1


async def outcome_of(engine: Engine, transaction_id: str | None) -> TransactionOutcome | None:
    """Ask the server what became of a transaction."""
    checked = _checked(transaction_id)

    async def ask(entered: Entered) -> object:
        rows = await entered.transaction.session().query(b"SELECT pg_xact_status(%s::text::xid8)", (checked,))
        return rows[0][0]

    try:
        return cast("TransactionOutcome | None", await engine.own(_OPTIONS, ask))
    except errors.InvalidParameterValue:
        raise ConfigurationError(
            f"[{engine.name}] the server has not given out the transaction id {checked} yet: it is another server's, "
            "or this one was restored from a backup that is older"
        ) from None


def _checked(transaction_id: str | None) -> str:
    if transaction_id is None:
        raise ConfigurationError(
            "transaction_id is None: nothing is known of that transaction to ask for, as its id was never learnt; "
            "call tx.transaction_id() in the transaction, or give run() an idempotency_key and call it again"
        )
    if not isinstance(transaction_id, str) or not (transaction_id.isascii() and transaction_id.isdigit()):
        raise ConfigurationError(
            f"transaction_id must be the text of CommitUnknownError.transaction_id, got {transaction_id!r}"
        )
    if len(transaction_id) > 20 or not _FIRST <= int(transaction_id) <= _LAST:
        raise ConfigurationError(
            f"transaction_id must be a number from {_FIRST} to 2**64 - 1, got {transaction_id!r}"
        )
    return transaction_id
