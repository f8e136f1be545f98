"""The three services as a user runs them: processes of their own, HTTP on loopback, a real PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import httpx2
import jwt

from reliakit import SYSTEM_CLOCK

ROOT = Path(__file__).parents[2]
SECRET = "a secret that is long enough for HS256"


class Service:
    """One running service and a client of it."""

    def __init__(self, name, folder, **settings):
        self.settings = settings
        self.log_file = folder / f"{name}-{uuid.uuid4().hex}.log"
        known = {"JWT_SECRET": SECRET, "PORT": "0", "TRUSTED_PROXIES": "127.0.0.1/32", "RELIAKIT_ENV": "production"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"examples.{name}"],
                cwd=ROOT,
                env=environment(**{**known, **settings}),
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        announced = self.process.stdout.readline()
        assert announced, self.log
        self.url = announced.split()[-1]
        self.client = httpx2.Client(base_url=self.url, timeout=20.0)
        self.wait_until_ready()

    def wait_until_ready(self):
        until = SYSTEM_CLOCK.monotonic() + 30
        while SYSTEM_CLOCK.monotonic() < until:
            with contextlib.suppress(httpx2.TransportError):
                if self.client.get("/health").status_code == 200:
                    return
            assert self.process.poll() is None, self.log
            SYSTEM_CLOCK.sleep(0.02)
        raise AssertionError(self.log)

    @property
    def log(self):
        return self.log_file.read_text()

    def metric(self, start):
        """Sum the samples whose line begins so."""
        text = self.client.get("/metrics", headers={"Accept": "text/plain"}).text
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(start))

    def operations(self, method):
        """Ask for what the people who run the service look at; return the statuses."""
        pages = ("/health", "/metrics", "/slo", "/errors")
        return {page: self.client.request(method, page).status_code for page in pages}

    def stop(self):
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process.stdout.close()
        return code


def environment(**settings):
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | settings


def bearer(subject="7", **claims):
    now = int(SYSTEM_CLOCK.time())
    claims = {"iss": "auth", "sub": subject, "iat": now, "exp": now + 600} | claims
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, algorithm='HS256')}"}
