from __future__ import annotations

import contextlib
import io
import threading

import pytest
from web_driver import environ, wcall

from reliakit import DeadlineExceededError, OverloadedError, RateLimitedError, checkpoint, current_request, remaining
from reliakit.core.events import ErrorSeen, RequestEnded, SecurityNoticed
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
)
from reliakit.web.wsgi import protect

TEXT = [("Content-Type", "text/plain")]


def ok(environ, start_response):
    start_response("200 OK", TEXT)
    return [b"hello"]


def raising(error):
    def app(environ, start_response):
        raise error

    return app


@pytest.fixture
def heard():
    return RecordingListener()


def ended(heard) -> RequestEnded:
    (event,) = [event for event in heard.events if isinstance(event, RequestEnded)]
    return event


def errors(heard):
    return [event for event in heard.events if isinstance(event, ErrorSeen)]


def test_a_request_is_observed_from_start_to_end(heard):
    answer = wcall(protect(ok, service="emp", listeners=[heard]), "/users/7", method="POST", body=b"x")
    assert answer.raised is None
    event = ended(heard)
    assert (event.service, event.method, event.route, event.status) == ("emp", "POST", "unmatched", 200)
    assert (event.outcome, event.response_bytes, event.client) == ("completed", 5, "203.0.113.9")
    assert event.request_id == answer.headers["x-request-id"]


def test_a_safe_inbound_request_id_is_kept_and_a_joined_one_replaced():
    app = protect(ok, service="s")
    assert wcall(app, headers={"X-Request-ID": "a1"}).headers["x-request-id"] == "a1"
    assert len(wcall(app, headers={"X-Request-ID": "a1,b2"}).headers["x-request-id"]) == 32


def test_the_context_holds_while_the_body_is_made_and_ends_with_the_request(heard):
    seen = []

    def app(environ, start_response):
        start_response("200 OK", TEXT)

        def body():
            seen.append(current_request().request_id)
            yield b"a"
            seen.append(current_request().request_id)
            yield b"b"

        return body()

    assert wcall(protect(app, service="s"), headers={"X-Request-ID": "r1"}).body == b"ab"
    assert seen == ["r1", "r1"]
    assert current_request() is None


@pytest.mark.parametrize("wrap", [lambda app: protect(app, service="s", timeout=5), RequestTimeout(5).wsgi])
def test_a_server_that_never_closes_leaves_nothing_behind(wrap):
    def lazily(environ, start_response):
        start_response("200 OK", TEXT)
        yield b""
        seen.append(remaining())
        yield b"a"

    seen = []
    for app in (ok, lazily):
        body = iter(wrap(app)(environ(), lambda *args: None))
        next(body)
        assert current_request() is None
        assert remaining() is None
    other = iter(wrap(lazily)(environ(), lambda *args: None))  # two at once on one thread
    for chunks in (other, body):
        while next(chunks, b"a") != b"a":
            pass
        assert remaining() is None
    assert len(seen) == 2
    assert all(0 < left <= 5 for left in seen)


def test_duration_ends_when_the_last_chunk_is_handed_over(heard, manual_clock):
    class Body:
        def __iter__(self):
            manual_clock.advance(1.0)
            yield b"a"
            manual_clock.advance(1.0)
            yield b"b"
            manual_clock.advance(10.0)

        def close(self):
            manual_clock.advance(20.0)

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return Body()

    wcall(protect(app, service="s", listeners=[heard], clock=manual_clock))
    assert ended(heard).duration == 2.0


def test_the_apps_iterable_is_closed_once_even_when_the_answer_is_replaced():
    closed = []

    class Body:
        def __iter__(self):
            raise ValueError

        def close(self):
            closed.append(True)

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return Body()

    assert wcall(protect(app, service="s", timeout=5)).status == 500
    assert closed == [True]


