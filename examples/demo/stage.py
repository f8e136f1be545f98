"""What the demo plays on: PostgreSQL, the network, three services, and a folder for what they write.

```
traffic ──> auth ─────────────────────┐
        ──> project ──────────────────┼── network ──> PostgreSQL
        │      └──┐                   │
        └─────────┴─ network ─> employee
```

Whatever was built is taken down in reverse order, also when building it was interrupted halfway.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx2
from psycopg.conninfo import make_conninfo

from examples.demo.network import Network
from reliakit import SYSTEM_CLOCK
from reliakit.testing import EmbeddedPostgres

if TYPE_CHECKING:
    from types import TracebackType

    from examples.demo.interrupt import Interrupt
    from examples.demo.network import Line

SERVICES = ("auth", "employee", "project")


class StageError(Exception):
    """A service did not come up."""


class Service:
    """One service in a process of its own."""

    def __init__(self, name: str, folder: Path, removed_with_demo: bool) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._output = folder / f"{name}.out"
        command = [sys.executable, "-m", "examples.demo.child", f"examples.{name}"]
        with self._output.open("wb") as output, self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(folder)] if removed_with_demo else command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=log,
                cwd=Path(__file__).parents[2],
                start_new_session=True,  # a terminal's Ctrl-C is for the demo alone
            )

    def settle(self, settings: dict[str, str]) -> None:
        """Hand over the settings, with which the service starts."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(settings).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._process.wait(5.0)
            self.must_run()

    def address(self, interrupt: Interrupt) -> str:
        """Return where it listens, as soon as it says so."""
        while True:
            self.must_run()
            announced = self._output.read_text()
            if announced.endswith("\n"):
                return announced.split()[-1]
            interrupt.wait(0.01)

    def must_run(self) -> None:
        """Raise StageError when the service has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended with {self._process.returncode}")

    def failure(self, what: str) -> StageError:
        """Return the error that says what the service did, and what it wrote last."""
        last = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        return StageError("\n".join([f"the {self.name} service {what}:", *last]))

    def ask_to_end(self) -> None:
        """Ask once: a second SIGTERM, while Python takes itself down, would look like a bad end."""
        self._process.terminate()

    def wait(self, patience: float = 8.0) -> int:
        """Wait for its end, or bring it about when that takes too long; return the exit code."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # what was written last may never have been read
                self._process.stdin.close()
        return self._process.returncode


class Stage:
    """Builds everything on entering and takes it down on leaving.

    Attributes:
        addresses: Where each service listens.
        urls: Where it is reached; the employee service through a network that can be slow.
        dsns: Conninfo of each service's database, past the network that the services go through.
        database_network: Between the services and PostgreSQL.
        employee_network: In front of the employee service.
    """

    database_network: Line
    employee_network: Line

    def __init__(self, interrupt: Interrupt, *, logs: Path | None, preferred_ports: bool) -> None:
        self._interrupt = interrupt
        self._logs = logs
        self._preferred_ports = preferred_ports
        self._everything = ExitStack()
        self._services: dict[str, Service] = {}
        self.jwt_secret = secrets.token_hex(32)
        self.urls: dict[str, str] = {}
        self.addresses: dict[str, str] = {}
        self.dsns: dict[str, str] = {}
        self.postgres = EmbeddedPostgres(settings={"max_connections": 60})

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._everything.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._everything.close()

    @property
    def folder(self) -> Path:
        assert self._logs is not None
        return self._logs

    def _build(self) -> None:
        is_ours = self._logs is None
        if self._logs is None:
            self._logs = Path(tempfile.mkdtemp(prefix="reliakit-demo-"))
            self._everything.callback(shutil.rmtree, self._logs, ignore_errors=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        # They load while PostgreSQL starts; a bare machine has two cores and nothing else to do.
        network = self._everything.enter_context(Network())
        self._everything.callback(self.stop_services)
        for name in SERVICES:
            self._services[name] = Service(name, self._logs, is_ours)
        self._interrupt.check()
        self._everything.enter_context(self.postgres)
        self._interrupt.check()
        self.database_network = network.open(self.postgres.dsn)
        for name in SERVICES:
            self.dsns[name] = self.postgres.database(f"demo_{name}")
            self._interrupt.check()
        # Services go before the network and the database that they use.
        self._everything.callback(self.stop_services)
        self._start_services(network)

    def _start_services(self, network: Network) -> None:
        for name in ("auth", "employee"):
            self._services[name].settle(self._settings(name))
        employee = self.addresses["employee"] = self._services["employee"].address(self._interrupt)
        self.employee_network = network.open(employee)
        self.urls["employee"] = self.employee_network.dsn(employee)
        self._services["project"].settle({**self._settings("project"), "EMPLOYEE_URL": self.urls["employee"]})
        for name in ("auth", "project"):
            self.urls[name] = self.addresses[name] = self._services[name].address(self._interrupt)
        self._wait_for_answers()

    def _settings(self, name: str) -> dict[str, str]:
        port = "" if self._preferred_ports else "0"
        return {
            "DATABASE_URL": make_conninfo(
                self.database_network.dsn(self.dsns[name]), application_name=f"demo-{name}"
            ),
            "JWT_SECRET": self.jwt_secret,
            "PORT": port,
            "HOST": "127.0.0.1",
            "RELIAKIT_ENV": "production",
            "LOG_LEVEL": "INFO",
            # The traffic plays a gateway that says whom it speaks for.
            "TRUSTED_PROXIES": "127.0.0.1/32",
        }

    def _wait_for_answers(self) -> None:
        until = SYSTEM_CLOCK.monotonic() + 30.0
        with httpx2.Client(timeout=2.0) as client:
            for name in SERVICES:
                while True:
                    self._services[name].must_run()
                    try:
                        if client.get(f"{self.urls[name]}/health").status_code == 200:
                            break
                    except httpx2.TransportError:
                        pass  # not up yet
                    if SYSTEM_CLOCK.monotonic() > until:
                        raise self._services[name].failure("does not answer")
                    self._interrupt.wait(0.02)

    def must_run(self) -> None:
        """Raise StageError when a service has ended."""
        for service in self._services.values():
            service.must_run()

    def stop_services(self) -> dict[str, int]:
        """End the services in good order; return their exit codes. A second call finds none left."""
        services, self._services = self._services, {}
        for service in services.values():
            service.ask_to_end()
        return {name: service.wait() for name, service in services.items()}
