"""The web stack for WSGI: `app.wsgi_app = protect(app.wsgi_app, service="employee", timeout=2.0)`.

Thin wrappers around the parts of `reliakit.web`, in the order of `reliakit.web.stack`. Pure WSGI (PEP 3333): no body
is buffered, and the app's iterable is closed exactly once.

```
start_response ── wrapped by all      errors before the first byte: start_response(..., exc_info), then the problem
iterable       ── Observed: counts, keeps the request's context, ends at close()
               └─ Rescued:  may still answer instead until the first byte is out
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.web.body import BodyLimit
from reliakit.web.client_ip import client_ip
from reliakit.web.cors import Cors
from reliakit.web.headers import SecurityHeaders
from reliakit.web.observer import RequestObserver
from reliakit.web.problem import ProblemResponses
from reliakit.web.rate_limit import Limiter, RateLimitHeaders
from reliakit.web.stack import Attachable, stack
from reliakit.web.timeout import RequestTimeout
from reliakit.web.wsgi.observed import Limited, Observed, Secured, Shared
from reliakit.web.wsgi.rescued import Answered, Bounded, Timed, rescuing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import WSGIApplication

    from reliakit.core.spine import Listener
    from reliakit.web.part import Part

__all__ = ["protect", "wrap"]


def protect(
    app: WSGIApplication,
    *,
    service: str,
    metrics: Attachable | None = None,
    limiter: Limiter | None = None,
    key: Callable[[Any], str | None] = client_ip(),  # noqa: B008 - immutable
    timeout: float | None = None,
    headers: SecurityHeaders | None = SecurityHeaders.api(),  # noqa: B008 - immutable
    cors: Cors | None = None,
    max_body: int | None = 1_048_576,
    trusted: Iterable[str] = (),
    listeners: Iterable[Listener] = (),
    clock: Clock = SYSTEM_CLOCK,
) -> WSGIApplication:
    """Return the app behind the whole stack: observed, bounded, and answering errors with problem documents.

    Args:
        app: Any WSGI app, such as `flask_app.wsgi_app`.
        service: The service's name in events, metrics and access records.
        metrics: A `Metrics`; it is attached, so that it counts what this process emits.
        limiter: A `RateLimiter` that is asked before the app runs.
        key: What a request is counted under: a callable(environ) -> text, or None for a request without a limit.
        timeout: Seconds to the first byte of the response. Cooperative: waits of reliakit and `checkpoint()` raise,
            which becomes 504; nothing can stop other code in a thread.
        headers: Response headers that are added unless the app sets them itself; None for none.
        cors: Which other origins may call from a browser.
        max_body: The largest request body in bytes; a larger one gets 413. None for any size.
        trusted: Networks of your own proxies and services, such as "10.0.0.0/8": their X-Forwarded-For,
            X-Forwarded-Proto and X-Request-Deadline-Ms are believed, and X-Request-Priority if all hops are yours.
        listeners: Listeners of this stack alone.
        clock: Measures durations and timeouts.

    Raises:
        ConfigurationError: A setting is wrong; the message names it.
    """
    parts = stack(
        service=service,
        metrics=metrics,
        limiter=limiter,
        key=key,
        timeout=timeout,
        stream_timeout=None,
        headers=headers,
        cors=cors,
        max_body=max_body,
        trusted=trusted,
        listeners=listeners,
        clock=clock,
    )
    for part in reversed(parts):
        app = wrap(app, part)
    return app


def wrap(app: WSGIApplication, part: Part) -> WSGIApplication:
    """Return the app behind one part.

    Raises:
        ConfigurationError: `app` is not a WSGI application, or `part` is not part of this stack.
    """
    if not callable(app):
        raise ConfigurationError(f"app must be a WSGI application, got {app!r}")
    shell = next((_SHELLS[kind] for kind in type(part).__mro__ if kind in _SHELLS), None)
    if shell is None:
        raise ConfigurationError(f"part must be one of {', '.join(kind.__name__ for kind in _SHELLS)}, got {part!r}")
    wrapped: WSGIApplication = shell(app, part)
    return wrapped


_SHELLS: dict[type[Part], Callable[[WSGIApplication, Any], WSGIApplication]] = {
    RequestObserver: Observed,
    SecurityHeaders: Secured,
    Cors: Shared,
    ProblemResponses: rescuing(Answered),
    RequestTimeout: rescuing(Timed),
    RateLimitHeaders: Limited,
    BodyLimit: rescuing(Bounded),
}
