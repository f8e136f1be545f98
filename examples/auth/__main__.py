"""Runs the auth service alone: `DATABASE_URL=... JWT_SECRET=... python -m examples.auth`."""

from __future__ import annotations

import signal
import socket
import sys

import uvicorn

from examples.auth.app import create_app
from examples.auth.settings import Settings
from reliakit import ConfigurationError, configure_logging

PREFERRED_PORT = 8001


def main() -> int:
    try:
        settings = Settings.from_environment()
        listener = listen(settings.host, settings.port)
    except (ConfigurationError, OSError) as error:
        print(f"auth cannot start: {error}", file=sys.stderr)
        return 2
    # uvicorn hands the signal on when it has shut down; the logs are closed after that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    with listener, configure_logging(service="auth"):
        config = uvicorn.Config(
            create_app(settings),
            lifespan="on",
            log_config=None,  # its lines go through reliakit's handler
            access_log=False,  # protect() writes a better one
            proxy_headers=False,  # else uvicorn believes X-Forwarded-For of this machine; TRUSTED_PROXIES decides
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        print(f"auth listens on http://{settings.host}:{listener.getsockname()[1]}", flush=True)
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
