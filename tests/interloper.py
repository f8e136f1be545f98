"""Whoever steps in between: a function that runs at a chosen place inside another one."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable
from typing import Any


class Interloper:
    """Steps in at one of the places where Python may handle a signal or collect garbage: at a call, or after one."""

    def __init__(self, step: Callable[[], object], at: int) -> None:
        self.step = step
        self.left = at

    def __call__(self, *event: Any) -> None:
        self.left -= 1
        if self.left < 0:
            sys.setprofile(None)
            self.step()

    def during(self, step: Callable[[], object]) -> bool:
        """Return whether there was such a place."""
        gc.disable()  # a finaliser of something else is no place inside the step
        sys.setprofile(self)
        try:
            step()
        finally:
            sys.setprofile(None)
            gc.enable()
        return self.left < 0


def breaks(instructions: list[dis.Instruction]) -> list[str]:
    """Return the instructions at which CPython may switch threads, handle a signal or collect garbage."""
    names = [each.opname for each in instructions]
    return [name for name in names if name.startswith(("CALL", "RESUME", "JUMP_BACKWARD", "FOR_ITER", "SEND"))]
