"""What a record says about an exception: its kind, its message, where it came from and what caused it.

Frames are rendered without their variables, which may hold secrets.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from reliakit.core.categories import classified
from reliakit.logs.objects import safe_text

if TYPE_CHECKING:
    from types import TracebackType

    from reliakit.logs.walk import Walk

__all__ = ["error_fields", "error_text", "shown_fields"]

_CAUSED = "The exception above was the direct cause of the one below:"
_MEANWHILE = "The exception below was raised while the one above was being handled:"

_MOST_CAUSES = 10
_MOST_FRAMES = 60
_MOST_MEMBERS = 10
_DEEPEST_GROUP = 3


def error_fields(error: BaseException, walk: Walk) -> dict[str, Any]:
    """Return the `error` object of a record, masked. Never raises for a broken exception.

    Args:
        error: The exception.
        walk: The pass that masks this record.
    """
    found = classified(error)
    # The most important parts are masked first: a long stack may use the budget up.
    message = walk.text(safe_text(error))
    chain = list(_causes(error))
    causes = [{"type": type(cause).__name__, "message": walk.text(safe_text(cause))} for cause in chain]
    stack = walk.text("\n".join(_stack(error)))
    for entry, cause in zip(causes, chain, strict=True):
        entry["stack"] = walk.text("\n".join(_stack(cause)))
    return {
        "type": type(error).__name__,
        "message": message,
        "category": found.category,
        "retry": found.retry,
        "sqlstate": found.sqlstate,
        "fingerprint": found.fingerprint,
        "stack": stack,
        "causes": causes,
    }


def error_text(error: BaseException, walk: Walk) -> str:
    """Return an exception with its causes, notes and members as Python prints them, masked.

    Args:
        error: The exception.
        walk: The pass that masks this record.
    """
    chain = [error, *_causes(error)]
    # The most important parts are masked first here, too, although they are printed in the usual order.
    parts = [walk.text("\n".join(_stack(link))) for link in chain]
    for place, link in enumerate(chain[:-1]):
        led = _CAUSED if link.__cause__ is chain[place + 1] else _MEANWHILE
        parts[place] = f"\n{led}\n\n{parts[place]}"
    return "\n".join(reversed(parts))


def shown_fields(value: object, walk: Walk) -> dict[str, Any]:
    """Return the `error` object for an `error=` that is not an exception: it is shown as it is."""
    shown = walk.value(value, 0)
    return {"type": type(value).__name__, "message": shown if isinstance(shown, str) else walk.text(str(shown))}


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what led to the error, nearest first, each once."""
    seen = {id(error)}
    at = _next(error)
    while at is not None and id(at) not in seen and len(seen) <= _MOST_CAUSES:
        yield at
        seen.add(id(at))
        at = _next(at)


def _next(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _stack(error: BaseException, depth: int = 0) -> Iterator[str]:
    """Yield the lines that Python prints for one exception, its notes and, for a group, its members."""
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        yield from _frames(error.__traceback__)
    message = safe_text(error)
    yield f"{type(error).__qualname__}: {message}" if message else type(error).__qualname__
    notes: Any = getattr(error, "__notes__", ())
    if type(notes) in (list, tuple):
        yield from (note if isinstance(note, str) else f"[note of type {type(note).__name__}]" for note in notes)
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ()) if _is_group(error) else ()
    if depth < _DEEPEST_GROUP:
        for number, member in enumerate(members[:_MOST_MEMBERS], 1):
            yield f"  +-- {number} of {len(members)}"
            yield from (f"  | {line}" for line in _stack(member, depth + 1))


def _is_group(error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup)


def _frames(trace: TracebackType | None) -> Iterator[str]:
    """Yield two lines a frame; of a very deep stack the first and the last frames."""
    places: list[tuple[str, int, str, dict[str, Any]]] = []
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append((code.co_filename, trace.tb_lineno, code.co_name, trace.tb_frame.f_globals))
        trace = trace.tb_next
    left_out = len(places) - _MOST_FRAMES
    for index, (filename, line, function, names) in enumerate(places):
        if left_out > 0 and _MOST_FRAMES // 2 <= index < _MOST_FRAMES // 2 + left_out:
            if index == _MOST_FRAMES // 2:
                yield f"  [{left_out} frames left out]"
            continue
        yield f'  File "{filename}", line {line}, in {function}'
        source = linecache.getline(filename, line, names).strip()
        if source:
            yield f"    {source}"
