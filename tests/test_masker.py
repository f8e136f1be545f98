from __future__ import annotations

import base64
import copy
import html
import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from masker_cases import (
    CARD,
    HARMLESS_FIELDS,
    HARMLESS_TEXTS,
    HARMLESS_VALUES,
    KEYS,
    PASSWORD,
    SHAPES,
    TEXTS,
    VENDORS,
    Account,
    Case,
)

from reliakit.core.errors import ConfigurationError
from reliakit.logs import DEFAULT, IP_ADDRESSES, Masker
from reliakit.logs.vendors import table

masker = Masker()


def shown(value: object) -> str:
    def plain(item: object) -> object:
        if isinstance(item, dict):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, set | frozenset):  # in the same order in every process, as a test's name must be
            return sorted((plain(entry) for entry in item), key=str)
        if isinstance(item, list | tuple):
            return [plain(entry) for entry in item]
        if isinstance(item, bytes | bytearray):
            return bytes(item).decode("utf-8", "replace")
        return item

    return value if isinstance(value, str) else json.dumps(plain(value), default=str, ensure_ascii=False)


def name_of(case: object) -> str:
    return shown(case.value)[:60] if isinstance(case, Case) else str(case)[:60]


@pytest.mark.parametrize("case", [*KEYS, *TEXTS, *SHAPES, *VENDORS], ids=name_of)
def test_secrets_are_hidden_and_what_stands_around_them_is_kept(case):
    out = shown(masker.mask(case.value))
    for secret in case.secrets:
        assert secret not in out
    for kept in case.keep:
        assert kept in out


@pytest.mark.parametrize("text", HARMLESS_TEXTS)
def test_texts_without_secrets_come_back_as_they_are(text):
    assert "clone" in text or masker.mask_text(text) == text
    assert "clone" not in text or "org/repo.git" in masker.mask_text(text)


@pytest.mark.parametrize("name", HARMLESS_FIELDS)
def test_fields_that_only_sound_sensitive_are_kept(name):
    record = {name: HARMLESS_FIELDS[name]}
    assert masker.mask(record) == record


@pytest.mark.parametrize("value", HARMLESS_VALUES, ids=repr)
def test_a_value_without_secrets_is_returned_as_it_is(value):
    masked = masker.mask(value)
    assert masked == value
    assert type(masked) is type(value)


def test_the_corpus_is_wide_enough_to_mean_something():
    assert len([*KEYS, *TEXTS, *SHAPES]) >= 150
    assert len(VENDORS) >= 150
    assert len(HARMLESS_TEXTS) + len(HARMLESS_FIELDS) >= 100


def test_masking_twice_changes_nothing_more():
    for case in [*TEXTS, *VENDORS]:
        once = masker.mask(case.value)
        assert shown(masker.mask(once)) == shown(once)


def test_the_input_is_never_changed():
    for case in [*KEYS, *TEXTS, *SHAPES]:
        before = copy.deepcopy(case.value)
        masker.mask(case.value)
        if not isinstance(case.value, Exception) and type(case.value).__name__ != "Slotted":
            assert case.value == before


def test_containers_keep_their_type_and_order():
    assert masker.mask({"a": 1, "password": "x", "b": 2}) == {"a": 1, "password": "***", "b": 2}
    assert list(masker.mask({"a": 1, "password": "x", "b": 2})) == ["a", "password", "b"]
    assert masker.mask(("password=x", 1)) == ("password=***", 1)
    assert masker.mask(["password=x", 1]) == ["password=***", 1]
    assert masker.mask({"password=x"}) == {"password=***"}
    assert masker.mask(frozenset({"password=x"})) == frozenset({"password=***"})
    assert masker.mask({"a": 1}.keys()) == {"a"}
    assert masker.mask(b"password=x") == b"password=***"
    assert masker.mask(OrderedDict(a=1, token="abc")) == {"a": 1, "token": "***"}
    assert masker.mask(MappingProxyType({"token": "abc"})) == {"token": "***"}


