"""Which permit belongs to which `with` block, when one object is entered by many blocks at once.

```
with breaker: ...        __enter__ keeps the permit under the frame of the with statement, __exit__ finds it there
```

A block is entered and left by one frame, whatever thread, task or context runs it at the time. Context variables
would not do: a generator may be closed in another context than it began in. Thread-locals would not either: tasks
share their thread.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Blocks"]

T = TypeVar("T")
_frame = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the name only looks private
_EXIT_STACKS = vars(contextlib)


class Blocks(Generic[T]):
    """The permits of the blocks that are entered now. Safe from threads and tasks, as a frame runs in only one.

    Call `enter` and `leave` directly from `__enter__` and `__exit__`: they find the block two frames up.
    """

    __slots__ = ("_entered",)

    def __init__(self) -> None:
        self._entered: dict[FrameType, _Entered[T]] = {}

    def enter(self, permit: T) -> None:
        """Remember the permit of the block that is being entered."""
        frame = _frame(2)
        if frame.f_globals is _EXIT_STACKS:
            frame = _beyond(frame)
        self._entered[frame] = (permit, self._entered.get(frame))

    def leave(self) -> T | None:
        """Forget and return the permit of the innermost block here, or None when no block was entered."""
        frame = _frame(2)
        if frame.f_globals is _EXIT_STACKS:
            frame = _beyond(frame)
        entered = self._entered
        if frame not in entered:
            # An exit stack was handed on to another function: take the permit of the block entered last.
            known = list(entered)
            if not known:
                return None
            frame = known[-1]
        permit, outer = entered.pop(frame)
        if outer is not None:
            entered[frame] = outer
        return permit


# A permit, and the permits entered in the same frame before it.
_Entered: TypeAlias = "tuple[T, _Entered[T] | None]"


def _beyond(frame: FrameType) -> FrameType:
    """Return the frame that an exit stack serves."""
    while frame.f_globals is _EXIT_STACKS and frame.f_back is not None:
        frame = frame.f_back
    return frame
