"""National identification numbers, recognised by their form together with their check digits or the date in them.

Numbers that are only digits, such as Poland's, Norway's or Turkey's, are recognised by their names instead, of a
field or in front of them, `PESEL 44051401359`: one in ten other numbers of that length would pass their check.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules

__all__ = ["mask_national_ids"]

# Numbers told by the name in front of them, in lower case and with `?` for what is not ASCII. Short names that are
# words of other things as well (run, pan, tin) are left out.
_NAMED = re.compile(
    r"\b(?:ssn|social security|nino|national (?:insurance|id|identity|identification)|identity card|id card|itin"
    r"|tax(?:payer)? id|passport|nhs|medicare|pesel|bsn|burgerservicenummer|rijksregisternummer|personnummer"
    r"|f[o?]dselsnummer|cpr|hetu|henkil[o?]tunnus|(?:personal)?ausweis(?:nummer)?|steuer-?id(?:entifikationsnummer)?"
    r"|sozialversicherungsnummer|ahv|cpf|cnpj|curp|dni|nif|cuit|cuil|c[e?]dula|tckn|t\.?c\.? k[i?]ml[i?]k|egn|oib"
    r"|imei|my number|(?:south african|rsa|sa) id|t\.c\.(?=[ ]?[0-9]{11})|ein(?=[ :#]{1,3}[0-9]{2}-[0-9]{7})"
    r"|(?:sin|tfn)(?=[ :#]{1,3}[0-9]{3}[ \-][0-9]{3}[ \-][0-9]{3})"
    r"|jmbg|em[s?]o|cnp|isikukood|asmens kodas|personas kods|amka|aadhaa?r|nric|mykad|codice fiscale)"
    r"(?: (?:number|num|no|nr|nummer|numaras[i?]|code|id)\b\.?)?(?: (?:is|was|of|for))?[ \t]{0,2}[:=#]?[ \t]{0,2}"
    r"(?!(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9\-]))([0-9][0-9 .\-/]{5,20}[0-9])(?![\w\-/])"
)
# Numbers with letters among them, told by the name in front of them.
_LETTERED = re.compile(
    r"\b(?:passport|driv(?:er'?s?|ing) licen[cs]e|pan(?: card)?|mbi|voter id|identity card|id card)"
    r"(?: (?:number|num|no|nr)\b\.?)?(?: (?:is|was|of))?[ \t]{0,2}[:=#]?[ \t]{0,2}"
    r"(?=[a-z]{1,6}[0-9]{2}|[0-9][a-z])([a-z0-9]{7,16})(?![\w\-/])"
)
_BEFORE = 48
# Where one can stand at all: most texts have no such run of capitals, digits and separators.
_RUN = re.compile(r"(?<![\w.\-/])[A-Z0-9][A-Z0-9kx.\-/+ ]{6,}+")


def mask_national_ids(text: str, hide: Hide, _rules: KeyRules) -> str:
    """Hide national identification numbers whose form, check digits and dates fit."""
    parts: list[str] = []
    at = 0
    for run in _RUN.finditer(text):
        for start, end in _named(text, run):
            if start >= at:
                parts += (text[at:start], hide(text[start:end]))
                at = end
        # What follows a number decides, too: a bracketed digit, and two characters to see that it goes on.
        for found in _ANY.finditer(text, run.start(), run.end() + 5):
            end = _end_of(found)
            if end and found.start() >= at:
                parts += (text[at : found.start()], hide(text[found.start() : end]))
                at = end
    return "".join((*parts, text[at:])) if parts else text


def _named(text: str, run: re.Match[str]) -> Iterator[tuple[int, int]]:
    """Yield where the numbers stand that have a name in front of them."""
    first = max(0, run.start() - _BEFORE)
    plain = text[first : run.end() + 2].encode("ascii", "replace").decode("ascii").lower()
    for pattern in (_NAMED, _LETTERED):
        for found in pattern.finditer(plain):
            yield first + found.start(1), first + found.end(1)


def _end_of(found: re.Match[str]) -> int:
    """Return where the number ends, or 0 when no country's check fits what has the form of one."""
    for pattern, fits in _KINDS:
        kind = pattern.match(found.string, found.start())
        if kind is not None and fits(kind[0]):
            return kind.end()
    return 0


def _always(_number: str) -> bool:
    return True


def _digits(number: str) -> list[int]:
    return [int(char) for char in number if char.isdigit()]


