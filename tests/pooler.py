"""A small pooler for tests: it runs each transaction of its clients on any session of the server, as PgBouncer may.

```
client ──> Pooler ──> session 1    taken for the first message of a transaction, given back when the server is idle
client ──>        ──> session 2    the one that came back last is taken first
```

It resets nothing between clients, tells each a process id of its own making, and knows nothing of COPY.
"""

from __future__ import annotations

import itertools
import os
import queue
import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_REPORTED = (
    b"server_version", b"server_encoding", b"client_encoding", b"DateStyle", b"IntervalStyle", b"TimeZone",
    b"integer_datetimes", b"standard_conforming_strings", b"default_transaction_read_only",
)  # fmt: skip
_STARTUP = 196608
_LONGEST = 10.0  # seconds that anything may take


class _Session:
    """One session of the server."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True, sslmode="disable", gssencmode="disable")
        self.socket = socket.socket(fileno=os.dup(self.connection.pgconn.socket))
        self.socket.settimeout(_LONGEST)

    def close(self) -> None:
        self.socket.close()
        self.connection.close()


class Pooler:
    """A pooler in front of a server, as a context manager.

    Attributes:
        dsn: Where clients connect to.
    """

    def __init__(self, dsn: str, sessions: int = 1) -> None:
        self._dsn = dsn
        self._sessions = [_Session(dsn) for _ in range(sessions)]
        self._idle: queue.LifoQueue[_Session] = queue.LifoQueue()
        for session in reversed(self._sessions):
            self._idle.put(session)
        self._pids = itertools.count(2**30)  # more than a server's
        self._clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        address = {"host": "127.0.0.1", "port": str(self._listener.getsockname()[1]), "hostaddr": None}
        kept = {name: str(value) for name, value in conninfo_to_dict(dsn).items() if name in {"user", "dbname"}}
        self.dsn = make_conninfo("", **kept, **address, sslmode="disable", gssencmode="disable")

    def found(self, query: str) -> list[tuple[object, ...]]:
        """Return what a query finds in all sessions, now that no client uses one."""
        sessions = [self._idle.get(timeout=_LONGEST) for _ in self._sessions]
        rows = [row for session in sessions for row in session.connection.execute(query, prepare=False).fetchall()]
        for session in reversed(sessions):
            self._idle.put(session)
        return rows

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for client in self._clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for session in self._sessions:
            session.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        session: _Session | None = None
        # A client that hangs up, or a pooler that is closed.
        with client, suppress(OSError):
            (length, code) = struct.unpack("!ii", _read(client, 8))
            _read(client, length - 8)
            if code != _STARTUP:
                return  # a cancel request: nobody here waits for what it does
            client.sendall(self._welcome())
            while True:
                message = _message(client)
                if message[:1] == b"X":
                    break
                session = session or self._idle.get(timeout=_LONGEST)
                session.socket.sendall(message)
                if message[:1] in b"QS" and _answer(session.socket, client) == b"I":
                    self._idle.put(session)
                    session = None
        if session is not None:  # in a transaction: with it goes the session
            session.close()

    def _welcome(self) -> bytes:
        known = self._sessions[0].connection.pgconn
        told = [(name, known.parameter_status(name) or b"") for name in _REPORTED]
        statuses = b"".join(_framed(b"S", name + b"\0" + value + b"\0") for name, value in told)
        key = struct.pack("!ii", next(self._pids), 1)
        return _framed(b"R", struct.pack("!i", 0)) + statuses + _framed(b"K", key) + _framed(b"Z", b"I")


def _framed(kind: bytes, payload: bytes) -> bytes:
    return kind + struct.pack("!i", len(payload) + 4) + payload


def _read(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError("hung up")
        data += more
    return data


def _message(source: socket.socket) -> bytes:
    head = _read(source, 5)
    return head + _read(source, struct.unpack("!i", head[1:])[0] - 4)


def _answer(server: socket.socket, client: socket.socket) -> bytes:
    """Hand on what the server says until it awaits more, and return the state in which it does."""
    while True:
        message = _message(server)
        client.sendall(message)
        if message[:1] == b"Z":
            return message[5:]
