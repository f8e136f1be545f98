"""The demo as a newcomer runs it: it succeeds, and it leaves nothing behind however it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from reliakit import SYSTEM_CLOCK

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "examples.demo"]


@pytest.fixture
def temporary():
    """A folder that everything temporary goes to; short, and open to the server's own user."""
    folder = Path(tempfile.mkdtemp(prefix="rkd-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def environment(temporary, **settings):
    return {**os.environ, "TMPDIR": str(temporary), "NO_COLOR": "1", **settings}


@pytest.fixture
def start(temporary):
    """Start a demo; one that a failed test leaves running is killed, which is a case of its own."""
    started = []

    def start(*arguments):
        demo = subprocess.Popen(
            [*DEMO, *arguments],
            cwd=ROOT,
            env=environment(temporary),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(demo)
        return demo

    yield start
    for demo in started:
        demo.kill()
        demo.wait()
        demo.stdout.close()
        demo.stderr.close()


def processes_of(temporary):
    """Every process that was started with this folder for temporary files, or that speaks of it."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(temporary).encode() in known and state != "Z":
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def assert_nothing_is_left(temporary):
    until = SYSTEM_CLOCK.monotonic() + 15
    while SYSTEM_CLOCK.monotonic() < until and (processes_of(temporary) or any(temporary.iterdir())):
        SYSTEM_CLOCK.sleep(0.05)
    assert processes_of(temporary) == {}
    assert list(temporary.iterdir()) == []


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


@needs_proc
def test_a_short_run_keeps_every_promise_and_leaves_nothing(start, temporary):
    picture = temporary.with_suffix(".svg")
    demo = start("--seconds", "4", "--svg", str(picture))
    out, err = demo.communicate(timeout=55)
    try:
        assert err == "", out
        verdict = out.splitlines()[-1]
        if "breached: within 0.1 s" in verdict:
            # How fast the machine is that runs the tests is not what is tested.
            assert verdict.startswith("1 of ")
            assert demo.returncode == 1
        else:
            assert verdict.startswith("none of ")
            assert demo.returncode == 0
        for fault in ("kill a PostgreSQL backend", "black-hole the database", "slow the employee service"):
            assert f"fault: {fault}" in out
        for promise in ("acknowledged writes missing", "planted secrets in logs", "connections leaked"):
            assert f"{promise} " in out
        drawn = picture.read_text()
        assert "acknowledged" in drawn
        assert "url(http" not in drawn
    finally:
        picture.unlink(missing_ok=True)
    assert_nothing_is_left(temporary)


@needs_proc
@pytest.mark.parametrize("moment", [0.15, 0.6, 1.5])
def test_ctrl_c_at_any_moment_leaves_no_process_and_no_folder(start, temporary, moment):
    demo = start()
    SYSTEM_CLOCK.sleep(moment)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=40)
    # In its first moments it is still Python that is told, and not the demo.
    assert demo.returncode == 130 or moment < 0.5
    assert_nothing_is_left(temporary)


@needs_proc
def test_a_killed_demo_leaves_no_process_and_no_folder(start, temporary):
    demo = start("--serve")
    for line in demo.stdout:
        if "Ctrl-C" in line:
            break
    assert len(processes_of(temporary)) > 4
    assert any(temporary.iterdir())
    demo.kill()
    demo.communicate(timeout=10)
    assert_nothing_is_left(temporary)


@needs_proc
def test_serving_goes_on_until_it_is_told_to_end_and_the_services_answer(start, temporary):
    import httpx2

    demo = start("--serve")
    urls = []
    for line in demo.stdout:
        urls += [word for word in line.split() if word.startswith("http://127.0.0.1:") and "/register" not in word]
        if "Ctrl-C" in line:
            break
    assert len(urls) == 3
    for url in urls:
        assert httpx2.get(f"{url}/health", timeout=10).status_code == 200
    demo.send_signal(signal.SIGTERM)
    demo.communicate(timeout=40)
    assert demo.returncode == 0
    assert_nothing_is_left(temporary)


@needs_proc
def test_a_reader_that_goes_away_does_not_disturb_the_demo(start, temporary):
    demo = start()
    demo.stdout.readline()
    demo.stdout.close()
    SYSTEM_CLOCK.sleep(2.5)  # it goes on, and tells nobody how far it is
    assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    assert demo.stderr.read() == ""
    assert demo.wait(40) == 130
    assert_nothing_is_left(temporary)


def run_program(program, *flags, **settings):
    return subprocess.run(
        [sys.executable, *flags, "-c", program],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RELIAKIT_DSN"} | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_any_postgresql_one_line_says_what_to_do():
    done = run_program(
        "import sys, reliakit.testing.postgres as kit\n"
        "kit.find_installations = lambda wanted: []\n"
        "from examples.demo.__main__ import main\n"
        "sys.exit(main([]))"
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "RELIAKIT_DSN" in done.stderr


def test_without_the_demo_extra_one_line_says_what_to_install():
    done = run_program(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom examples.demo.__main__ import main\nsys.exit(main([]))",
        "-S",
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install" in done.stderr
    assert "[demo]" in done.stderr
