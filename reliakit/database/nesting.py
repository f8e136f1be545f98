"""A block inside a running transaction: it joins the transaction, or sets a savepoint in it.

```
join   ─▶ SAVEPOINT; SET LOCAL lock_timeout ...        what the block asks for, in one round trip or none
leave  ─▶ RELEASE, or ROLLBACK TO                      and the outer block's limits again
```

A block is left with the `Entered` it was entered with, whichever block began the transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.errors import TransactionUsageError
from reliakit.database import ending, machine
from reliakit.database.frames import Frame, pop, push
from reliakit.database.machine import Step
from reliakit.database.settings import TransactionOptions, milliseconds
from reliakit.database.stopping import GRACE

if TYPE_CHECKING:
    from reliakit.database.engine import Engine
    from reliakit.database.session import Session
    from reliakit.database.transaction import Handle
    from reliakit.database.work import Work

__all__ = ["Entered", "join", "leave"]


class Entered:
    """One block that was entered: what it did, and what to restore when it is left."""

    step: Step
    transaction: Handle
    outer: Handle  # the transaction around this block
    work: Work
    # Class-level defaults, for blocks that begin a transaction of their own; the others set these.
    frame: Frame | None = None
    until: float = 0.0  # the outer block's deadline, and its length in seconds
    seconds: float = 0.0
    lock_timeout: float | None = None  # the outer block's
    savepoint: str = ""
    hooks: tuple[int, int] = (0, 0)  # how many hooks there were for a commit and for a rollback
    undone: bool = False  # whether it was a savepoint and was rolled back to

    @classmethod
    def by(cls, step: Step, transaction: Handle, work: Work) -> Entered:
        """Return the record of a block that was entered by this step."""
        entered = cls()
        entered.step, entered.work = step, work
        entered.transaction = entered.outer = transaction
        return entered

    def remaining(self) -> float:
        """Return the seconds that are left to the block."""
        return self.transaction.remaining()


async def join(engine: Engine, step: Step, options: TransactionOptions, outer: Handle) -> Entered:
    """Enter a block inside `outer`. Raises the server's error, or TransactionUsageError if it is not allowed."""
    session, work = outer.session(), outer.work
    objection = None
    if not work.bare:
        objection = machine.objection_to_join(
            options, isolation=work.isolation, read_only=work.options.read_only, deferrable=work.options.deferrable
        )
    if objection is not None:
        raise TransactionUsageError(f"[{engine.name}] {objection}", name=engine.name, attempts=work.attempt.number)
    entered = Entered.by(step, outer, work)
    entered.until, entered.seconds = session.until, session.seconds
    entered.lock_timeout = work.lock_timeout
    entered.hooks = (len(work.after_commit or ()), len(work.after_rollback or ()))
    commands: list[str] = []
    if session.held is not None and (step is Step.SAVEPOINT or options.lock_timeout is not None):
        await session.held.begin(session)
        session = outer.session()  # the session may have been replaced
    if step is Step.SAVEPOINT:
        work.savepoints += 1
        entered.savepoint = f"reliakit_{work.savepoints}"
        commands.append(f"SAVEPOINT {entered.savepoint}")
    if options.lock_timeout not in (None, work.lock_timeout):
        commands.append(_lock_timeout(options.lock_timeout))
    if commands:
        answer = await session.command("; ".join(commands).encode("ascii"), session.until)
        failed = answer.interrupt or (session.timed_out() if answer.late else answer.error)
        if failed is not None:
            raise failed
        work.lock_timeout = options.lock_timeout or work.lock_timeout
    if options.timeout is not None:
        until, seconds = engine.budget(options, engine.clock.monotonic())
        if until < session.until:
            session.until, session.seconds = until, seconds
    if step is Step.SAVEPOINT:
        entered.transaction = engine.handle(work, engine.clock, engine.name)
        entered.frame = push(engine, entered, work.owner)
    return entered


async def leave(engine: Engine, entered: Entered, error: BaseException | None) -> BaseException | None:
    """Leave a block whose code raised `error`, or nothing; return the error that must leave it, if any."""
    work, transaction, session = entered.work, entered.transaction, entered.work.session
    if entered.frame is not None:
        pop(entered.frame)
    if session is None or session.ended:
        return error
    if error is None and engine.clock.monotonic() >= session.until:
        error = session.timed_out()
    error = ending.as_timeout(session, error)
    session.until, session.seconds = entered.until, entered.seconds
    if entered.step is Step.SAVEPOINT:
        error = await _leave_savepoint(engine, entered, session, error)
        transaction.finished = True
    if work.lock_timeout != entered.lock_timeout:
        work.lock_timeout = entered.lock_timeout
        if session.alive and not session.in_failed_transaction:
            answer = await session.command(_lock_timeout(work.lock_timeout).encode("ascii"), session.until)
            error = error or answer.interrupt or answer.error
    if error is not None and not entered.undone:
        entered.outer.doomed = True
    return error


async def _leave_savepoint(
    engine: Engine, entered: Entered, session: Session, error: BaseException | None
) -> BaseException | None:
    transaction, work = entered.transaction, entered.work
    if error is None and not transaction.deliberate:
        if session.in_failed_transaction:
            error = ending.rolled_back(work, session, "a statement in it failed")
        elif transaction.doomed:
            error = ending.rolled_back(work, session, "code that joined it failed")
        else:
            answer = await session.command(f"RELEASE SAVEPOINT {entered.savepoint}".encode("ascii"), session.until)
            return answer.interrupt or ending.as_timeout(session, answer.error)
    for hooks, count in zip((work.after_commit, work.after_rollback), entered.hooks, strict=True):
        if hooks is not None:
            del hooks[count:]
    session.failed = None
    command = f"ROLLBACK TO SAVEPOINT {entered.savepoint}; RELEASE SAVEPOINT {entered.savepoint}"
    answer = await session.command(command.encode("ascii"), engine.clock.monotonic() + GRACE, GRACE)
    entered.undone = answer.error is None and not answer.broken
    if answer.interrupt is not None and not ending.is_interrupt(error):
        return answer.interrupt
    return error or answer.error


def _lock_timeout(seconds: float | None) -> str:
    return f"SET LOCAL lock_timeout = {'DEFAULT' if seconds is None else milliseconds(seconds)}"
