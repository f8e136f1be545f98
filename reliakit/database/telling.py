"""What a database tells its listeners, and the hooks that it runs after the end."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING

from reliakit.core import tracking
from reliakit.core.categories import sqlstate_of
from reliakit.core.errors import TransactionTimeoutError
from reliakit.core.events import AttemptFailed, HookFailed, TransactionEnded, TransactionSlow, TransactionStarted
from reliakit.database.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Emitter
    from reliakit.database.adapters import Io
    from reliakit.database.machine import Verdict
    from reliakit.database.work import Work

__all__ = ["Teller"]

_log = logging.getLogger("reliakit.database")
_STATUS = {"committed": "commit", "rolled_back": "rollback", "unknown": "unknown"}


class Teller:
    """One database's mouth. Called with no lock held."""

    def __init__(
        self, emitter: Emitter, *, service: str | None, slow_after: float | None, clock: Clock, io: Io
    ) -> None:
        self._emitter = emitter
        self._service = service
        self._slow_after = inf if slow_after is None else slow_after
        self._clock = clock
        self._io = io

    def started(self, work: Work) -> None:
        """Tell that BEGIN was answered, and have statements noted if somebody wants to hear of slow transactions."""
        emitter = work.checkouts.emitter
        if not emitter.is_heard or not work.attempt.told:
            return
        if self._slow_after < inf and work.session is not None and emitter.hears(TransactionSlow):
            work.journal = Journal()
            work.session.note_in(work.journal)
        if emitter.hears(TransactionStarted):
            emitter.emit(
                TransactionStarted,
                service=self._service,
                operation=work.operation,
                attempt=work.attempt.number,
                isolation=work.isolation.value,
                read_only=work.options.read_only,
                wait=work.waited,
            )

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
        """Tell that an attempt is over, and report its error unless another attempt follows."""
        emitter = work.checkouts.emitter
        again = work.attempt.pause is not None
        if error is None and not emitter.is_heard:
            return
        is_told = work.attempt.told and not work.bare
        if is_told and (emitter.hears(TransactionEnded) or emitter.hears(TransactionSlow)):
            status = _STATUS[verdict]
            if again and verdict != "unknown":  # an unknown outcome is told, whatever follows
                status = "retry"
            elif isinstance(error, TransactionTimeoutError):
                status = "timeout"
            duration = self._clock.monotonic() - work.asked
            emitter.emit(
                TransactionEnded,
                service=self._service,
                operation=work.operation,
                attempt=work.attempt.number,
                status=status,
                duration=duration,
                wait=work.waited,
                statements=statements,
                rows=work.rows,
                sqlstate=None if error is None else sqlstate_of(error),
                error_type=None if error is None else type(error).__name__,
                deliberate=deliberate,
                began=began,
                transaction_id=work.transaction_id,
                hold=work.held,
            )
            if duration > self._slow_after:
                self._slow(work, status, duration)
        if error is not None and not again:
            tracking.report(emitter, error, service=self._service)

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
        """Tell that another attempt follows."""
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
