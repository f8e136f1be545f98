"""`with` and `async with`: the shells around a block of the caller's code."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.core.flow import run_blocking
from reliakit.database import straight
from reliakit.database.driver import Late
from reliakit.database.places import place_above
from reliakit.database.work import Attempt

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.database.engine import Engine, Entered
    from reliakit.database.settings import TransactionOptions
    from reliakit.database.transaction import AsyncTransaction, Transaction

__all__ = ["AsyncTransactionBlock", "TransactionBlock"]


class TransactionBlock:
    """A `with` block of a `Database`, made by `transaction()` for one use."""

    __slots__ = ("_attempt", "_engine", "_entered", "_options")

    def __init__(self, engine: Engine, options: TransactionOptions) -> None:
        self._engine = engine
        self._options = options
        self._attempt = Attempt()
        self._entered: Entered | None = None

    def __enter__(self) -> Transaction:
        if self._entered is not None:
            raise _reused()
        attempt = self._attempt
        attempt.place = place_above(2)
        try:
            entered = self._entered = run_blocking(straight.enter(self._engine, self._options, attempt))
            # The engine's colour decides the class. Inside the `try`, because a Ctrl-C may come here too.
            return entered.transaction  # type: ignore[return-value]  # noqa: TRY300 - as just said
        except BaseException:
            self._attempt.let_go()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            assert self._entered is not None
            left = run_blocking(straight.leave(self._engine, self._entered, error))
        except BaseException as interrupt:
            self._engine.interrupted(self._entered, self._attempt, interrupt)
            raise
        if left is not None and left is not error:
            raise left

    def __repr__(self) -> str:
        return _shown(self, self._engine, self._options, self._entered)


class AsyncTransactionBlock:
    """An `async with` block of an `AsyncDatabase`, made by `transaction()` for one use; cut off when time is up."""

    __slots__ = ("_attempt", "_engine", "_entered", "_options", "_timer")

    def __init__(self, engine: Engine, options: TransactionOptions) -> None:
        self._engine = engine
        self._options = options
        self._attempt = Attempt()
        self._entered: Entered | None = None
        self._timer: asyncio.Timeout | None = None

    async def __aenter__(self) -> AsyncTransaction:
        if self._entered is not None:
            raise _reused()
        self._attempt.place = place_above(2)
        try:
            entered = self._entered = await straight.enter(self._engine, self._options, self._attempt)
        except BaseException:
            self._attempt.let_go()
            raise
        # Armed for the caller's code only: our own steps are bounded by themselves and must not be cut in half.
        timer = self._timer = asyncio.timeout(entered.remaining())
        await timer.__aenter__()
        return entered.transaction  # type: ignore[return-value]  # as above

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        entered, timer = self._entered, self._timer
        assert entered is not None
        assert timer is not None
        cut: BaseException | None = None
        try:
            await timer.__aexit__(kind, error, trace)
        except TimeoutError:
            cut = Late()
        try:
            left = await straight.leave(self._engine, entered, cut or error)
        except BaseException as interrupt:
            self._engine.interrupted(entered, self._attempt, interrupt)
            raise
        if left is not None and left is not error:
            raise left from (left.__cause__ or error)

    def __repr__(self) -> str:
        return _shown(self, self._engine, self._options, self._entered)


def _shown(block: object, engine: Engine, options: TransactionOptions, entered: Entered | None) -> str:
    state = "not begun" if entered is None else "over" if entered.transaction.finished else "running"
    wishes = [
        f", {field.name}={getattr(options, field.name)!r}"
        for field in fields(options)
        if field.init and getattr(options, field.name) != field.default
    ]
    return f"<{type(block).__name__} of {engine.name!r}, {state}{''.join(wishes)}>"


def _reused() -> ConfigurationError:
    return ConfigurationError("a transaction() is for one block: call it again for the next one")
