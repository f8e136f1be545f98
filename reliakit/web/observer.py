"""Observes each request: its id, its context, and one event when it starts and one when it ends.

```
RequestStarted ── app ── headers ── body ── last byte ── work after it ── RequestEnded
               └──────────── duration ───────────┘
```

The observer is the outermost part, so that errors and refusals are observed as well. It only emits events: metrics
count requests and logs write the access record because they listen.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.context import PRIORITIES
from reliakit.core.events import RequestEnded, RequestStarted, WebsocketClosed, WebsocketOpened, WebsocketPassed
from reliakit.core.outgoing import PRIORITY_HEADER
from reliakit.core.spine import Emitter, Listener
from reliakit.core.tracking import report
from reliakit.web import request as view
from reliakit.web.client_ip import ClientIP, client_ip
from reliakit.web.part import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from reliakit.core.context import Priority
    from reliakit.web.request import Request

__all__ = ["Exchange", "Outcome", "RequestObserver", "Socket"]

Outcome = Literal["completed", "client_disconnect", "cancelled", "timeout", "error"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"})
KEY = "reliakit.exchange"
ROUTE = "reliakit.route"
UNMATCHED = "unmatched"

_PRIORITY = PRIORITY_HEADER.lower()
_PRIORITIES: dict[str | None, Priority] = {priority: priority for priority in PRIORITIES}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x21-\x7e]{0,200})?")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")


class Exchange:
    """One request and its response, as the wrappers see them pass. Belongs to one request, so it needs no lock."""

    __slots__ = (
        "bytes",
        "complete",
        "declared",
        "disconnected",
        "ended",
        "error",
        "finished",
        "method",
        "prefix",
        "priority",
        "received",
        "request_id",
        "route",
        "started",
        "status",
        "timed_out",
        "trace_headers",
        "trace_id",
    )

    def __init__(
        self, method: str, request_id: str, trace_headers: tuple[str, str | None] | None, prefix: str, started: float
    ) -> None:
        self.method: str = method
        self.request_id: str = request_id
        self.trace_headers: tuple[str, str | None] | None = trace_headers
        self.trace_id: str | None = None if trace_headers is None else trace_headers[0].split("-", 2)[1]
        self.prefix: str = prefix
        self.priority: Priority | None = None
        self.started: float = started
        self.status: int | None = None
        self.route: str = UNMATCHED
        self.bytes: int = 0
        self.received: int = 0
        self.declared: int | None = None
        self.finished: float | None = None
        self.complete: bool = False
        self.disconnected: bool = False
        self.timed_out: bool = False
        self.ended: bool = False
        self.error: BaseException | None = None

    def disconnect(self) -> None:
        """Record that the client is gone, unless it has received everything by then."""
        if not self.complete:
            self.disconnected = True

    def fail(self, error: BaseException, status: int) -> None:
        """Record the error that a part of the stack answered with this status."""
        if status == 504:
            self.timed_out = True
        self.error = error

    def outcome(self, error: BaseException | None) -> Outcome:
        """Return what became of the exchange; `error` is what left the app, if anything did."""
        if self.timed_out:
            return "timeout"
        if self.disconnected:
            return "client_disconnect"
        if error is not None and not isinstance(error, Exception):
            return "completed" if self.complete else "cancelled"
        answered = self.error is not None and self.status is not None and self.status < 500
        if error is not None or (self.error is not None and not answered) or not self.complete:
            return "error"
        return "completed"


class Socket(NamedTuple):
    """A websocket that was accepted: its route, and when that was."""

    route: str
    accepted: float


class RequestObserver(Part):
    """Give each request an id and a context, and emit `RequestStarted` and `RequestEnded`.

    Costs a few microseconds a request, less while nobody listens. An inbound X-Request-ID of
    `[A-Za-z0-9._-]{1,128}` is kept, any other is replaced, and every response carries it. In ASGI apps the id is also
    in `scope["state"]["request_id"]`. A `traceparent` gives the context its trace id, and `X-Request-Priority` its
    priority if `client` trusts every hop that the request came by.

    The route is the framework's template (Starlette, FastAPI, Flask; any other may set `reliakit.route` in the scope
    or environ), never the path. The outcome is "error" if an exception left the app, before or after the headers; an
    error that was answered with a status below 500 is "completed". For websockets, events report when they open, what
    passes and how they end; their messages are not changed.

    Args:
        service: The service's name, carried by every event.
        client: Returns the client's address, see `client_ip`; by default the peer of the socket.
        listeners: Listeners of this component alone.
        clock: Measures durations.

    Raises:
        ConfigurationError: The name is empty.
    """

    __slots__ = ("_clock", "_emitter", "client", "service")

    def __init__(
        self,
        *,
        service: str,
        client: Callable[[Any], str] = client_ip(),  # noqa: B008 - immutable
        listeners: Iterable[Listener] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.service: str = checks.named("service", service)
        self.client: Callable[[Any], str] = client
        self._clock = clock
        self._emitter = Emitter(service, listeners, clock)

    def begin(self, request: Request) -> Exchange:
        """Return the exchange of a request that has just arrived, and tell the listeners."""
        written = view.method(request)
        prefix: str = request.get("SCRIPT_NAME" if view.is_wsgi(request) else "root_path") or ""
        exchange = Exchange(
            written if written in METHODS else "_OTHER",
            request_id_of(view.header(request, "x-request-id")),
            trace_headers_of(request),
            prefix,
            self._clock.monotonic(),
        )
        exchange.priority = priority_of(request, self.client)
        request[KEY] = exchange
        self._emitter.emit(RequestStarted, method=exchange.method)
        return exchange

    def now(self) -> float:
        """Return the instant on the clock that measures durations."""
        return self._clock.monotonic()

    def locate(self, exchange: Exchange, request: Request) -> None:
        """Record the route now, because some frameworks, such as Flask, forget it before the exchange ends."""
        if exchange.route == UNMATCHED:
            exchange.route = route_of(request, exchange.prefix)

    def sent(self, exchange: Exchange, size: int, *, last: bool) -> None:
        """Record that `size` bytes of body were handed to the server."""
        exchange.bytes += size
        if last:
            exchange.complete = True
            exchange.finished = self._clock.monotonic()

    def end(self, exchange: Exchange, request: Request, error: BaseException | None) -> None:
        """Tell the listeners what became of the request. Once; a second call only reports its error.

        Args:
            exchange: What `begin` returned.
            request: The scope or environ, in which the framework has left the route by now.
            error: What left the app, or None.
        """
        if error is not None and not (exchange.disconnected and is_disconnect(error)):
            report(self._emitter, error, service=self.service, status=str(exchange.status or 500))
        if exchange.ended:
            return
        exchange.ended = True
        outcome = exchange.outcome(error)
        if self._emitter.hears(RequestEnded):
            route = route_of(request, exchange.prefix)
            finished = self._clock.monotonic() if exchange.finished is None else exchange.finished
            cause = exchange.error if error is None else error
            self._emitter.emit(
                RequestEnded,
                service=self.service,
                method=exchange.method,
                route=exchange.route if route == UNMATCHED else route,
                status=exchange.status,
                outcome=outcome,
                duration=finished - exchange.started,
                request_id=exchange.request_id,
                response_bytes=exchange.bytes,
                request_bytes=exchange.received,
                error_type=None if cause is None else type(cause).__name__,
                client=self.client(request),
            )

    @property
    def hears_sockets(self) -> bool:
        """Whether anybody listens to websocket events."""
        return self._emitter.hears(WebsocketOpened)

    def opened(self, request: Request) -> Socket:
        """Tell the listeners that a websocket was accepted; by then the framework has left the route."""
        socket = Socket(route_of(request, request.get("root_path") or ""), self._clock.monotonic())
        self._emitter.emit(WebsocketOpened, service=self.service, route=socket.route)
        return socket

    def passed(self, direction: Literal["in", "out"]) -> None:
        """Tell the listeners that a message passed."""
        self._emitter.emit(WebsocketPassed, direction=direction)

    def closed(self, socket: Socket | None, code: int, error: BaseException | None) -> None:
        """Tell the listeners how a websocket ended; `socket` is None for one that was never accepted."""
        if error is not None and not is_disconnect(error):
            report(self._emitter, error, service=self.service)
        if socket is not None:
            self._emitter.emit(
                WebsocketClosed,
                service=self.service,
                route=socket.route,
                code=code,
                duration=self._clock.monotonic() - socket.accepted,
            )

    def __repr__(self) -> str:
        return f"RequestObserver(service={self.service!r}, client={self.client!r})"


def is_disconnect(error: BaseException) -> bool:
    """Return whether an error may only reflect that the client went away, such as Starlette's ClientDisconnect."""
    return isinstance(error, OSError) or type(error).__name__ == "ClientDisconnect"


