"""Each exception object is reported to listeners once, by the first component that sees it on its way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reliakit.core.categories import classified
from reliakit.core.events import ErrorSeen

if TYPE_CHECKING:
    from reliakit.core.spine import Emitter

__all__ = ["report"]

_MARK = "__reliakit_seen__"


def report(emitter: Emitter, error: BaseException, *, service: str | None = None, status: str | None = None) -> None:
    """Emit `ErrorSeen` for this exception object, unless that was done before.

    The mark is kept on the object itself, so it lives exactly as long as the error does. While nobody listens,
    nothing is classified and nothing is marked. Cancellation, KeyboardInterrupt, SystemExit and GeneratorExit are not
    errors and are left out.

    Args:
        emitter: The emitter of the component that sees the error.
        error: The exception on its way to the caller.
        service: The service it happens in, if known.
        status: The HTTP status that it leads to, if known.
    """
    if not isinstance(error, Exception) or not emitter.hears(ErrorSeen) or not _first_to_see(error):
        return
    found = classified(error)
    emitter.emit(
        ErrorSeen,
        service=service,
        status=status,
        error_type=type(error).__name__,
        category=found.category,
        retry=found.retry,
        sqlstate=found.sqlstate,
        fingerprint=found.fingerprint,
        error=error,
    )


def _first_to_see(error: Exception) -> bool:
    mine = object()
    try:
        # One atomic step: two threads may hold the same exception, such as that of a future.
        return vars(error).setdefault(_MARK, mine) is mine
    except Exception:  # noqa: BLE001
        # An exception class may hide its __dict__. Reporting it more than once is better than never.
        return True
