"""Deadlines, request context and policies for gRPC: interceptors for clients and servers, sync and async.

```python
channel = grpc.intercept_channel(channel, *client_interceptors(Policy.standard("stock"), idempotent={"/Stock/Get"}))
channel = grpc.aio.insecure_channel(target, interceptors=async_client_interceptors(Policy.standard("stock")))
server = grpc.server(pool, interceptors=[ServerContext()])
server = grpc.aio.server(interceptors=[AsyncServerContext()])
```

A client sends what is left of its deadline as the call's timeout, and request id, trace and priority as metadata. A
server's handlers run within the caller's deadline and request context, so every wait of theirs knows how much time
there is; the priority is only believed from `trusted` peers.

Unary calls pass through the policy; methods not named in `idempotent` pass without its retries and hedges. A status
such as NOT_FOUND is an answer; UNAVAILABLE, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, INTERNAL and UNKNOWN are failures.
Streaming calls carry deadline and context but pass through no policy: only their user knows what may be repeated.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import nullcontext
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from reliakit.core.context import PRIORITIES, request_context
from reliakit.core.deadline import checkpoint, deadline, remaining
from reliakit.core.guard import colour_of
from reliakit.core.outgoing import PRIORITY_HEADER, outgoing_headers
from reliakit.resilience.hosts import HostPolicies
from reliakit.web.request import UNIX, Peers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reliakit.resilience.policy import Part, Policy

__all__ = ["AsyncServerContext", "ServerContext", "async_client_interceptors", "client_interceptors"]

# Without annotations of its own.
grpc: Any = import_module("grpc")
aio: Any = import_module("grpc.aio")

_FAILED = frozenset(
    getattr(grpc.StatusCode, name)
    for name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN")
)
# The headers of HTTP are sent as metadata, except for the deadline, for which gRPC has its own field.
_FAR = 10.0**9
_CARRIED = ("X-Request-ID", "traceparent", "tracestate", PRIORITY_HEADER)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def client_interceptors(
    policy: Policy | Part | None = None, *, idempotent: Collection[str] = (), propagate: bool = True
) -> list[Any]:
    """Return interceptors for `grpc.intercept_channel`.

    Args:
        policy: The policy for unary calls, or None for deadline and context only.
        idempotent: The full names of methods that may be sent twice, such as "/package.Service/Method".
        propagate: Whether request id, trace and priority are sent along; the deadline always is.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    calls = _Calls(policy, idempotent, propagate=propagate)
    return [_Unary(calls), _Streams(calls)]


def async_client_interceptors(
    policy: Policy | Part | None = None, *, idempotent: Collection[str] = (), propagate: bool = True
) -> list[Any]:
    """Return interceptors for the channels of `grpc.aio`.

    Args:
        policy: The policy for unary calls, or None for deadline and context only.
        idempotent: The full names of methods that may be sent twice, such as "/package.Service/Method".
        propagate: Whether request id, trace and priority are sent along; the deadline always is.

    Raises:
        ConfigurationError: A setting is wrong.
    """
    calls = _Calls(policy, idempotent, propagate=propagate)
    return [_AsyncUnary(calls), _AsyncUnaryStream(calls), _AsyncStreamUnary(calls), _AsyncStreams(calls)]


class _Details(NamedTuple):
    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any = None


class _Calls:
    """What every call needs: its policy, its deadline and its metadata."""

    def __init__(self, policy: Policy | Part | None, idempotent: Collection[str], *, propagate: bool) -> None:
        self._hosts = None if policy is None else HostPolicies(policy)
        self._idempotent = frozenset(idempotent)
        self._propagate = propagate

    def policy_for(self, details: Any) -> Policy | None:
        if self._hosts is None:
            return None
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        return self._hosts.choose("", "RPC", is_marked=method in self._idempotent, is_replayable=True)

    def ready(self, details: Any) -> tuple[float | None, list[tuple[str, Any]]]:
        """Return the timeout and the metadata for one attempt."""
        checkpoint()
        left, timeout = remaining(), details.timeout
        if left is not None:
            timeout = left if timeout is None else min(timeout, left)
        metadata: list[tuple[str, Any]] = [*details.metadata] if details.metadata else []
        if self._propagate:
            given = {name.lower() for name, _ in metadata}
            headers = outgoing_headers()
            carried = [(name.lower(), headers[name]) for name in _CARRIED if name in headers]
            metadata += [(name, value) for name, value in carried if name not in given]
        return timeout, metadata


class _Client:
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    def _details(self, details: Any) -> Any:
        timeout, metadata = self._calls.ready(details)
        compression = getattr(details, "compression", None)
        return _Details(details.method, timeout, metadata, details.credentials, details.wait_for_ready, compression)


class _Unary(_Client):
    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        def attempt() -> Any:
            call = continuation(self._details(details), request)
            error = call.exception()
            if error is not None and (not isinstance(error, grpc.RpcError) or call.code() in _FAILED):
                raise error
            return call  # the caller learns from the call of a status that is an answer

        policy = self._calls.policy_for(details)
        return attempt() if policy is None else policy.call(attempt)


class _Streams(_Client):
    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._details(details), request)

    intercept_stream_unary = intercept_stream_stream = intercept_unary_stream


class _AsyncClient(_Client):
    def _details(self, details: Any) -> Any:
        timeout, metadata = self._calls.ready(details)
        return aio.ClientCallDetails(
            details.method, timeout, aio.Metadata(*metadata), details.credentials, details.wait_for_ready
        )


