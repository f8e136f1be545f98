"""What kind of error this is, and whether trying again can help.

`classify` never looks at a message. PostgreSQL errors are told apart by SQLSTATE, because one DB-API class spans
codes that must be retried and codes that must not (PostgreSQL documentation, appendix A and section 13.5).
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from reliakit.core import errors

if TYPE_CHECKING:
    from types import CodeType, TracebackType

__all__ = ["Category", "ErrorClass", "RetryAdvice", "classify", "fingerprint", "sqlstate_of"]

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
    "08": ("dependency", "reconnect"),
    "21": ("programming", "never"),
    "22": ("data", "never"),
    "23": ("validation", "never"),
    "25": ("programming", "never"),
    "26": ("programming", "never"),
    "28": ("auth", "never"),
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

# Told by name, because their modules must not be imported here.
_NAMES: dict[tuple[str, str], Kind] = {
    ("asyncio.exceptions", "CancelledError"): ("cancelled", "never"),
    ("concurrent.futures._base", "CancelledError"): ("cancelled", "never"),
    ("psycopg_pool.errors", "PoolTimeout"): ("resource", "backoff"),
    ("psycopg_pool.errors", "TooManyRequests"): ("resource", "backoff"),
    ("psycopg_pool.errors", "PoolClosed"): ("programming", "never"),
    ("psycopg.errors", "ConnectionTimeout"): ("dependency", "reconnect"),
    ("psycopg", "OperationalError"): ("dependency", "reconnect"),
    ("psycopg", "InterfaceError"): ("programming", "never"),
    ("psycopg", "ProgrammingError"): ("programming", "never"),
    ("psycopg", "DataError"): ("data", "never"),
}

_HTTP_CLIENTS = frozenset({"httpx", "httpx2", "httpcore", "requests", "urllib3", "aiohttp"})

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

    SQLSTATE decides where there is one; then reliakit's and Python's own types; then an HTTP status that the
    error or its response carries. Never raises. A few microseconds, no traceback is rendered.

    Args:
        error: Any exception, raised or not.
    """
    sqlstate = sqlstate_of(error)
    category, retry = _kind(error, sqlstate)
    return ErrorClass(category, retry, sqlstate, fingerprint(error, sqlstate))


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE of a PostgreSQL driver's error, also inside SQLAlchemy's wrapper, or None."""
    for holder in (error, _attribute(error, "orig")):
        state = _attribute(holder, "sqlstate")
        if isinstance(state, str) and len(state) == 5:
            return state
    return None


def _kind(error: BaseException, sqlstate: str | None) -> Kind:
    if sqlstate is not None:
        return _SQLSTATES.get(sqlstate) or _SQLSTATES.get(sqlstate[:2]) or ("internal", "never")
    status = None if isinstance(error, errors.ReliakitError) else _status(error)
    if status is not None:
        server_side: Kind = ("dependency", "backoff")
        return _STATUSES.get(status) or (("validation", "never") if status < 500 else server_side)
    for cls in type(error).__mro__:
        module, _, _ = cls.__module__.partition(".")
        kind = _TYPES.get(cls) or _NAMES.get((cls.__module__, cls.__name__))
        if kind is None and module in _HTTP_CLIENTS:
            kind = _client_kind(cls.__name__)
        if kind is not None:
            return kind
    return ("internal", "never")


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


def _client_kind(name: str) -> Kind | None:
    """Return what an HTTP client's exception class means; the clients share no base class but do share words."""
    if "Timeout" in name:
        return ("timeout", "backoff")
    if any(word in name for word in ("Connect", "Network", "Protocol", "Disconnected", "Transport", "Proxy")):
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

    Made of the type, the application's functions that the error passed through (by module and qualified name,
    without lines), the SQLSTATE and the violated constraint.
    """
    kind = type(error)
    parts = [kind.__module__, kind.__qualname__]
    last = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        place = _place(frame.f_code, frame.f_globals.get("__name__", ""))
        if place is not None and place != last:  # recursion of any depth is one place
            parts.append(place)
            last = place
        trace = trace.tb_next
    if sqlstate is not None:
        parts += (sqlstate, str(_attribute(_attribute(error, "diag"), "constraint_name") or ""))
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _place(code: CodeType, module: str) -> str | None:
    """Return where a frame is, or None for the standard library, installed packages and reliakit."""
    return f"{module}:{code.co_qualname}" if _is_application(code.co_filename) else None


_LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(f"{prefix}/lib/python" for prefix in (sys.prefix, sys.base_prefix)),
        __file__.removesuffix("core/categories.py"),
    }
)


@lru_cache(maxsize=4096)
def _is_application(filename: str) -> bool:
    return not (filename.startswith(_LIBRARIES) or filename.startswith("<frozen") or "site-packages" in filename)
