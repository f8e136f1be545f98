"""Real frameworks behind the stack: routes, errors, contexts, streams."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from flask import Flask, Response, request, stream_with_context
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request  # noqa: TC002 - Starlette looks at annotations
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
from web_driver import call, wcall
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from reliakit import Problem, RateLimitedError, ValidationError, current_request, remaining
from reliakit.core.events import ErrorSeen, RequestEnded
from reliakit.metrics import Metrics
from reliakit.ratelimit import RateLimiter
from reliakit.testing import RecordingListener
from reliakit.web import BodyLimit, SecurityHeaders, problem, wsgi
from reliakit.web.asgi import protect

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard():
    return RecordingListener()


async def who(request: Request):
    return PlainTextResponse(f"{request.state.request_id} {current_request().request_id}")


async def boom(request: Request):
    raise ValueError("secret")


def starlette() -> Starlette:
    async def bare(scope, receive, send):
        await PlainTextResponse("bare")(scope, receive, send)

    async def stream(request: Request):
        async def chunks():
            yield f"{remaining()}"
            yield current_request().request_id

        return StreamingResponse(chunks(), background=BackgroundTask(lambda: None))

    return Starlette(
        routes=[
            Route("/", who),
            Route("/users/{id:int}", who),
            Route("/boom", boom),
            Route("/stream", stream),
            Mount("/app", routes=[Route("/y/{z}", who), Mount("/deep", routes=[Route("/x", who)])]),
            Mount("/tenants/{tenant}", routes=[Route("/x/{y}", who)]),
            Mount("/v{version}", app=Router([Route("/x", who)])),
            Mount("/bare", app=bare),
        ]
    )


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "/"),
        ("/users/7", "/users/{id:int}"),
        ("/users/seven", "unmatched"),
        ("/app/y/1", "/app/y/{z}"),
        ("/app/deep/x", "/app/deep/x"),
        ("/app/nothing", "unmatched"),
        ("/tenants/acme/x/1", "/tenants/{tenant}/x/{y}"),
        ("/v2/x", "/{...}/x"),
        ("/bare/anything/at/all", "/bare"),
        ("/nothing", "unmatched"),
    ],
)
async def test_starlettes_route_is_told_as_its_template(path, route, heard):
    await call(protect(starlette(), service="s", listeners=[heard]), path)
    assert heard.of(RequestEnded)[0].route == route


async def test_a_root_path_of_the_server_is_no_part_of_the_route(heard):
    await call(protect(starlette(), service="s", listeners=[heard]), "/api/app/y/1", root_path="/api")
    assert heard.of(RequestEnded)[0].route == "/app/y/{z}"


async def test_a_wrong_method_still_has_a_route(heard):
    await call(protect(starlette(), service="s", listeners=[heard]), "/users/7", method="DELETE")
    assert (heard.of(RequestEnded)[0].route, heard.of(RequestEnded)[0].status) == ("/users/{id:int}", 405)


async def test_starlette_sees_the_request_id_in_its_state():
    answer = await call(protect(starlette(), service="s"), headers={"X-Request-ID": "r1"})
    assert answer.body == b"r1 r1"


async def test_starlettes_own_500_becomes_a_problem(heard, caplog):
    answer = await call(protect(starlette(), service="s", listeners=[heard]), "/boom")
    assert answer.raised is None
    assert answer.json["code"] == "internal_error"
    assert (heard.of(RequestEnded)[0].outcome, heard.of(RequestEnded)[0].route) == ("error", "/boom")
    assert [event.error_type for event in heard.of(ErrorSeen)] == ["ValueError"]


async def test_a_handler_of_the_apps_own_keeps_its_say(heard):
    app = starlette()
    app.add_exception_handler(Exception, lambda request, error: PlainTextResponse("ours", 500))
    answer = await call(protect(app, service="s", listeners=[heard]), "/boom")
    assert answer.body == b"ours"
    assert isinstance(answer.raised, ValueError)
    assert heard.of(RequestEnded)[0].outcome == "error"
    assert len(heard.of(ErrorSeen)) == 1


async def test_a_stream_has_no_deadline_and_keeps_its_context(heard):
    headers = {"X-Request-ID": "r1"}
    answer = await call(protect(starlette(), service="s", timeout=5, listeners=[heard]), "/stream", headers=headers)
    assert answer.body == b"Noner1"
    assert heard.of(RequestEnded)[0].outcome == "completed"


async def test_behind_basehttpmiddleware_everything_still_holds(heard):
    app = starlette()

    async def passing(request, call_next):
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    whole = protect(app, service="s", timeout=5, listeners=[heard])
    assert (await call(whole, "/boom")).json["code"] == "internal_error"
    assert (await call(whole, "/app/y/1", headers={"X-Request-ID": "r1"})).body == b"r1 r1"
    assert [event.route for event in heard.of(RequestEnded)] == ["/boom", "/app/y/{z}"]


async def test_parts_fit_add_middleware():
    app = starlette()
    app.add_middleware(SecurityHeaders.web().asgi)
    app.add_middleware(BodyLimit(4).asgi)
    assert (await call(app, "/bare/x")).headers["x-frame-options"] == "DENY"
    assert (await call(app, headers={"Content-Length": "5"})).status == 413


def fastapi() -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/v1")

    @router.get("/users/{user_id}")
    async def user(user_id: int):
        return {"id": user_id, "request": current_request().request_id}

    @router.get("/thread")
    def thread():
        return {"request": current_request().request_id, "limited": remaining() is not None}

    @router.get("/invalid")
    async def invalid():
        raise ValidationError("The body does not fit.", [Problem("/a/0", "type", "type", "must be text")])

    @router.get("/limited")
    async def limited():
        raise RateLimitedError(retry_after=1.01)

    @router.get("/missing")
    async def missing():
        raise HTTPException(404, "no such thing")

    @router.post("/echo")
    async def echo(body: dict[str, str], tasks: BackgroundTasks):
        tasks.add_task(lambda: None)
        return body

    app.include_router(router)
    return app


async def test_fastapi_tells_templates_and_its_own_answers_are_left_alone(heard):
    app = protect(fastapi(), service="s", timeout=5, listeners=[heard])
    assert (await call(app, "/v1/users/7", headers={"X-Request-ID": "r1"})).json == {"id": 7, "request": "r1"}
    assert (await call(app, "/v1/users/x")).json["detail"]
    assert (await call(app, "/v1/missing")).json == {"detail": "no such thing"}
    assert (await call(app, "/v1/thread", headers={"X-Request-ID": "r2"})).json == {"request": "r2", "limited": True}
    routes = [event.route for event in heard.of(RequestEnded)]
    assert routes == ["/v1/users/{user_id}", "/v1/users/{user_id}", "/v1/missing", "/v1/thread"]


async def test_reliakits_errors_in_fastapi_are_their_own_answers():
    app = protect(fastapi(), service="s")
    invalid = await call(app, "/v1/invalid")
    assert (invalid.status, invalid.json["errors"][0]["pointer"]) == (422, "#/a/0")
    limited = await call(app, "/v1/limited")
    assert (limited.status, limited.headers["retry-after"]) == (429, "2")


async def test_a_chunked_body_that_fastapi_reads_is_bounded(heard):
    app = protect(fastapi(), service="s", max_body=8, listeners=[heard])
    headers = {"Content-Type": "application/json"}
    body = [b'{"a":', b'"too long"', b"}"]
    answer = await call(app, "/v1/echo", method="POST", headers=headers, body=body)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    assert (heard.of(RequestEnded)[0].outcome, heard.of(RequestEnded)[0].status) == ("completed", 413)
    small = await call(app, "/v1/echo", method="POST", headers=headers, body=[b'{"a":', b'""}'])
    assert small.json == {"a": ""}


async def test_metrics_count_what_the_stack_emits():
    metrics = Metrics()
    app = protect(fastapi(), service="shop", metrics=metrics)
    try:
        await call(app, "/v1/users/7")
        await call(app, "/v1/limited")
    finally:
        metrics.close()
    text = metrics.render().body.decode()
    line = 'http_server_requests_total{method="GET",route="/v1/users/{user_id}",status="200"} 1'
    assert any(line in found for found in text.splitlines()), text
    assert 'error_total{type="RateLimitedError",service="shop",status="429"} 1' in text.replace(".0", "")


def flask(**config) -> Flask:
    app = Flask("shop")
    app.config.update(config)

    @app.get("/users/<int:user_id>")
    def user(user_id):
        return {"id": user_id, "request": current_request().request_id}

    @app.get("/boom")
    def boom():
        raise RateLimitedError(retry_after=1.2)

    @app.post("/echo")
    def echo():
        return request.get_json()

    @app.get("/stream")
    def stream():
        def chunks():
            yield request.path
            yield current_request().request_id

        return Response(stream_with_context(chunks()))

    return app


def test_flask_tells_its_rule_and_keeps_its_contexts(heard):
    app = wsgi.protect(flask().wsgi_app, service="s", timeout=5, listeners=[heard])
    answer = wcall(app, "/users/7", headers={"X-Request-ID": "r1"})
    assert answer.json == {"id": 7, "request": "r1"}
    assert wcall(app, "/stream", headers={"X-Request-ID": "r2"}).body == b"/streamr2"
    assert wcall(app, "/nothing").status == 404
    assert wcall(app, "/boom").status == 500
    assert [event.route for event in heard.of(RequestEnded)] == [
        "/users/<int:user_id>",
        "/stream",
        "unmatched",
        "/boom",
    ]
    assert {event.outcome for event in heard.of(RequestEnded)} == {"completed"}


def test_flasks_errors_are_answered_when_it_lets_them_out_or_is_told_how(heard):
    open_app = flask(PROPAGATE_EXCEPTIONS=True)
    answer = wcall(wsgi.protect(open_app.wsgi_app, service="s", listeners=[heard]), "/boom")
    assert (answer.status, answer.headers["retry-after"]) == (429, "2")
    assert heard.of(RequestEnded)[0].route == "/boom"
    app = flask()

    @app.errorhandler(RateLimitedError)
    def limited(error):
        found = problem(error)
        return found.json(), found.status, found.headers

    answer = wcall(wsgi.protect(app.wsgi_app, service="s"), "/boom", headers={"X-Request-ID": "r1"})
    assert (answer.status, answer.headers["retry-after"], answer.json["request_id"]) == (429, "2", "r1")


def test_flask_under_a_dispatcher_is_told_with_its_mount(heard):
    both = DispatcherMiddleware(flask().wsgi_app, {"/shop": flask().wsgi_app})
    wcall(wsgi.protect(both, service="s", listeners=[heard]), "/shop/users/7")
    assert heard.of(RequestEnded)[0].route == "/shop/users/<int:user_id>"


def test_a_chunked_body_that_flask_reads_is_bounded():
    app = wsgi.protect(flask().wsgi_app, service="s", max_body=8)
    more = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "", "CONTENT_TYPE": "application/json"}
    answer = wcall(app, "/echo", method="POST", body=b'{"a":"too long"}', checked=False, **more)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    assert wcall(app, "/echo", method="POST", body=b'{"a":1}', checked=False, **more).json == {"a": 1}


def test_flasks_own_client_needs_no_close(heard):
    app = flask(PROPAGATE_EXCEPTIONS=True)
    app.wsgi_app = wsgi.protect(app.wsgi_app, service="s", limiter=RateLimiter("2/h"), listeners=[heard])
    client = app.test_client()
    statuses = [client.get(path).status_code for path in ("/users/7", "/boom", "/users/7")]
    assert statuses == [200, 429, 429]
