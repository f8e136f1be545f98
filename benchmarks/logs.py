"""Masked logging beside loggers that mask nothing: 12 fields, clean and with secrets, and a level that is off.

Every case writes the same records to a stream that throws them away. Cases run in small rounds, in random order, in
one process; python-json-logger with orjson runs a second time as the control, whose ratio to the first shows the
noise. Ids, addresses and tokens are new in every record, so no cache can answer for them. Printed are medians and
ratios of medians to python-json-logger with the same encoder.

    python benchmarks/logs.py [--quick]

(Not called logging.py: scripts of this folder would import it in place of the standard library's.)
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from reliakit.logs import Masker, configure_logging, get_logger

try:
    from pythonjsonlogger.orjson import OrjsonFormatter
except Exception:
    OrjsonFormatter = None

Fields = dict[str, object]
Call = Callable[[Fields], None]
TARGETS = {"clean": 2.0, "secrets": 3.0}


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


def structlog_call(*, fast: bool) -> Call | None:
    try:
        import structlog
    except ImportError:
        return None
    dumps = None
    if fast:
        try:
            import orjson
        except ImportError:
            return None
        dumps = lambda value, **_: orjson.dumps(value, default=str).decode()  # noqa: E731
    renderer = structlog.processors.JSONRenderer(dumps) if dumps else structlog.processors.JSONRenderer(default=str)
    log = structlog.wrap_logger(
        structlog.PrintLogger(Nowhere()),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), renderer],
    ).bind()
    return lambda record: log.info("order created", **record)


def loguru_call() -> Call | None:
    try:
        from loguru import logger
    except ImportError:
        return None
    logger.remove()
    logger.add(Nowhere(), serialize=True, level="INFO")
    return lambda record: logger.bind(**record).info("order created")


def cases() -> dict[str, Call]:
    """Return what is compared, the yardstick first."""
    encoder = OrjsonFormatter or JsonFormatter
    ours, standard = get_logger("ours"), logging.getLogger("standard")
    found: dict[str, Call | None] = {
        "python-json-logger": plain(encoder(timestamp=True), "a"),
        "python-json-logger (again)": plain(encoder(timestamp=True), "b"),
        "reliakit get_logger, masked": lambda record: ours.info("order created", **record),
        "reliakit, plain logger, masked": lambda record: standard.info("order created", extra=record),
        "python-json-logger, json": plain(JsonFormatter(timestamp=True), "c") if OrjsonFormatter else None,
        "structlog, orjson": structlog_call(fast=True),
        "structlog, json": structlog_call(fast=False),
        "loguru, serialize": loguru_call(),
    }
    return {name: call for name, call in found.items() if call is not None}


def one_round(call: Call, records: list[Fields]) -> float:
    """Return microseconds a record."""
    start = time.perf_counter_ns()
    for record in records:
        call(record)
    return (time.perf_counter_ns() - start) / len(records) / 1000


@contextmanager
def logging_to_nowhere() -> Iterator[None]:
    with configure_logging(service="bench", env="production", level="INFO", stream=Nowhere()):
        yield


def compare(kind: str, rounds: int, size: int) -> bool:
    """Print the table of one kind of record; return whether the target is met."""
    draw = random.Random(7)
    calls = cases()
    times: dict[str, list[float]] = {name: [] for name in calls}
    with logging_to_nowhere():
        for number in range(rounds + 2):
            order = list(calls.items())
            draw.shuffle(order)
            for name, call in order:
                taken = one_round(call, [fields(draw, kind) for _ in range(size)])
                if number >= 2:  # the first rounds warm up
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["python-json-logger"]
    print(f"\n{kind}: microseconds a record, and the ratio to python-json-logger")
    for name, value in medians.items():
        print(f"  {name:<34}{value:8.1f} {value / base:6.2f}")
    ratio = medians["reliakit get_logger, masked"] / base
    print(f"  target: at most {TARGETS[kind]:.1f}, is {ratio:.2f}")
    return ratio <= TARGETS[kind]


def switched_off(rounds: int, size: int) -> None:
    """Print what a call below the level costs."""
    ours, standard = get_logger("off"), logging.getLogger("off")
    calls: dict[str, Callable[[], None]] = {
        "reliakit, one field": lambda: ours.debug("x", user_id=7),
        "reliakit, no field": lambda: ours.debug("x"),
        "logging, no field": lambda: standard.debug("x"),
        "an empty function": lambda: None,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    draw = random.Random(7)
    with logging_to_nowhere():
        for _ in range(rounds):
            for name, call in draw.sample(list(calls.items()), len(calls)):
                start = time.perf_counter_ns()
                for _ in range(size):
                    call()
                times[name].append((time.perf_counter_ns() - start) / size)
    print("\na level that is off: nanoseconds a call, with the loop around it")
    for name, values in times.items():
        print(f"  {name:<34}{statistics.median(values):8.0f}")


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
    met = [compare(kind, rounds, size) for kind in TARGETS]
    switched_off(rounds, 20_000)
    fresh_text(rounds)
    print("\ntargets met" if all(met) else "\na target is missed")


if __name__ == "__main__":
    main()
