"""What the transports of httpx and httpx2 have in common; their class trees are not related.

```
client ── transport: policy of the host ── the client's own transport, once an attempt ── network
                         └── request id, trace, priority and deadline on each attempt
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from reliakit.core.deadline import checkpoint, deadline, remaining
from reliakit.core.outgoing import outgoing_headers
from reliakit.resilience.hosts import FailedResponse, HostPolicies

if TYPE_CHECKING:
    from reliakit.resilience.policy import Policy

__all__ = ["AsyncSending", "Sending"]


class _Base:
    """The rules, and what a request needs before it is sent.

    Attributes of subclasses:
        _bytes: The library's class of streams that hold their bytes.
        _timeouts: The library's class of errors for a time limit that was reached.
    """

    _bytes: Any
    _timeouts: type[Exception]

    def __init__(self, transport: Any, hosts: HostPolicies, *, propagate: bool) -> None:
        self._transport = transport
        self._hosts = hosts
        self._propagate = propagate

    def _policy_for(self, request: Any) -> Policy | None:
        return self._hosts.choose(
            request.url.netloc.decode("ascii"),
            request.method,
            is_marked="idempotency-key" in request.headers,
            is_replayable=isinstance(request.stream, self._bytes),
        )

    def _own_headers(self, request: Any) -> Callable[[], None]:
        """Return a function that puts our headers on the request at each attempt; the caller's own stay."""
        own = {name.lower() for name in request.headers} if self._propagate else None

        def put() -> None:
            if own is not None:
                for name, value in outgoing_headers().items():
                    if name.lower() not in own:
                        request.headers[name] = value

        return put

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._hosts!r}, {self._transport!r})"


class Sending(_Base):
    """Sends requests through policies, for threads."""

    def handle_request(self, request: Any) -> Any:
        """Send one request; called by the client."""
        answers: list[Any] = []
        put = self._own_headers(request)

        def send() -> Any:
            checkpoint()
            put()
            request.extensions = _shrunk(request.extensions)
            try:
                answer = self._transport.handle_request(request)
            except self._timeouts as error:
                if remaining() == 0:
                    error.add_note("it was the deadline that ended the wait")
                    checkpoint()
                raise
            answers.append(answer)
            if self._hosts.is_failed(answer.status_code):
                # Read now: that frees the connection for the next attempt, and the client reads from memory.
                body = b"".join(answer.stream)
                answer.stream.close()
                answer.stream = self._bytes(body)
                self._hosts.check(answer, answer.status_code)
            return answer

        policy = self._policy_for(request)
        final: Any = None
        try:
            final = send() if policy is None else policy.call(send)
        except FailedResponse as failed:
            final = failed.response
        finally:
            for answer in answers:
                if answer is not final:
                    answer.close()
        return final

    def close(self) -> None:
        """Close the transport within."""
        self._transport.close()


class AsyncSending(_Base):
    """Sends requests through policies, for tasks."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request; called by the client."""
        answers: list[Any] = []
        put = self._own_headers(request)

        async def send() -> Any:
            put()
            left = remaining()
            if left is None:
                answer = await self._transport.handle_async_request(request)
            else:
                # A deadline set by a plain `with` does not cut anything off by itself.
                async with deadline(left):
                    answer = await self._transport.handle_async_request(request)
            answers.append(answer)
            if self._hosts.is_failed(answer.status_code):
                body = b"".join([chunk async for chunk in answer.stream])
                await answer.stream.aclose()
                answer.stream = self._bytes(body)
                self._hosts.check(answer, answer.status_code)
            return answer

        policy = self._policy_for(request)
        final: Any = None
        try:
            final = await (send() if policy is None else policy.acall(send))
        except FailedResponse as failed:
            final = failed.response
        finally:
            for answer in answers:
                if answer is not final:
                    await answer.aclose()
        return final

    async def aclose(self) -> None:
        """Close the transport within."""
        await self._transport.aclose()


def _shrunk(extensions: dict[str, Any]) -> dict[str, Any]:
    """Return a request's extensions with each of its time limits reduced to what is left of the deadline."""
    left = remaining()
    if left is None:
        return extensions
    given: dict[str, float | None] = extensions.get("timeout") or {}
    limits = {kind: given.get(kind) for kind in ("connect", "read", "write", "pool")}
    cut = {kind: left if limit is None else min(limit, left) for kind, limit in limits.items()}
    return {**extensions, "timeout": cut}