def _weighted(digits: list[int], weights: tuple[int, ...]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False))


def _luhn(digits: list[int]) -> bool:
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    return sum(doubled[digit] if place % 2 else digit for place, digit in enumerate(reversed(digits))) % 10 == 0


def _is_date(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _canada(number: str) -> bool:
    return _luhn(_digits(number))


def _sweden(number: str) -> bool:
    digits = _digits(number)[-10:]
    return _is_date(digits[2] * 10 + digits[3], (digits[4] * 10 + digits[5]) % 60) and _luhn(digits)


def _finland(number: str) -> bool:
    digits = _digits(number[:10])
    is_date = _is_date(digits[2] * 10 + digits[3], digits[0] * 10 + digits[1])
    return is_date and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int("".join(map(str, digits))) % 31] == number[-1]


def _spain(number: str) -> bool:
    leading = {"X": "0", "Y": "1", "Z": "2"}.get(number[0], "")
    value = leading + "".join(char for char in number if char.isdigit())
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(value) % 23] == number[-1]


_ODD = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
    *(2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
), strict=True))  # fmt: skip


def _italy(number: str) -> bool:
    even = sum(int(char) if char.isdigit() else ord(char) - 65 for char in number[1:15:2])
    return chr(65 + (even + sum(_ODD[char] for char in number[0:15:2])) % 26) == number[15]


def _france(number: str) -> bool:
    compact = number.replace(" ", "").replace("2A", "19").replace("2B", "18")
    return 1 <= int(compact[3:5]) <= 42 and 97 - int(compact[:13]) % 97 == int(compact[13:])


def _switzerland(number: str) -> bool:
    digits = _digits(number)
    return (10 - _weighted(digits[:12], (1, 3) * 6) % 10) % 10 == digits[12]


def _belgium(number: str) -> bool:
    digits = "".join(map(str, _digits(number)))
    return any(97 - int(century + digits[:9]) % 97 == int(digits[9:]) for century in ("", "2"))


def _czechia(number: str) -> bool:
    digits = _digits(number)
    is_date = _is_date((digits[2] * 10 + digits[3]) % 50 % 20, digits[4] * 10 + digits[5])
    return is_date and int("".join(map(str, digits))) % 11 == 0


def _brazil_person(number: str) -> bool:
    digits = _digits(number)
    first = _weighted(digits[:9], (10, 9, 8, 7, 6, 5, 4, 3, 2)) * 10 % 11 % 10
    second = _weighted(digits[:10], (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)) * 10 % 11 % 10
    return digits[9:] == [first, second]


