"""Masking for handlers that are not ours: a filter that gives them records without secrets.

```
logger ── record ──┬── our handler ───────────────── masks as it writes
                   └── MaskingFilter ── another's ── masked before it sees the record
```
"""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping
from typing import Any

from reliakit.logs.failures import error_text
from reliakit.logs.masker import Masker, masker_or_default
from reliakit.logs.records import FOUND, KEPT, REQUEST_ID, RESERVED, Kept, error_of, message_of
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk

__all__ = ["MaskingFilter"]

# Since Python 3.12 a filter may return another record, which only its own handler sees.
_REPLACES = sys.version_info >= (3, 12)
# Structlog keeps the logger itself in the record; `ERROR` and `FIELDS` hold what callers gave, and are masked.
_LEFT = RESERVED | {"_logger", FOUND, REQUEST_ID, KEPT}
_NAMES = ("name", "threadName", "processName", "taskName")


class MaskingFilter(logging.Filter):
    """Mask the secrets in records before another handler or logger sees them.

    `handler.addFilter(MaskingFilter(masker))` masks what that handler writes, sends or puts on a queue: the message
    with its arguments, extra fields, the exception with its causes and notes, the stack. The exception becomes text.
    Filters run in the order in which they were added; add this one last.

    On Python 3.12 and later the handler gets a copy. Before that, a filter cannot replace a record, so the record
    itself is changed, and handlers that come later see it masked, too; reliakit's own still knows the exception.

    Safe from any thread. Never raises: a record that cannot be masked is replaced by one that says so.

    Args:
        masker: Masks the records; `Masker()` by default.

    Raises:
        ConfigurationError: `masker` is not a `Masker`.
    """

    def __init__(self, masker: Masker | None = None) -> None:
        super().__init__()
        self._masker = masker_or_default(masker)

    def filter(self, record: logging.LogRecord) -> logging.LogRecord:  # type: ignore[override]  # as in 3.12
        """Return the record without its secrets."""
        try:
            masked = self._masked(record)
        except Exception:  # noqa: BLE001 - the record is reported without its content
            masked = _stand_in(record)
        if _REPLACES:
            return masked
        attributes = record.__dict__
        attributes.clear()
        attributes.update(masked.__dict__)
        return record

    def _masked(self, record: logging.LogRecord) -> logging.LogRecord:
        walk = Walk(self._masker, plain=False)
        masked = copy.copy(record)
        attributes = masked.__dict__
        masked.msg, masked.args = _message(record, walk), None
        # What another handler's formatter stored here was not masked.
        attributes.pop("message", None)
        given = {key: value for key, value in attributes.items() if key not in _LEFT}
        for key in given:
            del attributes[key]
        attributes.update(walk.fields(given))
        error = error_of(record)
        if isinstance(error, BaseException):
            masked.exc_text = error_text(error, walk)
            attributes[KEPT] = Kept(error)
        elif record.exc_text:
            masked.exc_text = walk.text(str(record.exc_text))
        masked.exc_info = None
        if record.stack_info:
            masked.stack_info = walk.text(str(record.stack_info))
        for name in _NAMES:
            if type(attributes.get(name)) is str:
                attributes[name] = walk.text(attributes[name])
        return masked

    def __repr__(self) -> str:
        return f"MaskingFilter({self._masker!r})"


def _message(record: logging.LogRecord, walk: Walk) -> Any:
    """Return the message with its arguments in it; a mapping, which some formatters take apart, stays one."""
    message: Any = record.msg
    if isinstance(message, Mapping) and not record.args:
        return walk.value(message, 0)
    return walk.text(message_of(record, walk))


def _stand_in(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record that only says that, when and how severely something was logged."""
    level = record.levelno if isinstance(record.levelno, int) else logging.ERROR
    return logging.makeLogRecord(
        {
            "name": FAILED,
            "msg": FAILED,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "created": record.created,
            "msecs": record.msecs,
        }
    )
