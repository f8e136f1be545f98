"""How long to pause before the next attempt: exponential growth up to a cap, with jitter.

```
pause(n) = min(cap, base * factor ** (n - 1))           grown = pause(n)
delay(n) = grown * (1 - jitter) + grown * jitter * U    U uniform in [0, 1)

decorrelated:    delay(n) = min(cap, base + (3 * delay(n - 1) - base) * U)
```

`jitter=1` is the "full jitter" and `jitter="decorrelated"` the one of that name in Marc Brooker's "Exponential
Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff"]

_SPREAD = 3.0  # how many times longer than the last pause a decorrelated one may be


@dataclass(frozen=True, slots=True)
class Backoff:
    """Compute the growing pauses between attempts.

    Args:
        base: The first pause, in seconds.
        factor: How many times longer each next pause is; at least 1.
        cap: The longest pause, in seconds.
        jitter: The share of a pause that is random: 0 for none, 1 for full jitter. Or "decorrelated": each pause is
            drawn between `base` and three times the one before it, whatever the `factor`.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float | Literal["decorrelated"] = 1.0

    def __post_init__(self) -> None:
        checks.seconds("base", self.base, zero=True)
        checks.seconds("cap", self.cap, zero=True)
        if self.jitter != "decorrelated":
            checks.share("jitter", self.jitter, zero=True)
        is_number = isinstance(self.factor, int | float) and not isinstance(self.factor, bool)
        if not is_number or not 1 <= self.factor <= sys.float_info.max:
            raise ConfigurationError(f"factor must be a number of at least 1, got {self.factor!r}")

    def pause(self, attempt: int) -> float:
        """Return the pause after the given attempt, counted from 1, in seconds, without jitter: its upper bound."""
        factor = _SPREAD if self.jitter == "decorrelated" else float(self.factor)
        try:
            grown = self.base * factor ** (attempt if self.jitter == "decorrelated" else attempt - 1)
        except OverflowError:
            return self.cap if self.base else 0.0
        return min(self.cap, grown)

    def delay(self, attempt: int, random: Callable[[], float], previous: float | None = None) -> float:
        """Return the jittered pause after the given attempt, in seconds.

        Args:
            attempt: How many attempts have failed so far, from 1.
            random: Draws from [0, 1), such as `clock.random`.
            previous: The pause before this one, for decorrelated jitter; None to assume the longest possible.
        """
        if self.jitter == "decorrelated":
            longest = self.pause(attempt) if previous is None else _SPREAD * previous
            return min(self.cap, self.base + max(0.0, longest - self.base) * random())
        grown = self.pause(attempt)
        return grown * (1.0 - self.jitter) + grown * self.jitter * random()
