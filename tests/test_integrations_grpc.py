"""gRPC clients and servers with deadlines, contexts and policies, over a real channel."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

from reliakit import (
    CircuitBreaker,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    Policy,
    Retry,
    current_request,
    deadline,
    remaining,
    request_context,
)
from reliakit.core.context import current_priority
from reliakit.integrations.grpc import (
    AsyncServerContext,
    ServerContext,
    async_client_interceptors,
    client_interceptors,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
GET, SEND, LIST = "/Stock/Get", "/Stock/Send", "/Stock/List"
CODE = grpc.StatusCode
HERE = ["127.0.0.0/8", "::1/128"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
async def one_loop():
    """Keep one event loop for all tests: grpc.aio hands the last events of a loop that is gone to the next one."""
    yield  # noqa: PT022 - what keeps the loop


class Script:
    """What the handlers answer with, and what they saw."""

    def __init__(self):
        self.codes, self.seen, self.priorities = [], [], []

    def note(self):
        request = current_request()
        self.priorities.append(current_priority())
        self.seen.append((request and request.request_id, request and request.trace_id, remaining()))
        return self.codes.pop(0) if self.codes else None


def handlers(script):
    def unary(request, context):
        code = script.note()
        if code is not None:
            context.abort(code, "as scripted")
        return request

    def stream(request, context):
        script.note()
        yield request
        script.note()
        yield request

    methods = {
        "Get": grpc.unary_unary_rpc_method_handler(unary),
        "Send": grpc.unary_unary_rpc_method_handler(unary),
        "List": grpc.unary_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler("Stock", methods)


def async_handlers(script):
    async def unary(request, context):
        code = script.note()
        if code is not None:
            await context.abort(code, "as scripted")
        return request

    async def stream(request, context):
        script.note()
        yield request
        script.note()
        yield request

    methods = {
        "Get": grpc.unary_unary_rpc_method_handler(unary),
        "Send": grpc.unary_unary_rpc_method_handler(unary),
        "List": grpc.unary_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler("Stock", methods)


@contextlib.contextmanager
def served(script):
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, handlers=(handlers(script),), interceptors=[ServerContext(trusted=HERE)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@contextlib.asynccontextmanager
async def async_served(script):
    server = grpc.aio.server(interceptors=[AsyncServerContext(trusted=HERE)])
    server.add_generic_rpc_handlers((async_handlers(script),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@pytest.fixture(params=["sync", "async"])
async def stock(request):
    """A client and its server: `call(method, body, policy, idempotent)`."""
    script = Script()
    if request.param == "sync":
        with served(script) as target:

            async def call(method, policy=None, idempotent=(), **settings):
                with grpc.insecure_channel(target) as channel:
                    open_ = grpc.intercept_channel(channel, *client_interceptors(policy, idempotent=idempotent))
                    if method == LIST:
                        return list(open_.unary_stream(method)(b"a", **settings))
                    return open_.unary_unary(method)(b"a", **settings)

            yield script, call
    else:
        async with async_served(script) as target:

            async def call(method, policy=None, idempotent=(), **settings):
                interceptors = async_client_interceptors(policy, idempotent=idempotent)
                async with grpc.aio.insecure_channel(target, interceptors=interceptors) as channel:
                    if method == LIST:
                        return [answer async for answer in channel.unary_stream(method)(b"a", **settings)]
                    return await channel.unary_unary(method)(b"a", **settings)

            yield script, call


async def test_what_is_idempotent_is_tried_again(stock):
    script, call = stock
    script.codes = [CODE.UNAVAILABLE, CODE.UNAVAILABLE]
    assert await call(GET, Policy(Retry(3, wait=0.0)), idempotent={GET}) == b"a"
    assert len(script.seen) == 3


async def test_what_is_not_is_sent_once_and_its_error_passes(stock):
    script, call = stock
    script.codes = [CODE.UNAVAILABLE]
    with pytest.raises(grpc.RpcError) as caught:
        await call(SEND, Policy(Retry(3, wait=0.0)), idempotent={GET})
    assert caught.value.code() is CODE.UNAVAILABLE
    assert len(script.seen) == 1


async def test_a_status_that_is_an_answer_is_none_of_the_breakers_failures(stock):
    script, call = stock
    breaker = CircuitBreaker("stock", failure_threshold=1)
    script.codes = [CODE.NOT_FOUND, CODE.UNAVAILABLE]
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            await call(SEND, breaker)
    with pytest.raises(CircuitOpenError):
        await call(SEND, breaker)
    assert len(script.seen) == 2


@pytest.mark.parametrize("method", [GET, LIST])
async def test_deadline_request_id_and_trace_reach_the_handler(stock, method):
    script, call = stock
    with request_context(request_id="r1", trace_id=TRACE, trace_headers=(PARENT, None)), deadline(20.0):
        await call(method)
    for request_id, trace_id, left in script.seen:
        assert (request_id, trace_id) == ("r1", TRACE)
        assert 0 < left < 25.0


@pytest.mark.parametrize("method", [GET, LIST])
async def test_a_priority_reaches_the_handlers_of_a_service_that_trusts_the_caller(stock, method):
    script, call = stock
    with request_context(priority="sheddable"):
        await call(method)
    assert set(script.priorities) == {"sheddable"}
    script.priorities.clear()
    await call(method, metadata=(("x-request-priority", "urgent"),))
    assert set(script.priorities) == {"default"}


@pytest.mark.parametrize(
    ("trusted", "peer", "believed"),
    [
        ((), "ipv4:10.0.0.1:5", "default"),
        (["10.0.0.0/8"], "ipv4:10.0.0.1:5", "critical"),
        (["10.0.0.0/8"], "ipv4:203.0.113.9:5", "default"),
        (["fd00::/8"], "ipv6:%5Bfd00::1%5D:5", "critical"),
        (["fd00::/8"], "ipv6:[2001:db8::1]:5", "default"),
        (["10.0.0.0/8"], "unix:", "default"),
        (["unix"], "unix:/run/stock", "critical"),
    ],
)
async def test_nobody_else_says_how_important_he_is(trusted, peer, believed):
    class Context:
        def peer(self):
            return peer

        def invocation_metadata(self):
            return (("x-request-priority", "critical"),)

        def time_remaining(self):
            return None

    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: current_priority())
    within = ServerContext(trusted=trusted).intercept_service(lambda details: handler, None)
    assert within.unary_unary(b"", Context()) == believed


async def test_trusted_networks_are_checked():
    with pytest.raises(ConfigurationError, match="trusted must hold networks"):
        AsyncServerContext(trusted=["here"])


async def test_without_a_deadline_the_handler_has_none(stock):
    script, call = stock
    await call(GET)
    assert script.seen[0][2] is None


async def test_a_shorter_timeout_of_the_call_wins(stock):
    script, call = stock
    with deadline(20.0):
        await call(GET, timeout=10.0)
    assert script.seen[0][2] < 15.0  # gRPC rounds up on the way


async def test_nothing_is_sent_once_the_deadline_is_spent(stock):
    script, call = stock
    with pytest.raises(DeadlineExceededError), deadline(0.0):
        await call(GET)
    assert script.seen == []


async def test_metadata_that_is_not_well_formed_is_not_believed(stock):
    script, call = stock
    await call(GET, metadata=(("x-request-id", "a b"), ("traceparent", "nonsense")))
    request_id, trace_id, _ = script.seen[0]
    assert request_id != "a b"
    assert trace_id is None


async def test_a_plain_handler_of_an_async_server_still_serves():
    server = grpc.aio.server(interceptors=[AsyncServerContext()])
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Stock", {"Get": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert await asyncio.wait_for(channel.unary_unary(GET)(b"a"), 20) == b"a"
    finally:
        await server.stop(None)
