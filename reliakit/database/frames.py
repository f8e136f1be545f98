"""The transactions that a thread or task is in, one inside the other.

```
context variable ─▶ Frame of the savepoint ─▶ Frame of its transaction ─▶ Frame of another database's ─▶ None
```

A context variable is inherited by tasks and by threads that start with a copied context. A connection must not be, so
each frame knows its owner, and code that asks is told whether that is itself.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING

from reliakit.database.places import owner_here

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from reliakit.database.nesting import Entered
    from reliakit.database.places import Owner
    from reliakit.database.transaction import Handle

__all__ = ["Frame", "enter_frame", "frame_of", "innermost", "pop", "push", "time_left_here"]


class Frame(weakref.ref["Entered"]):
    """One link of the chain of transactions that a context is in.

    It holds what the block entered, and that weakly: nobody can leave an abandoned block any more, so nothing may
    join its transaction. A Ctrl-C at the very entrance of `__exit__` abandons a block, though its `tx` may live on.
    """

    __slots__ = ("database", "outer", "owner")
    database: object  # its engine
    owner: Owner
    outer: Frame | None

    def running(self) -> Handle | None:
        """Return the transaction while it runs. Afterwards None, though a task may outlive its block."""
        entered = self()
        if entered is None:
            return None
        transaction = entered.transaction
        return None if transaction.finished or transaction.work.attempt.lease is None else transaction


_frame: ContextVar[Frame | None] = ContextVar("reliakit_transaction", default=None)
# The frame of this context, whether or not it is this owner's or its transaction is over; mostly there is none.
innermost: Callable[[], Frame | None] = _frame.get
enter_frame: Callable[[Frame | None], Token[Frame | None]] = _frame.set


def push(database: object, entered: Entered, owner: Owner) -> Frame:
    """Enter a transaction in this context."""
    outer = _frame.get()
    while outer is not None and outer.running() is None:
        outer = outer.outer  # left behind by a block that was abandoned or interrupted
    frame = Frame(entered)
    frame.database, frame.owner, frame.outer = database, owner, outer
    _frame.set(frame)
    return frame


def pop(frame: Frame) -> None:
    """Leave it again. If this is another context than it was entered in, there is nothing to leave."""
    if _frame.get() is frame:
        _frame.set(frame.outer)


def frame_of(database: object) -> tuple[Handle, bool] | None:
    """Return the running transaction of this database in this context, and whether the caller owns it."""
    frame = _frame.get()
    while frame is not None:
        if frame.database is database:
            transaction = frame.running()
            if transaction is not None:
                return transaction, frame.owner is owner_here()
        frame = frame.outer
    return None


def time_left_here() -> float:
    """Return the seconds that are left to the transactions of all databases that this thread or task is in."""
    left, owner, frame = inf, owner_here(), _frame.get()
    while frame is not None:
        transaction = frame.running()
        if transaction is not None and frame.owner is owner:
            left = min(left, transaction.remaining())
        frame = frame.outer
    return left
