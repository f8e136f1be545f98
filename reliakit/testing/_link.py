"""How a program talks to the small process that owns a server for it.

```
program ── Link: one JSON request a line ──> supervising process ──> server and its temporary folder
        <──────────── one answer each ──────
```

The server belongs to that process, which ends with its owner however its owner ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from reliakit.core.errors import ConfigurationError

__all__ = ["Link"]


class Link:
    """The owner's end of the pipe to a supervising process.

    Args:
        service: What is supervised, for messages.
        supervisor: The module whose `main()` the supervising process runs; it needs the standard library only.
    """

    def __init__(self, service: str, supervisor: str) -> None:
        self.service = service
        self.owner = os.getpid()
        self.folder: str | None = None
        self._lock = threading.Lock()
        self._request = 0
        self._received = b""
        # An isolated interpreter finds this package only if it is told where it is.
        program = f"import sys; sys.path.append(sys.argv.pop(1)); from {supervisor} import main; main()"
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", "-c", program, str(Path(__file__).parents[2]), str(self.owner)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            # A terminal's Ctrl-C is meant for the owner, which decides when the server ends.
            start_new_session=True,
        )

    def ask(self, command: str, **fields: object) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            ConfigurationError: It could not be done; the message says why.
        """
        if os.getpid() != self.owner:
            raise ConfigurationError(f"this {self.service} belongs to the process that started it, not to its fork")
        with self._lock:
            self._request += 1
            self._send({"id": self._request, "command": command, **fields})
            while True:
                answer: dict[str, Any] = json.loads(self._line())
                # A request that was interrupted (Ctrl-C) leaves its answer behind.
                if answer["id"] == self._request:
                    break
        if "error" in answer:
            raise ConfigurationError(answer["error"])
        return answer

    def close(self) -> None:
        """End the server and the supervising process, and make sure that the folder is gone; idempotent."""
        # A fork inherits this object and its finaliser, but not the server.
        if os.getpid() != self.owner or self._process.stdin is None or self._process.stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # it may be gone already
            self._process.stdin.write(b'{"command": "stop"}\n')
        self._process.stdin.close()
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self.folder is not None:
            # Only when the supervising process was killed: the kernel then stopped the server.
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _gone(self) -> str:
        return f"the process that supervises {self.service} is gone; stop() and start()"

    def _send(self, request: dict[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ValueError) as error:
            raise ConfigurationError(self._gone) from error

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            received = os.read(self._process.stdout.fileno(), 65536)
            if not received:
                raise ConfigurationError(self._gone)
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line
