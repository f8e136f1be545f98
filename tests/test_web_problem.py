from __future__ import annotations

import json
import math
from http import HTTPStatus

import fastapi
import psycopg
import psycopg_pool
import pytest
import starlette.exceptions
import werkzeug.exceptions
from hypothesis import given
from hypothesis import strategies as st

from reliakit import (
    BulkheadFullError,
    CircuitOpenError,
    CommitUnknownError,
    ConfigurationError,
    DeadlineExceededError,
    LoginBlockedError,
    NoInstanceError,
    OverloadedError,
    Problem,
    RateLimitedError,
    RetryBudgetExceededError,
    StoreError,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
    ValidationError,
    request_context,
)
from reliakit.web import problem

SECRET = "password=hunter2"


class Refusal:
    degraded = True


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValidationError("no"), 422),
        (RateLimitedError(SECRET), 429),
        (RateLimitedError(SECRET, decision=Refusal()), 503),
        (LoginBlockedError(SECRET), 429),
        (CircuitOpenError(SECRET), 503),
        (OverloadedError(SECRET), 503),
        (BulkheadFullError(SECRET), 503),
        (RetryBudgetExceededError(SECRET), 503),
        (StoreError(SECRET), 503),
        (NoInstanceError(SECRET), 503),
        (DeadlineExceededError(SECRET), 504),
        (TransactionTimeoutError(SECRET), 504),
        (CommitUnknownError(SECRET), 500),
        (TransactionRolledBackError(SECRET), 500),
        (TransactionUsageError(SECRET), 500),
        (ConfigurationError(SECRET), 500),
        (TimeoutError(SECRET), 500),
        (ValueError(SECRET), 500),
        (KeyError(SECRET), 500),
        (PermissionError(SECRET), 500),
        (ConnectionRefusedError(SECRET), 500),
        (psycopg.errors.UniqueViolation(SECRET), 409),
        (psycopg.errors.SerializationFailure(SECRET), 409),
        (psycopg.errors.DeadlockDetected(SECRET), 409),
        (psycopg.errors.CheckViolation(SECRET), 422),
        (psycopg.errors.QueryCanceled(SECRET), 504),
        (psycopg.errors.AdminShutdown(SECRET), 503),
        (psycopg.errors.TooManyConnections(SECRET), 503),
        (psycopg.errors.NoDataFound(SECRET), 404),
        (psycopg.errors.UndefinedTable(SECRET), 500),
        (psycopg.errors.InsufficientPrivilege(SECRET), 500),
        (psycopg.errors.NumericValueOutOfRange(SECRET), 422),
        (psycopg.DataError(SECRET), 422),
        (psycopg.OperationalError(SECRET), 503),
        (psycopg_pool.PoolTimeout(SECRET), 503),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_kind_of_error_has_its_status_and_leaks_nothing(error, status):
    response = problem(error)
    assert response.status == response.body["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code"} <= response.body.keys()
    assert SECRET not in response.json().decode()
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (LoginBlockedError(retry_after=1.0), "login_blocked", "Too many failed logins; try again later."),
        (LoginBlockedError(), "login_blocked", "Too many failed logins; the account must be unlocked first."),
        (
            LoginBlockedError(retry_after=1.0, reason="invalid_token"),
            "tokens_blocked",
            "Too many invalid tokens; try again later.",
        ),
    ],
    ids=["logins", "stopped", "tokens"],
)
def test_who_is_blocked_is_told_what_there_was_too_much_of(error, code, detail):
    response = problem(error)
    assert (response.status, response.body["code"], response.body["detail"]) == (429, code, detail)
    assert response.headers.get("Retry-After") == (None if error.retry_after is None else "1")


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (starlette.exceptions.HTTPException(404, "no such person"), 404, "no such person"),
        (fastapi.HTTPException(409, {"any": "json"}), 409, "Conflict"),
        (starlette.exceptions.HTTPException(503, SECRET), 503, "Something went wrong on our side."),
        (starlette.exceptions.HTTPException(302), 500, "Something went wrong on our side."),
        (werkzeug.exceptions.NotFound("no such person"), 404, "no such person"),
        (werkzeug.exceptions.BadGateway(SECRET), 502, "Something went wrong on our side."),
        (werkzeug.exceptions.HTTPException(response=object()), 500, "Something went wrong on our side."),
    ],
    ids=repr,
)
def test_an_exception_of_a_framework_that_nobody_answered_keeps_its_status(error, status, detail):
    response = problem(error)
    assert response.status == response.body["status"] == status
    assert response.body["detail"] == detail
    assert response.body["title"]
    assert response.body["code"] == ("internal_error" if status == 500 else HTTPStatus(status).name.lower())


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (werkzeug.exceptions.MethodNotAllowed(["GET"]), "Allow", "GET"),
        (werkzeug.exceptions.TooManyRequests(retry_after=4), "Retry-After", "4"),
        (
            starlette.exceptions.HTTPException(401, headers={"www-authenticate": "Bearer"}),
            "WWW-Authenticate",
            "Bearer",
        ),
        (starlette.exceptions.HTTPException(429, headers={"Retry-After": "7"}), "Retry-After", "7"),
    ],
    ids=repr,
)
def test_an_exception_of_a_framework_keeps_the_headers_that_belong_to_its_status(error, name, value):
    headers = problem(error).headers
    assert headers[name] == value
    assert headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("value", ["Bearer\r\nSet-Cookie: a=b", "Bearer\n", "Bearer é€", "Bearer\x00", ""])
