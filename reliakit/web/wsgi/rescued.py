"""The wrappers that may answer instead of a WSGI app until its first byte is out: errors, budgets, large bodies."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from reliakit.core.deadline import Budget, current, deadline
from reliakit.core.errors import DeadlineExceededError
from reliakit.web import observer as observing
from reliakit.web.wsgi.messages import ExcInfo, Lines, Write, answer, begin_response, close_iterable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

    from reliakit.web.body import BodyLimit, BodyTooLargeError
    from reliakit.web.observer import Exchange
    from reliakit.web.problem import ProblemResponse, ProblemResponses
    from reliakit.web.timeout import RequestTimeout

__all__ = ["Answered", "Bounded", "Timed", "rescuing"]

T = TypeVar("T")


class Rescued:
    """Runs an app whose errors can still be answered until the first byte is out. One for each request."""

    def __init__(self, app: WSGIApplication, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.started: bool = False
        self._begun = False
        self._start_response = start_response
        self._iterable: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None
        self._app = app
        self._environ = environ

    def rescue(self, error: Exception) -> ProblemResponse | None:
        """Return the response to send instead of this error, or None to let it pass."""
        raise NotImplementedError

    def check(self) -> Exception | None:
        """Return an error that the app has not reported: it went on as if nothing had happened."""
        return None

    def first_byte(self) -> None:
        """The response has started."""
        self.started = True

    def run(self) -> Iterable[bytes]:
        """Call the app and return its body."""
        try:
            self._iterable = self._app(self._environ, self._start)
            self._check()
        except Exception as error:  # noqa: BLE001 - answered, or raised again
            return self._instead(error)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._chunks is None:
                self._chunks = iter(self._iterable)
            chunk = self._next(self._chunks)
        except StopIteration:
            raise
        except Exception as error:  # noqa: BLE001 - answered, or raised again
            self._chunks = iter(self._instead(error))
            return next(self._chunks)
        if chunk and not self.started:
            self.first_byte()
        return chunk

    def close(self) -> None:
        """Close the app's iterable."""
        iterable, self._iterable = self._iterable, ()
        close_iterable(iterable)

    def _start(self, status: str, lines: Lines, exc_info: ExcInfo = None, /) -> Write:
        self._begun = True
        write = begin_response(self._start_response, status, lines, exc_info)

        def written(data: bytes) -> object:
            if data and not self.started:
                self.first_byte()
            return write(data)

        return written

    def _next(self, chunks: Iterator[bytes]) -> bytes:
        try:
            chunk = next(chunks)
        except StopIteration:
            self._check()
            raise
        self._check()
        return chunk

    def _check(self) -> None:
        error = None if self.started else self.check()
        if error is not None:
            raise error

    def _instead(self, error: Exception) -> Iterable[bytes]:
        response = self.rescue(error)
        if response is None:
            raise error
        self.first_byte()
        self.close()
        # Given exc_info, the server replaces the status, or raises if it has sent it already.
        return answer(self._environ, self._start_response, response, sys.exc_info() if self._begun else None)


class Answered(Rescued):
    """One request under `ProblemResponses`."""

    def __init__(
        self, app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse, part: ProblemResponses
    ) -> None:
        super().__init__(app, environ, start)
        self._problems = part

    def rescue(self, error: Exception) -> ProblemResponse | None:
        """Answer the errors that this part handles."""
        exchange: Exchange | None = self._environ.get(observing.KEY)
        if exchange is not None and exchange.disconnected and observing.is_disconnect(error):
            return None  # nobody is left to be answered; the server knows such errors
        if self.started:
            self._problems.seen(error, (exchange and exchange.status) or 500)
            return None
        response = self._problems.answer(error)
        _fail(self._environ, error, response)
        return response


