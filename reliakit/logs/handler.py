"""Writes lines to a stream, at once or through a bounded queue.

A line that cannot be written is counted; nothing of it is shown anywhere else.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from reliakit.core.events import LogDropped, LogFigures, LogPresent, SecretsMasked
from reliakit.core.fork import renew_locks_after_fork
from reliakit.core.spine import Emitter, watch
from reliakit.core.threads import Bell, Errand
from reliakit.core.tracking import report
from reliakit.logs.records import FOUND, REQUEST_ID, error_of

if TYPE_CHECKING:
    from reliakit.logs.formatter import MaskingFormatter
    from reliakit.logs.output import Output
    from reliakit.logs.sparing import Sparing

__all__ = ["LineHandler"]

_CLOSE_WAIT = 5.0


class LineHandler(logging.Handler):
    """Write each record as one masked line.

    Formatting and masking happen in the call, under no lock; only the finished line waits for the stream, or crosses
    the queue. The handler never raises and never prints a record anywhere else.

    Args:
        formatter: Makes the lines.
        output: Writes them.
        service: The service that errors are reported for.
        queue_size: How many lines may wait for a thread that writes, so that a slow stream does not slow the caller;
            0 writes at once.
        sparing: Decides what is left out; None for nothing.
    """

    def __init__(
        self,
        formatter: MaskingFormatter,
        output: Output,
        service: str,
        *,
        queue_size: int = 0,
        sparing: Sparing | None = None,
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.owner: Any = None
        self.dropped: int = 0
        self._output = output
        self._sparing = sparing
        self._service = service
        self._emitter = Emitter("logs")
        self._speaking = threading.local()
        self._writer = _Writer(self, queue_size) if queue_size else None
        self._written = _Written(self)
        watch(self)

    def listeners_changed(self) -> None:
        """Announce itself to listeners that count records; see `reliakit.core.spine.watch`."""
        self._emitter.introduce(LogPresent, read=self._written.read)

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]  # as in 3.12
        """Filter, format and write one record."""
        passed = self.filter(record) if self.filters else True
        if passed:
            kept = passed if isinstance(passed, logging.LogRecord) else record
            if self._sparing is None:
                self.emit(kept)
            else:
                admitted, told = self._sparing.admit(kept)
                self._emit_apart(told)
                if admitted:
                    self.emit(kept)
        return passed

    def _emit_apart(self, records: Iterable[logging.LogRecord]) -> None:
        """Write records that do not belong to the request being served."""
        for record in records:
            Context().run(self.emit, record)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = self.format(record)
            if self._writer is None or not self._writer.is_ready():
                self.write(line, record.levelno)
            elif not self._writer.put(line, record.levelno):
                self.drop("queue full")
        except Exception as fault:  # noqa: BLE001 - reported as an event; a log must not hurt its caller
            self.drop(type(fault).__name__)
        self._tell(record)

    def write(self, line: str, level: int) -> None:
        """Put one line on the stream in one piece, and count it as a record of this level."""
        self._output.write(line)
        self._written.count(level)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the standard library's name
        """Count a record that could not be written. Nothing of it is printed."""
        self.drop("error")

    def flush(self) -> None:
        """Wait until every line that was logged before is written, at most a few seconds."""
        if self._writer is not None:
            self._writer.drain()

    def close(self) -> None:
        """Write what is waiting, and the reports of records that were left out, and end the thread."""
        if self._sparing is not None:
            self._emit_apart(self._sparing.rest())
        if self._writer is not None:
            self._writer.close()
        super().close()

    def drop(self, reason: str, count: int = 1) -> None:
        """Count lines that could not be written."""
        self.dropped += count
        self._once(lambda: self._emitter.emit(LogDropped, reason=reason, count=count))

    def _tell(self, record: logging.LogRecord) -> None:
        """Emit the record's events; records that listeners write meanwhile cause no new events."""
        attributes = record.__dict__
        if REQUEST_ID in attributes:
            return
        error = error_of(record)
        if isinstance(error, BaseException):
            self._once(lambda: report(self._emitter, error, service=self._service))
        if FOUND in attributes and self._emitter.hears(SecretsMasked):
            count, failed = attributes[FOUND]
            self._once(lambda: self._emitter.emit(SecretsMasked, count=count, failed=failed))

    def _once(self, emit: Callable[[], None]) -> None:
        """Emit unless this thread is emitting for this handler already."""
        if getattr(self._speaking, "busy", False):
            return
        self._speaking.busy = True
        try:
            emit()
        finally:
            self._speaking.busy = False

    def __repr__(self) -> str:
        through = f" through {self._writer!r}" if self._writer else ""
        spared = f", {self._sparing!r}" if self._sparing else ""
        return f"<LineHandler to {self._output!r}{through}, {self.dropped} dropped{spared}>"


