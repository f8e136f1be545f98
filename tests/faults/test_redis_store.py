"""RedisStore on a real server: faults, clients, processes, clocks, forks and clusters."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from random import SystemRandom
from typing import Any

import pytest
import redis
import redis.asyncio
import valkey
import valkey.asyncio

from reliakit import ConfigurationError, Limit, LoginGuard, RateLimiter, RedisStore, StoreError, deadline
from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.events import StoreFailed, StoreRecovered
from reliakit.stores import Op, Plan, Rule, redis_clients, redis_wire
from reliakit.stores.ballots import Ballot
from reliakit.testing import EmbeddedRedis, FaultProxy, ManualClock, RecordingListener

HOUR = 3600 * 10**9
TEN = Plan("ten", (Rule("gcra", 10, HOUR, 10),))


@pytest.fixture
def server(reliakit_redis: EmbeddedRedis, reliakit_redis_url: str) -> EmbeddedRedis:
    return reliakit_redis


@pytest.fixture
def store(server: EmbeddedRedis) -> Iterator[RedisStore]:
    store = RedisStore(server.url)
    yield store
    store.close()


def left(store: RedisStore, plan: Plan = TEN) -> int:
    return store.apply(Op.PEEK, plan, "k", 1).remaining


def through(proxy: FaultProxy, server: EmbeddedRedis) -> str:
    """Return the server's address by way of the proxy."""
    return server.tcp_url.replace(f":{server.port}", f":{proxy.port}")


def limiter_of(store: RedisStore, clock: ManualClock | None = None, **settings: Any) -> RateLimiter:
    time = {} if clock is None else {"clock": clock}
    return RateLimiter("10/h", name="search", store=store, **time, **settings)


def test_making_one_connects_to_nothing_and_bad_settings_are_refused(tmp_path: Any) -> None:
    nowhere = RedisStore(f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(StoreError, match="ConnectionError"):
        nowhere.apply(Op.HIT, TEN, "k", 1)
    with pytest.raises(StoreError, match="ConnectionError"):
        nowhere.open()
    for wrong in ("http://localhost", "localhost", None, object(), RedisStore, 7):
        with pytest.raises(ConfigurationError, match=r"RedisStore|source"):
            RedisStore(wrong)
    for setting, told in (("socket_timeuot=1", "socket_timeuot"), ("db=one", "db"), ("ssl_cert_reqs=maybe", "maybe")):
        with pytest.raises(ConfigurationError, match=told):
            RedisStore(f"rediss://localhost?{setting}")
    for settings in ({"timeout": 0}, {"clock": "mine"}, {"prefix": ""}):
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            RedisStore("redis://localhost", **settings)
    assert "secret" not in repr(RedisStore("redis://:secret@localhost:6379"))
    with pytest.raises(ConfigurationError) as refused:
        RedisStore("http://me:secret@localhost")
    assert "secret" not in str(refused.value)


def test_every_key_expires_by_itself(store: RedisStore, server: EmbeddedRedis) -> None:
    for algorithm in ("gcra", "sliding_log", "sliding_counter", "fixed_window"):
        limiter = RateLimiter(
            Limit(5, per=60.0, algorithm=algorithm), name=algorithm, store=store, store_timeout=20.0
        )
        both = RateLimiter(
            Limit(5, per=60.0, algorithm=algorithm), "9/s", name=algorithm, store=store, store_timeout=20.0
        )
        assert all(each.hit("k", 3).allowed for each in (limiter, both))
        limiter.refund("k")
    guard = LoginGuard(store=store, secret="s" * 32)
    with guard.attempt(account="a", source="192.0.2.1", device="d") as attempt:
        attempt.failure()
    with redis.Redis.from_url(server.url) as client:
        keys = client.keys()
        assert len(keys) >= 11
        assert all(client.pttl(key) > 0 for key in keys)
        assert all(b":2:{" in key or b":1:{" in key for key in keys)


def test_another_algorithm_on_live_keys_starts_afresh(store: RedisStore) -> None:
    for algorithm in ("gcra", "sliding_log", "sliding_counter", "fixed_window"):
        limiter = RateLimiter(Limit(2, per=3600.0, algorithm=algorithm), store=store, store_timeout=20.0)
        assert [limiter.hit("k").allowed for _ in range(3)] == [True, True, False]


def test_scripts_and_keys_that_are_gone_do_no_harm(store: RedisStore, server: EmbeddedRedis) -> None:
    assert store.apply(Op.HIT, TEN, "k", 4).remaining == 6
    server.flush()
    assert store.apply(Op.HIT, TEN, "k", 4).remaining == 6
    server.flush()

    async def several() -> list[int]:
        answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, "k", 1) for _ in range(3)])
        return [answer.remaining for answer in answers]

    assert asyncio.run(several()) == [9, 8, 7]


