"""Words that look random, for users who would rather lose an id than show a secret.

Upper-case and lower-case letters and digits in one piece of 16 or more, hardly any of them twice (Shannon, 1948):
keys without a form of their own look like this, but so do many ids, which is why it is not a default.
"""

from __future__ import annotations

import re
from collections import Counter
from math import log2
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules

__all__ = ["mask_random_words"]

_WORD = re.compile(r"(?<![A-Za-z0-9+/_\-=])[A-Za-z0-9+/_\-]{16,}+={0,2}")
_PIECE = re.compile(r"[A-Za-z0-9+]{16,}+")
# A name with a number behind it, such as `MaskingFormatter2`.
_NAME = re.compile(r"[A-Za-z]*+[0-9]*+")
_LEAST_BITS = 3.55
# Longer words are judged by their beginning.
_LOOKED_AT = 256


def mask_random_words(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide words of 16 and more characters that look drawn at random."""
    return _WORD.sub(lambda found: hide(found[0]) if _looks_random(found[0]) else found[0], text)


def _looks_random(word: str) -> bool:
    return any(map(_is_mixed, _PIECE.findall(word[:_LOOKED_AT])))


def _is_mixed(piece: str) -> bool:
    has_all = any(map(str.islower, piece)) and any(map(str.isupper, piece)) and any(map(str.isdigit, piece))
    return has_all and _NAME.fullmatch(piece) is None and _bits(piece) >= _LEAST_BITS


def _bits(piece: str) -> float:
    """Return the entropy of a text's characters, in bits a character."""
    size = len(piece)
    return -sum(count / size * log2(count / size) for count in Counter(piece).values())
