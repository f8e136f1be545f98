"""Password hashing with argon2id, away from the event loop."""

from __future__ import annotations

import secrets

from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError


class Passwords:
    """Hashes and checks passwords in threads, at most so many at once.

    An unknown account is checked against a decoy hash, so that it costs and answers what a wrong password does.
    """

    def __init__(self, at_once: int) -> None:
        self._hasher = PasswordHasher()
        self._threads = CapacityLimiter(at_once)
        self._decoy = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        return await to_thread.run_sync(self._hasher.hash, password, limiter=self._threads)

    async def fits(self, stored: str | None, password: str) -> bool:
        """Tell whether the password is the stored one; never for an account that does not exist."""
        fits = await to_thread.run_sync(self._verify, stored or self._decoy, password, limiter=self._threads)
        return fits and stored is not None

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerifyMismatchError:
            return False
