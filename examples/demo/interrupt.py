"""Ctrl-C as a wish instead of an exception: whatever is being built is finished, then all of it is taken down.

Loads the standard library only, and first of all: nothing may exist before a signal is taken this way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Any

__all__ = ["Interrupt", "InterruptedDemo", "Output"]

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class InterruptedDemo(Exception):  # noqa: N818 - somebody's wish, no error
    """The demo was told to stop."""


class Interrupt:
    """Notes that the demo shall stop; checked between the steps and while waiting."""

    def __init__(self) -> None:
        self._told = threading.Event()

    def install(self) -> None:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            # What is ignored from outside, as nohup does with SIGHUP, stays so.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: self._told.set())

    @property
    def is_told(self) -> bool:
        return self._told.is_set()

    def check(self) -> None:
        """Raise InterruptedDemo if the demo shall stop."""
        if self._told.is_set():
            raise InterruptedDemo

    def wait(self, seconds: float) -> None:
        """Wait so long, or raise InterruptedDemo at once when told."""
        if self._told.wait(seconds):
            raise InterruptedDemo

    async def cancel_when_told(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task as soon as the demo shall stop."""
        while not self._told.is_set():  # noqa: ASYNC110 - a signal handler may set no asyncio.Event
            await asyncio.sleep(0.05)  # noqa: TID251 - signals come in real time
        task.cancel()


class Output:
    """Standard output that may be closed, or be closed by its reader at any moment: the demo goes on regardless."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._stream = sys.stdout
        self.encoding = getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("standard output is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        try:
            if self._stream is not None:
                self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Nobody reads any more; let what is buffered go nowhere, also when Python flushes it at its end."""
        self._stream = None
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
