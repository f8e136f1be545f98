"""The straight way through a transaction: a connection is free, BEGIN and COMMIT are answered, nothing is unusual.

```
enter ─▶ slot ─▶ BEGIN; SET LOCAL ... ─▶ ( the caller's code ) ─▶ COMMIT ─▶ slot back ─▶ leave
  │                    │                                  │          │
  └── anything else ───┴──────────── engine ──────────────┴──────────┘
```

Nearly every transaction is like this, so it goes through two functions where the engine takes thirty. What thirty
compute is next to nothing; but if client and server share a core, each pushes the other out of the processor's
caches, and every function costs half a microsecond to fetch again: together 12 of 85 microseconds. Anything unusual
is left to the engine, which handles every case: before anything was done, or with the answer to what was sent.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from psycopg import generators, pq

from reliakit.core import deadline
from reliakit.database.driver import INTERVAL
from reliakit.database.frames import Frame, enter_frame, innermost
from reliakit.database.gate import Lease
from reliakit.database.machine import BEGIN, MARKER, OTHER_MARK, begin_command
from reliakit.database.nesting import Entered
from reliakit.database.places import owner_here, place_here
from reliakit.database.stopping import GRACE
from reliakit.database.work import Attempt, Work

if TYPE_CHECKING:
    from reliakit.database.engine import Engine
    from reliakit.database.settings import TransactionOptions

__all__ = ["enter", "leave"]

_OPEN = int(pq.TransactionStatus.INTRANS)  # see session
_IDLE = int(pq.TransactionStatus.IDLE)
_DONE = int(pq.ExecStatus.COMMAND_OK)
_LONGEST = 1e6  # seconds: beyond it the server's settings end


async def enter(engine: Engine, options: TransactionOptions, attempt: Attempt) -> Entered:
    """Begin a transaction, or do whatever else a block asks for, see `Engine.enter`."""
    clock, checkouts = engine.clock, engine.checkouts
    if (
        not options.ordinary
        or innermost() is not None
        or (options.read_only and engine.replicas)
        or checkouts.is_parents
    ):
        return await engine.enter(options, attempt)
    asked = clock.monotonic()
    seconds = engine.timeout if options.timeout is None else options.timeout
    if deadline.current.get() is not None:
        left = deadline.remaining()
        if left is not None and left < seconds:
            seconds = left
    until = attempt.until or asked + seconds
    gate, owner = checkouts.gate, owner_here()
    lease = attempt.lease = Lease(gate, owner, asked, attempt.place or place_here(attempt.fn, 2))
    session = lease.slot.session if gate.take(lease) and lease.slot is not None else None
    if (
        session is None
        or not session.straight
        or session.broken
        or session.pgconn.transaction_status != _IDLE
        or session.connection.lock.locked()
        or asked >= checkouts.next_sweep
        or asked - session.born > checkouts.max_lifetime
        or not 0 < until - asked < _LONGEST
    ):
        lease.leave()
        attempt.lease = None
        return await engine.enter(options, attempt)
    attempt.until = until
    work = Work()
    work.options, work.isolation = options, options.isolation or engine.isolation
    work.lock_timeout = engine.lock_timeout if options.lock_timeout is None else options.lock_timeout
    work.owner, work.attempt, work.asked, work.checkouts = owner, attempt, asked, checkouts
    work.lease, work.session = lease, session
    # As `reset`; what is missing here was left in its initial state when the last transaction ended.
    session.until, session.seconds, session.statements, session.failed = until, seconds, 0, None
    session.ended = session.shared = False
    session.journal = None
    if checkouts.audience.hears_pool:
        checkouts.tell_granted(work)
    pgconn = session.pgconn
    mark = OTHER_MARK.get(pgconn.parameter_status(MARKER))
    limit = ceil((until - asked) * 1000)
    try:
        pgconn.send_query(
            begin_command(work.isolation, options.read_only, options.deferrable, limit, work.lock_timeout, mark)
        )
        driven = engine.io.drive(generators.execute(pgconn), pgconn.socket, INTERVAL, until - asked)
        results = await driven if engine.io.asynchronous else driven
    except BaseException as reason:  # noqa: BLE001 - raised by the engine, unless the connection can be replaced
        return await engine.enter_after(work, reason, mark)
    if results[-1].status != _DONE or pgconn.parameter_status(MARKER) != mark:
        return await engine.enter_after(work, results, mark)
    session.inside, session.mark = True, mark
    transaction = engine.handle(work, clock, engine.name)
    entered = Entered()
    entered.step, entered.work = BEGIN, work
    entered.transaction = entered.outer = transaction
    frame = entered.frame = Frame(entered)  # as `push`, when there is no other frame
    frame.database, frame.owner, frame.outer = engine, owner, None
    enter_frame(frame)
    audience = checkouts.audience
    if attempt.told and lease.slot is not None:
        lease.slot.running = options.operation or "transaction"
        if not audience.is_empty:
            engine.teller.began(work, audience)
    return entered


async def leave(engine: Engine, entered: Entered, error: BaseException | None) -> BaseException | None:
    """End a block whose code raised `error`, or nothing, see `Engine.leave`."""
    work, transaction = entered.work, entered.transaction
    session, frame = work.session, entered.frame
    if (
        error is not None
        or entered.step is not BEGIN
        or session is None
        or frame is None
        or transaction.doomed
        or transaction.deliberate
        or work.owner is not owner_here()
    ):
        return await engine.leave(entered, error)
    pgconn, until, now = session.pgconn, session.until, engine.clock.monotonic()
    if (
        now >= until
        or session.ended
        or session.held is not None
        or not session.straight
        or pgconn.transaction_status != _OPEN
        or pgconn.parameter_status(MARKER) != session.mark
        or session.connection.lock.locked()
        or (session.poll is not None and session.poll.poll(0))  # the server may have hung up
    ):
        return await engine.leave(entered, error)
    if innermost() is frame:
        enter_frame(frame.outer)
    session.inside, work.verdict = False, "unknown"
    try:
        pgconn.send_query(b"COMMIT")
        driven = engine.io.drive(generators.execute(pgconn), pgconn.socket, INTERVAL, until - now)
        results = await driven if engine.io.asynchronous else driven
    except BaseException as reason:  # noqa: BLE001 - leaves the block, once it is known what became of COMMIT
        return await engine.leave_after(entered, await session.answer_to(reason, until, GRACE))
    lease, checkouts = work.lease, work.checkouts
    if (
        results[-1].command_status != b"COMMIT"
        or work.after_commit is not work.after_rollback
        or lease is None
        or lease.gate.closed
        or not session.owned
        or session.broken
        or pgconn.transaction_status != _IDLE
        or pgconn.pipeline_status
    ):
        return await engine.leave_after(entered, await session.answer_to(results, until, GRACE))
    work.verdict = "committed"
    transaction.finished = session.ended = True
    is_heard, statements = not checkouts.audience.is_empty, session.statements
    if is_heard or now - lease.since > checkouts.leak_after:
        checkouts.note_return(work, session, lease)
    else:
        session.fresh, session.idle_since = False, now
    lease.gate.leave(lease)
    work.session = work.lease = work.attempt.lease = None
    if is_heard:
        engine.teller.committed(work, session, statements)
    return None
