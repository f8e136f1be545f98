"""Errors as responses: RFC 9457 problem documents that tell clients what to do and nothing about the inside.

```
ValidationError                            422  with the places that are wrong
RateLimitedError, LoginBlockedError        429  Retry-After     (503 if a stand-in for the store decided)
other rejections, StoreError, no instance  503  Retry-After if the error knows it
DeadlineExceededError                      504
CommitUnknownError                         500  never 503: a client that retries by itself could do the work twice
PostgreSQL by SQLSTATE: conflict           409  no row 404, constraint 422, a value it cannot take 422, timeout 504,
                                                dependency and resource 503
HTTPException of Starlette or Werkzeug          its own status, if it leaves a middleware, where nobody answers it
everything else                            500  an app's own TimeoutError, ValueError or KeyError is a bug in the app
```

The text of an error that leads to 5xx is never shown.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from reliakit.core import errors
from reliakit.core.categories import Category, classify, sqlstate_of
from reliakit.core.context import current_request
from reliakit.core.spine import Emitter, Listener
from reliakit.core.tracking import report
from reliakit.web.headers import is_value
from reliakit.web.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ProblemResponse", "ProblemResponses", "problem"]

MEDIA_TYPE = "application/problem+json"
_IANA = "https://iana.org/assignments/http-problem-types#"
_log = logging.getLogger("reliakit.web")

_LONGEST_WAIT = 2**31 - 1
_FRAMEWORKS = frozenset({"starlette", "werkzeug"})
_ERRORS = frozenset(status.value for status in HTTPStatus if status >= 400)


class _Answer(NamedTuple):
    """What the client is told for one kind of error."""

    status: int
    code: str
    detail: str
    kind: str = "about:blank"


_TITLES = {
    403: "Forbidden",
    404: "Not Found",
    409: "Conflict",
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_INTERNAL = _Answer(500, "internal_error", "Something went wrong on our side.")
_UNAVAILABLE = _Answer(503, "unavailable", "The service cannot answer right now; try again later.")
_OVERLOADED = _Answer(503, "overloaded", "The service is busy; try again later.")
_TIMEOUT = _Answer(504, "deadline_exceeded", "The request took too long and was stopped.")
_LIMITED = _Answer(429, "rate_limited", "Too many requests; try again later.", _IANA + "quota-exceeded")
_BLOCKED = _LIMITED._replace(code="login_blocked", detail="Too many failed logins; try again later.")
_STOPPED = _BLOCKED._replace(detail="Too many failed logins; the account must be unlocked first.")
_TOKENS = _LIMITED._replace(code="tokens_blocked", detail="Too many invalid tokens; try again later.")
_REDUCED = _Answer(503, "unavailable", _UNAVAILABLE.detail, _IANA + "temporary-reduced-capacity")
TOO_LARGE = _Answer(413, "body_too_large", "The body of the request is larger than this service accepts.")
ORIGIN_REFUSED = _Answer(403, "origin_not_allowed", "This origin may not call the service from a browser.")

# Nearest class first: the first match along the error's own method resolution order decides.
_ANSWERS: dict[type[BaseException], _Answer] = {
    errors.ValidationError: _Answer(422, "validation_failed", "The request does not fit what this service accepts."),
    errors.RateLimitedError: _LIMITED,
    errors.OverloadedError: _OVERLOADED,
    errors.BulkheadFullError: _OVERLOADED,
    errors.CircuitOpenError: _UNAVAILABLE._replace(code="circuit_open"),
    errors.RejectedError: _UNAVAILABLE,
    errors.CommitUnknownError: _INTERNAL._replace(
        code="outcome_unknown", detail="It is not known whether the change was made; look before you try again."
    ),
    errors.DeadlineExceededError: _TIMEOUT,
    errors.StoreError: _UNAVAILABLE,
    errors.NoInstanceError: _UNAVAILABLE,
}
_DATABASE: dict[Category, _Answer] = {
    "conflict": _Answer(409, "conflict", "The change collides with another one; read again and try again."),
    "not_found": _Answer(404, "not_found", "There is no such thing."),
    "validation": _Answer(422, "constraint_violated", "The change would break a rule of the data."),
    "data": _Answer(422, "value_rejected", "The request holds a value that cannot be stored or compared."),
    "timeout": _TIMEOUT,
    "dependency": _UNAVAILABLE,
    "resource": _OVERLOADED,
}


@dataclass(frozen=True, slots=True)
class ProblemResponse:
    """A response that any framework can send: `Response(p.json(), p.status, p.headers)`.

    Attributes:
        status: The HTTP status.
        headers: Content-Type, and Retry-After if there is something to wait for.
        body: type, title, status, detail, code; request_id inside a request; errors for a failed validation.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: dict[str, Any] = field(default_factory=dict[str, Any])

    def json(self) -> bytes:
        """Return the body, encoded."""
        return json.dumps(self.body, separators=(",", ":"), allow_nan=False).encode("ascii")


