"""Limits on how often a key may do something."""

from reliakit.ratelimit.limit import Decision, Limit
from reliakit.ratelimit.limiter import RateLimiter

__all__ = ["Decision", "Limit", "RateLimiter"]