class Timed(Rescued):
    """One request under a `RequestTimeout`."""

    def __init__(
        self, app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse, part: RequestTimeout
    ) -> None:
        super().__init__(app, environ, start)
        self._limit = part
        self._deadline: deadline | None = None
        self._budget: Budget | None = None

    def run(self) -> Iterable[bytes]:
        """Call the app, unless it must not run."""
        budget = self._limit.budget(self._environ)
        if budget is None:
            return self._app(self._environ, self._start_response)
        if budget <= 0:
            error = self._limit.expired(budget)
            response = self._limit.answer(error)
            _fail(self._environ, error, response)
            return answer(self._environ, self._start_response, response)
        outer = current.get()
        self._deadline = deadline(budget, clock=self._limit.clock)
        self._deadline.__enter__()
        self._budget = current.get()
        try:
            return super().run()
        except BaseException:
            self._lift()
            raise
        finally:
            current.set(outer)

    def __next__(self) -> bytes:
        return self._within(super().__next__)

    def rescue(self, error: Exception) -> ProblemResponse | None:
        """Answer the errors that this part handles."""
        if self.started or not isinstance(error, DeadlineExceededError):
            return None
        response = self._limit.answer(error)
        _fail(self._environ, error, response)
        return response

    def first_byte(self) -> None:
        """The response has started: the budget is over."""
        super().first_byte()
        self._lift()

    def close(self) -> None:
        """Close the app's iterable and end the budget."""
        try:
            self._within(super().close)
        finally:
            self._lift()

    def _within(self, step: Callable[[], T]) -> T:
        """Run a step under the budget, and leave nothing behind in the thread: not every server calls close()."""
        if self._deadline is None:
            return step()
        outer = current.get()
        current.set(self._budget)
        try:
            return step()
        finally:
            current.set(outer)

    def _lift(self) -> None:
        """End the deadline that the app's own waits see: it only covered the time to the first byte."""
        budget, self._deadline = self._deadline, None
        if budget is not None:
            budget.__exit__(None, None, None)


class Bounded(Rescued):
    """One request under a `BodyLimit`."""

    def __init__(self, app: WSGIApplication, environ: WSGIEnvironment, start: StartResponse, part: BodyLimit) -> None:
        super().__init__(app, environ, start)
        self._limit = part
        self._input: _Counted | None = None

    def run(self) -> Iterable[bytes]:
        """Call the app, unless it must not run."""
        environ, limit = self._environ, self._limit
        if limit.refuses(environ):
            return answer(environ, self._start_response, limit.answer())
        if environ.get("CONTENT_LENGTH", "0") == "0" and not (
            environ.get("wsgi.input_terminated") or "HTTP_TRANSFER_ENCODING" in environ
        ):
            return self._app(environ, self._start_response)
        self._input = environ["wsgi.input"] = _Counted(environ["wsgi.input"], limit)
        return super().run()

    def check(self) -> Exception | None:
        """Return the error of a body that was too large."""
        return None if self._input is None else self._input.refused

    def rescue(self, error: Exception) -> ProblemResponse | None:  # noqa: ARG002 - whatever the app made of it
        """Answer the errors that this part handles."""
        if self.started or self._input is None or self._input.refused is None:
            return None
        return self._limit.answer()


class _Counted:
    """A request's body that raises once more of it is read than is allowed."""

    def __init__(self, stream: InputStream, limit: BodyLimit) -> None:
        self._stream = stream
        self._limit = limit
        self._left = limit.max_body
        self.refused: BodyTooLargeError | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes."""
        return self._count(self._stream.read(self._bounded(size)))

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read one line."""
        return self._count(self._stream.readline(self._bounded(size)))

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """Read all lines."""
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _bounded(self, size: int | None) -> int:
        # Reading one byte more than is allowed shows that a body is too large, however much the app asks for.
        most = self._left + 1
        return most if size is None or size < 0 else min(size, most)

    def _count(self, data: bytes) -> bytes:
        if self.refused is None and len(data) > self._left:
            self.refused = self._limit.error()
        if self.refused is not None:
            raise self.refused
        self._left -= len(data)
        return data


def rescuing(kind: type[Any]) -> Callable[[WSGIApplication, Any], WSGIApplication]:
    """Return a wrapper that makes one of these for each request."""

    def shell(app: WSGIApplication, part: Any) -> WSGIApplication:
        def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            body: Iterable[bytes] = kind(app, environ, start_response, part).run()
            return body

        return serve

    return shell


def _fail(environ: WSGIEnvironment, error: Exception, response: ProblemResponse) -> None:
    exchange: Exchange | None = environ.get(observing.KEY)
    if exchange is not None:
        exchange.fail(error, response.status)
