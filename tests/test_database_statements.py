"""The text of statements in logs: nothing that may be data survives, whatever is written where."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from reliakit.database.statements import MOST_CHARACTERS, NOT_KNOWN, WITHHELD, excerpt, shown, without_data


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT * FROM t WHERE id = 1234", "SELECT * FROM t WHERE id = ?"),
        ("SELECT 'Bob', 'O''Rourke'", "SELECT ?, ..."),
        ("SELECT E'a\\'b' || x", "SELECT ? || x"),
        ("SELECT U&'\\0041' UESCAPE '!', B'01', x'ff', N'a' || y", "SELECT ? UESCAPE ?, ... || y"),
        ("DO $$ BEGIN 'x' END $$; DO $tag$ $$ 'y' $tag$", "DO ?; DO ?"),
        ("SELECT 1e-5 + .5 + 0xFF + 1_000 - 12.50", "SELECT ? + ? + ? + ? - ?"),
        ("SELECT $1 -- for Bob\nFROM t /* pin /* 1234 */ of Bob */ WHERE x", "SELECT ? FROM t WHERE x"),
        ('SELECT "user"."id2", "a ""b", U&"x" FROM t1', 'SELECT "user"."id2", "?", "x" FROM t1'),
        ("INSERT INTO t VALUES (%s, %(name)s, %b)", "INSERT INTO t VALUES (%s, %(name)s, %b)"),
        ("SELECT x FROM t WHERE id IN (1, 2, 3,4)", "SELECT x FROM t WHERE id IN (?, ...)"),
        ("SELECT name'x', a$b$c, é1", "SELECT name?, a$b$c, é1"),
        ("SELECT\n\t x ,\r\n y", "SELECT x , y"),
        ("SELECT doc->>'pin', tags ? 'x'", "SELECT doc->>?, tags ? ?"),
        ("", ""),
    ],
)
def test_values_and_comments_are_left_out_and_the_rest_stays(text: str, expected: str) -> None:
    assert without_data(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "SELECT x 'secret",
        'SELECT x "secret',
        "SELECT x E'secret\\'",
        "SELECT x $a$ secret $b$",
        "SELECT x /* secret /* */",
        "SELECT x 'a\\' secret ' ",  # ends elsewhere where standard_conforming_strings is off
        "SELECT x %(it's)s || 'secret'",  # a parameter's name for psycopg, a string for everybody else
        "SELECT x %(1234)s",
    ],
)
def test_what_can_be_read_in_two_ways_is_withheld_from_there_on(text: str) -> None:
    assert without_data(text) == f"SELECT x {WITHHELD}"


def test_a_long_statement_is_cut_and_a_literal_that_is_cut_is_withheld() -> None:
    assert without_data("SELECT x, " * 1000).endswith("SELECT x, ...")
    cut = without_data("x " * (MOST_CHARACTERS // 2 - 5) + "'" + "secret" * 100 + "'")
    assert cut.endswith(f"x {WITHHELD}")
    assert "secret" not in cut
    assert len(excerpt("x" * 10**6)) == len(excerpt(b"x" * 10**6)) == MOST_CHARACTERS + 1


def test_values_in_composed_queries_are_not_even_looked_at() -> None:
    class Hostile:
        def __str__(self) -> str:
            raise AssertionError

    query = sql.SQL("SELECT {} FROM {} WHERE {} = {} AND {}").format(
        sql.Literal("secret"), sql.Identifier("t"), sql.Identifier("a", "b"), Hostile(), sql.Placeholder("name")
    )
    assert shown(query) == 'SELECT ? FROM "t" WHERE "a"."b" = ? AND %(name)s'
    assert shown(sql.SQL("SELECT 5")) == "SELECT ?"
    assert shown(b"SELECT 'caf\xe9'") == "SELECT ?"
    assert shown(object()) == NOT_KNOWN


SECRET = "s3cr3t-4111111111111111"
PIECES = ["SELECT x", "a->b", '"t"', "/* c */", "-- c\n", "'y'", "$$z$$", "E'\\''", "(", ")", "%s", "::int", "'a''b'"]
NOISE = st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join)


def planted(secret: str) -> list[str]:
    """Return the secret in every form in which a value can stand in a statement."""
    return [
        sql.Literal(secret).as_string(None),
        f"'{secret}'",
        f"'it''s {secret}'",
        f"E'\\'{secret}\\\\'",
        f"$${secret}$$",
        f"$q${secret} $$ $q$",
        f"U&'{secret}'",
        f"-- {secret}\n",
        f"/* {secret} /* ' */ */",
        "4111111111111111",
        "-4111111111111111.5e+10",
        "x'4111111111111111'",
    ]


@given(NOISE, st.sampled_from(planted(SECRET)), NOISE)
def test_a_planted_secret_does_not_survive(before: str, secret: str, after: str) -> None:
    text = without_data(f"{before} {secret} {after}")
    assert "s3cr3t" not in text
    assert "4111" not in text


def literal_positions(text: str, *, backslashes: bool) -> set[int]:
    """Return what lies inside of literals and comments: PostgreSQL's rules, one character after the other.

    Args:
        text: A statement.
        backslashes: Whether they escape in plain strings: standard_conforming_strings is off.
    """
    inside: set[int] = set()
    at = 0
    name = re.compile(r"[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]*")
    tag = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)?\$")
    while at < len(text):
        opening = re.compile(r"[eE]?'|\"").match(text, at)
        if opening:
            start = at = opening.end()
            quote, escapes = opening[0][-1], opening[0][0] in "eE" or (backslashes and opening[0] == "'")
            while at < len(text):
                if escapes and text[at] == "\\":
                    at += 2
                elif text[at] == quote:
                    if text[at + 1 : at + 2] != quote:
                        break
                    at += 2
                else:
                    at += 1
            if quote == "'":
                inside.update(range(start, min(at, len(text))))
            at += 1
        elif dollar := tag.match(text, at):
            end = text.find(dollar[0], dollar.end())
            end = len(text) if end < 0 else end
            inside.update(range(dollar.end(), end))
            at = end + len(dollar[0])
        elif text.startswith("--", at):
            while at < len(text) and text[at] not in "\r\n":
                inside.add(at)
                at += 1
        elif text.startswith("/*", at):
            depth = 0
            while at < len(text):
                depth += text.startswith("/*", at) - text.startswith("*/", at)
                step = 2 if text.startswith(("/*", "*/"), at) else 1
                inside.update(range(at, at + step))
                at += step
                if depth == 0:
                    break
        else:
            word = name.match(text, at)
            at = word.end() if word else at + 1
    return inside


@given(st.text("aaZE$$''\"\\\\-/*\n\r %(é1", max_size=60), st.booleans())
def test_no_character_of_a_literal_survives_however_the_text_is_read(text: str, backslashes: bool) -> None:
    text = text.replace("Z", "a")
    inside = literal_positions(text, backslashes=backslashes)
    marked = "".join("Z" if at in inside and letter == "a" else letter for at, letter in enumerate(text))
    assert literal_positions(marked, backslashes=backslashes) == inside
    assert "Z" not in without_data(marked)


@given(st.text(max_size=200) | st.text("1.eE+-$_x'\" ", max_size=60))
def test_no_digit_survives_outside_of_names(text: str) -> None:
    names = re.compile(r'%\([A-Za-z_]\w*\)|"[^"]*"|[^\W\d][\w$]*')
    assert not re.search(r"[0-9]", names.sub("", without_data(text)))


@given(st.text("'\"$a\\/*-%( ", max_size=30))
def test_what_is_shown_is_shown_the_same_again(text: str) -> None:
    once = without_data(text)
    if WITHHELD not in once:
        assert without_data(once) == once


@pytest.mark.parametrize(
    "piece", ["%(", "/*", "'", '"', "$a$", "E'\\", "$", "--", "e", "1e", "''", "*/", "\\'", "%(a"]
)
def test_the_price_is_bounded_by_the_length(piece: str) -> None:
    """Each pattern is tried on a text that would take a backtracking scanner minutes."""
    without_data(piece * 100_000)
    without_data("x" + piece * (MOST_CHARACTERS // len(piece)))
