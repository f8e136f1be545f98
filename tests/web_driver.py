"""A server in the hands of a test: plays one exchange with an ASGI or a WSGI app and keeps what was sent."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import dataclass, field
from typing import Any
from wsgiref.validate import validator


@dataclass
class Answer:
    """What the app sent."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    raised: BaseException | None = None

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == "http.response.start"]

    @property
    def status(self) -> int | None:
        assert len(self.starts) <= 1, "a second response start"
        return self.starts[0]["status"] if self.starts else None

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [
            (name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in self.starts[0]["headers"]
        ]

    @property
    def headers(self) -> dict[str, str]:
        names = [name for name, _ in self.lines]
        doubled = {name for name in names if names.count(name) > 1} - {"set-cookie", "vary"}
        assert not doubled, f"sent twice: {doubled}"
        return dict(self.lines)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")

    @property
    def complete(self) -> bool:
        return any(m["type"] == "http.response.body" and not m.get("more_body") for m in self.messages)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def scope(
    path="/", *, method="GET", headers=None, scheme="http", client=("203.0.113.9", 4711), **more
) -> dict[str, Any]:
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": scheme,
        "server": ("testserver", 80),
        "client": client,
        "headers": [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs],
        **more,
    }


def exchange(request: dict[str, Any], body=(b"",), *, gone=None):
    """Return receive, send and the answer they fill; `gone` is set to make the client go away."""
    answer = Answer()
    chunks = list(body)

    async def receive() -> dict[str, Any]:
        if chunks:
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        answer.messages.append(dict(message))

    return receive, send, answer


async def call(app, path="/", *, body=(b"",), gone=None, **request) -> Answer:
    """Play one exchange with an ASGI app."""
    made = scope(path, **request)
    receive, send, answer = exchange(made, body, gone=gone)
    try:
        await app(made, receive, send)
    except Exception as error:
        answer.raised = error
    return answer


def environ(path="/", *, method="GET", headers=None, scheme="http", client="203.0.113.9", body=b"", **more):
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **({"CONTENT_LENGTH": str(len(body))} if body else {}),
        **more,
    }
    for name, value in (headers or {}).items():
        key = name.upper().replace("-", "_")
        made[key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"] = value
    return made


def wcall(app, path="/", *, checked=True, read=None, **request) -> Answer:
    """Play one exchange with a WSGI app, under wsgiref's validator unless `checked` is False.

    `read` stops after so many chunks, as a server does whose client is gone.
    """
    made = environ(path, **request)
    answer = Answer()

    def start_response(status, lines, exc_info=None):
        if exc_info is not None and answer.body:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info is not None or not answer.starts, "start_response twice without exc_info"
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]
        answer.messages[:] = [{"type": "http.response.start", "status": int(status[:3]), "headers": headers}]
        return lambda data: answer.messages.append({"type": "http.response.body", "body": data, "more_body": True})

    iterable = None
    try:
        iterable = (validator(app) if checked else app)(made, start_response)
        for count, chunk in enumerate(iterable, 1):
            answer.messages.append({"type": "http.response.body", "body": chunk, "more_body": True})
            if count == read:
                break
        else:
            answer.messages.append({"type": "http.response.body", "body": b"", "more_body": False})
    except Exception as error:
        answer.raised = error
    finally:
        if hasattr(iterable, "close"):
            try:
                iterable.close()
            except Exception as error:
                answer.raised = answer.raised or error
    return answer


async def turn(times: int = 1) -> None:
    """Let every other task of the loop take so many steps; no time passes."""
    for _ in range(times):
        await asyncio.sleep(0)  # noqa: TID251
