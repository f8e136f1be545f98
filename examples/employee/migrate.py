"""Brings the database to the newest schema: each file of `migrations/` once, in order, all in one transaction."""

from __future__ import annotations

from pathlib import Path

from reliakit import Database, Isolation, get_logger

log = get_logger(__name__)

_FILES = Path(__file__).with_name("migrations")
_LOCK = 0x656D70  # any number that only this service uses


def migrate(db: Database) -> None:
    with db.transaction(isolation=Isolation.READ_COMMITTED, timeout=30.0, operation="migrate") as tx:
        # Services that start at once wait here for the first one, then find its work done.
        tx.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        tx.execute("CREATE TABLE IF NOT EXISTS migration (name text PRIMARY KEY, at timestamptz DEFAULT now())")
        done = {name for (name,) in tx.fetch_all("SELECT name FROM migration")}
        for file in sorted(_FILES.glob("*.sql")):
            if file.name not in done:
                tx.execute(file.read_text())
                tx.execute("INSERT INTO migration (name) VALUES (%s)", (file.name,))
                log.info("Migration applied", file=file.name)
