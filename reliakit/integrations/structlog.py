"""Masking for structlog: a processor that passes on events in which no secret is left.

```
structlog.configure(processors=[add_log_level, TimeStamper(fmt="iso"), mask_event(), JSONRenderer()])
```

It belongs right before the renderer, so that nothing can be added after it. An exception in the event becomes masked
text, so no processor for exceptions is needed; the output of one that comes before it is masked, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableMapping
from typing import Any

from reliakit.logs.failures import error_text
from reliakit.logs.masker import Masker, masker_or_default
from reliakit.logs.records import formatted
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk

__all__ = ["mask_event"]

# The standard library's record behind the event, for a formatter that removes it again.
_LEFT = ("_record", "_from_structlog")


def mask_event(masker: Masker | None = None) -> Callable[[Any, str, Any], Any]:
    """Return a structlog processor that masks events. It never raises, and never changes the event passed to it.

    Args:
        masker: Masks the events; `Masker()` by default.

    Raises:
        ConfigurationError: `masker` is not a `Masker`.
    """
    chosen = masker_or_default(masker)

    def process(_logger: Any, method: str, event: Any) -> Any:
        try:
            if not isinstance(event, MutableMapping):
                return chosen.mask(event)  # rendered already
            return _masked({**event}, Walk(chosen, plain=False))
        except Exception:  # noqa: BLE001 - the event is reported without its content
            return {"event": FAILED, "level": method}

    return process


def _masked(event: dict[str, Any], walk: Walk) -> dict[str, Any]:
    left = {name: event.pop(name) for name in _LEFT if name in event}
    if "positional_args" in event:
        event["event"] = formatted(event.get("event", ""), event.pop("positional_args"), walk)
    error = _error(event.pop("exc_info", None))
    masked = walk.fields(event)
    if error is not None:
        masked["exception"] = error_text(error, walk)
    return {**masked, **left}


def _error(exc_info: object) -> BaseException | None:
    """Return an event's exception, given in any of the usual ways."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[1], BaseException):  # pyright: ignore[reportUnknownArgumentType]  # whatever was given
        return exc_info[1]
    return sys.exc_info()[1] if exc_info else None
