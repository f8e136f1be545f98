"""Settings are refused eagerly, by name and with the way out."""

from __future__ import annotations

import math

import pytest

from reliakit.core import checks
from reliakit.core.deadline import deadline
from reliakit.core.errors import ConfigurationError
from reliakit.testing import ManualClock

NO_NUMBERS = [None, "1", True, False, math.nan, math.inf, -math.inf, -1, -0.5, [], 1j]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 10**400, -(10**400)])
def test_seconds_refuses_what_is_no_finite_duration(value: object) -> None:
    for zero in (False, True):
        with pytest.raises(ConfigurationError, match=r"^timeout must be .* of seconds, got"):
            checks.seconds("timeout", value, zero=zero)  # type: ignore[arg-type]  # what the test is about


def test_seconds_takes_zero_only_where_it_means_something() -> None:
    assert checks.seconds("timeout", 0, zero=True) == 0.0
    with pytest.raises(ConfigurationError, match="a positive number"):
        checks.seconds("timeout", 0)


def test_seconds_become_a_float() -> None:
    assert type(checks.seconds("timeout", 3)) is float
    assert checks.seconds("timeout", 1.7e308) == 1.7e308


@pytest.mark.parametrize("value", [None, "1", True, 1.0, 0, -1, math.nan])
def test_count_refuses_what_is_no_whole_number_of_at_least_one(value: object) -> None:
    with pytest.raises(ConfigurationError, match="size must be a whole number of at least 1, got"):
        checks.count("size", value)  # type: ignore[arg-type]  # what the test is about


def test_count_knows_its_least() -> None:
    assert checks.count("size", 0, least=0) == 0
    assert checks.count("size", 10**30) == 10**30
    with pytest.raises(ConfigurationError, match="at least 2"):
        checks.count("size", 1, least=2)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.0000001, 10**400])
def test_share_refuses_what_is_no_part_of_a_whole(value: object) -> None:
    for zero in (False, True):
        with pytest.raises(ConfigurationError, match="ratio must be a share"):
            checks.share("ratio", value, zero=zero)  # type: ignore[arg-type]  # what the test is about


def test_share_takes_all_of_it_and_nothing_only_where_it_means_something() -> None:
    assert checks.share("ratio", 1) == 1.0
    assert checks.share("ratio", 0, zero=True) == 0.0
    with pytest.raises(ConfigurationError, match="above 0"):
        checks.share("ratio", 0)


@pytest.mark.parametrize("value", [None, 7, ManualClock, sum, "now"])
def test_clock_refuses_what_is_no_clock(value: object) -> None:
    with pytest.raises(ConfigurationError, match="clock must be a clock"):
        checks.clock("clock", value)  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ConfigurationError, match="clock"):
        deadline(1.0, clock=value)  # type: ignore[arg-type]


def test_choice_names_the_choices() -> None:
    assert checks.choice("mode", "full", ("full", "last4")) == "full"
    with pytest.raises(ConfigurationError, match="mode must be one of 'full', 'last4', got 'half'"):
        checks.choice("mode", "half", iter(("full", "last4")))


@pytest.mark.parametrize("value", ["", None, 7, b"main"])
def test_named_refuses_what_is_no_name(value: object) -> None:
    with pytest.raises(ConfigurationError, match="name must be a non-empty text"):
        checks.named("name", value)  # type: ignore[arg-type]  # what the test is about
    assert checks.named("name", "main") == "main"


def test_a_message_names_the_argument_whatever_was_given() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise OSError

    with pytest.raises(ConfigurationError, match=r"name must be a non-empty text, got a Rude"):
        checks.named("name", Rude())  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(ConfigurationError, match=r"size must be .*, got a int"):
        checks.count("size", -(10**5000))
    with pytest.raises(ConfigurationError) as refused:
        checks.count("size", "7" * 1_000_000)  # type: ignore[arg-type]  # what the test is about
    assert len(str(refused.value)) < 300
