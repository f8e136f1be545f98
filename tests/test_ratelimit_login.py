"""The guard for logins: what it lets through, what it tells, and that no name stands in its store."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from reliakit import ConfigurationError, LoginBlockedError, RateLimitedError, StoreError
from reliakit.core.events import SecurityNoticed, StoreFailed
from reliakit.ratelimit import LoginGuard
from reliakit.stores import MemoryStore
from reliakit.testing import ManualClock, RecordingListener
from reliakit.web import problem

HOME, OFFICE = "198.51.100.7", "203.0.113.9"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(start=1000.0)


@pytest.fixture
def guard(clock: ManualClock) -> LoginGuard:
    return LoginGuard(clock=clock)


def fail(guard: LoginGuard, account: str = "alice", source: str = OFFICE, device: str | None = None) -> int:
    with guard.attempt(account=account, source=source, device=device) as attempt:
        attempt.failure()
        return attempt.failures


def succeed(guard: LoginGuard, account: str = "alice", source: str = OFFICE, device: str | None = None) -> None:
    with guard.attempt(account=account, source=source, device=device) as attempt:
        attempt.success(7)


def wait_of(guard: LoginGuard, *whose: str | None) -> float | None:
    """Return how long an attempt is to wait, 0.0 for one that is let through."""
    try:
        fail(guard, *whose)  # type: ignore[arg-type]
    except LoginBlockedError as error:
        return error.retry_after
    return 0.0


def test_the_free_attempts_are_followed_by_waits_that_double_up_to_the_longest(clock: ManualClock) -> None:
    guard = LoginGuard(free_attempts=2, base_delay=1.0, max_delay=5.0, clock=clock)
    assert [fail(guard), fail(guard)] == [1, 2]
    waits = []
    for _ in range(5):
        waits.append(wait_of(guard))
        clock.advance(waits[-1] or 0)
        fail(guard)
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_defaults_are_five_attempts_then_a_second_and_a_quarter_of_an_hour_at_last(
    guard: LoginGuard, clock: ManualClock
) -> None:
    for number in range(1, 6):
        assert fail(guard) == number
    assert wait_of(guard) == 1.0
    for _ in range(15):
        clock.advance(guard.status(account="alice").retry_after or 0)
        fail(guard)
    assert wait_of(guard) == 900.0


def test_what_is_denied_does_not_make_the_wait_longer(guard: LoginGuard, clock: ManualClock) -> None:
    for _ in range(5):
        fail(guard)
    for _ in range(9):
        clock.advance(0.1)
        with pytest.raises(LoginBlockedError):
            fail(guard)
    clock.advance(0.1)
    assert fail(guard) == 6


def test_the_password_is_not_looked_at_when_the_attempt_is_refused(guard: LoginGuard) -> None:
    looked = 0

    def guess() -> None:
        nonlocal looked
        with guard.attempt(account="alice", source=OFFICE) as attempt:
            looked += 1
            attempt.failure()

    for _ in range(5):
        guess()
    for _ in range(5):
        with pytest.raises(RateLimitedError) as refused:
            guess()
        assert isinstance(refused.value, LoginBlockedError)
        assert (refused.value.name, refused.value.retry_after) == ("login", 1.0)
        assert refused.value.decision.retry_after == 1.0  # type: ignore[attr-defined]
    assert looked == 5


def test_guesses_in_parallel_get_exactly_the_free_attempts(guard: LoginGuard) -> None:
    looked: list[int] = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for round_ in range(5):
            try:
                with guard.attempt(account="alice", source=f"10.0.{number}.{round_}") as attempt:
                    looked.append(number)
                    attempt.failure()
            except LoginBlockedError:
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(looked) == 5


@pytest.mark.anyio
async def test_guesses_of_tasks_in_parallel_get_exactly_the_free_attempts(
    guard: LoginGuard, clock: ManualClock
) -> None:
    looked = 0

    async def guess() -> None:
        nonlocal looked
        async with guard.attempt(account="alice", source=OFFICE) as attempt:
            looked += 1
            await clock.asleep(0)
            attempt.failure()

    outcomes = await asyncio.gather(*(guess() for _ in range(100)), return_exceptions=True)
    assert looked == 5
    assert sum(isinstance(outcome, LoginBlockedError) for outcome in outcomes) == 95


def test_a_success_forgets_the_failures_of_account_and_pair(guard: LoginGuard) -> None:
    for _ in range(3):
        for _ in range(4):
            fail(guard)
        succeed(guard)
    assert guard.status(account="alice", source=OFFICE).failures == 0


def test_many_sources_that_try_one_account_slow_it(guard: LoginGuard) -> None:
    for number in range(5):
        fail(guard, "alice", f"10.0.0.{number}")
    assert wait_of(guard, "alice", "10.0.1.1") == 1.0
    assert guard.status(account="alice", source="10.0.1.1").blocked_by == "account"
    assert wait_of(guard, "bob", "10.0.1.1") == 0.0


def test_one_source_that_tries_many_accounts_is_stopped(guard: LoginGuard, clock: ManualClock) -> None:
    for number in range(20):
        assert fail(guard, f"user {number}") == 1
    assert guard.status(source=OFFICE).blocked_by == "source"
    assert wait_of(guard, "another") == 180.0
    assert wait_of(guard, "user 1") == 180.0
    assert wait_of(guard, "another", HOME) == 0.0
    clock.advance(180.0)
    assert wait_of(guard, "yet another") == 0.0


def test_no_success_of_its_own_clears_what_a_source_has_failed_at(guard: LoginGuard) -> None:
    passed = 0
    for number in range(60):
        try:
            fail(guard, f"victim {number}")
            passed += 1
            succeed(guard, "mallory", OFFICE, "her own device")
        except LoginBlockedError:
            break
    assert passed == 20


def test_many_who_log_in_from_one_source_do_not_block_each_other(guard: LoginGuard) -> None:
    for number in range(100):
        succeed(guard, f"employee {number}")


def test_a_device_that_has_logged_in_before_is_spared(guard: LoginGuard) -> None:
    succeed(guard, "alice", HOME, "laptop")
    for number in range(5):
        fail(guard, "alice", f"10.0.0.{number}")
    assert wait_of(guard, "alice", HOME, None) == 1.0
    assert wait_of(guard, "alice", HOME, "somebody else's") == 1.0
    assert guard.status(account="alice", device="laptop").device_known
    for source in (HOME, "192.0.2.1"):
        succeed(guard, "alice", source, "laptop")
    assert wait_of(guard, "alice", "10.0.9.9") == 1.0  # the attack stays slow
    # A stolen device guesses no faster than a stranger does.
    for _ in range(5):
        fail(guard, "alice", "10.0.9.9", "laptop")
    assert wait_of(guard, "alice", "10.0.9.9", "laptop") == 1.0


def test_a_hundred_failures_in_a_row_stop_an_account_until_it_is_reset(guard: LoginGuard, clock: ManualClock) -> None:
    for number in range(100):
        fail(guard, "alice", f"10.0.0.{number}")
        clock.advance(900.0)
    clock.advance(86_400.0)
    with pytest.raises(LoginBlockedError, match="reset") as refused:
        fail(guard, "alice", HOME)
    assert refused.value.retry_after is None
    assert "Retry-After" not in problem(refused.value).headers
    status = guard.status(account="alice")
    assert (status.stopped, status.blocked, status.failures, status.retry_after) == (True, True, 100, None)
    guard.reset(account="alice")
    assert fail(guard, "alice", HOME) == 1


def test_a_reset_frees_an_account_wherever_its_failures_came_from(guard: LoginGuard) -> None:
    for _ in range(5):
        fail(guard)
    guard.reset(account=" ALICE ")
    assert fail(guard) == 1
    for number in range(30):
        with pytest.raises(LoginBlockedError) if number > 17 else nullcontext():
            fail(guard, f"user {number}")
    guard.reset(source=OFFICE)
    assert fail(guard, "user 99") == 1


def test_leaving_without_a_verdict_keeps_the_reservation(guard: LoginGuard) -> None:
    for error in (ValueError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(error), guard.attempt(account="alice", source=OFFICE):
            raise error
    with guard.attempt(account="alice", source=OFFICE):
        pass
    assert guard.status(account="alice").failures == 4


@pytest.mark.anyio
async def test_a_cancelled_attempt_keeps_its_reservation(guard: LoginGuard, clock: ManualClock) -> None:
    async def hang() -> None:
        async with guard.attempt(account="alice", source=OFFICE):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(hang()) for _ in range(5)]
    await clock.asleep(0)
    await clock.asleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert (await guard.astatus(account="alice")).failures == 5
    with pytest.raises(LoginBlockedError):
        async with guard.attempt(account="alice", source=OFFICE):
            pass


@pytest.mark.anyio
async def test_a_verdict_stands_whatever_happens_after_it(guard: LoginGuard) -> None:
    for _ in range(4):
        fail(guard)
    with pytest.raises(ValueError, match="later"):
        async with guard.attempt(account="alice", source=OFFICE) as attempt:
            attempt.success()
            raise ValueError("later")
    assert guard.status(account="alice").failures == 0
    fail(guard)
    with pytest.raises(ValueError, match="later"), guard.attempt(account="alice", source=OFFICE) as attempt:
        attempt.cancel()
        raise ValueError("later")
    assert guard.status(account="alice").failures == 1


@pytest.mark.anyio
async def test_one_verdict_is_given_inside_of_one_block(guard: LoginGuard) -> None:
    attempt = guard.attempt(account="alice", source=OFFICE)
    with pytest.raises(ConfigurationError, match="not begun"):
        attempt.success()
    with attempt:
        attempt.success("user 7")
        with pytest.raises(ConfigurationError, match="verdict"):
            attempt.failure()
    assert attempt.user_id == "user 7"
    with pytest.raises(ConfigurationError, match="verdict"):
        attempt.cancel()
    with pytest.raises(ConfigurationError, match="one block"):
        attempt.__enter__()
    with pytest.raises(ConfigurationError, match="one block"):
        await attempt.__aenter__()
    assert repr(attempt) == "<LoginAttempt of 'login', success>"


@pytest.mark.parametrize(
    ("one", "other"),
    [("alice@example.com", "  Alice@Example.COM\t"), ("straße", "STRASSE"), ("ﬁona", "fiona"), ("a\u0301", "á")],
)
def test_names_that_look_alike_are_one_account(guard: LoginGuard, one: str, other: str) -> None:
    fail(guard, one)
    assert guard.status(account=other).failures == 1


def test_an_account_of_half_a_million_combining_marks_is_counted_at_once(guard: LoginGuard) -> None:
    # To bring them into the order of the normal form takes minutes.
    huge = "A" + "\u0301\u0316" * 2**18
    fail(guard, huge)
    assert guard.status(account=f" {huge.lower()} ").failures == 1
    assert guard.status(account=huge[:-1]).failures == 0


def test_ipv6_sources_are_one_by_their_64(guard: LoginGuard) -> None:
    for number in range(20):
        fail(guard, f"user {number}", f"2001:db8:0:1::{number:x}")
    assert wait_of(guard, "another", "2001:db8:0:1:ffff::1") == 180.0
    assert wait_of(guard, "another", "2001:db8:0:2::1") == 0.0
    fail(guard, "x", "::ffff:192.0.2.1")
    assert guard.status(account="x", source="192.0.2.1").failures == 1


def test_accounts_sources_and_devices_are_stored_as_hmac_alone(clock: ManualClock) -> None:
    def keys(secret: str | bytes | None) -> set[str]:
        store = MemoryStore()
        guard = LoginGuard(store=store, secret=secret, clock=clock)
        succeed(guard, "alice", OFFICE, "laptop")
        fail(guard, "alice", OFFICE)
        return {str(place) for shelf in store._shelves.values() for place in (*shelf.young, *shelf.old)}

    one, same, other = keys("secret"), keys(b"secret"), keys("another")
    assert len(one) == 4
    assert one == same
    assert not one & other
    assert not keys(None) & keys(None)
    for key in one:
        assert len(key) == 32
        assert int(key, 16)


def test_a_wrong_password_is_told_with_the_account_masked(clock: ManualClock) -> None:
    heard = RecordingListener()
    guard = LoginGuard(service="auth", listeners=[heard], clock=clock)
    for _ in range(5):
        fail(guard, "alice@example.com")
    with pytest.raises(LoginBlockedError) as refused:
        fail(guard, "alice@example.com")
    *failed, limited = heard.of(SecurityNoticed)
    assert [(event.event, event.source, event.service) for event in failed] == [("failed_login", OFFICE, "auth")] * 5
    assert (limited.event, limited.source, limited.name) == ("rate_limit", OFFICE, "login")
    assert limited.fields == {
        "guard": "login",
        "reason": "failed_login",
        "blocked_by": "pair",
        "retry_after": 1.0,
        "degraded": False,
    }
    assert failed[-1].fields["account"] == "a***"
    assert failed[-1].fields["failures"] == 5
    assert len({event.fields["account_tag"] for event in failed}) == 1
    for told in (*heard, refused.value, guard, guard.attempt(account="alice@example.com", source=OFFICE)):
        assert "alice" not in repr(told).lower()
        assert "example" not in repr(told)


def test_a_success_and_an_attempt_without_verdict_are_told_to_nobody(clock: ManualClock) -> None:
    heard = RecordingListener()
    guard = LoginGuard(listeners=[heard], clock=clock)
    succeed(guard)
    with guard.attempt(account="alice", source=OFFICE):
        pass
    assert list(heard) == []


def test_tokens_that_are_not_valid_are_counted_by_source(clock: ManualClock) -> None:
    heard = RecordingListener()
    guard = LoginGuard(listeners=[heard], clock=clock)
    for _ in range(5):
        guard.token_failed(source=OFFICE)
    with pytest.raises(LoginBlockedError) as refused:
        guard.token_failed(source=OFFICE)
    assert refused.value.retry_after == 1.0
    *failed, limited = heard.of(SecurityNoticed)
    assert [event.event for event in failed] == ["invalid_token"] * 6
    # What is told of a refusal is about tokens, which have no account.
    assert limited.event == "rate_limit"
    assert (limited.fields["reason"], limited.fields["blocked_by"]) == ("invalid_token", "source")
    assert refused.value.reason == "invalid_token"
    assert "invalid tokens" in str(refused.value)
    guard.token_failed(source=HOME)
    assert fail(guard) == 1  # logins have counts of their own
    for _ in range(200):
        clock.advance(900.0)
        guard.token_failed(source=OFFICE)  # it slows a source and never stops it


@pytest.mark.anyio
async def test_the_twins_for_tasks_do_the_same(guard: LoginGuard, clock: ManualClock) -> None:
    async with guard.attempt(account="alice", source=OFFICE, device="laptop") as attempt:
        attempt.success()
    for _ in range(5):
        async with guard.attempt(account="alice", source=OFFICE) as attempt:
            attempt.failure()
        await guard.atoken_failed(source=OFFICE)
    with pytest.raises(LoginBlockedError):
        async with guard.attempt(account="alice", source=OFFICE):
            pass
    with pytest.raises(LoginBlockedError):
        await guard.atoken_failed(source=OFFICE)
    assert (await guard.astatus(account="alice", source=OFFICE)) == guard.status(account="alice", source=OFFICE)
    assert (await guard.astatus(account="alice", device="laptop")).device_known
    await guard.areset(account="alice")
    async with guard.attempt(account="alice", source=OFFICE) as attempt:
        assert attempt.failures == 1
        attempt.cancel()
    assert (await guard.astatus(account="alice")).failures == 0


class Dying(MemoryStore):
    """A store that can be killed."""

    dead = False

    def attempt(self, *args: Any) -> Any:
        if self.dead:
            raise StoreError("gone")
        return super().attempt(*args)

    async def aattempt(self, *args: Any) -> Any:
        return self.attempt(*args)


@pytest.mark.anyio
async def test_while_the_store_is_down_nobody_logs_in_by_default(clock: ManualClock) -> None:
    heard = RecordingListener()
    store = Dying()
    guard = LoginGuard(store=store, listeners=[heard], clock=clock)
    store.dead = True
    with pytest.raises(LoginBlockedError) as refused:
        fail(guard)
    assert refused.value.decision.degraded  # type: ignore[attr-defined]
    assert refused.value.retry_after
    assert problem(refused.value).status == 503
    with pytest.raises(LoginBlockedError):
        async with guard.attempt(account="alice", source=OFFICE):
            pass
    assert guard.status(account="alice").degraded
    assert len(heard.of(StoreFailed)) == 1
    store.dead = False
    clock.advance(60.0)
    succeed(guard)


def test_a_store_that_is_down_may_let_everybody_in_or_be_stood_in_for(clock: ManualClock) -> None:
    store = Dying()
    anybody = LoginGuard(store=store, on_store_error="open", clock=clock)
    locally = LoginGuard(store=store, on_store_error="local", name="local", clock=clock)
    fail(locally)
    store.dead = True
    for _ in range(20):
        fail(anybody)
    assert [fail(locally) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(LoginBlockedError) as refused:
        fail(locally)
    assert refused.value.decision.degraded  # type: ignore[attr-defined]
    clock.advance(1.0)
    with locally.attempt(account="alice", source=OFFICE) as attempt:
        store.dead = False
        clock.advance(60.0)
        attempt.success()
    # What a stand-in had reserved is a success for it and for the store.
    assert locally.status(account="alice", source=OFFICE).failures == 0
    store.dead = True
    for _ in range(4):
        assert fail(locally) in {1, 2, 3, 4}


class Foreign:
    """A store of somebody's own that can count attempts."""

    attempt: Callable[..., Any] = print
    aattempt: Callable[..., Any] = print


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"free_attempts": 0}, "free_attempts"),
        ({"base_delay": 0}, "base_delay"),
        ({"base_delay": 2.0, "max_delay": 1.0}, "max_delay"),
        ({"max_delay": 1e300}, "max_delay"),
        ({"stop_after": 0}, "stop_after"),
        ({"source_limit": "x"}, "source_limit"),
        ({"source_limit": "5 per second sliding"}, "limit"),
        ({"on_store_error": "maybe"}, "on_store_error"),
        ({"store_timeout": -1}, "store_timeout"),
        ({"name": ""}, "name"),
        ({"secret": ""}, "secret"),
        ({"secret": 7}, "secret"),
        ({"store": object()}, "store"),
        ({"store": MemoryStore}, "store"),
        ({"store": Foreign()}, "secret"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        LoginGuard(**settings)


@pytest.mark.parametrize("wrong", ["", "  ", None, 7, b"alice"])
def test_an_account_source_or_device_that_is_none_is_refused(guard: LoginGuard, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="account"):
        guard.attempt(account=wrong, source=OFFICE)
    with pytest.raises(ConfigurationError, match="source"):
        guard.attempt(account="alice", source=wrong)
    if wrong is not None:
        with pytest.raises(ConfigurationError, match="device"):
            guard.attempt(account="alice", source=OFFICE, device=wrong)
        with pytest.raises(ConfigurationError, match="account"):
            guard.status(account=wrong)
    with pytest.raises(ConfigurationError, match="account or source"):
        guard.reset()


def test_whatever_text_a_client_sends_is_an_account(guard: LoginGuard) -> None:
    for account in ("\ud800", "\0", "x" * 10_000, "5:alice", "a\u0345\u0399"):
        assert fail(guard, account) == 1


def test_it_shows_its_settings_and_never_its_secret() -> None:
    guard = LoginGuard(secret="hunter2", source_limit="30/h")
    assert repr(guard) == (
        "<LoginGuard 'login' free_attempts=5, base_delay=1, max_delay=900, source_limit='30/h', stop_after=100, "
        "on_store_error='closed', store=<MemoryStore 0 keys, max_keys=100000>>"
    )


def test_a_refusal_survives_a_pickle(guard: LoginGuard) -> None:
    for _ in range(5):
        fail(guard)
    with pytest.raises(LoginBlockedError) as refused:
        fail(guard)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (copy.retry_after, copy.decision, copy.reason) == (1.0, refused.value.decision, "failed_login")