def test_changing_the_copy_never_changes_the_input():
    value = {
        "list": [1, {"x": "y"}],
        "pair": (1, [2]),
        "set": {3},
        "raw": bytearray(b"abc"),
        ("a", frozenset({1})): [4],
    }
    before = copy.deepcopy(value)
    masked = masker.mask(value)
    assert masked == before
    masked["list"][1]["x"] = masked["new"] = "z"
    masked["list"].append(2)
    masked["pair"][1].append(3)
    masked["set"].add(4)
    masked["raw"].extend(b"d")
    masked["a", frozenset({1})].append(5)
    assert value == before


def test_a_dataclass_becomes_a_dict_of_its_fields():
    assert masker.mask(Account("bob", "x")) == {"name": "bob", "password": "***", "attempts": 0}


def test_two_names_that_become_equal_lose_no_entry():
    masked = masker.mask({"a@example.com": 1, "b@example.com": 2})
    assert sorted(masked.values()) == [1, 2]


def test_a_cycle_gives_a_placeholder():
    cycle: dict[str, object] = {"a": 1}
    cycle["self"] = cycle
    assert masker.mask(cycle) == {"a": 1, "self": "[cycle]"}
    items: list[object] = [1]
    items.append(items)
    assert masker.mask(items) == [1, "[cycle]"]


def test_the_same_object_twice_is_no_cycle():
    item = {"x": "y"}
    assert masker.mask([item, item]) == [item, item]


def test_beyond_the_depth_stands_a_placeholder():
    value: object = PASSWORD
    for _ in range(100):
        value = {"deeper": value}
    out = shown(masker.mask(value))
    assert "[too deep]" in out
    assert PASSWORD not in out


def test_beyond_the_number_of_values_stands_a_placeholder():
    small = Masker(max_nodes=100)
    out = small.mask([PASSWORD] * 50 + [{"x": PASSWORD}] * 1000)
    assert len(out) == 101
    assert out[-1] == "[too many values]"
    assert len(small.mask({f"k{n}": n for n in range(1000)})) == 101
    assert "[too many values]" in small.mask(set(range(1000)))


@pytest.mark.parametrize("budget", [1, 100, 5_000, 32_768])
def test_beyond_the_scan_budget_no_raw_text_is_left(budget):
    secret = "password=" + PASSWORD
    for place in (0, budget - 10, budget - 5, budget, budget + 10, 3 * budget):
        text = ("x " * budget)[: max(place, 0)] + " " + secret + " y" * budget
        out = Masker(scan_budget=budget).mask_text(text)
        assert PASSWORD[:5] not in out
        assert out.endswith("[too long to scan]")


def test_the_scan_budget_is_shared_by_all_parts_of_a_value():
    out = Masker(scan_budget=1000).mask(["a b " * 200, "c d " * 200, "e"])
    assert out[0].startswith("a b")
    assert out[1:] == ["[too long to scan]", "[too long to scan]"] or out[1] == "[too long to scan]"


def test_a_card_number_split_by_the_budget_is_not_left_half():
    text = "z " * 16_380 + "4111 1111 1111 1111 " * 10
    assert "4111" not in Masker().mask_text(text)


class Hostile:
    def __init__(self, error):
        self._error = error

    def __str__(self):
        raise self._error

    __repr__ = __str__


@pytest.mark.parametrize("error", [ValueError(PASSWORD), RecursionError(), KeyError(PASSWORD)])
def test_an_object_that_cannot_be_shown_gives_its_type(error):
    assert masker.mask({"x": Hostile(error)}) == {"x": "[unprintable Hostile]"}
    assert masker.mask_text(Hostile(error)) == "[masking failed]"


class Liar(Mapping):
    def __getitem__(self, key):
        raise RuntimeError(PASSWORD)

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([PASSWORD])


class Property:
    __fields__ = ("password",)

    @property
    def password(self):
        raise RuntimeError(PASSWORD)


def test_a_hostile_container_costs_itself_only():
    assert masker.mask({"a": Property(), "b": 1}) == {"a": "[masking failed]", "b": 1}
    assert masker.mask({"a": Liar(), "b": 1}) == {"a": "[masking failed]", "b": 1}


def test_control_flow_exceptions_are_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        masker.mask({"x": Hostile(KeyboardInterrupt())})


def raising(text):
    raise RuntimeError(text)


