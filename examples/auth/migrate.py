"""Brings the database to the newest schema: each file of `migrations/` once, in order, all in one transaction."""

from __future__ import annotations

from pathlib import Path

from reliakit import AsyncDatabase, Isolation, get_logger

log = get_logger(__name__)

_FILES = Path(__file__).with_name("migrations")
_LOCK = 0x617574  # any number that only this service uses


async def migrate(db: AsyncDatabase) -> None:
    async with db.transaction(isolation=Isolation.READ_COMMITTED, timeout=30.0, operation="migrate") as tx:
        # Services that start at once wait here for the first one, then find its work done.
        await tx.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        await tx.execute("CREATE TABLE IF NOT EXISTS migration (name text PRIMARY KEY, at timestamptz DEFAULT now())")
        done = {row[0] for row in await tx.fetch_all("SELECT name FROM migration")}
        for file in sorted(_FILES.glob("*.sql")):
            if file.name not in done:
                await tx.execute(file.read_text())
                await tx.execute("INSERT INTO migration (name) VALUES (%s)", (file.name,))
                log.info("Migration applied", file=file.name)
