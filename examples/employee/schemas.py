"""What the service takes from outside, as JSON Schema (2020-12)."""

from __future__ import annotations

from reliakit import Schema

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_CENTS = {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}
_NAME = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"\S"}
_DATE = {"type": "string", "format": "date"}
_EMAIL = {"type": "string", "format": "email", "maxLength": 254}
_ID = {"type": "string", "format": "uuid"}


def _object(required: list[str], **properties: object) -> Schema:
    document = {
        "$schema": _DRAFT,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return Schema(document, check_formats=True)


DEPARTMENT = _object(["name", "budget"], name=_NAME, budget={**_CENTS, "maximum": 10**14})
EMPLOYEE = _object(
    ["department_id", "name", "email", "iban", "salary", "starts_on"],
    department_id={"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
    name=_NAME,
    email=_EMAIL,
    iban={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"},
    salary=_CENTS,
    starts_on=_DATE,
    ends_on=_DATE,
    note={"type": "string", "maxLength": 2000},
)
SOME = _object(["id"], id={"type": "array", "items": _ID, "maxItems": 100})
CHANGES = _object([], name=_NAME, email=_EMAIL)
RAISE = _object(["id", "amount"], id=_ID, amount=_CENTS)
MOVE = _object(["department_id"], department_id={"type": "integer", "minimum": 1, "maximum": 2**31 - 1})


@EMPLOYEE.check("/ends_on")
def ends_after_start(employee: dict[str, str]) -> str | None:
    ends_on = employee.get("ends_on")
    return "must not be before starts_on" if ends_on and ends_on < employee["starts_on"] else None
