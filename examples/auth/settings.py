"""Settings of the auth service, all of them from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Self

from reliakit import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service needs to know before it starts.

    Attributes:
        database_url: Conninfo or URL of its own PostgreSQL database.
        jwt_secret: Signs the tokens, at least 32 bytes; the services that read tokens hold the same one.
        token_seconds: How long a token is valid.
        hashes_at_once: Passwords hashed at the same time; each takes 64 MiB and one core.
        trusted_proxies: Networks whose X-Forwarded-For is believed.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, None prefers 8001 and takes a free one when that is in use.
    """

    database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    token_seconds: int = 900
    hashes_at_once: int = 2
    trusted_proxies: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None

    def __post_init__(self) -> None:
        if not self.database_url:
            raise ConfigurationError("DATABASE_URL is not set: give the conninfo of a PostgreSQL database")
        if len(self.jwt_secret.encode()) < 32:
            raise ConfigurationError("JWT_SECRET must hold at least 32 bytes: try `openssl rand -hex 32`")

    @classmethod
    def from_environment(cls) -> Self:
        env = os.environ
        try:
            return cls(
                database_url=env.get("DATABASE_URL", ""),
                jwt_secret=env.get("JWT_SECRET", ""),
                token_seconds=int(env.get("TOKEN_SECONDS", "900")),
                hashes_at_once=int(env.get("HASHES_AT_ONCE", "2")),
                trusted_proxies=tuple(env.get("TRUSTED_PROXIES", "").split()),
                host=env.get("HOST", "127.0.0.1"),
                port=int(env["PORT"]) if env.get("PORT") else None,
            )
        except ValueError as error:
            raise ConfigurationError(f"a setting is not as it must be: {error}") from None
