"""A guard for logins: it slows guessing down and tells nobody whose password is being guessed.

```
with guard.attempt(account=..., source=..., device=...) as attempt:     reserved as a failure, in one step, or refused
    user = verify(...)                                                  only now is the password looked at
    attempt.success(user.id) if user else attempt.failure()             without a verdict it stays a failure
```

The counting is in `reliakit.stores.attempts`; this module adds names, verdicts and events. After the design notes of
NIST SP 800-63B section 5.2.2 (failures in a row stop an account), and OWASP's device cookies (someone who has logged
in from a device before does not suffer for what others try).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self, cast

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.core.spine import Emitter
from reliakit.ratelimit.attempts import Attempts, wait_of
from reliakit.ratelimit.limit import Limit, limit_of
from reliakit.ratelimit.names import Names
from reliakit.ratelimit.outage import GuardedStore, OnStoreError, StandInAttempt
from reliakit.stores.attempts import Attempt, AttemptAnswer, AttemptOp, AttemptRules, Claim
from reliakit.stores.memory import MemoryStore

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.spine import Listener
    from reliakit.stores.attempts import AttemptStore
    from reliakit.stores.protocol import Store

__all__ = ["LoginAttempt", "LoginGuard", "LoginStatus"]

_DAY = 86_400 * 10**9
# How long is remembered: the failures of an account and of a pair after their last wait, a device after its success.
_KEEP, _PAIR_KEEP, _DEVICE_KEEP = 30 * _DAY, _DAY, 90 * _DAY
_NEVER = 2**62
_CENTURY = 36_525 * 86_400.0


@dataclass(frozen=True, slots=True)
class LoginStatus:
    """How an account, a source or both stand with a `LoginGuard`.

    Attributes:
        blocked: Whether an attempt would be refused now.
        blocked_by: Which count blocks longest, or None.
        failures: Failures of the account, or of its known device; attempts without a verdict are included.
        retry_after: Seconds until an attempt would be let through; None for a stopped account.
        stopped: Whether only `reset()` helps.
        device_known: Whether the device has logged in to the account before.
        degraded: Whether a stand-in answered because the store did not.
    """

    blocked: bool
    blocked_by: Literal["pair", "account", "source", "device"] | None
    failures: int
    retry_after: float | None
    stopped: bool
    device_known: bool
    degraded: bool


class LoginAttempt:
    """One attempt to log in, made by `LoginGuard.attempt` and used as the `with` block of one thread or task.

    Attributes:
        user_id: What `success()` was given.
    """

    __slots__ = ("_account", "_answer", "_attempts", "_keys", "_source", "_verdict", "user_id")

    def __init__(self, attempts: Attempts, keys: Attempt, account: str, source: str) -> None:
        self._attempts = attempts
        self._keys = keys
        self._account = account
        self._source = source
        self._answer: AttemptAnswer | None = None
        self._verdict = ""
        self.user_id: object = None

    @property
    def failures(self) -> int:
        """Failures of the account since its last success, this attempt included; 0 before the block is entered."""
        return 0 if self._answer is None else self._answer.failures

    def success(self, user_id: object = None) -> None:
        """Say that the password was right.

        The account's failures from this source are forgotten, and the device becomes known. The store is told at the
        end of the block. Failures of the source with other accounts stay counted.

        Args:
            user_id: Kept as `user_id`, for code that holds the attempt.

        Raises:
            ConfigurationError: Called outside of the block, or after another verdict.
        """
        self._judge("success")
        self.user_id = user_id

    def failure(self) -> None:
        """Say that the password was wrong. The failure is counted already; this call reports it to listeners.

        Raises:
            ConfigurationError: Called outside of the block, or after another verdict.
        """
        self._judge("failure")
        self._attempts.failed_login(self._source, self._account, self._keys.account, self.failures)

    def cancel(self) -> None:
        """Take the counted failure back: no password was checked, through no fault of the client's.

        Never call this because the client went away: hanging up before the answer would make guesses free.

        Raises:
            ConfigurationError: Called outside of the block, or after another verdict.
        """
        self._judge("cancel")

    def _judge(self, verdict: str) -> None:
        if self._answer is None or self._verdict:
            state = f"has its verdict, {self._verdict}," if self._verdict else "has not begun"
            raise ConfigurationError(f"this attempt {state}: give one verdict, inside its `with` block")
        self._verdict = verdict

    def _begin(self) -> None:
        if self._answer is not None or self._verdict:
            raise ConfigurationError("an attempt is for one block: call attempt() again for the next one")

    def _end(self) -> tuple[AttemptOp, Attempt, AttemptAnswer] | None:
        """Return what to tell the store, or None if the reservation stands as a failure."""
        answer, self._answer = self._answer, None
        self._verdict = self._verdict or "none"
        op = {"success": AttemptOp.SUCCEED, "cancel": AttemptOp.CANCEL}.get(self._verdict)
        return None if op is None or answer is None else (op, self._keys, answer)

    def __enter__(self) -> Self:
        self._begin()
        self._answer = self._attempts.passed(self._attempts.ask(AttemptOp.RESERVE, self._keys), self._source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        step = self._end()
        if step is not None:
            self._attempts.settle(*step)

    async def __aenter__(self) -> Self:
        self._begin()
        self._answer = self._attempts.passed(await self._attempts.aask(AttemptOp.RESERVE, self._keys), self._source)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        step = self._end()
        if step is not None:
            await self._attempts.asettle(*step)

    def __repr__(self) -> str:
        state = self._verdict or ("not begun" if self._answer is None else "reserved")
        return f"<LoginAttempt of {self._attempts.name!r}, {state}>"


class LoginGuard:
    """Slow down anyone who guesses passwords, without locking out the owners of the accounts.

    ```python
    guard = LoginGuard()

    with guard.attempt(account=email, source=client_address, device=device_cookie) as attempt:  # or async with
        user = verify(email, password)          # runs only if the attempt was let through
        attempt.success(user.id) if user else attempt.failure()
    ```

    Each attempt is counted as a failure before its password is looked at, in one round trip to the store, so guesses
    in parallel get exactly `free_attempts`. After those, the next attempt has to wait `base_delay`, and each further
    failure doubles the wait, up to `max_delay`. An attempt that comes too early raises `LoginBlockedError` with the
    wait; its password is not looked at, and it does not make the wait longer. The guard counts

    - the account, whoever tries it; after `stop_after` failures in a row it is stopped until `reset()`,
    - the pair of account and source, which keeps its failures when the account logs in from elsewhere,
    - the accounts that begin to fail from one source; no success takes those back,
    - instead of all three, a device from which this account has logged in before: its owner is not blocked by what
      others try.

    An attempt that is left without a verdict (after an exception or a cancellation) stays counted as a failure. One
    guard is safe for any mix of threads and tasks.

    Args:
        store: Where failures are counted; None for a `MemoryStore` of its own.
        secret: Key of the HMAC under which accounts, sources and devices are stored: best 32 random bytes, the same
            in every process that shares the store. None draws a random one, which only suits a store in this process.
        free_attempts: How many failures cause no wait.
        base_delay: Seconds that the first attempt after those has to wait.
        max_delay: Seconds that an attempt has to wait at most.
        on_store_error: What decides while a shared store does not answer: "closed" lets nobody log in, "open" lets
            everybody try, "local" counts in this process.
        name: Names the guard in errors and events, and prefixes its keys in a shared store.
        source_limit: How many accounts may begin to fail from one source.
        stop_after: How many failures in a row stop an account.
        store_timeout: Seconds that one decision of a shared store may take.
        service: The service's name, for events.
        listeners: Callables that receive this guard's events.
        clock: What drives a `MemoryStore` that was given no clock of its own.

    Raises:
        ConfigurationError: A setting is wrong; a shared store without a secret, or one that cannot count attempts.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        secret: str | bytes | None = None,
        free_attempts: int = 5,
        base_delay: float = 1.0,
        max_delay: float = 900.0,
        on_store_error: OnStoreError = "closed",
        name: str = "login",
        source_limit: str | Limit = "20/h",
        stop_after: int = 100,
        store_timeout: float = 0.25,
        service: str | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name: str = checks.named("name", name)
        rules = _rules(name, free_attempts, base_delay, max_delay, stop_after, source_limit)
        self._shown = (
            f"free_attempts={free_attempts}, base_delay={base_delay:g}, max_delay={max_delay:g}, "
            f"source_limit={str(source_limit)!r}, stop_after={stop_after}, on_store_error={on_store_error!r}"
        )
        checks.choice("on_store_error", on_store_error, ("local", "open", "closed"))
        checks.seconds("store_timeout", store_timeout)
        emitter = Emitter(name, listeners, clock)
        kept = MemoryStore() if store is None else _counting(store)
        self._names = Names(_key(secret, kept))
        if isinstance(kept, MemoryStore):
            kept.follow(clock)
        asked: AttemptStore | GuardedStore = kept
        if type(kept) is not MemoryStore:  # which cannot fail; a subclass of it can
            asked = GuardedStore(
                cast("Store", kept),
                on_error=on_store_error,
                timeout=store_timeout,
                burst=free_attempts,
                emitter=emitter,
                clock=clock,
            )
        self._logins = Attempts(asked, rules, counted="failed_login", emitter=emitter, service=service)
        # A source is never stopped for good: other users may share its address.
        of_tokens = replace(rules, space=f"{rules.space} tokens", stop=_NEVER)
        self._tokens = Attempts(asked, of_tokens, counted="invalid_token", emitter=emitter, service=service)

    def attempt(self, *, account: str, source: str, device: str | None = None) -> LoginAttempt:
        """Return an attempt, to be used as a `with` or `async with` block that raises if the attempt is refused.

        Args:
            account: Who the user claims to be, such as an e-mail address. Case, width and spaces around it make no
                difference. Use it for unknown accounts too, so that they look like known ones.
            source: Where the request comes from, such as `client_ip` tells it. IPv6 counts as its /64.
            device: What only the user's device knows, such as a random text in a long-lived cookie; None for none.

        Raises:
            ConfigurationError: An argument is empty or not text.
            LoginBlockedError: On entering the block: there were too many failures. `retry_after` says how long to
                wait, and is None for an account that is stopped.
        """
        keys = self._names.attempt(account, source, device)
        return LoginAttempt(self._logins, keys, account, source)

    def token_failed(self, *, source: str) -> None:
        """Count an invalid token, such as a forged or expired one, against the source it came from.

        Valid tokens need not be reported. The numbers set for logins hold here too, with separate counts.

        Args:
            source: Where the token came from.

        Raises:
            LoginBlockedError: Too many invalid tokens came from there.
        """
        self._tokens.failed(source)
        self._tokens.passed(self._tokens.ask(AttemptOp.RESERVE, self._names.token(source)), source)

    async def atoken_failed(self, *, source: str) -> None:
        """Count an invalid token; the twin of `token_failed` for tasks."""
        self._tokens.failed(source)
        self._tokens.passed(await self._tokens.aask(AttemptOp.RESERVE, self._names.token(source)), source)

    def status(
        self, *, account: str | None = None, source: str | None = None, device: str | None = None
    ) -> LoginStatus:
        """Return how an account, a source or both stand, and change nothing. One round trip.

        Args:
            account: As it was given to `attempt`.
            source: As it was given to `attempt`.
            device: A device, to see how it stands with the account.

        Raises:
            ConfigurationError: Neither was given.
        """
        return _status(self._logins.ask(AttemptOp.LOOK, self._names.some(account, source, device)))

    async def astatus(
        self, *, account: str | None = None, source: str | None = None, device: str | None = None
    ) -> LoginStatus:
        """Return how an account, a source or both stand; the twin of `status` for tasks."""
        return _status(await self._logins.aask(AttemptOp.LOOK, self._names.some(account, source, device)))

    def reset(self, *, account: str | None = None, source: str | None = None) -> None:
        """Forget the failures of an account, wherever they came from, and those of a source. One round trip.

        Known devices stay known.

        Args:
            account: As it was given to `attempt`.
            source: As it was given to `attempt`.

        Raises:
            ConfigurationError: Neither was given.
        """
        self._logins.ask(AttemptOp.RESET, self._names.some(account, source, None))

    async def areset(self, *, account: str | None = None, source: str | None = None) -> None:
        """Forget the failures of an account and of a source; the twin of `reset` for tasks."""
        await self._logins.aask(AttemptOp.RESET, self._names.some(account, source, None))

    def __repr__(self) -> str:
        return f"<LoginGuard {self.name!r} {self._shown}, store={self._logins!r}>"


