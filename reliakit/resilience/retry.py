"""Calling again what failed, as long as that can help and there is time.

```
attempt ── error ── pause ── attempt ── error ── pause ── attempt ── error      the last real error, with a note
                      ^ not begun if it does not fit the deadline or the budget
```

Pauses grow with jitter (see `reliakit.core.backoff`), and a server that says when to come back is obeyed. `_Attempts`
decides what follows each attempt of a call; the loops around it only wait.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.categories import sqlstate_of
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.deadline import remaining
from reliakit.core.errors import CommitUnknownError, ConfigurationError, DeadlineExceededError, RejectedError
from reliakit.core.events import AttemptFailed, RetryEnded
from reliakit.core.flow import Outcome, attempt, attempt_async
from reliakit.resilience.budget import RetryBudget
from reliakit.resilience.policy import Layer
from reliakit.resilience.retry_after import retry_after_of
from reliakit.resilience.streams import afirst, astream, first, stream
from reliakit.resilience.verdict import ErrorFilter, Question, matching, plain_callable, shown

if TYPE_CHECKING:
    from reliakit.core.guard import Colour
    from reliakit.core.spine import Emitter, Listener

__all__ = ["Retry"]

_log = logging.getLogger("reliakit")

Wait: TypeAlias = "Backoff | float | Callable[[int], float]"
Reason = Literal["success", "attempts", "deadline", "budget", "rejected", "retry_after", "error"]

# Not retried unless `on` asks for them by name: a refusal is an answer, and a COMMIT of unknown outcome may have been
# carried out.
_TO_BE_NAMED = (RejectedError, CommitUnknownError)
_MOST_NOTES = 16
_NOTHING: Outcome[Any] = Outcome()
_USUAL = Backoff()
_WORDS: dict[Reason, str] = {
    "attempts": "no attempts are left",
    "deadline": "the next one does not fit the deadline",
    "budget": "the retry budget is spent",
    "rejected": "the next one was rejected",
    "retry_after": "the server asks for too long a pause",
    "error": "this error is not tried again",
}


class Retry(Layer):
    """Call a function again when it fails.

    ```python
    @Retry(3, on=OSError)                   # def, async def, generators, async generators, methods
    async def fetch(url): ...
    ```

    Whatever ends the retries (attempts, deadline, budget, a circuit that opened meanwhile), the last real error is
    raised, the same object, with a note that says how many attempts there were and how long they took. A pause that
    does not fit the deadline is not begun. Cancellation, KeyboardInterrupt, SystemExit, GeneratorExit and
    ConfigurationError are never retried; rejections and CommitUnknownError only if `on` names them or is a predicate
    that accepts them.

    A generator is retried until it yields its first item; after that its error passes, because the consumer has seen
    something. One object is safe for any mix of threads and tasks. A first attempt that succeeds costs one reading of
    the clock.

    Args:
        max_attempts: The total number of attempts; 1 for no retries.
        on: Which errors are retried: a type, a tuple of types, or a predicate of the error.
        wait: The pause after each failed attempt: a `Backoff`, seconds, or a callable that is given the attempt's
            number, from 1, and returns seconds. If an error or result says when to come back (`retry_after`, or a
            Retry-After header), the next attempt does not start before that.
        budget: Limits retries to a share of all calls, see `RetryBudget`.
        retry_result: A predicate of the result that says whether to retry; when the attempts are used up, the last
            result is returned. For functions only, not for generators.
        max_retry_after: The longest pause, in seconds, that a server may ask for; for a longer one it gives up.
        name: Names it in events.
        listeners: Callables that receive its events.
        clock: Provides the time and the random numbers.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    __slots__ = (
        "_clock",
        "_on",
        "_result",
        "_settings",
        "_wants",
        "budget",
        "max_attempts",
        "max_retry_after",
        "wait",
    )

    def __init__(
        self,
        max_attempts: int = 3,
        *,
        on: ErrorFilter = Exception,
        wait: Wait = Backoff(),  # noqa: B008 - frozen
        budget: RetryBudget | None = None,
        retry_result: Callable[[Any], bool] | None = None,
        max_retry_after: float = 300.0,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(name, listeners, clock)
        self.max_attempts: int = checks.count("max_attempts", max_attempts)
        self.wait: Wait = _checked_wait(wait)
        if budget is not None and not isinstance(budget, RetryBudget):
            raise ConfigurationError(f"budget must be a RetryBudget, got {budget!r}")
        self.budget: RetryBudget | None = budget
        self.max_retry_after: float = checks.seconds("max_retry_after", max_retry_after, zero=True)
        self._clock = clock
        self._on = on
        self._wants = Question(matching("on", on), otherwise=False)
        self._result = (
            None if retry_result is None else Question(plain_callable("retry_result", retry_result), otherwise=False)
        )
        self._settings = f"{max_attempts}, on={shown(on)}, wait={wait!r}" + "".join(
            f", {argument}={value!r}"
            for argument, value, default in (
                ("retry_result", retry_result, None),
                ("max_retry_after", max_retry_after, 300.0),
                ("name", name, "default"),
            )
            if value != default
        )

    def wrap(self, fn: Callable[..., Any], colour: Colour) -> Callable[..., Any]:
        """Return `fn` with its retries, in the same colour."""
        if colour in {"generator", "async generator"} and self._result is not None:
            raise ConfigurationError("retry_result judges results, and a generator has none: leave it out, or use on")
        if colour == "plain":
            return self._plain(fn)
        if colour == "async":
            return self._async(fn)
        if colour == "generator":
            return stream(self._plain(first(fn)))
        return astream(self._async(afirst(fn)))

    def wants(self, error: BaseException) -> bool:
        """Return whether this error is retried."""
        if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
            return False
        if isinstance(error, _TO_BE_NAMED) and not self._names(error):
            return False
        return self._wants(error)

    def judge(self, outcome: Outcome[Any]) -> bool:
        """Return whether this outcome is retried."""
        if outcome.error is not None:
            return self.wants(outcome.error)
        return self._result is not None and self._result(outcome.value)

    def pause(self, number: int, outcome: Outcome[Any], previous: float | None) -> float | None:
        """Return the seconds to wait after this attempt, or None if a longer wait is asked for than is allowed."""
        own = self._own_pause(number, previous)
        told = retry_after_of(outcome.value if outcome.error is None else outcome.error, self._clock.time())
        if told is None:
            return own
        return max(own, told) if told <= self.max_retry_after else None

    def _own_pause(self, number: int, previous: float | None) -> float:
        wait, random = self.wait, self._clock.random
        if isinstance(wait, Backoff):
            return wait.delay(number, random, wait.base if previous is None else previous)
        if not callable(wait):
            return wait
        try:
            pause = float(wait(number))
            if not (isfinite(pause) and pause >= 0):
                raise ConfigurationError(f"wait must return a number of seconds, it returned {pause!r}")
        except Exception:  # noqa: BLE001
            # The call's own error matters more than a fault in the pause after it.
            pause = _USUAL.delay(number, random)
            _log.exception("wait of retry %r raised; the pause is %g s", self.name, pause)
        return pause

    def _names(self, error: BaseException) -> bool:
        named: Any = self._on
        if not isinstance(named, tuple | type):
            return True  # a predicate, which is asked about this very error
        kinds: tuple[Any, ...] = named if isinstance(named, tuple) else (named,)  # pyright: ignore[reportUnknownVariableType]
        return any(isinstance(error, kind) and issubclass(kind, _TO_BE_NAMED) for kind in kinds)

    def _plain(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        now, result_matters = self._clock.monotonic, self._result is not None

        def run(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                result = fn(*args, **kwargs)
                if not result_matters:
                    return result
                outcome: Outcome[Any] = Outcome(result)
            except Exception as error:  # noqa: BLE001 - raised below, unless another attempt makes it good
                outcome = Outcome(error=error)
            attempts, kept = _Attempts(self, self._emitter, began), _NOTHING
            try:
                while (pause := attempts.pause_after(outcome)) is not None:
                    self._clock.sleep(pause)
                    outcome = attempt(fn, *args, **kwargs)
                kept = attempts.end()
                if kept.error is not None:
                    raise kept.error
                return kept.value
            finally:
                attempts.close()
                # An error's traceback holds this frame, which must not hold the error.
                outcome = kept = _NOTHING

        return run if self.budget is None else self._plain_on_budget(run, self.budget)

    def _async(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        now, result_matters = self._clock.monotonic, self._result is not None

        async def run(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                result = await fn(*args, **kwargs)
                if not result_matters:
                    return result
                outcome: Outcome[Any] = Outcome(result)
            except Exception as error:  # noqa: BLE001 - as above
                outcome = Outcome(error=error)
            attempts, kept = _Attempts(self, self._emitter, began), _NOTHING
            try:
                while (pause := attempts.pause_after(outcome)) is not None:
                    await self._clock.asleep(pause)
                    outcome = await attempt_async(fn, *args, **kwargs)
                kept = attempts.end()
                if kept.error is not None:
                    raise kept.error
                return kept.value
            finally:
                attempts.close()
                # An error's traceback holds this frame, which must not hold the error.
                outcome = kept = _NOTHING

        return run if self.budget is None else self._async_on_budget(run, self.budget)

    @staticmethod
    def _plain_on_budget(run: Callable[..., Any], budget: RetryBudget) -> Callable[..., Any]:
        def run_on_budget(*args: Any, **kwargs: Any) -> Any:
            with budget:
                return run(*args, **kwargs)

        return run_on_budget

    @staticmethod
    def _async_on_budget(run: Callable[..., Any], budget: RetryBudget) -> Callable[..., Any]:
        async def run_on_budget(*args: Any, **kwargs: Any) -> Any:
            with budget:
                return await run(*args, **kwargs)

        return run_on_budget

    def __repr__(self) -> str:
        budget = "" if self.budget is None else f", budget={self.budget!r}"
        return f"Retry({self._settings}{budget})"


class _Attempts:
    """The attempts of one call: whether another one follows, and what the call ends with when none does."""

    __slots__ = (
        "_began",
        "_emitter",
        "_holds_budget",
        "_kept",
        "_number",
        "_previous",
        "_reason",
        "_retry",
        "_untried",
    )

    def __init__(self, retry: Retry, emitter: Emitter, began: float) -> None:
        self._retry = retry
        self._emitter = emitter
        self._began = began
        self._number = 0
        self._previous: float | None = None
        self._kept: Outcome[Any] | None = None  # the last outcome that came from the call itself
        self._reason: Reason = "success"
        self._untried = False  # whether the last attempt was refused before it was made
        self._holds_budget = False

    def pause_after(self, outcome: Outcome[Any]) -> float | None:
        """Return the seconds until the next attempt, or None if this was the last one."""
        self._number += 1
        self._give_back()
        again = self._retry.judge(outcome)
        if self._kept is None or not _says_nothing(outcome.error):
            self._kept = outcome
        if not again:
            self._reason = self._reason_to_stop(outcome)
            self._untried = self._reason == "rejected" and self._kept is not outcome
            return None
        # Only asked when an attempt may follow: it calls the caller's own `wait` and draws from the clock's random.
        is_last = self._number >= self._retry.max_attempts
        pause = None if is_last else self._retry.pause(self._number, outcome, self._previous)
        if pause is None:
            self._reason = "attempts" if is_last else "retry_after"
            return None
        reason = self._reason_to_give_up(pause)
        if reason is not None:
            self._reason = reason
            return None
        self._previous = pause
        if self._emitter.hears(AttemptFailed):
            error = outcome.error
            self._emitter.emit(
                AttemptFailed,
                attempt=self._number,
                delay=pause,
                error_type=type(error).__name__ if error is not None else "",
                sqlstate=None if error is None else sqlstate_of(error),
            )
        return pause

    def end(self) -> Outcome[Any]:
        """Return the call's final outcome, its error with a note, and report how it ended."""
        kept = self._kept
        assert kept is not None
        error, number = kept.error, self._number
        if not (number == 1 and self._reason in {"success", "error", "rejected"}):
            clock = self._retry._clock  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # two halves of one thing
            spent = clock.monotonic() - self._began
            number -= self._untried
            if error is not None:
                _note(error, number, spent, self._reason)
            self._emitter.emit(
                RetryEnded,
                outcome="success" if self._reason == "success" else "failure",
                reason=self._reason,
                attempts=number,
                duration=spent,
                error_type=None if error is None else type(error).__name__,
            )
        return kept

    def close(self) -> None:
        """Release what is held, also when the call was cancelled during a pause."""
        self._give_back()
        self._kept = None

    def _reason_to_stop(self, outcome: Outcome[Any]) -> Reason:
        if outcome.error is None:
            return "success"
        if self._kept is not outcome and isinstance(outcome.error, DeadlineExceededError):
            return "deadline"
        return "rejected" if isinstance(outcome.error, RejectedError) else "error"

    def _reason_to_give_up(self, pause: float) -> Reason | None:
        left = remaining()
        if left is not None and pause >= left:
            return "deadline"
        budget = self._retry.budget
        if budget is not None:
            if not budget.offer():
                return "budget"
            self._holds_budget = True
        return None

    def _give_back(self) -> None:
        if self._holds_budget:
            self._holds_budget = False
            cast("RetryBudget", self._retry.budget).release()


def _says_nothing(error: BaseException | None) -> bool:
    """Return whether this error comes from our own limits and says nothing about the dependency."""
    if isinstance(error, RejectedError):
        return True
    return isinstance(error, DeadlineExceededError) and remaining() == 0.0


def _note(error: BaseException, number: int, spent: float, reason: Reason) -> None:
    attempts = f"{number} attempt{'s' if number > 1 else ''}"
    with contextlib.suppress(Exception):  # an error that takes no notes is raised without one
        if len(getattr(error, "__notes__", ())) < _MOST_NOTES:  # the same object may be raised for ever
            error.add_note(f"reliakit: gave up after {attempts} in {spent:.3f} s: {_WORDS[reason]}")


def _checked_wait(wait: Any) -> Wait:
    if isinstance(wait, Backoff):
        return wait
    if isinstance(wait, int | float):
        return checks.seconds("wait", wait, zero=True)
    return plain_callable("wait", wait)
