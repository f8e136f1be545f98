"""How long to pause before trying again: exponential growth under a cap, with jitter.

```
pause(n) = min(cap, base * factor ** (n - 1))           grown = pause(n)
delay(n) = grown * (1 - jitter) + grown * jitter * U    U uniform in [0, 1)
```

`jitter=1` is the "full jitter" of Marc Brooker's "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing pauses between attempts.

    Args:
        base: The first pause, in seconds.
        factor: How much longer each next pause is; at least 1.
        cap: No pause is longer than this, in seconds.
        jitter: The share of a pause that is random, 0 none, 1 full.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 1.0

    def __post_init__(self) -> None:
        checks.seconds("base", self.base, zero=True)
        checks.seconds("cap", self.cap, zero=True)
        checks.share("jitter", self.jitter, zero=True)
        is_number = isinstance(self.factor, int | float) and not isinstance(self.factor, bool)
        if not is_number or not 1 <= self.factor <= sys.float_info.max:
            raise ConfigurationError(f"factor must be a number of at least 1, got {self.factor!r}")

    def pause(self, attempt: int) -> float:
        """Return the pause after the given attempt, counted from 1, before jitter, in seconds."""
        try:
            grown = self.base * float(self.factor) ** (attempt - 1)
        except OverflowError:
            return self.cap if self.base else 0.0
        return min(self.cap, grown)

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the jittered pause after the given attempt, in seconds.

        Args:
            attempt: How many attempts have failed so far, from 1.
            random: Draws from [0, 1), such as `clock.random`.
        """
        grown = self.pause(attempt)
        return grown * (1.0 - self.jitter) + grown * self.jitter * random()
