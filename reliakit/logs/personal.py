"""Personal data by its shape and check digits: e-mail, cards (ISO/IEC 7812), IBAN (ISO 13616), ids, phones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.logs.spelling import word_set

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules

__all__ = ["is_card", "is_email", "mask_cards", "mask_emails", "mask_ibans", "mask_phones"]

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.!$%*+^~-"
# The longest local part that is looked for; RFC 5321 allows 64 bytes.
_LONGEST_LOCAL = 256
_DOMAIN = re.compile(r"(?:[\w\-]{1,63}\.){1,8}([^\W\d_]{2,24})(?![\w\-])")
_NOT_DOMAINS = word_set("png jpg jpeg gif svg webp ico css js ts map html htm pdf txt json xml yml yaml md py zip gz")


_WHOLE_EMAIL = re.compile(r"[\w.!$%*+^~\-]{1,256}@(?:[\w\-]{1,63}\.){1,8}([^\W\d_]{2,24})")


def is_email(text: str) -> bool:
    """Return whether a text is one e-mail address and nothing else."""
    whole = _WHOLE_EMAIL.fullmatch(text)
    return whole is not None and whole[1].lower() not in _NOT_DOMAINS and not text.startswith("git@")


def mask_emails(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide e-mail addresses, also with an escaped @; `git@host` and file names such as `logo@2x.png` are none."""
    if "@" in text:
        text = _mask_emails_at(text, "@", hide)
    return _mask_emails_at(text, "%40", hide) if "%40" in text else text


def _mask_emails_at(text: str, sign: str, hide: Hide) -> str:
    parts: list[str] = []
    done = 0
    at = text.find(sign)
    while at >= 0:
        after = at + len(sign)
        domain = _DOMAIN.match(text, after)
        start = _local_start(text, done, at) if domain else at
        if domain and start < at and _is_email(text, start, at, domain[1]):
            parts += (text[done:start], hide(text[start : domain.end()]))
            done = after = domain.end()
        at = text.find(sign, after)
    return "".join((*parts, text[done:])) if parts else text


def _local_start(text: str, done: int, at: int) -> int:
    """Return where the local part before an @ begins."""
    head = text[max(done, at - _LONGEST_LOCAL) : at]
    if head.endswith('"'):
        opening = head.rfind('"', 0, len(head) - 1)
        return at - len(head) + opening if opening >= 0 else at
    rest = head.rstrip(_LOCAL)
    while rest and rest[-1].isalnum():  # letters beyond ASCII
        rest = rest[:-1].rstrip(_LOCAL)
    return at - len(head) + len(rest)


def _is_email(text: str, start: int, at: int, ending: str) -> bool:
    return text[start:at] != "git" and ending.lower() not in _NOT_DOMAINS and not _in_authority(text, start)


def _in_authority(text: str, start: int) -> bool:
    """Return whether this is `user@host` of a URL, whose secret part is hidden already and whose host is none."""
    begin = text.rfind("://", max(0, start - 256), start)
    return begin >= 0 and _AUTHORITY.fullmatch(text, begin + 3, start) is not None


_AUTHORITY = re.compile(r"[^\s/?#@\"'<>]*+")
_CARD_RUN = re.compile(r"[0-9](?<![\w.,][0-9])(?:[ \-]?[0-9]){11,}")
_DIGITS = re.compile(r"[0-9]++")


