"""What kind of error this is, and whether trying again can help.

`classify` never looks at a message. PostgreSQL errors are told apart by SQLSTATE, because one DB-API class spans
codes that must be retried and codes that must not (PostgreSQL documentation, appendix A and section 13.5).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from reliakit.core import errors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    _Group = BaseExceptionGroup[BaseException]

__all__ = ["Category", "ErrorClass", "RetryAdvice", "classified", "classify", "fingerprint", "sqlstate_of"]

Category = Literal[
    "validation",
    "auth",
    "permission",
    "not_found",
    "conflict",
    "rate_limit",
    "timeout",
    "cancelled",
    "dependency",
    "resource",
    "data",
    "programming",
    "internal",
]
RetryAdvice = Literal["never", "same_transaction_again", "reconnect", "backoff", "unknown_outcome"]
Kind = tuple[Category, RetryAdvice]
_UNKNOWN: Kind = ("internal", "never")
_KNOWN = "__reliakit_class__"


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """What `classify` found.

    Attributes:
        category: What kind of error it is.
        retry: Whether trying again can help, and how.
        sqlstate: PostgreSQL's five-character code, or None.
        fingerprint: 16 hexadecimal digits, equal for errors of one type raised through the same functions,
            whatever the line, the message or the machine.
    """

    category: Category
    retry: RetryAdvice
    sqlstate: str | None
    fingerprint: str


# Whole codes first, then classes (the first two characters).
_SQLSTATES: dict[str, Kind] = {
    "40001": ("conflict", "same_transaction_again"),
    "40P01": ("conflict", "same_transaction_again"),
    "40003": ("dependency", "unknown_outcome"),
    "08007": ("dependency", "unknown_outcome"),
    "08P01": ("programming", "never"),
    "08004": ("dependency", "never"),
    "57P01": ("dependency", "reconnect"),
    "57P02": ("dependency", "reconnect"),
    "57P03": ("dependency", "reconnect"),
    "57P05": ("dependency", "reconnect"),
    "57014": ("timeout", "never"),
    "25P03": ("timeout", "never"),
    "25P04": ("timeout", "never"),
    "25P02": ("programming", "never"),
    "55P03": ("conflict", "backoff"),
    "55006": ("conflict", "backoff"),
    "53100": ("resource", "never"),
    "53400": ("resource", "never"),
    "23505": ("conflict", "never"),
    "23P01": ("conflict", "never"),
    "42501": ("permission", "never"),
    "P0002": ("not_found", "never"),
    "02": ("not_found", "never"),
    "0A": ("programming", "never"),
    "08": ("dependency", "reconnect"),
    "21": ("programming", "never"),
    "22": ("data", "never"),
    "24": ("programming", "never"),
    "23": ("validation", "never"),
    "25": ("programming", "never"),
    "26": ("programming", "never"),
    "28": ("auth", "never"),
    "34": ("programming", "never"),
    "3B": ("programming", "never"),
    "3D": ("programming", "never"),
    "3F": ("programming", "never"),
    "40": ("conflict", "never"),
    "42": ("programming", "never"),
    "44": ("validation", "never"),
    "53": ("resource", "backoff"),
    "54": ("programming", "never"),
    "55": ("conflict", "never"),
    "57": ("dependency", "never"),
    "58": ("internal", "never"),
    "HV": ("dependency", "never"),
    "XX": ("internal", "never"),
}

# Nearest class first: the first match along the error's own method resolution order decides.
_TYPES: dict[type[BaseException], Kind] = {
    errors.ConfigurationError: ("programming", "never"),
    errors.RateLimitedError: ("rate_limit", "backoff"),
    errors.RejectedError: ("resource", "backoff"),
    errors.TransactionUsageError: ("programming", "never"),
    errors.TransactionTimeoutError: ("timeout", "never"),
    errors.CommitUnknownError: ("dependency", "unknown_outcome"),
    errors.TransactionRolledBackError: ("conflict", "never"),
    errors.DeadlineExceededError: ("timeout", "never"),
    errors.ValidationError: ("validation", "never"),
    errors.StoreError: ("dependency", "backoff"),
    errors.NoInstanceError: ("dependency", "backoff"),
    errors.CircuitOpenError: ("dependency", "backoff"),
    PermissionError: ("permission", "never"),
    FileNotFoundError: ("not_found", "never"),
    FileExistsError: ("conflict", "never"),
    ConnectionError: ("dependency", "reconnect"),
    TimeoutError: ("timeout", "backoff"),
    MemoryError: ("resource", "never"),
    OSError: ("resource", "never"),
    EOFError: ("dependency", "reconnect"),
    UnicodeError: ("data", "never"),
    ArithmeticError: ("data", "never"),
    LookupError: ("programming", "never"),
    ValueError: ("validation", "never"),
    TypeError: ("programming", "never"),
    AttributeError: ("programming", "never"),
    NameError: ("programming", "never"),
    ImportError: ("programming", "never"),
    SyntaxError: ("programming", "never"),
    AssertionError: ("programming", "never"),
    NotImplementedError: ("programming", "never"),
    KeyboardInterrupt: ("cancelled", "never"),
    SystemExit: ("cancelled", "never"),
    GeneratorExit: ("cancelled", "never"),
}

# Told by top-level package and class name, because these modules must not be imported here.
_NAMES: dict[tuple[str, str], Kind] = {
    ("asyncio", "CancelledError"): ("cancelled", "never"),
    ("concurrent", "CancelledError"): ("cancelled", "never"),
    ("psycopg_pool", "PoolTimeout"): ("resource", "backoff"),
    ("psycopg_pool", "TooManyRequests"): ("resource", "backoff"),
    ("psycopg_pool", "PoolClosed"): ("programming", "never"),
    ("psycopg", "PipelineAborted"): ("programming", "never"),
    ("psycopg", "OperationalError"): ("dependency", "reconnect"),
    ("psycopg", "InterfaceError"): ("programming", "never"),
    ("psycopg", "ProgrammingError"): ("programming", "never"),
    ("psycopg", "NotSupportedError"): ("programming", "never"),
    ("psycopg", "IntegrityError"): ("validation", "never"),
    ("psycopg", "DataError"): ("data", "never"),
    ("socket", "gaierror"): ("dependency", "reconnect"),
    ("ssl", "SSLCertVerificationError"): ("dependency", "never"),
    ("ssl", "SSLError"): ("dependency", "reconnect"),
    ("urllib", "URLError"): ("dependency", "reconnect"),
    ("redis", "AuthenticationError"): ("auth", "never"),
    ("redis", "ResponseError"): ("programming", "never"),
    ("jwt", "InvalidTokenError"): ("auth", "never"),
}

# Network clients share no base class, but their classes share words.
_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "redis"})
_MISUSE = ("Unsupported", "LocalProtocol", "Invalid")
_UNREACHABLE = ("Connect", "Network", "Protocol", "Disconnected", "Transport", "Proxy")

_NO_ROUTE = frozenset({errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH})

_STATUSES: dict[int, Kind] = {
    400: ("validation", "never"),
    401: ("auth", "never"),
    403: ("permission", "never"),
    404: ("not_found", "never"),
    408: ("timeout", "backoff"),
    409: ("conflict", "never"),
    410: ("not_found", "never"),
    412: ("conflict", "never"),
    422: ("validation", "never"),
    425: ("conflict", "backoff"),
    429: ("rate_limit", "backoff"),
    502: ("dependency", "backoff"),
    503: ("dependency", "backoff"),
    504: ("timeout", "backoff"),
}


def classify(error: BaseException) -> ErrorClass:
    """Tell what kind of error this is and whether trying again can help.

    SQLSTATE decides where there is one; then an HTTP status that the error or its response carries; then
    reliakit's, Python's and well-known clients' own types. A group is what all of its errors are, if they agree.
    Never raises. A few microseconds, no traceback is rendered. An error that metrics, tracking or a log record have
    told of stays what it was told to be, wherever it goes afterwards.

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
        return ErrorClass(*_UNKNOWN, None, _digest([type(error).__name__]))


