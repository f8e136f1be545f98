"""Why a store cannot connect, for the log, if those who waited for the connection have given up by then.

A decision that gets no connection in time can say no more than that. A TLS handshake often takes longer, and may then
fail for a reason that somebody has to mend, such as a certificate that has expired.
"""

from __future__ import annotations

import logging

__all__ = ["Unheard"]

_log = logging.getLogger("reliakit")


class Unheard:
    """Tells the log each reason once, until there is another one or a connection."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told = ""

    def tell(self, error: BaseException) -> None:
        """Log why an attempt to connect has failed, unless it has merely taken too long, as is known already."""
        name = type(error).__name__
        if "Timeout" in name:
            return
        told = f"{name}: {next(iter(str(error).splitlines()), '')}"
        if told != self._told:
            self._told = told
            _log.warning("a shared store cannot connect: %s", told)

    def forget(self) -> None:
        """Take note of a connection: the same reason would be news again."""
        self._told = ""
