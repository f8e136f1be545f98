"""Every error is tracked once, in groups that open, resolve and come back."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import psycopg
import pytest
from garbage import abandon, in_time
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from reliakit import (
    AsyncDatabase,
    CircuitBreaker,
    ConfigurationError,
    Database,
    ErrorTracker,
    Masker,
    Metrics,
    classify,
    configure_logging,
    get_logger,
    log_context,
    request_context,
    subscribe,
)
from reliakit.core.events import ErrorOpened, ErrorResolved, ErrorSeen, ErrorUntracked
from reliakit.core.spine import Emitter
from reliakit.core.tracking import report
from reliakit.logs.groups import ErrorGroup, ErrorSample, Groups, Instant, Sighting
from reliakit.testing import ManualClock, RecordingListener
from reliakit.web.asgi import protect
from reliakit.web.wsgi import protect as protect_wsgi

emitter = Emitter("test")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tracker(clock: ManualClock) -> Iterator[ErrorTracker]:
    with ErrorTracker(clock=clock, quiet=600) as tracker:
        yield tracker


def fail(kind: type[Exception] = ValueError, message: str = "no") -> Exception:
    try:
        raise kind(message)
    except kind as error:
        return error


def see(error: Exception | None = None, **fields: Any) -> str:
    error = error or fail()
    report(emitter, error, **fields)
    return classify(error).fingerprint


def only(tracker: ErrorTracker) -> ErrorGroup:
    (group,) = tracker.snapshot()
    return group


def test_errors_with_one_cause_are_one_group(tracker: ErrorTracker, clock: ManualClock) -> None:
    clock.set_wall(1_000.0)
    fingerprint = see(fail(message="one"), service="shop")
    clock.advance(5)
    see(fail(message="two"))
    group = only(tracker)
    assert (group.fingerprint, group.error_type, group.category, group.retry) == (
        fingerprint,
        "ValueError",
        "validation",
        "never",
    )
    assert (group.count, group.state, group.service, group.sqlstate) == (2, "open", "shop", None)
    assert (group.first_seen, group.last_seen) == (1_000.0, 1_005.0)
    assert (group.last_seen_at - group.first_seen_at, group.opened_at) == (5.0, group.first_seen_at)
    assert group.sample.message == "one"
    assert "raise kind(message)" in group.sample.stack
    assert tracker.total == 2


def test_errors_with_two_causes_are_two_groups_the_last_seen_first(tracker: ErrorTracker, clock: ManualClock) -> None:
    see(fail(ValueError))
    clock.advance(1)
    see(fail(KeyError))
    assert [group.error_type for group in tracker.snapshot()] == ["KeyError", "ValueError"]


def test_the_sqlstate_stands_with_the_group(tracker: ErrorTracker) -> None:
    see(fail(psycopg.errors.UniqueViolation))
    group = only(tracker)
    assert (group.sqlstate, group.category) == ("23505", "conflict")


def test_the_sample_is_masked_its_causes_notes_and_stack_too(tracker: ErrorTracker) -> None:
    try:
        try:
            raise KeyError("mail bob@example.com")
        except KeyError as cause:
            error = ValueError("password=hunter22")
            error.add_note("token: abcdef123456")
            raise error from cause
    except ValueError as error:
        report(emitter, error)
    sample = only(tracker).sample
    assert sample.message == "password=***"
    assert sample.causes == ("KeyError: 'mail ***'",)
    for secret in ("hunter22", "abcdef123456", "bob@example.com"):
        assert secret not in repr(tracker.snapshot())


def test_the_trackers_own_masker_masks() -> None:
    masker = Masker()
    masker.register_secret("open sesame")
    with ErrorTracker(masker=masker) as tracker:
        see(fail(message="said open sesame"))
        assert only(tracker).sample.message == "said ***"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("never")


def test_an_error_that_cannot_be_shown_is_counted(tracker: ErrorTracker) -> None:
    see(fail(Unprintable))
    assert only(tracker).count == 1
    assert only(tracker).sample.message == "[unprintable Unprintable]"


def test_a_sample_that_cannot_be_masked_is_withheld(tracker: ErrorTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no masking today")

    monkeypatch.setattr("reliakit.logs.tracker.error_fields", refuse)
    see(fail(message="password=hunter22"))
    assert only(tracker).sample == ErrorSample("[masking failed]", "[masking failed]")


def test_the_last_five_requests_are_known_newest_last_and_each_once(tracker: ErrorTracker) -> None:
    for number in (1, 2, 3, 4, 5, 3, 6):
        with request_context(request_id=f"r-{number}"):
            see()
    with log_context(request_id="r-7"):
        see()
    see()
    assert only(tracker).request_ids == ("r-4", "r-5", "r-3", "r-6", "r-7")


def test_a_request_id_that_is_a_secret_is_masked(tracker: ErrorTracker) -> None:
    with request_context(request_id="bob@example.com"):
        see()
    assert only(tracker).request_ids == ("***",)


def test_a_group_that_is_quiet_for_long_is_resolved(tracker: ErrorTracker, clock: ManualClock) -> None:
    see()
    clock.advance(100)
    see()
    clock.advance(599)
    assert only(tracker).state == "open"
    clock.advance(1)
    group = only(tracker)
    assert (group.state, group.time_to_resolution) == ("resolved", 700.0)


def test_the_time_to_resolution_does_not_depend_on_when_somebody_looks(
    tracker: ErrorTracker, clock: ManualClock
) -> None:
    see()
    clock.advance(10_000)
    assert only(tracker).time_to_resolution == 600.0


def test_a_group_is_resolved_by_hand_once(tracker: ErrorTracker, clock: ManualClock) -> None:
    fingerprint = see()
    clock.advance(42)
    assert tracker.resolve(fingerprint)
    assert not tracker.resolve(fingerprint)
    assert not tracker.resolve("unknown")
    group = only(tracker)
    assert (group.state, group.time_to_resolution, group.count) == ("resolved", 42.0, 1)


def test_a_resolved_group_opens_again_with_a_new_sample(tracker: ErrorTracker, clock: ManualClock) -> None:
    fingerprint = see(fail(message="first"))
    tracker.resolve(fingerprint)
    clock.advance(7)
    see(fail(message="again"))
    group = only(tracker)
    assert (group.state, group.count, group.reopened, group.time_to_resolution) == ("open", 2, 1, None)
    assert (group.opened_at - group.first_seen_at, group.sample.message) == (7.0, "again")
    clock.advance(3)
    tracker.resolve(fingerprint)
    assert only(tracker).time_to_resolution == 3.0


def test_an_error_after_a_long_silence_that_nobody_looked_at_opens_again(
    tracker: ErrorTracker, clock: ManualClock
) -> None:
    see(fail(message="first"))
    clock.advance(601)
    see(fail(message="again"))
    group = only(tracker)
    assert (group.state, group.reopened, group.sample.message) == ("open", 1, "again")


def test_without_quiet_only_a_call_resolves(clock: ManualClock) -> None:
    with ErrorTracker(clock=clock, quiet=None) as tracker:
        fingerprint = see()
        clock.advance(1e6)
        assert only(tracker).state == "open"
        assert tracker.resolve(fingerprint)
        assert only(tracker).time_to_resolution == 1e6


KINDS = [type(f"Kind{number}", (Exception,), {}) for number in range(20)]


def test_memory_is_bounded_and_the_sum_exact(clock: ManualClock) -> None:
    with ErrorTracker(clock=clock, max_groups=3) as tracker:
        for kind in KINDS:
            for _ in range(2):
                see(fail(kind))
        groups = {group.error_type: group for group in tracker.snapshot()}
        assert set(groups) == {"Kind0", "Kind1", "Kind2", "_other"}
        assert groups["_other"].count == 34
        assert groups["_other"].fingerprint == "_other"
        assert sum(group.count for group in groups.values()) == tracker.total == 40


def test_resolved_groups_give_way_to_new_ones_and_their_counts_are_kept(clock: ManualClock) -> None:
    with ErrorTracker(clock=clock, max_groups=2) as tracker:
        first, second = see(fail(KINDS[0])), see(fail(KINDS[1]))
        tracker.resolve(second)
        tracker.resolve(first)
        see(fail(KINDS[2]))
        groups = {group.error_type: group for group in tracker.snapshot()}
        assert set(groups) == {"Kind0", "Kind2", "_other"}
        assert (groups["_other"].state, groups["_other"].count) == ("resolved", 1)


def test_threads_lose_no_count(tracker: ErrorTracker) -> None:
    def work() -> None:
        for number in range(200):
            see(fail(KINDS[number % 4]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.total == 1600
    assert [group.count for group in tracker.snapshot()] == [400] * 4


def test_no_exception_is_kept(tracker: ErrorTracker) -> None:
    error = fail(KINDS[0])
    see(error)
    gone = weakref.ref(error)
    del error
    gc.collect()
    assert gone() is None
    assert only(tracker).count == 1


def test_garbage_collected_inside_may_report_an_error(tracker: ErrorTracker) -> None:
    class Reporting(ManualClock):
        def time(self) -> float:
            gc.collect()
            return super().time()

    def begin() -> Iterator[None]:
        try:
            yield
        finally:
            see(fail(KeyError))

    with ErrorTracker(clock=Reporting()) as other:
        abandon(begin)
        in_time(lambda: see(fail(ValueError)))
        assert {group.error_type for group in in_time(other.snapshot)} == {"KeyError", "ValueError"}


class MeddlingKey(str):
    """A fingerprint that lets an error of its kind come in between whenever a table looks it up, as garbage may."""

    __slots__ = ("meddle",)

    def __hash__(self) -> int:
        self.meddle()
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("lookup", range(1, 9))
def test_an_error_that_comes_in_between_two_steps_is_counted_too(most: int, lookup: int) -> None:
    groups = Groups(most, 10.0)
    sample = ErrorSample("m", "s")

    def see_one(fingerprint: str, at: float) -> None:
        groups.see(Sighting(fingerprint, "E", "data", "never", None, None, None, sample), Instant(at, at))

    for at in range(0, 200, 7):
        for fingerprint in ("a", "b", "c"):
            lookups = iter(range(1, 100))

            def meddle(fingerprint: str = fingerprint, at: int = at, lookups: Iterator[int] = lookups) -> None:
                if next(lookups) == lookup:
                    see_one(fingerprint, at)

            key = MeddlingKey(fingerprint)
            key.meddle = meddle
            see_one(key, at)
    assert groups.total == sum(group.count for group in groups.shown())


# Beside the others


def test_attaching_twice_counts_once(tracker: ErrorTracker) -> None:
    tracker.attach()
    see()
    assert only(tracker).count == 1
    tracker.close()
    tracker.close()
    see()
    assert only(tracker).count == 1


def test_a_tracker_listens_to_one_component_alone() -> None:
    tracker = ErrorTracker()
    report(Emitter("mine", (tracker,)), fail())
    report(Emitter("other"), fail())
    assert only(tracker).count == 1


def test_openings_and_resolutions_are_told(tracker: ErrorTracker, clock: ManualClock) -> None:
    heard = RecordingListener()
    with subscribe(heard, ErrorOpened, ErrorResolved):
        fingerprint = see(service="shop")
        see()
        clock.advance(600)
        see()
        clock.advance(5)
        tracker.resolve(fingerprint)
    told = [
        (type(event).__name__, getattr(event, "reopened", None), getattr(event, "cause", None)) for event in heard
    ]
    assert told == [
        ("ErrorOpened", False, None),
        ("ErrorResolved", None, "quiet"),
        ("ErrorOpened", True, None),
        ("ErrorResolved", None, "call"),
    ]
    assert [event.seconds for event in heard.of(ErrorResolved)] == [600.0, 5.0]
    assert {event.fingerprint for event in heard} == {fingerprint}
    assert heard.of(ErrorOpened)[0].service == "shop"


def verdicts(metrics: Metrics) -> dict[str, tuple[str, float | None]]:
    return {verdict.objective: (verdict.verdict, verdict.value) for verdict in metrics.slo()}


def test_metrics_learn_the_age_of_the_oldest_open_error_when_they_are_read(
    tracker: ErrorTracker, clock: ManualClock
) -> None:
    with Metrics(clock=clock) as metrics:
        assert verdicts(metrics)["error_resolution"] == ("met", 0.0)
        for _ in range(8):
            see()
            clock.advance(500)
        assert verdicts(metrics)["error_resolution"] == ("breached", 4000.0)
        assert b"reliakit_error_oldest_open_seconds 4000" in metrics.render().body
        assert b"reliakit_error_open 1" in metrics.render().body
        clock.advance(100)
        assert verdicts(metrics)["error_resolution"] == ("met", 0.0)
        assert b"reliakit_error_open 0" in metrics.render().body
        assert b"reliakit_error_resolution_seconds_sum 4100" in metrics.render().body


def test_every_error_that_is_seen_is_tracked(tracker: ErrorTracker, clock: ManualClock) -> None:
    with Metrics(clock=clock) as metrics:
        for kind in KINDS * 2:
            see(fail(kind))
        assert verdicts(metrics)["errors_tracked"] == ("met", 1.0)
        assert tracker.total == 40


def test_an_error_that_cannot_be_tracked_breaches_the_objective(
    tracker: ErrorTracker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Groups, "see", refuse)
    heard = RecordingListener()
    with Metrics(clock=clock) as metrics, subscribe(heard, ErrorUntracked):
        for _ in range(40):
            see()
        assert verdicts(metrics)["errors_tracked"][0] == "breached"
    assert {event.reason for event in heard} == {"MemoryError"}


def test_a_closed_tracker_has_nothing_open(clock: ManualClock) -> None:
    with Metrics(clock=clock) as metrics:
        with ErrorTracker(clock=clock, quiet=None) as tracker:
            see()
            clock.advance(5000)
            assert verdicts(metrics)["error_resolution"][0] == "breached"
        assert verdicts(metrics)["error_resolution"] == ("met", 0.0)
        assert only(tracker).state == "open"


def test_two_trackers_tell_the_older_error(clock: ManualClock) -> None:
    with (
        Metrics(clock=clock) as metrics,
        ErrorTracker(clock=clock, name="one"),
        ErrorTracker(clock=clock, name="two", quiet=None),
    ):
        see()
        clock.advance(5000)
        assert verdicts(metrics)["error_resolution"] == ("breached", 5000.0)


@pytest.mark.parametrize(
    "setting",
    [{"masker": "x"}, {"max_groups": 0}, {"quiet": 0}, {"quiet": float("nan")}, {"name": ""}, {"clock": 7}],
)
def test_wrong_settings_name_their_argument(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(setting))):
        ErrorTracker(**setting)


def test_repr_shows_settings_and_state(tracker: ErrorTracker) -> None:
    see()
    assert repr(tracker) == "<ErrorTracker 'errors', attached, max_groups=1000, quiet=600 s, total=1>"
    assert repr(ErrorTracker(quiet=None)) == (
        "<ErrorTracker 'errors', not attached, max_groups=1000, quiet=never, total=0>"
    )


# From end to end


class Ledger:
    """What every listener makes of one failing request."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.metrics = Metrics()
        self.tracker = ErrorTracker()
        self.seen = RecordingListener()

    def check(self, kind: str, sqlstate: str | None) -> None:
        """Check that the error was counted once by all of them, and that they agree."""
        (event,) = self.seen.of(ErrorSeen)
        group = only(self.tracker)
        assert (group.count, group.error_type, group.sqlstate) == (1, kind, sqlstate)
        assert group.fingerprint == event.fingerprint
        assert group.request_ids == ("r-1",)
        counted = [
            line
            for line in self.metrics.render().body.decode().splitlines()
            if line.startswith("reliakit_error_total{")
        ]
        assert [line.rpartition(" ")[2] for line in counted if f'type="{kind}"' in line] == ["1.0"]
        logged = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        assert {line["error"]["fingerprint"] for line in logged if "error" in line} == {group.fingerprint}
        assert "hunter22" not in self.stream.getvalue() + repr(self.tracker.snapshot())


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    ledger = Ledger()
    with (
        configure_logging(service="shop", env="test", level="DEBUG", stream=ledger.stream),
        ledger.metrics,
        ledger.tracker,
        subscribe(ledger.seen, ErrorSeen),
    ):
        yield ledger


