"""Which permit belongs to which `with` block, when one object is entered by many blocks at once.

```
with breaker: ...        __enter__ keeps the permit under the frame of the with statement, __exit__ finds it there
```

A block is entered and left by one frame, whatever thread, task or context runs it at the time. A generator may be
closed in another one than it began in, where a context variable would be lost, and tasks share their thread.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Blocks", "frame_of_block"]

T = TypeVar("T")


class Blocks(Generic[T]):
    """The permits of the blocks that are entered now. Safe from threads and tasks: a frame runs in one of them."""

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: dict[FrameType, list[T]] = {}

    def enter(self, frame: FrameType, permit: T) -> None:
        """Remember the permit of a block in this frame."""
        self._entered.setdefault(frame, []).append(permit)

    def leave(self, frame: FrameType) -> T | None:
        """Forget and return the permit of the innermost block in this frame, or None when no block was entered."""
        if frame not in self._entered:
            # An exit stack was handed on to another function: take the block that was entered last.
            known = list(self._entered)
            if not known:
                return None
            frame = known[-1]
        permits = self._entered[frame]
        permit = permits.pop()
        if not permits:
            del self._entered[frame]
        return permit


def frame_of_block() -> FrameType:
    """Return the frame whose `with` statement called the `__enter__` or `__exit__` that calls this."""
    frame = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the name only looks private
    while frame.f_globals.get("__name__") == "contextlib" and frame.f_back is not None:
        frame = frame.f_back  # an exit stack stands between
    return frame
