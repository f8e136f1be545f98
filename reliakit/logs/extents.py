"""Where values end in text: quoted, also in quotes that are escaped, in brackets, or bare."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["BARE", "OPENING", "balanced_end", "end_of", "quoted_end"]

OPENING = re.compile(r"(?:[bruBRUf]{1,2}(?=[\"']))?((?:\\*+[\"'`])|%22|&(?:quot|#34|#39|apos);)")
BARE = re.compile(
    r"(?:[^\s,;&\"'<>(){}\[\]|\\%]++"
    r"|[\"')}\]>|(\[{](?=\w)|<(?=\w)|\\(?![\"'])|%(?!26|22|2[Cc]|0[AaDd])"
    r"|[,;&](?=[^\s,;&=:\"'<>(){}\[\]]++(?:[\s,;&\"']|$)))*"
)
_INSIDE = {
    '"': re.compile(r"(?:[^\"\\]++|\\.)*", re.DOTALL),
    "'": re.compile(r"(?:[^'\\]++|\\.)*", re.DOTALL),
    "`": re.compile(r"[^`]*+"),
}
# A line of code in a traceback: `raise ValueError("password=" + secret)`. What is quoted there ends where it seems to
# begin, and what follows are the lines of further frames. A marker: it has been hidden already.
_CODE_GOES_ON = re.compile(
    r"[ \t]*+(?:[+%][ \t]*+[A-Za-z_(]|[,.)\]}]|[\r\n]|\Z|(?:\*{3}[^\s]{0,4}|hmac:[0-9a-f]{8})(?:[\r\n]|\Z))"
)
_LINE = re.compile(r"[^\r\n]*+")
_LONGEST_LINE = 200
_BRACKETS = re.compile(r"[\"'()\[\]{}]")
_OPEN, _CLOSE = "([{", ")]}"


@lru_cache(maxsize=16)
def _escaped_closing(opening: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\\)" + re.escape(opening))


def end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return where what fits a pattern at a place ends."""
    matched = pattern.match(text, start)
    return matched.end() if matched else start


def quoted_end(text: str, start: int, opening: str) -> int:
    """Return where the closing quote stands, or the end of a text that was cut."""
    if opening in _INSIDE:
        if _CODE_GOES_ON.match(text, start) and _closes(text, start - 1):
            return end_of(_LINE, text, start)
        return end_of(_INSIDE[opening], text, start)
    if opening[0] in "%&":
        end = text.find(opening, start)
        return end if end >= 0 else len(text)
    closing = _escaped_closing(opening).search(text, start)
    return closing.start() if closing else len(text)


def _closes(text: str, at: int) -> bool:
    """Return whether the quote at a place closes what another one opened on the same line."""
    line = max(text.rfind("\n", max(0, at - _LONGEST_LINE), at) + 1, at - _LONGEST_LINE, 0)
    return text.count(text[at], line, at) % 2 == 1


def balanced_end(text: str, start: int) -> int:
    """Return the place behind the bracket that closes the one at `start`."""
    depth, at = 0, start
    while (bracket := _BRACKETS.search(text, at)) is not None:
        at = bracket.end()
        if bracket[0] in _OPEN:
            depth += 1
        elif bracket[0] in _CLOSE:
            depth -= 1
            if depth <= 0:
                return at
        elif text[at - 2 : at - 1] != "\\":
            at = end_of(_INSIDE[bracket[0]], text, at) + 1
    return len(text)
