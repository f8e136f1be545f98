"""The auth service over real HTTP."""

from __future__ import annotations

import ipaddress
import math
import socket
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import anyio
import jwt
import pytest
from anyio import to_thread
from running import ROOT, SECRET, bearer, environment

from examples.auth import unlock
from examples.auth.__main__ import listen
from examples.auth.limits import login_guard
from examples.auth.passwords import Passwords
from examples.auth.settings import Settings
from reliakit import SYSTEM_CLOCK, BulkheadFullError, PostgresStore
from reliakit.testing import ManualClock


def somewhere():
    return str(ipaddress.IPv4Address(uuid.uuid4().int % 2**31))


@pytest.fixture
def auth(auth_of_all):
    """Each test comes from an address of its own: of registrations from one place the service takes only a few."""
    auth_of_all.client.headers["X-Forwarded-For"] = somewhere()
    return auth_of_all


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
    answer = auth.client.get("/verify", headers=header)
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


def places(number):
    return [{"X-Forwarded-For": somewhere()} for _ in range(number)]


def test_fifty_guesses_at_once_get_no_further_than_the_free_ones(auth, account):
    guess = {**account, "password": "wrong horse battery"}
    began = SYSTEM_CLOCK.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda place: auth.client.post("/login", json=guess, headers=place), places(50)))
    took = SYSTEM_CLOCK.monotonic() - began
    checked = [answer.status_code for answer in answers].count(401)
    # Each wait is twice as long as the last; a slow machine sits out some.
    assert 5 <= checked <= 5 + math.log2(1 + took)
    assert {answer.status_code for answer in answers} == {401, 429}
    turned_away = next(answer for answer in answers if answer.status_code == 429)
    assert int(turned_away.headers["retry-after"]) >= 1
    assert account["email"] not in auth.log


@pytest.fixture(scope="module")
def restarted(auth_of_all, start_service):
    """Another process on the same database, as after a restart."""
    return start_service("auth", **auth_of_all.settings)


def fail_for_days(settings, email, times):
    """Fail in the past, each time from elsewhere: over HTTP that would take a day."""
    clock = ManualClock(wall=SYSTEM_CLOCK.time() - (times + 2) * 900.0)
    with PostgresStore(settings.database_url, clock=clock) as store:
        guard = login_guard(settings, store)
        for _ in range(times):
            with guard.attempt(account=email, source=somewhere()) as attempt:
                attempt.failure()
            clock.advance(900.0)


def test_an_account_is_stopped_for_everybody_but_its_owner_beyond_a_restart_until_it_is_unlocked(
    auth, account, restarted, monkeypatch, capsys
):
    settings = Settings(jwt_secret=SECRET, database_url=auth.settings["DATABASE_URL"])
    known = auth.client.post("/login", json=account)
    device = {"Cookie": known.headers["set-cookie"].partition(";")[0]}
    before = restarted.metric('reliakit_security_total{event="rate_limit"')
    nobody = {**account, "email": f"x{account['email']}"}
    refused = []
    for body in (account, nobody):
        fail_for_days(settings, body["email"], 99)
        wrong = {**body, "password": "the hundredth guess"}
        assert auth.client.post("/login", json=wrong, headers=places(1)[0]).status_code == 401
        # From nowhere is the right password looked at any more.
        refused += [service.client.post("/login", json=body, headers=places(1)[0]) for service in (auth, restarted)]
    assert {answer.status_code for answer in refused} == {429}
    assert not any("retry-after" in answer.headers for answer in refused)
    # Who has no account is told the same.
    assert all(without_request_id(answer) == without_request_id(refused[0]) for answer in refused)
    assert "unlocked" in refused[0].json()["detail"]
    assert restarted.metric('reliakit_security_total{event="rate_limit"') == before + 2
    assert '"blocked_by":"account"' in restarted.log
    assert account["email"] not in restarted.log

    assert restarted.client.post("/login", json=account, headers=device).status_code == 200
    assert restarted.client.post("/login", json=account).status_code == 429  # which unlocks it for nobody else
    for name, value in {"DATABASE_URL": settings.database_url, "JWT_SECRET": SECRET}.items():
        monkeypatch.setenv(name, value)
    assert unlock.main(account["email"].upper()) == 0
    assert capsys.readouterr().out == "100 failed logins forgotten, which had stopped the account\n"
    assert restarted.client.post("/login", json=account).status_code == 200
    assert auth.client.post("/login", json=nobody).status_code == 429


