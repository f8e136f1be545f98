"""What is known of one attempt and of its transaction, whoever joins it."""

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
    """One try of `run`, or the only one of a block.

    Attributes:
        number: Which one, from 1.
        until: When the budget of all of them is spent, None to start one with the transaction.
        retry: The policy, None where nothing is tried again.
        fn: What is going to be called, None for a block.
        repeatable: Whether doing it twice comes to doing it once, so that it may be tried again also where it is not
            known what became of it.
        told: Whether it is told as a transaction. One that waits for somebody else by design is not.
        pause: Seconds before the next one, None when this is the last.
        longest: Seconds of the longest one so far that failed, waiting for a connection left out.
        lease: What it has its connection by, or waits for one with.
        place: The caller's line, None to look for it when a connection is asked for.
    """

    # Defaults of the class: a block sets none but `lease` and `until`, and whoever wants others does it himself.
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
        """Take the connection from a block that was interrupted between two lines. Nothing after an orderly end."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.let_go()


class Work:
    """One BEGIN ... COMMIT on one connection, whoever joins it."""

    options: TransactionOptions
    isolation: Isolation
    lock_timeout: float | None
    owner: Owner
    attempt: Attempt
    asked: float  # when a connection was asked for
    checkouts: Checkouts  # where its connection comes from, and goes back to
    # Defaults of the class: most transactions set few of these, and setting all would cost twice as much.
    bare: bool = False  # a connection without a transaction
    after_commit: list[Hook] | None = None
    after_rollback: list[Hook] | None = None
    held: float | None = None  # seconds, once the connection went back
    journal: Journal | None = None
    lease: Lease | None = None
    rows: int = 0
    savepoints: int = 0
    session: Session | None = None
    sqlstate: str | None = None  # of the error with which the server ended it
    timed: bool = False  # how long it waited was told
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
        """Return one that has no connection yet."""
        work = cls()
        work.options, work.isolation, work.lock_timeout = options, isolation, lock_timeout
        work.owner, work.attempt, work.asked = owner, attempt, asked
        work.bare, work.checkouts = bare, checkouts
        return work

    @property
    def operation(self) -> str:
        """What it is called in events and metrics."""
        return self.options.operation or "transaction"

    def add_hook(self, hook: Hook, *, committed: bool) -> None:
        """Have a hook run after the commit, or else after the rollback."""
        hooks = self.after_commit if committed else self.after_rollback
        if hooks is None:
            hooks = []
            if committed:
                self.after_commit = hooks
            else:
                self.after_rollback = hooks
        hooks.append(hook)
