"""The shells around every response of a WSGI app: the observer, the security headers, CORS and the limiter."""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from reliakit.core.context import request_context
from reliakit.web.cors import Cors, varied
from reliakit.web.wsgi.messages import ExcInfo, Lines, Write, answer, begin_response, close_iterable, with_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from wsgiref.types import InputStream, StartResponse, WSGIApplication, WSGIEnvironment

    from reliakit.web.headers import SecurityHeaders
    from reliakit.web.observer import Exchange, RequestObserver
    from reliakit.web.rate_limit import RateLimitHeaders

__all__ = ["Limited", "Observed", "Secured", "Shared"]


T = TypeVar("T")
FLASK_LEAVES = "werkzeug.debug.preserve_context"


class Observed:
    """An app under a `RequestObserver`."""

    __slots__ = ("_app", "_observer")

    def __init__(self, app: WSGIApplication, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        # A context of its own: what the app sets ends with the request, even if the server never calls close().
        context = copy_context()
        return context.run(self._serve, context, environ, start_response)

    def _serve(self, context: Context, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        observer = self._observer
        exchange = observer.begin(environ)
        exchange.received = _length(environ.get("CONTENT_LENGTH", "")) or 0
        if exchange.received or "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = _Heard(environ["wsgi.input"], exchange)

        def start(status: str, lines: Lines, exc_info: ExcInfo = None, /) -> Write:
            exchange.status = int(status[:3])
            observer.locate(exchange, environ)
            exchange.declared = _declared(lines)
            kept = [line for line in lines if line[0].lower() != "x-request-id"]
            write = begin_response(start_response, status, [*kept, ("X-Request-ID", exchange.request_id)], exc_info)

            def counted(data: bytes) -> object:
                observer.sent(exchange, len(data), last=False)
                return write(data)

            return counted

        def leaving(context: object) -> None:
            observer.locate(exchange, environ)
            if before is not None:
                before(context)

        # Flask calls this hook of the debugger's when it is done with a request, also when an error leaves it.
        before = environ.get(FLASK_LEAVES)
        environ[FLASK_LEAVES] = leaving
        request_context(
            request_id=exchange.request_id,
            trace_id=exchange.trace_id,
            priority=exchange.priority,
            trace_headers=exchange.trace_headers,
        ).__enter__()
        try:
            iterable = self._app(environ, start)
            return _Body(context, iterable, observer, exchange, environ)
        except BaseException as error:
            observer.end(exchange, environ, error)
            raise


class _Heard:
    """A request's body; an error of its socket means that the client is gone, and is nobody else's fault."""

    __slots__ = ("_exchange", "_stream")

    def __init__(self, stream: InputStream, exchange: Exchange) -> None:
        self._stream = stream
        self._exchange = exchange

    def read(self, *size: int) -> bytes:
        """Read up to so many bytes."""
        return self._heard(self._stream.read, *size)

    def readline(self, *size: int) -> bytes:
        """Read one line."""
        return self._heard(self._stream.readline, *size)

    def readlines(self, *hint: int) -> list[bytes]:
        """Read all lines."""
        return self._heard(self._stream.readlines, *hint)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _heard(self, read: Callable[..., T], *size: int) -> T:
        try:
            return read(*size)
        except OSError:
            self._exchange.disconnect()
            raise


class _Body:
    """The body on its way to the server, iterated in the request's own context."""

    def __init__(
        self,
        context: Context,
        iterable: Iterable[bytes],
        observer: RequestObserver,
        exchange: Exchange,
        environ: WSGIEnvironment,
    ) -> None:
        self._run = context.run
        self._iterable = iterable
        self._chunks: Iterator[bytes] | None = None
        self._observer = observer
        self._exchange = exchange
        self._environ = environ

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        exchange, observer = self._exchange, self._observer
        if exchange.ended:
            raise StopIteration
        # The server only asks for more after it has handed the previous chunk to the socket.
        handed = observer.now()
        try:
            if self._chunks is None:
                self._chunks = self._run(iter, self._iterable)
            chunk = self._run(next, self._chunks)
        except StopIteration:
            exchange.complete, exchange.finished = True, handed
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise
        observer.sent(exchange, len(chunk), last=False)
        return chunk

    def close(self) -> None:
        """Close the app's iterable and end the exchange: a server that stops before the end has lost its client."""
        exchange = self._exchange
        if exchange.declared is not None and exchange.bytes >= exchange.declared:
            exchange.complete = True  # a server may stop once it has everything that was promised
        exchange.disconnect()
        try:
            self._run(close_iterable, self._iterable)
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._run(self._observer.end, self._exchange, self._environ, error)


class Secured:
    """An app under `SecurityHeaders`."""

    __slots__ = ("_app", "_headers")

    def __init__(self, app: WSGIApplication, headers: SecurityHeaders) -> None:
        self._app = app
        self._headers = headers

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        fields = self._headers.chosen(environ)

        def start(status: str, lines: Lines, exc_info: ExcInfo = None, /) -> Write:
            return begin_response(start_response, status, with_fields(lines, fields), exc_info)

        return self._app(environ, start)


class Shared:
    """An app under `Cors`."""

    __slots__ = ("_app", "_cors")

    def __init__(self, app: WSGIApplication, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        cors = self._cors
        preflight = cors.is_preflight(environ)
        fields = cors.chosen(environ, preflight=preflight)

        def start(status: str, lines: Lines, exc_info: ExcInfo = None, /) -> Write:
            lines = with_fields(lines, fields)
            if cors.varies and varied(v.encode("latin-1") for n, v in lines if n.lower() == "vary") is not None:
                lines.append(("Vary", "Origin"))
            return begin_response(start_response, status, lines, exc_info)

        if preflight:
            return answer(environ, start, cors.preflight(environ))
        return self._app(environ, start)


class Limited:
    """An app under `RateLimitHeaders`."""

    __slots__ = ("_app", "_limit")

    def __init__(self, app: WSGIApplication, limit: RateLimitHeaders) -> None:
        self._app = app
        self._limit = limit

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        key = self._limit.key(environ)
        if key is None:
            return self._app(environ, start_response)
        decision = self._limit.limiter.hit(key)
        fields = self._limit.chosen(decision)

        def start(status: str, lines: Lines, exc_info: ExcInfo = None, /) -> Write:
            return begin_response(start_response, status, with_fields(lines, fields), exc_info)

        if decision.allowed:
            return self._app(environ, start)
        return answer(environ, start, self._limit.refused(decision, environ))


def _declared(lines: Lines) -> int | None:
    """Return the Content-Length that a response promises."""
    for name, value in lines:
        if name.lower() == "content-length":
            return _length(value)
    return None


def _length(text: str) -> int | None:
    """Return the number of bytes in a Content-Length, or None if it is not a number."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