def request_id_of(inbound: str | None) -> str:
    """Return the inbound id if it is safe to repeat in headers and logs, else a new one."""
    if inbound is not None and _REQUEST_ID.fullmatch(inbound):
        return inbound
    return secrets.token_hex(16)


def priority_of(request: Request, client: object) -> Priority | None:
    """Return the priority that one of our own services has sent, or None: a client cannot choose its importance."""
    known = _PRIORITIES.get(view.header(request, _PRIORITY))
    return known if known is not None and isinstance(client, ClientIP) and client.is_ours(request) else None


def trace_headers_of(request: Request) -> tuple[str, str | None] | None:
    """Return the inbound traceparent and tracestate, or None without a valid traceparent."""
    traceparent = view.header(request, "traceparent")
    if traceparent is None or trace_id_of(traceparent) is None:
        return None
    tracestate = ",".join(view.header_lines(request, "tracestate"))
    return traceparent, tracestate if _TRACESTATE.fullmatch(tracestate) else None


def trace_id_of(traceparent: str) -> str | None:
    """Return the trace id of a W3C traceparent, or None if it breaks any rule of the specification."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, _, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not trace.strip("0") or not parent.strip("0"):
        return None
    return str(trace)


def route_of(request: Request, prefix: str) -> str:
    """Return the template of the route that served a request, or "unmatched".

    Args:
        request: The scope or environ after the app has run.
        prefix: Where the app itself is mounted, left out of the template.
    """
    told = request.get(ROUTE)
    if isinstance(told, str):
        return told
    if view.is_wsgi(request):
        rule = getattr(getattr(request.get("werkzeug.request"), "url_rule", None), "rule", None)
        mounted: str = request.get("SCRIPT_NAME") or ""
        return mounted.removeprefix(prefix) + rule if isinstance(rule, str) else UNMATCHED
    route = request.get("route")
    path = getattr(route, "path", None)
    if not isinstance(path, str):
        return UNMATCHED
    mounted = _template(str(request.get("root_path") or "").removeprefix(prefix), request.get("path_params"))
    if hasattr(route, "endpoint"):
        return mounted + path
    # A mount below which nothing has named a route: an opaque app is its own route, while a router found none.
    return UNMATCHED if getattr(route, "routes", None) else mounted or path


def _template(mounted: str, params: Any) -> str:
    """Return a mount's path with its parameters' values replaced by their names, so that it stays a template."""
    if not mounted or not params:
        return mounted
    names = {str(value): name for name, value in params.items() if str(value)}
    segments = mounted.split("/")
    for place, segment in enumerate(segments):
        if segment in names:
            segments[place] = f"{{{names[segment]}}}"
        elif any(value in segment for value in names):
            segments[place] = "{...}"
    return "/".join(segments)
