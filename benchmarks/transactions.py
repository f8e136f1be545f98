"""What a transaction costs, beside psycopg alone and beside other layers: in threads and in tasks, near and far.

    python benchmarks/transactions.py            about six minutes
    python benchmarks/transactions.py --quick    a smoke test, below 25 seconds

What it costs to be seen stands in tables of its own: one SELECT by `run()` while nobody listens, with a `Metrics`
attached, with one that writes for other processes to read, with a log at INFO, and with a log and the first.

A transaction is one SELECT by key, or that and an UPDATE of the row; the latter also by 16 workers at once. `near` is
a Unix socket, `far` the same server behind a proxy that adds 2 ms to each round trip. The proxy is a process of its
own and serves all alike; what it costs by itself is printed. Round trips are counted there, at the wire, with
connections and statements warm.

Everything runs in one process, in a new random order each round. Each line has the median, its ratio to the raw
pool's median, and in brackets the quartiles of the ratios within one round. "raw pool again" is the A/A control:
where it differs from 1.00 the machine was not steady. The server is our own unless RELIAKIT_DSN names another.

Near, the processor time that client and server take together is measured too, where the system tells it: other
programs on the machine do not count there, so it is the figure to look at while there are any.

Client and server share one core unless told otherwise. On two, the system wakes a sleeping core for each message,
which costs more than the transaction and varies. On a machine with two cores that was not idle, the middle half of
the raw pool's own times spanned 6, 14 and 61 % of their median in three runs on one core, 22 to 74 % on a core each,
and 75 to 114 % where the system chose. One core is also the hardest comparison: only work is measured, and none of
it can hide behind waiting.
"""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from interleave import interleave, python, report
from transaction_cases import RAW, ROWS, WORKERS, Tasks, Threads

from reliakit import Metrics, configure_logging
from reliakit.testing import EmbeddedPostgres, FaultProxy

ROUND_TRIP = 0.002
COLOURS = {"sync": Threads, "async": Tasks}
TARGETS = {"sync": 1.20, "async": 1.30}
WHERE = {
    "one": "client and server on one core",
    "two": "client and server on a core each",
    "free": "client and server on any core",
}
# Rounds, and transactions in a round: of each variant, and of each of its workers.
FULL = {"near": (101, 40), "far": (31, 6), "near, crowded": (15, 40), "far, crowded": (9, 10)}
QUICK = {"near": (5, 10), "far": (2, 2), "near, crowded": (2, 3), "far, crowded": (2, 1)}


class Far:
    """The server behind a proxy, which has a process of its own so as not to compete for the interpreter's lock."""

    def __init__(self, dsn: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(dsn, theirs), daemon=True)
        self._process.start()
        self.dsn: str = self._pipe.recv()

    def delay(self, seconds: float) -> None:
        """Add so much to each round trip from now on."""
        self._pipe.send(seconds)
        self._pipe.recv()

    def round_trips(self) -> int:
        """Return how many there have been."""
        self._pipe.send(None)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()


def _serve(dsn: str, pipe: Connection) -> None:
    with FaultProxy(dsn) as proxy:
        pipe.send(proxy.dsn())
        while True:
            try:
                seconds = pipe.recv()
            except EOFError:
                return
            if seconds is not None:
                proxy.heal()
                # All of it on the way back: two timers would be twice as inexact.
                proxy.latency(seconds, direction="to_client")
            pipe.send(proxy.stats().round_trips)


def counted(cases: Threads | Tasks, far: Far) -> dict[str, float]:
    """Return the round trips of one transaction, by variant."""
    times, trips = 20, {}
    for name, one in cases.ones.items():
        cases.repeat(one, times)
        before = far.round_trips()
        cases.repeat(one, times)
        trips[name] = (far.round_trips() - before) / times
    return trips


class Passing:
    """A watch for the time that passes."""

    def start(self) -> None:
        self._began = time.perf_counter_ns()

    def stop(self) -> int:
        """Return the nanoseconds since it was started."""
        return time.perf_counter_ns() - self._began


