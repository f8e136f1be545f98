"""What kind of error an exception is, and whether a retry can help.

`classify` never looks at a message. SQLSTATE tells PostgreSQL errors apart, because one DB-API class spans codes that
must be retried and codes that must not (PostgreSQL documentation, appendix A and section 13.5).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from reliakit.core import errors, kinds
from reliakit.core.fingerprint import attribute, digest, fingerprint
from reliakit.core.kinds import Category, Kind, RetryAdvice

if TYPE_CHECKING:
    _Group = BaseExceptionGroup[BaseException]

__all__ = ["Category", "ErrorClass", "RetryAdvice", "classified", "classify", "fingerprint", "sqlstate_of"]

_KNOWN = "__reliakit_class__"
# Packages whose errors carry a gRPC status, and packages whose errors carry the error that caused them.
_GRPC = frozenset({"grpc", "grpclib"})
_WRAPPERS = frozenset({"urllib", "urllib3"})
# A server says so of a fault of its client; PgBouncer of whatever it ends a connection for.
_PROTOCOL = "08P01"


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """What `classify` found out about an error.

    Attributes:
        category: What kind of error it is.
        retry: Whether a retry can help, and how.
        sqlstate: PostgreSQL's five-character code, or None.
        fingerprint: 16 hexadecimal digits, equal for errors of one type raised through the same functions,
            whatever the line, the message or the machine.
    """

    category: Category
    retry: RetryAdvice
    sqlstate: str | None
    fingerprint: str


def classify(error: BaseException) -> ErrorClass:
    """Find out what kind of error this is, and whether a retry can help.

    The SQLSTATE decides if there is one; then an HTTP or gRPC status that the error or its response carries; then the
    known types of reliakit, Python and well-known clients. A group is classified as its errors are, if they agree.
    Never raises. Takes a few microseconds and renders no traceback. Once metrics, tracking or a log record have
    reported an error, its classification stays the same wherever it goes afterwards.

    Args:
        error: Any exception, raised or not.
    """
    try:
        known = vars(error).get(_KNOWN)
        if type(known) is ErrorClass:
            return known
        sqlstate = sqlstate_of(error)
        category, retry = _kind(error, sqlstate)
        return ErrorClass(category, retry, sqlstate, fingerprint(error, sqlstate))
    except Exception:  # noqa: BLE001 - an exception class may raise at every touch, and is still to be counted
        return ErrorClass(*kinds.UNKNOWN, None, digest([type(error).__name__]))


def classified(error: BaseException) -> ErrorClass:
    """Return what `classify` finds, and make it find the same from now on.

    On its way out an error passes through more and more functions, so those who report it would each see a
    different fingerprint.
    """
    found = classify(error)
    with contextlib.suppress(Exception):  # a class may hide its __dict__; its errors are classified each time
        return cast("ErrorClass", vars(error).setdefault(_KNOWN, found))
    return found


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a PostgreSQL driver's error, also inside SQLAlchemy's or Django's wrapper, or None."""
    for holder in (error, attribute(error, "orig"), _django_cause(error)):
        for name in ("sqlstate", "pgcode"):
            state = attribute(holder, name)
            if isinstance(state, str) and len(state) == 5 and state.isalnum() and state.isascii():
                return state
    return None


def _django_cause(error: BaseException) -> BaseException | None:
    module: object = type(error).__module__
    return error.__cause__ if module == "django.db.utils" else None


def _kind(error: BaseException, sqlstate: str | None) -> Kind:
    if sqlstate is not None:
        if sqlstate == _PROTOCOL and _is_from_pooler(error):
            sqlstate = sqlstate[:2]
        return kinds.SQLSTATES.get(sqlstate) or kinds.SQLSTATES.get(sqlstate[:2]) or kinds.UNKNOWN
    if isinstance(error, BaseExceptionGroup):
        found = {_kind(leaf, sqlstate_of(leaf)) for leaf in _leaves(cast("_Group", error))}
        return found.pop() if len(found) == 1 else kinds.UNKNOWN
    status = None if isinstance(error, errors.ReliakitError) else _status(error)
    if status is not None:
        return _status_kind(status)
    return _told_kind(error) or _type_kind(error) or _wrapped_kind(error, "orig") or kinds.UNKNOWN


def _is_from_pooler(error: BaseException) -> bool:
    """Return whether it was said by what stands in front of the server, which leaves out what each server tells."""
    for holder in (error, attribute(error, "orig"), _django_cause(error)):
        told = attribute(holder, "diag")
        if attribute(told, "severity") == "FATAL":
            return attribute(told, "severity_nonlocalized") is None
    return False


def _leaves(group: _Group) -> list[BaseException]:
    leaves: list[BaseException] = []
    groups = [group]
    while groups:
        for member in groups.pop().exceptions:
            if isinstance(member, BaseExceptionGroup):
                groups.append(cast("_Group", member))
            else:
                leaves.append(member)
    return leaves


def _told_kind(error: BaseException) -> Kind | None:
    """Return what an error itself says: its errno, its gRPC status, or the error that caused it."""
    if isinstance(error, OSError) and error.errno in kinds.ERRNOS:
        return kinds.ERRNOS[error.errno]
    for cls in type(error).__mro__:
        package = _package(cls)
        if package in _GRPC:
            return _grpc_kind(error)
        if package in _WRAPPERS:
            return _wrapped_kind(error, "reason")
    return None


def _wrapped_kind(error: BaseException, name: str) -> Kind | None:
    wrapped = attribute(error, name)
    return _type_kind(wrapped) if isinstance(wrapped, BaseException) else None


def _grpc_kind(error: BaseException) -> Kind | None:
    code = attribute(error, "code") or attribute(error, "status")
    with contextlib.suppress(Exception):  # a call that is not over has no status
        name = attribute(code() if callable(code) else code, "name")
        return kinds.GRPC.get(name) if isinstance(name, str) else None
    return None


def _type_kind(error: BaseException) -> Kind | None:
    """Return the kind of the nearest class that is known."""
    for cls in type(error).__mro__:
        package = _package(cls)
        kind = kinds.TYPES.get(cls) or kinds.NAMES.get((package, cls.__name__))
        if kind is None and package in kinds.CLIENTS:
            kind = next((known for words, known in kinds.WORDS if any(word in cls.__name__ for word in words)), None)
        if kind is not None:
            return kind
    return None


def _package(cls: type) -> str:
    module: object = cls.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that a framework's or client's error carries, by duck typing."""
    if not isinstance(error, Exception):
        return None
    for name in ("status_code", "status", "code", "http_status"):
        value = attribute(error, name)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    response: Any = attribute(error, "response")
    if response is None:
        return None
    values: list[object] = [attribute(response, "status_code"), attribute(response, "status")]
    if isinstance(response, dict):  # botocore
        told: Any = cast("dict[str, Any]", response).get("ResponseMetadata")
        values = [told.get("HTTPStatusCode")] if isinstance(told, dict) else []  # pyright: ignore[reportUnknownMemberType]
    return next((value for value in values if isinstance(value, int) and 400 <= value <= 599), None)


def _status_kind(status: int) -> Kind:
    known = kinds.STATUSES.get(status)
    if known is not None:
        return known
    return ("validation", "never") if status < 500 else ("dependency", "backoff")
