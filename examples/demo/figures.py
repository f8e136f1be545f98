"""What the services and the database say about themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from prometheus_client.parser import text_string_to_metric_families

from examples.demo.stage import SERVICES
from reliakit import SYSTEM_CLOCK, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import httpx2

    from examples.demo.tally import Tally


@dataclass(slots=True)
class Figures:
    """The samples of all services' /metrics, and their verdicts on their objectives, and their errors by cause."""

    samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def total(self, name: str, **labels: str) -> float:
        """Sum a metric over all services and all labels but those given."""
        return sum(value for found, its, value in self.samples if found == name and labels.items() <= its.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sum a metric by one label, leaving out zeros."""
        sums: dict[str, float] = {}
        for found, its, value in self.samples:
            if found == name and value:
                sums[its.get(label, "")] = sums.get(its.get(label, ""), 0.0) + value
        return sums

    def quantile(self, name: str, share: float) -> float:
        """Estimate a quantile of a histogram as Prometheus does, straight inside its bucket; in seconds."""
        buckets: dict[float, float] = {}
        for found, its, value in self.samples:
            if found == f"{name}_bucket":
                buckets[float(its["le"])] = buckets.get(float(its["le"]), 0.0) + value
        rank = share * max(buckets.values(), default=0.0)
        low, below = 0.0, 0.0
        for high, count in sorted(buckets.items()):
            if count >= rank:
                return low if high == float("inf") else low + (high - low) * (rank - below) / ((count - below) or 1.0)
            low, below = high, count
        return low


async def read(client: httpx2.AsyncClient, urls: Mapping[str, str]) -> Figures:
    """Ask each service for its figures."""
    figures = Figures()
    for name in SERVICES:
        metrics = await client.get(f"{urls[name]}/metrics", headers={"Accept": "text/plain"})
        for family in text_string_to_metric_families(metrics.raise_for_status().text):
            figures.samples += [(sample.name, sample.labels, sample.value) for sample in family.samples]
        told = (await client.get(f"{urls[name]}/slo")).raise_for_status().json()
        figures.verdicts[name] = [Verdict(**verdict) for verdict in told]
        figures.errors += (await client.get(f"{urls[name]}/errors")).raise_for_status().json()
    return figures


@dataclass(frozen=True, slots=True)
class Truth:
    """What the databases hold once the traffic has ended.

    Attributes:
        missing: Acknowledged writes that are not there.
        ghosts: Refused writes that are there.
        money: sum(budget) + sum(salary) less what was granted; anything but 0 was made or lost.
        heads: Projects and departments whose head count is not the number of their people.
        people: People on projects.
        untold: People of whose project the employee service has not learnt.
        sessions: Connections that the services still have.
        stuck: Those of them that sit in a transaction without doing anything.
    """

    missing: int
    ghosts: int
    money: int
    heads: int
    people: int
    untold: int
    sessions: int
    stuck: int


def look(dsns: Mapping[str, str], tally: Tally, granted: int) -> Truth:
    """Ask the databases themselves, past everything that the services do."""
    missing = ghosts = 0
    for kind, database in (("raise", "employee"), ("transfer", "project")):
        with psycopg.connect(dsns[database]) as connection:
            there = {row[0] for row in connection.execute(f"SELECT id FROM {kind}".encode())}
        missing += sum(UUID(write) not in there for write in tally.ids(kind, "acknowledged"))
        ghosts += sum(UUID(write) in there for write in tally.ids(kind, "refused"))
    employee, project = _asks(dsns["employee"]), _asks(dsns["project"])
    return Truth(
        missing=missing,
        ghosts=ghosts,
        money=employee("SELECT (SELECT sum(budget) FROM department) + (SELECT sum(salary) FROM employee)") - granted,
        heads=employee(
            "SELECT count(*) FROM department d WHERE head_count <>"
            " (SELECT count(*) FROM employee WHERE department_id = d.id)"
        )
        + project(
            "SELECT count(*) FROM project p WHERE head_count <>"
            " (SELECT count(*) FROM assignment WHERE project_id = p.id)"
        ),
        people=project("SELECT sum(head_count) FROM project"),
        untold=len(
            _rows(dsns["project"], "SELECT employee_id, project_id FROM assignment")
            - _rows(dsns["employee"], "SELECT id, project_id FROM employee")
        ),
        sessions=sessions(dsns),
        stuck=_stuck(dsns),
    )


def undelivered(dsns: Mapping[str, str]) -> int:
    """Count the messages that the project service has still to deliver."""
    return _asks(dsns["project"])("SELECT count(*) FROM assignment_outbox")


def sessions(dsns: Mapping[str, str], condition: str = "") -> int:
    """Count the connections that others have to the databases."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return sum(_asks(dsn)(f"SELECT count(*) {others} {condition}") for dsn in dsns.values())


def _stuck(dsns: Mapping[str, str]) -> int:
    """Count the connections that stay in a transaction; a relay may be in one for a moment."""
    for _ in range(50):
        found = sessions(dsns, "AND state LIKE 'idle in transaction%'")
        if not found:
            break
        SYSTEM_CLOCK.sleep(0.1)
    return found


def _rows(dsn: str, question: str) -> set[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return set(connection.execute(question.encode()).fetchall())


def _asks(dsn: str) -> Callable[[str], int]:
    def ask(question: str) -> int:
        with psycopg.connect(dsn) as connection:
            row = connection.execute(question.encode()).fetchone()
        return int(row[0]) if row else 0

    return ask
