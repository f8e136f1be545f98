from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

from reliakit.core.errors import ConfigurationError
from reliakit.core.events import LogDropped, LogPresent, SecretsMasked
from reliakit.core.spine import subscribe
from reliakit.logs import Masker, configure_logging, get_logger

log = get_logger("app")
root = logging.getLogger()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("RELIAKIT_ENV", raising=False)
    monkeypatch.delenv("LOG_LEVEL", raising=False)


def records(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("env", "level"),
    [
        (None, "DEBUG"),
        ("development", "DEBUG"),
        ("production", "INFO"),
        ("test", "WARNING"),
        ("staging", "INFO"),
        ("Production", "INFO"),
    ],
)
def test_the_level_follows_the_env(env, level):
    with configure_logging(service="svc", env=env, stream=io.StringIO()) as handle:
        assert logging.getLevelName(handle.level) == level
        assert root.level == handle.level
        assert handle.env == (env or "development")


def test_the_env_comes_from_the_variable_unless_given(monkeypatch):
    monkeypatch.setenv("RELIAKIT_ENV", "production")
    stream = io.StringIO()
    with configure_logging(service="svc", stream=stream) as handle:
        log.info("x")
        assert handle.level == logging.INFO
    assert records(stream)[0]["env"] == "production"
    with configure_logging(service="svc", env="test", stream=stream) as handle:
        assert handle.env == "test"


@pytest.mark.parametrize("text", ["error", "ERROR", "Error", " eRRor ", "40"])
def test_log_level_is_read_in_any_letter_case(monkeypatch, text):
    monkeypatch.setenv("LOG_LEVEL", text)
    with configure_logging(service="svc", stream=io.StringIO()) as handle:
        assert handle.level == logging.ERROR
    with configure_logging(service="svc", level="warn", stream=io.StringIO()) as handle:
        assert handle.level == logging.WARNING


def test_a_wrong_log_level_is_named(monkeypatch):
    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError, match="LOG_LEVEL"):
        configure_logging(service="svc")


@pytest.mark.parametrize(
    "settings",
    [
        {"service": ""},
        {"service": None},
        {"service": "s", "env": ""},
        {"service": "s", "level": "loud"},
        {"service": "s", "level": True},
        {"service": "s", "level": 1.5},
        {"service": "s", "stream": 7},
        {"service": "s", "masker": "x"},
        {"service": "s", "masker": Masker},
    ],
)
def test_wrong_settings_name_their_argument_and_change_nothing(settings):
    before = (list(root.handlers), root.level, warnings.showwarning)
    with pytest.raises(ConfigurationError, match=list(settings)[-1]):
        configure_logging(**settings)
    assert (list(root.handlers), root.level, warnings.showwarning) == before


def test_close_restores_what_was_there_and_is_idempotent():
    stranger = logging.NullHandler()
    root.addHandler(stranger)
    try:
        before = (list(root.handlers), root.level, warnings.showwarning)
        handle = configure_logging(service="svc", level="ERROR", stream=io.StringIO())
        assert stranger not in root.handlers
        handle.close()
        assert (list(root.handlers), root.level, warnings.showwarning) == before
        handle.close()
        assert (list(root.handlers), root.level, warnings.showwarning) == before
    finally:
        root.removeHandler(stranger)


def test_handlers_and_levels_that_others_set_meanwhile_are_kept():
    stranger = logging.NullHandler()
    level = root.level
    with configure_logging(service="svc", level="ERROR", stream=io.StringIO()):
        root.addHandler(stranger)
        root.setLevel(37)
    assert stranger in root.handlers
    assert root.level == 37
    root.removeHandler(stranger)
    root.setLevel(level)


def test_configuring_again_replaces_and_the_old_handle_closes_nothing():
    before = (list(root.handlers), root.level)
    first_stream, second_stream = io.StringIO(), io.StringIO()
    first = configure_logging(service="one", stream=first_stream)
    second = configure_logging(service="two", stream=second_stream)
    log.info("x")
    first.close()
    log.info("y")
    second.close()
    assert first_stream.getvalue() == ""
    assert [line["service"] for line in records(second_stream)] == ["two", "two"]
    assert (list(root.handlers), root.level) == before


def test_nothing_is_written_after_close():
    stream = io.StringIO()
    for queued in (False, True):
        configure_logging(service="svc", stream=stream, queue=queued).close()
        log.info("x")
    assert stream.getvalue() == ""


def test_without_a_stream_lines_go_to_standard_error_of_the_time(capsys):
    with configure_logging(service="svc"):
        log.info("x")
    captured = capsys.readouterr()
    assert json.loads(captured.err)["message"] == "x"
    assert captured.out == ""


def test_the_users_stream_is_not_closed():
    stream = io.StringIO()
    with configure_logging(service="svc", stream=stream):
        log.info("x")
    assert not stream.closed


def test_a_stream_that_knows_ascii_only_gets_escapes():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with configure_logging(service="svc", stream=stream) as handle:
        log.info("ü 😀", a="\ud800")
        assert handle.dropped == 0
    line = json.loads(raw.getvalue())
    assert line["message"] == "ü 😀"