def _rules(  # noqa: PLR0917 - the guard's settings that say how it counts
    name: str, free: int, base_delay: float, max_delay: float, stop: int, source_limit: str | Limit
) -> AttemptRules:
    checks.count("free_attempts", free)
    base, cap = checks.seconds("base_delay", base_delay), checks.seconds("max_delay", max_delay)
    if cap > _CENTURY:
        raise ConfigurationError(f"max_delay must be at most a century, got {max_delay!r}")
    if cap < base:
        raise ConfigurationError(f"max_delay must be at least base_delay, got {max_delay!r} and {base_delay!r}")
    checks.count("stop_after", stop)
    limit = limit_of("source_limit", source_limit)
    if limit.algorithm != "gcra":
        raise ConfigurationError(f"source_limit must be a limit by gcra, got {limit}")
    rule = limit.rule
    written = f"{free}:{base:g}:{cap:g}:{stop}:{rule.limit}:{rule.period}:{rule.burst}"
    return AttemptRules(
        space=f"v1:attempts:{written}:{name}",
        free=free,
        base=round(base * 1e9),
        cap=round(cap * 1e9),
        stop=stop,
        keep=_KEEP,
        pair_keep=max(_PAIR_KEEP, rule.period),
        device_keep=_DEVICE_KEEP,
        source=rule,
    )


