"""The `repr` of whatever users hold shows its settings and state, no secret, and takes nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine

import reliakit as r
from reliakit.integrations import grpc, httpx, opentelemetry, requests, sqlalchemy, statsd
from reliakit.logs import MaskingFormatter
from reliakit.testing import FaultProxy, ManualClock, RecordingListener

SECRET = "s3cr3tpassw0rd"
DSN = f"postgresql://ann:{SECRET}@db.example:5432/shop"
REDIS = f"redis://ann:{SECRET}@cache.example:6379/2"


async def app(scope: Any, receive: Any, send: Any) -> None:
    pass


def database() -> r.Database:
    return r.Database(DSN, name="shop")


def masker() -> r.Masker:
    masker = r.Masker(mode="hmac", hmac_key=SECRET.encode() * 4)
    masker.register_secret(SECRET)
    return masker


def context() -> r.RequestContext:
    with r.request_context(request_id="a1", password=SECRET) as here:
        return here


# What makes each one, and what of its settings and state must be seen.
TABLE: list[tuple[Callable[[], object], list[str]]] = [
    (database, ["'shop'", "db.example/shop", "0 of 10 in use"]),
    (lambda: r.AsyncDatabase(DSN, replicas=[DSN]), ["1 replica"]),
    (lambda: database().transaction(operation="pay", timeout=2.0), ["'shop'", "not begun", "'pay'", "timeout=2.0"]),
    (lambda: r.AsyncDatabase(DSN).transaction(read_only=True), ["not begun", "read_only=True"]),
    (lambda: r.Repository(database()), ["Repository of <Database 'shop'"]),
    (lambda: r.Repository.__new__(r.Repository), ["Repository of None"]),
    (lambda: r.AsyncRepository(r.AsyncDatabase(DSN)), ["AsyncRepository of <AsyncDatabase 'main'"]),
    (lambda: database().advisory_lock("nightly"), ["'nightly'", "not held"]),
    (lambda: r.Outbox("letters"), ["'letters'"]),
    (lambda: r.Outbox().relay(database(), print), ["ready"]),
    (lambda: r.PostgresStore(DSN), ["reliakit_limits"]),
    (lambda: r.RedisStore(REDIS), ["cache.example:6379/2", "'reliakit'"]),
    (lambda: r.RedisStore(f"redis://cache.example?db=3&password={SECRET}"), ["cache.example?db=3"]),
    (lambda: r.RedisStore(f"unix:///run/redis.sock?password=a@{SECRET}"), ["unix://..."]),
    (r.MemoryStore, ["0 keys"]),
    (lambda: r.RateLimiter("10/s", name="search", store=r.RedisStore(REDIS)), ["'search'", "10/s"]),
    (lambda: r.LoginGuard(secret=SECRET.encode() * 4), ["free_attempts=5"]),
    (lambda: r.ConcurrencyLimiter(3), ["0 of 3 running"]),
    (lambda: r.CircuitBreaker("bank"), ["'bank'", "closed", "failure_threshold=5"]),
    (lambda: r.KeyedBreakers(r.CircuitBreaker), ["0 keys"]),
    (lambda: r.SharedBreakers(r.RedisStore(REDIS), quorum=3), ["closed", "quorum=3", "interval=1"]),
    (lambda: r.Retry(4, budget=r.RetryBudget(), name="bank"), ["4", "0 of 3 retries", "'bank'"]),
    (lambda: r.Timeout(2.0, name="bank"), ["2", "'bank'"]),
    (lambda: r.Timeout(2.0, threads=3), ["0 of 3 threads"]),
    (lambda: r.Bulkhead(3, max_waiting=2), ["0 of 3 running", "0 of 2 waiting"]),
    (lambda: r.Fallback("x" * 10_000, on=OSError), ["on=OSError"]),
    (lambda: r.Throttle(name="bank"), ["'bank'", "0 of 0 accepted", "k=2"]),
    (lambda: r.Hedge(0.5, max_hedges=2), ["after 0.5 s", "max_hedges=2"]),
    (r.AdaptiveLimit, ["0 of 20 running"]),
    (r.Coalesce, ["0 under way"]),
    (lambda: r.Policy.standard("bank"), ["'bank'", "Timeout", "Retry", "CircuitBreaker"]),
    (masker, ["mode=hmac", "registered="]),
    (lambda: r.MaskingFilter(masker()), ["mode=hmac"]),
    (lambda: MaskingFormatter(service="svc", env="test", masker=masker()), ["'svc'", "'test'"]),
    (lambda: r.get_logger("app").bind(password=SECRET), ["'app'", "password"]),
    (lambda: r.log_context(password=SECRET), ["password"]),
    (lambda: r.request_context(request_id="a1", password=SECRET), ["'a1'", "password"]),
    (context, ["'a1'", "password"]),
    (r.ErrorTracker, ["not attached"]),
    (r.Metrics, ["'reliakit'", "not attached"]),
    (lambda: r.deadline(2.0), ["2"]),
    (lambda: r.Schema({"type": "object"}), ["0 checks"]),
    (r.BodyLimit, ["1048576"]),
    (lambda: r.Cors(["https://a.example"]), ["https://a.example"]),
    (r.SecurityHeaders.api, ["nosniff"]),
    (lambda: r.RequestTimeout(3.0), ["3.0"]),
    (lambda: r.RequestObserver(service="svc"), ["'svc'"]),
    (lambda: r.ProblemResponses(service="svc"), ["'svc'"]),
    (lambda: r.RateLimitHeaders(r.RateLimiter("1/s")), ["1/s"]),
    (r.client_ip, ["trusted=[]"]),
    (lambda: statsd.Statsd(r.Metrics()), ["closed", "8125"]),
    (lambda: httpx.PolicyTransport(r.Policy.standard), ["of 0 of at most 256 hosts"]),
    (lambda: requests.PolicyAdapter(r.Policy.standard), ["of 0 of at most 256 hosts"]),
    (lambda: grpc.ServerContext(trusted=["10.0.0.0/8"]), ["10.0.0.0/8"]),
    (grpc.AsyncServerContext, ["trusted=[]"]),
    (lambda: sqlalchemy.EnginePool(create_engine(DSN.replace("postgresql", "postgresql+psycopg"))), ["db.example"]),
    (opentelemetry.Tracing, ["not attached"]),
    (lambda: FaultProxy(DSN), ["closed"]),
    (ManualClock, ["at 0.0"]),
    (RecordingListener, ["0 events"]),
]


@pytest.mark.parametrize(("make", "words"), TABLE)
def test_it_shows_settings_and_state_and_no_secret(make: Callable[[], object], words: list[str]) -> None:
    shown = repr(make())
    assert " object at 0x" not in shown.replace("httpx.HTTPTransport object", "")
    assert SECRET not in shown
    assert len(shown) < 2000
    for word in words:
        assert word in shown


def test_it_shows_the_state_of_now() -> None:
    bulkhead, budget, timeout = r.Bulkhead(3), r.RetryBudget(), r.Timeout(60.0, threads=2)
    retry = r.Retry(budget=budget)
    with bulkhead, budget:
        budget.acquire()
        assert "1 of 3 running" in repr(bulkhead)
        assert "1 of 3 retries in 1 calls" in repr(retry)
        budget.release()
    assert "1 of 2 threads" in timeout.call(lambda: repr(timeout))
    throttle = r.Throttle()
    throttle.call(lambda: None)
    with pytest.raises(OSError):
        throttle.call(fails)
    assert "1 of 2 accepted" in repr(throttle)


def fails() -> None:
    raise OSError


def test_it_shows_a_block_before_in_and_after_its_use(reliakit_dsn: str) -> None:
    heard = RecordingListener()
    with r.Database(reliakit_dsn, leak_after=1e-9, listeners=[heard]) as db:
        block = db.transaction()
        with block as tx:
            told = len(heard)
            assert "running" in repr(block)
            assert "1 of 10 in use" in repr(r.Repository(db))
            assert "s left" in repr(tx)
            assert len(heard) == told  # though it is overdue: looking at it tells nobody
        assert "over" in repr(block)
    assert "0 of 10 in use" in repr(db)
