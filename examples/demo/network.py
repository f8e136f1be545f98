"""The network that the demo can spoil, in a process of its own.

```
demo ── pipe ──> python -m examples.demo.network
                 services ══ FaultProxy ══> PostgreSQL
         traffic, project ══ FaultProxy ══> employee
```

Every statement of a transaction passes here twice. In the demo's own process it would each time wait until the
traffic lets go of the interpreter, and the demo would measure its own load instead of the services. The end of the
pipe is the end of the network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from reliakit.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_PATIENCE = 5.0


class NetworkError(OSError):
    """The process of the network has ended."""


class Network:
    """The demo's end of the pipe. The process starts at once and opens proxies when it is told to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "examples.demo.network"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # a terminal's Ctrl-C is for the demo alone
        )

    def open(self, target: str) -> Line:
        """Put a line in front of a server, given by its conninfo or URL."""
        return Line(self, self.ask("open", target))

    def ask(self, what: str, *how: Any) -> Any:
        """Have something done, and return what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([what, *how]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NetworkError("the network has ended") from None
        answer = self._process.stdout.readline()
        if not answer:
            raise NetworkError("the network has ended")
        return json.loads(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


class Line:
    """What leads to one server."""

    def __init__(self, network: Network, number: int) -> None:
        self._network = network
        self._number = number

    def dsn(self, address: str) -> str:
        """Return the conninfo or URL of the server as it is reached through this line."""
        return str(self._network.ask("dsn", self._number, address))

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Let nothing arrive any more, for as long as the block takes."""
        self._network.ask("black_hole", self._number)
        try:
            yield
        finally:
            self._network.ask("heal", self._number)

    @contextmanager
    def latency(self, seconds: float) -> Iterator[None]:
        """Let what goes to the server arrive later, for as long as the block takes."""
        self._network.ask("latency", self._number, seconds)
        try:
            yield
        finally:
            self._network.ask("heal", self._number)


def serve() -> None:
    """Do what comes through the pipe, until it ends."""
    proxies: list[FaultProxy] = []
    with ExitStack() as everything:
        for line in sys.stdin.buffer:
            what, *how = json.loads(line)
            answer: Any = None
            match what:
                case "open":
                    proxies.append(everything.enter_context(FaultProxy(how[0])))
                    answer = len(proxies) - 1
                case "dsn":
                    answer = proxies[how[0]].dsn(how[1])
                case "black_hole":
                    proxies[how[0]].black_hole()
                case "latency":
                    proxies[how[0]].latency(how[1], direction="to_server")
                case "heal":
                    proxies[how[0]].heal()
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    serve()
