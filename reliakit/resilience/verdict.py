"""How a guard counts what a call came to: success, failure, or ignored.

```
CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit      ignored: the caller went away
RejectedError, ConfigurationError                                 ignored: the dependency was not asked
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

from reliakit.core.errors import ConfigurationError, RejectedError

__all__ = ["ErrorFilter", "Judge", "Verdict", "plain_callable"]

Verdict: TypeAlias = Literal["success", "failure", "ignored"]
ErrorFilter: TypeAlias = "type[BaseException] | tuple[type[BaseException], ...] | Callable[[Any], bool]"

_log = logging.getLogger("reliakit")


class Judge:
    """Gives every outcome its verdict and contains the faults of the caller's predicates.

    A predicate that raises is logged the first time and taken for no from then on each time it raises; `failure`
    alone is taken for yes, because an error did happen.

    Args:
        failure: Which errors are failures: a type, a tuple of types or a predicate of the error.
        ignore: Which errors say nothing about the dependency; beats `failure`.
        failure_result: Which results are failures, or None for none of them.
    """

    __slots__ = ("_failed", "_failure", "_failure_result", "_ignore", "_ignore_all")

    def __init__(
        self, failure: ErrorFilter, ignore: ErrorFilter, failure_result: Callable[[Any], bool] | None
    ) -> None:
        self._failure = _matcher("failure", failure)
        self._ignore = _matcher("ignore", ignore)
        self._failure_result = None if failure_result is None else plain_callable("failure_result", failure_result)
        self._failed: set[object] = set()

    @property
    def reads_results(self) -> bool:
        """Whether results have to be looked at."""
        return self._failure_result is not None

    def of_error(self, error: BaseException) -> Verdict:
        """Return the verdict on an error that left the call."""
        if self.is_neutral(error):
            return "ignored"
        return "failure" if self._ask(self._failure, error, otherwise=True) else "success"

    def is_neutral(self, error: BaseException) -> bool:
        """Return whether this error says nothing about the dependency."""
        if not isinstance(error, Exception) or isinstance(error, RejectedError | ConfigurationError):
            return True
        if type(error).__name__ == "CancelledError" and type(error).__module__.startswith("concurrent."):
            return True  # an executor's future that was cancelled; by name, because that package is slow to load
        return self._ask(self._ignore, error, otherwise=False)

    def of_result(self, result: object) -> Verdict:
        """Return the verdict on a result."""
        if self._failure_result is None or not self._ask(self._failure_result, result, otherwise=False):
            return "success"
        return "failure"

    def _ask(self, predicate: Callable[[Any], bool], outcome: object, *, otherwise: bool) -> bool:
        try:
            return bool(predicate(outcome))
        except Exception:  # noqa: BLE001
            # The caller's own outcome matters more than a fault in how it is counted: told once, then contained.
            if predicate not in self._failed:
                self._failed.add(predicate)
                _log.exception("predicate %r raised; its next errors are not reported", predicate)
            return otherwise


def _matcher(argument: str, given: object) -> Callable[[Any], bool]:
    kinds = cast("tuple[object, ...]", given if isinstance(given, tuple) else (given,))
    if all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        expected = cast("tuple[type[BaseException], ...]", kinds)
        return lambda error: isinstance(error, expected)
    if isinstance(given, tuple | type) or not callable(given):
        raise ConfigurationError(
            f"{argument} must be an exception type, a tuple of them or a predicate of the error, got {kinds!r}"
        )
    return plain_callable(argument, given)


def plain_callable(argument: str, given: object) -> Callable[[Any], Any]:
    """Return what was given for this argument, refusing what cannot be called or would only return a coroutine."""
    if not callable(given) or isinstance(given, type):
        raise ConfigurationError(f"{argument} must be a function, got {given!r}")
    if iscoroutinefunction(given) or iscoroutinefunction(type(given).__call__):
        raise ConfigurationError(f"{argument} must be a plain function, {given!r} is async and would not be awaited")
    return given
