"""The vocabulary of what happens: small frozen values that components emit and listeners receive.

A component emits an event after its own locks are released and only if somebody listens; metrics, logs, error
tracking and status pages are listeners. An event never holds a secret, a statement's parameters or a request body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

__all__ = [
    "AttemptFailed",
    "CallCoalesced",
    "CallEnded",
    "CallRejected",
    "CallStarted",
    "CallTimedOut",
    "CallWaited",
    "CheckoutOverdue",
    "CircuitChanged",
    "CircuitFigures",
    "CircuitPresent",
    "CircuitSpared",
    "ConnectionClosed",
    "ConnectionLeaked",
    "ConnectionOpened",
    "DeadlineOverrun",
    "ErrorOpened",
    "ErrorResolved",
    "ErrorSeen",
    "ErrorUntracked",
    "ErrorsOpen",
    "Event",
    "FallbackUsed",
    "HedgeEnded",
    "HookFailed",
    "LimitDecided",
    "LimitDenied",
    "LimitFigures",
    "LimitMoved",
    "LimitWaited",
    "LimiterPresent",
    "LogDropped",
    "LogFigures",
    "LogPresent",
    "NumbersWanted",
    "OutboxFailed",
    "OutboxRelayed",
    "PolicyEnded",
    "PolicyStarted",
    "PoolChanged",
    "PoolReturned",
    "PoolWaited",
    "ReplicaFailed",
    "RequestEnded",
    "RequestStarted",
    "RetryEnded",
    "SecretsMasked",
    "SecurityNoticed",
    "StatementTimed",
    "StoreFailed",
    "StoreRecovered",
    "TransactionEnded",
    "TransactionSlow",
    "TransactionStarted",
    "ValidationFailed",
    "WebsocketClosed",
    "WebsocketOpened",
    "WebsocketPassed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in one component.

    Attributes:
        name: The component, such as a breaker's or a database's name.
        at: The component's monotonic clock when it happened, in seconds.
        sequence: Counts the events that this component built, from 1. What nobody listens for is neither built nor
            counted; a listener of some types sees gaps where the others went.
    """

    name: str
    at: float
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionStarted(Event):
    """BEGIN was answered: one attempt of a transaction runs. `wait` seconds went by before there was a connection."""

    service: str | None
    operation: str
    attempt: int
    isolation: str
    read_only: bool
    wait: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionEnded(Event):
    """One attempt of a transaction is over.

    Attributes:
        status: How it ended; "retry" is an attempt that is tried again.
        duration: Seconds from asking for a connection to the answer of COMMIT or ROLLBACK.
        wait: Seconds of it spent waiting for a connection.
        statements: How many statements were run, BEGIN and COMMIT left out.
        rows: Rows returned or changed by them.
        sqlstate: The server's error code, where an error ended it.
        error_type: The class name of the error that ended it, or None.
        deliberate: The code asked for the rollback with `set_rollback_only()`.
        began: BEGIN was answered, so a TransactionStarted was told before; False where no connection was got.
        transaction_id: The server's id of it, where somebody asked for it.
        hold: Seconds for which a connection was held, None where none was got.
    """

    service: str | None
    operation: str
    attempt: int
    status: Literal["commit", "rollback", "timeout", "unknown", "retry"]
    duration: float
    wait: float
    statements: int
    rows: int
    sqlstate: str | None = None
    error_type: str | None = None
    deliberate: bool = False
    began: bool = True
    transaction_id: str | None = None
    hold: float | None = None


