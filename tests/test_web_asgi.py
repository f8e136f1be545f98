from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_driver import Answer, call, exchange, scope, turn

from reliakit import (
    SYSTEM_CLOCK,
    ConfigurationError,
    DeadlineExceededError,
    RateLimitedError,
    ValidationError,
    current_request,
    deadline,
    remaining,
)
from reliakit.core.events import (
    DeadlineOverrun,
    ErrorSeen,
    RequestEnded,
    RequestStarted,
    SecurityNoticed,
    WebsocketClosed,
)
from reliakit.ratelimit import RateLimiter
from reliakit.testing import ManualClock, RecordingListener
from reliakit.web import (
    BodyLimit,
    Cors,
    ProblemResponses,
    RateLimitHeaders,
    RequestObserver,
    RequestTimeout,
    SecurityHeaders,
    client_ip,
)
from reliakit.web.asgi import protect
from reliakit.web.observer import request_id_of, trace_id_of

pytestmark = pytest.mark.anyio

START = "http.response.start"
BODY = "http.response.body"


async def ok(scope, receive, send):
    await send({"type": START, "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": BODY, "body": b"hello"})


def raising(error, *, after=()):
    async def app(scope, receive, send):
        for message in after:
            await send(message)
        raise error

    return app


@pytest.fixture
def heard():
    return RecordingListener()


def ended(heard) -> RequestEnded:
    (event,) = [event for event in heard.events if isinstance(event, RequestEnded)]
    return event


def errors(heard) -> list[ErrorSeen]:
    return [event for event in heard.events if isinstance(event, ErrorSeen)]


async def test_a_request_is_observed_from_start_to_end(heard):
    app = protect(ok, service="auth", listeners=[heard])
    answer = await call(app, "/users/7", method="POST", body=[b"x"])
    first, last = heard.events
    assert isinstance(first, RequestStarted)
    assert first.method == "POST"
    assert isinstance(last, RequestEnded)
    assert (last.service, last.method, last.route, last.status) == ("auth", "POST", "unmatched", 200)
    assert (last.outcome, last.response_bytes, last.error_type) == ("completed", 5, None)
    assert last.client == "203.0.113.9"
    assert last.request_id == answer.headers["x-request-id"]


async def test_an_unknown_method_is_other(heard):
    await call(protect(ok, service="s", listeners=[heard]), method="BREW")
    assert ended(heard).method == "_OTHER"


@pytest.mark.parametrize("given", ["a1", "A.b_c-9", "x" * 128])
async def test_a_safe_inbound_request_id_is_kept(given, heard):
    seen = {}

    async def app(scope, receive, send):
        seen.update(context=current_request(), state=scope["state"]["request_id"])
        await ok(scope, receive, send)

    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-ID": given, "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    answer = await call(protect(app, service="s", listeners=[heard]), headers=headers)
    assert answer.headers["x-request-id"] == given == seen["state"] == seen["context"].request_id
    assert ended(heard).request_id == given
    assert seen["context"].trace_id == trace
    assert current_request() is None


@given(st.text(max_size=140))
def test_an_unsafe_request_id_is_replaced(inbound):
    safe = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    found = request_id_of(inbound)
    assert (found == inbound) is (0 < len(inbound) <= 128 and set(inbound) <= safe)
    assert set(found) <= safe
    assert len(found) <= 128


async def test_two_request_ids_are_none():
    headers = [("X-Request-ID", "a"), ("X-Request-ID", "b")]
    assert (await call(protect(ok, service="s"), headers=headers)).headers["x-request-id"] not in ("a", "b")


async def test_an_app_that_sets_a_request_id_does_not_double_it():
    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": [(b"X-Request-Id", b"forged\x00")]})
        await send({"type": BODY, "body": b""})

    assert (await call(protect(app, service="s"), headers={"X-Request-ID": "a1"})).headers["x-request-id"] == "a1"


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x", False),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n", False),
        ("00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01", False),
        ("", False),
    ],
)
def test_a_traceparent_is_parsed_strictly(line, good):
    assert (trace_id_of(line) is not None) is good


