"""The employee service's web application."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from flask import Blueprint, Flask, Response, g, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from examples.employee import schemas
from examples.employee.identity import InvalidTokenError, subject_of
from examples.employee.staff import RefusedError, Staff
from reliakit import Database, ErrorTracker, Metrics, current_request, deadline, get_logger
from reliakit.web.client_ip import client_ip
from reliakit.web.problem import problem
from reliakit.web.wsgi import protect

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from examples.employee.settings import Settings
    from reliakit import Schema

log = get_logger(__name__)
T = TypeVar("T")


class MissingError(Exception):
    """There is no such thing."""


REFUSALS = {InvalidTokenError: 401, MissingError: 404, RefusedError: 409}


def create_app(settings: Settings, db: Database) -> WSGIApplication:
    metrics, tracker = Metrics(), ErrorTracker()
    tracker.attach()
    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True  # protect() answers them
    for kind in (HTTPException, *REFUSALS):
        app.register_error_handler(kind, answer_refusal)
    app.register_blueprint(staff_pages(settings, Staff(db)))
    app.register_blueprint(operations(db, metrics, tracker))
    return protect(
        DispatcherMiddleware(app, {"/metrics": metrics.wsgi_app}),
        service="employee",
        metrics=metrics,
        trusted=settings.trusted_proxies,
        timeout=10.0,
        max_body=65_536,
    )


def staff_pages(settings: Settings, staff: Staff) -> Blueprint:
    """What the service is for. Everything here asks for a token."""
    pages = Blueprint("staff", __name__)
    source_of = client_ip(trusted=settings.trusted_proxies)

    @pages.before_request
    def identify() -> None:
        authorization = request.headers.get("Authorization", "")
        try:
            g.subject = subject_of(authorization, settings.jwt_secret)
        except InvalidTokenError:
            log.security("invalid_token", source=source_of(request.environ), authorization=authorization)
            raise

    @pages.post("/departments")
    def add_department() -> tuple[Response, int]:
        body = body_of(schemas.DEPARTMENT)
        department = staff.add_department(body["name"], body["budget"])
        if department is None:
            raise RefusedError("a department of this name exists")
        return jsonify(department), 201

    @pages.get("/departments/<int:department_id>")
    def department(department_id: int) -> Response:
        return jsonify(found(staff.department(department_id)))

    @pages.get("/departments/<int:department_id>/employees")
    def employees(department_id: int) -> Response:
        return jsonify(staff.employees(department_id))

    @pages.get("/employees")
    def some() -> Response:
        query = schemas.SOME.validate({"id": request.args.getlist("id")})
        return jsonify(staff.some([UUID(employee_id) for employee_id in query["id"]]))

    @pages.put("/employees/<uuid:employee_id>")
    def hire(employee_id: UUID) -> tuple[Response, int]:
        body = body_of(schemas.EMPLOYEE)
        employee = staff.hire(employee_id, body)
        log.info("Employee hired", employee_id=str(employee_id), employee=body)
        return jsonify(employee), 201

    @pages.get("/employees/<uuid:employee_id>")
    def employee(employee_id: UUID) -> Response:
        return jsonify(found(staff.employee(employee_id)))

    @pages.patch("/employees/<uuid:employee_id>")
    def change(employee_id: UUID) -> Response:
        body = body_of(schemas.CHANGES)
        return jsonify(found(staff.change(employee_id, name=body.get("name"), email=body.get("email"))))

    @pages.post("/employees/<uuid:employee_id>/raises")
    def give_raise(employee_id: UUID) -> tuple[Response, int]:
        body = body_of(schemas.RAISE)
        employee, first = found(staff.raise_salary(UUID(body["id"]), employee_id, body["amount"], g.subject))
        return jsonify(employee), 201 if first else 200

    @pages.put("/employees/<uuid:employee_id>/department")
    def move(employee_id: UUID) -> Response:
        body = body_of(schemas.MOVE)
        return jsonify(found(staff.move(employee_id, body["department_id"])))

    @pages.put("/employees/<uuid:employee_id>/project")
    def put_on_project(employee_id: UUID) -> tuple[str, int]:
        if not staff.put_on_project(employee_id, body_of(schemas.PROJECT)["project_id"]):
            raise MissingError("there is no such employee")
        return "", 204

    @pages.delete("/employees/<uuid:employee_id>")
    def dismiss(employee_id: UUID) -> tuple[str, int]:
        if not staff.dismiss(employee_id):
            raise MissingError("there is no such employee")
        return "", 204

    return pages


def operations(db: Database, metrics: Metrics, tracker: ErrorTracker) -> Blueprint:
    """What the people who run the service look at."""
    pages = Blueprint("operations", __name__)

    @pages.get("/health")
    def health() -> Response:
        with deadline(1.0):
            db.fetch_value("SELECT 1")
        return jsonify(status="ok")

    @pages.get("/slo")
    def slo() -> Response:
        return jsonify([asdict(verdict) for verdict in metrics.slo()])

    @pages.get("/errors")
    def errors() -> Response:
        return jsonify([asdict(group) for group in tracker.snapshot()])

    return pages


def body_of(schema: Schema) -> Any:
    try:
        return schema.validate(request.get_json())
    except RecursionError:  # brackets without end
        raise BadRequest("the body is not JSON") from None


def found(thing: T | None) -> T:
    if thing is None:
        raise MissingError("there is no such thing")
    return thing


def answer_refusal(error: Exception) -> Response:
    """Answer what the service or the framework refuses as application/problem+json; protect() answers the rest."""
    if isinstance(error, HTTPException):
        told = problem(error)
        return Response(told.json(), told.status, told.headers)
    status, request_now = REFUSALS[type(error)], current_request()
    answer = jsonify(
        type="about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=str(error),
        code="refused",
        request_id=request_now and request_now.request_id,
    )
    answer.status_code = status
    answer.mimetype = "application/problem+json"
    if status == 401:
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer
