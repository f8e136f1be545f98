"""A time budget for each request, which everything that it calls can see.

```
|<------------- timeout ------------>|
 request ──────── headers ── chunk ──|── chunk ── last chunk ── work after it
                     ^ disarmed      |<- pause ->|                 ^ never cut off
                                      stream_timeout
```

The budget is a deadline of `reliakit.core.deadline`, so pool checkouts, statements, pauses between attempts and
limiter waits end with it. Once the response has started, it is lifted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.deadline import DEADLINE_HEADER
from reliakit.core.errors import ConfigurationError, DeadlineExceededError
from reliakit.web import request as view
from reliakit.web.part import Part
from reliakit.web.problem import ProblemResponse, ProblemResponses
from reliakit.web.request import Peers, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.core.spine import Listener

__all__ = ["RequestTimeout"]

HEADER = DEADLINE_HEADER.lower()
_MILLISECONDS = re.compile(r"[0-9]{1,9}")


class RequestTimeout(Part):
    """Limit the time from a request's arrival to the first byte of its response; after that the client gets 504.

    In ASGI apps the 504 is sent at that very moment and the app is cancelled; Python cannot stop a function that
    blocks a thread, which runs on unheard. In WSGI apps the budget is cooperative: waits of reliakit and
    `checkpoint()` raise DeadlineExceededError, which becomes 504, and a response that comes late is kept. An app's
    own TimeoutError is left alone.

    Args:
        timeout: Seconds to the first byte; None leaves it to what trusted peers ask for.
        stream_timeout: Seconds that may pass between two chunks of a started ASGI response before it is cut off. The
            time that a slow client takes does not count.
        trusted: Services whose `X-Request-Deadline-Ms` is honoured: what is left of their own budget, in
            milliseconds. It can only shrink `timeout`.
        service: The service's name, for `ErrorSeen`.
        listeners: Listeners of this component alone.
        clock: Measures the time.

    Raises:
        ConfigurationError: A budget is not a positive number, or all of the first three are left out.
    """

    __slots__ = ("_problems", "_trusted", "clock", "stream_timeout", "timeout")

    def __init__(
        self,
        timeout: float | None = None,
        *,
        stream_timeout: float | None = None,
        trusted: Iterable[str] = (),
        service: str | None = None,
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.timeout: float | None = None if timeout is None else checks.seconds("timeout", timeout)
        self.stream_timeout: float | None = (
            None if stream_timeout is None else checks.seconds("stream_timeout", stream_timeout)
        )
        self._trusted = Peers(trusted)
        self.clock: Clock = clock
        self._problems = ProblemResponses(service=service, listeners=listeners)
        if self.timeout is None and self.stream_timeout is None and not self._trusted:
            raise ConfigurationError("timeout must be given if neither stream_timeout nor trusted is")

    def budget(self, request: Request) -> float | None:
        """Return the seconds that this request may take to its first byte, or None for no limit."""
        if not self._trusted or view.peer(request) not in self._trusted:
            return self.timeout
        asked = view.header(request, HEADER)
        if asked is None or not _MILLISECONDS.fullmatch(asked):
            return self.timeout
        seconds = int(asked) / 1000
        return seconds if self.timeout is None else min(self.timeout, seconds)

    def answer(self, error: Exception) -> ProblemResponse:
        """Return the response for a spent budget, and report it to listeners and the log."""
        return self._problems.answer(error)

    def seen(self, error: BaseException) -> None:
        """Report a response that was cut off to listeners."""
        self._problems.seen(error, 504)

    def expired(self, seconds: float) -> DeadlineExceededError:
        """Return the error for a spent budget of `seconds`."""
        return DeadlineExceededError(f"the request's budget of {seconds:g} s is spent", seconds=seconds)

    def __repr__(self) -> str:
        return f"RequestTimeout({self.timeout!r}, stream_timeout={self.stream_timeout!r}, trusted={self._trusted!r})"
