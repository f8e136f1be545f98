"""Which errors are the same one, whatever their line, message or machine."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

__all__ = ["attribute", "digest", "fingerprint"]

Owner = Literal["application", "installed", "ours"]


def attribute(holder: object, name: str) -> object:
    """Return an attribute or None: a property of a foreign exception may raise anything."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - the error being looked at matters more than its broken property
        return None


def fingerprint(error: BaseException, sqlstate: str | None = None) -> str:
    """Return 16 hexadecimal digits that are equal for errors with the same cause.

    They are made from the type, the functions that the error passed through (by module and qualified name, each once,
    without lines), the SQLSTATE and the violated constraint. Frames of the standard library and of reliakit are left
    out, and those of installed packages too unless there are no others: a service may be an installed package itself.
    """
    parts = [str(type(error).__module__), type(error).__qualname__, *_places(error.__traceback__)]
    if sqlstate is not None:
        parts += (sqlstate, _constraint(error) or _constraint(attribute(error, "orig")))
    return digest(parts)


def digest(parts: Iterable[str]) -> str:
    """Return 16 hexadecimal digits for these texts."""
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=8).hexdigest()


def _places(trace: TracebackType | None) -> Iterable[str]:
    # Each place once, so that recursion of any depth is one place. A dict keeps the order. A plain dict as the cache
    # of each file's owner costs half as much as a cached function.
    own: dict[str, None] = {}
    installed: dict[str, None] = {}
    owners, last = _owners, None
    while trace is not None:
        frame = trace.tb_frame
        code = frame.f_code
        if code is not last:
            last = code
            owner = owners.get(code.co_filename) or _find_owner(code.co_filename)
            if owner == "application":
                own[f"{frame.f_globals.get('__name__')}:{code.co_qualname}"] = None
            elif owner == "installed":
                installed[f"{frame.f_globals.get('__name__')}:{code.co_qualname}"] = None
        trace = trace.tb_next
    return own or installed


def _constraint(error: object) -> str:
    name = attribute(attribute(error, "diag"), "constraint_name")
    return name if isinstance(name, str) else ""


_OWN = __file__.removesuffix(os.path.join("core", "fingerprint.py"))  # noqa: PTH118 - pathlib costs 3 ms to import
_STANDARD = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_INSTALLED = tuple(
    {
        *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
        *(f"{prefix}/lib/python" for prefix in (sys.prefix, sys.base_prefix)),
    }
)


# Whose code a file is. Any thread may write it, always with the same value.
_owners: dict[str, Owner] = {}
_MOST_FILES = 4096


def _find_owner(filename: str) -> Owner:
    if len(_owners) >= _MOST_FILES:
        _owners.clear()
    owner = _owners[filename] = _owner(filename)
    return owner


def _owner(filename: str) -> Owner:
    """Return whose code a file is; "ours" is reliakit or the standard library."""
    if "site-packages" in filename or "dist-packages" in filename:
        return "ours" if filename.startswith(_OWN) else "installed"
    if filename.startswith((_OWN, *_STANDARD, "<frozen")):
        return "ours"
    return "installed" if filename.startswith(_INSTALLED) else "application"
