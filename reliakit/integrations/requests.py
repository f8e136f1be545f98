"""Policies for requests: retries, breakers and time limits for each host, and the request's context on each call.

```python
session.mount("https://", PolicyAdapter(Policy.standard))
```

The rules are those of `reliakit.integrations.httpx`: a policy for each host; requests that may not be sent twice
(POST and PATCH without an `Idempotency-Key`, bodies other than text or bytes) pass without retries and hedges; 5xx
and 429 are failures inside the policy and responses again outside of it; a deadline limits every wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from requests.adapters import HTTPAdapter
from requests.exceptions import Timeout

from reliakit.core.deadline import checkpoint, remaining
from reliakit.core.outgoing import outgoing_headers
from reliakit.resilience.hosts import FailedResponse, HostPolicies, HostPolicy, is_failure

if TYPE_CHECKING:
    import requests

    from reliakit.resilience.policy import Policy

__all__ = ["FailedResponse", "PolicyAdapter"]


class PolicyAdapter(HTTPAdapter):
    """Send each request of a session through the policy of its host.

    Args:
        policy: A callable that returns the policy for a host such as "api.example.com:8443", or one policy for all.
        max_hosts: How many hosts are remembered; the one not called for longest is forgotten, with its breaker.
        failed: A function of the status that says which ones are failures; by default 429, and 5xx without 501 and
            505.
        propagate: Whether request id, trace, priority and deadline are sent along. The caller's own headers stay.
        adapter: Settings of `requests.adapters.HTTPAdapter`. Leave its `max_retries` at 0, as it knows no deadline.

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
        **adapter: Any,
    ) -> None:
        self._hosts = HostPolicies(policy, max_hosts=max_hosts, failed=failed)
        self._propagate = propagate
        super().__init__(**adapter)

    def send(  # noqa: PLR0917 - as the base class has it
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send one request; called by the session."""
        answers: list[requests.Response] = []
        own = {name.lower() for name in request.headers} if self._propagate else None

        def attempt() -> requests.Response:
            checkpoint()
            if own is not None:
                for name, value in outgoing_headers().items():
                    if name.lower() not in own:
                        request.headers[name] = value
            left = remaining()
            limit = timeout if left is None else _shrunk(timeout, left)
            try:
                answer = super(PolicyAdapter, self).send(request, stream, limit, verify, cert, proxies)
            except Timeout as error:
                if remaining() == 0:
                    error.add_note("it was the deadline that ended the wait")
                    checkpoint()
                raise
            answers.append(answer)
            if self._hosts.is_failed(answer.status_code):
                answer.content  # noqa: B018 - read now: the connection is free for the next attempt
                self._hosts.check(answer, answer.status_code)
            return answer

        policy = self._policy_for(request)
        final: requests.Response | None = None
        try:
            final = attempt() if policy is None else policy.call(attempt)
        except FailedResponse as failed:
            final = failed.response
        finally:
            for answer in answers:
                if answer is not final:
                    answer.close()
        assert final is not None
        return final

    def _policy_for(self, request: requests.PreparedRequest) -> Policy | None:
        url = urlsplit(request.url or "")
        return self._hosts.choose(
            (url.hostname or "") + (f":{url.port}" if url.port else ""),
            request.method or "GET",
            is_marked="idempotency-key" in request.headers,
            is_replayable=request.body is None or isinstance(request.body, str | bytes),
        )

    def __repr__(self) -> str:
        return f"PolicyAdapter({self._hosts!r})"


def _shrunk(timeout: Any, left: float) -> Any:
    """Return the time limits of a call, reduced to what is left of the deadline."""
    connect: Any = getattr(timeout, "connect_timeout", timeout)
    read: Any = getattr(timeout, "read_timeout", timeout)
    if isinstance(timeout, tuple):
        connect, read = cast("tuple[Any, Any]", timeout)
    cut = [min(limit, left) if isinstance(limit, int | float) else left for limit in (connect, read)]
    return tuple(cut)
