"""What an outgoing call passes on from the request that it serves: id, trace, priority, and the time left.

```
outgoing_headers() -> {"X-Request-ID": "a1", "traceparent": "00-...-01", "X-Request-Deadline-Ms": "1930"}
```

`protect()` reads the same names at the other end. `traceparent` and `tracestate` are those of the W3C's Trace
Context: what came in is passed on unchanged, because reliakit adds no span of its own. A priority is passed on as
    criticality
is in Google's "Site Reliability Engineering"; "default" is expressed by sending no header.
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
    """Return the headers for a call to another service: request id, trace, priority and time left, as far as known.

    Use it as `client.get(url, headers=outgoing_headers())`. The transports of `reliakit.integrations` do so by
    themselves.

    Args:
        margin: Seconds of the deadline to keep back for the network and for what follows the call.
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
        # The trace id was set by hand, so it is not known whether the trace is recorded.
        headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-00"
    return headers
