"""The project service over real HTTP, beside a real employee service that can be slow."""

from __future__ import annotations

import socket
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psycopg
import pytest
from running import bearer

from examples.project.__main__ import listen
from reliakit import SYSTEM_CLOCK


@pytest.fixture
def client(project):
    with httpx2.Client(base_url=project.url, headers=bearer("lead"), timeout=20.0) as client:
        yield client


@pytest.fixture
def projects(client):
    return [client.post("/projects", json={"name": uuid.uuid4().hex}).json()["id"] for _ in range(2)]


@pytest.fixture
def people(employee):
    """Ten employees; a test takes as many as it needs."""
    with httpx2.Client(base_url=employee.url, headers=bearer("boss"), timeout=20.0) as client:
        department = client.post("/departments", json={"name": uuid.uuid4().hex, "budget": 10_000}).json()["id"]
        hired = [str(uuid.uuid4()) for _ in range(10)]
        for number, employee_id in enumerate(hired):
            body = {
                "department_id": department,
                "name": f"Person {number}",
                "email": f"{employee_id}@example.org",
                "iban": "DE02120300000000202051",
                "salary": 100,
                "starts_on": "2026-01-01",
            }
            assert client.put(f"/employees/{employee_id}", json=body).status_code == 201
    return hired


def transfer(employee_id, source, target):
    return {"id": str(uuid.uuid4()), "employee_id": employee_id, "source": source, "target": target}


def heads(client, projects):
    return [client.get(f"/projects/{project_id}").json()["head_count"] for project_id in projects]


def test_an_employee_is_put_on_a_project_once(client, projects, people):
    first, other = projects
    assert client.put(f"/projects/{first}/members/{people[0]}").status_code == 201
    assert client.put(f"/projects/{first}/members/{people[0]}").status_code == 204
    assert client.put(f"/projects/{other}/members/{people[0]}").status_code == 409
    page = client.get(f"/projects/{first}").json()
    assert page["members"] == [{"id": people[0], "name": "Person 0"}]
    assert page["names_known"] is True


def test_nobody_unknown_is_put_on_a_project(client, projects):
    assert client.put(f"/projects/{projects[0]}/members/{uuid.uuid4()}").status_code == 404
    assert heads(client, projects) == [0, 0]


def test_transfers_in_opposite_directions_all_succeed_and_keep_the_head_count(project, client, projects, people):
    first, other = projects
    for number, employee_id in enumerate(people):
        client.put(f"/projects/{projects[number % 2]}/members/{employee_id}")

    def to_and_fro(number):
        source, target = projects[number % 2], projects[1 - number % 2]
        codes = []
        with httpx2.Client(base_url=project.url, headers=bearer("lead"), timeout=20.0) as own:
            for _ in range(6):
                answer = own.post("/transfers", json=transfer(people[number], source, target))
                codes.append(answer.status_code)
                source, target = target, source
        return codes

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(to_and_fro, range(8)))
    assert codes == [[201] * 6] * 8
    assert heads(client, projects) == [5, 5]
    assert len(client.get(f"/projects/{first}").json()["members"]) == 5
    assert len(client.get(f"/projects/{other}").json()["members"]) == 5


def test_a_transfer_that_is_sent_twice_is_made_once(client, projects, people):
    client.put(f"/projects/{projects[0]}/members/{people[0]}")
    body = transfer(people[0], *projects)
    assert client.post("/transfers", json=body).status_code == 201
    assert client.post("/transfers", json={**body, "id": body["id"].upper()}).status_code == 201
    assert heads(client, projects) == [0, 1]


def test_an_id_that_belongs_to_another_transfer_is_not_answered_as_made(client, projects, people):
    client.put(f"/projects/{projects[0]}/members/{people[0]}")
    body = transfer(people[0], *projects)
    assert client.post("/transfers", json=body).status_code == 201
    back = {**body, "source": body["target"], "target": body["source"]}
    answer = client.post("/transfers", json=back)
    assert answer.status_code == 409
    assert "another transfer" in answer.json()["detail"]
    assert heads(client, projects) == [0, 1]


def test_a_whole_number_may_be_written_with_a_fraction_of_none(client, projects, people):
    client.put(f"/projects/{projects[0]}/members/{people[0]}")
    body = transfer(people[0], float(projects[0]), projects[1])
    assert client.post("/transfers", json=body).status_code == 201
    assert heads(client, projects) == [0, 1]


