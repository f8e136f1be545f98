"""How a transaction begins, whatever it takes: a queue, a new connection, a replica, a replacement for a dead one.

```
begin ─▶ connection ─▶ BEGIN; SET LOCAL ... ─▶ entered
            ▲               │ the connection was dead
            └───────────────┘
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.errors import TransactionTimeoutError
from reliakit.database import ending, machine
from reliakit.database.frames import push
from reliakit.database.holding import Held
from reliakit.database.machine import BARE, BEGIN, Step
from reliakit.database.nesting import Entered
from reliakit.database.places import owner_here
from reliakit.database.replicas import FAILURES, moment
from reliakit.database.settings import milliseconds
from reliakit.database.work import Work

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

    from reliakit.database.answers import Answer
    from reliakit.database.engine import Engine
    from reliakit.database.replicas import Trial
    from reliakit.database.settings import TransactionOptions
    from reliakit.database.work import Attempt
    from reliakit.resilience.verdict import Verdict as TrialVerdict

__all__ = ["begin", "begin_after", "send"]


async def begin(engine: Engine, step: Step, options: TransactionOptions, attempt: Attempt) -> Entered:
    """Take a connection and open a transaction on it, or none if the block is to be bare."""
    asked = engine.clock.monotonic()
    until, seconds = engine.budget(options, asked)
    if attempt.until is None:
        attempt.until = until
    work = Work.of(
        options,
        isolation=options.isolation or engine.isolation,
        lock_timeout=engine.lock_timeout if options.lock_timeout is None else options.lock_timeout,
        owner=owner_here(),
        attempt=attempt,
        asked=asked,
        bare=step is BARE,
        checkouts=engine.checkouts,
    )
    try:
        if seconds <= 0:  # a fast server might answer BEGIN all the same
            raise TransactionTimeoutError(
                f"[{engine.name}] no time is left to begin a transaction", name=engine.name, seconds=seconds
            )
        trial = engine.replicas.trial(work) if work.options.read_only else None
        if trial is None or not await _begin_on_replica(engine, work, trial, attempt.until, seconds):
            if not engine.checkouts.claim(work, attempt.until, seconds):
                await engine.checkouts.fetch(work, attempt.until, seconds)
            if options.pipeline and not work.bare and _may_hold(engine, work, attempt.until):
                assert work.session is not None
                work.session.held = Held(engine, work)
            elif not work.bare:
                await send(engine, work, attempt.until)
    except BaseException as error:
        await _did_not_begin(engine, work, error)
        raise
    return _entered(engine, step, work)


async def begin_after(
    engine: Engine, work: Work, outcome: list[PGresult] | BaseException, mark: bytes | None
) -> Entered:
    """Begin a transaction whose BEGIN was sent already, with the answer to it."""
    session, until = work.session, work.attempt.until
    assert session is not None
    assert until is not None
    try:
        answer = await session.answer_to(outcome, until)
        await send(engine, work, until, sent=(answer, mark))
    except BaseException as error:
        await _did_not_begin(engine, work, error)
        raise
    return _entered(engine, BEGIN, work)


async def send(
    engine: Engine,
    work: Work,
    within: float,
    *,
    replaceable: bool = True,
    sent: tuple[Answer, bytes | None] | None = None,
) -> None:
    """Open the transaction. A pooled connection that proves dead is replaced silently, a limited number of times.

    Args:
        engine: The database's engine.
        work: The transaction.
        within: Until when BEGIN must be answered.
        replaceable: Whether the connection may be replaced.
        sent: The answer to a BEGIN that was sent already, and its mark.
    """
    replacements = work.checkouts.size + 1 if replaceable else 0
    while True:
        session = work.session
        assert session is not None
        if sent is None:
            mark = session.next_mark()
            limit = milliseconds(session.until - engine.clock.monotonic())
            command = machine.begin_command(
                work.isolation, work.options.read_only, work.options.deferrable, limit, work.lock_timeout, mark
            )
            answer = await session.command(command, within)
        else:
            (answer, mark), sent = sent, None
        if answer.interrupt is not None:
            raise answer.interrupt
        if answer.late:
            raise session.timed_out() from answer.error
        if answer.error is None:
            session.began(mark)
            return
        if not answer.broken or session.fresh or replacements == 0:
            raise answer.error
        replacements -= 1
        await work.checkouts.replace(work, within)


async def _begin_on_replica(engine: Engine, work: Work, trial: Trial, until: float, seconds: float) -> bool:
    """Begin on a replica and return True, or leave the work as it was and return False."""
    within = moment(engine.clock.monotonic(), until)
    work.checkouts = trial.checkouts
    verdict: TrialVerdict = "ignored"
    try:
        await trial.checkouts.take(work, within, seconds)
        assert work.session is not None
        work.session.until = until
        await send(engine, work, within)
        verdict = "success"
    except FAILURES as error:
        if work.lease is not None and work.lease.slot is not None:
            verdict = "failure"  # otherwise it was only busy
        if engine.clock.monotonic() >= until:
            raise
        trial.failed(error, work.operation)
    finally:
        trial.settle(verdict)
    if verdict == "success":
        return True
    interrupt = await _withdraw(engine, work)
    if interrupt is not None:
        raise interrupt
    work.checkouts = engine.checkouts
    return False


def _entered(engine: Engine, step: Step, work: Work) -> Entered:
    transaction = engine.handle(work, engine.clock, engine.name)
    entered = Entered.by(step, transaction, work)
    entered.frame = push(engine, entered, work.owner)
    if not work.bare and work.session is not None and work.session.held is None:
        engine.teller.started(work)
    return entered


def _may_hold(engine: Engine, work: Work, until: float) -> bool:
    """Return whether BEGIN may wait for the first statement: not when its answer would be that no time is left."""
    return work.session is not None and work.session.may_hold and engine.clock.monotonic() < until


async def _did_not_begin(engine: Engine, work: Work, error: BaseException) -> None:
    """Give back what was taken for a transaction that never ran, and report how it ended."""
    interrupt = await _withdraw(engine, work)
    engine.plan_retry(work, error, began=False, conflict=False)
    engine.complete(error, work)
    engine.teller.ended(work, error, "rolled_back", began=False)
    if interrupt is not None and isinstance(error, Exception):
        raise interrupt from error


async def _withdraw(engine: Engine, work: Work) -> BaseException | None:
    """Give back what was taken; return a cancellation or Ctrl-C that came meanwhile."""
    interrupt: BaseException | None = None
    try:
        if work.session is not None:
            interrupt = await ending.rollback(work.session)
    finally:
        interrupt = await engine.give_back(work) or interrupt
    return interrupt
