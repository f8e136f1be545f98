"""What an attacker runs into: counted in the database, for all processes together, and beyond a restart."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from reliakit import LoginGuard, PostgresStore, RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from examples.auth.settings import Settings

# As patient as the database itself: a login can wait, and must not be refused because the machine is busy.
_PATIENCE = 3.0


def store_of(settings: Settings) -> PostgresStore:
    return PostgresStore(settings.database_url, max_size=4, timeout=_PATIENCE)


def login_guard(settings: Settings, store: PostgresStore) -> LoginGuard:
    # A key of its own: it tells nobody what signs the tokens.
    secret = hmac.digest(settings.jwt_secret.encode(), b"login guard", "sha256")
    return LoginGuard(store=store, secret=secret, store_timeout=_PATIENCE, service="auth")


def registrations(store: PostgresStore) -> RateLimiter:
    """Ten at once are a class of students behind one address; a hundred are somebody who spends our cores."""
    return RateLimiter("20/h burst 10", name="register", store=store, store_timeout=_PATIENCE)


def who_registers(source_of: Callable[[Any], str]) -> Callable[[Any], str | None]:
    """Return a key for registrations alone: other requests have no limit here, and logins a guard."""

    def key(scope: Any) -> str | None:
        return source_of(scope) if (scope["method"], scope["path"]) == ("POST", "/register") else None

    return key
