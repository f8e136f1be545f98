"""The express lane around a call, for a guard that usually lets every call pass and only counts successes.

```
lane = guard.passing            None: the call takes the long way, by enter and leave
value = fn(...)                 an error always takes the long way
lane.count += 1                 all that a success costs
```

The long way makes two method calls around each call, which takes 2.0 to 3.6 times as long as a bare wrapper function;
benchmarks/resilience.py prints the lane's own numbers.
"""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from inspect import CO_VARARGS, CO_VARKEYWORDS
from math import inf
from types import CodeType, FunctionType
from typing import Any, Protocol, TypeVar, cast

from reliakit.core.colour import is_awaitable, refuse_awaitable

__all__ = ["GIL", "Lane", "LaneGuard", "lane_shell"]

T = TypeVar("T")

# Without the GIL, `count += 1` may lose one of two increments, so no lane may be opened.
GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


class Lane:
    """A permit that is valid for any number of calls, and counts those that succeeded.

    `lane.count += 1` is safe from threads and needs no lock: CPython switches threads, runs signal handlers and
    collects garbage only at calls and backward jumps, and this is neither. A new lane leaves late successes to the
    old one, so the lane that a call began on also tells whether its outcome still matters.

    Attributes:
        count: The successes so far.
        until: The instant from which a success must take the long way, for a guard with `timing`; inf for never.
    """

    __slots__ = ("count", "until")

    def __init__(self) -> None:
        self.count: int = 0
        self.until: float = -inf


class LaneGuard(Protocol[T]):
    """A `Guard` with an express lane.

    Attributes:
        passing: While it is not None, every call that begins may pass, with it as its permit.
        timing: None, or a clock function and the seconds that make a call too long for the lane (inf for none). With
            it, `permit_since` makes the permits that are passed to `leave`.
    """

    passing: Lane | None
    timing: tuple[Callable[[], float], float] | None

    def enter(self) -> T | Lane:
        """Let a call pass while the lane is closed, and return its permit, or raise a RejectedError."""
        ...

    def permit_since(self, lane: Lane, began: float, /) -> T:
        """Return the permit of a call that began on this lane at this instant."""
        ...

    def leave(self, permit: T | Lane, error: BaseException | None, result: object, /) -> None:
        """Take the permit back with the call's outcome."""
        ...


# The one source text of every wrapper with a lane. Our names end in an underscore, the others are the caller's.
# Called with the function's own parameters instead of `*args, **kwargs`, a wrapper takes two thirds of the time.
_TEXT = """\
def make_(guard_, fn_, finish_, now_, too_long_, type_, BaseException_):
    enter_, leave_, permit_since_ = guard_.enter, guard_.leave, guard_.permit_since
    known_ = finish_

    {colour}def run({parameters}):
        nonlocal known_
        lane_ = guard_.passing
        permit_ = enter_() if lane_ is None else lane_
        {began}
        try:
            result_ = {wait}fn_({arguments})
        except BaseException_ as error_:
            leave_({permit}, error_, None)
            raise
        {ended}
        if {only_counts}:
            lane_.count += 1
            return result_
        known_ = finish_({permit}, result_, known_)
        return result_

    return run
"""
_UNTIMED = {"began": "", "ended": "", "permit": "permit_"}
_TIMED = {
    "began": "began_ = now_()",
    "ended": "ended_ = now_()",
    "permit": "permit_ if lane_ is None else permit_since_(lane_, began_)",
}


def lane_shell(guard: LaneGuard[Any], fn: Callable[..., Any], by: str, *, is_async: bool) -> Callable[..., Any]:
    """Return a plain or a coroutine function behind a guard with a lane, with its own signature."""
    parameters, arguments = _signature_of(fn)
    only_counts = "lane_ is not None"
    if guard.timing:
        only_counts += " and ended_ < lane_.until and ended_ - began_ < too_long_"
    if not is_async:
        only_counts += " and type_(result_) is known_"
    text = _TEXT.format(
        parameters=parameters,
        arguments=arguments,
        only_counts=only_counts,
        colour="async " if is_async else "",
        wait="await " if is_async else "",
        **(_TIMED if guard.timing else _UNTIMED),
    )
    leave = guard.leave

    # The class of the last result that was not awaitable: checking it anew costs more than the guard.
    def finish(permit: object, result: object, known: object) -> object:
        if not is_async and type(result) is not known:
            try:
                if is_awaitable(result):
                    refuse_awaitable(fn, result, by)
            except BaseException as error:
                leave(permit, error, None)
                raise
        leave(permit, None, result)
        return type(result)

    made: dict[str, Any] = {}
    # Appears to be defined in the function's own module, for code that looks up its annotations. No part of the text
    # comes from outside this process.
    exec(_compiled(text), getattr(fn, "__globals__", {}), made)  # noqa: S102
    now, too_long = guard.timing or (None, inf)
    run: Any = made["make_"](guard, fn, finish, now, too_long, type, BaseException)
    if "*args" not in parameters:
        run.__defaults__, run.__kwdefaults__ = fn.__defaults__, fn.__kwdefaults__
    return cast("Callable[..., Any]", wraps(fn)(run))


def _signature_of(fn: Callable[..., Any]) -> tuple[str, str]:
    """Return a function's parameters as they are declared, and as arguments of a call."""
    anything = "*args_, **kwargs_"
    if type(fn) is not FunctionType:
        return anything, anything
    code = fn.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if code.co_flags & (CO_VARARGS | CO_VARKEYWORDS) or any(name.endswith("_") for name in names):
        return anything, anything
    keywords = names[code.co_argcount :]
    parameters = list(names)
    if keywords:
        parameters.insert(code.co_argcount, "*")
    if code.co_posonlyargcount:
        parameters.insert(code.co_posonlyargcount, "/")
    arguments = [*names[: code.co_argcount], *(f"{name}={name}" for name in keywords)]
    return ", ".join(parameters), ", ".join(arguments)


@lru_cache(maxsize=512)
def _compiled(text: str) -> CodeType:
    name = f"<reliakit shell {hash(text):x}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for tracebacks
    return compile(text, name, "exec")
