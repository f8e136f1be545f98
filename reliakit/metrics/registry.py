"""Metrics: one registry per service, fed by reliakit's events and by your own code, that cannot hurt either.

```
events ── attach() ─┐                        ┌─ render(), asgi_app, wsgi_app, register()
increment, observe ─┼─ cells of each thread ─┤
counter().inc() ────┘                        └─ slo(): verdicts on the objectives
```
"""

from __future__ import annotations

import atexit
import os
import platform
import weakref
from collections.abc import Iterable
from dataclasses import replace
from threading import RLock
from typing import TYPE_CHECKING, Any, Self, cast, get_args

from reliakit import __version__
from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import NumbersWanted
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.core.spine import Emitter, Subscription, subscribe, watch
from reliakit.metrics.apps import AsgiApp, WsgiApp
from reliakit.metrics.declare import aliases, declared, is_name
from reliakit.metrics.defaults import with_defaults
from reliakit.metrics.exposition import Exposition
from reliakit.metrics.family import AnyFamily, Counter, Gauge, Histogram, Registry
from reliakit.metrics.feed import Feed
from reliakit.metrics.metric import LATENCY, Across, Metric
from reliakit.metrics.objectives import Objective
from reliakit.metrics.scoreboard import Scoreboard
from reliakit.metrics.shelf import Shelf
from reliakit.metrics.sources import Naming, SourceMode
from reliakit.metrics.view import View

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from prometheus_client import CollectorRegistry

    from reliakit.core.events import Event
    from reliakit.metrics.labels import Label
    from reliakit.metrics.shared import SharedFiles
    from reliakit.metrics.verdicts import Verdict

__all__ = ["Metrics"]

# How often, in seconds, a process writes for the others what it otherwise computes on demand.
_SHOW_EVERY = 1.0


