"""A pause for one round of the event loop, and functions that hide their colour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["hides", "nap"]


async def nap(result: object = None) -> object:
    """Let all others run once, and return what was given."""
    await asyncio.sleep(0)  # noqa: TID251 - a bare yield, which takes no time
    return result


def hides(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that returns what the async one does: an awaitable."""

    def plain(*args: Any) -> Any:
        return fn(*args)

    return plain
