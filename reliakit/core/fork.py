"""What must be mended in a child process, such as locks that another thread held at the moment of the fork.

```
thread A: with owner._lock: ...          parent: goes on, releases it
thread B: fork()  ───────────────>       child: has no thread A, so nobody would ever release it
```
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["forker", "holder_here", "renew_locks_after_fork", "tell_after_fork"]

# Belongs to the process, like the list of listeners: the owners of locks that a child must not inherit.
_owners: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()
_told: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_REENTRANT = type(threading.RLock())
_get_ident = threading.get_ident


class _Forker(threading.local):
    holder: int | None = None


_forker = _Forker()


def renew_locks_after_fork(owner: object, *attributes: str) -> None:
    """Give this object new locks in every child process. It is held weakly.

    The child may see what a lock guards half-written, so write last what readers decide by.

    Args:
        owner: An object that owns a `threading.Lock` or a `threading.RLock` in each of these attributes.
        attributes: The attributes' names.
    """
    _owners[owner] = attributes


def tell_after_fork(owner: object, method: str) -> None:
    """Call a method of this object in every child process, once all locks are new. It is held weakly.

    Args:
        owner: The object.
        method: The name of a method that takes no argument and neither raises nor blocks.
    """
    _told[owner] = method


def holder_here() -> int:
    """Return a number for the task that runs this code, or for the thread if no event loop runs."""
    running_loop = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    if running_loop is not None and running_loop() is not None:
        import asyncio  # noqa: PLC0415 - there is no task without it

        task = asyncio.current_task()
        if task is not None:
            return id(task)
    return _get_ident()


def forker() -> int | None:
    """Return what `holder_here` was for the code that forked this process: nobody else goes on in it.

    The other tasks of an event loop are suspended, and a child does not go on with its parent's event loop.
    """
    return _forker.holder


def _note() -> None:
    # In the child no event loop runs any more.
    _forker.holder = holder_here()


def _renew() -> None:
    for owner, attributes in tuple(_owners.items()):
        for attribute in attributes:
            is_reentrant = isinstance(getattr(owner, attribute), _REENTRANT)
            setattr(owner, attribute, threading.RLock() if is_reentrant else threading.Lock())
    for owner, method in tuple(_told.items()):
        getattr(owner, method)()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(before=_note, after_in_child=_renew)
