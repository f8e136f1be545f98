"""What each event counts: the one place where reliakit's events become numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliakit.core.events import (
    AttemptFailed,
    CallCoalesced,
    CallEnded,
    CallRejected,
    CallTimedOut,
    CallWaited,
    CheckoutOverdue,
    CircuitChanged,
    CircuitPresent,
    CircuitSpared,
    ConnectionClosed,
    ConnectionLeaked,
    ConnectionOpened,
    DeadlineOverrun,
    ErrorOpened,
    ErrorResolved,
    ErrorSeen,
    ErrorsOpen,
    ErrorUntracked,
    Event,
    FallbackUsed,
    HedgeEnded,
    HookFailed,
    LimitDecided,
    LimiterPresent,
    LimitFigures,
    LimitMoved,
    LimitWaited,
    LogDropped,
    LogFigures,
    LogPresent,
    OutboxFailed,
    OutboxRelayed,
    PoolChanged,
    PoolPresent,
    PoolReturned,
    PoolWaited,
    ReplicaFailed,
    RequestEnded,
    RequestStarted,
    RetryEnded,
    SecretsMasked,
    SecurityNoticed,
    StoreFailed,
    StoreRecovered,
    TransactionEnded,
    TransactionStarted,
    ValidationFailed,
    WebsocketClosed,
    WebsocketOpened,
    WebsocketPassed,
)
from reliakit.metrics.circuits import Circuits
from reliakit.metrics.readings import Readings
from reliakit.metrics.requests import Requests
from reliakit.metrics.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Listener
    from reliakit.metrics.shelf import Shelf

__all__ = ["Feed"]


class Feed:
    """Counts events into the catalogue's metrics. Called in the thread or task that made the event; never waits.

    Args:
        shelf: Holds the metrics.
        clock: Measures how the age of a checkout grows between two events.
        listener: The listener that calls `take`.
        written: Called after each change that is shown without an event, if other processes see only what is written;
            None if not.
    """

    def __init__(
        self, shelf: Shelf, clock: Clock, listener: Listener, *, written: Callable[[], None] | None = None
    ) -> None:
        self._counter = shelf.counter
        self._gauge = shelf.gauge
        self._histogram = shelf.histogram
        self._requests = Requests(shelf)
        self._transactions = transactions = Transactions(shelf, clock, listener, written=written)
        self._circuits = Circuits(shelf)
        self._logs: Readings[LogFigures] = Readings(self._written)
        self._limiters: Readings[LimitFigures] = Readings(self._limited)
        self._trackers: dict[str, ErrorsOpen] = {}
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            TransactionStarted: transactions.started,
            TransactionEnded: transactions.ended,
            PoolPresent: transactions.present,
            PoolChanged: transactions.pools.changed,
            PoolWaited: transactions.waited,
            PoolReturned: transactions.returned,
            ConnectionOpened: self._connection_opened,
            ConnectionClosed: self._connection_closed,
            ReplicaFailed: self._replica_failed,
            OutboxRelayed: self._outbox_relayed,
            OutboxFailed: self._outbox_failed,
            CheckoutOverdue: self._checkout_overdue,
            ConnectionLeaked: self._connection_leaked,
            CircuitSpared: self._by_name("circuit_breaker_spared_total"),
            CircuitPresent: self._circuits.present,
            CircuitChanged: self._circuit_changed,
            CallEnded: self._call_ended,
            CallRejected: self._call_rejected,
            AttemptFailed: self._attempt_failed,
            RetryEnded: self._retry_ended,
            CallTimedOut: self._by_name("call_timeouts_total"),
            CallWaited: self._call_waited,
            FallbackUsed: self._by_name("call_fallbacks_total"),
            CallCoalesced: self._by_name("call_coalesced_total"),
            HedgeEnded: self._hedge_ended,
            LimitMoved: self._limit_moved,
            DeadlineOverrun: self._deadline_overrun,
            HookFailed: self._hook_failed,
            LimitDecided: self._limit_decided,
            LimiterPresent: self._limiter_present,
            LimitWaited: self._limit_waited,
            LogPresent: self._log_present,
            StoreFailed: self._store_failed,
            StoreRecovered: self._store_recovered,
            SecurityNoticed: self._security_noticed,
            ErrorSeen: self._error_seen,
            ErrorOpened: self._error_opened,
            ErrorResolved: self._error_resolved,
            ErrorUntracked: self._error_untracked,
            ErrorsOpen: self._errors_open,
            ValidationFailed: self._validation_failed,
            RequestStarted: self._requests.started,
            RequestEnded: self._requests.ended,
            WebsocketOpened: self._requests.opened,
            WebsocketPassed: self._requests.passed,
            WebsocketClosed: self._requests.closed,
            SecretsMasked: self._secrets_masked,
            LogDropped: self._log_dropped,
        }

    @property
    def types(self) -> tuple[type[Event], ...]:
        """The events that count; no others need to be built for this listener.

        CallEnded and LimitDecided are left out: to report each call costs a breaker or limiter far more than the call
        itself, so their sums are read instead. To have the time of each call too, subscribe to that event as well.
        """
        return tuple(kind for kind in self._handlers if kind not in {CallEnded, LimitDecided})

    def take(self, event: Event) -> None:
        """Count one event; one of an unknown type counts nothing."""
        handle = self._handlers.get(type(event)) or self._inherited(type(event))
        if handle is not None:
            handle(event)

    def refresh(self) -> None:
        """Bring up to date what is only read on demand."""
        self._transactions.refresh()
        self._circuits.refresh()
        self._logs.refresh()
        self._limiters.refresh()

    def begin_anew(self) -> None:
        """Leave to the parent what its components counted before this process was forked."""
        self._circuits.begin_anew()
        self._logs.begin_anew()
        self._limiters.begin_anew()

    def leave(self) -> None:
        """Read a last time what is only read on demand, because nothing more will be heard."""
        self._transactions.leave()
        self._circuits.leave()
        self._logs.leave()
        self._limiters.leave()

    def _inherited(self, kind: type[Event]) -> Callable[[Any], None] | None:
        return next((self._handlers[base] for base in kind.__mro__ if base in self._handlers), None)

    def _connection_opened(self, event: ConnectionOpened) -> None:
        self._transactions.pools.changed(event)
        self._histogram("db_pool_create_seconds").labels(event.name).observe(event.duration)

    def _connection_closed(self, event: ConnectionClosed) -> None:
        self._transactions.pools.changed(event)
        self._counter("db_pool_discarded_total").labels(event.name, event.reason).inc()

    def _replica_failed(self, event: ReplicaFailed) -> None:
        self._counter("db_replica_fallbacks_total").labels(event.name).inc()

    def _outbox_relayed(self, event: OutboxRelayed) -> None:
        self._counter("outbox_relayed_total").labels(event.name).inc(event.count)
        self._counter("outbox_failures_total").labels(
            event.name, "dead"
        )  # exists at 0, for the alert to see the first
        self._histogram("outbox_lag_seconds").labels(event.name).observe(event.lag)

    def _outbox_failed(self, event: OutboxFailed) -> None:
        outcome = "dead" if event.delay is None else "retried"
        self._counter("outbox_failures_total").labels(event.name, outcome).inc()

    def _checkout_overdue(self, event: CheckoutOverdue) -> None:
        self._counter("db_pool_overdue_checkouts_total").labels(event.name).inc()

    def _connection_leaked(self, event: ConnectionLeaked) -> None:
        self._counter("db_pool_leaked_connections_total").labels(event.name).inc()

    def _circuit_changed(self, event: CircuitChanged) -> None:
        self._counter("circuit_breaker_transitions_total").labels(event.name, event.previous, event.state).inc()
        self._circuits.show(event.name, {event.state})

    def _call_ended(self, event: CallEnded) -> None:
        if not self._circuits.follows(event.name):
            self._counter("circuit_breaker_calls_total").labels(event.name, event.verdict).inc()
        if event.duration is not None:
            self._histogram("circuit_breaker_call_duration_seconds").labels(event.name).observe(event.duration)

    def _call_rejected(self, event: CallRejected) -> None:
        self._counter("calls_rejected_total").labels(event.name, event.reason).inc()
        if event.reason == "CircuitOpenError":
            self._counter("circuit_breaker_calls_total").labels(event.name, "rejected").inc()

    def _attempt_failed(self, event: AttemptFailed) -> None:
        self._counter("retry_attempts_total").labels(event.name, "retried").inc()

    def _retry_ended(self, event: RetryEnded) -> None:
        self._counter("retry_attempts_total").labels(event.name, event.outcome).inc()
        self._counter("retry_ended_total").labels(event.name, event.reason).inc()

    def _by_name(self, metric: str) -> Callable[[Event], None]:
        """Return a function that counts one for the component that emitted the event."""
        counter = self._counter(metric)
        return lambda event: counter.labels(event.name).inc()

    def _call_waited(self, event: CallWaited) -> None:
        outcome = "granted" if event.granted else "refused"
        self._histogram("call_wait_seconds").labels(event.name, outcome).observe(event.wait)

    def _hedge_ended(self, event: HedgeEnded) -> None:
        winner = "none" if event.winner is None else "first" if event.winner == 1 else "later"
        self._counter("hedge_calls_total").labels(event.name, winner).inc()
        self._counter("hedge_copies_total").labels(event.name).inc(event.copies)

    def _limit_moved(self, event: LimitMoved) -> None:
        self._gauge("adaptive_limit").labels(event.name).set(event.limit)

    def _deadline_overrun(self, _event: DeadlineOverrun) -> None:
        self._counter("deadline_overruns_total").inc()

    def _hook_failed(self, event: HookFailed) -> None:
        self._counter("transaction_hook_failures_total").labels(event.operation).inc()

    def _limit_decided(self, event: LimitDecided) -> None:
        if self._limiters.follows(event.name):
            return
        decision = "limited" if not event.allowed else "shadow" if event.denied else "allowed"
        self._counter("rate_limit_decisions_total").labels(event.name, decision).inc()
        degraded = self._counter("rate_limit_degraded_total").labels(event.name)
        if event.degraded:
            degraded.inc()

    def _limiter_present(self, event: LimiterPresent) -> None:
        if self._limiters.follow(event.name, event.read):  # exist at 0, and their siblings with them
            self._counter("rate_limit_decisions_total").labels(event.name, "allowed")
            self._counter("rate_limit_degraded_total").labels(event.name)

    def _limited(self, name: str, figures: LimitFigures, last: LimitFigures) -> None:
        decisions = self._counter("rate_limit_decisions_total")
        for decision, more in (
            ("allowed", figures.admitted - last.admitted),
            ("limited", figures.denied - last.denied),
            ("shadow", figures.shadow_denied - last.shadow_denied),
        ):
            if more > 0:
                decisions.labels(name, decision).inc(more)
        if figures.degraded > last.degraded:
            self._counter("rate_limit_degraded_total").labels(name).inc(figures.degraded - last.degraded)

    def _limit_waited(self, event: LimitWaited) -> None:
        self._histogram("rate_limit_wait_seconds").labels(event.name).observe(event.wait)

    def _log_present(self, event: LogPresent) -> None:
        self._logs.follow(event.name, event.read)

    def _written(self, _name: str, figures: LogFigures, last: LogFigures) -> None:
        for level in ("debug", "info", "warning", "error", "critical"):
            more = getattr(figures, level) - getattr(last, level)
            if more > 0:
                self._counter("log_records_total").labels(level).inc(more)

    def _store_failed(self, event: StoreFailed) -> None:
        self._counter("store_failures_total").labels(event.store).inc()
        self._gauge("store_up").labels(event.store).set(0)

    def _store_recovered(self, event: StoreRecovered) -> None:
        self._gauge("store_up").labels(event.store).set(1)

    def _security_noticed(self, event: SecurityNoticed) -> None:
        self._counter("security_total").labels(event.event, event.source).inc()

    def _error_seen(self, event: ErrorSeen) -> None:
        try:
            self._counter("error_total").labels(event.error_type, event.service, event.status or event.category).inc()
        except BaseException:
            self._counter("error_untracked_total").inc()
            raise

    def _error_opened(self, event: ErrorOpened) -> None:
        self._counter("error_opened_total").labels("returned" if event.reopened else "new").inc()

    def _error_resolved(self, event: ErrorResolved) -> None:
        self._histogram("error_resolution_seconds").observe(event.seconds)

    def _error_untracked(self, _event: ErrorUntracked) -> None:
        self._counter("error_untracked_total").inc()

    def _errors_open(self, event: ErrorsOpen) -> None:
        self._trackers[event.name] = event
        told = self._trackers.copy().values()
        self._gauge("error_open").set(sum(one.count for one in told))
        self._gauge("error_oldest_open_seconds").set(max(one.oldest for one in told))

    def _validation_failed(self, event: ValidationFailed) -> None:
        for keyword in event.keywords:
            self._counter("validation_failures_total").labels(event.name, keyword).inc()

    def _secrets_masked(self, event: SecretsMasked) -> None:
        # If masking failed, nobody knows how many there were: the whole text was withheld.
        result, secrets = ("withheld", max(1, event.count)) if event.failed else ("masked", event.count)
        self._counter("log_secrets_total").labels(result).inc(secrets)

    def _log_dropped(self, event: LogDropped) -> None:
        self._counter("log_dropped_total").labels(event.reason).inc(event.count)
