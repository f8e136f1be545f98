"""What the supervising process does for an embedded PostgreSQL: initdb, start, crash, end.

```
<folder>/        server.log
├─ run/          the socket, and data/ with the database; the server's
└─ install-0/    a copy of the programs, where the server's user could not read them
```

As root the folder belongs to root and only `run/` inside it to the unprivileged user that the server runs as:
root never writes where that user could have planted a link.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

from reliakit.testing._supervision import (
    Request,
    Unavailable,
    complaint,
    end_with_supervisor,
    environment,
    free_port,
    supervise,
    temporary_root,
)

__all__ = ["PostgresSupervisor", "main"]

_UNPRIVILEGED = ("nobody", "postgres", "daemon")
_SOCKET_PORT = 5432
_OLDEST = 13
_IPC_RMID = 0
# synchronous_commit stays on: with it a COMMIT that was answered survives a killed server, since the kernel holds
# what was written. Only the crash of the whole machine would lose data, and this data is for a test.
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    # Old write-ahead log is of no use here, and the folder may lie in memory.
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    # A killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class _Installation(NamedTuple):
    """PostgreSQL's programs, made usable for the user that the server runs as."""

    programs: str
    version: str


class PostgresSupervisor:
    """One server, its folder and the commands on them."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._user: tuple[int, int] | None = None
        self._installation: _Installation | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._listen = False
        self._free_port = False
        self._settings: dict[str, str] = {}

    def obey(self, request: Request, /) -> Request:
        """Do what one request asks and return what to answer."""
        match request["command"]:
            case "choose":
                self._make_folder()
                self._installation = self._choose(request["installations"])
                return {"folder": str(self._folder)}
            case "open":
                return self._open(request)
            case "start":
                self._start()
            case "restart":
                self._shut_down(signal.SIGINT)
                self._start()
            case "kill":
                self._crash()
            case "poll":
                return {"running": self._is_running()}
            case other:
                raise Unavailable(f"unknown command {other!r}")
        return {}

    def remove(self) -> None:
        """Stop the server and remove everything that was made."""
        self._shut_down(signal.SIGQUIT)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _open(self, request: Request) -> Request:
        self._free_port = request["port"] == 0
        self._listen = request["port"] is not None
        self._port = _SOCKET_PORT if request["port"] is None else request["port"]
        self._settings = {**_SETTINGS, **request["settings"]}
        assert self._installation is not None
        self._init(self._installation, request["password"])
        self._start()
        return {
            "folder": str(self._folder),
            "socket": str(self._run),
            "port": self._port,
            "programs": self._installation.programs,
            "version": self._installation.version,
        }

    @property
    def _run(self) -> Path:
        assert self._folder is not None
        return self._folder / "run"

    @property
    def _data(self) -> Path:
        return self._run / "data"

    @property
    def _log(self) -> Path:
        assert self._folder is not None
        return self._folder / "server.log"

    def _make_folder(self) -> None:
        is_root = os.geteuid() == 0
        self._folder = Path(tempfile.mkdtemp(prefix="reliakit-pg-", dir=temporary_root(is_root=is_root)))
        self._run.mkdir(mode=0o700)
        if is_root:
            self._user = _hand_over(self._run)
            self._folder.chmod(0o711)

    def _choose(self, installations: list[Request]) -> _Installation:
        """Take the first installation whose programs really run; libraries may be missing or too old."""
        reasons: list[str] = []
        for number, found in enumerate(installations):
            programs = Path(found["programs"])
            version, reason = self._probe(programs)
            if not version and found["roots"] and os.geteuid() == 0:
                programs = self._copy(found, number)
                version, reason = self._probe(programs)
            if version:
                return _Installation(str(programs), version)
            reasons.append(f"{found['programs']}: {reason}")
        raise Unavailable("; ".join(reasons))

    def _probe(self, programs: Path) -> tuple[str, str]:
        """Return the version of the server in that folder, or "" and why it is of no use."""
        version = ""
        for program in ("initdb", "postgres"):
            command = [str(programs / program), "--version"]
            try:
                status, said = self._run_program(command, patience=20.0)
            except (OSError, subprocess.SubprocessError) as error:
                return "", f"{program} cannot be run: {getattr(error, 'strerror', None) or error}"
            if status != 0:
                return "", f"{program} cannot be run: {complaint(said)}"
            version = said.split("(PostgreSQL)")[-1].split()[0]
        major = int("".join(c if c.isdigit() else " " for c in version).split()[0])
        return (version, "") if major >= _OLDEST else ("", f"{version} is older than {_OLDEST}")

    def _run_program(self, command: list[str], *, patience: float) -> tuple[int, str]:
        """Run one program to its end as the server's user; return its status and all it said."""
        program = self._spawn(command, subprocess.PIPE)
        try:
            said, _ = program.communicate(timeout=patience)
        except BaseException:
            # Too slow, or we are told to end: nothing may go on writing into the folder.
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()
            raise
        return program.returncode, said.decode(errors="replace")

    def _spawn(self, command: list[str], output: int) -> subprocess.Popen[bytes]:
        uid, gid = self._user or (None, None)
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self._run,
            env=environment(),
            umask=0o077,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
            start_new_session=True,
            preexec_fn=partial(end_with_supervisor, signal.SIGQUIT),  # noqa: PLW1509 - this process has one thread
        )

    def _copy(self, found: Request, number: int) -> Path:
        """Copy the programs to where the server's user can read them: site-packages may lie in root's home."""
        assert self._folder is not None
        base = Path(found["base"])
        target = self._folder / f"install-{number}"
        for root in map(Path, found["roots"]):
            shutil.copytree(root, target / root.relative_to(base), ignore=_needless)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        return target / Path(found["programs"]).relative_to(base)

    def _init(self, installation: _Installation, password: str) -> None:
        assert self._folder is not None
        secret = self._folder / "password"
        with secret.open("x") as stream:
            secret.chmod(0o600)
            stream.write(password + "\n")
        if self._user is not None:
            os.chown(secret, *self._user)
        command = [f"{installation.programs}/initdb", "--pgdata", str(self._data), "--username=postgres"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}"]
        command += ["--encoding=UTF8", "--locale=C", "--no-sync"]
        status, said = self._run_program(command, patience=120.0)
        secret.unlink()
        if status != 0:
            raise Unavailable(f"initdb failed: {complaint(said)}")

    def _start(self) -> None:
        """Start the server on its port; a free port that somebody took meanwhile is exchanged for another."""
        if self._is_running():
            return
        # A server that ran once keeps its port: clients hold conninfos with it.
        may_move = self._free_port and not (self._data / "postmaster.opts").exists()
        complaint = ""
        for _ in range(10 if may_move else 1):
            if may_move:
                self._port = free_port()
            complaint = self._launch()
            if "Address already in use" not in complaint:
                break
        if complaint:
            raise Unavailable(f"PostgreSQL did not start: {complaint}")

    def _launch(self) -> str:
        """Start the server once and wait until it takes connections; return what it complained of, "" if nothing."""
        assert self._installation is not None
        settings = {
            "listen_addresses": "127.0.0.1" if self._listen else "",
            "port": str(self._port),
            "unix_socket_directories": str(self._run),
            **self._settings,
        }
        command = [f"{self._installation.programs}/postgres", "-D", str(self._data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("ab") as log:
            log_start = log.tell()
            self._server = self._spawn(command, log.fileno())
        until = time.monotonic() + 60.0  # noqa: TID251 - a process of its own, out of reach of any Clock
        while not self._is_ready(self._server.pid):
            timed_out = time.monotonic() > until  # noqa: TID251
            if timed_out or self._server.poll() is not None:
                self._shut_down(signal.SIGQUIT)
                said = complaint(self._log.read_bytes()[log_start:].decode(errors="replace"))
                return f"not ready in time; {said}" if timed_out else said
            time.sleep(0.005)  # noqa: TID251
        return ""

    def _is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def _is_ready(self, pid: int) -> bool:
        """Read the status that the server keeps in its pid file (line 8, since PostgreSQL 10)."""
        lines = self._pid_file()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _shut_down(self, how: int) -> None:
        """Stop by SIGINT (clean) or SIGQUIT (at once), and with more force if that takes too long."""
        if self._server is None:
            return
        for signal_number, patience in ((how, 10.0), (signal.SIGQUIT, 10.0)):
            if self._server.poll() is not None:
                break
            self._server.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(patience)
        self._crash()

    def _crash(self) -> None:
        """End the server as a crash would: no goodbye to any client, nothing written any more."""
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return
        if not Path("/proc/self/stat").exists():
            # Without /proc its backends cannot be found: let it end them itself, without a checkpoint.
            server.send_signal(signal.SIGQUIT)
            server.wait(30.0)
            return
        shared_memory = self._pid_file()[6:7]
        # Stopped first, so that it can neither start a backend that we do not see nor tell a client anything.
        server.send_signal(signal.SIGSTOP)
        os.waitpid(server.pid, os.WUNTRACED)
        family = [*_children(server.pid), server.pid]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.wait()
        for pid in family[:-1]:
            _wait_until_gone(pid)
        if shared_memory and len(shared_memory[0].split()) == 2:
            # Its one segment of System V memory outlives a killed server until the next start, which may never come.
            ctypes.CDLL(None).shmctl(int(shared_memory[0].split()[1]), _IPC_RMID, None)


def _hand_over(folder: Path) -> tuple[int, int]:
    """Give the folder to an unprivileged user: PostgreSQL refuses to run as root."""
    import pwd  # noqa: PLC0415 - Unix only

    for name in _UNPRIVILEGED:
        with contextlib.suppress(KeyError, OSError):
            user = pwd.getpwnam(name)
            if user.pw_uid:
                # Fails in a user namespace that does not know the user.
                os.chown(folder, user.pw_uid, user.pw_gid)
                return user.pw_uid, user.pw_gid
    raise Unavailable("PostgreSQL refuses to run as root, and none of nobody, postgres, daemon can be used")


def _needless(folder: str, names: list[str]) -> set[str]:
    """Leave behind what a server does not need, two thirds of the wheel."""
    if Path(folder).name == "bin":
        return {name for name in names if name not in {"postgres", "initdb"}}
    return {name for name in names if name in {"include", "doc", "man", "pgxs"} or name.endswith(".a")}


def _status(pid: int) -> list[str]:
    """Return a process's state, its parent and so on, as /proc has them; nothing once it is gone."""
    try:
        # Before them is its command in parentheses, which may hold spaces, parentheses and any bytes.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if _status(pid)[1:2] == [str(parent)]]


def _wait_until_gone(pid: int) -> None:
    """Reap an orphan of ours, or, where the kernel gave it to another process, wait until it is dead."""
    for _ in range(1000):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        except ChildProcessError:
            if _status(pid)[:1] in ([], ["Z"]):
                return
        time.sleep(0.005)  # noqa: TID251


def main() -> None:
    """Serve the process whose id is the first argument."""
    supervise(PostgresSupervisor())