def _counting(store: object) -> AttemptStore:
    if isinstance(store, type) or not all(callable(getattr(store, name, None)) for name in ("attempt", "aattempt")):
        raise ConfigurationError(
            f"store must be one that can count attempts, such as MemoryStore(): it needs the methods attempt and "
            f"aattempt of reliakit.stores.attempts.AttemptStore, got {checks.shown(store)}"
        )
    return cast("AttemptStore", store)


def _key(secret: str | bytes | None, store: object) -> bytes:
    if secret is None:
        if not isinstance(store, MemoryStore):
            raise ConfigurationError(
                "secret must be given with a shared store, the same in every process: "
                "try `openssl rand -hex 32` and keep it with your other secrets"
            )
        return secrets.token_bytes(32)
    if not isinstance(secret, str | bytes):
        raise ConfigurationError(f"secret must be text or bytes, got a {type(secret).__name__}")
    key = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
    if not key:
        raise ConfigurationError("secret must not be empty: leave it out, or take at least 16 random bytes")
    return key


def _status(answer: AttemptAnswer) -> LoginStatus:
    wait = wait_of(answer)
    return LoginStatus(
        blocked=not answer.admitted,
        blocked_by=answer.binding or None,
        failures=answer.failures,
        retry_after=wait,
        stopped=wait is None,
        device_known=answer.claim is Claim.DEVICE,
        degraded=isinstance(answer, StandInAttempt),
    )
