"""What `Database` and `AsyncDatabase` share: settings, checked at construction, and everything that does not wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, iscoroutinefunction
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg import conninfo as conninfos

from reliakit.core import checks, guard
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.core.spine import Emitter, Listener
from reliakit.database.checkout import Checkouts
from reliakit.database.decorator import operation_of, short_name
from reliakit.database.engine import Engine
from reliakit.database.idempotency import Keys
from reliakit.database.replicas import Replica, Replicas
from reliakit.database.settings import DatabaseStats, Isolation, TransactionOptions, TransactionRetry
from reliakit.database.source import Source
from reliakit.database.telling import Teller

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.database.adapters import Io

__all__ = ["DEFAULT_RETRY", "DatabaseBase"]

_COLOURED = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR
DEFAULT_RETRY = TransactionRetry(max_attempts=10)


class DatabaseBase:
    """Settings and everything that does not wait."""

    def __init__(
        self,
        conninfo: Any,
        *,
        pool: Any,
        replicas: Any,
        io: Io,
        name: str,
        service: str | None,
        min_size: int,
        max_size: int,
        isolation: Isolation,
        timeout: float,
        lock_timeout: float | None,
        retry: TransactionRetry | None,
        row_factory: Any,
        max_lifetime: float,
        max_idle: float,
        leak_after: float,
        slow_after: float | None,
        listeners: Iterable[Listener],
        clock: Clock,
    ) -> None:
        conninfo, pool = _origin(conninfo, pool, asynchronous=io.asynchronous)
        _check_transactions(isolation, timeout, lock_timeout)
        retry = _checked_retry(retry)
        if service is not None:
            checks.named("service", service)
        if row_factory is not None and not callable(row_factory):
            raise ConfigurationError(f"row_factory must be one of psycopg's, such as dict_row, got {row_factory!r}")
        self._name = checks.named("name", name)
        self._where = _where(conninfo) if pool is None else repr(pool)
        origins = [(conninfo, pool), *_replica_origins(replicas, asynchronous=io.asynchronous)]
        if any(given is None for _, given in origins):
            _check_sizes(min_size, max_size)
        listeners = tuple(listeners) if isinstance(listeners, Iterable) else listeners

        def connect_to(place: str, conninfo: str, pool: Any) -> Checkouts:
            return Checkouts(
                Source(io, conninfo=conninfo, pool=pool, row_factory=row_factory),
                name=place,
                size=max_size if pool is None else pool.max_size or max_size,
                keep=min_size if pool is None else 0,
                max_lifetime=checks.seconds("max_lifetime", max_lifetime),
                max_idle=checks.seconds("max_idle", max_idle),
                leak_after=checks.seconds("leak_after", leak_after),
                clock=clock,
                emitter=Emitter(place, listeners, clock),
                service=service,
            )

        checkouts = connect_to(name, conninfo, pool)
        self._replicas = Replicas(
            [
                Replica(connect_to(f"{name}/replica-{number}", *origin), listeners, clock)
                for number, origin in enumerate(origins[1:], 1)
            ]
        )
        self._engine = Engine(
            name=name,
            isolation=isolation,
            timeout=float(timeout),
            lock_timeout=lock_timeout,
            retry=retry,
            io=io,
            checkouts=checkouts,
            replicas=self._replicas,
            teller=Teller(
                checkouts.emitter,
                service=service,
                slow_after=None if slow_after is None else checks.seconds("slow_after", slow_after),
                clock=clock,
                io=io,
            ),
            clock=clock,
        )
        self._keys = Keys(self._engine)
        self._flags = CO_COROUTINE if io.asynchronous else 0  # the code flags of functions that `run` takes

    @property
    def name(self) -> str:
        """The database's name in errors, events and metrics."""
        return self._name

    def stats(self) -> DatabaseStats:
        """Return how many connections are open, in use, waited for and leaked. From any thread; O(max_size)."""
        stats = self._engine.checkouts.stats()
        return replace(stats, replicas=self._replicas.stats()) if len(self._replicas) else stats

    def __repr__(self) -> str:
        engine = self._engine
        in_use, size = engine.checkouts.gate.in_use, engine.checkouts.size
        count = len(self._replicas)
        replicas = f"{count} replica{'s' if count > 1 else ''}, " if count else ""
        return (
            f"<{type(self).__name__} {self._name!r} at {self._where}, {in_use} of {size} in use, "
            f"{replicas}{engine.isolation.value}, timeout={engine.timeout:g}>"
        )

    async def _open(self) -> None:
        await self._engine.checkouts.open(self._engine.timeout)
        await self._replicas.open(self._engine.timeout)

    async def _close(self) -> None:
        try:
            await self._engine.checkouts.close()
        finally:
            await self._replicas.close()

    def _running(self) -> Any:
        running = self._engine.running()
        if running is None:
            raise TransactionUsageError(
                f"[{self._name}] no transaction runs here; open one with transaction(), run() or @transactional()",
                name=self._name,
            )
        running.session()  # raises if the caller may not use it any more
        return running

    def _operation_of(self, fn: Callable[..., Any]) -> str:
        """Return the default operation name of a call of `run`, and refuse what it cannot call before it begins."""
        # The code flags are looked at first: a tenth of the price, and paid by each run.
        if type(fn) is FunctionType and fn.__code__.co_flags & _COLOURED == self._flags:
            return short_name(fn.__qualname__)
        wanted = "async" if self._engine.io.asynchronous else "plain"
        colour, name = guard.colour_of(fn, by="run"), operation_of(fn)
        # A lambda that returns an awaitable is as good as an async function, but looks plain.
        if colour != wanted and not (colour == "plain" and name == "<lambda>"):
            raise ConfigurationError(f"{name} is {colour}, and {type(self).__name__}.run takes {wanted} functions")
        return name