class _Written:
    """How many records were written, by level; outlives its handler while a listener reads it."""

    def __init__(self, handler: LineHandler) -> None:
        self._handler = weakref.ref(handler)
        self._counts = [0, 0, 0, 0, 0]

    def count(self, level: int) -> None:
        """Count one record of this level. CPython does not interrupt `+=` with a plain number halfway."""
        place = min(max(level // 10 - 1, 0), 4)
        self._counts[place] += 1

    def read(self) -> LogFigures:
        """Return how many there were."""
        debug, info, warning, error, critical = self._counts
        return LogFigures(debug, info, warning, error, critical, is_gone=self._handler() is None)


class _Writer:
    """The thread behind the queue, started with the first line and again in a forked child.

    It uses the standard library's reentrant queue, because a finaliser that runs in the middle of its steps may log.
    That queue has no bound, so threads that come at the same moment may exceed ours by a line each.
    """

    def __init__(self, handler: LineHandler, size: int) -> None:
        self._handler = handler
        self._size = size
        self._start_lock = threading.RLock()
        renew_locks_after_fork(self, "_start_lock")
        self._closed = False
        self._abandoned = False
        self._pid = 0  # the process in which the thread certainly runs
        self._begun_in = 0
        self._ident = 0
        self._queue: queue.SimpleQueue[tuple[str, int] | Bell | None] = queue.SimpleQueue()
        self._errand: Errand | None = None

    def is_ready(self) -> bool:
        """Return whether a thread writes; false after `close` and when the interpreter ends."""
        return not self._closed and (self._pid == os.getpid() or self._start())

    def put(self, line: str, level: int) -> bool:
        """Queue a line of a record of this level; return False if the queue is full."""
        if self._queue.qsize() >= self._size:
            return False
        self._queue.put((line, level))
        return True

    def _start(self) -> bool:
        with self._start_lock:
            if self._pid == os.getpid():
                return True
            if self._errand is None or self._begun_in != os.getpid():
                # A fork copies the queue with its waiting lines, which the parent writes, but not the thread.
                lines = self._queue = queue.SimpleQueue()
                self._errand = Errand(lambda: self._run(lines), name="reliakit-logs")
                self._begun_in = os.getpid()
            try:
                self._errand.begin()  # again, if a Ctrl-C came in between
            except RuntimeError:  # no thread starts at the interpreter's end
                return False
            self._pid = os.getpid()
            return True

    def _run(self, lines: queue.SimpleQueue[tuple[str, int] | Bell | None]) -> None:
        self._ident = threading.get_ident()
        while (line := lines.get()) is not None:
            if isinstance(line, Bell):
                line.set()
                continue
            try:
                self._handler.write(*line)
            except Exception as fault:  # noqa: BLE001 - reported as an event
                self._handler.drop(type(fault).__name__)
            if self._abandoned:
                return

    def drain(self) -> None:
        """Wait until what is in the queue now is written, at most a few seconds."""
        if self._errand is None or self._pid != os.getpid() or self._ident == threading.get_ident():
            return
        done = Bell()
        self._queue.put(done)
        done.wait(_CLOSE_WAIT)

    def close(self) -> None:
        """Write what is waiting and end the thread. Closing twice is harmless."""
        self._closed = True
        errand = self._errand
        if errand is None or self._begun_in != os.getpid() or self._ident == threading.get_ident():
            return
        if self._pid != os.getpid() and errand.take_back():  # a Ctrl-C came before it began
            return
        self._queue.put(None)
        has_ended = errand.wait(_CLOSE_WAIT)
        self._errand = None  # only now: a caller that was interrupted while it waited may close again
        if not has_ended:
            # The line on which the thread is stuck may still be written; those behind it are not.
            self._abandoned = True
            if waiting := self._queue.qsize() - 1:
                self._handler.drop("stream stuck", waiting)

    def __repr__(self) -> str:
        return f"a queue of {self._size}"