def test_an_error_seen_by_transaction_breaker_logger_and_web_edge_counts_once(
    ledger: Ledger, reliakit_dsn: str
) -> None:
    breaker = CircuitBreaker("mail")
    log = get_logger("shop")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        try:
            with breaker, db.transaction() as tx:
                tx.execute("SELECT nope -- password=hunter22")
        except psycopg.Error as error:
            log.exception("Failed once")
            log.error("Failed twice", error=error)
            logging.getLogger("plain").warning("Failed thrice", exc_info=True)
            raise
        return []

    with Database(reliakit_dsn, name="shop") as db:
        served = protect_wsgi(app, service="shop")
        environ: dict[str, Any] = {"HTTP_X_REQUEST_ID": "r-1"}
        setup_testing_defaults(environ)
        body = served(environ, lambda *_: lambda _: None)
        assert b"500" in b"".join(body)
        body.close()  # type: ignore[attr-defined]  # as a server does
    ledger.check("UndefinedColumn", "42703")


@pytest.mark.anyio
async def test_it_counts_once_in_tasks_too(ledger: Ledger, reliakit_dsn: str) -> None:
    breaker = CircuitBreaker("mail")
    log = get_logger("shop")

    async def work(db: AsyncDatabase) -> None:
        async with breaker, db.transaction() as tx:
            await tx.execute("SELECT nope -- password=hunter22")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.gather(work(db))
        except psycopg.Error:
            log.exception("Failed")
            raise

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[dict[str, Any]] = []
    async with AsyncDatabase(reliakit_dsn, name="shop") as db:
        headers = [(b"x-request-id", b"r-1")]
        await protect(app, service="shop")(
            {"type": "http", "method": "GET", "path": "/", "headers": headers}, receive, send
        )
    assert sent[0]["status"] == 500
    ledger.check("UndefinedColumn", "42703")