@pytest.mark.parametrize("detector", [raising, lambda text: None, lambda text: 7])
def test_a_detector_that_fails_gives_a_placeholder(detector):
    broken = Masker(detectors=[*DEFAULT, detector])
    assert broken.mask({"a": "some text", "n": 1}) == {"[masking failed]": "[masking failed]", "[masking failed]_": 1}
    assert broken.mask_text("some text") == "[masking failed]"


def test_a_detector_is_a_callable_or_a_pattern():
    custom = Masker(detectors=[re.compile(r"EMP-\d+"), lambda text: text.replace("Zorro", "[hero]")])
    assert custom.mask_text("EMP-123 is Zorro") == "*** is [hero]"
    assert custom.mask({"x": ["EMP-123"]}) == {"x": ["***"]}
    assert custom.mask_text("bob@example.com") == "bob@example.com"
    assert custom.mask({"password": "x"}) == {"password": "***"}


def test_detectors_can_be_taken_away_and_added():
    quiet = Masker(detectors=[d for d in DEFAULT if d.name != "email"])
    assert quiet.mask_text("bob@example.com password=x1") == "bob@example.com password=***"
    assert masker.mask_text("peer 10.0.0.1") == "peer 10.0.0.1"
    assert Masker(detectors=[*DEFAULT, IP_ADDRESSES]).mask_text("peer 10.0.0.1 ::1 fe80::1") == "peer *** *** ***"


def test_each_default_detector_is_a_plain_callable_too():
    assert {d.name: d("mail bob@example.com") for d in DEFAULT}["email"] == "mail ***"


def test_keys_and_allow_keys_are_matched_by_words():
    own = Masker(keys=["salary", "employee-number", "emp_*_no"], allow_keys=["sessionId", "token_*"])
    value = {
        "baseSalary": 1,
        "salaryman": 2,
        "employeeNumber": "7",
        "emp_x_no": "8",
        "session_id": "s",
        "tokenX": "t",
    }
    assert own.mask(value) == {**value, "baseSalary": "***", "employeeNumber": "***", "emp_x_no": "***"}
    assert own.mask_text("base_salary=12000 session_id=abc") == "base_salary=*** session_id=abc"


def test_an_exact_key_is_masked_even_when_it_only_describes():
    assert Masker(keys=["token_type"]).mask({"token_type": "Bearer"}) == {"token_type": "***"}


def test_an_allowed_field_is_still_searched():
    assert Masker(allow_keys=["token"]).mask({"token": "bob@example.com"}) == {"token": "***"}


def test_last4_shows_the_end_of_long_secrets_only():
    last4 = Masker(mode="last4")
    assert last4.mask({"card": "4111111111111111", "password": "short"}) == {"card": "***1111", "password": "***"}


def test_hmac_gives_equal_pseudonyms_to_equal_secrets():
    one = Masker(mode="hmac", hmac_key=b"k" * 16)
    first = one.mask({"password": "aaa", "token": "bbb", "secret": "aaa"})
    assert first["password"] == first["secret"] != first["token"]
    assert re.fullmatch("hmac:[0-9a-f]{8}", first["password"])
    assert one.mask_text("password=aaa") == f"password={first['password']}"
    assert Masker(mode="hmac", hmac_key="j" * 16).mask({"password": "aaa"}) != {"password": first["password"]}


SECRET = 'p@ss/w+rd "ü" \\ & <x>'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        re.sub("%..", lambda code: code[0].lower(), quote(SECRET, safe="")),
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        json.dumps(json.dumps(SECRET)),
        repr(SECRET),
        ascii(SECRET),
        repr(SECRET.encode()),
        html.escape(SECRET),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    ],
)
def test_a_registered_secret_is_found_in_every_form(form):
    own = Masker(detectors=())
    own.register_secret(SECRET)
    core = form.strip("\"'b=")
    out = own.mask_text(f"before {form} after")
    assert core not in out
    assert "***" in out
    assert out.startswith("before")
    assert out.endswith("after")


