"""The employee service's repository by itself: one migrated database, and each test in a transaction rolled back."""

from __future__ import annotations

import uuid
from datetime import date

import pytest

from examples.employee.migrate import migrate
from examples.employee.staff import RefusedError, Staff
from reliakit import Database
from reliakit.testing import rolled_back


@pytest.fixture(scope="module")
def migrated(postgres):
    with Database(postgres.database("staff"), name="staff") as db:
        migrate(db)
        yield db


@pytest.fixture
def staff(migrated):
    with rolled_back(migrated) as db:
        yield Staff(db)


@pytest.fixture
def department(staff):
    found = staff.add_department("research", 100_000)  # unique, and yet made anew for each test
    assert found is not None
    return found.id


def hire(staff, department, salary):
    new = {"department_id": department, "name": "Ada", "email": f"{uuid.uuid4()}@example.org", "salary": salary}
    return staff.hire(uuid.uuid4(), new | {"iban": "DE02120300000000202051", "starts_on": date(2026, 1, 1)})


def test_a_name_is_given_once(staff, department):
    assert staff.add_department("research", 1) is None


def test_nobody_is_given_the_address_of_somebody_else(staff, department):
    ada, bob = (hire(staff, department, 1) for _ in range(2))
    with pytest.raises(RefusedError, match="address is in use"):
        staff.change(ada.id, name=None, email=bob.email)
    assert staff.change(ada.id, name="Ada L.", email=ada.email).name == "Ada L."
    assert staff.change(ada.id, name="Ada", email=None).email == ada.email


def test_hiring_beyond_the_budget_is_refused_and_leaves_no_trace(staff, department):
    with pytest.raises(RefusedError, match="budget"):
        hire(staff, department, 100_001)
    assert staff.employees(department) == []
    assert staff.department(department).budget == 100_000


def test_a_raise_is_given_once_whoever_sends_it_twice(staff, department):
    ada, raise_id = hire(staff, department, 60_000), uuid.uuid4()
    assert [staff.raise_salary(raise_id, ada.id, 500, "boss")[1] for _ in range(2)] == [True, False]
    with pytest.raises(RefusedError, match="another raise"):
        staff.raise_salary(raise_id, ada.id, 501, "boss")
    assert staff.employee(ada.id).salary == 60_500
    assert staff.department(department).budget == 39_500


def test_who_moves_takes_the_salary_along_and_who_goes_gives_it_back(staff, department):
    other = staff.add_department("sales", 70_000).id
    ada = hire(staff, department, 60_000)
    assert staff.move(ada.id, other).department_id == other
    assert [staff.department(each).budget for each in (department, other)] == [100_000, 10_000]
    assert staff.dismiss(ada.id)
    assert staff.department(other).budget == 70_000
