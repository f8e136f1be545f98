"""A policy for each host that is called, and what HTTP says about sending a request again.

```
request ── host? ── its policy ── may it be sent twice? ── yes: the whole policy
                                                        └─ no:  without Retry and Hedge
answer  ── 5xx or 429? ── inside the policy an error, so breakers count it and retries see it; then an answer again
```

Methods are safe to repeat as in RFC 9110, section 9.2.2; so is any request that carries an `Idempotency-Key`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.resilience.hedge import Hedge
from reliakit.resilience.policy import Layer, Part, Policy, parts_of
from reliakit.resilience.retry import Retry

__all__ = ["FailedResponse", "HostPolicies", "HostPolicy", "is_failure"]

HostPolicy: TypeAlias = Policy | Part | Callable[[str], Policy | Part]
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
_REPEATING = (Retry, Hedge)
# A server that does not implement the method or the HTTP version will not do so at the next attempt either.
_FINAL = frozenset({501, 505})
_DEFAULT_HOSTS = 256


def is_failure(status: int) -> bool:
    """Return whether a status says that the host is in trouble or wants to be left alone: 5xx and 429."""
    return status == 429 or (status >= 500 and status not in _FINAL)


class FailedResponse(Exception):  # noqa: N818 - the error is the response
    """An answer such as 503, as the error that a policy sees. Outside of the policy it is an answer again.

    List it where `Retry(on=...)` and `CircuitBreaker(failure=...)` list types: `failure=(OSError, FailedResponse)`.
    Their default, Exception, includes it.

    Attributes:
        response: The client's own response object, with its body read.
        status: The HTTP status.
    """

    def __init__(self, response: Any, status: int) -> None:
        super().__init__(f"answered with status {status}")
        self.response: Any = response
        self.status: int = status


class HostPolicies:
    """One policy for each host, made when the host is first called. Safe from threads and tasks.

    Args:
        policy: A callable that returns the policy for a host such as "api.example.com:8443", or one policy for all.
        max_hosts: How many hosts are remembered; the one not called for longest is forgotten, with its breaker.
        failed: A function of the status that says which ones are failures.

    Raises:
        ConfigurationError: A setting is wrong, or `policy` did not return a policy.
    """

    __slots__ = ("_failed", "_hosts", "_lock", "_make", "max_hosts")

    def __init__(
        self,
        policy: HostPolicy,
        *,
        max_hosts: int = _DEFAULT_HOSTS,
        failed: Callable[[int], bool] = is_failure,
    ) -> None:
        # Patterns are callable too, as decorators, so they are looked for first.
        if not isinstance(policy, type) and (isinstance(policy, Policy | Layer) or hasattr(policy, "enter")):
            chains = _chains(policy)
            self._make: Callable[[str], tuple[Policy, Policy | None]] = lambda _: chains
        elif callable(policy):
            make = cast("Callable[[str], object]", policy)
            self._make = lambda host: _chains(make(host))
        else:
            raise ConfigurationError(f"policy must be a Policy or a function of the host, got {policy!r}")
        if not callable(failed):
            raise ConfigurationError(f"failed must be a function of the status, got {failed!r}")
        self.max_hosts: int = checks.count("max_hosts", max_hosts)
        self._failed = failed
        self._hosts: OrderedDict[str, tuple[Policy, Policy | None]] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, host: str, method: str, *, is_marked: bool, is_replayable: bool) -> Policy | None:
        """Return the policy to send a request through: the whole one, the part that sends once, or None for none.

        Args:
            host: The host with its port.
            method: The HTTP method.
            is_marked: Whether the request carries an Idempotency-Key.
            is_replayable: Whether its body can be sent a second time.
        """
        with self._lock:
            chains = self._hosts.get(host)
            if chains is not None:
                self._hosts.move_to_end(host)
        if chains is None:
            made = self._make(host)  # the user's code, so it runs without the lock
            with self._lock:
                chains = self._hosts.setdefault(host, made)
                if len(self._hosts) > self.max_hosts:
                    self._hosts.popitem(last=False)
        whole, once = chains
        return whole if is_replayable and (is_marked or method.upper() in _IDEMPOTENT) else once

    def check(self, response: Any, status: int) -> None:
        """Raise FailedResponse for an answer that is a failure."""
        if self.is_failed(status):
            raise FailedResponse(response, status)

    def is_failed(self, status: int) -> bool:
        """Return whether an answer with this status is a failure."""
        return bool(self._failed(status))

    def __repr__(self) -> str:
        return f"<HostPolicies of {len(self._hosts)} of at most {self.max_hosts} hosts>"


def _chains(policy: object) -> tuple[Policy, Policy | None]:
    """Return a policy, and the part of it that sends a request only once."""
    if not isinstance(policy, Policy):
        policy = Policy(*parts_of(policy))
    whole = policy
    rest = [part for part in whole.parts if not isinstance(part, _REPEATING)]
    if len(rest) == len(whole.parts):
        return whole, whole
    return whole, Policy(*rest, name=whole.name) if rest else None