def test_the_employee_service_learns_where_everybody_works_also_after_an_outage(
    client, projects, people, employee, employee_network
):
    first, other = projects
    with httpx2.Client(base_url=employee.url, headers=bearer("boss"), timeout=20.0) as boss:

        def learns(project_id):
            until = SYSTEM_CLOCK.monotonic() + 20
            while SYSTEM_CLOCK.monotonic() < until:
                if boss.get(f"/employees/{people[0]}").json()["project_id"] == project_id:
                    return True
                SYSTEM_CLOCK.sleep(0.05)
            return False

        assert client.put(f"/projects/{first}/members/{people[0]}").status_code == 201
        assert learns(first)
        with employee_network.refuse():
            for source, target in ((first, other), (other, first), (first, other)):
                assert client.post("/transfers", json=transfer(people[0], source, target)).status_code == 201
        assert learns(other)


def test_a_transfer_from_where_somebody_is_not_is_refused(client, projects, people):
    client.put(f"/projects/{projects[0]}/members/{people[0]}")
    answer = client.post("/transfers", json=transfer(people[0], projects[1], projects[0]))
    assert answer.status_code == 409
    assert heads(client, projects) == [1, 0]


def test_a_slow_employee_service_costs_the_names_and_not_the_page(
    project, client, projects, people, employee_network
):
    client.put(f"/projects/{projects[0]}/members/{people[0]}")
    with employee_network.latency(2.0, direction="to_server"):
        health, until = "closed", SYSTEM_CLOCK.monotonic() + 20
        while health != "open" and SYSTEM_CLOCK.monotonic() < until:
            page = client.get(f"/projects/{projects[0]}").json()
            assert page["names_known"] is False
            assert page["head_count"] == 1
            health = client.get("/health").json()["employee_service"]
        assert health == "open"
        # What needs an answer is refused at once, with when to come again.
        refused = client.put(f"/projects/{projects[1]}/members/{people[1]}")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 0
    until = SYSTEM_CLOCK.monotonic() + 20
    while SYSTEM_CLOCK.monotonic() < until and not client.get(f"/projects/{projects[0]}").json()["names_known"]:
        SYSTEM_CLOCK.sleep(0.1)
    assert client.get("/health").json()["employee_service"] == "closed"
    assert project.metric('reliakit_circuit_breaker_transitions_total{name="employee-service"') >= 3


def test_bad_input_is_told_by_place(client):
    answer = client.post("/transfers", json={"id": "x", "employee_id": str(uuid.uuid4()), "source": 0, "target": 1})
    assert answer.status_code == 422
    assert {entry["pointer"] for entry in answer.json()["errors"]} == {"#/id", "#/source"}
    same = client.post("/transfers", json=transfer(str(uuid.uuid4()), 1, 1))
    assert [entry["pointer"] for entry in same.json()["errors"]] == ["#/target"]


def test_text_that_no_database_takes_is_refused_as_bad_input(client):
    assert client.post("/projects", json={"name": "a\0b"}).status_code == 422


@pytest.mark.parametrize("body", ["{", "[" * 60_000], ids=["torn", "deep"])
def test_what_is_no_json_is_400(client, body):
    answer = client.post("/transfers", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 400


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer x.y.z"}, bearer(exp=1)])
def test_a_token_that_is_not_valid_is_401(project, header):
    answer = httpx2.get(f"{project.url}/projects", headers=header)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_server_does_not_decide_who_the_client_is(project):
    # uvicorn would take the word that is no address, which costs whoever sends it nothing.
    place = {"X-Forwarded-For": "203.0.113.77, nowhere-at-all"}
    assert project.client.get("/projects", headers=place).status_code == 401
    assert "nowhere-at-all" not in project.log


def test_a_method_that_is_not_allowed_is_told_which_are(client):
    answer = client.delete("/transfers")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("number", ["0", "9" * 10, "9" * 5000, "x"])
def test_a_project_that_cannot_exist_is_404_whatever_its_number(client, number):
    assert client.get(f"/projects/{number}").status_code == 404
    assert client.put(f"/projects/{number}/members/{uuid.uuid4()}").status_code == 404


def test_a_page_shows_a_hundred_people_and_counts_them_all(project, client, projects):
    with psycopg.connect(project.settings["DATABASE_URL"]) as connection:
        connection.execute(
            "INSERT INTO assignment (employee_id, project_id) SELECT gen_random_uuid(), %s"
            " FROM generate_series(1, 101)",
            (projects[0],),
        )
        connection.execute("UPDATE project SET head_count = 101 WHERE id = %s", (projects[0],))
    page = client.get(f"/projects/{projects[0]}").json()
    assert (len(page["members"]), page["head_count"]) == (100, 101)


def test_a_body_does_not_wait_until_the_client_acknowledges_the_headers():
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_pages_of_its_operators_answer_get_and_head_at_their_own_address(project, method):
    assert set(project.operations(method).values()) == {200}


@pytest.mark.parametrize(
    ("kind", "status"), [("text/plain", 415), ("application/jsonp", 415), ("application/problem+json", 422)]
)
def test_a_body_that_does_not_call_itself_json_is_415(client, kind, status):
    text = b'{"name": 7}'
    answer = client.post("/projects", content=text, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
