"""A limit as people write it, and the decision a limiter takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.stores.protocol import ALGORITHMS, Algorithm, Plan, Rule

__all__ = ["Decision", "Limit", "limit_of", "plan_of"]

_UNITS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
# More digits than any limit has, fewer than Python refuses to read.
_NUMBER = r"\d{1,99}(?:\.\d{1,99})?"
# The largest number that a RateLimit header can tell (RFC 9651).
_MOST: Final = 10**15 - 1
_CENTURY: Final = 36_525 * 86_400.0
_TEXT = re.compile(
    rf"\s*(?P<amount>\d{{1,99}})\s*(?:/|\bper\b)\s*(?P<times>{_NUMBER})?\s*(?P<unit>[a-z]+)(?:\s+burst\s+(?P<burst>\d{{1,99}}))?\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Limit:
    """How much may be spent in how many seconds.

    ```python
    Limit.parse("10/s")     Limit.parse("600/min burst 100")     Limit.parse("5 per 30s")
    Limit(5, per=3600, algorithm="sliding_log")
    ```

    Args:
        amount: How much may be spent in a period, in the long run; less than 10**15.
        per: The period, in seconds; at most a century.
        burst: How much may be spent at once; None means `amount`. Only gcra takes a burst that differs from `amount`.
        algorithm: How spending is counted. "gcra" is smooth and keeps one number for each key. "sliding_log" is exact
            in any window and keeps one number for each unit spent. "sliding_counter" keeps four numbers and now and
            then admits a little too much. "fixed_window" counts from a key's first hit and admits up to twice the
            amount around the edge between two windows.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    amount: int
    per: float = 1.0
    burst: int | None = None
    algorithm: Algorithm = "gcra"

    def __post_init__(self) -> None:
        _check_amount("amount", self.amount)
        checks.seconds("per", self.per)
        checks.choice("algorithm", self.algorithm, ALGORITHMS)
        if self.per > _CENTURY or round(self.per * 1e9) < 1:
            raise ConfigurationError(f"per must be at least a nanosecond and at most a century, got {self.per!r}")
        if self.burst is None:
            return
        _check_amount("burst", self.burst)
        if self.algorithm != "gcra" and self.burst != self.amount:
            raise ConfigurationError(f"burst is for gcra only, {self.algorithm} spends up to its amount at once")

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Return the limit that a text such as "10/s", "600/min burst 100" or "5 per 30s" describes.

        Units: s sec second, m min minute, h hour, d day, also in the plural.

        Raises:
            ConfigurationError: The text describes no limit.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        seconds = _UNITS.get(found["unit"].lower()) if found else None
        if found is None or seconds is None:
            raise ConfigurationError(
                f'limit must look like "10/s", "600/min burst 100" or "5 per 30s", got {checks.shown(text)}'
            )
        burst = found["burst"]
        return cls(int(found["amount"]), float(found["times"] or 1) * seconds, None if burst is None else int(burst))

    @property
    def rule(self) -> Rule:
        """The limit in whole numbers, as stores take it."""
        return Rule(self.algorithm, self.amount, round(self.per * 1e9), self.burst or self.amount)

    def __str__(self) -> str:
        unit = {1.0: "/s", 60.0: "/min", 3600.0: "/h", 86400.0: "/day"}.get(self.per, f" per {self.per:g}s")
        burst = "" if self.burst in (None, self.amount) else f" burst {self.burst}"
        algorithm = "" if self.algorithm == "gcra" else f" {self.algorithm}"
        return f"{self.amount}{unit}{burst}{algorithm}"


def _check_amount(argument: str, value: int) -> None:
    if checks.count(argument, value) > _MOST:
        raise ConfigurationError(f"{argument} must be at most {_MOST}, got {checks.shown(value)}")


def limit_of(argument: str, given: str | Limit) -> Limit:
    """Return the limit that a setting gives, as text or as a `Limit`."""
    try:
        return given if isinstance(given, Limit) else Limit.parse(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{argument}: {error}") from error


def plan_of(limits: tuple[Limit, ...], name: str, kind: str = "") -> Plan:
    """Return what a limiter of this name asks of its store; other limits, or another kind, make another plan."""
    rules = tuple(limit.rule for limit in limits)
    written = ",".join(f"{rule.algorithm}:{rule.limit}:{rule.period}:{rule.burst}" for rule in rules)
    return Plan(f"v1:{kind}{written}:{name}", rules)


class Decision(NamedTuple):
    """What a limiter decided; true when allowed.

    Attributes:
        allowed: Whether the call may go on.
        limit: The amount of the binding limit: the one that takes longest to allow the cost, or has least left.
        remaining: How much could still be spent at once.
        retry_after: Seconds until the cost would be allowed; 0.0 if it was.
        reset_after: Seconds until nothing that the key has spent counts any more.
        degraded: Whether a stand-in decided because the store did not answer.
        rule: The binding limit itself; None in a decision that no limiter made.
    """

    allowed: bool
    limit: int
    remaining: int
    retry_after: float
    reset_after: float
    degraded: bool
    rule: Limit | None = None

    def __bool__(self) -> bool:
        return self.allowed
