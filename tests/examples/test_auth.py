"""The auth service over real HTTP."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import uuid

import jwt
import pytest
from running import ROOT, SECRET, bearer, environment

from examples.auth.passwords import Passwords


@pytest.fixture
def email():
    return f"{uuid.uuid4().hex}@example.org"


@pytest.fixture
def account(auth, email):
    body = {"email": email, "password": "correct horse battery"}
    assert auth.client.post("/register", json=body).status_code == 201
    return body


def without_request_id(answer):
    return {name: value for name, value in answer.json().items() if name != "request_id"}


def test_a_registered_account_logs_in_and_its_token_is_verified(auth, account):
    answer = auth.client.post("/login", json=account)
    assert answer.status_code == 200
    token = answer.json()["access_token"]
    claims = auth.client.get("/verify", headers={"Authorization": f"Bearer {token}"})
    assert claims.status_code == 200
    assert claims.json()["sub"] == jwt.decode(token, SECRET, algorithms=["HS256"], issuer="auth")["sub"]


def test_an_address_is_one_account_whatever_its_case(auth, account):
    shouted = {**account, "email": account["email"].upper()}
    assert auth.client.post("/login", json=shouted).status_code == 200
    refused = auth.client.post("/register", json=shouted)
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(("ours", "twin"), [("a", "\uff41"), ("ss", "\u00df")], ids=["width", "sharp s"])
def test_nobody_can_register_a_twin_whose_logins_clear_the_failures_of_an_account(auth, email, ours, twin):
    body = {"email": ours + email, "password": "correct horse battery"}
    assert auth.client.post("/register", json=body).status_code == 201
    assert auth.client.post("/register", json={**body, "email": twin + email}).status_code == 409


@pytest.mark.parametrize("cookie", ['device="  "', "device=", "device=" + 65 * "x"])
def test_a_cookie_that_is_not_ours_keeps_nobody_out(auth, account, cookie):
    answer = auth.client.post("/login", json=account, headers={"Cookie": cookie})
    assert answer.status_code == 200
    assert len(answer.cookies["device"]) == 43


def test_the_server_does_not_decide_who_the_client_is(auth):
    # uvicorn would take the word that is no address, which costs whoever sends it nothing.
    place = {"X-Forwarded-For": "203.0.113.77, nowhere-at-all"}
    assert auth.client.get("/verify", headers=place).status_code in {401, 429}
    assert "nowhere-at-all" not in auth.log


def test_a_wrong_password_and_an_unknown_account_answer_the_same(auth, account):
    wrong = auth.client.post("/login", json={**account, "password": "wrong horse battery"})
    unknown = auth.client.post("/login", json={"email": f"x{account['email']}", "password": "wrong horse battery"})
    assert wrong.status_code == unknown.status_code == 401
    assert without_request_id(wrong) == without_request_id(unknown)


@pytest.mark.anyio
async def test_an_unknown_account_costs_one_hash_as_a_wrong_password_does():
    passwords = Passwords(1)
    checked = []

    class Recording:
        def verify(self, stored, password):
            checked.append(stored)
            return True

    stored = await passwords.hash("correct horse battery")
    passwords._hasher = Recording()
    assert await passwords.fits(stored, "any") is True
    assert await passwords.fits(None, "any") is False
    assert len(checked) == 2
    # The decoy is as expensive as the real one.
    assert checked[0].split("$")[:4] == checked[1].split("$")[:4]


def test_bad_input_is_told_by_place_and_never_repeated(auth):
    answer = auth.client.post("/register", json={"email": "nobody", "password": "s3cret"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert {entry["pointer"] for entry in answer.json()["errors"]} == {"#/email", "#/password"}
    assert "nobody" not in answer.text
    assert "s3cret" not in answer.text


@pytest.mark.parametrize(
    "text",
    [
        b'{"email": "a\\u0000@b.cd", "password": "correct horse"}',
        b'{"email": "a@b.cd", "password": "correct \\ud800 horse"}',
    ],
)
def test_text_that_no_database_or_hash_takes_is_refused_as_bad_input(auth, text):
    answer = auth.client.post("/register", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic eDp5"},
        {"Authorization": "Bearer " + jwt.encode({"iss": "auth", "sub": "7", "iat": 1, "exp": 9**10}, None, "none")},
        {"Authorization": "Bearer " + jwt.encode({"iss": "auth", "sub": "7", "iat": 1, "exp": 9**10}, 32 * "x")},
        bearer(exp=1),
        bearer(iss="somebody else"),
    ],
    ids=["none", "garbage", "basic", "unsigned", "other key", "expired", "other issuer"],
)
def test_a_token_that_is_not_ours_is_401(auth, header):
    # Each from a place of its own: too many from one are slowed down.
    place = {"X-Forwarded-For": str(ipaddress.IPv4Address(uuid.uuid4().int % 2**31))}
    answer = auth.client.get("/verify", headers={**header, **place})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"


def test_guesses_are_slowed_down_and_spare_the_owner_s_device(auth, account):
    guess = {**account, "password": "wrong horse battery"}
    attacker, owner = {"X-Forwarded-For": "203.0.113.66"}, {"X-Forwarded-For": "198.51.100.7"}
    known = auth.client.post("/login", json=account, headers=owner)
    owner["Cookie"] = known.headers["set-cookie"].partition(";")[0]
    answers = []
    # A slow machine may sit out the first waits, but each is twice as long as the last.
    while not answers or (answers[-1].status_code == 401 and len(answers) < 20):
        answers.append(auth.client.post("/login", json=guess, headers=attacker))
    refused = answers[-1]
    assert len(answers) > 5
    assert (refused.status_code, refused.json()["code"]) == (429, "login_blocked")
    assert 1 <= int(refused.headers["retry-after"]) <= 900
    assert auth.client.post("/login", json=account, headers=owner).status_code == 200


def test_failed_logins_are_counted_and_their_secrets_are_not_logged(auth, account):
    before = auth.metric('reliakit_security_total{event="failed_login"')
    guess = {**account, "password": f"guess {uuid.uuid4().hex}"}
    auth.client.post("/login", json=guess)
    assert auth.metric('reliakit_security_total{event="failed_login"') == before + 1
    assert "failed_login" in auth.log
    assert guess["password"] not in auth.log
    assert account["email"] not in auth.log


def test_an_unknown_page_is_a_problem_too(auth):
    answer = auth.client.get("/nowhere")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def run_alone(**settings):
    return subprocess.run(
        [sys.executable, "-m", "examples.auth"],
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"JWT_SECRET": SECRET}, "DATABASE_URL"),
        ({"DATABASE_URL": "host=/nowhere", "JWT_SECRET": "short"}, "JWT_SECRET"),
        ({"DATABASE_URL": "host=/nowhere", "JWT_SECRET": SECRET, "PORT": "many"}, "many"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(settings, named):
    done = run_alone(**settings)
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_that_was_asked_for_and_is_taken_is_told_in_one_line(auth):
    port = auth.url.rpartition(":")[2]
    done = run_alone(DATABASE_URL="host=/nowhere", JWT_SECRET=SECRET, PORT=port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_pages_of_its_operators_answer_get_and_head_at_their_own_address(auth, method):
    assert set(auth.operations(method).values()) == {200}


@pytest.mark.parametrize(
    ("kind", "status"), [("text/plain", 415), ("application/jsonp", 415), ("application/problem+json", 422)]
)
def test_a_body_that_does_not_call_itself_json_is_415(auth, kind, status):
    text = b'{"name": 7}'
    answer = auth.client.post("/register", content=text, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
