"""Runs one thing in the middle of another, in the same thread, as a signal handler or a GC callback does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGE = Path(__file__).parent.parent / "reliakit"


class _At:
    """Calls `other` before the n-th line that runs below a folder or in a file of the package."""

    def __init__(self, where: str, at: int, other: Callable[[], object]) -> None:
        self._where = str(PACKAGE / where)
        self._left = at
        self._other = other

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._where):
            return None
        if event == "line":
            self._left -= 1
            if not self._left:
                sys.settrace(None)
                self._other()
        return self

    @property
    def is_over(self) -> bool:
        return self._left <= 0


def amid(where: str, at: int, step: Callable[[], object], other: Callable[[], object]) -> bool:
    """Run `step`, and `other` before its n-th line in that part of the package; return whether there was one."""
    watching = _At(where, at, other)
    before = sys.gettrace()
    sys.settrace(watching)
    try:
        step()
    finally:
        sys.settrace(before)
    return watching.is_over
