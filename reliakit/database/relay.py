"""Delivers an outbox's messages: in order per key, at least once, however many relays there are.

```
BEGIN ─▶ heads: the first message of each key, FOR UPDATE SKIP LOCKED ─▶ what follows them ─▶ handler, one by one
      ─▶ done ones are deleted, failed ones get a later not_before, or are set aside ─▶ COMMIT
```

A relay that has locked the first message of a key owns the key: other relays still see that message, so to them none
of those behind it is a first. A relay that dies loses its locks with its connection, and another one goes on from the
last commit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from reliakit.core import checks, guard, tracking
from reliakit.core.backoff import Backoff
from reliakit.core.errors import (
    CommitUnknownError,
    ConfigurationError,
    DeadlineExceededError,
    RejectedError,
    TransactionRolledBackError,
    TransactionTimeoutError,
)
from reliakit.core.events import OutboxFailed, OutboxRelayed, StoreFailed, StoreRecovered
from reliakit.core.flow import attempt_async, run_blocking
from reliakit.core.spine import Emitter
from reliakit.database.driver import Late
from reliakit.database.frames import pop
from reliakit.database.listening import Ear
from reliakit.database.settings import Isolation, Propagation, TransactionOptions
from reliakit.database.stopping import GRACE
from reliakit.database.work import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliakit.core.spine import Listener
    from reliakit.database.engine import Engine, Entered
    from reliakit.database.outbox import OutboxMessage
    from reliakit.database.outbox_sql import Statements
    from reliakit.database.session import Session

__all__ = ["AsyncRelay", "Relay", "Shipping"]

# How soon stop() is noticed, in seconds.
_LOOK_UP = 0.1
# Errors that pass by themselves: the server is away, was restarted, or ended this very transaction.
_PASSING = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    TransactionTimeoutError,
    TransactionRolledBackError,
    CommitUnknownError,
)


class _Failure:
    """One message whose handler raised."""

    __slots__ = ("attempts", "delay", "error", "message")

    def __init__(self, message: OutboxMessage, error: Exception, attempts: int, delay: float | None) -> None:
        self.message = message
        self.error = error
        self.attempts = attempts  # how often it was tried so far
        self.delay = delay  # seconds until the next attempt, None for none


class _Batch:
    """The outcome of the messages of one transaction."""

    __slots__ = ("done", "failures", "interrupt", "outlived", "taken")

    def __init__(self) -> None:
        self.taken: int = 0
        self.done: list[OutboxMessage] = []
        self.failures: list[_Failure] = []
        self.interrupt: BaseException | None = None  # a cancellation or Ctrl-C that came in a handler
        self.outlived: OutboxMessage | None = None  # the message whose handler took longer than the transaction could


class Shipping:
    """The work of a relay, in either colour.

    Args:
        engine: The database's engine.
        handler: Takes a message.
        table: The outbox's table.
        statements: Its statements.
        read: Makes a message from a row.
        batch: See `Outbox.relay`.
        poll: See `Outbox.relay`.
        timeout: See `Outbox.relay`.
        max_attempts: See `Outbox.relay`.
        backoff: See `Outbox.relay`.
        listeners: See `Outbox.relay`.
    """

    def __init__(
        self,
        engine: Engine,
        handler: Callable[[OutboxMessage], object],
        table: str,
        statements: Statements,
        read: Callable[..., OutboxMessage],
        *,
        batch: int,
        poll: float,
        timeout: float,
        max_attempts: int | None,
        backoff: Backoff,
        listeners: Iterable[Listener],
    ) -> None:
        colour = guard.colour_of(handler, by="relay")
        wanted = "async" if engine.io.asynchronous else "plain"
        if colour != wanted:
            raise ConfigurationError(f"handler must be {wanted} for this database, got one that is {colour}")
        if not isinstance(backoff, Backoff):
            raise ConfigurationError(f"backoff must be a Backoff, got {backoff!r}")
        self._batch_size = checks.count("batch", batch)
        self._poll = checks.seconds("poll", poll)
        self._timeout = checks.seconds("timeout", timeout)
        self._max_attempts = None if max_attempts is None else checks.count("max_attempts", max_attempts)
        self._backoff = backoff
        self._engine = engine
        self._clock = engine.clock
        self._handler = handler
        self._read = read
        self.table: str = table
        self._statements = statements
        self._emitter = Emitter(table, listeners, engine.clock)
        # Each statement sees what is committed when it begins, because a claim must not rest on an older snapshot.
        # The time covers a handler that was begun at the last moment, and what comes after it.
        self._options = TransactionOptions(
            isolation=Isolation.READ_COMMITTED,
            timeout=2 * self._timeout + 5.0,
            propagation=Propagation.REQUIRES_NEW,
            operation=f"relay {table}",
        )
        self.stopped: bool = False
        self._keyless_first = False
        self._after = ""  # the key at which the last walk stopped
        self._away: float | None = None  # since when the server cannot be reached

    async def run(self) -> None:
        """Deliver messages until stopped."""
        ear = Ear(self._engine.checkouts.source, self.table, self._clock)
        try:
            while not self.stopped:
                await ear.open()
                try:
                    batch = await self._ship(None)
                except _PASSING as error:
                    # The failed transaction reports its error; this reports that messages wait.
                    self._went_away(error)
                    await self._rest(ear)
                    continue
                self._came_back()
                if not batch.taken:
                    await self._rest(ear)
        finally:
            ear.close()

    async def drain(self) -> int:
        """Deliver what is due now, each message once, and return how many were taken care of."""

        async def ask(entered: Entered) -> float:
            rows = await entered.transaction.session().query(b"SELECT extract(epoch FROM clock_timestamp())::float8")
            return float(rows[0][0])

        now = await self._engine.own(self._options, ask)
        total = 0
        while not self.stopped:
            batch = await self._ship(now)  # messages that fail in it become due later than now
            if not batch.taken:
                break
            total += len(batch.done)
        return total

    async def _rest(self, ear: Ear) -> None:
        """Wait for a notification, stop() or the next look."""
        until = self._clock.monotonic() + self._poll
        while not self.stopped:
            left = until - self._clock.monotonic()
            if left <= 0 or await ear.wait(min(_LOOK_UP, left)):
                return

    async def _ship(self, now: float | None) -> _Batch:
        """Take a batch, deliver it and settle it, in one transaction."""
        batch = _Batch()
        # It lasts as long as its handlers do, so its latency says nothing about the database.
        attempt = Attempt()
        attempt.told = False
        entered = await self._engine.enter(self._options, attempt)
        assert entered.frame is not None
        pop(entered.frame)  # what a handler does in the database is not part of this transaction
        outcome = await attempt_async(self._claim_and_settle, entered, batch, now)
        error = await self._engine.leave(entered, outcome.error)
        if error is None and batch.done and self._emitter.hears(OutboxRelayed):
            oldest = min(message.published_at.timestamp() for message in batch.done)
            self._emitter.emit(OutboxRelayed, count=len(batch.done), lag=max(0.0, self._clock.time() - oldest))
        if isinstance(error, Exception) and batch.outlived is not None:
            # Everything was rolled back. The failure is recorded apart, so that this message cannot block the others.
            batch.done, batch.failures = [], [self._failure(batch.outlived, self._too_long())]
            await self._engine.own(self._options, partial(self._note_failures, batch=batch))
            error = None
        for failure in batch.failures:
            self._tell_failure(failure)
        error = batch.interrupt or error
        if error is not None:
            raise error
        return batch

    async def _claim_and_settle(self, entered: Entered, batch: _Batch, now: float | None) -> None:
        session = entered.transaction.session()
        messages = await self._claim(session, now)
        batch.taken = len(messages)
        await self._hand_over(messages, session, batch)
        if batch.interrupt is not None:
            session.until = min(session.until, self._clock.monotonic() + 2 * GRACE)
        if batch.done:
            await session.query(self._statements.done, ([message.id for message in batch.done],))
        await self._note_failures(entered, batch)

    async def _claim(self, session: Session, now: float | None) -> list[OutboxMessage]:
        """Take messages with a key and messages without, each kind first in every other batch."""
        self._keyless_first = not self._keyless_first
        kinds = [self._claim_keyed, self._claim_keyless]
        messages: list[OutboxMessage] = []
        for claim in reversed(kinds) if self._keyless_first else kinds:
            room = self._batch_size - len(messages)
            if room:
                messages += await claim(session, now, room)
        return sorted(messages, key=lambda message: message.id)

    async def _claim_keyless(self, session: Session, now: float | None, room: int) -> list[OutboxMessage]:
        return [
            self._read(*row) for row in await session.query(self._statements.keyless, {"now": now, "limit": room})
        ]

    async def _claim_keyed(self, session: Session, now: float | None, room: int) -> list[OutboxMessage]:
        """Take the first messages of the keys after those taken last, in a circle, and what follows them."""
        heads: list[tuple[Any, ...]] = []
        while not heads:
            after, self._after = self._after, ""
            heads = await session.query(self._statements.heads, {"now": now, "after": after, "limit": room})
            if not heads and not after:
                return []
        messages = [self._read(*row) for row in heads]
        if len(heads) == room:
            self._after = str(messages[-1].key)
            return messages
        keys, ids = [message.key for message in messages], [message.id for message in messages]
        rest = {"keys": keys, "ids": ids, "limit": room - len(heads)}
        return messages + [self._read(*row) for row in await session.query(self._statements.followers, rest)]

    async def _hand_over(self, messages: list[OutboxMessage], session: Session, batch: _Batch) -> None:
        """Call the handler for each message whose key has not failed, while there is time and the claim stands."""
        io = self._engine.io
        begun = self._clock.monotonic()
        halted: set[str | None] = set()
        for message in messages:
            if message.key in halted:
                continue
            if self.stopped or self._clock.monotonic() - begun >= self._timeout or session.hung_up():
                return
            error = (await io.call(self._handler, (message,), self._timeout)).error
            if session.clock.monotonic() >= session.until:
                batch.outlived = message
                return
            if error is None:
                batch.done.append(message)
                continue
            if isinstance(error, Late):
                error = self._too_long()
            if not isinstance(error, Exception):
                batch.interrupt = error
                return
            batch.failures.append(self._failure(message, error))
            if message.key is not None:
                halted.add(message.key)

    async def _note_failures(self, entered: Entered, batch: _Batch) -> None:
        failures = batch.failures
        if failures:
            ids = [failure.message.id for failure in failures]
            attempts = [failure.attempts for failure in failures]
            delays = [failure.delay for failure in failures]
            errors = [type(failure.error).__name__ for failure in failures]
            session = entered.transaction.session()
            await session.query(self._statements.failed, (ids, attempts, delays, errors, ids))

    def _failure(self, message: OutboxMessage, error: Exception) -> _Failure:
        delay = self._backoff.delay(message.attempt, self._clock.random)
        if isinstance(error, RejectedError):  # nothing was tried, and the error may say when that makes sense
            return _Failure(message, error, message.attempt - 1, max(delay, error.retry_after or 0.0))
        last = self._max_attempts is not None and message.attempt >= self._max_attempts
        return _Failure(message, error, message.attempt, None if last else delay)

    def _too_long(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"{self.table}: the handler took longer than {self._timeout:g} s", seconds=self._timeout
        )

    def _tell_failure(self, failure: _Failure) -> None:
        message, error = failure.message, failure.error
        self._emitter.emit(
            OutboxFailed,
            message_id=message.id,
            topic=message.topic,
            attempt=failure.attempts,
            delay=failure.delay,
            error_type=type(error).__name__,
        )
        tracking.report(self._emitter, error)

    def _went_away(self, error: Exception) -> None:
        if self._away is None:
            self._away = self._clock.monotonic()
            self._emitter.emit(StoreFailed, store=self._engine.name, reason=type(error).__name__)

    def _came_back(self) -> None:
        if self._away is not None:
            since, self._away = self._away, None
            self._emitter.emit(StoreRecovered, store=self._engine.name, outage=self._clock.monotonic() - since)

    def __repr__(self) -> str:
        state = "stopped" if self.stopped else "ready"
        named = getattr(self._handler, "__qualname__", repr(self._handler))
        return f"{self.table!r} to {named}, batch={self._batch_size}, poll={self._poll:g}, {state}"


class _Stoppable:
    """What both colours of a relay share."""

    def __init__(self, shipping: Shipping) -> None:
        self._shipping = shipping

    def stop(self) -> None:
        """Stop for good after the message at hand. From any thread, or a signal handler."""
        self._shipping.stopped = True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._shipping!r}>"


class Relay(_Stoppable):
    """Delivers an outbox's messages to a plain function. Made by `Outbox.relay`; one or more threads may run it."""

    def run(self) -> None:
        """Deliver messages, in this thread, until `stop()`.

        If the server is away, it waits for as long as it takes.

        Raises:
            psycopg.Error: An error that waiting does not mend, such as a missing table.
            TransactionUsageError: The database was closed.
        """
        run_blocking(self._shipping.run())

    def drain(self) -> int:
        """Deliver what is due, each message once, and return how many were taken care of.

        For tests and scheduled jobs. Messages that fail stay for later.

        Raises:
            psycopg.Error: The server's error.
        """
        return run_blocking(self._shipping.drain())


class AsyncRelay(_Stoppable):
    """Delivers an outbox's messages to an async function. Made by `Outbox.relay`; one or more tasks may run it."""

    async def arun(self) -> None:
        """Deliver messages until cancelled, or until `stop()`; otherwise as `Relay.run`.

        When a cancellation comes, what was delivered is settled first, within a bounded time.
        """
        await self._shipping.run()

    async def adrain(self) -> int:
        """Deliver what is due, each message once; otherwise as `Relay.drain`."""
        return await self._shipping.drain()