@pytest.mark.parametrize("before", ["", "u", "us", "usr:", "user:"])
def test_a_registered_secret_is_found_inside_base64(before):
    own = Masker(detectors=())
    own.register_secret("correct-horse-battery")
    encoded = base64.b64encode(f"{before}correct-horse-battery:x".encode()).decode()
    masked = own.mask_text(encoded)
    assert masked != encoded
    for start in range(len(encoded) - 12):
        assert encoded[start : start + 12] not in masked or start < 4 or start > len(encoded) - 16


def test_a_registered_secret_is_hidden_in_keys_numbers_bytes_and_seen_texts():
    own = Masker()
    assert own.mask_text("plain sesame-42 text") == "plain sesame-42 text"
    own.register_secret("sesame-42")
    own.register_secret("123456789")
    assert own.mask_text("plain sesame-42 text") == "plain *** text"
    assert own.mask({"sesame-42": 1, "b": b"sesame-42", "n": 123456789, "l": ["sesame-42"]}) == {
        "***": 1,
        "b": b"***",
        "n": "***",
        "l": ["***"],
    }


@pytest.mark.parametrize("value", ["", "a", "abc", "12345", "   x   ", b"abc", None, 123456])
def test_a_secret_too_short_or_no_text_is_refused(value):
    with pytest.raises(ConfigurationError, match="value"):
        Masker().register_secret(value)


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "half"},
        {"mode": "hmac"},
        {"mode": "hmac", "hmac_key": b"short"},
        {"hmac_key": b"k" * 32},
        {"scan_budget": 0},
        {"max_depth": -1},
        {"max_nodes": True},
        {"keys": "password"},
        {"keys": [""]},
        {"keys": [7]},
        {"keys": ["123"]},
        {"allow_keys": "x"},
        {"detectors": [7]},
        {"detectors": [re.compile(b"x")]},
    ],
)
def test_wrong_settings_name_their_argument(settings):
    with pytest.raises(ConfigurationError, match=list(settings)[-1]):
        Masker(**settings)


def test_repr_shows_settings_and_no_registered_secret():
    own = Masker(keys=["salary"])
    own.register_secret("sesame-42")
    assert "salary" in repr(own)
    assert "sesame" not in repr(own)


def test_what_is_remembered_stays_bounded_and_holds_no_secret():
    own = Masker()
    for number in range(20_000):
        own.mask({f"field{number}": f"text {number} x", "password": f"pw{number}", "note": f"password=pw{number}"})
    assert len(own.clean) <= 4096
    assert len(own.clean_keys) <= 4096
    assert not any("pw" in text for text in own.clean)


def test_registering_while_others_mask_is_safe():
    own = Masker()
    failures: list[object] = []

    def work() -> None:
        for number in range(300):
            out = own.mask({"a": f"user {number} password=x{number}", "token": "t"})
            if "[masking failed]" in str(out) or f"x{number}" in str(out):
                failures.append(out)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        own.register_secret(f"registered-{number}")
    for thread in threads:
        thread.join()
    assert failures == []


def test_the_vendor_table_is_well_formed():
    prefixes = [token.prefix for token in table()]
    assert len(prefixes) == len(set(prefixes)) >= 150
    for token in table():
        assert token.what
        assert token.source
        assert re.fullmatch(r"20\d\d-\d\d", token.noted)
        assert len(token.prefix) + token.least >= 14


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.uuids(),
    st.decimals(),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=12), st.integers(), st.binary(max_size=5)), inner, max_size=4),
        st.tuples(inner, inner),
    ),
    max_leaves=12,
)


@given(values)
def test_mask_never_raises_and_never_changes_its_input(value):
    before = repr(value)
    masker.mask(value)
    assert repr(value) == before


SENSITIVE = st.sampled_from(["password", "apiKey", "X-Auth-Token", "client_secret", "DB_PASSWORD", "contraseña"])
planted = st.text(st.characters(codec="utf-8", exclude_characters="*"), min_size=9, max_size=30).filter(
    lambda text: len(text.strip()) >= 9 and not text.lower().strip().startswith(("redacted", "{", "["))
)


@given(SENSITIVE, planted, values)
def test_a_secret_under_a_sensitive_name_never_comes_out(name, secret, around):
    out = repr(masker.mask({"a": [{"b": around}, {name: secret}]}))
    assert out.count(secret) <= repr(around).count(secret)


