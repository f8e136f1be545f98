"""JSON Schema validation with problems that people understand and that never repeat the value."""

from __future__ import annotations

from reliakit.core.errors import Problem, ValidationError
from reliakit.validation.schema import Schema, validated

__all__ = ["Problem", "Schema", "ValidationError", "validated"]