def problem(error: BaseException) -> ProblemResponse:
    """Return the response for an error: status, headers and an RFC 9457 body that reveals nothing internal.

    Args:
        error: Any exception. reliakit's, PostgreSQL's and the frameworks' are mapped as in the module's table, all
            others are 500.
    """
    answer = _answer(error)
    response = told(answer)
    if answer.status < 500 and _is_http(error):
        response.headers.update(_http_headers(error))
    if isinstance(error, errors.RejectedError):
        # Most rejections that know no time are over soon; a stopped account is not.
        unknown = None if isinstance(error, errors.LoginBlockedError) else 1.0
        seconds = retry_after(unknown if error.retry_after is None else error.retry_after)
        if seconds is not None:
            response.headers["Retry-After"] = str(seconds)
    if isinstance(error, errors.ValidationError):
        response.body["detail"] = str(error) or answer.detail
        response.body["errors"] = [_entry(one) for one in error.problems]
    return response


def told(answer: _Answer) -> ProblemResponse:
    """Return the response that tells the client this answer."""
    body: dict[str, Any] = {
        "type": answer.kind,
        "title": _title(answer.status),
        "status": answer.status,
        "detail": answer.detail,
        "code": answer.code,
    }
    request = current_request()
    if request is not None:
        body["request_id"] = request.request_id
    return ProblemResponse(answer.status, {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}, body)


def limited(*, degraded: bool, wait: float | None, policies: Iterable[str] = ()) -> ProblemResponse:
    """Return the response for a request over its limit; 503 if a stand-in for the limiter's store decided."""
    response = told(_REDUCED if degraded else _LIMITED)
    seconds = retry_after(wait)
    if seconds is not None:
        response.headers["Retry-After"] = str(seconds)
    names = list(policies)
    if names and not degraded:
        response.body["violated-policies"] = names
    return response


def retry_after(seconds: float | None) -> int | None:
    """Return whole seconds, rounded up so that no client comes back too early; None if there is no such number."""
    if seconds is None or not math.isfinite(seconds):
        return None
    return min(math.ceil(max(0.0, seconds)), _LONGEST_WAIT)


def _answer(error: BaseException) -> _Answer:
    if isinstance(error, errors.RateLimitedError) and getattr(error.decision, "degraded", False):
        return _REDUCED
    if isinstance(error, errors.LoginBlockedError):
        return _blocked(error)
    for cls in type(error).__mro__:
        answer = _ANSWERS.get(cls)
        if answer is not None:
            return answer
    if _is_http(error):
        return _http_answer(error)
    if isinstance(error, errors.ReliakitError) or not _is_from_database(error):
        return _INTERNAL
    return _DATABASE.get(classify(error).category, _INTERNAL)


def _blocked(error: errors.LoginBlockedError) -> _Answer:
    if error.reason == "invalid_token":
        return _TOKENS
    return _STOPPED if error.retry_after is None else _BLOCKED


def _title(status: int) -> str:
    # Python has other names for some of these, which differ between versions.
    return _TITLES.get(status) or HTTPStatus(status).phrase


