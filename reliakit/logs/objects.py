"""The visible fields or text of objects that are neither scalars nor containers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

__all__ = ["fields_of", "safe_text"]


def fields_of(value: Any, kind: type[Any]) -> dict[str, Any] | None:
    """Return the fields of a dataclass, a named tuple, or a record of attrs, pydantic or msgspec; else None."""
    names: Any = None
    if hasattr(kind, "__dataclass_fields__"):
        names = [field.name for field in fields(kind) if field.repr]
    elif tuple in kind.__mro__:
        names = getattr(kind, "_fields", None)
    elif hasattr(kind, "__attrs_attrs__"):
        attributes: Any = getattr(kind, "__attrs_attrs__")  # noqa: B009 - a type checker does not know it
        names = [attribute.name for attribute in attributes if attribute.repr]
    else:
        for title in ("__pydantic_fields__", "__struct_fields__", "__fields__"):
            names = getattr(kind, title, None)
            if names is not None:
                break
    if names is None or type(names) is str:
        return None
    return {str(name): getattr(value, str(name), None) for name in names}


def safe_text(value: object) -> str:
    """Return an object's text, or one that names its type when it has none."""
    try:
        text = str(value)
        return text if type(text) is str else str.__str__(text)
    except Exception:  # noqa: BLE001 - shown as what it is, an object that cannot be shown
        return f"[unprintable {type(value).__name__}]"
