"""Departments and employees in the database.

Every method is one transaction under REPEATABLE READ: two of them that touch the same rows collide, and the later one
is tried again from its first line. So each reads what it needs inside and keeps nothing from an earlier attempt.
Departments are always touched before employees, and several departments in the order of their ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reliakit import Repository, transactional

if TYPE_CHECKING:
    from datetime import date
    from uuid import UUID


class RefusedError(Exception):
    """What was asked for contradicts what is there."""


@dataclass(frozen=True, slots=True)
class Employee:
    id: UUID
    department_id: int
    name: str
    email: str
    salary: int
    starts_on: date
    ends_on: date | None
    project_id: int | None


@dataclass(frozen=True, slots=True)
class Department:
    id: int
    name: str
    granted: int
    budget: int
    head_count: int


_EMPLOYEE = "id, department_id, name, email, salary, starts_on, ends_on, project_id"
_DEPARTMENT = "id, name, granted, budget, head_count"


class Staff(Repository):
    @transactional(operation="add_department")
    def add_department(self, name: str, budget: int) -> Department | None:
        """Add a department; None when the name is taken."""
        row = self.db.fetch_one(
            "INSERT INTO department (name, granted, budget) VALUES (%s, %s, %s)"
            f" ON CONFLICT (name) DO NOTHING RETURNING {_DEPARTMENT}",
            (name, budget, budget),
        )
        return row and Department(*row)

    @transactional(operation="department", read_only=True)
    def department(self, department_id: int) -> Department | None:
        row = self.db.fetch_one(f"SELECT {_DEPARTMENT} FROM department WHERE id = %s", (department_id,))
        return row and Department(*row)

    @transactional(operation="hire")
    def hire(self, employee_id: UUID, new: dict[str, Any]) -> Employee:
        """Add an employee, paid from the department's budget."""
        self._spend(new["department_id"], new["salary"], heads=1)
        row = self.db.fetch_one(
            "INSERT INTO employee (id, department_id, name, email, iban, salary, starts_on, ends_on)"
            f" VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING {_EMPLOYEE}",
            (
                employee_id,
                new["department_id"],
                new["name"],
                new["email"],
                new["iban"],
                new["salary"],
                new["starts_on"],
                new.get("ends_on"),
            ),
        )
        if row is None:
            raise RefusedError("this id or address is in use")
        return Employee(*row)

    @transactional(operation="employee", read_only=True)
    def employee(self, employee_id: UUID) -> Employee | None:
        return self._employee(employee_id)

    @transactional(operation="employees", read_only=True)
    def employees(self, department_id: int) -> list[Employee]:
        rows = self.db.fetch_all(
            f"SELECT {_EMPLOYEE} FROM employee WHERE department_id = %s ORDER BY name LIMIT 500", (department_id,)
        )
        return [Employee(*row) for row in rows]

    @transactional(operation="some_employees", read_only=True)
    def some(self, employee_ids: list[UUID]) -> list[Employee]:
        rows = self.db.fetch_all(f"SELECT {_EMPLOYEE} FROM employee WHERE id = ANY(%s)", (employee_ids,))
        return [Employee(*row) for row in rows]

    @transactional(operation="change_employee")
    def change(self, employee_id: UUID, *, name: str | None, email: str | None) -> Employee | None:
        # Of two who take an address at once, the later one meets the constraint, and this once it is asked for again.
        if self.db.fetch_one("SELECT FROM employee WHERE email = %s AND id <> %s", (email, employee_id)) is not None:
            raise RefusedError("this address is in use")
        row = self.db.fetch_one(
            "UPDATE employee SET name = coalesce(%s, name), email = coalesce(%s, email)"
            f" WHERE id = %s RETURNING {_EMPLOYEE}",
            (name, email, employee_id),
        )
        return row and Employee(*row)

    @transactional(operation="raise_salary")
    def raise_salary(
        self, raise_id: UUID, employee_id: UUID, amount: int, given_by: str
    ) -> tuple[Employee, bool] | None:
        """Give a raise once, whoever sends it twice; the flag tells whether this was the first time."""
        employee = self._employee(employee_id)
        if employee is None:
            return None
        known = self.db.fetch_one("SELECT employee_id, amount FROM raise WHERE id = %s", (raise_id,))
        if known is not None:
            if known != (employee_id, amount):
                raise RefusedError("this id belongs to another raise")
            return employee, False
        self._spend(employee.department_id, amount)
        row = self.db.fetch_one(
            f"UPDATE employee SET salary = salary + %s WHERE id = %s RETURNING {_EMPLOYEE}", (amount, employee_id)
        )
        self.db.execute(
            "INSERT INTO raise (id, employee_id, amount, given_by) VALUES (%s, %s, %s, %s)",
            (raise_id, employee_id, amount, given_by),
        )
        return Employee(*row), True

    @transactional(operation="move_employee")
    def move(self, employee_id: UUID, department_id: int) -> Employee | None:
        """Move an employee, whose salary is paid by the new department from then on."""
        employee = self._employee(employee_id)
        if employee is None or employee.department_id == department_id:
            return employee
        steps = [(employee.department_id, -employee.salary, -1), (department_id, employee.salary, 1)]
        for department, amount, heads in sorted(steps):
            self._spend(department, amount, heads=heads)
        row = self.db.fetch_one(
            f"UPDATE employee SET department_id = %s WHERE id = %s RETURNING {_EMPLOYEE}",
            (department_id, employee_id),
        )
        return Employee(*row)

    @transactional(operation="put_on_project")
    def put_on_project(self, employee_id: UUID, project_id: int) -> bool:
        """Note which project an employee works on; False when there is no such employee."""
        cursor = self.db.execute("UPDATE employee SET project_id = %s WHERE id = %s", (project_id, employee_id))
        return cursor.rowcount == 1

    @transactional(operation="dismiss")
    def dismiss(self, employee_id: UUID) -> bool:
        """Remove an employee, whose salary goes back to the budget."""
        employee = self._employee(employee_id)
        if employee is None:
            return False
        self._spend(employee.department_id, -employee.salary, heads=-1)
        self.db.execute("DELETE FROM employee WHERE id = %s", (employee_id,))
        return True

    def _employee(self, employee_id: UUID) -> Employee | None:
        row = self.db.fetch_one(f"SELECT {_EMPLOYEE} FROM employee WHERE id = %s", (employee_id,))
        return row and Employee(*row)

    def _spend(self, department_id: int, amount: int, *, heads: int = 0) -> None:
        budget = self.db.fetch_value("SELECT budget FROM department WHERE id = %s", (department_id,))
        if budget is None:
            raise RefusedError("there is no such department")
        if budget < amount:
            raise RefusedError("the department's budget does not allow it")
        self.db.execute(
            "UPDATE department SET budget = budget - %s, head_count = head_count + %s WHERE id = %s",
            (amount, heads, department_id),
        )
