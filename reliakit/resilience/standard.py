"""What most outgoing calls need, in the one right order.

```
Fallback | Timeout(total) | Retry(budget) | CircuitBreaker | Timeout(attempt) | Bulkhead
```

The order is Resilience4j's with a limit on the whole: the breaker counts attempts one by one, one that takes too long
is a failure of the dependency, and no pause is begun that does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliakit.core.backoff import Backoff
from reliakit.core.errors import ConfigurationError
from reliakit.resilience.breaker import CircuitBreaker
from reliakit.resilience.budget import RetryBudget
from reliakit.resilience.bulkhead import Bulkhead
from reliakit.resilience.fallback import Fallback
from reliakit.resilience.retry import Retry
from reliakit.resilience.timeout import Timeout

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Listener

__all__ = ["standard_parts"]

_WAIT = Backoff(base=0.1, cap=10.0)


def standard_parts(
    name: str,
    *,
    timeout: float | None,
    attempt_timeout: float,
    max_attempts: int,
    wait: Backoff | None,
    on: Any,
    max_concurrent: int | None,
    breaker: CircuitBreaker | None,
    fallback: object,
    listeners: Iterable[Listener],
    clock: Clock,
) -> list[object]:
    """Return the parts of `Policy.standard`, which documents the arguments."""
    told: dict[str, Any] = {"name": name, "listeners": listeners, "clock": clock}
    if timeout is not None and attempt_timeout > timeout:
        raise ConfigurationError(
            f"attempt_timeout must be at most timeout, got {attempt_timeout!r} of {timeout!r}: it never ends first"
        )
    parts: list[object] = []
    if fallback is not ...:
        parts.append(Fallback(fallback, **told))
    if timeout is not None:
        parts.append(Timeout(timeout, **told))
    if max_attempts != 1:
        parts.append(Retry(max_attempts, on=on, wait=wait or _WAIT, budget=RetryBudget(**told), **told))
    parts += [breaker or CircuitBreaker(**told), Timeout(attempt_timeout, **told)]
    if max_concurrent is not None:
        parts.append(Bulkhead(max_concurrent, **told))
    return parts
