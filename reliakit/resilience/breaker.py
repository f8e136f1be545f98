"""A circuit breaker: stops calling what keeps failing, and lets a few probes find out when it is well again.

```
closed ── failures in a row ──> open ── reset_timeout, then a call ──> half_open ── probes ──> closed or open
```

After Michael Nygard, "Release It!" (2007). The decisions are in `circuit.py`; this is the shell around them: the
lock, the clock, the verdicts and the events. One breaker serves threads and tasks at once: a decision never waits,
the lock is held for its few steps only, and never while a call, a listener or a predicate runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import CircuitOpenError, ConfigurationError
from reliakit.core.events import CallEnded, CallRejected, CircuitChanged, ErrorSeen
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.guard import acall, call, guarded
from reliakit.core.spine import Emitter, watch
from reliakit.core.tracking import report
from reliakit.resilience.blocks import Blocks, frame_of_block
from reliakit.resilience.circuit import BreakerSnapshot, Circuit, State, Ticket
from reliakit.resilience.verdict import ErrorFilter, Judge, Verdict, plain_callable

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from reliakit.core.spine import Listener

__all__ = ["BreakerSnapshot", "CircuitBreaker", "Permit", "State"]

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
ResetTimeout: TypeAlias = float | Backoff | Callable[[int], float]

_log = logging.getLogger("reliakit")
_FALLBACK_BREAK = 60.0


class Permit:
    """Leave for one call that the breaker does not make itself; give it back with exactly one verdict.

    The first verdict counts, later ones change nothing. Safe to settle from another thread or task.
    """

    __slots__ = ("_breaker", "_ticket")

    def __init__(self, breaker: CircuitBreaker, ticket: Ticket) -> None:
        self._breaker = breaker
        self._ticket = [ticket]  # list.pop is atomic: of two threads that settle at once one finds it empty

    def success(self) -> None:
        """The dependency answered."""
        self._settle("success", None)

    def failure(self, error: BaseException | None = None) -> None:
        """The dependency failed. With an error that the breaker ignores, this is `ignore()`."""
        self._settle("failure", error)

    def ignore(self) -> None:
        """The call said nothing about the dependency: it neither counts nor resets."""
        self._settle("ignored", None)

    def claim(self) -> Ticket | None:
        """Take out the ticket, once; for the breaker itself."""
        try:
            return self._ticket.pop()
        except IndexError:
            return None

    def _settle(self, verdict: Verdict, error: BaseException | None) -> None:
        ticket = self.claim()
        if ticket is not None:
            self._breaker.settle(ticket, verdict, error)

    def __repr__(self) -> str:
        return f"<Permit of {self._breaker.name!r}, {'open' if self._ticket else 'settled'}>"


class CircuitBreaker:
    """Stop calling a dependency that keeps failing.

    ```python
    breaker = CircuitBreaker("payments")

    @breaker                                # def, async def, generators, async generators, methods
    async def pay(order): ...

    breaker.call(fn, 1)                     # or await breaker.acall(fn, 1)
    with breaker: ...                       # or async with breaker
    permit = breaker.acquire()              # two steps, for middleware and callbacks
    ```

    A call that is refused raises CircuitOpenError. Cancellation, KeyboardInterrupt, SystemExit, GeneratorExit and
    rejections that pass through count as nothing; an error that is neither failure nor ignored counts as a success,
    for the dependency answered. One object is safe for any mix of threads and tasks. A closed circuit costs about a
    third of a bare wrapper function.

    Args:
        name: Names the breaker in errors and events.
        failure_threshold: Failures in a row that open the circuit.
        reset_timeout: How long it stays open, in seconds: a number, a `Backoff`, or a callable of how many times it
            has opened since it was closed, from 1. One that raises is logged and stands for 60 s.
        half_open_calls: How many probes are let through after the break, and all must succeed; the first failure
            opens the circuit again.
        half_open_timeout: Seconds after which a probe that has not answered loses its permit to the next caller.
            None stands for the length of the break.
        failure: Which errors are failures: a type, a tuple of types, or a predicate of the error.
        ignore: Which errors count as nothing; beats `failure`.
        failure_result: A predicate of the result that makes it a failure, or None. `with` blocks have no result.
        listeners: Callables that receive this breaker's events.
        clock: Where time and chance come from.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    # Slots, because the wrapper of every call reads `passing` twice.
    __slots__ = (
        "__weakref__",
        "_blocks",
        "_circuit",
        "_clock",
        "_emitter",
        "_failure_threshold",
        "_further_settings",
        "_heard",
        "_judge",
        "_lock",
        "_refused",
        "_reset_timeout",
        "_telling",
        "_tells_refusals",
        "name",
        "passing",
    )

    def __init__(
        self,
        name: str = "default",
        *,
        failure_threshold: int = 5,
        reset_timeout: ResetTimeout = 60.0,
        half_open_calls: int = 1,
        half_open_timeout: float | None = None,
        failure: ErrorFilter = Exception,
        ignore: ErrorFilter = (),
        failure_result: Callable[[Any], bool] | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name: str = checks.named("name", name)
        self._failure_threshold = checks.count("failure_threshold", failure_threshold)
        checks.count("half_open_calls", half_open_calls)
        if half_open_timeout is not None:
            half_open_timeout = checks.seconds("half_open_timeout", half_open_timeout)
        if callable(reset_timeout):
            plain_callable("reset_timeout", reset_timeout)
        elif not isinstance(reset_timeout, Backoff):
            reset_timeout = checks.seconds("reset_timeout", reset_timeout)
        self._reset_timeout = reset_timeout
        self._judge = Judge(failure, ignore, failure_result)
        self._further_settings = "".join(
            f", {argument}={value!r}"
            for argument, value, default in (
                ("half_open_calls", half_open_calls, 1),
                ("half_open_timeout", half_open_timeout, None),
                ("failure", failure, Exception),
                ("ignore", ignore, ()),
                ("failure_result", failure_result, None),
            )
            if value is not default
        )
        self._clock = clock
        self._emitter = Emitter(name, listeners, clock)
        # Re-entrant, because garbage that is collected while it is held may hold a permit of this very breaker.
        self._lock = threading.RLock()
        self._telling = threading.Lock()
        self._circuit = Circuit(failure_threshold, half_open_calls, half_open_timeout)
        self._blocks: Blocks[Permit] = Blocks()
        self._heard = self._tells_refusals = False
        self._refused = (
            f"circuit breaker {name!r} is open, so the call was not tried; see retry_after for when to retry"
        )
        self.passing: Ticket | None = None
        renew_locks_after_fork(self, "_lock", "_telling")
        watch(self)
        self.listeners_changed()

    def __call__(self, fn: F) -> F:
        """Decorate a function, method, generator or coroutine function; its signature and its colour stay.

        Raises:
            ConfigurationError: `fn` is a class, a coroutine object or no callable.
        """
        return guarded(self, fn, by=f"circuit breaker {self.name!r}")  # type: ignore[return-value]  # same signature

    def call(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a plain function once.

        Raises:
            CircuitOpenError: It was not called.
            ConfigurationError: `fn` is no plain function.
        """
        return call(self, fn, *args, **kwargs)

    async def acall(self, fn: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Await one call.

        Raises:
            CircuitOpenError: It was not called.
            ConfigurationError: What `fn` returned is nothing to await.
        """
        return await acall(self, fn, *args, **kwargs)

    def acquire(self) -> Permit:
        """Return the permit for one call, to be settled by the caller. Never waits.

        Raises:
            CircuitOpenError: No call may pass now.
        """
        return Permit(self, self.enter())

    @property
    def state(self) -> State:
        """Where the circuit stands. It moves on calls only: after the break it is open until somebody calls."""
        return self._circuit.state

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may pass: 0.0 when it may now, None when that is not known."""
        with self._lock:
            return self._circuit.retry_after(self._clock.monotonic())

    def snapshot(self) -> BreakerSnapshot:
        """Return state, counts and the rest of the break, in plain values that another process can restore."""
        with self._lock:
            return self._circuit.snapshot(self._clock.monotonic())

    def restore(self, snapshot: BreakerSnapshot) -> None:
        """Go on from a snapshot, of this breaker or of one in another process. Calls under way are not counted."""
        if not isinstance(snapshot, BreakerSnapshot):
            raise ConfigurationError(f"restore takes a BreakerSnapshot, got {type(snapshot).__name__}")
        with self._lock:
            now = self._clock.monotonic()
            unknown = self._circuit.restore(snapshot, now)
            generation = self._circuit.generation
            self._open_lane_locked()
        if unknown:
            self._hold(generation, now, snapshot.opened_count)
        self._tell()

    def force_open(self, seconds: float | None = None) -> None:
        """Refuse every call until told otherwise, or for so many seconds, after which probes decide.

        Args:
            seconds: As a server asks for with Retry-After, or None for no end.
        """
        if seconds is not None:
            seconds = checks.seconds("seconds", seconds, zero=True)
        with self._lock:
            self._circuit.force_open(self._clock.monotonic(), seconds)
            self._open_lane_locked()
        self._tell()

    def disable(self) -> None:
        """Let every call pass and count nothing, until told otherwise."""
        self._switch(State.DISABLED)

    def metrics_only(self) -> None:
        """Let every call pass, and go on counting and telling listeners, until told otherwise."""
        self._switch(State.METRICS_ONLY)

    def close(self) -> None:
        """Close the circuit, whatever its state. A closed one goes on as it was."""
        self._switch(State.CLOSED)

    def reset(self) -> None:
        """Begin anew: closed, with nothing counted, and no outcome of an earlier call will be."""
        with self._lock:
            self._circuit.reset()
            self._open_lane_locked()
        self._tell()

    def enter(self) -> Ticket:
        """Let a call pass and return its ticket for `leave`; the half of `acquire` that wrappers use.

        Raises:
            CircuitOpenError: No call may pass now.
        """
        shared = self._circuit.shared
        if shared is not None and not self._heard:
            return shared
        ticket, wait = self._decide()
        if ticket is None:
            raise self._refusal(wait)
        return ticket

    def offer(self) -> Ticket | None:
        """Let a call pass as `enter` does, or return None: for callers to whom a refusal is no error."""
        shared = self._circuit.shared
        if shared is not None and not self._heard:
            return shared
        ticket, wait = self._decide()
        if ticket is None and self._tells_refusals:
            self._emitter.emit(CallRejected, reason="CircuitOpenError", retry_after=wait)
        return ticket

    def _decide(self) -> tuple[Ticket | None, float | None]:
        """Return the ticket of a call that may pass, or None and the seconds until one may, where that is known."""
        circuit = self._circuit
        now = self._clock.monotonic()
        until = circuit.until
        if now < until:  # one value that tells everything, so a refusal needs no lock
            return None, until - now if until < inf else None
        with self._lock:
            ticket = circuit.admit(now)
            if ticket is circuit.shared and ticket is not None:
                ticket = Ticket(ticket.generation, now)  # somebody listens, and wants to know the duration
            wait = None if ticket is not None else circuit.retry_after(now)
        self._tell()
        return ticket, wait

    def leave(self, ticket: Ticket, error: BaseException | None, result: object, /) -> None:
        """Take a ticket back with what the call came to, and judge it."""
        verdict: Verdict = "ignored"
        try:
            verdict = self._judge.of_result(result) if error is None else self._judge.of_error(error)
        finally:
            # Also when a predicate is interrupted: a permit that is not given back would be lost.
            self._count(ticket, verdict, error)

    def listeners_changed(self) -> None:
        """Leave the express lane while somebody listens to every call; see `reliakit.core.spine.watch`."""
        with self._lock:
            self._heard = self._emitter.hears(CallEnded)
            self._tells_refusals = self._emitter.hears(CallRejected) or self._emitter.hears(ErrorSeen)
            self._open_lane_locked()

    def settle(self, ticket: Ticket, verdict: Verdict, error: BaseException | None) -> None:
        """Take a ticket back with a verdict that is known; an error that counts as nothing overrules it."""
        neutral = True
        try:
            neutral = error is not None and self._judge.is_neutral(error)
        finally:
            self._count(ticket, "ignored" if neutral else verdict, error)

    def _count(self, ticket: Ticket, verdict: Verdict, error: BaseException | None) -> None:
        circuit = self._circuit
        with self._lock:
            opened = circuit.settle(ticket, verdict)
            generation, opened_count = circuit.generation, circuit.opened_count
            counted = circuit.state is not State.DISABLED
            self._open_lane_locked()
        if opened:
            self._hold(generation, self._clock.monotonic(), opened_count)
        self._tell()
        if self._heard and counted:
            duration = None if ticket.started is None else self._clock.monotonic() - ticket.started
            self._emitter.emit(CallEnded, verdict=verdict, duration=duration)
        if error is not None:
            report(self._emitter, error)

    def _switch(self, state: State) -> None:
        with self._lock:
            self._circuit.switch(state)
            self._open_lane_locked()
        self._tell()

    def _hold(self, generation: int, now: float, opened_count: int) -> None:
        """Give the break its length. Until then everybody is refused, so the caller's code may take its time."""
        length = _FALLBACK_BREAK
        try:
            length = self._break_length(max(1, opened_count))
        except Exception:  # noqa: BLE001
            # An open circuit protects; a wrong length of the break does not.
            _log.exception("reset_timeout of circuit breaker %r raised; it opens for %g s", self.name, length)
        finally:
            with self._lock:
                self._circuit.hold(generation, now, length)

    def _break_length(self, opened_count: int) -> float:
        given = self._reset_timeout
        if isinstance(given, Backoff):
            return given.delay(opened_count, self._clock.random)
        if not callable(given):
            return given
        length = float(given(opened_count))
        if not (isfinite(length) and length >= 0):
            raise ConfigurationError(f"reset_timeout returned {length!r}, which is no number of seconds")
        return length

    def _open_lane_locked(self) -> None:
        """Open the express lane while a success would change nothing and nobody wants to hear of it."""
        circuit = self._circuit
        nothing_counts = circuit.state is State.DISABLED or (circuit.failures == 0 and not self._judge.reads_results)
        self.passing = circuit.shared if nothing_counts and not self._heard else None

    def _tell(self) -> None:
        """Emit what has changed, in order: one thread does it, and who comes meanwhile leaves it to that one."""
        changes = self._circuit.changes
        while changes and self._telling.acquire(blocking=False):
            try:
                while changes:
                    change = changes.popleft()
                    self._emitter.emit(
                        CircuitChanged,
                        previous=change.previous.value,
                        state=change.state.value,
                        cause=change.cause,
                        retry_after=change.retry_after,
                    )
            finally:
                self._telling.release()

    def _refusal(self, retry_after: float | None) -> CircuitOpenError:
        # Refusing must stay cheap when thousands do nothing else: __new__ alone takes half the time of the class.
        error = CircuitOpenError.__new__(CircuitOpenError, self._refused)
        error.name = self.name
        error.retry_after = retry_after
        if self._tells_refusals:
            self._emitter.emit(CallRejected, reason="CircuitOpenError", retry_after=retry_after)
            report(self._emitter, error)
        return error

    def __enter__(self) -> Permit:
        return self._enter_block(frame_of_block())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave_block(frame_of_block(), error)

    async def __aenter__(self) -> Permit:
        return self._enter_block(frame_of_block())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave_block(frame_of_block(), error)

    def _enter_block(self, frame: FrameType) -> Permit:
        permit = self.acquire()
        self._blocks.enter(frame, permit)
        return permit

    def _leave_block(self, frame: FrameType, error: BaseException | None) -> None:
        permit = self._blocks.leave(frame)
        if permit is None:
            raise ConfigurationError(f"circuit breaker {self.name!r} was left without having been entered")
        ticket = permit.claim()
        if ticket is None:
            return  # settled inside the block
        if error is None:
            self._count(ticket, "success", None)
        else:
            self.leave(ticket, error, None)

    def __repr__(self) -> str:
        circuit = self._circuit
        settings = f"failure_threshold={self._failure_threshold}, reset_timeout={self._reset_timeout!r}"
        return (
            f"<CircuitBreaker {self.name!r} {circuit.state.value}, {circuit.failures} failures, "
            f"{settings}{self._further_settings}>"
        )
