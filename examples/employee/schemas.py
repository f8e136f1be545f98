"""What the service takes from outside, as JSON Schema (2020-12)."""

from __future__ import annotations

from reliakit import Schema

_CENTS = {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}
# Something to see, and no control characters: PostgreSQL takes no NUL.
_NAME = {"type": "string", "maxLength": 200, "pattern": r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$"}
_DATE = {"type": "string", "format": "date"}
_EMAIL = {"type": "string", "format": "email", "maxLength": 254}
_ID = {"type": "string", "format": "uuid"}


_DEPARTMENT = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}


def _object(title: str, properties: dict[str, object], *, optional: tuple[str, ...] = ()) -> Schema:
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }
    return Schema(document, check_formats=True)


DEPARTMENT = _object("department", {"name": _NAME, "budget": {**_CENTS, "maximum": 10**14}})
EMPLOYEE = _object(
    "employee",
    {
        "department_id": _DEPARTMENT,
        "name": _NAME,
        "email": _EMAIL,
        "iban": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"},
        "salary": _CENTS,
        "starts_on": _DATE,
        "ends_on": _DATE,
        "note": {"type": "string", "maxLength": 2000},
    },
    optional=("ends_on", "note"),
)
CHANGES = _object("changes", {"name": _NAME, "email": _EMAIL}, optional=("name", "email"))
RAISE = _object("raise", {"id": _ID, "amount": _CENTS})
MOVE = _object("move", {"department_id": _DEPARTMENT})
PROJECT = _object("project", {"project_id": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}})
SOME = _object("some", {"id": {"type": "array", "items": _ID, "maxItems": 100}})


@EMPLOYEE.check("/ends_on")
def ends_after_start(employee: dict[str, str]) -> str | None:
    ends_on = employee.get("ends_on")
    return "must not be before starts_on" if ends_on and ends_on < employee["starts_on"] else None
