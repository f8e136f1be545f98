"""How a store speaks to Redis through a client of the user's: one of a cluster or of sentinels, too.

The client keeps its own connections, timeouts and retries; it follows a cluster's keys to where they are.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from reliakit.stores.redis_wire import is_lost, is_unknown
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
        # A cluster's keys lie on several nodes, each of which gets a pipeline of its own.
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
        if len(requests) == 1:
            return await self._singly(requests, whole=whole)
        if not self._is_cluster:
            return await self._piped(requests, whole=whole)
        nodes: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            nodes.setdefault(self._client.get_node_from_key(request.keys[0]).name, []).append(at)
        replies: list[Any] = [None] * len(requests)

        async def ask(places: list[int]) -> None:
            given = await self._of_node([requests[at] for at in places], whole=whole)
            for at, reply in zip(places, given, strict=True):
                replies[at] = reply

        await asyncio.gather(*[ask(places) for places in nodes.values()])
        return replies

    async def _of_node(self, requests: list[Request], *, whole: bool) -> list[Any]:
        """Return what one node of a cluster replies, over one connection."""
        try:
            replies = await self._piped(requests, whole=whole)
        except Exception as error:  # noqa: BLE001 - raised where its tasks wait; other nodes' replies stand
            return [error] * len(requests)
        # The connection had long been dead, so nothing was counted: in this way the client finds the node again.
        if all(is_lost(reply) for reply in replies):
            return await self._singly(requests, whole=whole)
        return replies

    async def _piped(self, requests: list[Request], *, whole: bool) -> list[Any]:
        async with self._client.pipeline(transaction=None if self._is_cluster else False) as pipeline:
            for request in requests:
                pipeline.execute_command(*_words(request, whole=whole))
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    async def _singly(self, requests: list[Request], *, whole: bool) -> list[Any]:
        pending = [self._client.execute_command(*_words(request, whole=whole)) for request in requests]
        return await asyncio.gather(*pending, return_exceptions=True)


def _words(request: Request, *, whole: bool) -> tuple[Any, ...]:
    """Return a command in words; a cluster's pipelines have no method for a script by its digest."""
    call, keys = request
    start = ("EVAL", call.script.text) if whole else ("EVALSHA", call.script.digest)
    return (*start, len(keys), *keys, *call.args)


def is_async(client: object) -> bool:
    """Return whether a client is for tasks."""
    return inspect.iscoroutinefunction(getattr(client, "execute_command", None))
