"""The employee service as this one sees it: slow at times, gone at others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2

from examples.project.identity import token_of_this_service
from reliakit import CircuitBreaker, DeadlineExceededError, current_request, deadline, remaining

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from reliakit import OutboxMessage


class EmployeeServiceError(Exception):
    """The employee service answered with an error of its own."""


class Employees:
    """Asks the employee service, each call within its time, behind a breaker that spares a service in trouble.

    The time limit stands inside the breaker: a service that is too slow counts as one that fails.
    """

    def __init__(self, url: str, secret: str, *, patience: float, pause: float) -> None:
        self._client = httpx2.AsyncClient(base_url=url, timeout=patience, limits=httpx2.Limits(max_connections=20))
        self._secret = secret
        self._patience = patience
        self.breaker = CircuitBreaker(
            "employee-service",
            failure_threshold=5,
            reset_timeout=pause,
            failure=(httpx2.TransportError, DeadlineExceededError, EmployeeServiceError),
        )

    async def exists(self, employee_id: UUID, authorization: str) -> bool:
        """Tell whether there is such an employee.

        Raises:
            CircuitOpenError: The service is in trouble and was not asked.
            DeadlineExceededError: It took too long.
        """
        return bool(await self.names([employee_id], authorization))

    async def names(self, employee_ids: Iterable[UUID], authorization: str) -> dict[str, str]:
        """Return the names of those that exist, by id. Raises as `exists` does."""
        query = {"id": [str(employee_id) for employee_id in employee_ids]}
        found = await self.breaker.acall(self._get, "/employees", query, authorization)
        return {employee["id"]: employee["name"] for employee in found}

    async def tell_assignment(self, message: OutboxMessage) -> None:
        """Tell the service on which project an employee works now. Told twice, it is the same. Raises as `exists`."""
        path = f"/employees/{message.payload['employee_id']}/project"
        body = {"project_id": message.payload["project_id"]}
        await self.breaker.acall(self._put, path, body)

    async def _get(self, path: str, query: dict[str, list[str]], authorization: str) -> Any:
        response = await self._ask("GET", path, authorization, params=query)
        if response.status_code != 200:
            raise EmployeeServiceError(f"the employee service answered {response.status_code}")
        return response.json()

    async def _put(self, path: str, body: dict[str, int]) -> None:
        response = await self._ask("PUT", path, token_of_this_service(self._secret), json=body)
        if response.status_code not in (204, 404):  # an employee who was dismissed meanwhile works nowhere
            raise EmployeeServiceError(f"the employee service answered {response.status_code}")

    async def _ask(self, method: str, path: str, authorization: str, **content: Any) -> httpx2.Response:
        request = current_request()
        async with deadline(self._patience):
            headers = {
                "Authorization": authorization,
                "X-Request-ID": request.request_id if request else "",
                "X-Request-Deadline-Ms": str(int((remaining() or 0.0) * 1000)),
            }
            return await self._client.request(method, path, headers=headers, **content)

    async def aclose(self) -> None:
        await self._client.aclose()
