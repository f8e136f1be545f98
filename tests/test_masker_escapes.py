"""Escape sequences that are still written out in a text are no part of the word behind them, and they are kept."""

from __future__ import annotations

import pytest

from reliakit.logs import Masker
from reliakit.logs.escapes import veil

masker = Masker()
TOKEN = "ghp_" + "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"
SECRETS = {
    "token": TOKEN,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl",
    "card": "4111" + "1111" * 3,
    "iban": "DE89" + "370400440532013000",
    "phone": "+1 415 555 2671",
    "id": "131052-308T",
}
ESCAPES = [
    "\\n",
    "\\\\t",
    "\\u003d",
    "\\x1b[31m",
    "\x1b[0;31m",
    "\\033[1m",
    "%3D",
    "%20",
    "\\xff",
    "\\r\\n",
    "\U000f0000",
]


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_right_behind_an_escape_is_hidden_and_the_escape_is_kept(kind, escape):
    text = f"first{escape}{SECRETS[kind]} and{escape}second"
    assert masker.mask_text(text) == f"first{escape}*** and{escape}second"


def test_credentials_right_behind_an_escape_are_hidden():
    assert masker.mask_text("first\\nBearer abc12345xyz%0ABasic YWRtaW46aHVudGVyMg==") == (
        "first\\nBearer ***%0ABasic ***"
    )


def test_bytes_that_are_no_text_hide_no_token():
    assert masker.mask({"body": b"\xff" + TOKEN.encode()}) == {"body": b"\\xff***"}
    assert masker.mask({"body": TOKEN.encode("utf-16")}) == {"body": b"***"}


@pytest.mark.parametrize(
    "text",
    [
        "C:\\new\\bin\\table, \\u00e9t\\u00e9, 100%25 and 50%ab, a%20b, \\x00\\x01",
        "LIKE '%ad%' AND path ~ '\\d+\\.txt' \U000f0001\U0010ffff \x1b[31mred\x1b[0m",
        "\\" * 50 + "n" + "%" * 50 + "\\u12",
    ],
)
def test_escapes_in_harmless_texts_are_left_alone(text):
    assert masker.mask_text(text) == text


def test_detectors_of_the_users_see_the_escapes():
    seen = []
    asked = Masker(detectors=[*masker.detectors, lambda text: seen.append(text) or text])
    assert asked.mask_text(f"a\\n{TOKEN}\\tb") == "a\\n***\\tb"
    assert seen == ["a\\n***\\tb"]


def test_a_text_without_escapes_is_not_copied():
    assert veil("a b % c \\ d \\d") is None
