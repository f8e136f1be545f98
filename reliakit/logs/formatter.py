"""Log records to masked JSON lines, on python-json-logger's formatter."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.core import BaseJsonFormatter

from reliakit.core.context import current_request
from reliakit.logs.context import context_fields
from reliakit.logs.encode import encode
from reliakit.logs.failures import error_fields, shown_fields
from reliakit.logs.objects import safe_text
from reliakit.logs.records import FIELDS, FOUND, REQUEST_ID, error_of, extras_of, message_of
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk

if TYPE_CHECKING:
    from reliakit.logs.masker import Masker

__all__ = ["MaskingFormatter"]


_MILLISECONDS = tuple(f".{number:03d}Z" for number in range(1000))


class MaskingFormatter(BaseJsonFormatter):
    """Make one line of JSON from a log record, with every secret masked. Never raises, never shows what it failed on.

    Args:
        service: The service's name, in every line.
        env: Where it runs, in every line.
        masker: Masks the records.
    """

    def __init__(self, *, service: str, env: str, masker: Masker) -> None:
        super().__init__()
        self._service = service
        self._env = env
        self._masker = masker
        self._second: tuple[int, str] = (-1, "")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        try:
            walk = Walk(self._masker, plain=True)
            line: str = self.serialize_log_record(self.process_log_record(self._data(record, walk)))
        except Exception:  # noqa: BLE001 - the record is reported without its content
            record.__dict__[FOUND] = (0, True)
            return self.jsonify_log_record(self._stand_in(record))
        if walk.found or walk.failed:
            record.__dict__[FOUND] = (walk.found, walk.failed)
        return line

    def __repr__(self) -> str:
        return f"{type(self).__name__}(service={self._service!r}, env={self._env!r}, masker={self._masker!r})"

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        """Return the data as one line of JSON."""
        return encode(log_data)

    def _data(self, record: logging.LogRecord, walk: Walk) -> dict[str, Any]:
        attributes = record.__dict__
        own = attributes.get(FIELDS)
        given = extras_of(attributes) if own is None else own
        around = context_fields()
        if around:
            given = {**around, **given}
        request = current_request()
        if request is not None:
            given = _with_request(request.fields, request.principal, given)
        data: dict[str, Any] = {
            "timestamp": self._timestamp(record.created),
            "level": record.levelname,
            "logger": walk.text(record.name),
            "message": walk.text(message_of(record, walk)),
            "service": self._service,
            "env": self._env,
        }
        request_id = trace_id = ""
        if request is not None or REQUEST_ID in attributes:
            # Masked before the fields, which may use up the budget.
            event_id = attributes.get(REQUEST_ID)
            request_id = _outer_id(event_id, "request_id", given, request and request.request_id, walk)
            trace_id = _outer_id(None, "trace_id", given, request and request.trace_id, walk)
        context = walk.fields(given) if given else {}
        if request_id or (request_id := _inner_id("request_id", given, context, walk)):
            data["request_id"] = request_id
        if trace_id or (trace_id := _inner_id("trace_id", given, context, walk)):
            data["trace_id"] = trace_id
        data["context"] = context
        error = error_of(record)
        if error is not None:
            data["error"] = (
                error_fields(error, walk) if isinstance(error, BaseException) else shown_fields(error, walk)
            )
        elif record.exc_text:
            data["error"] = {"type": None, "message": None, "stack": walk.text(record.exc_text)}
        if record.stack_info:
            data["stack_info"] = walk.text(str(record.stack_info))
        return data

    def _timestamp(self, created: float) -> str:
        """Return RFC 3339 in UTC with milliseconds; the part up to the second is cached from record to record."""
        second = int(created // 1)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return text + _MILLISECONDS[int((created - second) * 1000)]

    def _stand_in(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return what is logged in place of a record that could not be masked."""
        return {
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": logging.getLevelName(record.levelno) if isinstance(record.levelno, int) else "ERROR",
            "logger": FAILED,
            "message": FAILED,
            "service": self._service,
            "env": self._env,
            "context": {},
        }


def _outer_id(event_id: object, name: str, given: dict[str, Any], request_id: object, walk: Walk) -> str:
    """Return the masked id of the event or, unless a field has this name, of the request."""
    known = event_id if event_id is not None or given.get(name) is not None else request_id
    if known is None:
        return ""
    return walk.text(known if type(known) is str else safe_text(known))


def _inner_id(name: str, given: dict[str, Any], context: dict[str, Any], walk: Walk) -> str:
    """Return the masked id that stands among the fields."""
    known = given.get(name)
    if known is None:
        return ""
    shown = context.get(name)
    return shown if type(known) is str and type(shown) is str else walk.text(safe_text(known))


def _with_request(fields: Any, principal: str | None, given: dict[str, Any]) -> dict[str, Any]:
    if principal is not None:
        return {**fields, "principal": principal, **given}
    return {**fields, **given} if fields else given
