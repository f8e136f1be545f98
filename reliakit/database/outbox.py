"""Outbox: messages written in the transaction that they tell of, and delivered after it has committed.

```
BEGIN ─▶ the caller's work ─▶ publish ─▶ COMMIT ─▶ NOTIFY ┄┄▶ relay ─▶ handler ─▶ deleted
                              (a row)                           └────── raised ─▶ again later, or dead
```

A message is delivered at least once: after a crash between a handler and its commit, it is delivered again. Messages
of one key arrive in the order in which their transactions committed. The pattern is Chris Richardson's "Transactional
outbox".
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, overload

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.flow import run_blocking
from reliakit.database.async_database import AsyncDatabase
from reliakit.database.database import Database
from reliakit.database.locking import number_of
from reliakit.database.outbox_sql import Statements
from reliakit.database.relay import AsyncRelay, Relay, Shipping
from reliakit.database.settings import TransactionOptions
from reliakit.database.tables import ensure, table_name
from reliakit.database.transaction import AsyncTransaction, Transaction

if TYPE_CHECKING:
    from reliakit.core.spine import Listener
    from reliakit.database.engine import Engine, Entered

__all__ = ["Outbox", "OutboxMessage", "OutboxStats"]

_LONGEST = 255


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """One message of an outbox, as a handler gets it.

    Attributes:
        id: The message's number; the same if it is delivered twice.
        topic: What it is about.
        payload: The JSON value that was published.
        published_at: When its transaction began.
        key: Messages of one key arrive in order; None for a message without an order.
        headers: Texts that travel with it.
        attempt: Which attempt this is, from 1; for a dead message, how many there were.
        error: The class name of the last attempt's error; None on the first attempt.
    """

    id: int
    topic: str
    payload: Any
    published_at: datetime
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    attempt: int = 1
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """What an outbox holds at one moment.

    Attributes:
        pending: Messages that wait to be delivered.
        dead: Messages that were set aside.
        oldest: Seconds since the oldest pending message was published; None if none is pending.
    """

    pending: int
    dead: int
    oldest: float | None


class Outbox:
    """A table of messages that are published in transactions and delivered after they commit.

    Methods without the prefix `a` take a `Database` and its transactions, those with it an `AsyncDatabase` and its.
    One object serves threads and tasks; it holds no connection.

    Args:
        table: The table's name, with or without a schema; lower-case letters, digits and `_`.
        notify: Whether a publishing transaction wakes relays at once; otherwise they find its messages when they
            next look. PostgreSQL commits transactions that notify one after the other, across the whole server: turn
            it off if thousands commit each second.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(self, table: str = "outbox", *, notify: bool = True) -> None:
        self._table = table_name("table", table)
        if not isinstance(notify, bool):
            raise ConfigurationError(f"notify must be True or False, got {notify!r}")
        self._notify = notify
        self._statements = Statements(self._table, notify=notify)
        self._name = TransactionOptions(operation=f"outbox {table}")

    @property
    def table(self) -> str:
        """The table's name."""
        return self._table

    @property
    def ddl(self) -> str:
        """The statements that create the table, for a migration. Running them again is harmless."""
        return self._statements.ddl

    def __repr__(self) -> str:
        return f"Outbox({self._table!r}, notify={self._notify})"

    def create(self, db: Database) -> None:
        """Create the table if it does not exist; many processes may do so at once.

        Raises:
            ConfigurationError: The table is missing, and this user may not create it.
        """
        run_blocking(ensure(_engine(db, Database), self._table, self.ddl))

    async def acreate(self, db: AsyncDatabase) -> None:
        """Create the table if it does not exist; otherwise as `create`."""
        await ensure(_engine(db, AsyncDatabase), self._table, self.ddl)

    def publish(
        self,
        tx: Transaction,
        topic: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Write a message in this transaction, to be delivered if it commits; return its number. One round trip.

        Transactions that publish for the same key commit one after the other: the second waits here until the first
        has ended, within its own time. Messages without a key wait for nothing and have no order.

        Args:
            tx: The transaction that the message tells of.
            topic: What it is about, 1 to 255 characters.
            payload: A JSON value.
            key: What the order is kept for, such as an account's number; 1 to 255 characters.
            headers: Texts that travel with it.

        Raises:
            ConfigurationError: An argument is wrong, such as a payload that is not a JSON value.
            TransactionUsageError: There is no transaction; see also `Transaction.execute`.
        """
        if not isinstance(tx, Transaction):
            raise _wrong_transaction("publish", Transaction, tx)
        query, params = self._publication(tx, topic, payload, key, headers)
        return _published(tx, tx.fetch_value(query, params))

    async def apublish(
        self,
        tx: AsyncTransaction,
        topic: str,
        payload: Any,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Write a message in this transaction and return its number; otherwise as `publish`."""
        if not isinstance(tx, AsyncTransaction):
            raise _wrong_transaction("apublish", AsyncTransaction, tx)
        query, params = self._publication(tx, topic, payload, key, headers)
        return _published(tx, await tx.fetch_value(query, params))

    @overload
    def relay(
        self,
        db: Database,
        handler: Callable[[OutboxMessage], object],
        *,
        batch: int = 100,
        poll: float = 1.0,
        timeout: float = 30.0,
        max_attempts: int | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        listeners: Iterable[Listener] = (),
    ) -> Relay: ...
    @overload
    def relay(
        self,
        db: AsyncDatabase,
        handler: Callable[[OutboxMessage], Awaitable[object]],
        *,
        batch: int = 100,
        poll: float = 1.0,
        timeout: float = 30.0,
        max_attempts: int | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        listeners: Iterable[Listener] = (),
    ) -> AsyncRelay: ...
    def relay(
        self,
        db: Database | AsyncDatabase,
        handler: Callable[[OutboxMessage], object],
        *,
        batch: int = 100,
        poll: float = 1.0,
        timeout: float = 30.0,
        max_attempts: int | None = None,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        listeners: Iterable[Listener] = (),
    ) -> Relay | AsyncRelay:
        """Return a relay that delivers messages to `handler`; it starts nothing by itself. Several share the work.

        While a batch is being delivered, a transaction of the relay's holds one connection. It is reported as
        OutboxRelayed, and not among the transactions, whose latency it would distort. What the handler does in the
        database is separate: it may use the same `db`, with a `max_size` of at least 2.

        Args:
            db: Where the table is.
            handler: Takes an `OutboxMessage`; `async def` for an AsyncDatabase. When it returns, the message is done;
                when it raises, it gets the message again. It must tolerate getting a message twice.
            batch: The most messages taken at once. As many may come again after a crash.
            poll: Seconds between two looks for messages that no notification announced.
            timeout: Seconds that a handler may take: an async one is cut off then; a plain one cannot be, and loses
                its batch's claim after about twice as long. It is also how long a batch goes on starting new
                messages.
            max_attempts: How often a message is tried before it is set aside as dead; None for ever, during which the
                other messages of its key wait. A RejectedError, such as a breaker's or a limiter's, is not counted:
                the message comes again after its `retry_after`.
            backoff: The pauses before a failed message is tried again.
            listeners: Called with this relay's events, besides the process-wide listeners.

        Raises:
            ConfigurationError: A setting is wrong, or only one of handler and database is async.
        """
        asynchronous = isinstance(db, AsyncDatabase)
        shipping = Shipping(
            _engine(db, AsyncDatabase if asynchronous else Database),
            handler,
            self._table,
            self._statements,
            _message,
            batch=batch,
            poll=poll,
            timeout=timeout,
            max_attempts=max_attempts,
            backoff=backoff,
            listeners=listeners,
        )
        return AsyncRelay(shipping) if asynchronous else Relay(shipping)

    def dead(self, db: Database, *, limit: int = 100) -> list[OutboxMessage]:
        """Return messages that were set aside, the oldest first, in the running transaction or in one of its own."""
        return run_blocking(self._dead(_engine(db, Database), limit))

    async def adead(self, db: AsyncDatabase, *, limit: int = 100) -> list[OutboxMessage]:
        """Return messages that were set aside; otherwise as `dead`."""
        return await self._dead(_engine(db, AsyncDatabase), limit)

    def redrive(self, db: Database, *, ids: Iterable[int] | None = None) -> int:
        """Try dead messages again as if they were new, and return how many. They are delivered out of order.

        Args:
            db: Where the table is.
            ids: Which messages; None for all.
        """
        return run_blocking(self._redrive(_engine(db, Database), ids))

    async def aredrive(self, db: AsyncDatabase, *, ids: Iterable[int] | None = None) -> int:
        """Try dead messages again; otherwise as `redrive`."""
        return await self._redrive(_engine(db, AsyncDatabase), ids)

    def stats(self, db: Database) -> OutboxStats:
        """Return what the outbox holds. O(messages)."""
        return run_blocking(self._stats(_engine(db, Database)))

    async def astats(self, db: AsyncDatabase) -> OutboxStats:
        """Return what the outbox holds. O(messages)."""
        return await self._stats(_engine(db, AsyncDatabase))

    def _publication(
        self,
        tx: Transaction | AsyncTransaction,
        topic: str,
        payload: Any,
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[bytes, tuple[Any, ...]]:
        if tx.is_bare:
            raise TransactionUsageError(
                f"{self._table}: a message needs a transaction to belong to, and none runs here: use REQUIRED"
            )
        values = (_text("topic", topic), key, _json("payload", payload), _headers(headers))
        if key is None:
            return self._statements.publish, values
        _text("key", key)
        return self._statements.publish_keyed, (number_of(f"reliakit outbox {self._table} {key}"), *values)

    async def _dead(self, engine: Engine, limit: int) -> list[OutboxMessage]:
        checks.count("limit", limit)
        return [_message(*row) for row in await self._ask(engine, self._statements.dead, (limit,))]

    async def _redrive(self, engine: Engine, ids: Iterable[int] | None) -> int:
        wanted = None if ids is None else [checks.count("ids", number, least=0) for number in ids]
        return int((await self._ask(engine, self._statements.redrive, (wanted, wanted)))[0][0])

    async def _stats(self, engine: Engine) -> OutboxStats:
        return OutboxStats(*(await self._ask(engine, self._statements.stats, None))[0])

    async def _ask(self, engine: Engine, query: bytes, params: tuple[Any, ...] | None) -> list[tuple[Any, ...]]:
        async def ask(entered: Entered) -> list[tuple[Any, ...]]:
            return await entered.transaction.session().query(query, params)

        return await engine.own(self._name, ask)


def _published(tx: Transaction | AsyncTransaction, both: str) -> int:
    """Return the message's number, and record the transaction's id for a CommitUnknownError to carry."""
    number, tx.work.transaction_id = both.split()  # one value, whatever the connection's row factory is
    return int(number)


def _message(  # noqa: PLR0917 - a row's columns
    number: int, topic: str, key: str | None, payload: str, headers: str, at: float, attempts: int, error: str | None
) -> OutboxMessage:
    published_at = datetime.fromtimestamp(at, UTC)
    return OutboxMessage(number, topic, json.loads(payload), published_at, key, json.loads(headers), attempts, error)


def _text(argument: str, value: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST or "\0" in value:
        raise ConfigurationError(
            f"{argument} must be a text of 1 to {_LONGEST} characters without NUL, got {value!r}"
        )
    return value


def _headers(headers: Mapping[str, str] | None) -> str:
    if headers is None:
        return "{}"
    pairs = dict(headers) if isinstance(headers, Mapping) else None
    if pairs is None or not all(isinstance(part, str) for pair in pairs.items() for part in pair):
        raise ConfigurationError("headers must be a mapping of texts to texts")
    return _json("headers", pairs)


def _json(argument: str, value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{argument} must be a JSON value, got {type(value).__name__} ({error})") from error


def _engine(db: Database | AsyncDatabase, wanted: type[Database | AsyncDatabase]) -> Engine:
    if not isinstance(db, wanted):
        raise ConfigurationError(f"this method takes {wanted.__name__}, got {type(db).__name__}: use its twin")
    return db._engine  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - of this package


def _wrong_transaction(method: str, wanted: type, given: object) -> ConfigurationError:
    return ConfigurationError(
        f"{method} takes {wanted.__name__}, got {type(given).__name__}: give it the transaction that the message "
        "tells of"
    )
