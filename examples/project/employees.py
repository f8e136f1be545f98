"""The employee service as this one sees it: slow at times, gone at others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from examples.project.identity import token_of_this_service
from reliakit import Backoff, CircuitBreaker, DeadlineExceededError, Policy, Retry, Timeout
from reliakit.integrations.httpx2 import AsyncPolicyTransport, FailedResponse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from reliakit import OutboxMessage


class EmployeeServiceError(Exception):
    """The employee service answered with an error of its own."""


class Employees:
    """Asks the employee service: each call within its time, once more if it fails, behind a breaker that spares it.

    The time limit stands inside the breaker: a service that is too slow counts as one that fails. Request id, trace
    and deadline travel along by themselves.
    """

    def __init__(self, url: str, secret: str, *, patience: float, pause: float) -> None:
        self._secret = secret
        trouble = (httpx2.TransportError, FailedResponse)
        self.breaker = CircuitBreaker(
            "employee-service", reset_timeout=pause, failure=(*trouble, DeadlineExceededError)
        )
        policy = Policy(Retry(2, on=trouble, wait=Backoff(0.02, cap=0.1)), self.breaker, Timeout(patience))
        transport = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_connections=20))
        self._client = httpx2.AsyncClient(
            base_url=url, timeout=patience, transport=AsyncPolicyTransport(policy, transport)
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
        response = await self._client.get("/employees", params=query, headers={"Authorization": authorization})
        if response.status_code != 200:
            raise EmployeeServiceError(f"the employee service answered {response.status_code}")
        return {employee["id"]: employee["name"] for employee in response.json()}

    async def tell_assignment(self, message: OutboxMessage) -> None:
        """Tell the service on which project an employee works now. Told twice, it is the same. Raises as `exists`."""
        response = await self._client.put(
            f"/employees/{message.payload['employee_id']}/project",
            json={"project_id": message.payload["project_id"]},
            headers={"Authorization": token_of_this_service(self._secret)},
        )
        if response.status_code not in (204, 404):  # an employee who was dismissed meanwhile works nowhere
            raise EmployeeServiceError(f"the employee service answered {response.status_code}")

    async def aclose(self) -> None:
        await self._client.aclose()
