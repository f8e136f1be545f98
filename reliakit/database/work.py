"""What is known of one attempt and of its transaction, shared by all blocks that join it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.database.checkout import Checkouts
    from reliakit.database.gate import Lease
    from reliakit.database.journal import Journal
    from reliakit.database.machine import Verdict
    from reliakit.database.places import Owner, Place
    from reliakit.database.session import Session
    from reliakit.database.settings import Isolation, TransactionOptions, TransactionRetry

__all__ = ["Attempt", "Hook", "Work"]

Hook = Callable[[], object]


class Attempt:
    """One attempt of `run`, or the only one of a block.

    Attributes:
        number: Its number, from 1.
        until: When the budget of all attempts is spent; None to start one with the transaction.
        retry: The retry policy; None if nothing is retried.
        fn: The function about to be called; None for a block.
        repeatable: Whether doing it twice has the effect of doing it once, so that it may be retried even if its
            outcome is not known.
        told: Whether it is reported as a transaction. One that waits for other code by design is not.
        pause: Seconds before the next attempt; None if this is the last.
        longest: Seconds of the longest failed attempt so far, without the wait for a connection.
        lease: The lease of its connection, or the one it waits with.
        place: The caller's line; None to look for it when a connection is asked for.
    """

    # Class-level defaults: a block sets only `lease` and `until`, and callers that want others set them.
    number: int = 1
    until: float | None = None
    retry: TransactionRetry | None = None
    fn: Callable[..., object] | None = None
    repeatable: bool = False
    told: bool = True
    pause: float | None = None
    longest: float = 0.0
    lease: Lease | None = None
    place: Place | None = None

    def let_go(self) -> None:
        """Take the connection from a block that was interrupted between two lines. No effect after an orderly end."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.let_go()


class Work:
    """One BEGIN ... COMMIT on one connection, shared by all blocks that join it."""

    options: TransactionOptions
    isolation: Isolation
    lock_timeout: float | None
    owner: Owner
    attempt: Attempt
    asked: float  # when a connection was asked for
    checkouts: Checkouts  # where its connection comes from, and goes back to
    # Class-level defaults: most transactions set few of these, and setting all would cost twice as much.
    bare: bool = False  # a connection without a transaction
    after_commit: list[Hook] | None = None
    after_rollback: list[Hook] | None = None
    held: float | None = None  # how many seconds it was held, once the connection went back
    journal: Journal | None = None
    lease: Lease | None = None
    rows: int = 0
    savepoints: int = 0
    session: Session | None = None
    sqlstate: str | None = None  # of the error with which the server ended it
    timed: bool = False  # whether its wait for a connection was reported
    transaction_id: str | None = None
    verdict: Verdict = "rolled_back"  # as far as is known: nothing is committed before COMMIT is sent
    waited: float = 0.0

    @classmethod
    def of(  # noqa: PLR0917 - what a transaction is made of
        cls,
        options: TransactionOptions,
        isolation: Isolation,
        lock_timeout: float | None,
        owner: Owner,
        attempt: Attempt,
        asked: float,
        bare: bool,
        checkouts: Checkouts,
    ) -> Work:
        """Return a work that has no connection yet."""
        work = cls()
        work.options, work.isolation, work.lock_timeout = options, isolation, lock_timeout
        work.owner, work.attempt, work.asked = owner, attempt, asked
        work.bare, work.checkouts = bare, checkouts
        return work

    @property
    def operation(self) -> str:
        """Its name in events and metrics."""
        return self.options.operation or "transaction"

    def add_hook(self, hook: Hook, *, committed: bool) -> None:
        """Add a hook to run after the commit, or after the rollback."""
        hooks = self.after_commit if committed else self.after_rollback
        if hooks is None:
            hooks = []
            if committed:
                self.after_commit = hooks
            else:
                self.after_rollback = hooks
        hooks.append(hook)
