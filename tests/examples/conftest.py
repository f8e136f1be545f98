"""The three services, started once for all tests of this folder."""

from __future__ import annotations

import pytest
from running import Service

from reliakit.testing import EmbeddedPostgres, FaultProxy


@pytest.fixture(scope="session")
def start_service(tmp_path_factory):
    started = []

    def start(name, **settings):
        service = Service(name, tmp_path_factory.mktemp(name), **settings)
        started.append(service)
        return service

    yield start
    codes = {service.url: service.stop() for service in started if service.process.poll() is None}
    assert set(codes.values()) <= {0}, codes


@pytest.fixture(scope="session")
def postgres():
    """Not the session's shared one: other tests may kill that."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def auth_of_all(start_service, postgres):
    return start_service("auth", DATABASE_URL=postgres.database("auth"))


@pytest.fixture(scope="session")
def employee(start_service, postgres):
    return start_service("employee", DATABASE_URL=postgres.database("employee"))


@pytest.fixture(scope="session")
def employee_network(employee):
    with FaultProxy(employee.url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def project(start_service, postgres, employee, employee_network):
    return start_service(
        "project",
        DATABASE_URL=postgres.database("project"),
        EMPLOYEE_URL=employee_network.dsn(employee.url),
        EMPLOYEE_PATIENCE="0.5",
        EMPLOYEE_BREAK="2.0",
    )
