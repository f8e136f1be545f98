"""Where versions of libpq differ: cancelling on the server.

A cancel request can be bounded since libpq 17. Older ones block, and psycopg's C speedups hold the interpreter's lock
meanwhile, so that one dead network would stop every thread: there no request is sent, the connection is closed, and
the server ends the statement by the `statement_timeout` that it was given at BEGIN.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import psycopg

__all__ = ["INTERVAL", "Late", "WaitTimeout", "cancel", "cancel_async"]

# Psycopg's own default: how often a wait looks up for a lost socket or a Ctrl-C, in seconds.
INTERVAL = 0.1
# What psycopg raises when a wait with a bound takes longer; the exchange stays where it is and can be driven on.
WaitTimeout = psycopg.errors._WaitTimeout  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001 - documented by its waits


class Late(Exception):  # noqa: N818 - never leaves this package
    """The time for a wait, or for the caller's code, ran out."""


def cancel(connection: psycopg.Connection[Any], seconds: float) -> bool:
    """Ask the server to cancel what the connection runs; return whether the request surely got through in time."""
    try:
        if psycopg.capabilities.has_cancel_safe():
            connection.cancel_safe(timeout=seconds)
            return True
    except (psycopg.Error, OSError):
        # The server cannot be reached: whoever asked waits a bounded moment and then closes the connection.
        return False
    return _cancel_blocking(connection, seconds)


async def cancel_async(connection: psycopg.AsyncConnection[Any], seconds: float) -> bool:
    """The same, suspending."""
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

    # A thread that may be left behind.
    worker = threading.Thread(target=request, name="reliakit-cancel", daemon=True)
    worker.start()
    worker.join(seconds)
    return any(through)
