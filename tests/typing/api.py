"""What type checkers must make of the public API. Never run: mypy and pyright, both strict, judge it.

Every public name is used here at least once, and every form of a decorated function is asserted: a decorator keeps
the signature, the colour and the kind of method.
"""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Generator
from typing import Any, Literal, assert_type

from psycopg_pool import AsyncConnectionPool, ConnectionPool  # noqa: TC002 - judged, never run
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from reliakit import (
    AIMD,
    IDEMPOTENCY_DDL,
    SYSTEM_CLOCK,
    AdaptiveLimit,
    AsyncDatabase,
    AsyncRepository,
    AsyncTransaction,
    Backoff,
    BodyLimit,
    BreakerSnapshot,
    Bulkhead,
    BulkheadFullError,
    CircuitBreaker,
    CircuitOpenError,
    Clock,
    Coalesce,
    CommitUnknownError,
    ConcurrencyLimiter,
    ConfigurationError,
    Cors,
    Counter,
    CountWindow,
    Database,
    DatabaseStats,
    DeadlineExceededError,
    Decision,
    ErrorClass,
    ErrorGroup,
    ErrorTracker,
    Event,
    Exposition,
    Fallback,
    Gauge,
    Gradient2,
    Hedge,
    Histogram,
    Isolation,
    KeyedBreakers,
    Limit,
    LimiterStats,
    Logger,
    LoggingHandle,
    LoginAttempt,
    LoginBlockedError,
    LoginGuard,
    LoginStatus,
    Masker,
    MaskingFilter,
    MemoryStore,
    Metrics,
    NoInstanceError,
    Objective,
    Outbox,
    OutboxMessage,
    OutboxStats,
    OverloadedError,
    Permit,
    Policy,
    PostgresStore,
    Priority,
    Problem,
    ProblemResponse,
    ProblemResponses,
    Propagation,
    RateLimitedError,
    RateLimiter,
    RateLimitHeaders,
    RedisStore,
    RejectedError,
    ReliakitError,
    Repository,
    RequestContext,
    RequestObserver,
    RequestTimeout,
    Retry,
    RetryBudget,
    RetryBudgetExceededError,
    Schema,
    SecurityHeaders,
    SharedBreakers,
    SharedStatus,
    State,
    StoreError,
    Subscription,
    Throttle,
    Timeout,
    TimeWindow,
    Transaction,
    TransactionError,
    TransactionOutcome,
    TransactionRetry,
    TransactionRolledBackError,
    TransactionTimeoutError,
    TransactionUsageError,
    ValidationError,
    Verdict,
    at_most,
    below,
    checkpoint,
    classify,
    client_ip,
    complete,
    configure_logging,
    count,
    current_request,
    deadline,
    deadline_headers,
    get_logger,
    grpc_timeout,
    log_context,
    outgoing_headers,
    pooled,
    problem,
    ratio,
    remaining,
    request_context,
    subscribe,
    transactional,
    validated,
    zero,
)
from reliakit.integrations.sqlalchemy import AsyncEnginePool, EnginePool, connection, session
from reliakit.testing import rolled_back

heard: list[Event] = []
breaker = CircuitBreaker(
    "payments",
    failure_threshold=3,
    failure_rate=0.5,
    slow_call=2.0,
    slow_rate=0.8,
    window=TimeWindow(30.0),
    minimum_calls=20,
    open_for=lambda failure: 5.0 if failure == 503 else None,
    reset_timeout=Backoff(base=0.5, factor=2.0, cap=30.0, jitter="decorrelated"),
    failure=(OSError, TimeoutError),
    ignore=lambda error: isinstance(error, KeyError),
    failure_result=lambda result: result is None,
    listeners=[heard.append],
    clock=SYSTEM_CLOCK,
)


def sharing(store: RedisStore) -> None:
    with SharedBreakers(store, quorum=2) as shared:
        assert_type(shared.add(breaker), CircuitBreaker)
        assert_type(shared.status(), tuple[SharedStatus, ...])
        assert_type(shared.refresh(), bool)


last_fifty = CircuitBreaker(failure_rate=0.5, window=CountWindow(50), half_open_calls=3)
RateLimiter("10/s", store=RedisStore("redis://localhost", clock="client"))
RateLimiter("10/s", store=PostgresStore("dbname=app", table="limits", max_size=2))
by_host: KeyedBreakers[str] = KeyedBreakers(lambda host: CircuitBreaker(f"host {host}"), max_keys=100)
limiter = RateLimiter("10/s", Limit(600, per=60.0, burst=100), name="search", store=MemoryStore(max_keys=1000))