class Metrics:
    """Count, measure and judge what a service does; create one, attach it, and serve it.

    ```python
    metrics = Metrics()
    with metrics:
        metrics.increment("security", event="failed_login", source="203.0.113.9")
        jobs = metrics.counter("jobs", "Jobs done.", labels=("queue",))
        jobs.labels("mail").inc()
        print(metrics.render().body.decode())
    ```

    One object serves all threads and tasks. Counting takes no lock, never raises and never waits. Two objects in one
    process are independent.

    Args:
        namespace: Goes before the names of reliakit's own metrics; "" leaves them bare.
        max_series: How many series one metric may hold, 1 or more; further label values count as `_other`.
        source: How clients are shown in `security_total`: "ip", the address, IPv6 as its /64; "prefix", its /24 or
            /48; "network", loopback, private or public; "hmac", a pseudonym of the address; "off", not at all.
            Addresses, prefixes and pseudonyms are named once five events are certain, at most 100 of them; the rest
            is `_other`.
        hmac_key: The key of the pseudonyms, at least 16 bytes; keep it secret, or they can be guessed.
        objectives: Objectives in addition to the default ones, or instead of those with the same name.
        clock: Drives the windows of the objectives.

    Attributes:
        asgi_app: The ASGI application that serves the metrics; more than 1000 series are rendered in a thread.
        wsgi_app: The WSGI application that serves the metrics.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        namespace: str = "reliakit",
        *,
        max_series: int = 1000,
        source: SourceMode = "ip",
        hmac_key: bytes | str | None = None,
        objectives: Iterable[Objective] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if namespace != "" and not is_name(namespace):
            raise ConfigurationError(f"namespace must be letters, digits and _, or empty, got {namespace!r}")
        self.namespace = namespace
        self.max_series: int = checks.count("max_series", max_series)
        naming = Naming(source, hmac_key)
        # Guards attaching; counting and rendering never take it. Re-entrant, because a signal handler may close it,
        # or a finaliser a generator that holds it attached.
        self._lock = RLock()
        self._emitter = Emitter("metrics", clock=clock)
        self._clock = clock
        self._files = _shared_files()
        self._shown_at = clock.monotonic()
        renew_locks_after_fork(self, "_lock")
        self._subscriptions: list[Subscription] = []
        self._collectors: list[tuple[CollectorRegistry, Any]] = []
        wanted = with_defaults(objectives)
        registry = Registry(self._drop, clock.time, self._files)
        self._shelf = shelf = Shelf(namespace, self.max_series, naming, registry, wanted)
        self._families, self._counted, self._observed = shelf.families, shelf.counted, shelf.observed
        errors = shelf.counter("error_total")
        self._error_names = frozenset({errors.name, *aliases(errors.metric)})
        self._dropped = shelf.counter("metrics_dropped_total")
        self._feed = Feed(shelf, clock, self, written=None if self._files is None else self._show)
        self._board = Scoreboard(shelf.find, self._observed.get, clock)
        for objective in wanted:
            self._board.add(objective)
        self._view = View(shelf, self.slo, self._files)
        self.asgi_app: AsgiApp = AsgiApp(self._view.scrape, self._view.is_large)
        self.wsgi_app: WsgiApp = WsgiApp(self._view.scrape)
        watch(self)
        if self._files is not None:
            atexit.register(_leave, weakref.ref(self))
            tell_after_fork(self, "_begin_anew")
        shelf.gauge("build_info").labels(__version__, platform.python_version()).set(1)

    def _begin_anew(self) -> None:
        """Count only what happens from here on: this is a child, whose files begin at 0."""
        self._feed.begin_anew()

    def attach(self) -> Subscription:
        """Count everything that reliakit's components report, until the subscription or this object is closed.

        Attaching twice counts once.

        Returns:
            The subscription, which is also a context manager.
        """
        subscription = subscribe(self, *self._feed.types)
        with self._lock:
            self._subscriptions.append(subscription)
        return subscription

    def close(self) -> None:
        """Stop listening and leave every prometheus_client registry; counts stay. Closing twice is harmless."""
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, []
            collectors, self._collectors = self._collectors, []
        for subscription in subscriptions:
            subscription.close()
        self._feed.leave()
        for registry, collector in collectors:
            registry.unregister(collector)

    def listeners_changed(self) -> None:
        """Stop reading what components count once nobody listens to them; see `reliakit.core.spine.watch`."""
        subscriptions = self._subscriptions[:]
        if subscriptions and all(subscription.is_closed for subscription in subscriptions):
            self._feed.leave()

    def __enter__(self) -> Self:
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Count one event: a `Metrics` is itself a listener, for `listeners=[metrics]`."""
        self._feed.take(event)
        if self._files is not None:
            self._show()

    def _show(self) -> None:
        """Show other processes now and then what is worked out only when it is asked for."""
        now = self._clock.monotonic()
        if now - self._shown_at >= _SHOW_EVERY:
            self._shown_at = now
            self.families()

    def increment(self, name: str, amount: float = 1, /, **labels: object) -> None:
        """Add to a counter, or to a gauge, by its name, with or without `_total`.

        An unknown name or label is dropped and counted in `metrics_dropped_total`; nothing is raised.

        Args:
            name: Such as "error" or "security", or the name of a declared metric.
            amount: How much to add, zero or more; also `amount=`.
            labels: Label values; one that is left out is empty.
        """
        try:
            metric = self._counted.get(name)
        except Exception:  # noqa: BLE001 - what cannot be looked up is no name; the drop is counted
            name, metric = "", None
        if metric is None:
            self._drop("wrong_kind" if name in self._observed else "unknown_metric")
            return
        if "amount" in labels and "amount" not in metric.label_names:
            amount = cast("float", labels.pop("amount"))
        series = metric.labels(**labels)
        series.inc(amount)
        if series.is_lost:
            self._miss(name)

    def observe(self, name: str, value: float | None = None, /, **labels: object) -> None:
        """Add a measurement to a histogram, or set a gauge, by its name, with or without its unit.

        An unknown name or label is dropped and counted in `metrics_dropped_total`; nothing is raised.

        Args:
            name: Such as "transaction", or the name of a declared metric.
            value: The measurement in the metric's unit; also `duration=` or `value=`.
            labels: Label values; one that is left out is empty.
        """
        try:
            metric = self._observed.get(name)
        except Exception:  # noqa: BLE001 - likewise
            name, metric = "", None
        if metric is None:
            self._drop("wrong_kind" if name in self._counted else "unknown_metric")
            return
        if value is None:
            word = next(
                (word for word in ("duration", "value") if word in labels and word not in metric.label_names), ""
            )
            value = cast("float | None", labels.pop(word, None))
        if isinstance(metric, Histogram):
            metric.labels(**labels).observe(cast("float", value))
        else:
            metric.labels(**labels).set(cast("float", value))

    def counter(self, name: str, help: str = "", labels: Iterable[str | Label] = (), *, unit: str = "") -> Counter:  # noqa: A002 - the field's word
        """Declare a counter, which only grows; declaring the same again returns the same handle.

        Args:
            name: Its name; `_total` is added if it is missing, the namespace is not.
            help: One sentence for people.
            labels: The names of its dimensions.
            unit: Its base unit, such as "bytes"; becomes part of the name.

        Raises:
            ConfigurationError: The name is taken by another metric, or an argument is wrong.
        """
        return cast("Counter", self._shelf.custom(declared("counter", name, help, labels=labels, unit=unit)))

    def gauge(
        self,
        name: str,
        help: str = "",  # noqa: A002 - the field's word
        labels: Iterable[str | Label] = (),
        *,
        unit: str = "",
        multiprocess_mode: Across = "livesum",
    ) -> Gauge:
        """Declare a gauge, which goes up and down; declaring the same again returns the same handle.

        Args:
            name: Its name; the unit is added if it is missing, the namespace is not.
            help: One sentence for people.
            labels: The names of its dimensions.
            unit: Its base unit, such as "bytes"; becomes part of the name.
            multiprocess_mode: How the values of several processes are combined if PROMETHEUS_MULTIPROC_DIR is set:
                "sum", "max", "min", or "all", which keeps them apart by pid; with "live" before it, only those of
                processes that are alive.

        Raises:
            ConfigurationError: The name is taken by another metric, or an argument is wrong.
        """
        if multiprocess_mode not in get_args(Across):
            raise ConfigurationError(
                f"multiprocess_mode must be one of {', '.join(get_args(Across))}, got {multiprocess_mode!r}"
            )
        metric = replace(declared("gauge", name, help, labels=labels, unit=unit), across=multiprocess_mode)
        return cast("Gauge", self._shelf.custom(metric))

    def histogram(
        self,
        name: str,
        help: str = "",  # noqa: A002 - the field's word
        labels: Iterable[str | Label] = (),
        *,
        unit: str = "",
        buckets: Iterable[float] = LATENCY,
        objectives: Iterable[float] = (),
    ) -> Histogram:
        """Declare a histogram of measurements; declaring the same again returns the same handle.

        Args:
            name: Its name; the unit is added if it is missing, the namespace is not.
            help: One sentence for people.
            labels: The names of its dimensions.
            unit: Its base unit, such as "seconds"; becomes part of the name.
            buckets: Upper bounds, in growing order; the infinite one is always there.
            objectives: Thresholds that objectives look at; each becomes a bucket bound.

        Raises:
            ConfigurationError: The name is taken by another metric, or an argument is wrong.
        """
        metric = declared("histogram", name, help, labels=labels, unit=unit, buckets=buckets, objectives=objectives)
        return cast("Histogram", self._shelf.custom(metric))

    def objective(self, objective: Objective) -> None:
        """Judge a further objective from now on, replacing one with the same name.

        Raises:
            ConfigurationError: It names a metric, label or threshold that has not been declared.
        """
        if not isinstance(objective, Objective):
            raise ConfigurationError(f"objective must be an Objective, got {objective!r}")
        with self._lock:
            self._board.add(objective)

    @property
    def declared(self) -> dict[str, Metric]:
        """Every metric as it is declared, by its full name."""
        return {name: family.metric for name, family in self._families.copy().items()}

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Every objective that is judged, in the order in which they were added."""
        return self._board.objectives

    def slo(self) -> list[Verdict]:
        """Return the verdict on each objective over its window. Well below a millisecond; from any thread."""
        self._emitter.emit(NumbersWanted)
        self._feed.refresh()
        return self._board.verdicts()

    def render(self, accept: str | None = "") -> Exposition:
        """Return all metrics as text.

        Args:
            accept: The client's Accept header, if it sent one: OpenMetrics 1.0 if it prefers that, else the text
                format 0.0.4.
        """
        scrape = self._view.scrape(accept)
        return Exposition(b"".join(scrape.pieces), scrape.content_type)

    def register(self, registry: CollectorRegistry) -> None:
        """Make a prometheus_client registry show all these metrics too, as one collector, until `close()`.

        Registering twice shows them once.

        Raises:
            ConfigurationError: The registry has a metric of the same name, or is not a registry.
        """
        from reliakit.metrics.collector import MetricsCollector  # noqa: PLC0415 - prometheus_client loads slowly

        if not callable(getattr(registry, "register", None)):
            raise ConfigurationError(f"registry must be a CollectorRegistry of prometheus_client, got {registry!r}")
        with self._lock:
            if any(known is registry for known, _ in self._collectors):
                return
            collector = MetricsCollector(self.families)
            try:
                registry.register(collector)
            except ValueError as error:
                raise ConfigurationError(
                    f"registry has such metrics already: use another namespace ({error})"
                ) from error
            self._collectors.append((registry, collector))

    def forward(self, hear: Callable[[AnyFamily], object]) -> None:
        """Pass every metric, present and future, to code that shows it elsewhere.

        Args:
            hear: Called with each metric once; must neither block nor raise.
        """
        self._shelf.forward(hear)

    def families(self) -> list[AnyFamily]:
        """Return all metrics, with those about the metrics themselves brought up to date."""
        return self._view.families()

    def _drop(self, reason: str) -> None:
        self._dropped.labels(reason).inc()

    def _miss(self, name: str) -> None:
        """Record that an error was not counted, for the objective that all errors are counted."""
        if name in self._error_names:
            self._shelf.counter("error_untracked_total").inc()

    def __repr__(self) -> str:
        state = "attached" if self._subscriptions else "not attached"
        return f"<Metrics {self.namespace!r}, max_series={self.max_series}, {self._view.size()} series, {state}>"


def _shared_files() -> SharedFiles | None:
    """Return the shared files that the environment asks for, or None if each process keeps its own numbers."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return None
    from reliakit.metrics.shared import SharedFiles  # noqa: PLC0415 - only this mode needs it

    return SharedFiles.wanted()


def _leave(reference: weakref.ref[Metrics]) -> None:
    """Write, as the process ends, what is otherwise only read on demand: nobody will ask again."""
    metrics = reference()
    if metrics is not None:
        metrics.close()
