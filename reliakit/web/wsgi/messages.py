"""What the WSGI shells share: how a response is begun, decorated and replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

    from reliakit.web.headers import Fields
    from reliakit.web.problem import ProblemResponse

__all__ = ["ExcInfo", "Lines", "Write", "answer", "begin_response", "close_iterable", "with_fields"]

Lines = list[tuple[str, str]]
ExcInfo: TypeAlias = "tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None"
Write = Callable[[bytes], object]


def begin_response(start_response: StartResponse, status: str, lines: Lines, exc_info: ExcInfo) -> Write:
    """Call a server's start_response, without exc_info if there is none: not every server accepts None."""
    if exc_info is None:
        return start_response(status, lines)
    return start_response(status, lines, exc_info)


def with_fields(lines: Lines, fields: Fields) -> Lines:
    """Return the header lines with these fields added, except those that the app has set."""
    present = {name.lower() for name, _ in lines}
    added = [(name.decode("ascii"), value.decode("latin-1")) for name, value in fields]
    return [*lines, *(line for line in added if line[0] not in present)]


def answer(
    environ: WSGIEnvironment, start_response: StartResponse, response: ProblemResponse, exc_info: ExcInfo = None
) -> Iterable[bytes]:
    """Begin this response and return its body; with exc_info it replaces one that was begun."""
    body = response.json() if response.body else b""
    lines = list(response.headers.items())
    if response.status != 204:
        lines.append(("Content-Length", str(len(body))))
    begin_response(start_response, f"{response.status} {HTTPStatus(response.status).phrase}", lines, exc_info)
    # Not every server drops the body of a response to HEAD; on a kept connection it would be read as the next one.
    # Not every server begins a response whose body has no part at all.
    return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else body]


def close_iterable(iterable: Iterable[bytes]) -> None:
    """Close what an app returned, if it can be closed."""
    close = getattr(iterable, "close", None)
    if close is not None:
        close()