def test_a_header_that_cannot_be_sent_does_not_leave_with_the_problem(value):
    response = problem(starlette.exceptions.HTTPException(401, headers={"WWW-Authenticate": value}))
    assert response.status == 401
    assert "WWW-Authenticate" not in response.headers


def test_a_failed_validation_names_the_places_by_fragment_pointers():
    error = ValidationError(
        "The body does not fit.",
        [
            Problem("/a/0", "type", "type", "must be text"),
            Problem("/ü b~1c%", "maximum", "too_big", "too big"),
            Problem("", "required", "missing", "must be given", location="query"),
        ],
    )
    body = problem(error).body
    assert body["detail"] == "The body does not fit."
    assert body["errors"] == [
        {"pointer": "#/a/0", "code": "type", "detail": "must be text"},
        {"pointer": "#/%C3%BC%20b~1c%25", "code": "too_big", "detail": "too big"},
        {"pointer": "#", "code": "missing", "detail": "must be given", "location": "query"},
    ]


def test_a_lone_surrogate_in_a_pointer_does_not_break_the_answer():
    error = ValidationError("", [Problem("/\ud800", "type", "type", "\ud800")])
    json.loads(problem(error).json())


def test_the_body_carries_the_request_id_inside_a_request_only():
    assert "request_id" not in problem(ValueError()).body
    with request_context(request_id="r1"):
        assert problem(ValueError()).body["request_id"] == "r1"


@given(st.floats(min_value=0, max_value=1e9))
def test_retry_after_is_rounded_up_and_never_a_second_too_long(wait):
    told = int(problem(RateLimitedError(retry_after=wait)).headers["Retry-After"])
    assert 0 <= told - wait < 1 or (told == math.ceil(wait))
    assert told >= wait


@pytest.mark.parametrize("wait", [math.inf, math.nan])
def test_a_wait_that_is_no_number_of_seconds_is_not_told(wait):
    assert "Retry-After" not in problem(RateLimitedError(retry_after=wait)).headers


@pytest.mark.parametrize("kind", [CircuitOpenError, OverloadedError, BulkheadFullError, RateLimitedError])
def test_a_rejection_that_does_not_know_its_end_says_one_second(kind):
    assert problem(kind()).headers["Retry-After"] == "1"


def test_an_unknown_commit_is_told_apart_from_a_failure():
    body = problem(CommitUnknownError()).body
    assert body["code"] == "outcome_unknown"
    assert "look before you try again" in body["detail"]


def test_an_error_that_breaks_when_looked_at_is_still_answered():
    class Hostile(Exception):
        def __getattribute__(self, name):
            if name == "sqlstate":
                raise RuntimeError(SECRET)
            return super().__getattribute__(name)

        def __str__(self):
            raise RuntimeError(SECRET)

    assert problem(Hostile()).status == 500
