"""Password hashing with argon2id, away from the event loop."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeVar

from anyio import to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from reliakit import Bulkhead, request_context

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A hash takes a few dozen milliseconds: who would wait for more of them is better told to come again, and before the
# time of the request is over, because only then it is known that the password was not looked at.
_WAITING_PER_PLACE = 16
_LONGEST_WAIT = 5.0


class Passwords:
    """Hashes and checks passwords in threads, at most so many at once, and with a queue that has an end.

    An unknown account is checked against a decoy hash, so that it costs and answers what a wrong password does.
    """

    def __init__(self, at_once: int) -> None:
        self._hasher = PasswordHasher()
        self._places = Bulkhead(
            at_once, max_waiting=_WAITING_PER_PLACE * at_once, wait=_LONGEST_WAIT, name="password hashes"
        )
        self._decoy = self._hasher.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """Hash a new password.

        Raises:
            BulkheadFullError: Too many are waiting.
        """
        # Strangers can ask for this from any number of addresses; who has an account is served before them.
        with request_context(priority="sheddable"):
            return await self._away(self._hasher.hash, password)

    async def fits(self, stored: str | None, password: str) -> bool:
        """Tell whether the password is the stored one; never for an account that does not exist.

        Raises:
            BulkheadFullError: Too many are waiting, and the password was not looked at.
        """
        fits = await self._away(self._verify, stored or self._decoy, password)
        return fits and stored is not None

    async def _away(self, work: Callable[..., T], *texts: str) -> T:
        async with self._places:
            return await to_thread.run_sync(work, *texts)

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerifyMismatchError:
            return False
