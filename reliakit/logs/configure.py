"""One call that makes everything this process logs masked JSON, and a handle that puts it back."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any, Self, TextIO

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.logs.formatter import MaskingFormatter
from reliakit.logs.handler import LineHandler
from reliakit.logs.listener import LogListener
from reliakit.logs.masker import Masker

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LoggingHandle", "configure_logging"]

_LEVELS_OF_ENV = {
    "production": logging.INFO,
    "prod": logging.INFO,
    "development": logging.DEBUG,
    "dev": logging.DEBUG,
    "local": logging.DEBUG,
    "test": logging.WARNING,
    "testing": logging.WARNING,
}


def configure_logging(
    *,
    service: str,
    env: str | None = None,
    level: int | str | None = None,
    stream: TextIO | None = None,
    masker: Masker | None = None,
    queue: bool = False,
) -> LoggingHandle:
    """Write everything that is logged in this process as masked JSON, one object a line.

    Loggers of `logging.getLogger` are covered as well as those of `get_logger`, and so are warnings and the events of
    reliakit's components. The handlers that the root logger had are set aside until the handle is closed. Calling it
    again replaces what the call before had set up.

    Args:
        service: The service's name.
        env: Where it runs: "production", "development", "test" or any other name. Default: the variable
            RELIAKIT_ENV, else "development".
        level: The least level to write, a number or a name in any letter case. Default: the variable LOG_LEVEL, else
            INFO in production, DEBUG in development, WARNING in test, and INFO in any other env.
        stream: A text stream; default standard error.
        masker: What masks; default `Masker()`.
        queue: Let a thread write to the stream. Values, context and masking are still taken at the call; when 10 000
            lines are waiting, further ones are dropped and counted.

    Returns:
        A handle; closing it, or leaving its `with` block, puts back what was there before.

    Raises:
        ConfigurationError: A setting or one of the two variables is wrong.
    """
    handle = LoggingHandle(
        checks.named("service", service),
        _env(env),
        level,
        _stream(stream),
        _masker(masker),
        queued=bool(queue),
    )
    handle.install()
    return handle


class LoggingHandle:
    """What `configure_logging` set up, until it is closed.

    Attributes:
        service: The service's name.
        env: Where it runs.
        level: The least level that is written.
        masker: What masks; `handle.masker.register_secret(...)` adds a value to hide.
    """

    def __init__(
        self, service: str, env: str, level: int | str | None, stream: TextIO | None, masker: Masker, *, queued: bool
    ) -> None:
        self.service = service
        self.env = env
        self.level: int = _level(level, env)
        self.masker = masker
        self._handler = LineHandler(
            MaskingFormatter(service=service, env=env, masker=masker), stream, service, queued=queued
        )
        self._handler.owner = self
        self._listener = LogListener()
        self._closed = True
        self._handlers_before: list[logging.Handler] = []
        self._level_before = logging.WARNING
        self._warn_before: Any = None

    @property
    def dropped(self) -> int:
        """How many records could not be written."""
        return self._handler.dropped

    def flush(self) -> None:
        """Wait until what was logged before is written, at most 5 s."""
        self._handler.flush()

    def install(self) -> None:
        """Take the place of what the root logger had. `configure_logging` does this."""
        root = logging.getLogger()
        for handler in list(root.handlers):
            if isinstance(handler, LineHandler) and handler.owner is not None:
                handler.owner.close()
        self._handlers_before = list(root.handlers)
        self._level_before = root.level
        self._warn_before = warnings.showwarning
        for handler in self._handlers_before:
            root.removeHandler(handler)
        root.addHandler(self._handler)
        root.setLevel(self.level)
        warnings.showwarning = _log_warning
        self._listener.open()
        self._closed = False

    def close(self) -> None:
        """Write what is waiting and put back what was there before. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._listener.close()
        root = logging.getLogger()
        root.removeHandler(self._handler)
        for handler in self._handlers_before:
            root.addHandler(handler)
        if root.level == self.level:
            root.setLevel(self._level_before)
        if warnings.showwarning is _log_warning:
            warnings.showwarning = self._warn_before
        self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        level = logging.getLevelName(self.level)
        return (
            f"<LoggingHandle {state}, service={self.service!r}, env={self.env!r}, level={level}, {self._handler!r}>"
        )


def _log_warning(  # noqa: PLR0917 - the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Take the place of `warnings.showwarning`: a warning's text may hold a secret too."""
    if file is not None:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
        return
    logging.getLogger("py.warnings").warning(
        "%s", message, extra={"category": category.__name__, "file": filename, "line": lineno}
    )


def _env(env: str | None) -> str:
    if env is not None:
        return checks.named("env", env)
    return os.environ.get("RELIAKIT_ENV") or "development"


def _level(level: int | str | None, env: str) -> int:
    if level is not None:
        return _level_number("level", level)
    given = os.environ.get("LOG_LEVEL", "").strip()
    if given:
        return _level_number("LOG_LEVEL", given)
    return _LEVELS_OF_ENV.get(env.lower(), logging.INFO)


def _level_number(argument: str, level: object) -> int:
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    if isinstance(level, str):
        name = level.strip().upper()
        number = logging.getLevelNamesMapping().get(name, int(name) if name.isdecimal() else None)
        if number is not None:
            return number
    raise ConfigurationError(f"{argument} must be DEBUG, INFO, WARNING, ERROR, CRITICAL or a number, got {level!r}")


def _stream(stream: TextIO | None) -> TextIO | None:
    if stream is not None and not callable(getattr(stream, "write", None)):
        raise ConfigurationError(f"stream must be a text stream with a write method, got {stream!r}")
    return stream


def _masker(masker: Masker | None) -> Masker:
    if masker is None:
        return Masker()
    if not isinstance(masker, Masker):
        raise ConfigurationError(f"masker must be a Masker, got {masker!r}: masking cannot be switched off")
    return masker