def classified(error: BaseException) -> ErrorClass:
    """Return what `classify` finds, and let it find the same from now on.

    On its way out an error passes through more and more functions, which all who tell of it would see differently.
    """
    found = classify(error)
    with contextlib.suppress(Exception):  # a class may hide its __dict__, and is then classified each time
        return cast("ErrorClass", vars(error).setdefault(_KNOWN, found))
    return found


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a PostgreSQL driver's error, also inside SQLAlchemy's wrapper, or None."""
    for holder in (error, _attribute(error, "orig")):
        for name in ("sqlstate", "pgcode"):
            state = _attribute(holder, name)
            if isinstance(state, str) and len(state) == 5 and state.isalnum() and state.isascii():
                return state
    return None


def _kind(error: BaseException, sqlstate: str | None) -> Kind:
    if sqlstate is not None:
        return _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2]) or _UNKNOWN
    if isinstance(error, BaseExceptionGroup):
        kinds = {_kind(leaf, sqlstate_of(leaf)) for leaf in _leaves(cast("_Group", error))}
        return kinds.pop() if len(kinds) == 1 else _UNKNOWN
    status = None if isinstance(error, errors.ReliakitError) else _status(error)
    if status is not None:
        return _status_kind(status)
    kind = _type_kind(error)
    if kind is None:
        wrapped = _attribute(error, "orig")
        kind = _type_kind(wrapped) if isinstance(wrapped, BaseException) else None
    return kind or _UNKNOWN


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


def _type_kind(error: BaseException) -> Kind | None:
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return ("dependency", "reconnect")
    for cls in type(error).__mro__:
        package = _package(cls)
        kind = _TYPES.get(cls) or _NAMES.get((package, cls.__name__))
        if kind is None and package in _CLIENTS:
            kind = _client_kind(cls.__name__)
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
    response = _attribute(error, "response")
    for holder, attribute in (
        (error, "status_code"),
        (error, "status"),
        (error, "code"),
        (response, "status_code"),
        (response, "status"),
    ):
        value = _attribute(holder, attribute)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def _status_kind(status: int) -> Kind:
    known = _STATUSES.get(status)
    if known is not None:
        return known
    return ("validation", "never") if status < 500 else ("dependency", "backoff")


def _client_kind(name: str) -> Kind | None:
    if any(word in name for word in _MISUSE):
        return ("programming", "never")
    if "Timeout" in name:
        return ("timeout", "backoff")
    if any(word in name for word in _UNREACHABLE):
        return ("dependency", "reconnect")
    return None


def _attribute(holder: object, name: str) -> object:
    """Return an attribute or None: a property of somebody's exception may raise anything."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - the error being classified matters more than its broken property
        return None


