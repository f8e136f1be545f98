"""The load: people log in, an attacker guesses, raises collide, and transfers must not lose anybody.

Each actor is one task that loops until the time is over. It asks, has its answer, pauses, and asks again: who meets
a slow machine comes less often, so that the load shows what the services do and not the queue that it makes itself.

A write carries an id of its own, so an answer that says "try again" or never comes is met by sending the same write
again: the services make it happen once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx2

from examples.demo.stage import StageError
from examples.demo.tally import Fate, Tally
from reliakit import SYSTEM_CLOCK, Backoff

if TYPE_CHECKING:
    import random

    from examples.demo.planted import Planted

_AGAIN = Backoff(base=0.1, factor=1.6, cap=1.0, jitter=0.5)
_TRIES = 20
_LEISURE = 2.0
_LONGEST_LEISURE = 8.0
_AT_ONCE = 4
Step = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Person:
    email: str
    password: str


class Traffic:
    """Everybody who uses the services."""

    def __init__(
        self, client: httpx2.AsyncClient, urls: dict[str, str], planted: Planted, dice: random.Random
    ) -> None:
        self._client = client
        self._urls = urls
        self._planted = planted
        self._dice = dice
        self._token = ""
        self._people: list[Person] = []
        self._departments: list[int] = []
        self._employees: list[str] = []
        self._projects: list[int] = []
        self._where: dict[str, int] = {}
        self._is_over = False
        self.tally = Tally()
        self.granted = 0

    @property
    def people(self) -> int:
        """How many people work on projects."""
        return len(self._where)

    def end(self) -> None:
        """Let each actor end after the step that it is in."""
        self._is_over = True

    async def all_is_well(self) -> bool:
        """Tell whether every service answers, and the project service asks the employee service again."""
        page = await self._ask("project", "GET", f"/projects/{self._projects[0]}")
        if page is None or page.status_code != 200 or not page.json()["names_known"]:
            return False
        answers = [await self._ask(service, "GET", "/health") for service in self._urls]
        return all(_is(answer, 200) for answer in answers)

    async def prepare(self) -> None:
        """Fill the empty databases, through the services as anybody would."""
        self._people = [Person(self._planted.email(), self._planted.password()) for _ in range(6)]
        await _all(self._register(person) for person in self._people)
        answer = await self._log_in(self._people[0], self._address())
        self._token = _made(answer)["access_token"]
        for name in ("Research", "Sales", "Support"):
            body = {"name": name, "budget": 50_000_000}
            self._departments.append(_made(await self._insist("employee", "POST", "/departments", body))["id"])
            self.granted += body["budget"]  # type: ignore[operator]  # an int among strings
        for name in ("Apollo", "Borealis", "Calypso", "Dione"):
            self._projects.append(_made(await self._insist("project", "POST", "/projects", {"name": name}))["id"])
        self._employees = [str(self._uuid()) for _ in range(24)]
        hires = enumerate(self._employees)
        while batch := list(islice(hires, _AT_ONCE)):
            await _all(self._hire(employee, number) for number, employee in batch)

    def actors(self) -> list[Step]:
        """Return what each actor does until `end()` is called."""
        movers, half = self._employees[::2], len(self._employees) // 2
        parts = [self._employees[part::3] for part in range(3)]
        return [
            *(self._every(0.05, self._raise) for _ in range(4)),
            *(self._every(0.15, partial(self._move, group)) for group in (movers[:half:2], movers[1::2])),
            *(self._every(0.08, partial(self._transfer, part)) for part in parts),
            *(self._every(0.12, self._look_at_project) for _ in range(4)),
            self._every(0.08, self._look_at_employee),
            self._every(0.5, self._come_to_work),
            self._every(0.9, self._mistype),
            self._every(0.35, self._guess),
            self._every(0.3, self._forge),
            self._every(0.25, self._blunder),
            self._every(0.4, self._transfer_nobody),
        ]

    def _every(self, pause: float, step: Step) -> Step:
        """Repeat a step, with twice the time that it took in between where that is more than its pause."""

        async def act() -> None:
            await SYSTEM_CLOCK.asleep(pause * self._dice.random())
            while not self._is_over:
                began = SYSTEM_CLOCK.monotonic()
                await step()
                took = SYSTEM_CLOCK.monotonic() - began
                # An outage is no slow machine: it must not keep anybody away for the rest of the run.
                leisure = max(pause, min(_LEISURE * took, _LONGEST_LEISURE * pause))
                await SYSTEM_CLOCK.asleep(leisure * (0.5 + self._dice.random()))

        return act

    async def _register(self, person: Person) -> None:
        body = {"email": person.email, "password": person.password}
        _made(await self._insist("auth", "POST", "/register", body))

    async def _hire(self, employee: str, number: int) -> None:
        start = date(2020, 1, 1) + timedelta(days=self._dice.randrange(2000))
        body = {
            "department_id": self._departments[number % len(self._departments)],
            "name": self._planted.marker(),
            "email": self._planted.email(),
            "iban": self._planted.iban(),
            "salary": 500_000,
            "starts_on": start.isoformat(),
            "note": f"paid the travel with card {self._planted.card()}, ask {self._planted.email()}",
        }
        _made(await self._insist("employee", "PUT", f"/employees/{employee}", body))
        project = self._projects[number % len(self._projects)]
        await self._insist("project", "PUT", f"/projects/{project}/members/{employee}")
        self._where[employee] = project

    async def _raise(self) -> None:
        """Give somebody a raise. Three departments for four actors: these collide."""
        employee, raise_id = self._dice.choice(self._employees), str(self._uuid())
        body = {"id": raise_id, "amount": self._dice.randrange(100, 5000)}
        answer = await self._insist("employee", "POST", f"/employees/{employee}/raises", body)
        self._note("raise", raise_id, answer)

    async def _move(self, group: list[str]) -> None:
        employee, department = self._dice.choice(group), self._dice.choice(self._departments)
        await self._insist("employee", "PUT", f"/employees/{employee}/department", {"department_id": department})

    async def _transfer(self, part: list[str]) -> None:
        """Move somebody to another project. Opposite directions collide, and nobody may get lost."""
        employee, transfer_id = self._dice.choice(part), str(self._uuid())
        source = self._where[employee]
        target = self._dice.choice([project for project in self._projects if project != source])
        body = {"id": transfer_id, "employee_id": employee, "source": source, "target": target}
        answer = await self._insist("project", "POST", "/transfers", body)
        if self._note("transfer", transfer_id, answer) == "acknowledged":
            self._where[employee] = target

    async def _look_at_project(self) -> None:
        answer = await self._ask("project", "GET", f"/projects/{self._dice.choice(self._projects)}")
        if answer is not None and answer.status_code == 200 and not answer.json()["names_known"]:
            self.tally.incomplete_pages += 1

    async def _look_at_employee(self) -> None:
        await self._ask("employee", "GET", f"/employees/{self._dice.choice(self._employees)}")

    async def _come_to_work(self) -> None:
        person = self._dice.choice(self._people[1:])
        answer = await self._log_in(person, self._address())
        if answer.status_code == 200:
            await self._ask("auth", "GET", "/verify", token=answer.json()["access_token"])

    async def _mistype(self) -> None:
        person = self._dice.choice(self._people[1:])
        answer = await self._try_to_log_in(Person(person.email, self._planted.password()), self._address())
        self._expect(answer, 401, "a wrong password", 429)
        self.tally.wrong_passwords += _is(answer, 401)

    async def _guess(self) -> None:
        """One attacker, one account, one password after the other."""
        guess = Person(self._people[0].email, self._planted.password())
        answer = await self._try_to_log_in(guess, "203.0.113.66")
        self._expect(answer, 401, "a guess", 429)
        self.tally.wrong_passwords += _is(answer, 401)
        self.tally.guesses_answered += _is(answer, 401)
        self.tally.guesses_turned_away += _is(answer, 429)

    async def _forge(self) -> None:
        service, path = self._dice.choice(
            [("auth", "/verify"), ("employee", "/departments/1"), ("project", "/projects")]
        )
        answer = await self._ask(service, "GET", path, token=self._planted.forged_token())
        self._expect(answer, 401, "a forged token", 429)
        self.tally.forged_tokens += _is(answer, 401) or _is(answer, 429)

    async def _blunder(self) -> None:
        """Send what no service may accept."""
        blunders: list[tuple[str, str, dict[str, Any]]] = [
            ("auth", "/register", {"email": "nobody", "password": self._planted.password()}),
            ("employee", f"/employees/{self._employees[0]}/raises", {"id": 7, "amount": "much"}),
            ("project", "/transfers", {"id": str(self._uuid()), "source": 1, "target": 1}),
        ]
        service, path, body = self._dice.choice(blunders)
        answer = await self._ask(service, "POST", path, body)
        self._expect(answer, 422, "bad input")

    async def _transfer_nobody(self) -> None:
        """Send a transfer that must be refused, and must not have happened afterwards either."""
        transfer_id = str(self._uuid())
        body = {"id": transfer_id, "employee_id": str(self._uuid()), "source": 1, "target": 2}
        answer = await self._insist("project", "POST", "/transfers", body)
        self._expect(answer, 409, "a transfer of nobody")
        self._note("transfer", transfer_id, answer)

    async def _try_to_log_in(self, person: Person, source: str) -> httpx2.Response | None:
        body = {"email": person.email, "password": person.password}
        return await self._ask("auth", "POST", "/login", body, source=source)

    async def _log_in(self, person: Person, source: str) -> httpx2.Response:
        body = {"email": person.email, "password": person.password}
        answer = await self._insist("auth", "POST", "/login", body, source=source)
        if answer.status_code == 200:
            self._planted.keep("token", answer.json()["access_token"])
        return answer

    async def _insist(
        self, service: str, method: str, path: str, body: dict[str, Any] | None = None, *, source: str = ""
    ) -> httpx2.Response:
        """Ask until there is an answer that stands; the last one, whatever it is, after twenty tries."""
        for attempt in range(1, _TRIES + 1):
            answer = await self._ask(service, method, path, body, source=source)
            if answer is not None and not _is_worth_another_try(answer):
                return answer
            self.tally.tried_again += 1
            await SYSTEM_CLOCK.asleep(_AGAIN.delay(attempt, self._dice.random))
        return answer if answer is not None else httpx2.Response(599)

    async def _ask(
        self,
        service: str,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        token: str = "",
        source: str = "",
    ) -> httpx2.Response | None:
        """Send one request and note its answer; None when there was none."""
        headers = {"X-Forwarded-For": source or self._address()}
        if token or self._token:
            headers["Authorization"] = f"Bearer {token or self._token}"
        try:
            answer = await self._client.request(method, self._urls[service] + path, json=body, headers=headers)
        except httpx2.TransportError as error:
            self.tally.answers[service, 0] += 1
            self.tally.problems[type(error).__name__] += 1
            return None
        self.tally.answers[service, answer.status_code] += 1
        if answer.status_code >= 500:
            self.tally.problems[f"{answer.status_code} {_code_of(answer)}"] += 1
        return answer

    def _note(self, kind: str, write_id: str, answer: httpx2.Response) -> Fate:
        fate: Fate = "unknown"
        if answer.status_code in {200, 201}:
            fate = "acknowledged"
        elif answer.status_code < 500:
            fate = "refused"
        self.tally.writes[kind, write_id] = fate
        return fate

    def _expect(self, answer: httpx2.Response | None, status: int, what: str, or_else: int = 0) -> None:
        """Note an answer that should not have been given; a failure is no surprise, a welcome would be."""
        if answer is not None and answer.status_code not in {status, or_else} and answer.status_code < 500:
            self.tally.surprises[f"{answer.status_code} to {what}"] += 1

    def _address(self) -> str:
        return f"198.51.100.{self._dice.randrange(1, 250)}"

    def _uuid(self) -> UUID:
        return UUID(int=self._dice.getrandbits(128), version=4)


async def _all(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for step in steps:
            group.create_task(step)


def _made(answer: httpx2.Response) -> Any:
    """Return the body of an answer without which there is nothing to show."""
    if not answer.is_success:
        raise StageError(f"preparing the run failed: {answer.status_code} {answer.text}")
    return answer.json()


def _is_worth_another_try(answer: httpx2.Response) -> bool:
    return answer.status_code >= 500 or (answer.status_code == 409 and _code_of(answer) == "conflict")


def _is(answer: httpx2.Response | None, status: int) -> bool:
    return answer is not None and answer.status_code == status


def _code_of(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return "without a code"
