"""Where versions of psycopg and libpq differ: waits with a bound, and cancelling on the server.

Psycopg 3.3 bounds a wait by itself, which costs nothing; before that it is bounded here. A cancel request can be
bounded since libpq 17. Older ones block, and psycopg's C speedups hold the interpreter's lock meanwhile, so that one
dead network would stop every thread: there no request is sent, the connection is closed, and the server ends the
statement by the `statement_timeout` that it was given at BEGIN.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from selectors import DefaultSelector
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import waiting

from reliakit.core.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from psycopg.abc import PQGen

__all__ = ["INTERVAL", "Late", "WaitTimeout", "cancel", "cancel_async", "wait", "wait_async"]

T = TypeVar("T")

# Psycopg's own default: how often a wait looks up for a lost socket or a Ctrl-C, in seconds.
INTERVAL = 0.1
_BOUNDED = "timeout" in inspect.signature(waiting.wait_async).parameters


class _NeverRaised(Exception):  # noqa: N818 - stands in for an error that an older psycopg does not have
    pass


WaitTimeout: type[Exception] = getattr(psycopg.errors, "_WaitTimeout", _NeverRaised)


class Late(Exception):  # noqa: N818 - never leaves this package
    """The time for a wait, or for the caller's code, ran out."""


def wait(exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
    """Block until an exchange with the server is over.

    Raises:
        Late: It took longer than so many seconds; it stays where it is and can be driven on.
    """
    if not _BOUNDED:
        return _wait(exchange, fileno, interval, seconds)
    try:
        return waiting.wait(exchange, fileno, interval, seconds)
    except WaitTimeout:
        raise Late from None


async def wait_async(exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
    """Suspend until an exchange with the server is over. Errors as `wait`."""
    if not _BOUNDED:
        return await _wait_async(exchange, fileno, interval, seconds)
    try:
        return await waiting.wait_async(exchange, fileno, interval, seconds)
    except WaitTimeout:
        raise Late from None


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


def _wait(exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
    until = SYSTEM_CLOCK.monotonic() + seconds
    try:
        wish = next(exchange)
        with DefaultSelector() as selector:
            selector.register(fileno, wish)
            while True:
                for _, ready in selector.select(min(interval, max(0.0, until - SYSTEM_CLOCK.monotonic()))):
                    wish = exchange.send(waiting.Ready(ready))
                    selector.modify(fileno, wish)
                if SYSTEM_CLOCK.monotonic() >= until:
                    raise Late
    except StopIteration as done:
        result: T = done.value
        return result


async def _wait_async(exchange: PQGen[T], fileno: int, interval: float, seconds: float) -> T:
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            return await waiting.wait_async(exchange, fileno, interval)
    except TimeoutError:
        if timer.expired():
            raise Late from None
        raise
