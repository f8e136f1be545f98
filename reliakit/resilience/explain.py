"""A policy in words: what its parts mean in their order, and which known traps it contains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

from reliakit.core.backoff import Backoff
from reliakit.resilience.adaptive import AdaptiveLimit
from reliakit.resilience.breaker import CircuitBreaker
from reliakit.resilience.bulkhead import Bulkhead
from reliakit.resilience.coalesce import Coalesce
from reliakit.resilience.fallback import Fallback
from reliakit.resilience.hedge import Hedge
from reliakit.resilience.retry import Retry
from reliakit.resilience.throttle import Throttle
from reliakit.resilience.timeout import Timeout

if TYPE_CHECKING:
    from reliakit.resilience.policy import Policy

__all__ = ["explained"]

_MEANINGS: dict[type[object], str] = {
    Fallback: "stands in for what fails further in",
    Timeout: "limits everything further in, and shrinks the deadline there",
    Retry: "tries everything further in again",
    CircuitBreaker: "counts what comes from further in, and refuses while it is open",
    Bulkhead: "holds one of its places while everything further in runs",
    Throttle: "refuses more calls the fewer the server accepts",
    AdaptiveLimit: "lets as much of what is further in run at once as runs well",
    Hedge: "starts everything further in again when it takes unusually long",
    Coalesce: "makes one call of those that ask the same at the same time",
}
Parts: TypeAlias = "tuple[object, ...]"


def explained(policy: Policy) -> str:
    """Return the text of `Policy.explain`."""
    parts: Parts = policy.parts
    lines = [f"policy {policy.name!r}, the outermost first:"]
    width = max(len(_title(part)) for part in parts)
    lines += [
        f"{number:3}. {_title(part):{width}}  {_MEANINGS.get(type(part), 'decides before each call')}"
        for number, part in enumerate(parts, 1)
    ]
    lines += [f"warning: {warning}" for trap in _TRAPS for warning in trap(parts)]
    return "\n".join(lines)


def _title(part: object) -> str:
    if isinstance(part, Retry):
        return f"Retry({part.max_attempts})"
    if isinstance(part, Bulkhead):
        return f"Bulkhead({part.max_concurrent})"
    if isinstance(part, Timeout):
        return f"Timeout({part.seconds:g})"
    if isinstance(part, CircuitBreaker | AdaptiveLimit | Coalesce | Throttle | Hedge):
        return f"{type(part).__name__}({part.name!r})"
    return repr(part)


def _pairs(parts: Parts, outer: type[object], inner: type[object]) -> Iterator[tuple[int, int]]:
    """Yield the places of each pair of such parts, the outer one before the inner one."""
    for one, other in combinations(range(len(parts)), 2):
        if isinstance(parts[one], outer) and isinstance(parts[other], inner):
            yield one, other


def _timeout_around_breaker(parts: Parts) -> Iterator[str]:
    for limit, breaker in _pairs(parts, Timeout, CircuitBreaker):
        if not any(isinstance(part, Timeout) for part in parts[breaker:]):
            yield (
                f"{_title(parts[limit])} around {_title(parts[breaker])} is neutral to it: a dependency that is "
                "only too slow never opens it. Put a Timeout inside the breaker."
            )


def _retry_inside_breaker(parts: Parts) -> Iterator[str]:
    for breaker, retry in _pairs(parts, CircuitBreaker, Retry):
        yield (
            f"{_title(parts[breaker])} around {_title(parts[retry])} counts all attempts of a call as one. Put the "
            "Retry outside, to have each counted and to stop trying once it is open."
        )


def _fallback_inside(parts: Parts) -> Iterator[str]:
    for breaker, fallback in _pairs(parts, CircuitBreaker, Fallback):
        yield (
            f"{_title(parts[fallback])} inside {_title(parts[breaker])} hides failures from it: it never opens for "
            "them. Put the Fallback outside."
        )
    for retry, fallback in _pairs(parts, Retry, Fallback):
        yield (
            f"{_title(parts[fallback])} inside {_title(parts[retry])} leaves nothing to try again. Put the Fallback "
            "outside."
        )


def _limits(parts: Parts) -> Iterator[str]:
    for outer, inner in _pairs(parts, Timeout, Timeout):
        wide, narrow = parts[outer], parts[inner]
        assert isinstance(wide, Timeout)
        assert isinstance(narrow, Timeout)
        if narrow.seconds >= wide.seconds:
            yield f"{_title(narrow)} inside {_title(wide)} never ends first."
    for limit, retry in _pairs(parts, Timeout, Retry):
        if not any(isinstance(part, Timeout) for part in parts[retry:]):
            yield (
                f"{_title(parts[limit])} around {_title(parts[retry])} may be used up by one slow attempt. Put "
                "another Timeout inside the Retry."
            )


def _unbounded_retries(parts: Parts) -> Iterator[str]:
    for place, retry in enumerate(parts):
        if not isinstance(retry, Retry) or any(isinstance(part, Timeout) for part in parts[:place]):
            continue
        inner = next((part for part in parts[place:] if isinstance(part, Timeout)), None)
        if inner is not None and isinstance(retry.wait, Backoff | float):
            pauses = sum(
                retry.wait.pause(number) if isinstance(retry.wait, Backoff) else retry.wait
                for number in range(1, retry.max_attempts)
            )
            longest = retry.max_attempts * inner.seconds + pauses
            yield (
                f"{_title(retry)} has no Timeout around it: without a deadline of the caller's one call may take "
                f"{longest:g} s."
            )


def _multiplied(parts: Parts) -> Iterator[str]:
    for outer, inner in _pairs(parts, Retry, Retry):
        one, other = parts[outer], parts[inner]
        assert isinstance(one, Retry)
        assert isinstance(other, Retry)
        yield (
            f"{_title(one)} around {_title(other)} makes up to {one.max_attempts * other.max_attempts} attempts of "
            "one call. Keep one of them."
        )


def _hedged_retries(parts: Parts) -> Iterator[str]:
    for hedge, retry in _pairs(parts, Hedge, Retry):
        yield (
            f"{_title(parts[hedge])} around {_title(parts[retry])} tries each copy again. Put the Hedge inside, "
            "where a copy is one attempt."
        )


def _shared_too_late(parts: Parts) -> Iterator[str]:
    for limit in (Bulkhead, AdaptiveLimit):
        for outer, inner in _pairs(parts, limit, Coalesce):
            yield (
                f"{_title(parts[outer])} around {_title(parts[inner])} holds a place for each caller that waits for "
                "the same call. Put the Coalesce outside."
            )


def _places_held(parts: Parts) -> Iterator[str]:
    for limit in (Bulkhead, AdaptiveLimit):
        for outer, retry in _pairs(parts, limit, Retry):
            yield (
                f"{_title(parts[outer])} around {_title(parts[retry])} holds its place during the pauses too. Put "
                f"the {limit.__name__} inside."
            )


def _same_twice(parts: Parts) -> Iterator[str]:
    for one, other in combinations(parts, 2):
        if one is other:
            yield f"{_title(one)} is in the policy twice: each call passes through the same object two times."


_TRAPS: tuple[Callable[[Parts], Iterator[str]], ...] = (
    _timeout_around_breaker,
    _retry_inside_breaker,
    _fallback_inside,
    _limits,
    _unbounded_retries,
    _multiplied,
    _hedged_retries,
    _shared_too_late,
    _places_held,
    _same_twice,
)
