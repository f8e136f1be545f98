"""How names are spelled: their words, whatever separates them, in lower case and without accents or digits."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MARKS", "plain", "segment_of", "word_set", "words_of"]

# Vowel signs and accents that are characters of their own. `\w` knows none of them, names hold them.
MARKS = (
    r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094d"
    r"\u0981-\u0983\u09bc-\u09cd\u0b82\u0bbe-\u0bcd\u0e31-\u0e3a\u0e47-\u0e4e\u200c"
)

_LETTERS = str.maketrans(
    {"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "ı": "i", "đ": "d", "ð": "d", "æ": "ae"}
)  # do not decompose
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_A-Za-z]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def plain(text: str) -> str:
    """Return text in lower case without accents; scripts without case stay as they are."""
    return text.lower() if text.isascii() else _bare(text.translate(_LETTERS).casefold())


def _bare(text: str) -> str:
    """Return text without accents and vowel signs."""
    return "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char)[0] not in "MC")


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text, in lower case and without accents."""
    return frozenset(plain(text).split())


def words_of(name: str) -> list[str]:
    """Return the words of a field name in lower case and without accents: `X-Api-Key2` gives x, api, key."""
    if not name.isascii():
        # Case must survive until the split, accents must not.
        name = _bare(name.translate(_LETTERS))
    return [word.casefold() for word in _WORD.findall(name)]


def segment_of(name: str) -> str:
    """Return a name as one step of a path: `cardNumber` and `Card-Number` both give card_number."""
    return plain(_HUMP.sub("_", name)).replace("-", "_").replace(" ", "_")
