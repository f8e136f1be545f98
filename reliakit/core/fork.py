"""Locks that another thread held at the moment of a fork, made anew in the child.

```
thread A: with owner._lock: ...          parent: goes on, releases it
thread B: fork()  ───────────────>       child: has no thread A, so nobody ever would
```
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

__all__ = ["renew_lock_after_fork"]

# Part of the process like the listeners' list: who owns a lock that a child must not inherit.
_owners: WeakSet[Any] = WeakSet()


def renew_lock_after_fork(owner: object) -> None:
    """Give this object a new `_lock` in every child process. It is held weakly.

    What the lock guards may be read half-written by the child, so write what readers decide by last.

    Args:
        owner: An object with a `threading.Lock` in its attribute `_lock`.
    """
    _owners.add(owner)


def _renew() -> None:
    for owner in tuple(_owners):
        owner._lock = threading.Lock()  # noqa: SLF001 - it asked for it


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_renew)
