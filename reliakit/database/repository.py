"""Base classes for objects that keep one kind of thing in the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from reliakit.core.errors import ConfigurationError
from reliakit.database.async_database import AsyncDatabase
from reliakit.database.database import Database

if TYPE_CHECKING:
    from reliakit.database.transaction import AsyncTransaction, Transaction

__all__ = ["AsyncRepository", "Repository"]

R = TypeVar("R")


class Repository:
    """A base class for data access: `self.db`, methods under `@transactional()`, and `with_transaction`.

    Args:
        db: The database, as `self.db`.

    Raises:
        ConfigurationError: `db` is not a `Database`.
    """

    def __init__(self, db: Database) -> None:
        if not isinstance(db, Database):
            raise ConfigurationError(f"Repository takes a Database, got {type(db).__name__}; see AsyncRepository")
        self.db = db

    def with_transaction(self, callback: Callable[[Transaction], R], **options: Any) -> R:
        """Call `callback(tx)` in a transaction and return its result; retry if the transaction lost a race.

        Args:
            callback: Takes the transaction.
            options: As for `Database.run`.
        """
        return self.db.run(callback, **options)

    def current(self) -> Transaction:
        """Return the transaction that this thread is in. Raises as `Database.current`."""
        return self.db.current()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {getattr(self, 'db', None)!r}>"


class AsyncRepository:
    """A base class for data access from tasks: `self.db`, `@transactional()` methods, and `with_transaction`.

    Args:
        db: The database, as `self.db`.

    Raises:
        ConfigurationError: `db` is not an `AsyncDatabase`.
    """

    def __init__(self, db: AsyncDatabase) -> None:
        if not isinstance(db, AsyncDatabase):
            raise ConfigurationError(
                f"AsyncRepository takes an AsyncDatabase, got {type(db).__name__}; see Repository"
            )
        self.db = db

    async def with_transaction(self, callback: Callable[[AsyncTransaction], Awaitable[R]], **options: Any) -> R:
        """Await `callback(tx)` in a transaction and return its result; retry if the transaction lost a race.

        Args:
            callback: Takes the transaction.
            options: As for `AsyncDatabase.run`.
        """
        return await self.db.run(callback, **options)

    def current(self) -> AsyncTransaction:
        """Return the transaction that this task is in. Raises as `AsyncDatabase.current`."""
        return self.db.current()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {getattr(self, 'db', None)!r}>"
