"""What the ASGI shells share: the two messages of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.web.headers import Fields
    from reliakit.web.problem import ProblemResponse
    from reliakit.web.request import Message, Request, Send

__all__ = ["BODY", "START", "send_answer", "with_fields"]

START = "http.response.start"
BODY = "http.response.body"


def with_fields(message: Message, fields: Fields) -> Message:
    """Return a response start with these fields added, except those that the app has set."""
    headers = list(message.get("headers", ()))
    present = {name.lower() for name, _ in headers}
    headers += [field for field in fields if field[0] not in present]
    return {**message, "headers": headers}


async def send_answer(scope: Request, send: Send, response: ProblemResponse) -> None:
    """Send a whole response."""
    body = response.json() if response.body else b""
    headers = [(name.lower().encode("ascii"), value.encode("ascii")) for name, value in response.headers.items()]
    if response.status != 204:
        headers.append((b"content-length", str(len(body)).encode("ascii")))
    await send({"type": START, "status": response.status, "headers": headers})
    # Not every server drops the body of an answer to HEAD; over HTTP/2 the client then gives the connection up.
    await send({"type": BODY, "body": b"" if scope.get("method") == "HEAD" else body, "more_body": False})
