"""The auth service's web application."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import normalize

from fastapi import Cookie, Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, Field, SecretStr, StringConstraints
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from examples.auth.accounts import Accounts
from examples.auth.limits import login_guard, registrations, store_of, who_registers
from examples.auth.migrate import migrate
from examples.auth.passwords import Passwords
from examples.auth.tokens import InvalidTokenError, Tokens
from reliakit import (
    AsyncDatabase,
    BulkheadFullError,
    ErrorTracker,
    Metrics,
    Problem,
    ValidationError,
    current_request,
    deadline,
    get_logger,
)
from reliakit.web.asgi import protect
from reliakit.web.client_ip import client_ip
from reliakit.web.problem import problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from starlette.types import ASGIApp

    from examples.auth.settings import Settings
    from reliakit import LoginGuard
    from reliakit.web.client_ip import ClientIP

log = get_logger(__name__)

_ADDRESS = r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+\.[^@\s\x00-\x1f]+$"
_JSON = re.compile(r"application/([^;]+\+)?json\s*(;|$)", re.IGNORECASE)
_DEVICE_SECONDS = 90 * 86_400


def one_spelling(email: str) -> str:
    """Whom the guard takes for one account must be one: logging in to a twin would clear the victim's failures."""
    return normalize("NFKC", normalize("NFKC", email).casefold())


Email = Annotated[
    str, StringConstraints(max_length=254), AfterValidator(one_spelling), StringConstraints(pattern=_ADDRESS)
]


def encodable(password: SecretStr) -> SecretStr:
    """JSON can spell half a character, which no hash takes."""
    try:
        password.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("must be whole characters") from None
    return password


class Login(BaseModel):
    email: Email
    # Long enough for any passphrase, short enough that nobody makes us hash a novel.
    password: Annotated[SecretStr, Field(min_length=1, max_length=128), AfterValidator(encodable)]


class Registration(Login):
    password: Annotated[SecretStr, Field(min_length=12, max_length=128), AfterValidator(encodable)]


class Token(BaseModel):
    access_token: str
    token_type: str = "bearer"
    expires_in: int


class LoginRefusedError(Exception):
    """The address or the password is wrong; the answer does not tell which."""


class EmailTakenError(Exception):
    """Somebody has registered this address before."""


REFUSALS = {LoginRefusedError: 401, InvalidTokenError: 401, EmailTakenError: 409}


