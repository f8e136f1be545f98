"""Limits on how often a key may do something and on how many calls run at once, and a guard for logins."""

from reliakit.ratelimit.concurrency import ConcurrencyLimiter, Place
from reliakit.ratelimit.limit import Decision, Limit
from reliakit.ratelimit.limiter import RateLimiter
from reliakit.ratelimit.login import LoginAttempt, LoginGuard, LoginStatus
from reliakit.ratelimit.tally import LimiterStats

__all__ = [
    "ConcurrencyLimiter",
    "Decision",
    "Limit",
    "LimiterStats",
    "LoginAttempt",
    "LoginGuard",
    "LoginStatus",
    "Place",
    "RateLimiter",
]
