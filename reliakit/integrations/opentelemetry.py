"""Traces and metrics for OpenTelemetry, in services that have set it up.

```
tracing = Tracing()         transactions and guarded calls become spans; listens only if there is a real provider
export(metrics)             every metric of a Metrics becomes an instrument of the meter provider
```

Names and attributes follow the semantic conventions if these have a word, and begin with `reliakit.` if not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, NamedTuple, Self

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter_provider
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from reliakit import __version__
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import (
    AttemptFailed,
    CallEnded,
    CallRejected,
    CallStarted,
    CallTimedOut,
    CircuitChanged,
    Event,
    FallbackUsed,
    PolicyEnded,
    PolicyStarted,
    TransactionEnded,
    TransactionStarted,
)
from reliakit.core.spine import Subscription, subscribe
from reliakit.logs.failures import error_text
from reliakit.logs.masker import Masker, masker_or_default
from reliakit.logs.objects import safe_text
from reliakit.logs.walk import Walk
from reliakit.metrics import Counter, Gauge, Histogram, Metrics

__all__ = ["Tracing", "export"]

_NO_PROVIDERS = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}


class _Open(NamedTuple):
    """A span that has begun in this thread or task, and how to make the one before it current again."""

    key: tuple[object, ...]
    span: Span
    token: Token[contexts.Context]
    handled: BaseException | None  # the exception that was being handled already when it began


_open: ContextVar[tuple[_Open, ...]] = ContextVar("reliakit_spans", default=())


class Tracing:
    """Makes spans from the events of reliakit's components; attach it, or use it as a `with` block.

    Each attempt of a transaction and each call through a `Policy` or a circuit breaker is a span: a child of the
    current one, and itself the current one until it is over. Refusals, failed attempts, timeouts, fallbacks and
    changes of a circuit are events of the span in which they happen. Exceptions are recorded masked.

    Args:
        provider: The tracer provider; the process's own one by default. Without a real provider, it listens to
            nothing and costs nothing: set the provider before `attach()`.
        masker: Masks exceptions; `Masker()` by default.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(self, *, provider: TracerProvider | None = None, masker: Masker | None = None) -> None:
        if provider is not None and not isinstance(provider, TracerProvider):
            raise ConfigurationError(f"provider must be a TracerProvider, got {provider!r}")
        self._provider = provider
        self._masker = masker_or_default(masker)
        self._subscription: Subscription | None = None
        self._tracer: Tracer = trace.NoOpTracer()

    def attach(self) -> Self:
        """Start listening, if there is a real provider. Attaching twice is harmless."""
        provider = self._provider or trace.get_tracer_provider()
        if self._subscription is None and not isinstance(provider, _NO_PROVIDERS):
            self._tracer = provider.get_tracer("reliakit", __version__)
            self._subscription = subscribe(self, *_HANDLERS)
        return self

    def close(self) -> None:
        """Stop listening. Closing twice is harmless."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    @property
    def is_attached(self) -> bool:
        """Whether it listens."""
        return self._subscription is not None

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        _HANDLERS[type(event)](self, event)

    def transaction_started(self, event: TransactionStarted) -> None:
        """Begin the span of an attempt, at the moment in which it asked for a connection."""
        self._begin(
            ("transaction", event.name, event.operation, event.attempt),
            f"transaction {event.operation}",
            SpanKind.CLIENT,
            event.wait,
            {
                **_of_transaction(event),
                "reliakit.transaction.isolation": event.isolation,
                "reliakit.transaction.read_only": event.read_only,
            },
        )

    def transaction_ended(self, event: TransactionEnded) -> None:
        """End the span of an attempt."""
        attributes: dict[str, Any] = {
            "reliakit.transaction.status": event.status,
            "reliakit.transaction.statements": event.statements,
            "reliakit.transaction.wait": event.wait,
        }
        if event.sqlstate is not None:
            attributes["db.response.status_code"] = event.sqlstate
        key = ("transaction", event.name, event.operation, event.attempt)
        span, error = self._end(key)
        if span is None:
            # The attempt began before anybody listened, in another thread or task, or got no connection at all.
            span = self._span(
                f"transaction {event.operation}", SpanKind.CLIENT, event.duration, _of_transaction(event)
            )
        span.set_attributes(attributes)
        self._finish(span, None if event.status == "commit" else event.error_type, error)

    def call_started(self, event: CallStarted) -> None:
        """Begin the span of a guarded call."""
        self._begin(("call", event.name), f"call {event.name}", SpanKind.INTERNAL, 0.0, {_GUARD: event.name})

    def call_ended(self, event: CallEnded) -> None:
        """End the span of a guarded call."""
        span, error = self._end(("call", event.name))
        if span is None:
            span = self._span(f"call {event.name}", SpanKind.INTERNAL, event.duration or 0.0, {_GUARD: event.name})
        span.set_attribute("reliakit.call.verdict", event.verdict)
        error_type = "failure" if error is None else type(error).__name__
        self._finish(span, error_type if event.verdict == "failure" else None, error)

    def policy_started(self, event: PolicyStarted) -> None:
        """Begin the span of a call through a policy."""
        self._begin(("policy", event.name), f"policy {event.name}", SpanKind.INTERNAL, 0.0, {_POLICY: event.name})

    def policy_ended(self, event: PolicyEnded) -> None:
        """End the span of a call through a policy."""
        span, error = self._end(("policy", event.name))
        if span is None:
            span = self._span(f"policy {event.name}", SpanKind.INTERNAL, event.duration, {_POLICY: event.name})
        self._finish(span, event.error_type, error)

    def happened(self, event: Event) -> None:
        """Add an event to the current span."""
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event(
                f"reliakit.{_WORDS[type(event)]}",
                {
                    f"reliakit.{name}": value
                    for name in ("name", *type(event).__slots__)
                    if isinstance(value := getattr(event, name), str | int | float)
                },
            )

    def _begin(
        self, key: tuple[object, ...], name: str, kind: SpanKind, ago: float, attributes: Mapping[str, Any]
    ) -> None:
        span = self._span(name, kind, ago, attributes)
        token = contexts.attach(trace.set_span_in_context(span))
        _open.set((*_open.get(), _Open(key, span, token, sys.exception())))

    def _span(self, name: str, kind: SpanKind, ago: float, attributes: Mapping[str, Any]) -> Span:
        begun = int((SYSTEM_CLOCK.time() - ago) * 1e9) if ago else None
        return self._tracer.start_span(name, kind=kind, start_time=begun, attributes={**attributes})

    def _end(self, key: tuple[object, ...]) -> tuple[Span | None, BaseException | None]:
        """Take the latest span with this key off the stack, and make the one before it current again.

        Returns:
            The span, and the exception that ends it, if one does.
        """
        error = sys.exception()
        stack = _open.get()
        for place in range(len(stack) - 1, -1, -1):
            one = stack[place]
            if one.key == key:
                _open.set((*stack[:place], *stack[place + 1 :]))
                if trace.get_current_span() is one.span:
                    contexts.detach(one.token)
                return one.span, None if error is one.handled else error
        return None, error

    def _finish(self, span: Span, error_type: str | None, error: BaseException | None) -> None:
        if error_type is not None:
            span.set_attribute("error.type", error_type)
            span.set_status(Status(StatusCode.ERROR))
            if error is not None and type(error).__name__ == error_type:
                self._record(span, error)
        span.end()

    def _record(self, span: Span, error: BaseException) -> None:
        walk = Walk(self._masker, plain=False)
        span.add_event(
            "exception",
            {
                "exception.type": f"{type(error).__module__}.{type(error).__qualname__}",
                "exception.message": self._masker.mask_text(safe_text(error)),
                "exception.stacktrace": error_text(error, walk),
            },
        )

    def __repr__(self) -> str:
        return f"<Tracing, {'attached' if self.is_attached else 'not attached'}>"


_GUARD = "reliakit.call.guard"
_POLICY = "reliakit.policy"


def _of_transaction(event: TransactionStarted | TransactionEnded) -> dict[str, Any]:
    return {
        "db.system.name": "postgresql",
        "db.client.connection.pool.name": event.name,
        "reliakit.transaction.operation": event.operation,
        "reliakit.transaction.attempt": event.attempt,
    }


_WORDS: dict[type[Event], str] = {
    AttemptFailed: "attempt_failed",
    CallRejected: "rejected",
    CallTimedOut: "timed_out",
    CircuitChanged: "circuit_changed",
    FallbackUsed: "fallback_used",
}
_HANDLERS: dict[type[Event], Callable[[Tracing, Any], None]] = {
    TransactionStarted: Tracing.transaction_started,
    TransactionEnded: Tracing.transaction_ended,
    CallStarted: Tracing.call_started,
    CallEnded: Tracing.call_ended,
    PolicyStarted: Tracing.policy_started,
    PolicyEnded: Tracing.policy_ended,
    **dict.fromkeys(_WORDS, Tracing.happened),
}


class _Measurements(NamedTuple):
    """Passes on what one series of a histogram measures. Equal for the same series, so that it does so only once."""

    instrument: Any
    labels: tuple[tuple[str, str], ...]

    def add(self, amount: float, /) -> None:
        """Record one measurement. The SDK never raises here."""
        self.instrument.record(amount, dict(self.labels))


def export(metrics: Metrics, provider: MeterProvider | None = None) -> None:
    """Make every metric, present and future, an instrument of OpenTelemetry too.

    Counters and gauges are read when OpenTelemetry collects, so counting costs nothing more; each measurement of a
    histogram is passed on at once. Names are ours without the suffixes that exporters add: `seconds` becomes the unit
    `s`, and `_total` is left out. Label values are limited as in `metrics`.

    Args:
        metrics: What to export. Export it only once: exporting twice counts measurements twice.
        provider: The meter provider; the process's own one by default.

    Raises:
        ConfigurationError: An argument is wrong.
    """
    if not isinstance(metrics, Metrics):
        raise ConfigurationError(f"metrics must be a Metrics, got {metrics!r}")
    if provider is not None and not isinstance(provider, MeterProvider):
        raise ConfigurationError(f"provider must be a MeterProvider, got {provider!r}")
    meter = (provider or get_meter_provider()).get_meter("reliakit", __version__)
    fresh = _Fresh(metrics)

    def hear(family: Counter | Gauge | Histogram) -> None:
        metric = family.metric
        name = (
            family.name.removesuffix("_total").removesuffix(f"_{metric.unit}")
            if metric.unit
            else (family.name.removesuffix("_total") if metric.kind == "counter" else family.name)
        )
        about = {"unit": _UNITS.get(metric.unit, metric.unit or "1"), "description": metric.help}
        if isinstance(family, Histogram):
            histogram = meter.create_histogram(name, **about, explicit_bucket_boundaries_advisory=family.bounds)
            family.tell(lambda labels: _Measurements(histogram, tuple(labels.items())))
        elif isinstance(family, Counter):
            meter.create_observable_counter(name, [fresh.reader(family)], **about)
        else:
            meter.create_observable_gauge(name, [fresh.reader(family)], **about)

    metrics.forward(hear)


class _Fresh:
    """Reads metrics that were brought up to date at the beginning of each collection."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._first: object = None

    def reader(self, family: Counter | Gauge) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Return the callback of one instrument."""
        if self._first is None:
            self._first = family

        def read(_options: CallbackOptions) -> Iterable[Observation]:
            if family is self._first:  # instruments are read in the order in which they were made
                self._metrics.families()
            for series in family.series[:]:
                value = series.get()
                if value == value:  # noqa: PLR0124 - not a number: nothing is known
                    yield Observation(value, dict(zip(family.label_names, series.values, strict=True)))

        return read