def still_writing():
    """The threads behind queues that do not end."""
    writers = [thread for thread in threading.enumerate() if thread.name == "reliakit-logs"]
    for thread in writers:
        thread.join(5.0)
    return [thread for thread in writers if thread.is_alive()]


def test_the_queue_is_drained_by_flush_and_close():
    stream = io.StringIO()
    handle = configure_logging(service="svc", stream=stream, queue=True)
    for number in range(500):
        log.info("x", number=number)
    handle.flush()
    assert len(records(stream)) == 500
    for number in range(500, 1000):
        log.info("x", number=number)
    handle.close()
    assert [line["context"]["number"] for line in records(stream)] == list(range(1000))
    assert not still_writing()


class Gate(io.StringIO):
    """A stream that takes nothing until it is opened."""

    def __init__(self):
        super().__init__()
        self.opened = threading.Event()

    def write(self, text):
        self.opened.wait(30)
        return super().write(text)


def test_a_full_queue_drops_counts_and_tells_and_never_waits():
    stream = Gate()
    dropped = []
    with subscribe(lambda event: dropped.append(event.reason), LogDropped):
        handle = configure_logging(service="svc", level="INFO", stream=stream, queue=10)
        for number in range(100):
            log.info("x", number=number)
        stream.opened.set()
        handle.close()
    assert handle.dropped == len(dropped) == 100 - len(records(stream))
    assert 85 <= handle.dropped <= 90
    assert set(dropped) == {"queue full"}


class FullDisk(io.StringIO):
    def write(self, text):
        if "refused" in text:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize("queue", [False, True])
def test_a_line_that_could_not_be_written_counts_as_dropped_only(queue):
    logs = []
    with subscribe(lambda event: logs.append(event.read), LogPresent):
        before = logs.copy()
        with configure_logging(service="svc", level="INFO", stream=FullDisk(), queue=queue) as handle:
            log.info("written")
            log.error("refused")
            log.error("written too")
        figures = next(read for read in logs if read not in before)()
    assert (figures.info, figures.error, handle.dropped) == (1, 1, 1)


def test_a_queue_starts_no_thread_before_the_first_line():
    with configure_logging(service="svc", level="CRITICAL", stream=io.StringIO(), queue=True):
        assert not still_writing()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("queued", [False, True])
def test_a_forked_child_logs_too(queued):
    script = f"""
        import os
        from reliakit.logs import configure_logging, get_logger
        handle = configure_logging(service="svc", level="INFO", queue={queued})
        log = get_logger("app")
        log.info("parent")
        handle.flush()
        child = os.fork()
        if child == 0:
            log.info("child")
            handle.close()
            os._exit(0)
        os.waitpid(child, 0)
        log.info("parent again")
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["parent", "child", "parent again"]


def test_a_queue_is_written_out_at_the_end_of_the_program():
    script = """
        from reliakit.logs import configure_logging, get_logger
        configure_logging(service="svc", level="INFO", queue=True)
        for number in range(100):
            get_logger("app").info("x")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=50, check=True
    )
    assert len(done.stderr.splitlines()) == 100


def test_masked_secrets_are_counted_for_whoever_listens():
    seen = []
    stream = io.StringIO()
    with (
        configure_logging(service="svc", level="INFO", stream=stream),
        subscribe(lambda event: seen.append((event.count, event.failed)), SecretsMasked),
    ):
        log.info("x", a=1)
        log.info("x", password="p", note="mail bob@example.com and eve@example.com")
        logging.getLogger("plain").info("token=abc")
    assert seen == [(3, False), (1, False)]


def test_a_failed_masking_is_told():
    def fail(text):
        raise RuntimeError

    seen = []
    with (
        configure_logging(service="svc", level="INFO", stream=io.StringIO(), masker=Masker(detectors=[fail])),
        subscribe(lambda event: seen.append(event.failed), SecretsMasked),
    ):
        log.info("x")
    assert seen == [True]


def test_a_listener_that_logs_does_not_go_round_for_ever():
    stream = io.StringIO()
    seen = []

    def listener(event):
        seen.append(event)
        log.info("listener saw password=x9", error=ValueError("again"))

    with configure_logging(service="svc", level="INFO", stream=stream), subscribe(listener, SecretsMasked):
        log.info("password=x9")
    assert len(seen) == 1
    assert len(records(stream)) == 2


def test_a_dropped_line_told_to_a_listener_that_logs_does_not_go_round():
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError

    seen = []

    def listener(event):
        seen.append(event.reason)
        log.info("x")

    with (
        configure_logging(service="svc", level="INFO", stream=Broken()) as handle,
        subscribe(listener, LogDropped),
    ):
        log.info("x")
        assert handle.dropped == 2
    assert seen == ["OSError"]


def test_repr_shows_settings_and_state():
    handle = configure_logging(service="svc", env="test", stream=io.StringIO())
    assert "open, service='svc', env='test', level=WARNING" in repr(handle)
    handle.close()
    assert "closed" in repr(handle)
