"""The form for a developer's terminal: readable, masked, and not to be forged by what is logged."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit import ConfigurationError, Masker, configure_logging, get_logger, request_context
from reliakit.logs.console import ConsoleFormatter, wants_colour

log = get_logger("shop.orders")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "RELIAKIT_ENV", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def console(**settings):
    stream = io.StringIO()
    return stream, configure_logging(
        service="svc", env="test", level="DEBUG", stream=stream, form="console", **settings
    )


def shown(*args, **fields):
    stream, handle = console()
    with handle:
        log.info(*args, **fields)
    return stream.getvalue()


def test_a_record_is_one_readable_line():
    with request_context(request_id="r-1"):
        line = shown("Order created", order_id=7, email="bob@example.com", note="two words")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} INFO     shop\.orders  Order created {19}order_id=7 email=\*\*\* "
        r'note="two words" request_id=r-1\n',
        line,
    )


def test_the_time_is_the_local_one():
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "m", (), None)
    record.created = 1_000_000_000.5
    formatter = ConsoleFormatter(service="s", env="e", masker=Masker(), colour=False)
    assert formatter.format(record).startswith(time.strftime("%H:%M:%S", time.localtime(record.created)) + ".500 ")


def test_messages_of_one_length_and_another_align_their_fields():
    short, long = shown("Paid", a=1), shown("Order created", a=1)
    assert short.index("a=1") == long.index("a=1")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("word", "word"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('"', r'"\""'),
        ("12", '"12"'),
        ("-1.5e3", '"-1.5e3"'),
        (12, "12"),
        ("null", '"null"'),
        (None, "null"),
        ("true", '"true"'),
        (True, "true"),
        ("[1]", '"[1]"'),
        ([1, "a b"], '[1,"a b"]'),
        ({"a": {"password": "x9"}}, '{"a":{"password":"***"}}'),
        ("203.0.113.9", "203.0.113.9"),
        ("/orders/{id}", '"/orders/{id}"'),
        ("grüße", "grüße"),
    ],
)
def test_a_value_shows_what_it_is(value, text):
    assert shown("m", field=value).rstrip("\n").partition("field=")[2] == text


def test_an_exception_is_told_in_lines_of_its_own():
    stream, handle = console()
    with handle:
        try:
            try:
                {}["key"]
            except KeyError as cause:
                raise ValueError("password=hunter22\nsecond line") from cause
        except ValueError:
            log.exception("Failed", order_id=7)
    first, *rest = stream.getvalue().splitlines()
    assert "ERROR    shop.orders  Failed" in first
    assert "order_id=7" in first
    assert all(line.startswith("    | ") for line in rest)
    told = [line.removeprefix("    | ") for line in rest]
    assert told[0] == "Traceback (most recent call last):"
    assert "ValueError: password=***" in told
    assert "second line" in told
    assert any(line.startswith("category=validation retry=never fingerprint=") for line in told)
    assert told.index("caused by:") < told.index("KeyError: 'key'")
    assert "hunter22" not in stream.getvalue()


def test_an_error_without_a_stack_and_a_stack_without_an_error_are_told():
    stream, handle = console()
    with handle:
        log.error("Failed", error="no answer")
        log.info("Here", stack_info=True)
    assert "\n    | str: no answer\n" in stream.getvalue()
    assert "\n    | Stack (most recent call last):\n" in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "a\r\nb",
        "a\x1b[2Jb",
        "a\x9b2Jb",
        "a\u2028b",
        "a\u202eb",
        "a\x00b",
        "a\x7fb",
        "a\ud800b",
        "a\x08b",
        "a\tb",
    ],
)
def test_nothing_starts_a_line_or_moves_the_cursor(text):
    stream, handle = console()
    with handle:
        log.info(text, **{text: text, "other": [text, {text: text}]})
        logging.getLogger(text).info("m")
    written = stream.getvalue()
    assert len(written.splitlines()) == written.count("\n") == 2
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", written)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.text(), VALUES, st.text())
def test_whatever_is_logged_only_guarded_lines_follow_the_first(message, value, error):
    stream, handle = console()
    with handle:
        log.info(message, value=value)
        log.error(message, error=ValueError(error))
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    assert len([line for line in lines if not line.startswith("    | ")]) == 2
    assert stream.getvalue().splitlines() == lines


def test_it_masks_what_the_json_masks():
    secrets = {
        "password": "hunter22",
        "note": "mail bob@example.com",
        "url": "https://u:pw123456@h/x",
        "n": [4111111111111111],
    }
    written = shown("token=abcdef123456", **secrets)
    for secret in ("hunter22", "bob@example.com", "pw123456", "4111", "abcdef123456"):
        assert secret not in written


def test_a_record_that_cannot_be_masked_is_told_of():
    def refuse(text):
        raise RuntimeError

    stream, handle = console(masker=Masker(detectors=[refuse]))
    with handle:
        log.info("hunter22", a="hunter22")
    assert "hunter22" not in stream.getvalue()
    assert "[masking failed]" in stream.getvalue()


# Which form, and in colour or not


@pytest.mark.parametrize(
    ("env", "stream", "form"),
    [
        ("development", Terminal, "console"),
        ("dev", Terminal, "console"),
        ("Local", Terminal, "console"),
        ("development", io.StringIO, "json"),
        ("production", Terminal, "json"),
        ("staging", Terminal, "json"),
        ("test", Terminal, "json"),
    ],
)
def test_auto_is_the_console_on_a_development_terminal_only(env, stream, form):
    out = stream()
    with configure_logging(service="svc", env=env, level="INFO", stream=out) as handle:
        log.info("m")
        assert handle.form == form
    assert out.getvalue().startswith("{") == (form == "json")


def test_the_form_can_be_said():
    out = Terminal()
    with configure_logging(service="svc", env="development", level="INFO", stream=out, form="json"):
        log.info("m")
    assert json.loads(out.getvalue())["message"] == "m"
    with pytest.raises(ConfigurationError, match="form"):
        configure_logging(service="svc", form="xml")


@pytest.mark.parametrize(
    ("variables", "stream", "colour"),
    [
        ({}, Terminal, True),
        ({}, io.StringIO, False),
        ({"NO_COLOR": "1"}, Terminal, False),
        ({"NO_COLOR": ""}, Terminal, True),
        ({"FORCE_COLOR": "1"}, io.StringIO, True),
        ({"FORCE_COLOR": ""}, io.StringIO, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, Terminal, False),
        ({"TERM": "dumb"}, Terminal, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, Terminal, True),
    ],
)
def test_colours_follow_the_variables_and_the_terminal(monkeypatch, variables, stream, colour):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wants_colour(stream()) == colour


def test_a_stream_that_cannot_say_what_it_is_has_no_colour():
    closed = io.StringIO()
    closed.close()
    assert not wants_colour(closed)
    assert not wants_colour(None)
    assert not wants_colour(object())


def test_colours_change_nothing_but_colours(monkeypatch):
    plain = shown("Order created", order_id=7)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = shown("Order created", order_id=7)
    assert "\x1b[32mINFO" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured)[12:] == plain[12:]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo terminals here")
def test_a_program_on_a_terminal_writes_coloured_lines():
    script = """
        from reliakit import configure_logging, get_logger
        configure_logging(service="svc", env="development", level="INFO")
        get_logger("app").info("Started", port=8080)
    """
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=follower, timeout=50, check=True, env=environment
    )
    os.close(follower)
    written = os.read(leader, 10_000).decode()
    os.close(leader)
    assert done.returncode == 0
    assert "\x1b[1mStarted" in written
    assert "8080" in written
