"""What the web edge adds to one in-process ASGI request, beside middlewares that people use.

A Starlette app with 22 routes is asked for the last one. Every case is measured in small rounds, in random order, in
one process, by CPU time; the bare app runs a second time as the control, whose ratio to the first shows the noise.
Printed are medians, what a case adds to the bare app, and that beside what a do-nothing BaseHTTPMiddleware adds.

    python benchmarks/web.py [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Route

from reliakit.ratelimit import RateLimiter
from reliakit.web import Cors, RequestObserver, RequestTimeout, SecurityHeaders
from reliakit.web.asgi import protect

HEADERS = [
    (b"host", b"localhost"),
    (b"user-agent", b"benchmark"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip"),
    (b"connection", b"keep-alive"),
]


async def hello(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


class Hello:
    """An endpoint that costs nothing itself."""

    def __init__(self, scope, receive, send):
        self.all = scope, receive, send

    def __await__(self):
        return hello(*self.all).__await__()


def bare():
    return Starlette(routes=[Route(f"/route{n}/{{item}}", Hello) for n in range(22)])


class Nothing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


def cases():
    made = {
        "bare": bare(),
        "bare (control)": bare(),
        "observer, nobody listens": RequestObserver(service="bench").asgi(bare()),
        "observer, listener of nothing": RequestObserver(service="bench", listeners=[lambda _: None]).asgi(bare()),
        "security headers": SecurityHeaders.api().asgi(bare()),
        "observer + security headers": RequestObserver(service="bench").asgi(SecurityHeaders.api().asgi(bare())),
        "request timeout": RequestTimeout(5.0).asgi(bare()),
        "protect()": protect(bare(), service="bench"),
        "protect() with everything": protect(
            bare(),
            service="bench",
            timeout=5.0,
            cors=Cors(["https://a.example"]),
            limiter=RateLimiter("1000000000/s"),
        ),
        "BaseHTTPMiddleware that does nothing": Nothing(bare()),
    }
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_fastapi_instrumentator import Instrumentator
    except ImportError:
        pass
    else:
        instrumented = bare()
        Instrumentator(registry=CollectorRegistry()).instrument(instrumented)
        made["prometheus-fastapi-instrumentator"] = instrumented
    return made


async def measure(app, times):
    """Return microseconds for each request."""
    request = {"type": "http.request", "body": b"", "more_body": False}

    async def receive():
        return request

    async def send(message):
        pass

    start = time.process_time_ns()
    for _ in range(times):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": "/route21/x",
            "raw_path": b"/route21/x",
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "client": ("127.0.0.1", 4711),
            "server": ("127.0.0.1", 80),
            "headers": HEADERS,
        }
        await app(scope, receive, send)
    return (time.process_time_ns() - start) / times / 1000


async def main():
    options = argparse.ArgumentParser()
    options.add_argument("--quick", action="store_true")
    quick = options.parse_args().quick
    rounds, times = (15, 100) if quick else (61, 400)
    apps = cases()
    taken = {name: [] for name in apps}
    for app in apps.values():
        await measure(app, times)  # warm
    for _ in range(rounds):
        for name in random.sample(list(apps), len(apps)):
            taken[name].append(await measure(apps[name], times))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    base = medians["bare"]
    nothing = medians["BaseHTTPMiddleware that does nothing"] - base
    print(f"{rounds} rounds of {times} requests; microseconds a request")
    for name, median in medians.items():
        added = median - base
        print(f"{name:38} {median:8.2f}  {median / base:6.2f}x bare  {added:+8.2f}  {added / nothing:6.3f}x nothing")


if __name__ == "__main__":
    asyncio.run(main())
