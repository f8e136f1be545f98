"""What a database reports to its listeners, and the hooks that it runs after a transaction's end."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Any

from reliakit.core import tracking
from reliakit.core.categories import sqlstate_of
from reliakit.core.errors import TransactionTimeoutError
from reliakit.core.events import AttemptFailed, HookFailed, TransactionEnded, TransactionSlow, TransactionStarted
from reliakit.database import ending
from reliakit.database.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Emitter
    from reliakit.database.adapters import Io
    from reliakit.database.audience import Audience
    from reliakit.database.machine import Verdict
    from reliakit.database.session import Session
    from reliakit.database.work import Work

__all__ = ["Teller"]

_log = logging.getLogger("reliakit.database")
_STATUS = {"committed": "commit", "rolled_back": "rollback", "unknown": "unknown"}


class Teller:
    """Emits one database's events. Called with no lock held."""

    def __init__(
        self, emitter: Emitter, *, service: str | None, slow_after: float | None, clock: Clock, io: Io
    ) -> None:
        self._emitter = emitter
        self._service = service
        self._slow_after = inf if slow_after is None else slow_after
        self._clock = clock
        self._io = io

    def started(self, work: Work) -> None:
        """Report that BEGIN was answered, and record statements if somebody listens for slow transactions."""
        slot = None if work.lease is None else work.lease.slot
        if not work.attempt.told or slot is None:
            return
        slot.running = work.options.operation or "transaction"
        audience = work.checkouts.audience
        if not audience.is_empty:
            self.began(work, audience)

    def began(self, work: Work, audience: Audience) -> None:
        """Report a transaction to these listeners that the pool's figures show already."""
        if audience.wants_statements and self._slow_after < inf and work.session is not None:
            work.journal = work.session.journal = Journal()
        if audience.hears_start and audience.emitter.hears(TransactionStarted):
            audience.emitter.emit(
                TransactionStarted,
                service=self._service,
                operation=work.operation,
                attempt=work.attempt.number,
                isolation=work.isolation.value,
                read_only=work.options.read_only,
                wait=work.waited,
            )
        if audience.watchers:
            audience.changed()

    def committed(self, work: Work, session: Session, statements: int) -> None:
        """Report that a transaction went the straight way: first that its connection is back, then as `ended`."""
        checkouts = work.checkouts
        if not work.attempt.told:
            checkouts.tell_returned(work, session)
            return
        audience, operation, held = checkouts.audience, work.options.operation or "transaction", work.held or 0.0
        duration = session.idle_since - work.asked
        for meter in audience.meters:
            try:
                meter.committed(operation, duration, held, at_once=not work.timed)
            except Exception as error:  # noqa: BLE001 - as the spine contains its listeners
                audience.contain(meter, error)
        if audience.hears_pool or audience.watchers:
            checkouts.tell_back(audience.emitter, session, held)
        if audience.hears_end and audience.emitter.hears(TransactionEnded, "commit"):
            self._tell_end(audience.emitter, work, "commit", duration, statements=statements)
        if duration > self._slow_after:
            self._slow(work, "commit", duration)

    def ended(
        self,
        work: Work,
        error: BaseException | None,
        verdict: Verdict,
        *,
        statements: int = 0,
        deliberate: bool = False,
        began: bool = True,
    ) -> None:
        """Report that an attempt is over, and its error unless another attempt follows."""
        audience = work.checkouts.audience
        again = work.attempt.pause is not None
        if work.attempt.told and not work.bare and not audience.is_empty:
            status = _STATUS[verdict]
            if again and verdict != "unknown":  # an unknown outcome is reported whatever follows
                status = "retry"
            elif isinstance(error, TransactionTimeoutError):
                status = "timeout"
            duration = self._clock.monotonic() - work.asked
            sqlstate = None if error is None else ending.sqlstate_behind(work, error)
            audience.ended(work.operation, status, duration, sqlstate=sqlstate, deliberate=deliberate)
            if audience.hears_end and audience.emitter.hears(TransactionEnded, status):
                self._tell_end(
                    audience.emitter,
                    work,
                    status,
                    duration,
                    statements=statements,
                    sqlstate=sqlstate,
                    error_type=None if error is None else type(error).__name__,
                    deliberate=deliberate,
                    began=began,
                )
            if duration > self._slow_after:
                self._slow(work, status, duration)
        if error is not None and not again:
            tracking.report(work.checkouts.emitter, error, service=self._service)

    def _tell_end(self, emitter: Emitter, work: Work, status: str, duration: float, **found: Any) -> None:
        emitter.emit(
            TransactionEnded,
            service=self._service,
            operation=work.operation,
            attempt=work.attempt.number,
            status=status,
            duration=duration,
            wait=work.waited,
            rows=work.rows,
            transaction_id=work.transaction_id,
            hold=work.held,
            **found,
        )

    def _slow(self, work: Work, status: str, duration: float) -> None:
        emitter = work.checkouts.emitter
        if emitter.hears(TransactionSlow):
            journal = work.journal or Journal()
            emitter.emit(
                TransactionSlow,
                service=self._service,
                operation=work.operation,
                attempt=work.attempt.number,
                status=status,
                duration=duration,
                wait=work.waited,
                hold=work.held,
                slow_after=self._slow_after,
                statements=journal.statements(),
                left_out=journal.left_out,
            )

    def tried_again(self, attempt: int, pause: float, error: BaseException) -> None:
        """Report that another attempt follows."""
        if self._emitter.hears(AttemptFailed):
            self._emitter.emit(
                AttemptFailed,
                attempt=attempt,
                delay=pause,
                error_type=type(error).__name__,
                sqlstate=sqlstate_of(error),
            )

    async def run_hooks(self, work: Work, hooks: list[Callable[[], object]]) -> BaseException | None:
        """Run hooks in order, contain what they raise, and return a cancellation or Ctrl-C that came in one."""
        emitter = work.checkouts.emitter
        for hook in hooks:
            outcome = await self._io.call_hook(hook)
            error = outcome.error
            if isinstance(error, Exception):
                # The outcome of the transaction stands, whatever a hook does.
                named = getattr(hook, "__qualname__", repr(hook))
                if not emitter.hears(HookFailed):
                    _log.error("hook %s of %s failed", named, work.operation, exc_info=error)
                emitter.emit(HookFailed, operation=work.operation, hook=named, error=error)
            elif error is not None:
                return error
        return None
