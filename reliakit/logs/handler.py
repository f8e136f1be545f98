"""Where lines go: to a stream, at once or through a bounded queue.

A line that cannot be written is counted; nothing of it is shown anywhere else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from reliakit.core.events import LogDropped, SecretsMasked
from reliakit.core.spine import Emitter
from reliakit.core.tracking import report
from reliakit.logs.encode import escape_to_ascii
from reliakit.logs.records import FOUND, REQUEST_ID, error_of

if TYPE_CHECKING:
    from reliakit.logs.formatter import MaskingFormatter

__all__ = ["LineHandler"]

_QUEUE_SIZE = 10_000
_CLOSE_WAIT = 5.0


class LineHandler(logging.Handler):
    """Write each record as one masked line.

    Formatting and masking happen in the call, under no lock; only the finished line waits for the stream, or crosses
    the queue. The handler never raises and never prints a record anywhere else.

    Args:
        formatter: Makes the lines.
        stream: Where they go; None is standard error, whatever that is at the time.
        service: The service that errors are reported for.
        queued: Let a thread write, so that a slow stream does not slow the caller.
    """

    def __init__(self, formatter: MaskingFormatter, stream: TextIO | None, service: str, *, queued: bool) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.owner: Any = None
        self.dropped: int = 0
        self._stream = stream
        self._service = service
        self._emitter = Emitter("logs")
        self._speaking = threading.local()
        self._writer = _Writer(self) if queued else None

    def handle(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]  # as in 3.12
        """Filter, format and write one record."""
        passed = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            line = self.format(record)
            if self._writer is None:
                with _held(self.lock):
                    self.write(line)
            elif not self._writer.put(line):
                self._drop("queue full")
        except Exception as fault:  # noqa: BLE001 - told as an event; the caller is not to suffer from its log
            self._drop(type(fault).__name__)
        self._tell(record)

    def write(self, line: str) -> None:
        """Put one line on the stream in one piece. Called by one thread at a time: the lock's or the queue's."""
        stream = self._stream or sys.stderr
        if stream is None:  # a program without a console
            raise ValueError("no stream")
        try:
            stream.write(line + "\n")
        except UnicodeEncodeError:
            stream.write(escape_to_ascii(line) + "\n")
        stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the standard library's name
        """Count a record that could not be written. Nothing of it is printed."""
        self._drop("error")

    def flush(self) -> None:
        """Wait until every line that was logged before is written, at most a few seconds."""
        if self._writer is not None:
            self._writer.drain()

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        if self._writer is not None:
            self._writer.close()
        super().close()

    def drop_line(self, fault: BaseException) -> None:
        """Count a line that the thread could not write."""
        self._drop(type(fault).__name__)

    def _drop(self, reason: str) -> None:
        self.dropped += 1
        self._once(lambda: self._emitter.emit(LogDropped, reason=reason))

    def _tell(self, record: logging.LogRecord) -> None:
        """Emit what the record is a sign of; records that listeners write while they are told make no new events."""
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
        where = "standard error" if self._stream is None else repr(self._stream)
        return f"<LineHandler to {where}{' through a queue' if self._writer else ''}, {self.dropped} dropped>"


def _held(lock: Any) -> Any:
    return lock if lock is not None else contextlib.nullcontext()


class _Writer:
    """The thread behind the queue, started with the first line and again in a forked child."""

    def __init__(self, handler: LineHandler) -> None:
        self._handler = handler
        self._start_lock = threading.Lock()
        self._closed = False
        self._pid = 0
        self._queue: queue.Queue[str | None] = queue.Queue(_QUEUE_SIZE)
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> bool:
        """Hand a line over; False when the queue is full or closed."""
        if self._closed:
            return False
        if self._pid != os.getpid():
            self._start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            return False
        return True

    def _start(self) -> None:
        with self._start_lock:
            if self._pid == os.getpid():
                return
            if self._pid:
                # A fork copies the queue with its locks as they were, but not the thread.
                self._queue = queue.Queue(_QUEUE_SIZE)
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name="reliakit-logs", daemon=True)
            self._thread.start()
            self._pid = os.getpid()

    def _run(self, lines: queue.Queue[str | None]) -> None:
        while (line := lines.get()) is not None:
            try:
                self._handler.write(line)
            except Exception as fault:  # noqa: BLE001 - told as an event
                self._handler.drop_line(fault)
            finally:
                lines.task_done()
        lines.task_done()

    def drain(self) -> None:
        """Wait until the queue is empty, at most a few seconds."""
        thread = self._thread
        if thread is None or self._pid != os.getpid() or thread is threading.current_thread():
            return
        lines = self._queue
        with lines.all_tasks_done:
            lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks or not thread.is_alive(), _CLOSE_WAIT)

    def close(self) -> None:
        """Write what is waiting and end the thread. Closing twice is harmless."""
        self.drain()
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None and self._pid == os.getpid():
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            thread.join(_CLOSE_WAIT)