@given(st.text(max_size=300))
def test_any_text_is_masked_without_a_failure(text):
    assert "[masking failed]" not in masker.mask_text(text) or "[masking failed]" in text


@settings(max_examples=500)
@given(SENSITIVE.filter(str.isascii), st.text("abcXYZ0189_-.", min_size=9, max_size=30), st.text(max_size=40))
def test_a_secret_after_a_sensitive_name_in_any_text_never_comes_out(name, secret, around):
    for written in (f"{name}={secret}", f'"{name}": "{secret}"', f"{name}: {secret}"):
        assert secret not in masker.mask_text(f"{around} {written} ") or secret in f"{around}{name}"


def test_masking_works_near_the_recursion_limit():
    def dive(depth: int) -> object:
        if depth:
            return dive(depth - 1)
        return masker.mask({"password": PASSWORD, "a": [[[["x"]]]]})

    room = sys.getrecursionlimit() - 60
    for depth in range(room - 60, room, 5):
        try:
            out = dive(depth)
        except RecursionError:
            continue
        assert PASSWORD not in repr(out)


@pytest.mark.parametrize("mode", ["full", "hmac", "last4"])
@pytest.mark.parametrize(
    "line",
    [
        'raise ValueError("password=" + secret)',
        "raise ValueError('token: ' + secret)",
        'raise ValueError("bad password " + secret)',
        'log("host=x password=" +secret, 3)',
        "text = 'api_key=%s' % secret",
    ],
)
def test_a_line_of_code_that_ends_a_text_with_a_name_does_not_take_the_lines_behind_it_along(line, mode):
    masker = Masker(mode=mode, hmac_key=b"k" * 32 if mode == "hmac" else None)
    frames = f'  File "app.py", line 3, in pay\n    {line}\n  File "app.py", line 9, in "run"\nKeyError: \'x\''
    first, second, *rest = masker.mask_text(frames).split("\n")
    assert first == '  File "app.py", line 3, in pay'
    assert second.startswith("    " + line[:10])
    assert rest == ['  File "app.py", line 9, in "run"', "KeyError: 'x'"]


@pytest.mark.parametrize("text", ["it's password='+{}'", 'said "x" password="+{}"', "don't: token='{}\n{}' end"])
def test_a_quote_that_only_seems_to_close_another_still_hides_what_follows_on_its_line(text):
    assert "abc12xyz" not in Masker().mask_text(text.format("abc12xyz", "abc12xyz"))


@pytest.mark.parametrize("setting", [{"keys": 5}, {"allow_keys": None}, {"detectors": 5}])
def test_a_setting_that_is_not_several_things_is_refused_by_its_name(setting):
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        Masker(**setting)


def test_a_placeholder_in_angle_brackets_is_no_secret():
    assert Masker().mask_text("api_key: <not set>") == "api_key: <not set>"


def test_the_verifier_that_postgresql_keeps_of_a_password_is_hidden():
    verifier = (
        "SCRAM-SHA-256$4096:" + "c2FsdHNhbHRzYWx0" + "==$" + "U3RvcmVkS2V5" * 3 + "=:" + "U2VydmVyS2V5" * 3 + "="
    )
    assert Masker().mask_text(f"rolpassword {verifier} ok") == "rolpassword *** ok"


@pytest.mark.parametrize(
    "text", ["New password for bob: {}", "the token for user 7 is {}", "password for ada@x.org: {}"]
)
def test_a_secret_is_hidden_behind_the_one_it_is_for(text):
    assert "a8f3k2m9z" not in Masker().mask_text(text.format("a8f3k2m9z"))
    assert Masker().mask_text("password for bob: expired") == "password for bob: expired"


@pytest.mark.parametrize("name", ["contraseña", "пароль", "hasło", "비밀번호"])
def test_a_name_of_another_language_is_known_in_json_and_in_bytes_that_were_escaped(name):
    masker, body = Masker(), {name: "a8f3k2m9z", "año": 2024}
    for text in (json.dumps(body), json.dumps(json.dumps(body)), repr(json.dumps(body, ensure_ascii=False).encode())):
        masked = masker.mask_text(text)
        assert "a8f3k2m9z" not in masked
        assert "2024" in masked


