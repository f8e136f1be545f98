"""What stands in a secret's place, by field and by detector, and which fields are told by where they stand."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from masker_cases import CARD, PASSWORD

from reliakit.core.errors import ConfigurationError
from reliakit.logs import DEFAULT, HIGH_ENTROPY, IP_ADDRESSES, Detector, Masker
from reliakit.testing import ManualClock

KEY = "k" * 16


def test_each_detector_can_have_a_mode_of_its_own():
    own = Masker(modes={"email": "hmac", "card": "last4"}, hmac_key=KEY)
    out = own.mask_text(f"mail bob@example.com paid {CARD} password={PASSWORD}")
    assert re.fullmatch(r"mail hmac:[0-9a-f]{8} paid \*\*\*1111 password=\*\*\*", out)
    assert own.mask(int(CARD)) == "***1111"
    assert own.mask("bob@example.com") == own.mask_text("x bob@example.com")[2:]


def test_each_field_can_have_a_mode_of_its_own_wherever_it_stands():
    own = Masker(modes={"api_key": "last4", "email": "hmac"}, hmac_key=KEY)
    long = "aB3dE6gH9jK2mN5p"
    address = own.mask("bob@example.com")
    assert own.mask({"serviceApiKey": long, "password": long}) == {"serviceApiKey": "***mN5p", "password": "***"}
    assert own.mask_text(f'api_key={long} {{"api-key": "{long}"}} token={long}') == (
        'api_key=***mN5p {"api-key": "***mN5p"} token=***'
    )
    assert own.mask_text(f"tool --api-key {long}") == "tool --api-key ***mN5p"
    assert own.mask_text(f"<apiKey>{long}</apiKey>") == "<apiKey>***mN5p</apiKey>"
    assert own.mask({"user_email": "bob@example.com"}) == {"user_email": address}


def test_a_field_that_only_modes_names_is_hidden_too():
    own = Masker(modes={"user_id": "hmac"}, hmac_key=KEY)
    masked = own.mask({"user_id": 7, "user_name": "bob"})
    assert re.fullmatch("hmac:[0-9a-f]{8}", masked["user_id"])
    assert masked["user_name"] == "bob"
    assert own.mask_text("user_id=7") == f"user_id={masked['user_id']}"


def test_the_mode_of_a_field_beats_that_of_a_detector():
    own = Masker(modes={"email": "hmac", "contact_email": "full"}, hmac_key=KEY)
    masked = own.mask({"contact_email": "bob@example.com", "note": "bob@example.com"})
    assert masked["contact_email"] == "***"
    assert masked["note"].startswith("hmac:")


def test_the_default_mode_holds_for_the_rest():
    own = Masker(mode="last4", modes={"password": "full"})
    assert own.mask({"password": "aB3dE6gH9jK2", "token": "aB3dE6gH9jK2"}) == {"password": "***", "token": "***9jK2"}


def test_last4_never_shows_a_third_of_a_secret():
    own = Masker(mode="last4")
    for length in range(1, 40):
        out = own.mask({"password": "abcdefghijklmnopqrstuvwxyz0123456789ABCD"[:length]})["password"]
        assert len(out) - 3 <= length / 3


def test_pseudonyms_are_the_same_in_another_process():
    code = f"from reliakit import Masker; print(Masker(mode='hmac', hmac_key={KEY!r}).mask_text('x bob@example.com'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert other.stdout.strip() == Masker(mode="hmac", hmac_key=KEY).mask_text("x bob@example.com")


def test_no_marker_shows_anything_of_the_secret():
    secret = "correct horse battery staple"
    for own in (Masker(), Masker(mode="hmac", hmac_key=KEY)):
        marker = own.mask({"password": secret})["password"]
        assert not any(secret[at : at + 3] in marker for at in range(len(secret) - 2))


def test_a_detector_of_your_own_can_have_a_name_and_so_a_mode():
    employee = Detector.of("employee", re.compile(r"EMP-\d{10}"))
    hero = Detector.of("hero", lambda text: text.replace("Zorro", "[hero]"))
    own = Masker(detectors=[*DEFAULT, employee, hero], modes={"employee": "last4"})
    assert own.mask_text("EMP-1234567890 is Zorro") == "***7890 is [hero]"
    assert employee("EMP-1234567890") == "***"


@pytest.mark.parametrize("what", [7, None, re.compile(b"x")])
def test_a_detector_of_something_else_is_refused(what):
    with pytest.raises(ConfigurationError, match="detectors"):
        Detector.of("x", what)


@pytest.mark.parametrize(
    "modes", [{"email": "half"}, {"": "full"}, {"*": "full"}, {7: "full"}, ["email"], "email", {"12": "full"}]
)
def test_wrong_modes_are_refused(modes):
    with pytest.raises(ConfigurationError, match="modes"):
        Masker(modes=modes)


def test_a_mode_that_needs_a_key_is_refused_without_one_and_a_key_without_such_a_mode():
    with pytest.raises(ConfigurationError, match="hmac_key"):
        Masker(modes={"email": "hmac"})
    with pytest.raises(ConfigurationError, match="hmac_key"):
        Masker(modes={"email": "last4"}, hmac_key=KEY)


NESTED = {
    "payment": {"card": {"number": "5", "brand": "visa"}, "number": "6"},
    "number": "7",
    "list": [{"number": "8"}, {"other": {"number": "9"}}],
}


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        ("payment.*.number", "5"),
        ("payment.**.number", "56"),
        ("**.number", "56789"),
        ("list.*.number", "8"),
        ("list[*].number", "8"),
        ("list.1.**.number", "9"),
        ("*.number", "6"),
        ("payment.c?rd.n*r", "5"),
        ("Payment.Card.*ber", "5"),
        ("nowhere.*", ""),
    ],
)
def test_a_pattern_with_dots_says_where_a_field_stands(pattern, hidden):
    shown = str(Masker(keys=[pattern]).mask(NESTED))
    assert {digit for digit in "56789" if digit not in shown} == set(hidden)


def test_paths_know_every_spelling_and_names_that_hold_dots_themselves():
    own = Masker(keys=["pay.*.card_number_x", "a.?.deep"])
    assert own.mask({"pay": {"q": {"cardNumberX": 1}}}) == {"pay": {"q": {"cardNumberX": "***"}}}
    assert own.mask({"pay.q.Card-Number-X": 1, "a": {"b.deep": 2}}) == {
        "pay.q.Card-Number-X": "***",
        "a": {"b.deep": "***"},
    }


def test_paths_can_allow_what_a_name_forbids():
    own = Masker(allow_keys=["debug.*.token", "list.*.pin"])
    value = {"debug": {"x": {"token": "a"}}, "token": "b", "list": [{"pin": 1}], "pin": 2}
    assert own.mask(value) == {**value, "token": "***", "pin": "***"}
    for _ in range(2):  # what was found before does not decide for another place
        assert own.mask({"debug": {"y": {"token": "a"}}, "deep": {"token": "b"}}) == {
            "debug": {"y": {"token": "a"}},
            "deep": {"token": "***"},
        }


def test_an_allowed_path_beats_a_hidden_one():
    own = Masker(keys=["**.id"], allow_keys=["order.*"])
    assert own.mask({"order": {"id": 1}, "user": {"id": 2}}) == {"order": {"id": 1}, "user": {"id": "***"}}


def test_a_path_pattern_takes_time_in_proportion_to_the_depth():
    own = Masker(keys=[".".join(["**", "a"] * 12 + ["b"])], max_depth=60)
    value: object = {"a": 1}
    for _ in range(50):
        value = {"a": value}
    assert own.mask(value) == value


@pytest.mark.parametrize(
    "name",
    ["รหัสผ่าน", "पासवर्ड", "كلمة_المرور", "пароль", "contraseña", "mật_khẩu", "lykilorð", "სხვა_პაროლი", "גישה.סיסמה"],
)
def test_names_with_vowel_signs_and_accents_are_known_in_records_and_in_text(name):
    own = Masker()
    assert own.mask({name: PASSWORD}) == {name: "***"}
    assert PASSWORD not in own.mask_text(f'{{"{name}": "{PASSWORD}"}}')
    assert PASSWORD not in own.mask_text(f"{name}={PASSWORD}")


@pytest.mark.parametrize("name", ["awssecretaccesskey", "accesstokensecret", "userpassword", "dbpass", "oldpin"])
def test_names_in_one_word_are_taken_apart(name):
    assert Masker().mask({name: PASSWORD}) == {name: "***"}


@pytest.mark.parametrize(
    "name", ["passwordresetcount", "accesstokenexpires", "tokenname", "betoken", "keyboard", "spinner", "userid"]
)
def test_names_in_one_word_that_only_sound_sensitive_are_kept(name):
    assert Masker().mask({name: "plain"}) == {name: "plain"}


def test_a_detector_that_takes_too_long_costs_the_rest_of_the_record_only():
    clock = ManualClock()

    def slow(text: str) -> str:
        clock.advance(0.6)
        return text

    own = Masker(detectors=[*DEFAULT, slow], timeout=1.0, clock=clock)
    assert own.mask(["one text", "two text", "three"]) == ["one text", "[too slow to scan]", "[too slow to scan]"]
    assert own.mask_text("the next record") == "the next record"


def test_a_detector_of_your_own_sees_texts_that_show_no_sign_of_anything():
    own = Masker(detectors=[*DEFAULT, Detector.of("hero", re.compile("Zorro"))])
    assert own.mask_text("it is Zorro") == "it is ***"
    by_hand = Masker(
        detectors=[*DEFAULT, Detector("hero", lambda text, hide, _: text.replace("Zorro", hide("Zorro")))]
    )
    assert by_hand.mask_text("it is Zorro") == "it is ***"


RANDOM = "q8Zr4Xw2Lm9Tn7Kc"


def test_words_that_look_random_are_hidden_on_request_only():
    eager = Masker(detectors=[*DEFAULT, HIGH_ENTROPY], modes={"entropy": "last4"})
    assert Masker().mask_text(f"seen {RANDOM} here") == f"seen {RANDOM} here"
    assert eager.mask_text(f"seen {RANDOM} here") == "seen ***n7Kc here"
    for text in (
        "commit 2fd4e1c67a2d28fced849ee1bb76e7391b93eb12",
        "order 550e8400-e29b-41d4-a716-446655440000",
        "GET /api/v1/customers/Orders2024/items",
        "reliakit.logs.MaskingFormatter2 failed",
        "AAAAAAAAAAAAAAAAaaaaaaaaaaaaaaaa1111111111",
    ):
        assert eager.mask_text(text) == text


def test_addresses_are_hidden_on_request_wherever_they_stand():
    eager = Masker(detectors=[*DEFAULT, IP_ADDRESSES])
    assert eager.mask_text("peer 10.0.0.1") == "peer ***"
    assert eager.mask({"ip": "10.0.0.1", "peer": "fe80::1"}) == {"ip": "***", "peer": "***"}


@pytest.mark.parametrize(
    ("value", "hidden"),
    [
        ({"api": {"key": PASSWORD, "version": 2}}, {"api": {"key": "***", "version": 2}}),
        ({"session": {"id": PASSWORD, "age": 3}}, {"session": {"id": "***", "age": 3}}),
        ({"card": {"number": "12", "brand": "visa"}}, {"card": {"number": "***", "brand": "visa"}}),
        ({"x": [{"recovery": {"codes": ["a1"]}}]}, {"x": [{"recovery": {"codes": "***"}}]}),
    ],
)
def test_a_name_that_goes_on_inside_is_read_as_one(value, hidden):
    own = Masker()
    for _ in range(2):
        assert own.mask(value) == hidden


def test_a_name_that_goes_on_inside_as_something_harmless_is_kept():
    value = {
        "api": {"version": "2", "id": "a"},
        "order": {"number": "12"},
        "primary": {"key": "id"},
        "key": {"id": 1},
    }
    assert Masker().mask(value) == value


def test_a_pattern_for_places_in_a_list_hides_small_numbers_there():
    own = Masker(keys=["codes.?"])
    assert own.mask({"codes": [7, 8], "counts": [7, 8]}) == {"codes": ["***", "***"], "counts": [7, 8]}