# Decorated functions, methods and generators keep their types


@breaker
def plain(a: int, *, b: str = "") -> float:
    return a + len(b)


@breaker
async def asynchronous(a: int) -> str:
    return str(a)


@breaker
def generator(a: int) -> Generator[int, str, bool]:
    return bool((yield a))


@breaker
async def asynchronous_generator(a: int) -> AsyncIterator[int]:
    yield a


def host_of(host: str, path: str) -> str:
    return host


@by_host.guard(key=host_of)
async def get(host: str, path: str) -> bytes:
    return (host + path).encode()


reports = ConcurrencyLimiter(20, name="reports")


@reports
async def report(number: int) -> str:
    return str(number)


async def reported() -> None:
    assert_type(await report(1), str)


@limiter.limit(key=str, cost=2)
def limited(user: int) -> list[str]:
    return [str(user)]


class Service:
    @breaker
    def method(self, a: int) -> bytes:
        return bytes(a)

    @breaker
    async def amethod(self, a: int) -> bytes:
        return bytes(a)

    @classmethod
    @breaker
    def of_class(cls, a: int) -> bytes:
        return bytes(a)

    @staticmethod
    @breaker
    def static(a: int) -> bytes:
        return bytes(a)


async def decorated(service: Service) -> None:
    assert_type(plain(1, b="x"), float)
    assert_type(await asynchronous(1), str)
    assert_type(await get("example.org", "/"), bytes)
    assert_type(by_host["example.org"], CircuitBreaker)
    assert_type(generator(1), Generator[int, str, bool])
    assert_type(asynchronous_generator(1), AsyncIterator[int])
    assert_type(limited(7), list[str])
    assert_type(service.method(1), bytes)
    assert_type(await service.amethod(1), bytes)
    assert_type(Service.of_class(1), bytes)
    assert_type(Service.static(1), bytes)

    plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # the signature is kept
    await asynchronous()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # the signature is kept


# The circuit breaker called, entered and asked


