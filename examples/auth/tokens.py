"""Access tokens: short-lived JWTs, signed with HS256."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import jwt

ISSUER = "auth"


class InvalidTokenError(Exception):
    """The token is missing, forged, expired or not meant for us. All look the same from outside."""


class Tokens:
    def __init__(self, secret: str, seconds: int) -> None:
        self._secret = secret
        self.seconds = seconds

    def issue(self, account_id: str) -> str:
        now = datetime.now(UTC)
        claims = {
            "iss": ISSUER,
            "sub": account_id,
            "iat": now,
            "exp": now + timedelta(seconds=self.seconds),
            "jti": uuid4().hex,
        }
        return jwt.encode(claims, self._secret, algorithm="HS256")

    def read(self, authorization: str) -> dict[str, Any]:
        """Return the claims of an Authorization header.

        Raises:
            InvalidTokenError: There is no valid token in it.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidTokenError("a bearer token is needed")
        try:
            return jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],  # never the token's own choice
                issuer=ISSUER,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise InvalidTokenError("the token is not valid") from error
