"""The project service's web application."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from examples.project import schemas
from examples.project.employees import Employees, EmployeeServiceError
from examples.project.identity import InvalidTokenError, subject_of
from examples.project.migrate import migrate
from examples.project.projects import ASSIGNMENTS, Projects, RefusedError
from reliakit import (
    AsyncDatabase,
    Backoff,
    CircuitOpenError,
    DeadlineExceededError,
    ErrorTracker,
    Metrics,
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

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from examples.project.settings import Settings

log = get_logger(__name__)

_PROJECT = re.compile("[0-9]{1,10}")
_JSON = re.compile(r"application/([^;]+\+)?json\s*(;|$)", re.IGNORECASE)


class MissingError(Exception):
    """There is no such thing."""


REFUSALS = {InvalidTokenError: 401, MissingError: 404, RefusedError: 409}


class Pages:
    """What the service answers. One object holds what all pages share."""

    def __init__(self, settings: Settings) -> None:
        self.db = AsyncDatabase(
            settings.database_url, name="project", service="project", min_size=2, max_size=8, timeout=3.0
        )
        self.metrics, self.tracker = Metrics(), ErrorTracker()
        self.projects = Projects(self.db)
        self.employees = Employees(
            settings.employee_url,
            settings.jwt_secret,
            patience=settings.employee_patience,
            pause=settings.employee_break,
        )
        self._secret = settings.jwt_secret
        self._source_of = client_ip(trusted=settings.trusted_proxies)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.tracker.attach()
        async with self.db:
            await migrate(self.db)
            await ASSIGNMENTS.acreate(self.db)
            # Short batches, because each holds a connection for as long as the employee service takes to answer.
            relay = ASSIGNMENTS.relay(
                self.db, self.employees.tell_assignment, batch=2, backoff=Backoff(base=0.2, cap=2.0)
            )
            relaying = asyncio.create_task(relay.arun())
            yield
            relaying.cancel()
            with suppress(asyncio.CancelledError):
                await relaying
        await self.employees.aclose()
        self.tracker.close()

    def routes(self) -> list[Route]:
        return [
            Route("/projects", self.index, methods=["GET"]),
            Route("/projects", self.add, methods=["POST"]),
            Route("/projects/{project_id}", self.show, methods=["GET"]),
            Route("/projects/{project_id}/members/{employee_id:uuid}", self.assign, methods=["PUT"]),
            Route("/transfers", self.transfer, methods=["POST"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/slo", self.slo, methods=["GET"]),
            Route("/errors", self.errors, methods=["GET"]),
            Route("/metrics", self.metrics.asgi_app),
        ]

    async def index(self, request: Request) -> Response:
        self.identify(request)
        return JSONResponse([asdict(project) for project in await self.projects.all()])

    async def add(self, request: Request) -> Response:
        self.identify(request)
        body = schemas.PROJECT.validate(await json_of(request))
        project = await self.projects.add(body["name"])
        if project is None:
            raise RefusedError("a project of this name exists")
        return JSONResponse(asdict(project), 201)

    async def show(self, request: Request) -> Response:
        """Show a project with its people; without their names while the employee service is in trouble."""
        self.identify(request)
        project = await self.projects.one(project_of(request))
        if project is None:
            raise MissingError("there is no such project")
        names: dict[str, str] | None = None
        try:
            names = await self.employees.names(project.members, request.headers["Authorization"])
        except (CircuitOpenError, DeadlineExceededError, EmployeeServiceError, httpx2.TransportError) as error:
            log.info("Names left out", project_id=project.id, error=error)
        members = [{"id": str(member), "name": (names or {}).get(str(member))} for member in project.members]
        return JSONResponse({**asdict(project), "members": members, "names_known": names is not None})

    async def assign(self, request: Request) -> Response:
        self.identify(request)
        project_id = project_of(request)
        employee_id: UUID = request.path_params["employee_id"]
        if not await self.employees.exists(employee_id, request.headers["Authorization"]):
            raise MissingError("there is no such employee")
        first = await self.projects.assign(project_id, employee_id)
        return Response(status_code=201 if first else 204)

    async def transfer(self, request: Request) -> Response:
        made_by = self.identify(request)
        body = schemas.TRANSFER.validate(await json_of(request))
        if not await self.projects.transfer(body, made_by):
            raise RefusedError("the employee does not work on that project")
        return JSONResponse(body, 201)

    async def health(self, _: Request) -> Response:
        async with deadline(1.0):
            await self.db.fetch_value("SELECT 1")
        return JSONResponse({"status": "ok", "employee_service": str(self.employees.breaker.state)})

    async def slo(self, _: Request) -> Response:
        return JSONResponse([asdict(verdict) for verdict in self.metrics.slo()])

    async def errors(self, _: Request) -> Response:
        return JSONResponse([asdict(group) for group in self.tracker.snapshot()])

    def identify(self, request: Request) -> str:
        authorization = request.headers.get("Authorization", "")
        try:
            return subject_of(authorization, self._secret)
        except InvalidTokenError:
            log.security("invalid_token", source=self._source_of(request.scope), authorization=authorization)
            raise


def create_app(settings: Settings) -> ASGIApp:
    pages = Pages(settings)
    app = Starlette(
        routes=pages.routes(),
        lifespan=pages.lifespan,
        exception_handlers=dict.fromkeys((HTTPException, *REFUSALS), answer_refusal),
    )
    return protect(
        app,
        service="project",
        metrics=pages.metrics,
        trusted=settings.trusted_proxies,
        timeout=10.0,
        max_body=65_536,
    )


def project_of(request: Request) -> int:
    """Return which project the address names. Starlette's own `int` fails for a number of thousands of digits."""
    digits: str = request.path_params["project_id"]
    if not _PROJECT.fullmatch(digits) or int(digits) >= 2**31:
        raise MissingError("there is no such project")
    return int(digits)


async def json_of(request: Request) -> Any:
    if not _JSON.match(request.headers.get("Content-Type", "")):
        raise HTTPException(415, "the body must be application/json")
    try:
        return await request.json()
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        raise HTTPException(400, "the body is not JSON") from None


async def answer_refusal(_: Request, error: Exception) -> Response:
    """Answer what the service or the framework refuses as application/problem+json; protect() answers the rest."""
    if isinstance(error, HTTPException):
        answer = problem(error)
        return Response(answer.json(), answer.status, answer.headers)
    status, request_now = REFUSALS[type(error)], current_request()
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": str(error),
        "code": "refused",
        "request_id": request_now and request_now.request_id,
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
