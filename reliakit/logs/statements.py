"""Data that databases and their libraries repeat: bound parameters, refused values, passwords in statements."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reliakit.logs.spared import is_spared_in_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reliakit.logs.markers import Hide
    from reliakit.logs.words import KeyRules

__all__ = ["mask_statements"]

_PG_KEY = re.compile(r"Key \([^()\n]{1,200}\)=\(")
_PG_KEY_END = re.compile(
    r"\)(?= already exists| is not present| is still referenced| conflicts with|\.|$)", re.MULTILINE
)
# A sign that is looked for first, and what to hide behind it: always the last group.
_REST_OF_LINE: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("Failing row", re.compile(r"(Failing row contains \()([^\n]*+)")),
    ("[parameters: ", re.compile(r"(\[parameters: )([^\n]*+)")),
    # What servers and clients write about the parameters of a statement: PostgreSQL, SQLAlchemy, Django, asyncpg.
    ("$", re.compile(r"((?:[Pp]arameters?:?|query argument) )(\$[0-9]{1,5}(?: =|:) [^\n]*+)")),
    (
        "] ",
        re.compile(
            r"(\[(?:generated in|cached since|raw sql|no key|caching disabled|dialect)[^\]\n]{0,80}\] )"
            r"([(\[{][^\n]*+)"
        ),
    ),
    ("; args=", re.compile(r"(; args=)([^\n]*+)")),
    ("duplicate key value is", re.compile(r"(duplicate key value is \()([^\n]*+)")),
    # What a column refused: PostgreSQL, MySQL.
    (
        "nvalid input",
        re.compile(r"(invalid input (?:syntax for|value for)[\w \".]{1,120}: [\"'])([^\"'\n]*+)"),
    ),
    ("literal: ", re.compile(r"(malformed \w{1,20} literal: [\"'])([^\"'\n]*+)")),
    ("out of range", re.compile(r"((?:out of range: |value )[\"'])([^\"'\n]*+)")),
    ("Duplicate entry '", re.compile(r"(Duplicate entry ')([^'\n]*+)")),
    ("ncorrect ", re.compile(r"([Ii]ncorrect [\w ]{1,30} value: ')([^'\n]*+)")),
    # Statements that set a password.
    ("ENTIFIED", re.compile(r"(IDENTIFIED BY (?:PASSWORD )?['\"]?)([^'\"\s;,)]++)")),
    ("entified", re.compile(r"(identified by (?:password )?['\"]?)([^'\"\s;,)]++)")),
    ("SET PASSWORD", re.compile(r"(SET PASSWORD[^=\n]{0,120}=[ ]?(?:PASSWORD\()?['\"])([^'\"\n]*+)")),
    ("set password", re.compile(r"(set password[^=\n]{0,120}=[ ]?(?:password\()?['\"])([^'\"\n]*+)")),
    (
        "(",
        re.compile(r"(\b(?:crypt|PASSWORD|OLD_PASSWORD|pgp_sym_(?:en|de)crypt|AES_(?:EN|DE)CRYPT)\('?)([^'\n)]++)"),
    ),
)
_INSERT = re.compile(
    r"(?:INSERT|insert|REPLACE|replace)[ \n]{1,4}(?:INTO|into)[ \n]{1,4}[^\s()]{1,120}[ \n]{0,4}\(([^()]{1,4000}+)\)"
    r"[ \n]{0,4}(?:VALUES|values)[ \n]{0,4}"
)
_VALUE = re.compile(r"[ \n]*+(?:([^,()'\n]*+)(?!')|[A-Za-z]?'((?:[^'\\]++|\\.|'')*))")
_MOST_ROWS = 1000
_EMPTY = frozenset({"()", "[]", "{}", "None", "NULL"})


def mask_statements(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the data that database errors repeat, the parameters of statements, and passwords that statements set."""
    if "Key (" in text:
        text = _hide_key_values(text, hide)
    for sign, pattern in _REST_OF_LINE:
        if sign in text:
            text = pattern.sub(lambda found: _rest(found, hide), text)
    if "VALUES" in text or "values" in text:
        text = _hide_inserted(text, hide, rules)
    return text


def _rest(found: re.Match[str], hide: Hide) -> str:
    value = found[2]
    is_none = value in _EMPTY or value.startswith(("***", "%", "hmac:", "$1)", "?"))
    return found[0] if is_none else f"{found[1]}{hide(value)}"


def _hide_key_values(text: str, hide: Hide) -> str:
    parts: list[str] = []
    at = 0
    while (head := _PG_KEY.search(text, at)) is not None:
        tail = _PG_KEY_END.search(text, head.end())
        stop = tail.start() if tail else len(text)
        parts += (text[at : head.end()], hide(text[head.end() : stop]))
        at = stop
    return "".join((*parts, text[at:]))


def _hide_inserted(text: str, hide: Hide, rules: KeyRules) -> str:
    """Hide the values of sensitive columns in `INSERT INTO users (name, password) VALUES ('bob', '...')`."""
    parts: list[str] = []
    done = 0
    for found in _INSERT.finditer(text):
        names = [name.strip(' \n"`[]') for name in found[1].split(",")]
        verdicts = [rules.verdict(name) for name in names]
        if not any(verdicts) or found.end() < done:
            continue
        for column, start, end in _inserted(text, found.end(), len(names)):
            value, verdict = text[start:end], verdicts[column]
            if verdict and not is_spared_in_text(verdict, value.strip()):
                parts += (text[done:start], hide(value, names[column]))
                done = end
    return "".join((*parts, text[done:])) if parts else text


def _inserted(text: str, at: int, columns: int) -> Iterator[tuple[int, int, int]]:
    """Yield the column, start and end of each value of the rows `('bob', 1), ('ann', 2)` that begin here."""
    for _ in range(_MOST_ROWS):
        if text[at : at + 1] != "(":
            return
        at += 1
        for column in range(columns):
            value = _VALUE.match(text, at)
            if value is None:
                break
            group = 2 if value[2] is not None else 1
            yield column, value.start(group), value.end(group)
            at = value.end() + (2 if group == 2 else 1)
        while text[at : at + 1] in (",", " ", "\n"):
            at += 1