def test_a_name_right_behind_an_escaped_line_break_is_known():
    masked = Masker().mask_text(json.dumps({"body": "[smtp]\nauthor=bob\ntotal=3\npassword = a8f3k2m9z\n"}))
    assert "a8f3k2m9z" not in masked
    assert r"\nauthor=bob\ntotal=3\npassword" in masked


@pytest.mark.parametrize("text", [r"\ud83d: 3", r"\udc00name: x", r"\xff=1", r"\u12: 4", r"C:\new=1", "\\u005c: 1"])
def test_escapes_that_mean_no_name_are_left(text):
    assert Masker().mask_text(text) == text


@pytest.mark.parametrize("number", [float(CARD), Decimal(CARD), int(CARD)])
def test_a_card_is_hidden_whatever_kind_of_number_it_is(number):
    assert Masker().mask({"paid_with": number}) == {"paid_with": "***"}
    assert Masker().mask([Decimal("12.50"), 4e15, float("inf")]) == [Decimal("12.50"), 4e15, float("inf")]


def test_a_password_goes_on_where_no_host_can_begin():
    assert masker.mask_text("postgresql://app:p@ss:w/rd!x9@db/bank") == "postgresql://app:***@db/bank"
    assert (
        masker.mask_text("mongodb://u:p4ss@h1:27017,h2:27017/db?x=a@b")
        == "mongodb://u:***@h1:27017,h2:27017/db?x=a@b"
    )


def test_what_a_validation_refused_is_hidden_where_its_field_is_sensitive():
    told = {"type": "int_parsing", "loc": ("body", "password"), "msg": "must be a number", "input": PASSWORD}
    assert masker.mask(told) == {**told, "input": "***"}
    assert masker.mask_text(repr([told])) == repr([{**told, "input": "***"}])
    harmless = {**told, "loc": ("body", "age"), "input": "young"}
    assert masker.mask(harmless) == harmless
    assert masker.mask_text(repr(harmless)) == repr(harmless)
    text = "1 error\nlogin.password\n  Must be a number [type=x, input_value={!r}, input_type=str]\n"
    assert masker.mask_text(text.format(PASSWORD)) == text.replace("{!r}", "***")
    assert masker.mask_text(text.replace("password", "age").format("young")) == text.replace(
        "password", "age"
    ).format("young")


@pytest.mark.parametrize(
    "text",
    [
        "ENV API_KEY {}",
        "env:\n- name: DB_PASSWORD\n  value: {}\n- name: REGION\n  value: eu",
        '- name: DB_PASSWORD\n  value: "{}"\n- name: x',
        "<p>{{&quot;password&quot;:&quot;{}&quot;,&quot;n&quot;:1}}</p>",
        "POST /?password[]={}&n=1",
        '{{"op": "replace", "path": "/user/password", "value": "{}"}}',
    ],
)
def test_a_secret_is_hidden_in_notations_that_put_its_name_elsewhere(text):
    assert masker.mask_text(text.format(PASSWORD)) == text.format("***")


def test_a_block_of_yaml_with_a_tag_is_hidden_as_a_whole():
    assert PASSWORD not in masker.mask_text(f"password: !vault |\n  {PASSWORD}\n  {PASSWORD}\nuser: bob\n")


def test_what_a_patch_changes_is_told_by_the_end_of_its_path():
    patch = {"op": "replace", "path": "/user/password", "value": PASSWORD}
    assert masker.mask(patch) == {**patch, "value": "***"}
    for path in ("/tokens/list", "/srv/app", 5):
        assert masker.mask({**patch, "path": path}) == {**patch, "path": path}
        assert masker.mask_text(json.dumps({**patch, "path": path})) == json.dumps({**patch, "path": path})


def test_a_registered_number_is_hidden_also_under_a_name_that_was_seen_before():
    own = Masker()
    assert own.mask({"n": 48151623, "l": [7, 48151623]}) == {"n": 48151623, "l": [7, 48151623]}
    own.register_secret("48151623")
    for _ in range(2):
        assert own.mask({"n": 48151623, "l": [7, 48151623, 8]}) == {"n": "***", "l": [7, "***", 8]}
