"""Logs that never show a secret: masked JSON lines for every logger in the process.

```
log.info(...) ─┐                       ┌─ at once ──┐
logging.info() ┼─ mask ── JSON line ───┤            ├── stream
events ────────┘  (in the call)        └─ queue ────┘
```
"""

from __future__ import annotations

from reliakit.logs.configure import LoggingHandle, configure_logging
from reliakit.logs.context import log_context
from reliakit.logs.detectors import DEFAULT, HIGH_ENTROPY, IP_ADDRESSES, Detector
from reliakit.logs.filter import MaskingFilter
from reliakit.logs.formatter import MaskingFormatter
from reliakit.logs.groups import ErrorGroup, ErrorSample
from reliakit.logs.logger import Logger, get_logger
from reliakit.logs.masker import Masker
from reliakit.logs.tracker import ErrorTracker

__all__ = [
    "DEFAULT",
    "HIGH_ENTROPY",
    "IP_ADDRESSES",
    "Detector",
    "ErrorGroup",
    "ErrorSample",
    "ErrorTracker",
    "Logger",
    "LoggingHandle",
    "Masker",
    "MaskingFilter",
    "MaskingFormatter",
    "configure_logging",
    "get_logger",
    "log_context",
]
