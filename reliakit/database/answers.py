"""The outcome of a command, from everything that the server has answered."""

from __future__ import annotations

from typing import cast

import psycopg
from psycopg import pq

__all__ = ["Answer", "collect", "committed_before"]

_ERROR = int(pq.ExecStatus.FATAL_ERROR)
_COMMITS = (b"COMMIT", b"PREPARE TRANSACTION")


class Answer:
    """The outcome of one of our own commands."""

    # Class-level defaults: an ordinary answer sets two of them, and setting all would cost three times as much.
    tag: bytes | None = None
    error: psycopg.Error | None = None
    interrupt: BaseException | None = None
    late: bool = False
    sent: bool = False
    broken: bool = False


def committed_before(error: psycopg.Error) -> bool:
    """Return whether the failed text had run a COMMIT of its own before, as in `COMMIT AND CHAIN; SELECT 1/0`.

    The state of the connection does not show it, because all failed transactions look alike. What the server had
    answered until then is only found in the frames of psycopg's traceback.
    """
    trace = error.__traceback__
    while trace is not None:
        results: object = trace.tb_frame.f_locals.get("results")
        if isinstance(results, list):
            answered = cast("list[object]", results)
            return any(getattr(result, "command_status", None) in _COMMITS for result in answered)
        trace = trace.tb_next
    return False


def collect(results: list[pq.abc.PGresult], answer: Answer) -> None:
    """Record results in an answer; the last one decides."""
    if results:
        last = results[-1]  # an error ends them
        if last.status == _ERROR:
            answer.error = psycopg.errors.error_from_result(last)
        else:
            answer.tag = last.command_status