def mask_cards(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide payment card numbers: an issuer's prefix, its length and the check digit must all fit."""
    return _CARD_RUN.sub(lambda found: _cards_in_run(found, hide), text)


def _cards_in_run(matched: re.Match[str], hide: Hide) -> str:
    run = matched[0]
    groups = [found.span() for found in _DIGITS.finditer(run)]
    if matched.string[matched.end() : matched.end() + 1].isalnum():
        groups.pop()
    parts: list[str] = []
    at = first = 0
    while first < len(groups):
        last = _card_groups(run, groups, first)
        if last < 0:
            first += 1
            continue
        parts += (run[at : groups[first][0]], hide(run[groups[first][0] : groups[last][1]]))
        at = groups[last][1]
        first = last + 1
    return "".join((*parts, run[at:])) if parts else run


def _card_groups(run: str, groups: list[tuple[int, int]], first: int) -> int:
    """Return the last of the groups that make a card number from `first` on, or -1."""
    digits = ""
    for last in range(first, min(first + 6, len(groups))):
        digits += run[slice(*groups[last])]
        if len(digits) > 19:
            return -1
        if len(digits) >= 13 and is_card(digits):
            return last
    return -1


def is_card(digits: str) -> bool:
    """Return whether these 13 to 19 digits are a card number of a known issuer."""
    return _issuer_fits(digits) and _luhn(digits)


def _issuer_fits(digits: str) -> bool:
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return size in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return size == 16
    if two in (34, 37):
        return size == 15
    if two in (36, 38, 39) or 3000 <= four <= 3059:
        return size in (14, 16)
    if two in (35, 60, 62, 64, 65, 50, 56, 57, 58, 63, 67):
        return size in (16, 19)
    return False


_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += _DOUBLED[int(digit)] if place % 2 else int(digit)
    return total % 10 == 0


_COUNTRIES = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _COUNTRIES.split()}
_NO_CHECK_DIGITS = ("00", "01", "99")
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[0-9]{2}(?:[ \-]?[A-Za-z0-9]){11,30}")


def mask_ibans(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide international bank account numbers whose country, length and check digits fit."""
    parts: list[str] = []
    at = 0
    found = _IBAN.search(text)
    while found is not None:
        end = _iban_end(found)
        if end:
            parts += (text[at : found.start()], hide(text[found.start() : end]))
            at = end
        # What was taken along may hold the next one.
        found = _IBAN.search(text, end or found.start() + 2)
    return "".join((*parts, text[at:])) if parts else text


def _iban_end(found: re.Match[str]) -> int:
    """Return where the number ends, or 0 when it is none: what follows may have been taken along."""
    length = _IBAN_LENGTHS.get(found[1].upper(), 0)
    if not length or found[0][2:4] in _NO_CHECK_DIGITS:
        return 0
    taken, compact = 0, ""
    for char in found[0]:
        taken += 1
        if char not in " -":
            compact += char
            if len(compact) == length:
                break
    end = found.start() + taken
    if len(compact) != length or (end < len(found.string) and found.string[end].isalnum()):
        return 0
    number = int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4]))
    return end if number % 97 == 1 else 0


_INTERNATIONAL = re.compile(r"\+(?<![\w+]\+)[1-9](?:[ ().\-]{0,2}[0-9]){7,14}(?![0-9])")
# An area code in brackets, as in Brazil, Russia and Germany; four digits would be a year.
_BRACKETED = re.compile(
    r"\((?<![\w.+\-]\()(?:0[1-9][0-9]{1,3}|[1-9][0-9]{1,2})\)[ ]?[0-9]{3,5}(?:[ \-][0-9]{2,4}){1,2}(?![\w\-])"
)
_LEAST_DIGITS = 10
# The end is searched first, because it begins with a digit: that is several times as fast as a lookbehind.
_AMERICAN_END = re.compile(r"[2-9][0-9]{2}[ .\-][0-9]{4}(?![\w\-]|\.[0-9])")
_AMERICAN_BEGIN = re.compile(r"(?<![\w.+\-])(?:1[ .\-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .\-])\Z")


def mask_phones(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide phone numbers in international form, in the form of North America, and with an area code in brackets."""
    if "+" in text:
        text = _INTERNATIONAL.sub(lambda found: hide(found[0]), text)
    found = _AMERICAN_END.search(text)
    if found is not None:
        text = _mask_american(text, found, hide)
    return _BRACKETED.sub(lambda found: _bracketed(found[0], hide), text) if "(" in text else text


def _bracketed(number: str, hide: Hide) -> str:
    return hide(number) if sum(map(str.isdigit, number)) >= _LEAST_DIGITS else number


def _mask_american(text: str, found: re.Match[str] | None, hide: Hide) -> str:
    parts: list[str] = []
    done = 0
    while found is not None:
        begin = _AMERICAN_BEGIN.search(text[max(done, found.start() - 10) : found.start()])
        if begin is not None:
            start = found.start() - len(begin[0])
            parts += (text[done:start], hide(text[start : found.end()]))
            done = found.end()
        found = _AMERICAN_END.search(text, found.end())
    return "".join((*parts, text[done:])) if parts else text
