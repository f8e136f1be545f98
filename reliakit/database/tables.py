"""Tables that reliakit creates for itself, once, even if many processes start at the same moment."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from psycopg import errors

from reliakit.core.errors import ConfigurationError
from reliakit.database.locking import number_of
from reliakit.database.settings import TransactionOptions

if TYPE_CHECKING:
    from reliakit.database.engine import Engine, Entered

__all__ = ["ensure", "table_name"]

_OPTIONS = TransactionOptions(operation="create table")
_NAME = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?")
# CREATE TABLE IF NOT EXISTS looks first and inserts into the catalogue later: two at once collide there.
_COLLISIONS = (errors.UniqueViolation, errors.DuplicateTable, errors.DuplicateObject)
_FORBIDDEN = (errors.InsufficientPrivilege, errors.InvalidSchemaName)


async def ensure(engine: Engine, table: str, ddl: str, until: float | None = None) -> bool:
    """Create a table if it does not exist; return whether it exists for good.

    Inside a transaction the table belongs to that transaction, and goes if it is rolled back.

    Raises:
        ConfigurationError: The table is missing, and this user may not create it.
    """

    async def create(entered: Entered) -> None:
        session = entered.transaction.session()
        if (await session.query(b"SELECT to_regclass(%s) IS NOT NULL", (table,)))[0][0]:
            return
        # After the wait the server's catalogue is read as it is then, whatever the isolation level.
        await session.query(b"SELECT pg_advisory_xact_lock(%s)", (number_of("reliakit create table"),))
        await session.query(ddl.encode("ascii"))

    joins = engine.running() is not None
    try:
        try:
            await engine.own(_OPTIONS, create, until)
        except _COLLISIONS:
            if joins:
                raise
            await engine.own(_OPTIONS, create, until)  # another process's migration was first, so it exists now
    except _FORBIDDEN as error:
        raise ConfigurationError(
            f"[{engine.name}] the table {table} is missing and this user may not create it ({error.sqlstate}); have "
            f"it made by a migration:\n{ddl}"
        ) from error
    return not joins and engine.checkouts.source.lasting


def table_name(argument: str, value: str) -> str:
    """Return a table's name, with or without its schema, if it needs no quotes."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or len(value) > 63:
        raise ConfigurationError(
            f"{argument} must be a table's name of lower-case letters, digits and _, at most 63, such as 'outbox' or "
            f"'shop.outbox', got {value!r}"
        )
    return value
