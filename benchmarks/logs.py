"""Masked logging beside loggers that mask nothing and libraries that mask: 12 fields, clean and with secrets.

Every case writes the same records to a stream that throws them away. Cases run in small rounds, in random order, in
one process, and the processor time of the thread is taken; python-json-logger with orjson runs a second time as the
control, whose ratio to the first shows the noise. Ids, addresses and tokens are new in every record, so no cache can
answer for them. Printed are medians and ratios of medians to python-json-logger with the same encoder.

What masks is also compared by what it adds to that logger: each peer masks the record's fields in the same place,
before they are encoded, so its own logger costs it nothing. logfire looks at field names and words, loggingredactor
at the patterns and names it is given here, hushlog at patterns: none of them does all that is done here.

    python benchmarks/logs.py [--quick]

(Not called logging.py: scripts of this folder would import it in place of the standard library's.)
"""

from __future__ import annotations

import argparse
import importlib
import logging
import random
import re
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from interleave import interleave
from pythonjsonlogger.json import JsonFormatter

from reliakit import classify
from reliakit.core.categories import fingerprint
from reliakit.logs import Masker, configure_logging, get_logger

try:
    from pythonjsonlogger.orjson import OrjsonFormatter
except Exception:
    OrjsonFormatter = None

Fields = dict[str, object]
Call = Callable[[Fields], None]
TARGETS = {"clean": 2.0, "secrets": 3.0}
PEERS = ("structlog", "loguru", "logfire", "hushlog", "loggingredactor", "logprivacy", "sentry-sdk")
NAMES = ["password", "token", "api_key", "secret", "authorization"]


class Nowhere:
    """A stream that throws everything away."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...


def fields(draw: random.Random, kind: str) -> Fields:
    """Return 12 fields as a service logs them."""
    record: Fields = {
        "request_id": uuid.UUID(int=draw.getrandbits(128)).hex,
        "trace_id": f"{draw.getrandbits(128):032x}",
        "user_id": draw.randrange(10**6),
        "method": draw.choice(["GET", "POST"]),
        "route": draw.choice(["/orders/{id}", "/users", "/login"]),
        "status": draw.choice([200, 201, 404]),
        "duration": draw.random(),
        "region": "eu-west-1",
        "tenant": f"acme-{draw.randrange(500)}",
        "retry": False,
        "order": {"id": draw.randrange(10**6), "state": "shipped", "lines": [1, 2, 3]},
        "at": datetime.now(UTC),
    }
    if kind == "secrets":
        record["tenant"] = f"user{draw.randrange(10**6)}@example.com"
        record["token"] = f"tok-{draw.getrandbits(96):x}"
        del record["region"]
    return record


def plain(formatter: logging.Formatter, name: str) -> Call:
    """Return a call of a standard logger with this formatter."""
    logger = logging.getLogger(name)
    logger.handlers[:] = [logging.StreamHandler(Nowhere())]
    logger.handlers[0].setFormatter(formatter)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return lambda record: logger.info("order created", extra=record)


def imported(name: str) -> Any:
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def structlog_call(*, fast: bool) -> Call | None:
    structlog, orjson = imported("structlog"), imported("orjson")
    if structlog is None or (fast and orjson is None):
        return None
    dumps = (lambda value, **_: orjson.dumps(value, default=str).decode()) if fast else None
    renderer = structlog.processors.JSONRenderer(dumps) if dumps else structlog.processors.JSONRenderer(default=str)
    log = structlog.wrap_logger(
        structlog.PrintLogger(Nowhere()),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
    ).bind()
    return lambda record: log.info("order created", **record)


def loguru_call() -> Call | None:
    loguru = imported("loguru")
    if loguru is None:
        return None
    loguru.logger.remove()
    loguru.logger.add(Nowhere(), serialize=True, level="INFO")
    return lambda record: loguru.logger.bind(**record).info("order created")


def masking(name: str, mask: Callable[[Fields], Any] | None) -> Call | None:
    """Return a call of python-json-logger whose fields go through somebody's masking."""
    if mask is None:
        return None
    base = OrjsonFormatter or JsonFormatter

    class Masking(base):
        def process_log_record(self, log_data: Fields) -> Any:
            return mask(log_data)

    return plain(Masking(timestamp=True), name)


