"""The demo's verdicts can fail: each objective is breached by what it stands for."""

from __future__ import annotations

import dataclasses
import random
import uuid

import psycopg
import pytest

from examples.demo.figures import Figures, Truth, look, sessions
from examples.demo.planted import Planted, Scan, forms, scan
from examples.demo.screen import Screen
from examples.demo.tally import Tally
from examples.demo.verdicts import Run, judge
from reliakit import Objective, Verdict, below
from reliakit.metrics.verdicts import Reading
from reliakit.metrics.verdicts import judge as judged_alone

KINDS = {"transaction_latency": "below", "rollback_rate": "ratio", "error_resolution": "at_most"}


def objective(name, verdict="met", value=0.0, target=0.0, count=1000):
    kind = KINDS.get(name, "complete" if target == 1 else "zero")
    return Verdict(name, verdict, value, target, value, value, count, 300.0, kind=kind)


def good_run():
    planted = Planted(random.Random(1))
    planted.password()
    planted.marker()
    tally = Tally()
    tally.answers["auth", 200] = 100
    tally.writes["raise", "1"] = "acknowledged"
    figures = Figures(
        samples=[
            ("reliakit_circuit_breaker_transitions_total", {"to": "open"}, 1.0),
            ("reliakit_circuit_breaker_transitions_total", {"to": "closed"}, 1.0),
            ("reliakit_transaction_duration_seconds_bucket", {"le": "0.1"}, 100.0),
            ("reliakit_transaction_duration_seconds_bucket", {"le": "+Inf"}, 100.0),
        ],
        verdicts={
            "auth": [
                objective("transaction_latency", value=0.99, target=0.95),
                objective("rollback_rate", value=0.001, target=0.01),
                objective("deadlocks"),
                objective("leaked_connections"),
                objective("errors_tracked", value=1.0, target=1.0),
                objective("error_resolution", value=12.0, target=3600.0, count=1),
                objective("secrets_masked", value=1.0, target=1.0),
            ]
        },
    )
    return Run(
        tally=tally,
        figures=figures,
        truth=Truth(missing=0, ghosts=0, money=0, heads=0, people=24, untold=0, sessions=6, stuck=0),
        planted=planted,
        scan=Scan(lines=100, found=[], markers=1),
        people=24,
        seconds=15.0,
        with_faults=True,
        settled_after=0.1,
        exit_codes={"auth": 0},
        sessions_left=0,
    )


def breached(run):
    return [row.name for row in judge(run) if row.verdict == "breached"]


def test_a_good_run_breaches_nothing():
    assert breached(good_run()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"missing": 1}, "acknowledged writes missing"),
        ({"ghosts": 1}, "refused writes that happened"),
        ({"money": -1}, "cents made or lost"),
        ({"people": 23}, "people made or lost"),
        ({"heads": 1}, "head counts that are wrong"),
        ({"stuck": 1}, "sessions in a transaction"),
    ],
)
def test_what_the_database_holds_can_breach(change, named):
    run = good_run()
    assert breached(dataclasses.replace(run, truth=dataclasses.replace(run.truth, **change))) == [named]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scan": Scan(lines=9, found=[("password", "auth.log")], markers=1)}, "planted secrets in logs"),
        ({"scan": Scan(lines=9, found=[], markers=0)}, "planted secrets in logs"),
        ({"sessions_left": 1}, "sessions after the services"),
        ({"exit_codes": {"auth": -9}}, "services that ended badly"),
        ({"settled_after": None}, "breaker opened, closed"),
    ],
    ids=["found", "not looked", "session", "killed", "not settled"],
)
def test_what_is_left_can_breach(change, named):
    assert breached(dataclasses.replace(good_run(), **change)) == [named]


def test_what_the_traffic_saw_can_breach():
    run = good_run()
    run.tally.problems["500 internal_error"] = 1
    run.tally.surprises["200 to a forged token"] = 1
    run.tally.guesses_answered = 12
    run.tally.writes["raise", "2"] = "unknown"
    assert breached(run) == [
        "failed by a defect",
        "attacker's guesses looked at",
        "forged tokens, bad input let in",
        "writes without a final answer",
    ]