def _argentina(number: str) -> bool:
    digits = _digits(number)
    return (11 - _weighted(digits[:10], (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) % 11) % 11 == digits[10]


def _chile(number: str) -> bool:
    digits = _digits(number[:-1])
    check = 11 - _weighted(digits[::-1], (2, 3, 4, 5, 6, 7, 2, 3)) % 11
    return {11: "0", 10: "K"}.get(check, str(check)) == number[-1].upper()


def _china(number: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[_weighted(_digits(number[:17]), weights) % 11] == number[17].upper()


def _korea(number: str) -> bool:
    digits = _digits(number)
    return _is_date(digits[2] * 10 + digits[3], digits[4] * 10 + digits[5])


_VERHOEFF_SQUARE = tuple(
    tuple(map(int, row)) for row in (
        *("0123456789", "1234067895", "2340178956", "3401289567", "4012395678"),
        *("5987604321", "6598710432", "7659821043", "8765932104", "9876543210"),
    )
)  # fmt: skip
_VERHOEFF_TURNS = tuple(
    tuple(map(int, row)) for row in (
        *("0123456789", "1576283094", "5803796142", "8916043527"),
        *("9453126870", "4286573901", "2793806415", "7046913258"),
    )
)  # fmt: skip


def _india(number: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(_digits(number))):
        check = _VERHOEFF_SQUARE[check][_VERHOEFF_TURNS[place % 8][digit]]
    return check == 0


def _singapore(number: str) -> bool:
    total = _weighted(_digits(number), (2, 7, 6, 5, 4, 3, 2)) + (4 if number[0] in "TG" else 0)
    return ("JZIHGFEDCBA" if number[0] in "ST" else "XWUTRQPNMLK")[total % 11] == number[-1]


def _hong_kong(number: str) -> bool:
    letters = [ord(char) - 55 for char in number if char.isalpha()][: -1 if number[-2].isalpha() else None]
    check = 10 if number[-2] == "A" else int(number[-2])
    digits = [int(char) for char in number if char.isdigit()][:6]
    padded = [36, *letters] if len(letters) == 1 else letters
    return (_weighted([*padded, *digits], (9, 8, 7, 6, 5, 4, 3, 2)) + check) % 11 == 0


def _russia(number: str) -> bool:
    digits = _digits(number)
    return _weighted(digits[:9], (9, 8, 7, 6, 5, 4, 3, 2, 1)) % 101 % 100 == digits[9] * 10 + digits[10]


def _ireland(number: str) -> bool:
    total = _weighted(_digits(number[:7]), (8, 7, 6, 5, 4, 3, 2))
    total += (ord(number[8]) - 64) * 9 if len(number) > 8 and number[8] != "W" else 0
    return "WABCDEFGHIJKLMNOPQRSTUV"[total % 23] == number[7]


_MONTHS = "(?:0[1-9]|1[0-2])"
_DAYS = "(?:0[1-9]|[12][0-9]|3[01])"
_START, _END = r"(?<![\w.\-/])", r"(?![\w\-/]|\.[0-9])"

_FORMS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    # Numbers with separators of their own, first those that a dash tells.
    (r"(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}", _always),  # United States
    (r"[0-9]{3}-[0-9]{3}-[0-9]{3}", _canada),
    (r"(?:[12][0-9])?[0-9]{6}[-+][0-9]{4}", _sweden),
    (rf"{_DAYS}{_MONTHS}[0-9]{{2}}[-+A-FU-Y][0-9]{{3}}[0-9A-Y]", _finland),
    (r"[0-9]{6}/[0-9]{4}", _czechia),
    (r"[0-9]{3}-[0-9]{3}-[0-9]{3}[ -][0-9]{2}", _russia),
    (r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", _switzerland),
    (r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", _belgium),
    (r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", _brazil_person),
    (r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}/[0-9]{4}-[0-9]{2}", _always),  # Brazil, companies
    (r"(?:2[034567]|30|33|34)-[0-9]{8}-[0-9]", _argentina),
    (r"[0-9]{1,2}\.[0-9]{3}\.[0-9]{3}-[0-9Kk]", _chile),
    (rf"[0-9]{{2}}{_MONTHS}{_DAYS}-[1-8][0-9]{{6}}", _korea),
    (r"[2-9][0-9]{3}[ -][0-9]{4}[ -][0-9]{4}", _india),
    (r"[1-5]-[0-9]{4}-[0-9]{5}-[0-9]{2}-[0-9]", _always),  # Thailand
    # Numbers with letters.
    (
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[0-9]{2}[ ]?[A-D]",
        _always,
    ),  # United Kingdom
    (r"(?:[0-9]{8}|[XYZ][0-9]{7})-?[A-HJ-NP-TV-Z]", _spain),
    (r"[A-Z]{6}[0-9L-NP-V]{2}[A-EHLMPR-T][0-9L-NP-V]{2}[A-Z][0-9L-NP-V]{3}[A-Z]", _italy),
    (r"[STFG][0-9]{7}[A-Z]", _singapore),
    (r"[A-Z]{1,2}[0-9]{6}\([0-9A]\)", _hong_kong),
    (r"[0-9]{7}[A-W][A-IW]?", _ireland),
    (
        rf"[A-Z][AEIOUX][A-Z]{{2}}[0-9]{{2}}{_MONTHS}{_DAYS}[HMX][A-Z]{{2}}[B-DF-HJ-NP-TV-Z]{{3}}[0-9A-Z][0-9]",
        _always,
    ),  # Mexico
    # Long numbers whose form and check digits leave little to chance.
    (rf"[1-9][0-9]{{5}}(?:19|20)[0-9]{{2}}{_MONTHS}{_DAYS}[0-9]{{3}}[0-9Xx]", _china),
    (
        rf"[12][ ]?[0-9]{{2}}[ ]?{_MONTHS}[ ]?(?:[0-9]{{2}}|2[AB])[ ]?[0-9]{{3}}[ ]?[0-9]{{3}}[ ]?[0-9]{{2}}",
        _france,
    ),
)
_KINDS = tuple((re.compile(f"{_START}{form}{_END}"), fits) for form, fits in _FORMS)
_ANY = re.compile(f"{_START}(?:{'|'.join(form for form, _ in _FORMS)}){_END}")
