"""Which 64 bits PostgreSQL locks for a key, and with which statement.

A number stands for itself. A text stands for its 8-byte BLAKE2b digest, read as a signed big-endian number, so that
every process, release and language computes the same one:
"""

from __future__ import annotations

from hashlib import blake2b

from reliakit.core.errors import ConfigurationError

__all__ = ["in_transaction", "number_of"]

_LEAST, _MOST = -(2**63), 2**63 - 1
_EXCLUSIVE = b"SELECT pg_advisory_xact_lock(%s)"
_SHARED = b"SELECT pg_advisory_xact_lock_shared(%s)"


def number_of(key: int | str) -> int:
    """Return the number that PostgreSQL locks for a key.

    Raises:
        ConfigurationError: The key is neither a number of 64 bits nor a text.
    """
    if isinstance(key, str) and key:
        return int.from_bytes(
            blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
        )
    if isinstance(key, int) and not isinstance(key, bool) and _LEAST <= key <= _MOST:
        return key
    raise ConfigurationError(f"key must be a whole number of 64 bits or a non-empty text, got {key!r}")


def in_transaction(*, shared: bool) -> bytes:
    """Return the statement that locks a number until the transaction ends."""
    return _SHARED if shared else _EXCLUSIVE
