"""How long a circuit stays open: by the settings, and by what the dependency itself asks for.

```
reset_timeout      60.0, Backoff(5.0, cap=120.0), or a callable of how many times it has opened
open_for           a callable of a failure: seconds that its Retry-After asks for, or None
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import isfinite
from typing import Any, TypeAlias

from reliakit.core import checks
from reliakit.core.backoff import Backoff
from reliakit.core.errors import ConfigurationError
from reliakit.resilience.verdict import plain_callable

__all__ = ["FALLBACK", "BreakLength", "OpenFor", "ResetTimeout"]

ResetTimeout: TypeAlias = float | Backoff | Callable[[int], float]
OpenFor: TypeAlias = Callable[[Any], float | None]

_log = logging.getLogger("reliakit")
FALLBACK = 60.0


class BreakLength:
    """Decides the length of breaks, and contains errors of the caller's callables.

    Args:
        name: The breaker's name, for the log.
        reset_timeout: See `CircuitBreaker`.
        open_for: See `CircuitBreaker`.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    __slots__ = ("_has_told", "_name", "_open_for", "_reset_timeout")

    def __init__(self, name: str, reset_timeout: ResetTimeout, open_for: OpenFor | None) -> None:
        if callable(reset_timeout):
            plain_callable("reset_timeout", reset_timeout)
        elif not isinstance(reset_timeout, Backoff):
            reset_timeout = checks.seconds("reset_timeout", reset_timeout)
        self._name = name
        self._reset_timeout = reset_timeout
        self._open_for = None if open_for is None else plain_callable("open_for", open_for)
        self._has_told = False

    def after(self, opened_count: int, random: Callable[[], float]) -> float:
        """Return how long the break lasts when the circuit opens for the `opened_count`th time in a row, from 1."""
        given = self._reset_timeout
        if isinstance(given, Backoff):
            return given.delay(opened_count, random)
        if not callable(given):
            return given
        try:
            length = float(given(opened_count))
            if isfinite(length) and length >= 0:
                return length
            raise ConfigurationError(f"reset_timeout must return a number of seconds, it returned {length!r}")
        except Exception:  # noqa: BLE001
            # An open circuit protects, even with a break of the wrong length.
            _log.exception("reset_timeout of circuit breaker %r raised; it opens for %g s", self._name, FALLBACK)
            return FALLBACK

    def asked_by(self, failure: object) -> float | None:
        """Return for how many seconds this error or failing result asks to be left alone, or None if it does not."""
        if self._open_for is None or failure is None:
            return None
        try:
            asked = self._open_for(failure)
            if asked is None or asked <= 0:
                return None
            return checks.seconds("what open_for returns", asked)
        except Exception:  # noqa: BLE001
            # The failure still counts as one.
            if not self._has_told:
                self._has_told = True
                _log.exception("open_for of circuit breaker %r raised; its next errors are not reported", self._name)
            return None