# Against a naive model

MOST, QUIET = 3, 10.0
FINGERPRINTS = [f"f{number}" for number in range(6)]


class NaiveGroup:
    def __init__(self, at: float) -> None:
        self.count = 0
        self.opened = self.first = self.last = at
        self.resolved_at: float | None = None
        self.order = 0
        self.reopened = 0
        self.took: float | None = None


class GroupsMachine(RuleBasedStateMachine):
    """The groups beside a model that looks at everything on every step."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.groups = Groups(MOST, QUIET)
        self.model: dict[str, NaiveGroup] = {}
        self.seen = 0
        self.steps = 0

    def instant(self) -> Instant:
        return Instant(self.now, 1e9 + self.now)

    def sweep(self) -> None:
        due = [group for group in self.model.values() if group.took is None and group.last + QUIET <= self.now]
        for group in sorted(due, key=lambda group: (group.last, group.order)):
            self.close(group, group.last + QUIET)

    def close(self, group: NaiveGroup, at: float) -> None:
        self.steps += 1
        group.resolved_at, group.order, group.took = at, self.steps, at - group.opened

    @rule(fingerprint=st.sampled_from(FINGERPRINTS))
    def see(self, fingerprint: str) -> None:
        sample = ErrorSample("m", "s")
        self.groups.see(Sighting(fingerprint, "E", "data", "never", None, None, None, sample), self.instant())
        self.sweep()
        self.seen += 1
        key = fingerprint
        if key not in self.model and len(self.model.keys() - {"_other"}) >= MOST:
            done = [(group.order, name) for name, group in self.model.items() if group.took is not None]
            gone = next((name for _, name in sorted(done) if name != "_other"), None)
            if gone is None:
                key = "_other"
            else:
                self.fold(self.model.pop(gone))
        group = self.model.get(key)
        if group is None:
            group = self.model[key] = NaiveGroup(self.now)
        elif group.took is not None:
            group.opened, group.took = self.now, None
            group.reopened += 1
        self.steps += 1
        group.count, group.last, group.order = group.count + 1, self.now, self.steps

    def fold(self, gone: NaiveGroup) -> None:
        other = self.model.get("_other")
        if other is None:
            other = self.model["_other"] = NaiveGroup(gone.last)
            other.opened, other.took, other.order = gone.opened, gone.took, 0
        other.count += gone.count
        other.first, other.last = min(other.first, gone.first), max(other.last, gone.last)

    @rule(seconds=st.sampled_from([0.0, 1.0, 5.0, 9.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(fingerprint=st.sampled_from([*FINGERPRINTS, "_other"]))
    def resolve(self, fingerprint: str) -> None:
        changes = self.groups.resolve(fingerprint, self.instant())
        self.sweep()
        group = self.model.get(fingerprint)
        expected = group is not None and group.took is None
        assert any(change.cause == "call" for change in changes) == expected
        if group is not None and expected:
            self.close(group, self.now)

    @rule()
    def look(self) -> None:
        self.groups.sweep(self.instant())
        self.sweep()

    @invariant()
    def agree(self) -> None:
        found = {
            group.fingerprint: (
                group.state,
                group.count,
                group.first_seen_at,
                group.last_seen_at,
                group.opened_at,
                group.reopened,
                group.time_to_resolution,
            )
            for group in self.groups.shown()
        }
        assert found == {
            name: (
                "open" if group.took is None else "resolved",
                group.count,
                group.first,
                group.last,
                group.opened,
                group.reopened,
                group.took,
            )
            for name, group in self.model.items()
        }
        assert sum(group.count for group in self.groups.shown()) == self.groups.total == self.seen
        ages = [self.now - group.opened for group in self.model.values() if group.took is None]
        assert self.groups.oldest(self.instant()) == (len(ages), max(ages, default=0.0))


GroupsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestGroups = GroupsMachine.TestCase
