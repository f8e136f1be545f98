"""A limiter at the edge: one decision a request, reported to the client in header fields.

Fields: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit`, `RateLimit-Policy`), or on request the older
`X-RateLimit-*`; RFC 6585 for 429. The limiter is any object with `hit` (WSGI) or `ahit` (ASGI).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from reliakit.core import checks
from reliakit.core.colour import colour_of
from reliakit.core.errors import ConfigurationError
from reliakit.core.events import SecurityNoticed
from reliakit.core.spine import Emitter, Listener
from reliakit.web.client_ip import client_ip
from reliakit.web.part import Part
from reliakit.web.problem import ProblemResponse, limited, retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from reliakit.web.headers import Fields
    from reliakit.web.request import Request

__all__ = ["Decided", "Limiter", "RateLimitHeaders"]


class Decided(Protocol):
    """What a limiter returns, such as a `reliakit.ratelimit.Decision`."""

    @property
    def allowed(self) -> bool:
        """Whether the request may pass."""
        ...

    @property
    def limit(self) -> int:
        """How many requests a window or a burst holds."""
        ...

    @property
    def remaining(self) -> int:
        """How many requests are left."""
        ...

    @property
    def retry_after(self) -> float:
        """Seconds until one more is allowed."""
        ...

    @property
    def reset_after(self) -> float:
        """Seconds until all are left again."""
        ...

    @property
    def degraded(self) -> bool:
        """Whether a stand-in for the store decided."""
        ...


class Limiter(Protocol):
    """What decides, such as a `reliakit.ratelimit.RateLimiter`."""

    def hit(self, key: str, /) -> Decided:
        """Decide in this thread."""
        ...

    def ahit(self, key: str, /) -> Awaitable[Decided]:
        """Decide without blocking the event loop."""
        ...


class RateLimitHeaders(Part):
    """Ask a limiter before the app runs: 429 with Retry-After beyond the limit, and header fields on all responses.

    A limiter with several limits reports all of them as policies, named "search-1", "search-2" and so on, and for the
    binding one what is left. A refusal of a limiter whose store is down is 503. Each refusal emits
    `SecurityNoticed("rate_limit")`.

    Args:
        limiter: A `RateLimiter`.
        key: A callable(scope or environ) -> key; None as a key leaves the request without a limit. By default the
            client's address, see `client_ip`.
        fields: "draft" for RateLimit and RateLimit-Policy, "legacy" for X-RateLimit-Limit, -Remaining and -Reset,
            "off" for none; Retry-After is sent in any case.
        client: Returns the client's address for the event.
        service: The service's name, for the event.
        listeners: Listeners of this component alone.

    Raises:
        ConfigurationError: The limiter has no `hit` and `ahit`, or the key is not callable or is async.
    """

    __slots__ = ("_client", "_emitter", "_fields", "_key", "_listed", "_name", "_names", "limiter", "service")

    def __init__(
        self,
        limiter: Limiter,
        *,
        key: Callable[[Any], str | None] = client_ip(),  # noqa: B008 - immutable
        fields: Literal["draft", "legacy", "off"] = "draft",
        client: Callable[[Any], str] = client_ip(),  # noqa: B008 - immutable
        service: str | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        if not (callable(getattr(limiter, "hit", None)) and callable(getattr(limiter, "ahit", None))):
            raise ConfigurationError(f"limiter must have hit and ahit, as a RateLimiter does, got {limiter!r}")
        self.limiter: Limiter = limiter
        self.service: str | None = service
        self._client = client
        self._key = checked_key(key)
        self._fields = checks.choice("fields", fields, ("draft", "legacy", "off"))
        self._name = str(getattr(limiter, "name", None) or "default")
        limits: tuple[Any, ...] = tuple(getattr(limiter, "limits", ()))
        numbered = enumerate(limits if len(limits) > 1 else (), start=1)
        self._names: dict[Any, str] = {limit: f"{self._name}-{number}" for number, limit in numbered}
        self._listed = ", ".join(
            f"{_quoted(name)}{_policy(limit, _quota(limit, limit.amount))}" for limit, name in self._names.items()
        )
        self._emitter = Emitter(service or self._name, listeners)

    def key(self, request: Request) -> str | None:
        """Return the key that this request is counted under."""
        return self._key(request)

    def chosen(self, decision: Decided) -> Fields:
        """Return the header fields for this decision, in lower case."""
        if self._fields == "off":
            return ()
        rule = getattr(decision, "rule", None)
        limit, remaining = _quota(rule, decision.limit), max(0, decision.remaining)
        wait = decision.reset_after if decision.allowed else decision.retry_after
        if decision.allowed and rule in self._names:
            # After it nothing counts any more under any limit; the reported one takes its own window at most.
            wait = min(wait, _window(rule, limit))
        seconds = retry_after(wait)
        if self._fields == "legacy":
            told = [("limit", limit), ("remaining", remaining), *([] if seconds is None else [("reset", seconds)])]
            return tuple((f"x-ratelimit-{name}".encode(), str(value).encode()) for name, value in told)
        reset = "" if seconds is None else f";t={seconds}"
        name = _quoted(self._names.get(rule, self._name))
        policies = self._listed if rule in self._names else f"{name}{_policy(rule, limit)}"
        return (
            (b"ratelimit-policy", policies.encode()),
            (b"ratelimit", f"{name};r={remaining}{reset}".encode()),
        )

    def refused(self, decision: Decided, request: Request) -> ProblemResponse:
        """Return the response for a refusal, and report the refusal to listeners."""
        if self._emitter.hears(SecurityNoticed):
            self._emitter.emit(
                SecurityNoticed,
                event="rate_limit",
                source=self._client(request),
                service=self.service,
                fields={"limiter": self._name, "retry_after": decision.retry_after, "degraded": decision.degraded},
            )
        violated = _printable(self._names.get(getattr(decision, "rule", None), self._name))
        return limited(degraded=decision.degraded, wait=decision.retry_after, policies=(violated,))

    def __repr__(self) -> str:
        return f"RateLimitHeaders({self.limiter!r}, key={self._key!r}, fields={self._fields!r})"


def checked_key(key: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """Return a key function if it is valid."""
    if not callable(key) or colour_of(key, by="key") != "plain":
        raise ConfigurationError(f"key must be a plain callable that takes a scope or environ, got {key!r}")
    return key


def _quota(rule: Any, amount: int) -> int:
    """Return what a window holds; a burst beyond the amount has a longer window, so that never more is left."""
    return max(amount, getattr(rule, "burst", None) or 0)


def _policy(rule: Any, quota: int) -> str:
    """Return a policy's parameters: its quota, and the window in which all of it comes back, if that is known."""
    # The draft has whole seconds only, and says to leave the parameter out below one.
    seconds = round(_window(rule, quota))
    return f";q={quota};w={seconds}" if seconds >= 1 else f";q={quota}"


def _window(rule: Any, quota: int) -> float:
    """Return the seconds in which all of a quota comes back, 0.0 where that is not known."""
    per, amount = getattr(rule, "per", None), getattr(rule, "amount", None)
    return float(per * quota / amount) if per and amount else 0.0


def _printable(name: str) -> str:
    """Return a policy's name as clients see it: the fields and the problem must agree on it."""
    return "".join(character if " " <= character <= "~" else "_" for character in name)


def _quoted(name: str) -> str:
    """Return a name as a String of RFC 9651: printable ASCII, quotes and backslashes escaped."""
    return '"' + _printable(name).replace("\\", "\\\\").replace('"', '\\"') + '"'
