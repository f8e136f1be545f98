"""What a login guard calls accounts, sources and devices in its store: keys from which no name can be read.

```
" Alice@Example.com " ──NFKC, casefold, strip──> "alice@example.com" ──HMAC-SHA256──> 3f9a...
```
"""

from __future__ import annotations

import hmac
from unicodedata import normalize

from reliakit.core.addresses import folded
from reliakit.core.errors import ConfigurationError
from reliakit.stores.attempts import Attempt

__all__ = ["Names", "hidden"]

_DIGITS = 32  # of the digest's 64: 128 bits are more than enough to tell keys apart
# Bringing combining marks into order takes time by the square of their number: minutes for a body of a mebibyte.
_NORMALISED = 1024


class Names:
    """Makes the keys of attempts. The kind is part of each key, so an account and a source of equal text differ.

    Args:
        secret: Keys the HMAC: without it nobody can tell whose key one is, even by trying all addresses.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def attempt(self, account: str, source: str, device: str | None) -> Attempt:
        """Return the keys of an attempt.

        Raises:
            ConfigurationError: An argument is empty or not text.
        """
        return self.some(_text("account", account), _text("source", source), device)

    def some(self, account: str | None, source: str | None, device: str | None) -> Attempt:
        """Return the keys of those that are given.

        Raises:
            ConfigurationError: Neither an account nor a source is given, or one of them is empty or not text.
        """
        if account is None and source is None:
            raise ConfigurationError("account or source must be given, or both")
        who = None if account is None else _text("account", _normalised(_text("account", account)))
        where = None if source is None else folded(_text("source", source))
        thing = None if device is None or who is None else _text("device", device)
        return Attempt(
            None if who is None else self._key("account", who),
            None if who is None or where is None else self._key("pair", who, where),
            None if where is None else self._key("source", where),
            None if who is None or thing is None else self._key("device", who, thing),
        )

    def token(self, source: str) -> Attempt:
        """Return the keys for a token without an account: its source stands for the account."""
        where = folded(_text("source", source))
        return Attempt(
            self._key("token account", where), self._key("token pair", where), self._key("token source", where)
        )

    def _key(self, kind: str, *parts: str) -> str:
        # With their lengths, so that no two different lists of parts make the same text.
        text = "".join(f"{len(part)}:{part}" for part in (kind, *parts))
        return hmac.digest(self._secret, text.encode("utf-8", "surrogatepass"), "sha256").hex()[:_DIGITS]


def _text(argument: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"{argument} must be a non-empty text: everybody without one would share a count")
    return value


def _normalised(account: str) -> str:
    account = account.strip()
    if len(account) > _NORMALISED:
        return account.casefold()  # longer than any account that exists, so how it is spelt makes no difference
    # Case folding can undo the normal form, so the text is normalised again afterwards.
    return normalize("NFKC", normalize("NFKC", account).casefold()).strip()


def hidden(account: str) -> str:
    """Return the part of an account's name that a log may show."""
    return f"{account.strip()[:1]}***"
