"""The waiting sequences of a transaction, written once for threads and tasks.

```
enter ─▶ connection ─▶ BEGIN; SET LOCAL ... ─▶ ( the caller's code ) ─▶ COMMIT or ROLLBACK ─▶ events ─▶ hooks
              ▲                                                                   │
              └────────────── run: pause with full jitter ◀── lost a race ────────┘
```

Three round trips, however many limits are set. The caller's code runs between `enter` and `leave`, outside of both,
and what it raises leaves as the same object.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from reliakit.core import deadline
from reliakit.core.errors import (
    TransactionError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
)
from reliakit.core.flow import Outcome, attempt_async
from reliakit.database import beginning, ending, machine, nesting, straight
from reliakit.database.driver import Late
from reliakit.database.frames import frame_of, pop, time_left_here
from reliakit.database.machine import BARE, BEGIN, Inside
from reliakit.database.nesting import Entered
from reliakit.database.places import owner_here, place_above
from reliakit.database.settings import Propagation, TransactionOptions
from reliakit.database.transaction import AsyncTransaction, Handle, Transaction
from reliakit.database.work import Attempt, Work

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from reliakit.core.clock import Clock
    from reliakit.database.adapters import Io
    from reliakit.database.answers import Answer
    from reliakit.database.checkout import Checkouts
    from reliakit.database.replicas import Replicas
    from reliakit.database.session import Session
    from reliakit.database.settings import Isolation, TransactionRetry
    from reliakit.database.telling import Teller

__all__ = ["Engine", "Entered", "Flow"]

T = TypeVar("T")
_REQUIRES_NEW = Propagation.REQUIRES_NEW  # looked up once; see machine


Flow = Callable[[Entered], Awaitable[Outcome[Any]]]


class Engine:
    """The part of a database that is the same in both colours. Holds no lock; safe from threads and tasks."""

    def __init__(
        self,
        *,
        name: str,
        isolation: Isolation,
        timeout: float,
        lock_timeout: float | None,
        retry: TransactionRetry,
        io: Io,
        checkouts: Checkouts,
        replicas: Replicas,
        teller: Teller,
        clock: Clock,
    ) -> None:
        self.name = name
        self.isolation = isolation
        self.timeout = timeout
        self.lock_timeout = lock_timeout
        self.retry = retry
        self.io = io
        self.checkouts = checkouts
        # For code that keeps a connection beside its transactions: a test kit replaces those of transactions only.
        self.standing = checkouts
        self.replicas = replicas
        self.teller = teller
        self.clock = clock
        self.handle: type[Handle] = AsyncTransaction if io.asynchronous else Transaction

    if TYPE_CHECKING:  # signatures for type checkers of the functions bound below

        async def enter_after(
            self, work: Work, outcome: list[PGresult] | BaseException, mark: bytes | None
        ) -> Entered:
            """See `beginning.begin_after`."""
            ...

        async def send_begin(
            self,
            work: Work,
            within: float,
            *,
            replaceable: bool = True,
            sent: tuple[Answer, bytes | None] | None = None,
        ) -> None:
            """See `beginning.send`."""
            ...

    else:
        enter_after = beginning.begin_after
        send_begin = beginning.send

    def running(self) -> Handle | None:
        """Return the transaction that this thread or task is in, or None.

        Raises:
            TransactionUsageError: It was inherited from another thread or task.
        """
        found = frame_of(self)
        if found is None:
            return None
        transaction, mine = found
        if not mine:
            raise self._inherited(transaction)
        return transaction

    def enter(self, options: TransactionOptions, attempt: Attempt) -> Coroutine[Any, Any, Entered]:
        """Do what a block asks for: begin, join, set a savepoint, or take a connection without a transaction."""
        # A new transaction shares nobody's connection, so a task inside an inherited transaction may have one.
        outer = None if options.propagation is _REQUIRES_NEW else self.running()
        inside: Inside = "nothing" if outer is None else "statements" if outer.is_bare else "transaction"
        step = machine.step(options.propagation, inside, self.name)
        if outer is None or step is BEGIN or step is BARE:
            return beginning.begin(self, step, options, attempt)
        return nesting.join(self, step, options, outer)

    def leave(self, entered: Entered, error: BaseException | None) -> Coroutine[Any, Any, BaseException | None]:
        """End a block whose code raised `error`, or nothing; return the error that must leave the block, if any."""
        if isinstance(error, Late):
            error = self._timed_out(entered.work)
        if entered.step is not BEGIN and entered.step is not BARE:
            return nesting.leave(self, entered, error)
        return self._leave_outermost(entered, error, None)

    def leave_after(self, entered: Entered, answer: Answer) -> Coroutine[Any, Any, BaseException | None]:
        """End a block whose COMMIT was sent already, with the answer to it."""
        return self._leave_outermost(entered, None, answer)

    @staticmethod
    def interrupted(entered: Entered | None, attempt: Attempt, interrupt: BaseException) -> None:
        """Clean up after an interrupt between two of our lines, and note on it what became of the transaction."""
        is_whole = entered is not None and (entered.step is BEGIN or entered.step is BARE)
        if entered is not None and is_whole and not isinstance(interrupt, Exception):
            ending.with_verdict(interrupt, entered.work)
        attempt.let_go()

    async def run(
        self,
        options: TransactionOptions,
        retry: TransactionRetry | None,
        fn: Callable[..., Any] | None,
        args: tuple[Any, ...],
        *,
        with_transaction: bool,
        flow: Flow | None = None,
        until: float | None = None,
        repeatable: bool = False,
    ) -> Outcome[Any]:
        """Run the caller's code in a transaction, again if it lost a race, and return the outcome.

        Args:
            options: The transaction's options.
            retry: The retry policy; the database's by default.
            fn: The caller's code; None for a flow without any.
            args: Passed to it.
            with_transaction: Whether the transaction is passed to it first.
            flow: Runs in the transaction instead, and never raises; it calls `fn` itself if it wants to.
            until: When the time of all attempts is spent; by default the timeout in `options`, from now on.
            repeatable: See `Attempt`.
        """
        io, began, number, longest = self.io, self.clock.monotonic(), 0, 0.0
        place = place_above(io.depth, fn)
        while True:
            number += 1
            attempt = Attempt()
            attempt.place, attempt.fn, attempt.retry = place, fn, retry or self.retry
            if number > 1 or repeatable or until is not None:
                attempt.number, attempt.repeatable, attempt.until = number, repeatable, until
                attempt.longest = longest
            entered: Entered | None = None
            try:
                entered = await straight.enter(self, options, attempt)
                if fn is None or flow is not None:
                    assert flow is not None
                    outcome = await flow(entered)
                else:
                    given = (entered.transaction, *args) if with_transaction else args
                    outcome = (
                        await io.call(fn, given, entered.remaining()) if io.asynchronous else io.call_now(fn, given)
                    )
                left = await straight.leave(self, entered, outcome.error)
            except BaseException as error:
                if entered is not None or not isinstance(error, Exception):
                    self.interrupted(entered, attempt, error)
                    raise
                if attempt.pause is None:
                    # Not bound to a variable here: its traceback holds this frame, which would be a reference cycle.
                    return self._given_up(error, number, began)
                self.teller.tried_again(number, attempt.pause, error)
            else:
                if left is None:
                    return outcome
                if attempt.pause is None:
                    return self._given_up(left, number, began)
                self.teller.tried_again(number, attempt.pause, left)
            until, longest = attempt.until, attempt.longest
            await io.sleep(self.clock, attempt.pause)

    def _given_up(self, error: BaseException, attempts: int, began: float) -> Outcome[Any]:
        if attempts > 1:
            spent = self.clock.monotonic() - began
            error.add_note(f"reliakit: gave up after {attempts} attempts in {spent:.3f} s")
        return Outcome(error=error)

    async def own(
        self, options: TransactionOptions, flow: Callable[[Entered], Awaitable[T]], until: float | None = None
    ) -> T:
        """Run a flow of this package as `run` does the caller's code; return its result, or raise its error."""
        contained = partial(attempt_async, flow)
        outcome = await self.run(options, None, None, (), with_transaction=False, flow=contained, until=until)
        return cast("T", outcome.unwrap())

    def _timed_out(self, work: Work) -> TransactionTimeoutError:
        if work.session is not None:
            return work.session.timed_out()
        return TransactionTimeoutError(
            f"[{self.name}] the transaction's time was spent while it looked for a connection", name=self.name
        )

    async def _leave_outermost(
        self, entered: Entered, error: BaseException | None, answer: Answer | None
    ) -> BaseException | None:
        work, transaction, session = entered.work, entered.transaction, entered.work.session
        assert entered.frame is not None
        pop(entered.frame)
        if session is None:
            return await self._leave_unbegun(work, transaction, error)
        interrupt: BaseException | None = None
        try:
            if error is None and answer is None:
                error = self._objection(work, transaction, session)
            work.sqlstate, out_of_hand = session.cut_with, session.ended
            if out_of_hand and error is not None:
                ending.tell_out_of_hand(work, error)
            if answer is not None:
                error = ending.judge(work, session, answer, gone=False)
            elif error is not None or transaction.deliberate or work.bare:
                error = ending.as_timeout(session, error)
                if work.bare and error is None:
                    work.verdict = "committed"
                interrupt = await ending.rollback(session)
            else:
                error = await ending.commit(work, session)
        finally:
            transaction.finished = session.ended = True
            statements, failed, lost = session.statements, session.failed, not session.alive
            unsent, session.held = session.held is not None, None
            late_interrupt = await self.give_back(work)
        interrupt = interrupt or late_interrupt
        if interrupt is not None and not ending.is_interrupt(error):
            error = ending.with_verdict(interrupt, work, error)
        verdict = work.verdict
        if error is not None:
            self.complete(error, work)
            swallowed = isinstance(error, TransactionRolledBackError) and failed in machine.CONFLICTS
            conflict = swallowed or machine.conflict_state(error) is not None
            repeatable = work.attempt.repeatable and not out_of_hand
            undecided = repeatable and verdict == "unknown"
            # Without a transaction each statement has committed by itself: a retry would repeat them.
            if (undecided or verdict == "rolled_back") and not work.bare:
                began = not (lost and (repeatable or unsent))
                self.plan_retry(work, error, began=began, conflict=conflict or undecided)
        self.teller.ended(
            work, error, verdict, statements=statements, deliberate=transaction.deliberate, began=not unsent
        )
        if verdict == "unknown" or not (work.after_commit or work.after_rollback):
            return error
        return await self._run_hooks(work, error)

    def _objection(self, work: Work, transaction: Handle, session: Session) -> BaseException | None:
        if work.owner is not owner_here():
            return TransactionUsageError(
                f"[{self.name}] a transaction of {work.owner!r} was left elsewhere, so it was rolled back",
                name=self.name,
            )
        if work.bare:
            return ending.objection_to_bare(session)
        return ending.objection_to_commit(work, transaction, session)

    async def _leave_unbegun(
        self, work: Work, transaction: Handle, error: BaseException | None
    ) -> BaseException | None:
        """End a block whose first statement was to carry BEGIN, and found no connection for it."""
        transaction.finished = True
        if error is None:
            error = TransactionRolledBackError(
                f"[{self.name}] {work.operation!r} lost its connection before it began, and the error was swallowed",
                name=self.name,
                attempts=work.attempt.number,
            )
        interrupt = await self.give_back(work)
        if interrupt is not None and not ending.is_interrupt(error):
            error = ending.with_verdict(interrupt, work)
        self.complete(error, work)
        self.plan_retry(work, error, began=False, conflict=False)
        self.teller.ended(work, error, "rolled_back", began=False)
        return await self._run_hooks(work, error)

    async def _run_hooks(self, work: Work, error: BaseException | None) -> BaseException | None:
        hooks = work.after_commit if work.verdict == "committed" else work.after_rollback
        interrupt = await self.teller.run_hooks(work, hooks) if hooks else None
        if interrupt is None or ending.is_interrupt(error):
            return error
        work.attempt.pause = None  # after a cancellation or a stop in a hook there is no retry
        return ending.with_verdict(interrupt, work)

    async def give_back(self, work: Work) -> BaseException | None:
        """Give the connection back; return a cancellation or Ctrl-C that came meanwhile."""
        first: BaseException | None = None
        while True:
            try:
                if not work.checkouts.put_back(work):
                    await work.checkouts.give_back(work)  # goes on where the last call was interrupted
            except BaseException as interrupt:  # noqa: BLE001 - the first one leaves the block
                first = first or interrupt
            else:
                return first

    def budget(self, options: TransactionOptions, now: float) -> tuple[float, float]:
        """Return until when, and how many seconds, a transaction that begins now may take."""
        seconds = self.timeout if options.timeout is None else options.timeout
        left = deadline.remaining()
        if left is not None and left < seconds:
            seconds = left
        # Also one on a connection of its own: a task is cut off with the block around it, and so is a thread's work.
        seconds = min(seconds, time_left_here())
        return now + seconds, seconds

    def plan_retry(self, work: Work, error: BaseException, *, began: bool, conflict: bool) -> None:
        """Record on the attempt whether another one follows, and after which pause."""
        attempt, now = work.attempt, self.clock.monotonic()
        if attempt.retry is not None and attempt.until is not None:
            attempt.longest = max(attempt.longest, now - work.asked - work.waited)
            attempt.pause = machine.pause_before_retry(
                error,
                began=began,
                conflict=conflict,
                attempt=attempt.number,
                retry=attempt.retry,
                spent=attempt.longest,
                left=attempt.until - now,
                random=self.clock.random,
            )

    def complete(self, error: BaseException, work: Work) -> None:
        """Add name and attempts to one of our own errors; those raised near the wire do not know the attempt."""
        if isinstance(error, TransactionError) and error.name == work.checkouts.name:
            error.name, error.attempts = self.name, error.attempts or work.attempt.number

    def _inherited(self, transaction: Handle) -> TransactionUsageError:
        return TransactionUsageError(
            f"[{self.name}] this code inherited a transaction of {transaction.work.owner!r}, and a connection cannot "
            "be shared: finish that transaction first, or use propagation=REQUIRES_NEW here",
            name=self.name,
        )
