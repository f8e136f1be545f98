"""What the service takes from outside, as JSON Schema (2020-12)."""

from __future__ import annotations

from reliakit import Schema

_UUID = {"type": "string", "format": "uuid"}
# Something to see, and no control characters: PostgreSQL takes no NUL.
_NAME = {"type": "string", "maxLength": 200, "pattern": r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$"}
_PROJECT = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}


PROJECT = Schema(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "project",
        "type": "object",
        "properties": {"name": _NAME},
        "required": ["name"],
        "additionalProperties": False,
    }
)
TRANSFER = Schema(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "transfer",
        "type": "object",
        "properties": {"id": _UUID, "employee_id": _UUID, "source": _PROJECT, "target": _PROJECT},
        "required": ["id", "employee_id", "source", "target"],
        "additionalProperties": False,
    },
    check_formats=True,
)


@TRANSFER.check("/target")
def target_differs(transfer: dict[str, object]) -> str | None:
    return "must not be the source" if transfer["source"] == transfer["target"] else None
