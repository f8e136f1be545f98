"""Tokens that more than their beginning tells, and words that only begin like a token."""

from __future__ import annotations

import pytest

from reliakit.logs import Masker

masker = Masker()
LETTERS = "aB3dE6gH9jK2mN5p" * 12
HEX = "0a1b2c3d4e5f6789" * 8

TOKENS = {
    "Braintree": "access_token$production$" + HEX[:16] + "$" + HEX[:32],
    "Salesforce": "00D" + LETTERS[:12] + "!" + LETTERS[:90],
    "Okta": "00" + LETTERS[:40],
    "Yandex": "t1." + LETTERS[:60] + "." + LETTERS[:86],
    "GoCardless": "live_" + LETTERS[:20] + "_" + LETTERS[:19],
    "Mollie": "test_" + LETTERS[:30],
    "Voyage": "pa-" + LETTERS[:43],
    "Azure DevOps": LETTERS[:76] + "AZDO" + LETTERS[:4],
    "Azure Functions": LETTERS[:44] + "AzFu" + LETTERS[:6] + "==",
    "ngrok": "2" + LETTERS[:26] + "_" + LETTERS[:21],
    "Boundary": "at_" + LETTERS[:10] + "_" + LETTERS[:80],
    "PASETO": "v4.local." + LETTERS[:90],
    "macaroon": "MDAxY2xvY2F0aW9u" + LETTERS[:60],
    "NATS": "SUA" + "A2C4E6G7J5L3N2Q4" * 3 + "A2C4E6G",
    "Stripe client secret": "pi_" + LETTERS[:24] + "_secret_" + LETTERS[:25],
    "Teams": "webhook.office.com/webhookb2/" + HEX[:36] + "@" + HEX[:36] + "/IncomingWebhook/" + HEX[:32],
    "with underscores": "sk_prod_" + LETTERS[:10] + "_" + LETTERS[:40],
}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_the_whole_token_is_hidden(token):
    assert masker.mask_text(f"seen {token} here") == "seen *** here"
    assert masker.mask_text(f'{{"x": "{token}"}}') == '{"x": "***"}'


def test_two_tokens_in_one_word_are_both_hidden_in_either_order():
    first, second = TOKENS["ngrok"], "ghp_" + LETTERS[:36]
    assert masker.mask_text(f"a|{first}|{second}") == "a|***|***"
    assert masker.mask_text(f"a|{second}|{first}") == "a|***|***"


def test_the_private_part_of_a_key_of_putty_is_hidden_also_when_it_was_cut():
    lines = f"PuTTY-User-Key-File-2: ssh-rsa\nPrivate-Lines: 2\n{LETTERS[:64]}\n{LETTERS[:64]}"
    assert masker.mask_text(lines) == "PuTTY-User-Key-File-2: ssh-rsa\nPrivate-Lines: 2***"
    assert masker.mask_text(f"{lines}\nPrivate-MAC: {HEX[:40]}\nend").endswith(
        "Private-Lines: 2***Private-MAC: " + HEX[:40] + "\nend"
    )
    assert masker.mask_text("Private-Lines: 14 were read") == "Private-Lines: 14 were read"


@pytest.mark.parametrize(
    "text",
    [
        "sk_test_case_one and live_2024_report_of_the_month_january_final",
        "test_ThisIsAVeryLongCamelCaseNameOfATestIndeed",
        "pa-west-2-production-cluster-node-0001-blue-green-x1",
        "v2.public.api and t1.micro.instances.in.eu at_2024",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "SAACKNOWLEDGEMENT " + "A" * 200,
        "pi_3NxyzABC123 succeeded",
    ],
)
def test_words_that_only_begin_like_a_token_are_left(text):
    assert masker.mask_text(text) == text
