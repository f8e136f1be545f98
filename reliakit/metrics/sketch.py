"""Quantiles within 1 %, whatever the distribution, in a few hundred counters.

Source: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error guarantees"
(2019). A value is counted in bucket `i = ceil(log(value) / log(gamma))`; sketches add up bucket by bucket.
"""

from __future__ import annotations

from collections import Counter
from math import ceil, log

__all__ = ["bucket_of", "quantile"]

_ACCURACY = 0.01
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)
_PER_LOG = 1 / log(_GAMMA)
# No value beyond these is shown: 1 400 buckets at most, the lowest of which also holds 0.
_LEAST, _MOST = 1e-6, 1e6


def bucket_of(value: float) -> int:
    """Return the bucket that a measurement, zero or more, is counted in."""
    if not _LEAST <= value <= _MOST:
        value = _LEAST if value < _LEAST else _MOST
    return ceil(log(value) * _PER_LOG)


def quantile(buckets: Counter[int], share: float) -> float | None:
    """Return what `share` of the measurements did not exceed, within 1 %; None if there are none.

    Args:
        buckets: How many measurements each bucket holds.
        share: From 0 to 1; 0.95 for the 95th percentile.
    """
    # The smallest measurement such that the wanted number do not exceed it: the convention under which "p95 <= 0.1"
    # means the same as "95 % take up to 0.1".
    rank = max(1, ceil(share * buckets.total() - 1e-9))
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            return 2 * _GAMMA**bucket / (_GAMMA + 1)
    return None
