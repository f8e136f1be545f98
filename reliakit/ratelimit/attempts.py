"""The part of a login guard that asks its store, raises refusals and emits events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reliakit.core.errors import LoginBlockedError
from reliakit.core.events import SecurityNoticed
from reliakit.ratelimit.limit import Decision
from reliakit.ratelimit.names import hidden
from reliakit.ratelimit.outage import GuardedStore, StandInAttempt
from reliakit.stores.attempts import AttemptOp, Claim
from reliakit.stores.protocol import FOREVER

if TYPE_CHECKING:
    from reliakit.core.spine import Emitter
    from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptRules, AttemptStore

__all__ = ["Attempts", "wait_of"]


class Attempts:
    """The attempts of one guard under one set of rules. Safe from threads and tasks, if the store is.

    Args:
        store: A store that cannot fail, or a guarded one.
        rules: The rules.
        counted: What counts as a failure, as events call it. A token has no account: it is its source that fails.
        emitter: Emits the guard's events.
        service: The service's name, for events.
    """

    def __init__(
        self,
        store: AttemptStore | GuardedStore,
        rules: AttemptRules,
        *,
        counted: Literal["failed_login", "invalid_token"],
        emitter: Emitter,
        service: str | None,
    ) -> None:
        self._store = store
        self._rules = rules
        self._counted: Literal["failed_login", "invalid_token"] = counted
        self._emitter = emitter
        self._service = service

    @property
    def name(self) -> str:
        """The guard's name."""
        return self._emitter.name

    def ask(self, op: AttemptOp, attempt: Attempt) -> AttemptAnswer:
        """Return the answer of the store, or of its stand-in."""
        return self._store.attempt(op, self._rules, attempt)

    async def aask(self, op: AttemptOp, attempt: Attempt) -> AttemptAnswer:
        """Return the answer of the store, or of its stand-in; the twin of `ask` for tasks."""
        return await self._store.aattempt(op, self._rules, attempt)

    def settle(self, op: AttemptOp, attempt: Attempt, reserved: AttemptAnswer) -> None:
        """Tell the store what became of a reservation."""
        owed = self._locally(op, attempt, reserved)
        if owed is not None:
            self.ask(op, owed)

    async def asettle(self, op: AttemptOp, attempt: Attempt, reserved: AttemptAnswer) -> None:
        """Tell the store what became of a reservation; the twin of `settle` for tasks."""
        owed = self._locally(op, attempt, reserved)
        if owed is not None:
            await self.aask(op, owed)

    def _locally(self, op: AttemptOp, attempt: Attempt, reserved: AttemptAnswer) -> Attempt | None:
        """Settle with the stand-in if it granted the reservation; return what the store itself must still be told."""
        if not isinstance(reserved, StandInAttempt):
            return attempt._replace(claim=reserved.claim)
        assert isinstance(self._store, GuardedStore)  # only a guarded store gives such answers
        self._store.local.attempt(op, self._rules, attempt._replace(claim=reserved.claim))
        # The store never counted this attempt, but it must learn of a success.
        return attempt._replace(claim=Claim.NOTHING) if op is AttemptOp.SUCCEED else None

    def passed(self, answer: AttemptAnswer, source: str) -> AttemptAnswer:
        """Return the answer if it lets the attempt through.

        Raises:
            LoginBlockedError: It refuses the attempt.
        """
        if answer.admitted:
            return answer
        degraded = isinstance(answer, StandInAttempt)
        wait = wait_of(answer)
        if self._emitter.hears(SecurityNoticed):
            binding = "source" if answer.binding and self._counted == "invalid_token" else answer.binding
            fields = {
                "guard": self.name,
                "reason": self._counted,
                "blocked_by": binding or None,
                "retry_after": wait,
                "degraded": degraded,
            }
            self._emitter.emit(
                SecurityNoticed, event="rate_limit", source=source, service=self._service, fields=fields
            )
        raise self._refusal(wait, degraded=degraded)

    def failed(self, source: str, **fields: object) -> None:
        """Tell listeners of a failure."""
        if self._emitter.hears(SecurityNoticed):
            self._emitter.emit(
                SecurityNoticed,
                event=self._counted,
                source=source,
                service=self._service,
                fields={"guard": self.name, **fields},
            )

    def failed_login(self, source: str, account: str, key: str | None, failures: int) -> None:
        """Tell listeners of a wrong password. Of the account they get its first letter and a tag, never the name."""
        # The tag is part of an HMAC: it tells accounts apart in the log without naming any.
        self.failed(source, account=hidden(account), account_tag=(key or "")[:12], failures=failures)

    def _refusal(self, wait: float | None, *, degraded: bool) -> LoginBlockedError:
        when = "after a reset" if wait is None else f"in {wait:.3g} s"
        many = "invalid tokens" if self._counted == "invalid_token" else "failures"
        why = "cannot reach its store" if degraded else f"has seen too many {many}"
        seconds = 0.0 if wait is None else wait
        return LoginBlockedError(
            f"login guard {self.name!r} {why}: the next attempt can be made {when}",
            name=self.name,
            retry_after=wait,
            decision=Decision(
                allowed=False,
                limit=self._rules.free,
                remaining=0,
                retry_after=seconds,
                reset_after=seconds,
                degraded=degraded,
            ),
            reason=self._counted,
        )

    def __repr__(self) -> str:
        return repr(self._store)


def wait_of(answer: AttemptAnswer) -> float | None:
    """Return the seconds that an answer asks to wait, or None if only a reset helps."""
    return None if answer.wait >= FOREVER else answer.wait / 1e9
