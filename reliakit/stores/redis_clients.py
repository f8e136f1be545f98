"""How a store speaks to Redis through a client of the user's: one of a cluster or of sentinels, too.

The client keeps its own connections, timeouts and retries; it follows a cluster's keys to where they are.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from reliakit.stores.redis_wire import is_unknown
from reliakit.stores.ticks import Telling, Ticks

if TYPE_CHECKING:
    from reliakit.stores.redis_wire import Request

__all__ = ["ClientBlockingWire", "ClientTickWire", "is_async"]


class ClientBlockingWire:
    """A client of the user's, with its own connections, timeouts and retries; a cluster's or a sentinel's too."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, request: Request, /) -> Any:
        """Run it and return its reply."""
        call, keys = request
        script, args = call.script, call.args
        try:
            return self._client.evalsha(script.digest, len(keys), *keys, *args)
        except Exception as error:
            if not is_unknown(error):
                raise
            return self._client.eval(script.text, len(keys), *keys, *args)

    def open(self) -> None:
        """Leave the client to its owner."""

    def close(self) -> None:
        """Leave the client to its owner."""


class ClientTickWire(Ticks):
    """An asynchronous client of the user's, with its own connections, timeouts and retries."""

    def __init__(self, client: Any, timeout: float) -> None:
        super().__init__(timeout)
        self._client = client
        # A cluster's keys lie on several nodes: what its pipelines can do differs between versions.
        self._is_cluster = "cluster" in type(client).__name__.lower()

    async def aclose(self) -> None:
        """Leave the client to its owner."""

    async def _exchange(self, requests: list[Request], tell: Telling) -> None:
        if self._is_cluster:
            # Of several that come first each would look for the nodes anew, and close what the others have just made.
            await self._client.initialize()
        unknown: list[int] = []
        for at, reply in enumerate(await self._all(requests, whole=False)):
            if is_unknown(reply):
                unknown.append(at)
            else:
                tell(at, reply)
        if unknown:
            whole = await self._all([requests[at] for at in unknown], whole=True)
            for at, reply in zip(unknown, whole, strict=True):
                tell(at, reply)

    async def _all(self, requests: list[Request], *, whole: bool) -> list[Any]:
        if self._is_cluster or len(requests) == 1:
            pending = [self._queued(self._client, request, whole=whole) for request in requests]
            return await asyncio.gather(*pending, return_exceptions=True)
        async with self._client.pipeline(transaction=False) as pipeline:
            for request in requests:
                self._queued(pipeline, request, whole=whole)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    @staticmethod
    def _queued(client: Any, request: Request, *, whole: bool) -> Any:
        call, keys = request
        script, args = call.script, call.args
        run = partial(client.eval, script.text) if whole else partial(client.evalsha, script.digest)
        return run(len(keys), *keys, *args)


def is_async(client: object) -> bool:
    """Return whether a client is for tasks."""
    return inspect.iscoroutinefunction(getattr(client, "execute_command", None))
