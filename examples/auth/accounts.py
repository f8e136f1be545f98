"""The accounts table."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4

from reliakit import AsyncRepository, transactional


@dataclass(frozen=True, slots=True)
class Account:
    id: UUID
    password_hash: str


class Accounts(AsyncRepository):
    @transactional(operation="register")
    async def add(self, email: str, password_hash: str) -> UUID | None:
        """Add an account and return its id, or None when the address is taken."""
        added: UUID | None = await self.db.fetch_value(
            "INSERT INTO account (id, email, password_hash) VALUES (%s, %s, %s)"
            " ON CONFLICT (email) DO NOTHING RETURNING id",
            (uuid4(), email, password_hash),
        )
        return added

    @transactional(operation="find_account", read_only=True)
    async def find(self, email: str) -> Account | None:
        row = await self.db.fetch_one("SELECT id, password_hash FROM account WHERE email = %s", (email,))
        return None if row is None else Account(*row)

    @transactional(operation="note_login")
    async def note_login(self, account_id: UUID) -> None:
        # Two logins of one account at once collide under REPEATABLE READ; the later one is tried again.
        await self.db.execute(
            "UPDATE account SET logins = logins + 1, last_login_at = now() WHERE id = %s", (account_id,)
        )