@pytest.mark.parametrize(
    ("name", "value", "target"),
    [
        ("deadlocks", 1.0, 0.0),
        ("leaked_connections", 1.0, 0.0),
        ("errors_tracked", 0.9, 1.0),
        ("error_resolution", 4000.0, 3600.0),
        ("secrets_masked", 0.99, 1.0),
        ("rollback_rate", 0.05, 0.01),
    ],
)
def test_one_service_that_breaches_an_objective_is_enough(name, value, target):
    run = good_run()
    run.figures.verdicts["project"] = [objective(name, "breached", value=value, target=target)]
    assert len(breached(run)) == 1


def test_what_rests_on_too_little_is_told_so():
    run = good_run()
    run.figures.verdicts["auth"][0] = objective(
        "transaction_latency", "insufficient_data", value=1.0, target=0.95, count=9
    )
    (row,) = [row for row in judge(run) if row.name == "within 0.1 s"]
    assert row.verdict == "at_risk"


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.99, "met"), (0.952, "at_risk"), (0.945, "at_risk"), (0.90, "breached")],
)
def test_a_share_is_breached_only_when_it_surely_is(value, verdict):
    run = good_run()
    alone = judged_alone(Objective("transaction_latency", below("x", 0.1, 0.95)), Reading(value * 1000, 1000))
    run.figures.verdicts["auth"][0] = alone
    (row,) = [row for row in judge(run) if row.name == "within 0.1 s"]
    assert row.verdict == verdict


def test_a_quantile_lies_inside_its_bucket():
    counts = {"0.1": 50.0, "0.2": 100.0, "+Inf": 100.0}
    figures = Figures(samples=[("d_bucket", {"le": le}, count) for le, count in counts.items()])
    assert figures.quantile("d", 0.5) == pytest.approx(0.1)
    assert figures.quantile("d", 0.75) == pytest.approx(0.15)


def test_a_secret_is_found_in_every_form_that_it_is_written_in(tmp_path):
    planted = Planted(random.Random(1))
    secrets = [planted.password(), planted.email(), planted.iban(), planted.card(), planted.forged_token()]
    for secret in secrets:
        for number, form in enumerate(forms(secret)):
            (tmp_path / "a.log").write_text(f"{{'x': {number}, 'y': '{form}'}}\n")
            assert [kind for kind, _ in scan(planted, tmp_path).found] == [planted.secrets[secret]]
    (tmp_path / "a.log").write_text("nothing here\n")
    assert scan(planted, tmp_path) == Scan(lines=1, found=[], markers=0)


def test_the_databases_are_asked_and_not_the_services(postgres):
    employee, project = postgres.database("employee"), postgres.database("project")
    there, gone = str(uuid.uuid4()), str(uuid.uuid4())
    with psycopg.connect(employee) as connection:
        connection.execute("CREATE TABLE department (id int, budget bigint, head_count int)")
        connection.execute("CREATE TABLE employee (id int, project_id int, department_id int, salary bigint)")
        connection.execute("CREATE TABLE raise (id uuid)")
        connection.execute("INSERT INTO department VALUES (1, 90, 2)")
        connection.execute("INSERT INTO employee VALUES (7, 1, 1, 9)")
        connection.execute("INSERT INTO raise VALUES (%s)", (there,))
    with psycopg.connect(project) as connection:
        connection.execute("CREATE TABLE project (id int, head_count int)")
        connection.execute("CREATE TABLE assignment (employee_id int, project_id int)")
        connection.execute("INSERT INTO assignment VALUES (7, 1), (8, 1)")
        connection.execute("CREATE TABLE transfer (id uuid)")
        connection.execute("INSERT INTO project VALUES (1, 3)")
    tally = Tally()
    tally.writes = {("raise", there): "refused", ("raise", gone): "acknowledged", ("transfer", gone): "refused"}
    dsns = {"employee": employee, "project": project}
    with psycopg.connect(project) as other:
        other.execute("SELECT 1")
        assert sessions(dsns) == 1
        found = look(dsns, tally, granted=100)
    assert found == Truth(missing=1, ghosts=1, money=-1, heads=2, people=3, untold=1, sessions=1, stuck=1)


class Wall:
    """Somebody's standard output that is no terminal."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def isatty(self):
        return False

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


def test_plain_lines_tell_the_verdicts_too():
    wall, run = Wall(), dataclasses.replace(good_run(), sessions_left=2)
    with Screen(wall) as screen:
        screen.tell("fault: something")
        screen.judge(judge(run))
    assert "fault: something" in wall.text
    assert wall.text.splitlines()[-1].endswith("objectives breached: sessions after the services")
    assert "\x1b" not in wall.text
