"""Lines stay in one piece: from threads and processes, on pipes and files, short and very long."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pytest

from reliakit import configure_logging, get_logger
from reliakit.core import spine
from reliakit.core.events import LogDropped
from reliakit.core.spine import subscribe
from reliakit.logs import output
from reliakit.logs.output import Output

log = get_logger("app")
posix = pytest.mark.skipif(os.name != "posix", reason="descriptors are written to directly on POSIX systems only")

WORKER = """
    import sys, threading
    from reliakit import Masker, configure_logging, get_logger
    process, queued = int(sys.argv[1]), sys.argv[2] == "queue"
    log = get_logger("app")
    def work(thread):
        for number in range(40):
            # Every tenth line is far longer than what a pipe takes in one piece, or holds at all.
            size = 100_000 if number % 10 == 0 else 300
            log.info("m", process=process, thread=thread, number=number, filler=chr(97 + process) * size)
    with configure_logging(service="svc", level="INFO", queue=queued, masker=Masker(scan_budget=1_000_000)):
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
"""


def run_workers(where, queued):
    code = textwrap.dedent(WORKER)
    mode = "queue" if queued else "direct"
    return [subprocess.Popen([sys.executable, "-c", code, str(number), mode], stderr=where) for number in range(4)]


def check_lines(lines):
    found = [json.loads(line)["context"] for line in lines]
    assert len(found) == 4 * 8 * 40
    assert len({(one["process"], one["thread"], one["number"]) for one in found}) == len(found)
    for process in range(4):
        for thread in range(8):
            mine = [one["number"] for one in found if (one["process"], one["thread"]) == (process, thread)]
            assert mine == list(range(40))


@posix
@pytest.mark.parametrize("queued", [False, True])
def test_lines_of_four_processes_with_eight_threads_on_one_pipe_never_interleave(queued):
    reading, writing = os.pipe()
    workers = run_workers(writing, queued)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        lines = pipe.readlines()
    assert [worker.wait(50) for worker in workers] == [0] * 4
    check_lines(lines)


@posix
def test_lines_of_four_processes_in_one_file_never_interleave(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("a") as file:
        workers = run_workers(file, queued=False)
        assert [worker.wait(50) for worker in workers] == [0] * 4
    check_lines(path.read_text().splitlines())


@posix
def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writes = []
    real = os.write

    def write(number, data):
        writes.append(len(data))
        return real(number, data)

    with (tmp_path / "log").open("a") as file:
        out = Output(file)
        monkeypatch.setattr(output.os, "write", write)
        out.write("x" * 100_000)
        out.write("y")
    monkeypatch.undo()
    assert writes == [100_001, 2]


@posix
def test_what_is_printed_to_the_stream_keeps_its_place(tmp_path: Path):
    with (tmp_path / "log").open("w") as file:
        out = Output(file)
        file.write("one\n")
        out.write("two")
        file.write("three\n")
        out.write("four")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\nfour\n"


@posix
def test_a_closed_stream_is_not_written_to_though_its_descriptor_is_somebody_elses(tmp_path: Path):
    file = (tmp_path / "log").open("w")
    out = Output(file)
    out.write("one")
    number = file.fileno()
    file.close()
    with (tmp_path / "other").open("w") as other:
        assert other.fileno() == number
        with pytest.raises(ValueError, match="closed"):
            out.write("two")
    assert (tmp_path / "other").read_text() == ""


@posix
def test_a_pipe_that_does_not_block_is_waited_for():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken = []

    def read():
        with os.fdopen(reading, encoding="utf-8") as pipe:
            taken.extend(pipe)

    reader = threading.Thread(target=read)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        out = Output(stream)
        reader.start()
        for character in "abc":
            out.write(character * 300_000)
    reader.join()
    assert taken == [f"{character * 300_000}\n" for character in "abc"]


@posix
def test_a_line_after_a_broken_one_begins_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "_LONGEST_WAIT", 0.0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, encoding="utf-8") as pipe, os.fdopen(writing, "w", encoding="utf-8") as stream:
        out = Output(stream)
        with pytest.raises(BlockingIOError):
            out.write("x" * 1_000_000)
        with pytest.raises(BlockingIOError):
            out.write("lost")
        part = len(os.read(reading, 1_000_000))
        out.write("y")
        out.write("z")
        stream.close()
        assert 0 < part < 1_000_000
        assert pipe.readlines() == ["\n", "y\n", "z\n"]


@posix
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "utf-16"])
def test_the_streams_encoding_is_kept_and_json_stays_json(encoding, tmp_path: Path):
    # Like standard error, which would write "\\xfc" where it cannot write "ü": no JSON.
    with (tmp_path / "log").open("w", encoding=encoding, errors="backslashreplace") as file:
        with configure_logging(service="svc", level="INFO", stream=file) as handle:
            log.info("ü 😀")
            log.info("ü 😀")
        assert handle.dropped == 0
    written = (tmp_path / "log").read_text(encoding=encoding).splitlines()
    assert [json.loads(line)["message"] for line in written] == ["ü 😀"] * 2


def test_a_closed_pipe_costs_the_line_only():
    reading, writing = os.pipe()
    os.close(reading)
    dropped = []
    stream = os.fdopen(writing, "w", encoding="utf-8")
    with (
        configure_logging(service="svc", level="INFO", stream=stream) as handle,
        subscribe(lambda event: dropped.append(event.reason), LogDropped),
    ):
        log.info("x")
        assert handle.dropped == 1
    stream.close()
    assert dropped == ["BrokenPipeError"]


# Ends


def test_a_stuck_stream_costs_what_waits_and_is_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("reliakit.logs.handler._CLOSE_WAIT", 0.05)
    taken, release = threading.Event(), threading.Event()

    class Stuck(io.StringIO):
        def write(self, text):
            taken.set()
            release.wait(30)
            return super().write(text)

    counts = []
    stream = Stuck()
    with subscribe(lambda event: counts.append((event.reason, event.count)), LogDropped):
        handle = configure_logging(service="svc", level="INFO", stream=stream, queue=True)
        log.info("stuck")
        assert taken.wait(30)
        for _ in range(4):
            log.info("waiting")
        writer = handle._handler._writer._errand
        handle.close()
    release.set()
    assert writer.wait(30)
    assert counts == [("stream stuck", 4)]
    assert handle.dropped == 4
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["stuck"]


def test_after_its_end_a_queue_writes_at_once():
    script = """
        import atexit
        # Registered before logging's own, so called after it.
        atexit.register(lambda: logging.getLogger("late").error("after the end"))
        import logging
        from reliakit import configure_logging
        configure_logging(service="svc", level="INFO", queue=True)
        logging.getLogger("early").error("before")
    """
    done = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["before", "after the end"]


def test_configuring_again_and_again_leaves_nothing_behind():
    def state():
        gc.collect()
        root = logging.getLogger()
        return (
            list(root.handlers),
            root.level,
            logging.getLogger("noisy").level,
            warnings.showwarning,
            [
                thread
                for thread in threading.enumerate()
                if thread.name == "reliakit-logs" and (thread.join(5.0) or thread.is_alive())
            ],
            spine._everybody.routes,
            len(logging._handlerList),  # type: ignore[attr-defined]  # the standard library's list of all handlers
        )

    before = state()
    for number in range(50):
        handle = configure_logging(
            service="svc",
            level="INFO",
            stream=io.StringIO(),
            queue=bool(number % 2),
            levels={"noisy": "ERROR"},
            repeat_limit=5,
        )
        log.info("x")
        if number % 3:
            handle.close()
    handle.close()
    del handle
    assert state() == before


def test_levels_of_single_loggers_hold_until_the_handle_is_closed():
    stream = io.StringIO()
    noisy = logging.getLogger("noisy")
    with configure_logging(service="svc", level="INFO", stream=stream, levels={"noisy": "warning", "quiet.x": 10}):
        logging.getLogger("noisy.child").info("no")
        noisy.warning("yes")
        logging.getLogger("quiet.x.y").debug("yes")
        logging.getLogger("quiet").debug("no")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["yes", "yes"]
    assert noisy.level == logging.NOTSET


def test_a_level_that_somebody_else_set_meanwhile_is_kept():
    noisy = logging.getLogger("noisy")
    with configure_logging(service="svc", stream=io.StringIO(), levels={"noisy": "WARNING"}):
        noisy.setLevel(logging.CRITICAL)
    assert noisy.level == logging.CRITICAL
    noisy.setLevel(logging.NOTSET)


def test_what_json_libraries_refuse_costs_itself_only():
    stream = io.StringIO()
    with configure_logging(service="bank", env="production", stream=stream):
        get_logger("odd").info("half \ud800", huge=10**5000, by_huge={10**5000: 1}, text="\udfff", fine=1)
    line = stream.getvalue()
    line.encode("utf-8")
    record = json.loads(line)
    assert record["message"] == "half \ud800"
    assert record["context"]["text"] == "\udfff"
    assert record["context"]["huge"] == "[number of 16610 bits]"
    assert record["context"]["fine"] == 1
    assert record["context"]["by_huge"] == {"[number of 16610 bits]": 1}