async def test_an_error_before_the_headers_is_a_problem_seen_once(heard, caplog):
    app = protect(raising(ValueError("secret text")), service="s", listeners=[heard])
    answer = await call(app)
    assert answer.raised is None
    assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.body.decode()
    assert [(error.error_type, error.status, error.service) for error in errors(heard)] == [
        ("ValueError", "500", "s")
    ]
    assert (ended(heard).outcome, ended(heard).status, ended(heard).error_type) == ("error", 500, "ValueError")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("reliakit.web", logging.ERROR)
    assert record.exc_info[1].args == ("secret text",)


async def test_an_error_that_is_an_answer_is_completed_and_not_logged(heard, caplog):
    app = protect(raising(ValidationError("no")), service="s", listeners=[heard])
    answer = await call(app)
    assert answer.status == 422
    assert (ended(heard).outcome, ended(heard).error_type) == ("completed", "ValidationError")
    assert [error.status for error in errors(heard)] == ["422"]
    assert not caplog.records


async def test_an_error_after_the_headers_is_raised_again_and_cuts_the_body(heard):
    start = [{"type": START, "status": 200, "headers": []}, {"type": BODY, "body": b"a", "more_body": True}]
    boom = RuntimeError("boom")
    answer = await call(protect(raising(boom, after=start), service="s", listeners=[heard]))
    assert answer.raised is boom
    assert answer.status == 200
    assert not answer.complete
    assert (ended(heard).outcome, ended(heard).status, ended(heard).error_type) == ("error", 200, "RuntimeError")
    assert [error.status for error in errors(heard)] == ["200"]


async def test_a_whole_500_that_is_followed_by_the_error_is_an_error(heard):
    whole = [{"type": START, "status": 500, "headers": []}, {"type": BODY, "body": b"own page"}]
    answer = await call(protect(raising(RuntimeError(), after=whole), service="s", listeners=[heard]))
    assert answer.body == b"own page"
    assert (ended(heard).outcome, ended(heard).status) == ("error", 500)
    assert len(errors(heard)) == 1


