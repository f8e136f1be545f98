"""One call that makes everything this process logs masked JSON, and a handle that restores what was there before."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from reliakit.core import checks
from reliakit.core.clock import SYSTEM_CLOCK, Clock
from reliakit.core.errors import ConfigurationError
from reliakit.logs.console import ConsoleFormatter, is_terminal, wants_colour
from reliakit.logs.formatter import MaskingFormatter
from reliakit.logs.handler import LineHandler
from reliakit.logs.listener import LogListener
from reliakit.logs.masker import Masker, masker_or_default
from reliakit.logs.output import Output
from reliakit.logs.sparing import Sparing

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["LoggingHandle", "configure_logging"]

Form = Literal["auto", "json", "console"]

_QUEUE_SIZE = 10_000
_DEVELOPMENT = frozenset({"development", "dev", "local"})
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
    queue: bool | int = False,
    form: Form = "auto",
    levels: Mapping[str, int | str] | None = None,
    sample: float | Mapping[str, float] = 1.0,
    repeat_limit: int | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> LoggingHandle:
    """Write everything that is logged in this process as masked JSON, one object a line.

    Loggers of `logging.getLogger` are covered as well as those of `get_logger`, and so are warnings and the events of
    reliakit's components. The handlers that the root logger had are set aside until the handle is closed. Calling it
    again replaces what the previous call set up.

    Args:
        service: The service's name.
        env: Where it runs: "production", "development", "test" or any other name. Default: the variable
            RELIAKIT_ENV, else "development".
        level: The lowest level to write, a number or a name in any letter case. Default: the variable LOG_LEVEL, else
            INFO in production, DEBUG in development, WARNING in test, and INFO in any other env.
        stream: A text stream; standard error by default.
        masker: Masks the records; `Masker()` by default.
        queue: Whether a thread writes to the stream. Values, context and masking are still taken at the call; when
            10 000 lines are waiting, or as many as a number given here, further lines are dropped and counted.
        form: "json", or "console" for readable lines with the same masking, coloured unless NO_COLOR is set or the
            stream is not a terminal (FORCE_COLOR colours them all the same). "auto" is "console" on a terminal in
            development, and "json" everywhere else.
        levels: The lowest levels of single loggers and those below them: `{"sqlalchemy": "WARNING"}`.
        sample: The share of records below WARNING that is written, 0 to 1, or the share by logger, "" for all others.
            Of one request, all such records are written or none. Records of WARNING and above, and records with an
            exception, are always written.
        repeat_limit: How many records of one logger, level and template are written in 10 s; the others are counted
            and reported in one record when the 10 s are over. None for no limit. Errors, records with an exception
            and records of events are not limited.
        clock: Measures the 10 s, and draws the sample.

    Returns:
        A handle; closing it, or leaving its `with` block, restores what was there before.

    Raises:
        ConfigurationError: A setting or one of the two variables is wrong.
    """
    handle = LoggingHandle(
        checks.named("service", service),
        _env(env),
        level,
        masker_or_default(masker),
        Output(_stream(stream)),
        form=checks.choice("form", form, ("auto", "json", "console")),
        levels=_levels(levels),
        queue_size=_queue_size(queue),
        sparing=_sparing(repeat_limit, sample, checks.clock("clock", clock)),
    )
    handle.install()
    return handle


class LoggingHandle:
    """What `configure_logging` set up, until it is closed.

    Attributes:
        service: The service's name.
        env: Where it runs.
        level: The lowest level that is written.
        form: "json" or "console".
        masker: The masker; `handle.masker.register_secret(...)` adds a value to hide.
    """

    def __init__(
        self,
        service: str,
        env: str,
        level: int | str | None,
        masker: Masker,
        output: Output,
        *,
        form: Form,
        levels: dict[str, int],
        queue_size: int,
        sparing: Sparing | None,
    ) -> None:
        self.service = service
        self.env = env
        self.level: int = _level(level, env)
        self.masker = masker
        stream = output.stream()
        if form == "auto":
            form = "console" if env.lower() in _DEVELOPMENT and is_terminal(stream) else "json"
        self.form: Form = form
        formatter = (
            MaskingFormatter(service=service, env=env, masker=masker)
            if form == "json"
            else ConsoleFormatter(service=service, env=env, masker=masker, colour=wants_colour(stream))
        )
        self._sparing = sparing
        self._handler = LineHandler(formatter, output, service, queue_size=queue_size, sparing=sparing)
        self._handler.owner = self
        self._listener = LogListener()
        self._closed = True
        self._handlers_before: list[logging.Handler] = []
        self._level_before = logging.WARNING
        self._levels = levels
        self._levels_before: dict[str, int] = {}
        self._warn_before: Any = None

    @property
    def dropped(self) -> int:
        """How many records could not be written."""
        return self._handler.dropped

    @property
    def left_out(self) -> int:
        """How many records were left out because of `sample` and `repeat_limit`."""
        return 0 if self._sparing is None else self._sparing.left_out

    def flush(self) -> None:
        """Wait until what was logged before is written, at most 5 s."""
        self._handler.flush()

    def install(self) -> None:
        """Replace the root logger's handlers. `configure_logging` does this."""
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
        for name, level in self._levels.items():
            logger = logging.getLogger(name)
            self._levels_before[name] = logger.level
            logger.setLevel(level)
        warnings.showwarning = _log_warning
        self._listener.open()
        self._closed = False

    def close(self) -> None:
        """Write what is waiting and restore what was there before. Closing twice is harmless."""
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
        for name, level in self._levels_before.items():
            logger = logging.getLogger(name)
            if logger.level == self._levels[name]:
                logger.setLevel(level)
        if warnings.showwarning is _log_warning:
            warnings.showwarning = self._warn_before
        self._handler.close()
        self._handler.owner = None

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
            f"<LoggingHandle {state}, service={self.service!r}, env={self.env!r}, level={level}, form={self.form}, "
            f"levels={self._levels}, {self._handler!r}>"
        )


def _log_warning(  # noqa: PLR0917 - the signature of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Replace `warnings.showwarning`, because a warning's text may hold a secret too."""
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


def _levels(levels: Mapping[str, int | str] | None) -> dict[str, int]:
    if levels is None:
        return {}
    if not isinstance(levels, Mapping):
        raise ConfigurationError(
            f'levels must map names of loggers to levels, {{"sqlalchemy": "WARNING"}}, got {levels!r}'
        )
    for name in levels:
        if not isinstance(name, str) or name in {"", "root"}:
            raise ConfigurationError(f"levels must name loggers below the root, whose level is level=, got {name!r}")
    return {name: _level_number(f"levels[{name!r}]", level) for name, level in levels.items()}


def _queue_size(queue: bool | int) -> int:
    if isinstance(queue, bool):
        return _QUEUE_SIZE if queue else 0
    return checks.count("queue", queue)


def _sparing(repeat_limit: int | None, sample: float | Mapping[str, float], clock: Clock) -> Sparing | None:
    sparing = Sparing(repeat_limit, sample, clock)
    return None if sample == 1.0 and repeat_limit is None else sparing


def _stream(stream: TextIO | None) -> TextIO | None:
    if stream is not None and not callable(getattr(stream, "write", None)):
        raise ConfigurationError(f"stream must be a text stream with a write method, got {stream!r}")
    return stream
