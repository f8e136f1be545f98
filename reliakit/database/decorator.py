"""Functions that are transactions: `@db.transactional()`, and `@transactional()` for methods of objects with `db`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache, partial, wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from reliakit.core import guard
from reliakit.core.errors import ConfigurationError
from reliakit.core.flow import run_blocking
from reliakit.database.settings import Isolation, Propagation, TransactionOptions, TransactionRetry

if TYPE_CHECKING:
    from reliakit.database.engine import Engine

__all__ = ["Decorator", "decorate", "operation_of", "options_from", "short_name", "transactional"]

F = TypeVar("F", bound=Callable[..., Any])


class Decorator(Protocol):
    """Takes a function and returns one with the same signature."""

    def __call__(self, fn: F, /) -> F:
        """Decorate a function."""
        ...


@overload
def transactional(fn: F, /) -> F: ...
@overload
def transactional(
    *,
    isolation: Isolation | None = None,
    read_only: bool = False,
    deferrable: bool = False,
    timeout: float | None = None,
    lock_timeout: float | None = None,
    propagation: Propagation = Propagation.REQUIRED,
    operation: str | None = None,
    pipeline: bool = False,
    retry: TransactionRetry | None = None,
) -> Decorator: ...
def transactional(
    fn: Any = None,
    /,
    *,
    isolation: Isolation | None = None,
    read_only: bool = False,
    deferrable: bool = False,
    timeout: float | None = None,
    lock_timeout: float | None = None,
    propagation: Propagation = Propagation.REQUIRED,
    operation: str | None = None,
    pipeline: bool = False,
    retry: TransactionRetry | None = None,
) -> Any:
    """Run a method in a transaction of its object's `db`, and retry it if the transaction lost a race.

    The whole method runs again on a retry, so anything it does outside the database must be safe to repeat; use
    `after_commit` for what is not. Called inside a running transaction, it joins that one and is not retried alone.

    Args:
        fn: The method, when the decorator is written without parentheses.
        isolation: The isolation level; the database's by default.
        read_only: Whether it only reads.
        deferrable: Whether a serializable read-only transaction may wait for a safe snapshot.
        timeout: Seconds for everything: connection, attempts, pauses, commit. The database's by default.
        lock_timeout: Seconds to wait for one lock.
        propagation: What to do inside a running transaction.
        operation: The transaction's name in events and metrics; the method's qualified name by default.
        pipeline: Whether BEGIN travels with the first statement, see `Database.transaction`.
        retry: The retry policy; the database's by default.

    Raises:
        ConfigurationError: At decoration, for a generator, a class or a wrong setting; at the call, if the object has
            no `db`, or an AsyncDatabase for a plain method or a Database for an async one.
    """
    decorator = _decorator(_db_of, options_from(locals()), retry)
    return decorator if fn is None else decorator(fn)


def decorate(engine: Engine, settings: dict[str, Any], retry: TransactionRetry | None) -> Decorator:
    """Return a decorator for functions that run on this database."""
    return _decorator(lambda _arguments: engine, options_from(settings), retry, asynchronous=engine.io.asynchronous)


def operation_of(fn: object) -> str:
    """Return a function's qualified name, without the functions that enclose it."""
    while isinstance(fn, partial):
        fn = cast("partial[object]", fn).func
    return short_name(str(getattr(fn, "__qualname__", type(fn).__qualname__)))


@lru_cache(maxsize=1024)
def short_name(qualified: str) -> str:
    """Return a qualified name without the enclosing functions."""
    return qualified.rpartition("<locals>.")[2]


def _decorator(
    engine_of: Callable[[tuple[Any, ...]], Engine],
    options: TransactionOptions,
    retry: TransactionRetry | None,
    *,
    asynchronous: bool | None = None,
) -> Decorator:
    if retry is not None and not isinstance(retry, TransactionRetry):
        raise ConfigurationError(f"retry must be a TransactionRetry, got {retry!r}")

    def decorate_one(fn: Any) -> Any:
        if isinstance(fn, staticmethod | classmethod):
            method = cast("staticmethod[..., Any] | classmethod[Any, ..., Any]", fn)
            return type(method)(decorate_one(method.__func__))
        colour = guard.colour_of(fn, by="transactional")
        if colour in ("generator", "async generator"):
            raise ConfigurationError(
                f"transactional takes functions, and {operation_of(fn)} is {colour}: its transaction would stay open "
                "until the next value is asked for; open a block inside it instead"
            )
        if asynchronous is not None and asynchronous != (colour == "async"):
            raise _wrong_colour(fn, colour)
        named = replace(options, operation=options.operation or operation_of(fn))
        return (_async if colour == "async" else _plain)(fn, engine_of, named, retry)

    return cast("Decorator", decorate_one)


def _plain(
    fn: Callable[..., Any],
    engine_of: Callable[[tuple[Any, ...]], Engine],
    options: TransactionOptions,
    retry: TransactionRetry | None,
) -> Callable[..., Any]:
    @wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        engine = engine_of(args)
        if engine.io.asynchronous:
            raise _wrong_colour(fn, "plain")
        bound = partial(fn, **kwargs) if kwargs else fn
        return run_blocking(engine.run(options, retry, bound, args, with_transaction=False)).unwrap()

    return run


def _async(
    fn: Callable[..., Awaitable[Any]],
    engine_of: Callable[[tuple[Any, ...]], Engine],
    options: TransactionOptions,
    retry: TransactionRetry | None,
) -> Callable[..., Any]:
    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        engine = engine_of(args)
        if not engine.io.asynchronous:
            raise _wrong_colour(fn, "async")
        bound = partial(fn, **kwargs) if kwargs else fn
        return (await engine.run(options, retry, bound, args, with_transaction=False)).unwrap()

    return run


def _db_of(arguments: tuple[Any, ...]) -> Engine:
    owner = arguments[0] if arguments else None
    engine = getattr(getattr(owner, "db", None), "_engine", None)
    if engine is None:
        raise ConfigurationError(
            f"a transactional method needs an object whose `db` is a Database or its twin, got {type(owner).__name__}"
            "; for plain functions use @db.transactional()"
        )
    return cast("Engine", engine)


def options_from(arguments: Mapping[str, Any]) -> TransactionOptions:
    """Return the transaction options among a function's arguments."""
    wishes = (each.name for each in fields(TransactionOptions) if each.init)
    return TransactionOptions(**{name: arguments[name] for name in wishes})


def _wrong_colour(fn: object, colour: str) -> ConfigurationError:
    takes = "async functions" if colour == "plain" else "plain functions"
    kind = "an AsyncDatabase" if colour == "plain" else "a Database"
    return ConfigurationError(
        f"{operation_of(fn)} is {colour}, and {kind} runs {takes} only: use its twin for this one"
    )
