"""Settings of the employee service, all of them from the environment."""

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
        jwt_secret: What the auth service signs tokens with.
        threads: Requests served at the same time, and connections to the database.
        trusted_proxies: Networks whose X-Forwarded-For is believed.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, None prefers 8002 and takes a free one when that is in use.
    """

    database_url: str = field(repr=False)
    jwt_secret: str = field(repr=False)
    threads: int = 8
    trusted_proxies: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int | None = None

    @classmethod
    def from_environment(cls) -> Self:
        def required(name: str) -> str:
            value = os.environ.get(name, "")
            if not value:
                raise ConfigurationError(f"{name} is not set")
            return value

        def number(name: str, default: int | None) -> int | None:
            value = os.environ.get(name)
            if value and not value.isdecimal():
                raise ConfigurationError(f"{name} must be a whole number")
            return int(value) if value else default

        return cls(
            database_url=required("DATABASE_URL"),
            jwt_secret=required("JWT_SECRET"),
            threads=number("THREADS", 8) or 8,
            trusted_proxies=tuple(os.environ.get("TRUSTED_PROXIES", "").split()),
            host=os.environ.get("HOST", "127.0.0.1"),
            port=number("PORT", None),
        )