async def test_the_plain_500_of_starlette_is_replaced_only_when_an_error_follows(heard):
    plain = [
        {"type": START, "status": 500, "headers": [(b"content-length", b"21")]},
        {"type": BODY, "body": b"Internal Server Error"},
    ]
    answer = await call(protect(raising(RateLimitedError(retry_after=1.2), after=plain), service="s"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")

    async def deliberate(scope, receive, send):
        for message in plain:
            await send(message)

    answer = await call(protect(deliberate, service="s", listeners=[heard]))
    assert (answer.status, answer.body) == (500, b"Internal Server Error")
    assert ended(heard).outcome == "completed"


async def test_a_500_that_only_looks_like_starlettes_is_passed_on_whole():
    page = [
        {"type": START, "status": 500, "headers": [(b"content-length", b"21")]},
        {"type": BODY, "body": b"Internal Server", "more_body": True},
        {"type": BODY, "body": b" Panic"},
    ]
    answer = await call(protect(raising(ValueError(), after=page), service="s"))
    assert (answer.body, answer.complete) == (b"Internal Server Panic", True)
    assert isinstance(answer.raised, ValueError)


async def test_an_app_that_never_answers_is_an_error(heard):
    async def silent(scope, receive, send):
        pass

    await call(protect(silent, service="s", listeners=[heard]))
    assert (ended(heard).outcome, ended(heard).status) == ("error", None)


async def test_duration_ends_with_the_last_byte_of_the_body(heard, manual_clock):
    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": []})
        manual_clock.advance(1.0)
        await send({"type": BODY, "body": b"ab", "more_body": True})
        manual_clock.advance(1.0)
        await send({"type": BODY, "body": b"c"})
        manual_clock.advance(30.0)

    await call(protect(app, service="s", listeners=[heard], clock=manual_clock))
    assert ended(heard).duration == 2.0
    assert ended(heard).response_bytes == 3


async def test_what_the_app_reads_is_counted(heard):
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await ok(scope, receive, send)

    await call(protect(app, service="s", listeners=[heard]), method="POST", body=(b"abc", b"", b"de"))
    assert ended(heard).request_bytes == 5


def socket_scope():
    return {**scope("/chat/7"), "type": "websocket", "route": SimpleNamespace(path="/chat/{room}", endpoint=None)}


async def test_a_websocket_tells_when_it_opens_what_passes_and_how_it_ends(heard, manual_clock):
    inbound = [
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "a"},
        {"type": "websocket.receive", "text": "b"},
        {"type": "websocket.disconnect", "code": 1001},
    ]

    async def receive():
        return inbound.pop(0)

    sent = []

    async def send(message):
        sent.append(message["type"])

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        manual_clock.advance(2.0)
        while (await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": "c"})

    observer = RequestObserver(service="s", listeners=[heard], clock=manual_clock)
    await observer.asgi(app)(socket_scope(), receive, send)
    assert sent == ["websocket.accept", "websocket.send", "websocket.send"]
    opened, *passed, closed = heard.events
    assert (opened.service, opened.route) == ("s", "/chat/{room}")
    assert [event.direction for event in passed] == ["in", "out", "in", "out"]
    assert (closed.route, closed.code, closed.duration) == ("/chat/{room}", 1001, 2.0)


@pytest.mark.parametrize(("error", "code"), [(None, 1000), (ValueError("x"), 1011)])
async def test_a_websocket_that_its_app_ends_is_closed_once(heard, error, code):
    async def send(message):
        pass

    async def app(scope, receive, send):
        await send({"type": "websocket.accept"})
        if error is not None:
            raise error
        await send({"type": "websocket.close"})

    serve = RequestObserver(service="s", listeners=[heard]).asgi(app)
    if error is None:
        await serve(socket_scope(), None, send)
    else:
        with pytest.raises(ValueError, match="x"):
            await serve(socket_scope(), None, send)
    (closed,) = [event for event in heard.events if isinstance(event, WebsocketClosed)]
    assert closed.code == code
    assert len([event for event in heard.events if isinstance(event, ErrorSeen)]) == (error is not None)


async def test_a_websocket_that_is_refused_never_opened(heard):
    async def send(message):
        pass

    async def app(scope, receive, send):
        await send({"type": "websocket.close", "code": 4403})

    await RequestObserver(service="s", listeners=[heard]).asgi(app)(socket_scope(), None, send)
    assert not heard.events


async def test_a_client_that_goes_away_is_no_error(heard):
    gone = asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": []})
        await send({"type": BODY, "body": b"a", "more_body": True})
        gone.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    await call(protect(app, service="s", listeners=[heard]), gone=gone)
    assert (ended(heard).outcome, ended(heard).status) == ("client_disconnect", 200)
    assert not errors(heard)


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_send_that_fails_at_any_message_is_a_disconnect(heard, at, caplog):
    made = scope()
    receive, send, _ = exchange(made)
    sends = 0

    async def failing(message):
        nonlocal sends
        sends += 1
        if sends > at:
            raise OSError("gone")
        await send(message)

    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": []})
        await send({"type": BODY, "body": b"a", "more_body": True})
        await send({"type": BODY, "body": b"b"})

    await protect(app, service="s", listeners=[heard])(made, receive, failing)
    assert ended(heard).outcome == "client_disconnect"
    assert not errors(heard)
    assert not caplog.records


async def test_a_disconnect_after_the_last_byte_is_completed(heard):
    gone = asyncio.Event()

    async def app(scope, receive, send):
        await ok(scope, receive, send)
        gone.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    await call(protect(app, service="s", listeners=[heard]), gone=gone)
    assert ended(heard).outcome == "completed"


async def yielding(scope, receive, send):
    """Awaits between all steps, so that it can be cancelled at each."""
    await turn()
    while (await receive()).get("more_body"):
        await turn()
    await send({"type": START, "status": 200, "headers": []})
    await turn()
    await send({"type": BODY, "body": b"a", "more_body": True})
    await turn()
    await send({"type": BODY, "body": b"b"})
    await turn()


class Everything:
    """A limiter that waits a moment and allows all."""

    name = "everything"

    def hit(self, key):
        raise AssertionError

    async def ahit(self, key):
        await turn()
        return await RateLimiter("1000/s").ahit(key)


@pytest.mark.parametrize("stop", range(14))
async def test_cancelled_at_any_await_it_leaves_as_cancelled_and_nothing_stays_behind(stop, heard):
    app = protect(yielding, service="s", limiter=Everything(), timeout=5, stream_timeout=5, listeners=[heard])
    made = scope()
    receive, send, answer = exchange(made, [b"a", b"b"])

    async def slow_send(message):
        await turn()
        await send(message)

    before = asyncio.all_tasks()
    task = asyncio.ensure_future(app(made, receive, slow_send))
    await turn(stop)
    finished = task.done()
    task.cancel()
    if finished:
        await task
    else:
        with pytest.raises(asyncio.CancelledError):
            await task
    if stop:  # a task that is cancelled before it begins has not seen a request
        complete = answer.complete and ended(heard).response_bytes == 2
        assert ended(heard).outcome == ("completed" if complete else "cancelled")
    assert not errors(heard)
    assert len(answer.starts) <= 1
    assert asyncio.all_tasks() == before
    assert current_request() is None
    assert remaining() is None


async def test_lifespan_and_websocket_pass_untouched():
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send))

    whole = protect(app, service="s", timeout=1, limiter=RateLimiter("1/h"), cors=Cors("*"))
    for kind in ("lifespan", "websocket"):
        given = ({"type": kind, "headers": []}, object(), object())
        await whole(*given)
        assert seen[-1] == given
        assert given[0] == {"type": kind, "headers": []}


