"""A circuit breaker: stops calling what keeps failing, and lets a few probes find out when it works again.

```
closed ── failures, or slow calls ──> open ── reset_timeout, then a call ──> half_open ── probes ──> closed or open
```

After Michael Nygard, "Release It!" (2007). The decisions are in `circuit.py`; this module adds the lock, the clock,
the verdicts and the events. One breaker serves threads and tasks at once: a decision never waits, and the lock is
held for the few steps of a decision, never while a call, a listener or a predicate runs.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from types import CoroutineType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.colour import refuse_value
from reliakit.core.errors import CircuitOpenError, ConfigurationError
from reliakit.core.events import (
    CallEnded,
    CallRejected,
    CallStarted,
    CircuitPresent,
    ErrorSeen,
)
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.guard import acall, call, guarded, result_type
from reliakit.core.spine import Emitter, watch
from reliakit.core.tracking import report
from reliakit.resilience.blocks import Blocks
from reliakit.resilience.breaks import BreakLength, OpenFor, ResetTimeout
from reliakit.resilience.circuit import Circuit, Entry, State, Ticket
from reliakit.resilience.ledger import Ledger
from reliakit.resilience.outcomes import Outcomes
from reliakit.resilience.permit import Permit
from reliakit.resilience.snapshot import BreakerSnapshot
from reliakit.resilience.triggers import triggers_of
from reliakit.resilience.verdict import ErrorFilter, Judge
from reliakit.resilience.windows import CountWindow, TimeWindow

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.lanes import Lane
    from reliakit.core.spine import Listener
    from reliakit.resilience.policy import Policy

__all__ = ["BreakerSnapshot", "CircuitBreaker", "CountWindow", "Permit", "State", "TimeWindow"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_new = CircuitOpenError.__new__
_LAST_HUNDRED = CountWindow(100)


class CircuitBreaker(Outcomes):
    """Stop calling a dependency that keeps failing or keeps being slow.

    ```python
    breaker = CircuitBreaker("payments", failure_rate=0.5, slow_call=2.0, slow_rate=0.8, window=TimeWindow(30.0))

    @breaker                                # def, async def, generators, async generators, methods
    async def pay(order): ...

    breaker.call(fn, 1)                     # or await breaker.acall(fn, 1)
    with breaker: ...                       # or async with breaker
    permit = breaker.acquire()              # two steps, for middleware and callbacks
    ```

    A call that is refused raises CircuitOpenError. Cancellation, KeyboardInterrupt, SystemExit, GeneratorExit and
    rejections that pass through are not counted; an error that is neither a failure nor ignored counts as a success,
    because the dependency answered. One object is safe for any mix of threads and tasks. benchmarks/resilience.py
    prints what a call costs compared with a bare wrapper function.

    Any one of the triggers opens the circuit. Rates are inclusive and judged after every outcome, so a success may
    open it too, by completing `minimum_calls` or after older successes have left a time window.

    Args:
        name: Names the breaker in errors and events.
        failure_threshold: Failures in a row that open the circuit. None means 5, or off when a rate is set.
        failure_rate: Share of failures in the window that opens it, above 0 up to 1.
        slow_call: Seconds from which a call counts as slow, whatever its outcome. Goes with `slow_rate`.
        slow_rate: Share of slow calls in the window that opens it, above 0 up to 1.
        window: Which recent outcomes the rates are computed over.
        minimum_calls: The number of outcomes in the window below which no rate is judged.
        reset_timeout: How long it stays open, in seconds: a number, a `Backoff`, or a callable that is given how many
            times it has opened since it was last closed, from 1. If the callable raises, that is logged and the break
            lasts 60 s.
        half_open_calls: How many probes are let through after the break. With a rate set, the rate over them decides
            as soon as it can; else the first failure opens the circuit again, and all must succeed to close it.
        half_open_timeout: Seconds after which a probe that has not answered loses its permit to the next caller.
            None means the length of the break.
        failure: Which errors are failures: a type, a tuple of types, or a predicate of the error.
        ignore: Which errors are not counted at all; takes precedence over `failure`.
        failure_result: A predicate of the result that makes it a failure, or None. `with` blocks have no result.
        open_for: A callable that is given each failure, as its error or its result, and returns for how many seconds
            the dependency asks to be left alone, such as a Retry-After, or None. The circuit then opens at once for
            that long.
        listeners: Callables that receive this breaker's events.
        clock: Provides the time and the random numbers.

    Raises:
        ConfigurationError: A setting is wrong, or two of them do not go together.
    """

    # Slots, because the wrapper of every call reads `passing`.
    __slots__ = (
        "__weakref__",
        "_blocks",
        "_known",
        "_refused",
        "_settings",
        "_tells_refusals",
    )

    def __init__(
        self,
        name: str = "default",
        *,
        failure_threshold: int | None = None,
        failure_rate: float | None = None,
        slow_call: float | None = None,
        slow_rate: float | None = None,
        window: CountWindow | TimeWindow = _LAST_HUNDRED,
        minimum_calls: int = 10,
        reset_timeout: ResetTimeout = 60.0,
        half_open_calls: int = 1,
        half_open_timeout: float | None = None,
        failure: ErrorFilter = Exception,
        ignore: ErrorFilter = (),
        failure_result: Callable[[Any], bool] | None = None,
        open_for: OpenFor | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name: str = checks.named("name", name)
        triggers = triggers_of(
            failure_threshold=failure_threshold,
            failure_rate=failure_rate,
            slow_call=slow_call,
            slow_rate=slow_rate,
            window=window,
            minimum_calls=minimum_calls,
            half_open_calls=half_open_calls,
        )
        if half_open_timeout is not None:
            half_open_timeout = checks.seconds("half_open_timeout", half_open_timeout)
        self._length = BreakLength(name, reset_timeout, open_for)
        self._asks = open_for is not None
        self._judge = Judge(failure, ignore, failure_result)
        self._clock = clock
        self._emitter = Emitter(name, listeners, clock)
        self._now = clock.monotonic
        self._circuit = Circuit(triggers, window, half_open_timeout)
        self._ledger = Ledger(self._circuit, self, clock)
        self._telling = threading.Lock()
        self._blocks: Blocks[Permit] = Blocks()
        self._heard = self._tells_errors = self._tells_refusals = False
        self._refused = (
            f"circuit breaker {name!r} is open, so the call was not tried; see retry_after for when to retry"
        )
        self._settings = ", ".join(
            f"{argument}={value!r}"
            for argument, value, default in (
                ("failure_threshold", triggers.in_a_row, None),
                ("failure_rate", failure_rate, None),
                ("slow_call", slow_call, None),
                ("slow_rate", slow_rate, None),
                ("window", window, _LAST_HUNDRED),
                ("minimum_calls", minimum_calls, 10),
                ("reset_timeout", reset_timeout, None),
                ("half_open_calls", half_open_calls, 1),
                ("half_open_timeout", half_open_timeout, None),
                ("failure", failure, Exception),
                ("ignore", ignore, ()),
                ("failure_result", failure_result, None),
                ("open_for", open_for, None),
            )
            if value != default
        )
        is_timed = slow_call is not None or isinstance(window, TimeWindow)
        self.timing: tuple[Callable[[], float], float] | None = (
            (clock.monotonic, inf if slow_call is None else float(slow_call)) if is_timed else None
        )
        self.passing: Lane | None = None
        self._known: type[object] | None = None  # the class of the last result that was not awaitable
        renew_locks_after_fork(self, "_telling")
        watch(self)

    def __call__(self, fn: F) -> F:
        """Decorate a function, method, generator or coroutine function. It stays what it is, with its signature.

        Raises:
            ConfigurationError: `fn` is a class, a coroutine object or not callable.
        """
        return guarded(self, fn, by=f"circuit breaker {self.name!r}")  # type: ignore[return-value]  # same signature

    def __or__(self, inner: object) -> Policy:
        """Put this breaker around another pattern: `breaker | Timeout(2.0)`."""
        from reliakit.resilience.policy import Policy  # noqa: PLC0415 - a breaker alone needs none

        return Policy(self, inner)

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a plain function once.

        Raises:
            CircuitOpenError: The circuit is open, and the function was not called.
            ConfigurationError: `fn` is not a plain function.
        """
        # The short way, while a success is only counted: `call` of the guards takes twice as long.
        lane = self.passing
        if lane is None or not callable(fn):
            return call(self, fn, *args, **kwargs)
        began = None if self.timing is None else self._now()
        try:
            result = fn(*args, **kwargs)
            if type(result) is not self._known:
                self._known = result_type(fn, result)
        except BaseException as error:
            self.leave(lane if began is None else Entry(lane, began), error, None)
            raise
        if began is None:
            lane.count += 1
        else:
            self._count(Entry(lane, began), "success")
        return result

    async def acall(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a coroutine function once and await it.

        Raises:
            CircuitOpenError: The circuit is open, and the function was not called.
            ConfigurationError: `fn` returned something that cannot be awaited.
        """
        lane = self.passing
        if lane is None or not callable(fn):
            return await acall(self, fn, *args, **kwargs)
        began = None if self.timing is None else self._now()
        try:
            pending = fn(*args, **kwargs)
            if not isinstance(pending, CoroutineType):
                refuse_value(fn, pending)
            result = await pending
        except BaseException as error:
            self.leave(lane if began is None else Entry(lane, began), error, None)
            raise
        if began is None:
            lane.count += 1
        else:
            self._count(Entry(lane, began), "success")
        return result

    def acquire(self) -> Permit:
        """Return the permit for one call, which the caller must settle. Never waits.

        Raises:
            CircuitOpenError: No call may pass now.
        """
        lane = self.passing
        if lane is None:
            return Permit(self, self._admit())
        return Permit(self, lane if self.timing is None else Entry(lane, self._now()))

    def enter(self) -> Ticket:
        """Let a call pass and return its ticket for `leave`; wrappers use this half of `acquire`.

        Raises:
            CircuitOpenError: No call may pass now.
        """
        lane = self.passing
        if lane is not None and self.timing is None:
            return lane
        until = self._circuit.until
        if until > -inf:  # one value says it all, so a refusal needs no lock
            wait = until - self._now()
            if wait > 0:
                raise self._refusal(wait if wait < inf else None)
        ticket = self._admit()
        if self._heard:
            self._emitter.emit(CallStarted)
        return ticket

    def _admit(self) -> Ticket:
        ticket, retry_after = self._decide()
        if ticket is None:
            raise self._refusal(retry_after)
        return ticket

    def offer(self) -> Ticket | None:
        """Let a call pass as `enter` does, or return None, for callers that do not treat a refusal as an error."""
        ticket, wait = self._decide()
        if ticket is None and self._tells_refusals:
            self._emitter.emit(CallRejected, reason="CircuitOpenError", retry_after=wait)
        return ticket

    def _decide(self) -> tuple[Ticket | None, float | None]:
        """Return the ticket of a call that may pass, or None and the seconds until one may, if they are known."""
        circuit = self._circuit
        lane = circuit.lane
        if lane.until > -inf and not self._heard:
            return (lane if self.timing is None else Entry(lane, self._now())), None
        now = self._now()
        until = circuit.until
        if now < until:  # one value says it all, so a refusal needs no lock
            return None, until - now if until < inf else None
        with self._ledger.lock:
            ticket = circuit.admit(now)
            wait = None if ticket is not None else circuit.retry_after(now)
        self._tell()
        return ticket, wait

    def permit_since(self, lane: Lane, began: float, /) -> Entry:
        """Return the ticket of a call that began on this lane at this instant; for the call's wrapper."""
        return Entry(lane, began)

    def listeners_changed(self) -> None:
        """Leave the express lane while somebody listens to every call; see `reliakit.core.spine.watch`."""
        with self._ledger.lock:
            self._heard = self._emitter.hears(CallEnded) or self._emitter.hears(CallStarted)
            self._tells_errors = self._emitter.hears(ErrorSeen)
            self._tells_refusals = self._tells_errors or self._emitter.hears(CallRejected)
            self._show_lane_locked()
        self._emitter.introduce(CircuitPresent, read=self._ledger.read)

    def _refusal(self, retry_after: float | None) -> CircuitOpenError:
        # Refusing must stay cheap when thousands do nothing else: calling __new__ takes half as long as the class.
        # The error is made here, not in the frame that raises it: a frame holding the error it raises is a cycle.
        error = _new(CircuitOpenError, self._refused)
        error.name = self.name
        error.retry_after = retry_after
        if self._tells_refusals:
            self._emitter.emit(CallRejected, reason="CircuitOpenError", retry_after=retry_after)
            report(self._emitter, error)
        return error

    def __enter__(self) -> Permit:
        permit = self.acquire()
        self._blocks.enter(permit)
        return permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(self._blocks.leave(), error)

    async def __aenter__(self) -> Permit:
        permit = self.acquire()
        self._blocks.enter(permit)
        return permit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left(self._blocks.leave(), error)

    def _left(self, permit: Permit | None, error: BaseException | None) -> None:
        if permit is None:
            raise ConfigurationError(f"circuit breaker {self.name!r} was left without having been entered")
        ticket = permit.claim()
        if ticket is None:
            return  # settled inside the block
        lane = self.passing
        if error is not None:
            self.leave(ticket, error, None)
        elif lane is not None and ticket is lane:
            lane.count += 1
        else:
            self._count(ticket, "success")

    def __repr__(self) -> str:
        with self._ledger.lock:
            standing = f"{self._circuit.state.value}, {self._circuit.failures} failures"
        return f"<CircuitBreaker {self.name!r} {standing}, {self._settings}>"
