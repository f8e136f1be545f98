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
    from collections.abc import Sequence

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
        if not self._is_cluster:
            await self._ask(requests, range(len(requests)), tell)
            return
        # Of several that come first each would look for the nodes anew, and close what the others have just made.
        await self._client.initialize()
        nodes: dict[str, list[int]] = {}
        for at, request in enumerate(requests):
            nodes.setdefault(self._client.get_node_from_key(request.keys[0]).name, []).append(at)
        await asyncio.gather(*[self._ask_node(requests, places, tell) for places in nodes.values()])

    async def _ask_node(self, requests: list[Request], places: list[int], tell: Telling) -> None:
        """Ask a node of a cluster; who asked the others does not wait for it."""
        try:
            await self._ask(requests, places, tell)
        except Exception as error:  # noqa: BLE001 - raised where its tasks wait
            for at in places:
                tell(at, error)

    async def _ask(
        self, requests: list[Request], places: Sequence[int], tell: Telling, *, whole: bool = False
    ) -> None:
        """Ask what stands in these places, in one round trip, and once more what the server does not know."""
        replies = await self._replies([requests[at] for at in places], whole=whole)
        unknown: list[int] = []
        for at, reply in zip(places, replies, strict=True):
            if not whole and is_unknown(reply):
                unknown.append(at)
            else:
                tell(at, reply)
        if unknown:
            await self._ask(requests, unknown, tell, whole=True)

    async def _replies(self, requests: list[Request], *, whole: bool) -> list[Any]:
        if len(requests) > 1:
            replies = await self._piped(requests, whole=whole)
            # Of a node whose connection had long been dead, so that nothing was counted: the client finds it again.
            if not self._is_cluster or not all(is_lost(reply) for reply in replies):
                return replies
        pending = [self._client.execute_command(*_words(request, whole=whole)) for request in requests]
        return await asyncio.gather(*pending, return_exceptions=True)

    async def _piped(self, requests: list[Request], *, whole: bool) -> list[Any]:
        async with self._client.pipeline(transaction=None if self._is_cluster else False) as pipeline:
            for request in requests:
                pipeline.execute_command(*_words(request, whole=whole))
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies


def _words(request: Request, *, whole: bool) -> tuple[Any, ...]:
    """Return a command in words; a cluster's pipelines have no method for a script by its digest."""
    call, keys = request
    start = ("EVAL", call.script.text) if whole else ("EVALSHA", call.script.digest)
    return (*start, len(keys), *keys, *call.args)


def is_async(client: object) -> bool:
    """Return whether a client is for tasks."""
    return inspect.iscoroutinefunction(getattr(client, "execute_command", None))
