"""Policies for aiohttp clients: retries, breakers and time limits for each host, and the request's context on calls.

```python
session = aiohttp.ClientSession(middlewares=(PolicyMiddleware(Policy.standard),))
```

The rules are those of `reliakit.integrations.httpx`: a policy for each host; requests that may not be sent twice
(POST and PATCH without an `Idempotency-Key`, streamed bodies) pass without retries and hedges; 5xx and 429 are
failures inside the policy and responses again outside of it; a deadline limits every call. Needs aiohttp 3.12.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aiohttp.payload import BytesPayload

from reliakit.core.deadline import deadline, remaining
from reliakit.core.outgoing import outgoing_headers
from reliakit.resilience.hosts import FailedResponse, HostPolicies, HostPolicy, is_failure

if TYPE_CHECKING:
    import aiohttp

__all__ = ["FailedResponse", "PolicyMiddleware"]


class PolicyMiddleware:
    """Send each request of a session through the policy of its host.

    Args:
        policy: A callable that returns the policy for a host such as "api.example.com:8443", or one policy for all.
        max_hosts: How many hosts are remembered; the one not called for longest is forgotten, with its breaker.
        failed: A function of the status that says which ones are failures; by default 429, and 5xx without 501 and
            505.
        propagate: Whether request id, trace, priority and deadline are sent along. The caller's own headers stay.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    def __init__(
        self,
        policy: HostPolicy,
        *,
        max_hosts: int = 256,
        failed: Callable[[int], bool] = is_failure,
        propagate: bool = True,
    ) -> None:
        self._hosts = HostPolicies(policy, max_hosts=max_hosts, failed=failed)
        self._propagate = propagate

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send one request; called by the session."""
        answers: list[aiohttp.ClientResponse] = []
        own = set(request.headers) if self._propagate else None

        async def attempt() -> aiohttp.ClientResponse:
            if own is not None:
                for name, value in outgoing_headers().items():
                    if name.lower() not in {given.lower() for given in own}:
                        request.headers[name] = value
            left = remaining()
            if left is None:
                answer = await handler(request)
            else:
                # A deadline set by a plain `with` does not cut anything off by itself.
                async with deadline(left):
                    answer = await handler(request)
            answers.append(answer)
            if self._hosts.is_failed(answer.status):
                await (
                    answer.read()
                )  # frees the connection for the next attempt; the caller reads the body from memory
                self._hosts.check(answer, answer.status)
            return answer

        policy = self._hosts.choose(
            request.url.host_port_subcomponent or "",
            request.method,
            is_marked="idempotency-key" in request.headers,
            is_replayable=_is_replayable(request.body),
        )
        final: aiohttp.ClientResponse | None = None
        try:
            final = await (attempt() if policy is None else policy.acall(attempt))
        except FailedResponse as failed:
            final = failed.response
        finally:
            for answer in answers:
                if answer is not final:
                    answer.close()
        assert final is not None
        return final

    def __repr__(self) -> str:
        return f"PolicyMiddleware({self._hosts!r})"


def _is_replayable(body: object) -> bool:
    return not body or isinstance(body, bytes | BytesPayload)
