"""What embedded servers have in common: each belongs to a small supervising process, which says where it listens.

```
start() ── Link ──> supervising process ──> server        facts: folder, version, addresses
stop(), or the end of this program, or of the object: the link closes, and the supervisor ends and removes it all
```
"""

from __future__ import annotations

import secrets
import threading
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reliakit.core.errors import ConfigurationError
from reliakit.testing._link import Link

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["EmbeddedServer"]


class EmbeddedServer(ABC):
    """A server of your own, from its start to its end.

    Args:
        port: TCP port on 127.0.0.1 in addition to the Unix socket; 0 for a free one, None for no TCP at all.

    Raises:
        ConfigurationError: The port is not valid.
    """

    _product: ClassVar[str]
    _supervisor: ClassVar[str]  # the module whose main() supervises it

    def __init__(self, port: int | None) -> None:
        if port is not None and not (isinstance(port, int) and 0 <= port <= 65535):
            raise ConfigurationError(f"port={port!r} must be between 0 (a free one) and 65535, or None for no TCP")
        self._wanted_port = port
        # Reentrant: a start that fails stops.
        self._lock = threading.RLock()
        self._link: Link | None = None
        self._finalizer: weakref.finalize[..., EmbeddedServer] | None = None
        self._facts: dict[str, Any] = {}
        self._password = ""

    @abstractmethod
    def start(self) -> None:
        """Start the server; does nothing if it is running."""

    def stop(self) -> None:
        """End the server and remove everything it left; idempotent."""
        with self._lock:
            if self._link is not None and self._finalizer is not None:
                self._finalizer()
                self._link = None
                self._facts = {}

    @property
    def port(self) -> int | None:
        """TCP port on 127.0.0.1, None without TCP."""
        return None if self._wanted_port is None else self._facts.get("port")

    @property
    def folder(self) -> Path | None:
        """The temporary folder with everything the server writes, None before the start."""
        return Path(self._facts["folder"]) if self._facts else None

    @property
    def version(self) -> str | None:
        """Version of the server, such as "7.0.15"; None before the start."""
        return self._facts.get("version")

    @property
    def running(self) -> bool:
        """Whether the server process exists, stalled or not."""
        return self._link is not None and bool(self._link.ask("poll")["running"])

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return (self.folder / "server.log").read_text(errors="replace") if self.folder else ""

    def _supervise(self) -> Link:
        self._password = secrets.token_urlsafe(24)
        self._link = Link(self._product, self._supervisor)
        self._finalizer = weakref.finalize(self, self._link.close)
        return self._link

    def _own(self, command: str) -> Link:
        if self._link is None:
            raise ConfigurationError(f"{command}() needs a started server; call start() first")
        return self._link

    def _known(self) -> dict[str, Any]:
        if not self._facts:
            raise ConfigurationError(
                f"this {self._product} is not started; use it as a context manager or call start()"
            )
        return self._facts

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