def create_app(settings: Settings) -> ASGIApp:
    db = AsyncDatabase(settings.database_url, name="auth", service="auth", min_size=2, max_size=8, timeout=3.0)
    store, source_of = store_of(settings), client_ip(trusted=settings.trusted_proxies)
    metrics, tracker = Metrics(), ErrorTracker()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with tracker:
            async with db, store:
                await migrate(db)
                yield

    # The pages of docs_url load scripts from elsewhere, which the headers of an API forbid; /openapi.json stays.
    app = FastAPI(title="auth", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_accounts(app, settings, db, logins=login_guard(settings, store), source_of=source_of)
    add_operations(app, db, metrics, tracker)
    for kind in (HTTPException, *REFUSALS):
        app.add_exception_handler(kind, answer_refusal)
    app.add_exception_handler(RequestValidationError, answer_validation)
    return protect(
        app,
        service="auth",
        metrics=metrics,
        trusted=settings.trusted_proxies,
        limiter=registrations(store),
        key=who_registers(source_of),
        timeout=10.0,
        max_body=16_384,
    )


def add_accounts(
    app: FastAPI, settings: Settings, db: AsyncDatabase, *, logins: LoginGuard, source_of: ClientIP
) -> None:
    """What the service is for: registering, logging in, and reading tokens."""
    accounts = Accounts(db)
    passwords = Passwords(settings.hashes_at_once)
    tokens = Tokens(settings.jwt_secret, settings.token_seconds)

    async def authenticate(login: Login, source: str, device: str | None) -> UUID:
        # What can fail through no fault of the client's comes first: an attempt counts until it has a verdict.
        account = await accounts.find(login.email)
        stored = account.password_hash if account else None
        async with logins.attempt(account=login.email, source=source, device=device) as attempt:
            try:
                fits = await passwords.fits(stored, login.password.get_secret_value())
            except BulkheadFullError:
                attempt.cancel()  # the password was not looked at, and that is our fault
                raise
            if account is None or not fits:
                attempt.failure()
                raise LoginRefusedError("the address or the password is wrong")
            attempt.success(account.id)
            return account.id

    @app.post("/register", status_code=201, dependencies=[Depends(take_json)])
    async def register(registration: Registration) -> dict[str, str]:
        password_hash = await passwords.hash(registration.password.get_secret_value())
        account_id = await accounts.add(registration.email, password_hash)
        if account_id is None:
            raise EmailTakenError("this address is registered")
        log.info("Account registered", email=registration.email, account_id=str(account_id))
        return {"id": str(account_id)}

    @app.post("/login", dependencies=[Depends(take_json)])
    async def login(
        login: Login, request: Request, response: Response, device: Annotated[str, Cookie()] = ""
    ) -> Token:
        source = source_of(request.scope)
        # Nobody can repair a cookie that his scripts cannot see: one that is not ours is replaced, not refused.
        device = device if device.strip() and len(device) <= 64 else token_urlsafe()
        account_id = await authenticate(login, source, device)
        await accounts.note_login(account_id)
        token = tokens.issue(str(account_id))
        # Who has logged in from this device before is not locked out by what others try.
        response.set_cookie("device", device, max_age=_DEVICE_SECONDS, secure=True, httponly=True, samesite="strict")
        log.info("Logged in", email=login.email, access_token=token, source=source)
        return Token(access_token=token, expires_in=tokens.seconds)

    @app.get("/verify")
    async def verify(request: Request, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        try:
            return tokens.read(authorization)
        except InvalidTokenError:
            await logins.atoken_failed(source=source_of(request.scope))
            raise


def add_operations(app: FastAPI, db: AsyncDatabase, metrics: Metrics, tracker: ErrorTracker) -> None:
    """What the people who run the service look at."""
    app.router.routes.append(Route("/metrics", metrics.asgi_app))
    # FastAPI's own get() refuses HEAD, which balancers ask with.
    page = partial(app.api_route, methods=["GET", "HEAD"], include_in_schema=False)

    @page("/health")
    async def health() -> dict[str, str]:
        async with deadline(1.0):
            await db.fetch_value("SELECT 1")
        return {"status": "ok"}

    @page("/slo")
    async def slo() -> list[dict[str, Any]]:
        return [asdict(verdict) for verdict in metrics.slo()]

    @page("/errors")
    async def errors() -> list[dict[str, Any]]:
        return [asdict(group) for group in tracker.snapshot()]


async def take_json(request: Request) -> None:
    if not _JSON.match(request.headers.get("Content-Type", "")):
        raise HTTPException(415, "the body must be application/json")


async def answer_refusal(_: Request, error: Exception) -> Response:
    """Answer what the service or the framework refuses as application/problem+json; protect() answers the rest."""
    if isinstance(error, HTTPException):
        answer = problem(error)
        return Response(answer.json(), answer.status, answer.headers)
    status, request = REFUSALS[type(error)], current_request()
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
        "code": "refused",
        "request_id": request and request.request_id,
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def answer_validation(_: Request, error: Exception) -> Response:
    """Say what pydantic found in the words that every other service uses; the offending value is left out."""
    assert isinstance(error, RequestValidationError)
    problems = []
    for found in error.errors():
        location, *path = found["loc"]
        pointer = "".join(f"/{step}" for step in path)
        problems.append(Problem(pointer, found["type"], found["type"], found["msg"], location=str(location)))
    answer = problem(ValidationError("", problems))
    return Response(answer.json(), answer.status, answer.headers)