def logfire_mask() -> Callable[[Fields], Any] | None:
    if imported("logfire") is None:
        return None
    scrubber = imported("logfire._internal.scrubbing").Scrubber(None)
    return lambda record: scrubber.scrub_value((), record)[0]


def hushlog_mask() -> Callable[[Fields], Any] | None:
    registry = imported("hushlog._registry")
    return registry and registry.PatternRegistry.from_config(imported("hushlog._config").Config()).redact_dict


def loggingredactor_mask() -> Callable[[Fields], Any] | None:
    library = imported("loggingredactor")
    if library is None:
        return None
    patterns = [re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"), re.compile(r"\+?\d[\d ()-]{8,}\d")]
    return library.RedactingFilter(patterns, mask_keys=NAMES).redact


def logprivacy_mask() -> Callable[[Fields], Any] | None:
    library = imported("logprivacy")
    return library and library.Cleaner().clean


def sentry_mask() -> Callable[[Fields], Any] | None:
    if imported("sentry_sdk") is None:
        return None
    from copy import deepcopy

    scrubber = imported("sentry_sdk.scrubber").EventScrubber(recursive=True)

    def mask(record: Fields) -> Fields:
        copied = deepcopy(record)  # it changes what it is given
        scrubber.scrub_dict(copied)
        return copied

    return mask


def cases() -> dict[str, Call]:
    """Return what is compared, the yardstick first."""
    encoder = OrjsonFormatter or JsonFormatter
    ours, standard = get_logger("ours"), logging.getLogger("standard")
    found: dict[str, Call | None] = {
        YARDSTICK: plain(encoder(timestamp=True), "a"),
        "python-json-logger (again)": plain(encoder(timestamp=True), "b"),
        OURS: lambda record: ours.info("order created", **record),
        "reliakit, plain logger, masked": lambda record: standard.info("order created", extra=record),
        "python-json-logger, json": plain(JsonFormatter(timestamp=True), "c") if OrjsonFormatter else None,
        "structlog, orjson": structlog_call(fast=True),
        "structlog, json": structlog_call(fast=False),
        "loguru, serialize": loguru_call(),
        "+ logfire": masking("d", logfire_mask()),
        "+ hushlog": masking("e", hushlog_mask()),
        "+ loggingredactor": masking("f", loggingredactor_mask()),
        "+ logprivacy": masking("g", logprivacy_mask()),
        "+ sentry-sdk (names only)": masking("h", sentry_mask()),
    }
    return {name: call for name, call in found.items() if call is not None}


YARDSTICK = "python-json-logger"
OURS = "reliakit get_logger, masked"


@contextmanager
def logging_to_nowhere() -> Iterator[None]:
    with configure_logging(service="bench", env="production", level="INFO", stream=Nowhere()):
        yield


def compare(kind: str, rounds: int, size: int) -> None:
    """Print the tables of one kind of record."""
    draw = random.Random(7)

    def sample(call: Call) -> Callable[[], float]:
        def taking() -> float:
            records = [fields(draw, kind) for _ in range(size)]
            begin = time.thread_time_ns()
            for record in records:
                call(record)
            return (time.thread_time_ns() - begin) / size / 1000

        return taking

    with logging_to_nowhere():
        samples = {name: sample(call) for name, call in cases().items()}
        interleave(samples, 2)  # warms up
        taken = interleave(samples, rounds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    base = medians[YARDSTICK]
    print(f"\n{kind}: microseconds a record, and the ratio to python-json-logger")
    for name, value in medians.items():
        if not name.startswith("+ "):
            print(f"  {name:<34}{value:8.1f} {value / base:6.2f}")
    print(f"  target for reliakit: at most {TARGETS[kind]:.1f}")
    added = medians[OURS] - base
    print(f"\n{kind}: microseconds that masking adds to a record, and how many times ours (target: 2 or more)")
    print(f"  {'reliakit':<34}{added:8.1f}")
    for name, value in medians.items():
        if name.startswith("+ "):
            print(f"  {name[2:]:<34}{value - base:8.1f} {(value - base) / added:6.1f}")


def per_call(calls: dict[str, Callable[[], object]], rounds: int, size: int) -> dict[str, float]:
    """Return nanoseconds a call, the loop around it taken off."""

    def sample(call: Callable[[], object]) -> Callable[[], float]:
        def taking() -> float:
            begin = time.thread_time_ns()
            for _ in range(size):
                call()
            return (time.thread_time_ns() - begin) / size

        return taking

    taken = interleave({name: sample(call) for name, call in {"": lambda: None, **calls}.items()}, rounds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {name: medians[name] - medians[""] for name in calls}


def switched_off(rounds: int, size: int) -> None:
    """Print what a call below the level costs."""
    ours, standard = get_logger("off"), logging.getLogger("off")
    with logging_to_nowhere():
        found = per_call(
            {
                "reliakit, one field": lambda: ours.debug("x", user_id=7),
                "reliakit, no field": lambda: ours.debug("x"),
                "logging, no field": lambda: standard.debug("x"),
            },
            rounds,
            size,
        )
    print("\na level that is off: nanoseconds a call (target: below 100)")
    for name, value in found.items():
        print(f"  {name:<34}{value:8.0f}")


def raised_through(frames: int) -> Exception:
    """Return an error that passed through so many functions."""
    space: dict[str, Any] = {"__name__": "app"}
    source = "def f1(): raise ValueError('x')\n" + "".join(f"def f{n}(): f{n - 1}()\n" for n in range(2, frames))
    exec(compile(source, "/srv/app/orders.py", "exec"), space)
    try:
        space[f"f{frames - 1}"]()
    except ValueError as error:
        return error
    raise AssertionError


def categories(rounds: int, size: int) -> None:
    """Print what telling errors apart costs."""
    error = raised_through(14)
    found = per_call(
        {"fingerprint": lambda: fingerprint(error), "classify, fingerprint included": lambda: classify(error)},
        rounds,
        size,
    )
    print("\nan error that passed through 14 functions: microseconds (target for the fingerprint: below 5)")
    for name, value in found.items():
        print(f"  {name:<34}{value / 1000:8.1f}")


HOSTILE = {
    "digits": "4111 1111-",
    "words with =": "password=",
    "quotes": "\"'",
    "open braces": '{"a":',
    "bearer": "bearer ",
    "at signs": "a@b.",
    "slashes": "https://",
    "dots": "a.b-c_",
}


def hostile(rounds: int) -> None:
    """Print how the time grows with text that is made to be hard."""
    print("\nhostile text: times as long for twice the text, the worst of three doublings (target: at most 2.3)")
    for name, piece in HOSTILE.items():
        times: list[float] = []
        for size in (15_000, 30_000, 60_000, 120_000):
            masker = Masker(scan_budget=10_000_000)
            text = (piece * (size // len(piece) + 1))[:size]
            best = min(_once(masker, text + str(number)) for number in range(max(3, rounds // 4)))
            times.append(best)
        worst = max(after / before for before, after in pairwise(times))
        print(f"  {name:<34}{worst:8.2f}")


def _once(masker: Masker, text: str) -> float:
    begin = time.thread_time_ns()
    masker.mask_text(text)
    return time.thread_time_ns() - begin


def fresh_text(rounds: int) -> None:
    """Print what text costs that no cache has seen, and what the budget makes of a large one."""
    draw = random.Random(7)
    words = [
        "order",
        "shipped",
        "to",
        "customer",
        "after",
        "3",
        "days,",
        "status=200",
        "path=/a/b",
        "see",
        "https://x/y",
    ]
    print("\nfresh text: microseconds, and nanoseconds a byte")
    for size in (100, 1_000, 10_000, 100_000):
        masker = Masker()
        times: list[float] = []
        for _ in range(rounds):
            text = " ".join(f"{draw.choice(words)}{draw.randrange(100)}" for _ in range(size // 8))[:size]
            start = time.perf_counter_ns()
            masker.mask_text(text)
            times.append((time.perf_counter_ns() - start) / 1000)
        middle = statistics.median(times)
        print(f"  {size:>7} bytes {middle:10.1f} {middle * 1000 / size:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds; its numbers mean little")
    quick = parser.parse_args().quick
    rounds, size = (5, 100) if quick else (41, 400)
    missing = [name for name in PEERS if imported(name.replace("-", "_")) is None]
    if missing:
        print(f"left out, because not installed: pip install {' '.join(missing)}")
    for kind in TARGETS:
        compare(kind, rounds, size)
    switched_off(rounds, 20_000)
    categories(rounds, 2_000)
    fresh_text(rounds)
    hostile(rounds)


if __name__ == "__main__":
    main()
