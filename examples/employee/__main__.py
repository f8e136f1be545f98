"""Runs the employee service alone: `DATABASE_URL=... JWT_SECRET=... python -m examples.employee`."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from waitress import wasyncore  # type: ignore[import-untyped]  # it ships no types
from waitress.server import create_server  # type: ignore[import-untyped]

from examples.employee.app import create_app
from examples.employee.migrate import migrate
from examples.employee.settings import Settings
from reliakit import SYSTEM_CLOCK, ConfigurationError, Database, configure_logging

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

PREFERRED_PORT = 8002


def main() -> int:
    try:
        settings = Settings.from_environment()
        listener = listen(settings.host, settings.port)
    except (ConfigurationError, OSError) as error:
        print(f"employee cannot start: {error}", file=sys.stderr)
        return 2
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, lambda *_: stopping.set())
    threads = settings.threads
    db = Database(
        settings.database_url, name="employee", service="employee", min_size=2, max_size=threads, timeout=3.0
    )
    with listener, configure_logging(service="employee"), db:
        print(f"employee listens on http://{settings.host}:{listener.getsockname()[1]}", flush=True)
        migrate(db)
        serve(create_app(settings, db), listener, threads, stopping)
    return 0


def serve(app: WSGIApplication, listener: socket.socket, threads: int, stopping: threading.Event) -> None:
    """Serve until told to stop, then answer what has been taken in, for at most five seconds."""
    sockets: dict[int, Any] = {}
    server = create_server(
        app,
        map=sockets,
        sockets=[listener],
        threads=threads,
        ident=None,
        asyncore_use_poll=True,
        # By default one client that opens a hundred connections and says nothing keeps everybody out for two minutes.
        connection_limit=500,
        channel_timeout=15,
        cleanup_interval=5,
        clear_untrusted_proxy_headers=False,  # protect() and TRUSTED_PROXIES decide who is believed
    )
    while not stopping.is_set():
        wasyncore.loop(timeout=0.25, use_poll=True, map=sockets, count=1)
    server.accepting = False
    until = SYSTEM_CLOCK.monotonic() + 5.0
    while server.active_channels and SYSTEM_CLOCK.monotonic() < until:
        for channel in server.active_channels.values():
            if not channel.requests and not channel.total_outbufs_len:
                channel.will_close = True
        wasyncore.loop(timeout=0.05, use_poll=True, map=sockets, count=1)
    server.task_dispatcher.shutdown(timeout=1)
    server.close()


def listen(host: str, port: int | None) -> socket.socket:
    """Bind the port that was asked for; without one the preferred port, or a free one when that is in use."""
    try:
        return socket.create_server((host, PREFERRED_PORT if port is None else port))
    except OSError as error:
        if port is None:
            return socket.create_server((host, 0))
        raise OSError(f"port {port} of {host} cannot be used: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
