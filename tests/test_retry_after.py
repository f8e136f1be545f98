"""How long somebody else asks us to wait."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit import CircuitOpenError
from reliakit.resilience.retry_after import retry_after_of

WALL = 946_684_740.0  # a minute before the year 2000


@pytest.mark.parametrize(
    ("outcome", "seconds"),
    [
        (CircuitOpenError("open", retry_after=2.5), 2.5),
        (CircuitOpenError("open"), None),
        (SimpleNamespace(retry_after=timedelta(minutes=1)), 60.0),
        (SimpleNamespace(retry_after=-3), 0.0),
        (SimpleNamespace(retry_after=True), None),
        (SimpleNamespace(retry_after=float("nan")), None),
        (SimpleNamespace(headers={"Retry-After": "120"}), 120.0),
        (SimpleNamespace(headers={"retry-after": " 0.5 "}), 0.5),
        (SimpleNamespace(headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), 59.0),
        (SimpleNamespace(headers={"Retry-After": "Fri, 31 Dec 1999 23:58:59"}), 0.0),
        (SimpleNamespace(headers={"Retry-After": "soon"}), None),
        (SimpleNamespace(headers={"Retry-After": "9" * 5000}), None),
        (SimpleNamespace(headers={"Retry-After": "-1"}), None),
        (SimpleNamespace(headers={"Retry-After": b"1"}), None),
        (SimpleNamespace(headers=[("Retry-After", "1")]), None),
        (SimpleNamespace(response=SimpleNamespace(headers={"Retry-After": "7"})), 7.0),
        (ValueError("7"), None),
        (mock.Mock(), None),
        (None, None),
    ],
)
def test_what_is_asked_for_is_read_wherever_it_stands(outcome: object, seconds: float | None) -> None:
    assert retry_after_of(outcome, WALL) == seconds


def test_an_object_that_raises_at_every_touch_asks_for_nothing() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(name)

    assert retry_after_of(Hostile(), WALL) is None


@given(st.text(max_size=80))
def test_no_header_makes_it_raise(text: str) -> None:
    told = retry_after_of(SimpleNamespace(headers={"Retry-After": text}), WALL)
    assert told is None or told >= 0