class StatementTimed(NamedTuple):
    """One statement of a transaction: its text with `?` for every value in it, its seconds, its rows."""

    text: str
    duration: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionSlow(Event):
    """An attempt took longer than `slow_after`; told after its `TransactionEnded`.

    Attributes:
        service: As there, and so are the next ones.
        operation: See there.
        attempt: See there.
        status: See there.
        duration: See there.
        wait: See there.
        hold: See there.
        slow_after: The limit in seconds that it passed.
        statements: The slowest of its statements, in the order in which they ran; empty where nobody listened for
            this event when it began.
        left_out: How many others there were.
    """

    service: str | None
    operation: str
    attempt: int
    status: Literal["commit", "rollback", "timeout", "unknown", "retry"]
    duration: float
    wait: float
    hold: float | None
    slow_after: float
    statements: tuple[StatementTimed, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChanged(Event):
    """A database's connections at one moment; by itself when a wait begins or was in vain, and after `close()`.

    Attributes:
        pool: Tells databases of one name apart within this process.
        revision: Counts the states of one pool: of two events the one with the higher number is later, in whatever
            order they arrive. 0 where the figures are not known.
        max_size: The most connections there may be, 0 once the database is closed.
        size: Connections that are open.
        in_use: Connections that are held.
        waiting: Threads and tasks that wait for one.
        oldest_checkout: Seconds since the oldest of the held ones was taken, None when none is held.
    """

    pool: str = ""
    revision: int = 0
    max_size: int = 0
    size: int = 0
    in_use: int = 0
    waiting: int = 0
    oldest_checkout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolWaited(PoolChanged):
    """A connection was asked for: got after `wait` seconds, or not at all."""

    wait: float
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReturned(PoolChanged):
    """A connection went back.

    Attributes:
        used: Seconds for which it was held.
        age: Seconds since it was opened, None for one that belongs to somebody else's pool.
    """

    used: float
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(PoolChanged):
    """A connection was opened, which took `duration` seconds."""

    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed(PoolChanged):
    """A connection was closed.

    Attributes:
        reason: "lifetime" or "idle" where it had grown old, "broken", or "closed" with its database.
        age: Seconds since it was opened, None for one that belongs to somebody else's pool.
    """

    reason: Literal["lifetime", "idle", "broken", "closed"]
    age: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutOverdue(Event):
    """A connection has been held for longer than `leak_after`; `line` is the caller's own line that took it."""

    age: float
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLeaked(Event):
    """A connection was lost to its pool for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFailed(Event):
    """A replica could not be reached in time, so a read-only transaction went to the primary instead.

    Attributes:
        operation: The transaction's, or "open" where the database was opened.
        error_type: The class name of the error, which reached nobody.
        sqlstate: The server's error code, where there is one.
    """

    operation: str
    error_type: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HookFailed(Event):
    """An after_commit or after_rollback hook raised; the outcome of the transaction stands."""

    operation: str
    hook: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRelayed(Event):
    """A relay has handed over messages of an outbox, and they are gone from its table.

    Attributes:
        count: How many.
        lag: Seconds since the oldest of them was published.
    """

    count: int
    lag: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxFailed(Event):
    """A relay's handler raised; the message stays.

    Attributes:
        message_id: Which one.
        topic: Its topic.
        attempt: How often it was tried so far.
        delay: Seconds until it is tried again, None when it is set aside as dead.
        error_type: The class name of the error.
    """

    message_id: int
    topic: str
    attempt: int
    delay: float | None
    error_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitChanged(Event):
    """A circuit breaker moved to another state.

    Attributes:
        previous: The state it left.
        state: The state it entered.
        cause: Why, in a few words.
        retry_after: Seconds until a probe is let through, where that is known.
    """

    previous: str
    state: str
    cause: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSpared(Event):
    """A circuit breaker in `metrics_only` would have opened now; `cause` says why, in a few words."""

    cause: str


class CircuitFigures(NamedTuple):
    """What a circuit breaker has counted since it was made, and where it stands; refusals are told by `CallRejected`.

    Attributes:
        state: Its state.
        success: Calls that counted as successes; calls let through while it was disabled count as nothing.
        failure: As failures.
        ignored: As neither.
        failure_ratio: Share of failures in its window, None where it keeps none or nothing is in it.
        is_gone: Whether the breaker itself is no more, so that these are its last figures.
    """

    state: str
    success: int
    failure: int
    ignored: int
    failure_ratio: float | None = None
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPresent(Event):
    """A circuit breaker exists. Told to who names this event, when it is made and whenever the listeners change.

    So a listener that needs sums only asks for them when it is asked itself, and calls stay free of it.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the breaker alive.
    """

    read: Callable[[], CircuitFigures]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted(Event):
    """A guarded call begins, in this thread or task; not told of permits that are settled by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded(Event):
    """A guarded call ran to its end; `verdict` says how its guard counted it."""

    verdict: Literal["success", "failure", "ignored"]
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRejected(Event):
    """A guard refused a call, so it was not tried; `reason` is the error's class name."""

    reason: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """An attempt failed and another one follows after `delay` seconds."""

    attempt: int
    delay: float
    error_type: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryEnded(Event):
    """A call that was tried more than once, or would have been, is over.

    Attributes:
        outcome: Whether its last attempt was a success.
        reason: Why there was no further attempt: it was a "success", or "attempts", "deadline" or "budget" were
            spent, the next one was "rejected", the server asked for too long a pause ("retry_after"), or its "error"
            was one that is not tried again.
        attempts: How many attempts were made.
        duration: Seconds from the beginning of the first one, pauses included.
        error_type: The class name of the error that it raised, or None.
    """

    outcome: Literal["success", "failure"]
    reason: Literal["success", "attempts", "deadline", "budget", "rejected", "retry_after", "error"]
    attempts: int
    duration: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStarted(Event):
    """A call through a policy begins, in this thread or task; not told of generators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyEnded(Event):
    """A call through a policy is over, told in the same thread or task.

    Attributes:
        duration: Seconds with all attempts and pauses.
        error_type: The class name of the error that left it, None where it returned.
    """

    duration: float
    error_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimedOut(Event):
    """A call was cut after its own time limit of so many seconds, or its late result was refused."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWaited(Event):
    """A call queued for its turn: it got one after `wait` seconds, or not at all."""

    wait: float
    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackUsed(Event):
    """A call failed, and its caller got a stand-in for the result."""

    error_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeEnded(Event):
    """A call that was started more than once is over.

    Attributes:
        copies: How many ran.
        winner: Which one's result was taken, from 1; None where all failed or the caller went away.
        failed: How many failed.
        duration: Seconds from the beginning of the first one.
    """

    copies: int
    winner: int | None
    failed: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCoalesced(Event):
    """A call was not made, because an equal one was under way, whose outcome it shared after `wait` seconds."""

    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitMoved(Event):
    """An adaptive limit changed how many calls may run at once."""

    previous: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineOverrun(Event):
    """Code that cannot be interrupted returned after its deadline; its result was kept."""

    seconds: float
    elapsed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDecided(Event):
    """A rate limiter decided. `key` is the caller's key and may be personal: listeners mask or fold it.

    Attributes:
        allowed: What the caller was told.
        enforced: False in shadow mode, where `denied` may differ from what the caller was told.
        denied: What the limits say.
        degraded: The store did not answer and a stand-in decided.
    """

    key: str
    allowed: bool
    denied: bool
    enforced: bool
    degraded: bool
    cost: int
    retry_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitDenied(LimitDecided):
    """A rate limiter denied, or would have in shadow mode. To listen for this alone costs other decisions nothing."""


class LimitFigures(NamedTuple):
    """What a rate limiter has decided since it was made; see `reliakit.ratelimit.LimiterStats`."""

    admitted: int
    denied: int
    shadow_denied: int
    degraded: int
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterPresent(Event):
    """A rate limiter exists. Told to who names this event, when it is made and whenever the listeners change.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the limiter alive.
    """

    read: Callable[[], LimitFigures]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitWaited(Event):
    """A caller waited `wait` seconds for its turn at a rate limiter, and got it."""

    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFailed(Event):
    """A shared store stopped answering; told once per outage."""

    store: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecovered(Event):
    """A shared store answers again."""

    store: str
    outage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityNoticed(Event):
    """Something that security people count: a failed login, an invalid token, a limit hit.

    Attributes:
        event: What it was, such as "failed_login", "rate_limit" or "invalid_token".
        source: Where it came from, usually a client address; listeners bound its number of values.
        service: The service that noticed.
        fields: More for the log line, masked there.
    """

    event: str
    source: str
    service: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSeen(Event):
    """An exception left a transaction, a breaker, a policy, a web request or a logger call.

    Emitted once for each exception object, by whoever sees it first.

    Attributes:
        service: The service it happened in, where known.
        status: The HTTP status it leads to, as text, or None.
        category: Its category, see `classify`.
        retry: Whether trying again can help, see `classify`.
        sqlstate: PostgreSQL's error code, or None.
        fingerprint: Equal for errors with the same cause, see `classify`.
        error: The exception itself; do not keep it, its traceback holds on to frames.
    """

    service: str | None
    status: str | None
    error_type: str
    category: str
    retry: str
    sqlstate: str | None
    fingerprint: str
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorOpened(Event):
    """An error of a new kind was seen, or one that had been resolved came back.

    Attributes:
        fingerprint: What errors of its kind have in common, see `classify`.
        service: The service it happened in, where known.
        reopened: Whether it had been resolved before.
    """

    fingerprint: str
    error_type: str
    category: str
    service: str | None
    reopened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorResolved(Event):
    """Errors of one kind are over.

    Attributes:
        seconds: From the first one, or the one that reopened it, to the resolution.
        cause: "quiet" when none was seen for a set time, "call" when somebody said so.
    """

    fingerprint: str
    error_type: str
    seconds: float
    cause: Literal["quiet", "call"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsOpen(Event):
    """How many kinds of errors are open now, and for how many seconds the oldest of them has been."""

    count: int
    oldest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorUntracked(Event):
    """An error could not be tracked; `reason` is the class name of what went wrong."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NumbersWanted(Event):
    """Numbers are about to be read: who holds some that change with time alone tells them now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationFailed(Event):
    """A value was refused by a schema; `keywords` are the broken rules."""

    keywords: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted(Event):
    """A request arrived."""

    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(Event):
    """A request is over; the access record is made of this.

    Attributes:
        service: The service that answered.
        method: The HTTP method, "_OTHER" for an unknown one.
        route: The route's template, or "unmatched"; never the raw path.
        status: The status that was sent, or None when none was.
        outcome: What became of the exchange.
        duration: Seconds until the last byte was handed to the server.
        request_id: The id that the response carried.
        response_bytes: Bytes of body sent.
        request_bytes: Bytes of body that the app has read, or in WSGI what the client announced.
        error_type: The class name of the exception that ended it, or None.
    """

    service: str | None
    method: str
    route: str
    status: int | None
    outcome: Literal["completed", "client_disconnect", "cancelled", "timeout", "error"]
    duration: float
    request_id: str
    response_bytes: int = 0
    request_bytes: int = 0
    error_type: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketOpened(Event):
    """A websocket was accepted; `route` is the template, never the raw path."""

    service: str | None
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketPassed(Event):
    """A message came in over a websocket, or went out."""

    direction: Literal["in", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketClosed(Event):
    """A websocket that had been accepted is over.

    Attributes:
        service: The service that accepted it.
        route: The route's template.
        code: The close code of whoever closed first; 1011 where an exception ended it, 1006 where nobody said.
        duration: Seconds since it was accepted.
    """

    service: str | None
    route: str
    code: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsMasked(Event):
    """A log record held secrets, and they were masked; `failed` means a placeholder stands for the whole."""

    count: int
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDropped(Event):
    """A log record could not be written."""

    reason: str
    count: int = 1


class LogFigures(NamedTuple):
    """How many records a log has written since it was made, by level; other levels count as the next lower one."""

    debug: int
    info: int
    warning: int
    error: int
    critical: int
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPresent(Event):
    """A log exists. Told to who names this event, when it is made and whenever the listeners change.

    Attributes:
        read: Returns its figures, from any thread, without a wait. The same object each time; it keeps the figures
            but not the log alive.
    """

    read: Callable[[], LogFigures]
