"""What the edge of a web application reports: requests and websockets, those under way and those that are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.metrics.inflight import InFlight

if TYPE_CHECKING:
    from reliakit.core.events import (
        RequestEnded,
        RequestStarted,
        WebsocketClosed,
        WebsocketOpened,
        WebsocketPassed,
    )
    from reliakit.metrics.shelf import Shelf

__all__ = ["Requests"]


class Requests:
    """Counts, times and weighs requests, and counts websockets. Safe from any thread.

    Args:
        shelf: Holds the metrics.
    """

    def __init__(self, shelf: Shelf) -> None:
        active = shelf.gauge("http_server_active_requests").labels()
        self._active = InFlight(active)
        active.set_function(self._active.count)
        self._requests = shelf.counter("http_server_requests_total")
        self._durations = shelf.histogram("http_server_request_duration_seconds")
        self._sent = shelf.counter("http_server_response_body_bytes_total")
        self._received = shelf.counter("http_server_request_body_bytes_total")
        self._timeouts = shelf.counter("http_server_timeouts_total")
        self._connections = shelf.gauge("websocket_connections")
        self._messages = shelf.counter("websocket_messages_total")
        self._open: dict[str, InFlight] = {}

    def started(self, _event: RequestStarted) -> None:
        """A request has arrived."""
        self._active.enter()

    def ended(self, event: RequestEnded) -> None:
        """A request is over, whichever way."""
        self._active.leave()
        status = None if event.status is None else str(event.status)
        status_class = "none" if status is None else f"{status[0]}xx"
        self._requests.labels(event.method, event.route, status).inc()
        self._durations.labels(event.method, event.route, status_class, event.outcome).observe(event.duration)
        self._sent.labels(event.route).inc(event.response_bytes)
        self._received.labels(event.route).inc(event.request_bytes)
        if event.outcome == "timeout":
            phase = "first_byte" if event.status in {None, 504} else "idle"
            self._timeouts.labels(event.route, phase).inc()

    def opened(self, event: WebsocketOpened) -> None:
        """A websocket was opened."""
        self._open_on(event.route).enter()

    def passed(self, event: WebsocketPassed) -> None:
        """A message went over a websocket."""
        self._messages.labels(event.direction).inc()

    def closed(self, event: WebsocketClosed) -> None:
        """A websocket is closed."""
        self._open_on(event.route).leave()

    def _open_on(self, route: str) -> InFlight:
        gauge = self._connections.labels(route)
        # Routes beyond the label's bound share the overflow series, so they share its count.
        running = self._open.get(gauge.values[0])
        if running is None:
            running = self._open.setdefault(gauge.values[0], InFlight(gauge))
            gauge.set_function(running.count)
        return running
