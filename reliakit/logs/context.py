"""Fields that every record in a block carries, in every function that the block calls."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["context_fields", "log_context"]

_current: ContextVar[Mapping[str, Any]] = ContextVar("reliakit_log_context")
_NOTHING: Mapping[str, Any] = {}


def context_fields() -> Mapping[str, Any]:
    """Return the fields of the blocks around this point."""
    return _current.get(_NOTHING)


class log_context:  # noqa: N801 - reads as the statement it is used in
    """Give every record of a block these fields: `with log_context(request_id="a1", order=7): ...`.

    Fields of inner blocks win over those of outer ones; `bind` and the call's own fields win over both. Tasks started
    in the block inherit the fields; so do threads if their pool copies the context, as `asyncio.to_thread` does.

    Args:
        fields: Any names and values; `request_id` and `trace_id` also fill the record's own fields of these names.
    """

    __slots__ = ("_entered", "_fields")

    def __init__(self, /, **fields: Any) -> None:
        self._fields = fields
        self._entered: list[tuple[Mapping[str, Any], Token[Mapping[str, Any]]]] = []

    def __enter__(self) -> None:
        outer = _current.get(_NOTHING)
        self._entered.append((outer, _current.set({**outer, **self._fields})))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outer, token = self._entered.pop()
        try:
            _current.reset(token)
        except ValueError:
            # A generator may be closed in another context than it began in.
            _current.set(outer)

    def __repr__(self) -> str:
        return f"log_context({', '.join(sorted(self._fields))})"
