"""Who made a request, and under which id: what every log line, event and outgoing call of one request shares."""

from __future__ import annotations

import secrets
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from reliakit.core import checks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = [
    "PRIORITIES",
    "Priority",
    "RequestContext",
    "current_priority",
    "current_request",
    "request_context",
    "request_here",
]

Priority: TypeAlias = Literal["critical", "default", "sheddable"]
"""How important a request is: under overload, sheddable ones are given up first, and critical ones last."""
PRIORITIES: tuple[Priority, ...] = ("critical", "default", "sheddable")


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What is known of the request being served.

    Attributes:
        request_id: The request's id, taken from the caller or made here.
        principal: Who made the request, once that is known.
        trace_id: The id of the distributed trace, 32 hexadecimal digits, or None.
        fields: Anything else; shown in log records.
        priority: How it is treated under overload: "sheddable" work is refused first, "critical" last.
        trace_headers: The W3C headers `traceparent` and `tracestate` (or None) as they came in, to be passed on, or
            None without a trace.
    """

    request_id: str
    principal: str | None = None
    trace_id: str | None = None
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    priority: Priority = "default"
    trace_headers: tuple[str, str | None] | None = None

    def __reduce__(self) -> tuple[object, ...]:
        # Read-only views cannot be deep-copied or pickled.
        fields = dict(self.fields)
        known = (self.request_id, self.principal, self.trace_id)
        return RequestContext, (*known, fields, self.priority, self.trace_headers)

    def __repr__(self) -> str:
        # Only the names of fields, whose values may be anything.
        return (
            f"RequestContext(request_id={self.request_id!r}, principal={self.principal!r}, "
            f"trace_id={self.trace_id!r}, fields={sorted(self.fields)!r}, priority={self.priority!r})"
        )


_current: ContextVar[RequestContext | None] = ContextVar("reliakit_request", default=None)
# The same as `current_request`, for paths where a Python frame matters: 25 ns instead of 60.
request_here: Callable[[], RequestContext | None] = _current.get


def current_request() -> RequestContext | None:
    """Return the context of the request that this thread or task serves, or None outside of a request."""
    return _current.get()


def current_priority() -> Priority:
    """Return the priority of the request that this thread or task serves, "default" outside of a request."""
    request = _current.get()
    return "default" if request is None else request.priority


class request_context:  # noqa: N801 - reads as the statement it is used in
    """Run a block as part of a request: `with request_context(request_id="a1", principal="7", tenant="x"): ...`.

    Arguments that are left out are inherited from an outer context; fields add up, and the inner value wins. If there
    is no `request_id` anywhere, a new one is made. Tasks started in the block inherit the context; so do threads if
    their pool copies the context, as `asyncio.to_thread` does.

    Args:
        request_id: The request's id.
        principal: Who made the request.
        trace_id: The id of the distributed trace.
        priority: "critical", "default" or "sheddable". Under overload, sheddable requests are refused first and
            critical ones last.
        trace_headers: The headers `traceparent` and `tracestate` (or None) that came in with the request.
        fields: Anything else that belongs in each log record.

    Raises:
        ConfigurationError: The priority is none of the three.
    """

    __slots__ = ("_entered", "_fields", "_principal", "_priority", "_request_id", "_trace_headers", "_trace_id")

    def __init__(
        self,
        /,
        *,
        request_id: str | None = None,
        principal: str | None = None,
        trace_id: str | None = None,
        priority: Priority | None = None,
        trace_headers: tuple[str, str | None] | None = None,
        **fields: object,
    ) -> None:
        self._priority: Priority | None = (
            None if priority is None else checks.choice("priority", priority, PRIORITIES)
        )
        self._request_id = request_id
        self._principal = principal
        self._trace_id = trace_id
        self._trace_headers = trace_headers
        self._fields = fields
        self._entered: list[tuple[RequestContext, RequestContext | None, Token[RequestContext | None]]] = []

    def __enter__(self) -> RequestContext:
        outer = _current.get()
        here = self._within(outer)
        self._entered.append((here, outer, _current.set(here)))
        return here

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        here, outer, token = self._entered.pop()
        try:
            _current.reset(token)
        except ValueError:
            # A generator may be closed in another context than it began in, whose own value must stay.
            if _current.get() is here:
                _current.set(outer)

    def __repr__(self) -> str:
        return f"request_context(request_id={self._request_id!r}, fields={sorted(self._fields)!r})"

    def _within(self, outer: RequestContext | None) -> RequestContext:
        if outer is None:
            return RequestContext(
                self._request_id or secrets.token_hex(16),
                self._principal,
                self._trace_id,
                MappingProxyType(self._fields),
                self._priority or "default",
                self._trace_headers,
            )
        return RequestContext(
            self._request_id or outer.request_id,
            self._principal if self._principal is not None else outer.principal,
            self._trace_id or outer.trace_id,
            MappingProxyType({**outer.fields, **self._fields}),
            self._priority or outer.priority,
            self._trace_headers or outer.trace_headers,
        )
