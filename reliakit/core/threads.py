"""Starting and awaiting threads, safe from a Ctrl-C between any two lines.

```
Event, Condition, Thread.start    written in Python: a Ctrl-C after their lock is taken and before the `with` has
                                  begun leaves it held for good (bpo-29988), and its next user waits for ever
Bell, Errand, start               plain locks; what is written in Python runs in threads that no Ctrl-C reaches
```

KeyboardInterrupt is raised only in the main thread, as is whatever a signal handler raises.
"""

from __future__ import annotations

import threading
from _thread import TIMEOUT_MAX, allocate_lock, start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Bell", "Errand", "start"]


class Bell:
    """A `threading.Event` for one waiting thread, made from a plain lock."""

    __slots__ = ("_is_set", "_silence")

    def __init__(self) -> None:
        self._is_set = False
        self._silence = allocate_lock()
        self._silence.acquire()

    def is_set(self) -> bool:
        """Whether it was rung."""
        return self._is_set

    def set(self) -> None:
        """Ring it. From any thread."""
        self._is_set = True
        with suppress(RuntimeError):  # rung already
            self._silence.release()

    def clear(self) -> None:
        """Silence it again, in the waiting thread; a ring at the same moment may end the next wait early."""
        self._is_set = False
        self._silence.acquire(blocking=False)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until it rings, for at most `timeout` seconds; return whether it did."""
        if not self._is_set:
            self._silence.acquire(timeout=-1 if timeout is None else min(max(0.0, timeout), TIMEOUT_MAX))
        return self._is_set


class Errand:
    """A call in a daemon thread of its own: made once, or taken back before it began.

    For one thread that starts it, may be interrupted at any line of that, and must know what became of the call.

    Args:
        call: Takes no arguments and reports its outcome by itself.
        name: The thread's name, for code that may look at its thread; without one it begins sooner.
    """

    __slots__ = ("_call", "_ended", "_name")

    def __init__(self, call: Callable[[], object], name: str | None = None) -> None:
        self._call = [call]
        self._ended = Bell()
        self._name = name

    def begin(self) -> None:
        """Start it, unless it runs, has run or was taken back.

        Raises:
            RuntimeError: No thread can be started.
        """
        if not self._call:
            return
        if self._name is None:
            start_new_thread(self._run, ())
        else:
            start(threading.Thread(target=self._run, name=self._name, daemon=True))

    def take_back(self) -> bool:
        """Make sure that it is never made; return False if it has begun already."""
        return self._taken() is not None

    def wait(self, bound: float | None = None) -> bool:
        """Wait for its end, for at most `bound` seconds; return whether it came."""
        return self._ended.wait(bound)

    def _taken(self) -> Callable[[], object] | None:
        # One atomic step: of several threads that come at once, one gets it.
        try:
            return self._call.pop()
        except IndexError:
            return None

    def _run(self) -> None:
        call = self._taken()
        if call is None:  # taken back, or started twice: a Ctrl-C came between its start and the next line
            return
        try:
            call()
        finally:
            self._ended.set()


def start(thread: threading.Thread) -> None:
    """Start a thread so that a Ctrl-C meanwhile leaves it either started or not begun.

    In the main thread, another thread starts it, which costs as much again.

    Raises:
        RuntimeError: No thread can be started.
    """
    if threading.get_ident() != threading.main_thread().ident:
        thread.start()
        return
    failures: list[BaseException] = []
    begun = Bell()

    def begin() -> None:
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for it
            failures.append(error)
        finally:
            begun.set()

    start_new_thread(begin, ())
    begun.wait()
    if failures:
        raise failures[0]
