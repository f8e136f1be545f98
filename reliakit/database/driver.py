"""Where versions of libpq differ: cancelling on the server.

A cancel request can be given a time limit since libpq 17. Older ones block, and psycopg's C speedups hold the GIL
meanwhile, so that one dead network would stop every thread. With those no request is sent: the connection is closed,
and the server ends the statement by the `statement_timeout` that it was given at BEGIN.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg

__all__ = ["INTERVAL", "Late", "WaitTimeout", "cancel", "cancel_async"]

# Psycopg's own default: how often, in seconds, a wait checks for a lost socket or a Ctrl-C.
INTERVAL = 0.1
# What psycopg raises when a bounded wait takes longer; the exchange stays where it is and can be driven on.
WaitTimeout = psycopg.errors._WaitTimeout  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - documented by its waits


class Late(Exception):  # noqa: N818 - never leaves this package
    """The time for a wait, or for the caller's code, ran out."""


def cancel(connection: psycopg.Connection[Any], seconds: float) -> bool:
    """Ask the server to cancel what the connection runs; return whether the request certainly got through in time."""
    try:
        if psycopg.capabilities.has_cancel_safe():
            connection.cancel_safe(timeout=seconds)
            return True
    except (psycopg.Error, OSError):
        # The server cannot be reached: the caller waits for a bounded time and then closes the connection.
        return False
    return _cancel_blocking(connection, seconds)


async def cancel_async(connection: psycopg.AsyncConnection[Any], seconds: float) -> bool:
    """The same, for tasks."""
    try:
        if psycopg.capabilities.has_cancel_safe():
            async with asyncio.timeout(seconds + 0.1):
                await connection.cancel_safe(timeout=seconds)
            return True
    except (psycopg.Error, OSError, TimeoutError):
        return False  # as above
    return await asyncio.to_thread(_cancel_blocking, connection, seconds)


def _cancel_blocking(connection: Any, seconds: float) -> bool:
    if psycopg.pq.__impl__ != "python":
        return False
    through: list[bool] = []

    def request() -> None:
        try:
            connection.cancel()
        except (psycopg.Error, OSError):
            return  # as above
        through.append(True)

    # In a daemon thread, which may be left behind.
    worker = threading.Thread(target=request, name="reliakit-cancel", daemon=True)
    worker.start()
    worker.join(seconds)
    return any(through)
