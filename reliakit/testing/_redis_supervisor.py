"""What the supervising process does for an embedded Redis: start, pause, crash, end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

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

__all__ = ["RedisSupervisor", "main"]

_ATTEMPTS = 5
# Nothing is ever written to a disk: what a killed server knew is gone, as after a failover to an empty replica.
_SETTINGS = {"save": "", "appendonly": "no", "daemonize": "no", "databases": "16", "unixsocketperm": "700"}


class RedisSupervisor:
    """One server, its folder and the commands on it."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._program = ""
        self._version = ""
        self._server: subprocess.Popen[bytes] | None = None
        self._wanted_port: int | None = None
        self._port = 0
        self._settings: dict[str, str] = {}

    def obey(self, request: Request, /) -> Request:
        """Do what one request asks and return what to answer."""
        match request["command"]:
            case "open":
                return self._open(request)
            case "start":
                self._start()
            case "restart":
                self._end(signal.SIGTERM)
                self._start()
            case "kill":
                self._end(signal.SIGKILL)
            case "pause":
                self._running().send_signal(signal.SIGSTOP)
                os.waitpid(self._running().pid, os.WUNTRACED)
            case "resume":
                self._running().send_signal(signal.SIGCONT)
            case "poll":
                return {"running": self._server is not None and self._server.poll() is None}
            case other:
                raise Unavailable(f"unknown command {other!r}")
        return {}

    def remove(self) -> None:
        """Stop the server and remove everything that was made."""
        self._end(signal.SIGKILL)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _open(self, request: Request) -> Request:
        self._program, self._version = self._choose(request["programs"])
        self._folder = Path(tempfile.mkdtemp(prefix="reliakit-redis-", dir=temporary_root(is_root=False)))
        self._wanted_port = request["port"]
        self._settings = {**_SETTINGS, **request["settings"]}
        if self._wanted_port is not None:
            self._settings |= {"bind": "127.0.0.1", "requirepass": request["password"]}
        self._start()
        return {
            "folder": str(self._folder),
            "socket": str(self._folder / "redis.sock"),
            "port": self._port,
            "program": self._program,
            "version": self._version,
        }

    def _choose(self, programs: list[str]) -> tuple[str, str]:
        """Return the first program that really runs, and its version; a library may be missing."""
        reasons: list[str] = []
        for program in programs:
            try:
                told = subprocess.run(  # noqa: S603
                    [program, "--version"], capture_output=True, text=True, timeout=20, check=False, env=environment()
                )
            except (OSError, subprocess.SubprocessError) as error:
                reasons.append(f"{program}: {error}")
                continue
            found = [word.partition("v=")[2] for word in told.stdout.split() if word.startswith("v=")]
            if told.returncode == 0 and found:
                return program, found[0]
            reasons.append(f"{program}: {complaint(told.stdout + told.stderr)}")
        raise Unavailable("; ".join(reasons))

    def _start(self) -> None:
        if self._server is not None and self._server.poll() is None:
            return
        said = ""
        for _ in range(_ATTEMPTS):
            if self._wanted_port is not None and not self._port:
                self._port = self._wanted_port or free_port()
            said = self._launch()
            if not said:
                return
            if self._wanted_port != 0:
                break
            self._port = 0  # somebody took it in between
        raise Unavailable(f"Redis did not start: {said}")

    def _launch(self) -> str:
        """Start the server once and wait until it takes connections; return what it complained of, "" if nothing."""
        assert self._folder is not None
        address = self._folder / "redis.sock"
        address.unlink(missing_ok=True)
        # Written to a file, so that no password stands in the list of processes.
        settings = {**self._settings, "port": str(self._port), "unixsocket": str(address), "dir": str(self._folder)}
        lines = [f'{name} "{value}"' if not value else f"{name} {value}" for name, value in settings.items()]
        configuration = self._folder / "redis.conf"
        configuration.write_text("\n".join(lines) + "\n")
        with (self._folder / "server.log").open("ab") as log:
            log_start = log.tell()
            self._server = subprocess.Popen(  # noqa: S603
                [self._program, str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                cwd=str(self._folder),
                preexec_fn=partial(end_with_supervisor, signal.SIGKILL),  # noqa: PLW1509 - this process has one thread
            )
        until = time.monotonic() + 30.0  # noqa: TID251 - a process of its own, out of reach of any Clock
        while not _takes_connections(address):
            timed_out = time.monotonic() > until  # noqa: TID251
            if timed_out or self._server.poll() is not None:
                self._end(signal.SIGKILL)
                said = complaint((self._folder / "server.log").read_bytes()[log_start:].decode(errors="replace"))
                return f"not ready in time; {said}" if timed_out else said
            time.sleep(0.002)  # noqa: TID251
        return ""

    def _running(self) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            raise Unavailable("this Redis does not run; call start()")
        return self._server

    def _end(self, how: int) -> None:
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return
        server.send_signal(signal.SIGCONT)
        server.send_signal(how)
        try:
            server.wait(10.0)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _takes_connections(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(address))
        except OSError:
            return False
    return True


def main() -> None:
    """Serve the process whose id is the first argument."""
    supervise(RedisSupervisor())