async def called() -> None:
    assert_type(breaker.call(plain, 1, b="x"), float)
    assert_type(await breaker.acall(asynchronous, 1), str)
    breaker.call(plain, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # arguments are checked

    with breaker as permit:
        assert_type(permit, Permit)
    async with breaker as permit:
        assert_type(permit, Permit)

    permit = breaker.acquire()
    permit.success()
    permit.failure(OSError())
    permit.ignore()

    assert_type(breaker.state, State)
    assert_type(breaker.retry_after, float | None)
    assert_type(breaker.snapshot(), BreakerSnapshot)
    breaker.restore(breaker.snapshot())
    breaker.force_open(30.0)
    breaker.disable()
    breaker.metrics_only()
    breaker.close()
    breaker.reset()


async def limiting() -> None:
    assert_type(limiter.hit("7"), Decision)
    assert_type(await limiter.ahit("7", cost=2), Decision)
    assert_type(limiter.peek("7"), Decision)
    assert_type(limiter.acquire("7", timeout=1.0), Decision)
    decision = await limiter.apeek("7")
    assert_type(decision.allowed, bool)
    assert_type(decision.remaining, int)
    assert_type(decision.retry_after, float)
    assert_type(limiter.stats(), LimiterStats)
    limiter.reset("7")
    limiter.refund("7", 1)


async def logging_in(logins: LoginGuard) -> None:
    with logins.attempt(account="a@b.c", source="203.0.113.9", device="d") as attempt:
        assert_type(attempt, LoginAttempt)
        assert_type(attempt.failures, int)
        attempt.success(7)
    async with logins.attempt(account="a@b.c", source="203.0.113.9") as attempt:
        assert_type(attempt, LoginAttempt)
        attempt.failure()
    status = logins.status(account="a@b.c")
    assert_type(status, LoginStatus)
    assert_type(status.retry_after, float | None)
    assert_type(await logins.astatus(source="203.0.113.9"), LoginStatus)
    logins.token_failed(source="203.0.113.9")
    await logins.atoken_failed(source="203.0.113.9")
    logins.reset(account="a@b.c")
    await logins.areset(source="203.0.113.9")


# Core


async def budgets(clock: Clock) -> None:
    assert_type(deadline_headers(margin=0.05), dict[str, str])
    assert_type(outgoing_headers(margin=0.05), dict[str, str])
    assert_type(grpc_timeout(), str | None)
    with deadline(2.0) as outer:
        assert_type(outer.remaining(), float)
    async with deadline(2.0, clock=clock) as inner:
        assert_type(inner, deadline)
    assert_type(remaining(), float | None)
    checkpoint()
    await clock.asleep(clock.random())


def requests() -> None:
    urgent: Priority = "critical"
    with request_context(request_id="a1", principal="7", priority=urgent, tenant="x") as request:
        assert_type(request.priority, Priority)
        assert_type(request, RequestContext)
    assert_type(current_request(), RequestContext | None)


def events() -> None:
    def hear(event: Event) -> None:
        assert_type(event.sequence, int)

    subscription = subscribe(hear, Event)
    assert_type(subscription, Subscription)
    with subscription:
        pass
    subscription.close()


def errors(error: Exception) -> None:
    found = classify(error)
    assert_type(found, ErrorClass)
    assert_type(found.sqlstate, str | None)
    try:
        raise error
    except LoginBlockedError as blocked:
        assert_type(blocked.decision, object)
        assert_type(blocked.reason, Literal["failed_login", "invalid_token"])
    except RateLimitedError as limited_error:
        assert_type(limited_error.retry_after, float | None)
    except (CircuitOpenError, BulkheadFullError, OverloadedError, RetryBudgetExceededError) as rejected:
        assert_type(rejected.name, str)
    except RejectedError as rejected:
        assert_type(rejected.retry_after, float | None)
    except TransactionTimeoutError as cut:
        assert_type(cut.seconds, float | None)
    except CommitUnknownError as unknown:
        assert_type(unknown.transaction_id, str | None)
    except (TransactionRolledBackError, TransactionUsageError) as ended:
        assert_type(ended.attempts, int)
    except TransactionError as ended:
        assert_type(ended.name, str)
    except DeadlineExceededError as cut:
        assert_type(cut.seconds, float | None)
    except ValidationError as invalid:
        assert_type(invalid.problems, list[Problem])
    except StoreError as lost:
        assert_type(lost.store, str)
    except (ConfigurationError, NoInstanceError, ReliakitError):
        pass


# Logs


def logs() -> None:
    masker = Masker(keys=["badge"], mode="last4", modes={"email": "full"})
    logging.getLogger().addFilter(MaskingFilter(masker))
    assert_type(masker.mask({"password": "x"}), dict[str, str])
    assert_type(masker.mask_text("x"), str)
    handle = configure_logging(
        service="auth",
        env="test",
        level="INFO",
        stream=io.StringIO(),
        masker=masker,
        queue=5_000,
        form="console",
        levels={"sqlalchemy": "WARNING", "asyncio": 30},
        sample={"reliakit.access": 0.1},
        repeat_limit=100,
        clock=SYSTEM_CLOCK,
    )
    assert_type(handle.left_out, int)
    assert_type(handle, LoggingHandle)
    with ErrorTracker(masker=masker, max_groups=100, quiet=600.0) as tracker:
        assert_type(tracker.snapshot(), tuple[ErrorGroup, ...])
        assert_type(tracker.resolve("0123456789abcdef"), bool)
    log = get_logger(__name__)
    assert_type(log, Logger)
    with log_context(request_id="a1"):
        log.bind(user_id=7).info("Login attempt", email="x")
        log.error("Login failed", error=ValueError())
        assert_type(log.unbind("a").new(b=1), Logger)
        log.log("info", "by name")
        log.security("failed_login", source="203.0.113.9", account="x")
    handle.close()


# Metrics


def measured() -> None:
    metrics = Metrics(namespace="shop", objectives=[Objective("fast", below("transaction", 0.1, 0.95))])
    with metrics:
        metrics.increment("error", type="ValueError", service="auth", status=500)
        metrics.observe("transaction", duration=0.012, status="commit", service="auth")
    assert_type(metrics.counter("orders", "Orders placed.", labels=["kind"]), Counter)
    assert_type(metrics.gauge("queue", "Waiting."), Gauge)
    assert_type(metrics.histogram("wait", "Waited.", unit="seconds"), Histogram)
    assert_type(metrics.render(), Exposition)
    assert_type(metrics.slo(), list[Verdict])
    metrics.objective(Objective("rollbacks", ratio("transaction", "transaction", 0.01)))
    metrics.objective(Objective("deadlocks", zero("deadlock")))
    metrics.objective(Objective("tracked", complete("error", "error"), period=86_400.0, help="All are tracked."))
    metrics.objective(Objective("resolved", at_most("error_oldest_open_seconds", 3600.0)))
    metrics.objective(Objective("commits", ratio(count("transaction", status="unknown"), "transaction", 0.01)))
    assert_type(pooled(metrics.slo()), list[Verdict])
    assert_type(metrics.slo()[0].gone_after, float | None)


# Transactions

db = Database("dbname=shop", name="main", isolation=Isolation.SERIALIZABLE, retry=TransactionRetry(max_attempts=3))
adb = AsyncDatabase("dbname=shop", timeout=2.0, replicas=["dbname=copy"], slow_after=None)


@db.transactional
def bare(user_id: int) -> str:
    return str(user_id)


@db.transactional(read_only=True, operation="load")
def with_settings(user_id: int) -> str:
    return str(user_id)


@adb.transactional(propagation=Propagation.REQUIRES_NEW)
async def awaited(user_id: int) -> str:
    return str(user_id)


class Users(Repository):
    @transactional(operation="rename")
    def rename(self, user_id: int, name: str) -> bool:
        return self.current().fetch_one("update users set name = %s where id = %s", [name, user_id]) is not None


class AsyncUsers(AsyncRepository):
    @transactional
    async def rename(self, user_id: int) -> bool:
        return await self.current().fetch_value("select true where %s", [user_id]) is True


def count_users(tx: Transaction, least: int) -> int:
    return len(tx.fetch_all("select 1 from users where id >= %s", [least]))


async def acount_users(tx: AsyncTransaction, least: int) -> int:
    return len(await tx.fetch_all("select 1 from users where id >= %s", [least]))


async def transactions() -> None:
    with db:
        assert_type(db, Database)
    with db.transaction(timeout=1.0, pipeline=True) as tx:
        assert_type(tx, Transaction)
        assert_type(tx.remaining(), float)
        tx.after_commit(lambda: None)
        tx.set_rollback_only()
    async with adb, adb.transaction(lock_timeout=0.5, pipeline=True) as atx:
        assert_type(atx, AsyncTransaction)
    assert_type(db.run(count_users, 7, read_only=True), int)
    assert_type(await adb.run(acount_users, 7), int)
    assert_type(db.run(count_users, 7, idempotency_key="request 7"), int)
    assert_type(await adb.run(acount_users, 7, idempotency_key="request 7"), int)
    assert_type(db.forget_idempotency_keys(older_than=86_400.0), int)
    assert_type(await adb.forget_idempotency_keys(older_than=86_400.0), int)
    assert_type(db.outcome("748"), TransactionOutcome | None)
    assert_type(await adb.outcome("748"), TransactionOutcome | None)
    db.execute(IDEMPOTENCY_DDL)
    with db.advisory_lock("report", timeout=0) as lock:
        assert_type(lock.held, bool)
    async with adb.advisory_lock(7, shared=True) as alock:
        assert_type(alock.key, int | str)
    assert_type(db.stats(), DatabaseStats)
    assert_type(db.stats().replicas, tuple[DatabaseStats, ...])
    assert_type(bare(1), str)
    assert_type(with_settings(1), str)
    assert_type(await awaited(1), str)
    assert_type(Users(db).rename(1, "x"), bool)
    assert_type(await AsyncUsers(adb).rename(1), bool)
    assert_type(Users(db).with_transaction(lambda tx: 7), int)


outbox = Outbox("outbox", notify=False)


def deliver(message: OutboxMessage) -> None:
    assert_type(message.id, int)
    assert_type(message.key, str | None)


async def adeliver(message: OutboxMessage) -> None:
    deliver(message)


async def outboxes(tx: Transaction, atx: AsyncTransaction) -> None:
    outbox.create(db)
    assert_type(outbox.ddl, str)
    assert_type(outbox.publish(tx, "order", {"id": 7}, key="7", headers={"trace": "x"}), int)
    assert_type(await outbox.apublish(atx, "order", None), int)
    assert_type(outbox.relay(db, deliver, batch=10, max_attempts=5).drain(), int)
    assert_type(await outbox.relay(adb, adeliver, backoff=Backoff(0.1)).adrain(), int)
    assert_type(outbox.stats(db), OutboxStats)
    assert_type(await outbox.adead(adb), list[OutboxMessage])
    assert_type(outbox.redrive(db, ids=[1, 2]), int)


# The web


def parts(error: ValueError) -> None:
    answer = problem(error)
    assert_type(answer, ProblemResponse)
    assert_type(answer.status, int)
    key = client_ip(trusted=["10.0.0.0/8"], header="forwarded")
    RequestObserver(service="shop", client=key)
    RequestTimeout(2.0, stream_timeout=10.0)
    assert_type(SecurityHeaders.api(), SecurityHeaders)
    Cors(["https://shop.example"], credentials=True)
    RateLimitHeaders(limiter, key=key)
    BodyLimit(1024)
    ProblemResponses(service="shop")


# Policies

bank: Policy = Timeout(10.0) | Retry(3, on=(OSError, KeyError), wait=Backoff(), budget=RetryBudget(0.1)) | breaker


@bank
def priced(a: int, *, b: str = "") -> float:
    return a + len(b)


@(breaker | Bulkhead(5, max_waiting=2, wait=1.0, order="lifo"))
async def apriced(a: int) -> str:
    return str(a)


def stand_in(error: Exception) -> list[str]:
    return [str(error)]


@Fallback(stand_in, on=OSError)
def listed(a: int) -> Generator[str]:
    yield str(a)


@Policy.standard("bank", fallback=None)
async def alisted(a: int) -> AsyncIterator[str]:
    yield str(a)


def same(a: int) -> int:
    return a


@Coalesce(key=same)
@Hedge(0.1, budget=RetryBudget())
@AdaptiveLimit(AIMD(), initial=5)
@AdaptiveLimit(Gradient2(tolerance=2.0))
@Throttle(2.0, failure=OSError)
async def guarded(a: int) -> str:
    return str(a)


async def policies() -> None:
    assert_type(await guarded(1), str)
    assert_type(await Hedge().acall(guarded, 1), str)
    assert_type(Coalesce().call(priced, 1), float)
    assert_type(Hedge().current_delay, float | None)
    assert_type(Throttle().rejection, float)
    assert_type(AdaptiveLimit().limit, int)
    assert_type(priced(1, b="x"), float)
    assert_type(await apriced(1), str)
    assert_type(listed(1), Generator[str])
    assert_type(alisted(1), AsyncIterator[str])
    assert_type(bank.call(priced, 1, b="x"), float)
    assert_type(await bank.acall(apriced, 1), str)
    assert_type(bank.explain(), str)
    assert_type(Retry(retry_result=lambda result: result is None) | bank, Policy)
    with Bulkhead(5) as bulkhead:
        assert_type(bulkhead, Bulkhead)
    async with Bulkhead(5) as bulkhead:
        assert_type(bulkhead.running, int)


# Validation

EMPLOYEE = Schema(
    {"type": "object", "required": ["name"]},
    resources={"https://shop.example/name": {"type": "string"}},
    formats={"iban": str.isalnum},
    keywords={"even": lambda wanted, instance: None if wanted else "must be odd"},
    messages={"de": {"required": "fehlt", "minItems": lambda params: f"mindestens {params['limit']}"}},
)


@EMPLOYEE.check("/end_date", code="ends_before_start")
def ends_after_start(value: dict[str, str]) -> str | None:
    return "must not be before the start" if value["end_date"] < value["start_date"] else None


@validated(body=EMPLOYEE)
def create(body: dict[str, Any], *, dry: bool = False) -> int:
    return len(body)


@validated(body=EMPLOYEE)
async def acreate(body: dict[str, Any]) -> int:
    return len(body)


async def validation(value: dict[str, Any]) -> None:
    assert_type(EMPLOYEE.validate(value), dict[str, Any])
    assert_type(EMPLOYEE.problems(value, location="query", locale="de"), list[Problem])
    assert_type(EMPLOYEE.is_valid(value), bool)
    assert_type(create(value, dry=True), int)
    assert_type(await acreate(value), int)
    assert_type(ends_after_start({}), str | None)


# Integrations


class MySession(Session):
    pass


class MyAsyncSession(AsyncSession):
    pass


def sqlalchemy_in_threads(engine: Engine) -> None:
    lent = Database(EnginePool(engine), name="shop")
    with lent.transaction() as tx:
        assert_type(connection(tx), Connection)
        with session(tx, autoflush=False) as plain, session(tx, sessionmaker(class_=MySession)) as mine:
            assert_type(plain, Session)
            assert_type(mine, MySession)


async def sqlalchemy_in_tasks(engine: AsyncEngine) -> None:
    lent = AsyncDatabase(pool=AsyncEnginePool(engine))
    async with lent.transaction() as tx:
        assert_type(await connection(tx), AsyncConnection)
        async with session(tx) as plain, session(tx, async_sessionmaker(class_=MyAsyncSession)) as mine:
            assert_type(plain, AsyncSession)
            assert_type(mine, MyAsyncSession)


def pools(pool: ConnectionPool[Any], async_pool: AsyncConnectionPool[Any]) -> None:
    Database(pool)
    AsyncDatabase(pool=async_pool)


async def sandboxes() -> None:
    with rolled_back(db) as same:
        assert_type(same, Database)
    async with rolled_back(adb) as async_same:
        assert_type(async_same, AsyncDatabase)
