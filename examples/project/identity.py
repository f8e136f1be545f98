"""Who asks: reads the tokens that the auth service signs."""

from __future__ import annotations

import jwt

from reliakit import SYSTEM_CLOCK


class InvalidTokenError(Exception):
    """There is no valid token."""


def subject_of(authorization: str, secret: str) -> str:
    """Return whom the bearer token of an Authorization header speaks for.

    Raises:
        InvalidTokenError: There is no valid token in it.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise InvalidTokenError("a bearer token is needed")
    try:
        claims = jwt.decode(
            token, secret, algorithms=["HS256"], issuer="auth", options={"require": ["exp", "iat", "sub"]}
        )
    except jwt.InvalidTokenError as error:
        raise InvalidTokenError("the token is not valid") from error
    return str(claims["sub"])


def token_of_this_service(secret: str) -> str:
    """Return an Authorization header for what this service does by itself, good for a minute."""
    now = int(SYSTEM_CLOCK.time())
    claims = {"iss": "auth", "sub": "project-service", "iat": now, "exp": now + 60}
    return f"Bearer {jwt.encode(claims, secret, algorithm='HS256')}"