def _check_transactions(isolation: Isolation, timeout: float, lock_timeout: float | None) -> None:
    # Whatever a transaction can also be given is checked in one place; there it may be None.
    TransactionOptions(isolation=isolation, timeout=timeout, lock_timeout=lock_timeout)
    checks.seconds("timeout", timeout)
    if isolation is None:
        raise ConfigurationError("isolation must be an Isolation, got None")


def _check_sizes(min_size: int, max_size: int) -> None:
    checks.count("min_size", min_size, least=0)
    checks.count("max_size", max_size)
    if min_size > max_size:
        raise ConfigurationError(f"min_size must not be above max_size, got {min_size} and {max_size}")


def _checked_retry(retry: TransactionRetry | None) -> TransactionRetry:
    if retry is None:
        return TransactionRetry(max_attempts=1)
    if not isinstance(retry, TransactionRetry):
        raise ConfigurationError(f"retry must be a TransactionRetry or None, got {retry!r}")
    return retry


def _origin(conninfo: Any, pool: Any, *, asynchronous: bool) -> tuple[str, Any]:
    """Tell a conninfo from a pool; refuse neither, both, or a pool of the other colour."""
    if pool is None and hasattr(conninfo, "getconn"):
        conninfo, pool = None, conninfo
    if (conninfo is None) == (pool is None):
        raise ConfigurationError("give either a conninfo or a pool=, such as Database('postgresql://localhost/app')")
    if pool is None:
        if not isinstance(conninfo, str):
            raise ConfigurationError(f"conninfo must be text or a pool, got {type(conninfo).__name__}")
        try:
            conninfos.conninfo_to_dict(conninfo)
        except psycopg.ProgrammingError:
            # Not chained: the driver's message may repeat the text, password included.
            raise ConfigurationError("conninfo is not a valid PostgreSQL connection string") from None
        return conninfo, None
    if not (hasattr(pool, "getconn") and hasattr(pool, "putconn")):
        raise ConfigurationError(f"pool must be a psycopg_pool.ConnectionPool or its async twin, got {pool!r}")
    if iscoroutinefunction(pool.getconn) is not asynchronous:
        wanted = "AsyncDatabase takes an AsyncConnectionPool" if asynchronous else "Database takes a ConnectionPool"
        raise ConfigurationError(f"{wanted}, got {type(pool).__name__}")
    return "", pool


def _replica_origins(replicas: object, *, asynchronous: bool) -> list[tuple[str, Any]]:
    if isinstance(replicas, str) or not isinstance(replicas, Iterable):
        raise ConfigurationError(
            f"replicas must be a list of conninfos or pools, got {type(replicas).__name__}: "
            "Database(primary, replicas=['postgresql://replica/app'])"
        )
    try:
        return [_origin(each, None, asynchronous=asynchronous) for each in cast("Iterable[object]", replicas)]
    except ConfigurationError as error:
        raise ConfigurationError(f"replicas: {error}") from None


def _where(conninfo: str) -> str:
    """Return the parts of a conninfo that may be shown."""
    known = conninfos.conninfo_to_dict(conninfo)
    return f"{known.get('host', 'the default host')}/{known.get('dbname', 'the default database')}"
