"""The text of a statement without anything in it that may be data: what a log may show.

```
SELECT * FROM "user" WHERE pin = 1234 AND name = 'Bob' -- as he told us
SELECT * FROM "user" WHERE pin = ? AND name = ?
```

A scanner of its own, after "Lexical Structure" in PostgreSQL's documentation (4.1), because it must only err on one
side: wherever the text could also be read in a way that makes data of what follows, what follows is withheld. Each
character is looked at a bounded number of times.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_CHARACTERS", "NOT_KNOWN", "WITHHELD", "excerpt", "shown", "without_data"]

# How much of one statement is scanned, and so about the most that is shown of it.
MOST_CHARACTERS = 2000
WITHHELD = "[withheld]"
NOT_KNOWN = "[not known]"

# As in PostgreSQL's own scanner, whatever is not ASCII belongs to a name, and names may hold digits and dollars.
_TOKEN = re.compile(
    r"""
      (?P<blank>   [ \t\n\r\f\v]+ | --[^\n\r]* )
    | (?P<comment> /\* )
    | (?P<escaped> [eE]'(?:[^'\\]|\\.|'')*(?P<escaped_end>')? )
    | (?P<text>    (?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?P<text_end>')? )
    | (?P<quoted>  (?:[uU]&)?"(?P<name>(?:[^"]|"")*)(?P<quoted_end>")? )
    | (?P<dollar>  \$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$ )
    | (?P<number>  \$?\.?\d(?:[eE][+-]\d|[\w.])* )
    | (?P<given>   %\([A-Za-z_]\w*\)[sbt] | %[sbt%] )
    | (?P<word>    [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]* )
    | (?P<other>   . )
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
# Psycopg takes anything up to the next bracket for a parameter's name, quotes included; the server never sees it.
_ODD_NAME = re.compile(r"%\((?![A-Za-z_]\w*\)[sbt])", re.ASCII)
_COMMENT_BOUND = re.compile(r"/\*|\*/")
_PLAIN_NAME = re.compile(r"[^\W\d][\w$]{0,62}")
_SEVERAL = re.compile(r"\?(?: ?, ?\?)+")

Read = tuple[str, int] | None
"""What is shown of a token and where the next one begins; None where the rest must be withheld."""


def excerpt(query: Any) -> Any:
    """Return what to keep of a query until it is shown, if it ever is. Long texts are cut; O(1) for others."""
    return query[: MOST_CHARACTERS + 1] if isinstance(query, str | bytes) else query


def shown(query: Any) -> str:
    """Return the text of a query as a log may show it.

    Args:
        query: Anything that psycopg executes. Values inside a `sql.Composed` or a template string are not even
            read.
    """
    try:
        return without_data(_text_of(query))
    except Exception:  # noqa: BLE001 - a part that cannot be rendered: better too little in a log than too much
        return NOT_KNOWN


def without_data(text: str) -> str:
    """Return a statement with `?` for its values, without comments, and up to where it can be read with certainty."""
    within = text[:MOST_CHARACTERS]
    more = " ..." if len(text) > len(within) else ""
    if odd := _ODD_NAME.search(within):
        within, more = within[: odd.start()], f" {WITHHELD}"
    parts: list[str] = []
    at = 0
    while at < len(within):
        token = _TOKEN.match(within, at)
        assert token is not None  # its last alternative takes any character
        found = _READERS[token.lastgroup or "other"](token)
        if found is None:
            more = f" {WITHHELD}"
            break
        part, at = found
        parts.append(part)
    parts.append(more)
    return _SEVERAL.sub("?, ...", " ".join("".join(parts).split()))


def _text_of(query: Any) -> str:
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode("utf-8", "replace")
    if isinstance(query, sql.Composed):
        return "".join(map(_text_of, query))
    if isinstance(query, sql.SQL | sql.Identifier | sql.Placeholder):
        return query.as_string(None)
    if isinstance(query, sql.Composable):
        return "?"  # a literal
    return "?".join(query.strings)  # a template string


def _same(token: re.Match[str]) -> Read:
    return token[0], token.end()


def _blank(token: re.Match[str]) -> Read:
    return " ", token.end()


def _value(token: re.Match[str]) -> Read:
    return "?", token.end()


def _comment(token: re.Match[str]) -> Read:
    depth = 0
    for bound in _COMMENT_BOUND.finditer(token.string, token.start()):  # they nest
        depth += 1 if bound[0] == "/*" else -1
        if depth == 0:
            return " ", bound.end()
    return None


def _escaped(token: re.Match[str]) -> Read:
    return ("?", token.end()) if token["escaped_end"] else None


def _text(token: re.Match[str]) -> Read:
    # Where standard_conforming_strings is off, and in a later piece of an E'' string, \' does not end it.
    if not token["text_end"] or "\\'" in token[0]:
        return None
    return "?", token.end()


def _quoted(token: re.Match[str]) -> Read:
    if not token["quoted_end"]:
        return None
    return f'"{token["name"] if _PLAIN_NAME.fullmatch(token["name"]) else "?"}"', token.end()


def _dollar(token: re.Match[str]) -> Read:
    end = token.string.find(token[0], token.end())
    return None if end < 0 else ("?", end + len(token[0]))


def _word(token: re.Match[str]) -> Read:
    # To the server a no-break space belongs to a name; to the author, what follows it may have been a number.
    return token[0] if token[0].replace("$", "_").isidentifier() else "?", token.end()


def _other(token: re.Match[str]) -> Read:
    return token[0] if token[0].isprintable() else " ", token.end()


_READERS: dict[str, Callable[[re.Match[str]], Read]] = {
    "blank": _blank,
    "comment": _comment,
    "escaped": _escaped,
    "text": _text,
    "quoted": _quoted,
    "dollar": _dollar,
    "number": _value,
    "given": _same,
    "word": _word,
    "other": _other,
}