class Working:
    """A watch for the processor time that this process and the server's connections take.

    It stands still while other programs have the core.
    """

    def __init__(self, dsn: str) -> None:
        mine = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with psycopg.connect(dsn) as connection:
            self._spent = {Path(f"/proc/{pid}/schedstat"): 0 for (pid,) in connection.execute(mine)}

    def start(self) -> None:
        self._server = self._of_the_server()
        self._own = time.process_time_ns()

    def stop(self) -> int:
        """Return the nanoseconds since it was started."""
        own = time.process_time_ns() - self._own
        return own + self._of_the_server() - self._server

    def _of_the_server(self) -> int:
        for connection in self._spent:
            with suppress(OSError):  # closed since, and so at rest
                self._spent[connection] = int(connection.read_text("ascii").split()[0])
        return sum(self._spent.values())


def one_by_one(cases: Threads | Tasks, rounds: int, batch: int, watch: Passing | Working) -> dict[str, list[float]]:
    """Return microseconds a transaction, by variant."""

    def taking(one: Callable[[int], object]) -> Callable[[], float]:
        def sample() -> float:
            watch.start()
            cases.repeat(one, batch)
            return watch.stop() / batch / 1000

        return sample

    for one in cases.ones.values():
        cases.repeat(one, batch)
    return interleave({name: taking(one) for name, one in cases.ones.items()}, rounds)


ALONE = "reliakit run()"


@contextmanager
def listening(*, metrics: Metrics | None = None, logs: bool = False) -> Iterator[None]:
    """Attach metrics, and log to nowhere as in production, or do neither."""
    with ExitStack() as stack:
        if metrics is not None:
            stack.enter_context(metrics)
        if logs:
            nowhere = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(configure_logging(service="bench", env="production", stream=nowhere))
        yield


@cache
def both_kinds() -> tuple[Metrics, Metrics]:
    """Return metrics of this process alone, and metrics in files that other processes read."""
    alone, directory = Metrics(), TemporaryDirectory()
    atexit.register(directory.cleanup)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory.name
    return alone, Metrics()


def listened_to(cases: Threads | Tasks, rounds: int, batch: int, watch: Passing | Working) -> dict[str, list[float]]:
    """Return microseconds a transaction of `run()`, by who listens."""
    one, (metrics, in_files) = cases.ones[ALONE], both_kinds()
    listeners: dict[str, dict[str, Any]] = {
        ALONE: {},
        "reliakit run() again (A/A)": {},
        "with Metrics": {"metrics": metrics},
        "with Metrics in files": {"metrics": in_files},
        "with a log at INFO": {"logs": True},
        "with both": {"metrics": metrics, "logs": True},
    }

    def taking(who: dict[str, Any]) -> Callable[[], float]:
        def sample() -> float:
            with listening(**who):
                cases.repeat(one, 5)  # to meet the first one of its kind is another matter
                watch.start()
                cases.repeat(one, batch)
                return watch.stop() / batch / 1000

        return sample

    return interleave({name: taking(who) for name, who in listeners.items()}, rounds)