def test_a_restarted_server_is_found_again_without_an_error(store: RedisStore, server: EmbeddedRedis) -> None:
    async def through_a_restart() -> None:
        await store.aapply(Op.HIT, TEN, "k", 4)
        await asyncio.to_thread(server.restart)
        assert (await store.aapply(Op.HIT, TEN, "k", 4)).remaining == 6

    store.apply(Op.HIT, TEN, "k", 4)
    server.restart()
    assert store.apply(Op.HIT, TEN, "k", 4).remaining == 6
    server.flush()
    asyncio.run(through_a_restart())


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_connection_to_a_server_that_became_a_replica_is_given_up(
    server: EmbeddedRedis, fault_proxy: Any, colour: str
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    store = RedisStore(through(proxy, server), timeout=30.0)

    async def decide() -> None:
        async def hit() -> int:
            blocking = colour == "sync"
            answer = store.apply(Op.HIT, TEN, "k", 1) if blocking else await store.aapply(Op.HIT, TEN, "k", 1)
            return answer.remaining

        with redis.Redis.from_url(server.url) as client:
            assert await hit() == 9
            try:
                client.replicaof("127.0.0.1", 1)
                with pytest.raises(StoreError, match=r"(?i)read.?only"):
                    await hit()
            finally:
                client.replicaof("NO", "ONE")
            assert await hit() == 8
            assert proxy.stats().connections == 2

    asyncio.run(decide())
    store.close()


@pytest.mark.parametrize("how", ["stalled", "killed", "black hole", "refused"])
def test_while_the_server_is_away_others_decide_and_its_return_is_noticed(
    how: str, server: EmbeddedRedis, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    clock, heard = ManualClock(), RecordingListener()
    store = RedisStore(through(proxy, server), timeout=30.0)
    limiter = limiter_of(store, clock, store_timeout=0.5, listeners=[heard], on_store_error="closed")
    left(store)  # connects, however long that takes here
    assert limiter.hit("k").allowed
    {"stalled": server.pause, "killed": server.kill, "black hole": proxy.black_hole, "refused": proxy.refuse}[how]()
    if how == "refused":
        proxy.reset()
    try:
        decisions = [limiter.hit("k") for _ in range(50)]
        assert all(decision.degraded and not decision.allowed for decision in decisions)
    finally:
        server.start()
        server.resume()
        proxy.heal()
    assert limiter.hit("k").degraded  # nobody asks before the break is over
    left(store)
    clock.advance(60.0)
    assert not limiter.hit("k").degraded
    assert [type(event) for event in heard if isinstance(event, StoreFailed | StoreRecovered)] == [
        StoreFailed,
        StoreRecovered,
    ]
    store.close()


@pytest.mark.parametrize("how", ["stalled", "killed"])
def test_tasks_are_served_while_the_server_is_away(how: str, server: EmbeddedRedis) -> None:
    store = RedisStore(server.url, timeout=0.5)

    async def decide() -> list[bool]:
        limiter = limiter_of(store, store_timeout=0.1)
        await limiter.ahit("k")
        await asyncio.to_thread(server.pause if how == "stalled" else server.kill)
        decisions = [decision for _ in range(4) for decision in await asyncio.gather(*map(limiter.ahit, "abcdefgh"))]
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.resume)
        return [decision.degraded for decision in decisions]

    assert asyncio.run(decide()) == [True] * 32


def test_a_thread_s_decision_keeps_to_its_deadline(store: RedisStore, server: EmbeddedRedis) -> None:
    long = RedisStore(server.url, timeout=50.0)
    long.apply(Op.HIT, TEN, "k", 1)
    server.pause()
    try:
        with deadline(0.05), pytest.raises(StoreError, match="TimeoutError"):
            long.apply(Op.HIT, TEN, "k", 1)
        with deadline(0.05), pytest.raises(StoreError, match="TimeoutError"):
            RedisStore(server.url, timeout=50.0).apply(Op.HIT, TEN, "k", 1)
    finally:
        server.resume()
    # The late answer must not be taken for the next one's.
    assert long.apply(Op.PEEK, Plan("other", TEN.rules), "k", 1).remaining == 10
    long.close()


def test_tasks_of_one_tick_share_a_round_trip(server: EmbeddedRedis, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    store = RedisStore(through(proxy, server))

    async def decide() -> int:
        await store.aapply(Op.HIT, TEN, "k", 1)
        before = proxy.stats().round_trips
        await asyncio.gather(*[store.aapply(Op.HIT, TEN, str(number), 1) for number in range(20)])
        return proxy.stats().round_trips - before

    assert asyncio.run(decide()) == 1


def test_tasks_that_come_while_it_connects_wait_for_that_connection(server: EmbeddedRedis, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    store = RedisStore(through(proxy, server), timeout=30.0)

    async def decide() -> int:
        first = [asyncio.create_task(store.aapply(Op.HIT, TEN, "k", 1)) for _ in range(20)]
        await asyncio.wait(first, timeout=0)
        answers = await asyncio.gather(*first, *[store.aapply(Op.HIT, TEN, "k", 1) for _ in range(20)])
        return sum(answer.admitted for answer in answers)

    assert asyncio.run(decide()) == 10
    assert proxy.stats().connections == 1


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("is_used", [False, True])
@pytest.mark.parametrize("is_noticed", [False, True])
def test_a_connection_that_was_reset_is_replaced(
    server: EmbeddedRedis, fault_proxy: Any, colour: str, is_used: bool, is_noticed: bool
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    address = through(proxy, server)

    async def in_a_task() -> int:
        async with RedisStore(address, timeout=30.0) as store:
            if is_used:
                await store.aapply(Op.PEEK, TEN, "reset", 1)
            proxy.reset()
            if is_noticed:
                await SYSTEM_CLOCK.asleep(0.02)
            return (await store.aapply(Op.PEEK, TEN, "reset", 1)).remaining

    if colour == "async":
        assert asyncio.run(in_a_task()) == 10
        return
    with RedisStore(address, timeout=30.0) as store:
        if is_used:
            store.apply(Op.PEEK, TEN, "reset", 1)
        proxy.reset()
        if is_noticed:
            SYSTEM_CLOCK.sleep(0.02)
        assert store.apply(Op.PEEK, TEN, "reset", 1).remaining == 10


@pytest.mark.parametrize("how", ["reset", "black_hole"])
def test_what_was_answered_before_a_connection_was_lost_stands_and_the_rest_is_not_asked_again(
    server: EmbeddedRedis, fault_proxy: Any, how: Any
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    address = through(proxy, server)

    async def decide() -> list[Any]:
        async with RedisStore(address, timeout=30.0 if how == "reset" else 0.5) as store:
            await store.aapply(Op.PEEK, TEN, "k", 1)
            await store.aapply(Op.HIT, TEN, "other", 1)
            # The state of a new key is one number; of the others, which the server may have counted, nothing arrives.
            with proxy.cut_on(b"*3\r\n", direction="to_client", how=how):
                hits = [store.aapply(Op.HIT, TEN, "k", 1) for _ in range(3)]
                return await asyncio.gather(*hits, return_exceptions=True)

    first, *rest = asyncio.run(decide())
    assert first.remaining == 9
    assert [type(error) for error in rest] == [StoreError, StoreError]
    with RedisStore(server.url) as store:
        assert left(store) in {7, 8, 9}  # the server had come to the others before it lost its client, or not


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_connection_that_is_lost_after_it_asked_for_the_script_is_not_asked_again(
    server: EmbeddedRedis, fault_proxy: Any, colour: str
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    address = through(proxy, server)

    async def decide() -> None:
        async with RedisStore(address, timeout=30.0) as store:

            async def hit() -> int:
                blocking = colour == "sync"
                answer = store.apply(Op.HIT, TEN, "k", 1) if blocking else await store.aapply(Op.HIT, TEN, "k", 1)
                return answer.remaining

            assert await hit() == 9
            server.flush()
            with proxy.cut_on(b"*1\r\n", direction="to_client"), pytest.raises(StoreError, match="ConnectionError"):
                await hit()
            assert await hit() == 8

    asyncio.run(decide())


def test_opened_early_it_has_a_connection(server: EmbeddedRedis, fault_proxy: Any) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    address = through(proxy, server)

    async def in_a_task() -> None:
        async with RedisStore(address) as store:
            await store.aopen()
            assert proxy.stats().connections == 1
            await store.aapply(Op.HIT, TEN, "k", 1)

    asyncio.run(in_a_task())
    with RedisStore(address) as store:
        assert proxy.stats().connections == 2
        left(store)
    assert proxy.stats().connections == 2
    proxy.refuse()
    with pytest.raises(StoreError, match="ConnectionError"):
        asyncio.run(RedisStore(address).aopen())


def test_a_service_starts_while_its_store_is_down_but_not_with_a_closed_one(
    server: EmbeddedRedis, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    proxy.refuse()
    address = through(proxy, server)

    async def in_a_task(store: RedisStore) -> bool:
        async with store:
            return (await RateLimiter("2/h", store=store).ahit("k")).degraded

    with RedisStore(address) as store:
        assert RateLimiter("2/h", store=store).hit("k").degraded
    other = RedisStore(address)
    assert asyncio.run(in_a_task(other))
    for closed in (store, other):
        with pytest.raises(StoreError, match="closed"), closed:
            pass
        with pytest.raises(StoreError, match="closed"):
            asyncio.run(in_a_task(closed))


def test_any_client_will_do(server: EmbeddedRedis) -> None:
    plans = (TEN, Plan("several", (TEN.rules[0], Rule("sliding_log", 20, HOUR, 20))))
    valkey_url = server.url
    for make, make_async in (
        (redis.Redis.from_url, redis.asyncio.Redis.from_url),
        (valkey.Valkey.from_url, valkey.asyncio.Valkey.from_url),
    ):
        server.flush()
        with make(valkey_url, decode_responses=True) as client:
            store = RedisStore(client)
            for plan in plans:
                assert store.apply(Op.HIT, plan, "k", 4).remaining == 6
            assert asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 5
            store.close()
            assert client.ping()

        async def in_tasks(make_async: Any = make_async) -> list[int]:
            async with make_async(valkey_url) as client:
                store = RedisStore(client)
                with pytest.raises(ConfigurationError, match="asynchronous"):
                    store.apply(Op.HIT, TEN, "k", 1)
                answers = await asyncio.gather(*[store.aapply(Op.HIT, plan, "k", 1) for plan in (*plans, *plans)])
                server.flush()
                answers += await asyncio.gather(*[store.aapply(Op.HIT, plan, "k", 1) for plan in plans])
                await store.aclose()
                assert await client.ping()
                return [answer.remaining for answer in answers]

        assert asyncio.run(in_tasks()) == [4, 5, 3, 4, 9, 9]
    with RedisStore(server.tcp_url.replace("redis", "valkey")) as store:
        assert left(store) == 9


def free_pair() -> int:
    """Return a port that is free as its cluster bus is, 10000 above; the system deals neither out by itself."""
    while True:
        port = SystemRandom().randrange(20_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as clients, socket.socket() as bus:
            clients.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            return port


class Cluster:
    """Three nodes of which each has every third slot."""

    def __init__(self, servers: list[EmbeddedRedis]) -> None:
        self.servers = servers
        self.nodes = [redis.Redis.from_url(server.url) for server in servers]
        self.url = f"redis://:secret@127.0.0.1:{servers[0].port}"
        for at, node in enumerate(self.nodes):
            node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
            node.execute_command("CLUSTER", "ADDSLOTS", *range(at, 16384, 3))
            node.config_set("requirepass", "secret")
            for server in servers[:at]:
                node.execute_command("CLUSTER", "MEET", "127.0.0.1", server.port)
        moment = threading.Event()
        while not all(self.is_fine(node) for node in self.nodes):
            moment.wait(0.01)
        self.ids = [node.execute_command("CLUSTER", "MYID") for node in self.nodes]

    @staticmethod
    def is_fine(node: Any) -> bool:
        facts = node.cluster("INFO")
        return (facts["cluster_state"], facts["cluster_known_nodes"]) == ("ok", "3")

    def slot(self, key: str) -> int:
        slot = self.nodes[0].execute_command("CLUSTER", "KEYSLOT", f"reliakit:2:{{{key}}}:ten")
        assert isinstance(slot, int)
        return slot

    def begin_moving(self, slot: int) -> None:
        """Have what asks a node for new keys of its slot sent to the next one, as while slots are moved."""
        source, target = slot % 3, (slot + 1) % 3
        self.nodes[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.ids[source])
        self.nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.ids[target])

    def end_moving(self, slot: int) -> None:
        source, target = slot % 3, (slot + 1) % 3
        for at in (target, source, (target + 1) % 3):  # who has it now has to know it first
            self.nodes[at].execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.ids[target])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        servers = [EmbeddedRedis(port=free_pair(), settings={"cluster-enabled": True}) for _ in range(3)]
        for server in servers:
            stack.enter_context(server)
        cluster = Cluster(servers)
        yield cluster
        for node in cluster.nodes:
            node.close()


def test_a_cluster_keeps_all_states_of_a_decision_in_one_slot(cluster: Cluster) -> None:
    with redis.RedisCluster.from_url(cluster.url) as client:
        store = RedisStore(client)
        for key in ("k", "a}b", "}", "{}", "{"):
            limiter = RateLimiter(
                "5/h", Limit(3, per=3600.0, algorithm="sliding_log"), store=store, store_timeout=9.0
            )
            assert [limiter.hit(key).allowed for _ in range(4)] == [True] * 3 + [False]
        guard = LoginGuard(store=store, secret="s" * 32, name="a{}b")
        with guard.attempt(account="a", source="192.0.2.1", device="d") as attempt:
            attempt.success("a")

    async def in_tasks() -> list[bool]:
        async with redis.asyncio.RedisCluster.from_url(cluster.url) as client:
            limiter = RateLimiter("3/h", name="tasks", store=RedisStore(client), store_timeout=9.0)
            return [decision.allowed for decision in await asyncio.gather(*[limiter.ahit("k") for _ in range(5)])]

    assert sum(asyncio.run(in_tasks())) == 3


def test_a_cluster_s_client_finds_keys_on_every_node_and_those_that_move(cluster: Cluster) -> None:
    keys = [f"moving:{number}" for number in range(12)]  # of no other test: a slot that is moved must be empty
    assert {cluster.slot(key) % 3 for key in keys} == {0, 1, 2}
    moving = keys[0]

    async def in_tasks() -> list[int]:
        async with redis.asyncio.RedisCluster.from_url(cluster.url) as client:
            store = RedisStore(client)
            # One after the other: redis-py says ASKING on a connection that another task may take meanwhile.
            return [(await store.aapply(Op.HIT, TEN, key, 1)).remaining for key in keys]

    with redis.RedisCluster.from_url(cluster.url) as client:
        store = RedisStore(client)
        cluster.begin_moving(cluster.slot(moving))
        assert [store.apply(Op.HIT, TEN, key, 1).remaining for key in keys] == [9] * 12
        assert asyncio.run(in_tasks()) == [8] * 12
        cluster.end_moving(cluster.slot(moving))
        assert [store.apply(Op.HIT, TEN, key, 1).remaining for key in keys] == [7] * 12
    assert asyncio.run(in_tasks()) == [6] * 12


def test_tasks_that_come_first_to_a_cluster_s_client_are_each_counted_once(cluster: Cluster) -> None:
    async def in_tasks() -> list[int]:
        client = redis.asyncio.RedisCluster.from_url(cluster.url)
        store = RedisStore(client, timeout=30.0)
        answers = await asyncio.gather(*[store.aapply(Op.HIT, TEN, f"first:{number}", 1) for number in range(30)])
        await client.aclose()
        return [answer.remaining for answer in answers]

    assert asyncio.run(in_tasks()) == [9] * 30


@pytest.mark.parametrize("library", [redis.asyncio.RedisCluster, valkey.asyncio.ValkeyCluster])
def test_tasks_of_one_tick_share_a_connection_to_each_node_of_a_cluster_and_find_lost_ones_again(
    cluster: Cluster, library: Any
) -> None:
    def connections() -> int:
        return sum(node.info("stats")["total_connections_received"] for node in cluster.nodes)

    async def in_tasks() -> list[int]:
        client = library.from_url(
            cluster.url.replace("redis:", "valkey:") if "valkey" in str(library) else cluster.url
        )
        store = RedisStore(client, timeout=30.0)

        async def hit() -> list[int]:
            hits = [store.aapply(Op.HIT, TEN, f"{library.__name__}:{number}", 1) for number in range(60)]
            return sorted({answer.remaining for answer in await asyncio.gather(*hits)})

        before = connections()
        remaining = await hit() + await hit()
        assert connections() - before < 20
        for node in cluster.nodes:
            node.client_kill_filter(_type="normal", skipme=True)
            node.script_flush()
        remaining += await hit()
        await client.aclose()
        return remaining

    assert asyncio.run(in_tasks()) == [9, 8, 7]


def test_a_node_of_a_cluster_that_stalls_keeps_nobody_from_the_replies_of_the_others(cluster: Cluster) -> None:
    keys = [f"stalled:{number}" for number in range(12)]
    assert {cluster.slot(key) % 3 for key in keys} == {0, 1, 2}
    others = [key for key in keys if cluster.slot(key) % 3]

    async def in_tasks() -> list[int]:
        async with redis.asyncio.RedisCluster.from_url(cluster.url, socket_timeout=60.0) as client:
            store = RedisStore(client, timeout=20.0)
            await asyncio.gather(*[store.aapply(Op.HIT, TEN, key, 1) for key in keys])
            cluster.servers[0].pause()
            try:
                hits = {key: asyncio.create_task(store.aapply(Op.HIT, TEN, key, 1)) for key in keys}
                return [(await hits[key]).remaining for key in others]
            finally:
                cluster.servers[0].resume()
                await asyncio.gather(*hits.values(), return_exceptions=True)

    assert asyncio.run(in_tasks()) == [8] * len(others)


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_the_address_of_one_node_of_a_cluster_is_refused_with_the_way_out(cluster: Cluster, colour: str) -> None:
    limiter = RateLimiter("5/h", name="ten", store=RedisStore(cluster.url), store_timeout=9.0)

    async def decide(key: str) -> bool:
        return bool(limiter.hit(key) if colour == "sync" else await limiter.ahit(key))

    async def all_of_them() -> None:
        for number in range(12):
            await decide(f"user:{number}")

    with pytest.raises(ConfigurationError, match=r"one node of a cluster.*RedisCluster"):
        asyncio.run(all_of_them())


def test_a_node_that_has_not_the_key_is_understood_in_the_words_of_older_client_libraries(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = redis.ResponseError("MOVED 866 127.0.0.1:7002")
    monkeypatch.setattr(redis_wire._Line, "ask", lambda *_: told)
    with pytest.raises(ConfigurationError, match="one node of a cluster"):
        store.apply(Op.HIT, TEN, "k", 1)


RIGHTS = "eval evalsha get set psetex del time hget hgetall hset hdel pexpire persist"


def test_a_user_with_few_rights_will_do(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        rights = [f"+{command}" for command in RIGHTS.split()]
        client.acl_setuser("few", enabled=True, passwords=["+pw"], commands=rights, keys=["reliakit:*"], reset=True)
        try:
            with RedisStore(f"redis://few:pw@127.0.0.1:{server.port}", timeout=30.0) as store:
                several = Plan("several", (TEN.rules[0], Rule("sliding_log", 20, HOUR, 20)))
                for op in (Op.HIT, Op.PEEK, Op.REFUND, Op.HIT, Op.RESET):
                    for plan in (TEN, several):
                        assert store.apply(op, plan, "k", 1).admitted
                assert asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 9
                guard = LoginGuard(store=store, secret="s" * 32, store_timeout=9.0)
                with guard.attempt(account="a", source="192.0.2.1", device="d") as attempt:
                    attempt.success("a")
                ballot = Ballot("c", "me", 9.0, 5.0, 0, wants_lease=True, lease=1.0, has_closed=False, quorum=1)
                assert store.vote(ballot).votes == 1
                assert store.vote(ballot._replace(remaining=0.0, has_closed=True)).votes == 0
                for seconds in (5.0, math.inf, 0.0):
                    store.force("c", seconds)
        finally:
            client.acl_deluser("few")


def test_a_full_server_that_evicts_nothing_is_told_as_an_outage(server: EmbeddedRedis) -> None:
    with RedisStore(server.url, timeout=30.0) as store, redis.Redis.from_url(server.url) as client:
        limiter = limiter_of(store, on_store_error="closed", store_timeout=9.0)
        assert limiter.hit("spent", 10).allowed
        client.config_set("maxmemory", 1)
        try:
            refused, unknown = limiter.hit("spent"), limiter.hit("new")
        finally:
            client.config_set("maxmemory", 0)
        assert (refused.allowed, refused.degraded) == (False, False)  # to refuse, nothing is written
        assert (unknown.allowed, unknown.degraded) == (False, True)
        assert store.apply(Op.HIT, TEN, "k", 1).remaining == 9  # on the same connection


def test_processes_with_clocks_that_differ_get_exactly_what_there_is(server: EmbeddedRedis) -> None:
    program = """
        import sys, time
        real, skew = time.time, float(sys.argv[2])
        time.time = lambda: real() + skew
        from reliakit import RateLimiter, RedisStore
        limits = [RateLimiter(*limits, name=str(len(limits)), store=RedisStore(sys.argv[1]), store_timeout=30.0)
                  for limits in (("100/h",), ("200/h", "100/day"))]
        sys.stdin.readline()
        print(*[sum(limit.hit("k").allowed for _ in range(60)) for limit in limits])
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), server.url, skew],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for skew in ("0", "61", "-61", "7200")
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    counts = [[int(word) for word in process.communicate()[0].split()] for process in processes]
    assert [sum(column) for column in zip(*counts, strict=True)] == [100, 100]


@pytest.mark.parametrize("colour", ["blocking", "awaited"])
def test_a_lease_spares_round_trips_and_what_is_left_goes_back(
    server: EmbeddedRedis, colour: str, fault_proxy: Any
) -> None:
    proxy: FaultProxy = fault_proxy(("127.0.0.1", server.port))
    leasing = RedisStore(through(proxy, server), lease=4)
    plain = RedisStore(server.url)
    with asyncio.Runner() as runner:

        def decide(op: Op, cost: int = 1) -> tuple[bool, int]:
            if colour == "blocking":
                return leasing.apply(op, TEN, "k", cost)[::2][:2]
            return runner.run(leasing.aapply(op, TEN, "k", cost))[::2][:2]

        assert decide(Op.HIT) == (True, 9)
        assert left(plain) == 6
        before = proxy.stats().round_trips
        assert [decide(Op.HIT) for _ in range(3)] == [(True, 2), (True, 1), (True, 0)]
        assert proxy.stats().round_trips == before
        assert decide(Op.HIT, 2) == (True, 4)
        assert decide(Op.PEEK) == (True, 4)
        assert left(plain) == 2
        leasing.close()
        assert left(plain) == 4
        plain.close()


def test_with_leases_nobody_gets_more_than_there_is(server: EmbeddedRedis) -> None:
    stores = [RedisStore(server.url, lease=4) for _ in range(3)]
    admitted = [store.apply(Op.HIT, TEN, "k", 1).admitted for _ in range(10) for store in stores]
    assert sum(admitted) == 10
    stores[0].apply(Op.RESET, TEN, "k", 1)
    assert stores[0].apply(Op.HIT, TEN, "k", 1).remaining == 9
    for store in stores:
        store.close()


@pytest.mark.parametrize("algorithm", ["gcra", "sliding_log", "sliding_counter", "fixed_window"])
def test_a_value_of_somebody_else_does_not_stall_the_server(server: EmbeddedRedis, algorithm: Any) -> None:
    plan = Plan("foreign", (Rule(algorithm, 5, HOUR, 5), Rule("gcra", 9, HOUR, 9)))
    store = RedisStore(server.url)
    with redis.Redis.from_url(server.url) as client:
        for foreign in (b"x", b"12345678", b"\x7f" * 64, b"\xff" * 64):
            assert store.apply(Op.HIT, plan, "k", 1).admitted
            [key] = client.keys("*foreign*")
            client.set(key, foreign)
            with contextlib.suppress(StoreError, IndexError):  # a limiter asks its stand-in then
                store.apply(Op.HIT, plan, "k", 1)
            assert client.ping()  # else it would say that it is busy
            client.delete(key)
    store.close()


@pytest.mark.parametrize("colour", ["blocking", "awaited"])
def test_those_who_come_at_once_take_one_lease(server: EmbeddedRedis, colour: str) -> None:
    plan = Plan("crowd", (Rule("fixed_window", 1000, HOUR, 1000),))
    leasing, plain = RedisStore(server.url, lease=4), RedisStore(server.url)

    async def crowd() -> None:
        await asyncio.gather(*[leasing.aapply(Op.HIT, plan, "k", 1) for _ in range(48)])

    if colour == "awaited":
        asyncio.run(crowd())
    else:
        start = threading.Barrier(16)

        def hit() -> None:
            start.wait()
            for _ in range(3):
                leasing.apply(Op.HIT, plan, "k", 1)

        threads = [threading.Thread(target=hit) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 1000 - 48 - 3 <= left(plain, plan) <= 1000 - 48
    leasing.close()
    plain.close()


@pytest.mark.parametrize("how", ["address", "plain client", "asynchronous client"])
def test_giving_leases_back_does_not_hold_the_event_loop_up(
    server: EmbeddedRedis, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked: set[int] = set()

    def recorded(run: Any) -> Any:
        def ask(wire: Any, request: Any) -> Any:
            blocked.add(threading.get_ident())
            return run(wire, request)

        return ask

    for wire in (redis_wire.BlockingWire, redis_clients.ClientBlockingWire):
        monkeypatch.setattr(wire, "run", recorded(wire.run))

    async def close() -> None:
        library: Any = redis if how == "plain client" else redis.asyncio
        source: Any = server.url if how == "address" else library.Redis.from_url(server.url)
        store = RedisStore(source, lease=4)
        for key in "kab":
            await store.aapply(Op.HIT, TEN, key, 1)
        await store.aclose()
        if how == "asynchronous client":
            await source.aclose()
        elif how == "plain client":
            source.close()

    asyncio.run(close())
    assert threading.get_ident() not in blocked
    plain = RedisStore(server.url)
    assert [plain.apply(Op.PEEK, TEN, key, 1).remaining for key in "kab"] == [9, 9, 9]
    plain.close()


def test_a_lease_that_is_not_answered_does_not_keep_others_from_one(server: EmbeddedRedis) -> None:
    leasing, plain = RedisStore(server.url, lease=4), RedisStore(server.url)

    async def twice() -> int:
        asking = asyncio.create_task(leasing.aapply(Op.HIT, TEN, "k", 1))
        await SYSTEM_CLOCK.asleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        before = left(plain)
        await leasing.aapply(Op.HIT, TEN, "k", 1)
        return before - left(plain)

    assert asyncio.run(twice()) == 4
    leasing.close()
    plain.close()


def test_a_fork_uses_connections_of_its_own(store: RedisStore) -> None:
    assert left(store) == 10
    store.apply(Op.HIT, TEN, "k", 1)
    child = os.fork()
    if not child:
        fine = store.apply(Op.HIT, TEN, "k", 1).remaining == 8
        fine = fine and asyncio.run(store.aapply(Op.HIT, TEN, "k", 1)).remaining == 7
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert left(store) == 7


def test_a_waiter_that_is_cancelled_before_the_answer_gives_its_slot_back(server: EmbeddedRedis) -> None:
    async def decide() -> float:
        async with RedisStore(server.url, timeout=30.0) as store:
            limiter = RateLimiter("1/min", store=store, store_timeout=30.0)
            await limiter.ahit("k")
            for steps in range(1, 12):
                waiter = asyncio.create_task(limiter.aacquire("k", timeout=1000.0))
                for _ in range(steps):
                    await SYSTEM_CLOCK.asleep(0)
                waiter.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiter
            return (await limiter.ahit("k")).retry_after

    assert asyncio.run(decide()) <= 60.0


def test_a_closed_store_says_so(store: RedisStore) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        left(store)
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(store.aapply(Op.PEEK, TEN, "k", 1))
    with pytest.raises(StoreError, match="closed"):
        store.open()
    with pytest.raises(StoreError, match="closed"):
        asyncio.run(store.aopen())


def test_by_a_client_s_clock_time_is_the_client_s(server: EmbeddedRedis) -> None:
    clock = ManualClock()
    store = RedisStore(server.url, clock=clock)
    one = Plan("one", (Rule("gcra", 1, 10**9, 1),))
    assert [store.apply(Op.HIT, one, "k", 1).admitted for _ in range(2)] == [True, False]
    clock.advance(1.0)
    assert store.apply(Op.HIT, one, "k", 1).admitted
    store.close()


def test_a_limit_too_large_to_count_exactly_is_refused(store: RedisStore) -> None:
    with pytest.raises(ConfigurationError, match="shorter period"):
        RateLimiter(Limit(1, per=1e6, burst=10**6), store=store)
