"""The small process between a program and an embedded server, so that no death of the program can orphan the server.

```
program ── Link ──> this process ──> server
                         └──> one temporary folder
```

It obeys one JSON request a line and answers each. When the pipe ends, its owner is gone or it is told to end, it
stops the server and removes the folder. It leads a session of its own, so a terminal's Ctrl-C reaches the owner
only. It makes the folder itself: there is no moment at which something exists and nobody would remove it.

It is run by an isolated interpreter without site-packages (`python -I -S`): this module, and every module of a server
that it supervises, needs the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn, Protocol

__all__ = [
    "Request",
    "Supervised",
    "Unavailable",
    "complaint",
    "end_with_supervisor",
    "environment",
    "free_port",
    "supervise",
    "temporary_root",
]

Request = dict[str, Any]

# 107 bytes is the longest socket path on Linux, 103 on macOS; ours adds about 40 to the root.
_LONGEST_ROOT = 60
_ROOMY = 4 << 30
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


class Unavailable(Exception):  # noqa: N818 - a protocol answer, not a failure of this program
    """What was asked for cannot be done here, in words for the user."""


class Supervised(Protocol):
    """What this process runs for its owner."""

    def obey(self, request: Request, /) -> Request:
        """Do what one request asks and return what to answer."""
        ...

    def remove(self) -> None:
        """Stop the server and remove everything that was made."""
        ...


def supervise(supervisor: Supervised) -> None:
    """Serve the process whose id is the program's first argument, until that is gone."""
    _prepare_process()
    try:
        _serve(int(sys.argv[1]), supervisor)
    except BrokenPipeError:
        pass  # the owner died while being answered
    finally:
        _ignore_signals()
        supervisor.remove()


def _serve(owner: int, supervisor: Supervised) -> None:
    """Obey until the pipe ends or the owner is gone; a forked child of the owner may hold the pipe open."""
    pending = b""
    while os.getppid() == owner:
        if not select.select([0], [], [], 0.5)[0]:
            continue
        received = os.read(0, 65536)
        if not received:
            return
        *lines, pending = (pending + received).split(b"\n")
        for line in lines:
            request: Request = json.loads(line)
            if request["command"] == "stop":
                return
            try:
                answer = supervisor.obey(request)
            except Unavailable as unavailable:
                answer = {"error": str(unavailable)}
            except Exception as error:  # noqa: BLE001 - told to the owner, who raises it
                answer = {"error": f"{type(error).__name__}: {error}"}
            os.write(1, json.dumps({"id": request["id"], **answer}).encode() + b"\n")


def _prepare_process() -> None:
    os.umask(0o077)
    # An interpreter inherits blocked and ignored signals, SIGCHLD and SIGINT among them.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    if sys.platform == "linux":
        # Backends whose server was killed come to us, so that none stays a zombie where PID 1 reaps nobody.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def end_with_supervisor(signal_number: int) -> None:
    """Have the kernel send the calling process this signal if its parent, the supervising process, dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def temporary_root(*, is_root: bool) -> str:
    """Return where the folder goes: TMPDIR if that is set, memory if there is plenty, else the usual places."""
    roots = [os.environ.get("TMPDIR", ""), "/dev/shm" if _has_roomy_memory() else "", tempfile.gettempdir()]  # noqa: S108
    for root in filter(None, (*roots, "/tmp", "/var/tmp")):  # noqa: S108 - mkdtemp makes the folder inside
        path = Path(root).resolve()
        if not os.access(path, os.W_OK | os.X_OK) or len(str(path)) > _LONGEST_ROOT:
            continue
        # As root the server runs as somebody else, and maybe from programs copied to here.
        reachable = all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
        if not is_root or (reachable and not os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0)):
            return str(path)
    raise Unavailable("no temporary folder is short enough and reachable for the server; set TMPDIR")


def _has_roomy_memory() -> bool:
    """Whether a database in memory would go unnoticed; there, making one does not depend on the disk's mood."""
    try:
        free = os.statvfs("/dev/shm")  # noqa: S108
        rooms = [free.f_bavail * free.f_frsize]
        rooms += [int(word) << 10 for word in re.findall(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text())]
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            rooms.append(int(text))
    except OSError:
        return False
    return min(rooms) >= _ROOMY


def environment() -> dict[str, str]:
    """Nothing of the caller's locale or PG* variables, only what programs need to be found and loaded."""
    kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return environment | {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def complaint(log: str) -> str:
    """Return the lines of a log that say what went wrong, as one short line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "rror:", "could not"))]
    return " | ".join((telling or lines or ["it said nothing"])[-4:])[:500]
