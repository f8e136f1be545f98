"""What kind of error it is, whether trying again can help, and which errors are the same one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import functools
import http.client
import json
import pickle
import queue
import re
import smtplib
import socket
import ssl
import struct
import subprocess
import urllib.error
import zlib
from collections.abc import Callable
from xml.etree import ElementTree as ET

import httpx2
import jwt
import psycopg
import psycopg_pool
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors as pg

import reliakit
from reliakit import classify
from reliakit.core import kinds
from reliakit.core.categories import Category, RetryAdvice, sqlstate_of

# Row by row: each class of PostgreSQL's errors, and what is to be done about it.
POSTGRES: list[tuple[type[psycopg.Error], str, Category, RetryAdvice]] = [
    (pg.SerializationFailure, "40001", "conflict", "same_transaction_again"),
    (pg.DeadlockDetected, "40P01", "conflict", "same_transaction_again"),
    (pg.StatementCompletionUnknown, "40003", "dependency", "unknown_outcome"),
    (pg.TransactionResolutionUnknown, "08007", "dependency", "unknown_outcome"),
    (pg.ConnectionException, "08000", "dependency", "reconnect"),
    (pg.SqlclientUnableToEstablishSqlconnection, "08001", "dependency", "reconnect"),
    (pg.ConnectionDoesNotExist, "08003", "dependency", "reconnect"),
    (pg.ConnectionFailure, "08006", "dependency", "reconnect"),
    (pg.ProtocolViolation, "08P01", "programming", "never"),
    (pg.SqlserverRejectedEstablishmentOfSqlconnection, "08004", "dependency", "never"),
    (pg.AdminShutdown, "57P01", "dependency", "reconnect"),
    (pg.CrashShutdown, "57P02", "dependency", "reconnect"),
    (pg.CannotConnectNow, "57P03", "dependency", "reconnect"),
    (pg.IdleSessionTimeout, "57P05", "dependency", "reconnect"),
    (pg.TooManyConnections, "53300", "resource", "backoff"),
    (pg.OutOfMemory, "53200", "resource", "backoff"),
    (pg.DiskFull, "53100", "resource", "never"),
    (pg.LockNotAvailable, "55P03", "conflict", "backoff"),
    (pg.ObjectInUse, "55006", "conflict", "backoff"),
    (pg.IoError, "58030", "internal", "never"),
    (pg.InternalError_, "XX000", "internal", "never"),
    (pg.DataCorrupted, "XX001", "internal", "never"),
    (pg.QueryCanceled, "57014", "timeout", "never"),
    (pg.IdleInTransactionSessionTimeout, "25P03", "timeout", "never"),
    (pg.TransactionTimeout, "25P04", "timeout", "never"),
    (pg.UniqueViolation, "23505", "conflict", "never"),
    (pg.ExclusionViolation, "23P01", "conflict", "never"),
    (pg.ForeignKeyViolation, "23503", "validation", "never"),
    (pg.NotNullViolation, "23502", "validation", "never"),
    (pg.CheckViolation, "23514", "validation", "never"),
    (pg.NumericValueOutOfRange, "22003", "data", "never"),
    (pg.StringDataRightTruncation, "22001", "data", "never"),
    (pg.InvalidAuthorizationSpecification, "28000", "auth", "never"),
    (pg.InvalidPassword, "28P01", "auth", "never"),
    (pg.InsufficientPrivilege, "42501", "permission", "never"),
    (pg.SyntaxError, "42601", "programming", "never"),
    (pg.UndefinedTable, "42P01", "programming", "never"),
    (pg.InvalidSqlStatementName, "26000", "programming", "never"),
    (pg.ActiveSqlTransaction, "25001", "programming", "never"),
    (pg.InFailedSqlTransaction, "25P02", "programming", "never"),
    (pg.InvalidCatalogName, "3D000", "programming", "never"),
    (pg.FeatureNotSupported, "0A000", "programming", "never"),
    (pg.NoDataFound, "P0002", "not_found", "never"),
    (pg.RaiseException, "P0001", "validation", "never"),
    (pg.TooManyRows, "P0003", "data", "never"),
    (pg.AssertFailure, "P0004", "internal", "never"),
    (pg.PlpgsqlError, "P0000", "internal", "never"),
    (pg.ConfigFileError, "F0000", "internal", "never"),
    (pg.FdwError, "HV000", "dependency", "never"),
    (pg.InvalidTransactionInitiation, "0B000", "programming", "never"),
    (pg.LocatorException, "0F000", "programming", "never"),
    (pg.InvalidGrantor, "0L000", "permission", "never"),
    (pg.InvalidRoleSpecification, "0P000", "permission", "never"),
    (pg.DiagnosticsException, "0Z000", "programming", "never"),
    (pg.CaseNotFound, "20000", "data", "never"),
    (pg.CardinalityViolation, "21000", "programming", "never"),
    (pg.TriggeredDataChangeViolation, "27000", "conflict", "never"),
    (pg.DependentObjectsStillExist, "2BP01", "programming", "never"),
    (pg.InvalidTransactionTermination, "2D000", "programming", "never"),
    (pg.SqlRoutineException, "2F000", "programming", "never"),
    (pg.ExternalRoutineException, "38000", "internal", "never"),
    (pg.ExternalRoutineInvocationException, "39000", "internal", "never"),
    (pg.TriggeredActionException, "09000", "internal", "never"),
    (pg.SqlStatementNotYetComplete, "03000", "programming", "never"),
    (pg.SavepointException, "3B000", "programming", "never"),
    (pg.InvalidSchemaName, "3F000", "programming", "never"),
    (pg.WithCheckOptionViolation, "44000", "validation", "never"),
    (pg.ProgramLimitExceeded, "54000", "programming", "never"),
    (pg.ObjectNotInPrerequisiteState, "55000", "conflict", "never"),
    (pg.DatabaseDropped, "57P04", "dependency", "never"),
]


@pytest.mark.parametrize(("kind", "sqlstate", "category", "retry"), POSTGRES, ids=str)
def test_the_sqlstate_decides(kind: type[psycopg.Error], sqlstate: str, category: str, retry: str) -> None:
    found = classify(kind("message"))
    assert (found.sqlstate, found.category, found.retry) == (sqlstate, category, retry)


def test_what_a_pooler_ends_a_connection_with_is_no_fault_of_the_program() -> None:
    severity, everywhere = psycopg.pq.DiagnosticField.SEVERITY, psycopg.pq.DiagnosticField.SEVERITY_NONLOCALIZED
    ended = pg.ProtocolViolation("server conn crashed?", info={severity: b"FATAL"})  # as PgBouncer has it
    said = pg.ProtocolViolation("invalid message format", info={severity: b"FATAL", everywhere: b"FATAL"})
    refused = pg.ProtocolViolation("bind message supplies 0 parameters", info={severity: b"ERROR"})
    wrapped = RuntimeError("of SQLAlchemy")
    wrapped.orig = ended  # type: ignore[attr-defined]
    assert [(found.category, found.retry, found.sqlstate) for found in map(classify, (ended, wrapped))] == [
        ("dependency", "reconnect", "08P01")
    ] * 2
    assert [(found.category, found.retry) for found in map(classify, (said, refused))] == [
        ("programming", "never")
    ] * 2


def test_every_class_of_sqlstates_that_psycopg_knows_is_in_the_table() -> None:
    known = {kind.sqlstate[:2] for kind in vars(pg).values() if isinstance(getattr(kind, "sqlstate", None), str)}
    assert len(known) > 35
    errors = known - {"00", "01"}  # success and warnings
    assert errors <= set(kinds.SQLSTATES)


def test_every_error_of_psycopg_is_classified_by_its_sqlstate() -> None:
    found = {kind: classify(kind()) for kind in vars(pg).values() if isinstance(getattr(kind, "sqlstate", None), str)}
    assert len(found) > 250
    assert {kind for kind, one in found.items() if one.sqlstate != kind.sqlstate} == set()
    retried = {kind.sqlstate for kind, one in found.items() if one.retry == "same_transaction_again"}
    assert retried == {"40001", "40P01"}
    assert {kind.sqlstate for kind, one in found.items() if one.retry == "unknown_outcome"} == {"40003", "08007"}


def test_the_db_api_class_does_not_decide() -> None:
    kinds = [pg.DeadlockDetected, pg.AdminShutdown, pg.DiskFull, pg.InvalidPassword, pg.QueryCanceled]
    assert all(issubclass(kind, psycopg.OperationalError) for kind in kinds)
    assert len({(found.category, found.retry) for found in map(classify, (kind() for kind in kinds))}) == 5


@pytest.mark.parametrize(
    ("error", "category", "retry"),
    [
        (psycopg.OperationalError("the connection is lost"), "dependency", "reconnect"),
        (pg.ConnectionTimeout("timeout"), "dependency", "reconnect"),
        (psycopg.InterfaceError("closed"), "programming", "never"),
        (psycopg.ProgrammingError("no result"), "programming", "never"),
        (psycopg.NotSupportedError("no"), "programming", "never"),
        (psycopg.DataError("cannot dump"), "data", "never"),
        (psycopg.IntegrityError("?"), "validation", "never"),
        (psycopg_pool.PoolTimeout("30 s"), "resource", "backoff"),
        (psycopg_pool.TooManyRequests("queue"), "resource", "backoff"),
        (psycopg_pool.PoolClosed("closed"), "programming", "never"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_without_a_sqlstate_the_driver_s_class_decides(error: Exception, category: str, retry: str) -> None:
    found = classify(error)
    assert (found.sqlstate, found.category, found.retry) == (None, category, retry)


class Wrapper(Exception):
    """As SQLAlchemy wraps what a driver raised."""

    def __init__(self, orig: object) -> None:
        super().__init__("wrapped")
        self.orig = orig


class OldDriverError(Exception):
    pgcode = "40P01"


@pytest.mark.parametrize(
    ("error", "category", "retry"),
    [
        (Wrapper(pg.SerializationFailure()), "conflict", "same_transaction_again"),
        (Wrapper(psycopg.OperationalError("lost")), "dependency", "reconnect"),
        (Wrapper(OldDriverError()), "conflict", "same_transaction_again"),
        (OldDriverError(), "conflict", "same_transaction_again"),
        (Wrapper(None), "internal", "never"),
        (Wrapper("text"), "internal", "never"),
    ],
)
def test_a_wrapped_driver_error_is_what_it_wraps(error: Exception, category: str, retry: str) -> None:
    found = classify(error)
    assert (found.category, found.retry) == (category, retry)


@pytest.mark.parametrize("state", ["", "4000", "400011", 40001, None, "4000 ", "４０００１", b"40001"])
def test_what_is_no_sqlstate_is_none(state: object) -> None:
    error = Exception()
    error.sqlstate = state  # type: ignore[attr-defined]  # any driver's error may carry anything
    assert sqlstate_of(error) is None


def test_an_unknown_sqlstate_is_internal() -> None:
    error = Exception()
    error.sqlstate = "ZZ999"  # type: ignore[attr-defined]  # a server's own code
    assert classify(error).category == "internal"
    assert classify(error).sqlstate == "ZZ999"


OURS: list[tuple[Exception, Category, RetryAdvice]] = [
    (reliakit.ReliakitError(), "internal", "never"),
    (reliakit.ConfigurationError(), "programming", "never"),
    (reliakit.CircuitOpenError(), "dependency", "backoff"),
    (reliakit.RateLimitedError(), "rate_limit", "backoff"),
    (reliakit.LoginBlockedError(), "rate_limit", "backoff"),
    (reliakit.BulkheadFullError(), "resource", "backoff"),
    (reliakit.OverloadedError(), "resource", "backoff"),
    (reliakit.RetryBudgetExceededError(), "resource", "backoff"),
    (reliakit.DeadlineExceededError(), "timeout", "never"),
    (reliakit.TransactionError(), "internal", "never"),
    (reliakit.TransactionRolledBackError(), "conflict", "never"),
    (reliakit.CommitUnknownError(), "dependency", "unknown_outcome"),
    (reliakit.TransactionTimeoutError(), "timeout", "never"),
    (reliakit.TransactionUsageError(), "programming", "never"),
    (reliakit.ValidationError(), "validation", "never"),
    (reliakit.StoreError(), "dependency", "backoff"),
    (reliakit.NoInstanceError(), "dependency", "backoff"),
]

PYTHON_S: list[tuple[BaseException, Category, RetryAdvice]] = [
    (PermissionError(), "permission", "never"),
    (FileNotFoundError(), "not_found", "never"),
    (FileExistsError(), "conflict", "never"),
    (ConnectionRefusedError(), "dependency", "reconnect"),
    (BrokenPipeError(), "dependency", "reconnect"),
    (socket.gaierror(), "dependency", "reconnect"),
    (ssl.SSLError(), "dependency", "reconnect"),
    (ssl.SSLCertVerificationError(), "dependency", "never"),
    (urllib.error.URLError("refused"), "dependency", "reconnect"),
    (OSError(errno.EHOSTUNREACH, "no route"), "dependency", "reconnect"),
    (OSError(errno.ENOSPC, "disk full"), "resource", "never"),
    (TimeoutError(), "timeout", "backoff"),
    (MemoryError(), "resource", "never"),
    (EOFError(), "dependency", "reconnect"),
    (json.JSONDecodeError("m", "", 0), "validation", "never"),
    (ValueError(), "validation", "never"),
    (UnicodeDecodeError("utf-8", b"", 0, 1, "m"), "data", "never"),
    (ZeroDivisionError(), "data", "never"),
    (KeyError(), "programming", "never"),
    (TypeError(), "programming", "never"),
    (AttributeError(), "programming", "never"),
    (NameError(), "programming", "never"),
    (ModuleNotFoundError(), "programming", "never"),
    (AssertionError(), "programming", "never"),
    (NotImplementedError(), "programming", "never"),
    (RuntimeError(), "internal", "never"),
    (RecursionError(), "internal", "never"),
    (Exception(), "internal", "never"),
    (asyncio.CancelledError(), "cancelled", "never"),
    (concurrent.futures.CancelledError(), "cancelled", "never"),
    (KeyboardInterrupt(), "cancelled", "never"),
    (SystemExit(404), "cancelled", "never"),
    (GeneratorExit(), "cancelled", "never"),
]


class FakeCode:
    name = "UNAVAILABLE"


def _like(
    module: str, tree: str, bases: tuple[type[BaseException], ...] = (Exception,), **fields: object
) -> Exception:
    """Return an error with the class tree of a client that is not installed: "Child(Parent(Grandparent))"."""
    for name in reversed(tree.replace(")", "").split("(")):
        bases = (type(name, bases, {"__module__": module}),)
    error = bases[0]()
    assert isinstance(error, Exception)
    vars(error).update(fields)
    return error


class FakeResponse:
    def __init__(self, **fields: int) -> None:
        vars(self).update(fields)


def _grpc(status: str) -> Exception:
    code = type("StatusCode", (), {"name": status})()
    return _like("grpc._channel", "_InactiveRpcError(RpcError)", code=lambda: code)


def _requests(tree: str, **fields: object) -> Exception:
    return _like("requests.exceptions", f"{tree}(RequestException)", (OSError,), **fields)


FAKES: list[tuple[Exception, Category, RetryAdvice]] = [
    # requests, whose errors are all OSErrors
    (_requests("ConnectionError"), "dependency", "reconnect"),
    (_requests("ProxyError(ConnectionError)"), "dependency", "reconnect"),
    (_requests("SSLError(ConnectionError)"), "dependency", "reconnect"),
    (_requests("ReadTimeout(Timeout)"), "timeout", "backoff"),
    (_requests("ConnectTimeout(ConnectionError)"), "timeout", "backoff"),
    (_requests("ChunkedEncodingError"), "dependency", "reconnect"),
    (_requests("ContentDecodingError"), "data", "never"),
    (_requests("JSONDecodeError(InvalidJSONError)"), "data", "never"),
    (_requests("TooManyRedirects"), "dependency", "never"),
    (_requests("RetryError"), "dependency", "backoff"),
    (_requests("MissingSchema"), "programming", "never"),
    (_requests("InvalidURL"), "programming", "never"),
    (_requests("HTTPError", response=FakeResponse(status_code=404)), "not_found", "never"),
    (_requests("HTTPError", response=FakeResponse(status_code=503)), "dependency", "backoff"),
    # aiohttp
    (_like("aiohttp.client_exceptions", "ServerDisconnectedError(ClientError)"), "dependency", "reconnect"),
    (
        _like("aiohttp.client_exceptions", "ClientOSError(ClientConnectionError(ClientError))"),
        "dependency",
        "reconnect",
    ),
    (_like("aiohttp.client_exceptions", "ServerTimeoutError(ClientError)"), "timeout", "backoff"),
    (_like("aiohttp.client_exceptions", "ClientConnectorCertificateError(ClientError)"), "dependency", "never"),
    (_like("aiohttp.client_exceptions", "ClientPayloadError(ClientError)"), "dependency", "reconnect"),
    (_like("aiohttp.client_exceptions", "InvalidURL(ClientError)"), "programming", "never"),
    (_like("aiohttp.client_exceptions", "ContentTypeError(ClientResponseError)", status=200), "data", "never"),
    (_like("aiohttp.client_exceptions", "ClientResponseError(ClientError)", status=429), "rate_limit", "backoff"),
    # urllib3
    (_like("urllib3.exceptions", "NewConnectionError(HTTPError)"), "dependency", "reconnect"),
    (_like("urllib3.exceptions", "ReadTimeoutError(HTTPError)"), "timeout", "backoff"),
    (_like("urllib3.exceptions", "MaxRetryError(HTTPError)"), "dependency", "backoff"),
    (_like("urllib3.exceptions", "MaxRetryError(HTTPError)", reason=TimeoutError()), "timeout", "backoff"),
    (_like("urllib3.exceptions", "MaxRetryError(HTTPError)", reason="many"), "dependency", "backoff"),
    (_like("urllib3.exceptions", "LocationParseError(LocationValueError)", (ValueError,)), "programming", "never"),
    (_like("urllib3.exceptions", "DecodeError(HTTPError)"), "data", "never"),
    (_like("urllib3.exceptions", "InvalidChunkLength(HTTPError)"), "dependency", "reconnect"),
    (_like("urllib3.exceptions", "EmptyPoolError(HTTPError)"), "resource", "backoff"),
    (urllib.error.URLError(TimeoutError("slow")), "timeout", "backoff"),
    (urllib.error.URLError(ssl.SSLCertVerificationError("bad")), "dependency", "never"),
    (http.client.RemoteDisconnected(), "dependency", "reconnect"),
    (http.client.IncompleteRead(b""), "dependency", "reconnect"),
    (http.client.InvalidURL(), "programming", "never"),
    (http.client.CannotSendRequest(), "programming", "never"),
    # gRPC
    (_grpc("UNAVAILABLE"), "dependency", "backoff"),
    (_grpc("DEADLINE_EXCEEDED"), "timeout", "backoff"),
    (_grpc("NOT_FOUND"), "not_found", "never"),
    (_grpc("ALREADY_EXISTS"), "conflict", "never"),
    (_grpc("PERMISSION_DENIED"), "permission", "never"),
    (_grpc("UNAUTHENTICATED"), "auth", "never"),
    (_grpc("RESOURCE_EXHAUSTED"), "rate_limit", "backoff"),
    (_grpc("INVALID_ARGUMENT"), "validation", "never"),
    (_grpc("CANCELLED"), "cancelled", "never"),
    (_grpc("new in some version"), "dependency", "backoff"),
    (_like("grpc", "RpcError"), "dependency", "backoff"),
    (_like("grpclib.exceptions", "GRPCError", status=FakeCode()), "dependency", "backoff"),
    # others
    (
        _like(
            "botocore.errorfactory", "NoSuchKey(ClientError)", response={"ResponseMetadata": {"HTTPStatusCode": 404}}
        ),
        "not_found",
        "never",
    ),
    (_like("botocore.exceptions", "ClientError", response={"Error": {}}), "dependency", "never"),
    (_like("botocore.exceptions", "EndpointConnectionError(BotoCoreError)"), "dependency", "reconnect"),
    (_like("django.core.exceptions", "ObjectDoesNotExist"), "not_found", "never"),
    (_like("django.http.response", "Http404"), "not_found", "never"),
    (_like("django.core.exceptions", "PermissionDenied"), "permission", "never"),
    (_like("django.db.utils", "OperationalError(DatabaseError(Error))"), "dependency", "reconnect"),
    (_like("sqlalchemy.exc", "NoResultFound(InvalidRequestError)"), "not_found", "never"),
    (_like("sqlalchemy.exc", "TimeoutError(SQLAlchemyError)"), "resource", "backoff"),
    (_like("sqlalchemy.orm.exc", "StaleDataError"), "conflict", "never"),
    (_like("stripe", "CardError", http_status=402), "permission", "never"),
    (_like("websockets.exceptions", "ConnectionClosedError(ConnectionClosed)"), "dependency", "reconnect"),
    (redis.ReadOnlyError(), "dependency", "reconnect"),
    (redis.WatchError(), "conflict", "backoff"),
    (redis.exceptions.NoPermissionError(), "permission", "never"),
    (redis.BusyLoadingError(), "dependency", "reconnect"),
    # Python's own
    (asyncio.QueueFull(), "resource", "backoff"),
    (queue.Full(), "resource", "backoff"),
    (asyncio.InvalidStateError(), "programming", "never"),
    (subprocess.TimeoutExpired("x", 1), "timeout", "backoff"),
    (subprocess.CalledProcessError(1, "x"), "dependency", "never"),
    (smtplib.SMTPAuthenticationError(535, b"no"), "auth", "never"),
    (smtplib.SMTPServerDisconnected(), "dependency", "backoff"),
    (struct.error(), "data", "never"),
    (zlib.error(), "data", "never"),
    (pickle.UnpicklingError(), "data", "never"),
    (ET.ParseError(), "data", "never"),
    (BlockingIOError(), "resource", "backoff"),
    (OSError(errno.EMFILE, "too many open files"), "resource", "backoff"),
    (OSError(errno.EROFS, "read-only"), "permission", "never"),
]


@pytest.mark.parametrize(
    ("error", "category", "retry"),
    FAKES,
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_clients_and_libraries_are_known_by_their_class_trees(error: Exception, category: str, retry: str) -> None:
    found = classify(error)
    assert (found.category, found.retry) == (category, retry)


def test_a_call_of_grpc_that_is_not_over_is_still_an_error_of_a_dependency() -> None:
    def code() -> object:
        raise RuntimeError("not over")

    assert classify(_like("grpc", "RpcError", code=code)).category == "dependency"


def test_the_sqlstate_of_djangos_cause_decides() -> None:
    error = _like("django.db.utils", "OperationalError(DatabaseError(Error))")
    error.__cause__ = pg.SerializationFailure()
    assert (classify(error).sqlstate, classify(error).retry) == ("40001", "same_transaction_again")
    other = ValueError()
    other.__cause__ = pg.SerializationFailure()
    assert classify(other).sqlstate is None


def _request() -> httpx2.Request:
    return httpx2.Request("GET", "http://localhost/")


def _status(status: int) -> httpx2.HTTPStatusError:
    return httpx2.HTTPStatusError("m", request=_request(), response=httpx2.Response(status))


CLIENTS: list[tuple[Exception, Category, RetryAdvice]] = [
    (httpx2.ConnectError("refused"), "dependency", "reconnect"),
    (httpx2.ReadError("reset"), "dependency", "reconnect"),
    (httpx2.RemoteProtocolError("disconnected"), "dependency", "reconnect"),
    (httpx2.ProxyError("bad gateway"), "dependency", "reconnect"),
    (httpx2.LocalProtocolError("bad header"), "programming", "never"),
    (httpx2.UnsupportedProtocol("ftp"), "programming", "never"),
    (httpx2.InvalidURL("?"), "programming", "never"),
    (httpx2.ConnectTimeout("slow"), "timeout", "backoff"),
    (httpx2.ReadTimeout("slow"), "timeout", "backoff"),
    (httpx2.PoolTimeout("full"), "timeout", "backoff"),
    (_status(400), "validation", "never"),
    (_status(401), "auth", "never"),
    (_status(403), "permission", "never"),
    (_status(404), "not_found", "never"),
    (_status(408), "timeout", "backoff"),
    (_status(409), "conflict", "never"),
    (_status(418), "validation", "never"),
    (_status(429), "rate_limit", "backoff"),
    (_status(500), "dependency", "backoff"),
    (_status(503), "dependency", "backoff"),
    (_status(504), "timeout", "backoff"),
    (_status(302), "internal", "never"),
    (urllib.error.HTTPError("u", http.HTTPStatus.NOT_FOUND, "m", None, None), "not_found", "never"),  # type: ignore[arg-type]  # headers may be missing
    (redis.ConnectionError("refused"), "dependency", "reconnect"),
    (redis.TimeoutError("slow"), "timeout", "backoff"),
    (redis.AuthenticationError("no"), "auth", "never"),
    (redis.ResponseError("WRONGTYPE"), "programming", "never"),
    (jwt.ExpiredSignatureError(), "auth", "never"),
]


@pytest.mark.parametrize(
    ("error", "category", "retry"),
    [*OURS, *PYTHON_S, *CLIENTS],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_the_nearest_class_decides(error: BaseException, category: str, retry: str) -> None:
    for one in (error, _subclassed(error)):
        found = classify(one)
        assert (found.category, found.retry, found.sqlstate) == (category, retry, None)


def _subclassed(error: BaseException) -> BaseException:
    child = type("Child" + type(error).__name__, (type(error),), {"__module__": "app"})
    other = child.__new__(child)
    other.args = error.args
    vars(other).update(vars(error))
    if isinstance(error, OSError):
        other = child(*error.args) if not isinstance(error, urllib.error.URLError) else error
    return other


def test_a_group_is_what_all_of_its_errors_are() -> None:
    lost = [pg.ConnectionFailure(), ExceptionGroup("inner", [ConnectionResetError()])]
    assert classify(ExceptionGroup("m", lost)).category == "dependency"
    assert classify(ExceptionGroup("m", [*lost, ValueError()])).category == "internal"


def test_a_deeply_nested_group_is_classified() -> None:
    group: Exception = ValueError()
    for _ in range(5_000):
        group = ExceptionGroup("m", [group])
    assert classify(group).category == "validation"


class Raising(Exception):
    @property
    def sqlstate(self) -> str:
        raise RuntimeError("no")

    orig = status = status_code = code = response = diag = sqlstate


class Guarded(Exception):
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("nothing to see")


class Unnamed(Exception):
    __module__ = None  # type: ignore[assignment]  # what the test is about


class OddDiagnostics(Exception):
    sqlstate = "23505"

    class diag:
        constraint_name = 7


@pytest.mark.parametrize("kind", [Raising, Guarded, Unnamed, OddDiagnostics])
def test_an_error_that_raises_when_looked_at_is_classified(kind: type[Exception]) -> None:
    assert re.fullmatch("[0-9a-f]{16}", classify(kind()).fingerprint)


@given(st.text(), st.integers(), st.text(max_size=6))
def test_classifying_never_raises(message: str, code: int, state: str) -> None:
    error = RuntimeError(message)
    error.code, error.sqlstate = code, state  # type: ignore[attr-defined]  # anything may be there
    classify(error)


# Fingerprints


def _raised(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return classify(error).fingerprint
    raise AssertionError("nothing was raised")


def _fail(message: str, *, first: bool = True) -> None:
    if first:
        raise ValueError(message)
    raise ValueError(message)


def _fail_elsewhere() -> None:
    raise ValueError("a")


def _recurse(depth: int) -> None:
    if depth == 0:
        raise ValueError("a")
    _recurse(depth - 1)


def _ping(depth: int) -> None:
    if depth == 0:
        raise ValueError("a")
    _pong(depth - 1)


def _pong(depth: int) -> None:
    _ping(depth)


def test_a_fingerprint_is_16_hexadecimal_digits() -> None:
    assert re.fullmatch("[0-9a-f]{16}", _raised(_fail_elsewhere))
    assert re.fullmatch("[0-9a-f]{16}", classify(ValueError("never raised")).fingerprint)


def test_a_fingerprint_does_not_depend_on_line_or_message() -> None:
    assert _raised(lambda: _fail("a")) == _raised(lambda: _fail("b", first=False))


def test_a_fingerprint_tells_functions_and_types_apart() -> None:
    found = {
        _raised(lambda: _fail("a")),
        _raised(_fail_elsewhere),
        _raised(lambda: int("a")),
        _raised(lambda: {}["a"]),
    }
    assert len(found) == 4


def test_a_fingerprint_is_stable_under_recursion() -> None:
    assert _raised(lambda: _recurse(3)) == _raised(lambda: _recurse(300))
    assert _raised(lambda: _ping(3)) == _raised(lambda: _ping(100))
    assert _raised(lambda: _recurse(3)) != _raised(lambda: _ping(3))


def test_a_fingerprint_does_not_depend_on_where_the_code_lies() -> None:
    text = "def work():\n    raise ValueError('a')\n"
    moved = "\n\n\ndef work():\n    x = 1\n    raise ValueError(x)\n"
    found = []
    for source, filename in ((text, "/srv/app/orders.py"), (moved, "/home/x/checkout/orders.py")):
        space: dict[str, Callable[[], None]] = {"__name__": "orders"}  # type: ignore[dict-item]  # a module's name
        exec(compile(source, filename, "exec"), space)
        found.append(_raised(space["work"]))
    assert found[0] == found[1]


def test_a_service_that_is_an_installed_package_has_fingerprints_of_its_own() -> None:
    found = set()
    for name in ("first", "second"):
        space: dict[str, Callable[[], None]] = {"__name__": "orders"}  # type: ignore[dict-item]  # a module's name
        source = f"def {name}():\n    raise ValueError('a')\n"
        exec(compile(source, "/usr/lib/python3/site-packages/orders.py", "exec"), space)
        try:
            space[name]()
        except ValueError as error:
            bottom = error.__traceback__
            assert bottom is not None
            found.add(classify(error.with_traceback(bottom.tb_next)).fingerprint)
    assert len(found) == 2


def test_installed_packages_between_do_not_count() -> None:
    space: dict[str, Callable[[Callable[[], object]], None]] = {"__name__": "framework"}  # type: ignore[dict-item]  # a module's name
    exec(compile("def run(work): work()", "/usr/lib/python3/site-packages/framework.py", "exec"), space)
    assert _raised(functools.partial(space["run"], _fail_elsewhere)) == _raised(_fail_elsewhere)


def test_the_violated_constraint_and_the_sqlstate_tell_errors_apart() -> None:
    class Diagnostics:
        def __init__(self, constraint: str | None) -> None:
            self.constraint_name = constraint

    class Violation(Exception):
        def __init__(self, sqlstate: str, constraint: str | None) -> None:
            self.sqlstate = sqlstate
            self.diag = Diagnostics(constraint)

    cases = [("23505", "users_email"), ("23505", "users_name"), ("23505", None), ("23503", "users_email")]
    errors = [Violation(*case) for case in cases]
    assert len({classify(error).fingerprint for error in errors}) == 4
    wrapped = {classify(Wrapper(error)).fingerprint for error in errors}
    assert len(wrapped) == 4


@pytest.mark.parametrize("error", [pg.UniqueViolation(), psycopg_pool.PoolTimeout()])
def test_the_result_is_a_value(error: Exception) -> None:
    assert classify(error) == classify(error)
    assert hash(classify(error))
