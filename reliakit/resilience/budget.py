"""A budget for retries and hedges: a share of the calls under way, so that they cannot multiply an outage.

```
calls    o o o o o o o o o o o o o o o o o o o o      20 under way
retries  x x x x                                       4 of them may be retries: ratio 0.2
```

After failsafe-go's budget and the retry budgets of Finagle. A few may always run, for a service with few calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import RetryBudgetExceededError
from reliakit.core.events import CallRejected
from reliakit.core.fork import renew_locks_after_fork, tell_after_fork
from reliakit.core.spine import Emitter

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.spine import Listener

__all__ = ["RetryBudget"]


class RetryBudget:
    """Limit how many of the calls under way may be retries or hedges.

    Give one object to every `Retry` and `Hedge` that calls the same dependency. A retry holds its place from the
    beginning of its pause to the end of its attempt. When the budget is spent, a Retry gives up with the last real
    error and a Hedge starts no copy; a first attempt is never refused. For a loop of your own:

    ```python
    with budget:                            # one call, however often it is tried
        budget.acquire()                    # one more attempt, or RetryBudgetExceededError
        budget.release()
    ```

    One object is safe for any mix of threads and tasks and never waits.

    Args:
        ratio: The share of the calls under way that may be retries.
        minimum: How many retries are always allowed.
        name: Names the budget in errors and events.
        listeners: Callables that receive its events.
        clock: Where the time of events comes from.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    __slots__ = ("__weakref__", "_calls", "_emitter", "_lock", "_retries", "minimum", "name", "ratio")

    def __init__(
        self,
        ratio: float = 0.2,
        minimum: int = 3,
        *,
        name: str = "default",
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.ratio: float = checks.share("ratio", ratio, zero=True)
        self.minimum: int = checks.count("minimum", minimum, least=0)
        self.name: str = checks.named("name", name)
        self._emitter = Emitter(name, listeners, clock)
        # Adding to a deque and taking from it are atomic, so no call is counted twice or lost without a lock.
        self._calls: deque[None] = deque()
        self._retries: deque[None] = deque()
        self._lock = threading.RLock()  # re-entrant: a finaliser may end a call while this thread holds it
        renew_locks_after_fork(self, "_lock")
        tell_after_fork(self, "begin_anew")

    @property
    def calls(self) -> int:
        """How many calls are under way."""
        return len(self._calls)

    @property
    def retries(self) -> int:
        """How many attempts beyond the first are under way or about to be."""
        return len(self._retries)

    @property
    def limit(self) -> int:
        """How many retries there may be now."""
        return max(self.minimum, int(self.ratio * len(self._calls)))

    def offer(self) -> bool:
        """Take a place for one more attempt and return True, or return False when there is none. Never waits."""
        with self._lock:  # two threads that look at once must not both take the last place
            granted = len(self._retries) < self.limit
            if granted:
                self._retries.append(None)
        if not granted:
            self._emitter.emit(CallRejected, reason=RetryBudgetExceededError.__name__, retry_after=None)
        return granted

    def acquire(self) -> None:
        """Take a place for one more attempt; the caller must release it.

        Raises:
            RetryBudgetExceededError: The budget is spent.
        """
        if not self.offer():
            raise RetryBudgetExceededError(
                f"retry budget {self.name!r} is spent: {self.retries} of {self.calls} calls under way are retries",
                name=self.name,
            )

    def release(self) -> None:
        """Give the place of an attempt back. Releasing once too often changes nothing."""
        if self._retries:
            self._retries.pop()

    def begin_anew(self) -> None:
        """Forget what was under way in the parent process."""
        self._calls.clear()
        self._retries.clear()

    def __enter__(self) -> Self:
        self._calls.append(None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._calls:  # empty if the block was entered before a fork
            self._calls.pop()

    def __repr__(self) -> str:
        return (
            f"<RetryBudget {self.name!r} {self.retries} of {self.limit} retries in {self.calls} calls, "
            f"ratio={self.ratio:g}, minimum={self.minimum}>"
        )
