"""The tree of errors: who is whose kind, and that every field survives pickle and copy."""

from __future__ import annotations

import copy
import pickle

import pytest

from reliakit.core import errors
from reliakit.core.errors import Problem

TREE = {
    "ConfigurationError": ("ReliakitError", ValueError),
    "RejectedError": ("ReliakitError",),
    "CircuitOpenError": ("RejectedError",),
    "RateLimitedError": ("RejectedError",),
    "LoginBlockedError": ("RateLimitedError",),
    "BulkheadFullError": ("RejectedError",),
    "OverloadedError": ("RejectedError",),
    "RetryBudgetExceededError": ("RejectedError",),
    "DeadlineExceededError": ("ReliakitError", TimeoutError),
    "TransactionError": ("ReliakitError",),
    "TransactionRolledBackError": ("TransactionError",),
    "CommitUnknownError": ("TransactionError",),
    "TransactionTimeoutError": ("TransactionError", "DeadlineExceededError"),
    "TransactionUsageError": ("TransactionError",),
    "ValidationError": ("ReliakitError", ValueError),
    "StoreError": ("ReliakitError",),
    "NoInstanceError": ("ReliakitError",),
}

PROBLEM = Problem("/a/0", "maximum", "maximum", "must be at most 5", {"limit": 5})

# One of each class with every field set to something that is not its default.
FILLED: list[errors.ReliakitError] = [
    errors.ReliakitError("m"),
    errors.ConfigurationError("m"),
    errors.RejectedError("m", name="n", retry_after=1.5),
    errors.CircuitOpenError("m", name="n", retry_after=1.5),
    errors.RateLimitedError("m", name="n", retry_after=1.5, decision=("d",)),
    errors.LoginBlockedError("m", name="n", retry_after=1.5, decision=("d",), reason="invalid_token"),
    errors.BulkheadFullError("m", name="n", retry_after=1.5),
    errors.OverloadedError("m", name="n", retry_after=1.5),
    errors.RetryBudgetExceededError("m", name="n", retry_after=1.5),
    errors.DeadlineExceededError("m", seconds=2.0),
    errors.TransactionError("m", name="n", attempts=3),
    errors.TransactionRolledBackError("m", name="n", attempts=3),
    errors.CommitUnknownError("m", name="n", attempts=3, transaction_id="731"),
    errors.TransactionTimeoutError("m", name="n", attempts=3, seconds=2.0),
    errors.TransactionUsageError("m", name="n", attempts=3),
    errors.ValidationError("m", [PROBLEM]),
    errors.StoreError("m", store="redis"),
    errors.NoInstanceError("m"),
]


def test_the_tree_is_the_one_that_is_drawn() -> None:
    for name, parents in TREE.items():
        expected = tuple(getattr(errors, parent) if isinstance(parent, str) else parent for parent in parents)
        assert getattr(errors, name).__bases__ == expected
    assert errors.ReliakitError.__bases__ == (Exception,)
    assert {*TREE, "ReliakitError", "Problem"} == set(errors.__all__)


def test_every_error_of_the_tree_stands_in_the_drawing() -> None:
    for name in TREE:
        assert name in str(errors.__doc__)


def test_a_rejection_is_never_a_deadline_and_a_deadline_never_a_rejection() -> None:
    assert not issubclass(errors.RejectedError, TimeoutError)
    assert not issubclass(errors.TransactionTimeoutError, errors.RejectedError)


@pytest.mark.parametrize("error", FILLED, ids=lambda error: type(error).__name__)
def test_every_field_survives_pickle_and_copy(error: errors.ReliakitError) -> None:
    error.add_note("told by a test")
    copies = [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (*copies, copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == "m"
        assert vars(other) == vars(error)


def test_all_classes_are_among_the_filled() -> None:
    assert {type(error).__name__ for error in FILLED} == {*TREE, "ReliakitError"}


@pytest.mark.parametrize("error", FILLED, ids=lambda error: type(error).__name__)
def test_every_error_can_be_made_without_arguments(error: errors.ReliakitError) -> None:
    bare = type(error)()
    assert str(bare) == ""
    assert set(vars(bare)) == {field for field in vars(error) if field != "__notes__"}


def test_a_user_subclass_keeps_its_fields() -> None:
    other = pickle.loads(pickle.dumps(TooMany("m", name="n", retry_after=3.0)))
    assert (other.name, other.retry_after) == ("n", 3.0)


class TooMany(errors.RateLimitedError):
    pass


def test_problems_are_a_list_of_your_own() -> None:
    given = [PROBLEM]
    error = errors.ValidationError("m", given)
    given.clear()
    assert error.problems == [PROBLEM]
    assert errors.ValidationError("m", iter([PROBLEM])).problems == [PROBLEM]


def test_a_problem_is_a_value() -> None:
    assert Problem("/a/0", "maximum", "maximum", "must be at most 5", {"limit": 5}, "body") == PROBLEM
    assert Problem("", "type", "type", "m").params == {}
    assert pickle.loads(pickle.dumps(PROBLEM)) == PROBLEM
    with pytest.raises(AttributeError):
        PROBLEM.message = "other"  # type: ignore[misc]  # what the test is about
