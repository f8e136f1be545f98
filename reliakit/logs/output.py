"""Lines on a stream, each in one piece, whatever else writes there.

| several ... write lines to one ... | a line of any length stays in one piece because of |
|---|---|
| threads, stream of any kind | a lock |
| processes, file opened to append | one `write` a line, which the kernel does not interrupt |
| processes, pipe | a record lock on the pipe, held for that `write` (POSIX systems) |

Programs that do not use the lock can break into a line on a pipe only if it is longer than PIPE_BUF (4096 bytes on
Linux, at least 512 anywhere) and the pipe runs full in the middle of it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import stat
import sys
import threading
from typing import TextIO

from reliakit.core.fork import renew_locks_after_fork
from reliakit.logs.encode import escape_to_ascii

if os.name == "posix":
    import fcntl

__all__ = ["Output"]

# Encodings without a state from one line to the next.
_STATELESS = frozenset({"utf-8", "ascii", "iso8859-1", "iso8859-15", "cp1252"})
_LONGEST_WAIT = 5.0


class Output:
    """Write lines to a text stream. Safe from any thread.

    Args:
        stream: The stream; None is standard error, whatever that is at the time.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._known: tuple[object, _Descriptor | None] = (None, None)
        # Not the handler's lock: the standard library holds that one while it waits for a handler to close.
        # Re-entrant, because a finaliser that runs in here may log.
        self._lock = threading.RLock()
        renew_locks_after_fork(self, "_lock")

    def write(self, line: str) -> None:
        """Put one line on the stream in one piece."""
        with self._lock:
            self._write_locked(line)

    def _write_locked(self, line: str) -> None:
        stream = self.stream()
        if stream is None:  # a program without a console
            raise ValueError("no stream")
        if self._known[0] is not stream:
            self._known = (stream, _descriptor(stream))
        descriptor = self._known[1]
        if descriptor is not None:
            # Text that was printed there before comes first; and a closed stream must raise here, because its
            # descriptor may belong to another file by now.
            stream.flush()
            descriptor.write(line)
            return
        try:
            stream.write(line + "\n")
        except UnicodeEncodeError:
            stream.write(escape_to_ascii(line) + "\n")
        stream.flush()

    def stream(self) -> TextIO | None:
        """Return the stream that lines go to now."""
        return self._stream or sys.stderr

    def __repr__(self) -> str:
        return "standard error" if self._stream is None else repr(self._stream)


class _Descriptor:
    """The file behind a text stream, written past its buffers, which would cut long lines into several writes."""

    __slots__ = ("_encoding", "_is_pipe", "_is_torn", "_number")

    def __init__(self, number: int, encoding: str) -> None:
        self._number = number
        self._encoding = encoding
        self._is_pipe = stat.S_ISFIFO(os.fstat(number).st_mode)
        self._is_torn = False

    def write(self, line: str) -> None:
        try:
            data = f"{line}\n".encode(self._encoding)
        except UnicodeEncodeError:
            data = f"{escape_to_ascii(line)}\n".encode("ascii")
        if self._is_torn:
            data = b"\n" + data
        if not (self._is_pipe and _lock(self._number)):
            self._write_whole(data)
            return
        try:
            self._write_whole(data)
        finally:
            _unlock(self._number)

    def _write_whole(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[os.write(self._number, left) :]
                except BlockingIOError:
                    # Somebody made the stream non-blocking, for all that share it.
                    if not _is_writable_in_time(self._number):
                        raise
        finally:
            # The next line must not follow a broken one without a line break.
            self._is_torn = 0 < len(left) < len(data) or (self._is_torn and len(left) == len(data))


def _lock(number: int) -> bool:
    """Keep other processes of ours off a pipe, because lines beyond PIPE_BUF are not written in one piece."""
    try:
        fcntl.lockf(number, fcntl.LOCK_EX)
    except OSError:  # a system without locks on pipes
        return False
    return True


def _unlock(number: int) -> None:
    with contextlib.suppress(OSError):
        fcntl.lockf(number, fcntl.LOCK_UN)


def _descriptor(stream: TextIO) -> _Descriptor | None:
    """Return the file behind a plain text stream, or None for anything that must be written to as what it is."""
    if type(stream) is not io.TextIOWrapper or os.name != "posix":
        return None
    try:
        encoding = codecs.lookup(stream.encoding).name
        raw = getattr(stream.buffer, "raw", stream.buffer)
        if encoding not in _STATELESS or type(raw) is not io.FileIO:
            return None
        return _Descriptor(raw.fileno(), encoding)
    except (OSError, ValueError, LookupError):
        return None


def _is_writable_in_time(number: int) -> bool:
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(_LONGEST_WAIT * 1000))
