"""The stack behind real servers on loopback ports: uvicorn for ASGI, waitress and wsgiref for WSGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import httpx2
import pytest
import uvicorn
import waitress

from reliakit import current_request
from reliakit.core.events import ErrorSeen, RequestEnded
from reliakit.ratelimit import RateLimiter
from reliakit.testing import RecordingListener
from reliakit.web import Cors, asgi, wsgi

START = "http.response.start"
BODY = "http.response.body"


class Waiting(RecordingListener):
    """Lets a test wait for the events that a server's thread emits."""

    def __init__(self):
        super().__init__()
        self._more = threading.Condition()

    def __call__(self, event):
        super().__call__(event)
        with self._more:
            self._more.notify_all()

    def ended(self, count=1):
        with self._more:
            assert self._more.wait_for(lambda: len(self.of(RequestEnded)) >= count, timeout=20)
        return self.of(RequestEnded)[count - 1]


@pytest.fixture
def heard():
    return Waiting()


async def service(scope, receive, send):
    path = scope["path"]
    if path == "/boom":
        raise ValueError("secret")
    if path == "/slow":
        await asyncio.Event().wait()
    size = 0
    if scope["method"] == "POST":
        more = True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
    lines = [(b"content-type", b"text/plain")]
    await send({"type": START, "status": 200, "headers": lines})
    if path == "/torn":
        await send({"type": BODY, "body": b"half", "more_body": True})
        raise RuntimeError("torn")
    if path == "/endless":
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await send({"type": BODY, "body": f"{current_request().request_id} {size}".encode()})


@contextlib.contextmanager
def served_by_uvicorn(app, http="h11"):
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()  # a client may come before the server's loop does
    config = uvicorn.Config(
        app, http=http, lifespan="off", log_config=None, log_level="critical", proxy_headers=False
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def raw(port, text, *, until=b""):
    """Send bytes and return what comes back until the server closes or `until` is there."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(text)
        got = b""
        while not (until and until in got):
            chunk = connection.recv(65536)
            if not chunk:
                break
            got += chunk
        return got


@pytest.fixture
def port(heard):
    app = asgi.protect(
        service, service="s", timeout=60, max_body=64, cors=Cors(["https://a.example"]), listeners=[heard]
    )
    with served_by_uvicorn(app) as found:
        yield found


def test_a_request_over_http(port, heard):
    answer = httpx2.get(f"http://127.0.0.1:{port}/x", headers={"X-Request-ID": "r1"})
    assert (answer.status_code, answer.text, answer.headers["x-request-id"]) == (200, "r1 0", "r1")
    assert answer.headers.get_list("x-request-id") == ["r1"]
    event = heard.ended()
    assert (event.outcome, event.client, event.status) == ("completed", "127.0.0.1", 200)
    assert event.duration > 0


def test_an_error_over_http(port, heard):
    answer = httpx2.get(f"http://127.0.0.1:{port}/boom", headers={"Origin": "https://a.example"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert heard.ended().outcome == "error"


def test_a_request_that_takes_too_long_over_http(heard):
    with served_by_uvicorn(asgi.protect(service, service="s", timeout=0.05, listeners=[heard])) as port:
        answer = httpx2.get(f"http://127.0.0.1:{port}/slow")
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert heard.ended().outcome == "timeout"


def test_a_torn_body_does_not_look_whole_over_http(port, heard):
    with pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(f"http://127.0.0.1:{port}/torn")
    assert (heard.ended().outcome, heard.ended().error_type) == ("error", "RuntimeError")


def test_a_client_that_goes_away_over_http(port, heard):
    got = raw(port, b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n", until=b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200")
    assert heard.ended().outcome == "client_disconnect"
    assert not heard.of(ErrorSeen)


def test_a_chunked_body_that_is_too_large_over_http(port, heard):
    def body():
        for _ in range(10):
            yield b"x" * 20

    answer = httpx2.post(f"http://127.0.0.1:{port}/up", content=body())
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    answer = httpx2.post(f"http://127.0.0.1:{port}/up", content=b"x" * 65)
    assert answer.status_code == 413
    answer = httpx2.post(f"http://127.0.0.1:{port}/up", content=b"x" * 64)
    assert answer.text.endswith(" 64")


def test_unknown_methods_make_one_label_over_http(port, heard):
    for count, name in enumerate((b"BREW", b"X1", b"X2"), 1):
        raw(port, name + b" / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert heard.ended(count).method == "_OTHER"


def test_hostile_headers_leave_no_trace_over_http(port, heard):
    got = raw(
        port,
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-ID: a b\xff;\r\nOrigin: null\r\n"
        b"X-Forwarded-For: 1.1.1.1\r\ntraceparent: 00-zz\r\nX-Request-Deadline-Ms: 0\r\n\r\n",
    )
    assert got.startswith(b"HTTP/1.1 200")
    assert b"a b" not in got
    assert b"access-control-allow-origin" not in got.lower()
    assert heard.ended().client == "127.0.0.1"


def test_a_limit_over_http():
    app = asgi.protect(service, service="s", limiter=RateLimiter("2/h"))
    with served_by_uvicorn(app) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answers = [client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 1800
    assert answers[0].headers["ratelimit-policy"] == '"default";q=2;w=3600'


def wsgi_service(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/boom":
        raise ValueError("secret")
    size = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    body = f"{current_request().request_id} {size}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def protected(heard):
    return wsgi.protect(validator(wsgi_service), service="s", timeout=5, max_body=64, listeners=[heard])


@contextlib.contextmanager
def served_by_wsgiref(app):
    class Silent(WSGIRequestHandler):
        def log_message(self, *args):
            pass

    server = make_server("127.0.0.1", 0, validator(app), handler_class=Silent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def served_by_waitress(app):
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=2)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(server.close)
        thread.join()
        server.task_dispatcher.shutdown()


@pytest.mark.parametrize("serve", [served_by_wsgiref, served_by_waitress])
def test_wsgi_servers_get_whole_answers(serve, heard):
    with serve(protected(heard)) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answer = client.post("/x", content=b"abc", headers={"X-Request-ID": "r1"})
        assert (answer.status_code, answer.text) == (200, "r1 3")
        assert answer.headers.get_list("x-request-id") == ["r1"]
        failed = client.get("/boom")
        assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
        assert failed.json()["request_id"] == failed.headers["x-request-id"]
        assert client.post("/x", content=b"x" * 65).status_code == 413
        assert heard.ended(1).outcome == "completed"
        assert heard.ended(2).outcome == "error"
    assert json.loads(failed.content)["status"] == 500
