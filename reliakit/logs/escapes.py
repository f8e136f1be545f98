r"""Escape sequences in text: the last letter of a sequence is not part of the word that follows.

In `first\nghp_...`, `%3Dghp_...` and `\u003dghp_...`, where the escapes are still written out, and behind the colour
codes of a terminal, a token seems to go on from letters. Before words are searched, each sequence becomes one
character that stands in no word; afterwards it is put back.
"""

from __future__ import annotations

import re

__all__ = ["VEILED", "Veil", "veil"]

_FIRST, _LAST = 0xF0000, 0x10FFFF
VEILED = f"{chr(_FIRST)}-{chr(_LAST)}"
"""The characters that stand for sequences, as a range in a regular expression."""

# Such characters count as sequences themselves, should a text have them. An escaped @ is left as it is: addresses are
# searched with it.
_SEQUENCE = re.compile(
    r"(?:(?<!\\)\\++(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|0[0-7]{2}|e|[bfnrtv0])|\x1b)(?:\[[0-9;]{0,16}[A-Za-z])?(?=[A-Za-z0-9+(])"
    r"|%(?!40)[0-9A-Fa-f]{2}(?=[A-Za-z0-9+(])"
    rf"|[{VEILED}]"
)
_PLACE = re.compile(f"[{VEILED}]")


class Veil:
    """The sequences of one text, and the text with a character in place of each."""

    __slots__ = ("_places", "text")

    def __init__(self, text: str) -> None:
        self._places: dict[str, str] = {}
        self.text: str = _SEQUENCE.sub(self._placed, text)

    def _placed(self, found: re.Match[str]) -> str:
        return self._places.setdefault(found[0], chr(min(_FIRST + len(self._places), _LAST)))

    def lifted(self, text: str) -> str:
        """Return what has become of the text with its sequences again."""
        sequences = {place: sequence for sequence, place in self._places.items()}
        return _PLACE.sub(lambda found: sequences.get(found[0], ""), text)


def veil(text: str) -> Veil | None:
    """Return the veil over a text that has such sequences, else None."""
    if ("\\" in text or "%" in text or "\x1b" in text) and _SEQUENCE.search(text) is not None:
        return Veil(text)
    return None
