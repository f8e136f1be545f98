"""What a call to another service carries along."""

from __future__ import annotations

from unittest.mock import AsyncMock
from wsgiref.util import setup_testing_defaults

import pytest

from reliakit import current_request, deadline, outgoing_headers, request_context
from reliakit.testing import ManualClock
from reliakit.web import asgi, wsgi

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def test_outside_of_a_request_nothing_is_carried():
    assert outgoing_headers() == {}


def test_id_trace_and_time_are_carried():
    clock = ManualClock()
    with request_context(request_id="a1", trace_id=TRACE, trace_headers=(PARENT, "k=v")), deadline(2.0, clock=clock):
        clock.advance(0.5)
        assert outgoing_headers(margin=0.1) == {
            "X-Request-ID": "a1",
            "traceparent": PARENT,
            "tracestate": "k=v",
            "X-Request-Deadline-Ms": "1400",
        }


@pytest.mark.parametrize("priority", ["critical", "sheddable"])
def test_a_priority_is_carried_that_is_not_the_default(priority):
    with request_context(priority=priority):
        assert outgoing_headers()["X-Request-Priority"] == priority
        with request_context(priority="default"):
            assert "X-Request-Priority" not in outgoing_headers()


OURS = ("10.0.0.0/8", "fd00::/8")


@pytest.mark.anyio
@pytest.mark.parametrize("make", ["asgi", "wsgi"])
@pytest.mark.parametrize(
    ("told", "peer", "forwarded", "believed"),
    [
        ("critical", "10.0.0.1", None, "critical"),  # a service of ours
        ("sheddable", "10.0.0.1", "10.7.0.1", "sheddable"),  # one of ours through a proxy of ours
        ("critical", "fd00::1", None, "critical"),
        ("critical", "203.0.113.9", None, "default"),  # a stranger
        ("critical", "10.0.0.1", "203.0.113.9", "default"),  # a stranger through a proxy of ours
        ("critical", "10.0.0.1", "10.7.0.1, 203.0.113.9", "default"),  # who says that he comes from within
        ("urgent", "10.0.0.1", None, "default"),
        ("critical, critical", "10.0.0.1", None, "default"),
    ],
)
async def test_a_priority_is_believed_where_every_hop_is_ours(make, told, peer, forwarded, believed):
    seen = []
    if make == "asgi":

        async def app(scope, receive, send):
            seen.append(current_request().priority)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        fields = [(b"x-request-priority", told.encode())]
        fields += [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
        scope = {"type": "http", "method": "GET", "path": "/", "headers": fields, "client": (peer, 1)}
        await asgi.protect(app, service="s", trusted=OURS)(scope, AsyncMock(), AsyncMock())
    else:

        def pages(environ, start):
            seen.append(current_request().priority)
            start("204 No Content", [])
            return []

        environ = {"REMOTE_ADDR": peer, "HTTP_X_REQUEST_PRIORITY": told}
        setup_testing_defaults(environ)
        if forwarded:
            environ["HTTP_X_FORWARDED_FOR"] = forwarded
        body = wsgi.protect(pages, service="s", trusted=OURS)(environ, lambda *_: None)
        list(body)
        body.close()
    assert seen == [believed]


def test_a_trace_set_by_hand_gets_a_parent_of_its_own():
    with request_context(request_id="a1", trace_id=TRACE):
        first, second = outgoing_headers()["traceparent"], outgoing_headers()["traceparent"]
    assert first != second
    assert first.startswith(f"00-{TRACE}-")
    assert first.endswith("-00")


def test_another_trace_id_within_wins_over_the_headers_around_it():
    with request_context(request_id="a1", trace_id=TRACE, trace_headers=(PARENT, "k=v")):
        with request_context(trace_id="f" * 32):
            headers = outgoing_headers()
    assert headers["traceparent"].startswith(f"00-{'f' * 32}-")
    assert "tracestate" not in headers


@pytest.mark.parametrize("request_id", ["a\r\nX-Evil: 1", "", "ü", "a" * 129, "a b"])
def test_what_no_header_may_hold_is_not_sent(request_id):
    with request_context(request_id=request_id, trace_id="no trace id"):
        headers = outgoing_headers()
    assert headers.get("X-Request-ID", "made") != request_id
    assert "traceparent" not in headers


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("lines", "carried"),
    [
        ([(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")], (PARENT, "a=1,b=2")),
        ([(b"traceparent", PARENT.encode()), (b"tracestate", b"a=\x01")], (PARENT, None)),
        ([(b"traceparent", b"nonsense"), (b"tracestate", b"a=1")], (None, None)),
    ],
)
async def test_what_came_in_over_http_is_handed_on(lines, carried):
    seen = {}

    async def app(scope, receive, send):
        seen.update(outgoing_headers())
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_):
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"x-request-id", b"r7"), *lines]}
    await asgi.protect(app, service="s")(scope, nothing, nothing)
    assert seen["X-Request-ID"] == "r7"
    assert (seen.get("traceparent"), seen.get("tracestate")) == carried
