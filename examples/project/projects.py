"""Projects and assignments in the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from reliakit import AsyncRepository, AsyncTransaction, Isolation, Outbox, transactional

# What the employee service is told of assignments, in the order in which they were made for each employee.
ASSIGNMENTS = Outbox("assignment_outbox")


class RefusedError(Exception):
    """What was asked for contradicts what is there."""


@dataclass(frozen=True, slots=True)
class Project:
    id: int
    name: str
    head_count: int
    members: tuple[UUID, ...] = ()


class Projects(AsyncRepository):
    @transactional(operation="add_project")
    async def add(self, name: str) -> Project | None:
        """Add a project; None when the name is taken."""
        row = await self.db.fetch_one(
            "INSERT INTO project (name) VALUES (%s) ON CONFLICT (name) DO NOTHING RETURNING id, name, head_count",
            (name,),
        )
        return row and Project(*row)

    @transactional(operation="projects", read_only=True)
    async def all(self) -> list[Project]:
        rows = await self.db.fetch_all("SELECT id, name, head_count FROM project ORDER BY id LIMIT 500")
        return [Project(*row) for row in rows]

    @transactional(operation="project", read_only=True)
    async def one(self, project_id: int) -> Project | None:
        """Return a project with its first hundred members; its head count tells how many there are."""
        row = await self.db.fetch_one("SELECT id, name, head_count FROM project WHERE id = %s", (project_id,))
        if row is None:
            return None
        members = await self.db.fetch_all(
            "SELECT employee_id FROM assignment WHERE project_id = %s ORDER BY since, employee_id LIMIT 100",
            (project_id,),
        )
        return Project(row[0], row[1], row[2], tuple(employee_id for (employee_id,) in members))

    @transactional(operation="assign")
    async def assign(self, project_id: int, employee_id: UUID) -> bool:
        """Put an employee on a project; False when the employee was there already."""
        current = await self.db.fetch_value(
            "SELECT project_id FROM assignment WHERE employee_id = %s", (employee_id,)
        )
        if current == project_id:
            return False
        if current is not None:
            raise RefusedError("the employee works on another project: make a transfer")
        await self._count({project_id: 1})
        await self.db.execute(
            "INSERT INTO assignment (employee_id, project_id) VALUES (%s, %s)", (employee_id, project_id)
        )
        await self._announce(self.current(), employee_id, project_id)
        return True

    async def transfer(self, transfer: dict[str, Any], made_by: str) -> bool:
        """Move an employee from one project to another; False when the employee is not on the source.

        The transfer's id is its idempotency key: sent twice it is made once, and answered alike. So an answer of the
        database that never came is no trouble either. Another transfer under the same id is refused.

        Everybody changes the same few head counts. READ COMMITTED waits for one, where a snapshot would be too old.
        """
        transfer_id = str(UUID(transfer["id"]))  # of its spellings, the one
        move = [str(UUID(transfer["employee_id"])), int(transfer["source"]), int(transfer["target"])]
        made = await self.db.run(
            self._transfer,
            transfer_id,
            move,
            made_by,
            isolation=Isolation.READ_COMMITTED,
            operation="transfer",
            idempotency_key=f"transfer {transfer_id}",
        )
        if made and made != move:
            raise RefusedError("this id belongs to another transfer")
        return bool(made)

    async def _transfer(self, tx: AsyncTransaction, transfer_id: str, move: list[Any], made_by: str) -> list[Any]:
        """Move an employee and return the move, or nothing when the employee is elsewhere.

        The head counts come last, so that nobody waits for them longer than need be.
        """
        employee_id, source, target = move
        where = await self.db.fetch_value(
            "SELECT project_id FROM assignment WHERE employee_id = %s FOR UPDATE", (employee_id,)
        )
        if where != source:
            return []
        await self.db.execute(
            "UPDATE assignment SET project_id = %s, since = now() WHERE employee_id = %s",
            (target, employee_id),
        )
        await self.db.execute(
            "INSERT INTO transfer (id, employee_id, source, target, made_by) VALUES (%s, %s, %s, %s, %s)",
            (transfer_id, employee_id, source, target, made_by),
        )
        await self._announce(tx, employee_id, target)
        await self._count({source: -1, target: 1})
        return move

    async def _announce(self, tx: AsyncTransaction, employee_id: UUID | str, project_id: int) -> None:
        assignment = {"employee_id": str(employee_id), "project_id": project_id}
        await ASSIGNMENTS.apublish(tx, "assigned", assignment, key=str(employee_id))

    async def _count(self, heads: dict[int, int]) -> None:
        """Change head counts in the order of their ids: two transfers would else hold what the other waits for."""
        cursor = await self.db.execute(
            "UPDATE project SET head_count = head_count + change"
            " FROM (SELECT id, change FROM project JOIN unnest(%s::int[], %s::int[]) AS wish (id, change) USING (id)"
            "       ORDER BY id FOR NO KEY UPDATE OF project) AS ordered WHERE project.id = ordered.id",
            (list(heads), list(heads.values())),
        )
        if cursor.rowcount < len(heads):
            raise RefusedError("there is no such project")
