"""Idempotency keys: the same key gives the first call's result, however often the call is made.

```
BEGIN ─▶ INSERT key ─▶ inserted: the caller's code ─▶ its result as JSON ─▶ COMMIT      one transaction
             └─ it is there ──▶ the first call's result ─────────────────▶ COMMIT
```

The key commits with the work or not at all, so a call whose outcome is not known can be made again. Of two calls at
once, the server makes the second wait for the first: a unique index waits for the transaction that inserted the
value.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.flow import Outcome
from reliakit.database.settings import Isolation, Propagation, TransactionOptions
from reliakit.database.tables import ensure

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.database.engine import Engine, Entered
    from reliakit.database.settings import TransactionRetry

__all__ = ["IDEMPOTENCY_DDL", "Keys"]

IDEMPOTENCY_DDL = """\
CREATE TABLE IF NOT EXISTS reliakit_idempotency (
    key text COLLATE "C" PRIMARY KEY,
    operation text NOT NULL,
    result json,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS reliakit_idempotency_created_at ON reliakit_idempotency USING brin (created_at);
"""
"""The statements that create the table of the idempotency keys, for a migration. Running them again is harmless."""

_TABLE = "reliakit_idempotency"
# The transaction's id is fetched along, for a CommitUnknownError to carry: on its own it would cost a round trip.
_CLAIM = (
    b"INSERT INTO reliakit_idempotency (key, operation) VALUES (%s, %s) ON CONFLICT (key) DO NOTHING "
    b"RETURNING pg_current_xact_id()::text"
)
_RECALL = b"SELECT operation, result::text FROM reliakit_idempotency WHERE key = %s"
_KEEP = b"UPDATE reliakit_idempotency SET result = %s::text::json WHERE key = %s"
_EXISTS = b"SELECT to_regclass('reliakit_idempotency') IS NOT NULL"
# Rows that another caller is deleting at this moment are left to it.
_FORGET = b"""
WITH old AS (
    SELECT key FROM reliakit_idempotency
    WHERE created_at < clock_timestamp() - make_interval(secs => %s) LIMIT %s FOR UPDATE SKIP LOCKED
), gone AS (DELETE FROM reliakit_idempotency WHERE key IN (SELECT key FROM old) RETURNING 1)
SELECT count(*) FROM gone"""

_LONGEST = 255
# How many are deleted at a time, so that each step fits into a transaction's time however many there are.
_BATCH = 10_000
_CENTURY = 100 * 365 * 86400.0  # an interval too large for PostgreSQL would be an error
_FORGETTING = TransactionOptions(
    isolation=Isolation.READ_COMMITTED, propagation=Propagation.REQUIRES_NEW, operation="forget_idempotency_keys"
)


class Keys:
    """The idempotency keys of one database. Holds no lock; safe from threads and tasks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ready = False  # whether the table is known to exist

    async def run(
        self,
        key: str,
        options: TransactionOptions,
        retry: TransactionRetry | None,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> Outcome[Any]:
        """Run the caller's code unless a call with this key has succeeded, and return the first call's outcome."""
        _check(key, options)
        engine = self._engine
        until, _ = engine.budget(options, engine.clock.monotonic())
        if not self._ready:
            self._ready = await ensure(engine, _TABLE, IDEMPOTENCY_DDL, until)

        async def once(entered: Entered) -> Outcome[Any]:
            try:
                return await self._once(key, entered, fn, args, str(options.operation))
            except BaseException as error:  # noqa: BLE001 - carried to the engine, which ends the transaction
                return Outcome(error=error)

        return await engine.run(
            options, retry, fn, args, with_transaction=True, flow=once, until=until, repeatable=True
        )

    async def _once(
        self, key: str, entered: Entered, fn: Callable[..., Any], args: tuple[Any, ...], operation: str
    ) -> Outcome[Any]:
        transaction, name = entered.transaction, self._engine.name
        session = transaction.session()
        while not (claimed := await session.query(_CLAIM, (key, operation))):
            rows = await session.query(_RECALL, (key,))
            if rows:
                return Outcome(_recalled(name, key, operation, *rows[0]))
            # Deleted between the two statements, so the key is free again.
        entered.work.transaction_id = claimed[0][0]
        outcome = await self._engine.io.call(fn, (transaction, *args), entered.remaining())
        if outcome.error is not None:
            return outcome
        text = _as_json(name, operation, outcome.value)
        doomed = session.ended or session.in_failed_transaction or transaction.doomed or transaction.deliberate
        if not doomed and entered.remaining() > 0:  # otherwise the end of the block says what is wrong
            await session.query(_KEEP, (text, key))
        return Outcome(json.loads(text))

    async def forget(self, older_than: float) -> int:
        """Delete keys that are older than `older_than` seconds, and return how many."""
        seconds = min(checks.seconds("older_than", older_than, zero=True), _CENTURY)

        async def some(entered: Entered) -> int:
            session = entered.transaction.session()
            if not (await session.query(_EXISTS))[0][0]:
                return 0
            return int((await session.query(_FORGET, (seconds, _BATCH)))[0][0])

        total = 0
        while True:
            count = await self._engine.own(_FORGETTING, some)
            total += count
            if count < _BATCH:
                return total


def _check(key: str, options: TransactionOptions) -> None:
    if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST or "\0" in key or not _is_encodable(key):
        raise ConfigurationError(
            f"idempotency_key must be a text of 1 to {_LONGEST} characters without NUL, got {key!r}"
        )
    if options.read_only:
        raise ConfigurationError("idempotency_key needs a transaction that writes: leave out read_only=True")
    if options.propagation in (Propagation.SUPPORTS, Propagation.NEVER):
        raise ConfigurationError(
            f"idempotency_key needs a transaction, and {options.propagation.name} may run without one: use REQUIRED"
        )


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _recalled(name: str, key: str, operation: str, known: str, result: str | None) -> Any:
    if known != operation:
        raise TransactionUsageError(
            f"[{name}] the idempotency key {key!r} was used for {known!r} and cannot stand for {operation!r} too: "
            "put what the call does into the key, or name both with operation=",
            name=name,
        )
    if result is None:
        raise TransactionUsageError(
            f"[{name}] the idempotency key {key!r} belongs to a call without a result: one that still runs in this "
            "very transaction, or one whose code ran COMMIT by itself",
            name=name,
        )
    return json.loads(result)


def _as_json(name: str, operation: str, value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TransactionUsageError(
            f"[{name}] {operation!r} has an idempotency_key, so its result is kept as JSON, and "
            f"{type(value).__name__} is not JSON ({error}); it was rolled back: return a JSON value, such as an id",
            name=name,
        ) from error
