"""How long an error or a response asks us to wait before the next attempt.

```
error.retry_after                      our own rejections, and clients that carry it as a number
.headers, .response.headers            Retry-After: 120, or Retry-After: Fri, 31 Dec 1999 23:59:59 GMT
```

The header is that of RFC 9110, section 10.2.3.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

__all__ = ["retry_after_of"]

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_LONGEST_DATE = 64


def retry_after_of(outcome: object, wall: float) -> float | None:
    """Return the seconds that an error or a result asks to wait, 0 or more, or None if it does not ask.

    The attributes are looked up by name, so the errors and responses of any HTTP client will do. Never raises.

    Args:
        outcome: An exception or a result.
        wall: Seconds since the Unix epoch, for a header that names a date.
    """
    try:
        told = _number(getattr(outcome, "retry_after", None))
        if told is not None:
            return told
        for holder in (outcome, getattr(outcome, "response", None)):
            header = _header(getattr(holder, "headers", None))
            if header is not None:
                return _read(header, wall)
    except Exception:  # noqa: BLE001 - a hint in somebody else's object is not worth an error
        return None
    return None


def _number(value: object) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return max(0.0, float(value))


def _header(headers: Any) -> str | None:
    if headers is None or not callable(getattr(headers, "get", None)):
        return None
    value = headers.get("Retry-After") or headers.get("retry-after")  # a plain dict is case-sensitive
    return value.strip() if isinstance(value, str) else None


def _read(header: str, wall: float) -> float | None:
    if _SECONDS.fullmatch(header):
        return float(header)
    if len(header) > _LONGEST_DATE:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - slow to load, and rarely wanted

    until: datetime = parsedate_to_datetime(header)
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return max(0.0, until.timestamp() - wall)