class _AsyncUnary(_AsyncClient):
    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        async def attempt() -> Any:
            call = await continuation(self._details(details), request)
            if await call.code() in _FAILED:
                await call  # raises
            return call

        policy = self._calls.policy_for(details)
        return await (attempt() if policy is None else policy.acall(attempt))


class _AsyncUnaryStream(_AsyncClient):
    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(self._details(details), request)


class _AsyncStreamUnary(_AsyncClient):
    async def intercept_stream_unary(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(self._details(details), requests)


class _AsyncStreams(_AsyncClient):
    async def intercept_stream_stream(self, continuation: Callable[..., Any], details: Any, requests: Any) -> Any:
        return await continuation(self._details(details), requests)


def _time(context: Any) -> Any:
    """Return a block with the time that the caller gives, for `with` and `async with`."""
    left = context.time_remaining()
    # Without a deadline, gRPC reports one in the far future, or none.
    return nullcontext() if left is None or left > _FAR else deadline(max(0.0, left))


class _Context:
    """What a server's handlers run within. Only trusted peers may say how important a request is."""

    def __init__(self, *, trusted: Iterable[str] = ()) -> None:
        self._trusted = Peers(trusted)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(trusted={self._trusted!r})"

    def _request(self, context: Any) -> request_context:
        """Return the request's context, from as much of the metadata as is well formed."""
        told = {name.lower(): value for name, value in context.invocation_metadata() or ()}
        request_id, traceparent = told.get("x-request-id"), told.get("traceparent")
        known: dict[str, Any] = {}
        if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id):
            known["request_id"] = request_id
        trace = _TRACEPARENT.fullmatch(traceparent) if isinstance(traceparent, str) else None
        if trace is not None:
            known["trace_id"] = trace[1]
            known["trace_headers"] = (traceparent, told.get("tracestate"))
        priority = told.get(PRIORITY_HEADER.lower())
        if priority in PRIORITIES and _peer(context) in self._trusted:
            known["priority"] = priority
        return request_context(**known)


def _peer(context: Any) -> str:
    """Return the address at the other end: of "ipv4:10.0.0.1:5", "ipv6:[::1]:5" or "unix:/path"."""
    kind, _, address = unquote(context.peer()).partition(":")
    return UNIX if kind == "unix" else address.rpartition(":")[0].strip("[]")


class ServerContext(_Context):
    """Run the handlers of a `grpc.server` within the caller's deadline and request context.

    The deadline is cooperative, as in every plain function: `checkpoint()` and reliakit's own waits raise.

    Args:
        trusted: Networks of your own services, such as "10.0.0.0/8", whose priority is believed.

    Raises:
        ConfigurationError: A network is not valid.
    """

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        """Return the handler with its context around it; called by the server."""
        handler = continuation(details)
        if handler is None:
            return None
        behaviour, make = _behaviour(handler)

        def one(request: Any, context: Any) -> Any:
            with self._request(context), _time(context):
                return behaviour(request, context)

        def steps(request: Any, context: Any) -> Iterator[Any]:
            with self._request(context), _time(context):
                yield from behaviour(request, context)

        def streamed(request: Any, context: Any) -> Iterator[Any]:
            # Each step may run in another thread, and all see the same context.
            inside = copy_context()
            answers = inside.run(steps, request, context)
            while True:
                try:
                    answer = inside.run(next, answers)
                except StopIteration:
                    return
                yield answer

        return make(
            streamed if handler.response_streaming else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class AsyncServerContext(_Context):
    """Run the handlers of a `grpc.aio` server within the caller's deadline and request context.

    Args:
        trusted: As for `ServerContext`.

    Raises:
        ConfigurationError: A network is not valid.
    """

    async def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        """Return the handler with its context around it; called by the server."""
        handler = await continuation(details)
        if handler is None:
            return None
        behaviour, make = _behaviour(handler)
        if colour_of(behaviour, by="AsyncServerContext") in {"plain", "generator"}:
            return handler  # runs in a thread of the server, which does not see this task's context

        async def one(request: Any, context: Any) -> Any:
            with self._request(context):
                async with _time(context):
                    return await behaviour(request, context)

        async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._request(context):
                async with _time(context):
                    answers = behaviour(request, context)
                    if not hasattr(answers, "__aiter__"):
                        await answers  # the handler writes to the context instead of yielding
                        return
                    async for answer in answers:
                        yield answer

        return make(
            streamed if handler.response_streaming else one,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _behaviour(handler: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the function that serves the method, and the one that makes a handler of its kind."""
    kind = f"{_word(handler.request_streaming)}_{_word(handler.response_streaming)}"
    return getattr(handler, kind), getattr(grpc, f"{kind}_rpc_method_handler")


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"


for _kind in ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"):
    getattr(grpc, f"{_kind}ClientInterceptor").register(_Unary if _kind == "UnaryUnary" else _Streams)
aio.UnaryUnaryClientInterceptor.register(_AsyncUnary)
aio.UnaryStreamClientInterceptor.register(_AsyncUnaryStream)
aio.StreamUnaryClientInterceptor.register(_AsyncStreamUnary)
aio.StreamStreamClientInterceptor.register(_AsyncStreams)
grpc.ServerInterceptor.register(ServerContext)
aio.ServerInterceptor.register(AsyncServerContext)
