"""What an outgoing call carries along of the request that it serves: id, trace, priority, and the time that is left.

```
outgoing_headers() -> {"X-Request-ID": "a1", "traceparent": "00-...-01", "X-Request-Deadline-Ms": "1930"}
```

The names are those that `protect()` reads at the other end. `traceparent` and `tracestate` are those of the W3C's
Trace Context: what came in is handed on as it is, because reliakit adds no span of its own. A priority travels on by
itself, as Google's "Site Reliability Engineering" has it for criticality; "default" is told by saying nothing.
"""

from __future__ import annotations

import re
import secrets

from reliakit.core.context import current_request
from reliakit.core.deadline import deadline_headers

__all__ = ["PRIORITY_HEADER", "outgoing_headers"]

PRIORITY_HEADER = "X-Request-Priority"

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")


def outgoing_headers(*, margin: float = 0.0) -> dict[str, str]:
    """Return the headers for a call to another service: request id, trace, priority and remaining time, where known.

    `client.get(url, headers=outgoing_headers())`. The transports of `reliakit.integrations` do it by themselves.

    Args:
        margin: Seconds of the deadline kept back for the way and for what follows the call.
    """
    headers = deadline_headers(margin=margin)
    request = current_request()
    if request is None:
        return headers
    if _REQUEST_ID.fullmatch(request.request_id):
        headers["X-Request-ID"] = request.request_id
    if request.priority != "default":
        headers[PRIORITY_HEADER] = request.priority
    trace_id, trace = request.trace_id, request.trace_headers
    if trace is not None and (trace_id is None or trace_id in trace[0]):
        headers["traceparent"] = trace[0]
        if trace[1] is not None:
            headers["tracestate"] = trace[1]
    elif trace_id is not None and _TRACE_ID.fullmatch(trace_id):
        # Set by hand: nobody has told whether it is recorded.
        headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-00"
    return headers
