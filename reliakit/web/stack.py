"""The one right order of the parts, the same for ASGI and WSGI.

```
RequestObserver     outermost: observes refusals and errors too, puts the id on every response
SecurityHeaders     on every response, errors included
Cors                likewise; preflights end here, before they can be limited
ProblemResponses    errors become responses, inside of the parts that add to responses
RequestTimeout      the budget covers the limiter's wait as well
RateLimitHeaders    refuses before a body is read
BodyLimit           innermost: it watches what the app reads
```
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from reliakit.core.errors import ConfigurationError
from reliakit.web.body import BodyLimit
from reliakit.web.client_ip import ClientIP, client_ip
from reliakit.web.cors import Cors
from reliakit.web.headers import SecurityHeaders
from reliakit.web.observer import RequestObserver
from reliakit.web.problem import ProblemResponses
from reliakit.web.rate_limit import Limiter, RateLimitHeaders, checked_key
from reliakit.web.timeout import RequestTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.core.clock import Clock
    from reliakit.core.spine import Listener
    from reliakit.web.part import Part

__all__ = ["Attachable", "stack"]


class Attachable(Protocol):
    """Something that listens to the whole process once attached, such as a `reliakit.metrics.Metrics`."""

    def attach(self) -> object:
        """Start to listen."""
        ...


def stack(
    *,
    service: str,
    metrics: Attachable | None,
    limiter: Limiter | None,
    key: Callable[[Any], str | None],
    timeout: float | None,
    stream_timeout: float | None,
    headers: SecurityHeaders | None,
    cors: Cors | None,
    max_body: int | None,
    trusted: Iterable[str],
    listeners: Iterable[Listener],
    clock: Clock,
) -> list[Part]:
    """Return the parts, outermost first; see `reliakit.web.asgi.protect` for the settings."""
    checked_key(key)  # even if there is no limiter yet to use it
    peers, mine = _listed(trusted), tuple(listeners)
    # A key by address that names no proxies of its own trusts those of the whole stack.
    client = (key if isinstance(key, ClientIP) else client_ip()).behind(peers)
    parts: list[Part] = [RequestObserver(service=service, client=client, listeners=mine, clock=clock)]
    if headers is not None:
        given = _a("headers", headers, SecurityHeaders)
        parts.append(given.behind(peers) if peers else given)
    if cors is not None:
        parts.append(_a("cors", cors, Cors))
    parts.append(ProblemResponses(service=service, listeners=mine))
    if timeout is not None or stream_timeout is not None or peers:
        parts.append(
            RequestTimeout(
                timeout, stream_timeout=stream_timeout, trusted=peers, service=service, listeners=mine, clock=clock
            )
        )
    if limiter is not None:
        by = client if isinstance(key, ClientIP) else key
        parts.append(RateLimitHeaders(limiter, key=by, client=client, service=service, listeners=mine))
    if max_body is not None:
        parts.append(BodyLimit(max_body))
    if metrics is not None:
        if not callable(getattr(metrics, "attach", None)):
            raise ConfigurationError(f"metrics must have attach(), as Metrics does, got {metrics!r}")
        metrics.attach()
    return parts


def _listed(trusted: Iterable[str]) -> tuple[str, ...]:
    if isinstance(trusted, str) or not isinstance(trusted, Iterable):
        raise ConfigurationError(f"trusted must be a list of networks, got {trusted!r}: put it in a list")
    return tuple(trusted)


def _a(argument: str, value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{argument} must be {kind.__name__} or None, got {value!r}")
    return value