def fingerprint(error: BaseException, sqlstate: str | None = None) -> str:
    """Return 16 hexadecimal digits that are equal for errors with the same cause.

    Made of the type, the functions that the error passed through (by module and qualified name, each once, without
    lines), the SQLSTATE and the violated constraint. The standard library and reliakit are left out, and installed
    packages too, unless there is nothing else: a service may be an installed package itself.
    """
    parts = [str(type(error).__module__), type(error).__qualname__]
    parts += _places(error.__traceback__)
    if sqlstate is not None:
        parts += (sqlstate, _constraint(error) or _constraint(_attribute(error, "orig")))
    return _digest(parts)


def _digest(parts: list[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _places(trace: TracebackType | None) -> Iterable[str]:
    # Each place once, so that recursion of any depth is one place. A dict keeps the order.
    own: dict[str, None] = {}
    installed: dict[str, None] = {}
    while trace is not None:
        frame = trace.tb_frame
        owner = _owner(frame.f_code.co_filename)
        if owner != "ours":
            place = f"{frame.f_globals.get('__name__')}:{frame.f_code.co_qualname}"
            (own if owner == "application" else installed)[place] = None
        trace = trace.tb_next
    return own or installed


def _constraint(error: object) -> str:
    name = _attribute(_attribute(error, "diag"), "constraint_name")
    return name if isinstance(name, str) else ""


_OWN = __file__.removesuffix(os.path.join("core", "categories.py"))  # noqa: PTH118 - pathlib costs 3 ms to import
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = tuple(
    {
        *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
        *(f"{prefix}/lib/python" for prefix in (sys.prefix, sys.base_prefix)),
    }
)


@lru_cache(maxsize=4096)
def _owner(filename: str) -> Literal["application", "installed", "ours"]:
    """Tell whose code a file is; "ours" is reliakit or the standard library."""
    if "site-packages" in filename or "dist-packages" in filename:
        return "ours" if filename.startswith(_OWN) else "installed"
    if filename.startswith((_OWN, *_STANDARD, "<frozen")):
        return "ours"
    return "installed" if filename.startswith(_INSTALLED) else "application"
