"""Runs the project service alone: `DATABASE_URL=... JWT_SECRET=... EMPLOYEE_URL=... python -m examples.project`."""

from __future__ import annotations

import os
import signal
import socket
import sys

import uvicorn

from examples.project.app import create_app
from examples.project.settings import settings_from
from reliakit import ConfigurationError, configure_logging

PREFERRED_PORT = 8003


def main() -> int:
    try:
        settings = settings_from(os.environ)
        listener = listen(settings.host, settings.port)
    except (ConfigurationError, OSError) as error:
        print(f"project cannot start: {error}", file=sys.stderr)
        return 2
    # uvicorn hands the signal on when it has shut down; the logs are closed after that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    with listener, configure_logging(service="project"):
        config = uvicorn.Config(
            create_app(settings),
            lifespan="on",
            log_config=None,  # its lines go through reliakit's handler
            access_log=False,  # protect() writes a better one
            proxy_headers=False,  # else uvicorn believes X-Forwarded-For of this machine; TRUSTED_PROXIES decides
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        print(f"project listens on http://{settings.host}:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listen(host: str, port: int | None) -> socket.socket:
    """Bind the port that was asked for; without one the preferred port, or a free one when that is in use."""
    try:
        listener = socket.create_server((host, PREFERRED_PORT if port is None else port))
    except OSError as error:
        if port is not None:
            raise OSError(f"port {port} of {host} cannot be used: {error.strerror}") from error
        listener = socket.create_server((host, 0))
    # What asyncio does for sockets of its own: else a body waits until the client acknowledges the headers, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


if __name__ == "__main__":
    sys.exit(main())
