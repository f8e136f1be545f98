"""Settings of the project service, all of them from the environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reliakit import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service needs to know before it starts.

    Attributes:
        database_url: Conninfo or URL of its own PostgreSQL database.
        jwt_secret: What the auth service signs tokens with.
        employee_url: Where the employee service answers.
        employee_patience: Seconds that one call to it may take.
        employee_break: Seconds that it is left alone after it has failed too often.
        trusted_proxies: Networks whose X-Forwarded-For is believed.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, None prefers 8003 and takes a free one when that is in use.
    """

    database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    employee_url: str
    employee_patience: float = 0.5
    employee_break: float = 2.0
    trusted_proxies: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None


def settings_from(env: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        ConfigurationError: A setting is missing or not as it must be.
    """
    missing = [name for name in ("DATABASE_URL", "JWT_SECRET", "EMPLOYEE_URL") if not env.get(name)]
    if missing:
        raise ConfigurationError(f"{', '.join(missing)} must be set")
    try:
        return Settings(
            database_url=env["DATABASE_URL"],
            jwt_secret=env["JWT_SECRET"],
            employee_url=env["EMPLOYEE_URL"],
            employee_patience=float(env.get("EMPLOYEE_PATIENCE", "0.5")),
            employee_break=float(env.get("EMPLOYEE_BREAK", "2.0")),
            trusted_proxies=tuple(env.get("TRUSTED_PROXIES", "").split()),
            host=env.get("HOST", "127.0.0.1"),
            port=int(env["PORT"]) if env.get("PORT") else None,
        )
    except ValueError as error:
        raise ConfigurationError(f"a setting is not a number: {error}") from None
