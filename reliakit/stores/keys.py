"""What stands for a key that is too long to be kept: whoever makes up keys must not make up their size too."""

from __future__ import annotations

__all__ = ["LONGEST_KEY", "hashed", "short"]

LONGEST_KEY = 200


def short(key: str) -> str:
    """Return a key as it is kept: its text, or its hash if it is too long.

    A class of texts may have methods that a look into a dictionary would call.
    """
    return str.__str__(key) if len(key) <= LONGEST_KEY else hashed(key)


def hashed(key: str) -> str:
    """Return a text that no other key will have."""
    import hashlib  # noqa: PLC0415 - such keys are rare, and it takes longer to import than all the rest of a limiter

    return "#" + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
