"""HTTP clients behind policies, against a real server on a loopback port."""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module

import aiohttp
import httpx
import httpx2
import pytest
import requests

from reliakit import (
    CircuitBreaker,
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    Hedge,
    Policy,
    Retry,
    Timeout,
    deadline,
    request_context,
)
from reliakit.integrations.aiohttp import PolicyMiddleware
from reliakit.integrations.requests import PolicyAdapter
from reliakit.integrations.transports import FailedResponse
from reliakit.resilience.hosts import HostPolicies

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Server(ThreadingHTTPServer):
    """Answers with the statuses of a script, and 200 when it is used up; keeps what it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen, self.released = [], [], threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are part of the tests


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, {name.lower(): value for name, value in self.headers.items()}, body))
        status = self.server.script.pop(0) if self.server.script else 200
        if status == "hang":
            self.server.released.wait(30)
            status = 200
        text = f"answer {len(self.server.seen)}".encode()
        length = len(text)
        if status == "cut":
            status, length, self.close_connection = 200, 9999, True
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def _httpx_like(library):
    module = import_module(f"reliakit.integrations.{library.__name__}")

    class Client:
        times_out = library.TimeoutException

        @staticmethod
        @contextlib.contextmanager
        def sync(policy, **settings):
            with library.Client(transport=module.PolicyTransport(policy, **settings)) as client:

                def send(method, url, **content):
                    answer = client.request(method, url, **content)
                    return answer.status_code, answer.text

                yield send

        @staticmethod
        @contextlib.asynccontextmanager
        async def awaited(policy, **settings):
            async with library.AsyncClient(transport=module.AsyncPolicyTransport(policy, **settings)) as client:

                async def send(method, url, **content):
                    answer = await client.request(method, url, **content)
                    return answer.status_code, answer.text

                yield send

    return Client


class Requests:
    @staticmethod
    @contextlib.contextmanager
    def sync(policy, **settings):
        with requests.Session() as session:
            session.mount("http://", PolicyAdapter(policy, **settings))

            def send(method, url, content=None, **more):
                answer = session.request(method, url, data=content, **more)
                return answer.status_code, answer.text

            yield send


class Aiohttp:
    @staticmethod
    @contextlib.asynccontextmanager
    async def awaited(policy, **settings):
        async with aiohttp.ClientSession(middlewares=(PolicyMiddleware(policy, **settings),)) as session:

            async def send(method, url, content=None, **more):
                async with session.request(method, url, data=content, **more) as answer:
                    return answer.status, await answer.text()

            yield send


SYNC = {"httpx": _httpx_like(httpx), "httpx2": _httpx_like(httpx2), "requests": Requests}
ASYNC = {"httpx": SYNC["httpx"], "httpx2": SYNC["httpx2"], "aiohttp": Aiohttp}
CLIENTS = [*((name, "sync") for name in SYNC), *((name, "async") for name in ASYNC)]


@pytest.fixture(params=CLIENTS, ids="-".join)
async def client(request):
    """What opens a client in either colour: `async with client(policy) as send: await send("GET", url)`."""
    name, colour = request.param

    @contextlib.asynccontextmanager
    async def opened(policy, **settings):
        if colour == "async":
            async with ASYNC[name].awaited(policy, **settings) as send:
                yield send
        else:
            with SYNC[name].sync(policy, **settings) as send:

                async def called(*args, **more):
                    return send(*args, **more)

                yield called

    return opened


def retries(host="any"):
    return Policy(Retry(3, wait=0.0), name=host)


pytestmark = pytest.mark.anyio


async def test_a_failing_answer_is_tried_again(client, server):
    server.script = [503, 429]
    async with client(retries) as send:
        assert await send("GET", server.url) == (200, "answer 3")


async def test_the_last_failing_answer_is_returned_as_an_answer(client, server):
    server.script = [503, 500, 502]
    async with client(retries) as send:
        assert await send("GET", server.url) == (502, "answer 3")


@pytest.mark.parametrize("status", [200, 302, 404, 501])
async def test_what_is_no_failure_is_not_tried_again(client, server, status):
    server.script = [status]
    async with client(retries) as send:
        assert (await send("GET", server.url))[0] == status
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("method", "headers", "attempts"),
    [
        ("PUT", {}, 2),
        ("DELETE", {}, 2),
        ("POST", {}, 1),
        ("PATCH", {}, 1),
        ("POST", {"Idempotency-Key": "k1"}, 2),
    ],
)
async def test_only_what_may_be_sent_twice_is(client, server, method, headers, attempts):
    server.script = [503]
    async with client(retries) as send:
        status, _ = await send(method, server.url, content=b"body", headers=headers)
    assert status == (200 if attempts == 2 else 503)
    assert [(seen[0], seen[2]) for seen in server.seen] == [(method, b"body")] * attempts


async def test_a_body_that_can_be_read_only_once_is_sent_once(server):
    server.script = [503]
    async with SYNC["httpx2"].awaited(retries) as send:

        async def chunks():
            yield b"body"

        assert (await send("PUT", server.url, content=chunks(), headers={"Content-Length": "4"}))[0] == 503
    assert len(server.seen) == 1


async def test_each_host_has_a_breaker_of_its_own(client, server):
    made = []

    def policy(host):
        made.append(host)
        return CircuitBreaker(host, failure_threshold=2)

    server.script = [503, 503]
    async with client(policy) as send:
        for _ in range(2):
            assert (await send("POST", server.url))[0] == 503
        with pytest.raises(CircuitOpenError):
            await send("GET", server.url)
        assert (await send("GET", server.url.replace("127.0.0.1", "localhost")))[0] == 200
    assert made == [f"127.0.0.1:{server.server_port}", f"localhost:{server.server_port}"]
    assert len(server.seen) == 3


async def test_request_id_trace_and_deadline_travel_along(client, server):
    with request_context(request_id="r1", trace_id=TRACE, trace_headers=(PARENT, "a=b")), deadline(20.0):
        async with client(retries) as send:
            await send("GET", server.url, headers={"traceparent": "mine"})
    _, headers, _ = server.seen[0]
    assert (headers["x-request-id"], headers["traceparent"], headers["tracestate"]) == ("r1", "mine", "a=b")
    assert 0 < int(headers["x-request-deadline-ms"]) <= 20_000


async def test_nothing_travels_along_unless_wanted(client, server):
    with request_context(request_id="r1"), deadline(20.0):
        async with client(retries, propagate=False) as send:
            await send("GET", server.url)
    assert not {"x-request-id", "traceparent", "x-request-deadline-ms"} & set(server.seen[0][1])


async def test_a_deadline_ends_the_wait_for_a_host_that_does_not_answer(client, server):
    server.script = ["hang"] * 3
    async with client(Policy(Timeout(60.0))) as send:
        with pytest.raises(DeadlineExceededError):
            with deadline(0.2):
                await send("GET", server.url)


async def test_nothing_is_sent_once_the_deadline_is_spent(client, server):
    async with client(CircuitBreaker("any")) as send:
        with pytest.raises(DeadlineExceededError), deadline(0.0):
            await send("GET", server.url)
    assert server.seen == []


async def test_an_answer_that_was_not_used_gives_its_connection_back(server):
    server.script = [503, 503]
    limits = httpx2.Limits(max_connections=1)
    module = import_module("reliakit.integrations.httpx2")
    transport = module.AsyncPolicyTransport(retries, httpx2.AsyncHTTPTransport(limits=limits))
    async with httpx2.AsyncClient(transport=transport, timeout=10.0) as client:
        for _ in range(2):
            assert (await client.get(server.url)).status_code == 200


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_a_stream_passes_its_policy_until_the_headers_are_there(library, server):
    module = import_module(f"reliakit.integrations.{library.__name__}")
    breaker = CircuitBreaker(failure_threshold=2, failure=(library.TransportError, FailedResponse))
    policy = Retry(2, on=(library.TransportError, FailedResponse), wait=0) | breaker
    server.script = [503, 200, "cut", "cut", 503, 503]
    async with library.AsyncClient(transport=module.AsyncPolicyTransport(policy)) as client:

        async def read():
            async with client.stream("GET", server.url) as answer:
                return answer.status_code, await answer.aread()

        assert await read() == (200, b"answer 2")  # tried again
        for _ in range(2):
            with pytest.raises(library.RemoteProtocolError):  # neither counted nor tried again
                await read()
        assert breaker.snapshot().failures == 0
        assert await read() == (503, b"answer 6")  # the last one, as the answer it is
        with pytest.raises(CircuitOpenError):
            await read()
    assert len(server.seen) == 6


async def test_a_policy_sees_a_failing_answer_as_an_error_with_the_response(server):
    seen = []

    def on(error):
        seen.append(error)
        return True

    server.script = [503]
    with SYNC["httpx2"].sync(lambda _: Policy(Retry(2, on=on, wait=0.0))) as send:
        assert send("GET", server.url)[0] == 200
    assert isinstance(seen[0], FailedResponse)
    assert (seen[0].status, seen[0].response.status_code) == (503, 503)


def test_hosts_are_forgotten_in_the_order_of_use():
    hosts = HostPolicies(CircuitBreaker, max_hosts=2)

    def chosen(host):
        return hosts.choose(host, "GET", is_marked=False, is_replayable=True)

    first, second = chosen("a"), chosen("b")
    assert chosen("a") is first
    chosen("c")
    assert chosen("a") is first
    assert chosen("b") is not second


@pytest.mark.parametrize(
    "settings", [{"policy": 3}, {"policy": retries, "max_hosts": 0}, {"policy": retries, "failed": 3}]
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ConfigurationError):
        HostPolicies(**settings)


def test_retries_alone_leave_nothing_for_what_may_not_be_sent_twice():
    hosts = HostPolicies(Retry(3))
    assert hosts.choose("a", "POST", is_marked=False, is_replayable=True) is None
    assert hosts.choose("a", "GET", is_marked=False, is_replayable=True) is not None


@pytest.mark.parametrize("library", ["httpx", "httpx2", "aiohttp"])
async def test_a_hedged_call_takes_the_first_answer_and_lets_go_of_the_other(server, library):
    server.script = ["hang"]
    async with ASYNC[library].awaited(lambda _: Policy(Hedge(0.05))) as send:
        assert (await send("GET", server.url))[0] == 200
        assert len(server.seen) == 2
        assert (await send("POST", server.url))[0] == 200
    assert [seen[0] for seen in server.seen] == ["GET", "GET", "POST"]
