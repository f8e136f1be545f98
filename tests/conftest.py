"""What the whole suite shares; the fixtures for PostgreSQL, clocks and faults come from reliakit's own plugin."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase, InMemoryExampleDatabase

# No test is judged by the clock, and a checkout that the user may not write to must not warn.
_can_write = os.access(".", os.W_OK)
_examples = DirectoryBasedExampleDatabase(".hypothesis/examples") if _can_write else InMemoryExampleDatabase()
settings.register_profile("reliakit", deadline=None, database=_examples)
settings.load_profile("reliakit")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
