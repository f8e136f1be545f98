"""Requests and websockets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reliakit.core.events.base import Event

__all__ = ["RequestEnded", "RequestStarted", "WebsocketClosed", "WebsocketOpened", "WebsocketPassed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted(Event):
    """A request arrived."""

    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(Event):
    """A request is over; the access record is made from this.

    Attributes:
        service: The service that answered.
        method: The HTTP method, "_OTHER" for an unknown one.
        route: The route's template, or "unmatched"; never the raw path.
        status: The status that was sent, or None when none was.
        outcome: What became of the exchange.
        duration: Seconds until the last byte was handed to the server.
        request_id: The id that the response carried.
        response_bytes: Bytes of body sent.
        request_bytes: Bytes of body that the app has read, or in WSGI what the client announced.
        error_type: The class name of the exception that ended it, or None.
    """

    service: str | None
    method: str
    route: str
    status: int | None
    outcome: Literal["completed", "client_disconnect", "cancelled", "timeout", "error"]
    duration: float
    request_id: str
    response_bytes: int = 0
    request_bytes: int = 0
    error_type: str | None = None
    client: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketOpened(Event):
    """A websocket was accepted; `route` is the template, never the raw path."""

    service: str | None
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketPassed(Event):
    """A message came in over a websocket, or went out."""

    direction: Literal["in", "out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebsocketClosed(Event):
    """A websocket that had been accepted is over.

    Attributes:
        service: The service that accepted it.
        route: The route's template.
        code: The close code of the side that closed first; 1011 if an exception ended it, 1006 if neither side said.
        duration: Seconds since it was accepted.
    """

    service: str | None
    route: str
    code: int
    duration: float
