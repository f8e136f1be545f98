"""Which thread or task runs this code, and which line of the caller's led here."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
from functools import cache, partial
from types import CodeType, FrameType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Owner", "Place", "owner_here", "place_above", "place_here"]

Owner = threading.Thread | asyncio.Task[object]
Place = tuple[CodeType | None, int]  # with an instruction, whose line is looked up only when somebody asks


class _Here(threading.local):
    """The current thread: at half the price of asking `current_thread()`, three times per transaction."""

    def __init__(self) -> None:
        self.thread: threading.Thread = threading.current_thread()


_here = _Here()


def owner_here() -> Owner:
    """Return the task that runs this code, or the thread if no event loop runs."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented for this use, and 10x cheaper than the error
        task = asyncio.current_task()
        if task is not None:
            return task
    return _here.thread


# What may stand between the caller's line and ours: this package, and the plumbing of context managers and partials.
_OURS = __file__.removesuffix("database/places.py").removesuffix("database\\places.py")
_STDLIB = threading.__file__.removesuffix("threading.py")
_PASSED_OVER = (_OURS, f"{_STDLIB}contextlib.py", f"{_STDLIB}functools.py")
# Where a thread or a task begins: frames above only started it, or run the event loop.
_BEGINNINGS = (f"{_STDLIB}threading.py", f"{_STDLIB}asyncio{os.sep}", f"{_STDLIB}concurrent{os.sep}")


@cache  # one entry per source file
def _is_passed_over(filename: str) -> bool:
    return filename.startswith(_PASSED_OVER)


@cache
def _is_callers(filename: str) -> bool:
    return not filename.startswith(_PASSED_OVER + _BEGINNINGS)


def place_above(depth: int, work: Callable[..., object] | None = None) -> Place:
    """Return what `place_here` does, faster if the caller's line is `depth` frames up."""
    frame = sys._getframe(depth)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - see there
    code = frame.f_code
    return (code, frame.f_lasti) if _is_callers(code.co_filename) else place_here(work, depth)


def place_here(work: Callable[..., object] | None = None, depth: int = 1) -> Place:
    """Return the nearest line of the caller's own code. About half a microsecond.

    Args:
        work: The function about to be called; its first line is named if no line of the caller's leads here, because
            a thread or a task was started with nothing else.
        depth: How many frames up to begin. Each frame that is looked at costs an object.
    """
    frame: FrameType | None = sys._getframe(depth)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - documented, and builds no traceback
    while frame is not None and _is_passed_over(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None and not frame.f_code.co_filename.startswith(_BEGINNINGS):
        return frame.f_code, frame.f_lasti
    while isinstance(work, partial):
        work = cast("partial[object]", work).func
    code: CodeType | None = None if work is None else getattr(inspect.unwrap(work), "__code__", None)
    if code is not None:
        return code, -1
    return (None, 0) if frame is None else (frame.f_code, frame.f_lasti)
