"""Policies for httpx2 clients: retries, breakers and time limits for each host, and the request's context on calls.

```python
client = httpx2.AsyncClient(transport=AsyncPolicyTransport(Policy.standard))
```

Each host has a policy of its own, made when it is first called. Requests that may not be sent twice (POST and PATCH
without an `Idempotency-Key`, streamed bodies) pass through the policy without its retries and hedges. 5xx and 429
count as failures inside the policy; the last one is then returned as a response. A deadline limits every wait, and
request id, trace, priority and deadline are sent along. The policy covers a call until its headers are there, also
for a stream; the body of a good response is read afterwards.

A call may also raise the errors of its policy, such as CircuitOpenError, and DeadlineExceededError.
Redirects are separate calls. The classes for httpx and for httpx2 only differ in the library.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from reliakit.integrations.transports import AsyncSending, Sending
from reliakit.resilience.hosts import FailedResponse, HostPolicies, HostPolicy, is_failure

__all__ = ["AsyncPolicyTransport", "FailedResponse", "PolicyTransport"]


class PolicyTransport(Sending, httpx2.BaseTransport):
    """Send each request of a `httpx2.Client` through the policy of its host.

    Args:
        policy: A callable that returns the policy for a host such as "api.example.com:8443", or one policy for all.
        transport: The transport that finally sends; `httpx2.HTTPTransport()` by default.
        max_hosts: How many hosts are remembered; the one not called for longest is forgotten, with its breaker.
        failed: A function of the status that says which ones are failures; by default 429, and 5xx without 501 and
            505.
        propagate: Whether request id, trace, priority and deadline are sent along. The caller's own headers stay.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    _bytes = httpx2.ByteStream
    _timeouts = httpx2.TimeoutException

    def __init__(
        self,
        policy: HostPolicy,
        transport: httpx2.BaseTransport | None = None,
        *,
        max_hosts: int = 256,
        failed: Callable[[int], bool] = is_failure,
        propagate: bool = True,
    ) -> None:
        super().__init__(
            httpx2.HTTPTransport() if transport is None else transport,
            HostPolicies(policy, max_hosts=max_hosts, failed=failed),
            propagate=propagate,
        )


class AsyncPolicyTransport(AsyncSending, httpx2.AsyncBaseTransport):
    """Send each request of a `httpx2.AsyncClient` through the policy of its host.

    Args:
        policy: A callable that returns the policy for a host such as "api.example.com:8443", or one policy for all.
        transport: The transport that finally sends; `httpx2.AsyncHTTPTransport()` by default.
        max_hosts: How many hosts are remembered; the one not called for longest is forgotten, with its breaker.
        failed: A function of the status that says which ones are failures; by default 429, and 5xx without 501 and
            505.
        propagate: Whether request id, trace, priority and deadline are sent along. The caller's own headers stay.

    Raises:
        ConfigurationError: A setting is wrong.
    """

    _bytes = httpx2.ByteStream
    _timeouts = httpx2.TimeoutException

    def __init__(
        self,
        policy: HostPolicy,
        transport: httpx2.AsyncBaseTransport | None = None,
        *,
        max_hosts: int = 256,
        failed: Callable[[int], bool] = is_failure,
        propagate: bool = True,
    ) -> None:
        super().__init__(
            httpx2.AsyncHTTPTransport() if transport is None else transport,
            HostPolicies(policy, max_hosts=max_hosts, failed=failed),
            propagate=propagate,
        )
