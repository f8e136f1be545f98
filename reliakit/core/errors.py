"""Every error that reliakit raises itself.

```
ReliakitError
├─ ConfigurationError (ValueError)      a wrong argument or wrong use
├─ RejectedError                        the call was not tried
│  ├─ CircuitOpenError                  its circuit breaker is open
│  ├─ RateLimitedError                  a limit is reached
│  │  └─ LoginBlockedError              too many wrong passwords or tokens
│  ├─ BulkheadFullError                 as many calls run as may
│  ├─ OverloadedError                   a throttle or an adaptive limit sheds load
│  └─ RetryBudgetExceededError          too many calls are retries
├─ DeadlineExceededError (TimeoutError) the call was tried and cut, or could not start in time
├─ TransactionError                     a transaction did not end as its caller asked
│  ├─ TransactionRolledBackError        COMMIT was answered with ROLLBACK
│  ├─ CommitUnknownError                the outcome of COMMIT is not known
│  ├─ TransactionTimeoutError           its time was spent; also a DeadlineExceededError
│  └─ TransactionUsageError             a rule of transactions was broken by the code, not by the data
├─ ValidationError (ValueError)         a value does not fit its schema
├─ StoreError                           a shared store did not answer
└─ NoInstanceError                      no instance is known that could serve the call
```

The caller's own exceptions, psycopg's included, pass through unchanged. Every error keeps its fields through
`pickle` and `copy`, so it survives a process pool.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "BulkheadFullError",
    "CircuitOpenError",
    "CommitUnknownError",
    "ConfigurationError",
    "DeadlineExceededError",
    "LoginBlockedError",
    "NoInstanceError",
    "OverloadedError",
    "Problem",
    "RateLimitedError",
    "RejectedError",
    "ReliakitError",
    "RetryBudgetExceededError",
    "StoreError",
    "TransactionError",
    "TransactionRolledBackError",
    "TransactionTimeoutError",
    "TransactionUsageError",
    "ValidationError",
]


class ReliakitError(Exception):
    """The base class of every error that reliakit raises itself."""


class ConfigurationError(ReliakitError, ValueError):
    """A wrong argument or wrong use. Raised at construction or decoration; the message says how to mend it."""


class RejectedError(ReliakitError):
    """The call was not tried, so nothing happened and it is safe to try again later.

    Attributes:
        name: The component that refused.
        retry_after: Seconds until another call can succeed, or None if that is not known.
    """

    def __init__(self, message: str = "", *, name: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.name = name
        self.retry_after = retry_after


class CircuitOpenError(RejectedError):
    """The circuit breaker is open: its dependency has failed too often to be called now."""

    # An open breaker does nothing but refuse; without a dictionary per error that takes two thirds of the time.
    __slots__ = ("name", "retry_after")

    def __reduce__(self) -> tuple[Any, ...]:
        made_of = super().__reduce__()
        return made_of[0], made_of[1], {**vars(self), "name": self.name, "retry_after": self.retry_after}


class RateLimitedError(RejectedError):
    """The key has spent its limit.

    Attributes:
        decision: The limiter's `Decision`, or None if there is none.
    """

    def __init__(
        self, message: str = "", *, name: str = "", retry_after: float | None = None, decision: object = None
    ) -> None:
        super().__init__(message, name=name, retry_after=retry_after)
        self.decision = decision


class LoginBlockedError(RateLimitedError):
    """Too many failed attempts to log in to this account or from this source; the password was not looked at.

    Attributes:
        reason: What there was too much of: "failed_login", or "invalid_token" for a source of invalid tokens.
    """

    def __init__(
        self,
        message: str = "",
        *,
        name: str = "",
        retry_after: float | None = None,
        decision: object = None,
        reason: Literal["failed_login", "invalid_token"] = "failed_login",
    ) -> None:
        super().__init__(message, name=name, retry_after=retry_after, decision=decision)
        self.reason: Literal["failed_login", "invalid_token"] = reason


class BulkheadFullError(RejectedError):
    """As many calls are running as may, and the queue is full or the wait in it was too long."""


class OverloadedError(RejectedError):
    """The call was refused to shed load before something breaks."""


class RetryBudgetExceededError(RejectedError):
    """The share of calls that may be retries is spent."""


class DeadlineExceededError(ReliakitError, TimeoutError):
    """The time budget ran out: the call was cut off, or could not start in time.

    Attributes:
        seconds: The budget that ran out, in seconds, or None if it is not known.
    """

    def __init__(self, message: str = "", *, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class TransactionError(ReliakitError):
    """A transaction did not end as its caller asked.

    Attributes:
        name: The database; the message names the operation.
        attempts: How many attempts were made; at least 1 once one began.
    """

    def __init__(self, message: str = "", *, name: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.attempts = attempts


class TransactionRolledBackError(TransactionError):
    """COMMIT was answered with ROLLBACK, or code that joined the transaction had failed: nothing was written."""


class CommitUnknownError(TransactionError):
    """COMMIT was sent and its answer never came: the work is either wholly done or wholly undone.

    Attributes:
        transaction_id: The server's id of the transaction, to ask for its outcome later; None for one that
            wrote nothing or whose id could not be learnt.
    """

    def __init__(
        self, message: str = "", *, name: str = "", attempts: int = 0, transaction_id: str | None = None
    ) -> None:
        super().__init__(message, name=name, attempts=attempts)
        self.transaction_id = transaction_id


class TransactionTimeoutError(TransactionError, DeadlineExceededError):
    """The transaction's time budget ran out; it did not commit and never will."""

    def __init__(self, message: str = "", *, name: str = "", attempts: int = 0, seconds: float | None = None) -> None:
        super().__init__(message, name=name, attempts=attempts)
        self.seconds = seconds


class TransactionUsageError(TransactionError):
    """A transaction was used in a wrong way.

    In the wrong thread or task, after a fork, against a propagation rule, or by waiting for a connection that could
    never come free.
    """


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a value, described without repeating the value.

    Attributes:
        pointer: JSON Pointer to the offending place, such as "/projects/0/name"; "" is the whole value.
        keyword: The rule that was broken, such as "maximum".
        code: Stable machine-readable code.
        message: A sentence for people; never contains the offending value.
        params: The rule's own parameters, such as `{"limit": 5}`.
        location: Which part of a request it was: "body", "query", "path" or "header".
    """

    pointer: str
    keyword: str
    code: str
    message: str
    params: Mapping[str, object] = field(default_factory=dict[str, object])
    location: str = "body"


class ValidationError(ReliakitError, ValueError):
    """A value does not fit its schema.

    Attributes:
        problems: What is wrong; at most as many as the schema's `max_errors`.
    """

    def __init__(self, message: str = "", problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems: list[Problem] = list(problems)


class StoreError(ReliakitError):
    """A shared store could not be reached or did not answer in time.

    Attributes:
        store: The store's name.
    """

    def __init__(self, message: str = "", *, store: str = "") -> None:
        super().__init__(message)
        self.store = store


class NoInstanceError(ReliakitError):
    """Discovery knows no instance that could serve the call."""
