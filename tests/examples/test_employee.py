"""The employee service over real HTTP."""

from __future__ import annotations

import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2
import pytest
from running import bearer

from reliakit import SYSTEM_CLOCK
from reliakit.testing import FaultProxy


@pytest.fixture
def client(employee):
    with httpx2.Client(base_url=employee.url, headers=bearer("boss"), timeout=20.0) as client:
        yield client


@pytest.fixture
def department(client):
    answer = client.post("/departments", json={"name": uuid.uuid4().hex, "budget": 1_000_000})
    assert answer.status_code == 201
    return answer.json()["id"]


def new_employee(department, **changes):
    known = {
        "department_id": department,
        "name": "Ada",
        "email": f"{uuid.uuid4().hex}@example.org",
        "iban": "DE02120300000000202051",
        "salary": 100_000,
        "starts_on": "2026-01-01",
    }
    return known | changes


@pytest.fixture
def ada(client, department):
    employee_id = str(uuid.uuid4())
    assert client.put(f"/employees/{employee_id}", json=new_employee(department)).status_code == 201
    return employee_id


def budget(client, department):
    return client.get(f"/departments/{department}").json()["budget"]


def test_an_employee_is_hired_changed_and_dismissed(client, department, ada):
    assert budget(client, department) == 900_000
    assert client.patch(f"/employees/{ada}", json={"name": "Ada L."}).json()["name"] == "Ada L."
    assert [known["id"] for known in client.get(f"/departments/{department}/employees").json()] == [ada]
    assert client.delete(f"/employees/{ada}").status_code == 204
    assert client.get(f"/employees/{ada}").status_code == 404
    assert budget(client, department) == 1_000_000


def test_raises_that_collide_are_tried_again_and_all_given(employee, client, department, ada):
    before = employee.metric("reliakit_transaction_retries_total{")

    def give(amount):
        with httpx2.Client(base_url=employee.url, headers=bearer("boss"), timeout=20.0) as own:
            body = {"id": str(uuid.uuid4()), "amount": amount}
            return own.post(f"/employees/{ada}/raises", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(give, range(1, 41)))
    assert codes == [201] * 40
    assert client.get(f"/employees/{ada}").json()["salary"] == 100_000 + 820
    assert budget(client, department) == 900_000 - 820
    assert employee.metric("reliakit_transaction_retries_total{") > before


def test_a_raise_that_is_sent_twice_is_given_once(client, ada):
    body = {"id": str(uuid.uuid4()), "amount": 50}
    assert client.post(f"/employees/{ada}/raises", json=body).status_code == 201
    assert client.post(f"/employees/{ada}/raises", json=body).status_code == 200
    assert client.get(f"/employees/{ada}").json()["salary"] == 100_050
    assert client.post(f"/employees/{ada}/raises", json={**body, "amount": 51}).status_code == 409


def test_a_raise_beyond_the_budget_is_refused_and_leaves_no_trace(client, department, ada):
    answer = client.post(f"/employees/{ada}/raises", json={"id": str(uuid.uuid4()), "amount": 900_001})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert budget(client, department) == 900_000
    assert client.get(f"/employees/{ada}").json()["salary"] == 100_000


def test_a_move_takes_head_and_salary_along(client, department, ada):
    other = client.post("/departments", json={"name": uuid.uuid4().hex, "budget": 150_000}).json()["id"]
    assert client.put(f"/employees/{ada}/department", json={"department_id": other}).status_code == 200
    assert (budget(client, department), budget(client, other)) == (1_000_000, 50_000)
    assert client.get(f"/departments/{other}").json()["head_count"] == 1


def test_bad_input_is_told_by_place_and_never_repeated(client, department):
    body = new_employee(department, email="nobody", salary=0, iban="s3cret", extra=1)
    answer = client.put(f"/employees/{uuid.uuid4()}", json=body)
    assert answer.status_code == 422
    assert {"#/email", "#/salary", "#/iban"} <= {entry["pointer"] for entry in answer.json()["errors"]}
    assert "s3cret" not in answer.text


def test_fields_that_contradict_each_other_are_told(client, department):
    body = new_employee(department, ends_on="2025-12-31")
    answer = client.put(f"/employees/{uuid.uuid4()}", json=body)
    assert answer.status_code == 422
    assert [entry["pointer"] for entry in answer.json()["errors"]] == ["#/ends_on"]


def test_text_that_no_database_takes_is_refused_as_bad_input(client):
    assert client.post("/departments", json={"name": "a\0b", "budget": 1}).status_code == 422
    assert client.post("/departments", json={"name": " ", "budget": 1}).status_code == 422


@pytest.mark.parametrize("body", ["{", "[" * 60_000], ids=["torn", "deep"])
def test_what_is_no_json_is_400(client, ada, body):
    answer = client.post(f"/employees/{ada}/raises", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer x.y.z"}, bearer(exp=1)])
def test_a_token_that_is_not_valid_is_401(employee, header):
    answer = httpx2.get(f"{employee.url}/departments/1", headers=header)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_the_server_does_not_decide_who_the_client_is(employee):
    # waitress would take the header away.
    assert employee.client.get("/employees", headers={"X-Forwarded-For": "203.0.113.78"}).status_code == 401
    assert "203.0.113.78" in employee.log


def test_connections_on_which_nobody_speaks_keep_nobody_out(employee):
    host, port = employee.url.removeprefix("http://").split(":")
    with ExitStack() as silent:
        for _ in range(150):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=20.0))
        assert httpx2.get(f"{employee.url}/health", timeout=20.0).status_code == 200


def test_personal_data_goes_in_and_not_into_the_log(employee, client, department):
    body = new_employee(department, note="card 4111111111111111, call grace@example.org")
    employee_id = uuid.uuid4()
    assert client.put(f"/employees/{employee_id}", json=body).status_code == 201
    assert str(employee_id) in employee.log
    for secret in (body["email"], body["iban"], "4111111111111111", "grace@example.org"):
        assert secret not in employee.log


def test_a_request_that_was_taken_in_is_answered_before_the_service_ends(start_service, postgres):
    with FaultProxy(postgres.dsn) as network:
        service = start_service("employee", DATABASE_URL=network.dsn(postgres.database("employee")))
        network.latency(0.2)
        answers = []

        def ask():
            answers.append(httpx2.get(f"{service.url}/departments/1", headers=bearer(), timeout=20.0).status_code)

        before = network.stats().bytes_to_server
        asking = threading.Thread(target=ask)
        asking.start()
        while network.stats().bytes_to_server == before:
            SYSTEM_CLOCK.sleep(0.005)
        assert service.stop() == 0
        asking.join()
    assert answers == [404]


def test_a_method_that_is_not_allowed_is_told_which_are(client):
    answer = client.get("/departments")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_pages_of_its_operators_answer_get_and_head_at_their_own_address(employee, method):
    assert set(employee.operations(method).values()) == {200}


@pytest.mark.parametrize(
    ("kind", "status"), [("text/plain", 415), ("application/jsonp", 415), ("application/problem+json", 422)]
)
def test_a_body_that_does_not_call_itself_json_is_415(client, kind, status):
    text = b'{"name": 7}'
    answer = client.post("/departments", content=text, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
