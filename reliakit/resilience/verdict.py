"""How a guard judges the outcome of a call: success, failure, or ignored.

```
CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit      ignored: the caller went away
RejectedError, ConfigurationError                                 ignored: the dependency was not asked
DeadlineExceededError when the caller's deadline is spent         ignored: the caller has no time left
`ignore` matches                                                  ignored
`failure` matches, or `failure_result` says so                    failure
anything else                                                     success: the dependency answered
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any, Literal, TypeAlias, cast

from reliakit.core.deadline import remaining
from reliakit.core.errors import ConfigurationError, DeadlineExceededError, RejectedError

__all__ = ["ErrorFilter", "Judge", "Question", "Verdict", "matching", "plain_callable", "shown"]

Verdict: TypeAlias = Literal["success", "failure", "ignored"]
ErrorFilter: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[Any], bool]"

_log = logging.getLogger("reliakit")
# There are few classes of errors, unless a program creates them at run time.
_CLASSES_KEPT = 256


class Question:
    """A predicate of the caller's, asked so that its errors do no harm.

    If it raises, that is logged the first time and the answer is `otherwise`: the caller's own outcome matters more
    than a fault in how it is counted.

    Args:
        predicate: Asked about an error or a result.
        otherwise: The answer when it raises.
    """

    __slots__ = ("_otherwise", "_predicate", "_was_told")

    def __init__(self, predicate: Callable[[Any], bool], *, otherwise: bool) -> None:
        self._predicate = predicate
        self._otherwise = otherwise
        self._was_told = False

    def __call__(self, outcome: object) -> bool:
        """Return the predicate's answer."""
        try:
            return bool(self._predicate(outcome))
        except Exception:  # noqa: BLE001 - told once, then contained
            if not self._was_told:
                self._was_told = True
                _log.exception("predicate %r raised; its next errors are not reported", self._predicate)
            return self._otherwise


class Judge:
    """Gives every outcome its verdict, and contains errors of the caller's predicates.

    If a predicate raises, that is logged the first time and its answer is taken as no; only that of `failure` is
    taken as yes, because an error did happen.

    Args:
        failure: Which errors are failures: a type, a tuple of types or a predicate of the error.
        ignore: Which errors say nothing about the dependency; takes precedence over `failure`.
        failure_result: Which results are failures, or None for none of them.
    """

    __slots__ = ("_by_class", "_class_decides", "_failure", "_failure_result", "_ignore")

    def __init__(
        self, failure: ErrorFilter, ignore: ErrorFilter, failure_result: Callable[[Any], bool] | None
    ) -> None:
        self._failure = Question(matching("failure", failure), otherwise=True)
        self._ignore = Question(matching("ignore", ignore), otherwise=False)
        self._failure_result = (
            None
            if failure_result is None
            else Question(plain_callable("failure_result", failure_result), otherwise=False)
        )
        # If both are types, the class decides, and its verdict is remembered from the first time on.
        self._class_decides = _are_types(failure) and _are_types(ignore)
        self._by_class: dict[type, Verdict] = {}

    @property
    def reads_results(self) -> bool:
        """Whether results must be looked at."""
        return self._failure_result is not None

    def of_error(self, error: BaseException) -> Verdict:
        """Return the verdict on an error that left the call."""
        verdict = self._by_class.get(type(error))
        if verdict is None:
            verdict = self._judged(error)
            # Whether a deadline's error counts depends on whose time is over.
            decides = self._class_decides and not isinstance(error, DeadlineExceededError)
            if decides and len(self._by_class) < _CLASSES_KEPT:
                self._by_class[type(error)] = verdict
        return verdict

    def _judged(self, error: BaseException) -> Verdict:
        if self.is_neutral(error):
            return "ignored"
        return "failure" if self._failure(error) else "success"

    def is_neutral(self, error: BaseException) -> bool:
        """Return whether this error says nothing about the dependency."""
        if not isinstance(error, Exception) or isinstance(error, RejectedError | ConfigurationError):
            return True
        if isinstance(error, DeadlineExceededError) and remaining() == 0.0:
            return True  # the caller's own time is over; a task would have been cancelled for it
        if type(error).__name__ == "CancelledError" and type(error).__module__.startswith("concurrent."):
            return True  # a cancelled future of an executor; matched by name, because its package is slow to import
        return self._ignore(error)

    def of_result(self, result: object) -> Verdict:
        """Return the verdict on a result."""
        if self._failure_result is None or not self._failure_result(result):
            return "success"
        return "failure"


def matching(argument: str, given: object) -> Callable[[Any], bool]:
    """Return the predicate that an `ErrorFilter` given for this argument stands for.

    Raises:
        ConfigurationError: It is not an exception type, a tuple of them or a plain function.
    """
    kinds = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
    if _are_types(kinds):
        expected = cast("tuple[type[BaseException], ...]", kinds)
        return lambda error: isinstance(error, expected)
    if isinstance(given, tuple | type) or not callable(given):
        raise ConfigurationError(
            f"{argument} must be an exception type, a tuple of them or a predicate of the error, got {kinds!r}"
        )
    return plain_callable(argument, given)


def _are_types(given: object) -> bool:
    kinds = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
    return all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


def plain_callable(argument: str, given: object) -> Callable[[Any], Any]:
    """Return what was given for this argument, if it can be called and does not just return a coroutine."""
    if not callable(given) or isinstance(given, type):
        raise ConfigurationError(f"{argument} must be a function, got {given!r}")
    if iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__):
        raise ConfigurationError(f"{argument} must be a plain function, {given!r} is async and would not be awaited")
    return given


def shown(errors: object) -> str:
    """Return an `ErrorFilter` as `repr` shows it."""
    if isinstance(errors, tuple):
        return f"({', '.join(map(shown, cast('tuple[object, ...]', errors)))})"
    return str(getattr(errors, "__name__", errors))
