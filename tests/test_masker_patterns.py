"""No text, however hostile, makes masking slower than its length asks for."""

from __future__ import annotations

import re
import string
import sys
from re import _constants as codes
from re import _parser as parser

import pytest

from reliakit.logs import DEFAULT, IP_ADDRESSES, Masker, bodies, detectors, formatter, personal, vendors, walk, words

MODULES = (bodies, detectors, formatter, personal, vendors, walk, words)
PATTERNS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}
PATTERNS |= {f"bodies._INSIDE[{quote}]": pattern for quote, pattern in bodies._INSIDE.items()}

# Read by words of at most 256 characters.
ON_SHORT_TEXTS = {"reliakit.logs.words._WORD"}


def backtracking(parsed, depth=0):
    """Yield every repetition that can give characters back and has no small bound."""
    for op, argument in parsed:
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = argument
            if most == codes.MAXREPEAT or most - least > 2100:
                yield op, least, most
            yield from backtracking(inner, depth + 1)
        elif op is codes.POSSESSIVE_REPEAT:
            yield from backtracking(argument[2], depth)
        elif op is codes.SUBPATTERN:
            yield from backtracking(argument[3], depth)
        elif op is codes.ATOMIC_GROUP:
            yield from backtracking(argument, depth)
        elif op is codes.BRANCH:
            for branch in argument[1]:
                yield from backtracking(branch, depth)
        elif op in (codes.ASSERT, codes.ASSERT_NOT):
            yield from backtracking(argument[1], depth)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_can_backtrack_over_an_unbounded_run(name):
    if name not in ON_SHORT_TEXTS:
        assert list(backtracking(parser.parse(PATTERNS[name].pattern, PATTERNS[name].flags & ~re.UNICODE))) == []


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_ignores_case(name):
    assert not PATTERNS[name].flags & re.IGNORECASE


def test_the_static_check_would_see_a_bad_pattern():
    assert list(backtracking(parser.parse(r"a(b+)c")))
    assert list(backtracking(parser.parse(r"(?:a|b.*c)")))
    assert not list(backtracking(parser.parse(r"a(b++)c")))


HOSTILE = [
    *(
        "a",
        "aA",
        "a1",
        "a.",
        "a-",
        "a@",
        "a:",
        "a=",
        "a b",
        "1",
        "1 ",
        "1-",
        "12 ",
        "+1",
        "(",
        "((",
        "[{(",
        "'",
        '"',
        '\\"',
        "\\",
    ),
    *(
        "password=",
        "password: ",
        "password ",
        "password='",
        'password="',
        "password={",
        "password=(",
        "pwd=/",
        "pwd='/",
        "tokens=1,",
    ),
    *(
        "\npassword:\n  ",
        "\npassword: |\n  x\n",
        "password: x  ",
        "password: must ",
        "--password ",
        "token is ",
        "sig=a ",
        "auth=a,",
    ),
    *(
        "<password>",
        "<password",
        "<a><",
        "</a>",
        "<a b",
        "://",
        "://a:b@",
        "://a@",
        "http://a:",
        "@a.",
        "a@a.a",
        "%40",
        "a%40b.",
    ),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "eyJ",
        "eyJaaaaaaaa.",
        "Bearer ",
        "Basic a",
        "ghp_",
        "sk-",
        "xoxb-",
        "AKIA",
        "t1.",
    ),
    *(
        "DE",
        "DE12 ",
        "GB12A1",
        "$2b$",
        "$1$",
        "scrypt:",
        "Key (a)=(",
        "Failing row contains (",
        "[parameters: ",
        'form-data; name="a"',
    ),
    *(
        'form-data; name="a"\r\nb',
        "\r\n\r\n",
        '"name": "a", "value": ',
        '{"name": "password", "value": ',
        "%3D",
        "%22",
        "password%3D",
    ),
    *(
        "token_",
        "Token",
        "tOkEn",
        "=>",
        "：",
        "é",
        "\u0301",
        "\x00",
        "\ud800",
        "key=",
        "&key=",
        "?key=",
        "api",
        "api_key_",
    ),
]


class Steps:
    """Count the lines of Python that run: work, not time."""

    def __init__(self):
        self.count = 0

    def __call__(self, frame, event, argument):
        self.count += 1
        return self

    def of(self, function, *arguments):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function(*arguments)
        finally:
            sys.settrace(before)
        return self.count


@pytest.mark.parametrize("seed", HOSTILE, ids=repr)
def test_twice_the_hostile_text_takes_at_most_about_twice_the_steps(seed):
    masker = Masker(scan_budget=10**6)
    texts = [(seed * 4000)[:size] + " x=1" for size in (600, 1200, 2400)]
    # The least of two runs: what is collected meanwhile may run code of its own.
    work = [min(Steps().of(masker.mask_text, text) for _ in range(2)) for text in texts]
    assert work[1] <= 2.3 * work[0] + 300
    assert work[2] <= 2.3 * work[1] + 300


@pytest.mark.parametrize("seed", HOSTILE, ids=repr)
def test_hostile_texts_come_back_whole_or_masked_never_failed(seed):
    for text in (seed * 100, f"{seed}x{seed}" * 30, string.printable + seed * 50):
        assert "[masking failed]" not in Masker().mask_text(text)
        for detector in (*DEFAULT, IP_ADDRESSES):
            assert isinstance(detector(text), str)
