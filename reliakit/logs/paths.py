"""Patterns for where a field stands: `payment.*.number` is the `number` of anything inside `payment`.

`*` stands for any part of one name, `**` for any number of names, and the places in a list are names too:
`users.*.id` holds for `{"users": [{"id": 1}]}`, and `users[*].id` says the same. Names match in any spelling.
"""

from __future__ import annotations

import re

from reliakit.logs.spelling import segment_of

__all__ = ["Paths"]

_WILD = re.compile(r"([*?])")
_MOST_REMEMBERED = 4096


class Paths:
    """Decide by the names from the outermost field inwards. Safe from any thread.

    Args:
        hidden: Patterns of fields that are sensitive.
        allowed: Patterns of fields that are not; they win.
    """

    __slots__ = ("_allowed", "_hidden", "_known")

    def __init__(self, hidden: tuple[str, ...], allowed: tuple[str, ...]) -> None:
        self._hidden = [_steps(pattern) for pattern in hidden]
        self._allowed = [_steps(pattern) for pattern in allowed]
        self._known: dict[tuple[str, ...], bool | None] = {}

    def is_sensitive(self, path: list[str]) -> bool | None:
        """Return whether the patterns say that the field at this path is sensitive, or None if none matches."""
        place = tuple(path)
        try:
            return self._known[place]
        except KeyError:
            steps = [step for name in place for step in segment_of(name).split(".")]
            found = False if _any(self._allowed, steps) else _any(self._hidden, steps) or None
            if len(self._known) < _MOST_REMEMBERED:
                self._known[place] = found
            return found


def _any(patterns: list[list[re.Pattern[str] | None]], steps: list[str]) -> bool:
    return any(_fits(pattern, steps) for pattern in patterns)


def _steps(pattern: str) -> list[re.Pattern[str] | None]:
    """Return a pattern for each name; None stands for any number of names."""
    names = pattern.replace("[", ".").replace("]", "").split(".")
    return [None if name == "**" else _step(name) for name in names if name]


def _step(name: str) -> re.Pattern[str]:
    # Several stars in a row mean no more than one, and each may give back only what stands in one name.
    parts = _WILD.split(re.sub(r"\*++", "*", segment_of(name)))
    wild = {"*": r"[^.]{0,256}", "?": "[^.]"}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))


def _fits(pattern: list[re.Pattern[str] | None], steps: list[str]) -> bool:
    """Return whether the names fit; a table of what fits so far keeps it linear in their product."""
    reached = {0}
    for step in steps:
        reached = _spread(pattern, reached)
        onward: set[int] = set()
        for at in reached:
            if at >= len(pattern):
                continue
            part = pattern[at]
            if part is None:
                onward.add(at)
            elif part.fullmatch(step):
                onward.add(at + 1)
        reached = onward
    return len(pattern) in _spread(pattern, reached)


def _spread(pattern: list[re.Pattern[str] | None], reached: set[int]) -> set[int]:
    """Return the places reached, and those behind a `**` that stands for no name."""
    spread = set(reached)
    for at, part in enumerate(pattern):
        if part is None and at in spread:
            spread.add(at + 1)
    return spread