def test_an_error_before_the_first_byte_is_a_problem_seen_once(heard, caplog):
    def early(environ, start_response):
        raise ValueError("secret")

    def begun(environ, start_response):
        start_response("200 OK", TEXT)
        raise ValueError("secret")

    def lazy(environ, start_response):
        start_response("200 OK", TEXT)
        raise ValueError("secret")
        yield b""

    def empty(environ, start_response):
        start_response("200 OK", TEXT)
        yield b""
        raise ValueError("secret")

    for app in (early, begun, lazy, empty):
        heard.clear()
        caplog.clear()
        answer = wcall(protect(app, service="s", listeners=[heard]))
        assert answer.raised is None
        assert (answer.status, answer.headers["content-type"]) == (500, "application/problem+json")
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "secret" not in answer.body.decode()
        assert [error.status for error in errors(heard)] == ["500"]
        assert (ended(heard).outcome, ended(heard).error_type) == ("error", "ValueError")
        assert [record.name for record in caplog.records] == ["reliakit.web"]


def test_an_answer_to_head_has_no_body_that_a_kept_connection_would_take_for_the_next_answer():
    app = protect(raising(ValueError("x")), service="s", max_body=8, limiter=RateLimiter("1/h"))
    for request in ({}, {"headers": {"Content-Length": "9"}}, {}):
        answer = wcall(app, method="HEAD", **request)
        assert answer.status in {500, 413, 429}
        assert answer.body == b""
        assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("method", "headers"),
    [("HEAD", {}), ("OPTIONS", {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"})],
)
def test_an_answer_without_a_body_has_a_part_for_a_server_that_begins_it_with_the_first_one(method, headers):
    limiter = RateLimiter("1/h")
    limiter.hit("203.0.113.9")
    app = protect(ok, service="s", limiter=limiter, cors=Cors(["https://a.example"]))
    begun = []
    parts = app(environ(method=method, headers=headers), lambda status, *_: begun.append(status))
    assert list(parts) == [b""]
    assert begun[0][:3] == {"HEAD": "429", "OPTIONS": "204"}[method]
    parts.close()


def test_an_error_after_the_first_byte_is_raised_again(heard):
    boom = RuntimeError("boom")

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"a"
        raise boom

    answer = wcall(protect(app, service="s", listeners=[heard], timeout=5))
    assert answer.raised is boom
    assert (answer.status, answer.body) == (200, b"a")
    assert (ended(heard).outcome, ended(heard).status) == ("error", 200)
    assert [error.status for error in errors(heard)] == ["200"]


def test_an_error_after_write_is_raised_again():
    def app(environ, start_response):
        start_response("200 OK", TEXT)(b"written")
        raise RuntimeError

    answer = wcall(protect(app, service="s"))
    assert isinstance(answer.raised, RuntimeError)
    assert answer.body == b"written"


@pytest.mark.parametrize(("told", "counted"), [("5", 5), ("", 0), ("-1", 0), ("٣", 0), ("9" * 5000, 0)])
def test_what_the_client_announced_is_counted(heard, told, counted):
    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return [b""]

    environ = {"CONTENT_LENGTH": told}
    wcall(RequestObserver(service="s", listeners=[heard]).wsgi(app), method="POST", checked=False, **environ)
    assert ended(heard).request_bytes == counted


def test_what_write_sent_is_counted(heard):
    def app(environ, start_response):
        write = start_response("200 OK", TEXT)
        write(b"abc")
        return [b"de"]

    assert wcall(protect(app, service="s", listeners=[heard])).body == b"abcde"
    assert ended(heard).response_bytes == 5


def test_a_system_exit_is_not_answered(heard):
    with pytest.raises(SystemExit):
        wcall(protect(raising(SystemExit()), service="s", listeners=[heard]))
    assert ended(heard).outcome == "cancelled"
    assert not errors(heard)


def test_a_server_that_stops_early_has_lost_its_client(heard):
    def app(environ, start_response):
        start_response("200 OK", TEXT)
        yield b"a"
        yield b"b"

    wcall(protect(app, service="s", listeners=[heard]), read=1)
    assert (ended(heard).outcome, ended(heard).response_bytes) == ("client_disconnect", 1)


def test_a_server_that_stops_once_it_has_all_that_was_promised_has_not(heard):
    def app(environ, start_response):
        start_response("200 OK", [*TEXT, ("Content-Length", "1")])
        yield b"a"

    wcall(protect(app, service="s", listeners=[heard]), read=1)
    assert ended(heard).outcome == "completed"


def test_an_error_of_close_is_raised_and_seen(heard):
    class Body(list):
        def close(self):
            raise RuntimeError

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return Body([b"a"])

    answer = wcall(protect(app, service="s", listeners=[heard]))
    assert isinstance(answer.raised, RuntimeError)
    assert len(errors(heard)) == 1
    ended(heard)


# Timeouts


def test_the_budget_holds_to_the_first_byte_and_no_longer(manual_clock):
    seen = []

    def app(environ, start_response):
        seen.append(remaining())
        start_response("200 OK", TEXT)

        def body():
            seen.append(remaining())
            yield b""
            seen.append(remaining())
            yield b"a"
            seen.append(remaining())
            manual_clock.advance(50.0)
            checkpoint()
            yield b"b"

        return body()

    assert wcall(protect(app, service="s", timeout=2, clock=manual_clock)).body == b"ab"
    assert seen == [2.0, 2.0, 2.0, None]


def test_code_that_notices_the_spent_budget_gives_504(heard, manual_clock):
    def app(environ, start_response):
        manual_clock.advance(3.0)
        checkpoint()

    answer = wcall(protect(app, service="s", timeout=2, clock=manual_clock, listeners=[heard]))
    assert answer.status == 504
    assert (ended(heard).outcome, ended(heard).status) == ("timeout", 504)
    assert [error.status for error in errors(heard)] == ["504"]
    alone = RequestTimeout(2, clock=manual_clock).wsgi(app)
    assert wcall(alone).status == 504


def test_the_record_of_a_refusal_tells_its_category(caplog):
    for error in (DeadlineExceededError("late"), OverloadedError("full")):
        wcall(protect(raising(error), service="s"))
    told = [(record.levelname, record.exc_info, record.category) for record in caplog.records]
    assert told == [("WARNING", None, "timeout"), ("WARNING", None, "resource")]


def test_a_late_answer_is_kept(manual_clock):
    def app(environ, start_response):
        manual_clock.advance(3.0)
        return ok(environ, start_response)

    assert wcall(protect(app, service="s", timeout=2, clock=manual_clock)).status == 200


def test_an_apps_own_timeout_error_is_a_500():
    assert wcall(protect(raising(TimeoutError()), service="s", timeout=2)).status == 500
    assert wcall(protect(raising(DeadlineExceededError()), service="s")).status == 504


def test_the_callers_budget_only_shrinks_ours_and_only_if_it_is_trusted(manual_clock):
    seen = []

    def app(environ, start_response):
        seen.append(remaining())
        return ok(environ, start_response)

    whole = protect(app, service="s", timeout=2, trusted=["10.0.0.0/8"], clock=manual_clock)
    headers = {"X-Request-Deadline-Ms": "500"}
    wcall(whole, headers=headers)
    wcall(whole, headers=headers, client="10.0.0.1")
    wcall(whole, headers={"X-Request-Deadline-Ms": "9000"}, client="10.0.0.1")
    assert seen == [2.0, 0.5, 2.0]
    assert wcall(whole, headers={"X-Request-Deadline-Ms": "0"}, client="10.0.0.1").status == 504
    assert len(seen) == 3


# Bodies


def reader(how):
    def app(environ, start_response):
        data = how(environ["wsgi.input"])
        start_response("200 OK", TEXT)
        return [data if isinstance(data, bytes) else b"".join(data)]

    return app


READS = {
    "read": lambda stream: stream.read(),
    "read in pieces": lambda stream: list(iter(lambda: stream.read(3), b"")),
    "readline": lambda stream: list(iter(stream.readline, b"")),
    "readline with a size": lambda stream: list(iter(lambda: stream.readline(2), b"")),
    "readlines": lambda stream: stream.readlines(),
    "iteration": list,
}


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_at_the_limit_passes_and_one_byte_more_is_413(how, declared):
    app = BodyLimit(8).wsgi(reader(READS[how]))
    chunked = {} if declared else {"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}
    good = wcall(app, method="POST", body=b"abc\ndefg", checked=False, **chunked)
    assert (good.status, good.body) == (200, b"abc\ndefg")
    bad = wcall(app, method="POST", body=b"abc\ndefgh", checked=False, **chunked)
    assert (bad.status, bad.raised) == (413, None)
    assert bad.json["code"] == "body_too_large"


class Reset:
    """A body whose client resets the connection before it is whole."""

    def read(self, *size):
        raise ConnectionResetError(104, "Connection reset by peer")

    readline = readlines = read

    def __iter__(self):
        return self

    __next__ = read


@pytest.mark.parametrize("max_body", [None, 100])
@pytest.mark.parametrize("how", READS)
def test_a_client_that_is_gone_before_its_body_is_read_is_no_error_of_the_service(heard, caplog, how, max_body):
    def app(environ, start_response):
        READS[how](environ["wsgi.input"])
        return ok(environ, start_response)

    stack = protect(app, service="s", max_body=max_body, timeout=5.0, listeners=[heard])
    answer = wcall(stack, method="POST", checked=False, **{"CONTENT_LENGTH": "9", "wsgi.input": Reset()})
    assert isinstance(answer.raised, ConnectionResetError)  # which is for the server
    assert (ended(heard).outcome, ended(heard).status) == ("client_disconnect", None)
    assert (errors(heard), caplog.records) == ([], [])


def test_an_error_of_the_apps_own_sockets_is_an_error_whoever_was_read_before(heard):
    def app(environ, start_response):
        environ["wsgi.input"].read(9)
        raise ConnectionResetError(104, "of a database")

    assert wcall(protect(app, service="s", listeners=[heard]), method="POST", body=b"whole").status == 500
    assert (ended(heard).outcome, [seen.error_type for seen in errors(heard)]) == ("error", ["ConnectionResetError"])


def test_413_stands_whatever_the_app_makes_of_it():
    def swallowing(environ, start_response):
        with contextlib.suppress(Exception):
            environ["wsgi.input"].read()
        return ok(environ, start_response)

    def lazily(environ, start_response):
        start_response("200 OK", TEXT)
        environ["wsgi.input"].read()
        yield b"never"

    def silently(environ, start_response):
        start_response("200 OK", TEXT)
        with contextlib.suppress(Exception):
            environ["wsgi.input"].read()
        return
        yield b""

    for app in (swallowing, lazily, silently):
        chunked = {"CONTENT_LENGTH": "", "wsgi.input_terminated": True, "wsgi.input": io.BytesIO(b"x" * 99)}
        answer = wcall(protect(app, service="s", max_body=8), method="POST", **chunked)
        assert (answer.status, answer.raised) == (413, None)
        assert answer.headers["x-request-id"]


# Limits


def test_a_limit_tells_its_fields_and_refuses_beyond(heard):
    limiter = RateLimiter("1/min", name="search", clock=ManualClock())
    app = protect(ok, service="s", limiter=limiter, listeners=[heard])
    assert wcall(app).headers["ratelimit"].startswith('"search";r=0;t=')
    refused = wcall(app)
    assert (refused.status, refused.headers["retry-after"]) == (429, "60")
    assert refused.json["violated-policies"] == ["search"]
    (notice,) = [event for event in heard.events if isinstance(event, SecurityNoticed)]
    assert (notice.event, notice.source) == ("rate_limit", "203.0.113.9")


def test_a_refusal_that_the_app_raises_is_429():
    answer = wcall(protect(raising(RateLimitedError(retry_after=0.5)), service="s"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")


def test_each_part_stands_alone():
    parts = [
        RequestObserver(service="s"),
        RequestTimeout(1),
        SecurityHeaders.api(),
        Cors("*"),
        RateLimitHeaders(RateLimiter("1000/s")),
        BodyLimit(),
        ProblemResponses(),
    ]
    for part in parts:
        answer = wcall(part.wsgi(ok), body=b"x", method="POST")
        assert (answer.raised, answer.status, answer.body) == (None, 200, b"hello")


def test_concurrent_requests_keep_their_contexts_apart():
    barrier = threading.Barrier(8)

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        barrier.wait(timeout=30)
        yield current_request().request_id.encode()

    whole = protect(app, service="s", timeout=60)
    answers = {}

    def ask(name):
        answers[name] = wcall(whole, headers={"X-Request-ID": name}).body.decode()

    threads = [threading.Thread(target=ask, args=(f"r{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {f"r{n}": f"r{n}" for n in range(8)}