def test_unlocking_says_when_the_database_cannot_be_reached(monkeypatch, capsys):
    for name, value in {"DATABASE_URL": "host=/nowhere", "JWT_SECRET": SECRET}.items():
        monkeypatch.setenv(name, value)
    assert unlock.main("anybody@example.org") == 2
    assert "cannot unlock" in capsys.readouterr().err


def test_too_many_invalid_tokens_are_told_as_such_and_keep_no_valid_one_out(auth):
    answers = []
    # A slow machine may sit out the first waits, but each is twice as long as the last.
    while not answers or (answers[-1].status_code == 401 and len(answers) < 20):
        answers.append(auth.client.get("/verify", headers={"Authorization": "Bearer x.y.z"}))
    refused = answers[-1]
    assert len(answers) > 5
    assert (refused.status_code, refused.json()["code"]) == (429, "tokens_blocked")
    assert "tokens" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1
    assert auth.client.get("/verify", headers=bearer()).status_code == 200


def test_registrations_from_one_address_are_limited_and_nothing_else(auth):
    street = f"2001:db8:{uuid.uuid4().hex[:4]}:7"
    home, neighbour = ({"X-Forwarded-For": f"{street}::{number}"} for number in (1, 2))
    before = auth.metric('reliakit_security_total{event="rate_limit"')
    answers = []
    # What is no registration costs one too. One comes back in three minutes, which no machine is slow enough for.
    while not answers or (answers[-1].status_code == 422 and len(answers) < 20):
        answers.append(auth.client.post("/register", json={}, headers=neighbour if len(answers) % 2 else home))
    *passed, refused = answers
    assert len(passed) == 10
    assert passed[0].headers["ratelimit-policy"] == '"register";q=20;w=3600'
    assert passed[0].headers["ratelimit"].startswith('"register";r=9')
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["type"].endswith("#quota-exceeded")
    assert refused.json()["violated-policies"] == ["register"]
    assert 1 <= int(refused.headers["retry-after"]) <= 180
    assert refused.headers["ratelimit"].startswith('"register";r=0')
    assert auth.metric('reliakit_security_total{event="rate_limit"') == before + 1
    assert auth.client.post("/register", json={}).status_code == 422
    other = auth.client.post("/login", json={}, headers=home)
    assert other.status_code == 422
    assert "ratelimit" not in other.headers


@pytest.mark.anyio
async def test_registrations_without_end_keep_no_login_from_its_password(monkeypatch):
    monkeypatch.setattr("examples.auth.passwords._LONGEST_WAIT", 600.0)
    passwords, working, done = Passwords(1), threading.Event(), threading.Event()
    checked = []

    class Slow:
        def hash(self, password):
            working.set()
            done.wait(30)

        def verify(self, stored, password):
            checked.append(password)
            return True

    passwords._hasher = Slow()
    refused = 0

    async def register():
        nonlocal refused
        try:
            await passwords.hash("correct horse battery")
        except BulkheadFullError:
            refused += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(register)
        await to_thread.run_sync(working.wait)
        await anyio.wait_all_tasks_blocked()
        refused_before = refused
        tasks.start_soon(passwords.fits, "stored", "the owner's")
        await anyio.wait_all_tasks_blocked()
        done.set()
    assert refused_before == 3  # one was hashed, and sixteen waited
    assert refused == 4  # whose place the login has
    assert checked == ["the owner's"]


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


def test_a_method_that_is_not_allowed_is_told_which_are(auth):
    answer = auth.client.get("/register")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_does_not_wait_until_the_client_acknowledges_the_headers():
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


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
