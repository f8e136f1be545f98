"""What the stores in other processes have in common: their two colours, their errors, how they open and close.

```
thread ── _run ──> wire for threads ──> reply, or StoreError
task   ── _arun ─> wire for tasks   ──> the same; through a thread where there is none
```
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from reliakit.core.errors import ConfigurationError, StoreError
from reliakit.stores.shared import clock_of

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.core.clock import Clock
    from reliakit.stores.ticks import Ticks

__all__ = ["RemoteStore", "Wire"]


class Wire(Protocol):
    """How threads speak to a server."""

    def run(self, request: Any, /) -> Any:
        """Return the server's reply to a request."""
        ...

    def open(self) -> None:
        """Connect, if there is no connection yet."""
        ...

    def close(self) -> None:
        """Close the connections that are its own."""
        ...


class RemoteStore:
    """A store whose states another process keeps.

    Args:
        clock: Whose time counts.
    """

    # The names of an address and of what may be given instead of it, for messages.
    _address: str
    _given: str

    def __init__(self, clock: Literal["server", "client"] | Clock) -> None:
        self._clock = clock_of(clock)
        self._blocking: Wire | None = None
        self._ticks: Ticks | None = None
        self._closed = False

    @property
    def keeps_time(self) -> bool:
        """Whether the store itself ends a task's decision at its deadline, so that the caller needs no timer."""
        return self._ticks is not None

    @property
    def serves_threads(self) -> bool:
        """Whether it can be asked without awaiting."""
        return self._blocking is not None

    def open(self) -> None:
        """Connect now instead of with the first decision.

        Raises:
            StoreError: The server cannot be reached, or this store is closed.
            ConfigurationError: The store cannot be used as it is set up.
        """
        if self._closed:
            raise self._is_closed()
        if self._blocking is not None:
            try:
                self._blocking.open()
            except Exception as error:
                raise self._failed(error) from error

    async def aopen(self) -> None:
        """Connect now, for the tasks of this event loop; the twin of `open` for tasks."""
        if self._closed:
            raise self._is_closed()
        if self._ticks is None:
            await asyncio.to_thread(self.open)
            return
        try:
            await self._ticks.open()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Close the connections for threads; those for tasks go with their event loop. A given client stays open."""
        self._closed = True
        if self._blocking is not None:
            self._blocking.close()

    async def aclose(self) -> None:
        """Close the connections for threads and those of this event loop. A given client stays open."""
        self.close()
        if self._ticks is not None:
            await self._ticks.aclose()

    def _run(self, request: Any) -> Any:
        if self._blocking is None:
            raise ConfigurationError(
                f"{self!r} has an asynchronous {self._given}: give it {self._address} to serve threads"
            )
        if self._closed:
            raise self._is_closed()
        try:
            return self._blocking.run(request)
        except Exception as error:
            raise self._failed(error) from error

    async def _arun(self, request: Any) -> Any:
        if self._ticks is None:
            return await asyncio.to_thread(self._run, request)
        if self._closed:
            raise self._is_closed()
        try:
            return await self._ticks.run(request)
        except Exception as error:
            raise self._failed(error) from error

    def _is_closed(self) -> StoreError:
        return StoreError(f"{self!r} is closed", store=type(self).__name__)

    def _failed(self, error: Exception) -> Exception:
        """Return the error to raise instead of a client library's error."""
        if isinstance(error, ConfigurationError):
            return error
        told = next(iter(str(error).splitlines()), "")
        return StoreError(f"{self!r} does not decide: {type(error).__name__}: {told}", store=type(self).__name__)

    def __enter__(self) -> Self:
        if self._closed:
            raise self._is_closed()
        # A service may start while its store is down; then each limiter does what its `on_store_error` says.
        with suppress(StoreError):
            self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        if self._closed:
            raise self._is_closed()
        with suppress(StoreError):
            await self.aopen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
