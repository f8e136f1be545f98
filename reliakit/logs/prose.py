"""Secrets in sentences: `--password x`, `the token is x`, `your verification code is 482913`, `API key x`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.logs.extents import BARE, OPENING, end_of, quoted_end
from reliakit.logs.spared import is_spared_in_text
from reliakit.logs.spelling import MARKS, word_set
from reliakit.logs.vocabulary import LAST_WORDS
from reliakit.logs.words import KeyRules, Verdict

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide

__all__ = ["is_prose", "longer_name", "mask_prose"]

_SPOKEN = re.compile(
    rf"(?<![\w.\-{MARKS}])(-{{0,2}}[^\W\d_][\w.\-{MARKS}]*+)[ \t]++"
    r"(for[ \t]++(?:[\w.@*\-]{1,64}[ \t]++){0,2}[\w.@*\-]{1,64}(?::|[ \t]++is)[ \t]++"
    r"|(?:(?:is:?|was|has|been|set|changed|reset|updated|now|to|by|of|as|are|->|-)[ \t]++){0,4})(?=[^\s=:\-])"
)
_STEMS = re.compile(
    r"[Pp]ass|PASS|[Ss]ecret|SECRET|[Tt]oken|TOKEN|[Kk]ey|KEY|[Pp]in\b|PIN|[Oo]tp|OTP|[Cc]red|CRED|[Cc]ode|CODE"
    r"| id |--"
)
_WORDS_BEFORE = re.compile(r"(?:[^\W_][\w\-]{0,24}[ ]){1,3}\Z")
_TECHNICAL = word_set(
    "sha1 sha256 sha512 md5 base64 oauth2 utf8 argon2 argon2id pbkdf2 hs256 rs256 es256 http2 x509 aes256"
)
_ENDS = ".,;:!?)]}'\""
_CODES = word_set("otp totp pin pincode passcode code codes cvv cvc")
_CODE = re.compile(r"(?:[0-9]{4,8}|[0-9]{3}[ \-][0-9]{3})(?![\w\-])")

_PROSE = word_set(
    """
    must is was are not no should unexpected expired invalid missing required the a an has have had cannot can't can
    could too length mismatch does doesn't did didn't for in of on or and failed wrong incorrect empty unknown at from
    malformed with without may might be been field value please enter expected already only your you this that it its
    """
)
_NEXT_WORD = re.compile(r"[ \t]++[a-z]")


def is_prose(text: str, found: re.Match[str], value: str, end: int) -> bool:
    """Return whether the "value" begins a sentence: `invalid password: must contain a digit`."""
    first = value.split(None, 1)[0] if value.strip() else ""
    is_quoted = not text.startswith(value, found.end())
    if first not in _PROSE or is_quoted:
        return False
    return first != value or _NEXT_WORD.match(text, end) is not None


def longer_name(text: str, start: int, name: str) -> str:
    """Return the longest name of words with blanks between them that ends with this one and is a known one."""
    before = _WORDS_BEFORE.search(text, max(0, start - 60), start)
    words = before[0].split() if before else []
    for first in range(len(words)):
        longer = " ".join((*words[first:], name))
        if _KNOWN.verdict(longer) is not Verdict.SAFE:
            return longer
    return name


_KNOWN = KeyRules()


def mask_prose(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide values that follow a name without a separator."""
    if (" " not in text and "\t" not in text) or _STEMS.search(text) is None:
        return text
    parts: list[str] = []
    at = 0
    for found in _SPOKEN.finditer(text):
        name = found[1]
        if found.end() < at:
            continue
        verdict = rules.verdict(name)
        if verdict is Verdict.SAFE and name.lower() in LAST_WORDS:
            name = longer_name(text, found.start(1), name)
            verdict = rules.verdict(name)
        if verdict not in (Verdict.SECRET, Verdict.TALLY):
            continue
        begin, end = _spoken_value(text, found, name)
        if begin < end and not is_spared_in_text(Verdict.SECRET, text[begin:end]):
            parts += (text[at:begin], hide(text[begin:end], name))
            at = end
    return "".join((*parts, text[at:])) if parts else text


def _spoken_value(text: str, found: re.Match[str], name: str) -> tuple[int, int]:
    """Return where the value stands, or an empty range when what follows does not look like one."""
    start = found.end()
    quoted = OPENING.match(text, start)
    if quoted is not None:
        return quoted.end(), quoted_end(text, quoted.end(), quoted[1])
    code = _CODE.match(text, start)
    if code is not None and name.rsplit(maxsplit=1)[-1].lower() in _CODES:
        return code.span()
    end = end_of(BARE, text, start)
    if not name.startswith("-") and not _looks_secret(text[start:end]):
        return start, start
    return start, start + len(text[start:end].rstrip(_ENDS))


def _looks_secret(token: str) -> bool:
    token = token.rstrip(_ENDS)
    if len(token) < 6 or token.lower() in _TECHNICAL or "/" in token[:1] or "=" in token[:-2]:
        return False
    letters = any(map(str.isalpha, token))
    return letters and (any(map(str.isdigit, token)) or any(char in "!@#$%^&*" for char in token))