async def test_concurrent_requests_keep_their_contexts_apart():
    barrier = asyncio.Event()
    arrived = []

    async def app(scope, receive, send):
        arrived.append(current_request().request_id)
        if len(arrived) == 20:
            barrier.set()
        await barrier.wait()
        body = current_request().request_id.encode()
        await send({"type": START, "status": 200, "headers": []})
        await send({"type": BODY, "body": body})

    whole = protect(app, service="s", timeout=5)
    answers = await asyncio.gather(*(call(whole, headers={"X-Request-ID": f"r{n}"}) for n in range(20)))
    assert [answer.body.decode() for answer in answers] == [f"r{n}" for n in range(20)]
    assert [answer.headers["x-request-id"] for answer in answers] == [f"r{n}" for n in range(20)]


async def test_metrics_attach_themselves():
    class Metrics:
        attached = 0

        def attach(self):
            self.attached += 1

    metrics = Metrics()
    protect(ok, service="s", metrics=metrics)
    assert metrics.attached == 1


# Every kind of answer carries the id, the security headers and the words about origins.

ORIGIN = {"Origin": "https://app.example.com"}
CORS = Cors([ORIGIN["Origin"]])


async def reads(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await ok(scope, receive, send)


JUMPING = ManualClock(auto_advance=True)


async def never(scope, receive, send):
    await JUMPING.asleep(9.0)
    await asyncio.Event().wait()


def tight():
    limiter = RateLimiter("1/h", clock=ManualClock())
    limiter.hit("203.0.113.9")
    return limiter


ANSWERS = {
    200: (ok, {}, {}),
    204: (ok, {}, {"method": "OPTIONS", "headers": {**ORIGIN, "Access-Control-Request-Method": "PUT"}}),
    413: (reads, {"max_body": 3}, {"body": [b"ab", b"cd"]}),
    422: (raising(ValidationError("no")), {}, {}),
    429: (ok, {"limiter": tight}, {}),
    500: (raising(KeyError("x")), {}, {}),
    504: (never, {"timeout": 1, "clock": lambda: JUMPING}, {}),
}


@pytest.mark.parametrize("status", ANSWERS)
async def test_every_answer_carries_the_id_the_headers_and_the_origin(status):
    app, settings, request = ANSWERS[status]
    settings = {name: value() if callable(value) else value for name, value in settings.items()}
    answer = await call(protect(app, service="s", cors=CORS, **settings), **{"headers": ORIGIN, **request})
    assert answer.status == status
    assert answer.complete
    assert answer.headers["x-request-id"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert answer.headers["vary"] == "Origin"
    if status >= 400:
        assert answer.json["status"] == status
        assert answer.json["request_id"] == answer.headers["x-request-id"]


# Timeouts


async def test_a_budget_that_is_spent_before_the_first_byte_is_504(heard, manual_clock):
    stopped = []

    async def app(scope, receive, send):
        stopped.append(remaining())
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.append("cancelled")
            raise

    task = asyncio.ensure_future(call(protect(app, service="s", timeout=2, clock=manual_clock, listeners=[heard])))
    await turn(20)
    manual_clock.advance(2.5)
    answer = await task
    assert answer.status == 504
    assert answer.json["code"] == "deadline_exceeded"
    assert stopped == [2.0, "cancelled"]
    assert (ended(heard).outcome, ended(heard).status) == ("timeout", 504)
    assert [(error.error_type, error.status) for error in errors(heard)] == [("DeadlineExceededError", "504")]


async def test_a_clock_that_jumps_over_sleeps_does_not_jump_to_a_timeout_that_only_watches():
    clock = ManualClock(auto_advance=True)

    async def app(scope, receive, send):
        await clock.asleep(1.0)
        for _ in range(20):
            await SYSTEM_CLOCK.asleep(0)
        await ok(scope, receive, send)

    answer = await call(protect(app, service="s", timeout=2, stream_timeout=2, clock=clock))
    assert answer.status == 200
    assert answer.complete


async def test_the_504_does_not_wait_for_an_app_that_ignores_its_cancellation(manual_clock):
    release = asyncio.Event()

    async def app(scope, receive, send):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        await ok(scope, receive, send)

    made = scope()
    receive, send, answer = exchange(made)
    task = asyncio.ensure_future(protect(app, service="s", timeout=2, clock=manual_clock)(made, receive, send))
    await turn(20)
    manual_clock.advance(2.5)
    await turn(20)
    assert answer.status == 504
    assert answer.complete
    assert not task.done()
    release.set()
    await task
    assert answer.status == 504
    assert answer.json["status"] == 504


async def test_once_the_response_has_started_the_budget_is_lifted(heard, manual_clock):
    seen = []

    async def app(scope, receive, send):
        with deadline(60.0, clock=manual_clock):
            seen.append(remaining())
        await send({"type": START, "status": 200, "headers": []})
        seen.append(remaining())
        manual_clock.advance(100.0)
        await turn(20)
        await send({"type": BODY, "body": b"late", "more_body": True})
        manual_clock.advance(100.0)
        await turn(20)
        await send({"type": BODY, "body": b"!"})
        manual_clock.advance(100.0)
        await turn(20)
        seen.append("work after the last chunk")

    answer = await call(protect(app, service="s", timeout=2, clock=manual_clock, listeners=[heard]))
    assert answer.raised is None
    assert answer.body == b"late!"
    assert seen == [2.0, None, "work after the last chunk"]
    assert ended(heard).outcome == "completed"


async def test_a_pause_within_a_stream_is_cut_and_the_client_of_a_slow_stream_is_not(heard, manual_clock):
    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": []})
        await send({"type": BODY, "body": b"a", "more_body": True})
        await asyncio.Event().wait()

    made = scope()
    receive, send, answer = exchange(made)

    async def slow(message):
        manual_clock.advance(9.0)
        await turn(20)
        await send(message)

    whole = RequestTimeout(stream_timeout=3, clock=manual_clock).asgi(app)
    whole = RequestObserver(service="s", listeners=[heard], clock=manual_clock).asgi(whole)
    task = asyncio.ensure_future(whole(made, receive, slow))
    await turn(80)
    assert answer.body == b"a"
    manual_clock.advance(3.5)
    with pytest.raises(DeadlineExceededError):
        await task
    assert len(answer.starts) == 1
    assert not answer.complete
    assert (ended(heard).outcome, ended(heard).status) == ("timeout", 200)


async def test_work_after_the_last_chunk_is_not_a_pause(manual_clock):
    done = []

    async def app(scope, receive, send):
        await ok(scope, receive, send)
        manual_clock.advance(50.0)
        await turn(20)
        done.append(True)

    answer = await call(protect(app, service="s", timeout=1, stream_timeout=1, clock=manual_clock))
    assert answer.raised is None
    assert done == [True]


async def test_an_apps_own_timeout_error_is_a_500(heard):
    answer = await call(protect(raising(TimeoutError("mine")), service="s", timeout=5, listeners=[heard]))
    assert answer.status == 500
    assert ended(heard).outcome == "error"


async def test_a_spent_deadline_that_the_app_raises_is_a_504(heard):
    answer = await call(protect(raising(DeadlineExceededError("mine")), service="s", timeout=5, listeners=[heard]))
    assert answer.status == 504
    assert ended(heard).outcome == "timeout"


async def test_what_an_app_makes_of_its_cancellation_does_not_change_the_504(heard, manual_clock):
    async def app(scope, receive, send):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("cleanup failed") from None

    task = asyncio.ensure_future(call(protect(app, service="s", timeout=1, clock=manual_clock, listeners=[heard])))
    await turn(20)
    manual_clock.advance(1.5)
    answer = await task
    assert (answer.status, answer.raised) == (504, None)
    assert {error.error_type for error in errors(heard)} == {"DeadlineExceededError", "KeyError"}


async def test_an_outer_cancellation_beside_the_timeout_stays_a_cancellation(manual_clock):
    made = scope()
    receive, send, _ = exchange(made)
    app = protect(never, service="s", timeout=1, clock=manual_clock)
    task = asyncio.ensure_future(app(made, receive, send))
    await turn(20)
    task.cancel()
    manual_clock.advance(1.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_cancelled_while_the_504_is_on_its_way_it_leaves_as_cancelled(manual_clock):
    made = scope()
    receive, _, _ = exchange(made)
    sending = asyncio.Event()

    async def stuck(message):
        sending.set()
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    app = protect(never, service="s", timeout=1, clock=manual_clock)
    task = asyncio.ensure_future(app(made, receive, stuck))
    await turn(20)
    manual_clock.advance(1.5)
    await sending.wait()
    await turn(20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turn()
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("sent", "client", "budget"),
    [
        ("500", "10.0.0.1", 0.5),
        ("60000", "10.0.0.1", 2.0),
        ("500", "203.0.113.9", 2.0),
        ("-5", "10.0.0.1", 2.0),
        ("0.5", "10.0.0.1", 2.0),
        ("99999999999", "10.0.0.1", 2.0),
        (" 5", "10.0.0.1", 2.0),
        ("٥", "10.0.0.1", 2.0),
        (None, "10.0.0.1", 2.0),
    ],
)
async def test_the_callers_budget_only_shrinks_ours_and_only_if_it_is_trusted(sent, client, budget, manual_clock):
    seen = []

    async def app(scope, receive, send):
        seen.append(remaining())
        await ok(scope, receive, send)

    whole = protect(app, service="s", timeout=2, trusted=["10.0.0.0/8"], clock=manual_clock)
    made = scope(client=(client, 1))
    if sent is not None:
        made["headers"] = [(b"x-request-deadline-ms", sent.encode())]
    receive, send, _ = exchange(made)
    await whole(made, receive, send)
    assert seen == [budget]


@pytest.mark.parametrize("clock", [SYSTEM_CLOCK, ManualClock()], ids=["real", "manual"])
async def test_a_budget_of_nothing_is_504_without_the_app(clock, heard):
    whole = protect(raising(AssertionError), service="s", trusted=["10.0.0.0/8"], listeners=[heard], clock=clock)
    answer = await call(whole, client=("10.0.0.1", 1), headers={"X-Request-Deadline-Ms": "0"})
    assert answer.status == 504
    assert ended(heard).outcome == "timeout"


async def test_a_late_answer_of_code_that_nothing_could_stop_is_kept_and_told(manual_clock):
    async def app(scope, receive, send):
        manual_clock._now += 5.0  # blocks the loop: no timer runs
        await ok(scope, receive, send)

    from reliakit import subscribe

    heard = RecordingListener()
    with subscribe(heard, DeadlineOverrun):
        answer = await call(protect(app, service="s", timeout=2, clock=manual_clock))
    assert answer.status == 200
    assert [type(event) for event in heard.events] == [DeadlineOverrun]


def test_a_timeout_of_nothing_at_all_is_refused():
    for settings in ({}, {"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"stream_timeout": 0}):
        with pytest.raises(ConfigurationError, match="timeout"):
            RequestTimeout(**settings)


# Bodies


async def test_a_declared_length_beyond_the_limit_is_413_before_the_app():
    app = BodyLimit(10).asgi(raising(AssertionError))
    for length in ("11", "9" * 400):
        assert (await call(app, method="POST", headers={"Content-Length": length})).status == 413


async def test_a_body_at_the_limit_passes_and_one_byte_more_does_not():
    app = BodyLimit(4).asgi(reads)
    assert (await call(app, body=[b"ab", b"cd"])).status == 200
    assert (await call(app, body=[b"ab", b"cde"])).status == 413
    assert (await call(app, headers={"Content-Length": "4"}, body=[b"abcd"])).status == 200
    assert (await call(BodyLimit(0).asgi(reads), body=[b""])).status == 200


@pytest.mark.parametrize("reaction", ["answers", "raises", "goes on"])
async def test_413_stands_whatever_the_app_makes_of_it(reaction):
    async def app(scope, receive, send):
        try:
            await receive()
        except Exception as error:
            if reaction == "raises":
                raise RuntimeError("parse error") from error
            if reaction == "goes on":
                with pytest.raises(Exception, match="larger"):
                    await receive()
        await ok(scope, receive, send)

    answer = await call(BodyLimit(1).asgi(app), body=[b"abc", b"def"])
    assert (answer.status, answer.raised) == (413, None)
    assert answer.json["code"] == "body_too_large"


async def test_a_body_that_turns_out_too_large_after_the_response_began_is_raised():
    async def app(scope, receive, send):
        await send({"type": START, "status": 200, "headers": []})
        await reads(scope, receive, send)

    answer = await call(BodyLimit(1).asgi(app), body=[b"abc"])
    assert answer.status == 200
    assert type(answer.raised).__name__ == "BodyTooLargeError"
    assert not answer.complete


# Limits


async def test_a_limit_tells_its_fields_and_refuses_beyond(heard):
    clock = ManualClock()
    limiter = RateLimiter("2/min", name="search", clock=clock)
    app = protect(ok, service="s", limiter=limiter, listeners=[heard])
    first = await call(app)
    assert first.headers["ratelimit-policy"] == '"search";q=2;w=60'
    assert first.headers["ratelimit"].startswith('"search";r=1;t=')
    await call(app)
    refused = await call(app)
    assert (refused.status, refused.headers["retry-after"]) == (429, "30")
    assert refused.headers["ratelimit"] == '"search";r=0;t=30'
    assert refused.json["type"].endswith("#quota-exceeded")
    assert refused.json["violated-policies"] == ["search"]
    assert refused.headers["cache-control"] == "no-store"
    (notice,) = [event for event in heard.events if isinstance(event, SecurityNoticed)]
    assert (notice.event, notice.source, notice.service) == ("rate_limit", "203.0.113.9", "s")
    clock.advance(29.5)
    assert (await call(app)).headers["retry-after"] == "1"
    clock.advance(0.5)
    assert (await call(app)).status == 200
    assert (await call(app, client=("198.51.100.1", 1))).status == 200


async def test_several_limits_are_all_told_and_of_the_one_that_binds_what_is_left():
    limiter = RateLimiter("2/s", "3/h", name="search", clock=ManualClock())
    app = protect(ok, service="s", limiter=limiter)
    answers = [await call(app) for _ in range(3)]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"search-1";q=2;w=1, "search-2";q=3;w=3600'}
    assert answers[0].headers["ratelimit"].startswith('"search-1";r=1')
    assert (answers[2].status, answers[2].json["violated-policies"]) == (429, ["search-1"])


@pytest.mark.parametrize(
    ("limits", "policy", "fields"),
    [
        (["2/s burst 8"], '"search";q=8;w=4', '"search";r=7;t=1'),
        (["60/min burst 2"], '"search";q=60;w=60', '"search";r=1;t=1'),
        (["2/s burst 8", "9/h"], '"search-1";q=8;w=4, "search-2";q=9;w=3600', '"search-1";r=7;t=4'),
    ],
)
async def test_what_is_left_is_within_the_quota_and_its_window(limits, policy, fields):
    limiter = RateLimiter(*limits, name="search", clock=ManualClock())
    headers = (await call(RateLimitHeaders(limiter).asgi(ok))).headers
    assert (headers["ratelimit-policy"], headers["ratelimit"]) == (policy, fields)
    legacy = (await call(RateLimitHeaders(limiter, fields="legacy").asgi(ok))).headers
    assert int(legacy["x-ratelimit-remaining"]) <= int(legacy["x-ratelimit-limit"])


async def test_a_policy_has_one_name_in_the_fields_and_in_the_problem():
    app = RateLimitHeaders(RateLimiter("1/h", name='s\u00fcche "x"', clock=ManualClock())).asgi(ok)
    await call(app)
    refused = await call(app)
    assert refused.headers["ratelimit"].startswith('"s_che \\"x\\"";r=0')
    assert refused.json["violated-policies"] == ['s_che "x"']


async def test_an_answer_to_head_has_no_body():
    async def boom(scope, receive, send):
        raise ValueError("x")

    async def slow(scope, receive, send):
        await asyncio.Event().wait()

    limited = protect(boom, service="s", max_body=8, limiter=RateLimiter("1/h"))
    timed = protect(slow, service="s", timeout=0.001)
    for app, headers in (
        (limited, {"Content-Length": "9"}),
        (limited, {}),
        (protect(boom, service="s"), {}),
        (timed, {}),
    ):
        answer = await call(app, method="HEAD", headers=headers)
        assert answer.status in {413, 429, 500, 504}
        assert answer.body == b""
        assert int(answer.headers["content-length"]) > 0


async def test_a_preflight_is_never_limited():
    app = protect(ok, service="s", limiter=tight(), cors=CORS)
    headers = {**ORIGIN, "Access-Control-Request-Method": "PUT"}
    assert (await call(app, method="OPTIONS", headers=headers)).status == 204
    assert (await call(app, headers=ORIGIN)).status == 429


async def test_legacy_fields_come_on_request_only():
    app = RateLimitHeaders(RateLimiter("2/min", clock=ManualClock()), fields="legacy").asgi(ok)
    headers = (await call(app)).headers
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("2", "1")
    assert "ratelimit" not in headers
    app = RateLimitHeaders(RateLimiter("2/min", clock=ManualClock()), fields="off").asgi(ok)
    assert not [name for name in (await call(app)).headers if "ratelimit" in name]


async def test_a_key_of_none_is_not_limited_and_the_default_key_honours_trusted():
    app = protect(ok, service="s", limiter=tight(), key=lambda scope: None)
    assert (await call(app)).status == 200
    app = protect(ok, service="s", limiter=tight(), trusted=["10.0.0.0/8"])
    headers = {"X-Forwarded-For": "203.0.113.9"}
    assert (await call(app, client=("10.0.0.1", 1), headers=headers)).status == 429
    app = protect(ok, service="s", limiter=tight(), trusted=["10.0.0.0/8"], key=client_ip(header="forwarded"))
    assert (await call(app, client=("10.0.0.1", 1), headers={"Forwarded": "for=203.0.113.9"})).status == 429


async def test_a_refusal_of_a_stand_in_is_503():
    class Closed:
        name = 'we"ird'

        def hit(self, key):
            raise AssertionError

        async def ahit(self, key):
            from types import SimpleNamespace

            return SimpleNamespace(
                allowed=False, limit=5, remaining=0, retry_after=0.2, reset_after=1.0, degraded=True
            )

    answer = await call(protect(ok, service="s", limiter=Closed()))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["type"].endswith("#temporary-reduced-capacity")
    assert answer.headers["ratelimit-policy"] == '"we\\"ird";q=5'


def test_a_key_that_cannot_be_asked_is_refused():
    async def key(scope):
        return "x"

    class Key:
        async def __call__(self, scope):
            return "x"

    for bad in (key, Key(), "ip", None):
        with pytest.raises(ConfigurationError, match="key"):
            RateLimitHeaders(RateLimiter("1/s"), key=bad)
        with pytest.raises(ConfigurationError, match="key"):
            protect(ok, service="s", key=bad)  # also while there is no limiter


async def test_each_part_stands_alone():
    parts = [
        RequestObserver(service="s"),
        RequestTimeout(1),
        SecurityHeaders.api(),
        CORS,
        RateLimitHeaders(RateLimiter("1000/s")),
        BodyLimit(),
        ProblemResponses(),
    ]
    for part in parts:
        answer = await call(part.asgi(reads), body=[b"x"])
        assert (answer.status, answer.body) == (200, b"hello")
        assert repr(part).startswith(type(part).__name__)


async def test_a_raising_listener_changes_no_answer(caplog):
    def broken(event):
        raise RuntimeError("listener")

    answer = await call(protect(ok, service="s", listeners=[broken]))
    assert isinstance(answer, Answer)
    assert answer.status == 200