def _is_http(error: BaseException) -> bool:
    """Return whether this is the HTTPException of Starlette, FastAPI or Werkzeug, neither of which is imported."""
    return any(
        cls.__name__ == "HTTPException" and cls.__module__.partition(".")[0] in _FRAMEWORKS
        for cls in type(error).__mro__
    )


def _http_answer(error: Any) -> _Answer:
    """Return the status that an HTTPException asks for, with its own text if that is meant for the client."""
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if not isinstance(status, int) or status not in _ERRORS:
        return _INTERNAL
    status = int(status)
    title = _title(status)
    code = _INTERNAL.code if status == 500 else re.sub(r"\W+", "_", title.lower())
    if status >= 500:
        return _INTERNAL._replace(status=status, code=code)
    detail = getattr(error, "detail", None) or getattr(error, "description", None)
    return _Answer(status, code, detail if isinstance(detail, str) else title)


def _http_headers(error: Any) -> dict[str, str]:
    """Return the headers that an HTTPException's status needs to make sense, as far as they can be sent."""
    given: Any = error.get_headers() if hasattr(error, "get_headers") else error.headers
    pairs: dict[Any, Any] = dict(given or ())
    headers = {str(name).lower(): str(value) for name, value in pairs.items()}
    wanted = ("Allow", "Retry-After", "WWW-Authenticate")
    return {name: headers[name.lower()] for name in wanted if is_value(headers.get(name.lower()))}


def _is_from_database(error: BaseException) -> bool:
    """Return whether psycopg, its pool or SQLAlchemy raised this; other libraries' errors stay 500."""
    if sqlstate_of(error) is not None:
        return True
    roots = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    return not roots.isdisjoint({"psycopg", "psycopg_pool", "sqlalchemy"})


def _entry(one: errors.Problem) -> Mapping[str, str]:
    # RFC 6901 section 6: a pointer in a URI fragment is percent-encoded.
    pointer = "#" + quote(one.pointer, safe="/~!$&'()*+,;=:@-._?", errors="replace")
    entry = {"pointer": pointer, "code": one.code, "detail": one.message}
    return entry if one.location == "body" else {**entry, "location": one.location}


class ProblemResponses(Part):
    """Answer an exception that leaves the app with its `problem`, as long as no byte has been sent.

    The exception ends here, and the server does not see it: it is emitted once as `ErrorSeen`, and one that leads to
    5xx is logged with its traceback by the logger "reliakit.web" (rejections and spent deadlines as a warning without
    one). If a byte was sent already, the exception is raised again, so that the server cuts the connection and a
    truncated body cannot look complete.

    Starlette and FastAPI answer an unhandled exception with a plain 500 before they raise it again; exactly that
    response is held back and replaced. A handler of your own for `Exception` stays in effect. Flask keeps exceptions
    to itself unless `app.config["PROPAGATE_EXCEPTIONS"] = True`.

    Args:
        service: The service's name, for `ErrorSeen`.
        listeners: Listeners of this component alone.
    """

    __slots__ = ("_emitter", "service")

    def __init__(self, *, service: str | None = None, listeners: Iterable[Listener] = ()) -> None:
        self.service: str | None = service
        self._emitter = Emitter(service or "web", listeners)

    def answer(self, error: Exception) -> ProblemResponse:
        """Return the response for an error that left the app, and report the error to listeners and the log."""
        response = problem(error)
        self.seen(error, response.status)
        if response.status >= 500:
            expected = isinstance(error, errors.RejectedError | errors.DeadlineExceededError)
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "request failed with %s, answered with %d",
                type(error).__name__,
                response.status,
                exc_info=None if expected else error,
                extra={"category": classify(error).category} if expected else None,
            )
        return response

    def seen(self, error: BaseException, status: int) -> None:
        """Report an error to listeners, unless it was reported before."""
        report(self._emitter, error, service=self.service, status=str(status))

    def __repr__(self) -> str:
        return f"ProblemResponses(service={self.service!r})"
