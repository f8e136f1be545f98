"""Limits on how often a key may do something, and on how much runs at once."""

from reliakit.ratelimit.concurrency import ConcurrencyLimiter, Place
from reliakit.ratelimit.limit import Decision, Limit
from reliakit.ratelimit.limiter import RateLimiter

__all__ = ["ConcurrencyLimiter", "Decision", "Limit", "Place", "RateLimiter"]