def crowded(cases: Threads | Tasks, rounds: int, each: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the 95th percentile of a transaction while many run at once, in microseconds, and asides, by variant."""
    slowest: dict[str, list[float]] = {name: [] for name in cases.ones}

    def taking(name: str, one: Callable[[int], object]) -> Callable[[], float]:
        def sample() -> float:
            taken = cases.crowd(one, each)
            slowest[name].append(max(taken))
            return statistics.quantiles(taken, n=20, method="inclusive")[-1] * 1e6

        return sample

    for one in cases.ones.values():
        cases.crowd(one, each)
    taken = interleave({name: taking(name, one) for name, one in cases.ones.items()}, rounds)
    # A pool that does not serve in order has a good percentile and a few that starve.
    return taken, {name: f"slowest {max(times) * 1e6:.0f}" for name, times in slowest.items()}


def target(name: str, colour: str, where: str) -> str:
    """Return what a variant's ratio shall be, as it is printed."""
    if "pipeline" in name:  # trades work for a round trip, so it is for servers that are far away
        return ", target < 1.00" if "reliakit" in name and where == "far" else ""
    return f", target <= {TARGETS[colour]:.2f}" if "reliakit" in name else ""


def measure(
    colour: str, dsn: str, far: Far, *, write: bool, sizes: dict[str, tuple[int, int]], peers: bool, local: bool
) -> None:
    """Print the tables of one colour and one kind of statements."""
    kind = f"{colour}, {'SELECT + UPDATE' if write else 'SELECT'}"
    far.delay(0.0)
    with (
        closing(COLOURS[colour](dsn, write=write, peers=peers)) as near,
        closing(COLOURS[colour](far.dsn, write=write, peers=peers)) as distant,
    ):
        trips = counted(distant, far)
        far.delay(ROUND_TRIP)
        for where, cases in (("near", near), ("far", distant)):
            asides = {name: f"{count:.3g} round trips{target(name, colour, where)}" for name, count in trips.items()}
            rounds, batch = sizes[where]
            title = f"{kind}, {where} ({rounds} rounds of {batch}; us a transaction, ratio to {RAW!r})"
            report(title, one_by_one(cases, rounds, batch, Passing()), RAW, asides)
            if cases is near and local:
                title = f"{kind}, {where} ({rounds} rounds of {batch}; us of processor time on both sides)"
                report(title, one_by_one(cases, rounds, batch, Working(dsn)), RAW, asides)
            if cases is near and not write:
                watch = Working(dsn) if local else Passing()
                what = "of processor time on both sides" if local else "a transaction"
                title = f"{kind}, {where}, by who listens ({rounds} rounds of {batch}; us {what}, ratio to {ALONE!r})"
                report(title, listened_to(cases, rounds, batch, watch), ALONE)
            if write:
                rounds, batch = sizes[f"{where}, crowded"]
                title = f"{kind}, {where}, {WORKERS} workers ({rounds} rounds of {batch}; us, 95th percentile)"
                taken, slowest = crowded(cases, rounds, batch)
                report(title, taken, RAW, slowest)


def price_of_the_proxy(dsn: str, far: Far) -> None:
    """Print what the proxy costs without its delay, which is in every far figure."""
    far.delay(0.0)
    with (
        closing(Threads(dsn, write=False, peers=False)) as near,
        closing(Threads(far.dsn, write=False, peers=False)) as distant,
    ):
        alone, proxied = (statistics.median(one_by_one(cases, 5, 20, Passing())[RAW]) for cases in (near, distant))
    each = (proxied - alone) / 3
    print(f"far adds {ROUND_TRIP * 1000:g} ms to a round trip, and the proxy itself about {each:.0f} us")


def pin(cores: str) -> Callable[[], None]:
    """Put what is started from now on, the server, on its core, and return what puts this process on its own."""
    if cores == "free" or not hasattr(os, "sched_setaffinity"):
        return lambda: None
    allowed = sorted(os.sched_getaffinity(0))
    mine, theirs = allowed[0], allowed[0] if cores == "one" else allowed[-1]
    os.sched_setaffinity(0, {theirs})
    return lambda: os.sched_setaffinity(0, {mine})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds only")
    parser.add_argument("--no-peers", action="store_true", help="psycopg and reliakit only")
    parser.add_argument(
        "--cores",
        choices=WHERE,
        default="one",
        help="client and server on one core, on one each, or wherever the system puts them",
    )
    parser.add_argument("--only", choices=COLOURS, help="threads or tasks only")
    arguments = parser.parse_args()
    pin_client = pin(arguments.cores)
    # Vacuum would fall on some variants and not on others; the table is small enough to do without.
    with EmbeddedPostgres(settings={"autovacuum": False}) as server:
        dsn = server.database("bench")
        with psycopg.connect(dsn, autocommit=True) as setup:
            setup.execute("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL) WITH (fillfactor = 40)")
            setup.execute("INSERT INTO t SELECT i, i FROM generate_series(0, %s) i", (ROWS - 1,))
            setup.execute("ANALYZE t")
        with closing(Far(dsn)) as far:
            pin_client()
            psycopg_built = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__})"
            print(f"{python()}, PostgreSQL {server.version or ''}, {psycopg_built}, {WHERE[arguments.cores]}")
            price_of_the_proxy(dsn, far)
            for colour in [arguments.only] if arguments.only else COLOURS:
                for write in (False, True):
                    measure(
                        colour,
                        dsn,
                        far,
                        write=write,
                        sizes=QUICK if arguments.quick else FULL,
                        peers=not arguments.no_peers,
                        local=server.folder is not None and Path("/proc/self/schedstat").exists(),
                    )


if __name__ == "__main__":
    main()
