"""A limit on the size of a request body: by its Content-Length before it is read, else by counting what arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core import checks
from reliakit.web import request as view
from reliakit.web.part import Part
from reliakit.web.problem import TOO_LARGE, ProblemResponse, told

if TYPE_CHECKING:
    from reliakit.web.request import Request

__all__ = ["BodyLimit", "BodyTooLargeError"]


class BodyTooLargeError(Exception):
    """Raised in the app when it reads beyond the limit; the client has been answered with 413 by then."""


class BodyLimit(Part):
    """Answer 413 to a request whose body is larger than `max_body` bytes.

    A body whose declared length is too large is refused before the app runs. A body without a declared length is
    counted while the app reads it; once it is too large, the client gets 413, unless the response has already
    started, and reading raises. Nothing is buffered. Requests without a body cost nothing measurable.

    Args:
        max_body: The largest body that is accepted, in bytes; 0 accepts none.
    """

    __slots__ = ("max_body",)

    def __init__(self, max_body: int = 1_048_576) -> None:
        self.max_body: int = checks.count("max_body", max_body, least=0)

    def refuses(self, request: Request) -> bool:
        """Return whether the declared length is too large already."""
        for line in view.header_lines(request, "content-length"):
            digits = line.strip(" \t")
            # A number with more digits than any real length would take time to parse.
            if digits.isascii() and digits.isdigit() and (len(digits) > 20 or int(digits) > self.max_body):
                return True
        return False

    def answer(self) -> ProblemResponse:
        """Return the response for a body that is too large."""
        return told(TOO_LARGE)

    def error(self) -> BodyTooLargeError:
        """Return the error that reading raises."""
        return BodyTooLargeError(f"the body of the request is larger than {self.max_body} bytes")

    def __repr__(self) -> str:
        return f"BodyLimit({self.max_body})"
